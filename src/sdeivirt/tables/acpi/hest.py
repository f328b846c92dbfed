# SPDX-License-Identifier: Apache-2.0
"""HEST: where hardware errors are reported, and how the guest is told. ACPI 6.3, 18.3.2.7 to 18.3.2.9.

Each source is a generic one (GHES): a block in memory that firmware fills, and a notification, here an SDEI event.
Version 2 has a register in which the guest acknowledges a block that it has read; of version 1, it clears the block.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

from ...ras.sources import ErrorSource
from ...ras.status_block import BLOCK_SIZE, MAX_SECTIONS
from ...ras.window import Window
from .table import address_structure, make_table

__all__ = ["hest"]

# Type, source id, related source, flags, enabled, records, sections in a record, raw data length.
_HEAD = struct.Struct("<HHHBBIII")
_TYPES = {1: 9, 2: 10}
_NO_RELATED_SOURCE = 0xFFFF
# Notification: type, length, write enable, poll interval, vector, four thresholds.
_NOTIFICATION = struct.Struct("<BBHIIIIII")
_BY_SDEI = 11
_ACKNOWLEDGED = 1
_PRESERVED = ~_ACKNOWLEDGED & (1 << 64) - 1


def _source(source: ErrorSource, window: Window) -> bytes:
    """64 bytes, or 92 of version 2."""
    entry = _HEAD.pack(_TYPES[source.ghes], source.number, _NO_RELATED_SOURCE, 0, 1, 1, MAX_SECTIONS, BLOCK_SIZE)
    entry += address_structure(window.pointer)
    entry += _NOTIFICATION.pack(_BY_SDEI, _NOTIFICATION.size, 0, 0, source.event, 0, 0, 0, 0)
    entry += struct.pack("<I", BLOCK_SIZE)
    if source.ghes == 2:
        entry += address_structure(window.acknowledge) + struct.pack("<QQ", _PRESERVED, _ACKNOWLEDGED)
    return entry


def hest(sources: Sequence[ErrorSource], windows: Sequence[Window]) -> bytes:
    """The table of sources, each with the window into which its errors are written."""
    entries = [_source(source, window) for source, window in zip(sources, windows, strict=True)]
    return make_table(b"HEST", 1, struct.pack("<I", len(entries)) + b"".join(entries))
