/* SPDX-License-Identifier: Apache-2.0 */
/* A reader for ACPI tables, which are found by the EFI system table that /chosen names. */
#ifndef ACPI_H
#define ACPI_H

#include "guest.h"

/* Little endian, at any address. */
u16 le16(const u8 *p);
u32 le32(const u8 *p);
u64 le64(const u8 *p);

/* Finds the tables; false where there are none. */
bool acpi_open(u64 system_table);

/* The table of that signature, or NULL. */
const u8 *acpi_table(const char *signature, u32 *len);

/* What the device tree says elsewhere: conduits, whether there is SDEI, the CPUs.  The tables have been found. */
void acpi_describe(void);

#endif
