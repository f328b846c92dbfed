// SPDX-License-Identifier: Apache-2.0
/* Handlers, stacks and addresses to go on at that are none; handlers that do what they should not. */
#include "hostile.h"

/* -- where handlers may not be */

static void handler_at(struct cpu *cpu, u64 address, u64 flags, u64 expected)
{
	volatile struct trap *t = my_trap();
	u64 n = t->taken;

	event_0(address, 0, flags);
	expect("EVENT_SIGNAL", provoke(0, cpu->mpidr), 0);
	if (t->taken != n + 1)
		result_failed("handler at 0x%lx: %lu exceptions", expected, t->taken - n);
	if (t->elr != expected || (EC(t->esr) != EC_FETCH && EC(t->esr) != EC_UNKNOWN))
		result_failed("handler at 0x%lx: ESR 0x%lx ELR 0x%lx", expected, t->esr, t->elr);
	print("handler at 0x%lx: ESR 0x%lx FAR 0x%lx\n", expected, t->esr, t->far);
	no_event_0();
}

void handler_hole(struct cpu *cpu) { handler_at(cpu, HOLE, 0, HOLE); }
void handler_device(struct cpu *cpu) { handler_at(cpu, machine.uart, 0, machine.uart); }

void handler_beyond(struct cpu *cpu)
{
	handler_at(cpu, ram_end, 0, ram_end);
	handler_at(cpu, BEYOND, 0, BEYOND);
}

void handler_host(struct cpu *cpu)
{
	handler_at(cpu, TABLES, 0, TABLES);
	if (block) {
		handler_at(cpu, block, 0, block);
		handler_at(cpu, block + 0x10000, 0, block + 0x10000);	/* the mailboxes */
	}
}

void handler_ones(struct cpu *cpu)
{
	handler_at(cpu, ~3ul, 0, ~3ul);
	handler_at(cpu, NONCANONICAL, 0, NONCANONICAL);
}

void handler_refused(struct cpu *cpu)
{
	static const u64 odd[] = { 1, 2, 3, RAM_BASE + 1, ~0ul, HOLE + 2, 0 };

	(void)cpu;
	for (u32 i = 0; i < sizeof(odd) / sizeof(odd[0]); i++)
		expect("EVENT_REGISTER", sdei_call(SDEI_EVENT_REGISTER, 0, odd[i], 0, 0, 0), INVALID);
	for (u32 bit = 2; bit < 64; bit++)
		expect("EVENT_REGISTER", sdei_call(SDEI_EVENT_REGISTER, 0, (u64)sdei_entry, 0, 1ul << bit, 0), INVALID);
	expect("EVENT_REGISTER", sdei_call(SDEI_EVENT_REGISTER, ~0ul, (u64)sdei_entry, 0, 0, 0), INVALID);
	expect("EVENT_STATUS", sdei1(SDEI_EVENT_STATUS, 0), 0);
}

/* Relative to VBAR_EL1: the sum wraps. */
void handler_relative(struct cpu *cpu)
{
	handler_at(cpu, HOLE - (u64)hostile_vectors, SDEI_REGISTER_RELATIVE, HOLE);
	handler_at(cpu, ~3ul - (u64)hostile_vectors, SDEI_REGISTER_RELATIVE, ~3ul);
}

/* The handler and the vectors to which its abort goes: nothing is left to take anything. */
void vbar_nonsense(struct cpu *cpu)
{
	event_0(0, 0, SDEI_REGISTER_RELATIVE);
	say_gone("vectors and handler in a hole");
	write_sysreg("vbar_el1", HOLE);
	sdei2(SDEI_EVENT_SIGNAL, 0, cpu->mpidr);
	for (;;)
		relax();
}

/* -- what handlers may not do */

void handler_never(struct cpu *cpu)
{
	event_0((u64)handler_spin, 0, 0);
	say_gone("in a handler for ever");
	sdei2(SDEI_EVENT_SIGNAL, 0, cpu->mpidr);
}

void never_masked(struct cpu *cpu)
{
	say_gone("without a handler, for ever");
	(void)cpu;
	for (;;)
		__asm__ volatile("");
}

void complete_twice(struct cpu *cpu)
{
	event_0((u64)sdei_entry, 0, 0);
	for (u64 i = 1; i <= 100; i++) {
		expect("EVENT_SIGNAL", sdei2(SDEI_EVENT_SIGNAL, 0, cpu->mpidr), 0);
		expect("events", handled, i);
		expect("the second EVENT_COMPLETE", sdei1(SDEI_EVENT_COMPLETE, 0), DENIED);
		expect("EVENT_COMPLETE_AND_RESUME", sdei1(SDEI_EVENT_COMPLETE_AND_RESUME, (u64)_start), DENIED);
		expect("EVENT_CONTEXT", sdei1(SDEI_EVENT_CONTEXT, 0), DENIED);
		expect("EVENT_STATUS", sdei1(SDEI_EVENT_STATUS, 0), 3);
	}
}

u64 again_a_while(struct sdei_frame *f)
{
	(void)f;
	if (handled < 200)
		expect("EVENT_SIGNAL", sdei2(SDEI_EVENT_SIGNAL, 0, this_cpu()->mpidr), 0);
	return 0;
}

void reenter(struct cpu *cpu)
{
	act = again_a_while;
	event_0((u64)sdei_entry, 0, 0);
	expect("EVENT_SIGNAL", sdei2(SDEI_EVENT_SIGNAL, 0, cpu->mpidr), 0);
	expect("events", handled, 200);
}

void reenter_forever(struct cpu *cpu)
{
	event_0((u64)handler_again, cpu->mpidr, 0);
	say_gone("from one handler into the next");
	sdei2(SDEI_EVENT_SIGNAL, 0, cpu->mpidr);
}

static u64 meddle(struct sdei_frame *f)
{
	u64 entry = (u64)sdei_entry;

	(void)f;
	expect("REGISTER inside", sdei_call(SDEI_EVENT_REGISTER, 0, entry, 0, 0, 0), DENIED);
	expect("DISABLE inside", sdei1(SDEI_EVENT_DISABLE, 0), 0);
	expect("ENABLE inside", sdei1(SDEI_EVENT_ENABLE, 0), 0);
	expect("ROUTING_SET inside", sdei_call(SDEI_EVENT_ROUTING_SET, 0, 0, 0, 0, 0), INVALID);
	for (u64 i = 18; i < 32; i++)
		expect("CONTEXT beyond", sdei1(SDEI_EVENT_CONTEXT, i < 31 ? i : ~0ul), INVALID);
	expect("UNREGISTER inside", sdei1(SDEI_EVENT_UNREGISTER, 0), PENDING);
	expect("UNREGISTER twice", sdei1(SDEI_EVENT_UNREGISTER, 0), PENDING);
	expect("REGISTER while pending", sdei_call(SDEI_EVENT_REGISTER, 0, entry, 0, 0, 0), DENIED);
	expect("ENABLE while pending", sdei1(SDEI_EVENT_ENABLE, 0), DENIED);
	expect("SIGNAL while pending", sdei2(SDEI_EVENT_SIGNAL, 0, this_cpu()->mpidr), INVALID);
	expect("PRIVATE_RESET inside", sdei0(SDEI_PRIVATE_RESET), DENIED);
	expect("STATUS inside", sdei1(SDEI_EVENT_STATUS, 0), SDEI_STATUS_RUNNING);
	return 0;
}

void meddle_inside(struct cpu *cpu)
{
	act = meddle;
	for (u64 i = 1; i <= 20; i++) {
		event_0((u64)sdei_entry, 0, 0);
		expect("EVENT_SIGNAL", sdei2(SDEI_EVENT_SIGNAL, 0, cpu->mpidr), 0);
		expect("events", handled, i);
		expect("EVENT_STATUS", sdei1(SDEI_EVENT_STATUS, 0), 0);
	}
}

/* Handlers that go on somewhere else. */
static void resume_at(struct cpu *cpu, u64 address)
{
	volatile struct trap *t = my_trap();
	u64 n = t->taken;

	event_0((u64)handler_resume, address, 0);
	if (address & 3) {
		expect("EVENT_SIGNAL", provoke(0, cpu->mpidr), 0);
		expect("exceptions", t->taken, n);
	} else {
		lose_way(cpu->mpidr);
		expect("exceptions", t->taken, n + 1);
		if (t->elr != address)
			result_failed("resumed at 0x%lx: ESR 0x%lx ELR 0x%lx", address, t->esr, t->elr);
		print("resumed at 0x%lx: ESR 0x%lx\n", address, t->esr);
	}
	no_event_0();
}

void resume_nonsense(struct cpu *cpu)
{
	static const u64 places[] = { 1, 2, ~0ul, ~3ul, HOLE, TABLES, BEYOND, NONCANONICAL, 0x09000000 };

	for (u32 i = 0; i < sizeof(places) / sizeof(places[0]); i++)
		resume_at(cpu, places[i]);
	resume_at(cpu, block ? block : ram_end);
}

void handler_cpu_off(struct cpu *cpu)
{
	event_0((u64)handler_off, 0, 0);
	say_gone("CPU_OFF inside of a handler");
	sdei2(SDEI_EVENT_SIGNAL, 0, cpu->mpidr);
}

void handler_system_reset(struct cpu *cpu)
{
	event_0((u64)handler_reset, 0, 0);
	say_gone("SYSTEM_RESET inside of a handler");
	sdei2(SDEI_EVENT_SIGNAL, 0, cpu->mpidr);
}

static u64 suspend(struct sdei_frame *f)
{
	/* Its own event waits, and cannot be what wakes it. */
	(void)f;
	(void)sdei2(SDEI_EVENT_SIGNAL, 0, this_cpu()->mpidr);
	for (;;)
		(void)psci(PSCI_CPU_SUSPEND, 0, 0, 0);
}

static u64 power_down(struct sdei_frame *f)
{
	(void)f;
	for (;;)
		(void)psci(PSCI_CPU_SUSPEND, PSCI_POWERDOWN, (u64)handler_spin, 0);
}

void handler_power_down(struct cpu *cpu)
{
	act = power_down;
	event_0((u64)sdei_entry, 0, 0);
	say_gone("a power-down inside of a handler");
	sdei2(SDEI_EVENT_SIGNAL, 0, cpu->mpidr);
}

void handler_suspend(struct cpu *cpu)
{
	act = suspend;
	event_0((u64)sdei_entry, 0, 0);
	say_gone("CPU_SUSPEND inside of a handler");
	sdei2(SDEI_EVENT_SIGNAL, 0, cpu->mpidr);
}

/* -- stacks */

void stacks(struct cpu *cpu)
{
	const u64 places[] = { 16, HOLE, BEYOND, NONCANONICAL, ~15ul, block ? block + 0x2000 : TABLES + 0x100, 8, ~0ul };
	volatile struct trap *t = my_trap();

	event_0((u64)sdei_entry, 0, 0);
	/* SP alignment is checked, as an operating system has it. */
	write_sysreg("sctlr_el1", read_sysreg("sctlr_el1") | 1ul << 3);
	for (u32 i = 0; i < sizeof(places) / sizeof(places[0]); i++) {
		u64 n = t->taken;

		expect("EVENT_SIGNAL", provoke(places[i], cpu->mpidr), 0);
		print("stack at 0x%lx: ESR 0x%lx FAR 0x%lx\n", places[i], t->esr, t->far);
		expect("exceptions", t->taken, n + 1);
		/* Not every processor checks the alignment of SP; those that do not find that there is no memory. */
		if (EC(t->esr) != EC_DATA && !(places[i] & 15 && EC(t->esr) == EC_SP))
			result_failed("stack at 0x%lx: ESR 0x%lx", places[i], t->esr);
	}
	/* The serial port takes a stack for text. */
	expect("EVENT_SIGNAL", provoke(machine.uart + 0x400, cpu->mpidr), 0);
	/* A handler runs on SP_EL1 whatever was selected. */
	handled = 0;
	expect("EVENT_SIGNAL", provoke_spsel(1, cpu->mpidr), 0);
	expect("events", handled, 1);
	no_event_0();
}
