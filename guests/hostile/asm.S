/* SPDX-License-Identifier: Apache-2.0 */
#include "callee.h"
#include "config.h"
#include "hostile.h"
#include "sdei.h"
#include "smccc.h"

	/* As lib/vectors.S, but that synchronous exceptions may be expected. */
	.section .text.vectors, "ax"
	.balign	2048
	.globl	hostile_vectors
hostile_vectors:
	.set	n, 0
	.rept	16
	.balign	128
	.if	n == 0 || n == 4 || n == 8	// synchronous: SP_EL0, SP_ELx, lower EL
	b	trap_entry
	.elseif	n == 5				// 0x280: where EVENT_COMPLETE_AND_RESUME may lead
	eret
	.else
	mov	x0, #n
	b	unexpected
	.endif
	.set	n, n + 1
	.endr

	.text

	/* \to: this CPU's struct trap; \with is used as well */
	.macro	my_trap to, with
	mrs	\to, mpidr_el1
	and	\to, \to, #(HOSTILE_CPUS - 1)
	adrp	\with, traps
	add	\with, \with, :lo12:traps
	add	\to, \with, \to, lsl #TRAP_SHIFT
	.endm

	/* No stack can be trusted here. */
trap_entry:
	msr	tpidr_el0, x0
	msr	tpidrro_el0, x1
	my_trap	x0, x1
	ldr	x1, [x0, #T_TAKEN]
	add	x1, x1, #1
	str	x1, [x0, #T_TAKEN]
	mrs	x1, esr_el1
	str	x1, [x0, #T_ESR]
	mrs	x1, far_el1
	str	x1, [x0, #T_FAR]
	mrs	x1, elr_el1
	str	x1, [x0, #T_ELR]
	ldr	x1, [x0, #T_MODE]
	cbz	x1, 2f
	cmp	x1, #TRAP_SKIP
	b.eq	1f
	str	xzr, [x0, #T_MODE]
	ldr	x1, [x0, #T_RESUME]
	msr	elr_el1, x1
	mov	x1, #0x3c5			// EL1h, everything masked
	msr	spsr_el1, x1
	b	3f
1:	mrs	x1, elr_el1
	add	x1, x1, #4
	msr	elr_el1, x1
3:	mrs	x0, tpidr_el0
	mrs	x1, tpidrro_el0
	eret
2:	mov	x0, #4
	b	unexpected

	.macro	save
	push_callee_saved
	my_trap	x16, x17
	mov	x17, sp
	str	x17, [x16, #T_SP]
	.endm

	/* SP is anything, x0 a result. */
	.macro	restore
	my_trap	x16, x17
	str	xzr, [x16, #T_MODE]
	ldr	x17, [x16, #T_SP]
	mov	sp, x17
	pop_callee_saved
	.endm

	/* The next exception leads to \label. */
	.macro	resume label
	my_trap	x16, x17
	adr	x17, \label
	str	x17, [x16, #T_RESUME]
	mov	x17, #TRAP_RESUME
	str	x17, [x16, #T_MODE]
	.endm

	.globl	provoke
provoke:
	save
	resume	give_up
	cbz	x0, 1f
	mov	sp, x0
1:	mov	x2, x1
	ldr	w0, =SDEI_EVENT_SIGNAL
	mov	x1, #0
	HVC_0
	msr	spsel, #1
	restore
	ret

	.globl	provoke_spsel
provoke_spsel:
	save
	resume	give_up
	msr	sp_el0, x0
	msr	spsel, #0
	mov	x2, x1
	ldr	w0, =SDEI_EVENT_SIGNAL
	mov	x1, #0
	HVC_0
	msr	spsel, #1
	restore
	ret

	.globl	lose_way
lose_way:
	save
	mov	x2, x0
	resume	1f
	ldr	w0, =SDEI_EVENT_SIGNAL
	mov	x1, #0
	HVC_0
1:	restore
	ret

	/* The handler cannot go on. */
give_up:
	ldr	w0, =SDEI_EVENT_COMPLETE
	mov	x1, #1				// failed
	HVC_0
	b	sdei_complete_returned
	.ltorg

	/* A whole handler that fits anywhere. */
	.globl	complete_only
	.globl	complete_only_end
complete_only:
	movz	w0, #0x0025
	movk	w0, #0xc400, lsl #16
	mov	x1, #0
	HVC_0
	b	.
complete_only_end:

	.globl	handler_resume
handler_resume:
	ldr	w0, =SDEI_EVENT_COMPLETE_AND_RESUME
	HVC_0
	ldr	w0, =SDEI_EVENT_COMPLETE
	mov	x1, #0
	HVC_0
	b	sdei_complete_returned

	.globl	handler_spin
handler_spin:
	b	.
	.globl	handler_off
handler_off:
	ldr	w0, =0x84000002
	HVC_0
	b	.
	.globl	handler_reset
handler_reset:
	ldr	w0, =0x84000009
	HVC_0
	b	.

	/* Signals its own event to its own PE, whose affinity is its argument, before it completes. */
	.globl	handler_again
handler_again:
	mov	x2, x1
	ldr	w0, =SDEI_EVENT_SIGNAL
	mov	x1, #0
	HVC_0
	ldr	w0, =SDEI_EVENT_COMPLETE
	mov	x1, #0
	HVC_0
	b	sdei_complete_returned
	.ltorg

	.macro	fill_from with
	.irp	n, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30
	mov	x\n, \with
	.endr
	.endm

	.macro	ones name, insn:vararg
	.globl	\name
\name:
	save
	mov	x1, #-1
	fill_from x1
	\insn
	restore
	ret
	.endm

	ones	ones_hvc, HVC_0
	ones	ones_smc, SMC_0

	.globl	enter_el0
enter_el0:
	save
	resume	1f
	msr	elr_el1, x0
	mov	x16, #0x3c0			// EL0t, everything masked
	msr	spsr_el1, x16
	mov	x0, x1
	eret
1:	restore
	ret

	/* At EL0; each is over with the first exception. */
	.globl	el0_hvc
el0_hvc:
	HVC_0
	b	.
	.globl	el0_smc
el0_smc:
	SMC_0
	b	.
	.globl	el0_svc
el0_svc:
	svc	#0
	b	.

	.globl	slot_run
slot_run:
	save
	resume	1f
	fill_from x0
	and	x0, x0, #~15
	mov	sp, x0
	mov	x0, x1
	b	slot
	.globl	slot
slot:
	nop
1:	restore
	ret

	.arch_extension fp
	.arch_extension simd
	.globl	touch
touch:
	save
	my_trap	x16, x17
	mov	x17, #TRAP_SKIP
	str	x17, [x16, #T_MODE]
	mov	x19, x0
	dup	v0.2d, x1
	strb	w1, [x19]
	strh	w1, [x19]
	str	w1, [x19]
	str	x1, [x19]
	stp	x1, x1, [x19]
	str	q0, [x19]
	st1	{v0.16b}, [x19]
	stlr	x1, [x19]
	ldxr	x2, [x19]
	stxr	w3, x1, [x19]
	ldaxp	x2, x4, [x19]
	stlxp	w3, x1, x1, [x19]
	.inst	0xf8210262			// ldadd x1, x2, [x19]
	.inst	0xf8218262			// swp x1, x2, [x19]
	.inst	0xc8a27e61			// cas x2, x1, [x19]
	.inst	0x48207e64			// casp x0, x1, x4, x5, [x19]
	str	w1, [x19, #1]
	str	x1, [x19, #3]
	stp	x1, x1, [x19, #-8]
	ldr	x2, [x19]
	ldp	x2, x3, [x19]
	ldr	q1, [x19]
	dc	zva, x19
	dc	ivac, x19
	dc	civac, x19
	ic	ivau, x19
	prfm	pstl1keep, [x19]
	at	s1e1r, x19
	restore
	ret

	.globl	mmu_nonsense
mmu_nonsense:
	msr	ttbr0_el1, x0
	msr	ttbr1_el1, x0
	msr	tcr_el1, x1
	isb
	tlbi	vmalle1
	dsb	sy
	msr	sctlr_el1, x2
	isb
	ret
