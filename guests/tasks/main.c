// SPDX-License-Identifier: Apache-2.0
/*
 * Start, runs, and what is said of them.
 *
 * bootargs: mem=N, comp=N (tasks that walk over pages, and that compute), pages=N and passes=N (of each that walks),
 *           walk=seq|random|rw-mix, write=% (of rw-mix; or read=%), spin=N (iterations after each page),
 *           cspin=N (iterations of each that computes), yield=N (pages from one SVC to the next, 0: none),
 *           async=sdei|ppi|off, ring=0|1, refuse=0|1
 *
 * Pages are filled, then the guest says "ready".  A byte 'g' on the serial port starts the work, once more each time;
 * 'q' ends the guest.
 */
#include "tasks.h"

#define PSTATE_EL0	0

struct pe pes[MAX_PES];
struct options options;

static u64 runs, reported, start;

static void fill(const struct task *t)
{
	for (u64 i = 0; i < options.pages; i++) {
		u64 *word = (u64 *)(t->pages_at + i * PAGE);
		u64 value = mix((u64)t->index << 32 | i);

		for (u64 k = 0; k < PAGE / 8; k++, value += 0x9e3779b97f4a7c15ul)
			word[k] = value;
	}
}

static void task_begin(struct pe *p, struct task *t)
{
	u64 seed = mix(t->index + 1), base = WINDOW_OF(t->index);
	u64 pages = t->memory ? options.pages : 0;

	memset(t, 0, offsetof(struct task, next));
	t->sp = base + (pages + 1) * PAGE;
	t->pstate = PSTATE_EL0;
	if (t->memory) {
		u64 arguments[] = { base, options.pages, options.passes, options.spin, options.walk, options.writes,
				    options.yield, seed };

		memcpy(t->x, arguments, sizeof(arguments));
		t->pc = IN_WINDOW(user_memory);
	} else {
		t->x[0] = options.cspin;
		t->x[1] = seed;
		t->pc = IN_WINDOW(user_compute);
	}
	sched_add(p, t);
}

static const char *transport_name(void)
{
	return apf_transport == APF_SDEI ? "sdei" : apf_transport == APF_PPI ? "ppi" : "off";
}

static void report(void)
{
	struct counters sum = { 0 };
	u64 end = start, freq = read_sysreg("cntfrq_el0");

	for (u32 i = 0; i < nr_tasks; i++) {
		struct task *t = &tasks[i];

		print("thread=%u kind=%s cpu=%u checksum=%016lx ticks=%lu freq=%lu ms=%lu\n", i, t->memory ? "mem" : "comp",
		      i % machine.nr_cpus, t->checksum, t->end - start, freq, (t->end - start) * 1000 / freq);
		end = t->end > end ? t->end : end;
	}
	for (u32 i = 0; i < machine.nr_cpus; i++) {
		pes[i].count.unknown += pes[i].nr_early;
		for (u32 k = 0; k < sizeof(sum) / 8; k++)
			((u64 *)&sum)[k] += ((u64 *)&pes[i].count)[k];
	}
	print("summary run=%lu ticks=%lu freq=%lu async=%s ring=%d refuse=%d told=%lu blocked=%lu early=%lu woken=%lu "
	      "refused=%lu wake-all=%lu unknown=%lu preempted=%lu switches=%lu yields=%lu sgis=%lu idle=%lu ms=%lu\n",
	      runs, end - start, freq, transport_name(), options.ring, options.refuse, sum.told, sum.blocked, sum.early,
	      sum.woken, sum.refused, sum.wake_all, sum.unknown, sum.preempted, sum.switches, sum.yields, sum.sgis,
	      sum.idle, (end - start) * 1000 / freq);
}

static void wait_for_a_key(void)
{
	for (;;) {
		switch (uart_read()) {
		case 'q':
			result_ok();
		case 'g':
			runs++;
			start = read_sysreg("cntvct_el0");
			mb();
			for (u32 i = 0; i < machine.nr_cpus; i++) {
				pes[i].wanted = runs;
				if (i)
					gic_send(&pes[i], SGI_LOOK);
			}
			return;
		}
		relax();
	}
}

static bool all_finished(void)
{
	for (u32 i = 0; i < machine.nr_cpus; i++)
		if (pes[i].finished != runs)
			return false;
	mb();
	return true;
}

static void begin(struct pe *p)
{
	mb();
	sched_reset(p);
	for (u32 i = 0; i < nr_tasks; i++)
		if (&pes[i % machine.nr_cpus] == p)
			task_begin(p, &tasks[i]);
	p->begun = p->wanted;
}

void run_idle(struct pe *p)
{
	u64 since = read_sysreg("cntvct_el0");

	if (p->begun != p->wanted) {
		begin(p);
		return;
	}
	if (!p->live && p->finished != p->begun) {
		mb();
		p->finished = p->begun;
		if (p != pes)
			gic_send(pes, SGI_LOOK);
	}
	if (p == pes && all_finished()) {
		if (reported != runs)
			report();
		reported = runs;
		wait_for_a_key();
		return;
	}
	/* An interrupt ends this although it is masked. */
	__asm__ volatile("dsb sy\n\twfi" ::: "memory");
	if (p->live)
		p->count.idle += read_sysreg("cntvct_el0") - since;
	gic_take(p);
}

static void pe_init(struct cpu *cpu)
{
	struct pe *p = &pes[cpu->index];

	p->cpu = cpu;
	cpu->guest = p;
	write_sysreg("vbar_el1", tasks_vectors);
	write_sysreg("cpacr_el1", 3ul << 20);	/* floating point and SIMD, at EL1 and EL0 */
	mmu_on();
	gic_init(p);
	apf_init(p);
	mb();
	p->up = 1;
}

static void secondary_main(struct cpu *cpu)
{
	pe_init(cpu);
	kernel_start();
}

static void read_options(void)
{
	options.mem = arg_u64("mem", 1);
	options.comp = arg_u64("comp", 1);
	options.pages = arg_u64("pages", 256);
	options.passes = arg_u64("passes", 1);
	options.spin = arg_u64("spin", 100);
	options.cspin = arg_u64("cspin", 1000000);
	options.yield = arg_u64("yield", 16);
	options.writes = arg_u64("write", 100 - arg_u64("read", 70));
	options.ring = arg_u64("ring", 1);
	options.refuse = arg_u64("refuse", 1);
	options.walk = arg_is("walk", "random") ? USER_RANDOM : arg_is("walk", "rw-mix") ? USER_MIX : USER_SEQ;
	if (options.mem > MAX_TASKS || options.comp > MAX_TASKS || !(options.mem + options.comp) ||
	    options.mem + options.comp > MAX_TASKS)
		result_failed("bootargs: mem= and comp= ask for none or more than %u tasks", (u32)MAX_TASKS);
	if (!options.pages || options.pages >= 512 * 512 || options.writes > 100)
		result_failed("bootargs: pages= or write= is out of range");
	nr_tasks = (u32)(options.mem + options.comp);
	for (u32 i = 0; i < nr_tasks; i++) {
		tasks[i].index = i;
		tasks[i].memory = i < options.mem;
	}
}

void guest_main(struct cpu *cpu)
{
	if (machine.nr_cpus > MAX_PES)
		result_failed("more than %u CPUs", (u32)MAX_PES);
	read_options();
	mmu_prepare();
	gic_find();
	apf_find();
	/* While the MMU is off everywhere, so that nothing stands in one PE's cache that another one reads past it. */
	cpus_start(secondary_main);
	pe_init(cpu);
	for (u32 i = 0; i < options.mem; i++)
		fill(&tasks[i]);
	for (u32 i = 0; i < machine.nr_cpus; i++)
		while (!pes[i].up)
			relax();
	print("ready\n");
	kernel_start();
}
