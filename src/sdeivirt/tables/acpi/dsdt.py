# SPDX-License-Identifier: Apache-2.0
"""The DSDT: the serial port, without which Linux has no ttyAMA0, and a device for each processor.

:func:`source` is the same as :func:`dsdt` for people, and for `iasl`, which makes the same bytes of it.
"""

from __future__ import annotations

from . import aml
from .table import OEM_ID, OEM_TABLE_ID, make_table

__all__ = ["dsdt", "source"]

_RETURN_ARG3 = b"\xa4\x6b"
_SERIAL_PORT = "ARMH0011"
_PROCESSOR = "ACPI0007"


def _processor_name(index: int) -> str:
    return f"C{index:03X}"


def dsdt(cpus: int, uart: int, uart_size: int, uart_intid: int) -> bytes:
    """The table for that many processors and a PL011."""
    serial = aml.device(
        "COM0",
        aml.name("_HID", aml.string(_SERIAL_PORT)),
        aml.name("_UID", aml.integer(0)),
        aml.name("_CRS", aml.resources(aml.memory(uart, uart_size), aml.interrupt(uart_intid))),
    )
    processors = [
        aml.device(_processor_name(i), aml.name("_HID", aml.string(_PROCESSOR)), aml.name("_UID", aml.integer(i)))
        for i in range(cpus)
    ]
    return make_table(b"DSDT", 2, aml.scope("_SB_", aml.method("_OSC", 4, _RETURN_ARG3), serial, *processors))


_HEAD = """\
DefinitionBlock ("", "DSDT", 2, "{oem}", "{table}", 0x00000001)
{{
    Scope (_SB)
    {{
        // Linux asks whether it may be told of errors by firmware, and the answer is yes to whatever it asks.
        Method (_OSC, 4, NotSerialized)
        {{
            Return (Arg3)
        }}

        Device (COM0)
        {{
            Name (_HID, "{port}")
            Name (_UID, Zero)
            Name (_CRS, ResourceTemplate ()
            {{
                Memory32Fixed (ReadWrite, {uart:#010x}, {size:#010x})
                Interrupt (ResourceConsumer, Level, ActiveHigh, Exclusive) {{ {intid} }}
            }})
        }}
"""
_EACH = """
        Device ({name})
        {{
            Name (_HID, "{processor}")
            Name (_UID, {uid})
        }}
"""
_TAIL = """\
    }
}
"""


def source(cpus: int, uart: int, uart_size: int, uart_intid: int) -> str:
    """The same table in ASL."""
    head = _HEAD.format(
        oem=OEM_ID.decode(),
        table=OEM_TABLE_ID.decode(),
        port=_SERIAL_PORT,
        uart=uart,
        size=uart_size,
        intid=uart_intid,
    )
    numbers = {0: "Zero", 1: "One"}
    processors = [
        _EACH.format(name=_processor_name(i), processor=_PROCESSOR, uid=numbers.get(i, i)) for i in range(cpus)
    ]
    return "".join((head, *processors, _TAIL))
