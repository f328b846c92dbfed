# SPDX-License-Identifier: Apache-2.0
"""What a kernel needs from UEFI to find ACPI, without there being any UEFI. UEFI 2.8, 4.3, 4.6 and 7.2.

A system table whose configuration table names the RSDP, and a memory map: /chosen tells a kernel where
they are, as for the first guest of a Xen host (Documentation/arch/arm/uefi.rst in Linux). No runtime
service is there, and a table says so: a kernel that does not find it calls address 0.
"""

from __future__ import annotations

import enum
import struct
import uuid
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["DESCRIPTOR_SIZE", "DESCRIPTOR_VERSION", "EfiMemory", "Region", "memory_map", "system_table"]

_PAGE_SHIFT = 12
_WRITE_BACK = 8

# Signature, revision, header size, CRC, reserved, vendor, vendor's revision, console handles and protocols, runtime,
# boot services, number of configuration tables, where they are.
_SYSTEM_TABLE = struct.Struct("<QIIII QI4x 6Q QQ QQ")
_CRC = 16
_SIGNATURE = 0x5453_5953_2049_4249
_REVISION = 2 << 16 | 80
_CONFIGURATION = struct.Struct("<16sQ")
_VENDOR = "sdeivirt\0".encode("utf-16-le")

_ACPI_20 = uuid.UUID("8868e871-e4f1-11d3-bc22-0080c73c8881")
_RUNTIME_PROPERTIES = uuid.UUID("eb66918a-7eef-402a-842e-931d21c38ae9")
_LINUX_MEMRESERVE = uuid.UUID("888eb0c6-8ede-4ff5-a8f0-9aee5cb977c2")
# Version, length, which services there are: none.
_NO_SERVICES = struct.pack("<HHI", 1, 8, 0)
# Of Linux's own (drivers/firmware/efi/efi.c): a list of what a former kernel has reserved, such as tables of an ITS.
_NOTHING_RESERVED = bytes(16)

# Type, physical address, virtual address, pages, attributes; kernels take any size that is a multiple of 8.
_DESCRIPTOR = struct.Struct("<I4xQQQQ8x")
DESCRIPTOR_SIZE = _DESCRIPTOR.size
DESCRIPTOR_VERSION = 1


class EfiMemory(enum.IntEnum):
    """Types of memory, UEFI 2.8, 7.2."""

    LOADER_DATA = 2
    CONVENTIONAL = 7
    ACPI_RECLAIM = 9
    ACPI_NVS = 10


@dataclass(frozen=True, slots=True)
class Region:
    """Memory [start, end) of one type; whole pages."""

    kind: EfiMemory
    start: int
    end: int


def memory_map(regions: Sequence[Region]) -> bytes:
    """The map, 48 bytes a region. All of it is write-back cacheable."""
    return b"".join(
        _DESCRIPTOR.pack(each.kind, each.start, 0, (each.end - each.start) >> _PAGE_SHIFT, _WRITE_BACK)
        for each in regions
        if each.end > each.start
    )


def system_table(address: int, rsdp: int) -> bytes:
    """The system table to stand at `address`, with all that it points to behind it."""
    vendor = address + -(-_SYSTEM_TABLE.size // 16) * 16
    entries = vendor + -(-len(_VENDOR) // 16) * 16
    properties = entries + 3 * _CONFIGURATION.size
    reserved = properties + -(-len(_NO_SERVICES) // 16) * 16
    configuration = ((_ACPI_20, rsdp), (_RUNTIME_PROPERTIES, properties), (_LINUX_MEMRESERVE, reserved))
    table = bytearray(reserved + len(_NOTHING_RESERVED) - address)
    header = bytearray(
        _SYSTEM_TABLE.pack(
            _SIGNATURE, _REVISION, _SYSTEM_TABLE.size, 0, 0, vendor, 1, *[0] * 8, len(configuration), entries
        )
    )
    struct.pack_into("<I", header, _CRC, zlib.crc32(header))
    parts = [(address, bytes(header)), (vendor, _VENDOR), (properties, _NO_SERVICES), (reserved, _NOTHING_RESERVED)]
    parts += [
        (entries + i * _CONFIGURATION.size, _CONFIGURATION.pack(guid.bytes_le, where))
        for i, (guid, where) in enumerate(configuration)
    ]
    for at, content in parts:
        table[at - address : at - address + len(content)] = content
    return bytes(table)
