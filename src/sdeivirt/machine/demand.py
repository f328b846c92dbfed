# SPDX-License-Identifier: Apache-2.0
"""Pages of RAM that are not here yet: who touches one waits for it, or does something else meanwhile.

An absent page has no entry in stage 2. The first access faults; the page is
asked for, and either the guest is told that it will take a while (an
asynchronous page fault) and goes on with another task, or the vCPU waits, as
it does today. When the page comes it is written and then mapped, and whoever
waited goes on.

Nothing here knows an engine. It owes us three things:

- A translation fault of stage 2 goes to :meth:`Demand.fault`, and for
  :attr:`Fault.WAIT` the vCPU stands still until it is woken, or kicked for
  an event; then it tries the access again.
- `wake` is called, from any thread, with those who can go on.
- `flush` takes from all vCPUs what they remember of stage 2 and returns when
  that is done; whether it was. A page that is taken away is copied only
  after that: until then a vCPU may still write it.

Entries go from invalid to valid without a flush: TLBs do not hold what faults.
"""

from __future__ import annotations

import enum
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Protocol

from ..errors import StateError
from ..sdei.model import bits
from .base import PAGE_SIZE
from .stage2 import Kind, Stage2
from .standing import Standing

__all__ = ["Demand", "DemandFigures", "Fault", "PageSource"]

_PAGE_SHIFT = 12
_ENTRY = int(Kind.RAM) | 3  # of a page, without its address
_ZEROES = bytes(PAGE_SIZE)  # startswith() compares by one memcmp
_REMEMBERED = 10_000  # waits, for their median


class PageSource(Protocol):
    """Where pages come from."""

    def want(self, page: int) -> None:
        """A page (an index from RAM_BASE on) is needed as soon as can be.

        From any thread; does not block; may be called again for a page that is on its way.
        """

    def forget(self) -> None:
        """No page is needed any more: the guest was reset, and has fresh RAM. From any thread; does not block."""


class Fault(enum.Enum):
    """What becomes of an access that met a translation fault."""

    ELSEWHERE = "elsewhere"  # it was not to RAM: there is nothing
    RETRY = "retry"  # the page is here by now
    WAIT = "wait"  # the vCPU waits
    TOLD = "told"  # the guest has been told, and goes on with something else


@dataclass(slots=True)
class _Waiting:
    """Who has touched an absent page."""

    since: float
    vcpus: int = 0  # a bitmap of those that stand still
    tokens: list[tuple[int, int]] = field(default_factory=list)  # the vCPUs that were told, and by which token


@dataclass(frozen=True, slots=True)
class DemandFigures:
    """What has happened so far. `waits` is how long pages took from the first access on, in seconds, the last ones."""

    absent: int
    faults: int  # accesses to absent pages
    told: int  # those of them that the guest was told of
    evicted: int
    supplied: int
    waits: tuple[float, ...]


class Demand:
    """The absent pages of `ram`, which `stage2` maps at `base`.

    `lock`, which whoever holds it can take again, guards tables and what is absent; the machine's
    own lock is taken before it, never after.
    `wake(vcpus, tokens)` gets a bitmap of vCPUs that stood still, and (vCPU, token) for those that were told.
    """

    def __init__(
        self,
        stage2: Stage2,
        lock: AbstractContextManager[Any],
        ram: memoryview,
        base: int,
        wake: Callable[[int, list[tuple[int, int]]], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._stage2 = stage2
        self.lock = lock
        self._ram = ram
        self._base = base
        self._wake = wake
        self._clock = clock
        self._pages = len(ram) // PAGE_SIZE
        self._absent = bytearray(self._pages)
        self._source: PageSource | None = None
        self._waiting: dict[int, _Waiting] = {}
        self._standing = Standing(clock)
        self._leaving: set[int] = set()  # unmapped, and not copied yet
        self._in_blocks = False  # once all is here RAM is to be mapped by blocks again
        self.count = 0  # of absent pages
        self._faults = self._told = self._evicted = self._supplied = 0
        self._waits: deque[float] = deque(maxlen=_REMEMBERED)

    # -- what is absent

    def lack(self, absent: bytearray, source: PageSource) -> None:
        """These pages, 1 for each, are to come from a source. Nothing runs yet."""
        with self.lock:
            self._absent[:] = absent
            self.count = absent.count(1)
            self._source = source
            self._in_blocks = True
            first = absent.find(1)
            while first >= 0:
                end = absent.find(0, first)
                end = self._pages if end < 0 else end
                self._stage2.unmap(self._address(first), self._address(end))
                first = absent.find(1, end)

    def absent(self) -> bytearray:
        """A byte a page: 1 where it is absent."""
        with self.lock:
            return self._absent[:]

    def forget(self) -> None:
        """The system was reset: RAM is what it was in the beginning, and nothing is to come."""
        with self.lock:
            if self.count:
                self._stage2.map(self._base, self._address(self._pages), Kind.RAM)
        self.close()

    def close(self) -> None:
        """This RAM is gone, with its tables, and there is nothing that could come. Can be called twice."""
        with self.lock:
            source, self._source = self._source, None
            self._absent[:] = bytes(self._pages)
            self.count = 0
            self._waiting.clear()
            self._standing = Standing(self._clock)
            self._leaving.clear()
        if source is not None:
            source.forget()

    def figures(self) -> DemandFigures:
        """What has happened so far."""
        with self.lock:
            return DemandFigures(
                self.count, self._faults, self._told, self._evicted, self._supplied, tuple(self._waits)
            )

    # -- accesses

    def fault(self, address: int, vcpu: int, tell: Callable[[], int | None]) -> Fault:
        """An access to a guest physical address had no translation. `tell` tells the guest: a token, or None.

        The page is asked for.
        """
        fault = self.touch(address, vcpu, tell)
        if fault in (Fault.WAIT, Fault.TOLD):
            self.ask(address)
        return fault

    def ask(self, address: int) -> None:
        """Ask for a page that :meth:`touch` was about: to do without the machine's lock, since it takes its time."""
        source = self._source
        if source is not None:
            source.want(address - self._base >> _PAGE_SHIFT)

    def touch(self, address: int, vcpu: int, tell: Callable[[], int | None]) -> Fault:
        """As :meth:`fault`, but the page remains to be asked for where it is to come."""
        page = address - self._base >> _PAGE_SHIFT
        if not 0 <= page < self._pages:
            return Fault.ELSEWHERE
        with self.lock:
            if not self._absent[page]:
                if page in self._leaving:
                    self._keep(page)
                return Fault.RETRY
            self._faults += 1
            waiting = self._waiting.get(page)
            if waiting is None:
                waiting = self._waiting[page] = _Waiting(self._clock())
            token = tell()
            if token is None:
                waiting.vcpus |= 1 << vcpu
                self._standing.begins(vcpu)
            else:
                waiting.tokens.append((vcpu, token))
                self._told += 1
        return Fault.WAIT if token is None else Fault.TOLD

    def read(self, address: int, size: int) -> bytes | None:
        """What stands at a guest physical address; None where there is nothing, or not yet."""
        at = address - self._base
        with self.lock:
            return bytes(self._ram[at : at + size]) if self.reach(address, size) else None

    def write(self, address: int, data: bytes) -> bool:
        """Write there; False where there is nothing, or not yet."""
        at = address - self._base
        with self.lock:
            if not self.reach(address, len(data)):
                return False
            self._ram[at : at + len(data)] = data
        return True

    def goes_on(self, vcpu: int) -> None:
        """A vCPU that stood still does something else, although its page has not come."""
        with self.lock:
            self._standing.ends(vcpu)

    def stood(self, vcpu: int) -> float:
        """For how many seconds a vCPU has stood still since pages were absent."""
        with self.lock:
            return self._standing.seconds(vcpu)

    def reach(self, address: int, size: int) -> bool:
        """Whether the host may touch that memory. The lock is held, and is until it has."""
        first, last = address - self._base >> _PAGE_SHIFT, address + size - 1 - self._base >> _PAGE_SHIFT
        if not 0 <= first <= last < self._pages:
            return False
        for page in range(first, last + 1):
            if self._absent[page]:
                if self._source is not None:
                    self._source.want(page)
                return False
            if page in self._leaving:
                self._keep(page)
        return True

    # -- pages that come

    def supply(self, first: int, content: memoryview | None, count: int) -> int:
        """Pages have come, `count` from `first` on; None: they are all zeroes. How many of them were still absent.

        Others are left alone: the guest may have written them. From any thread. Raises StateError for
        pages that there are not.
        """
        if not 0 <= first <= first + count <= self._pages:
            raise StateError(f"there are no {count} pages from page {first} on", f"RAM has {self._pages}")
        vcpus, taken = 0, 0
        tokens: list[tuple[int, int]] = []
        with self.lock:
            absent, words, waiting_for = self._absent, self._stage2.words, self._waiting
            for page in range(first, first + count):
                if not absent[page]:
                    continue
                at = page * PAGE_SIZE
                if content is not None:
                    offset = at - first * PAGE_SIZE
                    self._ram[at : at + PAGE_SIZE] = content[offset : offset + PAGE_SIZE]
                elif not _ZEROES.startswith(self._ram[at : at + PAGE_SIZE]):  # what an earlier pass has brought
                    self._ram[at : at + PAGE_SIZE] = _ZEROES
                # The content is there before the entry is.
                absent[page] = 0
                words[self._stage2.page(self._base + at)] = self._base + at | _ENTRY
                taken += 1
                waiting = waiting_for.pop(page, None)
                if waiting is not None:
                    self._waits.append(self._clock() - waiting.since)
                    vcpus |= waiting.vcpus
                    tokens += waiting.tokens
            for vcpu in bits(vcpus):
                self._standing.ends(vcpu)
            self.count -= taken
            self._supplied += taken
            if not self.count and self._in_blocks:  # walks are shorter, and the guest is as fast as it was
                self._stage2.map(self._base, self._address(self._pages), Kind.RAM)
                self._in_blocks = False
        if vcpus or tokens:
            self._wake(vcpus, tokens)
        return taken

    # -- pages that go

    def evict(self, pages: Sequence[int], source: PageSource, flush: Callable[[], bool]) -> dict[int, bytes]:
        """Take pages away from a guest that runs; what they held, by page. They are absent then, and asked for again.

        A page that is touched meanwhile stays. Raises StateError for pages that there
        are not, and where `flush` could not be done.
        """
        if any(not 0 <= page < self._pages for page in pages):
            raise StateError("there are no such pages", f"RAM has {self._pages}")
        with self.lock:
            self._source = source
            # Pages that come and go keep their tables: a vCPU may be in the middle of one that would be used again.
            self._in_blocks = False
            for page in pages:
                if not self._absent[page]:
                    self._stage2.words[self._stage2.page(self._address(page))] = 0
                    self._leaving.add(page)
        done = flush()
        taken: dict[int, bytes] = {}
        with self.lock:
            leaving = [page for page in pages if page in self._leaving]
            if not done:
                for page in leaving:
                    self._keep(page)
                raise StateError("no page can be taken from a guest that stands still", "resume it first")
            for page in leaving:
                at = page * PAGE_SIZE
                taken[page] = bytes(self._ram[at : at + PAGE_SIZE])
                self._ram[at : at + PAGE_SIZE] = bytes(PAGE_SIZE)
                self._leaving.discard(page)
                self._absent[page] = 1
            self.count += len(taken)
            self._evicted += len(taken)
        return taken

    def _keep(self, page: int) -> None:
        """A page that was to go stays."""
        self._stage2.words[self._stage2.page(self._address(page))] = self._address(page) | _ENTRY
        self._leaving.discard(page)

    def _address(self, page: int) -> int:
        return self._base + page * PAGE_SIZE
