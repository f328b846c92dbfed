# SPDX-License-Identifier: Apache-2.0
"""The dirty log: which pages of RAM a guest writes, by write faults of stage 2.

While the log is on, the guest may not write its RAM. Its first write to a page
faults; the page is noted and may be written from then on, until it is
collected. Blocks are broken up where somebody writes, not before: watching a
GiB that nobody writes costs one entry.

Nothing here knows an engine. It owes the log three things:

- After :meth:`DirtyLog.start` and :meth:`DirtyLog.collect` it flushes the TLBs
  of all vCPUs, and only then are pages read. Until then a vCPU with a stale
  translation may write a page unnoticed; what it writes is in what is read
  after the flush. A later write faults, and is noted for the next time.
- A permission fault of a write goes to :meth:`DirtyLog.written`, and the vCPU
  tries the access again. That needs no flush: a TLB that is about to refuse a
  write looks at the tables first.
- It asks :meth:`DirtyLog.delay` before that, and lets a vCPU wait that has to.

Faults come from the machine's thread, the rest from the one that moves the
guest. `DirtyLog.lock` guards log and tables; it is held for some 0.15 us a
page that is collected, and never while somebody waits.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from .base import PAGE_SIZE
from .stage2 import WRITE, Kind, Stage2

__all__ = ["DirtyLog", "union"]

_PAGE_SHIFT = 12
_BURST = 0.01  # seconds: how much of a limit may be used at once


class DirtyLog:
    """The log of `size` bytes of RAM at `base`, which `stage2` maps. `clock` gives seconds."""

    def __init__(self, stage2: Stage2, base: int, size: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.lock = threading.RLock()
        self._stage2 = stage2
        self._base = base
        self._end = base + size
        self._clock = clock
        self._map: bytearray | None = None  # a byte a page
        self._opened: list[int] = []  # which words of the tables let the guest write
        self._interval = 0.0  # seconds from one new page to the next; 0: as they please
        self._next = 0.0  # when the next page may be begun
        self._due: dict[int, float] = {}  # when vCPUs that wait may begin theirs

    @property
    def on(self) -> bool:
        """Whether writes are noted."""
        return self._map is not None

    def start(self) -> None:
        """Note writes from now on; a log that is on forgets what it has noted. The engine flushes TLBs then."""
        with self.lock:
            if self._map is None:
                self._stage2.map(self._base, self._end, Kind.WATCHED)
            self._watch_again()

    def written(self, address: int) -> bool:
        """A write to this guest physical address has met a permission fault: may the vCPU try again?

        If it may, the page has been noted. False: there is no RAM, and nothing that the log has to do with.
        """
        if not self._base <= address < self._end:
            return False
        with self.lock:
            if self._map is not None:
                word = self._stage2.page(address)
                if not self._stage2.words[word] & WRITE:
                    self._stage2.words[word] |= WRITE
                    self._opened.append(word)
                    self._map[address - self._base >> _PAGE_SHIFT] = 1
        return True  # also if another vCPU was here first, or the log has been stopped since

    def mark(self, address: int, size: int) -> None:
        """The host has written to the guest's RAM. Called after that: what was read meanwhile may be older."""
        if size <= 0:
            return
        first = max(address, self._base) - self._base >> _PAGE_SHIFT
        end = -(-(min(address + size, self._end) - self._base) // PAGE_SIZE)
        with self.lock:
            if self._map is not None and first < end:
                self._map[first:end] = b"\1" * (end - first)

    def collect(self) -> bytearray:
        """Which pages were written since the last time, 1 or 0 for each; they are watched again.

        The engine flushes TLBs then; pages are read after that. A log that is off has all zeroes.
        """
        with self.lock:
            collected = self._map
            if collected is None:
                return self._blank()
            self._watch_again()
        return collected

    def _watch_again(self) -> None:
        """An empty map, and no page that may be written."""
        words = self._stage2.words
        for word in self._opened:
            words[word] &= ~WRITE
        self._opened = []
        self._map = self._blank()

    def stop(self) -> None:
        """Let the guest write unwatched and without a limit, by blocks again. Can be called twice."""
        with self.lock:
            if self._map is not None:
                self._stage2.map(self._base, self._end, Kind.RAM)
            self._opened, self._map = [], None
            self._limit(None)

    # -- how fast

    def limit(self, pages_per_second: int | None) -> None:
        """Let all vCPUs together begin that many pages a second; None: as many as they please.

        The engine has vCPUs that wait try again, for their time may be another now.
        """
        with self.lock:
            self._limit(pages_per_second)

    def _limit(self, pages_per_second: int | None) -> None:
        self._interval = 1 / pages_per_second if pages_per_second else 0.0
        self._next = 0.0
        self._due.clear()

    def delay(self, vcpu: int) -> float:
        """How many seconds a vCPU has to wait before it begins a page; 0: it may do so now.

        Each is given a time of its own, in turn, and asks again when that has come.
        """
        if not self._interval:
            return 0.0
        with self.lock:
            now = self._clock()
            due = self._due.get(vcpu)
            if due is None:
                due = max(self._next, now - max(_BURST - self._interval, 0.0))
                self._next = due + self._interval
            if due > now:
                self._due[vcpu] = due
                return due - now
            self._due.pop(vcpu, None)
            return 0.0

    def _blank(self) -> bytearray:
        return bytearray((self._end - self._base) // PAGE_SIZE)


def union(one: bytearray, other: bytearray) -> bytearray:
    """The pages of either map, a byte a page; `one` itself where the other has none."""
    if not other.count(1):
        return one
    joined = int.from_bytes(one, "little") | int.from_bytes(other, "little")
    return bytearray(joined.to_bytes(len(one), "little"))
