# SPDX-License-Identifier: Apache-2.0
"""What Linux prints of a report: its lines, from what follows "[Hardware Error]: ". Linux, drivers/firmware/efi/cper.c.

The line before these names the source, which no report knows. What the lines say is the kernel's business, and changes
with it: this is as of 7.3; and as of 6.1 as it is maintained now, but for `old_aer` and for registers whose
size is no multiple of 16 bytes less 8. Sections of kinds that are not read here are shown as those that Linux does
not know, though it has words for some (generic processor errors, CXL).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from .block import DataEntry, StatusBlock
from .memory import MEMORY_STATUS, MEMORY_TYPES, MemorySection
from .pcie import PORT_TYPES, PcieSection
from .processor import ProcessorSection
from .record import CperRecord, RecordSection
from .render_processor import render_processor
from .section import UnknownSection
from .severity import Severity
from .text import hex_dump, printable

__all__ = ["render"]

_WORDS = {
    Severity.RECOVERABLE: "recoverable",
    Severity.FATAL: "fatal",
    Severity.CORRECTED: "corrected",
    Severity.INFORMATIONAL: "info",
}
_OLD_MEMORY_SIZE = 73  # what Linux wants at least


def render(decoded: StatusBlock | CperRecord, *, old_aer: bool = False) -> list[str]:
    """The lines that Linux prints of a block, and would print of a record.

    `old_aer` is for kernels that print the AER registers of fatal and informational errors alone, and of those
    none for correctable ones (6.1 and others of its time).
    """
    lines = []
    if decoded.severity == Severity.CORRECTED:
        lines.append("It has been corrected by h/w and requires no further action")
    lines.append(f"event severity: {_WORDS[decoded.severity]}")
    for number, entry in enumerate(_entries(decoded)):
        lines += [" " + line for line in _entry(number, entry, old_aer)]
    return lines


def _entries(decoded: StatusBlock | CperRecord) -> Sequence[DataEntry | RecordSection]:
    return decoded.entries if isinstance(decoded, StatusBlock) else decoded.sections


def _entry(number: int, entry: DataEntry | RecordSection, old_aer: bool) -> Iterator[str]:
    if isinstance(entry, DataEntry) and entry.timestamp:
        yield f"{'' if entry.timestamp.precise else 'im'}precise tstamp: {entry.timestamp}"
    yield f"Error {number}, type: {_WORDS[entry.severity]}"
    if entry.fru_id is not None:
        yield f"fru_id: {entry.fru_id}"
    if entry.fru_text is not None:
        yield f"fru_text: {printable(entry.fru_text)}"
    for line in _section(entry, old_aer):
        yield f" {line}"


def _section(entry: DataEntry | RecordSection, old_aer: bool) -> Iterator[str]:
    section = entry.section
    if isinstance(section, MemorySection):
        yield "section_type: memory error"
        if section.size >= _OLD_MEMORY_SIZE:
            yield from _memory(section)
    elif isinstance(section, ProcessorSection):
        yield "section_type: ARM processor error"
        yield from render_processor(section)
    elif isinstance(section, PcieSection):
        yield "section_type: PCIe error"
        told = not old_aer or bool(entry.severity & Severity.FATAL)
        yield from _pcie(section, told, old_aer)
    else:
        yield from _unknown(section)


def _unknown(section: UnknownSection) -> Iterator[str]:
    yield f"section type: unknown, {section.guid}"
    yield f"section length: {len(section.data):#x}"
    yield from hex_dump(section.data, ascii_too=True)


def _memory(memory: MemorySection) -> Iterator[str]:
    if (status := memory.error_status) is not None:
        yield f" error_status: {MEMORY_STATUS.get(status >> 8 & 0xFF, 'Reserved')} (0x{status:016x})"
    if memory.physical_address is not None:
        yield f"physical_address: 0x{memory.physical_address:016x}"
    if memory.physical_address_mask is not None:
        yield f"physical_address_mask: 0x{memory.physical_address_mask:016x}"
    if location := "".join(_location(memory)):
        yield location
    if (kind := memory.error_type) is not None:
        yield f"error_type: {kind}, {MEMORY_TYPES[kind] if kind < len(MEMORY_TYPES) else 'unknown'}"
    if memory.module_handle is not None:
        yield f"DIMM location: not present. DMI handle: 0x{memory.module_handle:04x} "


def _location(memory: MemorySection) -> Iterator[str]:
    row = memory.row
    if memory.row_extension is not None:
        row = (row or 0) | memory.row_extension << 16
    for name, value in (
        ("node", memory.node),
        ("card", memory.card),
        ("module", memory.module),
        ("rank", memory.rank),
        ("bank", memory.bank),
        ("bank_group", memory.bank_group),
        ("bank_address", memory.bank_address),
        ("device", memory.device),
        ("row", row),
        ("column", memory.column),
        ("bit_position", memory.bit_position),
    ):
        if value is not None:
            yield f"{name}:{value} "
    for name, value in (
        ("requestor_id", memory.requestor_id),
        ("responder_id", memory.responder_id),
        ("target_id", memory.target_id),
    ):
        if value is not None:
            yield f"{name}:0x{value:016x} "
    if memory.chip_id is not None:
        yield f"chip_id:{memory.chip_id} "


def _pcie(pcie: PcieSection, told: bool, old_aer: bool) -> Iterator[str]:
    if (port := pcie.port_type) is not None:
        yield f"port_type: {port}, {PORT_TYPES.get(port, 'unknown')}"
    if pcie.version is not None:
        yield f"version: {pcie.version[0]}.{pcie.version[1]}"
    if pcie.command is not None:
        yield f"command: 0x{pcie.command:04x}, status: 0x{pcie.status or 0:04x}"
    if (device := pcie.device) is not None:
        yield f"device_id: {device.segment:04x}:{device.bus:02x}:{device.device:02x}.{device.function:x}"
        yield f"slot: {device.slot}"
        yield f"secondary_bus: 0x{device.secondary_bus:02x}"
        yield f"vendor_id: 0x{device.vendor_id:04x}, device_id: 0x{device.device_id:04x}"
        yield f"class_code: {device.class_code:06x}"
    if (serial := pcie.serial_number) is not None:
        yield f"serial number: 0x{serial & 0xFFFF_FFFF:04x}, 0x{serial >> 32:04x}"
    if pcie.secondary_status is not None:
        yield f"bridge: secondary_status: 0x{pcie.secondary_status:04x}, control: 0x{pcie.control or 0:04x}"
    if (aer := pcie.aer) is not None and told:
        if not old_aer:
            yield f"aer_cor_status: 0x{aer.correctable_status:08x}, aer_cor_mask: 0x{aer.correctable_mask:08x}"
        yield f"aer_uncor_status: 0x{aer.uncorrectable_status:08x}, aer_uncor_mask: 0x{aer.uncorrectable_mask:08x}"
        yield f"aer_uncor_severity: 0x{aer.uncorrectable_severity:08x}"
        yield "TLP Header: " + " ".join(f"{word:08x}" for word in aer.header_log)
