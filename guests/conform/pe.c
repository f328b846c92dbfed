// SPDX-License-Identifier: Apache-2.0
/* PEs that serve commands, the handlers that run on them, and how tests fail. */
#include "conform.h"

struct pe pes[MAX_PES];
u32 nr_pes;

/* One command at a time is on its way to a PE; the ring keeps those of outer contexts, which end later. */
#define RING 16
static struct command commands[MAX_PES][RING];
static u32 next_command[MAX_PES];

/* -- waits */

#define PATIENCE_SECONDS	3
#define PATIENCE_POLLS		(1ul << 16)
#define PATIENCE_LIMIT		(1ul << 28)

/* Other CPUs may be slow because the host is, so it takes both: polls in number, and time. */
bool wait_more(struct patience *w)
{
	u64 now = read_sysreg("cntvct_el0"), freq = read_sysreg("cntfrq_el0");

	if (!w->polls++)
		w->start = now;
	if (w->polls > PATIENCE_LIMIT)
		return false;
	return w->polls < PATIENCE_POLLS || !freq || now - w->start < PATIENCE_SECONDS * freq;
}

void settle(void)
{
	u64 start = read_sysreg("cntvct_el0"), end = read_sysreg("cntfrq_el0") / 2000;

	for (u32 i = 0; i < 2000; i++)
		relax();
	for (u32 i = 0; i < 1u << 20 && read_sysreg("cntvct_el0") - start < end; i++)
		relax();
	(void)sdei0(SDEI_VERSION);
}

/* -- failures */

void fail_at(const char *file, u64 line, const char *fmt, ...)
{
	struct pe *p = this_pe();
	struct out o = { .buf = p->message, .cap = sizeof(p->message) - 1 };
	va_list ap;

	if (p->at)
		return;
	va_start(ap, fmt);
	out_vprintf(&o, fmt, ap);
	va_end(ap);
	p->message[o.len] = '\0';
	p->line = line;
	mb();
	p->at = file;
}

bool failed(void)
{
	for (u32 i = 0; i < nr_pes; i++)
		if (pes[i].at)
			return true;
	return false;
}

bool is_at(const char *file, u64 line, s64 want, struct pe *p, u32 id, u64 a1, u64 a2, u64 a3, u64 a4, u64 a5)
{
	s64 got = call_on(p, id, a1, a2, a3, a4, a5);

	if (failed())
		return false;
	if (got == want)
		return true;
	if (want <= 0 && got <= 0)
		fail_at(file, line, "%s(0x%lx) on PE %lu returned %s (%ld) instead of %s (%ld)", sdei_call_name(id), a1,
			p->index, sdei_error_name(got), got, sdei_error_name(want), want);
	else
		fail_at(file, line, "%s(0x%lx) on PE %lu returned 0x%lx instead of 0x%lx", sdei_call_name(id), a1,
			p->index, (u64)got, (u64)want);
	return false;
}

/* -- commands */

static void carry_out(struct pe *p, struct command *c)
{
	c->depth = p->depth;
	c->result = c->fn(p, c->a);
	mb();
	c->done = 1;
	__asm__ volatile("dsb sy\n\tsev" ::: "memory");
}

/*
 * Serves commands until `leaving` names this depth of handlers.  An event may come at any instruction, and its handler serve
 * commands of its own: so a command says itself whether it has been taken.  Tests post none while they wait for an event.
 */
static void serve(struct pe *p)
{
	u64 depth = p->depth;

	while (!depth || p->leaving != depth) {
		struct command *c = p->posted;

		if (!c || c->taken) {
			__asm__ volatile("wfe" ::: "memory");
			continue;
		}
		c->taken = 1;
		mb();
		carry_out(p, c);
	}
	p->leaving = 0;
}

struct command *post(struct pe *p, s64 (*fn)(struct pe *, const u64 *), u64 a0, u64 a1, u64 a2, u64 a3, u64 a4, u64 a5)
{
	struct command *c = &commands[p->index][next_command[p->index]++ % RING];

	*c = (struct command){ .fn = fn, .a = { a0, a1, a2, a3, a4, a5 } };
	if (p == this_pe()) {
		carry_out(p, c);
		return c;
	}
	p->used = true;
	mb();
	p->posted = c;
	__asm__ volatile("dsb sy\n\tsev" ::: "memory");
	return c;
}

bool finish(struct pe *p, struct command *c)
{
	if (!p->lost && WAIT(c->done))
		return true;
	p->lost = true;
	FAIL("PE %lu does not answer", p->index);
	return false;
}

s64 run_on(struct pe *p, s64 (*fn)(struct pe *, const u64 *), u64 a0, u64 a1)
{
	struct command *c = post(p, fn, a0, a1, 0, 0, 0, 0);

	return finish(p, c) ? c->result : 0;
}

static s64 do_call(struct pe *p, const u64 *a)
{
	(void)p;
	return sdei_call((u32)a[0], a[1], a[2], a[3], a[4], a[5]);
}

struct command *post_call(struct pe *p, u32 id, u64 a1)
{
	return post(p, do_call, id, a1, 0, 0, 0, 0);
}

s64 call_on(struct pe *p, u32 id, u64 a1, u64 a2, u64 a3, u64 a4, u64 a5)
{
	struct command *c;

	if (p == this_pe())
		return sdei_call(id, a1, a2, a3, a4, a5);
	c = post(p, do_call, id, a1, a2, a3, a4, a5);
	return finish(p, c) ? c->result : 0;
}

/* -- handlers */

#define MAX_HANDLERS 64
static struct handler handlers[MAX_HANDLERS];
static u32 nr_handlers;

struct handler *handler_of(struct pe *p, u32 event, u32 flags)
{
	struct handler *h = &handlers[nr_handlers++ % MAX_HANDLERS];

	*h = (struct handler){ .pe = p, .event = event, .hold = flags & HOLD, .exit_id = SDEI_EVENT_COMPLETE };
	return h;
}

static void look_at_entry(struct handler *h, struct pe *p, struct frame *f)
{
	if (f->x[0] != h->event)
		FAIL("x0 of the handler is 0x%lx instead of event 0x%x", f->x[0], h->event);
	if (h->pe && h->pe != p)
		FAIL("the handler of event 0x%x runs on PE %lu instead of PE %lu", h->event, p->index, h->pe->index);
	for (u32 i = 0; i < 18; i++)
		h->x[i] = f->x[i];
	h->sp = f->sp;
	h->el = read_sysreg("CurrentEL") >> 2;
	h->daif = read_sysreg("daif");
	h->spsel = read_sysreg("spsel");
	h->by = p;
}

static void go_deeper(struct pe *p)
{
	p->leaving = 0;
	p->depth++;
	mb();
}

void conform_handler(struct frame *f)
{
	struct handler *h = (struct handler *)f->x[1];
	struct pe *p = this_pe();
	u64 offset = (u64)h - (u64)handlers;

	if (offset >= sizeof(handlers) || offset % sizeof(*h))
		bail_out("PE %lu: x1 of a handler is 0x%lx, which is not the argument it was registered with",
			 p->index, f->x[1]);
	look_at_entry(h, p, f);
	go_deeper(p);
	h->entered++;
	mb();
	__asm__ volatile("dsb sy\n\tsev" ::: "memory");
	if (h->inside)
		h->inside(h, f);
	f->exit_id = h->exit_id;
	f->exit_arg = h->exit_arg;
	if (h->hold) {
		serve(p);
		f->exit_id = p->exit_id;
		f->exit_arg = p->exit_arg;
	}
	h->left++;
	p->depth--;
	mb();
}

/* The call that should have ended a handler came back. */
void conform_refused(struct frame *f)
{
	struct pe *p = this_pe();

	go_deeper(p);
	p->refused = (s64)f->x[0];
	p->refusals++;
	mb();
	serve(p);
	f->exit_id = p->exit_id;
	f->exit_arg = p->exit_arg;
	p->depth--;
	mb();
}

struct handler *enlist_at(const char *file, u64 line, struct pe *p, u32 event, u32 flags, u64 mode, u64 affinity)
{
	bool shared = event != NO_EVENT && event && call_on(p, SDEI_EVENT_GET_INFO, event, SDEI_INFO_TYPE, 0, 0, 0) == 1;
	struct handler *h = handler_of(shared ? NULL : p, event, flags);

	if (is_at(file, line, 0, p, SDEI_EVENT_REGISTER, event, (u64)conform_entry, (u64)h, mode, affinity))
		(void)is_at(file, line, 0, p, SDEI_EVENT_ENABLE, event, 0, 0, 0, 0);
	return h;
}

bool entered_at(const char *file, u64 line, struct handler *h, u64 times)
{
	if (failed())
		return false;
	if (WAIT(h->entered >= times || failed()) && h->entered == times)
		return !failed();
	if (!failed())
		fail_at(file, line, "the handler of event 0x%x was entered %lu times instead of %lu", h->event, h->entered,
			times);
	return false;
}

bool ended_at(const char *file, u64 line, struct handler *h, u64 times)
{
	/* `left` counts before the completing call; of a shared event its state tells when that has been made. */
	if (WAIT(h->left == times || failed()) &&
	    (h->pe || WAIT(!(sdei1(SDEI_EVENT_STATUS, h->event) & SDEI_STATUS_RUNNING))))
		return !failed();
	fail_at(file, line, "the handler of event 0x%x does not end", h->event);
	return false;
}

bool exactly_at(const char *file, u64 line, struct handler *h, u64 times)
{
	if (!entered_at(file, line, h, times))
		return false;
	settle();
	if (h->entered == times)
		return !failed();
	fail_at(file, line, "the handler of event 0x%x was entered %lu times instead of %lu", h->event, h->entered, times);
	return false;
}

static s64 do_leave(struct pe *p, const u64 *a)
{
	p->exit_id = a[0];
	p->exit_arg = a[1];
	p->leaving = p->depth;
	return 0;
}

static s64 do_nothing(struct pe *p, const u64 *a)
{
	(void)p;
	(void)a;
	return 0;
}

/* Has the innermost handler of p make a call that completes it, and waits until that has been made. */
static bool complete(const char *file, u64 line, struct pe *p, u64 id, u64 arg)
{
	struct command *c = post(p, do_leave, id, arg, 0, 0, 0, 0);

	if (!finish(p, c))
		return false;
	if (!c->depth) {
		fail_at(file, line, "PE %lu runs no handler that could complete", p->index);
		return false;
	}
	return finish(p, post(p, do_nothing, 0, 0, 0, 0, 0, 0));
}

bool leave_at(const char *file, u64 line, struct pe *p, u64 id, u64 arg)
{
	u64 refusals = p->refusals;

	if (!complete(file, line, p, id, arg))
		return false;
	if (p->refusals == refusals)
		return !failed();
	fail_at(file, line, "%s on PE %lu returned %s (%ld)", sdei_call_name((u32)id), p->index,
		sdei_error_name(p->refused), p->refused);
	return false;
}

bool stays_at(const char *file, u64 line, struct pe *p, u64 id, u64 arg, s64 want)
{
	u64 refusals = p->refusals;

	if (!complete(file, line, p, id, arg))
		return false;
	if (p->refusals == refusals)
		fail_at(file, line, "%s(0x%lx) on PE %lu ended the handler", sdei_call_name((u32)id), arg, p->index);
	else if (p->refused != want)
		fail_at(file, line, "%s(0x%lx) on PE %lu returned %s (%ld) instead of %s (%ld)", sdei_call_name((u32)id),
			arg, p->index, sdei_error_name(p->refused), p->refused, sdei_error_name(want), want);
	return !failed();
}

bool status_is_at(const char *file, u64 line, struct pe *p, u32 event, u64 want)
{
	s64 got = call_on(p, SDEI_EVENT_STATUS, event, 0, 0, 0, 0);

	if (failed())
		return false;
	if (got == (s64)want)
		return true;
	fail_at(file, line, "EVENT_STATUS of 0x%x on PE %lu is %ld instead of %lu (1 registered, 2 enabled, 4 running)",
		event, p->index, got, want);
	return false;
}

bool beats_at(const char *file, u64 line, const struct spin *s)
{
	u64 before = s->beats;

	/* Twice: the first may have been on its way. */
	if (WAIT(s->beats >= before + 2))
		return !failed();
	fail_at(file, line, "the PE does not spin");
	return false;
}

/* -- power */

s64 psci_call(u32 id, u64 a1, u64 a2, u64 a3)
{
	struct smccc_regs r = { { id, a1, a2, a3 } };

	smccc(machine.psci_smc, &r);
	return (s64)r.x[0];
}

static s64 do_off(struct pe *p, const u64 *a)
{
	(void)a;
	(void)p;
	return psci_call(PSCI_CPU_OFF, 0, 0, 0);
}

#define PSCI_STATE_OFF 1

bool turn_off(struct pe *p)
{
	struct command *c = post(p, do_off, 0, 0, 0, 0, 0, 0);

	if (WAIT(psci_call(PSCI_AFFINITY_INFO64, p->mpidr, 0, 0) == PSCI_STATE_OFF || c->done) && !c->done) {
		p->cpu->online = 0;
		p->depth = 0;
		return true;
	}
	FAIL("CPU_OFF on PE %lu: %s", p->index, c->done ? "it returned" : "AFFINITY_INFO does not say that it is off");
	return false;
}

bool turn_on(struct pe *p)
{
	s64 ret;

	p->cpu->online = 0;
	mb();
	ret = psci_call(PSCI_CPU_ON64, p->mpidr, (u64)secondary_entry, p->cpu->index);
	if (ret) {
		FAIL("CPU_ON of PE %lu returned %ld", p->index, ret);
		return false;
	}
	if (WAIT(p->cpu->online))
		return true;
	FAIL("PE %lu does not start", p->index);
	p->lost = true;
	return false;
}

/* The base of every PE but the first. */
void pe_base(struct cpu *cpu)
{
	__asm__ volatile("msr vbar_el1, %0\n\tisb" :: "r"((u64)conform_vectors));
	serve(cpu->guest);
}
