/* SPDX-License-Identifier: Apache-2.0 */
/* What asm.S knows of C's structures, and which system registers a round looks at; mover.h asserts the offsets. */
#ifndef OFFSETS_H
#define OFFSETS_H

/* struct pe */
#define PE_RESUMED	0

/* struct bank */
#define B_X		0
#define B_SP		248
#define B_Q		256
#define B_SYS		768
#define B_SP_NOW	1024
#define B_SPSEL		1032
#define B_NZCV		1040
#define B_FPCR		1048
#define B_FPSR		1056
#define B_ROUNDS	1064
#define B_STOP		1072
#define B_BEATS		1080
#define B_BAD		1088
#define B_DIFF		1096

/* What B_BAD says: the place where a register was not as it had been left, plus 1. */
#define BAD_X(n)	((n) + 1)
#define BAD_SP		32
#define BAD_SP_EL0	33
#define BAD_NZCV	34
#define BAD_DAIF	35
#define BAD_EL		36
#define BAD_SPSEL	37
#define BAD_FPCR	38
#define BAD_FPSR	39
#define BAD_Q(n)	(64 + (n))		/* then the high half at + 32 */
#define BAD_SYS(n)	(128 + (n))

#define DAIF_ALL	0x3c0

/*
 * FREE: means nothing to us, so it can hold anything.  TRANSLATION: the same, while the MMU is off.  FIXED: stays what it
 * is.  The expected value is what was read back: a register need not keep all bits that are written.
 */
#define SYSREGS_EL0(X)			\
	X(0, tpidr_el0, FREE)		\
	X(1, tpidrro_el0, FREE)

#define SYSREGS_EL1(X)			\
	X(2, tpidr_el1, FIXED)		\
	X(3, vbar_el1, FIXED)		\
	X(4, sctlr_el1, FIXED)		\
	X(5, cpacr_el1, FIXED)		\
	X(6, ttbr0_el1, TRANSLATION)	\
	X(7, ttbr1_el1, TRANSLATION)	\
	X(8, tcr_el1, TRANSLATION)	\
	X(9, mair_el1, TRANSLATION)	\
	X(10, amair_el1, TRANSLATION)	\
	X(11, contextidr_el1, FREE)	\
	X(12, elr_el1, FREE)		\
	X(13, spsr_el1, FREE)		\
	X(14, esr_el1, FREE)		\
	X(15, far_el1, FREE)		\
	X(16, afsr0_el1, FREE)		\
	X(17, afsr1_el1, FREE)		\
	X(18, par_el1, FREE)		\
	X(19, cntkctl_el1, FREE)	\
	X(20, csselr_el1, FREE)		\
	X(21, cntv_cval_el0, FREE)	\
	X(22, dbgbvr0_el1, FREE)	\
	X(23, dbgwvr0_el1, FREE)
#define NR_SYSREGS	24

#endif
