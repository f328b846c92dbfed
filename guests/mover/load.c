// SPDX-License-Identifier: Apache-2.0
/*
 * The load: every CPU writes and checks its arena, holds and checks its registers, and takes events, for ever.  The last
 * CPU does so with the MMU on, and its registers every other time at EL0.
 *
 * A byte on the serial port: '?' prints a line with all counts in hexadecimal; 's' has CPUs raise no more events (signals=1);
 * 'q' has everything checked once more, and ends the run.
 */
#include "mover.h"
#include "ram.h"

#define PAGES_AT_ONCE	16
#define ROUNDS_AT_ONCE	60
#define MAX_LISTENED	10

struct listened {
	u32 event;
	bool shared, routed;
	u64 to;			/* the CPU that it is routed to */
};

struct load {
	struct arena arena;
	volatile u64 rounds, el0_rounds, signals;
	volatile u64 ready, done;
	u64 clock;
	volatile u64 counts[MAX_LISTENED];	/* runs of each handler; one never interrupts itself */
};

static struct listened listened[MAX_LISTENED];
static u32 nr_listened;
static struct load loads[MOVER_CPUS];
static volatile u64 finishing, signals;
static u64 inside, pages, rate;

/* -- events */

static u64 argument_of(u32 event, u64 cpu)
{
	return 0x5de1000000000000ul | cpu << 40 | event;
}

static void listen_to(s64 event, bool shared, bool routed, u64 to)
{
	if (event >= 0 && sdei2(SDEI_EVENT_GET_INFO, (u64)event, SDEI_INFO_TYPE) == shared)
		listened[nr_listened++] = (struct listened){ (u32)event, shared, routed, to };
}

static void choose_events(void)
{
	u64 last = machine.nr_cpus - 1;

	listen_to(PRIVATE_NORMAL(0), false, false, 0);
	listen_to(PRIVATE_NORMAL(1), false, false, 0);
	listen_to(PRIVATE_CRITICAL(0), false, false, 0);
	listen_to(SHARED_NORMAL(0), true, false, 0);
	listen_to(SHARED_CRITICAL(0), true, false, 0);
	listen_to(SHARED_NORMAL(1), true, true, last);
	listen_to(SHARED_CRITICAL(1), true, true, last / 2);
	listen_to(sdei1(SDEI_INTERRUPT_BIND, PPI(0)), false, false, 0);
	listen_to(sdei1(SDEI_INTERRUPT_BIND, SPI(0)), true, false, 0);
}

static void must(const char *what, u32 event, s64 ret)
{
	if (ret)
		failed("%s of event 0x%x: %s", what, event, sdei_error_name(ret));
}

static void enlist(struct cpu *cpu, const struct listened *l)
{
	if (l->shared && cpu->index)
		return;
	must("EVENT_REGISTER", l->event,
	     sdei_call(SDEI_EVENT_REGISTER, l->event, (u64)sdei_entry, argument_of(l->event, cpu->index),
		       l->routed ? SDEI_RM_PE : SDEI_RM_ANY, cpus[l->to].mpidr));
	must("EVENT_ENABLE", l->event, sdei1(SDEI_EVENT_ENABLE, l->event));
}

u64 load_handler(struct cpu *cpu, struct sdei_frame *f)
{
	u32 i;

	for (i = 0; i < nr_listened && listened[i].event != f->x[0]; i++)
		;
	if (i == nr_listened)
		failed("a handler of event 0x%lx, which nobody has registered", f->x[0]);
	if (f->x[1] != argument_of((u32)f->x[0], listened[i].shared ? 0 : cpu->index))
		failed("the handler of event 0x%lx has the argument 0x%lx", f->x[0], f->x[1]);
	if (listened[i].routed && listened[i].to != cpu->index)
		failed("event 0x%lx is routed to CPU#%lu", f->x[0], listened[i].to);
	if (sdei1(SDEI_EVENT_STATUS, f->x[0]) != (SDEI_STATUS_REGISTERED | SDEI_STATUS_ENABLED | SDEI_STATUS_RUNNING))
		failed("the handler of event 0x%lx runs with the status %ld", f->x[0], sdei1(SDEI_EVENT_STATUS, f->x[0]));
	check_interrupted(cpu, f);
	for (u64 n = 0; n < inside; n++)
		relax();
	loads[cpu->index].counts[i]++;
	return 0;
}

/* -- the load */

static void signal_next(struct cpu *cpu, struct load *l)
{
	must("EVENT_SIGNAL", 0, sdei2(SDEI_EVENT_SIGNAL, 0, cpus[(cpu->index + 1) % machine.nr_cpus].mpidr));
	l->signals++;
}

static void step(struct cpu *cpu, struct load *l, u64 n)
{
	bool el0 = mmu_is_on() && n & 1;
	u64 now = read_sysreg("cntvct_el0");

	if (now < l->clock)
		failed("CNTVCT_EL0 is 0x%lx and has been 0x%lx", now, l->clock);
	l->clock = now;
	arena_step(&l->arena, PAGES_AT_ONCE);
	register_rounds(cpu, mix(cpu->index) + n, ROUNDS_AT_ONCE, el0);
	l->rounds += ROUNDS_AT_ONCE;
	if (el0)
		l->el0_rounds += ROUNDS_AT_ONCE;
	if (signals)
		signal_next(cpu, l);
}

static void begin(struct cpu *cpu, u64 base)
{
	struct load *l = &loads[cpu->index];

	arena_init(&l->arena, base, pages, rate);
	for (u32 i = 0; i < nr_listened; i++)
		enlist(cpu, &listened[i]);
	must("PE_UNMASK", 0, sdei0(SDEI_PE_UNMASK));
	mb();
	l->ready = 1;
}

/* All memory, once more; and that of the window also where it really is. */
static void end(struct cpu *cpu, u64 base)
{
	struct load *l = &loads[cpu->index];

	if (sdei0(SDEI_PE_MASK) != 1)
		failed("PE_MASK: the PE was not unmasked");
	arena_check_all(&l->arena);
	for (u64 i = 0; mmu_is_on() && i < pages; i++)
		arena_check_alias(&l->arena, i, base + (arena_order(i, pages) << 12));
	mb();
	l->done = 1;
}

/* Where the arena of a CPU is, and by what address that CPU uses it. */
static u64 arenas;
static u64 arena_of(const struct cpu *cpu) { return arenas + cpu->index * (pages << 12); }

static u64 window_or(u64 base)
{
	return mmu_is_on() ? WINDOW_ARENA : base;
}

void load_secondary(struct cpu *cpu)
{
	if (cpu->index == machine.nr_cpus - 1)
		mmu_on();
	begin(cpu, window_or(arena_of(cpu)));
	for (u64 n = 0; !finishing; n++)
		step(cpu, &loads[cpu->index], n);
	end(cpu, arena_of(cpu));
}

static void beat(void)
{
	static u64 beats;

	print("MOVER beat %lx", ++beats);
	for (u64 i = 0; i < machine.nr_cpus; i++) {
		const struct load *l = &loads[i];

		print(" cpu=%lx written=%lx passes=%lx rounds=%lx el0=%lx signals=%lx", i, l->arena.written,
		      l->arena.passes, l->rounds, l->el0_rounds, l->signals);
		for (u32 k = 0; k < nr_listened; k++)
			print(" %x=%lx", listened[k].event, l->counts[k]);
	}
	print("\n");
}

static void wait_for(const char *what, u64 i, const volatile u64 *flag)
{
	if (!WAIT(*flag))
		failed("CPU#%lu does not get %s", i, what);
}

void load_main(struct cpu *cpu)
{
	pages = arg_u64("mib", 1) << 8;
	rate = arg_u64("rate", 0);
	inside = arg_u64("inside", 200);
	if (!pages)
		result_failed("bootargs: mib is 0");
	arenas = ram_take(pages * machine.nr_cpus);
	choose_events();
	mmu_prepare(arenas + (machine.nr_cpus - 1) * (pages << 12), pages);
	if (machine.nr_cpus == 1)
		mmu_on();
	cpus_start(secondary_main);
	begin(cpu, window_or(arenas));
	for (u64 i = 0; i < machine.nr_cpus; i++)
		wait_for("ready", i, &loads[i].ready);
	signals = arg_u64("signals", 0);
	mb();
	print("MOVER runs on %u CPUs, %lu pages each\n", machine.nr_cpus, pages);
	for (u64 n = 0; !finishing; n++) {
		int c = uart_read();

		step(cpu, &loads[0], n);
		look_for_failures();
		if (c == '?')
			beat();
		else if (c == 's')
			signals = 0;
		finishing = c == 'q';
	}
	end(cpu, arenas);
	for (u64 i = 0; i < machine.nr_cpus; i++)
		wait_for("done", i, &loads[i].done);
	beat();
	mover_ok();
}
