// SPDX-License-Identifier: Apache-2.0
/* INTERRUPT_BIND and INTERRUPT_RELEASE. */
#include "conform.h"

static struct pe *self(void) { return &pes[0]; }

#define BOUND(t)	({ u32 e_ = bind_free(self(), (t)->arg); if (e_ == NO_EVENT) return; e_; })

static u32 intid_at(bool shared, u32 i) { return shared ? platform.spis[i] : platform.ppis[i]; }

static void number(const struct test *t)
{
	u32 event = BOUND(t);

	CHECK(event != 0, "event 0 was given out");
	CHECK(!(event >> 31), "event 0x%x has bit 31 set", event);
	STATUS_IS(ST_UNREGISTERED, self(), event);
}

static void sgis(const struct test *t)
{
	(void)t;
	for (u32 i = 0; i < 16; i++)
		IS(SDEI_INVALID, self(), SDEI_INTERRUPT_BIND, i);
}

static void nonsense(const struct test *t)
{
	static const u64 none[] = { 1020, 1021, 1023, 1024, 8192, 0x7fffffff, 0x80000000, 0xffffffff };

	(void)t;
	for (u32 i = 0; i < sizeof(none) / sizeof(none[0]); i++)
		IS(SDEI_INVALID, self(), SDEI_INTERRUPT_BIND, none[i]);
}

static void same(const struct test *t)
{
	u32 first = BOUND(t);
	u32 nr = t->arg ? platform.nr_spis : platform.nr_ppis;

	/* The interrupt that it took again, by anybody: the same event. */
	for (u32 i = 0; i < nr; i++) {
		s64 got = CALL(self(), SDEI_INTERRUPT_BIND, intid_at(t->arg, i));

		if (got != (s64)first)
			continue;
		for (u32 k = 0; k < nr_pes; k++)
			IS((s64)first, &pes[k], SDEI_INTERRUPT_BIND, intid_at(t->arg, i));
		return;
	}
	FAIL("binding the interrupt of event 0x%x again gives another event", first);
}

static void slots(const struct test *t)
{
	u32 have = t->arg ? platform.shared_slots : platform.private_slots, nr = 0;
	u32 from = t->arg ? 32 : 16, to = t->arg ? 287 : 31;
	u32 events[64], beyond = 0;

	if (have > 60)
		SKIP("%u slots are more than this test fills", have);
	/* Until there are no more slots.  What belongs to the firmware is DENIED. */
	for (u32 intid = from; intid <= to; intid++) {
		s64 got = CALL(self(), SDEI_INTERRUPT_BIND, intid);

		if (got == SDEI_DENIED || got == SDEI_INVALID)
			continue;
		if (nr == have) {
			CHECK(got == SDEI_OUT_OF_RESOURCE, "binding beyond %u slots returned %s (%ld)", have, sdei_error_name(got),
			      got);
			beyond++;
			continue;
		}
		CHECK(got > 0, "binding %u, number %u of %u, returned %s (%ld)", intid, nr + 1, have, sdei_error_name(got), got);
		for (u32 i = 0; i < nr; i++)
			CHECK(events[i] != (u32)got, "event 0x%x was given out twice", events[i]);
		events[nr++] = (u32)got;
	}
	if (nr < have)
		SKIP("only %u interrupts could be bound to %u slots", nr, have);
	/* A slot that was released can be used again. */
	if (nr) {
		IS(0, self(), SDEI_INTERRUPT_RELEASE, events[0]);
		s64 got = SDEI_DENIED;

		for (u32 intid = to; intid >= from && (got == SDEI_DENIED || got == SDEI_INVALID); intid--)
			got = CALL(self(), SDEI_INTERRUPT_BIND, intid);
		CHECK(got > 0, "binding after a slot was released returned %s (%ld)", sdei_error_name(got), got);
	}
	note("%u %s slots", have, t->arg ? "shared" : "private");
	if (!beyond)
		SKIP("there is no interrupt to bind beyond %u slots", have);
}

static void release(const struct test *t)
{
	u32 event = BOUND(t);
	s64 got;

	IS(0, self(), SDEI_INTERRUPT_RELEASE, event);
	IS(SDEI_INVALID, self(), SDEI_INTERRUPT_RELEASE, event);
	got = CALL(self(), SDEI_EVENT_REGISTER, event, (u64)conform_entry, 0, SDEI_RM_ANY, 0);
	CHECK(got == SDEI_DENIED || got == SDEI_INVALID, "registering an event without an interrupt returned %s (%ld)",
	      sdei_error_name(got), got);
	note("a number without an interrupt is %s", sdei_error_name(got));
}

static void release_static(const struct test *t)
{
	(void)t;
	for (u32 i = 0; i < 8; i++) {
		u32 event = platform.events[i / 4][i / 2 % 2][i % 2];

		if (event != NO_EVENT)
			IS(SDEI_INVALID, self(), SDEI_INTERRUPT_RELEASE, event);
	}
}

static void release_registered(const struct test *t)
{
	u32 event = BOUND(t);
	struct pe *p = &pes[nr_pes - 1];

	/* As long as it is registered anywhere. */
	IS(0, p, SDEI_EVENT_REGISTER, event, (u64)conform_entry, 0, SDEI_RM_ANY, 0);
	for (u32 i = 0; i < nr_pes; i++)
		IS(SDEI_DENIED, &pes[i], SDEI_INTERRUPT_RELEASE, event);
	IS(0, p, SDEI_EVENT_UNREGISTER, event);
	IS(0, self(), SDEI_INTERRUPT_RELEASE, event);
}

static void for_all(const struct test *t)
{
	u32 event = BOUND(t);

	/* One bind is for all PEs. */
	for (u32 i = 0; i < nr_pes; i++) {
		IS(0, &pes[i], SDEI_EVENT_REGISTER, event, (u64)conform_entry, (u64)handler_of(NULL, event, 0), SDEI_RM_ANY, 0);
		if (t->arg)
			break;
	}
	for (u32 i = 0; i < nr_pes; i++)
		STATUS_IS(ST_REGISTERED, &pes[i], event);
}

static void fires(const struct test *t)
{
	u32 event = BOUND(t);
	struct pe *p = &pes[nr_pes - 1];
	struct handler *h = t->arg ? enlist_routed(p, event, 0, p) : enlist(p, event, 0);

	for (u64 n = 1; n <= 5; n++) {
		TRIGGER(event, p);
		ENTERED(h, n);
		ENDED(h, n);
		CHECK(h->by == p, "PE %lu took the event of PE %lu", h->by->index, p->index);
	}
	EXACTLY(h, 5);
}

static void waits(const struct test *t)
{
	u32 event = BOUND(t);
	struct pe *p = &pes[nr_pes - 1];
	struct handler *h = t->arg ? enlist_routed(p, event, 0, p) : enlist(p, event, 0);

	/* Disabled, then masked: it waits. */
	IS(0, p, SDEI_EVENT_DISABLE, event);
	settle();
	TRIGGER(event, p);
	EXACTLY(h, 0);
	IS(0, p, SDEI_EVENT_ENABLE, event);
	EXACTLY(h, 1);
	IS(1, p, SDEI_PE_MASK);
	settle();
	TRIGGER(event, p);
	EXACTLY(h, 1);
	IS(0, p, SDEI_PE_UNMASK);
	EXACTLY(h, 2);
}

static void after_release(const struct test *t)
{
	u32 event = BOUND(t);
	struct pe *p = &pes[nr_pes - 1];
	struct handler *h = enlist(p, event, 0);

	TRIGGER(event, p);
	EXACTLY(h, 1);
	IS(0, p, SDEI_EVENT_UNREGISTER, event);
	IS(0, self(), SDEI_INTERRUPT_RELEASE, event);
	settle();
	CHECK(h->entered == 1, "the event came after its release");
	/* And again from the beginning. */
	event = bind_free(self(), t->arg);
	CHECK(event != NO_EVENT, "no interrupt can be bound after the release");
	h = enlist(p, event, 0);
	TRIGGER(event, p);
	EXACTLY(h, 1);
}

#define BOTH(id, rule, title, fn)				\
	{ "bind." id ".ppi", rule, title, fn, 0 },		\
	{ "bind." id ".spi", rule, title, fn, 1 }

static const struct test bind_tests[] = {
	BOTH("number", "DEN0054C 5.1.14", "INTERRUPT_BIND gives the number of an unregistered event", number),
	{ "bind.sgi", "DEN0054C 5.1.14", "an SGI is INVALID_PARAMETERS", sgis, 0 },
	{ "bind.nonsense", "DEN0054C 5.1.14", "so is a number that is no PPI and no SPI", nonsense, 0 },
	BOTH("same", "DEN0054C 5.1.14", "an interrupt that is bound already gives the same event", same),
	BOTH("slots", "DEN0054C 5.1.14", "more interrupts than slots are OUT_OF_RESOURCE", slots),
	BOTH("release", "DEN0054C 5.1.15", "INTERRUPT_RELEASE, and no second time", release),
	{ "bind.release.static", "DEN0054C 5.1.15", "events of the platform cannot be released", release_static, 0 },
	BOTH("release-registered", "DEN0054C 5.1.15", "DENIED while it is registered on any PE", release_registered),
	BOTH("for-all", "DEN0054C 5.1.14", "a bound event is there for all PEs", for_all),
	BOTH("fires", "DEN0054C 5.1.14", "the interrupt raises the event", fires),
	BOTH("waits", "DEN0054C 5.1.14", "... which waits while it is disabled or masked", waits),
	BOTH("after-release", "DEN0054C 5.1.15", "... and not after the release; then all over again", after_release),
};
GROUP(bind);
