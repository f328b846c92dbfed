# SPDX-License-Identifier: Apache-2.0
"""A limit on how long one SDEI handler may run."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

from ..sdei.model import Handler, Pe
from ..sdei.observer import Observer

if TYPE_CHECKING:
    from .base import Machine

__all__ = ["Watchdog"]


class Watchdog(Observer):
    """Faults a vCPU whose SDEI handler runs for longer than `limit` seconds.

    A handler that ran already when the guest came here, or that registers have set running, is timed from
    where it goes on. Time in which the VM is paused does not count.
    A PE that has masked itself in its handler means to stay there: so does Linux with CPUs that it has given up.
    """

    def __init__(self, machine: Machine, limit: float) -> None:
        self._machine = machine
        self._limit = limit
        self._since: dict[tuple[int, int], float] = {}
        self._looked = 0.0
        self._stop = threading.Event()
        machine.firmware.sdei.observe(self)

    def delivered(self, pe: Pe, handler: Handler) -> None:
        self._since[pe.index, handler.event.number] = time.monotonic()

    def completed(self, pe: Pe, handler: Handler, failed: bool) -> None:
        self._since.pop((pe.index, handler.event.number), None)

    def start(self) -> None:
        threading.Thread(target=self._watch, name="watchdog", daemon=True).start()

    def cancel(self) -> None:
        self._stop.set()

    def late(self, now: float) -> list[tuple[int, int]]:
        """PEs and events whose handlers have run for too long; `now` is time.monotonic(), and never goes back."""
        runs = self._machine.state == "running"
        with self._machine.lock:
            pes = self._machine.firmware.pes
            running = {
                (pe.index, frame.handler.event.number)
                for pe in pes
                for frame in (pe.normal, pe.critical)
                if frame is not None
            }
            stood = 0.0 if runs else now - self._looked
            self._since = {key: min(now, self._since.get(key, now) + stood) for key in running}
            self._looked = now
            return [key for key, since in self._since.items() if now - since > self._limit and not pes[key[0]].masked]

    def _watch(self) -> None:
        self._looked = time.monotonic()
        while not self._stop.wait(min(self._limit / 4, 0.25)):
            for index, event in self.late(time.monotonic()):
                self._machine.stuck(index, event, self._limit)
                return
