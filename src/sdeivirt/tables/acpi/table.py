# SPDX-License-Identifier: Apache-2.0
"""What all ACPI tables share: a header with a checksum, and how they name a register. ACPI 6.3, 5.2.3.2 and 5.2.6."""

from __future__ import annotations

import struct

__all__ = [
    "DWORD_ACCESS",
    "HEADER_SIZE",
    "OEM_ID",
    "OEM_TABLE_ID",
    "QWORD_ACCESS",
    "TABLE_CHECKSUM",
    "address_structure",
    "checksum",
    "make_table",
]

# Signature, length, revision, checksum, OEM id, OEM table id, OEM revision, creator, creator revision.
_HEADER = struct.Struct("<4sIBB6s8sI4sI")
TABLE_CHECKSUM = 9  # where it is in a table
HEADER_SIZE = _HEADER.size

OEM_ID = b"SDEIVT"
OEM_TABLE_ID = b"SDEIVIRT"
_CREATOR = b"SDVT"

# Generic address structure: space, width in bits, offset, access size, address.
_ADDRESS = struct.Struct("<BBBBQ")
_SYSTEM_MEMORY = 0
DWORD_ACCESS = 3
QWORD_ACCESS = 4


def checksum(data: bytes | bytearray) -> int:
    """The byte that makes the sum of them all 0."""
    return -sum(data) & 0xFF


def make_table(signature: bytes, revision: int, body: bytes) -> bytes:
    """A table: 36 bytes of header, then its body."""
    size = HEADER_SIZE + len(body)
    table = bytearray(_HEADER.pack(signature, size, revision, 0, OEM_ID, OEM_TABLE_ID, 1, _CREATOR, 1) + body)
    table[TABLE_CHECKSUM] = checksum(table)
    return bytes(table)


def address_structure(address: int, *, width: int = 64, access: int = QWORD_ACCESS) -> bytes:
    """A register in memory, 12 bytes: `width` in bits, `access` the size of one access (3: 32 bits, 4: 64)."""
    return _ADDRESS.pack(_SYSTEM_MEMORY, width, 0, access, address)
