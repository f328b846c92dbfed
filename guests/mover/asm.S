/* SPDX-License-Identifier: Apache-2.0 */
#include "callee.h"
#include "config.h"
#include "mover.h"

	.arch_extension	fp
	.arch_extension	simd

	.section .text.vectors, "ax"
	.balign	2048
	.globl	mover_vectors
mover_vectors:
	.set	n, 0
	.rept	16
	.balign	128
	.if	n == 8				// 0x400: synchronous, from EL0
	b	sync_el0
	.else
	mov	x0, #n
	b	unexpected
	.endif
	.set	n, n + 1
	.endr

	.text

	/* Where EVENT_COMPLETE_AND_RESUME leads to: counts, and goes on with what the event had interrupted. */
	.globl	resumed
resumed:
	stp	x0, x1, [sp, #-16]!
	mrs	x0, tpidr_el1
	ldr	x0, [x0, #CPU_GUEST]
	ldr	x1, [x0, #PE_RESUMED]
	add	x1, x1, #1
	str	x1, [x0, #PE_RESUMED]
	ldp	x0, x1, [sp], #16
	eret

	/* void el0_run(u64 bank, u64 code) */
	.globl	el0_run
el0_run:
	push_callee_saved
	msr	elr_el1, x1
	mov	x1, #DAIF_ALL			// EL0t
	msr	spsr_el1, x1
	isb
	eret

	/* SP_EL1 is where el0_run has left it. */
sync_el0:
	mrs	x0, esr_el1
	lsr	x0, x0, #26
	cmp	x0, #0x15			// SVC
	b.ne	1f
	msr	tpidr_el0, xzr
	pop_callee_saved
	ret
1:	mov	x0, #8
	b	unexpected

	/*
	 * Rounds of comparing all registers with the bank they were loaded from.  A round has two parts, for to compare
	 * one needs registers: the low part keeps x3..x30 and needs x0 (the bank), x1, x2; the high part keeps x0..x27
	 * and needs x28 (the bank), x29, x30.  The low part looks at everything else, too.  Nothing here changes flags.
	 */
	/* x1 differs from x2: \code says in what. */
	.macro	expect_same code
	eor	x1, x1, x2
	cbz	x1, 1f
	mov	x2, #\code
	b	9f
1:
	.endm

	.macro	expect_vector n
	umov	x1, v\n\().d[0]
	ldr	x2, [x0, #B_Q + 16 * \n]
	expect_same BAD_Q(\n)
	umov	x1, v\n\().d[1]
	ldr	x2, [x0, #B_Q + 16 * \n + 8]
	expect_same BAD_Q(\n + 32)
	.endm

	.macro	expect_sysreg n, name, when
	mrs	x1, \name
	ldr	x2, [x0, #B_SYS + 8 * \n]
	expect_same BAD_SYS(\n)
	.endm
#define EXPECT_SYSREG(n, name, when)	expect_sysreg n, name, when;

	.macro	rounds prefix, el
	.globl	\prefix\()_rounds
	.globl	\prefix\()_rounds_end
	.globl	\prefix\()_low
	.globl	\prefix\()_low_end
	.globl	\prefix\()_high
	.globl	\prefix\()_high_end
\prefix\()_rounds:
	.irp	n, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31
	ldr	q\n, [x0, #B_Q + 16 * \n]
	.endr
	ldr	x1, [x0, #B_FPCR]
	msr	fpcr, x1
	ldr	x1, [x0, #B_FPSR]
	msr	fpsr, x1
	.if	\el
	push_callee_saved
	mov	x1, sp				// of EL1's own stack; the next line may turn to the other
	str	x1, [x0, #B_SP_NOW]
	ldr	x1, [x0, #B_SP]
	msr	sp_el0, x1
	ldr	x2, [x0, #B_SPSEL]
	msr	spsel, x2
	cbnz	x2, 1f
	str	x1, [x0, #B_SP_NOW]
1:
	.else
	ldr	x1, [x0, #B_SP]
	mov	sp, x1
	str	x1, [x0, #B_SP_NOW]
	.endif
	ldr	x1, [x0, #B_NZCV]
	msr	nzcv, x1
	.irp	n, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30
	ldr	x\n, [x0, #B_X + 8 * \n]
	.endr

\prefix\()_low:
	.irp	n, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30
	mov	x1, x\n
	ldr	x2, [x0, #B_X + 8 * \n]
	expect_same BAD_X(\n)
	.endr
	mov	x1, sp
	ldr	x2, [x0, #B_SP_NOW]
	expect_same BAD_SP
	mrs	x1, nzcv
	ldr	x2, [x0, #B_NZCV]
	expect_same BAD_NZCV
	mrs	x1, fpcr
	ldr	x2, [x0, #B_FPCR]
	expect_same BAD_FPCR
	mrs	x1, fpsr
	ldr	x2, [x0, #B_FPSR]
	expect_same BAD_FPSR
	.irp	n, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31
	expect_vector \n
	.endr
	SYSREGS_EL0(EXPECT_SYSREG)
	.if	\el
	mrs	x1, daif
	mov	x2, #DAIF_ALL
	expect_same BAD_DAIF
	mrs	x1, CurrentEL
	mov	x2, #4
	expect_same BAD_EL
	mrs	x1, spsel
	ldr	x2, [x0, #B_SPSEL]
	expect_same BAD_SPSEL
	cbz	x2, 2f
	mrs	x1, sp_el0			// which has this name only as long as it is not SP
	ldr	x2, [x0, #B_SP]
	expect_same BAD_SP_EL0
2:	SYSREGS_EL1(EXPECT_SYSREG)
	.endif
	ldr	x1, [x0, #B_BEATS]
	add	x1, x1, #1
	str	x1, [x0, #B_BEATS]
	mov	x2, #0
	ldr	x1, [x0, #B_STOP]
	cbnz	x1, 9f
	ldr	x1, [x0, #B_ROUNDS]
	sub	x1, x1, #1
	str	x1, [x0, #B_ROUNDS]
	cbz	x1, 9f
\prefix\()_low_end:
	mov	x28, x0
	ldp	x0, x1, [x28, #B_X]
	ldr	x2, [x28, #B_X + 16]
	mov	x30, #4

	/* x30 counts: this part is shorter, and gets as much time by being repeated. */
\prefix\()_high:
	.irp	n, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27
	ldr	x29, [x28, #B_X + 8 * \n]
	eor	x29, x29, x\n
	cbz	x29, 1f
	mov	x30, #BAD_X(\n)
	b	8f
1:
	.endr
	sub	x30, x30, #1
	cbnz	x30, \prefix\()_high
\prefix\()_high_end:
	mov	x0, x28
	ldp	x28, x29, [x0, #B_X + 8 * 28]
	ldr	x30, [x0, #B_X + 8 * 30]
	b	\prefix\()_low

8:	mov	x0, x28
	mov	x1, x29
	mov	x2, x30
9:	cbz	x2, 1f
	str	x1, [x0, #B_DIFF]
1:	str	x2, [x0, #B_BAD]
	.if	\el
	msr	spsel, #1
	pop_callee_saved
	ret
	.else
	svc	#0
	.endif
\prefix\()_rounds_end:
	.endm

	/* void el1_rounds(struct bank *b) */
	rounds	el1, 1

	/* The same at EL0, on pages of its own. */
	.section .text.el0, "ax"
	.balign	4096
	.globl	el0_begin
el0_begin:
	rounds	el0, 0
	.balign	4096
	.globl	el0_end
el0_end:
