/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Nothing here expects an exception, except that EVENT_COMPLETE_AND_RESUME may be told to go on at VBAR + 0x280.
 * That slot therefore branches away with every register untouched; all the others report and end the run.
 */
#include "config.h"

	.section .text.vectors, "ax"
	.balign	2048
	.globl vectors
vectors:
	.set	n, 0
	.rept	16
	.balign	128
	.if	n == 5				// 0x280: IRQ, current EL with SP_ELx
	b	irq_entry
	.else
	mov	x0, #n
	b	unexpected
	.endif
	.set	n, n + 1
	.endr

	.text
	/* A guest that resumes at 0x280 has its own irq_entry. */
	.weak	irq_entry
irq_entry:
	mov	x0, #5
	/* fall through */

	/*
	 * x0: vector number.  SP may be what went wrong, and we never go back: start again at the top of this
	 * CPU's stack.
	 */
	.globl	unexpected
unexpected:
	mov	x19, x0
	mrs	x0, tpidr_el1
	cbz	x0, 1f
	ldr	x0, [x0, #CPU_INDEX]
1:	bl	stack_of
	mov	sp, x0
	mov	x0, x19
	mrs	x1, esr_el1
	mrs	x2, elr_el1
	mrs	x3, far_el1
	mrs	x4, spsr_el1
	bl	unexpected_exception		// does not return
	b	.
