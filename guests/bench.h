/* SPDX-License-Identifier: Apache-2.0 */
#ifndef BENCH_H
#define BENCH_H

#define BENCH_START	0xc600b000
#define BENCH_STOP	0xc600b001
#define BENCH_BARE	0xc600beef	/* for a host that answers it before any SDEI code is involved */

#ifndef __ASSEMBLER__
#include "guest.h"

/* Makes the call `count` times with x1 = event 0 and x2 = affinity; returns how often a handler has run. */
u64 bench_loop_hvc(u64 id, u64 affinity, u64 count);
u64 bench_loop_smc(u64 id, u64 affinity, u64 count);
void bench_spin(void) __attribute__((noreturn));

void bench_handler_hvc(void);
void bench_context(void);
void bench_handler_smc(void);
#endif
#endif
