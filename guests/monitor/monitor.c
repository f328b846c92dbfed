// SPDX-License-Identifier: Apache-2.0
/*
 * The EL2 monitor under which an unmodified guest kernel runs on QEMU.  It is mechanism only: what the guest asks for
 * is put into a mailbox, and a process on the host that maps the same memory decides.  See docs/qemu.md.
 */
#include "layout.h"

typedef unsigned long u64;
typedef unsigned int u32;
typedef unsigned char u8;

#define W(mailbox, word)	((mailbox)[word])
#define MMIO8(address)		(*(volatile u8 *)(address))
#define MMIO16(address)		(*(volatile unsigned short *)(address))
#define MMIO32(address)		(*(volatile u32 *)(address))

#define NAME(register)		#register
#define read_sysreg(name) ({ u64 _value; __asm__ volatile("mrs %0, " NAME(name) : "=r"(_value)); _value; })
#define write_sysreg(name, value) __asm__ volatile("msr " NAME(name) ", %0" :: "r"((u64)(value)) : "memory")
#define isb() __asm__ volatile("isb" ::: "memory")
#define dsb() __asm__ volatile("dsb sy" ::: "memory")

/* What not every assembler knows by name. */
#define ICC_IAR0_EL1	S3_0_C12_C8_0
#define ICC_EOIR0_EL1	S3_0_C12_C8_1
#define ICC_CTLR_EL1	S3_0_C12_C12_4
#define ICC_IGRPEN0_EL1	S3_0_C12_C12_6
#define ICC_SRE_EL1	S3_0_C12_C12_5
#define ICC_SRE_EL2	S3_4_C12_C9_5
#define ICC_PMR_EL1	S3_0_C4_C6_0
#define ICC_RPR_EL1	S3_0_C12_C11_3
#define ICH_HCR_EL2	S3_4_C12_C11_0
#define ICC_SGI1R_EL1	S3_0_C12_C11_5
#define ICC_ASGI1R_EL1	S3_0_C12_C11_6
#define ICC_SGI0R_EL1	S3_0_C12_C11_7
#define HCRX_EL2	S3_4_C1_C2_2
#define HFGRTR_EL2	S3_4_C1_C1_4
#define HFGWTR_EL2	S3_4_C1_C1_5
#define HFGITR_EL2	S3_4_C1_C1_6
#define ZCR_EL2		S3_4_C1_C2_0
#define SMCR_EL2	S3_4_C1_C2_6
#define ID_AA64SMFR0	S3_0_C0_C4_5
#define VTTBR_EL2	S3_4_C2_C1_0

/* GICv3, Arm IHI 0069.  GIC_* are the same in the distributor and, for private interrupts, in redistributors. */
#define GICD_CTLR		0x0000
#define GIC_IGROUPR		0x0080
#define GIC_ISENABLER		0x0100
#define GIC_ICENABLER		0x0180
#define GIC_ICPENDR		0x0280
#define GIC_IPRIORITYR		0x0400
#define PRIORITIES		0xa0a0a0a0u	/* of four interrupts: those of ours are above */
#define GICD_CTLR_ARE_BOTH_GROUPS	0x13
#define GICR_STRIDE		0x20000
#define GICR_SGI_BASE		0x10000
#define INTID_SPECIAL		1020
#define PMR_OURS		0x10		/* lets priorities above that through: kicks and bound interrupts */

#define EC_HVC		0x16
#define EC_SMC		0x17
#define EC_SYSREG	0x18
#define EC_INSTRUCTION_ABORT	0x20
#define EC_DATA_ABORT	0x24

#define SDEI_EVENT_CONTEXT	0xc4000024u
#define PSCI_CPU_OFF		0x84000002u
#define PSCI_CPU_ON		0xc4000003u
#define PSCI_ALREADY_ON		((u64)-4)

extern char secondary_start[];
u64 *monitor_base(void);
u64 psci(u64 id, u64 a, u64 b, u64 c);
static void ask(volatile u64 *mailbox, u64 reason);

static volatile u64 *global(void)
{
	return monitor_base() + GLOBAL_PAGE / 8;
}

static u64 redistributor(volatile u64 *mailbox)
{
	u64 index = ((u64)mailbox - (u64)monitor_base() - MAILBOXES) / MAILBOX_SIZE;

	return global()[G_GICR] + index * GICR_STRIDE + GICR_SGI_BASE;
}

/* What the hypervisor wants done before this vCPU goes on. */
static void act(volatile u64 *mailbox)
{
	u64 action = W(mailbox, M_ACTION);

	W(mailbox, M_ACTION) = ACTION_NONE;
	switch (action) {
	case ACTION_CPU_ON:
		/* The hypervisor knows that the PE is off, or on its way there. */
		while (psci(PSCI_CPU_ON, W(mailbox, M_ARGUMENT), (u64)secondary_start, 0) == PSCI_ALREADY_ON)
			__asm__ volatile("yield");
		break;
	case ACTION_CPU_OFF:
		/* A kick or IPI that waits must not greet whoever starts this PE next. */
		MMIO32(redistributor(mailbox) + GIC_ICPENDR) = 0xffff;
		psci(PSCI_CPU_OFF, 0, 0, 0);
		break;
	case ACTION_WAIT:		/* as a standby, but the guest's own interrupts do not end it */
		write_sysreg(ICC_PMR_EL1, PMR_OURS);
		/* fall through */
	case ACTION_STANDBY:
		dsb();
		__asm__ volatile("wfi" ::: "memory");
		write_sysreg(ICC_PMR_EL1, W(mailbox, M_PMR) < PMR_OURS ? PMR_OURS : W(mailbox, M_PMR));
		break;
	case ACTION_FLUSH:		/* for all vCPUs */
		__asm__ volatile("dsb ishst\n\ttlbi vmalls12e1is\n\tdsb ish\n\tisb" ::: "memory");
		ask(mailbox, REASON_FLUSHED);
		break;
	case ACTION_PARK:
		for (;;)
			__asm__ volatile("wfi" ::: "memory");
	}
}

/* One question to the hypervisor, and its answer. */
static void ask(volatile u64 *mailbox, u64 reason)
{
	u64 request = W(mailbox, M_REQUEST) + 1;
	u64 bell = global()[G_BELL];

	W(mailbox, M_REASON) = reason;
	W(mailbox, M_ESR) = read_sysreg(esr_el2);
	W(mailbox, M_FAR) = read_sysreg(far_el2);
	W(mailbox, M_HPFAR) = read_sysreg(hpfar_el2);
	W(mailbox, M_VBAR) = read_sysreg(vbar_el1);
	W(mailbox, M_ELR1) = read_sysreg(elr_el1);
	W(mailbox, M_SPSR1) = read_sysreg(spsr_el1);
	W(mailbox, M_ESR1) = read_sysreg(esr_el1);
	W(mailbox, M_FAR1) = read_sysreg(far_el1);
	if (W(mailbox, M_PROBE)) {
		u64 par = read_sysreg(par_el1);

		W(mailbox, M_SP_EL0) = read_sysreg(sp_el0);
		W(mailbox, M_SP_EL1) = read_sysreg(sp_el1);
		__asm__ volatile("at s1e1r, %0\n\tisb" :: "r"(W(mailbox, M_PC)));
		W(mailbox, M_PAR) = read_sysreg(par_el1);
		write_sysreg(par_el1, par);
		W(mailbox, M_PROBE) = 0;
	}
	dsb();
	W(mailbox, M_REQUEST) = request;
	dsb();
	if (bell)
		MMIO8(bell) = 1;
	while (W(mailbox, M_RESPONSE) != request)
		__asm__ volatile("yield");
	dsb();
	write_sysreg(elr_el1, W(mailbox, M_ELR1));
	write_sysreg(spsr_el1, W(mailbox, M_SPSR1));
	write_sysreg(esr_el1, W(mailbox, M_ESR1));
	write_sysreg(far_el1, W(mailbox, M_FAR1));
	if (W(mailbox, M_ACTION))
		act(mailbox);
}

static void call(volatile u64 *mailbox, u64 reason)
{
	/* A handler reads what it interrupted register by register.  No decision is in that: it is laid out here. */
	if ((u32)W(mailbox, M_X0) == SDEI_EVENT_CONTEXT && W(mailbox, M_CONTEXT_VALID) && (u32)W(mailbox, 1) < 18) {
		W(mailbox, M_X0) = W(mailbox, M_CONTEXT + (u32)W(mailbox, 1));
		W(mailbox, 1) = W(mailbox, 2) = W(mailbox, 3) = 0;
		W(mailbox, M_CONTEXTS_READ)++;
		return;
	}
	ask(mailbox, reason);
}

/*
 * The guest has the physical CPU interface for its interrupts of group 1, but with FIQs routed to EL2 some registers
 * would be virtual ones that mean nothing, and writes to ICC_SGI*R_EL1 trap.  So all of these trap, and are carried
 * out here: the guest can mask its own interrupts, and never ours.
 */
static int cpu_interface(volatile u64 *mailbox, u32 esr)
{
	u32 rt = esr >> 5 & 31, read = esr & 1, crn = esr >> 10 & 15, crm = esr >> 1 & 15, op2 = esr >> 17 & 7;
	volatile u64 *x = &W(mailbox, rt < 18 ? M_X0 + rt : M_X18 + rt - 18);
	u64 value = read || rt == 31 ? 0 : *x;

	if ((esr >> 20 & 3) != 3 || (esr >> 14 & 7) != 0)
		return 0;
	switch (crn << 8 | crm << 4 | op2) {
	case 0x460:		/* ICC_PMR_EL1 */
		if (read) {
			value = W(mailbox, M_PMR);
		} else {
			W(mailbox, M_PMR) = value &= 0xff;
			write_sysreg(ICC_PMR_EL1, value < PMR_OURS ? PMR_OURS : value);
		}
		break;
	case 0xcc4:		/* ICC_CTLR_EL1, which does not change, ... */
	case 0xcb1:		/* ... so that the end of an interrupt leaves ICC_DIR_EL1 nothing to do */
		value = read_sysreg(ICC_CTLR_EL1);
		break;
	case 0xcb3:		/* ICC_RPR_EL1 */
		value = read_sysreg(ICC_RPR_EL1);
		break;
	case 0xcb5:
		write_sysreg(ICC_SGI1R_EL1, value);
		break;
	case 0xcb6:
		write_sysreg(ICC_ASGI1R_EL1, value);
		break;
	case 0xcb7:		/* group 0 is ours; its other SGIs are off anyway */
		if ((value >> 24 & 15) != KICK_SGI)
			write_sysreg(ICC_SGI0R_EL1, value);
		break;
	default:
		return 0;
	}
	if (read && rt != 31)
		*x = value;
	W(mailbox, M_PC) += 4;
	return 1;
}

void monitor_synchronous(volatile u64 *mailbox)
{
	u32 esr = (u32)read_sysreg(esr_el2);

	switch (esr >> 26) {
	case EC_HVC:
		call(mailbox, REASON_HVC);
		break;
	case EC_SMC:
		W(mailbox, M_PC) += 4;		/* a trapped SMC has not been executed */
		call(mailbox, REASON_SMC);
		break;
	case EC_INSTRUCTION_ABORT:
	case EC_DATA_ABORT:
		ask(mailbox, REASON_ABORT);
		break;
	case EC_SYSREG:
		if (cpu_interface(mailbox, esr))
			break;
		/* fall through */
	default:
		ask(mailbox, REASON_TRAP);
	}
}

void monitor_fiq(volatile u64 *mailbox)
{
	u64 intid = read_sysreg(ICC_IAR0_EL1);

	if (intid >= INTID_SPECIAL)
		return;
	if (intid != KICK_SGI) {
		/* A level stays up until its handler has seen to it: off until the hypervisor wants it again. */
		u64 bank = intid < 32 ? redistributor(mailbox) : global()[G_GICD];

		MMIO32(bank + GIC_ICENABLER + intid / 32 * 4) = 1u << intid % 32;
	}
	write_sysreg(ICC_EOIR0_EL1, intid);
	isb();
	W(mailbox, M_INTID) = intid;
	ask(mailbox, intid == KICK_SGI ? REASON_KICK : REASON_INTERRUPT);
}

void monitor_dead(volatile u64 *mailbox)
{
	W(mailbox, M_PC) = read_sysreg(elr_el2);
	W(mailbox, M_PSTATE) = read_sysreg(spsr_el2);
	ask(mailbox, REASON_DEAD);
	for (;;)
		__asm__ volatile("wfi");
}

/* The distributor as firmware leaves it, and the bell. */
static void start_machine(volatile u64 *g)
{
	u64 gicd = g[G_GICD], config = g[G_BELL_CONFIG];

	/* All that there could be: what is not there ignores it. */
	for (u32 i = 32; i < INTID_SPECIAL; i += 4) {
		MMIO32(gicd + GIC_IGROUPR + i / 32 * 4) = ~0u;
		MMIO32(gicd + GIC_IPRIORITYR + i) = PRIORITIES;
	}
	MMIO32(gicd + GICD_CTLR) = GICD_CTLR_ARE_BOTH_GROUPS;
	if (config) {
		MMIO32(config + 0x10) = (u32)g[G_BELL_BAR];
		MMIO16(config + 0x04) = 1;	/* I/O space on */
	}
	g[G_ID_PFR0] = read_sysreg(id_aa64pfr0_el1);
	g[G_ID_PFR1] = read_sysreg(id_aa64pfr1_el1);
	g[G_ID_MMFR1] = read_sysreg(id_aa64mmfr1_el1);
	g[G_ID_MMFR2] = read_sysreg(S3_0_C0_C7_2);
}

/* Everything that EL2 could withhold from EL1 is granted: Linux Documentation/arch/arm64/booting.rst. */
static void grant_features(void)
{
	u64 pfr0 = read_sysreg(id_aa64pfr0_el1), pfr1 = read_sysreg(id_aa64pfr1_el1);
	u64 mmfr0 = read_sysreg(id_aa64mmfr0_el1), mmfr1 = read_sysreg(id_aa64mmfr1_el1);
	u64 cptr = 0x33ff;			/* RES1, and traps of SVE and SME */

	if (pfr0 >> 32 & 15)
		cptr &= ~0x100ul;
	if (pfr1 >> 24 & 15)
		cptr &= ~0x1000ul;
	write_sysreg(cptr_el2, cptr);
	isb();
	if (pfr0 >> 32 & 15)
		write_sysreg(ZCR_EL2, 0xf);
	if (pfr1 >> 24 & 15) {
		u64 smfr0 = read_sysreg(ID_AA64SMFR0);

		/* The longest vectors, the full instruction set and ZT0 where there are such. */
		write_sysreg(SMCR_EL2, 0xf | (smfr0 >> 63 ? 1ul << 31 : 0) | ((smfr0 >> 56 & 15) ? 1ul << 30 : 0));
		write_sysreg(sctlr_el2, read_sysreg(sctlr_el2) | 1ul << 60);	/* EnTP2 */
	}
	if (mmfr1 >> 40 & 15)			/* FEAT_HCX: what the CPU lacks stays zero */
		write_sysreg(HCRX_EL2, 1 << 0 | 1 << 1 | 1 << 2 | 1 << 11 | 1 << 14 | 1 << 15 | 1 << 22 | 1 << 23);
	if (mmfr0 >> 56 & 15) {			/* FEAT_FGT: the traps that are on while their bit is clear */
		write_sysreg(HFGRTR_EL2, 0xfff4000000000000ul);
		write_sysreg(HFGWTR_EL2, 0xfff4000000000000ul);
		write_sysreg(HFGITR_EL2, 0xff80000000000000ul);
	}
}

/* A PE comes up: bring EL2 and its part of the GIC into order, and begin at EL1 as the hypervisor says. */
void monitor_start(volatile u64 *mailbox, u64 boot_cpu)
{
	volatile u64 *g = global();
	u64 gicr = redistributor(mailbox);
	/* RW; ATA, EnSCXT, API, APK: no traps; TSC, FMO: SMC and FIQ, that is group 0, to us */
	u64 hcr = 1ul << 31 | 1ul << 56 | 1ul << 53 | 1ul << 41 | 1ul << 40 | 1ul << 19 | 1ul << 3;

	if (g[G_FLAGS] & FLAG_STAGE2) {
		hcr |= 1;
		write_sysreg(VTTBR_EL2, (u64)monitor_base() + STAGE2_TABLES);
		/* 4 KiB pages, 40 bits of address, so two tables side by side at level 1; write-back */
		write_sysreg(vtcr_el2, 1ul << 31 | 2ul << 16 | 3ul << 12 | 1ul << 10 | 1ul << 8 | 1ul << 6 | 24);
		isb();
		__asm__ volatile("tlbi vmalls12e1\n\tdsb nsh\n\tisb" ::: "memory");
	}
	write_sysreg(hcr_el2, hcr);
	write_sysreg(hstr_el2, 0);
	write_sysreg(cntvoff_el2, 0);
	write_sysreg(cnthctl_el2, 3);		/* the physical timer belongs to the guest */
	write_sysreg(mdcr_el2, read_sysreg(pmcr_el0) >> 11 & 31);	/* and so do all performance counters */
	write_sysreg(vpidr_el2, read_sysreg(midr_el1));
	write_sysreg(vmpidr_el2, read_sysreg(mpidr_el1));
	write_sysreg(sctlr_el1, 0x30d00800);	/* MMU and caches off, little endian */
	grant_features();

	if (boot_cpu)
		start_machine(g);
	MMIO32(gicr + GIC_IGROUPR) = ~(1u << KICK_SGI);
	for (u32 i = 0; i < 32; i += 4)
		MMIO32(gicr + GIC_IPRIORITYR + i) = PRIORITIES;
	MMIO8(gicr + GIC_IPRIORITYR + KICK_SGI) = 0;
	MMIO32(gicr + GIC_ISENABLER) = 1u << KICK_SGI;
	write_sysreg(ICC_SRE_EL2, 0xf);
	isb();
	write_sysreg(ICC_SRE_EL1, 7);
	isb();
	W(mailbox, M_PMR) = 0;
	write_sysreg(ICC_PMR_EL1, PMR_OURS);
	write_sysreg(ICH_HCR_EL2, 1 << 10);	/* TC: cpu_interface() */
	write_sysreg(ICC_CTLR_EL1, 0);
	write_sysreg(ICC_IGRPEN0_EL1, 1);
	isb();

	for (int i = M_X0; i < M_REQUEST; i++)
		W(mailbox, i) = 0;
	W(mailbox, M_X0) = W(mailbox, M_BOOT_X0);
	W(mailbox, M_PC) = W(mailbox, M_BOOT_PC);
	W(mailbox, M_PSTATE) = 0x3c5;		/* EL1h, everything masked */
	W(mailbox, M_SCTLR) = 0x30d00800;
	ask(mailbox, REASON_BOOT);
}
