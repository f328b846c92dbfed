# SPDX-License-Identifier: Apache-2.0
"""Processes in a guest that wait for an error in their memory, found by what they have written there.

The program is guests/linux/user/victim.c. It has one page, little endian:

    +0x00  8 bytes: the heartbeat, which it counts up a hundred times a second
    +0x08  8 bytes: "SDEI-RAS"
    +0x10  8 bytes: its pid
    +0x18  8 bytes: the page's virtual address
    +0x20  32 bytes: its name, zeroes behind it

A page may have been copied, or outlive its process. So those count whose heart beats.
"""

from __future__ import annotations

import struct
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Protocol

__all__ = ["MAX_MARKS", "Ram", "Search", "Victim", "find_victims", "marks", "search_victims"]

RAM_BASE = 0x4000_0000
PAGE_SIZE = 4096
MAX_MARKS = 1024  # a guest may mark every page of its memory
_MARK = struct.Struct("<Q8sQQ32s")
_MAGIC = b"SDEI-RAS"
_WORD = int.from_bytes(_MAGIC, "little")
_PIECE = 16 << 20  # of memory, whole pages, that is read without a break
_LOOK_SECONDS = 0.01
_LATER_SECONDS = 0.25  # how long others may take once a heart has been seen to beat


class Ram(Protocol):
    """The memory of a machine, and where there may be anything in it."""

    def memory(self) -> memoryview: ...

    def data_ranges(self) -> Sequence[tuple[int, int]]: ...


@dataclass(frozen=True, slots=True)
class Victim:
    """A process and its page: `address` is the guest's physical one, `virtual` the process's own."""

    pid: int
    name: str
    address: int
    virtual: int
    heartbeat: int = field(default=0, compare=False)

    def matches(self, pattern: str) -> bool:
        """Whether it is meant: by its pid, or by its name as a shell would match it."""
        return str(self.pid) == pattern if pattern.isdecimal() else fnmatchcase(self.name, pattern)


def marks(memory: memoryview, ranges: Iterable[tuple[int, int]]) -> Iterator[Victim]:
    """Every marked page, in order, whether its process lives or not.

    `memory` is RAM as bytes, `ranges` are where to look: offsets [start, end), whole pages.
    """
    words = memory.cast("Q")
    for start, end in ranges:
        for piece in range(start, end, _PIECE):
            # One word of each page at a time in Python would take seconds for a GiB.
            column = words[piece // 8 + 1 : min(piece + _PIECE, end) // 8 : PAGE_SIZE // 8].tolist()
            index = -1
            for _ in range(column.count(_WORD)):
                index = column.index(_WORD, index + 1)
                victim = _read(memory, piece + index * PAGE_SIZE)
                if victim is not None:
                    yield victim
            time.sleep(0)  # the other threads' turn: a piece is read as a whole


def find_victims(ram: Ram, pattern: str = "*", seconds: float = 1.0) -> list[Victim]:
    """Those that live and match, by pid. If no heart beats within `seconds` there are none, as in a paused guest.

    Returns at once when all that are marked have been seen to live.
    """
    meant, _ = _marked(ram, pattern)
    return _living(ram, meant, seconds)


@dataclass(frozen=True, slots=True)
class Search:
    """What was found: those that match and live; if none do, those that match and stand still, and who else lives."""

    living: list[Victim]
    still: list[Victim] = field(default_factory=list)
    others: list[Victim] = field(default_factory=list)


def search_victims(ram: Ram, pattern: str, seconds: float = 1.0) -> Search:
    """As :func:`find_victims`, with what is to be known where nobody is found."""
    meant, others = _marked(ram, pattern)
    living = _living(ram, list(meant), seconds)
    if living:
        return Search(living)
    memory = ram.memory()
    still = [each for each in meant if _read(memory, each.address - RAM_BASE) == each]
    return Search([], sorted(still, key=lambda each: each.pid), _living(ram, others, seconds))


def _marked(ram: Ram, pattern: str) -> tuple[list[Victim], list[Victim]]:
    """The first MAX_MARKS that match, and that do not."""
    meant: list[Victim] = []
    others: list[Victim] = []
    for each in marks(ram.memory(), ram.data_ranges()):
        kind = meant if each.matches(pattern) else others
        if len(kind) < MAX_MARKS:
            kind.append(each)
        if len(meant) >= MAX_MARKS:
            break
    return meant, others


def _living(ram: Ram, waiting: list[Victim], seconds: float) -> list[Victim]:
    """Those whose hearts beat, by pid."""
    memory = ram.memory()
    alive: list[Victim] = []
    until = time.monotonic() + seconds
    while waiting and time.monotonic() < until:
        time.sleep(_LOOK_SECONDS)  # nobody tells of a store
        for before in list(waiting):
            now = _read(memory, before.address - RAM_BASE)
            if now != before:  # the page has become another's
                waiting.remove(before)
            elif now.heartbeat != before.heartbeat:
                waiting.remove(before)
                alive.append(now)
                until = min(until, time.monotonic() + _LATER_SECONDS)
    return sorted(alive, key=lambda each: each.pid)


def _read(memory: memoryview, offset: int) -> Victim | None:
    """The mark of a page; None where there is none, or what no process can have."""
    heartbeat, magic, pid, virtual, name = _MARK.unpack_from(memory, offset)
    text = name.split(b"\0")[0]
    if magic != _MAGIC or not pid < 1 << 32 or virtual % PAGE_SIZE or not text.isascii():
        return None
    word = text.decode("ascii")
    return Victim(pid, word, RAM_BASE + offset, virtual, heartbeat) if word.isprintable() else None
