// SPDX-License-Identifier: Apache-2.0
/* Shared events: routing, and who takes them. */
#include "conform.h"

#define SHARED_EVENT(t)	({ u32 e_ = shared_event((t)->arg); if (e_ == NO_EVENT) return; e_; })

static void routed(const struct test *t)
{
	u32 event = SHARED_EVENT(t);

	for (u32 i = 0; i < nr_pes; i++) {
		struct handler *h = enlist_routed(&pes[0], event, 0, &pes[i]);

		for (u64 n = 1; n <= 5; n++) {
			TRIGGER(event, &pes[i]);
			ENTERED(h, n);
			ENDED(h, n);
			CHECK(h->by == &pes[i], "PE %lu took an event that is routed to PE %u", h->by->index, i);
		}
		IS(0, &pes[nr_pes - 1], SDEI_EVENT_UNREGISTER, event);
	}
}

static void routed_raw(const struct test *t)
{
	u32 event = SHARED_EVENT(t);
	struct handler *h = handler_of(NULL, event, 0);

	IS(0, &pes[0], SDEI_EVENT_REGISTER, event, (u64)conform_entry, (u64)h, SDEI_RM_PE, pes[0].mpidr | 1ul << 31);
	IS((s64)pes[0].mpidr, &pes[0], SDEI_EVENT_GET_INFO, event, SDEI_INFO_ROUTING_AFF);
	IS(0, &pes[0], SDEI_EVENT_ENABLE, event);
	TRIGGER(event, &pes[0]);
	EXACTLY(h, 1);
}

static void routed_masked(const struct test *t)
{
	u32 event = SHARED_EVENT(t);
	struct pe *p = &pes[1];
	struct handler *h;

	NEEDS_PES(2);
	h = enlist_routed(&pes[0], event, 0, p);
	IS(1, p, SDEI_PE_MASK);
	TRIGGER(event, p);
	EXACTLY(h, 0);
	STATUS_IS(ST_ENABLED, &pes[0], event);
	IS(0, p, SDEI_PE_UNMASK);
	EXACTLY(h, 1);
	CHECK(h->by == p, "PE %lu took an event that is routed to PE 1", h->by->index);
}

static void any_one(const struct test *t)
{
	u32 event = SHARED_EVENT(t);
	struct handler *h = enlist(&pes[0], event, 0);

	for (u64 n = 1; n <= 10; n++) {
		TRIGGER(event, &pes[0]);
		ENTERED(h, n);
		ENDED(h, n);
	}
	EXACTLY(h, 10);
	note("the last of ten events was taken by PE %lu", h->by->index);
}

static void any_unmasked(const struct test *t)
{
	u32 event = SHARED_EVENT(t);
	struct handler *h;

	NEEDS_PES(2);
	/* Only one PE can take it, each in turn. */
	h = enlist(&pes[0], event, 0);
	for (u32 i = 0; i < nr_pes; i++)
		IS(1, &pes[i], SDEI_PE_MASK);
	for (u32 i = 0; i < nr_pes; i++) {
		IS(0, &pes[i], SDEI_PE_UNMASK);
		TRIGGER(event, &pes[i]);
		ENTERED(h, i + 1);
		ENDED(h, i + 1);
		CHECK(h->by == &pes[i], "PE %lu took it, which is masked", h->by->index);
		IS(1, &pes[i], SDEI_PE_MASK);
	}
	/* Nobody can: it waits for the first that is able to. */
	TRIGGER(event, &pes[0]);
	EXACTLY(h, nr_pes);
	IS(0, &pes[nr_pes - 1], SDEI_PE_UNMASK);
	EXACTLY(h, nr_pes + 1);
	CHECK(h->by == &pes[nr_pes - 1], "PE %lu took it, which is masked", h->by->index);
}

static void any_power(const struct test *t)
{
	u32 event = SHARED_EVENT(t);
	struct handler *h;
	u32 left = nr_pes;
	u64 n = 0;

	NEEDS_PES(2);
	/* The PE that has taken it goes off, if it is not the one that conducts; then that one masks itself. */
	h = enlist(&pes[0], event, 0);
	while (left) {
		struct pe *taker;

		TRIGGER(event, &pes[0]);
		ENTERED(h, ++n);
		ENDED(h, n);
		taker = h->by;
		CHECK(taker->cpu->online, "PE %lu took it, which is off", taker->index);
		if (taker->index == 0) {
			IS(1, taker, SDEI_PE_MASK);
		} else {
			TRY(turn_off(taker));
		}
		left--;
	}
	TRIGGER(event, &pes[0]);
	EXACTLY(h, nr_pes);
	IS(0, &pes[0], SDEI_PE_UNMASK);
	EXACTLY(h, nr_pes + 1);
	CHECK(h->by == &pes[0], "PE %lu took it, which is off", h->by->index);
}

static void once(const struct test *t)
{
	u32 event = SHARED_EVENT(t);
	struct handler *h;

	NEEDS_PES(2);
	/* A shared event runs on one PE at a time, even if it is raised again and others are idle. */
	for (u32 i = 0; i < nr_pes; i++)
		if (i != 1)
			IS(1, &pes[i], SDEI_PE_MASK);
	h = enlist(&pes[0], event, HOLD);
	TRIGGER(event, &pes[1]);
	ENTERED(h, 1);
	for (u32 i = 2; i < nr_pes; i++)
		IS(0, &pes[i], SDEI_PE_UNMASK);
	TRIGGER(event, &pes[1]);
	EXACTLY(h, 1);
	for (u32 i = 0; i < nr_pes; i++)
		STATUS_IS(ST_RUNNING, &pes[i], event);
	h->hold = false;
	LEAVE(&pes[1]);
	EXACTLY(h, 2);
}

static void busy_pe(const struct test *t)
{
	u32 event = SHARED_EVENT(t);
	struct handler *h, *n;

	NEEDS_PES(3);
	/* PE 1 is in a handler of the same priority, so another takes it. */
	u32 blocker = t->arg ? PRIVATE_CRITICAL(0) : 0;

	if (blocker == NO_EVENT)
		SKIP("no private critical event on this platform");
	n = enlist(&pes[1], blocker, HOLD);
	TRIGGER(blocker, &pes[1]);
	ENTERED(n, 1);
	IS(1, &pes[0], SDEI_PE_MASK);
	h = enlist(&pes[0], event, 0);
	for (u64 i = 1; i <= 5; i++) {
		TRIGGER(event, &pes[2]);
		ENTERED(h, i);
		ENDED(h, i);
		CHECK(h->by != &pes[1], "PE 1 took it in the middle of a handler of this priority");
		CHECK(h->by != &pes[0], "PE 0 took it, which is masked");
	}
	LEAVE(&pes[1]);
}

static void two_at_once(const struct test *t)
{
	u32 a = platform.events[1][t->arg][0], b = platform.events[1][t->arg][1];
	struct handler *ha, *hb;

	NEEDS_PES(3);
	if (a == NO_EVENT || b == NO_EVENT)
		SKIP("no two shared events of this priority");
	IS(1, &pes[0], SDEI_PE_MASK);
	ha = enlist(&pes[0], a, HOLD);
	hb = enlist(&pes[0], b, HOLD);
	TRIGGER(a, &pes[1]);
	ENTERED(ha, 1);
	TRIGGER(b, &pes[2]);
	ENTERED(hb, 1);
	CHECK(ha->by != hb->by, "PE %lu runs both handlers", ha->by->index);
	LEAVE(ha->by);
	LEAVE(hb->by);
}

/* -- ROUTING_SET */

static void set(const struct test *t)
{
	u32 event = SHARED_EVENT(t);
	struct handler *h = handler_of(NULL, event, 0);

	IS(0, &pes[0], SDEI_EVENT_REGISTER, event, (u64)conform_entry, (u64)h, SDEI_RM_ANY, 0);
	for (u32 i = 0; i < nr_pes; i++) {
		IS(0, &pes[0], SDEI_EVENT_ROUTING_SET, event, SDEI_RM_PE, pes[i].mpidr);
		IS(SDEI_RM_PE, &pes[0], SDEI_EVENT_GET_INFO, event, SDEI_INFO_ROUTING_MODE);
		IS((s64)pes[i].mpidr, &pes[0], SDEI_EVENT_GET_INFO, event, SDEI_INFO_ROUTING_AFF);
		IS(0, &pes[0], SDEI_EVENT_ENABLE, event);
		TRIGGER(event, &pes[i]);
		ENTERED(h, i + 1);
		ENDED(h, i + 1);
		CHECK(h->by == &pes[i], "PE %lu took an event that is routed to PE %u", h->by->index, i);
		settle();
		IS(0, &pes[0], SDEI_EVENT_DISABLE, event);
	}
	IS(0, &pes[0], SDEI_EVENT_ROUTING_SET, event, SDEI_RM_ANY, 0);
	IS(SDEI_RM_ANY, &pes[0], SDEI_EVENT_GET_INFO, event, SDEI_INFO_ROUTING_MODE);
}

static void set_bad(const struct test *t)
{
	u32 event = SHARED_EVENT(t);
	struct handler *h = handler_of(NULL, event, 0);

	IS(0, &pes[0], SDEI_EVENT_REGISTER, event, (u64)conform_entry, (u64)h, SDEI_RM_PE, pes[0].mpidr);
	for (u32 bit = 1; bit < 64; bit++)
		IS(SDEI_INVALID, &pes[0], SDEI_EVENT_ROUTING_SET, event, 1ul << bit, pes[0].mpidr);
	IS(SDEI_INVALID, &pes[0], SDEI_EVENT_ROUTING_SET, event, SDEI_RM_PE, 0xff00fffffful);
	IS(SDEI_RM_PE, &pes[0], SDEI_EVENT_GET_INFO, event, SDEI_INFO_ROUTING_MODE);
	IS((s64)pes[0].mpidr, &pes[0], SDEI_EVENT_GET_INFO, event, SDEI_INFO_ROUTING_AFF);
}

static void set_raw(const struct test *t)
{
	u32 event = SHARED_EVENT(t);
	struct handler *h = handler_of(NULL, event, 0);

	IS(0, &pes[0], SDEI_EVENT_REGISTER, event, (u64)conform_entry, (u64)h, SDEI_RM_ANY, 0);
	IS(0, &pes[0], SDEI_EVENT_ROUTING_SET, event, SDEI_RM_PE, pes[0].mpidr | 1ul << 31);
	IS((s64)pes[0].mpidr, &pes[0], SDEI_EVENT_GET_INFO, event, SDEI_INFO_ROUTING_AFF);
}

static void set_private(const struct test *t)
{
	(void)t;
	IS(SDEI_INVALID, &pes[0], SDEI_EVENT_ROUTING_SET, 0, SDEI_RM_ANY, 0);
	(void)enlist(&pes[0], 0, 0);
	IS(SDEI_INVALID, &pes[0], SDEI_EVENT_ROUTING_SET, 0, SDEI_RM_ANY, 0);
	IS(0, &pes[0], SDEI_EVENT_DISABLE, 0);
	IS(SDEI_INVALID, &pes[0], SDEI_EVENT_ROUTING_SET, 0, SDEI_RM_PE, pes[0].mpidr);
}

static void registered_elsewhere(const struct test *t)
{
	u32 event = SHARED_EVENT(t);
	struct handler *h;

	NEEDS_PES(2);
	/* Registered, enabled and unregistered by whoever likes, and taken by the one it is routed to. */
	h = enlist_routed(&pes[nr_pes - 1], event, 0, &pes[0]);
	IS(0, &pes[0], SDEI_EVENT_DISABLE, event);
	IS(0, &pes[1], SDEI_EVENT_ENABLE, event);
	TRIGGER(event, &pes[0]);
	ENTERED(h, 1);
	CHECK(h->by == &pes[0], "PE %lu took an event that is routed to PE 0", h->by->index);
	settle();
	IS(0, &pes[1], SDEI_EVENT_UNREGISTER, event);
}

#define BOTH(id, rule, title, fn)					\
	{ "shared." id, rule, title, fn, 0 },				\
	{ "shared.critical-" id, rule, title ", critical", fn, 1 }

static const struct test shared_tests[] = {
	BOTH("routed", "DEN0054C 4.1", "RM_PE: the PE it is routed to takes it", routed),
	BOTH("routed-raw", "DEN0054C 5.1.2", "RM_PE: the affinity may have MPIDR_EL1's other bits", routed_raw),
	BOTH("routed-masked", "DEN0054C 5.1.12", "RM_PE: it waits for its PE if that is masked", routed_masked),
	BOTH("any", "DEN0054C 4.1", "RM_ANY: one PE takes it", any_one),
	BOTH("any-masked", "DEN0054C 4.1", "RM_ANY: a PE that is not masked takes it", any_unmasked),
	BOTH("any-power", "DEN0054C 4.1", "RM_ANY: PEs take it while others power off", any_power),
	BOTH("once", "DEN0054C 6.1", "its handler runs on one PE at a time", once),
	BOTH("busy", "DEN0054C 4.2", "RM_ANY: not a PE that is in a handler of its priority", busy_pe),
	BOTH("two", "DEN0054C 4.2", "two shared events run on two PEs", two_at_once),
	BOTH("elsewhere", "DEN0054C 4.1", "any PE registers and enables it", registered_elsewhere),
	BOTH("routing-set", "DEN0054C 5.1.11", "ROUTING_SET changes who takes it", set),
	BOTH("routing-set-bad", "DEN0054C 5.1.11", "a mode or affinity that does not exist is INVALID_PARAMETERS", set_bad),
	BOTH("routing-set-raw", "DEN0054C 5.1.11", "the affinity may have MPIDR_EL1's other bits", set_raw),
	{ "shared.routing-set-private", "DEN0054C 5.1.11", "a private event has no routing", set_private, 0 },
};
GROUP(shared);
