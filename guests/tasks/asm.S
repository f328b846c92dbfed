/* SPDX-License-Identifier: Apache-2.0 */
/* In and out of the kernel. */
#include "config.h"
#include "tasks.h"

	.arch_extension	fp
	.arch_extension	simd

	.section .text.vectors, "ax"
	.balign	2048
	.globl	tasks_vectors
tasks_vectors:
	.set	n, 0
	.rept	16
	.balign	128
	.if	n == 8				// 0x400: synchronous, from EL0
	b	sync_el0
	.elseif	n == 9				// 0x480: IRQ, from EL0; the SDEI handler resumes here as well
	b	irq_el0
	.else
	mov	x0, #n
	b	unexpected
	.endif
	.set	n, n + 1
	.endr

	.text
	/* SP_EL1 is the end of this PE's stack, as always while a task runs. */
	.macro	enter how
	stp	x0, x1, [sp, #-16]!
	mrs	x0, tpidr_el1
	ldr	x0, [x0, #CPU_GUEST]
	ldr	x0, [x0, #PE_CURRENT]
	stp	x2, x3, [x0, #T_X + 16]
	stp	x4, x5, [x0, #T_X + 32]
	stp	x6, x7, [x0, #T_X + 48]
	stp	x8, x9, [x0, #T_X + 64]
	stp	x10, x11, [x0, #T_X + 80]
	stp	x12, x13, [x0, #T_X + 96]
	stp	x14, x15, [x0, #T_X + 112]
	stp	x16, x17, [x0, #T_X + 128]
	stp	x18, x19, [x0, #T_X + 144]
	stp	x20, x21, [x0, #T_X + 160]
	stp	x22, x23, [x0, #T_X + 176]
	stp	x24, x25, [x0, #T_X + 192]
	stp	x26, x27, [x0, #T_X + 208]
	stp	x28, x29, [x0, #T_X + 224]
	mrs	x1, sp_el0
	stp	x30, x1, [x0, #T_X + 240]	// and T_SP
	mrs	x2, elr_el1
	mrs	x3, spsr_el1
	stp	x2, x3, [x0, #T_PC]		// and T_PSTATE
	mrs	x1, tpidr_el0
	str	x1, [x0, #T_TPIDR]
	ldp	x2, x3, [sp], #16
	stp	x2, x3, [x0, #T_X]
	mov	x29, xzr
	mov	x30, xzr
	mov	x0, #\how
	bl	kernel_entry
	b	kernel_exit
	.endm

sync_el0:
	enter	ENTRY_SVC
irq_el0:
	enter	ENTRY_IRQ

	/* void kernel_start(void): from here on the kernel is entered by exceptions alone */
	.globl	kernel_start
kernel_start:
	mrs	x0, tpidr_el1
	ldr	x0, [x0, #CPU_INDEX]
	bl	stack_of
	mov	sp, x0
	mov	x0, #ENTRY_START
	bl	kernel_entry
	/* fall through */

kernel_exit:
	mrs	x0, tpidr_el1
	ldr	x0, [x0, #CPU_GUEST]
	ldr	x0, [x0, #PE_CURRENT]
	ldr	x1, [x0, #T_TPIDR]
	msr	tpidr_el0, x1
	ldp	x2, x3, [x0, #T_PC]
	msr	elr_el1, x2
	msr	spsr_el1, x3
	ldp	x30, x1, [x0, #T_X + 240]
	msr	sp_el0, x1
	ldp	x28, x29, [x0, #T_X + 224]
	ldp	x26, x27, [x0, #T_X + 208]
	ldp	x24, x25, [x0, #T_X + 192]
	ldp	x22, x23, [x0, #T_X + 176]
	ldp	x20, x21, [x0, #T_X + 160]
	ldp	x18, x19, [x0, #T_X + 144]
	ldp	x16, x17, [x0, #T_X + 128]
	ldp	x14, x15, [x0, #T_X + 112]
	ldp	x12, x13, [x0, #T_X + 96]
	ldp	x10, x11, [x0, #T_X + 80]
	ldp	x8, x9, [x0, #T_X + 64]
	ldp	x6, x7, [x0, #T_X + 48]
	ldp	x4, x5, [x0, #T_X + 32]
	ldp	x2, x3, [x0, #T_X + 16]
	ldp	x0, x1, [x0, #T_X]
	eret

	/* void simd_save(struct task *t), void simd_load(const struct task *t): the kernel itself uses none of these */
	.macro	all_vectors insn
	.irp	n, 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30
	vector_pair \insn, \n
	.endr
	.endm
	.macro	vector_pair insn, n
	.set	m, \n + 1
	.altmacro
	vector_pair_of \insn, \n, %m
	.noaltmacro
	.endm
	.macro	vector_pair_of insn, n, m
	\insn	q\n, q\m, [x1, #16 * \n]
	.endm

	.globl	simd_save
simd_save:
	add	x1, x0, #T_Q
	all_vectors stp
	mrs	x1, fpcr
	mrs	x2, fpsr
	stp	x1, x2, [x0, #T_FPCR]
	ret

	.globl	simd_load
simd_load:
	add	x1, x0, #T_Q
	all_vectors ldp
	ldp	x1, x2, [x0, #T_FPCR]
	msr	fpcr, x1
	msr	fpsr, x2
	ret
