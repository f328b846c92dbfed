/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A guest that is moved to another process while it runs, and finds out whether it is still itself.
 *
 * What has to be right afterwards is held in four ways: memory that checks itself (arena.c), registers that check
 * themselves (registers.c, asm.S), events that are counted (load.c), and events that stand in every state of DEN0054C's
 * table (cells.c, cases.c).  All text comes from CPU#0, which also listens to the serial port.
 */
#ifndef MOVER_H
#define MOVER_H

#include "offsets.h"

#ifndef __ASSEMBLER__
#include "guest.h"
#include "sdei.h"
#include "smccc.h"

#define MOVER_CPUS		8

#define SDEI_DENIED		(-3)
#define SDEI_PENDING		(-5)
#define SDEI_RM_PE		1
#define SDEI_RELATIVE		2	/* flag of EVENT_REGISTER */
#define SDEI_INFO_ROUTING_MODE	3
#define SDEI_INFO_ROUTING_AFF	4

#define PSCI_CPU_SUSPEND64	0xc4000001u
#define PSCI_CPU_OFF		0x84000002u
#define PSCI_AFFINITY_INFO64	0xc4000004u
#define PSCI_POWERDOWN		(1u << 16)

/* The events that the host has to define: eight of each kind, the private ones to be raised by EVENT_SIGNAL. */
#define EVENTS_OF_A_KIND	8
#define PRIVATE_NORMAL(i)	((i) ? 0x40000010u + (i) : 0u)
#define PRIVATE_CRITICAL(i)	(0x40000018u + (i))
#define SHARED_NORMAL(i)	(0x40000020u + (i))
#define SHARED_CRITICAL(i)	(0x40000028u + (i))
/* Interrupts that nobody uses on either machine. */
#define PPI(i)			(20u + (i))
#define SPI(i)			(132u + (i))

#define PSTATE_BTYPE		0xc00u	/* what led to this instruction: an indirect branch, perhaps */
#define SPSR_EL1H		0x3c5u	/* EL1h, everything masked */
#define SPSR_EL1T		0x3c4u
#define SPSR_EL0T		0x3c0u
#define PSTATE_NZCV		0xf0000000ul

#define read_sysreg(name) ({ u64 _v; __asm__ volatile("mrs %0, " name : "=r"(_v) :: "memory"); _v; })
#define write_sysreg(name, v) __asm__ volatile("msr " name ", %0\n\tisb" :: "r"((u64)(v)) : "memory")

/* -- main.c */

struct pe {
	volatile u64 resumed;	/* arrivals at `resumed`; asm.S knows where this stands */
	struct cpu *cpu;
	volatile u64 failed;	/* and this is why: */
	char text[200];
};
_Static_assert(offsetof(struct pe, resumed) == PE_RESUMED, "asm.S knows it");
extern struct pe pes[MOVER_CPUS];
static inline struct pe *this_pe(void) { return this_cpu()->guest; }

/* Ends the run: "MOVER FAILED CPU#n: ...". */
void failed(const char *fmt, ...) __attribute__((noreturn, format(printf, 1, 2)));
/* CPU#0 says what another CPU has found; from time to time. */
void look_for_failures(void);
void mover_ok(void) __attribute__((noreturn));

/* Until the condition holds, CPU#0 looking for failures meanwhile; false if it never does. */
struct patience { u64 polls, start; };
bool wait_more(struct patience *w);
#define WAIT(cond)		({ struct patience w_ = { 0 }; while (!(cond) && wait_more(&w_)) relax(); mb(); !!(cond); })

void secondary_main(struct cpu *cpu);	/* what cpus_start() has to run */
s64 psci(u32 id, u64 a, u64 b, u64 c);
static inline u64 mix(u64 x)		/* splitmix64: of two arguments that differ in a bit nothing alike is left */
{
	x += 0x9e3779b97f4a7c15ul;
	x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9ul;
	x = (x ^ x >> 27) * 0x94d049bb133111ebul;
	return x ^ x >> 31;
}

/* -- asm.S */

extern const char mover_vectors[], resumed[], secondary_entry[];
extern const char el0_begin[], el0_end[], el0_rounds[], el1_rounds_end[];
extern const char el0_low[], el0_low_end[], el0_high[], el0_high_end[];
extern const char el1_low[], el1_low_end[], el1_high[], el1_high_end[];
extern const char _start[], __bss_start[], vectors[];

/* -- registers.c: a CPU's registers hold known values, and are compared with them again and again */

struct bank {
	u64 x[31];
	u64 sp;			/* of SP_EL0 */
	u64 q[64];
	u64 sys[NR_SYSREGS];
	u64 spare[(B_SP_NOW - B_SYS) / 8 - NR_SYSREGS];
	u64 sp_now;		/* of the stack in use, meanwhile */
	u64 spsel, nzcv, fpcr, fpsr;
	u64 rounds;		/* still to go */
	volatile u64 stop;
	volatile u64 beats;	/* rounds that are over */
	u64 bad;		/* BAD_*, or 0 */
	u64 diff;		/* which bits */
} __attribute__((aligned(4096)));
#define B_CHECK(field, off) _Static_assert(offsetof(struct bank, field) == off, "asm.S knows it: " #field)
B_CHECK(sp, B_SP);
B_CHECK(q, B_Q);
B_CHECK(sys, B_SYS);
B_CHECK(sp_now, B_SP_NOW);
B_CHECK(spsel, B_SPSEL);
B_CHECK(nzcv, B_NZCV);
B_CHECK(fpcr, B_FPCR);
B_CHECK(fpsr, B_FPSR);
B_CHECK(rounds, B_ROUNDS);
B_CHECK(stop, B_STOP);
B_CHECK(beats, B_BEATS);
B_CHECK(bad, B_BAD);
B_CHECK(diff, B_DIFF);

void el1_rounds(struct bank *b);
void el0_run(u64 bank, u64 code);	/* at EL0, by addresses that are EL0's, until it makes an SVC */

extern struct bank banks[MOVER_CPUS];
#define FOR_EVER	(~0ul)
/* So many rounds, or until banks[].stop, with values made of the seed; at EL0 if the MMU is on.  A mismatch ends the run. */
void register_rounds(struct cpu *cpu, u64 seed, u64 rounds, bool el0);
/* What an event has interrupted: what x0..x17 (by EVENT_CONTEXT), x18..x30, PC and PSTATE must be, if anything is known. */
void check_interrupted(struct cpu *cpu, struct sdei_frame *f);

/* -- mmu.c: EL0's view of the guest; and the pages of an arena in another order than they are in */

#define WINDOW		0x4000000000ul
#define WINDOW_CODE	WINDOW
#define WINDOW_BANKS	(WINDOW + 0x100000)
#define WINDOW_ARENA	(WINDOW + 0x200000)

/* The same tables for all CPUs.  Page i of the window is page arena_order(i) of the arena. */
void mmu_prepare(u64 arena, u64 pages);
u64 arena_order(u64 i, u64 pages);
void mmu_on(void);
static inline bool mmu_is_on(void) { return read_sysreg("sctlr_el1") & 1; }
static inline u64 window_of_bank(u64 index) { return WINDOW_BANKS + index * sizeof(struct bank); }

/* -- arena.c: memory that knows what it has to be */

struct arena {
	u64 base, pages;
	u64 rate, left;		/* pages that a pass writes, 0: all; and still may write */
	u64 written;		/* pages, ever: tells the generation of each, for they are written in turn */
	u64 next;		/* the page to look at next */
	u64 passes;
};
void arena_init(struct arena *a, u64 base, u64 pages, u64 rate);
/* Looks at so many pages, and writes those whose turn it is. */
void arena_step(struct arena *a, u64 pages);
void arena_check_all(const struct arena *a);
/* The same page by another address. */
void arena_check_alias(const struct arena *a, u64 i, u64 at);

/* -- modes */

void load_main(struct cpu *cpu) __attribute__((noreturn));
void load_secondary(struct cpu *cpu);
u64 load_handler(struct cpu *cpu, struct sdei_frame *f);

bool cells_find(void);			/* whether bootargs name one of its cases */
void cells_list(void);
void cells_main(struct cpu *cpu) __attribute__((noreturn));
void cells_secondary(struct cpu *cpu);
u64 cells_handler(struct cpu *cpu, struct sdei_frame *f);

#endif
#endif
