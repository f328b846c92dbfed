/* SPDX-License-Identifier: Apache-2.0 */
/* What asm.S knows of C's structures; tasks.h asserts it. */
#ifndef OFFSETS_H
#define OFFSETS_H

/* struct pe */
#define PE_CURRENT	0

/* struct task */
#define T_X		0
#define T_SP		248
#define T_PC		256
#define T_PSTATE	264
#define T_TPIDR		272
#define T_FPCR		280
#define T_FPSR		288
#define T_Q		304

/* How the kernel was entered. */
#define ENTRY_START	0		/* nothing has run yet */
#define ENTRY_SVC	1
#define ENTRY_IRQ	2

/* SVC numbers */
#define SVC_YIELD	0
#define SVC_EXIT	1		/* x0: the checksum */
#define SVC_FAILED	2		/* x0: what is wrong */

#endif
