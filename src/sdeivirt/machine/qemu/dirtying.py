# SPDX-License-Identifier: Apache-2.0
"""Which pages of RAM the guest writes: its CPUs by write faults of stage 2, its devices by digests.

The log is machine/dirty.py's. What is QEMU's own about it:

- A fault is a request of the monitor, answered by "try again".
- Whoever takes rights away has TLBs flushed by a vCPU, see flush.py. While the guest
  is stopped no vCPU can do that: what is collected then is owed a flush, and
  as soon as the guest has run it counts as written once more.
- A vCPU that begins pages too fast sleeps in the monitor until its time comes; a kick for an
  event wakes it, and then it asks again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from ..base import PAGE_SIZE, RAM_BASE
from ..dirty import DirtyLog, union
from ..stage2 import Stage2
from .dma import DeviceWrites
from .flush import Flusher

__all__ = ["Dirtying"]


class Dirtying:
    """The dirty log of one QEMU with its RAM.

    `run` runs a coroutine on the event loop from another thread and waits for it. `kick` stops vCPUs;
    `online` is the bitmap of those that can be stopped. `devices` says whether there are any that write RAM.
    """

    def __init__(
        self,
        stage2: Stage2,
        ram: memoryview,
        run: Callable[[Coroutine[Any, Any, bool]], bool],
        kick: Callable[[int], None],
        online: Callable[[], int],
        *,
        devices: bool,
    ) -> None:
        self.stage2 = stage2
        self._ram = ram
        self._run = run
        self._kick = kick
        self._devices = devices
        self._writes: DeviceWrites | None = None
        self.log = DirtyLog(stage2, RAM_BASE, len(ram))
        self.flusher = Flusher(kick, online)
        self._running = False
        self._runs = 0  # how often the guest has gone on
        self._owed: tuple[bytearray, int] | None = None  # pages without a flush, and the run that this was in
        self._waiting: dict[int, asyncio.TimerHandle] = {}

    # -- by the thread that moves the guest

    def start(self) -> None:
        """Note writes from now on."""
        if self.stage2.resting:
            self._run(self._flush())
        self.log.start()
        flushed = self._run(self._flush())
        self._owed = None if flushed else (bytearray(b"\1") * (len(self._ram) // PAGE_SIZE), self._runs)
        self._writes = DeviceWrites(self._ram) if self._devices else None

    def start_anew(self, limit: int | None) -> None:
        """The log goes on after a reset: everything is another now, and nothing has run yet."""
        self.log.start()
        self.log.limit(limit)
        self.log.mark(RAM_BASE, len(self._ram))

    def collect(self) -> bytearray:
        """What was written, a byte a page; it is watched anew."""
        dirty = self.log.collect()
        flushed = self._run(self._flush()) if self._running else False
        owed, self._owed = self._owed, None
        if owed is not None and (flushed or owed[1] != self._runs):  # the guest has run since
            dirty, owed = union(dirty, owed[0]), None
        if not flushed:
            self._owed = (dirty[:] if owed is None else union(owed[0], dirty)), self._runs
        if self._devices and self.log.on:
            if self._writes is None:
                self._writes = DeviceWrites(self._ram)
            else:
                self._writes.add_changed(dirty)
        return dirty

    def flush(self) -> bool:
        """Have TLBs flushed; False where the guest stands still."""
        return self._run(self._flush())

    # -- on the event loop

    async def stop(self) -> None:
        """Let the guest write as it pleases."""
        self.log.stop()
        self._writes = self._owed = None
        self._let_all_go()
        await self._flush()  # so that the tables that are not needed any more can be used again

    async def limit(self, pages_per_second: int | None) -> None:
        """Hold up whoever begins more pages than that."""
        self.log.limit(pages_per_second)
        self._let_all_go()

    def stopped(self) -> None:
        """The guest has stopped, or QEMU is about to end."""
        self._running = False
        self.flusher.give_up()

    def goes_on(self) -> None:
        """The guest runs."""
        self._running = True
        self._runs += 1

    def close(self) -> None:
        """QEMU has ended."""
        self.stopped()
        self._cancel_all()

    def holds_up(self, vcpu: int) -> bool:
        """Whether a vCPU that has met a fault is to wait for a kick, which will come, before it begins a page."""
        seconds = self.log.delay(vcpu)
        if not seconds:
            return False
        before = self._waiting.pop(vcpu, None)
        if before is not None:
            before.cancel()
        self._waiting[vcpu] = asyncio.get_running_loop().call_later(seconds, self._let_go, vcpu)
        return True

    def _let_go(self, vcpu: int) -> None:
        del self._waiting[vcpu]
        self._kick(1 << vcpu)

    def _let_all_go(self) -> None:
        waiting = self._cancel_all()
        if waiting:
            self._kick(waiting)

    def _cancel_all(self) -> int:
        """No more kicks for those that wait; a bitmap of them."""
        waiting, self._waiting = self._waiting, {}
        for timer in waiting.values():
            timer.cancel()
        return sum(1 << vcpu for vcpu in waiting)

    async def _flush(self) -> bool:
        if not self._running:
            return False
        with self.log.lock:
            released = self.stage2.released
        done = await self.flusher.flush()
        if done:
            with self.log.lock:
                self.stage2.flushed(released)
        return done
