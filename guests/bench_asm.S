/* SPDX-License-Identifier: Apache-2.0 */
#include "bench.h"
#include "sdei.h"
#include "smccc.h"

	.macro	mark id
	ldr	w0, =\id
	HVC_0
	.endm

	/*
	 * x28 counts events.  A handler has to preserve it, and so this is an agreement between the handler and the
	 * loops here; it costs one instruction where memory would cost more.
	 */
	.macro	loop name, handler, insn:vararg
	.globl	\name
\name:
	stp	x29, x30, [sp, #-64]!
	mov	x29, sp
	stp	x19, x20, [sp, #16]
	stp	x21, x28, [sp, #32]
	mov	x19, x0
	mov	x20, x1
	mov	x21, x2
	mov	x28, #0
	mark	BENCH_START
	cbz	x21, 2f
1:	mov	x0, x19
	mov	x1, #0
	mov	x2, x20
	\insn
	sub	x21, x21, #1
	cbnz	x21, 1b
2:	mark	BENCH_STOP
	mov	x0, x28
	ldp	x21, x28, [sp, #32]
	ldp	x19, x20, [sp, #16]
	ldp	x29, x30, [sp], #64
	ret

	.globl	\handler
\handler:
	add	x28, x28, #1
	ldr	w0, =SDEI_EVENT_COMPLETE
	mov	x1, #0
	\insn
	b	sdei_complete_returned
	.endm

	.text
	loop	bench_loop_hvc, bench_handler_hvc, HVC_0
	loop	bench_loop_smc, bench_handler_smc, SMC_0

	/*
	 * A handler that reads the context it interrupted, as often as its argument says: a call whose answer needs no
	 * decision.
	 */
	.globl	bench_context
bench_context:
	stp	x29, x30, [sp, #-32]!
	stp	x19, x20, [sp, #16]
	mov	x19, x1
	mark	BENCH_START
1:	ldr	w0, =SDEI_EVENT_CONTEXT
	mov	x1, #0
	HVC_0
	sub	x19, x19, #1
	cbnz	x19, 1b
	mark	BENCH_STOP
	ldp	x19, x20, [sp, #16]
	ldp	x29, x30, [sp], #32
	ldr	w0, =SDEI_EVENT_COMPLETE
	mov	x1, #0
	HVC_0
	b	sdei_complete_returned
	.ltorg

	/* x27 counts turns, x28 events, for whoever looks at the registers. */
	.globl	bench_spin
bench_spin:
	mov	x27, #0
	mov	x28, #0
	mark	BENCH_START
1:	add	x27, x27, #1
	b	1b
	.ltorg
