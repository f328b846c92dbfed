// SPDX-License-Identifier: Apache-2.0
/*
 * The hypercalls selftest of the KVM series, as a guest: a function answers "not supported" if, and only if, its
 * service has been turned off.
 *
 * bootargs: expect=std-trng,std-sdei,vendor-hyp,async-pf (the services that are on; nothing or "none" for none of them)
 *           conduits=both|hvc|smc (default both)
 */
#include "sdei.h"
#include "smccc.h"

enum { STD_TRNG, STD_SDEI, VENDOR_HYP, ASYNC_PF, NR_SERVICES };
static const char *const services[NR_SERVICES] = { "std-trng", "std-sdei", "vendor-hyp", "async-pf" };

#define SMCCC_VERSION		0x80000000
#define SMCCC_ARCH_FEATURES	0x80000001
#define PSCI_VERSION		0x84000000
#define TRNG_VERSION		0x84000050
#define TRNG_FEATURES		0x84000051
#define TRNG_GET_UUID		0x84000052
#define TRNG_RND64		0xc4000053
#define VENDOR_HYP_UID		0x8600ff01
#define VENDOR_HYP_FEATURES	0x86000000
#define ASYNC_PF_CALL		0x86000002
#define SMC64			0x40000000	/* function id: 64-bit calling convention */

/* What sits in x1.. of a call without arguments: results have to replace it. */
#define JUNK			0x5a5a5a5a5a5a5a5aul

struct function {
	const char *name;
	u32 id;
	u32 nr_args;
	u64 args[5];
};

static const struct function trng[] = {
	{ "TRNG_VERSION", TRNG_VERSION, 0, { 0 } },
	{ "TRNG_FEATURES", TRNG_FEATURES, 1, { TRNG_VERSION } },
	{ "TRNG_GET_UUID", TRNG_GET_UUID, 0, { 0 } },
	{ "TRNG_RND", TRNG_RND64, 1, { 64 } },
};

/* In this order every call succeeds, and the next pass finds what this one has found. */
static const struct function sdei[] = {
	{ "SDEI_SHARED_RESET", SDEI_SHARED_RESET, 0, { 0 } },
	{ "SDEI_PRIVATE_RESET", SDEI_PRIVATE_RESET, 0, { 0 } },
	{ "SDEI_PE_UNMASK", SDEI_PE_UNMASK, 0, { 0 } },
	{ "SDEI_EVENT_REGISTER", SDEI_EVENT_REGISTER, 5, { 0, (u64)sdei_entry, 0, SDEI_RM_ANY, 0 } },
	{ "SDEI_EVENT_ENABLE", SDEI_EVENT_ENABLE, 1, { 0 } },
	{ "SDEI_EVENT_DISABLE", SDEI_EVENT_DISABLE, 1, { 0 } },
	{ "SDEI_EVENT_UNREGISTER", SDEI_EVENT_UNREGISTER, 1, { 0 } },
	{ "SDEI_PE_MASK", SDEI_PE_MASK, 0, { 0 } },
	{ "SDEI_VERSION", SDEI_VERSION, 0, { 0 } },
	{ "SDEI_FEATURES", SDEI_FEATURES, 1, { SDEI_FEATURE_BIND_SLOTS } },
	{ "SDEI_EVENT_STATUS", SDEI_EVENT_STATUS, 1, { 0 } },
	{ "SDEI_EVENT_GET_INFO", SDEI_EVENT_GET_INFO, 2, { 0, SDEI_INFO_TYPE } },
};

static const struct function vendor[] = {
	{ "VENDOR_HYP_CALL_UID", VENDOR_HYP_UID, 0, { 0 } },
	{ "VENDOR_HYP_FEATURES", VENDOR_HYP_FEATURES, 0, { 0 } },
};

static const struct function async_pf[] = {
	{ "ASYNC_PF_VERSION", ASYNC_PF_CALL, 1, { 0 } },
	{ "ASYNC_PF_SLOTS", ASYNC_PF_CALL, 1, { 1 } },
};
static const u32 kvm_uid[4] = { 0xb66fb428, 0xe911c52e, 0x564bcaa9, 0x743a004d };

static const struct function always[] = {
	{ "SMCCC_VERSION", SMCCC_VERSION, 0, { 0 } },
	{ "SMCCC_ARCH_FEATURES", SMCCC_ARCH_FEATURES, 1, { SMCCC_VERSION } },
	{ "PSCI_VERSION", PSCI_VERSION, 0, { 0 } },
};

static const struct function unknown[] = {
	{ "std(sdei-range)", 0xc400003f, 0, { 0 } },
	{ "std", 0x8400ff00, 0, { 0 } },
	{ "std-hyp", 0x85000077, 0, { 0 } },
	{ "vendor-hyp", 0x8600ff77, 0, { 0 } },
};

/* Event 0 is registered for a moment, but nobody signals it. */
u64 sdei_handler(struct sdei_frame *f)
{
	(void)f;
	return 0;
}

enum { HVC, SMC, NR_CONDUITS };
static const char *const conduits[NR_CONDUITS] = { "HVC", "SMC" };
static bool use[NR_CONDUITS] = { true, true };
static u32 failures;

static void make(const struct function *f, u32 conduit, struct smccc_regs *r)
{
	r->x[0] = f->id;
	for (u32 i = 1; i < 8; i++)
		r->x[i] = i <= f->nr_args ? f->args[i - 1] : i <= 3 ? JUNK : 0;
	smccc(conduit == SMC, r);
}

/* A 32-bit call has a 32-bit result, whatever the upper half of the register says. */
static s64 result_of(const struct function *f, const struct smccc_regs *r)
{
	return f->id & SMC64 ? (s64)r->x[0] : (s64)(int)(u32)r->x[0];
}

/* Error codes and small numbers in decimal, versions and the like in hexadecimal. */
static void show_result(const struct function *f, s64 ret)
{
	if (ret >= -16 && ret <= 0xffff)
		print("%ld", ret);
	else if (f->id & SMC64)
		print("0x%lx", (u64)ret);
	else
		print("0x%x", (u32)ret);
}

static const char *not_supported(const struct function *f, const struct smccc_regs *r)
{
	if (result_of(f, r) != SMCCC_NOT_SUPPORTED)
		return "not -1";
	if (r->x[1] | r->x[2] | r->x[3])
		return "x1..x3 not zero";
	return NULL;
}

static const char *supported(const struct function *f, const struct smccc_regs *r)
{
	s64 ret = result_of(f, r);

	switch (f->id) {
	case SMCCC_VERSION:
		return ret >= 0x10001 ? NULL : "older than 1.1";
	case SMCCC_ARCH_FEATURES:
		/* may say so of the function that it was asked about */
		return ret >= SMCCC_NOT_SUPPORTED ? NULL : "neither a feature nor -1";
	case PSCI_VERSION:
		return ret >= 2 ? NULL : "older than 0.2";
	case VENDOR_HYP_UID:
		for (u32 i = 0; i < 4; i++)
			if ((u32)r->x[i] != kvm_uid[i])
				return "not the UID of KVM";
		return NULL;
	default:
		if (ret == SMCCC_NOT_SUPPORTED)
			return "-1";
		if (f->id & SMC64 && (u64)ret == 0xffffffff)
			return "-1 in 32 bits from a 64-bit call";
		return NULL;
	}
}

/*
 * All functions of a service over one conduit, then over the other: SDEI keeps state between calls, and both
 * passes have to start from the same one to have the same results.
 */
#define MAX_FUNCTIONS	16

static void service(const char *name, const struct function *f, u32 n, bool on)
{
	static struct smccc_regs r[NR_CONDUITS][MAX_FUNCTIONS];

	for (u32 c = 0; c < NR_CONDUITS; c++)
		for (u32 i = 0; use[c] && i < n; i++)
			make(&f[i], c, &r[c][i]);

	for (u32 i = 0; i < n; i++) {
		const char *wrong = NULL;
		u32 shown = use[HVC] ? HVC : SMC, where = shown;

		for (u32 c = 0; c < NR_CONDUITS && !wrong; c++) {
			if (!use[c])
				continue;
			where = c;
			wrong = on ? supported(&f[i], &r[c][i]) : not_supported(&f[i], &r[c][i]);
			if (!wrong && result_of(&f[i], &r[c][i]) != result_of(&f[i], &r[shown][i]))
				wrong = "the other conduit's result differs";
		}
		print("    %s  %s  0x%08x  ", name, f[i].name, f[i].id);
		show_result(&f[i], result_of(&f[i], &r[where][i]));
		print("  %s  ", on ? "enabled" : "disabled");
		if (wrong) {
			print("FAILED (%s: %s)\n", conduits[where], wrong);
			failures++;
		} else {
			print("OK\n");
		}
	}
}

#define SERVICE(name, functions, on) service(name, functions, sizeof(functions) / sizeof(functions[0]), on)
_Static_assert(sizeof(sdei) / sizeof(sdei[0]) <= MAX_FUNCTIONS, "the longest service");

static void parse_expect(bool *on)
{
	const char *s;
	size_t len;

	if (!arg_str("expect", &s, &len) || str_is(s, len, "none"))
		return;
	while (len) {
		size_t n = 0;
		u32 i;

		while (n < len && s[n] != ',')
			n++;
		for (i = 0; i < NR_SERVICES && !str_is(s, n, services[i]); i++)
			;
		if (i == NR_SERVICES)
			result_failed("bootargs: expect has an unknown service");
		on[i] = true;
		n += n < len;		/* the comma */
		s += n;
		len -= n;
	}
}

void guest_main(struct cpu *cpu)
{
	bool on[NR_SERVICES] = { false };
	const char *s;
	size_t len;

	(void)cpu;
	parse_expect(on);
	if (arg_str("conduits", &s, &len) && !str_is(s, len, "both")) {
		if (!str_is(s, len, "hvc") && !str_is(s, len, "smc"))
			result_failed("bootargs: conduits is neither both, hvc nor smc");
		use[SMC] = str_is(s, len, "smc");
		use[HVC] = !use[SMC];
	}
	print("\n    hypercalls: %s%s%s\n\n", use[HVC] ? "hvc" : "", use[HVC] && use[SMC] ? "," : "",
	      use[SMC] ? "smc" : "");
	SERVICE("std-trng", trng, on[STD_TRNG]);
	SERVICE("std-sdei", sdei, on[STD_SDEI]);
	SERVICE("vendor-hyp", vendor, on[VENDOR_HYP]);
	SERVICE("async-pf", async_pf, on[ASYNC_PF]);
	SERVICE("always", always, true);
	SERVICE("unknown", unknown, false);
	print("\n");
	if (failures)
		result_failed("%u functions", failures);
	result_ok();
}
