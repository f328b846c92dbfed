# SPDX-License-Identifier: Apache-2.0
"""QEMU's own ACPI tables, which know every device that QEMU was given, with ours added.

QEMU has three files for a guest's firmware (docs/specs/fw_cfg.rst, hw/acpi/bios-linker-loader.c): the RSDP, all
other tables one behind the other, and a script by which whoever puts them into memory makes them right:

    1   ALLOCATE      file, alignment, zone
    2   ADD_POINTER   file, file that is pointed to, offset, size: add the address of that file
    3   ADD_CHECKSUM  file, offset of the checksum, start, length

:func:`extend` keeps the sizes of all three, so that QEMU's directory of files stays true. :func:`link` is the firmware
of a guest that has none. What cannot be raises EnvironmentUnavailableError: it is another QEMU than those we know.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass, replace

from ...errors import EnvironmentUnavailableError
from ...smccc.ids import Conduit
from .link import AcpiTables
from .platform import SDEI_TABLE_SIZE
from .table import HEADER_SIZE, checksum, make_table

__all__ = ["LOADER", "RSDP", "TABLES", "TableFiles", "agreeing", "extend", "link", "used_size"]

RSDP = "etc/acpi/rsdp"
TABLES = "etc/acpi/tables"
LOADER = "etc/table-loader"

_COMMAND = struct.Struct("<I124s")
_POINTER = struct.Struct("<56s56sIB")
_CHECKSUM = struct.Struct("<56sIII")
_ADD_POINTER, _ADD_CHECKSUM = 2, 3
_POINTER_SIZES = (1, 2, 4, 8)
_ALIGN = 64
_TABLE_ALIGN = 16
_TABLE_CHECKSUM = 9
_TABLE_LENGTH = struct.Struct("<4xI")
_RSDP_SIZE = 36
_RSDP_XSDT = 24
_XSDT_ENTRY = struct.Struct("<Q")
_FADT_X_DSDT = 140
_FADT_SIZE = _FADT_X_DSDT + 8
_FADT_ARM_BOOT = 129
_PSCI_COMPLIANT, _PSCI_USE_HVC = 1, 2
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


@dataclass(frozen=True, slots=True)
class TableFiles:
    """The files, as they are in fw_cfg."""

    rsdp: bytes
    tables: bytes
    loader: bytes

    def by_name(self) -> dict[str, bytes]:
        return {RSDP: self.rsdp, TABLES: self.tables, LOADER: self.loader}


@dataclass(frozen=True, slots=True)
class _Pointer:
    """Add the address of `source` to `size` bytes at `offset` of `file`."""

    file: str
    source: str
    offset: int
    size: int

    def encode(self) -> bytes:
        body = _POINTER.pack(self.file.encode(), self.source.encode(), self.offset, self.size)
        return _COMMAND.pack(_ADD_POINTER, body)


@dataclass(frozen=True, slots=True)
class _Checksum:
    """Make the sum of `length` bytes from `start` of `file` 0 by the byte at `at`."""

    file: str
    at: int
    start: int
    length: int

    def encode(self) -> bytes:
        return _COMMAND.pack(_ADD_CHECKSUM, _CHECKSUM.pack(self.file.encode(), self.at, self.start, self.length))

    @property
    def of_table(self) -> bool:
        return self.file == TABLES and self.at == self.start + _TABLE_CHECKSUM and self.length >= HEADER_SIZE


@dataclass(frozen=True, slots=True)
class _Other:
    """A command that is left as it is."""

    data: bytes

    def encode(self) -> bytes:
        return self.data


_Command = _Pointer | _Checksum | _Other


def _strange(what: str) -> EnvironmentUnavailableError:
    return EnvironmentUnavailableError(f"QEMU's ACPI tables cannot be: {what}", "sdeivirt knows QEMU 7.2 to 11")


def _name(data: bytes) -> str:
    return data.split(b"\0")[0].decode("latin-1")


def _commands(loader: bytes) -> list[_Command]:
    """The commands, whatever they say. Nothing is left of those that say nothing."""
    found: list[_Command] = []
    for at in range(0, len(loader) - _COMMAND.size + 1, _COMMAND.size):
        data = loader[at : at + _COMMAND.size]
        kind, body = _COMMAND.unpack(data)
        if kind == _ADD_POINTER:
            file, source, offset, size = _POINTER.unpack_from(body)
            found.append(_Pointer(_name(file), _name(source), offset, size))
        elif kind == _ADD_CHECKSUM:
            file, result, start, length = _CHECKSUM.unpack_from(body)
            found.append(_Checksum(_name(file), result, start, length))
        elif kind:
            found.append(_Other(data))
    return found


def used_size(loader: bytes) -> int:
    """How much of the file of tables is tables, as the script tells; the rest is padding."""
    found = [each for each in _commands(loader) if isinstance(each, _Checksum) and each.of_table]
    return max((each.start + each.length for each in found), default=0)


def _script(files: TableFiles) -> list[_Command]:
    """The commands, whose offsets all lie within the files."""
    sizes = {name: len(content) for name, content in files.by_name().items()}
    script = _commands(files.loader)
    for each in script:
        if isinstance(each, _Pointer):
            if each.file not in sizes or each.source not in sizes or each.size not in _POINTER_SIZES:
                raise _strange(f"a pointer in {each.file!r} to {each.source!r}")
            if each.offset + each.size > sizes[each.file]:
                raise _strange(f"a pointer at {each.offset:#x} of {each.file}")
        elif isinstance(each, _Checksum) and not (
            each.file in sizes and max(each.at + 1, each.start + each.length) <= sizes[each.file]
        ):
            raise _strange(f"a checksum at {each.at:#x} of {each.file!r}")
    return script


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
    script = _script(files)
    tables, rsdp = bytearray(files.tables), bytearray(files.rsdp)
    found = {each.start: each for each in script if isinstance(each, _Checksum) and each.of_table}
    named = {bytes(tables[start : start + 4]): start for start in found}
    for name in (b"XSDT", b"FACP", b"DSDT", b"APIC"):
        if name not in named:
            raise _strange(f"there is no {name.decode()}")
    xsdt = found[named[b"XSDT"]]
    fadt, dsdt = named[b"FACP"], found[named[b"DSDT"]]
    if found[fadt].length < _FADT_SIZE:
        raise _strange("its FADT is too short")
    hvc = _PSCI_USE_HVC if conduit is Conduit.HVC else 0
    tables[fadt + _FADT_ARM_BOOT] = tables[fadt + _FADT_ARM_BOOT] & ~_PSCI_USE_HVC | _PSCI_COMPLIANT | hvc
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
            raise _strange(f"there is no room for further tables in {len(tables)} bytes")
        tables[at:end] = table
        places.append(at)
    new = places.pop()
    pointers = []
    for i, place in enumerate(places):
        pointers.append(_Pointer(TABLES, TABLES, new + xsdt.length + _XSDT_ENTRY.size * i, _XSDT_ENTRY.size))
        _XSDT_ENTRY.pack_into(tables, pointers[i].offset, place)
    tables[xsdt.start : xsdt.start + xsdt.length] = bytes(xsdt.length)
    _point_to(rsdp, script, xsdt.start, new)
    loader = _rewrite(files, script, tables, xsdt, new, pointers)
    return TableFiles(bytes(rsdp), bytes(tables), loader)


def _without_its(tables: bytearray, madt: _Checksum) -> _Checksum:
    """Take the ITS out of the MADT, which gets shorter, and so does what its checksum is of."""
    end = madt.start + madt.length
    kept, at = bytes(tables[madt.start : madt.start + _MADT_HEAD]), madt.start + _MADT_HEAD
    while at + 2 <= end:
        kind, length = tables[at], tables[at + 1]
        if length < 2 or at + length > end:
            raise _strange(f"an entry of {length} bytes in its MADT")
        if kind != _MADT_ITS:
            kept += bytes(tables[at : at + length])
        at += length
    tables[madt.start : end] = kept.ljust(madt.length, b"\0")
    struct.pack_into("<I", tables, madt.start + 4, len(kept))
    return replace(madt, length=len(kept))


def _longer(tables: bytearray, xsdt: _Checksum, more: int) -> bytes:
    """The XSDT with that many further entries."""
    length = xsdt.length + _XSDT_ENTRY.size * more
    table = bytearray(tables[xsdt.start : xsdt.start + xsdt.length]).ljust(length, b"\0")
    struct.pack_into("<I", table, 4, length)
    return bytes(table)


def _point_to(rsdp: bytearray, script: Sequence[object], old: int, new: int) -> None:
    """Have the RSDP name another XSDT."""
    wanted = _Pointer(RSDP, TABLES, _RSDP_XSDT, _XSDT_ENTRY.size)
    if wanted not in script or _XSDT_ENTRY.unpack_from(rsdp, _RSDP_XSDT) != (old,):
        raise _strange("its RSDP does not name the XSDT")
    _XSDT_ENTRY.pack_into(rsdp, _RSDP_XSDT, new)


def _rewrite(
    files: TableFiles,
    script: Sequence[_Command],
    tables: bytearray,
    xsdt: _Checksum,
    new: int,
    pointers: Sequence[_Pointer],
) -> bytes:
    """The script for another XSDT, no longer than before: tables without a pointer in them are given theirs."""
    inside = range(xsdt.start, xsdt.start + xsdt.length)
    pointed = [each for each in script if isinstance(each, _Pointer) and each.file == TABLES]
    written: list[_Command] = []
    for each in script:
        if isinstance(each, _Pointer) and each.file == TABLES and each.offset in inside:
            written.append(replace(each, offset=each.offset - xsdt.start + new))
        elif each == xsdt:
            length = xsdt.length + _XSDT_ENTRY.size * len(pointers)
            written += [*pointers, _Checksum(TABLES, new + _TABLE_CHECKSUM, new, length)]
        elif (
            isinstance(each, _Checksum)
            and each.of_table
            and not any(each.start <= pointer.offset < each.start + each.length for pointer in pointed)
        ):
            _sum_up(tables, each)
        else:
            written.append(each)
    data = b"".join(each.encode() for each in written)
    if len(data) > len(files.loader):
        raise _strange("there is no room for further tables in their script")
    return data.ljust(len(files.loader), b"\0")


def _sum_up(data: bytearray, total: _Checksum) -> None:
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
        raise _strange(f"an RSDP of {len(files.rsdp)} bytes")
    for each in _script(files):
        if isinstance(each, _Other):
            continue
        if each.file not in content or (isinstance(each, _Pointer) and each.source not in where):
            raise _strange("the script changes itself")
        data = content[each.file]
        if isinstance(each, _Checksum):
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
            raise _strange(f"a table at {address:#x}")
        (length,) = _TABLE_LENGTH.unpack_from(data, at)
        table = bytes(data[at : at + length])
        if len(table) != length or length < SDEI_TABLE_SIZE or not table.startswith(name):
            raise _strange(f"a table of {length} bytes at {address:#x}")
        tables.placed[address] = table
        return table

    xsdt = place(content[RSDP], _RSDP_XSDT, b"XSDT")
    for at in range(HEADER_SIZE, len(xsdt) - _XSDT_ENTRY.size + 1, _XSDT_ENTRY.size):
        table = place(xsdt, at)
        if table.startswith(b"FACP"):
            if len(table) < _FADT_SIZE:
                raise _strange("its FADT is too short")
            place(table, _FADT_X_DSDT, b"DSDT")
    return tables
