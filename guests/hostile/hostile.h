/* SPDX-License-Identifier: Apache-2.0 */
/* What the attacks share: exceptions that are expected, acts that need assembly, small words. */
#ifndef HOSTILE_H
#define HOSTILE_H

#define HOSTILE_CPUS	16		/* those of one cluster, which Aff0 tells apart */
#define TRAP_SHIFT	6

/* struct trap */
#define T_MODE		0
#define T_RESUME	8
#define T_TAKEN		16
#define T_ESR		24
#define T_FAR		32
#define T_ELR		40
#define T_SP		48		/* where a stack is that can be trusted */

/* T_MODE: what a synchronous exception leads to */
#define TRAP_REPORT	0		/* nobody expects it: the run has failed */
#define TRAP_RESUME	1		/* to T_RESUME, once */
#define TRAP_SKIP	2		/* to the next instruction, each time */

#ifndef __ASSEMBLER__
#include "sdei.h"
#include "smccc.h"

#define SDEI_REGISTER_RELATIVE		2
#define INVALID		(-2)
#define DENIED		(-3)
#define PENDING		(-5)
#define OUT_OF_RESOURCE	(-10)

#define PSCI_CPU_SUSPEND	0xc4000001u
#define PSCI_CPU_OFF		0x84000002u
#define PSCI_AFFINITY_INFO	0xc4000004u
#define PSCI_SYSTEM_RESET	0x84000009u
#define PSCI_POWERDOWN		(1u << 16)

#define PROBE		0xc600b000u		/* a call that the host may have given a meaning, and counts */
#define OWN_EVENT	0x40000001u		/* what the honest CPU signals, if the host has defined it */

#define HOLE		0x0b000000ul		/* of the "virt" map */
#define TABLES		0x10000000ul		/* another, where machine unicorn keeps its stage-2 tables */
#define BEYOND		(1ul << 47)
#define NONCANONICAL	(1ul << 63)
#define SCRATCH		(RAM_BASE + 0xc00000)	/* 2 MiB that are nobody's */
#define SCRATCH_SIZE	0x200000ul
#define DOTS		0x2e2e2e2e2e2e2e2eul	/* what a serial port may well print */

#define EC(esr)		((u32)((esr) >> 26) & 0x3f)
#define EC_UNKNOWN	0x00
#define EC_SVC		0x15
#define EC_FETCH	0x21
#define EC_DATA		0x25
#define EC_SP		0x26

#define read_sysreg(name) ({ u64 _v; __asm__ volatile("mrs %0, " name : "=r"(_v) :: "memory"); _v; })
#define write_sysreg(name, v) __asm__ volatile("msr " name ", %0\n\tisb" :: "r"((u64)(v)) : "memory")

/* By Aff0, because TPIDR_EL1 may be what was spoilt. */
struct trap {
	u64 mode, resume, taken, esr, far, elr, sp, pad;
};
extern volatile struct trap traps[HOSTILE_CPUS];
_Static_assert(sizeof(struct trap) == 1 << TRAP_SHIFT && offsetof(struct trap, sp) == T_SP, "asm.S");

extern const char __bss_end[], _start[];
extern const char hostile_vectors[], el0_hvc[], el0_smc[], el0_svc[];
extern volatile u32 slot[];		/* an instruction that slot_run() executes */
extern const char complete_only[], complete_only_end[];

/*
 * EVENT_SIGNAL of event 0 to this CPU, on another stack if sp is not 0.  An exception inside of the handler leads to
 * EVENT_COMPLETE, without a stack.  x0 of the call.
 */
u64 provoke(u64 sp, u64 affinity);
/* The same on SP_EL0, which is that. */
u64 provoke_spsel(u64 sp_el0, u64 affinity);

/* The same with a handler that goes on elsewhere: the exception there leads back. */
void lose_way(u64 affinity);

/* One call with x1..x30 all ones. */
u64 ones_hvc(u64 id), ones_smc(u64 id);
/* The code at pc, at EL0, with x0, until it traps. */
void enter_el0(u64 pc, u64 x0);
/* The instruction in the slot with x0..x30 and SP as given, until it is over or traps. */
void slot_run(u64 fill);
/* Every kind of access to an address; what traps is passed over. */
void touch(u64 address, u64 pattern);
/* Everything that could be a register of SCTLR_EL1's importance at once: the MMU on, by tables of nonsense. */
void mmu_nonsense(u64 ttbr, u64 tcr, u64 sctlr);
/* A handler that does nothing but COMPLETE_AND_RESUME to its argument, and COMPLETE if that comes back. */
void handler_resume(void);
/* Handlers without a stack: each makes one call, for ever. */
void handler_spin(void), handler_off(void), handler_reset(void), handler_again(void);

/* main.c */
extern u64 ram_end, block;		/* block: what RAM the machine keeps to itself, or 0 */
extern bool has_gic;
extern u64 seed;
extern u32 own_event;			/* what the honest CPU signals: OWN_EVENT, or 0 where there is none */
extern volatile u64 ready[HOSTILE_CPUS];
extern volatile u64 handled;		/* events that handlers of CPUs other than the honest one have seen */
extern u64 (*act)(struct sdei_frame *);	/* what those do */

void say_gone(const char *what);	/* CPU#0 may print no more, for it may not come back */
void expect(const char *what, s64 got, s64 want);
void event_0(u64 entry, u64 argument, u64 flags);
void no_event_0(void);
s64 psci(u32 id, u64 a, u64 b, u64 c);

/* A store that may trap and be passed over: without the increment of an address, which would be lost with it. */
static inline void poke(u64 at, u64 val) { __asm__ volatile("str %1, [%0]" :: "r"(at), "r"(val) : "memory"); }
static inline void poke32(u64 at, u32 val) { __asm__ volatile("str %w1, [%0]" :: "r"(at), "r"(val) : "memory"); }

static inline u64 pattern(u64 i) { return (i + 1) * 0x9e3779b97f4a7c15ul; }

static inline volatile struct trap *my_trap(void)
{
	return &traps[read_sysreg("mpidr_el1") & (HOSTILE_CPUS - 1)];
}

/* By CPU#0; those with a _helper by others as well. */
void handler_hole(struct cpu *cpu), handler_device(struct cpu *cpu), handler_beyond(struct cpu *cpu);
void handler_host(struct cpu *cpu), handler_ones(struct cpu *cpu), handler_refused(struct cpu *cpu);
void handler_relative(struct cpu *cpu), vbar_nonsense(struct cpu *cpu), handler_never(struct cpu *cpu);
void never_masked(struct cpu *cpu), complete_twice(struct cpu *cpu), reenter(struct cpu *cpu);
void reenter_forever(struct cpu *cpu), meddle_inside(struct cpu *cpu), resume_nonsense(struct cpu *cpu);
void handler_cpu_off(struct cpu *cpu), handler_system_reset(struct cpu *cpu), handler_suspend(struct cpu *cpu);
void handler_power_down(struct cpu *cpu), stacks(struct cpu *cpu), ones(struct cpu *cpu);
void storm(struct cpu *cpu), storm_helper(struct cpu *cpu), storm_mask(struct cpu *cpu);
void mask_helper(struct cpu *cpu), storm_calls(struct cpu *cpu), call_helper(struct cpu *cpu);
void storm_aborts(struct cpu *cpu), abort_helper(struct cpu *cpu), storm_console(struct cpu *cpu);
void el0(struct cpu *cpu), walk_memory(struct cpu *cpu), walk_widths(struct cpu *cpu);
void walk_devices(struct cpu *cpu), psci_nonsense(struct cpu *cpu), cpu_on_nowhere(struct cpu *cpu);
void exhaust(struct cpu *cpu), tpidr_garbage(struct cpu *cpu), system_registers(struct cpu *cpu);
void mmu_on_nonsense(struct cpu *cpu), mmu_on_ones(struct cpu *cpu), tables_change(struct cpu *cpu);
void random_instructions(struct cpu *cpu);
u64 again_a_while(struct sdei_frame *f), pass_on(struct sdei_frame *f);
#endif
#endif
