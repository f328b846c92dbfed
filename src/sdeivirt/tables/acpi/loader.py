# SPDX-License-Identifier: Apache-2.0
"""The files in which QEMU has its ACPI tables, and the script among them.

There are three (docs/specs/fw_cfg.rst and hw/acpi/bios-linker-loader.c in QEMU): the RSDP, all other tables one behind
the other, and a script by which whoever puts them into memory makes them right. A command has 128 bytes:

    1   ALLOCATE      file, alignment, zone
    2   ADD_POINTER   file, file that is pointed to, offset, size: add the address of that file
    3   ADD_CHECKSUM  file, offset of the checksum, start, length
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from ...errors import EnvironmentUnavailableError
from .table import HEADER_SIZE, TABLE_CHECKSUM

__all__ = [
    "LOADER",
    "RSDP",
    "TABLES",
    "Checksum",
    "Command",
    "Other",
    "Pointer",
    "TableFiles",
    "script_of",
    "strange",
    "used_size",
]

RSDP = "etc/acpi/rsdp"
TABLES = "etc/acpi/tables"
LOADER = "etc/table-loader"

_COMMAND = struct.Struct("<I124s")
_POINTER = struct.Struct("<56s56sIB")
_CHECKSUM = struct.Struct("<56sIII")
_ADD_POINTER, _ADD_CHECKSUM = 2, 3
_POINTER_SIZES = (1, 2, 4, 8)


@dataclass(frozen=True, slots=True)
class TableFiles:
    """The files, as they are in fw_cfg."""

    rsdp: bytes
    tables: bytes
    loader: bytes

    def by_name(self) -> dict[str, bytes]:
        return {RSDP: self.rsdp, TABLES: self.tables, LOADER: self.loader}


@dataclass(frozen=True, slots=True)
class Pointer:
    """Add the address of `source` to `size` bytes at `offset` of `file`."""

    file: str
    source: str
    offset: int
    size: int

    def encode(self) -> bytes:
        body = _POINTER.pack(self.file.encode("latin-1"), self.source.encode("latin-1"), self.offset, self.size)
        return _COMMAND.pack(_ADD_POINTER, body)


@dataclass(frozen=True, slots=True)
class Checksum:
    """Make the sum of `length` bytes from `start` of `file` 0 by the byte at `at`."""

    file: str
    at: int
    start: int
    length: int

    def encode(self) -> bytes:
        body = _CHECKSUM.pack(self.file.encode("latin-1"), self.at, self.start, self.length)
        return _COMMAND.pack(_ADD_CHECKSUM, body)

    @property
    def of_table(self) -> bool:
        return self.file == TABLES and self.at == self.start + TABLE_CHECKSUM and self.length >= HEADER_SIZE


@dataclass(frozen=True, slots=True)
class Other:
    """A command that is left as it is."""

    data: bytes

    def encode(self) -> bytes:
        return self.data


Command = Pointer | Checksum | Other


def strange(what: str) -> EnvironmentUnavailableError:
    """An error for tables that are not those of a QEMU that we know."""
    return EnvironmentUnavailableError(f"QEMU's ACPI tables cannot be: {what}", "sdeivirt knows QEMU 7.2 to 11")


def _name(data: bytes) -> str:
    return data.split(b"\0")[0].decode("latin-1")


def _commands(loader: bytes) -> list[Command]:
    """The commands, whatever they say. Nothing is left of those that say nothing."""
    found: list[Command] = []
    for at in range(0, len(loader) - _COMMAND.size + 1, _COMMAND.size):
        data = loader[at : at + _COMMAND.size]
        kind, body = _COMMAND.unpack(data)
        if kind == _ADD_POINTER:
            file, source, offset, size = _POINTER.unpack_from(body)
            found.append(Pointer(_name(file), _name(source), offset, size))
        elif kind == _ADD_CHECKSUM:
            file, result, start, length = _CHECKSUM.unpack_from(body)
            found.append(Checksum(_name(file), result, start, length))
        elif kind:
            found.append(Other(data))
    return found


def used_size(loader: bytes) -> int:
    """How much of the file of tables is tables, as the script tells; the rest is padding."""
    found = [each for each in _commands(loader) if isinstance(each, Checksum) and each.of_table]
    return max((each.start + each.length for each in found), default=0)


def script_of(files: TableFiles, *, others: bool = False) -> list[Command]:
    """The commands, whose offsets all lie within the files.

    With `others` there may be some about files that are not ours to look at, such as the log of a TPM.
    """
    sizes = {name: len(content) for name, content in files.by_name().items()}
    script = _commands(files.loader)
    for each in script:
        if isinstance(each, Other) or (others and each.file not in sizes):
            continue
        if isinstance(each, Pointer):
            known = each.file in sizes and (others or each.source in sizes)
            if not known or each.size not in _POINTER_SIZES:
                raise strange(f"a pointer in {each.file!r} to {each.source!r}")
            if each.offset + each.size > sizes[each.file]:
                raise strange(f"a pointer at {each.offset:#x} of {each.file}")
        elif each.file not in sizes or max(each.at + 1, each.start + each.length) > sizes[each.file]:
            raise strange(f"a checksum at {each.at:#x} of {each.file!r}")
    return script
