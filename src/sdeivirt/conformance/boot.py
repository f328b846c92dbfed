# SPDX-License-Identifier: Apache-2.0
"""One boot of the suite's guest: its output read, its requests answered, its time limited.

The machine's console hands its output to a queue; what is in it is read and
answered on the caller's thread, so that the machine never waits for us and we hold
none of its locks.
"""

from __future__ import annotations

import queue
import threading
import time
import traceback
from collections.abc import Callable

from ..errors import SdeivirtError
from ..machine import ExitReason, Machine, Outcome
from .host import HostLink
from .tap import Event, Kind, TapParser

__all__ = ["Boot"]

_TYPE_PAUSE = 0.005
_WHY = {
    ExitReason.POWER_OFF: "the guest powered the machine off (PSCI SYSTEM_OFF)",
    ExitReason.RESET: "the guest reset the machine (PSCI SYSTEM_RESET)",
    ExitReason.PANIC: "the guest panicked",
    ExitReason.FAULT: "a vCPU could not go on",
    ExitReason.STOPPED: "somebody stopped the machine",
    ExitReason.ALL_OFF: "every vCPU turned itself off (PSCI CPU_OFF)",
}


class Boot:
    """One boot: reads and answers until the machine has ended."""

    def __init__(
        self, parser: TapParser, machine: Machine, limit: float, tell: Callable[[Event], str]
    ) -> None:  # fmt: skip
        self._parser = parser
        self._machine = machine
        self._limit = limit
        self._tell = tell
        self._link = HostLink(machine)
        self._items: queue.SimpleQueue[bytes | Outcome | BaseException] = queue.SimpleQueue()
        self._until = 0.0
        self._began = 0.0
        self.timed_out = False
        self.engine = ""
        machine.console = self._items.put

    def to_the_end(self) -> tuple[str, str]:
        """Run the loaded machine.

        Why it ended, "" after a complete suite and a power-off; and reports of what there was to see.
        """
        self._more_time()
        self._machine.start()
        if details := self._machine.details():
            self.engine = f"QEMU {details['qemu']}, {details['cpu']}"
        threading.Thread(target=self._wait, name="conform-wait", daemon=True).start()
        while True:
            left = self._until - time.monotonic()
            try:
                if left <= 0:
                    raise queue.Empty
                item = self._items.get(timeout=left)
            except queue.Empty:
                return self._time_is_up()
            if isinstance(item, bytes):
                why = self._read(item)
                if why:
                    self._machine.stop()
                    return why, ""
            elif isinstance(item, Outcome):
                return self._ended(item)
            else:
                return self._broken(item)

    def _wait(self) -> None:
        """On a thread of its own: the machine's end comes behind all of its output."""
        try:
            self._items.put(self._machine.wait())
        except BaseException as error:
            self._items.put(error)

    def _more_time(self) -> None:
        self._until = time.monotonic() + self._limit

    def _read(self, data: bytes) -> str:
        now = time.monotonic()
        for event in self._parser.feed(data):
            why = self._tell(event)
            if why:
                return why
            if event.kind is Kind.HOST:
                self._answer(event.text)
            elif event.kind is Kind.RUN:
                self._began = now
                self._more_time()
            elif event.kind is Kind.VERDICT:
                stream = self._parser.stream
                assert stream is not None
                stream.records[event.text].seconds = now - self._began if self._began else None
                self._more_time()
            elif event.kind is Kind.DONE:
                self._more_time()
        return ""

    def _answer(self, request: str) -> None:
        data = self._link.answer(request)
        while time.monotonic() < self._until:
            data = data[self._machine.type_in(data) :]
            if not data or self._machine.state == "stopped":
                return
            time.sleep(_TYPE_PAUSE)  # the guest has to read what came before

    # -- ends

    @property
    def _complete(self) -> bool:
        return self._parser.stream is not None and self._parser.stream.done

    def _ended(self, outcome: Outcome) -> tuple[str, str]:
        detail = "\n\n".join(fault.render() for fault in outcome.faults)
        if self._complete and outcome.reason is ExitReason.POWER_OFF:
            return "", ""
        why = _WHY[outcome.reason]
        if outcome.faults and outcome.reason is ExitReason.FAULT:
            fault = outcome.faults[0]
            why = f"vCPU {fault.vcpu} could not go on: {fault.reason}"
        return why, detail

    def _time_is_up(self) -> tuple[str, str]:
        self.timed_out = True
        outcome = self._machine.wait(0)
        # What was printed at the last moment is as good as the rest.
        while isinstance(item := self._last_item(), bytes):
            self._parser.feed(item)
        if outcome.reason is not ExitReason.TIME_LIMIT:
            return self._ended(outcome)
        return (
            f"nothing happened for {self._limit:g} s" if self._complete else f"it took longer than {self._limit:g} s",
            "\n\n".join(fault.render() for fault in outcome.faults),
        )

    def _last_item(self) -> bytes | Outcome | BaseException | None:
        try:
            return self._items.get_nowait()
        except queue.Empty:
            return None

    def _broken(self, error: BaseException) -> tuple[str, str]:
        """The machine itself has failed: that is a failure of whatever the guest was doing."""
        if isinstance(error, SdeivirtError):
            return f"the machine ended: {error}", ""
        text = "".join(traceback.format_exception(error))
        return f"the machine failed: {type(error).__name__}: {error}", text
