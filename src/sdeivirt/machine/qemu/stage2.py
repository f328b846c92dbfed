# SPDX-License-Identifier: Apache-2.0
"""Stage-2 tables for the monitor, written into memory that it shares. Arm ARM D8.

Guest physical addresses are 40 bits and mean what they say: what is mapped is
mapped one to one, so devices that access memory by themselves agree with the
guest's CPUs about addresses. 4 KiB granules from level 1 on, where two tables
stand side by side (VTCR_EL2.SL0 = 1, T0SZ = 24). Blocks are used where they fit.
"""

from __future__ import annotations

import enum

from ...errors import UsageError

__all__ = ["Kind", "Stage2"]

_TABLE_WORDS = 512
_LEVELS = {1: 30, 2: 21, 3: 12}  # address bits below an entry's index

_VALID = 1
_NEXT = 3  # a table, or at level 3 a page
_ADDRESS = 0xFF_FFFF_F000
_READ, _WRITE = 1 << 6, 2 << 6
_INNER_SHAREABLE = 3 << 8
_ACCESSED = 1 << 10
_NORMAL = 0xF << 2  # write-back
_DEVICE = 0x1 << 2  # nGnRE
_NEVER_EXECUTE = 1 << 54


class Kind(enum.IntEnum):
    """What is mapped; the value is the entry without its address."""

    RAM = _ACCESSED | _INNER_SHAREABLE | _READ | _WRITE | _NORMAL
    DEVICE = _ACCESSED | _READ | _WRITE | _DEVICE | _NEVER_EXECUTE
    READ_ONLY = _ACCESSED | _INNER_SHAREABLE | _READ | _NORMAL | _NEVER_EXECUTE


class Stage2:
    """Tables in `words` (a memoryview of format "Q", zeroed), which the guest's CPUs see at `base`."""

    def __init__(self, words: memoryview, base: int) -> None:
        self._words = words
        self._base = base
        self._next = 2 * _TABLE_WORDS

    def map(self, start: int, end: int, kind: Kind, target: int | None = None) -> None:
        """Map the pages [start, end) to themselves, or to those from `target` on, in place of what was there."""
        shift = 0 if target is None else target - start
        while start < end:
            level = next(
                level
                for level, bits in _LEVELS.items()
                if not (start | start + shift) & ((1 << bits) - 1) and start + (1 << bits) <= end
            )
            self._words[self._entry(start, level)] = start + shift | kind | (_NEXT if level == 3 else _VALID)
            start += 1 << _LEVELS[level]

    def unmap(self, start: int, end: int) -> None:
        """Take pages away."""
        for page in range(start, end, 1 << _LEVELS[3]):
            self._words[self._entry(page, 3)] = 0

    def _entry(self, address: int, level: int) -> int:
        """Which word is the entry of an address at a level; blocks on the way are broken up."""
        table = 0
        for upper in range(1, level):
            word = table + (address >> _LEVELS[upper] & (2 * _TABLE_WORDS - 1 if upper == 1 else _TABLE_WORDS - 1))
            if self._words[word] & _NEXT != _NEXT:
                self._words[word] = self._base + 8 * self._break_up(self._words[word], upper + 1) | _NEXT
            table = ((self._words[word] & _ADDRESS) - self._base) >> 3
        return table + (address >> _LEVELS[level] & (2 * _TABLE_WORDS - 1 if level == 1 else _TABLE_WORDS - 1))

    def _break_up(self, block: int, level: int) -> int:
        """A new table of that level with what a block mapped, or nothing."""
        table, self._next = self._next, self._next + _TABLE_WORDS
        if self._next > len(self._words):
            raise UsageError("the machine's memory map has too many pieces", "use fewer or larger ones")
        if block:
            step = 1 << _LEVELS[level]
            for i in range(_TABLE_WORDS):
                self._words[table + i] = block + i * step | (_NEXT if level == 3 else _VALID)
        return table
