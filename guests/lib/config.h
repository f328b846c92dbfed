/* SPDX-License-Identifier: Apache-2.0 */
/* Limits and addresses shared by C and assembly. */
#ifndef CONFIG_H
#define CONFIG_H

#define MAX_CPUS	512
#define STACK_SHIFT	12		/* 4 KiB for each CPU, its SDEI handlers included */
#define STACK_SIZE	(1 << STACK_SHIFT)

#define RAM_BASE	0x40000000
#define UART_DEFAULT	0x09000000	/* PL011 of the "virt" map, until /chosen stdout-path says otherwise */

/* struct cpu and struct sdei_frame; C asserts all of these. */
#define CPU_SHIFT	5
#define CPU_INDEX	0
#define CPU_GUEST	24
#define FRAME_SP	248
#define FRAME_SIZE	256

#endif
