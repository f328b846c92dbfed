# SPDX-License-Identifier: Apache-2.0
"""The guest's physical memory, by the architecture's own stage-2 translation. Arm ARM D8.

Whoever is EL2 of a machine walks these tables; we write them, into memory
that both see. Guest physical addresses are 40 bits and mean what they say:
what is mapped is mapped one to one, so devices that access memory by themselves agree with
the guest's CPUs about addresses. 4 KiB granules from level 1 on, where two tables
stand side by side (VTCR_EL2.SL0 = 1, T0SZ = 24). Blocks are used where they fit,
and are broken up where something smaller is asked for.

Entries change while CPUs may walk the tables: a new table is filled before
anything points to it, and an entry is one store. Callers that take rights away
have TLBs flushed, and say so: a table that a block has replaced is not used again before, for a CPU
may be on its way through it. One thread at a time: a caller with several has a lock.
"""

from __future__ import annotations

import enum
from array import array
from collections import deque

from ..errors import UsageError

__all__ = ["WRITE", "Kind", "Stage2", "table_bytes"]

_TABLE_WORDS = 512
_TABLE_BYTES = 8 * _TABLE_WORDS
_LEVELS = {1: 30, 2: 21, 3: 12}  # address bits below an entry's index
_SPARE_TABLES = 64  # for devices, whose pages are mapped one by one

_VALID = 1
_NEXT = 3  # a table, or at level 3 a page
_ADDRESS = 0xFF_FFFF_F000
_READ = 1 << 6
WRITE = 2 << 6  # S2AP: the bit of an entry that lets the guest write
_INNER_SHAREABLE = 3 << 8
_ACCESSED = 1 << 10
_NORMAL = 0xF << 2  # write-back
_DEVICE = 0x1 << 2  # nGnRE
_NEVER_EXECUTE = 1 << 54


class Kind(enum.IntEnum):
    """What is mapped; the value is the entry without its address."""

    RAM = _ACCESSED | _INNER_SHAREABLE | _READ | WRITE | _NORMAL
    WATCHED = _ACCESSED | _INNER_SHAREABLE | _READ | _NORMAL  # RAM whose next write is to be noted
    DEVICE = _ACCESSED | _READ | WRITE | _DEVICE | _NEVER_EXECUTE
    DEVICE_READ_ONLY = _ACCESSED | _READ | _DEVICE | _NEVER_EXECUTE
    READ_ONLY = _ACCESSED | _INNER_SHAREABLE | _READ | _NORMAL | _NEVER_EXECUTE


def table_bytes(ram: int) -> int:
    """How much room tables need at most for that many bytes of RAM, all of it in single pages: 2 MiB a GiB, and a bit.

    What is not needed yet is not touched, so it should be memory that the host gives on first use.
    """
    level2 = (ram >> _LEVELS[1]) + 2
    level3 = (ram >> _LEVELS[2]) + 2
    return (2 + level2 + level3 + _SPARE_TABLES) * _TABLE_BYTES


class Stage2:
    """Tables in `words` (a memoryview of format "Q", zeroed), which the guest's CPUs see at `base`."""

    def __init__(self, words: memoryview, base: int) -> None:
        self.words = words
        self._base = base
        self._next = 2 * _TABLE_WORDS
        self._free: list[int] = []
        self._resting: deque[int] = deque()  # tables that were released since TLBs were flushed
        self._flushed = 0  # how many have rested

    def map(self, start: int, end: int, kind: Kind, target: int | None = None) -> None:
        """Map the pages [start, end) to themselves, or to those from `target` on, in place of what was there.

        Raises UsageError where there is no room for new tables.
        """
        shift = 0 if target is None else target - start
        while start < end:
            start = self._set(start, end, start + shift | kind, shift)

    def unmap(self, start: int, end: int) -> None:
        """Take the pages [start, end) away. Raises UsageError as :meth:`map` does."""
        while start < end:
            start = self._set(start, end, 0, 0)

    def _set(self, start: int, end: int, entry: int, shift: int) -> int:
        """Set the entry of the largest block or page that fits there, 0 for none; where the next one begins.

        Tables that are not needed any more are used again, some time.
        """
        level = next(
            level
            for level, bits in _LEVELS.items()
            if not (start | start + shift) & ((1 << bits) - 1) and start + (1 << bits) <= end
        )
        word = self._entry(start, level)
        before = self.words[word]
        self.words[word] = entry | (_NEXT if level == 3 else _VALID) if entry else 0
        if level < 3 and before & _NEXT == _NEXT:
            self._release(before, level + 1)
        return start + (1 << _LEVELS[level])

    def page(self, address: int) -> int:
        """Which of `words` is the entry of the page with that address; blocks on the way are broken up."""
        return self._entry(address, 3)

    def _entry(self, address: int, level: int) -> int:
        """Which word is the entry of an address at a level; blocks on the way are broken up."""
        words = self.words
        table = 0
        for upper in range(1, level):
            word = table + (address >> _LEVELS[upper] & (2 * _TABLE_WORDS - 1 if upper == 1 else _TABLE_WORDS - 1))
            if words[word] & _NEXT != _NEXT:
                words[word] = self._base + 8 * self._break_up(words[word], upper + 1) | _NEXT
            table = ((words[word] & _ADDRESS) - self._base) >> 3
        return table + (address >> _LEVELS[level] & (2 * _TABLE_WORDS - 1 if level == 1 else _TABLE_WORDS - 1))

    def _break_up(self, block: int, level: int) -> int:
        """A table of that level with what a block mapped, or nothing."""
        table = self._new_table()
        step, entry = 1 << _LEVELS[level], block | (_NEXT if level == 3 else _VALID)
        entries = array("Q", range(entry, entry + _TABLE_WORDS * step, step) if block else bytes(_TABLE_BYTES))
        self.words[table : table + _TABLE_WORDS] = memoryview(entries)
        return table

    def _new_table(self) -> int:
        """Room for one that no CPU has in sight."""
        if self._free:
            return self._free.pop()
        table = self._next
        if table + _TABLE_WORDS <= len(self.words):
            self._next += _TABLE_WORDS
            return table
        if self._resting:  # there is room for every page once, and nobody has flushed for as long as that
            self._flushed += 1
            return self._resting.popleft()
        raise UsageError("the machine's memory map has too many pieces", "use fewer or larger ones")

    @property
    def resting(self) -> bool:
        """Whether there are tables that a flush would make free."""
        return bool(self._resting)

    @property
    def released(self) -> int:
        """How many tables have been released so far: for :meth:`flushed`."""
        return self._flushed + len(self._resting)

    def flushed(self, released: int) -> None:
        """All TLBs have been flushed since so many tables had been released. These can be used again."""
        while self._flushed < released:
            self._free.append(self._resting.popleft())
            self._flushed += 1

    def _release(self, entry: int, level: int) -> None:
        """The table of that level which an entry pointed to is not needed any more, nor are those below it."""
        table = ((entry & _ADDRESS) - self._base) >> 3
        if level < 3:
            for below in self.words[table : table + _TABLE_WORDS].tolist():
                if below & _NEXT == _NEXT:
                    self._release(below, level + 1)
        self._resting.append(table)
