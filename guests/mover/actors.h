/* SPDX-License-Identifier: Apache-2.0 */
#ifndef ACTORS_H
#define ACTORS_H

#include "cells.h"

#define COMMANDS	8
#define LOG_SIZE	32

struct actor;
struct slot;

struct command {
	s64 (*fn)(struct actor *a, const u64 *args);
	u64 args[6];
	volatile s64 result;
	volatile u64 depth;		/* in which it was carried out */
	volatile u64 taken, done;
};

struct actor {
	struct command *volatile posted;
	volatile u64 depth;		/* handlers that run here */
	volatile u64 leaving;		/* the one of this depth shall end */
	struct command commands[COMMANDS];	/* in turn */
	u32 next;
	struct slot *volatile log[LOG_SIZE];	/* handlers as they were entered */
	volatile u64 logged;
};
extern struct actor actors[SCENE_CPUS];

void serve(struct actor *a);
struct command *post(u64 pe, s64 (*fn)(struct actor *, const u64 *), const u64 args[6]);
s64 finish(u64 pe, struct command *c);

/* An SDEI call on a PE. */
s64 call_on(u64 pe, u32 id, u64 a1, u64 a2, u64 a3, u64 a4, u64 a5);
void expect_on(s64 want, u64 pe, u32 id, u64 a1, u64 a2, u64 a3, u64 a4, u64 a5);
#define CALL_(pe, id, a1, a2, a3, a4, a5, ...)		call_on(pe, id, a1, a2, a3, a4, a5)
#define CALL(pe, ...)					CALL_(pe, __VA_ARGS__, 0, 0, 0, 0, 0, 0)
#define EXPECT_(want, pe, id, a1, a2, a3, a4, a5, ...)	expect_on(want, pe, id, a1, a2, a3, a4, a5)
#define EXPECT(want, pe, ...)				EXPECT_(want, pe, __VA_ARGS__, 0, 0, 0, 0, 0, 0)

/* The innermost handler ends; waits until that is over, if the PE serves commands then. */
void leave(u64 pe, bool then_serves);

/* These are over when somebody sets banks[pe].stop, or an event wakes the PE. */
struct command *start_rounds(u64 pe, bool el0);
struct command *start_sleep(u64 pe, bool power_down);
void turn_off(u64 pe);
void turn_on(u64 pe);

#endif
