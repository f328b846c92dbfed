// SPDX-License-Identifier: Apache-2.0
/* EVENT_SIGNAL: event 0, to whom and in which state. */
#include "conform.h"

/* A signal to a target that cannot take it: firmware pends it, or refuses it. */
static bool pends(const char *when, struct pe *p, bool *refused)
{
	s64 got = CALL(&pes[0], SDEI_EVENT_SIGNAL, 0, p->mpidr);

	if (failed())
		return false;
	*refused = got == SDEI_INVALID;
	note("a signal to a target that is %s %s", when, got ? "is refused" : "waits");
	if (!got || got == SDEI_INVALID)
		return true;
	FAIL("EVENT_SIGNAL to a target that is %s returned %s (%ld)", when, sdei_error_name(got), got);
	return false;
}

static void to_self(const struct test *t)
{
	(void)t;
	for (u32 i = 0; i < nr_pes; i++) {
		struct pe *p = &pes[i];
		struct handler *h = enlist(p, 0, 0);

		IS(0, p, SDEI_EVENT_SIGNAL, 0, p->mpidr);
		EXACTLY(h, 1);
	}
}

static void to_others(const struct test *t)
{
	struct handler *h[MAX_PES];

	(void)t;
	NEEDS_PES(2);
	for (u32 i = 0; i < nr_pes; i++)
		h[i] = enlist(&pes[i], 0, 0);
	TRY(!failed());
	for (u32 from = 0; from < nr_pes; from++) {
		for (u32 to = 0; to < nr_pes; to++) {
			u64 before = h[to]->entered;

			IS(0, &pes[from], SDEI_EVENT_SIGNAL, 0, pes[to].mpidr);
			ENTERED(h[to], before + 1);
			ENDED(h[to], before + 1);
		}
	}
	for (u32 i = 0; i < nr_pes; i++)
		EXACTLY(h[i], nr_pes);
}

#define ROUNDS 100

static s64 do_signal_all(struct pe *p, const u64 *a)
{
	(void)a;
	for (u32 n = 0; n < ROUNDS; n++)
		for (u32 i = 0; i < nr_pes; i++) {
			s64 ret = sdei2(SDEI_EVENT_SIGNAL, 0, pes[i].mpidr);

			if (ret) {
				FAIL("EVENT_SIGNAL from PE %lu to PE %u returned %s (%ld)", p->index, i,
				     sdei_error_name(ret), ret);
				return ret;
			}
		}
	return 0;
}

/* All PEs signal all PEs at the same time.  Signals may collapse; none may be lost altogether, nor any be made up. */
static void storm(const struct test *t)
{
	struct command *c[MAX_PES];
	struct handler *h[MAX_PES];

	(void)t;
	NEEDS_PES(2);
	for (u32 i = 0; i < nr_pes; i++)
		h[i] = enlist(&pes[i], 0, 0);
	TRY(!failed());
	for (u32 i = nr_pes; i--;)
		c[i] = post(&pes[i], do_signal_all, 0, 0, 0, 0, 0, 0);
	for (u32 i = 0; i < nr_pes; i++)
		TRY(finish(&pes[i], c[i]));
	settle();
	for (u32 i = 0; i < nr_pes; i++) {
		CHECK(h[i]->entered >= 1 && h[i]->entered <= ROUNDS * nr_pes, "PE %u handled %lu events of %u signals", i,
		      h[i]->entered, ROUNDS * nr_pes);
		STATUS_IS(ST_ENABLED, &pes[i], 0);
		/* Nothing is left behind, and nothing is stuck. */
		u64 before = h[i]->entered;

		IS(0, &pes[0], SDEI_EVENT_SIGNAL, 0, pes[i].mpidr);
		EXACTLY(h[i], before + 1);
	}
}

static void one_to_all(const struct test *t)
{
	struct handler *h[MAX_PES];

	(void)t;
	NEEDS_PES(2);
	for (u32 i = 0; i < nr_pes; i++)
		h[i] = enlist(&pes[i], 0, i ? HOLD : 0);
	for (u32 i = 1; i < nr_pes; i++)
		IS(0, &pes[0], SDEI_EVENT_SIGNAL, 0, pes[i].mpidr);
	/* In parallel: they all hold. */
	for (u32 i = 1; i < nr_pes; i++)
		ENTERED(h[i], 1);
	for (u32 i = 1; i < nr_pes; i++)
		STATUS_IS(ST_RUNNING, &pes[i], 0);
	STATUS_IS(ST_ENABLED, &pes[0], 0);
	for (u32 i = 1; i < nr_pes; i++)
		LEAVE(&pes[i]);
	for (u32 i = 1; i < nr_pes; i++)
		EXACTLY(h[i], 1);
	CHECK(!h[0]->entered, "PE 0 handled an event as well");
}

static void in_sequence(const struct test *t)
{
	(void)t;
	for (u32 i = 0; i < nr_pes; i++) {
		struct pe *p = &pes[i];
		struct handler *h = enlist(p, 0, i ? HOLD : 0);

		IS(0, p, SDEI_EVENT_ENABLE, 0);
		TRIGGER(0, p);
		ENTERED(h, 1);
		if (i) {
			STATUS_IS(ST_RUNNING, p, 0);
			LEAVE(p);
		}
		STATUS_IS(ST_ENABLED, p, 0);
		IS(0, p, SDEI_EVENT_UNREGISTER, 0);
		STATUS_IS(ST_UNREGISTERED, p, 0);
	}
}

/* -- states of the target */

static void unregistered(const struct test *t)
{
	(void)t;
	for (u32 i = 0; i < nr_pes; i++)
		IS(SDEI_INVALID, &pes[0], SDEI_EVENT_SIGNAL, 0, pes[i].mpidr);
}

static void unregister_pending(const struct test *t)
{
	struct pe *p = &pes[1];
	struct handler *h;

	(void)t;
	NEEDS_PES(2);
	h = HELD(p);
	IS(SDEI_PENDING, p, SDEI_EVENT_UNREGISTER, 0);
	IS(SDEI_INVALID, &pes[0], SDEI_EVENT_SIGNAL, 0, p->mpidr);
	LEAVE(p);
	EXACTLY(h, 1);
}

static void disabled(const struct test *t)
{
	struct pe *p = &pes[nr_pes - 1];
	struct handler *h = enlist(p, 0, 0);
	bool refused;

	(void)t;
	IS(0, p, SDEI_EVENT_DISABLE, 0);
	TRY(pends("registered, but not enabled", p, &refused));
	EXACTLY(h, 0);
	IS(0, p, SDEI_EVENT_ENABLE, 0);
	EXACTLY(h, !refused);
}

static void masked(const struct test *t)
{
	struct pe *p = &pes[nr_pes - 1];
	struct handler *h = enlist(p, 0, 0);
	bool refused;

	(void)t;
	IS(1, p, SDEI_PE_MASK);
	TRY(pends("masked", p, &refused));
	EXACTLY(h, 0);
	IS(0, p, SDEI_PE_UNMASK);
	EXACTLY(h, !refused);
}

static void running(const struct test *t)
{
	struct pe *p = &pes[1];
	struct handler *h;

	(void)t;
	NEEDS_PES(2);
	h = HELD(p);
	/* It comes again once this run has completed; more signals than one collapse. */
	for (u32 i = 0; i < 5; i++)
		IS(0, &pes[0], SDEI_EVENT_SIGNAL, 0, p->mpidr);
	EXACTLY(h, 1);
	h->hold = false;
	LEAVE(p);
	EXACTLY(h, 2);
}

static void collapse(const struct test *t)
{
	struct pe *p = &pes[nr_pes - 1];
	struct handler *h = enlist(p, 0, 0);
	bool refused;

	(void)t;
	IS(1, p, SDEI_PE_MASK);
	TRY(pends("masked", p, &refused));
	if (refused)
		SKIP("EVENT_SIGNAL refuses a target that is masked");
	for (u32 i = 0; i < 9; i++)
		IS(0, &pes[0], SDEI_EVENT_SIGNAL, 0, p->mpidr);
	IS(0, p, SDEI_PE_UNMASK);
	EXACTLY(h, 1);
}

static void nobody(const struct test *t)
{
	static const u64 nowhere[] = { 0xff00ffffff, 0x7f00000000, 0x00fffffe };

	(void)t;
	(void)enlist(&pes[0], 0, 0);
	for (u32 i = 0; i < 3; i++)
		IS(SDEI_INVALID, &pes[0], SDEI_EVENT_SIGNAL, 0, nowhere[i]);
}

static void other_events(const struct test *t)
{
	u32 event = platform.events[t->arg >> 1][t->arg & 1][!t->arg];	/* event 0 is the first of its kind */
	s64 got;

	if (event == NO_EVENT)
		SKIP("no such event on this platform");
	(void)enlist(&pes[0], event, 0);
	TRY(!failed());
	got = CALL(&pes[0], SDEI_EVENT_GET_INFO, event, SDEI_INFO_SIGNALED);
	if (t->arg < 2 && got == 1 && CALL(&pes[0], SDEI_EVENT_SIGNAL, event, pes[0].mpidr) == 0)
		SKIP("this platform's events can be signalled, and it says so");
	IS(SDEI_INVALID, &pes[0], SDEI_EVENT_SIGNAL, event, pes[0].mpidr);
}

static void bound_events(const struct test *t)
{
	u32 event = bind_free(&pes[0], t->arg);

	if (event == NO_EVENT)
		return;
	(void)enlist(&pes[0], event, 0);
	IS(SDEI_INVALID, &pes[0], SDEI_EVENT_SIGNAL, event, pes[0].mpidr);
}

/* Event 0 wakes a PE from WFI. */
static s64 do_wfi(struct pe *p, const u64 *a)
{
	struct handler *h = (struct handler *)a[0];

	(void)p;
	/* It may end for no reason, so again until the event has come. */
	for (struct patience w = { 0 }; !h->entered && wait_more(&w);)
		__asm__ volatile("wfi" ::: "memory");
	return h->entered ? 0 : -1;
}

static void wakes(const struct test *t)
{
	struct pe *p = &pes[1];
	struct command *c;
	struct handler *h;

	(void)t;
	NEEDS_PES(2);
	h = enlist(p, 0, 0);
	TRY(!failed());
	c = post(p, do_wfi, (u64)h, 0, 0, 0, 0, 0);
	settle();
	/* One that comes before it waits does not wake it. */
	for (u32 i = 0; i < 100 && !c->done; i++) {
		TRIGGER(0, p);
		settle();
	}
	TRY(finish(p, c));
	CHECK(!c->result, "WFI ended again and again, and no event came");
}

static const struct test signal_tests[] = {
	{ "signal.self", "DEN0054C 5.1.16", "each PE signals itself", to_self, 0 },
	{ "signal.others", "DEN0054C 5.1.16", "each PE signals each PE", to_others, 0 },
	{ "signal.all", "DEN0054C 5.1.16", "one PE signals all others, whose handlers run at the same time", one_to_all, 0 },
	{ "signal.sequence", "DEN0054C 6.1", "one PE after the other goes through the life of a handler", in_sequence, 0 },
	{ "signal.storm", "DEN0054C 5.1.16", "all PEs signal all PEs at once", storm, 0 },
	{ "signal.unregistered", "DEN0054C 5.1.16", "a target with no handler is INVALID_PARAMETERS", unregistered, 0 },
	{ "signal.unregister-pending", "DEN0054C 5.1.16", "so is one whose handler is about to go", unregister_pending, 0 },
	{ "signal.disabled", "DEN0054C 5.1.16", "a disabled target: refused, or delivered by ENABLE", disabled, 0 },
	{ "signal.masked", "DEN0054C 5.1.16", "a masked target: refused, or delivered by PE_UNMASK", masked, 0 },
	{ "signal.running", "DEN0054C 5.1.16.1", "signalled while it runs: once more after it has completed", running, 0 },
	{ "signal.collapse", "DEN0054C 5.1.16.1", "ten signals to a masked PE are one event", collapse, 0 },
	{ "signal.nobody", "DEN0054C 5.1.16", "an affinity that no PE has is INVALID_PARAMETERS", nobody, 0 },
	{ "signal.other.private", "DEN0054C 4.1", "a private event that is not signalable", other_events, 0 },
	{ "signal.other.critical", "DEN0054C 4.1", "a critical event that is not signalable", other_events, 1 },
	{ "signal.other.shared", "DEN0054C 4.1", "a shared event", other_events, 2 },
	{ "signal.other.shared-critical", "DEN0054C 4.1", "a shared critical event", other_events, 3 },
	{ "signal.other.bound-ppi", "DEN0054C 4.1", "a bound PPI", bound_events, 0 },
	{ "signal.other.bound-spi", "DEN0054C 4.1", "a bound SPI", bound_events, 1 },
	{ "signal.wfi", "DEN0054C 4.3", "a PE in WFI takes the event and goes on", wakes, 0 },
};
GROUP(signal);
