# SPDX-License-Identifier: Apache-2.0
"""The ACPI tables of a machine. ACPI 6.3; Arm BBR and DEN0054C appendix C.

table.py      what all tables share: header, checksum, addresses
aml.py        as much of the machine language as the DSDT needs
dsdt.py       the serial port and the processors
platform.py   FADT, MADT, GTDT, SPCR, SDEI
hest.py       the sources of hardware errors
link.py       all of them at their addresses, with XSDT and RSDP
qemu.py       or QEMU's own, with some of these among them
loader.py     the files in which QEMU has its own
"""

from __future__ import annotations

from .link import AcpiTables, asl, make_tables
from .platform import SDEI_TABLE_SIZE, sdei_table

__all__ = ["SDEI_TABLE_SIZE", "AcpiTables", "asl", "make_tables", "sdei_table"]
