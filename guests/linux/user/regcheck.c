// SPDX-License-Identifier: Apache-2.0
/*
 * Fills all registers with values of its own, holds them for a while, and looks whether they are still the same: what
 * an interruption saves and restores wrongly shows here. With "syscall" a system call stands in the loop, so that
 * events come in the kernel as well.
 *
 *     regcheck [SECONDS [syscall]]
 */
#include "user.h"

enum { SPINS = 20000, CALLS = 100, COUNTER = 28 };

/* regcheck_asm.S knows the offsets. */
struct registers {
	u64 x[31];
	u64 nzcv, fpcr, fpsr, tpidr;
	u64 v[64] __attribute__((aligned(16)));
};

/* Both load all of `values`, loop, and store what is there then. x28 counts, and ends at 0. */
void hold(struct registers *values, u64 spins);
void hold_calling(struct registers *values, u64 calls);

static u64 random_state;

static u64 next_random(void)
{
	random_state ^= random_state << 13;
	random_state ^= random_state >> 7;
	random_state ^= random_state << 17;
	return random_state;
}

static void fill(struct registers *values)
{
	u64 i;

	for (i = 0; i < 31; i++)
		values->x[i] = next_random();
	for (i = 0; i < 64; i++)
		values->v[i] = next_random();
	values->nzcv = next_random() & 0xf0000000;
	values->fpcr = next_random() & 0x01c00000;	/* rounding mode and flush to zero */
	values->fpsr = next_random() & 0x0800009f;	/* saturation and the exceptions seen */
	values->tpidr = next_random();
}

static int mismatch(const char *what, long index, u64 want, u64 got)
{
	struct line line = { 0 };

	if (want == got)
		return 0;
	put(&line, "regcheck: MISMATCH ");
	put(&line, what);
	if (index >= 0)
		put_number(&line, index, 10);
	put(&line, " expected 0x");
	put_number(&line, want, 16);
	put(&line, " found 0x");
	put_number(&line, got, 16);
	put(&line, "\n");
	send(&line);
	return 1;
}

static int differences(const struct registers *want, const struct registers *got)
{
	int count = 0;
	u64 i;

	for (i = 0; i < 31; i++)
		count += mismatch("x", i, want->x[i], got->x[i]);
	for (i = 0; i < 64; i++)
		count += mismatch(i % 2 ? "high half of v" : "low half of v", i / 2, want->v[i], got->v[i]);
	count += mismatch("nzcv", -1, want->nzcv, got->nzcv);
	count += mismatch("fpcr", -1, want->fpcr, got->fpcr);
	count += mismatch("fpsr", -1, want->fpsr, got->fpsr);
	count += mismatch("tpidr_el0", -1, want->tpidr, got->tpidr);
	return count;
}

static int iteration(int calling, u64 pid)
{
	struct registers want, got;

	fill(&want);
	want.x[COUNTER] = 0;
	got = want;
	if (calling) {
		want.x[0] = pid;
		want.x[8] = SYS_getpid;
		hold_calling(&got, CALLS);
	} else {
		hold(&got, SPINS);
	}
	return differences(&want, &got);
}

int start(int argc, char **argv)
{
	u64 seconds = number(argc > 1 ? argv[1] : "5");
	int calling = argc > 2 && same(argv[2], "syscall");
	u64 pid = syscall5(SYS_getpid, 0, 0, 0, 0, 0);
	u64 begin = nanoseconds(), count = 0;
	struct line line = { 0 };

	random_state = begin ^ pid << 40 ^ 0x9e3779b97f4a7c15;
	do {
		if (iteration(calling, pid))
			return 1;
		count++;
	} while (nanoseconds() - begin < seconds * 1000000000);
	put(&line, "regcheck: OK iterations=");
	put_number(&line, count, 10);
	put(&line, "\n");
	send(&line);
	return 0;
}
