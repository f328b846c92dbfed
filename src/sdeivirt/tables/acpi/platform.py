# SPDX-License-Identifier: Apache-2.0
"""The tables that describe the platform: power and calls, processors and interrupts, timers, console, SDEI.

All is that of QEMU's virt board as an EL1 guest sees it.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

from ...smccc.ids import Conduit
from .table import DWORD_ACCESS, HEADER_SIZE, OEM_TABLE_ID, address_structure, make_table

__all__ = [
    "FADT_ARM_BOOT",
    "FADT_X_DSDT",
    "PSCI_COMPLIANT",
    "PSCI_USE_HVC",
    "SDEI_TABLE_SIZE",
    "fadt",
    "gtdt",
    "madt",
    "sdei_table",
    "spcr",
]

SDEI_TABLE_SIZE = HEADER_SIZE

# FADT, ACPI 6.3, 5.2.9: 276 bytes, of which hardware-reduced ACPI uses few.
_FADT_SIZE = 276
_FADT_FLAGS = 112
FADT_ARM_BOOT = 129
_FADT_MINOR = 131
FADT_X_DSDT = 140
_FADT_HYPERVISOR = 268
_HW_REDUCED = 1 << 20
_LOW_POWER_S0_IDLE = 1 << 21
PSCI_COMPLIANT = 1
PSCI_USE_HVC = 2

# MADT, 5.2.12. GICC: type, length, reserved, interface, uid, flags, parking, PMU interrupt, parked, GICC, GICV, GICH,
# maintenance interrupt, GICR, MPIDR, power class, reserved, SPE interrupt.
_GICC = struct.Struct("<BBHIIIIIQQQQIQQBBH")
_GICD = struct.Struct("<BBHIQIB3x")
_GICR = struct.Struct("<BBHQI")
_ENABLED = 1
_PMU_INTID = 23
GICR_SIZE = 0xF6_0000

# GTDT, 5.2.24: counter, reserved, four timers (interrupt, flags), counter to read, platform timers, and EL2's virtual
# timer, which a guest at EL1 has not.
_GTDT = struct.Struct("<QI8IQII8x")
_NO_ADDRESS = (1 << 64) - 1
_SECURE, _NON_SECURE, _VIRTUAL, _EL2 = 29, 30, 27, 26
_ALWAYS_ON_LEVEL_HIGH = 4

# SPCR, revision 2: what comes after the port's address.
_SPCR_TAIL = struct.Struct("<BBIBBBBBBHHBBBIBI")
_PL011 = 3
_GIC = 8
_BAUD_9600 = 3
_NO_PCI = 0xFFFF


def sdei_table() -> bytes:
    """The table that says "this platform has SDEI": 36 bytes, a bare header of revision 0. DEN0054C appendix C.

    It names no conduit: the guest takes the one that the FADT names for PSCI.
    """
    return make_table(b"SDEI", 0, b"")


def fadt(dsdt: int, conduit: Conduit) -> bytes:
    """FADT of ACPI 6.3: hardware-reduced, PSCI by that conduit, where the DSDT is, and who is the hypervisor."""
    table = bytearray(_FADT_SIZE)
    boot = PSCI_COMPLIANT | (PSCI_USE_HVC if conduit is Conduit.HVC else 0)
    struct.pack_into("<I", table, _FADT_FLAGS, _HW_REDUCED | _LOW_POWER_S0_IDLE)
    struct.pack_into("<H", table, FADT_ARM_BOOT, boot)
    struct.pack_into("<B", table, _FADT_MINOR, 3)
    struct.pack_into("<Q", table, FADT_X_DSDT, dsdt)
    struct.pack_into("<8s", table, _FADT_HYPERVISOR, OEM_TABLE_ID)
    return make_table(b"FACP", 6, bytes(table[HEADER_SIZE:]))


def madt(affinities: Sequence[int], distributor: int, redistributors: int) -> bytes:
    """MADT: a GICv3 and one GICC for each processor, by affinity (MPIDR)."""
    body = struct.pack("<II", 0, 0) + _GICD.pack(0xC, _GICD.size, 0, 0, distributor, 0, 3)
    for i, affinity in enumerate(affinities):
        body += _GICC.pack(
            0xB, _GICC.size, 0, i, i, _ENABLED, 0, _PMU_INTID, 0, 0, 0, 0, 0, 0, affinity, 0, 0, 0
        )  # fmt: skip
    return make_table(b"APIC", 5, body + _GICR.pack(0xE, _GICR.size, 0, redistributors, GICR_SIZE))


def gtdt() -> bytes:
    """GTDT: the architecture's timers."""
    timers = [word for intid in (_SECURE, _NON_SECURE, _VIRTUAL, _EL2) for word in (intid, _ALWAYS_ON_LEVEL_HIGH)]
    return make_table(b"GTDT", 3, _GTDT.pack(_NO_ADDRESS, 0, *timers, _NO_ADDRESS, 0, 0))


def spcr(uart: int, intid: int) -> bytes:
    """SPCR: the console is a PL011."""
    tail = _SPCR_TAIL.pack(_GIC, 0, intid, _BAUD_9600, 0, 1, 0, 3, 0, _NO_PCI, _NO_PCI, 0, 0, 0, 0, 0, 0)
    port = address_structure(uart, width=32, access=DWORD_ACCESS)
    return make_table(b"SPCR", 2, struct.pack("<B3x", _PL011) + port + tail)
