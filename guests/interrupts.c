// SPDX-License-Identifier: Apache-2.0
/*
 * Interrupts of the machine that become SDEI events: level and edge, private and shared, routed, and given back.
 * Needs a GICv3, the virtual timer and a PL031, which QEMU's "virt" has and not every machine.
 *
 * bootargs: case=ppi|edge|any|rtc|release|mask|watchdog (default: all, in this order)
 *           tick=EVENT (watchdog: an event that the host has tied to the timer, in place of one that is bound)
 */
#include "fdt.h"
#include "sdei.h"
#include "smccc.h"

#define SDEI_RM_PE			1
#define SDEI_PRIORITY_CRITICAL		1

#define PSCI_CPU_OFF			0x84000002u
#define PSCI_AFFINITY_INFO		0xc4000004u
#define PSCI_OFF			1

#define TIMER		27		/* the virtual timer's PPI */
#define RTC		34		/* the PL031's SPI */
#define UNUSED		132		/* an SPI with no device behind it */

/* GICv3, Arm IHI 0069. */
#define GICD_CTLR			0x0000
#define GICD_CTLR_GROUP1		2u
#define GICD_IGROUPR			0x0080
#define GICD_ISENABLER			0x0100
#define GICD_ICENABLER			0x0180
#define GICD_ISPENDR			0x0200
#define GICD_ICPENDR			0x0280
#define GICD_IPRIORITYR			0x0400
#define GICD_ICFGR			0x0c00
#define GICD_IROUTER			0x6000
#define GICR_STRIDE			0x20000
#define GICR_SGI_BASE			0x10000
#define ICC_PMR_EL1			"S3_0_C4_C6_0"
#define ICC_IAR1_EL1			"S3_0_C12_C12_0"
#define ICC_EOIR1_EL1			"S3_0_C12_C12_1"
#define ICC_IGRPEN1_EL1			"S3_0_C12_C12_7"
#define INTID_SPECIAL			1020

#define RTCDR				0x00
#define RTCMR				0x04
#define RTCIMSC				0x10
#define RTCRIS				0x14
#define RTCICR				0x1c

#define CNTV_ENABLE			1
#define CNTV_ISTATUS			4
#define PSTATE_DAIF			0x3c0ul

#define LEVEL_ROUNDS			5
#define EDGE_ROUNDS			8
#define BUSY_ROUNDS			40
#define RELEASE_ROUNDS			8
#define TICKS				20
#define LIMIT_SECONDS			20	/* what takes longer has failed */

void secondary_entry(void);		/* of lib/start.S, for a CPU that comes back */

static u64 gicd, gicr, rtc;

#define read_sysreg(name) ({ u64 _v; __asm__ volatile("mrs %0, " name : "=r"(_v) :: "memory"); _v; })
#define write_sysreg(name, v) __asm__ volatile("msr " name ", %0\n\tisb" :: "r"((u64)(v)) : "memory")

static u32 rd(u64 address) { return *(volatile u32 *)address; }
static void wr(u64 address, u32 val) { *(volatile u32 *)address = val; }
static u8 rd8(u64 address) { return *(volatile u8 *)address; }

/* Unlike the other guests this one is about time, so it reads the clock. */
static u64 now(void)
{
	return read_sysreg("cntvct_el0");
}

static u64 freq(void)
{
	return read_sysreg("cntfrq_el0");
}

/* A wait that ends the run when it takes too long. */
#define WAIT(condition, ...) do {							\
	u64 _end = now() + LIMIT_SECONDS * freq();					\
	while (!(condition)) {								\
		if (now() > _end)							\
			result_failed(__VA_ARGS__);					\
		relax();								\
	}										\
} while (0)

/* -- the interrupt controller, as its owner sees it */

/* Where the registers of an interrupt are; private ones are those of this CPU. */
static u64 bank(u32 intid)
{
	return intid < 32 ? gicr + this_cpu()->index * GICR_STRIDE + GICR_SGI_BASE : gicd;
}

static void gic_set(u32 intid, u32 reg)
{
	wr(bank(intid) + reg + intid / 32 * 4, 1u << intid % 32);
}

static bool gic_is(u32 intid, u32 reg)
{
	return rd(bank(intid) + reg + intid / 32 * 4) >> intid % 32 & 1;
}

static bool on(u32 intid) { return gic_is(intid, GICD_ISENABLER); }

static void make_edge(u32 intid)
{
	u64 address = gicd + GICD_ICFGR + intid / 16 * 4;

	wr(address, rd(address) | 2u << intid % 16 * 2);
}

/* -- what raises interrupts */

static void timer_up(void)
{
	write_sysreg("cntv_tval_el0", 0);
	write_sysreg("cntv_ctl_el0", CNTV_ENABLE);
}

static void timer_down(void)
{
	write_sysreg("cntv_ctl_el0", 0);
}

static bool timer_is_up(void)
{
	return read_sysreg("cntv_ctl_el0") & CNTV_ISTATUS;
}

static volatile u64 rtc_downs;

/*
 * The alarm is for a second that must not pass before it is set, hence the loop.  The event may come before we look, and
 * its handler take the alarm back.
 */
static void rtc_up(void)
{
	u64 before = rtc_downs;

	wr(rtc + RTCIMSC, 1);
	WAIT((wr(rtc + RTCMR, rd(rtc + RTCDR)), rd(rtc + RTCRIS)) || rtc_downs != before, "the PL031 raises no alarm");
}

static void rtc_down(void)
{
	wr(rtc + RTCICR, 1);
	rtc_downs++;
}

static bool rtc_is_up(void)
{
	return rd(rtc + RTCRIS) & 1;
}

static void raise(void)
{
	gic_set(UNUSED, GICD_ISPENDR);
}

/* -- events */

struct source {
	const char *name;
	u32 intid, event;
	volatile u64 count;		/* how often the handler has run */
	volatile u64 running;
	volatile u64 last;		/* the CPU it ran on */
	volatile u64 goal;		/* at this count... */
	void (*silence)(void);		/* ...the handler does this */
	void (*inside)(struct source *s);
	volatile bool moving;		/* PEs come and go, so the GIC may be a step behind */
};

u64 sdei_handler(struct sdei_frame *f)
{
	struct source *s = (struct source *)f->x[1];
	u64 me = this_cpu()->index;

	if (f->x[0] != s->event)
		result_failed("%s: event 0x%lx instead of 0x%x", s->name, f->x[0], s->event);
	if (s->running)
		result_failed("%s: its handler interrupts itself", s->name);
	s->running = 1;
	mb();
	if (read_sysreg("daif") != PSTATE_DAIF)
		result_failed("%s: DAIF is 0x%lx in the handler", s->name, read_sysreg("daif"));
	if (!s->moving)
		WAIT(!on(s->intid), "%s: enabled while its handler runs", s->name);
	s->last = me;
	if (s->inside)
		s->inside(s);
	if (s->silence && s->count + 1 == s->goal)
		s->silence();
	s->running = 0;
	mb();
	s->count++;
	mb();
	return 0;
}

static s64 must(const char *name, s64 want, u32 id, s64 got)
{
	if (want < 0 ? got < 0 : got != want)
		result_failed("%s: CPU#%lu: %s: %s (%ld)", name, this_cpu()->index, sdei_call_name(id),
			      sdei_error_name(got), got);
	return got;
}
#define SDEI(s, want, id, ...) must((s)->name, want, id, sdei_call(id, __VA_ARGS__))

static void pe_mask(struct source *s) { SDEI(s, 1, SDEI_PE_MASK, 0, 0, 0, 0, 0); }
static void pe_unmask(struct source *s) { SDEI(s, 0, SDEI_PE_UNMASK, 0, 0, 0, 0, 0); }
static void enable(struct source *s) { SDEI(s, 0, SDEI_EVENT_ENABLE, s->event, 0, 0, 0, 0); }
static void disable(struct source *s) { SDEI(s, 0, SDEI_EVENT_DISABLE, s->event, 0, 0, 0, 0); }

static void bind(struct source *s, const char *name, u32 intid)
{
	*s = (struct source){ .name = name, .intid = intid };
	s->event = (u32)SDEI(s, -1, SDEI_INTERRUPT_BIND, intid, 0, 0, 0, 0);
}

static void enlist(struct source *s, u64 mode, u64 mpidr)
{
	SDEI(s, 0, SDEI_EVENT_REGISTER, s->event, (u64)sdei_entry, (u64)s, mode, mpidr);
}

/* A handler that has counted on another CPU has yet to complete. */
static void wait_idle(struct source *s)
{
	WAIT(!(sdei1(SDEI_EVENT_STATUS, s->event) & SDEI_STATUS_RUNNING), "%s: its handler does not end", s->name);
}

static void leave(struct source *s)
{
	wait_idle(s);
	SDEI(s, 0, SDEI_EVENT_UNREGISTER, s->event, 0, 0, 0, 0);
}

static void release(struct source *s)
{
	SDEI(s, 0, SDEI_INTERRUPT_RELEASE, s->event, 0, 0, 0, 0);
}

/* Time for what should not happen to happen. */
static void settle(void)
{
	u64 end = now() + freq() / 1000;

	while (now() < end)
		relax();
	for (u32 i = 0; i < 2; i++)
		(void)sdei0(SDEI_VERSION);
}

static void exactly(struct source *s, u64 n, const char *when)
{
	WAIT(s->count >= n, "%s: %s: %lu events instead of %lu", s->name, when, s->count, n);
	settle();
	if (s->count != n)
		result_failed("%s: %s: %lu events instead of %lu", s->name, when, s->count, n);
}

/* The interrupt controller follows a call a moment later. */
static void wait_off(struct source *s)
{
	WAIT(!on(s->intid), "%s: not disabled", s->name);
}

static void wait_on(struct source *s)
{
	WAIT(on(s->intid), "%s: not enabled", s->name);
}

/* -- work for the other CPUs */

struct worker {
	void (*volatile work)(struct cpu *);
	volatile u64 posted, done;
};
static struct worker workers[MAX_CPUS];

static void work(struct cpu *cpu)
{
	struct worker *w = &workers[cpu->index];

	for (;;) {
		while (w->done == w->posted)
			relax();
		mb();
		w->work(cpu);
		mb();
		w->done = w->posted;
	}
}

static void post(u64 i, void (*fn)(struct cpu *))
{
	workers[i].work = fn;
	mb();
	workers[i].posted++;
	mb();
}

static void finish(u64 i)
{
	WAIT(workers[i].done == workers[i].posted, "CPU#%lu does not get ready", i);
	mb();
}

/* One CPU does something, and has done it. */
static void at(u64 i, void (*fn)(struct cpu *))
{
	if (!i) {
		fn(&cpus[0]);
		return;
	}
	post(i, fn);
	finish(i);
}

/* All CPUs do something at the same time. */
static void everywhere(void (*fn)(struct cpu *))
{
	for (u64 i = 1; i < machine.nr_cpus; i++)
		post(i, fn);
	fn(&cpus[0]);
	for (u64 i = 1; i < machine.nr_cpus; i++)
		finish(i);
}

static void mask(struct cpu *cpu)
{
	(void)cpu;
	(void)sdei0(SDEI_PE_MASK);
}

static void unmask(struct cpu *cpu)
{
	(void)cpu;
	(void)sdei0(SDEI_PE_UNMASK);
}

/* -- levels */

/* The line stays up until the handler has seen to it, which it does only when it has run LEVEL_ROUNDS times. */
static void level(struct source *s, void (*up)(void), void (*down)(void), bool (*is_up)(void))
{
	u64 n = 0;

	s->silence = down;
	enable(s);
	up();
	exactly(s, n, "PE masked");
	if (!is_up() || !gic_is(s->intid, GICD_ISPENDR))
		result_failed("%s: the level is not up", s->name);
	s->goal = n += LEVEL_ROUNDS;
	pe_unmask(s);
	exactly(s, n, "PE unmasked");
	if (is_up())
		result_failed("%s: the level is still up", s->name);

	disable(s);
	wait_off(s);
	up();
	exactly(s, n, "event disabled");
	s->goal = n += LEVEL_ROUNDS;
	enable(s);
	exactly(s, n, "event enabled");

	pe_mask(s);
	wait_off(s);
	up();
	exactly(s, n, "PE masked again");
	s->goal = n += LEVEL_ROUNDS;
	pe_unmask(s);
	exactly(s, n, "PE unmasked again");

	/* A level that goes away before anybody could take it never was. */
	pe_mask(s);
	wait_off(s);
	up();
	settle();
	down();
	pe_unmask(s);
	wait_on(s);
	exactly(s, n, "the level was up while the PE was masked");
	/* Nor does it matter whether the controller has followed already. */
	for (u32 i = 0; i < LEVEL_ROUNDS; i++) {
		pe_mask(s);
		up();
		down();
		pe_unmask(s);
		disable(s);
		up();
		down();
		enable(s);
	}
	exactly(s, n, "the level was up for a moment while nobody could take it");

	/* With nothing in the way it fires by itself. */
	s->goal = ++n;
	up();
	exactly(s, n, "PE unmasked and event enabled");
	pe_mask(s);
	leave(s);
}

static struct source private[MAX_CPUS];

static void ppi_here(struct cpu *cpu)
{
	struct source *s = &private[cpu->index];

	bind(s, "ppi", TIMER);
	enlist(s, SDEI_RM_ANY, 0);
	level(s, timer_up, timer_down, timer_is_up);
}

static void case_ppi(void)
{
	everywhere(ppi_here);
	release(&private[0]);
}

static struct source shared;
static volatile bool stop;

static void come_and_go(struct cpu *cpu)
{
	while (!stop) {
		unmask(cpu);
		mask(cpu);
	}
}

/* Raised again and again while all other PEs unmask and mask themselves: each time there is one event. */
static void busy(struct source *s, u64 n, void (*up)(void))
{
	s->moving = true;
	stop = false;
	for (u64 i = 1; i < machine.nr_cpus; i++)
		post(i, come_and_go);
	for (u64 i = 0; i < BUSY_ROUNDS; i++) {
		s->goal = n + 1;
		up();
		WAIT(s->count > n, "%s: lost among PEs that come and go, after %lu", s->name, i);
		if (++n != s->count)
			result_failed("%s: PEs that come and go: %lu events instead of %lu", s->name, s->count, n);
	}
	stop = true;
	for (u64 i = 1; i < machine.nr_cpus; i++)
		finish(i);
	exactly(s, n, "PEs that come and go");
	s->moving = false;
}

static void case_rtc(void)
{
	struct source *s = &shared;

	bind(s, "rtc", RTC);
	enlist(s, SDEI_RM_ANY, 0);
	level(s, rtc_up, rtc_down, rtc_is_up);
	if (machine.nr_cpus > 1) {
		enlist(s, SDEI_RM_ANY, 0);
		enable(s);
		busy(s, s->count, rtc_up);
		leave(s);
	}
	release(s);
}

/* -- edges */

static void raise_inside(struct source *s)
{
	s->inside = NULL;
	for (u32 i = 0; i < 3; i++)
		raise();
	settle();
	if (!gic_is(UNUSED, GICD_ISPENDR))
		result_failed("%s: an edge is not kept while the handler runs", s->name);
}

static void case_edge(void)
{
	struct source *s = &shared;
	u64 n = 0;

	bind(s, "edge", UNUSED);
	make_edge(UNUSED);
	pe_unmask(s);
	/* An edge that came before the event was registered is not an event, nor is one that the last client left. */
	raise();
	enlist(s, SDEI_RM_ANY, 0);
	enable(s);
	exactly(s, n, "raised before EVENT_REGISTER");
	disable(s);
	wait_off(s);
	raise();
	leave(s);
	enlist(s, SDEI_RM_ANY, 0);
	enable(s);
	exactly(s, n, "raised before EVENT_UNREGISTER");
	while (n < EDGE_ROUNDS) {
		raise();
		WAIT(s->count > n, "edge: raised %lu times, handled %lu times", n + 1, s->count);
		n++;
	}
	exactly(s, n, "raised one by one");

	s->inside = raise_inside;
	raise();
	exactly(s, n += 2, "raised while the handler runs");

	pe_mask(s);
	wait_off(s);
	raise();
	raise();
	exactly(s, n, "PE masked");
	pe_unmask(s);
	exactly(s, ++n, "PE unmasked");

	disable(s);
	wait_off(s);
	raise();
	exactly(s, n, "event disabled");
	enable(s);
	exactly(s, ++n, "event enabled");

	pe_mask(s);
	wait_off(s);
	raise();
	gic_set(UNUSED, GICD_ICPENDR);
	pe_unmask(s);
	exactly(s, n, "raised and taken back");

	/* No wait for the controller: it may fire before or after the mask, but it must arrive once. */
	for (u32 i = 0; i < EDGE_ROUNDS; i++) {
		pe_mask(s);
		raise();
		pe_unmask(s);
		exactly(s, ++n, "raised right after PE_MASK");
	}
	pe_mask(s);
	leave(s);
	release(s);
}

/* -- routing */

static void taken(struct source *s, u64 n, u64 by, const char *when)
{
	exactly(s, n, when);
	if (s->last != by)
		result_failed("%s: %s: taken by CPU#%lu instead of CPU#%lu", s->name, when, s->last, by);
}

static void cpu_off(struct cpu *cpu)
{
	struct smccc_regs r = { { PSCI_CPU_OFF } };

	smccc(machine.psci_smc, &r);
	result_failed("CPU#%lu: CPU_OFF returned %ld", cpu->index, (s64)r.x[0]);
}

static u64 affinity_info(u64 mpidr)
{
	struct smccc_regs r = { { PSCI_AFFINITY_INFO, mpidr } };

	smccc(machine.psci_smc, &r);
	return r.x[0];
}

static void turn_off(u64 i)
{
	post(i, cpu_off);
	WAIT(affinity_info(cpus[i].mpidr) == PSCI_OFF, "CPU#%lu does not go off", i);
}

static void turn_on(u64 i)
{
	s64 ret;

	cpus[i].online = 0;
	workers[i].done = workers[i].posted;
	mb();
	ret = psci_cpu_on(cpus[i].mpidr, (u64)secondary_entry, i);
	if (ret)
		result_failed("CPU_ON of CPU#%lu: %ld", i, ret);
	WAIT(cpus[i].online, "CPU#%lu does not come back", i);
}

static void case_any(void)
{
	struct source *s = &shared;
	u64 n = 0, other = machine.nr_cpus - 1;
	bool masked[MAX_CPUS] = { false };

	bind(s, "any", UNUSED);
	make_edge(UNUSED);
	enlist(s, SDEI_RM_ANY, 0);
	enable(s);
	everywhere(unmask);
	/* One PE after the other takes it, and masks itself. */
	for (u64 i = 0; i < machine.nr_cpus; i++) {
		raise();
		exactly(s, ++n, "an unmasked PE is there");
		if (masked[s->last])
			result_failed("any: CPU#%lu takes it although it is masked", s->last);
		masked[s->last] = true;
		at(s->last, mask);
	}
	wait_off(s);
	raise();
	exactly(s, n, "all PEs masked");
	at(other, unmask);
	taken(s, ++n, other, "one PE unmasked");

	if (other) {
		/* It stands with the other PE, which goes. */
		at(0, unmask);
		turn_off(other);
		raise();
		taken(s, ++n, 0, "the PE that had it is off");
		at(0, mask);
		wait_off(s);
		raise();
		exactly(s, n, "all PEs masked or off");
		turn_on(other);
		exactly(s, n, "a PE that starts is masked");
		at(other, unmask);
		taken(s, ++n, other, "a PE that was off is unmasked");

		busy(s, n, raise);
		n = s->count;
	}
	everywhere(unmask);
	leave(s);

	/* Routed to one PE, then to another. */
	s->name = "routed";
	enlist(s, SDEI_RM_PE, cpus[other].mpidr);
	enable(s);
	for (u64 i = 0; i < EDGE_ROUNDS; i++) {
		raise();
		taken(s, ++n, other, "routed to the last PE");
	}
	at(other, mask);
	wait_off(s);
	raise();
	exactly(s, n, "routed to a masked PE");
	at(other, unmask);
	taken(s, ++n, other, "the PE is unmasked");
	disable(s);
	wait_idle(s);
	SDEI(s, 0, SDEI_EVENT_ROUTING_SET, s->event, SDEI_RM_PE, cpus[0].mpidr, 0, 0);
	enable(s);
	for (u64 i = 0; i < EDGE_ROUNDS; i++) {
		raise();
		taken(s, ++n, 0, "routed to the first PE");
	}
	disable(s);
	wait_idle(s);
	SDEI(s, 0, SDEI_EVENT_ROUTING_SET, s->event, SDEI_RM_ANY, 0, 0, 0);
	at(0, mask);
	enable(s);
	if (other) {
		raise();
		exactly(s, ++n, "routed to any PE again");
	}
	everywhere(mask);
	leave(s);
	release(s);
}

/* -- back to the guest */

static volatile u64 irqs, spurious, irq_intid;
static void (*irq_inside)(void);

void irq_handler(void)
{
	u64 intid = read_sysreg(ICC_IAR1_EL1);

	if (intid >= INTID_SPECIAL) {
		spurious++;
		return;
	}
	irq_intid = intid;
	if (irq_inside)
		irq_inside();
	if (intid == TIMER)
		timer_down();
	write_sysreg(ICC_EOIR1_EL1, intid);
	irqs++;
}

static struct source *beside;

static void event_inside(void)
{
	u64 n = beside->count;

	irq_inside = NULL;
	beside->goal = n + 1;
	timer_up();
	WAIT(beside->count == n + 1, "release: no event gets through while an IRQ is being handled");
}

/* As an ordinary interrupt, by whoever owns it now: at once, as a driver does that requests it. */
static void take_irq(const char *name, u32 intid, void (*up)(void))
{
	u64 n = irqs;

	gic_set(intid, GICD_ISENABLER);
	up();
	__asm__ volatile("msr daifclr, #2" ::: "memory");
	WAIT(irqs > n, "%s: IRQ %u is not taken (%s, %s)", name, intid, on(intid) ? "enabled" : "disabled",
	     gic_is(intid, GICD_ISPENDR) ? "pending" : "not pending");
	__asm__ volatile("msr daifset, #2" ::: "memory");
	settle();
	if (irqs != n + 1 || irq_intid != intid)
		result_failed("%s: %lu IRQs, the last %lu, instead of one of %u", name, irqs - n, irq_intid, intid);
	gic_set(intid, GICD_ICENABLER);
}

/* The guest masks its own interrupts by priority, and never the events. */
static void case_mask(void)
{
	struct source *s = &private[0];

	bind(s, "mask", TIMER);
	s->silence = timer_down;
	enlist(s, SDEI_RM_ANY, 0);
	enable(s);
	unmask(&cpus[0]);
	write_sysreg(ICC_IGRPEN1_EL1, 1);
	make_edge(UNUSED);
	*(volatile u64 *)(gicd + GICD_IROUTER + 8 * UNUSED) = cpus[0].mpidr;
	for (u32 pmr = 0; pmr <= 0xf0; pmr += 0x10) {
		u64 n = irqs, want = rd8(gicd + GICD_IPRIORITYR + UNUSED) < pmr;

		write_sysreg(ICC_PMR_EL1, pmr);
		if (read_sysreg(ICC_PMR_EL1) != pmr)
			result_failed("mask: PMR reads 0x%lx instead of 0x%x", read_sysreg(ICC_PMR_EL1), pmr);
		gic_set(UNUSED, GICD_ISENABLER);
		raise();
		__asm__ volatile("msr daifclr, #2" ::: "memory");
		settle();
		__asm__ volatile("msr daifset, #2" ::: "memory");
		if (irqs != n + want)
			result_failed("mask: %lu IRQs with PMR 0x%x", irqs - n, pmr);
		gic_set(UNUSED, GICD_ICENABLER);
		gic_set(UNUSED, GICD_ICPENDR);
		s->goal = s->count + 1;
		timer_up();
		exactly(s, s->goal, "whatever the PMR");
	}
	write_sysreg(ICC_IGRPEN1_EL1, 0);
	mask(&cpus[0]);
	leave(s);
	release(s);
}

static void case_release(void)
{
	struct source *s = &shared;
	u8 priority = rd8(gicd + GICD_IPRIORITYR + UNUSED);

	/* Priorities stay as firmware has left them, which is how bare-metal code has them. */
	wr(gicd + GICD_CTLR, rd(gicd + GICD_CTLR) | GICD_CTLR_GROUP1);
	write_sysreg(ICC_PMR_EL1, 0xf0);
	write_sysreg(ICC_IGRPEN1_EL1, 1);
	make_edge(UNUSED);
	*(volatile u64 *)(gicd + GICD_IROUTER + 8 * UNUSED) = cpus[0].mpidr;

	for (u64 i = 0; i < RELEASE_ROUNDS; i++) {
		bind(s, "release", UNUSED);
		enlist(s, SDEI_RM_ANY, 0);
		enable(s);
		unmask(&cpus[0]);
		raise();
		exactly(s, 1, "bound");
		mask(&cpus[0]);
		leave(s);
		if (i & 1)
			release(s);
		if (rd8(gicd + GICD_IPRIORITYR + UNUSED) != priority)
			result_failed("release: priority 0x%x instead of 0x%x",
				      rd8(gicd + GICD_IPRIORITYR + UNUSED), priority);
		take_irq("release", UNUSED, raise);
		if (!(i & 1))
			release(s);
	}
	s = &private[0];
	for (u64 i = 0; i < RELEASE_ROUNDS; i++) {
		bind(s, "release", TIMER);
		s->silence = timer_down;
		s->goal = 1;
		enlist(s, SDEI_RM_ANY, 0);
		enable(s);
		unmask(&cpus[0]);
		timer_up();
		exactly(s, 1, "bound");
		mask(&cpus[0]);
		leave(s);
		release(s);
		take_irq("release", TIMER, timer_up);
	}
	/* An event interrupts the guest's own interrupt handler, before it has ended the interrupt. */
	bind(s, "release", TIMER);
	s->silence = timer_down;
	enlist(s, SDEI_RM_ANY, 0);
	enable(s);
	unmask(&cpus[0]);
	beside = s;
	irq_inside = event_inside;
	take_irq("release", UNUSED, raise);
	exactly(s, 1, "inside of an IRQ");
	mask(&cpus[0]);
	leave(s);
	release(s);
	write_sysreg(ICC_IGRPEN1_EL1, 0);
}

/* -- a watchdog that looks at CPUs which have masked everything */

static u32 tick_event;
static bool tick_critical;
static struct source nested[MAX_CPUS];

static void rearm(struct source *s)
{
	(void)s;
	write_sysreg("cntv_tval_el0", freq() / 500);
}

static void start(struct source *s)
{
	rearm(s);
	write_sysreg("cntv_ctl_el0", CNTV_ENABLE);
}

/* A handler of a normal event that hangs about: critical ticks interrupt that, too. */
static void linger(struct source *s)
{
	struct source *tick = &private[s - nested];

	start(tick);
	WAIT(tick->count >= TICKS / 2, "watchdog: critical, but does not interrupt a handler");
}

static void watch(struct cpu *cpu)
{
	struct source *s = &private[cpu->index], *normal = &nested[cpu->index];

	s->inside = rearm;
	s->silence = timer_down;
	s->goal = TICKS;
	enlist(s, SDEI_RM_ANY, 0);
	enable(s);
	pe_unmask(s);
	if (tick_critical) {
		*normal = (struct source){ .name = "watchdog's normal event", .intid = TIMER, .inside = linger };
		normal->moving = true;	/* no interrupt stands behind this one */
		enlist(normal, SDEI_RM_ANY, 0);
		enable(normal);
		SDEI(normal, 0, SDEI_EVENT_SIGNAL, 0, cpu->mpidr, 0, 0, 0);
		exactly(normal, 1, "signalled");
		leave(normal);
	} else {
		start(s);
	}
	WAIT(s->count >= TICKS, "watchdog: CPU#%lu: %lu ticks of %u", cpu->index, s->count, (u32)TICKS);
	exactly(s, TICKS, "all ticks are over");
	pe_mask(s);
	leave(s);
}

static void case_watchdog(void)
{
	for (u64 i = 0; i < machine.nr_cpus; i++) {
		struct source *s = &private[i];

		if (tick_event)
			*s = (struct source){ .name = "watchdog", .intid = TIMER, .event = tick_event };
		else
			bind(s, "watchdog", TIMER);
	}
	tick_critical = SDEI(&private[0], -1, SDEI_EVENT_GET_INFO, private[0].event, SDEI_INFO_PRIORITY, 0, 0, 0)
			== SDEI_PRIORITY_CRITICAL;
	everywhere(watch);
	if (!tick_event)
		release(&private[0]);
}

/* -- */

static void find_devices(void)
{
	struct fdt f;
	u32 node;

	/* Below the guest there is room for the device tree, so that is where it is. */
	if (!fdt_open(&f, RAM_BASE))
		result_failed("no device tree at the RAM base");
	node = fdt_node(&f, "/intc", 5);
	if (!node)
		result_failed("no interrupt controller in the device tree");
	if (!fdt_prop_is(&f, node, "compatible", "arm,gic-v3"))
		result_failed("the interrupt controller is no GICv3");
	/* "reg" is the distributor, then the redistributors; addresses and sizes have two cells. */
	u32 len;
	const u8 *reg = fdt_prop(&f, node, "reg", &len);

	if (!reg || len < 32 || !fdt_reg(&f, node, 2, &gicd))
		result_failed("/intc: bad reg");
	for (u32 i = 16; i < 24; i++)
		gicr = gicr << 8 | reg[i];
	if (!fdt_reg(&f, fdt_node(&f, "/pl031", 6), 2, &rtc))
		rtc = 0;
}

void guest_main(struct cpu *cpu)
{
	static const struct {
		const char *name;
		void (*run)(void);
	} cases[] = {
		{ "ppi", case_ppi }, { "edge", case_edge }, { "any", case_any }, { "rtc", case_rtc },
		{ "release", case_release }, { "mask", case_mask }, { "watchdog", case_watchdog },
	};
	const char *only;
	size_t len;
	bool all = !arg_str("case", &only, &len), found = false;

	(void)cpu;
	if (!machine.has_sdei)
		result_failed("no /firmware/sdei in the device tree");
	find_devices();
	tick_event = (u32)arg_u64("tick", 0);
	cpus_start(work);
	for (u32 i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		if (!all && !arg_is("case", cases[i].name))
			continue;
		found = true;
		print("--- %s\n", cases[i].name);
		if (cases[i].run == case_rtc && !rtc)
			result_failed("no PL031 in the device tree");
		cases[i].run();
	}
	if (!found)
		result_failed("bootargs: there is no such case");
	print("\n");
	result_ok();
}
