// SPDX-License-Identifier: Apache-2.0
/*
 * Registers and enables events on all CPUs, and reports every event that comes in.  Never ends by itself.
 *
 * bootargs: events=0,0x1234,... (default 0)   idle=wfi|spin (default wfi)   quiet=1 (count only)
 *
 * Counts, for whoever looks from outside: listen_counts[CPU][place in events=], listen_spins[CPU].
 */
#include "sdei.h"

#define MAX_EVENTS	16
#define ARGUMENT	0xdabfdabful

/* One for each event, because an event never interrupts its own handler but a critical one does a normal one. */
u64 listen_counts[MAX_CPUS][MAX_EVENTS];
volatile u64 listen_spins[MAX_CPUS];

static u32 events[MAX_EVENTS];
static u32 nr_events;
static bool quiet, spin;

/*
 * Output.  An event can strike anywhere, also where its own CPU is about to print, so a handler must never wait for
 * what it has interrupted:
 *
 *  - Text is made in a buffer of its own for each level: 0 is whatever prints first on a CPU, 1 what interrupts that,
 *    2 what interrupts 1 (main code, normal event, critical event: there can be no more).
 *  - Only level 0 goes for the UART.  A higher level marks its buffer as full and returns; level 0 empties it before
 *    it leaves.  If it is still full from the time before, the new report is counted as dropped.
 *  - Between CPUs, level 0 queues for a lock.  Whoever holds or wants that lock is level 0 of another CPU, and makes
 *    progress whatever interrupts it, because of the above: no cycle, no deadlock.  A CPU that its host has stopped
 *    for good is waited for a bounded time; mixed-up text is better than a lost CPU.
 */
#define LEVELS		3
#define TEXT_SIZE	1536

struct printer {
	volatile u64 level;		/* how many levels are in use on this CPU */
	volatile u64 full[LEVELS];	/* length of the text that waits at that level */
	volatile u64 dropped;
	volatile u64 choosing, ticket;	/* the lock */
	char text[LEVELS][TEXT_SIZE];
};
static struct printer printers[MAX_CPUS];

/* Lamport's bakery: needs loads and stores only, where exclusives may not work because the MMU is off. */
static void lock(u64 me)
{
	struct printer *p = &printers[me];
	u64 ticket = 0, spins = 0;

	p->choosing = 1;
	mb();
	for (u64 i = 0; i < machine.nr_cpus; i++)
		if (printers[i].ticket > ticket)
			ticket = printers[i].ticket;
	p->ticket = ++ticket;
	mb();
	p->choosing = 0;
	mb();
	for (u64 i = 0; i < machine.nr_cpus; i++) {
		volatile u64 *other = &printers[i].ticket;

		while (printers[i].choosing && spins++ < SPIN_LIMIT)
			relax();
		mb();
		for (;;) {
			u64 t = *other;

			if (!t || t > ticket || (t == ticket && i >= me) || spins++ >= SPIN_LIMIT)
				break;
			relax();
		}
	}
	mb();
}

static void unlock(u64 me)
{
	mb();
	printers[me].ticket = 0;
	mb();
}

/* The buffer for one report, or false if it has to be dropped.  Every open is followed by a close. */
static bool report_open(struct printer *p, struct out *o, u64 *level)
{
	*level = p->level;
	if (*level < LEVELS) {
		/* Whatever interrupts us before this store uses the same level, and leaves it as it was... */
		p->level = *level + 1;
		/* ...but perhaps full, which is why that is looked at only now. */
		if (!p->full[*level]) {
			*o = (struct out){ .buf = p->text[*level], .cap = TEXT_SIZE };
			compiler_barrier();
			return true;
		}
		p->level = *level;
	}
	p->dropped++;
	return false;
}

static void report_close(struct printer *p, struct out *o, u64 level)
{
	u64 me = (u64)(p - printers);

	compiler_barrier();	/* the text first */
	p->full[level] = o->len;
	if (level) {
		p->level = level;
		return;
	}
	do {
		p->level = 1;
		lock(me);
		for (u32 i = 0; i < LEVELS; i++) {
			u64 len = p->full[i];

			compiler_barrier();
			if (len)
				uart_write(p->text[i], len);
			p->full[i] = 0;
		}
		unlock(me);
		p->level = 0;
		/* What has interrupted us after its turn in the loop, and before level 0 was free, is still there. */
	} while (p->full[1] || p->full[2]);
}

static void report(struct cpu *cpu, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
static void report(struct cpu *cpu, const char *fmt, ...)
{
	struct printer *p = &printers[cpu->index];
	struct out o;
	va_list ap;
	u64 level;

	if (!report_open(p, &o, &level))
		return;
	va_start(ap, fmt);
	out_vprintf(&o, fmt, ap);
	va_end(ap);
	report_close(p, &o, level);
}

/* Registers, four to a line, each followed by a space as in the log of the KVM series. */
static void registers(struct out *o, const char *name, const u64 *x, u32 n)
{
	for (u32 i = 0; i < n; i++) {
		if (i % 4 == 0)
			out_printf(o, "%-9s", i ? "" : name);
		out_printf(o, "%016lx ", x[i]);
		if (i % 4 == 3 || i == n - 1)
			out_printf(o, "\n");
	}
}

u64 sdei_handler(struct sdei_frame *f)
{
	struct cpu *cpu = this_cpu();
	struct printer *p = &printers[cpu->index];
	u64 context[18], dropped, level;
	struct out o;

	for (u32 i = 0; i < nr_events; i++)
		if (events[i] == f->x[0])
			listen_counts[cpu->index][i]++;
	if (quiet || !report_open(p, &o, &level))
		return 0;
	for (u64 i = 0; i < 18; i++)
		context[i] = (u64)sdei1(SDEI_EVENT_CONTEXT, i);
	dropped = p->dropped;
	if (dropped) {
		p->dropped = 0;
		out_printf(&o, "CPU#%lu: %lu earlier events not shown\n", cpu->index, dropped);
	}
	out_printf(&o, "=========== SDEI Event (CPU#%lu) ===========\n", cpu->index);
	out_printf(&o, "Event: %016lx  Parameter: %016lx\n", f->x[0], f->x[1]);
	out_printf(&o, "PC:    %016lx  PSTATE: %016lx  SP: %016lx\n", f->x[2], f->x[3], f->sp);
	registers(&o, "Regs:", f->x, 31);
	registers(&o, "Context:", context, 18);
	report_close(p, &o, level);
	return 0;
}

/* One call for one event; false, and a line, if it fails. */
static bool try(struct cpu *cpu, u32 id, u32 event, s64 ret)
{
	if (ret >= 0)
		return true;
	report(cpu, "CPU#%lu: %s of event 0x%x: %s\n", cpu->index, sdei_call_name(id), event, sdei_error_name(ret));
	return false;
}

static void listen(struct cpu *cpu)
{
	char list[MAX_EVENTS * 12];
	struct out o = { .buf = list, .cap = sizeof(list) - 1 };
	s64 ret;

	for (u32 i = 0; i < nr_events; i++) {
		u32 ev = events[i];
		s64 type = sdei2(SDEI_EVENT_GET_INFO, ev, SDEI_INFO_TYPE);

		if (!try(cpu, SDEI_EVENT_GET_INFO, ev, type))
			continue;
		if (type == 1 && cpu->index)
			continue;	/* a shared event: once for the whole machine */
		ret = sdei_call(SDEI_EVENT_REGISTER, ev, (u64)sdei_entry, ARGUMENT, SDEI_RM_ANY, 0);
		if (!try(cpu, SDEI_EVENT_REGISTER, ev, ret))
			continue;
		if (!try(cpu, SDEI_EVENT_ENABLE, ev, sdei1(SDEI_EVENT_ENABLE, ev)))
			continue;
		out_printf(&o, " 0x%x", ev);
	}
	list[o.len] = '\0';
	ret = sdei0(SDEI_PE_UNMASK);
	if (ret < 0)
		report(cpu, "CPU#%lu: PE_UNMASK: %s\n", cpu->index, sdei_error_name(ret));
	report(cpu, "listening: CPU#%lu events%s\n", cpu->index, o.len ? list : " none");

	/* DAIF is masked all the time, so that nothing but an SDEI event gets through. */
	for (;;) {
		if (spin)
			listen_spins[cpu->index]++;
		else
			__asm__ volatile("wfi" ::: "memory");
	}
}

static void parse_events(void)
{
	const char *s = "0";
	size_t len = 1;

	(void)arg_str("events", &s, &len);
	while (len) {
		size_t n = 0;
		u64 v;

		while (n < len && s[n] != ',')
			n++;
		if (!parse_u64(s, n, &v) || v > 0xffffffff)
			result_failed("bootargs: events is not a list of 32-bit numbers");
		if (nr_events == MAX_EVENTS)
			result_failed("bootargs: more than %u events", (u32)MAX_EVENTS);
		events[nr_events++] = (u32)v;
		n += n < len;		/* the comma */
		s += n;
		len -= n;
	}
}

void guest_main(struct cpu *cpu)
{
	const char *idle;
	size_t len;

	parse_events();
	quiet = arg_u64("quiet", 0);
	spin = arg_is("idle", "spin");
	if (!spin && arg_str("idle", &idle, &len) && !str_is(idle, len, "wfi"))
		result_failed("bootargs: idle is neither wfi nor spin");
	if (!machine.has_sdei)
		result_failed("no /firmware/sdei in the device tree");
	cpus_start(listen);
	listen(cpu);
	__builtin_unreachable();
}
