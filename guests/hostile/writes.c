// SPDX-License-Identifier: Apache-2.0
/* A guest that writes everywhere: memory, devices, system registers, its own tables, its own code. */
#include "hostile.h"

/* -- writes everywhere */

void walk_memory(struct cpu *cpu)
{
	u64 image = (u64)_start & ~0xfffful, end = ((u64)__bss_end + 0xffff + HOSTILE_CPUS * STACK_SIZE) & ~0xfffful;
	volatile struct trap *t = my_trap();
	u64 before = t->taken;

	(void)cpu;
	t->mode = TRAP_SKIP;
	for (u64 at = RAM_BASE; at < ram_end; at += 0x1000)
		if (at < image || at >= end)
			poke(at, pattern(at));
	for (u64 at = ram_end; at < ram_end + 0x1000000; at += 0x4000)
		poke(at, pattern(at));
	for (u64 at = 0; at < RAM_BASE; at += 0x40000)
		poke(at, DOTS);
	for (u64 at = 0x08000000; at < 0x0a008000; at += 0x1000)
		poke(at, DOTS);
	for (u32 bit = 31; bit < 64; bit++)
		for (s64 off = -0x1000; off <= 0x1000; off += 0x800)
			poke((1ul << bit) + (u64)off, DOTS);
	t->mode = 0;
	print("\n%lu stores trapped\n", t->taken - before);
}

void walk_widths(struct cpu *cpu)
{
	const u64 places[] = {
		0, 0x08000000, 0x08010000, 0x080a0000, 0x09010000, 0x09020000, 0x09030000, 0x0a000000, 0x3f000000, 0x3eff0000,
		machine.uart + 0x100, machine.uart + 0x2c, machine.uart + 0x38, machine.uart + 0xff8, machine.uart + 0xfe0,
		machine.uart + 0x1000, HOLE, TABLES, RAM_BASE - 8, ram_end, ram_end - 8, BEYOND, NONCANONICAL, ~0ul, ~7ul, ~15ul,
		SCRATCH + 1, SCRATCH + 0xfff, block ? block : HOLE, block + 0x10000, block ? block - 8 : HOLE,
	};

	(void)cpu;
	write_sysreg("cpacr_el1", 3ul << 20);
	for (u32 i = 0; i < sizeof(places) / sizeof(places[0]); i++)
		touch(places[i], DOTS);
	uart_init(machine.uart);
	print("\n");
}

void walk_devices(struct cpu *cpu)
{
	volatile struct trap *t = my_trap();

	(void)cpu;
	t->mode = TRAP_SKIP;
	for (u64 at = machine.uart; at < machine.uart + 0x1000; at += 4)
		poke32(at, (u32)DOTS);
	/* Interrupt controller, its ITS, two redistributors, up and down, with more and with less in them. */
	for (u32 round = 0; has_gic && round < 3; round++) {
		u32 val = round == 0 ? (u32)DOTS : round == 1 ? ~0u : 0;

		for (u64 off = 0; off < 0x10000; off += 4) {
			poke32(0x08000000 + off, val);
			poke32(0x08080000 + off, val);
			poke32(0x080a0000 + 0x10000 - 4 - off, val);
			poke32(0x080b0000 + 0x10000 - 4 - off, val);
		}
	}
	for (u64 at = 0x09010000; at < 0x09010000 + 0x1000; at += 4)
		poke32(at, (u32)DOTS);
	for (u64 at = 0x09030000; at < 0x09030000 + 0x1000; at += 4)
		poke32(at, (u32)DOTS);
	for (u64 at = 0x0a000000; at < 0x0a004000; at += 4)
		poke32(at, (u32)DOTS);
	t->mode = 0;
	uart_init(machine.uart);
	print("\n");
}

/* -- system registers and translation */

void tpidr_garbage(struct cpu *cpu)
{
	volatile struct trap *t = my_trap();
	static const u64 values[] = { ~0xffful, HOLE, NONCANONICAL, BEYOND };

	/* What a handler finds by it, it does not find. */
	act = again_a_while;
	event_0((u64)sdei_entry, 0, 0);
	for (u32 i = 0; i < sizeof(values) / sizeof(values[0]); i++) {
		u64 n = t->taken;

		write_sysreg("tpidr_el1", values[i]);
		expect("EVENT_SIGNAL", provoke(0, cpu->mpidr), 0);
		write_sysreg("tpidr_el1", cpu);
		expect("exceptions", t->taken, n + 1);
	}
}

static void put_in_slot(u32 word)
{
	slot[0] = word;
	__asm__ volatile("dsb sy\n\tic iallu\n\tdsb sy\n\tisb" ::: "memory");
}

/* MSR to everything that has an encoding, and not the few without which this guest is no more. */
void system_registers(struct cpu *cpu)
{
	static const u64 values[] = { ~0ul, 0, DOTS };
	static const u32 spared[] = {
		/* SCTLR_EL1, VBAR_EL1, TPIDR_EL1, SPSel, DAIF as op0, op1, CRn, CRm, op2 */
		3 << 14 | 0 << 11 | 1 << 7 | 0 << 3 | 0, 3 << 14 | 0 << 11 | 12 << 7 | 0 << 3 | 0,
		3 << 14 | 0 << 11 | 13 << 7 | 0 << 3 | 4, 3 << 14 | 0 << 11 | 4 << 7 | 2 << 3 | 0,
		3 << 14 | 3 << 11 | 4 << 7 | 2 << 3 | 1,
	};
	volatile struct trap *t = my_trap();
	u64 written = 0;

	(void)cpu;
	for (u32 v = 0; v < sizeof(values) / sizeof(values[0]); v++) {
		for (u32 op = 1 << 14; op < 4 << 14; op++) {
			u64 n = t->taken;
			u32 i, op1 = op >> 11 & 7;

			for (i = 0; i < sizeof(spared) / sizeof(spared[0]) && op != spared[i]; i++)
				;
			if (i < sizeof(spared) / sizeof(spared[0]) || (op1 != 0 && op1 != 3 && (v || (op & 0x38))))
				continue;
			put_in_slot(0xd5000000u | op << 5);
			slot_run(values[v]);
			written += t->taken == n;
			if (v)
				continue;
			put_in_slot(0xd5200000u | op << 5);	/* and read it */
			slot_run(values[v]);
		}
	}
	print("%lu writes to system registers went through\n", written);
}

void mmu_on_nonsense(struct cpu *cpu)
{
	event_0((u64)sdei_entry, 0, 0);
	say_gone("the MMU is on, its tables are nonsense");
	(void)cpu;
	mmu_nonsense(0xfffffffff000, 0x0000000000190019ul, read_sysreg("sctlr_el1") | 1);
	for (;;)
		relax();
}

void mmu_on_ones(struct cpu *cpu)
{
	event_0((u64)sdei_entry, 0, 0);
	say_gone("SCTLR, TCR and TTBR are all ones");
	(void)cpu;
	mmu_nonsense(~0ul, ~0ul, ~0ul);
	for (;;)
		relax();
}

static u64 level1[512] __attribute__((aligned(4096))), level2[512] __attribute__((aligned(4096)));

static void flush(void)
{
	__asm__ volatile("dsb sy\n\ttlbi vmalle1\n\tdsb sy\n\tisb" ::: "memory");
}

/* The tables change under a handler, and under the one that runs. */
void tables_change(struct cpu *cpu)
{
	volatile struct trap *t = my_trap();
	volatile u64 *entry = &level2[(SCRATCH - RAM_BASE) >> 21];
	u64 sctlr = read_sysreg("sctlr_el1"), n;

	memcpy((void *)SCRATCH, complete_only, (size_t)(complete_only_end - complete_only));
	for (u64 i = 0; i < 512; i++) {
		level1[i] = i << 30 | 1u << 10 | 1u;
		level2[i] = (RAM_BASE + (i << 21)) | 1u << 10 | 1u << 2 | 1u;	/* not cached */
	}
	level1[1] = (u64)level2 | 3;
	write_sysreg("mair_el1", 0x4400);
	write_sysreg("tcr_el1", 2ul << 32 | 1ul << 23 | 25ul);
	write_sysreg("ttbr0_el1", (u64)level1);
	flush();
	write_sysreg("sctlr_el1", sctlr | 1);
	event_0(SCRATCH, 0, 0);
	for (u32 i = 0; i < 50; i++) {
		n = t->taken;
		expect("EVENT_SIGNAL", provoke(0, cpu->mpidr), 0);
		expect("exceptions with the handler mapped", t->taken, n);
		/* Not there; there but for execution; there, and its translation is beyond everything. */
		*entry = i % 3 == 0 ? 0 : i % 3 == 1 ? (SCRATCH | 1ul << 53 | 1u << 10 | 1u << 2 | 1u) : (BEYOND | 1u << 10 | 1u);
		flush();
		expect("EVENT_SIGNAL", provoke(0, cpu->mpidr), 0);
		expect("exceptions without", t->taken, n + 1);
		if (t->elr != SCRATCH || EC(t->esr) != EC_FETCH)
			result_failed("handler unmapped: ESR 0x%lx ELR 0x%lx", t->esr, t->elr);
		*entry = SCRATCH | 1u << 10 | 1u << 2 | 1u;
		flush();
	}
	/* Tables that stand in a device, in a hole, in the hypervisor's memory. */
	{
		const u64 places[] = { machine.uart, HOLE, TABLES, block ? block + 0x60000 : TABLES + 0x1000, BEYOND, ram_end };

		for (u32 i = 0; i < sizeof(places) / sizeof(places[0]); i++) {
			level1[3] = (places[i] & 0xfffffffff000) | 3;
			flush();
			n = t->taken;
			t->mode = TRAP_SKIP;
			poke(3ul << 30, 1);
			t->mode = 0;
			print("table at 0x%lx: ESR 0x%lx\n", places[i], t->esr);
			expect("exceptions by the walk", t->taken, n + 1);
		}
	}
	write_sysreg("sctlr_el1", sctlr);
	flush();
	no_event_0();
}

/* -- instructions that nobody wrote */

static u64 next_random(void)
{
	seed ^= seed << 13;
	seed ^= seed >> 7;
	seed ^= seed << 17;
	return seed;
}

void random_instructions(struct cpu *cpu)
{
	volatile struct trap *t = my_trap();
	u64 count = arg_u64("count", 20000), all = arg_u64("all", 0), trapped = 0;

	print("seed=%lu count=%lu\n", arg_u64("seed", 1), count);
	write_sysreg("cpacr_el1", 3ul << 20 | 3ul << 16 | 3ul << 24);
	for (u64 i = 0; i < count; i++) {
		u32 word = (u32)next_random();
		u64 n = t->taken;

		if ((word >> 26 & 7) == 5)	/* branches might never come back, and MSR has a case of its own */
			continue;
		/* Unallocated ones of half precision, of which Unicorn 2.1.4 dies: docs/hostile.md */
		if (!all && ((word & 0x9f60c400) == 0x0e400400 || (word & 0x8f7e0c00) == 0x0e780800))
			continue;
		put_in_slot(word);
		slot_run(SCRATCH + SCRATCH_SIZE / 2);
		trapped += t->taken - n;
		if (this_cpu() != cpu)
			result_failed("after 0x%x: TPIDR_EL1", word);
	}
	print("%lu trapped\n", trapped);
}
