// SPDX-License-Identifier: Apache-2.0
/* PEs that do what CPU#0 says, in whatever they are doing: at their base, or in a handler that holds. */
#include "actors.h"

struct actor actors[SCENE_CPUS];

static void carry_out(struct actor *a, struct command *c)
{
	c->depth = a->depth;
	c->result = c->fn(a, c->args);
	mb();
	c->done = 1;
}

/*
 * Until `leaving` names this depth of handlers.  An event may come at any instruction, and its handler serve commands of
 * its own: so a command says itself whether it has been taken.
 */
void serve(struct actor *a)
{
	u64 depth = a->depth;

	while (!depth || a->leaving != depth) {
		struct command *c = a->posted;

		if (!c || c->taken) {
			relax();
			continue;
		}
		c->taken = 1;
		mb();
		carry_out(a, c);
	}
	a->leaving = 0;
}

struct command *post(u64 pe, s64 (*fn)(struct actor *, const u64 *), const u64 args[6])
{
	struct actor *a = &actors[pe];
	struct command *c;

	do	/* what the PE does all the time, or has not come back from, keeps its place */
		c = &a->commands[a->next++ % COMMANDS];
	while (c->taken && !c->done);
	*c = (struct command){ .fn = fn };
	memcpy(c->args, args, sizeof(c->args));
	mb();
	if (pe == this_cpu()->index)
		carry_out(a, c);
	else
		a->posted = c;
	return c;
}

s64 finish(u64 pe, struct command *c)
{
	if (!WAIT(c->done))
		failed("PE %lu does not answer", pe);
	return c->result;
}

static s64 do_call(struct actor *a, const u64 *args)
{
	(void)a;
	return sdei_call((u32)args[0], args[1], args[2], args[3], args[4], args[5]);
}

s64 call_on(u64 pe, u32 id, u64 a1, u64 a2, u64 a3, u64 a4, u64 a5)
{
	return finish(pe, post(pe, do_call, (const u64[6]){ id, a1, a2, a3, a4, a5 }));
}

void expect_on(s64 want, u64 pe, u32 id, u64 a1, u64 a2, u64 a3, u64 a4, u64 a5)
{
	s64 got = call_on(pe, id, a1, a2, a3, a4, a5);

	if (got != want)
		failed("%s(0x%lx) on PE %lu returned %ld (%s) instead of %ld", sdei_call_name(id), a1, pe, got,
		       sdei_error_name(got), want);
}

static s64 do_nothing(struct actor *a, const u64 *args)
{
	(void)a;
	(void)args;
	return 0;
}

static s64 do_leave(struct actor *a, const u64 *args)
{
	(void)args;
	a->leaving = a->depth;
	return 0;
}

void leave(u64 pe, bool then_serves)
{
	struct command *c = post(pe, do_leave, (const u64[6]){ 0 });

	(void)finish(pe, c);
	if (!c->depth)
		failed("PE %lu runs no handler that could end", pe);
	if (then_serves)
		(void)finish(pe, post(pe, do_nothing, (const u64[6]){ 0 }));
}

/* -- what a PE does besides */

static s64 do_rounds(struct actor *a, const u64 *args)
{
	struct cpu *cpu = &cpus[a - actors];

	if (args[0] && !mmu_is_on())
		mmu_on();
	register_rounds(cpu, mix(cpu->index), FOR_EVER, args[0]);
	return 0;
}

struct command *start_rounds(u64 pe, bool el0)
{
	struct command *c;
	u64 beats;

	banks[pe].stop = 0;
	beats = banks[pe].beats;
	c = post(pe, do_rounds, (const u64[6]){ el0 });
	if (!WAIT(banks[pe].beats >= beats + 2))
		failed("PE %lu does not begin to compare its registers", pe);
	return c;
}

static s64 do_wait(struct actor *a, const u64 *args)
{
	(void)a;
	(void)args;
	__asm__ volatile("dsb sy\n\twfi" ::: "memory");
	return 0;
}

static s64 do_suspend(struct actor *a, const u64 *args)
{
	(void)args;
	return psci(PSCI_CPU_SUSPEND64, PSCI_POWERDOWN, (u64)secondary_entry, (u64)(a - actors));
}

/* Time for something that nobody can see to happen. */
static void settle(void)
{
	u64 start = read_sysreg("cntvct_el0");

	for (u32 i = 0; i < 2000 || read_sysreg("cntvct_el0") - start < read_sysreg("cntfrq_el0") / 1000; i++)
		relax();
}

struct command *start_sleep(u64 pe, bool power_down)
{
	struct command *c;

	cpus[pe].online = 0;
	c = post(pe, power_down ? do_suspend : do_wait, (const u64[6]){ 0 });
	if (!WAIT(c->taken))
		failed("PE %lu does not answer", pe);
	settle();
	return c;
}

static s64 do_off(struct actor *a, const u64 *args)
{
	(void)a;
	(void)args;
	return psci(PSCI_CPU_OFF, 0, 0, 0);
}

#define PSCI_STATE_OFF	1

void turn_off(u64 pe)
{
	(void)post(pe, do_off, (const u64[6]){ 0 });
	if (!WAIT(psci(PSCI_AFFINITY_INFO64, cpus[pe].mpidr, 0, 0) == PSCI_STATE_OFF))
		failed("PE %lu does not go off", pe);
}

void turn_on(u64 pe)
{
	s64 ret;

	if (psci(PSCI_AFFINITY_INFO64, cpus[pe].mpidr, 0, 0) != PSCI_STATE_OFF)
		failed("PE %lu is not off", pe);
	cpus[pe].online = 0;
	mb();
	ret = psci_cpu_on(cpus[pe].mpidr, (u64)secondary_entry, pe);
	if (ret)
		failed("CPU_ON of PE %lu: %ld", pe, ret);
	if (!WAIT(cpus[pe].online))
		failed("PE %lu does not start", pe);
}
