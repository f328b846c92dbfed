// SPDX-License-Identifier: Apache-2.0
/* PE_MASK and PE_UNMASK. */
#include "conform.h"

static void results(const struct test *t)
{
	(void)t;
	for (u32 i = 0; i < nr_pes; i++) {
		struct pe *p = &pes[i];

		IS(1, p, SDEI_PE_MASK);		/* it was unmasked */
		IS(0, p, SDEI_PE_MASK);		/* it was not */
		IS(0, p, SDEI_PE_MASK);
		IS(0, p, SDEI_PE_UNMASK);
		IS(0, p, SDEI_PE_UNMASK);
		IS(1, p, SDEI_PE_MASK);
		IS(0, p, SDEI_PE_UNMASK);
	}
}

static void own(const struct test *t)
{
	struct handler *h;

	(void)t;
	NEEDS_PES(2);
	/* A PE masks itself and nobody else. */
	IS(1, &pes[0], SDEI_PE_MASK);
	h = enlist(&pes[1], 0, 0);
	TRIGGER(0, &pes[1]);
	EXACTLY(h, 1);
	IS(1, &pes[1], SDEI_PE_MASK);
	IS(0, &pes[0], SDEI_PE_MASK);
}

static void keeps_states(const struct test *t)
{
	struct pe *p = &pes[0];

	(void)t;
	(void)enlist(p, 0, 0);
	IS(1, p, SDEI_PE_MASK);
	STATUS_IS(ST_ENABLED, p, 0);
	IS(0, p, SDEI_EVENT_DISABLE, 0);
	STATUS_IS(ST_REGISTERED, p, 0);
	IS(0, p, SDEI_EVENT_ENABLE, 0);
	IS(0, p, SDEI_PE_UNMASK);
	STATUS_IS(ST_ENABLED, p, 0);
}

static void masks_kind(const struct test *t)
{
	struct pe *p = &pes[1];
	u32 event = platform_event(t->arg);
	struct handler *h;
	bool shared = t->arg >> 1, raised;

	NEEDS_PES(2);
	if (event == NO_EVENT)
		return;
	h = shared ? enlist_routed(p, event, 0, p) : enlist(p, event, 0);
	TRIGGER(event, p);
	ENTERED(h, 1);
	IS(1, p, SDEI_PE_MASK);
	raised = raise_event(event, p);	/* EVENT_SIGNAL may refuse it; nothing refuses a shared event */
	EXACTLY(h, 1);
	STATUS_IS(ST_ENABLED, p, event);
	IS(0, p, SDEI_PE_UNMASK);
	settle();
	CHECK(h->entered == 1u + (raised || shared), "after PE_UNMASK the handler was entered %lu times instead of %u",
	      h->entered, 1u + (raised || shared));
}

static void in_handler(const struct test *t)
{
	struct pe *p = &pes[1];
	struct handler *h;

	(void)t;
	NEEDS_PES(2);
	h = HELD(p);
	IS(1, p, SDEI_PE_MASK);
	LEAVE(p);
	STATUS_IS(ST_ENABLED, p, 0);
	/* Completing does not unmask. */
	IS(0, p, SDEI_PE_MASK);
	IS(0, p, SDEI_PE_UNMASK);
	h->hold = false;
	TRIGGER(0, p);
	EXACTLY(h, 2);
}

static void in_handler_pending(const struct test *t)
{
	struct pe *p = &pes[1];
	struct handler *h;

	(void)t;
	NEEDS_PES(2);
	h = HELD(p);
	IS(0, &pes[0], SDEI_EVENT_SIGNAL, 0, p->mpidr);
	IS(1, p, SDEI_PE_MASK);
	h->hold = false;
	LEAVE(p);
	EXACTLY(h, 1);
	IS(0, p, SDEI_PE_UNMASK);
	EXACTLY(h, 2);
}

static const struct test mask_tests[] = {
	{ "mask.results", "DEN0054C 5.1.12, 5.1.13", "PE_MASK gives 1 if it changed anything, else 0; PE_UNMASK 0", results, 0 },
	{ "mask.own", "DEN0054C 5.1.12", "a PE masks itself alone", own, 0 },
	{ "mask.states", "DEN0054C 5.1.12", "masks do not touch the states of handlers", keeps_states, 0 },
	{ "mask.private", "DEN0054C 5.1.12", "a masked PE takes no private event", masks_kind, 0 },
	{ "mask.critical", "DEN0054C 5.1.12", "... no critical event either", masks_kind, 1 },
	{ "mask.shared", "DEN0054C 5.1.12", "... nor a shared event that is routed to it", masks_kind, 2 },
	{ "mask.shared-critical", "DEN0054C 5.1.12", "... nor a critical one", masks_kind, 3 },
	{ "mask.in-handler", "DEN0054C 5.1.12", "a handler may mask its PE, which stays masked", in_handler, 0 },
	{ "mask.in-handler-pending", "DEN0054C 5.1.12", "what was signalled before waits for PE_UNMASK", in_handler_pending, 0 },
};
GROUP(mask);
