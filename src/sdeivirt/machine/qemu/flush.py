# SPDX-License-Identifier: Apache-2.0
"""TLB flushes: stage 2 has lost rights, and no vCPU may go on as if it had not.

A flush is something that one vCPU does for all (TLBI VMALLS12E1IS), in the
monitor. So one is kicked; whichever comes to us first, for whatever reason,
gets the flush as its answer, and asks again when all others have followed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

__all__ = ["Flusher"]


class Flusher:
    """The flushes of a machine. On its event loop.

    `kick` stops vCPUs, `online` gives a bitmap of those that can be stopped.
    """

    def __init__(self, kick: Callable[[int], None], online: Callable[[], int]) -> None:
        self._kick = kick
        self._online = online
        self.wanted = False  # the next vCPU that comes is to do it
        self._by: int | None = None  # who has been told to
        self._waiting: list[asyncio.Future[bool]] = []

    async def flush(self) -> bool:
        """Have all TLBs flushed after what has been written to the tables; False if that was given up."""
        future: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._waiting.append(future)
        self.wanted, self._by = True, None  # one that is under way may be too early
        self._kick_one()
        return await future

    def _kick_one(self) -> None:
        online = self._online()
        if online:
            self._kick(online & -online)
        else:
            self._finish(True)  # each flushes its own when it comes up

    def offer(self, vcpu: int) -> None:
        """This vCPU's answer is to flush."""
        self.wanted, self._by = False, vcpu

    def flushed(self, vcpu: int) -> None:
        """A vCPU has done it."""
        if vcpu == self._by:
            self._finish(True)

    def gone(self) -> None:
        """A vCPU has been turned off, perhaps the one that was kicked."""
        if self.wanted:
            self._kick_one()

    def give_up(self) -> None:
        """No vCPU goes on for now. The flush is still done by the first that comes."""
        waiting, self._waiting = self._waiting, []
        for future in waiting:
            if not future.done():
                future.set_result(False)

    def _finish(self, done: bool) -> None:
        self.wanted, self._by = False, None
        waiting, self._waiting = self._waiting, []
        for future in waiting:
            if not future.done():
                future.set_result(done)
