// SPDX-License-Identifier: Apache-2.0
/* EVENT_CONTEXT, EVENT_COMPLETE and EVENT_COMPLETE_AND_RESUME. */
#include "conform.h"

static struct full full;
static u64 context[18];

static void read_context(struct handler *h, struct frame *f)
{
	(void)h;
	(void)f;
	for (u64 i = 0; i < 18; i++)
		context[i] = (u64)sdei1(SDEI_EVENT_CONTEXT, i);
}

/* Event 0 strikes this PE in the middle of known registers. */
static struct handler *strike(void (*inside)(struct handler *, struct frame *))
{
	struct pe *p = &pes[0];
	struct handler *h = enlist(p, 0, 0);

	if (failed())
		return NULL;
	h->inside = inside;
	full = (struct full){ .in = { SDEI_EVENT_SIGNAL, 0, p->mpidr } };
	for (u32 i = 3; i < 18; i++)
		full.in[i] = 0xc0de000000000000ul | i * 0x1111;
	full.arrived = &h->entered;
	full.polls = 1ul << 22;
	full_call(&full);
	if (h->entered != 1)
		FAIL("the handler was entered %lu times instead of once", h->entered);
	return failed() ? NULL : h;
}

static void values(const struct test *t)
{
	struct handler *h = strike(read_context);

	(void)t;
	TRY(h);
	for (u32 i = 2; i < 18; i++)
		CHECK(context[i] == full.out[i], "EVENT_CONTEXT(%u) is 0x%lx instead of 0x%lx", i, context[i], full.out[i]);
	if (h->x[2] == (u64)(machine.sdei_smc ? full_call_smc_after : full_call_hvc_after))
		for (u32 i = 0; i < 2; i++)
			CHECK(context[i] == full.out[i], "EVENT_CONTEXT(%u) is 0x%lx instead of 0x%lx", i, context[i],
			      full.out[i]);
	else
		note("delivered some instructions after EVENT_SIGNAL");
}

static u64 again[18];

static void read_twice(struct handler *h, struct frame *f)
{
	read_context(h, f);
	for (u64 i = 0; i < 18; i++)
		again[i] = (u64)sdei1(SDEI_EVENT_CONTEXT, i);
}

static void stable(const struct test *t)
{
	(void)t;
	TRY(strike(read_twice));
	for (u32 i = 0; i < 18; i++)
		CHECK(context[i] == again[i], "EVENT_CONTEXT(%u) is 0x%lx, then 0x%lx", i, context[i], again[i]);
}

static void bounds(const struct test *t)
{
	static const u64 beyond[] = { 18, 19, 30, 31, 0x7fffffff, 0x80000000, 0xffffffff };
	struct pe *p = &pes[1];

	(void)t;
	NEEDS_PES(2);
	(void)HELD(p);
	for (u32 i = 0; i < sizeof(beyond) / sizeof(beyond[0]); i++)
		IS(SDEI_INVALID, p, SDEI_EVENT_CONTEXT, beyond[i]);
	STATUS_IS(ST_RUNNING, p, 0);
}

static void outside(const struct test *t)
{
	s64 got;

	(void)t;
	for (u32 i = 0; i < nr_pes; i++) {
		IS(SDEI_DENIED, &pes[i], SDEI_EVENT_CONTEXT, 0);
		IS(SDEI_DENIED, &pes[i], SDEI_EVENT_CONTEXT, 17);
		/* Two errors at once: which is found first is the implementation's choice. */
		got = CALL(&pes[i], SDEI_EVENT_CONTEXT, 18);
		CHECK(got == SDEI_DENIED || got == SDEI_INVALID, "EVENT_CONTEXT(18) outside of a handler returned %ld", got);
	}
	note("EVENT_CONTEXT(18) outside of a handler is %s", sdei_error_name(got));
}

static void complete_outside(const struct test *t)
{
	(void)t;
	for (u32 i = 0; i < nr_pes; i++) {
		IS(SDEI_DENIED, &pes[i], (u32)t->arg, t->arg == SDEI_EVENT_COMPLETE ? 0 : (u64)resume_el1);
		IS(SDEI_DENIED, &pes[i], (u32)t->arg, t->arg == SDEI_EVENT_COMPLETE ? 1 : (u64)resume_el1);
	}
}

static void status_word(const struct test *t)
{
	struct pe *p = &pes[1];
	struct handler *h;

	(void)t;
	NEEDS_PES(2);
	/* Handled, and failed: the handler ends either way. */
	h = enlist(p, 0, HOLD);
	for (u64 i = 0; i < 2; i++) {
		TRIGGER(0, p);
		ENTERED(h, i + 1);
		LEAVE_BY(p, SDEI_EVENT_COMPLETE, i);
		STATUS_IS(ST_ENABLED, p, 0);
	}
}

static void twice(const struct test *t)
{
	struct pe *p = &pes[1];
	struct handler *h;

	(void)t;
	NEEDS_PES(2);
	h = HELD(p);
	LEAVE(p);
	IS(SDEI_DENIED, p, SDEI_EVENT_COMPLETE, 0);
	IS(SDEI_DENIED, p, SDEI_EVENT_COMPLETE_AND_RESUME, (u64)resume_el1);
	STATUS_IS(ST_ENABLED, p, 0);
	EXACTLY(h, 1);
}

/* -- COMPLETE_AND_RESUME */

static void resume(const struct test *t)
{
	struct pe *p = &pes[1];
	struct handler *h;
	u64 resumed = p->resumed;

	(void)t;
	NEEDS_PES(2);
	h = HELD(p);
	LEAVE_BY(p, SDEI_EVENT_COMPLETE_AND_RESUME, (u64)resume_el1);
	CHECK(p->resumed == resumed + 1, "%lu arrivals at the resume address instead of one", p->resumed - resumed);
	CHECK(p->resume_elr == h->x[2], "ELR_EL1 is 0x%lx there instead of the interrupted PC, 0x%lx", p->resume_elr, h->x[2]);
	CHECK(p->resume_spsr == h->x[3], "SPSR_EL1 is 0x%lx there instead of the interrupted PSTATE, 0x%lx", p->resume_spsr,
	      h->x[3]);
	CHECK((p->resume_pstate & ~PSTATE_NZCV) == (PSTATE_DAIF | 1 | 1 << 2), "PSTATE is 0x%lx there: not EL1h with DAIF set",
	      p->resume_pstate);
	STATUS_IS(ST_ENABLED, p, 0);
}

#define EC_PC_ALIGNMENT 0x22

/* Firmware may look at the address, or leave it to the client to fault there. */
static void resume_unaligned(const struct test *t)
{
	struct pe *p = &pes[1];
	struct handler *h;

	(void)t;
	NEEDS_PES(2);
	h = HELD(p);
	p->refusals = 0;
	p->catch_esr = 0;
	p->catch_spsr = h->x[3];
	p->catch = h->x[2];
	(void)leave_at(__FILE__, __LINE__, p, SDEI_EVENT_COMPLETE_AND_RESUME, (u64)resume_el1 + 1);
	p->catch = 0;
	if (!p->refusals) {
		TRY(!failed());
		CHECK(p->catch_esr >> 26 == EC_PC_ALIGNMENT, "the call ended the handler, and no fault followed");
		STATUS_IS(ST_ENABLED, p, 0);
		note("the client takes a PC alignment fault at the resume address");
		return;
	}
	p->at = NULL;
	this_pe()->at = NULL;
	CHECK(p->refused == SDEI_DENIED, "EVENT_COMPLETE_AND_RESUME of an unaligned address returned %s (%ld)",
	      sdei_error_name(p->refused), p->refused);
	STATUS_IS(ST_RUNNING, p, 0);
	for (u64 offset = 2; offset < 4; offset++)
		STAYS(p, SDEI_EVENT_COMPLETE_AND_RESUME, (u64)resume_el1 + offset, SDEI_DENIED);
	LEAVE(p);
}

static const struct test context_tests[] = {
	{ "context.values", "DEN0054C 5.1.5", "EVENT_CONTEXT gives x0 to x17 of what was interrupted", values, 0 },
	{ "context.stable", "DEN0054C 5.1.5", "... as often as it is asked", stable, 0 },
	{ "context.bounds", "DEN0054C 5.1.5", "an index beyond 17 is INVALID_PARAMETERS", bounds, 0 },
	{ "context.outside", "DEN0054C 5.1.5", "outside of a handler it is DENIED", outside, 0 },
	{ "context.complete.outside", "DEN0054C 5.1.6", "EVENT_COMPLETE outside of a handler is DENIED", complete_outside,
	  SDEI_EVENT_COMPLETE },
	{ "context.complete.status", "DEN0054C 5.1.6", "both status words end the handler", status_word, 0 },
	{ "context.complete.twice", "DEN0054C 5.1.6", "a handler completes once", twice, 0 },
	{ "context.resume.outside", "DEN0054C 5.1.7", "EVENT_COMPLETE_AND_RESUME outside of a handler is DENIED", complete_outside,
	  SDEI_EVENT_COMPLETE_AND_RESUME },
	{ "context.resume.exception", "DEN0054C 5.1.7", "the client goes on as if it had taken an exception", resume, 0 },
	{ "context.resume.unaligned", "DEN0054C 5.1.7", "an unaligned address: DENIED, or the client faults there",
	  resume_unaligned, 0 },
};
GROUP(context);
