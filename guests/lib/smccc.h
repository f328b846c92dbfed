/* SPDX-License-Identifier: Apache-2.0 */
/* SMC Calling Convention */
#ifndef SMCCC_H
#define SMCCC_H

#ifdef __ASSEMBLER__
/* Spelt as words because assemblers may refuse "smc" unless told that EL3 exists. */
#define HVC_0	.inst 0xd4000002
#define SMC_0	.inst 0xd4000003
#else
#include "guest.h"

#define SMCCC_NOT_SUPPORTED	(-1)

struct smccc_regs {
	u64 x[8];
};
void smccc_hvc(struct smccc_regs *r);
void smccc_smc(struct smccc_regs *r);

static inline void smccc(bool smc, struct smccc_regs *r)
{
	if (smc)
		smccc_smc(r);
	else
		smccc_hvc(r);
}
#endif
#endif
