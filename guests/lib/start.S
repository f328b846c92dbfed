/* SPDX-License-Identifier: Apache-2.0 */
/* Entry of the boot CPU (x0 = device tree) and of the others (x0 = PSCI context id = index in cpus[]). */
#include "config.h"

	.section .text.start, "ax"

	.globl _start
_start:
	msr	daifset, #15
	msr	spsel, #1
	mov	x19, x0
	mrs	x20, CurrentEL
	adrp	x0, vectors
	add	x0, x0, :lo12:vectors
	cmp	x20, #(1 << 2)
	b.ne	1f				// VBAR_EL1 means nothing here; boot() reports it
	msr	vbar_el1, x0
	msr	tpidr_el1, xzr			// until boot() knows which CPU this is: stack of CPU#0
	isb
1:	adrp	x0, __bss_start
	add	x0, x0, :lo12:__bss_start
	adrp	x1, __bss_end
	add	x1, x1, :lo12:__bss_end
2:	cmp	x0, x1
	b.hs	3f
	stp	xzr, xzr, [x0], #16
	b	2b
3:	mov	x0, #0
	bl	stack_of
	mov	sp, x0
	mov	x29, xzr
	mov	x30, xzr
	mov	x0, x19
	mov	x1, x20
	bl	boot				// does not return
	b	.

	.globl secondary_entry
secondary_entry:
	msr	daifset, #15
	msr	spsel, #1
	cmp	x0, #MAX_CPUS
	b.hs	.				// not one of ours: stay put
	adrp	x1, vectors
	add	x1, x1, :lo12:vectors
	msr	vbar_el1, x1
	mov	x19, x0
	bl	stack_of
	mov	sp, x0
	adrp	x0, cpus
	add	x0, x0, :lo12:cpus
	add	x0, x0, x19, lsl #CPU_SHIFT
	msr	tpidr_el1, x0
	isb
	mov	x29, xzr
	mov	x30, xzr
	bl	secondary			// does not return
	b	.

	/* x0: index -> x0: top of that CPU's stack; uses x0 and x1 only */
	.globl stack_of
stack_of:
	adrp	x1, stacks
	add	x1, x1, :lo12:stacks
	add	x0, x0, #1
	add	x0, x1, x0, lsl #STACK_SHIFT
	ret

	.section .stacks, "aw", %nobits
	.balign	16
stacks:
	.space	MAX_CPUS * STACK_SIZE
