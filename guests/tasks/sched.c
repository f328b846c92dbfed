// SPDX-License-Identifier: Apache-2.0
/* Which task runs.  A PE's tasks are its own: nobody else touches its queue while it works. */
#include "tasks.h"

#define EC_SVC64	0x15

struct task tasks[MAX_TASKS];
u32 nr_tasks;

static void put_last(struct pe *p, struct task *t)
{
	t->next = NULL;
	if (p->last)
		p->last->next = t;
	else
		p->first = t;
	p->last = t;
}

static void put_first(struct pe *p, struct task *t)
{
	t->next = p->first;
	p->first = t;
	if (!p->last)
		p->last = t;
}

void sched_reset(struct pe *p)
{
	p->current = p->first = p->last = NULL;
	p->live = 0;
	p->absent = 0;
	p->woke = false;
	p->nr_early = 0;
	memset(&p->count, 0, sizeof(p->count));
}

void sched_add(struct pe *p, struct task *t)
{
	t->state = TASK_READY;
	p->live++;
	put_last(p, t);
}

/* Forget one of the tokens that came early. */
static void forget(struct pe *p, u32 i)
{
	for (p->nr_early--; i < p->nr_early; i++)
		p->early[i] = p->early[i + 1];
}

void sched_block(struct pe *p, u32 token)
{
	for (u32 i = 0; i < p->nr_early; i++)
		if (p->early[i] == token) {
			forget(p, i);
			p->count.early++;
			return;
		}
	p->current->state = TASK_BLOCKED;
	p->current->token = token;
	p->count.blocked++;
}

void sched_ready(struct pe *p, u32 token)
{
	bool found = false;

	if (token == WAKE_ALL) {
		/* Tokens of before are void, also that of the task which is about to be blocked. */
		p->count.wake_all++;
		p->nr_early = 0;
		p->absent = 0;
	}
	for (u32 i = 0; i < nr_tasks; i++) {
		struct task *t = &tasks[i];

		if (&pes[i % machine.nr_cpus] != p || t->state != TASK_BLOCKED)
			continue;
		if (token != WAKE_ALL && t->token != token)
			continue;
		/* Too early does no harm: the task touches the page once more. */
		t->state = TASK_READY;
		put_first(p, t);
		p->count.woken++;
		p->woke = found = true;
	}
	if (found || token == WAKE_ALL)
		return;
	/* One that is refused can be told as well, if its page came just then; so the oldest are those that nobody wants. */
	if (p->nr_early == EARLY) {
		forget(p, 0);
		p->count.unknown++;
	}
	p->early[p->nr_early++] = token;
}

__attribute__((noreturn)) static void task_failed(struct pe *p, const char *what)
{
	struct task *t = p->current;

	print("\nCPU#%lu: task %u at EL0: %s, ESR 0x%lx PC 0x%lx FAR 0x%lx PSTATE 0x%lx SP 0x%lx\n", p->cpu->index,
	      t->index, what, read_sysreg("esr_el1"), t->pc, read_sysreg("far_el1"), t->pstate, t->sp);
	for (u32 i = 0; i < 30; i += 5)
		print("x%-2u 0x%016lx 0x%016lx 0x%016lx 0x%016lx 0x%016lx\n", i, t->x[i], t->x[i + 1], t->x[i + 2],
		      t->x[i + 3], t->x[i + 4]);
	result_failed("task %u", t->index);
}

/* Takes the current task out, which has made an SVC, or stays what it is. */
static void supervisor_call(struct pe *p)
{
	struct task *t = p->current;
	u64 esr = read_sysreg("esr_el1");

	if (esr >> 26 != EC_SVC64)
		task_failed(p, "fault");
	switch (esr & 0xffff) {
	case SVC_YIELD:
		p->count.yields++;
		if (p->first) {
			put_last(p, t);
			p->current = NULL;
		}
		break;
	case SVC_EXIT:
		t->checksum = t->x[0];
		t->end = read_sysreg("cntvct_el0");
		t->state = TASK_DONE;
		p->live--;
		p->current = NULL;
		break;
	default:
		task_failed(p, "SIMD registers or TPIDR_EL0 have changed");
	}
}

/* Returns with a task that is to run. */
void kernel_entry(u64 how)
{
	struct pe *p = this_pe();
	struct task *before = how == ENTRY_START ? NULL : p->current;

	if (how == ENTRY_SVC)
		supervisor_call(p);
	else if (how == ENTRY_IRQ && !p->absent)	/* else it was the event, after which the handler resumes here */
		gic_take(p);
	if (p->absent) {
		u32 token = p->absent;

		p->absent = 0;
		sched_block(p, token);
	}
	if (p->current && p->current->state == TASK_BLOCKED)
		p->current = NULL;
	if (p->current && p->woke) {
		p->count.preempted++;
		put_last(p, p->current);
		p->current = NULL;
	}
	p->woke = false;
	while (!p->current) {
		if (p->first) {
			p->current = p->first;
			p->first = p->first->next;
			if (!p->first)
				p->last = NULL;
		} else {
			run_idle(p);
		}
	}
	p->woke = false;
	if (p->current != before) {
		if (before)
			simd_save(before);
		simd_load(p->current);
		p->count.switches++;
	}
}
