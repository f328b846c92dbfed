/* SPDX-License-Identifier: Apache-2.0 */
/*
 * void hold(struct registers *values, u64 spins), void hold_calling(struct registers *values, u64 calls)
 *
 * Between loading and storing, every register but x28 (the counter; its loop leaves the flags alone) and sp holds a
 * value of the caller's, so the pointer to the values and what the C code wants kept are on the stack. A wrong sp ends
 * in a fault: that is found as well.
 */
#define NZCV	248
#define FPCR	256
#define FPSR	264
#define TPIDR	272
#define V	288		/* aligned to 16 */

#define VALUES	0		/* in the frame */
#define COUNT	8
#define SCRATCH	16
#define CALLER	32
#define FRAME	224

	.macro	save_caller
	sub	sp, sp, #FRAME
	stp	x0, x1, [sp, #VALUES]
	stp	x19, x20, [sp, #CALLER]
	stp	x21, x22, [sp, #CALLER + 16]
	stp	x23, x24, [sp, #CALLER + 32]
	stp	x25, x26, [sp, #CALLER + 48]
	stp	x27, x28, [sp, #CALLER + 64]
	stp	x29, x30, [sp, #CALLER + 80]
	stp	d8, d9, [sp, #CALLER + 96]
	stp	d10, d11, [sp, #CALLER + 112]
	stp	d12, d13, [sp, #CALLER + 128]
	stp	d14, d15, [sp, #CALLER + 144]
	mrs	x2, fpcr
	mrs	x3, tpidr_el0
	stp	x2, x3, [sp, #CALLER + 160]
	.endm

	.macro	restore_caller
	ldp	x2, x3, [sp, #CALLER + 160]
	msr	fpcr, x2
	msr	tpidr_el0, x3
	ldp	x19, x20, [sp, #CALLER]
	ldp	x21, x22, [sp, #CALLER + 16]
	ldp	x23, x24, [sp, #CALLER + 32]
	ldp	x25, x26, [sp, #CALLER + 48]
	ldp	x27, x28, [sp, #CALLER + 64]
	ldp	x29, x30, [sp, #CALLER + 80]
	ldp	d8, d9, [sp, #CALLER + 96]
	ldp	d10, d11, [sp, #CALLER + 112]
	ldp	d12, d13, [sp, #CALLER + 128]
	ldp	d14, d15, [sp, #CALLER + 144]
	add	sp, sp, #FRAME
	.endm

	/* \op is ldp or stp; \base is a register of which the operation is no part. */
	.macro	all_v op, base
	.irp	n, 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30
	v_pair	\op, \n, %(\n + 1), \base
	.endr
	.endm

	.altmacro
	.macro	v_pair op, n, m, base
	\op	q\n, q\m, [\base, #(\n * 16)]
	.endm
	.macro	x_pair op, n, m, base
	\op	x\n, x\m, [\base, #(\n * 8)]
	.endm

	.macro	load_all
	mov	x30, x0
	ldr	x0, [x30, #NZCV]
	msr	nzcv, x0
	ldr	x0, [x30, #FPCR]
	msr	fpcr, x0
	ldr	x0, [x30, #FPSR]
	msr	fpsr, x0
	ldr	x0, [x30, #TPIDR]
	msr	tpidr_el0, x0
	add	x0, x30, #V
	all_v	ldp, x0
	.irp	n, 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26
	x_pair	ldp, \n, %(\n + 1), x30
	.endr
	ldr	x28, [sp, #COUNT]
	ldp	x29, x30, [x30, #232]
	.endm

	.macro	store_all
	str	x0, [sp, #SCRATCH]
	ldr	x0, [sp, #VALUES]
	.irp	n, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28
	x_pair	stp, \n, %(\n + 1), x0
	.endr
	str	x30, [x0, #240]
	str	x1, [x0, #8]
	ldr	x1, [sp, #SCRATCH]
	str	x1, [x0]
	mrs	x1, nzcv
	str	x1, [x0, #NZCV]
	mrs	x1, fpcr
	str	x1, [x0, #FPCR]
	mrs	x1, fpsr
	str	x1, [x0, #FPSR]
	mrs	x1, tpidr_el0
	str	x1, [x0, #TPIDR]
	add	x1, x0, #V
	all_v	stp, x1
	.endm

	.globl	hold
hold:
	save_caller
	load_all
1:	sub	x28, x28, #1
	cbnz	x28, 1b
	store_all
	restore_caller
	ret

	.globl	hold_calling
hold_calling:
	save_caller
	load_all
	mov	x8, #172		// getpid: every register but x0 comes back
1:	svc	#0
	sub	x28, x28, #1
	cbnz	x28, 1b
	store_all
	restore_caller
	ret

	.section .note.GNU-stack, "", %progbits
