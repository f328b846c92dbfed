// SPDX-License-Identifier: Apache-2.0
/* The handler state machine, DEN0054C 6.1: every call in every state, for each kind of event. */
#include "conform.h"

enum op {
	REGISTER, ENABLE, DISABLE, UNREGISTER, ROUTING_SET, RELEASE, CONTEXT, COMPLETE, RESUME, DISPATCH, NR_OPS
};
static const struct { const char *name, *rule; u32 id; } ops[NR_OPS] = {
	[REGISTER]	= { "register", "DEN0054C 6.1, 5.1.2", SDEI_EVENT_REGISTER },
	[ENABLE]	= { "enable", "DEN0054C 6.1, 5.1.3", SDEI_EVENT_ENABLE },
	[DISABLE]	= { "disable", "DEN0054C 6.1, 5.1.4", SDEI_EVENT_DISABLE },
	[UNREGISTER]	= { "unregister", "DEN0054C 6.1, 5.1.8", SDEI_EVENT_UNREGISTER },
	[ROUTING_SET]	= { "routing-set", "DEN0054C 6.1, 5.1.11", SDEI_EVENT_ROUTING_SET },
	[RELEASE]	= { "release", "DEN0054C 6.1, 5.1.15", SDEI_INTERRUPT_RELEASE },
	[CONTEXT]	= { "context", "DEN0054C 6.1, 5.1.5", SDEI_EVENT_CONTEXT },
	[COMPLETE]	= { "complete", "DEN0054C 6.1, 5.1.6", SDEI_EVENT_COMPLETE },
	[RESUME]	= { "complete-and-resume", "DEN0054C 6.1, 5.1.7", SDEI_EVENT_COMPLETE_AND_RESUME },
	[DISPATCH]	= { "dispatch", "DEN0054C 6.1, 4.3", 0 },
};

static const struct { const char *name; u64 status; } states[] = {
	{ "unregistered", ST_UNREGISTERED }, { "registered", ST_REGISTERED }, { "enabled", ST_ENABLED },
	{ "running", ST_RUNNING }, { "running-disabled", ST_RUNNING_DISABLED }, { "unregister-pending", ST_PENDING },
};
#define NR_STATES 6

enum kind { PRIVATE, CRITICAL, SHARED, SHARED_CRITICAL_, BOUND_PPI, BOUND_SPI, ELSEWHERE, NR_KINDS };
static const char *const kinds[NR_KINDS] = {
	"private", "critical", "shared", "shared-critical", "bound-ppi", "bound-spi", "elsewhere",
};

/* The state after the call, and its result.  ANY: a register, whose value the state does not tell. */
#define ANY	1000
struct cell { u8 next; s64 result; };
#define OK_(next)	{ next, SDEI_SUCCESS }
#define X(next)		{ next, SDEI_DENIED }
#define P(next)		{ next, SDEI_PENDING }
#define V(next)		{ next, ANY }
enum { U_ = ST_UNREGISTERED, G_ = ST_REGISTERED, E_ = ST_ENABLED, R_ = ST_RUNNING, D_ = ST_RUNNING_DISABLED, Q_ = ST_PENDING };

/* DEN0054C 6.1.  In the order of `states`; DISPATCH: the state after the event was raised. */
static const struct cell table[NR_OPS][NR_STATES] = {
	/*		  unregistered	registered  enabled	running	    running-disabled  unregister-pending */
	[REGISTER]	= { OK_(G_),	X(G_),	    X(E_),	X(R_),	    X(D_),	      X(Q_) },
	[ENABLE]	= { X(U_),	OK_(E_),    OK_(E_),	OK_(R_),    OK_(R_),	      X(Q_) },
	[DISABLE]	= { X(U_),	OK_(G_),    OK_(G_),	OK_(D_),    OK_(D_),	      X(Q_) },
	[UNREGISTER]	= { X(U_),	OK_(U_),    OK_(U_),	P(Q_),	    P(Q_),	      P(Q_) },
	[ROUTING_SET]	= { X(U_),	OK_(G_),    X(E_),	X(R_),	    X(D_),	      X(Q_) },
	[RELEASE]	= { OK_(U_),	X(G_),	    X(E_),	X(R_),	    X(D_),	      X(Q_) },
	[CONTEXT]	= { X(U_),	X(G_),	    X(E_),	V(R_),	    V(D_),	      V(Q_) },
	[COMPLETE]	= { X(U_),	X(G_),	    X(E_),	OK_(E_),    OK_(G_),	      OK_(U_) },
	[RESUME]	= { X(U_),	X(G_),	    X(E_),	OK_(E_),    OK_(G_),	      OK_(U_) },
	[DISPATCH]	= { OK_(U_),	OK_(G_),    OK_(R_),	OK_(R_),    OK_(D_),	      OK_(Q_) },
};

struct subject {
	u32 event;
	struct pe *p;		/* the handler's PE */
	struct pe *by;		/* the PE that makes the call */
	struct handler *h;
};

static u32 event_of(enum kind kind, struct pe *p)
{
	u32 event;

	if (kind == BOUND_PPI || kind == BOUND_SPI)
		return bind_free(p, kind == BOUND_SPI);
	switch (kind) {
	case PRIVATE:
		return 0;
	case CRITICAL:
		event = PRIVATE_CRITICAL(0);
		break;
	case SHARED_CRITICAL_:
		event = SHARED_CRITICAL(0);
		break;
	default:
		event = SHARED_NORMAL(0);
	}
	/* Shared events that firmware lacks can be had by binding. */
	if (event == NO_EVENT && (kind == SHARED || kind == ELSEWHERE))
		return bind_free(p, true);
	if (event == NO_EVENT)
		skip("no %s event on this platform", kinds[kind]);
	return event;
}

static bool is_shared(enum kind kind) { return kind >= SHARED && kind != BOUND_PPI; }

static bool is_bound(enum kind kind) { return kind == BOUND_PPI || kind == BOUND_SPI; }

/* What the kind of event changes in the table. */
static struct cell expected(enum kind kind, enum op op, u32 state)
{
	struct cell cell = table[op][state];

	if ((op == ROUTING_SET && !is_shared(kind)) || (op == RELEASE && !is_bound(kind)))
		cell = (struct cell){ (u8)states[state].status, SDEI_INVALID };
	/* These are about the calling PE's own handler. */
	if (kind == ELSEWHERE && (op == CONTEXT || op == COMPLETE || op == RESUME))
		cell = (struct cell){ (u8)states[state].status, SDEI_DENIED };
	return cell;
}

/* Leads the handler into a state. */
static void enter_state(struct subject *s, enum kind kind, u64 status)
{
	bool shared = is_shared(kind);

	s->h = handler_of(s->p, s->event, HOLD);
	if (status == ST_UNREGISTERED)
		return;
	IS(0, s->p, SDEI_EVENT_REGISTER, s->event, (u64)conform_entry, (u64)s->h, shared ? SDEI_RM_PE : SDEI_RM_ANY,
	   s->p->mpidr);
	if (status == ST_REGISTERED)
		return;
	IS(0, s->p, SDEI_EVENT_ENABLE, s->event);
	if (status == ST_ENABLED)
		return;
	TRIGGER(s->event, s->p);
	ENTERED(s->h, 1);
	if (status == ST_RUNNING_DISABLED)
		IS(0, s->p, SDEI_EVENT_DISABLE, s->event);
	if (status == ST_PENDING)
		IS(SDEI_PENDING, s->p, SDEI_EVENT_UNREGISTER, s->event);
}

static bool make_call(struct subject *s, enum op op, s64 want, bool running)
{
	static const u64 noise = 0x5de1;
	s64 got = 0;

	switch (op) {
	case REGISTER:
		return OK(want, s->by, SDEI_EVENT_REGISTER, s->event, (u64)conform_entry, (u64)s->h, SDEI_RM_ANY, noise);
	case ROUTING_SET:
		return OK(want, s->by, SDEI_EVENT_ROUTING_SET, s->event, SDEI_RM_PE, s->p->mpidr);
	case CONTEXT:
		got = CALL(s->by, SDEI_EVENT_CONTEXT, 4);
		if (failed())
			return false;
		if (want == ANY ? (got >= 0 || got < SDEI_OUT_OF_RESOURCE) : got == want)
			return true;
		FAIL("EVENT_CONTEXT(4) on PE %lu returned %s (%ld)", s->by->index, sdei_error_name(got), got);
		return false;
	case COMPLETE:
	case RESUME:
		if (running && s->by == s->p)
			return leave_at(__FILE__, __LINE__, s->p, ops[op].id, op == RESUME ? (u64)resume_el1 : 0);
		return OK(want, s->by, ops[op].id, op == RESUME ? (u64)resume_el1 : 0);
	default:
		return OK(want, s->by, ops[op].id, s->event);
	}
}

/* The event is raised in a state.  Where nobody can take it, raising it may as well be refused. */
static void dispatch(struct subject *s, u64 status, u64 next)
{
	u64 before = s->h->entered;
	bool enters = status == ST_ENABLED, raised = raise_event(s->event, s->p);

	TRY(!failed());
	CHECK(raised || s->event || !(status & SDEI_STATUS_ENABLED), "EVENT_SIGNAL of event 0 is refused");
	if (enters && !raised)
		SKIP("nothing here raises event 0x%x", s->event);
	EXACTLY(s->h, before + enters);
	STATUS_IS(next, s->by, s->event);
	if (status != ST_RUNNING || !raised)
		return;
	/* It waits for the handler to complete. */
	s->h->hold = false;
	LEAVE(s->p);
	EXACTLY(s->h, before + 1);
	STATUS_IS(ST_ENABLED, s->by, s->event);
}

static void one_cell(const struct test *t)
{
	enum kind kind = t->arg & 0xf;
	enum op op = t->arg >> 4 & 0xf;
	u32 state = t->arg >> 8 & 0xf;
	struct subject s = { .p = &pes[1] };
	struct cell cell = expected(kind, op, state);
	bool running = states[state].status & SDEI_STATUS_RUNNING;
	u64 depth;

	NEEDS_PES(kind == ELSEWHERE ? 3 : 2);
	s.by = kind == ELSEWHERE ? &pes[2] : s.p;
	s.event = event_of(kind, s.p);
	if (s.event == NO_EVENT)
		return;
	enter_state(&s, kind, states[state].status);
	TRY(!failed());
	if (!(s.h->entered || !running))
		return;		/* nothing here raises it: skipped */
	STATUS_IS(states[state].status, s.by, s.event);
	depth = s.p->depth;

	if (op == RELEASE && !is_bound(kind) && is_shared(kind) && s.event != SHARED_NORMAL(0) && s.event != SHARED_CRITICAL(0))
		cell = table[op][state];	/* bound all the same */
	if (op == DISPATCH) {
		dispatch(&s, states[state].status, cell.next);
		return;
	}
	if (!make_call(&s, op, cell.result, running))
		return;
	if (op == RELEASE && !cell.result)
		return;		/* the event may not even be known any more */
	if (running && (op == COMPLETE || op == RESUME) && s.by == s.p)
		CHECK(s.p->depth == depth - 1, "the handler still runs");
	STATUS_IS(cell.next, s.by, s.event);
	if (s.by != s.p)
		STATUS_IS(cell.next, s.p, s.event);
	CHECK(s.h->entered == (running ? 1u : 0), "the handler was entered %lu times", s.h->entered);
}

/* -- beyond single cells */

static void idempotent(const struct test *t)
{
	struct pe *p = &pes[0];

	(void)t;
	struct handler *h = enlist(p, 0, 0);

	for (u32 i = 0; i < 3; i++) {
		IS(0, p, SDEI_EVENT_ENABLE, 0);
		STATUS_IS(ST_ENABLED, p, 0);
	}
	for (u32 i = 0; i < 3; i++) {
		IS(0, p, SDEI_EVENT_DISABLE, 0);
		STATUS_IS(ST_REGISTERED, p, 0);
	}
	EXACTLY(h, 0);
}

static void independent(const struct test *t)
{
	(void)t;
	NEEDS_PES(2);
	/* Each PE has a handler of its own for a private event, in whatever state. */
	(void)enlist(&pes[0], 0, 0);
	STATUS_IS(ST_UNREGISTERED, &pes[1], 0);
	IS(SDEI_DENIED, &pes[1], SDEI_EVENT_ENABLE, 0);
	IS(SDEI_DENIED, &pes[1], SDEI_EVENT_UNREGISTER, 0);
	(void)enlist(&pes[1], 0, 0);
	IS(0, &pes[0], SDEI_EVENT_UNREGISTER, 0);
	STATUS_IS(ST_ENABLED, &pes[1], 0);
	STATUS_IS(ST_UNREGISTERED, &pes[0], 0);
}

static void one_for_all(const struct test *t)
{
	u32 event = event_of(SHARED, &pes[0]);

	(void)t;
	if (event == NO_EVENT)
		return;
	NEEDS_PES(2);
	struct handler *h = handler_of(NULL, event, 0);

	IS(0, &pes[0], SDEI_EVENT_REGISTER, event, (u64)conform_entry, (u64)h, SDEI_RM_ANY, 0);
	for (u32 i = 0; i < nr_pes; i++) {
		STATUS_IS(ST_REGISTERED, &pes[i], event);
		IS(SDEI_DENIED, &pes[i], SDEI_EVENT_REGISTER, event, (u64)conform_entry, (u64)h, SDEI_RM_ANY, 0);
	}
	IS(0, &pes[1], SDEI_EVENT_ENABLE, event);
	STATUS_IS(ST_ENABLED, &pes[0], event);
	IS(0, &pes[nr_pes - 1], SDEI_EVENT_UNREGISTER, event);
	STATUS_IS(ST_UNREGISTERED, &pes[0], event);
}

static void unregister_drops(const struct test *t)
{
	struct pe *p = &pes[0];

	(void)t;
	struct handler *h = handler_of(p, 0, 0);
	s64 got;

	/* What was raised for the old registration is not for the new one. */
	IS(0, p, SDEI_EVENT_REGISTER, 0, (u64)conform_entry, (u64)h, SDEI_RM_ANY, 0);
	got = CALL(p, SDEI_EVENT_SIGNAL, 0, p->mpidr);
	if (got == SDEI_INVALID)
		SKIP("EVENT_SIGNAL refuses a target that is not enabled");
	CHECK(!got, "EVENT_SIGNAL to a target that is not enabled returned %s (%ld)", sdei_error_name(got), got);
	IS(0, p, SDEI_EVENT_UNREGISTER, 0);
	h = enlist(p, 0, 0);
	EXACTLY(h, 0);
}

static void register_again(const struct test *t)
{
	struct pe *p = &pes[1];

	(void)t;
	NEEDS_PES(2);
	struct handler *h = HELD(p);

	IS(SDEI_PENDING, p, SDEI_EVENT_UNREGISTER, 0);
	IS(SDEI_DENIED, p, SDEI_EVENT_REGISTER, 0, (u64)conform_entry, (u64)h, SDEI_RM_ANY, 0);
	LEAVE(p);
	h = enlist(p, 0, 0);
	TRIGGER(0, p);
	EXACTLY(h, 1);
}

static const struct test more[] = {
	{ "state.idempotent", "DEN0054C 5.1.3, 5.1.4", "ENABLE and DISABLE twice are no error", idempotent, 0 },
	{ "state.independent", "DEN0054C 4.1", "private events have a state of their own on each PE", independent, 0 },
	{ "state.one-for-all", "DEN0054C 4.1", "a shared event has one state, whoever looks or calls", one_for_all, 0 },
	{ "state.unregister-drops", "DEN0054C 5.1.8", "UNREGISTER takes the pending event with it", unregister_drops, 0 },
	{ "state.register-again", "DEN0054C 6.1", "after an unregister-pending handler completes, REGISTER works", register_again,
	  0 },
};
#define NR_MORE (sizeof(more) / sizeof(more[0]))

/* -- the catalogue is made: one test for each kind, state and operation */

#define NR_CELLS (NR_KINDS * NR_STATES * NR_OPS)
static struct test tests[NR_CELLS + NR_MORE];
static char ids[NR_CELLS][64], titles[NR_CELLS][96];

static const char *result_name(s64 result)
{
	return result == ANY ? "gives a register" : result ? sdei_error_name(result) : "is allowed";
}

static const char *state_name(u8 status)
{
	for (u32 i = 0; i < NR_STATES; i++)
		if (states[i].status == status)
			return states[i].name;
	return "?";
}

struct group state_group(void)
{
	u32 n = 0;

	for (u32 kind = 0; kind < NR_KINDS; kind++) {
		for (u32 state = 0; state < NR_STATES; state++) {
			for (u32 op = 0; op < NR_OPS; op++) {
				struct out id = { .buf = ids[n], .cap = 63 }, title = { .buf = titles[n], .cap = 95 };
				struct cell cell = expected(kind, op, state);

				out_printf(&id, "state.%s.%s.%s", kinds[kind], states[state].name, ops[op].name);
				if (op == DISPATCH)
					out_printf(&title, "the event is raised: then %s", state_name(cell.next));
				else
					out_printf(&title, "%s %s: then %s", ops[op].name, result_name(cell.result),
						   state_name(cell.next));
				tests[n] = (struct test){ ids[n], ops[op].rule, titles[n], one_cell,
							  kind | op << 4 | state << 8 };
				n++;
			}
		}
	}
	for (u32 i = 0; i < NR_MORE; i++)
		tests[n++] = more[i];
	return (struct group){ tests, n };
}
