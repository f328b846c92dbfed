// SPDX-License-Identifier: Apache-2.0
/* What there is, and which calls there are: versions, features, information, reserved ids and bits, parameters. */
#include "conform.h"

#define SMC32(id)	((id) & ~0x40000000u)
#define YIELDING(id)	((id) & ~0x80000000u)

static struct pe *self(void) { return &pes[0]; }

static void version(const struct test *t)
{
	u64 v = (u64)CALL(self(), SDEI_VERSION);

	(void)t;
	CHECK(!(v >> 63), "bit 63 of VERSION is set: 0x%lx", v);
	CHECK(v >> 48 == 1, "the major version is %lu instead of 1", v >> 48);
	CHECK((v >> 32 & 0xffff) <= 1, "the minor version is %lu, and there is none but 0 and 1", v >> 32 & 0xffff);
	for (u32 i = 0; i < nr_pes; i++)
		IS((s64)v, &pes[i], SDEI_VERSION);
}

static void slots(const struct test *t)
{
	s64 v = CALL(self(), SDEI_FEATURES, SDEI_FEATURE_BIND_SLOTS);

	(void)t;
	CHECK(v >= 0 && v <= 0xffffffff, "FEATURES(BIND_SLOTS) is %ld", v);
	note("%ld private and %ld shared slots", v & 0xffff, v >> 16);
	for (u32 i = 0; i < nr_pes; i++)
		IS(v, &pes[i], SDEI_FEATURES, SDEI_FEATURE_BIND_SLOTS);
}

static void relative(const struct test *t)
{
	s64 v = CALL(self(), SDEI_FEATURES, SDEI_FEATURE_RELATIVE_MODE);
	bool v1_1 = (platform.version >> 32 & 0xffff) >= 1;

	(void)t;
	if (!v1_1 && v == SDEI_INVALID)
		SKIP("SDEI 1.0 does not know relative mode");
	CHECK(v == 0 || v == 1, "FEATURES(RELATIVE_MODE) is %ld instead of 0 or 1", v);
	note("relative mode: %s", v ? "yes" : "no");
}

static void unknown_feature(const struct test *t)
{
	static const u64 none[] = { 2, 3, 0x7fffffff, 0x80000000, 0xffffffff };

	(void)t;
	for (u32 i = 0; i < sizeof(none) / sizeof(none[0]); i++)
		IS(SDEI_INVALID, self(), SDEI_FEATURES, none[i]);
}

static void always(const struct test *t)
{
	struct pe *p = &pes[nr_pes - 1];

	(void)t;
	/* Masked, in a fresh state: none of these needs anything. */
	CALL(p, SDEI_PE_MASK);
	IS((s64)platform.version, p, SDEI_VERSION);
	STATUS_IS(ST_UNREGISTERED, p, 0);
	IS(0, p, SDEI_EVENT_GET_INFO, 0, SDEI_INFO_TYPE);
	IS(0, p, SDEI_PRIVATE_RESET);
	IS(0, p, SDEI_SHARED_RESET);
	IS(0, p, SDEI_PE_UNMASK);
}

/* -- ids */

static void refused_ids(u32 from, u32 to)
{
	for (u32 id = from; id <= to; id++) {
		s64 got = sdei_call(id, 0, 0, 0, 0, 0);

		CHECK(got == SDEI_NOT_SUPPORTED, "function 0x%x returned %ld instead of NOT_SUPPORTED (-1)", id, got);
	}
}

static void reserved_ids(const struct test *t)
{
	(void)t;
	refused_ids(SDEI_SHARED_RESET + 1, 0xc400003f);
}

static void smc32(const struct test *t)
{
	(void)t;
	refused_ids(SMC32(SDEI_VERSION), SMC32(0xc400003f));
}

static void yielding(const struct test *t)
{
	(void)t;
	refused_ids(YIELDING(SDEI_VERSION), YIELDING(SDEI_SHARED_RESET));
}

static void id_high_half(const struct test *t)
{
	struct full f = { .in = { 0xdead000000000000ul | SDEI_VERSION } };

	(void)t;
	/* W0 is the function id, SMCCC 2.5. */
	full_call(&f);
	CHECK(f.out[0] == platform.version, "VERSION with bits in the upper half of x0 is 0x%lx", f.out[0]);
}

/* -- what a call may change */

static void preserves(const struct test *t)
{
	struct full f = { .in = { (u32)t->arg } };

	for (u32 i = 1; i < 18; i++)
		f.in[i] = 0x5de1000000000000ul + i;
	full_call(&f);
	for (u32 i = 4; i < 18; i++)
		CHECK(f.out[i] == f.in[i], "x%u is 0x%lx after the call instead of 0x%lx", i, f.out[i], f.in[i]);
	for (u32 i = 18; i < 31; i++)
		CHECK(!(f.canaries >> i & 1), "x%u is not what it was before the call", i);
	CHECK(!f.sp_changed, "SP is not what it was before the call");
}

static void keeps_pstate(const struct test *t)
{
	struct full f = { .in = { SDEI_VERSION }, .mask = 1ul << 31 | 1 << 6, .pstate = 0x90000000ul | 0x240 };

	(void)t;
	full_call(&f);
	CHECK((f.out_pstate & (PSTATE_NZCV | PSTATE_DAIF)) == f.pstate, "PSTATE 0x%lx after the call instead of 0x%lx",
	      f.out_pstate & (PSTATE_NZCV | PSTATE_DAIF), f.pstate);
}

/* -- EVENT_GET_INFO */

static void info(const struct test *t)
{
	u32 event = platform_event(t->arg);
	bool shared = t->arg >> 1;
	s64 signaled;

	if (event == NO_EVENT)
		return;
	for (u32 i = 0; i < nr_pes; i++) {
		struct pe *p = &pes[i];

		IS(shared, p, SDEI_EVENT_GET_INFO, event, SDEI_INFO_TYPE);
		IS((s64)(t->arg & 1), p, SDEI_EVENT_GET_INFO, event, SDEI_INFO_PRIORITY);
		signaled = CALL(p, SDEI_EVENT_GET_INFO, event, SDEI_INFO_SIGNALED);
		CHECK(signaled == 0 || signaled == 1, "EVENT_GET_INFO(SIGNALED) is %ld", signaled);
		if (shared)
			continue;
		IS(SDEI_INVALID, p, SDEI_EVENT_GET_INFO, event, SDEI_INFO_ROUTING_MODE);
		IS(SDEI_INVALID, p, SDEI_EVENT_GET_INFO, event, SDEI_INFO_ROUTING_AFF);
	}
	/* All but routing is known whether anybody has registered the event or not. */
	(void)enlist(self(), event, 0);
	IS(shared, self(), SDEI_EVENT_GET_INFO, event, SDEI_INFO_TYPE);
	IS((s64)(t->arg & 1), self(), SDEI_EVENT_GET_INFO, event, SDEI_INFO_PRIORITY);
}

static void info_routing(const struct test *t)
{
	u32 event = platform_event(t->arg);
	struct pe *p = &pes[nr_pes - 1];

	if (event == NO_EVENT)
		return;
	IS(SDEI_DENIED, self(), SDEI_EVENT_GET_INFO, event, SDEI_INFO_ROUTING_MODE);
	IS(SDEI_DENIED, self(), SDEI_EVENT_GET_INFO, event, SDEI_INFO_ROUTING_AFF);
	(void)enlist(self(), event, 0);
	IS(SDEI_RM_ANY, p, SDEI_EVENT_GET_INFO, event, SDEI_INFO_ROUTING_MODE);
	IS(SDEI_INVALID, p, SDEI_EVENT_GET_INFO, event, SDEI_INFO_ROUTING_AFF);
	IS(0, self(), SDEI_EVENT_UNREGISTER, event);
	(void)enlist_routed(self(), event, 0, p);
	IS(SDEI_RM_PE, self(), SDEI_EVENT_GET_INFO, event, SDEI_INFO_ROUTING_MODE);
	IS((s64)p->mpidr, self(), SDEI_EVENT_GET_INFO, event, SDEI_INFO_ROUTING_AFF);
}

static void info_event0(const struct test *t)
{
	(void)t;
	IS(0, self(), SDEI_EVENT_GET_INFO, 0, SDEI_INFO_TYPE);
	IS(0, self(), SDEI_EVENT_GET_INFO, 0, SDEI_INFO_PRIORITY);
}

static void info_event0_signaled(const struct test *t)
{
	(void)t;
	IS(1, self(), SDEI_EVENT_GET_INFO, 0, SDEI_INFO_SIGNALED);
}

static void info_bound(const struct test *t)
{
	u32 event = bind_free(self(), t->arg);

	if (event == NO_EVENT)
		return;
	IS((s64)t->arg, self(), SDEI_EVENT_GET_INFO, event, SDEI_INFO_TYPE);
	IS(0, self(), SDEI_EVENT_GET_INFO, event, SDEI_INFO_PRIORITY);
	if (t->arg)
		IS(SDEI_DENIED, self(), SDEI_EVENT_GET_INFO, event, SDEI_INFO_ROUTING_MODE);
	else
		IS(SDEI_INVALID, self(), SDEI_EVENT_GET_INFO, event, SDEI_INFO_ROUTING_MODE);
}

static void info_unknown(const struct test *t)
{
	static const u64 none[] = { 5, 6, 0x7fffffff, 0x80000000, 0xffffffff };

	(void)t;
	for (u32 i = 0; i < sizeof(none) / sizeof(none[0]); i++)
		IS(SDEI_INVALID, self(), SDEI_EVENT_GET_INFO, 0, none[i]);
}

/* -- parameters */

static const u64 no_events[] = { 0x7fffffff, 0x80000000, 0xffffffff, 0x0bad0bad };

/* A call that takes an event number as its first parameter. */
static void unknown_event(const struct test *t)
{
	for (u32 i = 0; i < sizeof(no_events) / sizeof(no_events[0]); i++) {
		if (t->arg == SDEI_EVENT_REGISTER)
			IS(SDEI_INVALID, self(), SDEI_EVENT_REGISTER, no_events[i], (u64)conform_entry, 0, SDEI_RM_ANY, 0);
		else
			IS(SDEI_INVALID, self(), (u32)t->arg, no_events[i]);
	}
}

static void register_flags(const struct test *t)
{
	u64 known = SDEI_RM_PE | (platform.relative ? SDEI_RELATIVE : 0);

	(void)t;
	for (u32 bit = 0; bit < 64; bit++) {
		if (known >> bit & 1)
			continue;
		IS(SDEI_INVALID, self(), SDEI_EVENT_REGISTER, 0, (u64)conform_entry, 0, 1ul << bit, self()->mpidr);
		STATUS_IS(ST_UNREGISTERED, self(), 0);
	}
}

static void register_null(const struct test *t)
{
	(void)t;
	IS(SDEI_INVALID, self(), SDEI_EVENT_REGISTER, 0, 0, 0, SDEI_RM_ANY, 0);
	STATUS_IS(ST_UNREGISTERED, self(), 0);
}

/* The platform may know more about addresses than that no instruction stands here; if it refuses, then like this. */
static void register_unaligned(const struct test *t)
{
	(void)t;
	for (u64 offset = 1; offset < 4; offset++) {
		s64 got = CALL(self(), SDEI_EVENT_REGISTER, 0, (u64)conform_entry + offset, 0, SDEI_RM_ANY, 0);

		CHECK(got == SDEI_INVALID || got == 0, "EVENT_REGISTER of an address + %lu returned %ld", offset, got);
		note("address + %lu: %s", offset, sdei_error_name(got));
		if (!got)
			IS(0, self(), SDEI_EVENT_UNREGISTER, 0);
		STATUS_IS(ST_UNREGISTERED, self(), 0);
	}
}

static void register_private_affinity(const struct test *t)
{
	(void)t;
	/* RM_ANY: what stands in the affinity parameter is nobody's business. */
	IS(0, self(), SDEI_EVENT_REGISTER, 0, (u64)conform_entry, 0, SDEI_RM_ANY, 0xffffffffffffffff);
	IS(0, self(), SDEI_EVENT_UNREGISTER, 0);
	IS(0, self(), SDEI_EVENT_REGISTER, 0, (u64)conform_entry, 0, SDEI_RM_PE, self()->mpidr);
}

static void register_bad_affinity(const struct test *t)
{
	u32 event = platform_event(t->arg);
	static const u64 nowhere[] = { 0xff00ffffff, 0x7f00000000, 0x00fffffe };

	if (event == NO_EVENT)
		return;
	for (u32 i = 0; i < sizeof(nowhere) / sizeof(nowhere[0]); i++) {
		IS(SDEI_INVALID, self(), SDEI_EVENT_REGISTER, event, (u64)conform_entry, 0, SDEI_RM_PE, nowhere[i]);
		STATUS_IS(ST_UNREGISTERED, self(), event);
	}
}

/* Clients pass MPIDR_EL1 as it is: bit 31 is set there, U and MT may be. */
static void raw_mpidr(const struct test *t)
{
	u64 raw;

	(void)t;
	__asm__("mrs %0, mpidr_el1" : "=r"(raw));
	struct handler *h = enlist(self(), 0, 0);

	TRY(!failed());
	IS(0, self(), SDEI_EVENT_SIGNAL, 0, raw | 1ul << 31);
	EXACTLY(h, 1);
}

#define INFO(id, kind)	{ "calls.info." id, "DEN0054C 5.1.10", "EVENT_GET_INFO tells of a " id " event", info, kind }
#define UNKNOWN(id, call, section)									\
	{ "calls.unknown-event." id, "DEN0054C " section, "an event that does not exist is INVALID_PARAMETERS",	\
	  unknown_event, call }
#define PRESERVES(id, call)										\
	{ "calls.preserves." id, "SMCCC 2.6", "x4 to x30 and SP are what they were before the call", preserves, call }

static const struct test calls_tests[] = {
	{ "calls.version", "DEN0054C 5.1.1", "VERSION: bit 63 clear, major 1, minor 0 or 1, the same on all PEs", version, 0 },
	{ "calls.features.slots", "DEN0054C 5.1.17", "FEATURES tells the number of bind slots", slots, 0 },
	{ "calls.features.relative", "DEN0054C 5.1.17", "FEATURES tells of relative mode", relative, 0 },
	{ "calls.features.unknown", "DEN0054C 5.1.17", "an unknown feature is INVALID_PARAMETERS", unknown_feature, 0 },
	{ "calls.any-state", "DEN0054C 6.1", "calls that are allowed in every state", always, 0 },
	{ "calls.ids.reserved", "DEN0054C 5.1", "0xC4000033 to 0xC400003F are NOT_SUPPORTED", reserved_ids, 0 },
	{ "calls.ids.smc32", "DEN0054C 5.1", "the SMC32 forms are NOT_SUPPORTED", smc32, 0 },
	{ "calls.ids.yielding", "SMCCC 2.5", "the yielding forms are NOT_SUPPORTED", yielding, 0 },
	{ "calls.ids.high-half", "SMCCC 2.5", "the upper half of x0 is no part of the function id", id_high_half, 0 },
	PRESERVES("version", SDEI_VERSION),
	PRESERVES("unknown", 0xc400003f),
	PRESERVES("status", SDEI_EVENT_STATUS),
	PRESERVES("mask", SDEI_PE_MASK),
	{ "calls.preserves.pstate", "SMCCC 2.6", "NZCV and DAIF are what they were before the call", keeps_pstate, 0 },
	INFO("private-normal", 0),
	INFO("private-critical", 1),
	INFO("shared-normal", 2),
	INFO("shared-critical", 3),
	{ "calls.info.event0", "DEN0054C 4.1", "event 0 is private and normal", info_event0, 0 },
	{ "calls.info.event0-signaled", "DEN0054C 5.1.10", "event 0 can be signalled", info_event0_signaled, 0 },
	{ "calls.info.bound-ppi", "DEN0054C 5.1.14", "a bound PPI is a private, normal event", info_bound, 0 },
	{ "calls.info.bound-spi", "DEN0054C 5.1.14", "a bound SPI is a shared, normal event", info_bound, 1 },
	{ "calls.info.routing", "DEN0054C 5.1.10", "routing of a shared event: only once it is registered", info_routing, 2 },
	{ "calls.info.routing-critical", "DEN0054C 5.1.10", "routing of a shared critical event", info_routing, 3 },
	{ "calls.info.unknown", "DEN0054C 5.1.10", "unknown information is INVALID_PARAMETERS", info_unknown, 0 },
	UNKNOWN("register", SDEI_EVENT_REGISTER, "5.1.2"),
	UNKNOWN("enable", SDEI_EVENT_ENABLE, "5.1.3"),
	UNKNOWN("disable", SDEI_EVENT_DISABLE, "5.1.4"),
	UNKNOWN("unregister", SDEI_EVENT_UNREGISTER, "5.1.8"),
	UNKNOWN("status", SDEI_EVENT_STATUS, "5.1.9"),
	UNKNOWN("get-info", SDEI_EVENT_GET_INFO, "5.1.10"),
	UNKNOWN("routing-set", SDEI_EVENT_ROUTING_SET, "5.1.11"),
	UNKNOWN("release", SDEI_INTERRUPT_RELEASE, "5.1.15"),
	UNKNOWN("signal", SDEI_EVENT_SIGNAL, "5.1.16"),
	{ "calls.register.flags", "DEN0054C 5.1.2", "reserved bits of flags are INVALID_PARAMETERS", register_flags, 0 },
	{ "calls.register.null", "DEN0054C 5.1.2", "address 0 is INVALID_PARAMETERS", register_null, 0 },
	{ "calls.register.unaligned", "DEN0054C 5.1.2", "an unaligned address is accepted or INVALID_PARAMETERS",
	  register_unaligned, 0 },
	{ "calls.register.private-affinity", "DEN0054C 5.1.2", "the affinity of a private event is ignored",
	  register_private_affinity, 0 },
	{ "calls.register.bad-affinity", "DEN0054C 5.1.2", "RM_PE wants the affinity of a PE", register_bad_affinity, 2 },
	{ "calls.raw-mpidr", "DEN0054C 5.1.16", "an affinity may have MPIDR_EL1's other bits set", raw_mpidr, 0 },
};
GROUP(calls);
