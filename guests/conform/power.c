// SPDX-License-Identifier: Apache-2.0
/* SDEI and PSCI, DEN0054C 6.3: PEs that go off, come back, and sleep. */
#include "conform.h"

#define POWER_STATE_STANDBY	1u
#define POWER_STATE_DOWN	(1u << 16)

static void fresh(const struct test *t)
{
	struct pe *p = &pes[nr_pes - 1];

	(void)t;
	NEEDS_PES(2);
	(void)enlist(p, 0, 0);
	TRY(!failed() && turn_off(p) && turn_on(p));
	/* Masked, nothing private is registered, in no handler. */
	IS(0, p, SDEI_PE_MASK);
	STATUS_IS(ST_UNREGISTERED, p, 0);
	IS(SDEI_DENIED, p, SDEI_EVENT_COMPLETE, 0);
	IS(SDEI_DENIED, p, SDEI_EVENT_CONTEXT, 0);
	IS(SDEI_DENIED, p, SDEI_EVENT_ENABLE, 0);
}

static void works_again(const struct test *t)
{
	struct pe *p = &pes[nr_pes - 1];
	struct handler *h;

	(void)t;
	NEEDS_PES(2);
	for (u32 i = 0; i < 5; i++) {
		TRY(turn_off(p) && turn_on(p));
		h = enlist(p, 0, 0);
		IS(0, p, SDEI_PE_UNMASK);
		TRIGGER(0, p);
		EXACTLY(h, 1);
	}
}

static void signal_off(const struct test *t)
{
	struct pe *p = &pes[nr_pes - 1];
	struct handler *h = enlist(p, 0, 0);
	s64 got;

	(void)t;
	NEEDS_PES(2);
	TRY(!failed() && turn_off(p));
	got = CALL(&pes[0], SDEI_EVENT_SIGNAL, 0, p->mpidr);
	CHECK(got == SDEI_INVALID || got == 0, "EVENT_SIGNAL to a PE that is off returned %s (%ld)", sdei_error_name(got), got);
	note("a signal to a PE that is off %s", got ? "is refused" : "is accepted");
	TRY(turn_on(p));
	h = enlist(p, 0, 0);
	IS(0, p, SDEI_PE_UNMASK);
	EXACTLY(h, 0);
}

static void shared_survives(const struct test *t)
{
	struct pe *p = &pes[nr_pes - 1];
	u32 event = shared_event(false);
	struct handler *h;

	(void)t;
	NEEDS_PES(2);
	if (event == NO_EVENT)
		return;
	/* A shared event stays registered while PEs come and go, the one it is routed to included. */
	h = enlist_routed(p, event, 0, p);
	TRY(!failed() && turn_off(p));
	STATUS_IS(ST_ENABLED, &pes[0], event);
	TRIGGER(event, p);
	EXACTLY(h, 0);
	TRY(turn_on(p));
	EXACTLY(h, 0);
	IS(0, p, SDEI_PE_UNMASK);
	EXACTLY(h, 1);
	CHECK(h->by == p, "PE %lu took it", h->by->index);
}

static void off_in_handler(const struct test *t)
{
	struct pe *p = &pes[nr_pes - 1];
	struct handler *h = enlist(p, 0, HOLD);

	(void)t;
	NEEDS_PES(2);
	TRIGGER(0, p);
	ENTERED(h, 1);
	/* The handler never completes; the PE comes back as if it had never been. */
	TRY(turn_off(p) && turn_on(p));
	IS(0, p, SDEI_PE_MASK);
	IS(SDEI_DENIED, p, SDEI_EVENT_COMPLETE, 0);
	STATUS_IS(ST_UNREGISTERED, p, 0);
	h = enlist(p, 0, 0);
	IS(0, p, SDEI_PE_UNMASK);
	TRIGGER(0, p);
	EXACTLY(h, 1);
}

static void off_in_shared_handler(const struct test *t)
{
	struct pe *p = &pes[nr_pes - 1];
	u32 event = shared_event(false);
	struct handler *h;

	(void)t;
	NEEDS_PES(2);
	if (event == NO_EVENT)
		return;
	h = enlist_routed(p, event, HOLD, p);
	TRIGGER(event, p);
	ENTERED(h, 1);
	TRY(turn_off(p));
	CHECK(WAIT(CALL(&pes[0], SDEI_EVENT_STATUS, event) == ST_ENABLED), "its status is %ld after the PE went off",
	      CALL(&pes[0], SDEI_EVENT_STATUS, event));
	IS(0, &pes[0], SDEI_EVENT_DISABLE, event);
	IS(0, &pes[0], SDEI_EVENT_ROUTING_SET, event, SDEI_RM_PE, pes[0].mpidr);
	IS(0, &pes[0], SDEI_EVENT_ENABLE, event);
	h->hold = false;
	TRIGGER(event, &pes[0]);
	EXACTLY(h, 2);
	CHECK(h->by == &pes[0], "PE %lu took it", h->by->index);
}

static void off_bound(const struct test *t)
{
	struct pe *p = &pes[nr_pes - 1];
	u32 event = bind_free(p, false);

	(void)t;
	NEEDS_PES(2);
	if (event == NO_EVENT)
		return;
	(void)enlist(p, event, 0);
	TRY(!failed() && turn_off(p));
	/* Its registration went with the PE, so that nothing holds the binding. */
	IS(0, &pes[0], SDEI_INTERRUPT_RELEASE, event);
}

/* -- CPU_SUSPEND */

static s64 do_suspend(struct pe *p, const u64 *a)
{
	struct handler *h = (struct handler *)a[1];
	s64 ret = 0;

	(void)p;
	/* Implementations may come back early, so again until the event has come. */
	for (struct patience w = { 0 }; !h->entered && !ret && wait_more(&w);)
		ret = psci_call(PSCI_CPU_SUSPEND64, a[0], 0, 0);
	return ret;
}

static void standby(const struct test *t)
{
	struct pe *p = &pes[1];
	struct command *c;
	struct handler *h;

	(void)t;
	NEEDS_PES(2);
	h = enlist(p, 0, 0);
	TRY(!failed());
	c = post(p, do_suspend, POWER_STATE_STANDBY, (u64)h, 0, 0, 0, 0);
	settle();
	/* One that comes before it sleeps does not wake it. */
	for (u32 i = 0; i < 100 && !c->done; i++) {
		TRIGGER(0, p);
		settle();
	}
	TRY(finish(p, c));
	if (c->result)
		SKIP("CPU_SUSPEND to standby returned %ld", c->result);
	CHECK(h->entered, "CPU_SUSPEND came back again and again, and no event came");
	/* Awake, unmasked, registered. */
	STATUS_IS(ST_ENABLED, p, 0);
	IS(1, p, SDEI_PE_MASK);
}

static s64 do_power_down(struct pe *p, const u64 *a)
{
	(void)a;
	return psci_call(PSCI_CPU_SUSPEND64, POWER_STATE_DOWN, (u64)secondary_entry, p->cpu->index);
}

/* Registered and unmasked, a PE powers down: an event wakes it, and it finds itself masked, with its registrations. */
static void power_down(const struct test *t)
{
	struct pe *p = &pes[1];
	struct command *c;
	struct handler *h;
	u64 before;

	(void)t;
	NEEDS_PES(2);
	h = enlist(p, 0, 0);
	TRY(!failed());
	p->cpu->online = 0;
	mb();
	c = post(p, do_power_down, 0, 0, 0, 0, 0, 0);
	settle();
	if (c->done && c->result) {
		p->cpu->online = 1;
		SKIP("CPU_SUSPEND to power-down returned %ld", c->result);
	}
	/* It may not have got that far yet, and take an event before: then another has to wake it. */
	for (u32 i = 0; i < 100 && !p->cpu->online && !c->done; i++) {
		(void)raise_event(0, p);
		settle();
	}
	CHECK(WAIT(p->cpu->online || c->done), "an event does not wake PE 1");
	if (c->done) {
		p->cpu->online = 1;
		SKIP("CPU_SUSPEND to power-down is carried out as standby");
	}
	before = h->entered;
	STATUS_IS(ST_ENABLED, p, 0);
	EXACTLY(h, before);
	IS(0, p, SDEI_PE_MASK);
	IS(0, p, SDEI_PE_UNMASK);
	EXACTLY(h, before + 1);
}

static const struct test power_tests[] = {
	{ "power.on", "DEN0054C 6.3", "a PE starts masked, with nothing private registered, in no handler", fresh, 0 },
	{ "power.again", "DEN0054C 6.3", "off and on five times: event 0 works each time", works_again, 0 },
	{ "power.signal-off", "DEN0054C 5.1.16", "a signal to a PE that is off is refused, or gone when it starts", signal_off, 0 },
	{ "power.shared", "DEN0054C 6.3", "shared events stay registered, and wait for their PE", shared_survives, 0 },
	{ "power.standby", "DEN0054C 6.3", "an event ends CPU_SUSPEND to standby", standby, 0 },
	{ "power.off-bound", "DEN0054C 6.3", "CPU_OFF unregisters a bound PPI, which can be released", off_bound, 0 },
	{ "power.off-in-shared-handler", "DEN0054C 6.3", "CPU_OFF in a shared handler ends that handler", off_in_shared_handler, 0 },
	{ "power.off-in-handler", "DEN0054C 6.3", "CPU_OFF in a handler ends that handler", off_in_handler, 0 },
	{ "power.down", "DEN0054C 6.3", "power-down in CPU_SUSPEND: masked, registrations kept, woken by an event", power_down, 0 },
};
GROUP(power);
