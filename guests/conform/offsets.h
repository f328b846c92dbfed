/* SPDX-License-Identifier: Apache-2.0 */
/* What asm.S knows of C's structures; conform.h asserts it. */
#ifndef OFFSETS_H
#define OFFSETS_H

#define F_ELR		256		/* struct frame: then SPSR */
#define F_EXIT		272
#define F_SIZE		288

#define PE_ENTRY_SPSR	0
#define PE_RESUMED	8
#define PE_RESUME_ELR	16		/* then SPSR, PSTATE */
#define PE_RESUME_PSTATE 32
#define PE_CATCH	40		/* then SPSR */
#define PE_CATCH_ESR	56
#define PE_EL0_SP	64
#define PE_EL0_ESR	72

#define FULL_IN		0
#define FULL_OUT	144
#define FULL_PSTATE	288		/* then mask */
#define FULL_OUT_PSTATE	304
#define FULL_ARRIVED	312
#define FULL_BEFORE	320		/* then polls */
#define FULL_CANARIES	336
#define FULL_SP_CHANGED	344

#endif
