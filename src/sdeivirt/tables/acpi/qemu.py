# SPDX-License-Identifier: Apache-2.0
"""QEMU's own ACPI tables, which know every device that QEMU was given, with ours added.

:func:`extend` keeps the sizes of the files, so that QEMU's directory of them stays true. :func:`link` is the firmware
of a guest that has none. What cannot be raises EnvironmentUnavailableError: it is another QEMU than those we know.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import replace

from ...smccc.ids import Conduit
from .link import AcpiTables
from .loader import RSDP, TABLES, Checksum, Command, Other, Pointer, TableFiles, script_of, strange
from .platform import FADT_ARM_BOOT, FADT_X_DSDT, PSCI_COMPLIANT, PSCI_USE_HVC
from .table import HEADER_SIZE, TABLE_CHECKSUM, checksum, make_table

__all__ = ["agreeing", "extend", "link"]

_ALIGN = 64
_TABLE_ALIGN = 16
_TABLE_LENGTH = struct.Struct("<4xI")
_RSDP_SIZE = 36
_RSDP_XSDT = 24
_XSDT_ENTRY = struct.Struct("<Q")
_FADT_SIZE = FADT_X_DSDT + 8  # at least
_MADT_HEAD = HEADER_SIZE + 8
_MADT_ITS = 0xF

# DWordIO, ACPI 6.3, 6.4.3.5.2: tag, length, type, flags twice; granularity, minimum, maximum, translation, length.
_DWORD_SPACE = struct.Struct("<BHBBBIIIII")
_DWORD_IO_HEAD = struct.pack("<BHB", 0x87, _DWORD_SPACE.size - 3, 1)

# If (LNot (CondRefOf (\_SB._OSC))) { Method (\_SB._OSC, 4) { Return (Arg3) } }: see dsdt.py.
_OSC_NAME = b"\\\x2e_SB__OSC"
_OSC = b"\xa0\x1e\x92\x5b\x12" + _OSC_NAME + b"\x00" + b"\x14\x0e" + _OSC_NAME + b"\x04\xa4\x6b"


def agreeing() -> bytes:
    """An SSDT by which the platform agrees with whatever the guest asks for, where QEMU's tables say nothing."""
    return make_table(b"SSDT", 2, _OSC)


def extend(
    files: TableFiles,
    extra: Sequence[bytes],
    conduit: Conduit,
    io: tuple[int, int] | None = None,
    *,
    its: bool = True,
) -> TableFiles:
    """The same files with further tables, whose checksums are right, and with the conduit of PSCI.

    `io` is where the PCI bridge's I/O ports begin, and how many of them the guest has: the tables tell of no more.
    Without `its` they tell of no ITS, as QEMU 7.2 does where it has none.
    """
    script = script_of(files, others=True)
    tables, rsdp = bytearray(files.tables), bytearray(files.rsdp)
    found = {each.start: each for each in script if isinstance(each, Checksum) and each.of_table}
    named = {bytes(tables[start : start + 4]): start for start in found}
    for name in (b"XSDT", b"FACP", b"DSDT", b"APIC"):
        if name not in named:
            raise strange(f"there is no {name.decode()}")
    xsdt = found[named[b"XSDT"]]
    fadt, dsdt = named[b"FACP"], found[named[b"DSDT"]]
    if found[fadt].length < _FADT_SIZE:
        raise strange("its FADT is too short")
    hvc = PSCI_USE_HVC if conduit is Conduit.HVC else 0
    tables[fadt + FADT_ARM_BOOT] = tables[fadt + FADT_ARM_BOOT] & ~PSCI_USE_HVC | PSCI_COMPLIANT | hvc
    if io is not None:
        _shrink_io(tables, dsdt.start, dsdt.start + dsdt.length, *io)

    if not its:
        script = [_without_its(tables, each) if each == found[named[b"APIC"]] else each for each in script]

    # Ours, and an XSDT with room for them, go behind the last table.
    end = max(each.start + each.length for each in found.values())
    places = []
    for table in (*extra, _longer(tables, xsdt, len(extra))):
        at = -(-end // _TABLE_ALIGN) * _TABLE_ALIGN
        end = at + len(table)
        if end > len(tables):
            raise strange(f"there is no room for further tables in {len(tables)} bytes")
        tables[at:end] = table
        places.append(at)
    new = places.pop()
    pointers = []
    for i, place in enumerate(places):
        pointers.append(Pointer(TABLES, TABLES, new + xsdt.length + _XSDT_ENTRY.size * i, _XSDT_ENTRY.size))
        _XSDT_ENTRY.pack_into(tables, pointers[i].offset, place)
    tables[xsdt.start : xsdt.start + xsdt.length] = bytes(xsdt.length)
    _point_to(rsdp, script, xsdt.start, new)
    loader = _rewrite(files, script, tables, xsdt, new, pointers)
    return TableFiles(bytes(rsdp), bytes(tables), loader)


def _without_its(tables: bytearray, madt: Checksum) -> Checksum:
    """Take the ITS out of the MADT, which gets shorter, and so does what its checksum is of."""
    end = madt.start + madt.length
    kept, at = bytes(tables[madt.start : madt.start + _MADT_HEAD]), madt.start + _MADT_HEAD
    while at + 2 <= end:
        kind, length = tables[at], tables[at + 1]
        if length < 2 or at + length > end:
            raise strange(f"an entry of {length} bytes in its MADT")
        if kind != _MADT_ITS:
            kept += bytes(tables[at : at + length])
        at += length
    tables[madt.start : end] = kept.ljust(madt.length, b"\0")
    struct.pack_into("<I", tables, madt.start + 4, len(kept))
    return replace(madt, length=len(kept))


def _longer(tables: bytearray, xsdt: Checksum, more: int) -> bytes:
    """The XSDT with that many further entries."""
    length = xsdt.length + _XSDT_ENTRY.size * more
    table = bytearray(tables[xsdt.start : xsdt.start + xsdt.length]).ljust(length, b"\0")
    struct.pack_into("<I", table, 4, length)
    return bytes(table)


def _point_to(rsdp: bytearray, script: Sequence[object], old: int, new: int) -> None:
    """Have the RSDP name another XSDT."""
    wanted = Pointer(RSDP, TABLES, _RSDP_XSDT, _XSDT_ENTRY.size)
    if wanted not in script or _XSDT_ENTRY.unpack_from(rsdp, _RSDP_XSDT) != (old,):
        raise strange("its RSDP does not name the XSDT")
    _XSDT_ENTRY.pack_into(rsdp, _RSDP_XSDT, new)


def _rewrite(
    files: TableFiles,
    script: Sequence[Command],
    tables: bytearray,
    xsdt: Checksum,
    new: int,
    pointers: Sequence[Pointer],
) -> bytes:
    """The script for another XSDT, no longer than before: tables without a pointer in them are given theirs."""
    inside = range(xsdt.start, xsdt.start + xsdt.length)
    pointed = [each for each in script if isinstance(each, Pointer) and each.file == TABLES]
    written: list[Command] = []
    for each in script:
        if isinstance(each, Pointer) and each.file == TABLES and each.offset in inside:
            written.append(replace(each, offset=each.offset - xsdt.start + new))
        elif each == xsdt:
            length = xsdt.length + _XSDT_ENTRY.size * len(pointers)
            written += [*pointers, Checksum(TABLES, new + TABLE_CHECKSUM, new, length)]
        elif (
            isinstance(each, Checksum)
            and each.of_table
            and not any(each.start <= pointer.offset < each.start + each.length for pointer in pointed)
        ):
            _sum_up(tables, each)
        else:
            written.append(each)
    data = b"".join(each.encode() for each in written)
    if len(data) > len(files.loader):
        raise strange("there is no room for further tables in their script")
    return data.ljust(len(files.loader), b"\0")


def _sum_up(data: bytearray, total: Checksum) -> None:
    data[total.at] = 0
    data[total.at] = checksum(data[total.start : total.start + total.length])


def _shrink_io(tables: bytearray, start: int, end: int, base: int, size: int) -> None:
    """Have the DSDT tell of only so many of the bridge's I/O ports."""
    while (at := tables.find(_DWORD_IO_HEAD, start, end - _DWORD_SPACE.size + len(_DWORD_IO_HEAD))) >= 0:
        start = at + 1
        *head, low, high, translation, length = _DWORD_SPACE.unpack_from(tables, at)
        if translation == base and high - low + 1 == length and low < size <= high:
            _DWORD_SPACE.pack_into(tables, at, *head, low, size - 1, translation, size - low)


def link(files: TableFiles, base: int) -> AcpiTables:
    """The tables in memory, by their script: the RSDP at `base` (a multiple of 64), the others behind it."""
    where = {RSDP: base, TABLES: base + _ALIGN}
    content = {RSDP: bytearray(files.rsdp), TABLES: bytearray(files.tables)}
    if len(files.rsdp) != _RSDP_SIZE:
        raise strange(f"an RSDP of {len(files.rsdp)} bytes")
    for each in script_of(files):
        if isinstance(each, Other):
            continue
        if each.file not in content or (isinstance(each, Pointer) and each.source not in where):
            raise strange("the script changes itself")
        data = content[each.file]
        if isinstance(each, Checksum):
            _sum_up(data, each)
        else:
            field = slice(each.offset, each.offset + each.size)
            value = int.from_bytes(data[field], "little") + where[each.source]
            data[field] = (value & (1 << 8 * each.size) - 1).to_bytes(each.size, "little")
    tables = AcpiTables(base)
    tables.placed[base] = bytes(content[RSDP])

    def place(pointer: bytes | bytearray, offset: int, name: bytes = b"") -> bytes:
        """The table that a pointer leads to, which has to be that one."""
        (address,) = _XSDT_ENTRY.unpack_from(pointer, offset)
        data, at = content[TABLES], address - where[TABLES]
        if not 0 <= at <= len(data) - HEADER_SIZE:
            raise strange(f"a table at {address:#x}")
        (length,) = _TABLE_LENGTH.unpack_from(data, at)
        table = bytes(data[at : at + length])
        if len(table) != length or length < HEADER_SIZE or not table.startswith(name):
            raise strange(f"a table of {length} bytes at {address:#x}")
        tables.placed[address] = table
        return table

    xsdt = place(content[RSDP], _RSDP_XSDT, b"XSDT")
    for at in range(HEADER_SIZE, len(xsdt) - _XSDT_ENTRY.size + 1, _XSDT_ENTRY.size):
        table = place(xsdt, at)
        if table.startswith(b"FACP"):
            if len(table) < _FADT_SIZE:
                raise strange("its FADT is too short")
            place(table, FADT_X_DSDT, b"DSDT")
    return tables
