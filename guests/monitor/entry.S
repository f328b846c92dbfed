/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Into the monitor and out again.  While the guest runs, SP_EL2 points to the vCPU's mailbox, so that its registers can
 * be saved without a register to spare; while the monitor runs, to the stack at the end of the same page.
 */
#include "layout.h"

#define W(word)	((word) * 8)

	/* x0: this PE's mailbox, SP: its stack.  QEMU numbers 16 PEs a cluster. */
	.macro	find_mailbox
	mrs	x2, mpidr_el1
	and	x3, x2, #0xf
	ubfx	x4, x2, #8, #8
	add	x3, x3, x4, lsl #4
	adrp	x4, _start			// the block is aligned, so this is its base
	add	x0, x4, #MAILBOXES
	add	x0, x0, x3, lsl #12
	add	sp, x0, #MAILBOX_SIZE
	.endm

	.section .text.start, "ax"

	/* The boot CPU comes in here, at EL2 with the MMU off; x0 means nothing. */
	.globl	_start
_start:
	mov	x1, #1
	b	1f
	/* The others come in here, by PSCI CPU_ON. */
	.globl	secondary_start
secondary_start:
	mov	x1, #0
1:	find_mailbox
	adrp	x4, vectors
	add	x4, x4, :lo12:vectors
	msr	vbar_el2, x4
	isb
	mov	x19, x0
	bl	monitor_start			// (mailbox, whether it is the boot CPU)
	b	resume

	/* void *monitor_base(void), u64 psci(u64 id, u64 a, u64 b, u64 c) */
	.globl	monitor_base
monitor_base:
	adrp	x0, _start
	ret
	.globl	psci
psci:
	.inst	0xd4000003			// smc #0, which the assembler thinks needs EL3
	ret

	.section .text.vectors, "ax"

	/* All registers of the guest but x18, to the mailbox or from there: stp or ldp. */
	.macro	registers op
	\op	x19, x20, [sp, #W(M_X18 + 1)]
	\op	x21, x22, [sp, #W(M_X18 + 3)]
	\op	x23, x24, [sp, #W(M_X18 + 5)]
	\op	x25, x26, [sp, #W(M_X18 + 7)]
	\op	x27, x28, [sp, #W(M_X18 + 9)]
	\op	x29, x30, [sp, #W(M_X18 + 11)]
	\op	x16, x17, [sp, #W(M_X0 + 16)]
	\op	x14, x15, [sp, #W(M_X0 + 14)]
	\op	x12, x13, [sp, #W(M_X0 + 12)]
	\op	x10, x11, [sp, #W(M_X0 + 10)]
	\op	x8, x9, [sp, #W(M_X0 + 8)]
	\op	x6, x7, [sp, #W(M_X0 + 6)]
	\op	x4, x5, [sp, #W(M_X0 + 4)]
	\op	x2, x3, [sp, #W(M_X0 + 2)]
	\op	x0, x1, [sp, #W(M_X0)]
	.endm

	.macro	leave_guest
	registers stp
	mrs	x0, elr_el2
	mrs	x1, spsr_el2
	stp	x0, x1, [sp, #W(M_PC)]
	mrs	x0, sctlr_el1
	stp	x0, x18, [sp, #W(M_SCTLR)]
	mov	x19, sp
	mov	x0, sp
	add	sp, x0, #MAILBOX_SIZE
	.endm

	.macro	vector target
	.balign	0x80
	b	\target
	.endm

	.balign	2048
vectors:
	.rept	8
	vector	dead				// from EL2 itself
	.endr
	vector	synchronous
	vector	dead				// IRQs go to the guest directly
	vector	fiq
	vector	dead				// and so do SErrors
	.rept	4
	vector	dead				// no AArch32
	.endr

synchronous:
	leave_guest
	bl	monitor_synchronous
	b	resume
fiq:
	leave_guest
	bl	monitor_fiq
resume:
	mov	sp, x19
	ldp	x0, x1, [sp, #W(M_PC)]
	msr	elr_el2, x0
	msr	spsr_el2, x1
	ldr	x18, [sp, #W(M_X18)]
	registers ldp
	eret

	/* A defect of ours, whatever SP is. */
dead:
	find_mailbox
	b	monitor_dead
