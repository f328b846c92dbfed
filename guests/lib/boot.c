// SPDX-License-Identifier: Apache-2.0
/* From the device tree, or ACPI's tables, to guest_main(), and from guest_main() to the end of the run. */
#include "acpi.h"
#include "fdt.h"
#include "guest.h"
#include "sdei.h"

struct machine machine;
struct cpu cpus[MAX_CPUS];
u32 machine_sdei_smc;		/* machine.sdei_smc, as sdei_entry.S reads it */

static void (*secondary_fn)(struct cpu *);
void secondary_entry(void);

#define AFFINITY	0xff00fffffful	/* MPIDR_EL1: Aff3, Aff2..Aff0 */
#define RESULT		"    Result: "

void result_ok(void)
{
	print(RESULT "OK\n");
	psci_system_off();
}

void result_failed(const char *fmt, ...)
{
	struct out uart = { 0 };
	va_list ap;

	print(RESULT "FAILED (");
	va_start(ap, fmt);
	out_vprintf(&uart, fmt, ap);
	va_end(ap);
	print(")\n");
	psci_system_off();
}

/* A guest may have one of its own. */
__attribute__((weak, noreturn)) void unexpected_exception(u64 vector, u64 esr, u64 elr, u64 far, u64 spsr)
{
	struct cpu *cpu = this_cpu();

	print("\nCPU#%lu: unexpected exception, vector 0x%03lx ESR 0x%016lx ELR 0x%016lx FAR 0x%016lx SPSR 0x%016lx\n",
	      cpu ? cpu->index : 0, vector * 0x80, esr, elr, far, spsr);
	result_failed("unexpected exception on CPU#%lu", cpu ? cpu->index : 0);
}

static bool find_node(const struct fdt *f, const char *path, u32 *node)
{
	*node = fdt_node(f, path, strlen(path));
	return *node != FDT_NONE;
}

/* /chosen: bootargs, and the UART when stdout-path is the full path of a PL011 below the root */
static void read_chosen(const struct fdt *f)
{
	u32 chosen, node, len, cells = 2;
	const u8 *p;
	u64 base;

	if (!find_node(f, "/chosen", &chosen))
		return;
	p = fdt_prop(f, chosen, "bootargs", &len);
	if (p) {
		if (len > sizeof(machine.bootargs))
			result_failed("bootargs longer than %u bytes", (u32)sizeof(machine.bootargs) - 1);
		memcpy(machine.bootargs, p, len);
		machine.bootargs[len ? len - 1 : 0] = '\0';
	}
	p = fdt_prop(f, chosen, "stdout-path", &len);
	if (!p || !len || p[0] != '/')
		return;
	for (u32 i = 0; i < len; i++)
		if (p[i] == ':' || !p[i])
			len = i;	/* the options after ':' are not part of the path */
	node = fdt_node(f, (const char *)p, len);
	p = fdt_prop(f, node, "compatible", &len);
	(void)fdt_prop_u32(f, fdt_node(f, "/", 1), "#address-cells", &cells);
	if (p && len >= 10 && !memcmp(p, "arm,pl011", 10) && fdt_reg(f, node, cells, &base) && !(base & 3))
		machine.uart = base;
}

static void read_cpus(const struct fdt *f)
{
	u32 node, cells = 1, child = FDT_NONE;
	const char *name;

	if (!find_node(f, "/cpus", &node))
		result_failed("no /cpus in the device tree");
	(void)fdt_prop_u32(f, node, "#address-cells", &cells);
	while ((child = fdt_child(f, node, child, &name))) {
		struct cpu *cpu = &cpus[machine.nr_cpus];
		u64 reg;

		if (strlen(name) < 4 || memcmp(name, "cpu@", 4))
			continue;
		if (machine.nr_cpus == MAX_CPUS)
			result_failed("more than %u CPUs in the device tree", (u32)MAX_CPUS);
		if (!fdt_reg(f, child, cells, &reg) || reg & ~AFFINITY)
			result_failed("/cpus/%s: bad reg", name);
		cpu->index = machine.nr_cpus++;
		cpu->mpidr = reg;
	}
}

/* A device tree with nothing but /chosen: the rest is told by the tables that it leads to. */
static bool boots_by_acpi(const struct fdt *f)
{
	u32 chosen, len;
	const u8 *p;
	u64 at = 0;

	if (!find_node(f, "/chosen", &chosen))
		return false;
	p = fdt_prop(f, chosen, "linux,uefi-system-table", &len);
	if (!p || len != 8)
		return false;
	for (u32 i = 0; i < len; i++)
		at = at << 8 | p[i];
	return acpi_open(at);
}

static bool conduit_is_smc(const struct fdt *f, u32 node, const char *path)
{
	if (fdt_prop_is(f, node, "method", "smc"))
		return true;
	if (!fdt_prop_is(f, node, "method", "hvc"))
		result_failed("%s: method is neither hvc nor smc", path);
	return false;
}

static void read_tree(const struct fdt *f)
{
	u32 node;

	/* The conduit first: without it even a failure cannot power off. */
	if (!find_node(f, "/psci", &node))
		result_failed("no /psci in the device tree");
	machine.psci_smc = conduit_is_smc(f, node, "/psci");
	read_chosen(f);
	if (machine.uart != UART_DEFAULT)
		uart_init(machine.uart);
	machine.has_sdei = find_node(f, "/firmware/sdei", &node);
	if (machine.has_sdei)
		machine.sdei_smc = conduit_is_smc(f, node, "/firmware/sdei");
	read_cpus(f);
}

__attribute__((noreturn)) void boot(u64 dtb, u64 current_el)
{
	struct cpu *cpu = NULL;
	struct fdt f;
	u64 mpidr;

	uart_init(UART_DEFAULT);
	if (current_el != 1 << 2) {
		/* HVC would come back to ourselves: there is no firmware to call, not even to power off. */
		print(RESULT "FAILED (started at EL%lu instead of EL1)\n", current_el >> 2);
		for (;;)
			__asm__ volatile("wfi");
	}
	/* x0 below RAM is no device tree: QEMU leaves 0 there for an ELF and puts the tree at the RAM base. */
	machine.dtb = dtb >= RAM_BASE && fdt_open(&f, dtb) ? dtb : RAM_BASE;
	if (!fdt_open(&f, machine.dtb))
		result_failed("no device tree");

	machine.uart = UART_DEFAULT;
	if (boots_by_acpi(&f)) {
		acpi_describe();
		read_chosen(&f);
	} else {
		read_tree(&f);
	}
	machine_sdei_smc = machine.sdei_smc;

	__asm__ volatile("mrs %0, mpidr_el1" : "=r"(mpidr));
	for (u32 i = 0; i < machine.nr_cpus; i++)
		if (cpus[i].mpidr == (mpidr & AFFINITY))
			cpu = &cpus[i];
	if (!cpu)
		result_failed("the boot CPU, affinity 0x%lx, is not among those there are", mpidr & AFFINITY);
	/*
	 * From here on an exception starts over on this CPU's own stack.  We stay on the stack of CPU#0, so that CPU#0
	 * has to be us.
	 */
	if (cpu->index)
		result_failed("the boot CPU is CPU#%lu of /cpus instead of the first", cpu->index);
	__asm__ volatile("msr tpidr_el1, %0\n\tisb" :: "r"(cpu));
	cpu->online = 1;
	guest_main(cpu);
}

void secondary(struct cpu *cpu)
{
	mb();
	cpu->online = 1;
	mb();
	secondary_fn(cpu);
	for (;;)
		__asm__ volatile("wfi");
}

void cpus_start(void (*fn)(struct cpu *))
{
	secondary_fn = fn;
	mb();
	for (u32 i = 1; i < machine.nr_cpus; i++) {
		s64 ret = psci_cpu_on(cpus[i].mpidr, (u64)secondary_entry, i);

		if (ret)
			result_failed("PSCI CPU_ON of CPU#%u: %ld", i, ret);
	}
	for (u32 i = 1; i < machine.nr_cpus; i++) {
		u64 spin;

		for (spin = 0; !cpus[i].online && spin < SPIN_LIMIT; spin++)
			relax();
		if (!cpus[i].online)
			result_failed("CPU#%u did not start", i);
	}
	mb();
}

bool arg_str(const char *key, const char **val, size_t *len)
{
	const char *s = machine.bootargs;
	size_t klen = strlen(key);

	while (*s) {
		size_t n = 0;

		while (s[n] && s[n] != ' ')
			n++;
		if (n > klen && s[klen] == '=' && !memcmp(s, key, klen)) {
			*val = s + klen + 1;
			*len = n - klen - 1;
			return true;
		}
		s += n;
		while (*s == ' ')
			s++;
	}
	return false;
}

bool arg_is(const char *key, const char *want)
{
	const char *val;
	size_t len;

	return arg_str(key, &val, &len) && str_is(val, len, want);
}

/* Decimal, or hexadecimal after 0x. */
bool parse_u64(const char *s, size_t len, u64 *out)
{
	u64 base = 10, v = 0;

	if (len > 2 && s[0] == '0' && (s[1] | 0x20) == 'x') {
		base = 16;
		s += 2;
		len -= 2;
	}
	if (!len)
		return false;
	for (; len; s++, len--) {
		u64 digit;

		if (*s >= '0' && *s <= '9')
			digit = (u64)(*s - '0');
		else if ((*s | 0x20) >= 'a' && (*s | 0x20) <= 'f')
			digit = (u64)((*s | 0x20) - 'a' + 10);
		else
			return false;
		if (digit >= base || v > (~0ul - digit) / base)
			return false;
		v = v * base + digit;
	}
	*out = v;
	return true;
}

u64 arg_u64(const char *key, u64 otherwise)
{
	const char *val;
	size_t len;
	u64 v;

	if (!arg_str(key, &val, &len))
		return otherwise;
	if (!parse_u64(val, len, &v))
		result_failed("bootargs: %s is not a number", key);
	return v;
}
