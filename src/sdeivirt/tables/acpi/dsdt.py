# SPDX-License-Identifier: Apache-2.0
"""The DSDT: the serial port, without which Linux has no ttyAMA0, and a device for each processor.

In ASL:

    Scope (\\_SB) {
        Method (_OSC, 4) { Return (Arg3) }          // the platform agrees with whatever it is asked for
        Device (COM0) { Name (_HID, "ARMH0011") Name (_UID, 0) Name (_CRS, ResourceTemplate () { ... }) }
        Device (C000) { Name (_HID, "ACPI0007") Name (_UID, 0) } ...
    }

Linux asks _OSC whether errors are reported firmware first, and believes it only then.
"""

from __future__ import annotations

from . import aml
from .table import make_table

__all__ = ["dsdt"]

_RETURN_ARG3 = b"\xa4\x6b"


def dsdt(cpus: int, uart: int, uart_size: int, uart_intid: int) -> bytes:
    """The table for that many processors and a PL011."""
    serial = aml.device(
        "COM0",
        aml.name("_HID", aml.string("ARMH0011")),
        aml.name("_UID", aml.integer(0)),
        aml.name("_CRS", aml.resources(aml.memory(uart, uart_size), aml.interrupt(uart_intid))),
    )
    processors = [
        aml.device(f"C{i:03X}", aml.name("_HID", aml.string("ACPI0007")), aml.name("_UID", aml.integer(i)))
        for i in range(cpus)
    ]
    return make_table(b"DSDT", 2, aml.scope("\\_SB_", aml.method("_OSC", 4, _RETURN_ARG3), serial, *processors))
