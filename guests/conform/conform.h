/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The conformance suite: what its tests are written with.
 *
 * CPU#0 conducts.  The other PEs serve commands, one at a time, in whatever they are doing: at their base loop, or in a
 * handler that holds.  So a test reads from top to bottom, and says on which PE each call is made:
 *
 *	struct handler *h = enlist(p, event, HOLD);	register and enable on p, with a handler that holds
 *	IS(0, p, SDEI_EVENT_SIGNAL, 0, p->mpidr);	...
 *	ENTERED(h, 1);					the handler runs, and serves commands now
 *	IS(SDEI_PENDING, p, SDEI_EVENT_UNREGISTER, event);
 *	LEAVE(p);					it completes
 */
#ifndef CONFORM_H
#define CONFORM_H

#include "offsets.h"

#ifndef __ASSEMBLER__
#include "guest.h"
#include "sdei.h"
#include "smccc.h"

#define SDEI_SUCCESS			0
#define SDEI_NOT_SUPPORTED		(-1)
#define SDEI_INVALID			(-2)
#define SDEI_DENIED			(-3)
#define SDEI_PENDING			(-5)
#define SDEI_OUT_OF_RESOURCE		(-10)

#define SDEI_RM_PE			1
#define SDEI_RELATIVE			2	/* flag of EVENT_REGISTER, since 1.1 */
#define SDEI_INFO_ROUTING_MODE		3
#define SDEI_INFO_ROUTING_AFF		4

/* Handler states, as EVENT_STATUS tells them. */
#define ST_UNREGISTERED			0u
#define ST_REGISTERED			1u
#define ST_ENABLED			3u
#define ST_PENDING			4u	/* unregister pending */
#define ST_RUNNING_DISABLED		5u
#define ST_RUNNING			7u

#define MAX_PES				8
#define NO_EVENT			0xffffffffu

/* PSTATE in the layout of SPSR_EL1 */
#define PSTATE_NZCV			0xf0000000ul
#define PSTATE_TCO			(1ul << 25)
#define PSTATE_DIT			(1ul << 24)
#define PSTATE_UAO			(1ul << 23)
#define PSTATE_PAN			(1ul << 22)
#define PSTATE_SS			(1ul << 21)
#define PSTATE_IL			(1ul << 20)
#define PSTATE_ALLINT			(1ul << 13)
#define PSTATE_SSBS			(1ul << 12)
#define PSTATE_BTYPE			(3ul << 10)
#define PSTATE_DAIF			0x3c0ul
#define PSTATE_MODE			0x1ful
#define MODE_EL1H			0x5ul
#define MODE_EL0T			0x0ul

/* -- PEs */

struct frame {
	u64 x[31];
	u64 sp;
	u64 elr, spsr;
	u64 exit_id, exit_arg;		/* the call that ends the handler */
};
_Static_assert(offsetof(struct frame, elr) == F_ELR && offsetof(struct frame, exit_id) == F_EXIT &&
	       sizeof(struct frame) == F_SIZE, "asm.S lays this out");

struct command;

struct pe {
	volatile u64 spsr_at_entry;	/* of probe_entry: PSTATE before the handler's first instruction */
	volatile u64 resumed;		/* arrivals at resume_el1 and resume_el0 */
	volatile u64 resume_elr, resume_spsr, resume_pstate;
	u64 catch, catch_spsr;		/* where a synchronous exception goes on, if one is expected */
	volatile u64 catch_esr;
	u64 el0_sp;			/* of C while EL0 runs */
	volatile u64 el0_esr;
	/* asm.S knows what stands above */
	struct cpu *cpu;
	u64 index, mpidr;
	bool lost;			/* does not answer any more */
	bool used;			/* by the test that runs */
	struct command *volatile posted;
	volatile u64 depth;		/* handlers that run here and have not tried to complete yet */
	volatile u64 leaving;		/* handlers of this depth shall complete... */
	u64 exit_id, exit_arg;		/* ...by this call */
	volatile s64 refused;		/* what such a call returned, if it returned */
	volatile u64 refusals;
	const char *volatile at;	/* the first failure, if any */
	u64 line;
	char message[200];
};
_Static_assert(offsetof(struct pe, resumed) == PE_RESUMED && offsetof(struct pe, catch) == PE_CATCH &&
	       offsetof(struct pe, el0_sp) == PE_EL0_SP, "asm.S knows these");

extern struct pe pes[MAX_PES];
extern u32 nr_pes;			/* those that tests use */

static inline struct pe *this_pe(void) { return this_cpu()->guest; }

#define read_sysreg(name) ({ u64 _v; __asm__ volatile("mrs %0, " name : "=r"(_v) :: "memory"); _v; })
#define write_sysreg(name, v) __asm__ volatile("msr " name ", %0\n\tisb" :: "r"((u64)(v)) : "memory")

/* A command is carried out by its PE, inside of the handler if one holds there. */
struct command {
	s64 (*fn)(struct pe *p, const u64 *a);
	u64 a[6];
	volatile s64 result;
	volatile u64 depth;		/* in which it was carried out */
	volatile u64 taken, done;
};
struct command *post(struct pe *p, s64 (*fn)(struct pe *, const u64 *), u64 a0, u64 a1, u64 a2, u64 a3, u64 a4, u64 a5);
bool finish(struct pe *p, struct command *c);
/* A call which a handler that holds may interrupt: finish() it once that has left. */
struct command *post_call(struct pe *p, u32 id, u64 a1);
s64 run_on(struct pe *p, s64 (*fn)(struct pe *, const u64 *), u64 a0, u64 a1);

/* One SDEI call on a PE; the result is x0. */
s64 call_on(struct pe *p, u32 id, u64 a1, u64 a2, u64 a3, u64 a4, u64 a5);
#define CALL_(p, id, a1, a2, a3, a4, a5, ...)	call_on(p, id, a1, a2, a3, a4, a5)
#define CALL(p, ...)				CALL_(p, __VA_ARGS__, 0, 0, 0, 0, 0, 0)

/* -- failures.  The first one of a PE counts.  What follows it in the test is left out. */

void fail_at(const char *file, u64 line, const char *fmt, ...) __attribute__((format(printf, 3, 4)));
#define FAIL(...)		fail_at(__FILE__, __LINE__, __VA_ARGS__)
bool failed(void);
/* Who leaves a test must have said why; and one that has checked nothing has not passed. */
void leaves(const char *file, u64 line);
extern u32 checks;
#define TRY(ok)			do { if (!(ok) || failed()) { leaves(__FILE__, __LINE__); return; } checks++; } while (0)
#define CHECK(cond, ...)	do { if (!(cond)) FAIL(__VA_ARGS__); if (failed()) return; checks++; } while (0)

bool is_at(const char *file, u64 line, s64 want, struct pe *p, u32 id, u64 a1, u64 a2, u64 a3, u64 a4, u64 a5);
#define IS_(want, p, id, a1, a2, a3, a4, a5, ...)	is_at(__FILE__, __LINE__, want, p, id, a1, a2, a3, a4, a5)
#define OK(want, p, ...)	IS_(want, p, __VA_ARGS__, 0, 0, 0, 0, 0, 0)
/* The call on the PE has this result, or else the test fails. */
#define IS(want, p, ...)	TRY(OK(want, p, __VA_ARGS__))

/* The test cannot be done here. */
void skip(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
#define SKIP(...)		do { skip(__VA_ARGS__); return; } while (0)
#define NEEDS_PES(n)		do { if (nr_pes < (n)) SKIP("needs %u PEs, here are %u", (u32)(n), nr_pes); } while (0)

/* What the platform chose where the rule leaves it open. */
void note(const char *fmt, ...) __attribute__((format(printf, 1, 2)));

/* Ends the run: something is beyond repair. */
void bail_out(const char *fmt, ...) __attribute__((noreturn, format(printf, 1, 2)));

/* A wait for something that another PE or the firmware does: seconds, if the counter runs, else very many polls. */
struct patience { u64 polls, start; };
bool wait_more(struct patience *w);
#define WAIT(cond)		({ struct patience w_ = { 0 }; while (!(cond) && wait_more(&w_)) relax(); mb(); !!(cond); })
/* Time for what must not happen to happen. */
void settle(void);

/* -- handlers */

enum { HOLD = 1 };

struct handler {
	struct pe *pe;			/* who must run it; NULL: whoever takes a shared event */
	u32 event;
	bool hold;			/* serve commands until told to leave */
	void (*inside)(struct handler *h, struct frame *f);
	u64 exit_id, exit_arg;		/* EVENT_COMPLETE(0) if nothing is said */
	/* what is seen */
	volatile u64 entered, left;
	struct pe *volatile by;		/* the PE that ran it last */
	u64 x[18], sp;			/* at entry */
	u64 el, daif, spsel;
	u64 data;			/* for the test */
};

/* A blank handler of an event, on this PE (NULL: wherever). */
struct handler *handler_of(struct pe *p, u32 event, u32 flags);
void conform_entry(void);		/* the address to register */
void probe_entry(void);			/* the same, for handlers that look at their PSTATE */
void conform_vectors(void);
void resume_el1(void);			/* VBAR + 0x280 */
void resume_el0(void);			/* VBAR + 0x480 */

/* Registers, and enables, on p. */
struct handler *enlist_at(const char *file, u64 line, struct pe *p, u32 event, u32 flags, u64 mode, u64 affinity);
#define enlist(p, event, flags)	enlist_at(__FILE__, __LINE__, p, event, flags, SDEI_RM_ANY, 0)
#define enlist_routed(p, event, flags, to)	enlist_at(__FILE__, __LINE__, p, event, flags, SDEI_RM_PE, (to)->mpidr)

bool entered_at(const char *file, u64 line, struct handler *h, u64 times);
#define ENTERED(h, times)	TRY(entered_at(__FILE__, __LINE__, h, times))
/* The handler has run so many times, and goes on doing so. */
bool exactly_at(const char *file, u64 line, struct handler *h, u64 times);
#define EXACTLY(h, times)	TRY(exactly_at(__FILE__, __LINE__, h, times))

/* A handler of event 0 that runs on p, and holds. */
#define HELD(p)	({				\
	struct handler *h_ = enlist(p, 0, HOLD);\
						\
	TRIGGER(0, p);				\
	ENTERED(h_, 1);				\
	h_;					\
})

/* So many runs of it have completed. */
bool ended_at(const char *file, u64 line, struct handler *h, u64 times);
#define ENDED(h, times)	TRY(ended_at(__FILE__, __LINE__, h, times))

/* The innermost handler of the PE completes, by EVENT_COMPLETE(0) or another call. */
bool leave_at(const char *file, u64 line, struct pe *p, u64 id, u64 arg);
#define LEAVE(p)		TRY(leave_at(__FILE__, __LINE__, p, SDEI_EVENT_COMPLETE, 0))
#define LEAVE_BY(p, id, arg)	TRY(leave_at(__FILE__, __LINE__, p, id, arg))
/* A completing call that has to be refused. */
bool stays_at(const char *file, u64 line, struct pe *p, u64 id, u64 arg, s64 want);
#define STAYS(p, id, arg, want)	TRY(stays_at(__FILE__, __LINE__, p, id, arg, want))

bool status_is_at(const char *file, u64 line, struct pe *p, u32 event, u64 want);
#define STATUS_IS(want, p, event)	TRY(status_is_at(__FILE__, __LINE__, p, event, want))

/* -- the platform */

struct platform {
	u64 version;
	u32 private_slots, shared_slots;
	bool relative;
	/* events by kind: private normal, private critical, shared normal, shared critical; NO_EVENT where there is none */
	u32 events[2][2][2], nr[2][2];
	u32 ppis[8], spis[8], nr_ppis, nr_spis;
	u64 gicd, gicr;
	bool host;			/* somebody answers on the UART */
	u32 raise;			/* a firmware call that raises an event, or 0 */
};
extern struct platform platform;
#define PRIVATE_NORMAL(i)	platform.events[0][0][i]
#define PRIVATE_CRITICAL(i)	platform.events[0][1][i]
#define SHARED_NORMAL(i)	platform.events[1][0][i]
#define SHARED_CRITICAL(i)	platform.events[1][1][i]

void platform_init(void);

/* Asks the host for something; false, and its error's name, if it refuses. */
bool host_ask(u64 *value, char error[40], const char *fmt, ...) __attribute__((format(printf, 3, 4)));

/* Raises an event for a PE by what there is: EVENT_SIGNAL, its interrupt, or the host; false if that is refused. */
bool raise_event(u32 event, struct pe *p);
/* The same where it must not be refused: without a way to raise the event the test is skipped. */
bool trigger(u32 event, struct pe *p);
#define TRIGGER(event, p)	TRY(trigger(event, p))

/* Each of these gives NO_EVENT, and skips the test, if there is none. */
/* The platform's first event of a kind, which is 2 if it is shared, plus 1 if it is critical. */
u32 platform_event(u64 kind);
/* A bound interrupt that nobody uses. */
u32 bind_free(struct pe *p, bool shared);
/* A shared event; firmware without a normal one may let us bind an SPI. */
u32 shared_event(bool critical);

/* -- assembly */

/* A call with all of x0..x17 given and looked at, from a given PSTATE; waits until *arrived is not `before`. */
struct full {
	u64 in[18], out[18];
	u64 pstate;			/* NZCV, DAIF, SPSel, PAN, UAO, DIT, SSBS as SPSR has them; mask says which are set */
	u64 mask;
	u64 out_pstate;
	volatile u64 *arrived;
	u64 before, polls;
	u64 canaries;			/* a bit for each of x18..x30 that changed */
	u64 sp_changed;
};
void full_call_hvc(struct full *f);
void full_call_smc(struct full *f);
void full_call_end(void);
void full_call_hvc_after(void), full_call_smc_after(void);	/* where the call returns to */
static inline void full_call(struct full *f) { (machine.sdei_smc ? full_call_smc : full_call_hvc)(f); }

struct spin {
	volatile u64 stop, beats;
};
/* The PE is at it, and not in some handler or exception. */
bool beats_at(const char *file, u64 line, const struct spin *s);
#define BEATS(s)	TRY(beats_at(__FILE__, __LINE__, s))
/* Spins with known values in x2..x30 and NZCV until told to stop; a bit for each that changed, bit 31 for NZCV. */
u64 spin_canaries(struct spin *s, u64 spsel);

/* Runs EL0 code; how it came back is in p->el0_esr. */
void run_el0(struct pe *p, void (*code)(void), u64 arg);
void el0_spin(void), el0_hvc(void), el0_smc(void);

/* -- PSCI */

s64 psci_call(u32 id, u64 a1, u64 a2, u64 a3);
#define PSCI_CPU_SUSPEND64	0xc4000001u
#define PSCI_CPU_OFF		0x84000002u
#define PSCI_AFFINITY_INFO64	0xc4000004u
void secondary_entry(void);		/* of lib/start.S */
bool turn_off(struct pe *p);
bool turn_on(struct pe *p);

/* -- tests */

struct test {
	const char *id, *rule, *title;
	void (*run)(const struct test *t);
	u64 arg;
};

struct group {
	const struct test *tests;
	u32 count;
};
extern const struct group calls_group, entry_group, context_group, signal_group, shared_group, bind_group, priority_group,
	mask_group, reset_group, power_group, host_group;
struct group state_group(void);
#define GROUP(name)	const struct group name##_group = { name##_tests, sizeof(name##_tests) / sizeof(name##_tests[0]) }

#endif
#endif
