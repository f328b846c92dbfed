// SPDX-License-Identifier: Apache-2.0
/*
 * Stage-1 translation: everything one to one for EL1, and a window for EL0 with code, the banks of registers, and an
 * arena whose pages stand in another order than in memory.  So whoever goes on with another TTBR0_EL1 does not get far.
 *
 * Memory is non-cacheable, since CPUs without MMU use the same pages.  Arm ARM D8.
 */
#include "mover.h"
#include "ram.h"

#define PAGE		4096ul
#define PER_TABLE	512ul

#define VALID		1ul
#define TABLE		3ul
#define ATTR(n)		((u64)(n) << 2)
#define AP_EL0		(1ul << 6)
#define AP_READ_ONLY	(1ul << 7)
#define AF		(1ul << 10)
#define NG		(1ul << 11)
#define PXN		(1ul << 53)
#define UXN		(1ul << 54)

#define ATTR_DEVICE	0
#define ATTR_MEMORY	1
#define MAIR		0x4400ul	/* attribute 0: Device-nGnRnE, 1: Normal, non-cacheable */

#define ASID		0x5dul
/* 39 bits of address by TTBR0 alone, tables of 4 KiB that are not cached, 40 bits of physical address. */
#define TCR		(25ul | 1ul << 23 | 2ul << 32)
#define SCTLR_M		1ul
#define SCTLR_SPAN	(1ul << 23)

static u64 top[PER_TABLE] __attribute__((aligned(4096)));	/* a GiB each */
static u64 window[PER_TABLE] __attribute__((aligned(4096)));	/* 2 MiB each, from WINDOW on */
static u64 low[PER_TABLE] __attribute__((aligned(4096)));	/* code and banks */

static void map(u64 *table, u64 va, u64 pa, u64 flags)
{
	table[va / PAGE % PER_TABLE] = pa | flags | AF | NG | ATTR(ATTR_MEMORY) | PXN | 3;
}

u64 arena_order(u64 i, u64 pages)
{
	return pages - 1 - i;
}

void mmu_prepare(u64 arena, u64 pages)
{
	u64 code_pages = (u64)(el0_end - el0_begin) / PAGE, *table = NULL;

	top[0] = ATTR(ATTR_DEVICE) | AF | UXN | PXN | VALID;
	for (u64 gib = 1; gib < 64; gib++)
		top[gib] = gib << 30 | ATTR(ATTR_MEMORY) | AF | UXN | VALID;
	top[WINDOW >> 30] = (u64)window | TABLE;
	window[0] = (u64)low | TABLE;
	for (u64 i = 0; i < code_pages; i++)
		map(low, WINDOW_CODE + i * PAGE, (u64)el0_begin + i * PAGE, AP_EL0 | AP_READ_ONLY);
	for (u64 i = 0; i < MOVER_CPUS; i++)
		map(low, window_of_bank(i), (u64)&banks[i], AP_EL0 | UXN);
	if (pages > (PER_TABLE - 1) * PER_TABLE)
		failed("an arena of %lu pages is too large for the window", pages);
	for (u64 i = 0; i < pages; i++) {
		if (i % PER_TABLE == 0) {
			table = (u64 *)ram_take(1);
			window[1 + i / PER_TABLE] = (u64)table | TABLE;
		}
		map(table, WINDOW_ARENA + i * PAGE, arena + arena_order(i, pages) * PAGE, AP_EL0 | UXN);
	}
	mb();
}

void mmu_on(void)
{
	write_sysreg("mair_el1", MAIR);
	write_sysreg("tcr_el1", TCR);
	write_sysreg("ttbr0_el1", (u64)top | ASID << 48);
	__asm__ volatile("dsb sy\n\ttlbi vmalle1\n\tdsb sy\n\tisb" ::: "memory");
	/* Memory of EL0's is ours as well, whatever PSTATE.PAN was. */
	write_sysreg("sctlr_el1", read_sysreg("sctlr_el1") | SCTLR_M | SCTLR_SPAN);
}
