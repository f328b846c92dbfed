/* SPDX-License-Identifier: Apache-2.0 */
/* RAM as the device tree tells of it, and pages of it for a guest that needs some.  Both end the run where there is none. */
#ifndef RAM_H
#define RAM_H

#include "guest.h"

/* From where to where the first of it is. */
void ram_find(u64 *start, u64 *end);

/*
 * The address of so many pages behind the guest and its device tree, for good.  They are zero if they were when the guest
 * began.  On one CPU at a time.
 */
u64 ram_take(u64 pages);

#endif
