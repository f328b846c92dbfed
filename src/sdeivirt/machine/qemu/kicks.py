# SPDX-License-Identifier: Apache-2.0
"""Stopping vCPUs from outside, and making sure that they stop."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable

from ...sdei.model import bits
from .gic import Gic

__all__ = ["Kicker"]


class Kicker:
    """Kicks vCPUs through the interrupt controller, one kick at a time for each.

    `post` runs a callable on the event loop from any thread. `wanted(vcpu)`
    says whether a kick still matters: the vCPU is on and the machine not paused.
    `patience` is how many seconds a kick may take at least before it is repaired.
    """

    def __init__(
        self,
        gic: Gic,
        post: Callable[[Callable[[], object]], object],
        wanted: Callable[[int], bool],
        patience: float = 0.1,
    ) -> None:
        self._gic = gic
        self._post = post
        self._wanted = wanted
        self._patience = patience
        self._lock = threading.Lock()
        self._waiting = 0  # kicked, and not come yet
        self._old = 0  # those of them that were at the last look
        self._watching = False
        self.repairs = 0
        self._tasks: set[asyncio.Task[None]] = set()

    def kick(self, bitmap: int) -> None:
        """Have vCPUs stop. From any thread. One that has been kicked already will see what is new as well."""
        with self._lock:
            new = bitmap & ~self._waiting
            self._waiting |= new
            start = bool(new) and not self._watching
            self._watching |= start
        if new:
            self._gic.kick(list(bits(new)))
        if start:
            self._post(self._watch)

    def arrived(self, bitmap: int) -> None:
        """These vCPUs are about to look for events, or have been turned off."""
        with self._lock:
            self._waiting &= ~bitmap
            self._old &= ~bitmap

    def _watch(self) -> None:
        asyncio.get_running_loop().call_later(self._patience, self._look)

    def _look(self) -> None:
        """A kick without effect for that long: the guest has done something to the interrupt controller."""
        with self._lock:
            late, self._old = self._old, self._waiting
            self._watching = bool(self._waiting)
        for vcpu in bits(late):
            if self._wanted(vcpu):
                self.repairs += 1
                task = asyncio.ensure_future(self._repair(vcpu))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
        if self._watching:
            self._watch()

    async def _repair(self, vcpu: int) -> None:
        with contextlib.suppress(OSError):
            await self._gic.repair(vcpu)
