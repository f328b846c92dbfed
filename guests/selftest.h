/* SPDX-License-Identifier: Apache-2.0 */
/* Between selftest.c and selftest_asm.S: one EVENT_SIGNAL with all registers under control. */
#ifndef SELFTEST_H
#define SELFTEST_H

/* Offsets in struct probe, which also is the beginning of struct vcpu. */
#define P_IN		0
#define P_IN_NZCV	152
#define P_OUT		160
#define P_OUT_NZCV	312
#define P_SP		320
#define P_OUT_SP	328
#define P_ARRIVED	336
#define P_BEFORE	344
#define P_SPINS		352
#define P_PC		360
#define P_PSTATE	368
#define P_IRQ_EXPECTED	376
#define P_IRQ		384
#define P_IRQ_WRONG	392
#define P_IRQ_ELR	400
#define P_IRQ_SPSR	408
#define P_IRQ_DAIF	416

#ifndef __ASSEMBLER__
#include "guest.h"

struct probe {
	u64 in[19];		/* x0..x18 for the call... */
	u64 in_nzcv;
	u64 out[19];		/* ...and afterwards */
	u64 out_nzcv;
	u64 sp, out_sp;
	u64 *arrived;		/* the handler counts here; wait until it differs from... */
	u64 before;
	u64 spins;		/* but not longer than this */
	u64 pc, pstate;		/* what ELR_EL1 and SPSR_EL1 have to be at VBAR + 0x280 */
	u64 irq_expected;
	u64 irq;		/* arrived at VBAR + 0x280 and all was right */
	u64 irq_wrong, irq_elr, irq_spsr, irq_daif;
};
#define P_CHECK(field, off) _Static_assert(offsetof(struct probe, field) == off, #field)
P_CHECK(in, P_IN);
P_CHECK(in_nzcv, P_IN_NZCV);
P_CHECK(out, P_OUT);
P_CHECK(out_nzcv, P_OUT_NZCV);
P_CHECK(sp, P_SP);
P_CHECK(out_sp, P_OUT_SP);
P_CHECK(arrived, P_ARRIVED);
P_CHECK(before, P_BEFORE);
P_CHECK(spins, P_SPINS);
P_CHECK(pc, P_PC);
P_CHECK(pstate, P_PSTATE);
P_CHECK(irq_expected, P_IRQ_EXPECTED);
P_CHECK(irq, P_IRQ);
P_CHECK(irq_wrong, P_IRQ_WRONG);
P_CHECK(irq_elr, P_IRQ_ELR);
P_CHECK(irq_spsr, P_IRQ_SPSR);
P_CHECK(irq_daif, P_IRQ_DAIF);

void probe_hvc(struct probe *p);
void probe_smc(struct probe *p);
extern const char probe_end[], vectors[];
#endif
#endif
