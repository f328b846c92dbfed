# SPDX-License-Identifier: Apache-2.0
"""For how long vCPUs have stood still since a page was not here: time in which they did nothing."""

from __future__ import annotations

from collections.abc import Callable

__all__ = ["Standing"]


class Standing:
    """Times of all vCPUs, by `clock`. Whoever uses it holds a lock."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._since: dict[int, float] = {}  # when those began that stand still
        self._seconds: dict[int, float] = {}  # how long others did, before

    def begins(self, vcpu: int) -> None:
        """It stands still, if it does not already."""
        self._since.setdefault(vcpu, self._clock())

    def ends(self, vcpu: int) -> None:
        """It goes on, if it stood."""
        since = self._since.pop(vcpu, None)
        if since is not None:
            self._seconds[vcpu] = self._seconds.get(vcpu, 0.0) + self._clock() - since

    def seconds(self, vcpu: int) -> float:
        """How long it has stood still in all."""
        since = self._since.get(vcpu)
        return self._seconds.get(vcpu, 0.0) + (self._clock() - since if since is not None else 0.0)
