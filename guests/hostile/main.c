// SPDX-License-Identifier: Apache-2.0
/*
 * A guest that attacks its hypervisor.  CPU#0 does what bootargs say; CPU#1, if there is one, is honest: it signals
 * itself for ever and looks whether each event comes exactly once and whether its memory and registers are its own.
 * The others help where a case is about all CPUs at once, and stay off elsewhere.
 *
 * bootargs: case=NAME (below)
 *           seed=N, count=N, all=1 (random: which instructions, how many, and those as well that kill an engine)
 *
 * A case of which CPU#0 comes back ends with "Result: OK" and SYSTEM_OFF.  From the others it does not come back: the
 * last it says is "gone: ...", and what becomes of it is for the host to see.
 */
#include "fdt.h"
#include "hostile.h"
#include "ram.h"

volatile struct trap traps[HOSTILE_CPUS];
u64 ram_end, block, seed;
bool has_gic;
u32 own_event;
volatile u64 ready[HOSTILE_CPUS], handled;
u64 (*act)(struct sdei_frame *);

static volatile u64 gone, honest_gone;		/* CPU#0 says no more; the honest one has seen it */
static volatile u64 own_events, other_events;
static void (*helpers_do)(struct cpu *);

/* -- the honest CPU */

static void honest(struct cpu *cpu)
{
	static volatile u64 memory[64];
	u64 n, shown = 256;

	own_event = sdei2(SDEI_EVENT_GET_INFO, OWN_EVENT, SDEI_INFO_TYPE) ? 0 : OWN_EVENT;
	for (u64 i = 0; i < 64; i++)
		memory[i] = pattern(i);
	if (sdei_call(SDEI_EVENT_REGISTER, own_event, (u64)sdei_entry, 0, 0, 0) || sdei1(SDEI_EVENT_ENABLE, own_event))
		result_failed("honest CPU#%lu: no event", cpu->index);
	/* Event 0 is for whoever likes to bother it. */
	if (own_event && (sdei_call(SDEI_EVENT_REGISTER, 0, (u64)sdei_entry, 0, 0, 0) || sdei1(SDEI_EVENT_ENABLE, 0)))
		result_failed("honest CPU#%lu: no event 0", cpu->index);
	sdei0(SDEI_PE_UNMASK);
	ready[cpu->index] = 1;
	for (;;) {
		n = own_events;
		if (sdei2(SDEI_EVENT_SIGNAL, own_event, cpu->mpidr))
			result_failed("honest CPU#%lu: EVENT_SIGNAL", cpu->index);
		for (u64 spin = 0; own_events == n; spin++)
			if (spin == SPIN_LIMIT)
				result_failed("honest CPU#%lu: no event after %lu", cpu->index, n);
		if (own_events != n + 1)
			result_failed("honest CPU#%lu: %lu events instead of one", cpu->index, own_events - n);
		for (u64 i = 0; i < 64; i++)
			if (memory[i] != pattern(i))
				result_failed("honest CPU#%lu: word %lu has changed", cpu->index, i);
		if (this_cpu() != cpu || read_sysreg("vbar_el1") != (u64)hostile_vectors)
			result_failed("honest CPU#%lu: its registers have changed", cpu->index);
		honest_gone = gone;
		if (honest_gone && own_events >= shown) {
			print("honest: %lu events, all in order\n", own_events);
			shown = own_events * 2;
		}
	}
}

u64 sdei_handler(struct sdei_frame *f)
{
	if ((read_sysreg("mpidr_el1") & 0xff) != 1) {
		handled++;
		return act ? act(f) : 0;
	}
	if (f->x[0] == own_event)
		own_events++;
	else
		other_events++;
	mb();
	return 0;
}

void say_gone(const char *what)
{
	print("gone: %s\n", what);
	gone = 1;
	mb();
}

static void come_back(void)
{
	gone = 0;
	mb();
	for (u64 spin = 0; machine.nr_cpus > 1 && honest_gone; spin++)
		if (spin == SPIN_LIMIT)
			result_failed("the honest CPU is stuck");
}

/* -- helpers for cases */

void expect(const char *what, s64 got, s64 want)
{
	if (got != want)
		result_failed("%s: %ld (0x%lx) instead of %ld", what, got, got, want);
}

void event_0(u64 entry, u64 argument, u64 flags)
{
	expect("EVENT_REGISTER", sdei_call(SDEI_EVENT_REGISTER, 0, entry, argument, flags, 0), 0);
	expect("EVENT_ENABLE", sdei1(SDEI_EVENT_ENABLE, 0), 0);
	expect("PE_UNMASK", sdei0(SDEI_PE_UNMASK), 0);
}

void no_event_0(void)
{
	expect("EVENT_UNREGISTER", sdei1(SDEI_EVENT_UNREGISTER, 0), 0);
}

s64 psci(u32 id, u64 a, u64 b, u64 c)
{
	struct smccc_regs r = { { id, a, b, c } };

	smccc_hvc(&r);
	return (s64)r.x[0];
}

/* -- */

static void nothing(struct cpu *cpu)
{
	(void)cpu;
	say_gone("nothing");
	for (;;)
		__asm__ volatile("wfi");
}

static void look_around(void)
{
	struct fdt f;
	u32 node, child = FDT_NONE;
	const char *name;
	u64 start;

	ram_find(&start, &ram_end);
	if (!fdt_open(&f, machine.dtb))
		result_failed("no device tree");
	has_gic = fdt_node(&f, "/intc", 5) != FDT_NONE;
	node = fdt_node(&f, "/reserved-memory", 16);
	while (node && (child = fdt_child(&f, node, child, &name)))
		if (strlen(name) > 8 && !memcmp(name, "monitor@", 8) && !fdt_reg(&f, child, 2, &block))
			block = 0;
}

static const struct attack {
	const char *name;
	void (*run)(struct cpu *);
	void (*helpers)(struct cpu *);
} attacks[] = {
	{ "none", nothing, NULL },
	{ "handler-hole", handler_hole, NULL }, { "handler-device", handler_device, NULL },
	{ "handler-beyond", handler_beyond, NULL }, { "handler-host", handler_host, NULL },
	{ "handler-ones", handler_ones, NULL }, { "handler-refused", handler_refused, NULL },
	{ "handler-relative", handler_relative, NULL }, { "vbar", vbar_nonsense, NULL },
	{ "never", handler_never, NULL }, { "spin", never_masked, NULL }, { "twice", complete_twice, NULL },
	{ "again", reenter, NULL }, { "again-forever", reenter_forever, NULL }, { "meddle", meddle_inside, NULL },
	{ "resume", resume_nonsense, NULL }, { "cpu-off", handler_cpu_off, NULL }, { "reset", handler_system_reset, NULL },
	{ "suspend", handler_suspend, NULL }, { "power-down", handler_power_down, NULL },
	{ "stacks", stacks, NULL }, { "ones", ones, NULL },
	{ "storm", storm, storm_helper }, { "storm-mask", storm_mask, mask_helper },
	{ "storm-calls", storm_calls, call_helper }, { "storm-aborts", storm_aborts, abort_helper },
	{ "storm-console", storm_console, NULL }, { "el0", el0, NULL }, { "walk", walk_memory, NULL },
	{ "widths", walk_widths, NULL }, { "devices", walk_devices, NULL }, { "psci", psci_nonsense, NULL },
	{ "cpu-on", cpu_on_nowhere, NULL }, { "exhaust", exhaust, NULL }, { "tpidr", tpidr_garbage, NULL },
	{ "registers", system_registers, NULL }, { "mmu", mmu_on_nonsense, NULL }, { "mmu-ones", mmu_on_ones, NULL },
	{ "tables", tables_change, NULL }, { "random", random_instructions, NULL },
};

static void wait_ready(void)
{
	for (u64 i = 1; i < machine.nr_cpus; i++)
		for (u64 spin = 0; (i == 1 || helpers_do) && !ready[i]; spin++)
			if (spin == SPIN_LIMIT)
				result_failed("CPU#%lu does not get ready", i);
}

static void other(struct cpu *cpu)
{
	write_sysreg("vbar_el1", hostile_vectors);
	if (cpu->index == 1)
		honest(cpu);
	if (helpers_do)
		helpers_do(cpu);
	(void)psci(PSCI_CPU_OFF, 0, 0, 0);
}

void guest_main(struct cpu *cpu)
{
	const char *name = "none";
	size_t len = strlen(name);
	u32 i;

	(void)arg_str("case", &name, &len);
	for (i = 0; i < sizeof(attacks) / sizeof(attacks[0]) && !str_is(name, len, attacks[i].name); i++)
		;
	if (i == sizeof(attacks) / sizeof(attacks[0]))
		result_failed("bootargs: no such case");
	if (!machine.has_sdei || machine.nr_cpus > HOSTILE_CPUS)
		result_failed("no SDEI, or more than %u CPUs", (u32)HOSTILE_CPUS);
	seed = arg_u64("seed", 1) * 0x9e3779b97f4a7c15ul | 1;
	look_around();
	write_sysreg("vbar_el1", hostile_vectors);
	helpers_do = attacks[i].helpers;
	act = helpers_do == storm_helper ? pass_on : NULL;
	cpus_start(other);
	wait_ready();
	print("case %s on %u CPUs\n", attacks[i].name, machine.nr_cpus);
	attacks[i].run(cpu);
	come_back();
	print("still here\n");
	result_ok();
}
