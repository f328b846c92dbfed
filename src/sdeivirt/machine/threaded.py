# SPDX-License-Identifier: Apache-2.0
"""The life of a machine that has a thread of its own: started once, ended for one reason, with an outcome."""

from __future__ import annotations

import sys
import threading
from abc import abstractmethod

from ..cpu import CpuFeatures
from ..errors import StateError
from .base import ExitReason, MachineConfig, Outcome
from .paged import PagedMachine
from .report import FaultReport
from .watchdog import Watchdog

__all__ = ["ThreadedMachine"]

# While a vCPU waits for us, other Python threads must not keep the GIL for the default of 5 ms.
_SWITCH_INTERVAL = 1e-4


class ThreadedMachine(PagedMachine):
    """It remains to be said what the thread does, how it learns that the run is to end, and what to report then."""

    def __init__(self, config: MachineConfig, features: CpuFeatures | None = None) -> None:
        super().__init__(config, features)
        self._thread: threading.Thread | None = None
        self._finished = threading.Event()
        self._paused = False
        self._ending: ExitReason | None = None  # the run is to end, or has ended
        self._error: BaseException | None = None
        self._outcome: Outcome | None = None
        self._watch: Watchdog | None = None
        if config.watchdog is not None:
            self._watch = Watchdog(self, config.watchdog, self.stood, self.vcpu_goes_on)

    @abstractmethod
    def _work(self) -> None:
        """The whole run; returns some time after :attr:`_ending` has been set."""

    @abstractmethod
    def _ending_set(self) -> None:
        """Have :meth:`_work` look at :attr:`_ending`. From any thread."""

    def _final_reports(self) -> list[FaultReport]:
        """What to say of the vCPUs when the run has ended."""
        return self.faults()

    # -- the contract

    @property
    def state(self) -> str:
        if self._finished.is_set():
            return "stopped"
        if self._thread is None:
            return "created"
        return "paused" if self._paused else "running"

    def stop(self) -> None:
        self.end(ExitReason.STOPPED)

    def depart(self) -> None:
        self.end(ExitReason.MOVED)

    def abandon(self, error: BaseException) -> None:
        if self._ending is None:  # else the guest does not come because somebody has ended the machine
            self.crash(error)

    def wait(self, limit: float | None = None) -> Outcome:
        if self.state == "created":
            raise StateError("the machine has not been started", "call start() first")
        if not self._finished.wait(limit):
            self.end(ExitReason.TIME_LIMIT)
            self._finished.wait()
        if self._error is not None:
            raise self._error
        assert self._outcome is not None
        return self._outcome

    def close(self) -> None:
        if self._thread is not None:
            self.end(ExitReason.STOPPED)
            self._thread.join()

    # -- for machines

    def end(self, reason: ExitReason) -> None:
        """End the run; the first reason counts. From any thread."""
        self._ending = self._ending or reason
        if self._thread is None and self.state == "incoming":  # a guest was to come, and nothing has run
            self._outcome = Outcome(self._ending, [])
            self._finished.set()
        self._ending_set()

    def crash(self, error: BaseException) -> None:
        """A defect of the host's: end the run and raise it in wait(). From any thread."""
        self._error = self._error or error
        self.end(ExitReason.FAULT)

    def _may_load(self) -> None:
        """Raises StateError where it is too late."""
        if self._thread is not None:
            raise StateError("a guest is loaded before the machine starts")

    def _start_thread(self, loaded: bool) -> None:
        """The first instruction is about to be executed. Raises StateError where there is none, or has been."""
        if not loaded:
            raise StateError("no guest is loaded", "call load() first")
        if self._thread is not None:
            raise StateError("the machine has been started already")
        self.firmware.freeze()
        self._thread = threading.Thread(target=self._run, name=f"{self.config.name}-{self.kind}", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        interval = sys.getswitchinterval()
        sys.setswitchinterval(min(interval, _SWITCH_INTERVAL))
        if self._watch is not None:
            self._watch.start()
        try:
            self._work()
        except BaseException as error:
            self.crash(error)
        finally:
            if self._watch is not None:
                self._watch.cancel()
            sys.setswitchinterval(interval)
            self._outcome = Outcome(self._ending or ExitReason.FAULT, self._final_reports())
            self._finished.set()
            self._ending_set()
