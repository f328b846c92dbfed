// SPDX-License-Identifier: Apache-2.0
#include "acpi.h"

#define SDT_HEADER	36u
#define SDT_MAX		(1u << 20)

#define EFI_TABLES	104	/* how many entries, and where: EFI_SYSTEM_TABLE */
#define EFI_ENTRY_SIZE	24
#define RSDP_XSDT	24
#define FADT_ARM_BOOT	129
#define   PSCI_BY_HVC	2u
#define MADT_ENTRIES	44u
#define   GICC		0x0b
#define   GICC_FLAGS	12
#define   GICC_MPIDR	68
#define   GICC_MIN	76

static const u8 *xsdt;

u16 le16(const u8 *p)
{
	/* Volatile, so that byte loads stay byte loads. */
	const volatile u8 *q = p;

	return (u16)(q[0] | q[1] << 8);
}

u32 le32(const u8 *p)
{
	return le16(p) | (u32)le16(p + 2) << 16;
}

u64 le64(const u8 *p)
{
	return le32(p) | (u64)le32(p + 4) << 32;
}

static bool is_ram(u64 address)
{
	return address >= RAM_BASE;
}

bool acpi_open(u64 system_table)
{
	/* 8868e871-e4f1-11d3-bc22-0080c73c8881 */
	static const u8 acpi_20[16] = { 0x71, 0xe8, 0x68, 0x88, 0xf1, 0xe4, 0xd3, 0x11,
					0xbc, 0x22, 0x00, 0x80, 0xc7, 0x3c, 0x88, 0x81 };
	const u8 *efi = (const u8 *)system_table, *entry, *rsdp = NULL;
	u64 count;

	if (!is_ram(system_table) || memcmp(efi, "IBI SYST", 8))
		return false;
	count = le64(efi + EFI_TABLES);
	entry = (const u8 *)le64(efi + EFI_TABLES + 8);
	for (u64 i = 0; i < count && i < 64; i++, entry += EFI_ENTRY_SIZE)
		if (!memcmp(entry, acpi_20, sizeof(acpi_20)))
			rsdp = (const u8 *)le64(entry + 16);
	if (!rsdp || !is_ram((u64)rsdp) || memcmp(rsdp, "RSD PTR ", 8))
		return false;
	xsdt = (const u8 *)le64(rsdp + RSDP_XSDT);
	return is_ram((u64)xsdt) && !memcmp(xsdt, "XSDT", 4) && le32(xsdt + 4) < SDT_MAX;
}

const u8 *acpi_table(const char *signature, u32 *len)
{
	if (!xsdt)
		return NULL;
	for (u32 at = SDT_HEADER; at + 8 <= le32(xsdt + 4); at += 8) {
		const u8 *table = (const u8 *)le64(xsdt + at);

		if (is_ram((u64)table) && !memcmp(table, signature, 4)) {
			*len = le32(table + 4);
			return *len >= SDT_HEADER && *len < SDT_MAX ? table : NULL;
		}
	}
	return NULL;
}

void acpi_describe(void)
{
	u32 len;
	const u8 *fadt = acpi_table("FACP", &len), *madt;

	/* The conduit first: without it even a failure cannot power off. */
	machine.psci_smc = machine.sdei_smc = fadt && len > FADT_ARM_BOOT + 1 && !(le16(fadt + FADT_ARM_BOOT) & PSCI_BY_HVC);
	machine.has_sdei = acpi_table("SDEI", &len) != NULL;
	madt = acpi_table("APIC", &len);
	if (!madt)
		result_failed("no MADT");
	for (u32 at = MADT_ENTRIES; at + 2 <= len && madt[at + 1] >= 2; at += madt[at + 1]) {
		struct cpu *cpu = &cpus[machine.nr_cpus];

		if (madt[at] != GICC || madt[at + 1] < GICC_MIN || at + GICC_MIN > len || !(le32(madt + at + GICC_FLAGS) & 1))
			continue;
		if (machine.nr_cpus == MAX_CPUS)
			result_failed("more than %u CPUs in the MADT", (u32)MAX_CPUS);
		cpu->index = machine.nr_cpus++;
		cpu->mpidr = le64(madt + at + GICC_MPIDR);
	}
}
