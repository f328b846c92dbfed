# SPDX-License-Identifier: Apache-2.0
"""The control block in the guest's memory.

    0   u32  reason       the mailbox: the host fills it where both words are zero,
    4   u32  token        the guest reads them and writes zeroes
    8   u32  head         of the ring, written by the host
    12  u32  tail         of the ring, written by the guest
    64  u32  ring[128]    ready tokens; entry n stands at n modulo 128

The guest runs on while we write: a word that says that there is something is
written after what it tells of, or with it: eight aligned bytes are one store.
Whatever the guest puts there hurts nobody else.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Protocol

from .abi import HEAD, REASON, RING, RING_ENTRIES, TAIL

__all__ = ["ControlBlock", "ControlMemory", "NoMemory"]

_M32 = 0xFFFF_FFFF
_MAILBOX = struct.Struct("<II")
_WORD = struct.Struct("<I")


class ControlMemory(Protocol):
    """The guest's RAM by physical address."""

    def covers(self, address: int, size: int) -> bool:
        """Whether there is RAM, be its content here or not."""

    def read(self, address: int, size: int) -> bytes | None:
        """What stands there; None where there is no RAM, or a page is absent now."""

    def write(self, address: int, data: bytes) -> bool:
        """Write it; False where that cannot be, as for :meth:`read`."""


class NoMemory:
    """For a firmware without a machine: there is none."""

    def covers(self, _address: int, _size: int) -> bool:
        return False

    def read(self, _address: int, _size: int) -> bytes | None:
        return None

    def write(self, _address: int, _data: bytes) -> bool:
        return False


class ControlBlock:
    """One block, at a guest physical address."""

    __slots__ = ("_address", "_memory")

    def __init__(self, memory: ControlMemory, address: int) -> None:
        self._memory = memory
        self._address = address

    def mailbox(self) -> tuple[int, int] | None:
        """Reason and token; None where the block cannot be read now."""
        data = self._memory.read(self._address + REASON, _MAILBOX.size)
        return None if data is None else _MAILBOX.unpack(data)

    def post(self, reason: int, token: int) -> bool:
        """Fill the mailbox, which is empty: both words by one store, since the page may go between two."""
        return self._memory.write(self._address + REASON, _MAILBOX.pack(reason, token))

    def clear(self) -> None:
        """Empty the mailbox."""
        self._memory.write(self._address + REASON, _MAILBOX.pack(0, 0))

    def tail(self) -> int | None:
        """How many tokens the guest has taken out of the ring, modulo 2**32."""
        data = self._memory.read(self._address + TAIL, _WORD.size)
        return None if data is None else _WORD.unpack(data)[0]

    def append(self, head: int, tokens: Sequence[int]) -> bool:
        """Put tokens into the ring, from entry `head` on. There is room."""
        for position, token in enumerate(tokens, head):
            if not self._memory.write(self._address + RING + 4 * (position % RING_ENTRIES), _WORD.pack(token)):
                return False
        return self._memory.write(self._address + HEAD, _WORD.pack(head + len(tokens) & _M32))
