// SPDX-License-Identifier: Apache-2.0
/* SGIs and PPIs of a GICv3, Arm IHI 0069, by polling: the kernel itself is never interrupted. */
#include "fdt.h"
#include "tasks.h"

#define GICD_CTLR		0x0000
#define GICD_CTLR_GROUP1	2u
#define GICD_CTLR_ARE		(1u << 4)
#define GICD_CTLR_RWP		(1u << 31)
#define GICR_TYPER		0x0008
#define GICR_TYPER_LAST		(1u << 4)
#define GICR_WAKER		0x0014
#define GICR_WAKER_SLEEP	(1u << 1)
#define GICR_WAKER_ASLEEP	(1u << 2)
#define GICR_STRIDE		0x20000
#define GICR_SGI_BASE		0x10000
#define GICR_IGROUPR0		(GICR_SGI_BASE + 0x0080)
#define GICR_ISENABLER0		(GICR_SGI_BASE + 0x0100)
#define GICR_IPRIORITYR		(GICR_SGI_BASE + 0x0400)

#define ICC_PMR_EL1		"S3_0_C4_C6_0"
#define ICC_SGI1R_EL1		"S3_0_C12_C11_5"
#define ICC_IAR1_EL1		"S3_0_C12_C12_0"
#define ICC_EOIR1_EL1		"S3_0_C12_C12_1"
#define ICC_SRE_EL1		"S3_0_C12_C12_5"
#define ICC_IGRPEN1_EL1		"S3_0_C12_C12_7"
#define INTID_SPECIAL		1020

#define PRIORITY		0xa0

static u64 gicd, gicr;

static u32 rd(u64 address) { return *(volatile u32 *)address; }
static void wr(u64 address, u32 val) { *(volatile u32 *)address = val; }

void gic_find(void)
{
	struct fdt f;
	u32 node, len;
	const u8 *reg;

	if (!fdt_open(&f, machine.dtb))
		result_failed("no device tree");
	node = fdt_node(&f, "/intc", 5);
	if (!node || !fdt_prop_is(&f, node, "compatible", "arm,gic-v3"))
		result_failed("no GICv3 in the device tree");
	/* The distributor, then the redistributors; addresses and sizes have two cells. */
	reg = fdt_prop(&f, node, "reg", &len);
	if (!reg || len < 32 || !fdt_reg(&f, node, 2, &gicd))
		result_failed("the GICv3 in the device tree has no registers");
	for (u32 i = 16; i < 24; i++)
		gicr = gicr << 8 | reg[i];
	wr(gicd + GICD_CTLR, rd(gicd + GICD_CTLR) | GICD_CTLR_ARE | GICD_CTLR_GROUP1);
	while (rd(gicd + GICD_CTLR) & GICD_CTLR_RWP)
		relax();
}

/* The affinity as GICR_TYPER has it: Aff3..Aff0 without a gap. */
static u32 packed(u64 mpidr)
{
	return (u32)(mpidr >> 8 & 0xff000000u) | (u32)(mpidr & 0xffffffu);
}

void gic_init(struct pe *p)
{
	u64 frame = gicr;

	while (rd(frame + GICR_TYPER + 4) != packed(p->cpu->mpidr)) {
		if (rd(frame + GICR_TYPER) & GICR_TYPER_LAST)
			result_failed("CPU#%lu has no redistributor", p->cpu->index);
		frame += GICR_STRIDE;
	}
	p->gicr = frame;
	wr(frame + GICR_WAKER, rd(frame + GICR_WAKER) & ~GICR_WAKER_SLEEP);
	while (rd(frame + GICR_WAKER) & GICR_WAKER_ASLEEP)
		relax();
	if (!(read_sysreg(ICC_SRE_EL1) & 1))
		write_sysreg(ICC_SRE_EL1, 1);
	write_sysreg(ICC_PMR_EL1, 0xf0);
	write_sysreg(ICC_IGRPEN1_EL1, 1);
	gic_enable(p, SGI_LOOK);
}

void gic_enable(struct pe *p, u32 intid)
{
	wr(p->gicr + GICR_IGROUPR0, rd(p->gicr + GICR_IGROUPR0) | 1u << intid);
	*(volatile u8 *)(p->gicr + GICR_IPRIORITYR + intid) = PRIORITY;
	wr(p->gicr + GICR_ISENABLER0, 1u << intid);
}

void gic_send(struct pe *to, u32 intid)
{
	u64 mpidr = to->cpu->mpidr;

	__asm__ volatile("dsb ishst" ::: "memory");
	write_sysreg(ICC_SGI1R_EL1, (mpidr >> 32 & 0xff) << 48 | (mpidr >> 16 & 0xff) << 32 | (u64)intid << 24 |
				    (mpidr >> 8 & 0xff) << 16 | (mpidr & 0xf0) << 40 | 1ul << (mpidr & 0xf));
}

void gic_take(struct pe *p)
{
	u32 intid = (u32)read_sysreg(ICC_IAR1_EL1) & 0xffffff;

	if (intid >= INTID_SPECIAL)
		return;
	__asm__ volatile("dsb sy" ::: "memory");
	write_sysreg(ICC_EOIR1_EL1, intid);
	if (intid == apf_intid && apf_transport != APF_OFF)
		apf_interrupt(p);
	else if (intid == SGI_LOOK)
		p->count.sgis++;
}
