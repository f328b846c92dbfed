# SPDX-License-Identifier: Apache-2.0
"""How fast a channel may send: a token bucket.

It fills with the rate and holds 50 ms worth, so that a sender that comes late
catches up, and one that has paused does not flood the line. A grant is at
least 10 ms worth, or all that is wanted: few system calls, and still a smooth flow.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from ...errors import UsageError

__all__ = ["Pace"]

_DEPTH = 0.05  # seconds
_GRANT = 0.01


class Pace:
    """A limit in bytes a second, None for none. May be changed while a channel sends, and be shared by several."""

    def __init__(self, bytes_per_second: float | None, clock: Callable[[], float] = time.monotonic) -> None:
        """`clock` gives seconds. Raises UsageError for a rate that is not positive."""
        self._lock = threading.Lock()
        self._clock = clock
        self._last = clock()
        self._tokens = 0.0
        self._rate: float | None = None
        self.bytes_per_second = bytes_per_second

    @property
    def bytes_per_second(self) -> float | None:
        """The limit. A new one holds at once. Raises UsageError for a rate that is not positive."""
        return self._rate

    @bytes_per_second.setter
    def bytes_per_second(self, rate: float | None) -> None:
        if rate is not None and not rate > 0:
            raise UsageError(f"{rate} bytes a second would take for ever", "give a bandwidth above 0")
        with self._lock:
            self._refill()
            self._rate = rate

    def allow(self, wanted: int) -> tuple[int, float]:
        """How many of so many bytes may go now, or, if none, after how many seconds to ask again."""
        with self._lock:
            self._refill()
            rate = self._rate
            if rate is None:
                return wanted, 0.0
            least = min(wanted, max(1.0, rate * _GRANT))
            if self._tokens >= least:
                return min(wanted, int(self._tokens)), 0.0
            return 0, min((least - self._tokens) / rate, _DEPTH)  # not longer: the rate may have changed by then

    def spend(self, count: int) -> None:
        """So many bytes went."""
        with self._lock:
            self._tokens -= count

    @staticmethod
    def _depth(rate: float) -> float:
        return max(1.0, rate * _DEPTH)

    def _refill(self) -> None:
        now = self._clock()
        if self._rate is not None:
            self._tokens = min(self._tokens + (now - self._last) * self._rate, self._depth(self._rate))
        self._last = now
