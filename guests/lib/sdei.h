/* SPDX-License-Identifier: Apache-2.0 */
/* SDEI (DEN0054): function ids and the client side of the calls. */
#ifndef SDEI_H
#define SDEI_H

#define SDEI_VERSION			0xc4000020
#define SDEI_EVENT_REGISTER		0xc4000021
#define SDEI_EVENT_ENABLE		0xc4000022
#define SDEI_EVENT_DISABLE		0xc4000023
#define SDEI_EVENT_CONTEXT		0xc4000024
#define SDEI_EVENT_COMPLETE		0xc4000025
#define SDEI_EVENT_COMPLETE_AND_RESUME	0xc4000026
#define SDEI_EVENT_UNREGISTER		0xc4000027
#define SDEI_EVENT_STATUS		0xc4000028
#define SDEI_EVENT_GET_INFO		0xc4000029
#define SDEI_EVENT_ROUTING_SET		0xc400002a
#define SDEI_PE_MASK			0xc400002b
#define SDEI_PE_UNMASK			0xc400002c
#define SDEI_INTERRUPT_BIND		0xc400002d
#define SDEI_INTERRUPT_RELEASE		0xc400002e
#define SDEI_EVENT_SIGNAL		0xc400002f
#define SDEI_FEATURES			0xc4000030
#define SDEI_PRIVATE_RESET		0xc4000031
#define SDEI_SHARED_RESET		0xc4000032

#define SDEI_INFO_TYPE			0
#define SDEI_INFO_SIGNALED		1
#define SDEI_INFO_PRIORITY		2
#define SDEI_FEATURE_BIND_SLOTS		0
#define SDEI_FEATURE_RELATIVE_MODE	1
#define SDEI_RM_ANY			0
#define SDEI_STATUS_REGISTERED		1
#define SDEI_STATUS_ENABLED		2
#define SDEI_STATUS_RUNNING		4

#ifndef __ASSEMBLER__
#include "guest.h"

/* One call over the machine's SDEI conduit; the result is x0. */
s64 sdei_call(u32 id, u64 a1, u64 a2, u64 a3, u64 a4, u64 a5);
#define sdei0(id)		sdei_call(id, 0, 0, 0, 0, 0)
#define sdei1(id, a)		sdei_call(id, a, 0, 0, 0, 0)
#define sdei2(id, a, b)		sdei_call(id, a, b, 0, 0, 0)

const char *sdei_call_name(u32 id);
const char *sdei_error_name(s64 result);

/* Registers as they were when the firmware entered sdei_entry. */
struct sdei_frame {
	u64 x[31];
	u64 sp;
};
_Static_assert(offsetof(struct sdei_frame, sp) == FRAME_SP && sizeof(struct sdei_frame) == FRAME_SIZE,
	       "sdei_entry.S lays this out");

/*
 * sdei_entry is the address to register.  It saves the frame and calls the guest's sdei_handler(), whose result is
 * 0 for EVENT_COMPLETE or the address for EVENT_COMPLETE_AND_RESUME.
 */
void sdei_entry(void);
u64 sdei_handler(struct sdei_frame *f);
#endif
#endif
