// SPDX-License-Identifier: Apache-2.0
/* How a handler is entered, DEN0054C 4.3: registers, PSTATE, address; and that what it interrupted does not notice. */
#include "conform.h"

#define SCTLR_SPAN	(1ul << 23)
#define SCTLR_DSSBS	(1ul << 44)

/* Fields of the ID registers, as far as PSTATE depends on them. */
static bool have_pan(void) { return read_sysreg("ID_AA64MMFR1_EL1") >> 20 & 0xf; }
static bool have_uao(void) { return read_sysreg("S3_0_C0_C7_2") >> 4 & 0xf; }		/* ID_AA64MMFR2_EL1 */
static bool have_dit(void) { return read_sysreg("ID_AA64PFR0_EL1") >> 48 & 0xf; }
static bool have_ssbs(void) { return (read_sysreg("ID_AA64PFR1_EL1") >> 4 & 0xf) >= 2; }	/* the PSTATE bit by MSR */
static bool have_mte2(void) { return (read_sysreg("ID_AA64PFR1_EL1") >> 8 & 0xf) >= 2; }
static bool have_bti(void) { return read_sysreg("ID_AA64PFR1_EL1") & 0xf; }

static struct full full;

/* Signals event 0 to this PE from a given PSTATE, and waits for its handler. */
static struct handler *signal_from(u64 pstate, u64 mask)
{
	struct pe *p = &pes[0];
	struct handler *h = handler_of(p, 0, 0);

	if (!OK(0, p, SDEI_EVENT_REGISTER, 0, (u64)probe_entry, (u64)h, SDEI_RM_ANY, 0) || !OK(0, p, SDEI_EVENT_ENABLE, 0))
		return NULL;
	full = (struct full){ .in = { SDEI_EVENT_SIGNAL, 0, p->mpidr }, .pstate = pstate, .mask = mask };
	for (u32 i = 3; i < 18; i++)
		full.in[i] = 0x5de1000000000000ul | i;
	full.arrived = &h->entered;
	full.polls = 1ul << 22;
	full_call(&full);
	if (full.out[0])
		FAIL("EVENT_SIGNAL returned %s (%ld)", sdei_error_name((s64)full.out[0]), (s64)full.out[0]);
	else if (h->entered != 1)
		FAIL("the handler was entered %lu times instead of once", h->entered);
	return failed() ? NULL : h;
}

static void registers(const struct test *t)
{
	struct handler *h = signal_from(0x60000000ul | PSTATE_DAIF, 1ul << 31 | 1 << 6);

	(void)t;
	TRY(h);
	CHECK(h->x[0] == 0, "x0 is 0x%lx instead of the event's number", h->x[0]);
	CHECK(h->x[2] >= (u64)full_call_hvc && h->x[2] < (u64)full_call_end, "x2, the interrupted PC, is 0x%lx", h->x[2]);
	CHECK((h->x[3] & (PSTATE_NZCV | PSTATE_DAIF | PSTATE_MODE)) == (0x60000000ul | PSTATE_DAIF | MODE_EL1H),
	      "x3, the interrupted PSTATE, is 0x%lx", h->x[3]);
	for (u32 i = 4; i < 18; i++)
		CHECK(h->x[i] == full.in[i] || h->x[i] == 0, "x%u is 0x%lx: neither what was interrupted nor zero", i, h->x[i]);
	note("x4 to x17 are %s at entry", h->x[4] ? "as interrupted" : "zero");
}

static void argument(const struct test *t)
{
	struct pe *p = &pes[0];

	(void)t;
	/* The handler bails out if its argument is not the one it was registered with; 64 bits, so two places. */
	for (u32 i = 0; i < 3; i++) {
		struct handler *h = enlist(p, 0, 0);

		TRIGGER(0, p);
		EXACTLY(h, 1);
		CHECK(h->x[1] == (u64)h, "x1 is 0x%lx instead of 0x%lx", h->x[1], (u64)h);
		IS(0, p, SDEI_EVENT_UNREGISTER, 0);
	}
}

/* PSTATE as the firmware left it, seen by an exception which the handler's first instruction takes. */
static u64 pstate_after(u64 pstate, u64 mask)
{
	return signal_from(pstate, mask) ? pes[0].spsr_at_entry : 0;
}

static void mode(const struct test *t)
{
	(void)t;
	for (u32 spsel = 0; spsel < 2; spsel++) {
		u64 got = pstate_after(PSTATE_DAIF | spsel, 1 << 6 | 1);

		CHECK((got & PSTATE_MODE) == MODE_EL1H, "PSTATE.M is 0x%lx instead of EL1h, interrupted with SPSel %u",
		      got & PSTATE_MODE, spsel);
		IS(0, &pes[0], SDEI_EVENT_UNREGISTER, 0);
	}
}

static void stack(const struct test *t)
{
	(void)t;
	struct handler *h = signal_from(PSTATE_DAIF | 1, 1 << 6 | 1);

	TRY(h);
	CHECK(h->spsel == 1, "SPSel is %lu", h->spsel);
	CHECK(!full.sp_changed, "SP is not what it was after the handler");
	u64 sp = h->sp;

	IS(0, &pes[0], SDEI_EVENT_UNREGISTER, 0);
	h = signal_from(PSTATE_DAIF, 1 << 6 | 1);
	TRY(h);
	CHECK(h->sp == sp, "a handler that interrupts SP_EL0 starts on 0x%lx instead of SP_EL1, 0x%lx", h->sp, sp);
	CHECK(!full.sp_changed, "SP is not what it was after the handler");
}

static void daif(const struct test *t)
{
	static const u64 before[] = { 0, 0x3c0, 0x080, 0x240, 0x140 };

	(void)t;
	/* IRQs and FIQs that are unmasked meanwhile: nothing has been set up that could raise one. */
	for (u32 i = 0; i < 5; i++) {
		u64 got = pstate_after(before[i] | 1, 1 << 6 | 1);

		CHECK((got & PSTATE_DAIF) == PSTATE_DAIF, "DAIF is 0x%lx instead of 0x3c0, interrupted with 0x%lx",
		      got & PSTATE_DAIF, before[i]);
		IS(0, &pes[0], SDEI_EVENT_UNREGISTER, 0);
	}
}

static void nzcv(const struct test *t)
{
	(void)t;
	for (u64 flags = 0; flags < 16; flags += 5) {
		u64 got = pstate_after(flags << 28 | PSTATE_DAIF, 1ul << 31 | 1 << 6);

		CHECK((got & PSTATE_NZCV) == flags << 28, "NZCV is 0x%lx instead of 0x%lx", got >> 28 & 0xf, flags);
		CHECK((full.out_pstate & PSTATE_NZCV) == flags << 28, "NZCV is 0x%lx instead of 0x%lx after the handler",
		      full.out_pstate >> 28 & 0xf, flags);
		IS(0, &pes[0], SDEI_EVENT_UNREGISTER, 0);
	}
}

/* One bit of PSTATE for each value of itself and of the bit of SCTLR_EL1 that governs it. */
static void one_bit(const char *name, u64 bit, u64 governor, u64 (*want)(bool bit, bool governor))
{
	u64 sctlr = read_sysreg("sctlr_el1");

	for (u32 i = 0; i < 4; i++) {
		bool was = i & 1, governs = i & 2;
		u64 got, wanted = want(was, governs) ? bit : 0;

		if (governs && !governor)
			continue;
		write_sysreg("sctlr_el1", (sctlr & ~governor) | (governs ? governor : 0));
		got = pstate_after((was ? bit : 0) | PSTATE_DAIF | 1, bit | 1 << 6 | 1);
		write_sysreg("sctlr_el1", sctlr);
		if (failed())
			return;
		if ((got & bit) != wanted)
			FAIL("%s is %u instead of %u at entry; it was %u, and SCTLR_EL1's bit %u", name, !!(got & bit),
			     !!wanted, was, governs);
		else if ((full.out_pstate & bit) != (was ? bit : 0))
			FAIL("%s is %u instead of %u after the handler", name, !was, was);
		else
			checks++;
		if (failed() || !OK(0, &pes[0], SDEI_EVENT_UNREGISTER, 0))
			return;
	}
}

static u64 pan_want(bool was, bool span) { return span ? was : 1; }
static u64 kept(bool was, bool governor) { return (void)governor, was; }
static u64 cleared(bool was, bool governor) { return (void)was, (void)governor, 0; }
static u64 governed(bool was, bool governor) { return (void)was, governor; }

static void pan(const struct test *t)
{
	(void)t;
	if (!have_pan())
		SKIP("this CPU has no PAN");
	one_bit("PAN", PSTATE_PAN, SCTLR_SPAN, pan_want);
}

static void uao(const struct test *t)
{
	(void)t;
	if (!have_uao())
		SKIP("this CPU has no UAO");
	one_bit("UAO", PSTATE_UAO, 0, cleared);
}

static void dit(const struct test *t)
{
	(void)t;
	if (!have_dit())
		SKIP("this CPU has no DIT");
	one_bit("DIT", PSTATE_DIT, 0, kept);
}

static void ssbs(const struct test *t)
{
	(void)t;
	if (!have_ssbs())
		SKIP("this CPU has no SSBS that EL1 can set");
	one_bit("SSBS", PSTATE_SSBS, SCTLR_DSSBS, governed);
}

static void il_ss(const struct test *t)
{
	u64 got = pstate_after(PSTATE_DAIF | 1, 1 << 6 | 1);

	(void)t;
	CHECK(!(got & (PSTATE_IL | PSTATE_SS)), "IL or SS is set at entry: PSTATE 0x%lx", got);
}

static void btype(const struct test *t)
{
	u64 got;

	(void)t;
	if (!have_bti())
		SKIP("this CPU has no BTI");
	got = pstate_after(PSTATE_DAIF | 1, 1 << 6 | 1);
	CHECK(!(got & PSTATE_BTYPE), "BTYPE is %lu at entry", got >> 10 & 3);
}

static void tco(const struct test *t)
{
	u64 got;

	(void)t;
	if (!have_mte2())
		SKIP("this CPU has no MTE2");
	got = pstate_after(PSTATE_DAIF | 1, 1 << 6 | 1);
	CHECK(got & PSTATE_TCO, "TCO is clear at entry");
}

static void reserved_pstate(const struct test *t)
{
	u64 known = PSTATE_NZCV | PSTATE_TCO | PSTATE_DIT | PSTATE_UAO | PSTATE_PAN | PSTATE_ALLINT | PSTATE_SSBS | PSTATE_DAIF |
		    PSTATE_MODE;
	u64 got = pstate_after(PSTATE_DAIF | 1, 1 << 6 | 1);

	(void)t;
	CHECK(!(got & 0xffffffff & ~known), "PSTATE at entry has bits set that must be clear: 0x%lx", got);
	CHECK(!(got & PSTATE_TCO) || have_mte2(), "TCO is set, and this CPU has no MTE2");
	CHECK(!(got & PSTATE_DIT) || have_dit(), "DIT is set, and this CPU has none");
	CHECK(!(got & PSTATE_PAN) || have_pan(), "PAN is set, and this CPU has none");
}

/* -- what is interrupted */

static struct spin spin;

static s64 do_spin(struct pe *p, const u64 *a)
{
	(void)p;
	return (s64)spin_canaries(&spin, a[0]);
}

/* Another PE is interrupted again and again wherever it is; not one register may change. */
static void survives(const struct test *t)
{
	struct pe *p = &pes[1];
	struct command *c;
	struct handler *h;

	NEEDS_PES(2);
	h = enlist(p, 0, 0);
	TRY(!failed());
	if (t->arg & 2)
		h->exit_id = SDEI_EVENT_COMPLETE_AND_RESUME, h->exit_arg = (u64)resume_el1;
	spin = (struct spin){ 0 };
	c = post(p, do_spin, t->arg & 1, 0, 0, 0, 0, 0);
	for (u64 i = 0; i < 50; i++) {
		u64 resumed = p->resumed;

		BEATS(&spin);

		TRIGGER(0, p);
		ENTERED(h, i + 1);
		ENDED(h, i + 1);
		if (t->arg & 2)
			CHECK(WAIT(p->resumed == resumed + 1), "no arrival at the resume address");
	}
	BEATS(&spin);
	spin.stop = 1;
	TRY(finish(p, c));
	CHECK(!c->result, "a register of the interrupted code has changed: bits 0x%lx (31: NZCV)", (u64)c->result);
}

static s64 do_el0(struct pe *p, const u64 *a)
{
	(void)a;
	run_el0(p, el0_spin, (u64)&spin);
	return (s64)p->el0_esr;
}

static void from_el0(const struct test *t)
{
	struct pe *p = &pes[1];
	struct command *c;
	struct handler *h;

	NEEDS_PES(2);
	h = enlist(p, 0, 0);
	TRY(!failed());
	if (t->arg)
		h->exit_id = SDEI_EVENT_COMPLETE_AND_RESUME, h->exit_arg = (u64)resume_el0;
	spin = (struct spin){ 0 };
	c = post(p, do_el0, 0, 0, 0, 0, 0, 0);
	for (u64 i = 0; i < 5; i++) {
		u64 resumed = p->resumed;

		BEATS(&spin);

		TRIGGER(0, p);
		ENTERED(h, i + 1);
		ENDED(h, i + 1);
		CHECK((h->x[3] & PSTATE_MODE) == MODE_EL0T, "the interrupted PSTATE is 0x%lx instead of EL0t", h->x[3]);
		CHECK(h->el == 1 && h->spsel == 1 && h->daif == PSTATE_DAIF, "the handler runs at EL%lu, SPSel %lu, DAIF 0x%lx",
		      h->el, h->spsel, h->daif);
		CHECK(h->x[2] >= (u64)el0_spin && h->x[2] < (u64)el0_hvc, "the interrupted PC is 0x%lx", h->x[2]);
		if (t->arg) {
			CHECK(WAIT(p->resumed == resumed + 1), "no arrival at the resume address");
			CHECK((p->resume_spsr & PSTATE_MODE) == MODE_EL0T, "SPSR_EL1 is 0x%lx there", p->resume_spsr);
		}
	}
	spin.stop = 1;
	TRY(finish(p, c));
	CHECK(c->result >> 26 == 0x15, "EL0 did not come back by SVC: ESR_EL1 0x%lx", (u64)c->result);
}

/* -- the address of the handler */

static void relative(const struct test *t)
{
	struct pe *p = &pes[0];
	u64 offset = (u64)conform_entry - (u64)conform_vectors;
	struct handler *h = handler_of(p, 0, 0);

	(void)t;
	if (!platform.relative)
		SKIP("no relative mode");
	IS(0, p, SDEI_EVENT_REGISTER, 0, offset, (u64)h, SDEI_RELATIVE, 0);
	IS(0, p, SDEI_EVENT_ENABLE, 0);
	TRIGGER(0, p);
	EXACTLY(h, 1);
}

static void relative_shared(const struct test *t)
{
	u64 offset = (u64)conform_entry - (u64)conform_vectors;
	struct handler *h;
	u32 event;
	bool ok;

	(void)t;
	if (!platform.relative)
		SKIP("no relative mode");
	NEEDS_PES(2);
	event = shared_event(false);
	if (event == NO_EVENT)
		return;
	h = handler_of(NULL, event, 0);
	/* Another VBAR_EL1 for PE 0, which takes no exception meanwhile: it must not be the one that counts. */
	write_sysreg("vbar_el1", (u64)conform_vectors + 2048);
	ok = OK(0, &pes[0], SDEI_EVENT_REGISTER, event, offset, (u64)h, SDEI_RELATIVE | SDEI_RM_PE, pes[1].mpidr) &&
	     OK(0, &pes[0], SDEI_EVENT_ENABLE, event) && trigger(event, &pes[1]) && entered_at(__FILE__, __LINE__, h, 1);
	write_sysreg("vbar_el1", conform_vectors);
	TRY(ok);
	EXACTLY(h, 1);
	CHECK(h->by == &pes[1], "PE %lu ran it", h->by->index);
}

static void relative_refused(const struct test *t)
{
	(void)t;
	if (platform.relative)
		SKIP("relative mode is there");
	IS(SDEI_INVALID, &pes[0], SDEI_EVENT_REGISTER, 0, (u64)conform_entry, 0, SDEI_RELATIVE, 0);
}

#define PS(id, title, fn)	{ "entry.pstate." id, "DEN0054C 4.3, Arm ARM D1.3.1", title, fn, 0 }

static const struct test entry_tests[] = {
	{ "entry.registers", "DEN0054C 4.3", "x0 event, x2 interrupted PC, x3 interrupted PSTATE", registers, 0 },
	{ "entry.argument", "DEN0054C 4.3", "x1 is the argument of EVENT_REGISTER", argument, 0 },
	{ "entry.stack", "DEN0054C 4.3", "the handler starts on SP_EL1 as it was", stack, 0 },
	PS("mode", "EL1h, interrupted with SPSel 0 and 1", mode),
	PS("daif", "D, A, I and F are set", daif),
	PS("nzcv", "NZCV is kept", nzcv),
	PS("pan", "PAN is set, or kept if SCTLR_EL1.SPAN is", pan),
	PS("uao", "UAO is clear", uao),
	PS("dit", "DIT is kept", dit),
	PS("ssbs", "SSBS is SCTLR_EL1.DSSBS", ssbs),
	PS("il-ss", "IL and SS are clear", il_ss),
	PS("btype", "BTYPE is zero", btype),
	PS("tco", "TCO is set where there is MTE2", tco),
	PS("reserved", "no bit is set that the CPU does not have", reserved_pstate),
	{ "entry.survives.spsel1", "DEN0054C 4.3", "50 events: the interrupted code keeps all registers", survives, 1 },
	{ "entry.survives.spsel0", "DEN0054C 4.3", "50 events over code that uses SP_EL0", survives, 0 },
	{ "entry.survives.resume-spsel1", "DEN0054C 5.1.7", "50 events that end by COMPLETE_AND_RESUME", survives, 3 },
	{ "entry.survives.resume-spsel0", "DEN0054C 5.1.7", "50 such events over code that uses SP_EL0", survives, 2 },
	{ "entry.from-el0", "DEN0054C 4.3", "an event that interrupts EL0 is handled at EL1", from_el0, 0 },
	{ "entry.from-el0-resume", "DEN0054C 5.1.7", "and by COMPLETE_AND_RESUME looks like an exception from EL0", from_el0, 1 },
	{ "entry.relative", "DEN0054C 5.1.2", "a relative address counts from VBAR_EL1", relative, 0 },
	{ "entry.relative-shared", "DEN0054C 5.1.2", "that of the PE which takes a shared event", relative_shared, 0 },
	{ "entry.relative-refused", "DEN0054C 5.1.2", "without relative mode its flag is INVALID_PARAMETERS", relative_refused, 0 },
};
GROUP(entry);
