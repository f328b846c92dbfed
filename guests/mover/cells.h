/* SPDX-License-Identifier: Apache-2.0 */
/* Scenes: which handler is in which state while the guest is moved.  cases.c has them as a table, cells.c plays them. */
#ifndef CELLS_H
#define CELLS_H

#include "mover.h"

#define SCENE_CPUS	4
#define MAX_ROWS	40

/* What a PE is doing. */
enum where {
	IDLE,			/* in a loop at EL1, unmasked */
	MASKED,			/* the same, but for PE_MASK */
	REGS,			/* comparing its registers, at EL1, unmasked */
	USER,			/* the same at EL0, with the MMU on */
	OFF,
	ASLEEP,			/* powered down in CPU_SUSPEND, unmasked; where there is no power-down, in standby */
	ASLEEP_MASKED,
	WAITING,		/* in WFI, unmasked */
};

enum kind { PN, PC, SN, SC, BP, BS };	/* private or shared, normal or critical; bound PPI, bound SPI (both normal) */

/* States as docs/states.md has them, p: and pending.  What is unregistered, or about to be, cannot be pending. */
enum cell { reg, reG, reGp, rEG, rEGp, REG, REGp, ReG, ReGp, Reg };

#define ROUTED		1	/* a shared event that has its PE by RM_PE; else by RM_ANY */
#define RELATIVE	2	/* to VBAR_EL1 */
#define RESUME		4	/* ends by EVENT_COMPLETE_AND_RESUME */

/* One handler, on a PE; of a shared event by RM_ANY that does not run, the PE that registers it. */
struct row {
	u8 pe, kind, cell, flags;
};

struct scene {
	const char *title;
	u8 where[SCENE_CPUS];
	u32 count;
	struct row rows[MAX_ROWS];
};
extern const struct scene scenes[];
extern const u32 nr_scenes;

extern const char *const where_names[], *const kind_names[], *const cell_names[];

#endif
