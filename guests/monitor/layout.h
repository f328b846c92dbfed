/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The memory that the monitor shares with the hypervisor's process.  src/sdeivirt/machine/qemu/layout.py has the same
 * numbers; a test compares them.  All of it lies in one block behind the guest's RAM that stage 2 hides from the guest.
 */
#ifndef LAYOUT_H
#define LAYOUT_H

#define LAYOUT_VERSION	1		/* to be raised when anything below gets another place or meaning */

/* Offsets from the start of the block, where the monitor's own image is. */
#define GLOBAL_PAGE	0x0f000
#define MAILBOXES	0x10000		/* a page a vCPU; its end is that vCPU's EL2 stack */
#define MAX_VCPUS	64
#define BLANK_PAGE	0x50000		/* all ones: what is read where a hidden PCI function was */
#define FW_CFG_PAGE	0x51000		/* what the host asks of fw_cfg for a guest that boots by UEFI */
#define STAGE2_TABLES	0x60000		/* to the end of the block: what it takes to map the guest's RAM by pages */

/* Words of 8 bytes in a mailbox.  The first 21 are the window of RegisterView. */
#define M_X0		0		/* x0..x17 */
#define M_PC		18
#define M_PSTATE	19
#define M_SCTLR		20		/* SCTLR_EL1 */
#define M_X18		21		/* x18..x30 */
#define M_REQUEST	34		/* the monitor counts this up, ... */
#define M_RESPONSE	35		/* ... and the guest goes on when this has caught up */
#define M_REASON	36
#define M_ESR		37		/* ESR_EL2, FAR_EL2, HPFAR_EL2 */
#define M_FAR		38
#define M_HPFAR		39
#define M_VBAR		40		/* VBAR_EL1 */
#define M_INTID		41		/* of REASON_INTERRUPT */
#define M_ELR1		42		/* ELR_EL1, SPSR_EL1, ESR_EL1, FAR_EL1: there and back */
#define M_SPSR1		43
#define M_ESR1		44
#define M_FAR1		45
#define M_ACTION	46		/* what to do before the guest goes on */
#define M_ARGUMENT	47
#define M_BOOT_PC	48		/* where the vCPU begins, with what in x0 */
#define M_BOOT_X0	49
#define M_PROBE		50		/* set: report SP_EL0, SP_EL1 and where PC is */
#define M_SP_EL0	51
#define M_SP_EL1	52
#define M_PAR		53		/* PAR_EL1 of PC */
#define M_CONTEXT_VALID	54		/* set: EVENT_CONTEXT's answers are in M_CONTEXT */
#define M_CONTEXT	55		/* x0..x17 */
#define M_CONTEXTS_READ	73		/* how often they were */
#define M_PMR		74		/* ICC_PMR_EL1 as the guest has it */
#define MAILBOX_SIZE	0x1000

/* M_REASON: why the guest was left */
#define REASON_HVC	1
#define REASON_SMC	2
#define REASON_KICK	3
#define REASON_INTERRUPT 4		/* a bound interrupt fired; it is off now */
#define REASON_ABORT	5		/* stage 2 does not let the guest */
#define REASON_TRAP	6		/* anything else that came to EL2 */
#define REASON_BOOT	7		/* about to execute the first instruction */
#define REASON_DEAD	8		/* the monitor itself took an exception */
#define REASON_FLUSHED	9		/* ACTION_FLUSH has been done */

/* M_ACTION */
#define ACTION_NONE	0
#define ACTION_CPU_ON	1		/* power up the PE whose affinity is M_ARGUMENT */
#define ACTION_CPU_OFF	2		/* this PE ends here */
#define ACTION_STANDBY	3		/* wait for an interrupt, then go on */
#define ACTION_PARK	4		/* never go on */
#define ACTION_WAIT	5		/* wait for a kick, then go on */
#define ACTION_FLUSH	6		/* flush the TLBs of all PEs and say so, then go on */

/* Words of the global page. */
#define G_FLAGS		0
#define G_BELL		1		/* where one byte is written for each request; 0: the other side polls */
#define G_BELL_CONFIG	2		/* configuration space of the PCI function that is the bell, ... */
#define G_BELL_BAR	3		/* ... and what goes into its BAR 0 */
#define G_ID_PFR0	4		/* ID_AA64PFR0, PFR1, MMFR1, MMFR2_EL1, for the hypervisor */
#define G_ID_PFR1	5
#define G_ID_MMFR1	6
#define G_ID_MMFR2	7
#define G_GICD		8		/* the distributor, the first redistributor */
#define G_GICR		9
#define G_COUNT		10

#define FLAG_STAGE2	1

#define KICK_SGI	15		/* the interrupt that stops a vCPU */
#endif
