/* SPDX-License-Identifier: Apache-2.0 */
#include "config.h"
#include "sdei.h"
#include "smccc.h"

	/*
	 * Entered by the firmware on the SP_EL1 of whatever it interrupted, with x0 = event, x1 = argument, x2 = PC,
	 * x3 = PSTATE.  Firmware restores x0..x17; x18..x30 and SP are ours to hand back.
	 */
	.text
	.globl	sdei_entry
sdei_entry:
	sub	sp, sp, #FRAME_SIZE
	stp	x0, x1, [sp, #0]
	stp	x2, x3, [sp, #16]
	stp	x4, x5, [sp, #32]
	stp	x6, x7, [sp, #48]
	stp	x8, x9, [sp, #64]
	stp	x10, x11, [sp, #80]
	stp	x12, x13, [sp, #96]
	stp	x14, x15, [sp, #112]
	stp	x16, x17, [sp, #128]
	stp	x18, x19, [sp, #144]
	stp	x20, x21, [sp, #160]
	stp	x22, x23, [sp, #176]
	stp	x24, x25, [sp, #192]
	stp	x26, x27, [sp, #208]
	stp	x28, x29, [sp, #224]
	add	x1, sp, #FRAME_SIZE
	stp	x30, x1, [sp, #240]		// x30, then sp as it was on entry
	mov	x0, sp
	bl	sdei_handler			// keeps x19..x29
	ldr	x18, [sp, #144]			// a scratch register to C
	ldr	x30, [sp, #240]
	adrp	x2, machine_sdei_smc
	ldr	w2, [x2, :lo12:machine_sdei_smc]
	add	sp, sp, #FRAME_SIZE
	cbnz	x0, 1f
	ldr	w0, =SDEI_EVENT_COMPLETE
	mov	x1, #0				// handled
	b	2f
1:	mov	x1, x0
	ldr	w0, =SDEI_EVENT_COMPLETE_AND_RESUME
2:	cbnz	w2, 3f
	HVC_0
	b	4f
3:	SMC_0
4:	b	sdei_complete_returned		// x0: why; does not return
	.ltorg
