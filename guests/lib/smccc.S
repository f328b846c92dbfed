/* SPDX-License-Identifier: Apache-2.0 */
#include "smccc.h"

	/*
	 * void smccc_hvc(struct smccc_regs *r), void smccc_smc(struct smccc_regs *r):
	 * x0..x7 from r->x[], the call, x0..x3 back to r->x[].
	 * x19 keeps the pointer: SMCCC 1.0 leaves only x18 and above alone.
	 */
	.macro	call name, insn:vararg
	.globl	\name
\name:
	stp	x29, x30, [sp, #-32]!
	mov	x29, sp
	str	x19, [sp, #16]
	mov	x19, x0
	ldp	x6, x7, [x19, #48]
	ldp	x4, x5, [x19, #32]
	ldp	x2, x3, [x19, #16]
	ldp	x0, x1, [x19]
	\insn
	stp	x0, x1, [x19]
	stp	x2, x3, [x19, #16]
	ldr	x19, [sp, #16]
	ldp	x29, x30, [sp], #32
	ret
	.endm

	.text
	call	smccc_hvc, HVC_0
	call	smccc_smc, SMC_0
