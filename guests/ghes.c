// SPDX-License-Identifier: Apache-2.0
/*
 * Takes hardware errors as a kernel does: finds the sources in the HEST, registers their events, and in the handler
 * reads the block, prints what is in it and acknowledges it.  Or does otherwise, as it is told by keys; it answers each
 * with a line "key: K".  Up to 8 CPUs.
 *
 * bootargs: route=CPU (of shared events; default any)   victims=N (pages that are marked as guests/linux/user/victim.c
 * marks its own, default 0)   panic=reset (at a fatal error; by default the CPUs stop)
 *
 *	a	acknowledge from now on, in the handler			A	what waits, now
 *	l	leave the block alone in the handler
 *	h, k	hold in the handler until g, before or after acknowledging
 *	m, u	mask, unmask the PEs					d, e	disable, enable the events
 *	x, y	unregister, register the events				0, 1	CPU 1 off, on
 *	o	turn CPU 1 off in the handler, before reading		r	reset the system
 *	q	end
 */
#include "acpi.h"
#include "sdei.h"
#include "smccc.h"

#define PSCI_CPU_OFF		0x84000002u
#define PSCI_AFFINITY_INFO64	0xc4000004u
#define PSCI_SYSTEM_RESET	0x84000009u

#define MAX_SPEAKERS	8	/* CPUs */
#define MAX_SOURCES	64
#define MAX_VICTIMS	4

/* HEST, ACPI 6.3, 18.3.2.7 */
#define HEST_COUNT	36
#define HEST_ENTRIES	40
#define GHES		9
#define GHES_SIZE	64
#define GHES_V2		10
#define GHES_V2_SIZE	92
#define GHES_STATUS	24	/* the address in a generic address structure */
#define GHES_NOTIFY	32
#define   BY_SDEI	11
#define GHES_VECTOR	40
#define GHES_ACK	68
#define GHES_PRESERVE	76
#define GHES_WRITE	84

/* The block, 18.3.2.7.1, and the first section in it, UEFI N.2.5 */
#define BLOCK_LENGTH	12
#define BLOCK_SEVERITY	16
#define   FATAL		1
#define SECTION_BODY	(20 + 72)
#define MEMORY_ADDRESS	(SECTION_BODY + 16)

struct source {
	u32 id, event;
	bool shared;
	u64 status;		/* where the address of the block stands */
	u64 ack, preserve, write;
	volatile u64 taken;
};

static struct source sources[MAX_SOURCES];
static u32 nr_sources;
static u64 route;
static bool reset_in_panic;
static volatile int way = 'a';
static volatile bool go, off;

struct victim {
	volatile u64 heartbeat;
	u64 magic, pid, virtual;
	char name[32];
	u8 rest[4096 - 64];
};
static struct victim victims[MAX_VICTIMS] __attribute__((aligned(4096)));
static u64 nr_victims;

void secondary_entry(void);

static s64 psci(u32 function, u64 argument)
{
	struct smccc_regs r = { { function, argument } };

	smccc(machine.psci_smc, &r);
	return (s64)r.x[0];
}

/*
 * CPU#0 alone prints, so that lines stay whole.  Others leave theirs to it, each handler in a place of its own: one may
 * interrupt another.  Where nobody takes it for long, it is lost.
 */
static struct {
	volatile u64 len;
	char text[160];
} lines[MAX_SPEAKERS][MAX_SOURCES + 1];

static void say(struct cpu *cpu, u32 place, const char *fmt, ...) __attribute__((format(printf, 3, 4)));
static void say(struct cpu *cpu, u32 place, const char *fmt, ...)
{
	char *text = lines[cpu->index][place].text;
	struct out o = { .buf = text, .cap = sizeof(lines[0][0].text) };
	va_list ap;

	va_start(ap, fmt);
	out_vprintf(&o, fmt, ap);
	va_end(ap);
	if (!cpu->index) {
		uart_write(text, o.len);
		return;
	}
	mb();
	lines[cpu->index][place].len = o.len;
	for (u64 spins = 0; lines[cpu->index][place].len && spins < SPIN_LIMIT; spins++)
		relax();
}

static void print_for_others(void)
{
	for (u32 i = 1; i < machine.nr_cpus; i++) {
		for (u32 place = 0; place <= MAX_SOURCES; place++) {
			u64 len = lines[i][place].len;

			mb();
			if (!len)
				continue;
			uart_write(lines[i][place].text, len);
			mb();
			lines[i][place].len = 0;
		}
	}
}

static const u8 *block_of(const struct source *s)
{
	return (const u8 *)le64((const u8 *)s->status);
}

static void acknowledge(struct source *s)
{
	*(volatile u32 *)block_of(s) = 0;
	mb();
	if (s->ack) {
		volatile u64 *ack = (volatile u64 *)s->ack;

		*ack = (*ack & s->preserve) | s->write;
	}
	mb();
}

/* Linux's words, and its way: it masks itself first. */
__attribute__((noreturn)) static void panic(void)
{
	sdei0(SDEI_PE_MASK);
	print("\n[    1.000000] Kernel panic - not syncing: GHES: Fatal hardware error\n");
	if (reset_in_panic)
		psci(PSCI_SYSTEM_RESET, 0);
	print("[    1.000001] ---[ end Kernel panic - not syncing: GHES: Fatal hardware error ]---\n");
	for (;;)
		__asm__ volatile("wfi");
}

/* What is in the block, in one line; whether there was anything. */
static bool take(struct source *s, struct cpu *cpu)
{
	const u8 *block = block_of(s);
	u32 status = le32(block), severity = le32(block + BLOCK_SEVERITY);

	if (!status)
		return false;
	say(cpu, (u32)(s - sources), "GHES %u: severity %u, %u bytes, address 0x%lx, CPU#%lu, number %lu\n", s->id,
	    severity, le32(block + BLOCK_LENGTH), le64(block + MEMORY_ADDRESS), cpu->index, ++s->taken);
	if (severity == FATAL) {
		acknowledge(s);
		panic();
	}
	return true;
}

static void hold(struct cpu *cpu, u32 place)
{
	say(cpu, place, "holding: CPU#%lu\n", cpu->index);
	while (!go) {
		int key = cpu->index ? -1 : uart_read();

		if (!cpu->index)
			print_for_others();
		if (key == 'g')
			go = true;
		if (key == 'r')
			psci(PSCI_SYSTEM_RESET, 0);
		relax();
	}
}

u64 sdei_handler(struct sdei_frame *f)
{
	struct cpu *cpu = this_cpu();

	for (u32 i = 0; i < nr_sources; i++) {
		struct source *s = &sources[i];

		if (s->event != f->x[0])
			continue;
		if (way == 'l') {
			say(cpu, i, "left: GHES %u\n", s->id);
			return 0;
		}
		if (way == 'h')
			hold(cpu, i);
		if (way == 'o' && cpu->index == 1)
			psci(PSCI_CPU_OFF, 0);
		if (take(s, cpu))
			acknowledge(s);
		if (way == 'k')
			hold(cpu, i);
	}
	return 0;
}

static void must(u32 id, s64 ret)
{
	if (ret < 0)
		result_failed("CPU#%lu: %s: %s", this_cpu()->index, sdei_call_name(id), sdei_error_name(ret));
}

static void for_events(struct cpu *cpu, u32 id)
{
	for (u32 i = 0; i < nr_sources; i++)
		if (!sources[i].shared || !cpu->index)
			must(id, sdei1(id, sources[i].event));
}

static void register_events(struct cpu *cpu)
{
	for (u32 i = 0; i < nr_sources; i++) {
		struct source *s = &sources[i];
		bool routed = s->shared && route < machine.nr_cpus;

		if (s->shared && cpu->index)
			continue;
		must(SDEI_EVENT_REGISTER, sdei_call(SDEI_EVENT_REGISTER, s->event, (u64)sdei_entry, s->id, routed,
						    routed ? cpus[route].mpidr : 0));
	}
	for_events(cpu, SDEI_EVENT_ENABLE);
}

static void find_sources(void)
{
	u32 len;
	const u8 *hest = acpi_table("HEST", &len);

	if (!hest)
		result_failed("no HEST");
	for (u32 at = HEST_ENTRIES, n = le32(hest + HEST_COUNT); n; n--) {
		const u8 *entry = hest + at;
		u32 type = le16(entry), size = type == GHES_V2 ? GHES_V2_SIZE : GHES_SIZE;
		struct source *s = &sources[nr_sources];
		s64 shared;

		if ((type != GHES && type != GHES_V2) || at + size > len || entry[GHES_NOTIFY] != BY_SDEI)
			result_failed("source %u of the HEST is none of ours", nr_sources);
		s->id = le16(entry + 2);
		s->event = le32(entry + GHES_VECTOR);
		s->status = le64(entry + GHES_STATUS);
		if (type == GHES_V2) {
			s->ack = le64(entry + GHES_ACK);
			s->preserve = le64(entry + GHES_PRESERVE);
			s->write = le64(entry + GHES_WRITE);
		}
		shared = sdei2(SDEI_EVENT_GET_INFO, s->event, SDEI_INFO_TYPE);
		must(SDEI_EVENT_GET_INFO, shared);
		s->shared = shared == 1;
		at += size;
		if (++nr_sources == MAX_SOURCES)
			break;
	}
}

static void other(struct cpu *cpu)
{
	register_events(cpu);
	must(SDEI_PE_UNMASK, sdei0(SDEI_PE_UNMASK));
	say(cpu, MAX_SOURCES, "ready: CPU#%lu\n", cpu->index);
	for (;;) {
		if (off && cpu->index == 1) {
			off = false;
			psci(PSCI_CPU_OFF, 0);
		}
		relax();
	}
}

static void obey(struct cpu *cpu, int key)
{
	switch (key) {
	case 'a':
	case 'l':
	case 'h':
	case 'k':
	case 'o':
		go = false;
		way = key;
		break;
	case 'g':
		go = true;
		break;
	case 'A':
		for (u32 i = 0; i < nr_sources; i++)
			if (take(&sources[i], cpu))
				acknowledge(&sources[i]);
		break;
	case 'm':
		must(SDEI_PE_MASK, sdei0(SDEI_PE_MASK));
		break;
	case 'u':
		must(SDEI_PE_UNMASK, sdei0(SDEI_PE_UNMASK));
		break;
	case 'd':
		for_events(cpu, SDEI_EVENT_DISABLE);
		break;
	case 'e':
		for_events(cpu, SDEI_EVENT_ENABLE);
		break;
	case 'x':
		for_events(cpu, SDEI_EVENT_UNREGISTER);
		break;
	case 'y':
		register_events(cpu);
		break;
	case '0':
		off = true;
		while (psci(PSCI_AFFINITY_INFO64, cpus[1].mpidr) != 1)
			print_for_others();
		break;
	case '1':
		if (psci_cpu_on(cpus[1].mpidr, (u64)secondary_entry, 1))
			result_failed("CPU_ON");
		break;
	case 'r':
		psci(PSCI_SYSTEM_RESET, 0);
		break;
	case 'q':
		result_ok();
	}
	print("key: %c\n", key);
}

void guest_main(struct cpu *cpu)
{
	route = arg_u64("route", ~0ul);
	reset_in_panic = arg_is("panic", "reset");
	nr_victims = arg_u64("victims", 0);
	if (nr_victims > MAX_VICTIMS)
		result_failed("bootargs: more than %u victims", (u32)MAX_VICTIMS);
	if (machine.nr_cpus > MAX_SPEAKERS)
		result_failed("more than %u CPUs", (u32)MAX_SPEAKERS);
	if (!machine.has_sdei)
		result_failed("no SDEI");
	find_sources();
	cpus_start(other);
	for (u64 i = 0; i < nr_victims; i++) {
		struct out o = { .buf = victims[i].name, .cap = sizeof(victims[i].name) - 1 };

		out_printf(&o, "victim-%lu", i);
		victims[i].pid = 100 + i;
		victims[i].virtual = (u64)&victims[i];
		mb();
		memcpy(&victims[i].magic, "SDEI-RAS", 8);
	}
	register_events(cpu);
	must(SDEI_PE_UNMASK, sdei0(SDEI_PE_UNMASK));
	print("ready: CPU#%lu, %u sources\n", cpu->index, nr_sources);
	for (;;) {
		int key = uart_read();

		print_for_others();
		for (u64 i = 0; i < nr_victims; i++)
			victims[i].heartbeat++;
		if (key >= 0)
			obey(cpu, key);
		relax();
	}
}
