// SPDX-License-Identifier: Apache-2.0
/*
 * What a guest can reach of the hypervisor that it runs under, and what it can spoil: nothing.  For machines that
 * keep a block of RAM for themselves (/reserved-memory/monitor@...), behind a GICv3 and a PCI bridge.
 *
 * After each line "waiting: ..." the host injects event 0 into CPU#0.
 */
#include "fdt.h"
#include "sdei.h"
#include "smccc.h"

#define PAGE			0x1000ul
#define BELL_SLOT		0x1e	/* of the PCI function that belongs to the hypervisor */
#define PCI_IO_SPACE		0x01000000u
#define BLANK_PAGE		0x50000	/* in the block: what that function reads as */

/* GICv3, Arm IHI 0069. */
#define GICD_CTLR		0x0000
#define GICD_CTLR_GROUP0	1u
#define GICD_CTLR_GROUP1	2u
#define GICD_IGROUPR		0x0080
#define GICD_ISENABLER		0x0100
#define GICD_ICENABLER		0x0180
#define GICD_ISPENDR		0x0200
#define GICD_ICPENDR		0x0280
#define GICD_ISACTIVER		0x0300
#define GICD_IPRIORITYR		0x0400
#define GICR_STRIDE		0x20000
#define GICR_WAKER		0x0014
#define GICR_WAKER_SLEEP	2u
#define GICR_SGI_BASE		0x10000
#define ICC_SGI0R_EL1		"S3_0_C12_C11_7"
#define ICC_SGI1R_EL1		"S3_0_C12_C11_5"
#define SGI_TO_OTHERS		(1ul << 40)
#define KICK			15	/* the SGI that stops a CPU */
#define UNUSED			132	/* an SPI with no device behind it */

#define ESR_WNR			(1u << 6)
#define ESR_FSC			0x3fu
#define SEA			0x10u	/* synchronous external abort, not on a walk; at level L of a walk 0x14 + L */
#define EC_UNKNOWN		0x00
#define EC_FETCH_EL0		0x20
#define EC_FETCH		0x21
#define EC_DATA_EL0		0x24
#define EC_DATA			0x25

#define PATIENCE		30	/* seconds for the host to inject */

/* One synchronous exception that is expected; laid out for reach_asm.S. */
struct trap {
	u64 resume, armed, taken, esr, far, elr, spsr;
};
volatile struct trap trap;

extern const char reach_vectors[], el0_hvc[], el0_smc[], el0_load[], el0_store[];
u64 probe_load(u64 address), probe_load_byte(u64 address), probe_load_half(u64 address);
u64 probe_load_pair(u64 address), probe_load_exclusive(u64 address);
u64 probe_store_val(u64 address, u64 val);
u64 probe_store(u64 address), probe_store_byte(u64 address), probe_store_pair(u64 address);
u64 probe_translate(u64 address), probe_hcr(u64 x), probe_vttbr(u64 x), probe_eret_el2(u64 x);
void probe_fetch(u64 address), probe_el0(u64 pc, u64 x0, u64 x1);
u64 hvc_1(u64 id), hvc_ffff(u64 id), smc_1(u64 id), smc_ffff(u64 id);

static u64 ram_end, block, block_size, ecam, bell_page, gicd, gicr, fw_cfg;
static volatile u64 events[MAX_CPUS], spins[MAX_CPUS];

#define read_sysreg(name) ({ u64 _v; __asm__ volatile("mrs %0, " name : "=r"(_v) :: "memory"); _v; })
#define write_sysreg(name, v) __asm__ volatile("msr " name ", %0\n\tisb" :: "r"((u64)(v)) : "memory")

static u32 rd(u64 address) { return *(volatile u32 *)address; }
static void wr(u64 address, u32 val) { *(volatile u32 *)address = val; }
static void wr8(u64 address, u8 val) { *(volatile u8 *)address = val; }

/* -- what aborts */

static u32 ec(void)
{
	return (u32)(trap.esr >> 26) & 0x3f;
}

/* The exception that was to come has come. */
static void trapped(const char *what, u64 address, u64 before, u32 want)
{
	if (trap.taken == before + 1 && ec() == want)
		return;
	if (trap.taken == before)
		result_failed("%s at 0x%lx: no exception", what, address);
	result_failed("%s at 0x%lx: exception class 0x%x instead of 0x%x, ESR 0x%lx", what, address, ec(), want,
		      trap.esr);
}

/* ...and is the abort of an address where there is nothing. */
static void aborted(const char *what, u64 address, u64 before, u32 want, bool write)
{
	trapped(what, address, before, want);
	if ((trap.esr & ESR_FSC) != SEA)
		result_failed("%s at 0x%lx: ESR 0x%lx is no external abort", what, address, trap.esr);
	if (trap.far != address)
		result_failed("%s at 0x%lx: FAR 0x%lx", what, address, trap.far);
	if (!(trap.esr & ESR_WNR) == write)
		result_failed("%s at 0x%lx: ESR 0x%lx is wrong about the direction", what, address, trap.esr);
}

static void no_access(u64 address)
{
	static const struct {
		const char *name;
		u64 (*probe)(u64);
		bool write;
	} probes[] = {
		{ "LDR", probe_load, false }, { "LDRB", probe_load_byte, false }, { "LDRH", probe_load_half, false },
		{ "LDP", probe_load_pair, false }, { "LDXR", probe_load_exclusive, false },
		{ "STR", probe_store, true }, { "STRB", probe_store_byte, true }, { "STP", probe_store_pair, true },
	};
	u64 n;

	for (u32 i = 0; i < sizeof(probes) / sizeof(probes[0]); i++) {
		n = trap.taken;
		(void)probes[i].probe(address);
		aborted(probes[i].name, address, n, EC_DATA, probes[i].write);
	}
	n = trap.taken;
	probe_fetch(address);
	aborted("fetch", address, n, EC_FETCH, false);
	if (trap.elr != address)
		result_failed("fetch at 0x%lx: ELR 0x%lx", address, trap.elr);
	n = trap.taken;
	probe_el0((u64)el0_load, address, 0);
	aborted("LDR at EL0", address, n, EC_DATA_EL0, false);
	n = trap.taken;
	probe_el0((u64)el0_store, address, 0);
	aborted("STR at EL0", address, n, EC_DATA_EL0, true);
	n = trap.taken;
	probe_el0(address, 0, 0);
	aborted("fetch at EL0", address, n, EC_FETCH_EL0, false);
}

/* Every page a little, the first and the last with all there is. */
static void check_block(void)
{
	for (u64 page = block; page < block + block_size; page += PAGE) {
		u64 n = trap.taken;

		(void)probe_load(page + 8);
		aborted("LDR", page + 8, n++, EC_DATA, false);
		(void)probe_store(page + PAGE - 4);
		aborted("STR", page + PAGE - 4, n++, EC_DATA, true);
		probe_fetch(page);
		aborted("fetch", page, n++, EC_FETCH, false);
	}
	no_access(block);
	no_access(block + block_size - PAGE);
	no_access(block + block_size);
	/* From the end of our RAM on nothing is ours, but up to there everything. */
	no_access(ram_end);
	no_access(block - PAGE < ram_end ? ram_end : block - PAGE);
	wr(ram_end - 4, 0x600d);
	if (rd(ram_end - 4) != 0x600d)
		result_failed("0x%lx is no memory", ram_end - 4);
}

/* Translation tables that stand there are no way in, either. */
static u64 table[512] __attribute__((aligned(4096)));

static void check_walk(void)
{
	u64 upper = ~0ul << 39, n, sctlr;

	/* 39 bits in blocks of 1 GiB, one to one; the upper half translates by what is in the block. */
	for (u64 i = 0; i < 512; i++)
		table[i] = i << 30 | 1u << 10 | 1u;	/* accessed, device memory by MAIR's 0 */
	table[1] |= 1u << 2;				/* RAM is not cached */
	write_sysreg("mair_el1", 0x4400);
	write_sysreg("tcr_el1", 2ul << 32 | 2ul << 30 | 25ul << 16 | 25ul);
	write_sysreg("ttbr0_el1", (u64)table);
	write_sysreg("ttbr1_el1", block + block_size - PAGE);
	__asm__ volatile("dsb sy\n\ttlbi vmalle1\n\tdsb sy\n\tisb" ::: "memory");
	sctlr = read_sysreg("sctlr_el1");
	write_sysreg("sctlr_el1", sctlr | 1);
	n = trap.taken;
	(void)probe_load(upper);
	trapped("LDR through tables in the block", upper, n++, EC_DATA);
	if (trap.far != upper)
		result_failed("LDR through tables in the block: FAR 0x%lx", trap.far);
	(void)probe_translate(upper);
	trapped("AT through tables in the block", upper, n, EC_DATA);
	write_sysreg("sctlr_el1", sctlr);
	__asm__ volatile("tlbi vmalle1\n\tdsb sy\n\tisb" ::: "memory");
}

/* The slot looks empty, and stays so. */
static void check_pci(void)
{
	u64 function = ecam + (BELL_SLOT << 15), n;

	for (u64 off = 0; off < PAGE; off += 4)
		if (rd(function + off) != ~0u)
			result_failed("PCI slot 0x%x reads 0x%x at 0x%lx", BELL_SLOT, rd(function + off), off);
	for (u64 off = 0; off < 64; off++)
		if (*(volatile u8 *)(function + off) != 0xff)
			result_failed("PCI slot 0x%x: a byte at 0x%lx is not 0xff", BELL_SLOT, off);
	for (u64 i = 1; i < 8; i++)
		if (rd(function + i * PAGE) != ~0u)
			result_failed("PCI slot 0x%x has a function %lu", BELL_SLOT, i);
	n = trap.taken;
	(void)probe_store(function + 0x04);
	aborted("STR", function + 0x04, n++, EC_DATA, true);
	(void)probe_store(function + 0x10);
	aborted("STR", function + 0x10, n++, EC_DATA, true);
	probe_fetch(function);
	aborted("fetch", function, n++, EC_FETCH, false);
	no_access(bell_page);
	no_access(bell_page + PAGE - 16);
}

/*
 * Devices that write to memory do so behind stage 2's back.  QEMU's fw_cfg is the one that is always there: have it
 * copy its signature over the page of ones that was read above.
 */
#define FW_CFG_DMA	0x10
#define FW_CFG_SELECT	0x08u
#define FW_CFG_READ	0x02u

static void store32(u8 *p, u64 val)
{
	for (u32 i = 0; i < 4; i++)
		p[i] = (u8)(val >> (24 - 8 * i));
}

static void check_dma(void)
{
	static u8 command[16] __attribute__((aligned(16)));	/* control, length, address; big endian */
	u32 at;

	if (!fw_cfg)
		return;
	store32(command, FW_CFG_SELECT | FW_CFG_READ);
	store32(command + 4, 4);
	store32(command + 8, (block + BLANK_PAGE) >> 32);
	store32(command + 12, block + BLANK_PAGE);
	store32((u8 *)&at, (u64)command);
	mb();
	/* The lower half of the command's address sets it off.  Where DMA is off there is nothing to write to. */
	(void)probe_store_val(fw_cfg + FW_CFG_DMA + 4, at);
	trap.armed = 0;
	mb();
	if (rd(ecam + (BELL_SLOT << 15)) != ~0u)
		result_failed("fw_cfg writes into the reserved block");
}

/* -- calls */

static void check_calls(void)
{
	static const u32 unknown[] = {
		0x00000000, 0x04000020, 0x8400001f, 0x84000020, 0xc400003f, 0xc4000033, 0xbf00ff01, 0x80007fff,
		0xc3000000, 0xc200ff00, 0xc5000042, 0xc600ffff, 0xff000000, 0xffffffff,
	};
	static const struct {
		const char *name;
		u64 (*call)(u64);
	} immediates[] = {
		{ "HVC #1", hvc_1 }, { "HVC #0xffff", hvc_ffff }, { "SMC #1", smc_1 }, { "SMC #0xffff", smc_ffff },
	};
	s64 version = sdei0(SDEI_VERSION);
	u64 n;

	for (u32 i = 0; i < sizeof(unknown) / sizeof(unknown[0]); i++) {
		for (u32 smc = 0; smc < 2; smc++) {
			struct smccc_regs r = { { unknown[i], 1, 2, 3, 4, 5, 6, 7 } };

			smccc(smc, &r);
			if ((u32)r.x[0] != (u32)SMCCC_NOT_SUPPORTED)
				result_failed("function 0x%x: 0x%lx", unknown[i], r.x[0]);
		}
	}
	/* SMCCC reserves immediates other than 0: served as if it were 0, or refused. */
	for (u32 i = 0; i < sizeof(immediates) / sizeof(immediates[0]); i++) {
		s64 ret = (s64)immediates[i].call(SDEI_VERSION);

		if (ret != version && ret != SMCCC_NOT_SUPPORTED)
			result_failed("%s: 0x%lx", immediates[i].name, ret);
	}
	/* No PE starts in the block. */
	if (psci_cpu_on(cpus[0].mpidr, block, 0) != -9)
		result_failed("CPU_ON into the reserved block is not refused");
	/* EL0 has neither; SYSTEM_OFF would be hard to miss. */
	n = trap.taken;
	probe_el0((u64)el0_hvc, PSCI_SYSTEM_OFF, 0);
	trapped("HVC at EL0", (u64)el0_hvc, n++, EC_UNKNOWN);
	probe_el0((u64)el0_smc, PSCI_SYSTEM_OFF, 0);
	trapped("SMC at EL0", (u64)el0_smc, n++, EC_UNKNOWN);
	if (trap.elr != (u64)el0_smc || (trap.spsr & 0xf))
		result_failed("SMC at EL0: ELR 0x%lx SPSR 0x%lx", trap.elr, trap.spsr);
	(void)probe_hcr(0);
	trapped("MRS HCR_EL2", 0, n++, EC_UNKNOWN);
	(void)probe_vttbr(0);
	trapped("MSR VTTBR_EL2", 0, n++, EC_UNKNOWN);
	(void)probe_eret_el2(0);
	trapped("MSR ELR_EL2", 0, n++, EC_UNKNOWN);
	if (sdei0(SDEI_VERSION) != version)
		result_failed("the service is not what it was");
}

/* -- the interrupt controller against us */

u64 sdei_handler(struct sdei_frame *f)
{
	(void)f;
	events[this_cpu()->index]++;
	mb();
	return 0;
}

static void wait_event(u64 i, u64 n, const char *what)
{
	u64 end = read_sysreg("cntvct_el0") + PATIENCE * read_sysreg("cntfrq_el0");

	while (events[i] == n)
		if (read_sysreg("cntvct_el0") > end)
			result_failed("%s: no event on CPU#%lu", what, i);
	mb();
	if (events[i] != n + 1)
		result_failed("%s: %lu events on CPU#%lu", what, events[i] - n, i);
}

/* Registers its event, and runs on with everything masked. */
static void ready(struct cpu *cpu)
{
	if (sdei_call(SDEI_EVENT_REGISTER, 0, (u64)sdei_entry, 0, SDEI_RM_ANY, 0) || sdei1(SDEI_EVENT_ENABLE, 0) ||
	    sdei0(SDEI_PE_UNMASK))
		result_failed("CPU#%lu cannot have event 0", cpu->index);
	mb();
	spins[cpu->index]++;
}

static void other(struct cpu *cpu)
{
	ready(cpu);
	for (;;)
		spins[cpu->index]++;
}

/* Registers of the kick, by CPU. */
static u64 frame(u64 i) { return gicr + i * GICR_STRIDE + GICR_SGI_BASE; }

static void group(void) { wr(frame(0) + GICD_IGROUPR, ~0u); }
static void off(void) { wr(frame(0) + GICD_ICENABLER, 1u << KICK); }
static void low(void) { wr8(frame(0) + GICD_IPRIORITYR + KICK, 0xf8); }
static void active(void) { wr(frame(0) + GICD_ISACTIVER, 1u << KICK); }
static void no_group0(void) { wr(gicd + GICD_CTLR, rd(gicd + GICD_CTLR) & ~GICD_CTLR_GROUP0); }
static void nothing(void) { wr(gicd + GICD_CTLR, rd(gicd + GICD_CTLR) & ~(GICD_CTLR_GROUP0 | GICD_CTLR_GROUP1)); }
static void asleep(void) { wr(gicr + GICR_WAKER, GICR_WAKER_SLEEP); }

static void everything(void)
{
	group();
	off();
	low();
	active();
	nothing();
	asleep();
}

static void check_kicks(void)
{
	static const struct {
		const char *name;
		void (*spoil)(void);
	} ways[] = {
		{ "the kick in group 1", group }, { "the kick disabled", off }, { "the kick of low priority", low },
		{ "the kick active", active }, { "group 0 disabled", no_group0 }, { "both groups disabled", nothing },
		{ "the redistributor asleep", asleep }, { "all of that", everything },
	};

	for (u32 i = 0; i < sizeof(ways) / sizeof(ways[0]); i++) {
		u64 n = events[0];

		ways[i].spoil();
		print("waiting: %s\n", ways[i].name);
		wait_event(0, n, ways[i].name);
	}
}

/* Kicks that nobody asked for, and interrupts of group 0 that are nobody's. */
static void check_noise(void)
{
	u64 before[MAX_CPUS], start;

	for (u64 i = 0; i < machine.nr_cpus; i++)
		before[i] = events[i];
	for (u32 round = 0; round < 50; round++) {
		write_sysreg(ICC_SGI0R_EL1, SGI_TO_OTHERS | (u64)KICK << 24);
		write_sysreg(ICC_SGI0R_EL1, (u64)KICK << 24 | 0xffff);
		write_sysreg(ICC_SGI1R_EL1, SGI_TO_OTHERS | (u64)KICK << 24);
		for (u64 i = 0; i < machine.nr_cpus; i++)
			wr(frame(i) + GICD_ISPENDR, 1u << KICK);
	}
	wr(gicd + GICD_IGROUPR + UNUSED / 32 * 4, ~(1u << UNUSED % 32));
	for (u32 round = 0; round < 20; round++) {
		wr(gicd + GICD_ISENABLER + UNUSED / 32 * 4, 1u << UNUSED % 32);
		wr(gicd + GICD_ISPENDR + UNUSED / 32 * 4, 1u << UNUSED % 32);
		wr(frame(0) + GICD_IGROUPR, ~(1u << KICK | 1u << 3));	/* an SGI of group 0 of our own */
		wr(frame(0) + GICD_ISENABLER, 1u << 3);
		write_sysreg(ICC_SGI0R_EL1, 3ul << 24 | 1);
	}
	wr(gicd + GICD_ICENABLER + UNUSED / 32 * 4, 1u << UNUSED % 32);
	wr(gicd + GICD_IGROUPR + UNUSED / 32 * 4, ~0u);
	(void)sdei0(SDEI_VERSION);
	for (u64 i = 0; i < machine.nr_cpus; i++)
		if (events[i] != before[i])
			result_failed("events on CPU#%lu out of nothing", i);
	/* All are still there. */
	for (u64 i = 0; i < machine.nr_cpus; i++) {
		if (sdei2(SDEI_EVENT_SIGNAL, 0, cpus[i].mpidr))
			result_failed("EVENT_SIGNAL to CPU#%lu", i);
		wait_event(i, before[i], "signalled");
		start = spins[i];
		for (u64 spin = 0; i && spins[i] == start; spin++)
			if (spin == SPIN_LIMIT)
				result_failed("CPU#%lu does not go on", i);
	}
}

/* -- */

/* A number of 64 bits somewhere in a property. */
static u64 cells(const u8 *data, u32 at)
{
	u64 v = 0;

	for (u32 i = 0; i < 8; i++)
		v = v << 8 | data[at * 4 + i];
	return v;
}

static const u8 *reg_of(const struct fdt *f, u32 node, const char *prop, u32 want)
{
	u32 len;
	const u8 *data = node ? fdt_prop(f, node, prop, &len) : NULL;

	if (!data || len < want * 4)
		result_failed("a node or its %s is missing in the device tree", prop);
	return data;
}

static void look_around(void)
{
	struct fdt f;
	const u8 *data;
	const char *name;
	u32 node, child = FDT_NONE, len;

	/* Below the guest there is room for the device tree, so that is where it is. */
	if (!fdt_open(&f, RAM_BASE))
		result_failed("no device tree at the RAM base");
	data = reg_of(&f, fdt_node(&f, "/memory", 7), "reg", 4);
	ram_end = cells(data, 0) + cells(data, 2);
	node = fdt_node(&f, "/reserved-memory", 16);
	while (node && (child = fdt_child(&f, node, child, &name)))
		if (strlen(name) > 8 && !memcmp(name, "monitor@", 8))
			break;
	data = reg_of(&f, child, "reg", 4);
	block = cells(data, 0);
	block_size = cells(data, 2);
	data = reg_of(&f, fdt_node(&f, "/intc", 5), "reg", 8);
	gicd = cells(data, 0);
	gicr = cells(data, 4);
	if (!fdt_reg(&f, fdt_node(&f, "/fw-cfg", 7), 2, &fw_cfg))
		fw_cfg = 0;
	node = fdt_node(&f, "/pcie", 5);
	ecam = cells(reg_of(&f, node, "reg", 4), 0);
	(void)reg_of(&f, node, "ranges", 7);
	data = fdt_prop(&f, node, "ranges", &len);
	for (u32 i = 0; i + 7 <= len / 4; i += 7)
		if (cells(data, i) >> 32 == PCI_IO_SPACE)
			bell_page = cells(data, i + 3) + cells(data, i + 5);	/* right behind what we are told of */
	if (!bell_page)
		result_failed("no PCI I/O ports in the device tree");
}

void guest_main(struct cpu *cpu)
{
	static const struct {
		const char *name;
		void (*run)(void);
	} checks[] = {
		{ "memory", check_block }, { "walks", check_walk }, { "pci", check_pci }, { "dma", check_dma },
		{ "calls", check_calls }, { "kicks", check_kicks }, { "noise", check_noise },
	};

	if (!machine.has_sdei)
		result_failed("no /firmware/sdei in the device tree");
	look_around();
	cpus_start(other);
	for (u64 i = 1; i < machine.nr_cpus; i++)
		for (u64 spin = 0; !spins[i]; spin++)
			if (spin == SPIN_LIMIT)
				result_failed("CPU#%lu does not get ready", i);
	ready(cpu);
	write_sysreg("vbar_el1", reach_vectors);
	print("reserved: 0x%lx to 0x%lx behind RAM that ends at 0x%lx\n", block, block + block_size, ram_end);
	for (u32 i = 0; i < sizeof(checks) / sizeof(checks[0]); i++) {
		print("--- %s\n", checks[i].name);
		checks[i].run();
	}
	print("\n");
	result_ok();
}
