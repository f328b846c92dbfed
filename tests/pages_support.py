# SPDX-License-Identifier: Apache-2.0
"""A source of pages for tests: it keeps what is taken from a guest, and gives it back some time after it is wanted."""

from __future__ import annotations

import heapq
import random
import threading
import time
from collections.abc import Sequence
from types import TracebackType

from sdeivirt.machine.base import Machine

__all__ = ["Store"]

_BATCH = 64


class Store:
    """The pages of a machine that are somewhere else. A context manager: at its end all are given back.

    Each comes `delay` seconds after it was first wanted, however many others are on their way. Pages in
    `held` do not come before :meth:`release`.
    """

    def __init__(self, machine: Machine, delay: float = 0.0) -> None:
        self.delay = delay
        self.held: set[int] = set()
        self.wanted: set[int] = set()  # all that ever were
        self.forgotten = 0  # how often the guest was reset
        self._machine = machine
        self._pages: dict[int, bytes] = {}
        self._due: list[tuple[float, int]] = []
        self._on_their_way: set[int] = set()
        self._condition = threading.Condition()
        self._ends = False
        self._thread = threading.Thread(target=self._work, name="store")
        self._thread.start()

    def take(self, pages: Sequence[int]) -> int:
        """Evict pages; how many of them went."""
        taken = 0
        for first in range(0, len(pages), _BATCH):
            content = self._machine.evict_pages(pages[first : first + _BATCH], self)
            taken += len(content)
            self.gets(content)
        return taken

    def gets(self, content: dict[int, bytes]) -> None:
        """These are pages that the machine lacks."""
        with self._condition:
            self._pages |= content
            self._condition.notify_all()

    def take_some(self, pages: Sequence[int], chance: random.Random, count: int) -> int:
        return self.take(chance.sample(pages, count))

    def want(self, page: int) -> None:
        with self._condition:
            self.wanted.add(page)
            if page not in self._on_their_way:
                self._on_their_way.add(page)
                heapq.heappush(self._due, (time.monotonic() + self.delay, page))
                self._condition.notify_all()

    def forget(self) -> None:
        with self._condition:
            self._pages.clear()
            self.forgotten += 1

    def waits_for(self, count: int, seconds: float = 30) -> None:
        """Return when that many pages have been wanted."""
        with self._condition:
            assert self._condition.wait_for(lambda: len(self.wanted) >= count, seconds), len(self.wanted)

    def release(self) -> None:
        """Let the held pages come."""
        with self._condition:
            held, self.held = self.held, set()
            for page in held & self._on_their_way:
                heapq.heappush(self._due, (0.0, page))
            self._condition.notify_all()

    def _work(self) -> None:
        while True:
            with self._condition:
                if self._ends:
                    return
                wait = self._due[0][0] - time.monotonic() if self._due else None
                if wait is None or wait > 0:
                    self._condition.wait(wait)
                    continue
                _, page = heapq.heappop(self._due)
                if page in self.held:
                    continue
                if page not in self._pages:  # wanted before we were given it
                    if not self._machine.absent()[page]:
                        self._on_their_way.discard(page)
                        continue
                    heapq.heappush(self._due, (time.monotonic() + 0.0001, page))
                    self._condition.wait(0.0001)
                    continue
                content = self._pages.pop(page)
                self._on_their_way.discard(page)
            self._machine.supply_pages(page, content)

    def __enter__(self) -> Store:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._condition:
            self._ends = True
            self._condition.notify_all()
        self._thread.join()
        for page, content in self._pages.items():
            self._machine.supply_pages(page, content)
