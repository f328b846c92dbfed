# SPDX-License-Identifier: Apache-2.0
"""The memory that a source of errors shares with the guest. ACPI 6.3, 18.3.2.7.1 and 18.3.2.8.

+0x0000  8 bytes: where the block is (the "error status address" of the HEST is this word's)
+0x0008  8 bytes: bit 0 is set by the guest when it has read the block, version 2 of GHES
+0x1000  the block: 4 KiB, whose first word says what is in it; 0 is nothing
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from .sources import ErrorSource

__all__ = ["WINDOW_SIZE", "Memory", "Window", "make_windows", "windows_size"]

WINDOW_SIZE = 0x2000
_ACKNOWLEDGE = 0x8
_BLOCK = 0x1000
_ROOM = 0x1_0000  # pages of the largest size: the guest maps this memory by itself
_ACKNOWLEDGED = 1


class Memory(Protocol):
    """The guest's physical memory."""

    def read(self, address: int, size: int) -> bytes | None: ...

    def write(self, address: int, data: bytes) -> bool: ...


@dataclass(frozen=True, slots=True)
class Window:
    """The window of a source at an address."""

    source: ErrorSource
    address: int

    @property
    def pointer(self) -> int:
        return self.address

    @property
    def acknowledge(self) -> int:
        return self.address + _ACKNOWLEDGE

    @property
    def block(self) -> int:
        return self.address + _BLOCK

    def blank(self) -> bytes:
        """What stands there before the first error: a pointer, an acknowledgement, an empty block."""
        return struct.pack("<QQ", self.block, _ACKNOWLEDGED) + bytes(WINDOW_SIZE - 16)

    def fill(self, memory: Memory, block: bytes) -> bool:
        """Put a report in, whose acknowledgement is waited for from now on; False where the memory is not there.

        The first word of the block, which says that there is one, is written last. Where
        it cannot be, nothing is waited for.
        """
        if self.status(memory) is None:  # asks for that page
            return False
        if not memory.write(self.block + 4, block[4:]) or not memory.write(self.acknowledge, bytes(8)):
            return False
        if not memory.write(self.block, block[:4]):
            self.empty(memory)
            return False
        return True

    def empty(self, memory: Memory) -> None:
        """Take a report back that the guest has not been told of."""
        memory.write(self.block, bytes(4))
        memory.write(self.acknowledge, _ACKNOWLEDGED.to_bytes(8, "little"))

    def status(self, memory: Memory) -> int | None:
        """The first word of the block: 0 when nothing is in it. None where the memory is not there."""
        word = memory.read(self.block, 4)
        return None if word is None else int.from_bytes(word, "little")

    def acknowledged(self, memory: Memory) -> bool:
        """Whether the guest has read what was last put in, so that another report may follow."""
        if self.source.ghes == 1:
            return self.status(memory) == 0
        word = memory.read(self.acknowledge, 8)
        return word is not None and bool(word[0] & _ACKNOWLEDGED)


def windows_size(sources: Sequence[ErrorSource]) -> int:
    """How much memory the windows of all sources take; whole 64 KiB."""
    return -(-len(sources) * WINDOW_SIZE // _ROOM) * _ROOM


def make_windows(sources: Sequence[ErrorSource], address: int) -> list[Window]:
    """One window for each source, one behind the other."""
    return [Window(source, address + i * WINDOW_SIZE) for i, source in enumerate(sources)]
