# SPDX-License-Identifier: Apache-2.0
"""The ACPI table that says "this platform has SDEI": a bare header, DEN0054C appendix C.

With ACPI there is no property for the conduit: the guest takes the one that
the FADT names for PSCI.
"""

from __future__ import annotations

import struct

__all__ = ["SDEI_TABLE_SIZE", "sdei_table"]

# Signature, length, revision, checksum, OEM id, OEM table id, OEM revision, creator, creator revision.
_HEADER = struct.Struct("<4sIBB6s8sI4sI")
_CHECKSUM = 9

SDEI_TABLE_SIZE = _HEADER.size


def sdei_table() -> bytes:
    """The 36 bytes of the SDEI table, with the names that QEMU gives its tables."""
    table = bytearray(_HEADER.pack(b"SDEI", _HEADER.size, 0, 0, b"BOCHS ", b"BXPC    ", 1, b"BXPC", 1))
    table[_CHECKSUM] = -sum(table) & 0xFF
    return bytes(table)
