// SPDX-License-Identifier: Apache-2.0
/*
 * The scenes.  A PE runs two handlers at most, a normal one with a critical one in it, so all cells of the state table take
 * several.  Between them every state, pending and not, is there for private and shared events of both priorities.
 */
#include "cells.h"

const char *const where_names[] = { "idle", "masked", "regs", "user", "off", "asleep", "asleep-masked", "waiting" };
const char *const kind_names[] = { "private-normal", "private-critical", "shared-normal", "shared-critical",
				   "bound-private", "bound-shared" };
const char *const cell_names[] = { "reg", "reG", "reGp", "rEG", "rEGp", "REG", "REGp", "ReG", "ReGp", "Reg" };

/* Those that do not run; an enabled one that is pending needs a PE which cannot take it. */
#define RESTING(pe, kind, flags)	{ pe, kind, reg, 0 }, { pe, kind, reG, flags }, { pe, kind, reGp, flags },	\
					{ pe, kind, rEG, flags }
#define WAITS(pe, kind, flags)		{ pe, kind, rEGp, flags }

#define SCENE(title, where0, where1, where2, where3, ...)				\
	{ title, { where0, where1, where2, where3 },					\
	  sizeof((const struct row[]){ __VA_ARGS__ }) / sizeof(struct row), { __VA_ARGS__ } }

const struct scene scenes[] = {
	SCENE("private events, a normal handler with a critical one in it", MASKED, REGS, USER, REGS,
	      { 1, PN, REG, 0 }, { 1, PC, REGp, 0 }, RESTING(1, PN, 0), WAITS(1, PN, 0), RESTING(1, PC, 0), WAITS(1, PC, 0),
	      { 2, PN, REGp, 0 }, { 2, PC, ReG, 0 }, WAITS(2, PN, 0), WAITS(2, PC, 0),
	      { 3, PN, ReGp, 0 }, { 3, PC, Reg, 0 }, { 3, PN, reGp, 0 }, { 3, PC, reG, 0 },
	      RESTING(0, PN, 0), WAITS(0, PN, 0), RESTING(0, PC, 0), WAITS(0, PC, 0)),
	SCENE("the other way round; relative handlers, and one that resumes elsewhere", IDLE, USER, REGS, MASKED,
	      { 1, PN, Reg, 0 }, { 1, PC, REG, RESUME }, RESTING(1, PN, RELATIVE), WAITS(1, PN, 0), WAITS(1, PC, RELATIVE),
	      { 2, PN, ReG, 0 }, { 2, PC, ReGp, 0 }, WAITS(2, PC, 0),
	      RESTING(3, PN, RELATIVE), WAITS(3, PN, RELATIVE), RESTING(3, PC, 0), WAITS(3, PC, RELATIVE),
	      RESTING(0, PN, 0), RESTING(0, PC, 0)),
	SCENE("one handler a PE, also on a PE that masks itself in it", IDLE, REGS, USER, MASKED,
	      { 1, PN, REG, 0 }, WAITS(1, PN, 0), RESTING(1, PC, 0),
	      { 2, PC, REGp, 0 }, WAITS(2, PN, 0), WAITS(2, PC, 0),
	      { 3, PC, Reg, 0 }, WAITS(3, PN, 0), WAITS(3, PC, 0)),
	SCENE("shared events that any PE may take", MASKED, REGS, USER, REGS,
	      { 1, SN, REG, 0 }, { 1, SC, REGp, 0 },
	      { 2, SN, REGp, 0 }, { 2, SC, ReG, 0 },
	      { 3, SN, ReG, 0 }, { 3, SC, Reg, 0 },
	      RESTING(0, SN, 0), WAITS(0, SN, 0), RESTING(0, SC, 0), WAITS(0, SC, 0)),
	SCENE("shared events that are routed, also to a PE that is off", MASKED, REGS, USER, OFF,
	      { 1, SN, ReGp, ROUTED }, { 1, SC, REG, 0 }, WAITS(1, SN, ROUTED), { 1, SN, reG, ROUTED },
	      { 2, SN, Reg, 0 }, { 2, SC, ReGp, ROUTED }, { 2, SC, rEG, ROUTED }, { 2, SC, reGp, ROUTED },
	      WAITS(3, SN, ROUTED), WAITS(3, SC, ROUTED)),
	SCENE("private and shared ones in each other; some wait for a masked PE while others are free", IDLE, MASKED, USER,
	      REGS,
	      WAITS(1, PN, 0), WAITS(1, SN, ROUTED), WAITS(1, SC, ROUTED),
	      { 2, PN, REGp, 0 }, { 2, SC, REG, ROUTED }, WAITS(2, PC, 0),
	      { 3, SN, REGp, ROUTED }, { 3, PC, REG, 0 }, WAITS(3, SC, ROUTED),
	      { 0, SN, rEG, 0 }, { 0, SC, reGp, 0 }),
	SCENE("PEs that sleep", IDLE, ASLEEP, WAITING, ASLEEP_MASKED,
	      { 1, PN, rEG, 0 }, { 1, PC, reG, 0 }, { 1, SN, rEG, ROUTED },
	      { 2, PN, rEG, 0 }, { 2, PC, reGp, 0 },
	      WAITS(3, PN, 0), WAITS(3, SC, ROUTED), { 3, PC, rEG, 0 }),
	SCENE("interrupts that are bound", MASKED, REGS, USER, REGS,
	      { 1, BP, REGp, 0 }, { 1, PC, REG, 0 }, { 1, BP, reGp, 0 }, WAITS(1, BS, ROUTED),
	      { 2, BP, Reg, 0 }, { 2, BP, rEG, 0 },
	      { 3, BS, ReGp, 0 },
	      WAITS(0, BP, 0), { 0, BP, reG, 0 }, { 0, BP, reg, 0 }, WAITS(0, BS, 0)),
};
const u32 nr_scenes = sizeof(scenes) / sizeof(scenes[0]);
