// SPDX-License-Identifier: Apache-2.0
/* The guest's half of asynchronous page faults: docs/async-page-faults.md. */
#include "sdei.h"
#include "smccc.h"
#include "tasks.h"

#define ASYNC_PF		0x86000002u
#define ASYNC_PF_SDEI		2
#define ASYNC_PF_IRQ		3
#define ASYNC_PF_ENABLE		4
#define ASYNC_PF_IRQ_ACK	5
#define ASYNC_PF_FEATURES	6
#define FEATURE_REFUSE		1ul
#define FEATURE_RING		2ul
#define CONTROL_ENABLED		1ul
#define CONTROL_RING		4ul
#define NOT_REQUIRED		(-2)

#define NOT_PRESENT		1
#define READY			2
#define REFUSED			3

#define IRQ_FROM_EL0		0x480
#define PSTATE_EL		0xc

/* What the host and a PE share.  The host writes the mailbox when it is empty, the head and the ring; we the others. */
struct block {
	u32 reason, token;
	u32 head, tail;
	u32 pad[12];
	u32 ring[128];
} __attribute__((aligned(1024)));

static volatile struct block blocks[MAX_PES];

enum transport apf_transport;
u32 apf_intid;
static u64 event;

static s64 call(u64 function, u64 a, u64 b, u64 *value)
{
	struct smccc_regs r = { { ASYNC_PF, function, a, b } };

	smccc(machine.psci_smc, &r);
	if (value)
		*value = r.x[1];
	return (int32_t)r.x[0];
}

void apf_find(void)
{
	u64 features = 0, intid;

	if (arg_is("async", "off"))
		return;
	/* Ready is told by the interrupt whatever tells of not-present. */
	if (call(ASYNC_PF_IRQ, 0, 0, &intid) || intid < 16 || intid > 31)
		return;
	apf_intid = (u32)intid;
	if (arg_is("async", "ppi"))
		apf_transport = APF_PPI;
	else if (machine.has_sdei && !call(ASYNC_PF_SDEI, 0, 0, &event))
		apf_transport = APF_SDEI;
	if (call(ASYNC_PF_FEATURES, 0, 0, &features))
		features = 0;
	options.refuse = options.refuse && features & FEATURE_REFUSE;
	options.ring = options.ring && features & FEATURE_RING;
}

static void must(s64 result, const char *what)
{
	if (result)
		result_failed("CPU#%lu: %s: %ld", this_cpu()->index, what, result);
}

void apf_init(struct pe *p)
{
	u64 control = (u64)&blocks[p->cpu->index] | CONTROL_ENABLED | (options.ring ? CONTROL_RING : 0);
	s64 ret;

	if (apf_transport == APF_OFF)
		return;
	gic_enable(p, apf_intid);
	if (apf_transport == APF_SDEI) {
		must(sdei_call(SDEI_EVENT_REGISTER, event, (u64)sdei_entry, 0, 0, 0), "EVENT_REGISTER");
		must(sdei1(SDEI_EVENT_ENABLE, event), "EVENT_ENABLE");
		must(sdei0(SDEI_PE_UNMASK), "PE_UNMASK");
	}
	ret = call(ASYNC_PF_ENABLE, control & 0xffffffff, control >> 32, NULL);
	must(ret == NOT_REQUIRED ? 0 : ret, "enabling asynchronous page faults");
}

/* A page is not present that the current task has touched: 0 if it is to be waited for, else the token. */
static u32 not_present(struct pe *p, volatile struct block *b, bool task)
{
	u32 token = b->token;

	p->count.told++;
	if (options.refuse && (!task || p->live == 1)) {
		p->count.refused++;
		b->reason = REFUSED;
		return 0;
	}
	b->token = 0;
	mb();
	b->reason = 0;
	return token;
}

/* The event comes while a task runs, never into the kernel.  It goes on as if that had been interrupted. */
u64 sdei_handler(struct sdei_frame *f)
{
	struct pe *p = this_pe();
	volatile struct block *b = &blocks[p->cpu->index];
	bool task = !(f->x[3] & PSTATE_EL);

	if (b->reason == NOT_PRESENT)
		p->absent = not_present(p, b, task);
	return p->absent && task ? (u64)tasks_vectors + IRQ_FROM_EL0 : 0;
}

void apf_interrupt(struct pe *p)
{
	volatile struct block *b = &blocks[p->cpu->index];

	/* The mailbox first: what the ring tells may be about what it has told.  The host waits for it to be empty. */
	if (b->reason == NOT_PRESENT && apf_transport == APF_PPI) {
		p->absent = not_present(p, b, p->current);
		must(call(ASYNC_PF_IRQ_ACK, 0, 0, NULL), "IRQ_ACK");
	} else if (b->reason == READY) {
		u32 token = b->token;

		b->token = 0;
		mb();
		b->reason = 0;
		sched_ready(p, token);
		must(call(ASYNC_PF_IRQ_ACK, 0, 0, NULL), "IRQ_ACK");
	}
	if (options.ring) {
		u32 tail = b->tail;

		for (; tail != b->head; tail++) {
			mb();
			sched_ready(p, b->ring[tail % 128]);
		}
		mb();
		b->tail = tail;
	}
}
