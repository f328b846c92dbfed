// SPDX-License-Identifier: Apache-2.0
/* Calls: with registers full of ones, from EL0, to PSCI with nonsense, until nothing is left to bind. */
#include "hostile.h"

/* -- registers full of ones, and calls that nobody knows */

static bool ends(u32 id)
{
	u32 psci = id & ~0x40000000u;

	return psci == PSCI_CPU_OFF || psci == PSCI_SYSTEM_OFF || psci == PSCI_SYSTEM_RESET;
}

void ones(struct cpu *cpu)
{
	u64 calls = 0;

	(void)cpu;
	for (u32 owner = 0; owner < 64; owner++) {
		for (u32 number = 0; number < 0x10040; number = number == 0x7f ? 0xfff0 : number + 1) {
			for (u32 form = 0; form < 4; form++) {
				u32 id = form << 30 | (owner & 0x3f) << 24 | (number & 0xffff);

				if (number > 0xffff || ends(id) || (owner > 7 && number > 3 && number < 0xfffe))
					continue;
				if (owner != 4 && number > 7 && number < 0xfff0)
					continue;
				(void)ones_hvc(~0ul << 32 | id);
				(void)ones_smc(id);
				calls += 2;
			}
		}
	}
	print("%lu calls with registers full of ones\n", calls);
	expect("VERSION", sdei0(SDEI_VERSION) >> 48, 1);
}

/* -- EL0 */

void el0(struct cpu *cpu)
{
	static const u32 ids[] = {
		PROBE, PSCI_SYSTEM_OFF, PSCI_CPU_OFF, PSCI_SYSTEM_RESET, SDEI_VERSION, SDEI_EVENT_COMPLETE, SDEI_PE_MASK,
		SDEI_PRIVATE_RESET, SDEI_EVENT_UNREGISTER, 0xffffffff,
	};
	volatile struct trap *t = my_trap();

	act = NULL;
	event_0((u64)sdei_entry, 0, 0);
	for (u32 i = 0; i < sizeof(ids) / sizeof(ids[0]); i++) {
		u64 n = t->taken;

		enter_el0((u64)el0_hvc, ids[i]);
		expect("HVC at EL0", EC(t->esr), EC_UNKNOWN);
		enter_el0((u64)el0_smc, ids[i]);
		expect("SMC at EL0", EC(t->esr), EC_UNKNOWN);
		enter_el0((u64)el0_svc, ids[i]);
		expect("SVC at EL0", EC(t->esr), EC_SVC);
		expect("exceptions", t->taken, n + 3);
	}
	expect("EVENT_STATUS", sdei1(SDEI_EVENT_STATUS, 0), 3);
	expect("EVENT_SIGNAL", sdei2(SDEI_EVENT_SIGNAL, 0, cpu->mpidr), 0);
	expect("events", handled, 1);
	/* The one call that counts. */
	(void)ones_hvc(PROBE);
}

/* -- PSCI, slots */

void psci_nonsense(struct cpu *cpu)
{
	static const u64 wild[] = { 0x100, 0x80000000, 0xff00000000, 1ul << 63, ~0ul, 0xfffffffful };

	expect("CPU_ON of itself", psci(PSCI_CPU_ON64, cpu->mpidr, (u64)_start, 0), -4);
	for (u32 i = 0; i < sizeof(wild) / sizeof(wild[0]); i++) {
		expect("CPU_ON", psci(PSCI_CPU_ON64, wild[i], (u64)_start, 0), INVALID);
		expect("AFFINITY_INFO", psci(PSCI_AFFINITY_INFO, wild[i], 0, 0), INVALID);
		expect("AFFINITY_INFO", psci(PSCI_AFFINITY_INFO, cpu->mpidr, wild[i] | 4, 0), INVALID);
		expect("CPU_SUSPEND", psci(PSCI_CPU_SUSPEND, wild[i] | 1ul << 31, (u64)_start, 0), INVALID);
	}
	{
		const u64 places[] = { 0, 1, HOLE, TABLES, ram_end, BEYOND, ~3ul, (u64)_start + 2, block ? block : ram_end };

		for (u32 i = 0; i < sizeof(places) / sizeof(places[0]); i++) {
			expect("CPU_ON", psci(PSCI_CPU_ON64, cpus[0].mpidr, places[i], 0), -9);
			expect("CPU_SUSPEND", psci(PSCI_CPU_SUSPEND, PSCI_POWERDOWN, places[i], 0), -9);
		}
	}
}

/* Another CPU begins where there is no code. */
void cpu_on_nowhere(struct cpu *cpu)
{
	(void)cpu;
	say_gone("CPU#2 begins in empty memory");
	expect("CPU_ON", psci(PSCI_CPU_ON64, cpus[2].mpidr, SCRATCH, 0), 0);
	for (;;)
		relax();
}

void exhaust(struct cpu *cpu)
{
	s64 slots = sdei1(SDEI_FEATURES, SDEI_FEATURE_BIND_SLOTS), bound[2] = { 0 };

	(void)cpu;
	for (u32 round = 0; round < 3; round++) {
		bound[0] = bound[1] = 0;
		for (u64 intid = 0; intid < 1100; intid += intid > 64 && intid < 1000 ? 8 : 1) {
			s64 event = sdei1(SDEI_INTERRUPT_BIND, intid);
			bool spi = intid > 31;

			/* The timers' interrupts may belong to the machine, but for that: */
			if (intid < 16 || intid > 1019) {
				expect("BIND", event, INVALID);
			} else if (event == OUT_OF_RESOURCE) {
				expect("slots", bound[spi], spi ? slots >> 16 : slots & 0xffff);
			} else if (event < 0) {
				expect("BIND", event, INVALID);
			} else {
				bound[spi]++;
				(void)sdei_call(SDEI_EVENT_REGISTER, (u64)event, (u64)sdei_entry, 0, 0, 0);
				(void)sdei1(SDEI_EVENT_ENABLE, (u64)event);
				expect("RELEASE", sdei1(SDEI_INTERRUPT_RELEASE, (u64)event), DENIED);
			}
		}
		expect("private slots", bound[0], slots & 0xffff);
		expect("shared slots", bound[1], slots >> 16);
		expect("PRIVATE_RESET", sdei0(SDEI_PRIVATE_RESET), 0);
		expect("SHARED_RESET", sdei0(SDEI_SHARED_RESET), 0);
	}
	print("%ld private and %ld shared slots, three times\n", bound[0], bound[1]);
}
