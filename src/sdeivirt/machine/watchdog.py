# SPDX-License-Identifier: Apache-2.0
"""A limit on how long one SDEI handler may run."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from ..sdei.model import Handler, Pe
from ..sdei.observer import Observer

if TYPE_CHECKING:
    from .base import Machine

__all__ = ["Watchdog"]


class Watchdog(Observer):
    """Faults a vCPU whose SDEI handler runs for longer than `limit` seconds.

    A handler that ran already when the guest came here, or that registers have set running, is timed from
    where it goes on. Time in which the VM is paused does not count, nor does that in which a vCPU waits for a page.
    A PE that has masked itself in its handler means to stay there: so does Linux with CPUs that it has given up.
    """

    def __init__(
        self,
        machine: Machine,
        limit: float,
        stood: Callable[[int], float] = lambda _: 0.0,
        goes_on: Callable[[int], None] = lambda _: None,
    ) -> None:
        """`stood` says for how many seconds a vCPU has waited for pages in all.

        `goes_on` is told that a vCPU has entered a handler, also one that was waiting.
        """
        self._machine = machine
        self._limit = limit
        self._stood, self._goes_on = stood, goes_on
        self._since: dict[tuple[int, int], float] = {}  # by the time of that PE, see _time()
        self._looked = 0.0
        self._paused = 0.0  # seconds, as far as we have seen
        self._stop = threading.Event()
        machine.firmware.sdei.observe(self)

    def delivered(self, pe: Pe, handler: Handler) -> None:
        self._goes_on(pe.index)
        self._since[pe.index, handler.event.number] = self._time(pe.index, time.monotonic())

    def completed(self, pe: Pe, handler: Handler, failed: bool) -> None:
        self._since.pop((pe.index, handler.event.number), None)

    def _time(self, pe: int, now: float) -> float:
        """A clock that stands still while the PE does."""
        return now - self._stood(pe) - self._paused

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
            if not runs:
                self._paused += now - self._looked
            self._looked = now
            times = {index: self._time(index, now) for index, _ in running}
            self._since = {key: min(times[key[0]], self._since.get(key, times[key[0]])) for key in running}
            return [
                key
                for key, since in self._since.items()
                if times[key[0]] - since > self._limit and not pes[key[0]].masked
            ]

    def _watch(self) -> None:
        self._looked = time.monotonic()
        while not self._stop.wait(min(self._limit / 4, 0.25)):
            for index, event in self.late(time.monotonic()):
                self._machine.stuck(index, event, self._limit)
                return
