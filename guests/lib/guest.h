/* SPDX-License-Identifier: Apache-2.0 */
/* What every guest uses: CPUs, the UART, formatted text, bootargs, start and end of a run. */
#ifndef GUEST_H
#define GUEST_H

#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "config.h"

typedef uint8_t u8;
typedef uint16_t u16;
typedef uint32_t u32;
typedef uint64_t u64;
typedef int64_t s64;

/*
 * The MMU stays off, so every access is to Device-nGnRnE memory: it happens once, in order, and must be aligned.
 * Exclusives need not work there.  CPUs therefore talk through volatile variables that have one writer each, with
 * a barrier between the data and the flag that announces it.
 */
static inline void mb(void) { __asm__ volatile("dmb sy" ::: "memory"); }
static inline void compiler_barrier(void) { __asm__ volatile("" ::: "memory"); }
static inline void relax(void) { __asm__ volatile("yield" ::: "memory"); }

/* Runs have to be repeatable, so nothing reads a clock: a wait that takes this many polls has failed. */
#define SPIN_LIMIT	(1ul << 28)

struct cpu {
	u64 index;		/* its place in /cpus */
	u64 mpidr;		/* affinity fields Aff3..Aff0 only */
	volatile u64 online;
	void *guest;		/* the guest's own data for this CPU */
};
_Static_assert(sizeof(struct cpu) == 1 << CPU_SHIFT, "start.S computes the address of a struct cpu");
_Static_assert(offsetof(struct cpu, index) == CPU_INDEX && offsetof(struct cpu, guest) == CPU_GUEST, "for assembly");

static inline struct cpu *this_cpu(void)
{
	u64 p;

	__asm__ volatile("mrs %0, tpidr_el1" : "=r"(p));
	return (struct cpu *)p;
}

/* What the device tree says, or ACPI's tables; filled in before guest_main() runs. */
struct machine {
	u64 dtb;		/* the device tree's address */
	u64 uart;
	u32 nr_cpus;
	bool has_sdei;
	bool psci_smc;		/* conduit: SMC, else HVC */
	bool sdei_smc;
	char bootargs[2048];
};
extern struct machine machine;
extern struct cpu cpus[MAX_CPUS];

/* The guest: guest_main() on the boot CPU; cpus_start() runs fn on every other one. */
void guest_main(struct cpu *cpu) __attribute__((noreturn));
void cpus_start(void (*fn)(struct cpu *));

/* The end of a run: the last line, then power off. */
void result_ok(void) __attribute__((noreturn));
void result_failed(const char *fmt, ...) __attribute__((noreturn, format(printf, 1, 2)));

/* bootargs: key=value tokens between spaces.  A malformed number ends the run. */
bool arg_str(const char *key, const char **val, size_t *len);
bool arg_is(const char *key, const char *want);
u64 arg_u64(const char *key, u64 otherwise);
bool parse_u64(const char *s, size_t len, u64 *out);

/* Formatted text: %c %s %d %u %x with "-", "0", a width and "l"; to a buffer, or to the UART when buf is NULL. */
struct out {
	char *buf;
	size_t cap, len;
};
void out_vprintf(struct out *o, const char *fmt, va_list ap);
void out_printf(struct out *o, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
void print(const char *fmt, ...) __attribute__((format(printf, 1, 2)));

void uart_init(u64 base);
void uart_write(const char *s, size_t len);
int uart_read(void);		/* a byte, or -1 if none is there */

/* PSCI */
#define PSCI_CPU_ON64	0xc4000003u
#define PSCI_SYSTEM_OFF	0x84000008u
s64 psci_cpu_on(u64 mpidr, u64 entry, u64 context);
void psci_system_off(void) __attribute__((noreturn));

int memcmp(const void *a, const void *b, size_t n);
void *memcpy(void *d, const void *s, size_t n);
void *memset(void *d, int c, size_t n);
size_t strlen(const char *s);
bool str_is(const char *s, size_t len, const char *want);

#endif
