/* SPDX-License-Identifier: Apache-2.0 */
#include "config.h"
#include "selftest.h"
#include "smccc.h"

	/*
	 * void probe_hvc(struct probe *p), void probe_smc(struct probe *p)
	 * One copy for each conduit, since from the call until the event has been handled no register of x0..x18 and
	 * no flag may be touched.  Firmware is free to deliver some instructions late, hence the wait.
	 */
	.macro	probe name, insn:vararg
	.globl	\name
\name:
	stp	x29, x30, [sp, #-64]!
	mov	x29, sp
	stp	x19, x20, [sp, #16]
	stp	x21, x22, [sp, #32]
	str	x23, [sp, #48]
	mov	x19, x0
	mov	x20, sp
	str	x20, [x19, #P_SP]
	ldr	x20, [x19, #P_ARRIVED]
	ldr	x21, [x19, #P_BEFORE]
	ldr	x22, [x19, #P_SPINS]
	ldr	x23, [x19, #P_IN_NZCV]
	msr	nzcv, x23
	ldp	x0, x1, [x19, #P_IN]
	ldp	x2, x3, [x19, #P_IN + 16]
	ldp	x4, x5, [x19, #P_IN + 32]
	ldp	x6, x7, [x19, #P_IN + 48]
	ldp	x8, x9, [x19, #P_IN + 64]
	ldp	x10, x11, [x19, #P_IN + 80]
	ldp	x12, x13, [x19, #P_IN + 96]
	ldp	x14, x15, [x19, #P_IN + 112]
	ldp	x16, x17, [x19, #P_IN + 128]
	ldr	x18, [x19, #P_IN + 144]
	\insn
	tbnz	x0, #63, 2f			// refused
1:	ldr	x23, [x20]
	eor	x23, x23, x21			// CMP would change the flags
	cbnz	x23, 2f
	sub	x22, x22, #1
	cbnz	x22, 1b
2:	mrs	x23, nzcv
	stp	x0, x1, [x19, #P_OUT]
	stp	x2, x3, [x19, #P_OUT + 16]
	stp	x4, x5, [x19, #P_OUT + 32]
	stp	x6, x7, [x19, #P_OUT + 48]
	stp	x8, x9, [x19, #P_OUT + 64]
	stp	x10, x11, [x19, #P_OUT + 80]
	stp	x12, x13, [x19, #P_OUT + 96]
	stp	x14, x15, [x19, #P_OUT + 112]
	stp	x16, x17, [x19, #P_OUT + 128]
	str	x18, [x19, #P_OUT + 144]
	str	x23, [x19, #P_OUT_NZCV]
	mov	x23, sp
	str	x23, [x19, #P_OUT_SP]
	ldr	x23, [sp, #48]
	ldp	x21, x22, [sp, #32]
	ldp	x19, x20, [sp, #16]
	ldp	x29, x30, [sp], #64
	ret
	.endm

	.text
	probe	probe_hvc, HVC_0
	probe	probe_smc, SMC_0
	.globl	probe_end
probe_end:

	/*
	 * VBAR + 0x280 after EVENT_COMPLETE_AND_RESUME: as if an IRQ had been taken where the event had struck.
	 * All registers belong to the interrupted code; its flags are in SPSR_EL1.
	 */
	.globl	irq_entry
irq_entry:
	stp	x0, x1, [sp, #-48]!
	stp	x2, x3, [sp, #16]
	stp	x4, x5, [sp, #32]
	mrs	x0, tpidr_el1
	ldr	x0, [x0, #CPU_GUEST]		// struct vcpu, which begins with struct probe
	ldr	x1, [x0, #P_IRQ_EXPECTED]
	cbz	x1, irq_unexpected
	str	xzr, [x0, #P_IRQ_EXPECTED]
	ldp	x1, x2, [x0, #P_PC]		// and pstate
	mrs	x3, elr_el1
	mrs	x4, spsr_el1
	mrs	x5, daif
	cmp	x1, x3
	ccmp	x2, x4, #0, eq
	mov	x1, #0x3c0			// D, A, I and F masked
	ccmp	x1, x5, #0, eq
	b.eq	1f
	stp	x3, x4, [x0, #P_IRQ_ELR]	// and spsr
	str	x5, [x0, #P_IRQ_DAIF]
	mov	x1, #1
	str	x1, [x0, #P_IRQ_WRONG]
	/* ELR_EL1 cannot be trusted: go back to where the handler says the event has struck. */
	ldp	x1, x2, [x0, #P_PC]
	msr	elr_el1, x1
	msr	spsr_el1, x2
	b	2f
1:	mov	x1, #1
	str	x1, [x0, #P_IRQ]
2:	ldp	x4, x5, [sp, #32]
	ldp	x2, x3, [sp, #16]
	ldp	x0, x1, [sp], #48
	eret

irq_unexpected:
	mov	x0, #5
	b	unexpected
