// SPDX-License-Identifier: Apache-2.0
/*
 * Plays a scene: brings its handlers into their states, holds until a byte 'g' comes, then goes through to the end with each
 * and compares with what must happen.  A model beside it says which handler a PE has to enter next.
 *
 * Events that no EVENT_SIGNAL can raise are the host's: after "MOVER asks EVENT PE" (or "any") it injects, and types 'y'.
 */
#include "actors.h"

#define NOBODY	(~0u)

/* A row as it is played. `state` (EVENT_STATUS's bits), `pending` and `expected` are the model's. */
struct slot {
	const struct row *row;
	u32 event;
	u32 interrupt;			/* that is bound to it, or 0 */
	u32 state;
	bool pending, hold;
	u64 expected;			/* how often it has to have been entered... */
	volatile u64 entered, left;	/* ...and what happened */
	volatile u64 by;
	u64 context[18];		/* what it interrupted, if it holds */
};

struct model {
	bool masked;
	struct slot *normal, *critical;	/* that run here */
	struct slot *log[LOG_SIZE];
	u64 logged;
};

static const struct scene *scene;
static struct slot slots[MAX_ROWS];
static struct model models[SCENE_CPUS];
static struct command *activity[SCENE_CPUS];	/* what a PE does all the time */

#define FOR_SLOTS(s)	for (struct slot *s = slots; s < slots + scene->count; s++)

static bool is_shared(const struct slot *s) { return s->row->kind == SN || s->row->kind == SC || s->row->kind == BS; }
static bool is_critical(const struct slot *s) { return s->row->kind == PC || s->row->kind == SC; }
static bool runs(const struct slot *s) { return s->row->cell >= REG; }
static bool begins_pending(const struct slot *s)
{
	return s->row->cell == reGp || s->row->cell == rEGp || s->row->cell == REGp || s->row->cell == ReGp;
}
/* The PE that takes it, or NOBODY in particular. */
static u32 target(const struct slot *s)
{
	return is_shared(s) && !(s->row->flags & ROUTED) ? NOBODY : s->row->pe;
}

static bool has_frames(u64 pe) { return models[pe].normal || models[pe].critical; }
static bool rounds_there(u64 pe) { return scene->where[pe] == REGS || scene->where[pe] == USER; }

/* -- handlers */

u64 cells_handler(struct cpu *cpu, struct sdei_frame *f)
{
	struct slot *s = (struct slot *)f->x[1];
	struct actor *a = &actors[cpu->index];
	u64 offset = (u64)s - (u64)slots, elr = read_sysreg("elr_el1"), spsr = read_sysreg("spsr_el1");

	if (offset >= sizeof(slots) || offset % sizeof(*s) || f->x[0] != s->event)
		failed("a handler of event 0x%lx has the argument 0x%lx", f->x[0], f->x[1]);
	if (target(s) != NOBODY && target(s) != cpu->index)
		failed("event 0x%x of PE %u is taken by PE %lu", s->event, target(s), cpu->index);
	check_interrupted(cpu, f);
	for (u32 i = 0; s->hold && i < 18; i++)
		s->context[i] = (u64)sdei1(SDEI_EVENT_CONTEXT, i);
	if (a->logged < LOG_SIZE)
		a->log[a->logged] = s;
	a->logged++;
	a->leaving = 0;
	a->depth++;
	s->by = cpu->index;
	mb();
	s->entered++;
	if (s->hold)
		serve(a);
	s->left++;
	a->depth--;
	mb();
	/* A handler in this one may have resumed elsewhere. */
	write_sysreg("elr_el1", elr);
	write_sysreg("spsr_el1", spsr);
	return s->row->flags & RESUME ? (u64)resumed : 0;
}

/* -- the model */

static bool takes(u32 pe, const struct slot *s)
{
	const struct model *m = &models[pe];

	if (!s->pending || s->state != (SDEI_STATUS_REGISTERED | SDEI_STATUS_ENABLED))
		return false;
	if (target(s) != NOBODY && target(s) != pe)
		return false;
	return !m->masked && !m->critical && (is_critical(s) || !m->normal);
}

/* All that the PE enters now, one after the other; each ends at once. */
static void model_delivers(u32 pe)
{
	struct model *m = &models[pe];

	for (;;) {
		struct slot *next = NULL;

		FOR_SLOTS(s) {
			if (!takes(pe, s))
				continue;
			if (!next || is_critical(s) > is_critical(next) ||
			    (is_critical(s) == is_critical(next) && s->event < next->event))
				next = s;
		}
		if (!next)
			return;
		next->pending = false;
		next->expected++;
		m->log[m->logged++ % LOG_SIZE] = next;
	}
}

/* What must have been entered on the PE has been, in order, and has ended; nothing else has. */
static void expect_entered(u64 pe, const char *when)
{
	const struct actor *a = &actors[pe];
	const struct model *m = &models[pe];

	if (!WAIT(a->logged >= m->logged) || a->logged != m->logged)
		failed("%s: PE %lu has entered %lu handlers instead of %lu", when, pe, a->logged, m->logged);
	for (u64 i = 0; i < m->logged; i++)
		if (a->log[i] != m->log[i])
			failed("%s: handler %lu that PE %lu has entered is 0x%x instead of 0x%x", when, i, pe,
			       a->log[i]->event, m->log[i]->event);
	FOR_SLOTS(s)
		if (s->entered != s->expected)
			failed("%s: the handler of 0x%x on PE %u was entered %lu times instead of %lu", when, s->event,
			       s->row->pe, s->entered, s->expected);
}

static void unmask(u64 pe)
{
	EXPECT(0, pe, SDEI_PE_UNMASK);
	models[pe].masked = false;
	model_delivers((u32)pe);
}

/* -- setting the scene */

static u32 event_of(struct slot *s)
{
	u32 n = 0;
	s64 ret;

	for (const struct slot *o = slots; o < s; o++)
		n += o->row->kind == s->row->kind && (is_shared(s) || o->row->pe == s->row->pe);
	if (n >= EVENTS_OF_A_KIND)
		failed("the scene wants more events of a kind than there are");
	switch (s->row->kind) {
	case PN: return PRIVATE_NORMAL(n);
	case PC: return PRIVATE_CRITICAL(n);
	case SN: return SHARED_NORMAL(n);
	case SC: return SHARED_CRITICAL(n);
	}
	s->interrupt = s->row->kind == BP ? PPI(n) : SPI(n);
	ret = sdei1(SDEI_INTERRUPT_BIND, s->interrupt);
	if (ret < 0)
		failed("INTERRUPT_BIND: %s", sdei_error_name(ret));
	return (u32)ret;
}

static void enlist(struct slot *s)
{
	u64 flags = (s->row->flags & ROUTED ? SDEI_RM_PE : SDEI_RM_ANY) | (s->row->flags & RELATIVE ? SDEI_RELATIVE : 0);
	u64 entry = (u64)sdei_entry - (s->row->flags & RELATIVE ? (u64)mover_vectors : 0);

	if (s->row->cell == reg)
		return;
	EXPECT(0, s->row->pe, SDEI_EVENT_REGISTER, s->event, entry, (u64)s, flags, cpus[s->row->pe].mpidr);
	s->state = SDEI_STATUS_REGISTERED;
	if (s->row->cell >= rEG) {
		EXPECT(0, s->row->pe, SDEI_EVENT_ENABLE, s->event);
		s->state |= SDEI_STATUS_ENABLED;
	}
}

static void ask_host(const struct slot *s)
{
	int c;

	if (is_shared(s))
		print("MOVER asks 0x%x any\n", s->event);
	else
		print("MOVER asks 0x%x %u\n", s->event, s->row->pe);
	while ((c = uart_read()) != 'y') {
		look_for_failures();
		if (c >= 0)
			failed("the host answers '%c'", c);
	}
}

static void raise(struct slot *s)
{
	if (is_shared(s) || sdei2(SDEI_EVENT_SIGNAL, s->event, cpus[s->row->pe].mpidr))
		ask_host(s);
	s->pending = true;
}

static void run(struct slot *s)
{
	struct model *m = &models[s->row->pe];

	s->hold = true;
	raise(s);
	s->pending = false;
	s->expected++;
	m->log[m->logged++] = s;
	if (is_critical(s))
		m->critical = s;
	else
		m->normal = s;
	expect_entered(s->row->pe, "to be held");
	s->state |= SDEI_STATUS_RUNNING;
}

/* The PE gets into its place, with the handlers that run there, and is masked then unless it compares registers. */
static void place(u64 pe)
{
	bool frames = false;

	FOR_SLOTS(s)
		frames |= s->row->pe == pe && runs(s);
	if (!frames && !rounds_there(pe))
		return;
	unmask(pe);
	if (rounds_there(pe))
		activity[pe] = start_rounds(pe, scene->where[pe] == USER);
	FOR_SLOTS(s)
		if (s->row->pe == pe && runs(s) && !is_critical(s))
			run(s);
	FOR_SLOTS(s)
		if (s->row->pe == pe && runs(s) && is_critical(s))
			run(s);
	/* Whoever is next shall take what any PE may take. */
	if (frames) {
		EXPECT(1, pe, SDEI_PE_MASK);
		models[pe].masked = true;
	}
}

static void adjust(struct slot *s)
{
	if (s->row->cell == ReG || s->row->cell == ReGp) {
		EXPECT(0, s->row->pe, SDEI_EVENT_DISABLE, s->event);
		s->state &= ~(u32)SDEI_STATUS_ENABLED;
	} else if (s->row->cell == Reg) {
		EXPECT(SDEI_PENDING, s->row->pe, SDEI_EVENT_UNREGISTER, s->event);
		s->state = SDEI_STATUS_RUNNING;
	}
}

static void set_scene(void)
{
	for (u32 i = 0; i < scene->count; i++) {
		slots[i].row = &scene->rows[i];
		slots[i].event = event_of(&slots[i]);
		enlist(&slots[i]);
	}
	for (u64 pe = 0; pe < SCENE_CPUS; pe++)
		models[pe].masked = true;
	/* Who has handlers to run first, while all others are masked. */
	for (u32 pe = 0; pe < SCENE_CPUS; pe++)
		place(pe);
	FOR_SLOTS(s)
		adjust(s);
	for (u32 pe = 0; pe < SCENE_CPUS; pe++) {
		if (scene->where[pe] == OFF)
			turn_off(pe);
		else if (models[pe].masked && scene->where[pe] != MASKED && scene->where[pe] != ASLEEP_MASKED)
			unmask(pe);
	}
	FOR_SLOTS(s)
		if (begins_pending(s))
			raise(s);
	for (u32 pe = 0; pe < SCENE_CPUS; pe++) {
		model_delivers(pe);	/* nothing, or the scene contradicts itself */
		expect_entered(pe, "everything in its place");
		if (scene->where[pe] == WAITING)
			activity[pe] = start_sleep(pe, false);
		else if (scene->where[pe] == ASLEEP || scene->where[pe] == ASLEEP_MASKED)
			activity[pe] = start_sleep(pe, true);
	}
}

/* -- looking at it */

/* Who can answer for the PE: itself, unless it does something else. */
static bool answers(u64 pe)
{
	return has_frames(pe) || !activity[pe];
}

static void check_status(const struct slot *s, u64 pe)
{
	s64 got = CALL(pe, SDEI_EVENT_STATUS, s->event);

	if (got != (s64)s->state)
		failed("EVENT_STATUS of 0x%x on PE %lu is %ld instead of %u", s->event, pe, got, s->state);
}

static void check_slot(const struct slot *s)
{
	u64 pe = s->row->pe;
	bool off = scene->where[pe] == OFF && !models[pe].logged && models[pe].masked;

	if (answers(pe) && !off)
		check_status(s, pe);
	if (s->interrupt)
		EXPECT((s64)s->event, 0, SDEI_INTERRUPT_BIND, s->interrupt);
	if (!is_shared(s))
		return;
	check_status(s, 0);
	if (s->state & SDEI_STATUS_REGISTERED) {
		EXPECT(target(s) != NOBODY, 0, SDEI_EVENT_GET_INFO, s->event, SDEI_INFO_ROUTING_MODE);
		if (target(s) != NOBODY)
			EXPECT((s64)cpus[target(s)].mpidr, 0, SDEI_EVENT_GET_INFO, s->event, SDEI_INFO_ROUTING_AFF);
	}
}

static void check_all(const char *when)
{
	FOR_SLOTS(s)
		check_slot(s);
	for (u64 pe = 0; pe < SCENE_CPUS; pe++)
		expect_entered(pe, when);
}

/* -- to the end */

static void check_context(const struct slot *s)
{
	for (u32 i = 0; i < 18; i++) {
		u64 got = (u64)CALL(s->row->pe, SDEI_EVENT_CONTEXT, i);

		if (got != s->context[i])
			failed("EVENT_CONTEXT(%u) in the handler of 0x%x on PE %u is 0x%lx instead of 0x%lx", i, s->event,
			       s->row->pe, got, s->context[i]);
	}
}

static void end_handler(u32 pe, struct slot *s)
{
	struct model *m = &models[pe];
	u64 left = s->left, came = pes[pe].resumed;

	check_context(s);
	EXPECT(s->state, pe, SDEI_EVENT_STATUS, s->event);
	if (s == m->critical)
		m->critical = NULL;
	else
		m->normal = NULL;
	s->state &= ~(u32)SDEI_STATUS_RUNNING;
	s->hold = false;
	model_delivers(pe);
	leave(pe, has_frames(pe) || !rounds_there(pe));
	expect_entered(pe, "a handler has ended");
	if (!WAIT(s->left > left))
		failed("the handler of 0x%x on PE %u does not end", s->event, pe);
	if (s->row->flags & RESUME && !WAIT(pes[pe].resumed > came))
		failed("PE %u has not been where EVENT_COMPLETE_AND_RESUME leads", pe);
}

/* An event that the PE sleeps for. */
static void wake(u32 pe)
{
	FOR_SLOTS(s) {
		if (s->row->pe != pe || s->row->kind != PN || s->state != (SDEI_STATUS_REGISTERED | SDEI_STATUS_ENABLED))
			continue;
		raise(s);
		if (!WAIT(activity[pe]->done || cpus[pe].online))
			failed("PE %u does not wake up", pe);
		break;
	}
	if (cpus[pe].online) {		/* by the entry of CPU_SUSPEND, and masked */
		models[pe].masked = true;
		activity[pe] = NULL;
		expect_entered(pe, "it has powered down, and is masked");
		unmask(pe);
	} else {
		model_delivers(pe);
		if (finish(pe, activity[pe]))
			failed("CPU_SUSPEND on PE %u returned %ld", pe, activity[pe]->result);
		activity[pe] = NULL;
	}
}

static void end_place(u32 pe)
{
	struct model *m = &models[pe];

	if (m->critical)
		end_handler(pe, m->critical);
	if (m->normal)
		end_handler(pe, m->normal);
	switch (scene->where[pe]) {
	case REGS:
	case USER:
		banks[pe].stop = 1;
		(void)finish(pe, activity[pe]);
		activity[pe] = NULL;
		break;
	case OFF:
		turn_on(pe);
		expect_entered(pe, "it was off, and is masked");
		break;
	case ASLEEP:
	case WAITING:
		wake(pe);
	}
	if (m->masked && scene->where[pe] != ASLEEP_MASKED)
		unmask(pe);
	expect_entered(pe, "nothing is in the way");
	FOR_SLOTS(s)
		if (s->row->pe == pe)
			check_slot(s);
}

/* Nobody is in anybody's way any more: what has been waiting for EVENT_ENABLE comes. */
static void end_slot(struct slot *s)
{
	u64 pe = answers(s->row->pe) ? s->row->pe : 0;

	if (pe != s->row->pe && !is_shared(s))
		return;			/* of a PE that sleeps for ever */
	if (s->state == SDEI_STATUS_REGISTERED) {
		EXPECT(0, pe, SDEI_EVENT_ENABLE, s->event);
		s->state |= SDEI_STATUS_ENABLED;
		if (s->pending && !WAIT(s->entered == s->expected + 1))
			failed("event 0x%x on PE %u is enabled, and does not come", s->event, s->row->pe);
		s->expected += s->pending;
		s->pending = false;
		if (!WAIT(s->left == s->entered && CALL(pe, SDEI_EVENT_STATUS, s->event) == (s64)s->state))
			failed("the handler of event 0x%x on PE %u does not end", s->event, s->row->pe);
	}
	check_slot(s);
	EXPECT(s->state ? 0 : SDEI_DENIED, pe, SDEI_EVENT_UNREGISTER, s->event);
	s->state = 0;
	check_status(s, pe);
}

static void end_scene(void)
{
	check_all("after the move");
	for (u32 i = 0; i < SCENE_CPUS; i++)
		end_place((i + 1) % SCENE_CPUS);
	check_all("before the end");
	FOR_SLOTS(s)
		end_slot(s);
	FOR_SLOTS(s)
		if (s->entered != s->expected)
			failed("the handler of 0x%x on PE %u was entered %lu times instead of %lu", s->event, s->row->pe,
			       s->entered, s->expected);
	for (u64 pe = 0; pe < SCENE_CPUS; pe++)
		if (answers(pe))
			EXPECT(0, pe, SDEI_PRIVATE_RESET);
	/* Of PEs that sleep for ever nothing was unregistered, but that is no affair of shared events. */
	EXPECT(0, 0, SDEI_SHARED_RESET);
}

/* -- */

bool cells_find(void)
{
	const char *name;
	size_t len;
	u64 n;

	if (!arg_str("case", &name, &len) || len <= 6 || memcmp(name, "cells.", 6) || !parse_u64(name + 6, len - 6, &n) ||
	    n < 1 || n > nr_scenes)
		return false;
	scene = &scenes[n - 1];
	return true;
}

void cells_list(void)
{
	for (u32 n = 0; n < nr_scenes; n++) {
		print("MOVER scene cells.%u %s\n", n + 1, scenes[n].title);
		for (u32 i = 0; i < scenes[n].count; i++) {
			const struct row *r = &scenes[n].rows[i];

			print("MOVER row pe=%u where=%s kind=%s cell=%s flags=%u\n", r->pe,
			      where_names[scenes[n].where[r->pe]], kind_names[r->kind], cell_names[r->cell], r->flags);
		}
	}
}

void cells_secondary(struct cpu *cpu)
{
	actors[cpu->index].depth = 0;
	serve(&actors[cpu->index]);
}

void cells_main(struct cpu *cpu)
{
	(void)cpu;
	if (machine.nr_cpus != SCENE_CPUS)
		result_failed("a scene has %u CPUs", (u32)SCENE_CPUS);
	mmu_prepare(0, 0);
	cpus_start(secondary_main);
	set_scene();
	check_all("before the move");
	print("MOVER holds\n");
	for (int c; (c = uart_read()) != 'g'; look_for_failures())
		for (u32 i = 0; i < 1000; i++)
			relax();
	end_scene();
	mover_ok();
}
