// SPDX-License-Identifier: Apache-2.0
/*
 * What tasks do, at EL0.  It is executed at other addresses than it is linked at, so it refers to nothing but itself.
 * While a task works its SIMD registers hold values made of its seed, and are looked at in the end.
 */
#include "tasks.h"

#define USER __attribute__((section(".text.user")))
#define WORDS		(PAGE / 8)
#define CHUNK		65536ul		/* of a computing task: iterations from one SVC to the next */

__asm__(
	".arch_extension fp\n"
	".arch_extension simd\n"
	".section .text.user, \"ax\"\n"
	".balign 4096\n"
	".globl user_begin\n"
"user_begin:\n"
	/* void user_fill(u64 seed) */
"user_fill:\n"
	".irp n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31\n"
	"add x1, x0, #\\n * 17\n"
	"dup v\\n\\().2d, x1\n"
	"mvn x1, x1\n"
	"mov v\\n\\().d[1], x1\n"
	".endr\n"
	"msr fpsr, xzr\n"
	"mov x1, #3 << 22\n"
	"msr fpcr, x1\n"
	"msr tpidr_el0, x0\n"
	"ret\n"
	/* u64 user_differs(u64 seed): what is not as user_fill() has left it */
"user_differs:\n"
	"mov x3, #0\n"
	".irp n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31\n"
	"add x1, x0, #\\n * 17\n"
	"umov x2, v\\n\\().d[0]\n"
	"eor x2, x2, x1\n"
	"orr x3, x3, x2\n"
	"mvn x1, x1\n"
	"umov x2, v\\n\\().d[1]\n"
	"eor x2, x2, x1\n"
	"orr x3, x3, x2\n"
	".endr\n"
	"mrs x1, fpcr\n"
	"eor x1, x1, #3 << 22\n"
	"orr x3, x3, x1\n"
	"mrs x1, tpidr_el0\n"
	"eor x1, x1, x0\n"
	"orr x0, x3, x1\n"
	"ret\n"
	".text\n"
);

void user_fill(u64 seed);
u64 user_differs(u64 seed);

#define svc(number, x0_)	({ register u64 _x0 __asm__("x0") = (x0_); \
				   __asm__ volatile("svc %1" : "+r"(_x0) : "i"(number) : "memory"); })

USER static inline __attribute__((always_inline, noreturn)) void finish(u64 seed, u64 sum)
{
	u64 bad = user_differs(seed);

	if (bad)
		svc(SVC_FAILED, bad);
	svc(SVC_EXIT, sum);
	__builtin_unreachable();
}

/* Nothing but a chain of operations that the compiler cannot cut short. */
USER static inline __attribute__((always_inline)) u64 spin_on(u64 sum, u64 iterations)
{
	for (u64 i = 0; i < iterations; i++) {
		sum = (sum ^ sum << 13) + i;
		__asm__ volatile("" : "+r"(sum));
	}
	return sum;
}

USER void user_memory(u64 base, u64 pages, u64 passes, u64 spin, u64 walk, u64 writes, u64 yield, u64 seed)
{
	u64 sum = seed, until_yield = yield;

	user_fill(seed);
	for (u64 step = 0; step < passes * pages; step++) {
		u64 chance = mix(seed ^ step);
		u64 page = walk == USER_SEQ ? step % pages : chance % pages;
		volatile u64 *word = (volatile u64 *)(base + page * PAGE);
		u64 at = chance >> 40;

		/* Two words of a page. One of the first eight may be written, and so what was is soon found again. */
		sum = mix(sum ^ word[at % 8]) + word[(at >> 12) % WORDS];
		if (walk == USER_MIX && (chance >> 32) % 100 < writes)
			word[at % 8] = sum;
		sum = spin_on(sum, spin);
		if (yield && !--until_yield) {
			until_yield = yield;
			svc(SVC_YIELD, 0);
		}
	}
	finish(seed, sum);
}

USER void user_compute(u64 iterations, u64 seed)
{
	u64 sum = seed;

	user_fill(seed);
	while (iterations) {
		u64 now = iterations < CHUNK ? iterations : CHUNK;

		sum = spin_on(sum, now);
		iterations -= now;
		svc(SVC_YIELD, 0);
	}
	finish(seed, sum);
}
