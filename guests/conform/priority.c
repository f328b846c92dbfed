// SPDX-License-Identifier: Apache-2.0
/* Critical events over normal ones, DEN0054C 4.2: who interrupts whom, and whose context calls are about. */
#include "conform.h"

static u32 normal, critical;

/* Handlers of a normal and a critical event on PE 1; both hold. */
static bool both(struct handler **n, struct handler **c)
{
	struct pe *p = &pes[1];

	if (nr_pes < 2) {
		skip("needs 2 PEs");
		return false;
	}
	normal = 0;
	critical = PRIVATE_CRITICAL(0);
	if (critical == NO_EVENT) {
		skip("no private critical event on this platform");
		return false;
	}
	*n = enlist(p, normal, HOLD);
	*c = enlist(p, critical, HOLD);
	return !failed();
}

/* The normal handler runs on PE 1, and the critical one has interrupted it. */
#define NESTED(n, c)	do {		\
	if (!both(&(n), &(c)))		\
		return;			\
	TRIGGER(normal, &pes[1]);	\
	ENTERED(n, 1);			\
	TRIGGER(critical, &pes[1]);	\
	ENTERED(c, 1);			\
} while (0)

static void nests(const struct test *t)
{
	struct pe *p = &pes[1];
	struct handler *n, *c;

	(void)t;
	NESTED(n, c);
	CHECK(p->depth == 2, "%lu handlers run instead of 2", p->depth);
	STATUS_IS(ST_RUNNING, p, normal);
	STATUS_IS(ST_RUNNING, p, critical);
	LEAVE(p);
	STATUS_IS(ST_ENABLED, p, critical);
	STATUS_IS(ST_RUNNING, p, normal);
	LEAVE(p);
	STATUS_IS(ST_ENABLED, p, normal);
}

static void normal_waits(const struct test *t)
{
	struct pe *p = &pes[1];
	struct handler *n, *c;

	(void)t;
	if (!both(&n, &c))
		return;
	TRIGGER(critical, p);
	ENTERED(c, 1);
	TRIGGER(normal, p);
	EXACTLY(n, 0);
	LEAVE(p);
	ENTERED(n, 1);
	LEAVE(p);
}

static void same_waits(const struct test *t)
{
	struct pe *p = &pes[1];
	u32 second = platform.events[0][t->arg][1], first = platform.events[0][t->arg][0];
	struct handler *a, *b;

	NEEDS_PES(2);
	if (first == NO_EVENT || second == NO_EVENT)
		SKIP("no two private events of this priority");
	a = enlist(p, first, HOLD);
	b = enlist(p, second, HOLD);
	TRIGGER(second, p);
	ENTERED(b, 1);
	TRIGGER(first, p);
	EXACTLY(a, 0);
	LEAVE(p);
	ENTERED(a, 1);
	EXACTLY(b, 1);
	LEAVE(p);
}

static void critical_first(const struct test *t)
{
	struct pe *p = &pes[1];
	struct handler *n, *c;
	struct command *unmask;

	(void)t;
	if (!both(&n, &c))
		return;
	/* Both wait for PE_UNMASK, which does not return before the handlers have ended. */
	IS(1, p, SDEI_PE_MASK);
	if (!raise_event(normal, p) || !raise_event(critical, p))
		SKIP("events cannot be raised for a masked PE");
	unmask = post_call(p, SDEI_PE_UNMASK, 0);
	ENTERED(c, 1);
	/* If firmware has entered the normal handler first, then the critical one has interrupted it. */
	CHECK(!n->entered || p->depth == 2, "the critical event waited for the normal one");
	LEAVE(p);
	ENTERED(n, 1);
	LEAVE(p);
	TRY(finish(p, unmask));
	EXACTLY(c, 1);
	EXACTLY(n, 1);
}

static void pending_before_outer(const struct test *t)
{
	struct pe *p = &pes[1];
	u32 second = PRIVATE_CRITICAL(1);
	struct handler *n, *c, *d;

	(void)t;
	if (!both(&n, &c))
		return;
	if (second == NO_EVENT)
		SKIP("no two private critical events");
	d = enlist(p, second, HOLD);
	TRIGGER(normal, p);
	ENTERED(n, 1);
	TRIGGER(critical, p);
	ENTERED(c, 1);
	TRIGGER(second, p);
	EXACTLY(d, 0);
	/* The waiting critical event comes before the normal handler goes on. */
	LEAVE(p);
	ENTERED(d, 1);
	STATUS_IS(ST_RUNNING, p, normal);
	LEAVE(p);
	LEAVE(p);
	STATUS_IS(ST_ENABLED, p, normal);
}

static void context_level(const struct test *t)
{
	struct pe *p = &pes[1];
	struct handler *n, *c;
	s64 outer[18];

	(void)t;
	if (!both(&n, &c))
		return;
	TRIGGER(normal, p);
	ENTERED(n, 1);
	for (u64 i = 0; i < 18; i++)
		outer[i] = CALL(p, SDEI_EVENT_CONTEXT, i);
	TRIGGER(critical, p);
	ENTERED(c, 1);
	/* x18 and beyond are not saved, so the inner context is that of C in the outer handler; SP_EL1 tells them apart. */
	CHECK(c->sp < n->sp, "the critical handler started on 0x%lx, the normal one on 0x%lx", c->sp, n->sp);
	bool differs = false;

	for (u64 i = 0; i < 18; i++)
		differs |= CALL(p, SDEI_EVENT_CONTEXT, i) != outer[i];
	TRY(!failed());
	CHECK(differs, "EVENT_CONTEXT in the critical handler tells of what the normal handler interrupted");
	LEAVE(p);
	for (u64 i = 0; i < 18; i++) {
		s64 got = CALL(p, SDEI_EVENT_CONTEXT, i);

		CHECK(got == outer[i], "EVENT_CONTEXT(%lu) is 0x%lx after the critical handler, and was 0x%lx before", i, (u64)got,
		      (u64)outer[i]);
	}
	LEAVE(p);
}

static void interrupted_pc(const struct test *t)
{
	struct pe *p = &pes[1];
	struct handler *n, *c;

	(void)t;
	NESTED(n, c);
	CHECK((c->x[3] & (PSTATE_MODE | PSTATE_DAIF)) == (MODE_EL1H | PSTATE_DAIF), "the interrupted PSTATE is 0x%lx: no handler's",
	      c->x[3]);
	LEAVE(p);
	LEAVE(p);
	EXACTLY(c, 1);
	EXACTLY(n, 1);
}

static void inner_disables_outer(const struct test *t)
{
	struct pe *p = &pes[1];
	struct handler *n, *c;

	(void)t;
	NESTED(n, c);
	IS(0, p, SDEI_EVENT_DISABLE, normal);
	STATUS_IS(ST_RUNNING_DISABLED, p, normal);
	IS(SDEI_PENDING, p, SDEI_EVENT_UNREGISTER, normal);
	STATUS_IS(ST_PENDING, p, normal);
	STATUS_IS(ST_RUNNING, p, critical);
	/* Two handlers, one call to end each. */
	LEAVE(p);
	STATUS_IS(ST_PENDING, p, normal);
	STATUS_IS(ST_ENABLED, p, critical);
	LEAVE(p);
	STATUS_IS(ST_UNREGISTERED, p, normal);
	IS(SDEI_DENIED, p, SDEI_EVENT_COMPLETE, 0);
}

static void resume_inner(const struct test *t)
{
	struct pe *p = &pes[1];
	struct handler *n, *c;
	u64 resumed = p->resumed;

	(void)t;
	NESTED(n, c);
	LEAVE_BY(p, SDEI_EVENT_COMPLETE_AND_RESUME, (u64)resume_el1);
	CHECK(p->resumed == resumed + 1, "no arrival at the resume address");
	CHECK(p->resume_elr == c->x[2], "ELR_EL1 is 0x%lx there instead of 0x%lx", p->resume_elr, c->x[2]);
	STATUS_IS(ST_RUNNING, p, normal);
	LEAVE(p);
}

static void shared_over_private(const struct test *t)
{
	struct pe *p = &pes[1];
	u32 event = SHARED_CRITICAL(0);
	struct handler *n, *c;

	(void)t;
	NEEDS_PES(2);
	if (event == NO_EVENT)
		SKIP("no shared critical event on this platform");
	n = enlist(p, 0, HOLD);
	c = enlist_routed(p, event, HOLD, p);
	TRIGGER(0, p);
	ENTERED(n, 1);
	TRIGGER(event, p);
	ENTERED(c, 1);
	CHECK(p->depth == 2, "%lu handlers run instead of 2", p->depth);
	LEAVE(p);
	LEAVE(p);
}

static const struct test priority_tests[] = {
	{ "priority.nests", "DEN0054C 4.2", "a critical event interrupts a normal handler", nests, 0 },
	{ "priority.normal-waits", "DEN0054C 4.2", "a normal event waits for a critical handler", normal_waits, 0 },
	{ "priority.same-normal", "DEN0054C 4.2", "a normal event waits for a normal handler", same_waits, 0 },
	{ "priority.same-critical", "DEN0054C 4.2", "a critical event waits for a critical handler", same_waits, 1 },
	{ "priority.critical-first", "DEN0054C 4.2", "of two that wait, the critical one does not wait for the other", critical_first,
	  0 },
	{ "priority.before-outer", "DEN0054C 4.2", "a waiting critical event comes before the normal handler goes on",
	  pending_before_outer, 0 },
	{ "priority.context", "DEN0054C 5.1.5", "EVENT_CONTEXT is about the innermost handler", context_level, 0 },
	{ "priority.interrupted", "DEN0054C 4.3", "what a nested handler interrupted is a handler", interrupted_pc, 0 },
	{ "priority.outer-state", "DEN0054C 6.1", "the outer handler's state changes from the inner one", inner_disables_outer, 0 },
	{ "priority.resume-inner", "DEN0054C 5.1.7", "EVENT_COMPLETE_AND_RESUME ends the inner handler alone", resume_inner, 0 },
	{ "priority.shared", "DEN0054C 4.2", "a shared critical event interrupts a private normal handler", shared_over_private, 0 },
};
GROUP(priority);
