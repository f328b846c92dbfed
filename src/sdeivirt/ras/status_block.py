# SPDX-License-Identifier: Apache-2.0
"""A generic error status block as bytes: as much of it as is to be known of one that is not taken apart.

ACPI 6.3, 18.3.2.7.1. The rest is in :mod:`sdeivirt.ras.cper`, which need not be loaded for this.
"""

from __future__ import annotations

from typing import Protocol

from ..errors import UsageError

__all__ = ["BLOCK_SIZE", "MAX_SECTIONS", "Encodable", "block_bytes", "check_block", "is_fatal"]

BLOCK_SIZE = 0x1000  # at most: what a source has room for
_HEAD_SIZE = 20
_ENTRY_SIZE = 64  # at least
MAX_SECTIONS = (BLOCK_SIZE - _HEAD_SIZE) // _ENTRY_SIZE
_SEVERITY = slice(16, 20)
_FATAL = 1


class Encodable(Protocol):
    """A block that is not bytes yet: :class:`sdeivirt.ras.cper.StatusBlock`."""

    def encode(self) -> bytes: ...


def block_bytes(block: bytes | Encodable) -> bytes:
    """The block as bytes."""
    return bytes(block) if isinstance(block, bytes | bytearray | memoryview) else block.encode()


def check_block(block: bytes) -> None:
    """Raises UsageError for what cannot be put into a block, or would not be seen there."""
    if not _HEAD_SIZE <= len(block) <= BLOCK_SIZE:
        raise UsageError(f"{len(block)} bytes are no error status block", f"one has {_HEAD_SIZE} to {BLOCK_SIZE} bytes")
    if not any(block[:4]):
        raise UsageError(
            "the block's first word says that it holds no error",
            "bit 0 stands for an uncorrected one, bit 1 for others",
        )


def is_fatal(block: bytes) -> bool:
    """Whether a kernel is to panic at it."""
    return int.from_bytes(block[_SEVERITY], "little") == _FATAL
