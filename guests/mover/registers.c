// SPDX-License-Identifier: Apache-2.0
/*
 * Registers that hold known values: all of x0..x30, SP, Q0..Q31, FPCR, FPSR, flags, and every system register that can
 * hold something without doing something.
 */
#include "mover.h"

struct bank banks[MOVER_CPUS];

enum when { FREE, TRANSLATION, FIXED };

static const char *const sysreg_names[NR_SYSREGS] = {
#define NAME(n, name, when)	[n] = #name,
	SYSREGS_EL0(NAME) SYSREGS_EL1(NAME)
};

static void say_bad(const struct bank *b, bool el0)
{
	u64 bad = b->bad;
	const char *name = "?";
	char number[8];

	if (bad >= BAD_SYS(0)) {
		name = sysreg_names[(bad - BAD_SYS(0)) % NR_SYSREGS];
	} else if (bad >= BAD_SP && bad <= BAD_FPSR) {
		static const char *const names[] = { "SP", "SP_EL0", "NZCV", "DAIF", "CurrentEL", "SPSel", "FPCR", "FPSR" };

		name = names[bad - BAD_SP];
	} else {
		struct out o = { .buf = number, .cap = sizeof(number) - 1 };

		if (bad >= BAD_Q(0))
			out_printf(&o, "Q%lu", (bad - BAD_Q(0)) % 32);
		else
			out_printf(&o, "x%lu", bad - BAD_X(0));
		number[o.len] = '\0';
		name = number;
	}
	failed("register %s at EL%u has changed: bits 0x%lx%s", name, el0 ? 0u : 1u, b->diff,
	       bad >= BAD_Q(32) && bad < BAD_SYS(0) ? " of its high half" : "");
}

static void fill(struct bank *b, u64 seed)
{
	for (u32 i = 0; i < 31; i++)
		b->x[i] = mix(seed + i);
	for (u32 i = 0; i < 64; i++)
		b->q[i] = mix(seed + 100 + i);
	b->sp = mix(seed + 31);
	b->spsel = seed & 1;
	b->nzcv = mix(seed + 32) & PSTATE_NZCV;
	b->fpcr = mix(seed + 33) & 0x07c00000;	/* AHP, DN, FZ, RMode */
	b->fpsr = mix(seed + 34) & 0xf800009f;
	b->bad = 0;
}

#define FREE_SYSREG(n, name, when)						\
	if ((when) == FREE || ((when) == TRANSLATION && !mmu_is_on()))		\
		write_sysreg(#name, mix(seed + 200 + (n)));			\
	b->sys[n] = read_sysreg(#name);

void register_rounds(struct cpu *cpu, u64 seed, u64 rounds, bool el0)
{
	struct bank *b = &banks[cpu->index];

	fill(b, seed);
	b->rounds = rounds;
	SYSREGS_EL0(FREE_SYSREG)
	if (el0) {
		el0_run(window_of_bank(cpu->index), WINDOW_CODE + (u64)(el0_rounds - el0_begin));
	} else {
		SYSREGS_EL1(FREE_SYSREG)
		el1_rounds(b);
	}
	mb();
	if (b->bad)
		say_bad(b, el0);
}

/* -- what an event has interrupted */

static void expect_register(u32 n, u64 got, u64 want, u64 pc)
{
	if (got != want)
		failed("an event at PC 0x%lx has interrupted x%u 0x%lx instead of 0x%lx", pc, n, got, want);
}

static void expect_interrupted(const struct bank *b, const struct sdei_frame *f, u64 bank, bool low)
{
	for (u32 i = low ? 3 : 0; i < (low ? 31u : 28u); i++) {
		u64 got = i < 18 ? (u64)sdei1(SDEI_EVENT_CONTEXT, i) : f->x[i];

		expect_register(i, got, b->x[i], f->x[2]);
	}
	if (low)
		expect_register(0, (u64)sdei1(SDEI_EVENT_CONTEXT, 0), bank, f->x[2]);
	else
		expect_register(28, f->x[28], bank, f->x[2]);
}

#define WITHIN(pc, what, offset)	((pc) - (offset) >= (u64)what && (pc) - (offset) < (u64)what##_end)

void check_interrupted(struct cpu *cpu, struct sdei_frame *f)
{
	const struct bank *b = &banks[cpu->index];
	u64 pc = f->x[2], pstate = f->x[3] & ~(PSTATE_NZCV | PSTATE_BTYPE), offset = WINDOW_CODE - (u64)el0_begin;

	if (pc - WINDOW_CODE < (u64)(el0_end - el0_begin)) {
		if (pstate != SPSR_EL0T || !mmu_is_on())
			failed("an event has interrupted EL0's code at 0x%lx with PSTATE 0x%lx", pc, f->x[3]);
		if (WITHIN(pc, el0_low, offset))
			expect_interrupted(b, f, window_of_bank(cpu->index), true);
		else if (WITHIN(pc, el0_high, offset))
			expect_interrupted(b, f, window_of_bank(cpu->index), false);
		return;
	}
	if (pc < (u64)_start || pc >= (u64)__bss_start || (pstate != SPSR_EL1H && pstate != SPSR_EL1T))
		failed("an event has interrupted PC 0x%lx with PSTATE 0x%lx", pc, f->x[3]);
	if (WITHIN(pc, el1_low, 0))
		expect_interrupted(b, f, (u64)b, true);
	else if (WITHIN(pc, el1_high, 0))
		expect_interrupted(b, f, (u64)b, false);
	else if (pstate != SPSR_EL1H && !WITHIN(pc, el1_rounds, 0))
		failed("an event has interrupted PC 0x%lx with PSTATE 0x%lx", pc, f->x[3]);
}
