/* SPDX-License-Identifier: Apache-2.0 */
#include "smccc.h"

	/* struct trap of reach.c */
#define T_RESUME	0
#define T_ARMED		8
#define T_TAKEN		16
#define T_ESR		24
#define T_FAR		32
#define T_ELR		40
#define T_SPSR		48

	/* As lib/vectors.S, but that synchronous exceptions of EL1 and of EL0 may be expected. */
	.section .text.vectors, "ax"
	.balign	2048
	.globl	reach_vectors
reach_vectors:
	.set	n, 0
	.rept	16
	.balign	128
	.if	n == 4 || n == 8		// 0x200, 0x400: synchronous, current EL with SP_ELx and lower EL
	b	trap_entry
	.else
	mov	x0, #n
	b	unexpected
	.endif
	.set	n, n + 1
	.endr

	.text
trap_entry:
	stp	x0, x1, [sp, #-16]!
	adrp	x0, trap
	add	x0, x0, :lo12:trap
	ldr	x1, [x0, #T_ARMED]
	cbz	x1, 1f
	str	xzr, [x0, #T_ARMED]
	ldr	x1, [x0, #T_TAKEN]
	add	x1, x1, #1
	str	x1, [x0, #T_TAKEN]
	mrs	x1, esr_el1
	str	x1, [x0, #T_ESR]
	mrs	x1, far_el1
	str	x1, [x0, #T_FAR]
	mrs	x1, elr_el1
	str	x1, [x0, #T_ELR]
	mrs	x1, spsr_el1
	str	x1, [x0, #T_SPSR]
	ldr	x1, [x0, #T_RESUME]
	msr	elr_el1, x1
	mov	x1, #0x3c5			// EL1h, everything masked
	msr	spsr_el1, x1
	ldp	x0, x1, [sp], #16
	eret
1:	mov	x0, #4
	b	unexpected

	/* An exception from here on leads to the next label "9". */
	.macro	arm
	adr	x16, 9f
	adrp	x17, trap
	add	x17, x17, :lo12:trap
	str	x16, [x17, #T_RESUME]
	mov	x16, #1
	str	x16, [x17, #T_ARMED]
	.endm

	/* u64 name(u64 address, u64 val): one instruction that may fail; its result is in x0 if it does not. */
	.macro	probe name, insn:vararg
	.globl	\name
\name:
	arm
	\insn
9:	ret
	.endm

	probe	probe_load, ldr w0, [x0]
	probe	probe_load_byte, ldrb w0, [x0]
	probe	probe_load_half, ldrh w0, [x0]
	probe	probe_load_pair, ldp x0, x1, [x0]
	probe	probe_load_exclusive, ldxr w0, [x0]
	probe	probe_store, str wzr, [x0]
	probe	probe_store_byte, strb wzr, [x0]
	probe	probe_store_val, str w1, [x0]
	probe	probe_store_pair, stp xzr, xzr, [x0]
	probe	probe_translate, at s1e1r, x0
	probe	probe_hcr, mrs x0, hcr_el2
	probe	probe_vttbr, msr S3_4_C2_C1_0, x0
	probe	probe_eret_el2, msr elr_el2, x0

	/* void probe_fetch(u64 address) */
	.globl	probe_fetch
probe_fetch:
	stp	x29, x30, [sp, #-16]!
	arm
	blr	x0
9:	ldp	x29, x30, [sp], #16
	ret

	/* void probe_el0(u64 pc, u64 x0, u64 x1): the code at pc, at EL0, until it traps */
	.globl	probe_el0
probe_el0:
	stp	x29, x30, [sp, #-16]!
	arm
	msr	elr_el1, x0
	mov	x16, #0x3c0			// EL0t, everything masked
	msr	spsr_el1, x16
	mov	x0, x1
	mov	x1, x2
	isb
	eret
9:	ldp	x29, x30, [sp], #16
	ret

	/* At EL0.  SVC is how they say that nothing has stopped them. */
	.globl	el0_hvc
el0_hvc:
	HVC_0
	svc	#0
	.globl	el0_smc
el0_smc:
	SMC_0
	svc	#0
	.globl	el0_load
el0_load:
	ldr	w0, [x0]
	svc	#0
	.globl	el0_store
el0_store:
	str	wzr, [x0]
	svc	#0

	/* u64 name(u64 id): a call whose immediate is not zero */
	.macro	immediate name, insn
	.globl	\name
\name:
	mov	x1, xzr
	mov	x2, xzr
	mov	x3, xzr
	.inst	\insn
	ret
	.endm

	immediate hvc_1, 0xd4000022
	immediate hvc_ffff, 0xd41fffe2
	immediate smc_1, 0xd4000023
	immediate smc_ffff, 0xd41fffe3
