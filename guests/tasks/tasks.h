/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A small kernel with tasks at EL0, and the guest's half of asynchronous page faults.
 *
 * The kernel (EL1) runs to completion with interrupts masked, and on one stack a PE: a task's registers go into its
 * struct when it enters, and the kernel leaves by loading those of whatever task is to run.  Tasks run with interrupts
 * on.  Each stays on its PE, and gives way by SVC, so that nothing but interrupts and page faults depends on time.
 *
 * A page that is not there yet (apf.c): the host tells so, by an SDEI event or by an interrupt, while the task that has
 * touched it is the one that runs.  It is blocked on the token that came along, and another one runs.  When the page has
 * come the host tells the same token by an interrupt; the task can run again, and does so at once.
 */
#ifndef TASKS_H
#define TASKS_H

#include "offsets.h"

#ifndef __ASSEMBLER__
#include "guest.h"

#define MAX_PES		8
#define MAX_TASKS	64
#define PAGE		4096ul

#define read_sysreg(name) ({ u64 _v; __asm__ volatile("mrs %0, " name : "=r"(_v) :: "memory"); _v; })
#define write_sysreg(name, v) __asm__ volatile("msr " name ", %0\n\tisb" :: "r"((u64)(v)) : "memory")

static inline u64 mix(u64 x)		/* splitmix64 */
{
	x += 0x9e3779b97f4a7c15ul;
	x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9ul;
	x = (x ^ x >> 27) * 0x94d049bb133111ebul;
	return x ^ x >> 31;
}

/* -- tasks */

enum task_state { TASK_DONE, TASK_READY, TASK_BLOCKED };	/* the one that runs is ready, and in no queue */

struct task {
	u64 x[31];
	u64 sp, pc, pstate, tpidr, fpcr, fpsr;
	u64 pad;
	u64 q[64];
	struct task *next;	/* in the queue of its PE */
	enum task_state state;
	u32 token;		/* what it is blocked on */
	u32 index;
	bool memory;		/* it walks over pages; else it computes */
	u64 pages_at;		/* of its pages, by physical address */
	u64 checksum;
	u64 end;		/* CNTVCT when it was done */
};
#define T_CHECK(field, off) _Static_assert(offsetof(struct task, field) == off, "asm.S knows it: " #field)
T_CHECK(x, T_X);
T_CHECK(sp, T_SP);
T_CHECK(pc, T_PC);
T_CHECK(pstate, T_PSTATE);
T_CHECK(tpidr, T_TPIDR);
T_CHECK(fpcr, T_FPCR);
T_CHECK(fpsr, T_FPSR);
T_CHECK(q, T_Q);

struct counters {
	u64 told;		/* not-present notifications */
	u64 blocked, early;	/* tasks that waited, and that need not because the page had come first */
	u64 woken, wake_all;	/* ready tokens that had a task, and those that are for all tasks */
	u64 refused;		/* not-present while there was nothing else to run */
	u64 unknown;		/* ready tokens that nobody has waited for */
	u64 preempted;		/* tasks that made room for one that was woken */
	u64 switches, yields, sgis, idle;	/* idle: ticks */
};

#define EARLY		128	/* tokens that can be remembered: twice as many as the host has in flight */

struct pe {
	struct task *current;
	struct cpu *cpu;
	struct task *first, *last;	/* the queue */
	u64 live;			/* tasks that are not done */
	volatile u64 up;		/* it is about to run tasks */
	volatile u64 wanted, begun, finished;	/* runs, by number */
	u64 gicr;
	struct counters count;
	volatile u32 absent;		/* the token of a page that the current task has touched, told by the event */
	bool woke;			/* something can run that comes before the current task */
	u32 nr_early;
	u32 early[EARLY];
};
_Static_assert(offsetof(struct pe, current) == PE_CURRENT, "asm.S knows it");

extern struct pe pes[MAX_PES];
extern struct task tasks[MAX_TASKS];
extern u32 nr_tasks;
static inline struct pe *this_pe(void) { return this_cpu()->guest; }

/* What bootargs ask for. */
struct options {
	u64 mem, comp, pages, passes, spin, cspin, yield;
	u64 walk;		/* USER_* */
	u64 writes;		/* %, of USER_MIX */
	bool refuse, ring;
};
extern struct options options;

/* -- sched.c */

void sched_reset(struct pe *p);
void sched_add(struct pe *p, struct task *t);
void sched_block(struct pe *p, u32 token);
void sched_ready(struct pe *p, u32 token);
void kernel_entry(u64 how);

/* -- main.c */

void run_idle(struct pe *p);		/* nothing can run on this PE now */

/* -- gic.c: SGIs and PPIs of a GICv3 */

#define SGI_LOOK	0		/* there is something to do for a PE that waits */

void gic_find(void);
void gic_init(struct pe *p);
void gic_enable(struct pe *p, u32 intid);
void gic_send(struct pe *to, u32 intid);
void gic_take(struct pe *p);		/* take an interrupt; the next one comes when this one is done */

/* -- apf.c */

#define WAKE_ALL	0xffffffffu

enum transport { APF_OFF, APF_SDEI, APF_PPI };
extern enum transport apf_transport;
extern u32 apf_intid;
void apf_find(void);			/* what bootargs want, and the host offers */
void apf_init(struct pe *p);
void apf_interrupt(struct pe *p);

/* -- mmu.c */

#define WINDOW		0x4000000000ul	/* where EL0's memory begins */
#define WINDOW_OF(i)	(WINDOW + ((u64)(i) + 1) * (1ul << 30))

void mmu_prepare(void);			/* and RAM for all tasks' pages and stacks */
void mmu_on(void);

/* -- asm.S */

extern const char tasks_vectors[];
void kernel_start(void) __attribute__((noreturn));
void simd_save(struct task *t);
void simd_load(const struct task *t);

/* -- user.c, by addresses in the window */

#define USER_SEQ	0
#define USER_RANDOM	1
#define USER_MIX	2
#define USER_PAGES	2

extern const char user_begin[];
void user_memory(u64 base, u64 pages, u64 passes, u64 spin, u64 walk, u64 writes, u64 yield, u64 seed)
	__attribute__((noreturn));
void user_compute(u64 iterations, u64 seed) __attribute__((noreturn));
#define IN_WINDOW(f)	(WINDOW + (u64)(f) - ((u64)user_begin & ~(PAGE - 1)))

#endif
#endif
