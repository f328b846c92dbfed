// SPDX-License-Identifier: Apache-2.0
/*
 * The SDEI selftest of the KVM series, as a guest: every CPU executes the same calls at the same time, and every CPU
 * has to see the same results.  The boot CPU posts the commands, compares, and prints CPU#0's view.
 *
 * bootargs: event=N (default 0)
 */
#include "selftest.h"
#include "sdei.h"

enum command {
	NONE, VERSION, FEATURES, PRIVATE_RESET, SHARED_RESET, PE_UNMASK, EVENT_GET_INFO, EVENT_REGISTER, EVENT_ENABLE,
	EVENT_SIGNAL, PE_MASK, EVENT_DISABLE, EVENT_UNREGISTER,
};

/* Results.  All CPUs have to end up with the same bytes, so nothing in here depends on the CPU. */
struct state {
	u64 version, slots, relative;
	u64 type, priority, signaled;
	u64 handled, irq, status;
	u64 pc, pstate;
	u64 regs[18];		/* by EVENT_CONTEXT */
};
static const char *const state_names[] = {
	"VERSION", "bind slots", "relative mode", "type", "priority", "signaled", "handled", "irq", "status", "pc",
	"pstate", "x0", "x1", "x2", "x3", "x4", "x5", "x6", "x7", "x8", "x9", "x10", "x11", "x12", "x13", "x14", "x15",
	"x16", "x17",
};
_Static_assert(sizeof(state_names) / sizeof(state_names[0]) == sizeof(struct state) / sizeof(u64), "one name a word");

/* The first thing that went wrong on a CPU. */
struct fault {
	const char *what;	/* NULL: nothing did */
	u32 call;		/* the call that failed, or 0 for a check, with... */
	u64 got, want;
};

static struct vcpu {
	struct probe probe;
	struct cpu *cpu;
	struct state state;
	struct fault fault;
	bool resume;		/* this time, complete with EVENT_COMPLETE_AND_RESUME */
	u64 entered;
	volatile u64 done;	/* the last command this CPU has carried out */
} vcpus[MAX_CPUS];

static volatile u64 posted;	/* the command that is being carried out */
static u32 event;

/* PSTATE around the call under test: EL1h, DAIF masked, and flags Z and C so that NZCV is worth checking. */
#define PROBE_NZCV	0x60000000ul
#define PSTATE_DAIF	0x3c0ul
#define PSTATE_EL1H	0x5ul

static void fail(struct vcpu *v, const char *what, u64 got, u64 want)
{
	if (!v->fault.what)
		v->fault = (struct fault){ what, 0, got, want };
}

/* Makes a call whose negative results are failures. */
static u64 call(struct vcpu *v, u32 id, u64 a1, u64 a2, u64 a3)
{
	s64 ret = sdei_call(id, a1, a2, a3, SDEI_RM_ANY, v->cpu->mpidr);

	if (ret < 0 && !v->fault.what)
		v->fault = (struct fault){ sdei_call_name(id), id, (u64)ret, 0 };
	return (u64)ret;
}

/* The same for a call with only one right answer. */
static void call_is(struct vcpu *v, u32 id, u64 a1, u64 a2, u64 a3, u64 want)
{
	u64 ret = call(v, id, a1, a2, a3);

	if (ret != want)
		fail(v, sdei_call_name(id), ret, want);
}

/* Both rounds of EVENT_SIGNAL end up here, in the firmware's handler context. */
u64 sdei_handler(struct sdei_frame *f)
{
	struct vcpu *v = (struct vcpu *)f->x[1];
	u64 el, daif, status;

	if (v != this_cpu()->guest)
		result_failed("CPU#%lu: handler argument 0x%lx instead of 0x%lx", this_cpu()->index, f->x[1],
			      (u64)this_cpu()->guest);
	__asm__ volatile("mrs %0, CurrentEL\n\tmrs %1, daif" : "=r"(el), "=r"(daif));
	if (f->x[0] != event)
		fail(v, "event number given to the handler", f->x[0], event);
	if (el != 1 << 2)
		fail(v, "CurrentEL of the handler", el, 1 << 2);
	if (daif != PSTATE_DAIF)
		fail(v, "DAIF of the handler", daif, PSTATE_DAIF);
	if (f->sp != v->probe.sp)
		fail(v, "SP of the handler", f->sp, v->probe.sp);

	status = call(v, SDEI_EVENT_STATUS, event, 0, 0);
	if (status != (SDEI_STATUS_REGISTERED | SDEI_STATUS_ENABLED | SDEI_STATUS_RUNNING))
		fail(v, "EVENT_STATUS in the handler", status, 7);
	if (v->entered++) {
		if (f->x[2] != v->state.pc)
			fail(v, "interrupted PC of the second round", f->x[2], v->state.pc);
		if (f->x[3] != v->state.pstate)
			fail(v, "interrupted PSTATE of the second round", f->x[3], v->state.pstate);
	}
	v->state.status = status;
	v->state.pc = f->x[2];
	v->state.pstate = f->x[3];
	if (f->x[2] < (u64)probe_hvc || f->x[2] >= (u64)probe_end)
		fail(v, "interrupted PC", f->x[2], (u64)probe_hvc);
	if ((f->x[3] & ~0x0ffffc00ul) != (PROBE_NZCV | PSTATE_DAIF | PSTATE_EL1H))
		fail(v, "interrupted PSTATE", f->x[3], PROBE_NZCV | PSTATE_DAIF | PSTATE_EL1H);

	for (u64 i = 0; i < 18; i++) {
		/* x0..x3 are the results of EVENT_SIGNAL, the others what the probe has put there */
		u64 want = i < 4 ? 0 : v->probe.in[i];

		/* a register may hold anything, so that no value is an error by itself */
		v->state.regs[i] = (u64)sdei1(SDEI_EVENT_CONTEXT, i);
		if (v->state.regs[i] != want)
			fail(v, "register by EVENT_CONTEXT", v->state.regs[i], want);
	}
	v->state.handled = 1;

	if (!v->resume)
		return 0;
	v->probe.pc = f->x[2];
	v->probe.pstate = f->x[3];
	v->probe.irq_expected = 1;
	return (u64)vectors + 0x280;
}

/* Signals the event to this CPU and checks that the code in between did not notice. */
static void signal_once(struct vcpu *v, bool resume)
{
	struct probe *p = &v->probe;
	u64 before = v->entered;

	v->resume = resume;
	p->in[0] = SDEI_EVENT_SIGNAL;
	p->in[1] = event;
	p->in[2] = v->cpu->mpidr;
	for (u64 i = 3; i < 19; i++)
		p->in[i] = 0x5de1000000000000ul | i << 32 | (0xabcd0000ul + i);
	p->in_nzcv = PROBE_NZCV;
	p->arrived = &v->entered;
	p->before = before;
	p->spins = SPIN_LIMIT / 16;
	(machine.sdei_smc ? probe_smc : probe_hvc)(p);

	if ((s64)p->out[0] < 0 && v->entered == before) {
		if (!v->fault.what)
			v->fault = (struct fault){ "EVENT_SIGNAL", SDEI_EVENT_SIGNAL, p->out[0], 0 };
		return;
	}
	if (v->entered != before + 1)
		fail(v, "number of calls of the handler", v->entered - before, 1);
	for (u64 i = 0; i < 19; i++)
		if (p->out[i] != (i < 4 ? 0 : p->in[i]))
			fail(v, i == 18 ? "x18 after the event" : "register after the event", p->out[i],
			     i < 4 ? 0 : p->in[i]);
	if (p->out_nzcv != PROBE_NZCV)
		fail(v, "NZCV after the event", p->out_nzcv, PROBE_NZCV);
	if (p->out_sp != p->sp)
		fail(v, "SP after the event", p->out_sp, p->sp);
	if (p->irq_wrong && p->irq_elr != p->pc)
		fail(v, "ELR_EL1 at the resume address", p->irq_elr, p->pc);
	else if (p->irq_wrong && p->irq_spsr != p->pstate)
		fail(v, "SPSR_EL1 at the resume address", p->irq_spsr, p->pstate);
	else if (p->irq_wrong)
		fail(v, "DAIF at the resume address", p->irq_daif, PSTATE_DAIF);
	if (resume) {
		v->state.irq = p->irq;
		if (!p->irq)
			fail(v, "arrivals at the resume address", 0, 1);
	}
}

static void carry_out(struct vcpu *v, u64 cmd)
{
	struct state *s = &v->state;

	switch (cmd) {
	case VERSION:
		s->version = call(v, SDEI_VERSION, 0, 0, 0);
		break;
	case FEATURES:
		s->slots = call(v, SDEI_FEATURES, SDEI_FEATURE_BIND_SLOTS, 0, 0);
		/* SDEI 1.0 does not know this feature, and may say so. */
		if (s->version >> 32 == 1ul << 16 && sdei1(SDEI_FEATURES, SDEI_FEATURE_RELATIVE_MODE) == -2)
			s->relative = 0;
		else
			s->relative = call(v, SDEI_FEATURES, SDEI_FEATURE_RELATIVE_MODE, 0, 0);
		break;
	case PRIVATE_RESET:
		call_is(v, SDEI_PRIVATE_RESET, 0, 0, 0, 0);
		break;
	case SHARED_RESET:
		call_is(v, SDEI_SHARED_RESET, 0, 0, 0, 0);
		break;
	case PE_UNMASK:
		call_is(v, SDEI_PE_UNMASK, 0, 0, 0, 0);
		break;
	case EVENT_GET_INFO:
		s->type = call(v, SDEI_EVENT_GET_INFO, event, SDEI_INFO_TYPE, 0);
		s->priority = call(v, SDEI_EVENT_GET_INFO, event, SDEI_INFO_PRIORITY, 0);
		s->signaled = call(v, SDEI_EVENT_GET_INFO, event, SDEI_INFO_SIGNALED, 0);
		break;
	case EVENT_REGISTER:
		call_is(v, SDEI_EVENT_REGISTER, event, (u64)sdei_entry, (u64)v, 0);
		call_is(v, SDEI_EVENT_STATUS, event, 0, 0, SDEI_STATUS_REGISTERED);
		break;
	case EVENT_ENABLE:
		call_is(v, SDEI_EVENT_ENABLE, event, 0, 0, 0);
		call_is(v, SDEI_EVENT_STATUS, event, 0, 0, SDEI_STATUS_REGISTERED | SDEI_STATUS_ENABLED);
		break;
	case EVENT_SIGNAL:
		signal_once(v, true);
		if (!v->fault.what)
			signal_once(v, false);
		break;
	case PE_MASK:
		call_is(v, SDEI_PE_MASK, 0, 0, 0, 1);	/* 1: it was not masked before */
		break;
	case EVENT_DISABLE:
		call_is(v, SDEI_EVENT_DISABLE, event, 0, 0, 0);
		call_is(v, SDEI_EVENT_STATUS, event, 0, 0, SDEI_STATUS_REGISTERED);
		break;
	case EVENT_UNREGISTER:
		call_is(v, SDEI_EVENT_UNREGISTER, event, 0, 0, 0);
		call_is(v, SDEI_EVENT_STATUS, event, 0, 0, 0);
		break;
	}
	mb();
	v->done = cmd;
}

static void serve(struct cpu *cpu)
{
	struct vcpu *v = cpu->guest;
	u64 cmd;

	for (;;) {
		/* SEV follows every command, and an SEV that comes before the WFE makes it fall through. */
		while ((cmd = posted) == v->done)
			__asm__ volatile("wfe" ::: "memory");
		mb();
		carry_out(v, cmd);
	}
}

static void check(const struct vcpu *v)
{
	const struct fault *f = &v->fault;
	u64 cpu = v->cpu->index;

	if (f->what && f->call)
		result_failed("CPU#%lu: %s returned %s (%ld)", cpu, f->what, sdei_error_name((s64)f->got), (s64)f->got);
	if (f->what)
		result_failed("CPU#%lu: %s is 0x%lx instead of 0x%lx", cpu, f->what, f->got, f->want);
	/* By words: with 512 CPUs this is what takes the time, and all the others poll meanwhile. */
	for (size_t i = 0; i < sizeof(v->state) / sizeof(u64); i++) {
		u64 a = ((const u64 *)&vcpus[0].state)[i], b = ((const u64 *)&v->state)[i];

		if (a != b)
			result_failed("CPU#%lu: %s is 0x%lx, but 0x%lx on CPU#0", cpu, state_names[i], b, a);
	}
}

/* Has every CPU carry out a command, and checks that they agree. */
static void run(u64 cmd, const char *name)
{
	print("--- %s\n", name);
	mb();
	posted = cmd;
	__asm__ volatile("dsb sy\n\tsev" ::: "memory");
	carry_out(&vcpus[0], cmd);
	for (u32 i = 0; i < machine.nr_cpus; i++) {
		u64 spin;

		for (spin = 0; vcpus[i].done != cmd && spin < SPIN_LIMIT; spin++)
			relax();
		if (vcpus[i].done != cmd)
			result_failed("CPU#%u: no answer to %s", i, name);
		mb();
		check(&vcpus[i]);
	}
}

#define RUN(cmd)		run(cmd, #cmd)
#define FIELD_NAME		"    %-22s"
#define show(name, fmt, ...)	print(FIELD_NAME fmt "\n", name ":", __VA_ARGS__)

static const char *yes(u64 v) { return v ? "Yes" : "No"; }

static void show_status(u64 status)
{
	static const char *const names[] = { "Registered", "Enabled", "Running" };
	struct out o = { .buf = (char[64]){ 0 }, .cap = 63 };

	for (u32 i = 0; i < 3; i++)
		if (status & 1u << i)
			out_printf(&o, "%s%s", o.len ? "-" : "", names[i]);
	show("Status", "%s", o.len ? o.buf : "Unregistered");
}

void guest_main(struct cpu *cpu)
{
	const struct state *s = &vcpus[0].state;
	u64 number = arg_u64("event", 0);

	(void)cpu;
	event = (u32)number;
	print("\n    NR_VCPUS: %u    SDEI Event: 0x%08x\n\n", machine.nr_cpus, event);
	if (number > 0xffffffff)
		result_failed("event number 0x%lx has more than 32 bits", number);
	if (!machine.has_sdei)
		result_failed("no /firmware/sdei in the device tree");
	for (u32 i = 0; i < machine.nr_cpus; i++) {
		vcpus[i].cpu = &cpus[i];
		cpus[i].guest = &vcpus[i];
	}
	cpus_start(serve);

	RUN(VERSION);
	show("Version", "%lu.%lu (vendor: 0x%x)", s->version >> 48 & 0x7fff, s->version >> 32 & 0xffff,
	     (u32)s->version);
	RUN(FEATURES);
	show("Shared event slots", "%lu", s->slots >> 16 & 0xffff);
	show("Private event slots", "%lu", s->slots & 0xffff);
	show("Relative mode", "%s", yes(s->relative));
	RUN(PRIVATE_RESET);
	RUN(SHARED_RESET);
	RUN(PE_UNMASK);
	RUN(EVENT_GET_INFO);
	show("Type", "%s", s->type ? "Shared" : "Private");
	show("Priority", "%s", s->priority ? "Critical" : "Normal");
	show("Signaled", "%s", yes(s->signaled));
	if (s->type)
		result_failed("event 0x%x is shared: this test registers the event on every CPU", event);
	RUN(EVENT_REGISTER);
	RUN(EVENT_ENABLE);
	RUN(EVENT_SIGNAL);
	show("Handled", "%s", yes(s->handled));
	show("IRQ", "%s", yes(s->irq));
	show_status(s->status);
	show("PC/PSTATE", "%016lx %016lx", s->pc, s->pstate);
	show("Regs", "%016lx %016lx", s->regs[0], s->regs[1]);
	print(FIELD_NAME "%016lx %016lx\n", "", s->regs[2], s->regs[3]);
	RUN(PE_MASK);
	RUN(EVENT_DISABLE);
	RUN(EVENT_UNREGISTER);
	print("\n");
	result_ok();
}
