// SPDX-License-Identifier: Apache-2.0
/*
 * Stage-1 translation: everything one to one, for EL1 alone; and above that EL0's window, with its code and, for each
 * task, a stack and pages.  Nothing is mapped for both.  Arm ARM D8.
 */
#include "ram.h"
#include "tasks.h"

#define PER_TABLE	512ul

#define VALID		1ul
#define TABLE		3ul
#define ATTR(n)		((u64)(n) << 2)
#define AP_EL0		(1ul << 6)
#define AP_READ_ONLY	(1ul << 7)
#define INNER_SHAREABLE	(3ul << 8)
#define AF		(1ul << 10)
#define PXN		(1ul << 53)
#define UXN		(1ul << 54)

#define ATTR_DEVICE	0
#define ATTR_MEMORY	1
#define MAIR		0xff00ul	/* attribute 0: Device-nGnRnE, 1: Normal, write-back */
#define MEMORY		(ATTR(ATTR_MEMORY) | INNER_SHAREABLE | AF)

/* 39 bits of address by TTBR0 alone, tables of 4 KiB that are write-back, 40 bits of physical address. */
#define TCR		(25ul | 1ul << 8 | 1ul << 10 | 3ul << 12 | 1ul << 23 | 2ul << 32)
#define SCTLR_M		1ul
#define SCTLR_C		(1ul << 2)
#define SCTLR_I		(1ul << 12)
#define SCTLR_SPAN	(1ul << 23)
#define PAN_ON		".inst 0xd500419f"	/* msr pan, #1 */

static u64 top[PER_TABLE] __attribute__((aligned(4096)));	/* a GiB each */
static u64 code_blocks[PER_TABLE] __attribute__((aligned(4096)));
static u64 code[PER_TABLE] __attribute__((aligned(4096)));

static u64 *table_take(void)
{
	return memset((void *)ram_take(1), 0, PAGE);
}

/* A GiB of the window: the task's pages from its beginning on, and its stack behind them. */
static void map_task(struct task *t, u64 pages)
{
	u64 *blocks = table_take(), *table = NULL;

	top[WINDOW_OF(t->index) >> 30] = (u64)blocks | TABLE;
	t->pages_at = ram_take(pages);
	for (u64 i = 0; i < pages; i++) {
		if (i % PER_TABLE == 0) {
			table = table_take();
			blocks[i / PER_TABLE] = (u64)table | TABLE;
		}
		table[i % PER_TABLE] = (t->pages_at + i * PAGE) | MEMORY | AP_EL0 | UXN | PXN | 3;
	}
}

void mmu_prepare(void)
{
	top[0] = ATTR(ATTR_DEVICE) | AF | UXN | PXN | VALID;
	for (u64 gib = 1; gib < WINDOW >> 30; gib++)
		top[gib] = gib << 30 | MEMORY | UXN | VALID;
	top[WINDOW >> 30] = (u64)code_blocks | TABLE;
	code_blocks[0] = (u64)code | TABLE;
	for (u64 i = 0; i < USER_PAGES; i++)
		code[i] = ((u64)user_begin & ~(PAGE - 1)) + i * PAGE + 0 | MEMORY | AP_EL0 | AP_READ_ONLY | PXN | 3;
	for (u32 i = 0; i < nr_tasks; i++)
		map_task(&tasks[i], (tasks[i].memory ? options.pages : 0) + 1);
	mb();
}

void mmu_on(void)
{
	u64 sctlr = read_sysreg("sctlr_el1") | SCTLR_M | SCTLR_C | SCTLR_I;

	write_sysreg("mair_el1", MAIR);
	write_sysreg("tcr_el1", TCR);
	write_sysreg("ttbr0_el1", (u64)top);
	__asm__ volatile("dsb sy\n\ttlbi vmalle1\n\tdsb sy\n\tisb" ::: "memory");
	if (read_sysreg("id_aa64mmfr1_el1") >> 20 & 0xf) {
		/* The kernel does not touch what is EL0's, whatever happens. */
		__asm__ volatile(PAN_ON);
		sctlr &= ~SCTLR_SPAN;
	}
	write_sysreg("sctlr_el1", sctlr);
}
