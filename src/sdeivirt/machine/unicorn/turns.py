# SPDX-License-Identifier: Apache-2.0
"""Whose turn it is: the vCPUs that can run, and those of them that are held up for a while."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable

from .vcpu import UnicornVcpu, VcpuState

__all__ = ["Turns"]


class Turns:
    """The queue of vCPUs that can run; the one in front is next. On the machine's thread alone."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.queue: deque[UnicornVcpu] = deque()
        self.early = 0  # those that stand there before their turn, as a bitmap
        self.in_turn = True  # the last slice was not given to one of them
        self._held: dict[UnicornVcpu, float] = {}  # out of turn until that time
        self._clock = clock

    def append(self, vcpu: UnicornVcpu) -> None:
        """One more can run."""
        self.queue.append(vcpu)

    def begin(self, vcpu: UnicornVcpu) -> None:
        """One of the queue is given a slice."""
        self.in_turn = not self.early & vcpu.pe.bit
        self.early &= ~vcpu.pe.bit

    def end(self, vcpu: UnicornVcpu) -> None:
        """Its slice has ended: to the end of the queue, or out of it."""
        if self.queue[0] is vcpu:
            self.queue.popleft()
        else:
            self.queue.remove(vcpu)
        if vcpu.state is VcpuState.RUNNABLE and vcpu not in self._held:
            self.queue.append(vcpu)

    def woken(self, vcpu: UnicornVcpu) -> None:
        """One that was kicked can run now, and goes first.

        Not twice in a row: two that kick each other would starve the rest.
        """
        if self.in_turn:
            self.queue.appendleft(vcpu)
            self.early |= vcpu.pe.bit
        else:
            self.queue.append(vcpu)

    def hurry(self, vcpu: UnicornVcpu) -> None:
        """One that could run anyway was kicked."""
        if self._held.pop(vcpu, None) is not None:
            self.woken(vcpu)
        elif self.in_turn and self.queue[0] is not vcpu:
            self.queue.remove(vcpu)
            self.woken(vcpu)

    # -- held up

    @property
    def held(self) -> list[UnicornVcpu]:
        """Those that could run, but for their time."""
        return list(self._held)

    def hold(self, vcpu: UnicornVcpu, seconds: float) -> None:
        """The one whose slice it is stays out of turn for that long, math.inf until it is released."""
        self._held[vcpu] = self._clock() + seconds

    def release(self, vcpu: UnicornVcpu) -> None:
        """One that may have been held up can run again."""
        if self._held.pop(vcpu, None) is not None and vcpu.state is VcpuState.RUNNABLE:
            self.woken(vcpu)

    def let_go(self, all_of_them: bool = False) -> None:
        """Those whose time has come can run again."""
        now = self._clock()
        for vcpu, until in list(self._held.items()):
            if all_of_them or until <= now:
                del self._held[vcpu]
                if vcpu.state is VcpuState.RUNNABLE:
                    self.queue.append(vcpu)

    def next_due(self) -> float | None:
        """Seconds until the next one's time comes, None where no time will bring that about."""
        first = min(self._held.values(), default=math.inf)
        return max(first - self._clock(), 0.0) if first < math.inf else None

    def clear(self) -> None:
        """The system was reset."""
        self.queue.clear()
        self._held.clear()
        self.early, self.in_turn = 0, True
