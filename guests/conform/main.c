// SPDX-License-Identifier: Apache-2.0
/*
 * The conformance suite: one test for each rule of DEN0054C, reported in TAP 14 over the UART.
 * It needs a PL011, PSCI and an SDEI conduit in the device tree, and nothing else of the machine it runs on.
 *
 * bootargs: only=ID,...     these tests; a group's name or a prefix that ends in "." stands for all of them
 *           without=ID,...  not these: a firmware may not survive one
 *           from=ID         begin with this test
 *           list=1          tell which tests there are
 *           events=N,...    what events there are besides 0
 *           ppis=N,... spis=N,...    interrupts that no device uses
 *           host=1          a host answers the "# host:" lines, through the UART
 *           gic=no          do not touch the GIC
 *           raise=ID        a firmware call which raises the event in x1 on the calling PE
 */
#include "conform.h"

void pe_base(struct cpu *cpu);

static struct {
	const struct test *test;
	bool skipped;
	char reason[120];
} now;

/* -- what happened to the test that runs */

void skip(const char *fmt, ...)
{
	struct out o = { .buf = now.reason, .cap = sizeof(now.reason) - 1 };
	va_list ap;

	if (now.skipped)
		return;
	va_start(ap, fmt);
	out_vprintf(&o, fmt, ap);
	va_end(ap);
	now.reason[o.len] = '\0';
	now.skipped = true;
}

u32 checks;

void leaves(const char *file, u64 line)
{
	if (!failed() && !now.skipped)
		fail_at(file, line, "the test was left without a verdict");
}

void note(const char *fmt, ...)
{
	struct out uart = { 0 };
	va_list ap;

	print("# note: ");
	va_start(ap, fmt);
	out_vprintf(&uart, fmt, ap);
	va_end(ap);
	print("\n");
}

void bail_out(const char *fmt, ...)
{
	struct out uart = { 0 };
	va_list ap;

	print("\nBail out! ");
	va_start(ap, fmt);
	out_vprintf(&uart, fmt, ap);
	va_end(ap);
	print("\n");
	psci_system_off();
}

__attribute__((noreturn)) void unexpected_exception(u64 vector, u64 esr, u64 elr, u64 far, u64 spsr)
{
	struct cpu *cpu = this_cpu();

	bail_out("PE %lu: unexpected exception, vector 0x%03lx ESR 0x%lx ELR 0x%lx FAR 0x%lx SPSR 0x%lx",
		 cpu ? cpu->index : 0, vector * 0x80, esr, elr, far, spsr);
}

/* -- the catalogue */

#define MAX_GROUPS 12
static struct group groups[MAX_GROUPS];
static u32 nr_groups;

/* Whether the list under this key names the test. */
static bool named(const char *key, const char *id)
{
	const char *s;
	size_t len, id_len = strlen(id);

	if (!arg_str(key, &s, &len))
		return false;
	while (len) {
		size_t n = 0;

		while (n < len && s[n] != ',')
			n++;
		if (n && n <= id_len && !memcmp(s, id, n) && (n == id_len || s[n - 1] == '.' || id[n] == '.'))
			return true;
		s += n < len ? n + 1 : n;
		len -= n < len ? n + 1 : n;
	}
	return false;
}

static bool chosen(const char *id)
{
	const char *s;
	size_t len;

	return (!arg_str("only", &s, &len) || named("only", id)) && !named("without", id);
}

/* Calls fn for each test of this run, in order; how many there are. */
static u32 each(void (*fn)(u32 number, const struct test *t))
{
	const char *from;
	size_t from_len;
	bool begun = !arg_str("from", &from, &from_len);
	u32 number = 0;

	for (u32 g = 0; g < nr_groups; g++) {
		for (u32 i = 0; i < groups[g].count; i++) {
			const struct test *t = &groups[g].tests[i];

			begun |= !begun && str_is(from, from_len, t->id);
			if (!begun || !chosen(t->id))
				continue;
			number++;
			if (fn)
				fn(number, t);
		}
	}
	return number;
}

static void announce(u32 number, const struct test *t)
{
	(void)number;
	print("# test %s | %s | %s\n", t->id, t->rule, t->title);
}

/* -- one test */

static s64 do_reset(struct pe *p, const u64 *a)
{
	(void)p;
	(void)a;
	(void)sdei0(SDEI_PE_MASK);	/* whatever runs there: nothing more shall */
	return p->depth ? 0 : sdei0(SDEI_PRIVATE_RESET);
}

static s64 do_unmask(struct pe *p, const u64 *a)
{
	(void)p;
	(void)a;
	return sdei0(SDEI_PE_UNMASK);
}

static void reset_private(struct pe *p)
{
	if (!p->cpu->online)
		(void)turn_on(p);
	if (!failed() && run_on(p, do_reset, 0, 0))
		FAIL("PRIVATE_RESET is refused");
	if (!p->depth)
		return;
	while (!failed() && p->depth)
		(void)leave_at(__FILE__, __LINE__, p, SDEI_EVENT_COMPLETE, 0);
	(void)OK(0, p, SDEI_PRIVATE_RESET);
}

/*
 * Every PE on, in no handler, unmasked, with nothing registered and nothing bound.  PEs that a test has left alone are so
 * already; where CPUs share the host's, asking them would take most of the time.
 */
static void clean_up(bool all)
{
	for (u32 i = 0; i < nr_pes; i++)
		if (all || !i || pes[i].used || pes[i].depth || !pes[i].cpu->online)
			reset_private(&pes[i]);
	(void)OK(0, &pes[0], SDEI_SHARED_RESET);
	for (u32 i = 0; i < nr_pes && !failed(); i++) {
		if ((all || !i || pes[i].used) && run_on(&pes[i], do_unmask, 0, 0))
			FAIL("PE_UNMASK is refused");
		pes[i].used = false;
	}
	for (u32 i = 0; i < nr_pes; i++)
		if (pes[i].at)
			bail_out("cannot go on, cleaning up after %s: PE %u: %s", now.test ? now.test->id : "boot", i,
				 pes[i].message);
}

static void verdict(u32 number, const struct test *t)
{
	for (u32 i = 0; i < nr_pes; i++) {
		if (!pes[i].at)
			continue;
		print("not ok %u - %s\n  ---\n  message: \"%s\"\n  at: \"%s:%lu\"\n  ...\n", number, t->id,
		      pes[i].message, pes[i].at, pes[i].line);
		for (u32 k = 0; k < nr_pes; k++)
			if (pes[k].lost)
				bail_out("PE %u does not answer", k);
		for (u32 k = 0; k < nr_pes; k++)
			pes[k].at = NULL;
		return;
	}
	if (now.skipped)
		print("ok %u - %s # SKIP %s\n", number, t->id, now.reason);
	else
		print("ok %u - %s\n", number, t->id);
}

static void run(u32 number, const struct test *t)
{
	bool failing;

	now.test = t;
	now.skipped = false;
	checks = 0;
	print("# run %s\n", t->id);
	t->run(t);
	if (!checks)
		leaves(__FILE__, __LINE__);
	/* One that leaves the firmware in a state from which nothing leads back has not passed: it gets no verdict then. */
	failing = failed();
	if (!failing)
		clean_up(false);
	verdict(number, t);
	if (failing)
		clean_up(false);
}

/* -- */

static void make_catalogue(void)
{
	const struct group all[MAX_GROUPS] = {
		calls_group, state_group(), entry_group, context_group, signal_group, mask_group, priority_group,
		shared_group, bind_group, reset_group, power_group, host_group,
	};

	for (u32 i = 0; i < sizeof(all) / sizeof(all[0]); i++)
		groups[nr_groups++] = all[i];
}

void guest_main(struct cpu *cpu)
{
	static const char *const conduits[] = { "hvc", "smc" };

	(void)cpu;
	print("\nTAP version 14\n# sdeivirt conformance suite 1\n");
	if (!machine.has_sdei) {
		print("1..0 # SKIP no /firmware/sdei in the device tree\n# done\n");
		psci_system_off();
	}
	nr_pes = machine.nr_cpus < MAX_PES ? machine.nr_cpus : MAX_PES;
	for (u32 i = 0; i < nr_pes; i++) {
		pes[i].cpu = &cpus[i];
		pes[i].index = i;
		pes[i].mpidr = cpus[i].mpidr;
		cpus[i].guest = &pes[i];
	}
	machine.nr_cpus = nr_pes;
	__asm__ volatile("msr vbar_el1, %0\n\tisb" :: "r"((u64)conform_vectors));
	if (sdei0(SDEI_VERSION) < 0) {
		print("1..0 # SKIP no SDEI: VERSION returned %ld\n# done\n", sdei0(SDEI_VERSION));
		psci_system_off();
	}
	platform_init();
	print("# platform: %u PEs, conduit %s, SDEI %lu.%lu, vendor 0x%x\n", nr_pes, conduits[machine.sdei_smc],
	      platform.version >> 48 & 0x7fff, platform.version >> 32 & 0xffff, (u32)platform.version);
	make_catalogue();
	print("1..%u\n", each(NULL));
	(void)each(announce);
	if (!arg_is("list", "1")) {
		cpus_start(pe_base);
		clean_up(true);
		(void)each(run);
	}
	print("# done\n");
	psci_system_off();
}
