// SPDX-License-Identifier: Apache-2.0
/* PRIVATE_RESET and SHARED_RESET. */
#include "conform.h"

static void private_all(const struct test *t)
{
	struct pe *p = &pes[nr_pes - 1];

	(void)t;
	for (u32 i = 0; i < 2; i++) {
		if (PRIVATE_NORMAL(i) != NO_EVENT)
			(void)enlist(p, PRIVATE_NORMAL(i), 0);
		if (PRIVATE_CRITICAL(i) != NO_EVENT)
			(void)enlist(p, PRIVATE_CRITICAL(i), 0);
	}
	IS(0, p, SDEI_PRIVATE_RESET);
	for (u32 i = 0; i < 2; i++) {
		if (PRIVATE_NORMAL(i) != NO_EVENT)
			STATUS_IS(ST_UNREGISTERED, p, PRIVATE_NORMAL(i));
		if (PRIVATE_CRITICAL(i) != NO_EVENT)
			STATUS_IS(ST_UNREGISTERED, p, PRIVATE_CRITICAL(i));
	}
}

static void private_own(const struct test *t)
{
	u32 shared = shared_event(false);

	(void)t;
	NEEDS_PES(2);
	if (shared == NO_EVENT)
		return;
	/* The calling PE's private events, and nothing else. */
	(void)enlist(&pes[0], 0, 0);
	(void)enlist(&pes[1], 0, 0);
	(void)enlist(&pes[0], shared, 0);
	IS(0, &pes[0], SDEI_PRIVATE_RESET);
	STATUS_IS(ST_UNREGISTERED, &pes[0], 0);
	STATUS_IS(ST_ENABLED, &pes[1], 0);
	STATUS_IS(ST_ENABLED, &pes[0], shared);
}

static void private_running(const struct test *t)
{
	struct pe *p = &pes[1];
	u32 other = PRIVATE_CRITICAL(0);
	struct handler *h;

	(void)t;
	NEEDS_PES(2);
	h = enlist(p, 0, HOLD);
	if (other != NO_EVENT)
		(void)enlist(p, other, 0);
	TRIGGER(0, p);
	ENTERED(h, 1);
	/* One that runs is about to go; all others are gone. */
	IS(SDEI_DENIED, p, SDEI_PRIVATE_RESET);
	STATUS_IS(ST_PENDING, p, 0);
	if (other != NO_EVENT)
		STATUS_IS(ST_UNREGISTERED, p, other);
	IS(SDEI_DENIED, p, SDEI_PRIVATE_RESET);
	LEAVE(p);
	STATUS_IS(ST_UNREGISTERED, p, 0);
	IS(0, p, SDEI_PRIVATE_RESET);
}

static void private_drops(const struct test *t)
{
	struct pe *p = &pes[nr_pes - 1];
	struct handler *h = enlist(p, 0, 0);
	s64 got;

	(void)t;
	IS(1, p, SDEI_PE_MASK);
	got = CALL(&pes[0], SDEI_EVENT_SIGNAL, 0, p->mpidr);
	if (got == SDEI_INVALID)
		SKIP("EVENT_SIGNAL refuses a target that is masked");
	CHECK(!got, "EVENT_SIGNAL to a target that is masked returned %s (%ld)", sdei_error_name(got), got);
	IS(0, p, SDEI_PRIVATE_RESET);
	h = enlist(p, 0, 0);
	IS(0, p, SDEI_PE_UNMASK);
	EXACTLY(h, 0);
}

static void private_mask(const struct test *t)
{
	(void)t;
	IS(1, &pes[0], SDEI_PE_MASK);
	IS(0, &pes[0], SDEI_PRIVATE_RESET);
	IS(0, &pes[0], SDEI_PE_MASK);	/* still masked */
	IS(0, &pes[0], SDEI_PE_UNMASK);
	IS(0, &pes[0], SDEI_PRIVATE_RESET);
	IS(1, &pes[0], SDEI_PE_MASK);	/* it was still unmasked */
}

static void shared_all(const struct test *t)
{
	u32 nr = 0;

	(void)t;
	for (u32 i = 0; i < 4; i++) {
		u32 event = platform.events[1][i / 2][i % 2];

		if (event == NO_EVENT)
			continue;
		(void)enlist(&pes[i % nr_pes], event, 0);
		nr++;
	}
	if (!nr)
		SKIP("no shared event on this platform");
	IS(0, &pes[nr_pes - 1], SDEI_SHARED_RESET);
	for (u32 i = 0; i < 4; i++)
		if (platform.events[1][i / 2][i % 2] != NO_EVENT)
			STATUS_IS(ST_UNREGISTERED, &pes[0], platform.events[1][i / 2][i % 2]);
}

static void shared_leaves_private(const struct test *t)
{
	(void)t;
	for (u32 i = 0; i < nr_pes; i++)
		(void)enlist(&pes[i], 0, 0);
	IS(0, &pes[0], SDEI_SHARED_RESET);
	for (u32 i = 0; i < nr_pes; i++)
		STATUS_IS(ST_ENABLED, &pes[i], 0);
}

static void shared_running(const struct test *t)
{
	struct pe *p = &pes[1];
	u32 event = shared_event(false), other = SHARED_CRITICAL(0);
	struct handler *h;

	(void)t;
	NEEDS_PES(2);
	if (event == NO_EVENT)
		return;
	h = enlist_routed(p, event, HOLD, p);
	if (other != NO_EVENT)
		(void)enlist(p, other, 0);
	TRIGGER(event, p);
	ENTERED(h, 1);
	IS(SDEI_DENIED, &pes[0], SDEI_SHARED_RESET);
	STATUS_IS(ST_PENDING, &pes[0], event);
	if (other != NO_EVENT)
		STATUS_IS(ST_UNREGISTERED, &pes[0], other);
	LEAVE(p);
	STATUS_IS(ST_UNREGISTERED, &pes[0], event);
	IS(0, &pes[0], SDEI_SHARED_RESET);
}

static void shared_releases(const struct test *t)
{
	u32 event = bind_free(&pes[0], t->arg);
	s64 got;

	if (event == NO_EVENT)
		return;
	IS(0, &pes[0], SDEI_SHARED_RESET);
	got = CALL(&pes[0], SDEI_INTERRUPT_RELEASE, event);
	CHECK(got == SDEI_INVALID, "INTERRUPT_RELEASE after SHARED_RESET returned %s (%ld) instead of INVALID_PARAMETERS (-2)",
	      sdei_error_name(got), got);
}

static void shared_denied(const struct test *t)
{
	u32 event = bind_free(&pes[0], false);

	(void)t;
	if (event == NO_EVENT)
		return;
	/* A bound PPI that is registered on some PE cannot be released, and stays as it is. */
	(void)enlist(&pes[nr_pes - 1], event, 0);
	IS(SDEI_DENIED, &pes[0], SDEI_SHARED_RESET);
	STATUS_IS(ST_ENABLED, &pes[nr_pes - 1], event);
	IS(0, &pes[nr_pes - 1], SDEI_PRIVATE_RESET);
	IS(0, &pes[0], SDEI_SHARED_RESET);
}

/* What a client does when it starts: DEN0054C leaves no other order. */
static void as_linux(const struct test *t)
{
	u32 shared = shared_event(false);

	(void)t;
	if (shared == NO_EVENT)
		return;
	for (u32 i = 0; i < nr_pes; i++)
		(void)enlist(&pes[i], 0, 0);
	(void)enlist(&pes[0], shared, 0);
	TRY(!failed());
	for (u32 i = 0; i < nr_pes; i++)
		IS(0, &pes[i], SDEI_PRIVATE_RESET);
	IS(0, &pes[0], SDEI_SHARED_RESET);
	for (u32 i = 0; i < nr_pes; i++)
		STATUS_IS(ST_UNREGISTERED, &pes[i], 0);
	if (shared == SHARED_NORMAL(0))		/* one that was bound is released, and perhaps not known any more */
		STATUS_IS(ST_UNREGISTERED, &pes[0], shared);
}

static const struct test reset_tests[] = {
	{ "reset.private", "DEN0054C 5.1.18", "PRIVATE_RESET unregisters the private events", private_all, 0 },
	{ "reset.private.own", "DEN0054C 5.1.18", "... of the calling PE, and no shared ones", private_own, 0 },
	{ "reset.private.running", "DEN0054C 5.1.18", "with a running handler: DENIED, and it becomes unregister-pending",
	  private_running, 0 },
	{ "reset.private.pending", "DEN0054C 5.1.18", "it takes pending events along", private_drops, 0 },
	{ "reset.private.mask", "DEN0054C 5.1.18", "it leaves the mask alone", private_mask, 0 },
	{ "reset.shared", "DEN0054C 5.1.19", "SHARED_RESET unregisters the shared events", shared_all, 0 },
	{ "reset.shared.private", "DEN0054C 5.1.19", "... and no private ones", shared_leaves_private, 0 },
	{ "reset.shared.running", "DEN0054C 5.1.19", "with a running handler: DENIED, and it becomes unregister-pending",
	  shared_running, 0 },
	{ "reset.shared.releases-ppi", "DEN0054C 5.1.19", "SHARED_RESET releases a bound PPI", shared_releases, 0 },
	{ "reset.shared.releases-spi", "DEN0054C 5.1.19", "SHARED_RESET releases a bound SPI", shared_releases, 1 },
	{ "reset.shared.bound-registered", "DEN0054C 5.1.19", "... DENIED if a bound PPI is registered somewhere", shared_denied, 0 },
	{ "reset.all", "DEN0054C 5.1.18, 5.1.19", "PRIVATE_RESET on all PEs, then SHARED_RESET: all is gone", as_linux, 0 },
};
GROUP(reset);
