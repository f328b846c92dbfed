// SPDX-License-Identifier: Apache-2.0
/*
 * Start and end of a guest that is moved: what bootargs want, how a failure gets out.
 *
 * bootargs: case=load (default) | cells.N | list
 *           patience=N (seconds that CPU#0 waits for what must happen, default 20)
 *           load: mib=N (of each CPU's arena, default 1), rate=N (pages that a pass writes, 0: all), inside=N (polls that
 *           a handler takes, default 200), signals=1 (CPUs raise event 0 for each other)
 */
#include "mover.h"

struct pe pes[MOVER_CPUS];

static bool is_load;
static void (*run_secondary)(struct cpu *);

/* -- failures */

static void say_failed(const struct pe *p)
{
	print("\nMOVER FAILED CPU#%lu: %s\n", p->cpu->index, p->text);
	result_failed("CPU#%lu", p->cpu->index);
}

void look_for_failures(void)
{
	for (u64 i = 0; i < machine.nr_cpus; i++)
		if (pes[i].failed)
			say_failed(&pes[i]);
}

void failed(const char *fmt, ...)
{
	struct pe *p = this_pe();
	struct out o = { .buf = p->text, .cap = sizeof(p->text) - 1 };
	va_list ap;

	va_start(ap, fmt);
	out_vprintf(&o, fmt, ap);
	va_end(ap);
	p->text[o.len] = '\0';
	mb();
	p->failed = 1;
	/* CPU#0 may be about to print, but it may also be stuck. */
	for (u64 spin = 0; p->cpu->index && spin < SPIN_LIMIT; spin++)
		relax();
	say_failed(p);
	__builtin_unreachable();
}

__attribute__((noreturn)) void unexpected_exception(u64 vector, u64 esr, u64 elr, u64 far, u64 spsr)
{
	if (!this_cpu() || !this_pe())
		result_failed("unexpected exception before anything else, ESR 0x%lx ELR 0x%lx", esr, elr);
	failed("unexpected exception, vector 0x%03lx ESR 0x%lx ELR 0x%lx FAR 0x%lx SPSR 0x%lx", vector * 0x80, esr, elr,
	       far, spsr);
}

void mover_ok(void)
{
	look_for_failures();
	print("MOVER OK\n");
	result_ok();
}

/* -- waits.  It takes both, many polls and a long time: the host may be slow, and the counter may have been moved. */

#define PATIENCE_POLLS		(1ul << 18)
static u64 patience = 20;

bool wait_more(struct patience *w)
{
	u64 now = read_sysreg("cntvct_el0");

	if (!w->polls++)
		w->start = now;
	if (!this_cpu()->index && !(w->polls & 0xff))
		look_for_failures();
	return w->polls < PATIENCE_POLLS || now - w->start < patience * read_sysreg("cntfrq_el0");
}

/* -- */

s64 psci(u32 id, u64 a, u64 b, u64 c)
{
	struct smccc_regs r = { { id, a, b, c } };

	smccc(machine.psci_smc, &r);
	return (s64)r.x[0];
}

/* On each CPU that starts, first of all. */
static void mover_init(struct cpu *cpu)
{
	struct pe *p = &pes[cpu->index];

	p->cpu = cpu;
	cpu->guest = p;
	write_sysreg("vbar_el1", mover_vectors);
	write_sysreg("cpacr_el1", 3ul << 20);	/* floating point and SIMD, at EL1 and EL0 */
}

u64 sdei_handler(struct sdei_frame *f)
{
	return (is_load ? load_handler : cells_handler)(this_cpu(), f);
}

void secondary_main(struct cpu *cpu)
{
	mover_init(cpu);
	run_secondary(cpu);
}

void guest_main(struct cpu *cpu)
{
	const char *name;
	size_t len;

	mover_init(cpu);
	if (!machine.has_sdei)
		result_failed("no /firmware/sdei in the device tree");
	if (machine.nr_cpus > MOVER_CPUS)
		result_failed("more than %u CPUs", (u32)MOVER_CPUS);
	patience = arg_u64("patience", patience);
	if (arg_is("case", "list")) {
		cells_list();
		mover_ok();
	}
	is_load = !arg_str("case", &name, &len) || str_is(name, len, "load");
	if (!is_load && !cells_find())
		result_failed("bootargs: no such case");
	run_secondary = is_load ? load_secondary : cells_secondary;
	if (is_load)
		load_main(cpu);
	cells_main(cpu);
}
