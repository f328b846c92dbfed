# SPDX-License-Identifier: Apache-2.0
"""Which pages are lacking, which of them somebody waits for, and what to ask for next."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable

from ..errors import UsageError
from .lacking import MOST_RUNS, runs

__all__ = ["PREFETCH", "Wants", "check_prefetch"]

PREFETCH = 8
_MOST_PREFETCH = 512


def check_prefetch(prefetch: int) -> None:
    """Raises UsageError for a group of pages that cannot be."""
    if not 1 <= prefetch <= _MOST_PREFETCH:
        raise UsageError(f"{prefetch} pages cannot be fetched at once", f"1 to {_MOST_PREFETCH} can")


class Wants:
    """A :class:`~sdeivirt.machine.demand.PageSource` that queues what is wanted, for whoever gets it.

    With a page that is wanted those around it are asked for, up to `prefetch` of them in all: those
    of the aligned group that it stands in which are lacking as well, and not asked for.
    """

    def __init__(self, lacking: bytearray, prefetch: int = PREFETCH) -> None:
        """Keeps the map. Raises UsageError for a group that cannot be."""
        check_prefetch(prefetch)
        self._prefetch = prefetch
        self._lock = threading.Lock()
        # All that follows is guarded by it.
        self._lacking = lacking
        self._asked = bytearray(len(lacking))
        self._queue: deque[int] = deque()
        self._waited_for: set[int] = set()
        self._stopped = False
        self.left = lacking.count(1)
        self.forgotten = False  # that forget() was called
        # Called after a page was queued or all were forgotten, on the thread that did that, without the lock.
        # It must not block.
        self.hurry: Callable[[], object] = lambda: None

    def want(self, page: int) -> None:
        with self._lock:
            if not self._lacking[page]:
                return
            self._waited_for.add(page)
            if self._asked[page]:
                return
            self._queue.append(page)
        self.hurry()

    def forget(self) -> None:
        """No page is needed any more, for the guest was reset."""
        with self._lock:
            self._lacking[:] = bytes(len(self._lacking))
            self._queue.clear()
            self._waited_for.clear()
            self.left = 0
            self.forgotten = True
        self.hurry()

    @property
    def stopped(self) -> bool:
        """Whether :meth:`stop` was called last."""
        return self._stopped

    @property
    def waited_for(self) -> bool:
        """Whether somebody waits for a page."""
        with self._lock:
            return bool(self._waited_for)

    @property
    def queued(self) -> bool:
        """Whether something is to be asked for that nobody has asked for."""
        return bool(self._queue)

    def map(self) -> bytearray:
        """A copy of what is lacking."""
        with self._lock:
            return self._lacking[:]

    def again(self) -> None:
        """What was asked for has not come, and will not: ask again for what somebody waits for."""
        with self._lock:
            self._asked = bytearray(len(self._lacking))
            self._queue = deque(sorted(self._waited_for))
            self._stopped = False

    def stop(self) -> None:
        """Have :meth:`take` return nothing, until :meth:`again`."""
        with self._lock:
            self._stopped = True

    def take(self) -> list[tuple[int, int]]:
        """Runs to ask for now; they count as asked for. Nothing after :meth:`stop`."""
        if not self._queue:
            return []  # and whoever puts something there comes here after it
        with self._lock:
            return [] if self._stopped else self._next_runs()

    def _next_runs(self) -> list[tuple[int, int]]:
        lacking, asked, size = self._lacking, self._asked, self._prefetch
        found: list[tuple[int, int]] = []
        while self._queue and len(found) < MOST_RUNS:
            page = self._queue.popleft()
            if not lacking[page] or asked[page]:
                continue
            first = end = page
            group = page - page % size
            while first > group and lacking[first - 1] and not asked[first - 1]:
                first -= 1
            last = min(group + size, len(lacking))
            while end < last and lacking[end] and not asked[end]:
                end += 1
            asked[first:end] = b"\1" * (end - first)
            found.append((first, end - first))
        return found

    def rest(self, first: int, most: int) -> tuple[int, int]:
        """A run of what is lacking and nobody has asked for, the first behind that page: it counts as asked for."""
        with self._lock:
            for begin, end in ((first, len(self._lacking)), (0, first)):
                for at, count in runs(self._lacking, begin, end):
                    count = min(count, most)
                    self._asked[at : at + count] = b"\1" * count
                    return at, count
        return 0, 0

    def came(self, first: int, count: int) -> None:
        """Those pages are here."""
        with self._lock:
            new = self._lacking.count(1, first, first + count)
            if new:
                self._lacking[first : first + count] = bytes(count)
                self.left -= new
                if self._waited_for:
                    if count < len(self._waited_for):
                        self._waited_for.difference_update(range(first, first + count))
                    else:
                        self._waited_for = {page for page in self._waited_for if not first <= page < first + count}
