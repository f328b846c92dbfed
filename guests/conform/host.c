// SPDX-License-Identifier: Apache-2.0
/* Events that the host raises: what a hypervisor's inject button does to handlers in each state. */
#include "conform.h"

#define NEEDS_HOST	do { if (!platform.host) SKIP("needs a host that injects"); } while (0)
#define PENDING_BIT	8

static bool ask(const struct test *t, const char *what, u32 event, struct pe *p, u64 *value, char error[40])
{
	if (t->arg >> 1)
		return host_ask(value, error, "%s 0x%x any", what, event);
	return host_ask(value, error, "%s 0x%x %lu", what, event, p->index);
}

/* A handler for the event; a shared one is routed to p, so that one knows where to look. */
static struct handler *listen(const struct test *t, u32 event, struct pe *p, u32 flags)
{
	return t->arg >> 1 ? enlist_routed(p, event, flags, p) : enlist(p, event, flags);
}

#define BEGIN(t)					\
	struct pe *p = &pes[1];				\
	u64 value = 0;					\
	char error[40] = "ok";				\
	u32 event;					\
	NEEDS_HOST;					\
	NEEDS_PES(2);					\
	(void)value;					\
	(void)error;					\
	event = t->arg ? platform_event(t->arg) : 0;	\
	if (event == NO_EVENT)				\
		return

#define ASK(what)	CHECK(ask(t, what, event, p, &value, error), "the host says %s to %s", error, what)
#define REFUSED(what, want)	CHECK(!ask(t, what, event, p, &value, error) && str_is(error, strlen(error), want),	\
				      "the host says %s to %s", error, what)

static void enabled(const struct test *t)
{
	BEGIN(t);
	struct handler *h = listen(t, event, p, 0);

	for (u64 i = 1; i <= 10; i++) {
		ASK("inject");
		ENTERED(h, i);
		ENDED(h, i);
	}
	EXACTLY(h, 10);
}

static void unregistered(const struct test *t)
{
	BEGIN(t);
	REFUSED("inject", "NotRegisteredError");
	struct handler *h = listen(t, event, p, 0);

	EXACTLY(h, 0);
}

static void registered(const struct test *t)
{
	BEGIN(t);
	struct handler *h = listen(t, event, p, 0);

	IS(0, p, SDEI_EVENT_DISABLE, event);
	ASK("inject");
	EXACTLY(h, 0);
	ASK("status");
	CHECK(value == (ST_REGISTERED | PENDING_BIT), "the host shows status %lu", value);
	IS(0, p, SDEI_EVENT_ENABLE, event);
	EXACTLY(h, 1);
}

static void running(const struct test *t)
{
	BEGIN(t);
	struct handler *h = listen(t, event, p, HOLD);

	ASK("inject");
	ENTERED(h, 1);
	ASK("inject");
	ASK("inject");
	ASK("status");
	CHECK(value == (ST_RUNNING | PENDING_BIT), "the host shows status %lu", value);
	EXACTLY(h, 1);
	h->hold = false;
	LEAVE(p);
	EXACTLY(h, 2);
}

static void unregister_pending(const struct test *t)
{
	BEGIN(t);
	struct handler *h = listen(t, event, p, HOLD);

	ASK("inject");
	ENTERED(h, 1);
	IS(SDEI_PENDING, p, SDEI_EVENT_UNREGISTER, event);
	REFUSED("inject", "NotRegisteredError");
	LEAVE(p);
	EXACTLY(h, 1);
	STATUS_IS(ST_UNREGISTERED, p, event);
}

static void masked(const struct test *t)
{
	BEGIN(t);
	struct handler *h = listen(t, event, p, 0);

	IS(1, p, SDEI_PE_MASK);
	for (u32 i = 0; i < 3; i++)
		ASK("inject");
	EXACTLY(h, 0);
	IS(0, p, SDEI_PE_UNMASK);
	EXACTLY(h, 1);
}

static void cancelled(const struct test *t)
{
	BEGIN(t);
	struct handler *h = listen(t, event, p, 0);

	IS(1, p, SDEI_PE_MASK);
	ASK("inject");
	ASK("cancel");
	CHECK(value == 1, "the host did not cancel it");
	ASK("cancel");
	CHECK(value == 0, "the host cancelled it twice");
	IS(0, p, SDEI_PE_UNMASK);
	EXACTLY(h, 0);
}

static void cancel_running(const struct test *t)
{
	BEGIN(t);
	struct handler *h = listen(t, event, p, HOLD);

	ASK("inject");
	ENTERED(h, 1);
	REFUSED("cancel", "EventRunningError");
	LEAVE(p);
	EXACTLY(h, 1);
}

/* -- a PE that has masked everything and does not look around: what SDEI is for */

static struct spin spin;

static s64 do_spin(struct pe *p, const u64 *a)
{
	(void)p;
	(void)a;
	return (s64)spin_canaries(&spin, 1);
}

static void wedged(const struct test *t)
{
	BEGIN(t);
	struct handler *h = listen(t, event, p, 0);
	struct command *c;

	TRY(!failed());
	spin = (struct spin){ 0 };
	c = post(p, do_spin, 0, 0, 0, 0, 0, 0);
	BEATS(&spin);
	for (u64 i = 1; i <= 10; i++) {
		ASK("inject");
		ENTERED(h, i);
		ENDED(h, i);
	}
	spin.stop = 1;
	TRY(finish(p, c));
	CHECK(!c->result, "a register of the interrupted code has changed: bits 0x%lx", (u64)c->result);
}

static void shows_mask(const struct test *t)
{
	u64 value = 2;

	(void)t;
	NEEDS_HOST;
	for (u32 i = 0; i < nr_pes; i++) {
		IS(1, &pes[i], SDEI_PE_MASK);
		CHECK(host_ask(&value, NULL, "masked %u", i) && value == 1, "the host does not show PE %u as masked", i);
		IS(0, &pes[i], SDEI_PE_UNMASK);
		CHECK(host_ask(&value, NULL, "masked %u", i) && value == 0, "the host shows PE %u as masked", i);
	}
}

static void nobody(const struct test *t)
{
	char error[40] = "ok";

	(void)t;
	NEEDS_HOST;
	CHECK(!host_ask(NULL, error, "inject 0 %u", 511) && str_is(error, strlen(error), "UnknownVcpuError"),
	      "the host says %s to a vCPU that is not there", error);
	CHECK(!host_ask(NULL, error, "inject 0x7fffffff 0") && str_is(error, strlen(error), "UnknownEventError"),
	      "the host says %s to an event that is not there", error);
}

static void offline(const struct test *t)
{
	struct pe *p = &pes[nr_pes - 1];
	char error[40] = "ok";

	(void)t;
	NEEDS_HOST;
	NEEDS_PES(2);
	(void)enlist(p, 0, 0);
	TRY(!failed() && turn_off(p));
	CHECK(!host_ask(NULL, error, "inject 0 %lu", p->index) && str_is(error, strlen(error), "NotRegisteredError"),
	      "the host says %s to a PE that is off", error);
	TRY(turn_on(p));
}

#define KIND(id, title, fn, kind, name)	{ "host." id "." name, "DEN0054C 6.1, host", title, fn, kind }
#define KINDS(id, title, fn)					\
	KIND(id, title, fn, 0, "private"), KIND(id, title, fn, 1, "critical"), KIND(id, title, fn, 2, "shared"),	\
	KIND(id, title, fn, 3, "shared-critical")

static const struct test host_tests[] = {
	KINDS("enabled", "injected into an enabled handler: entered", enabled),
	KINDS("unregistered", "refused while nothing is registered", unregistered),
	KINDS("registered", "waits for ENABLE", registered),
	KINDS("running", "waits for the handler to complete; two are one", running),
	KINDS("unregister-pending", "refused while the handler is about to go", unregister_pending),
	KINDS("masked", "waits for PE_UNMASK; three are one", masked),
	KINDS("cancel", "a pending event is taken back", cancelled),
	KINDS("cancel-running", "a running one is not", cancel_running),
	KINDS("wedged", "a PE that spins with everything masked takes it", wedged),
	{ "host.shows-mask", "DEN0054C 5.1.12, host", "the host shows who is masked", shows_mask, 0 },
	{ "host.nobody", "DEN0054C 6.1, host", "no such vCPU, no such event", nobody, 0 },
	{ "host.offline", "DEN0054C 6.1, host", "a PE that is off has nothing registered", offline, 0 },
};
GROUP(host);
