// SPDX-License-Identifier: Apache-2.0
/* What all CPUs do at once and for ever. */
#include "hostile.h"

/* -- storms */

static bool may_bother(u64 i)
{
	return i != 1 || own_event;
}

static void signal_all(struct cpu *cpu)
{
	(void)cpu;
	for (;;)
		for (u64 i = 0; i < machine.nr_cpus; i++)
			if (may_bother(i))
				(void)sdei2(SDEI_EVENT_SIGNAL, 0, cpus[i].mpidr);
}

/* Everybody signals everybody, and each handler signals the next CPU. */
u64 pass_on(struct sdei_frame *f)
{
	u64 next = (read_sysreg("mpidr_el1") & 0xff) + 1;

	(void)f;
	if (next < machine.nr_cpus && may_bother(next))
		(void)sdei2(SDEI_EVENT_SIGNAL, 0, cpus[next].mpidr);
	return 0;
}

void storm_helper(struct cpu *cpu)
{
	event_0((u64)sdei_entry, 0, 0);
	ready[cpu->index] = 1;
	signal_all(cpu);
}

void storm(struct cpu *cpu)
{
	act = pass_on;
	event_0((u64)sdei_entry, 0, 0);
	say_gone("everybody signals everybody");
	signal_all(cpu);
}

void mask_helper(struct cpu *cpu)
{
	event_0((u64)sdei_entry, 0, 0);
	ready[cpu->index] = 1;
	for (u64 n = 0;; n++) {
		(void)sdei0(n & 1 ? SDEI_PE_UNMASK : SDEI_PE_MASK);
		(void)sdei1(n & 2 ? SDEI_EVENT_ENABLE : SDEI_EVENT_DISABLE, 0);
		if (!(n & 7))
			(void)sdei0(SDEI_PRIVATE_RESET);
		if (!(n & 7))
			(void)sdei_call(SDEI_EVENT_REGISTER, 0, (u64)sdei_entry, 0, 0, 0);
		(void)sdei2(SDEI_EVENT_SIGNAL, 0, cpus[n % machine.nr_cpus == 1 ? 0 : n % machine.nr_cpus].mpidr);
	}
}

void storm_mask(struct cpu *cpu)
{
	say_gone("masks, registers, resets for ever");
	mask_helper(cpu);
}

void call_helper(struct cpu *cpu)
{
	ready[cpu->index] = 1;
	for (u64 n = 0;; n++)
		(void)ones_hvc(n & 1 ? 0x8400ffff : 0xc4000020 + (n >> 1 & 0x1f));
}

void storm_calls(struct cpu *cpu)
{
	say_gone("calls for ever");
	call_helper(cpu);
}

/* Exceptions that the host has to look at, without a single instruction between them that means anything. */
void abort_helper(struct cpu *cpu)
{
	ready[cpu->index] = 1;
	my_trap()->mode = TRAP_SKIP;
	for (;;) {
		poke32(HOLE, 1);
		if (block)
			poke32(block, 1);
	}
}

void storm_aborts(struct cpu *cpu)
{
	say_gone("aborts for ever");
	abort_helper(cpu);
}

void storm_console(struct cpu *cpu)
{
	(void)cpu;
	print("gone: prints for ever\n");	/* and the honest one does not */
	for (;;)
		print("%064lu\n", seed);
}
