# SPDX-License-Identifier: Apache-2.0
"""When to stop the guest, and when to hold it up: the policy of pre-copy. It knows neither RAM nor sockets.

Each pass sends the pages that the guest wrote during the one before. What the
last pass of all sends is sent while the guest is stopped, so it has to fit the
downtime that is allowed. A guest that writes faster than the link carries never gets
there by itself: its vCPUs are held up more and more when they begin to write a page.

What is allowed need not be used up: while passes get shorter by themselves, another one costs no more time than
the guest would be stopped for, and it runs meanwhile.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Convergence", "Step"]

PAGE = 4096
# A pass that leaves more than this part of the pages before it has not brought us nearer.
_PROGRESS = 0.7
# Held up for the first time to half of what the link carries, then to half of that, and so on.
_FIRST = 0.5
_AGAIN = 0.5
_LOWEST = 1  # page a second
_SHORT = 0.01  # seconds of downtime that are not worth another pass
_SMOOTH = 0.5
_HOPE = 8  # times that the vCPUs are held up more, and that was of no use


@dataclass(frozen=True, slots=True)
class Step:
    """What is next: stop the guest, or another pass with so many new pages a second at most (None: no limit).

    `hopeless`: by all that has been seen the guest will never fit the downtime that is allowed.
    """

    stop: bool
    limit: int | None
    expected_downtime: float
    hopeless: bool = False


class Convergence:
    """Ask :meth:`next` after each pass. `downtime` is in seconds."""

    def __init__(self, downtime: float) -> None:
        self.downtime = downtime
        self.rate = 0.0  # pages a second that the link carries
        self.limit: int | None = None
        self._before: int | None = None
        self._held_up = 0  # times that it was held up more

    def sent(self, pages: int, seconds: float) -> None:
        """A pass, or a part of it, carried so many pages."""
        if pages <= 0 or seconds <= 0:
            return
        rate = pages / seconds
        self.rate = rate if not self.rate else self.rate * _SMOOTH + rate * (1 - _SMOOTH)

    def expected(self, dirty: int) -> float:
        """How long the guest would be stopped if it were now, in seconds."""
        return dirty / self.rate if self.rate else 0.0

    def next(self, dirty: int) -> Step:
        """After a pass: `dirty` pages were written meanwhile."""
        expected = self.expected(dirty)
        before, self._before = self._before, dirty
        if expected <= self.downtime or not dirty:
            nearer = before is None or dirty <= before * _PROGRESS
            return Step(not (nearer and expected > _SHORT and self.limit is None), self.limit, expected)
        if before is not None and dirty > before * _PROGRESS:
            wanted = self.rate * _FIRST if self.limit is None else self.limit * _AGAIN
            self.limit = max(int(wanted), _LOWEST)
            self._held_up += 1
        # A page that takes longer by itself than the guest may be stopped for can never be the last.
        hopeless = self.expected(1) > self.downtime or self._held_up >= _HOPE or self.limit == _LOWEST
        return Step(False, self.limit, expected, hopeless)
