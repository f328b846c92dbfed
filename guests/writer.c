// SPDX-License-Identifier: Apache-2.0
/*
 * Writes to its memory for ever, at a given pace: what a migration has to keep up with.  It needs no SDEI, so that the same
 * program can be measured on other machines.
 *
 * bootargs: mib=N (of memory, a power of two; default 64)   rate=N (pages a second; default 0: as fast as it can)
 *           idle=1 (writes nothing after the first time, and sleeps)
 *
 * For whoever looks from outside: writer_pages counts what it has written.
 */
#include "guest.h"
#include "ram.h"

#define PAGE_SHIFT	12
#define WORDS		(1u << (PAGE_SHIFT - 3))
#define BLOCK		(2ul << 20)
#define BEHIND		20		/* a pace that has not been kept for 1/20 s is not made good for */

#define read_sysreg(name) ({ u64 _v; __asm__ volatile("isb\n\tmrs %0, " name : "=r"(_v) :: "memory"); _v; })

volatile u64 writer_pages;

u64 stack_of(u64 index);		/* of lib/start.S: the end of that CPU's stack */

static u64 mix(u64 x)			/* splitmix64: what no compression makes smaller */
{
	x += 0x9e3779b97f4a7c15ul;
	x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9ul;
	x = (x ^ x >> 27) * 0x94d049bb133111ebul;
	return x ^ x >> 31;
}

static volatile u64 *memory(u64 pages)
{
	u64 start, end;

	ram_find(&start, &end);
	start = (stack_of(MAX_CPUS - 1) + BLOCK - 1) & ~(BLOCK - 1);
	if (start >= end || pages > (end - start) >> PAGE_SHIFT)
		result_failed("not enough memory: give the guest more, or say mib=");
	return (volatile u64 *)start;
}

/* Returns when the next page is due. */
static void keep_pace(u64 rate)
{
	static u64 start, before;
	u64 frequency = read_sysreg("cntfrq_el0"), due;

	for (;;) {
		due = before + (read_sysreg("cntvct_el0") - start) * rate / frequency;
		if (due > writer_pages)
			break;
		relax();
	}
	if (!start || due - writer_pages > rate / BEHIND + 1) {
		start = read_sysreg("cntvct_el0");
		before = writer_pages;
	}
}

void guest_main(struct cpu *cpu)
{
	u64 pages = arg_u64("mib", 64) << (20 - PAGE_SHIFT), rate = arg_u64("rate", 0), idle = arg_u64("idle", 0);
	volatile u64 *words = memory(pages);

	(void)cpu;
	if (!pages || pages & (pages - 1))
		result_failed("bootargs: mib is no power of two");
	for (u64 i = 0; i < pages * WORDS; i++)
		words[i] = mix(i);
	print("writing %lu pages from 0x%lx on\n", pages, (u64)words);
	while (idle)
		__asm__ volatile("wfi" ::: "memory");
	for (;;) {
		if (rate)
			keep_pace(rate);
		/* All over the place, but each page once before any comes again: the factor is odd. */
		words[(writer_pages * 0x9e3779b1ul & (pages - 1)) * WORDS] = writer_pages;
		writer_pages++;
	}
}
