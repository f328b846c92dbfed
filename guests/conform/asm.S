/* SPDX-License-Identifier: Apache-2.0 */
#include "callee.h"
#include "config.h"
#include "conform.h"
#include "smccc.h"

	.macro	pe to
	mrs	\to, tpidr_el1
	ldr	\to, [\to, #CPU_GUEST]
	.endm

	/* -- vectors.  Slots that nobody expects lead to lib/vectors.S's report. */

	.text
	.balign	2048
	.globl	conform_vectors
conform_vectors:
	.set	n, 0
	.rept	16
	.balign	128
	.if	n == 4				// 0x200: synchronous, current EL with SP_ELx
	b	sync_el1
	.elseif	n == 5				// 0x280 and 0x480: where EVENT_COMPLETE_AND_RESUME leads to
	.globl	resume_el1
resume_el1:
	b	resumed
	.elseif	n == 8				// 0x400: synchronous, from EL0
	b	sync_el0
	.elseif	n == 9
	.globl	resume_el0
resume_el0:
	b	resumed
	.else
	mov	x0, #n
	b	unexpected
	.endif
	.set	n, n + 1
	.endr

sync_el1:
	stp	x0, x1, [sp, #-16]!
	mrs	x0, elr_el1
	adrp	x1, probe_entry
	add	x1, x1, :lo12:probe_entry
	sub	x1, x1, x0
	cbnz	x1, 1f
	pe	x1
	add	x0, x0, #4
	msr	elr_el1, x0
	mrs	x0, spsr_el1
	str	x0, [x1, #PE_ENTRY_SPSR]
	ldp	x0, x1, [sp], #16
	eret
1:	pe	x1
	cbz	x1, 2f
	ldr	x0, [x1, #PE_CATCH]
	cbz	x0, 2f
	msr	elr_el1, x0
	ldr	x0, [x1, #PE_CATCH + 8]
	msr	spsr_el1, x0
	str	xzr, [x1, #PE_CATCH]
	mrs	x0, esr_el1
	str	x0, [x1, #PE_CATCH_ESR]
	ldp	x0, x1, [sp], #16
	eret
2:	mov	x0, #4
	b	unexpected

resumed:
	stp	x0, x1, [sp, #-32]!
	str	x2, [sp, #16]
	pe	x0
	mrs	x1, elr_el1
	mrs	x2, spsr_el1
	stp	x1, x2, [x0, #PE_RESUME_ELR]
	mrs	x1, nzcv
	mrs	x2, daif
	orr	x1, x1, x2
	mrs	x2, currentel
	orr	x1, x1, x2
	mrs	x2, spsel
	orr	x1, x1, x2
	str	x1, [x0, #PE_RESUME_PSTATE]
	ldr	x1, [x0, #PE_RESUMED]
	add	x1, x1, #1
	str	x1, [x0, #PE_RESUMED]
	ldr	x2, [sp, #16]
	ldp	x0, x1, [sp], #32
	eret

	/* -- handlers */

	/* probe_entry begins with an exception of its own, whose SPSR_EL1 is PSTATE as the firmware left it. */
	.globl	probe_entry
probe_entry:
	.inst	0				// UDF
	.globl	conform_entry
conform_entry:
	sub	sp, sp, #F_SIZE
	stp	x0, x1, [sp, #0]
	stp	x2, x3, [sp, #16]
	stp	x4, x5, [sp, #32]
	stp	x6, x7, [sp, #48]
	stp	x8, x9, [sp, #64]
	stp	x10, x11, [sp, #80]
	stp	x12, x13, [sp, #96]
	stp	x14, x15, [sp, #112]
	stp	x16, x17, [sp, #128]
	str	x30, [sp, #240]
	bl	save_rest
	mov	x0, sp
	bl	conform_handler			// keeps x19..x29

	/* Firmware gives x0..x17 back when the handler completes; all else has to be as it was. */
end_handler:
	ldp	x0, x1, [sp, #F_ELR]
	msr	elr_el1, x0
	msr	spsr_el1, x1
	ldp	x18, x19, [sp, #144]
	ldp	x20, x21, [sp, #160]
	ldp	x22, x23, [sp, #176]
	ldp	x24, x25, [sp, #192]
	ldp	x26, x27, [sp, #208]
	ldp	x28, x29, [sp, #224]
	ldr	x30, [sp, #240]
	ldp	x0, x1, [sp, #F_EXIT]
	adrp	x2, machine_sdei_smc
	ldr	w2, [x2, :lo12:machine_sdei_smc]
	add	sp, sp, #F_SIZE
	cbnz	w2, 1f
	HVC_0
	b	2f
1:	SMC_0
2:	sub	sp, sp, #F_SIZE			// it was refused
	stp	x0, x1, [sp, #0]
	str	x30, [sp, #240]
	bl	save_rest
	mov	x0, sp
	bl	conform_refused
	b	end_handler

	/* What C would not keep, but for x30, which is in the frame already. */
save_rest:
	stp	x18, x19, [sp, #144]
	stp	x20, x21, [sp, #160]
	stp	x22, x23, [sp, #176]
	stp	x24, x25, [sp, #192]
	stp	x26, x27, [sp, #208]
	stp	x28, x29, [sp, #224]
	add	x1, sp, #F_SIZE
	str	x1, [sp, #248]
	mrs	x1, elr_el1
	mrs	x2, spsr_el1
	stp	x1, x2, [sp, #F_ELR]
	ret

	/* -- a call that looks at everything */

	.macro	canary r
	movz	x\r, #0xc0\r, lsl #48
	.endm

	/* Wherever mask says so, PSTATE's bits from \from; \mask keeps the bits. */
	.macro	set_pstate from, mask
	tbz	\mask, #22, 1f
	msr	s3_0_c4_c2_3, \from		// PAN
1:	tbz	\mask, #23, 1f
	msr	s3_0_c4_c2_4, \from		// UAO
1:	tbz	\mask, #24, 1f
	msr	s3_3_c4_c2_5, \from		// DIT
1:	tbz	\mask, #12, 1f
	msr	s3_3_c4_c2_6, \from		// SSBS
1:	tbz	\mask, #31, 1f
	msr	nzcv, \from
1:	tbz	\mask, #6, 1f
	msr	daif, \from
1:	tbz	\mask, #0, 1f
	msr	spsel, \from
1:
	.endm

	.macro	add_state to, by, mask, bit, name
	tbz	\mask, #\bit, 1f
	mrs	\by, \name
	orr	\to, \to, \by
1:
	.endm

	.macro	full name, insn:vararg
	.globl	\name
\name:
	push_callee_saved
	msr	tpidr_el0, x0
	mov	x1, sp
	str	x1, [x0, #FULL_SP_CHANGED]
	msr	sp_el0, x1			// a stack that SPSel = 0 may use
	ldp	x1, x2, [x0, #FULL_PSTATE]
	set_pstate x1, x2
	.irp	r, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30
	canary	\r
	.endr
	ldp	x2, x3, [x0, #FULL_IN + 16]
	ldp	x4, x5, [x0, #FULL_IN + 32]
	ldp	x6, x7, [x0, #FULL_IN + 48]
	ldp	x8, x9, [x0, #FULL_IN + 64]
	ldp	x10, x11, [x0, #FULL_IN + 80]
	ldp	x12, x13, [x0, #FULL_IN + 96]
	ldp	x14, x15, [x0, #FULL_IN + 112]
	ldp	x16, x17, [x0, #FULL_IN + 128]
	ldp	x0, x1, [x0, #FULL_IN]
	\insn
	.globl	\name\()_after
\name\()_after:
	msr	tpidrro_el0, x0
	mrs	x0, tpidr_el0
	str	x1, [x0, #FULL_OUT + 8]
	mrs	x1, tpidrro_el0
	str	x1, [x0, #FULL_OUT]
	stp	x2, x3, [x0, #FULL_OUT + 16]
	stp	x4, x5, [x0, #FULL_OUT + 32]
	stp	x6, x7, [x0, #FULL_OUT + 48]
	stp	x8, x9, [x0, #FULL_OUT + 64]
	stp	x10, x11, [x0, #FULL_OUT + 80]
	stp	x12, x13, [x0, #FULL_OUT + 96]
	stp	x14, x15, [x0, #FULL_OUT + 112]
	stp	x16, x17, [x0, #FULL_OUT + 128]
	tbnz	x1, #63, 3f			// refused: nothing will arrive
2:	ldr	x1, [x0, #FULL_ARRIVED]
	cbz	x1, 3f
	ldr	x1, [x1]
	cbnz	x1, 3f
	ldr	x1, [x0, #FULL_BEFORE + 8]
	sub	x1, x1, #1
	str	x1, [x0, #FULL_BEFORE + 8]
	cbnz	x1, 2b
3:	mrs	x1, nzcv
	mrs	x2, daif
	orr	x1, x1, x2
	mrs	x2, currentel
	orr	x1, x1, x2
	mrs	x2, spsel
	orr	x1, x1, x2
	ldr	x3, [x0, #FULL_PSTATE + 8]
	add_state x1, x2, x3, 22, s3_0_c4_c2_3
	add_state x1, x2, x3, 23, s3_0_c4_c2_4
	add_state x1, x2, x3, 24, s3_3_c4_c2_5
	add_state x1, x2, x3, 12, s3_3_c4_c2_6
	str	x1, [x0, #FULL_OUT_PSTATE]
	msr	spsel, #1
	msr	daifset, #15
	mov	x1, sp
	ldr	x2, [x0, #FULL_SP_CHANGED]
	eor	x1, x1, x2
	str	x1, [x0, #FULL_SP_CHANGED]
	mov	sp, x2
	mov	x1, #0
	.irp	r, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30
	movz	x2, #0xc0\r, lsl #48
	eor	x2, x2, x\r
	cbz	x2, 1f
	orr	x1, x1, #(1 << \r)
1:
	.endr
	str	x1, [x0, #FULL_CANARIES]
	pop_callee_saved
	ret
	.endm

	full	full_call_hvc, HVC_0
	full	full_call_smc, SMC_0
	.globl	full_call_end
full_call_end:

	/* -- u64 spin_canaries(struct spin *s, u64 spsel) */

	.globl	spin_canaries
spin_canaries:
	push_callee_saved
	mov	x2, sp
	msr	sp_el0, x2
	msr	spsel, x1
	mov	x1, #0x60000000
	msr	nzcv, x1
	.irp	r, 2, 3, 4, 5, 6, 7, 8, 9
	movz	x\r, #0xc00\r, lsl #48
	.endr
	.irp	r, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30
	canary	\r
	.endr
1:	.irp	r, 2, 3, 4, 5, 6, 7, 8, 9
	movz	x1, #0xc00\r, lsl #48
	eor	x1, x1, x\r
	cbnz	x1, bad_\r
	.endr
	.irp	r, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30
	movz	x1, #0xc0\r, lsl #48
	eor	x1, x1, x\r
	cbnz	x1, bad_\r
	.endr
	mrs	x1, nzcv
	eor	x1, x1, #0x60000000
	cbnz	x1, bad_31
	ldr	x1, [x0, #8]			// the heartbeat
	add	x1, x1, #1
	str	x1, [x0, #8]
	ldr	x1, [x0]
	cbz	x1, 1b
	mov	x0, #0
2:	msr	spsel, #1
	pop_callee_saved
	ret
	.irp	r, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31
bad_\r:	mov	x0, #(1 << \r)
	b	2b
	.endr

	/* -- EL0 */

	.globl	run_el0
run_el0:
	push_callee_saved
	mov	x3, sp
	str	x3, [x0, #PE_EL0_SP]
	msr	elr_el1, x1
	mov	x3, #0x3c0			// EL0t, DAIF
	msr	spsr_el1, x3
	mov	x0, x2
	isb
	eret

sync_el0:
	pe	x0
	mrs	x1, esr_el1
	str	x1, [x0, #PE_EL0_ESR]
	ldr	x1, [x0, #PE_EL0_SP]
	mov	sp, x1
	pop_callee_saved
	ret

	.globl	el0_spin
el0_spin:
	ldr	x1, [x0, #8]			// the heartbeat
	add	x1, x1, #1
	str	x1, [x0, #8]
	ldr	x1, [x0]
	cbz	x1, el0_spin
	svc	#0

	/* x0 is the function; the others are whatever they are. */
	.globl	el0_hvc
el0_hvc:
	HVC_0
	svc	#1
	.globl	el0_smc
el0_smc:
	SMC_0
	svc	#1
