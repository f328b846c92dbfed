# SPDX-License-Identifier: Apache-2.0
"""Reports of errors on their way into a guest: one at a time for each source, and what becomes of each.

A block that the guest has not acknowledged is not overwritten (ACPI 6.3, 18.3.2.8). So each source has a
line of reports, and a thread that takes the first, waits until the block is free, fills it, has the
event injected, and waits until its handler has ended. Sources do not wait for each other.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ..errors import MovedError, StateError, TimeLimitError, UsageError
from ..sdei.model import Handler, Pe
from ..sdei.observer import Observer
from ..sdei.states import State
from .window import BLOCK_SIZE, Window

if TYPE_CHECKING:
    from ..machine.base import Machine
    from ..machine.report import ErrorSourceStatus

__all__ = ["MAX_QUEUE", "REASONS", "WAYS", "BusyError", "ErrorDesk", "Outcome"]

WAYS = ("wait", "fail", "queue")
MAX_QUEUE = 1024
_LOOK_SECONDS = 0.05  # how often to look for what nobody tells: the end of the machine, a late acknowledgement

# Why a report has not been acknowledged, for people; `status` has the words.
REASONS = {
    "": "the guest is about to take it",
    "unregistered": "the guest has not registered its event",
    "disabled": "the guest has its event disabled",
    "running": "the handler of its event runs",
    "masked": "the PE that is to take its event has masked events",
    "offline": "the PE that is to take its event is off",
    "busy": "the PE that is to take its event runs another handler",
    "paused": "the VM is paused",
    "delivered": "its handler runs",
    "unread": "its handler has ended without reading it",
    "absent": "the memory of the block is not here yet",
}


class BusyError(StateError):
    """A report waits in the block, and the caller did not want to wait."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What has become of a report.

    `outcome` is "acknowledged", "panicked" (the guest's kernel, on reading it) or "queued". `vcpu` is the
    PE whose handler read it; `seconds` the time from injection to the end of the handler. None where there is none.
    """

    source: int
    event: int
    outcome: str
    vcpu: int | None = None
    seconds: float | None = None


@dataclass(slots=True, eq=False)
class _Report:
    block: bytes
    vcpu: int | None
    limit: float
    done: Future[Outcome] = field(default_factory=Future)


class _Line(Observer):
    """A source, its reports, and what has become of the last one. All but the thread's methods with the lock held."""

    def __init__(self, machine: Machine, window: Window) -> None:
        self.window = window
        self.source = window.source
        self.waiting: deque[_Report] = deque()
        self.reported = 0
        self.acknowledged = 0
        self._machine = machine
        self._changed = threading.Condition(machine.lock)
        self._thread: threading.Thread | None = None
        self._target: Handler | None = None  # whom the last report was announced to
        self._seen = 0  # how often that had been entered before
        self._ended: tuple[float, int] | None = None  # its last end: when, and on which PE

    # -- told by the service

    def completed(self, pe: Pe, handler: Handler, failed: bool) -> None:
        if handler is self._target:
            self._ended = time.monotonic(), pe.index
            self._changed.notify_all()

    def abandoned(self, pe: Pe) -> None:
        self._changed.notify_all()

    # -- what there is to know

    def is_free(self) -> bool:
        """Whether the guest has read what was last reported."""
        if self.reported > self.acknowledged and self.window.acknowledged(self._machine.physical):
            self.acknowledged = self.reported
        return self.reported == self.acknowledged

    def state(self) -> str:
        """Why the last report is still there; "" if it is not."""
        if self.is_free():
            return ""
        handler = self._target
        if self.window.status(self._machine.physical) is None:
            return "absent"
        if handler is None or not handler.state & State.REGISTERED:
            return "unregistered"
        if handler.running_on is not None:
            return "delivered"
        if not handler.pending:
            return "unread"
        paused = "paused" if self._machine.state == "paused" else ""
        return self._machine.firmware.sdei.why_it_waits(handler) or paused

    def why_not(self) -> str:
        """The same, for people."""
        return REASONS[self.state()]

    # -- reports

    def submit(self, report: _Report) -> None:
        """Get in line. Raises StateError where that is too long."""
        if len(self.waiting) >= MAX_QUEUE:
            raise StateError(f"{MAX_QUEUE} reports of source {self.source.number} wait already", "let them be read")
        self.waiting.append(report)
        self._changed.notify_all()
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name=f"errors-{self.source.number}", daemon=True)
            self._thread.start()

    def _work(self) -> None:
        """The line's thread: report after report, until there has been none for a while."""
        while True:
            with self._changed:
                if not self.waiting:
                    self._thread = None
                    return
                report = self.waiting[0]
            outcome: Outcome | None = None
            failure: BaseException | None = None
            try:
                outcome = self._report(report)
            except BaseException as error:  # whoever asked is told, and the next is served
                failure = error
            with self._changed:
                self.waiting.popleft()
            if not report.done.set_running_or_notify_cancel():
                continue
            if failure is not None:
                report.done.set_exception(failure)
            elif outcome is not None:
                report.done.set_result(outcome)

    def _report(self, report: _Report) -> Outcome:
        until = time.monotonic() + report.limit
        injected: float | None = None
        while True:
            with self._changed:
                if (over := self._over(injected is not None)) is not None:
                    return over
                if injected is None:
                    if self.is_free() and not self._machine.leaving:
                        injected = self._put(report)
                        kicks = self._machine.firmware.take_kicks()
                    else:
                        kicks = 0
                else:
                    kicks = 0
                    if (outcome := self._end(injected)) is not None:
                        return outcome
                if not kicks:
                    left = until - time.monotonic()
                    if left <= 0:
                        raise self._late(injected is not None, report.limit)
                    self._changed.wait(min(left, _LOOK_SECONDS))
            if kicks:
                self._machine.kick(kicks)

    def _over(self, injected: bool) -> Outcome | None:
        """The machine has ended: with a panic that a report led to, or raises StateError."""
        machine = self._machine
        if injected and machine.panicked:
            vcpu = self._target.running_on.index if self._target and self._target.running_on else None
            return Outcome(self.source.number, self.source.event, "panicked", vcpu)
        if machine.state != "stopped":
            return None
        if machine.leaving:
            raise MovedError("the guest has moved before the error was reported", "report it where the guest is now")
        raise StateError("the VM has ended before the guest had read the report", "start another")

    def _put(self, report: _Report) -> float | None:
        """Fill the block and have the event injected; when that was, None where the memory is not here yet."""
        sdei = self._machine.firmware.sdei
        target = sdei.handler(self.source.event, report.vcpu)
        if not self.window.fill(self._machine.physical, report.block):
            return None
        self.reported += 1
        self._target, self._ended = target, None
        began = time.monotonic()
        sdei.inject(self.source.event, report.vcpu)
        return began

    def _end(self, injected: float) -> Outcome | None:
        """What became of the report that is in the block, once its handler has ended and the guest has read it."""
        if self._ended is None or not self.is_free():
            return None
        when, vcpu = self._ended
        return Outcome(self.source.number, self.source.event, "acknowledged", vcpu, when - injected)

    def _late(self, injected: bool, limit: float) -> TimeLimitError:
        if injected:
            return TimeLimitError(
                f"the guest has not acknowledged the report of source {self.source.number} within {limit:g} s: "
                f"{self.why_not()}",
                "it stays in its block; `sdeivirt status` shows when it is read",
            )
        return TimeLimitError(
            f"source {self.source.number} was not free within {limit:g} s: of the report before, {self.why_not()}",
            "nothing was overwritten, and nothing reported; --when-busy queue does not wait",
        )


class ErrorDesk:
    """Where a machine's sources of errors are. From any thread."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._lines: dict[int, _Line] = {}

    def open(self, windows: list[Window]) -> None:
        """The sources, by where their windows are. Once, before the guest runs."""
        for window in windows:
            line = _Line(self._machine, window)
            self._lines[window.source.number] = line
            self._machine.firmware.sdei.observe(line)

    def submit(
        self, block: bytes, source: int = 0, vcpu: int | None = None, *, when_busy: str = "wait", limit: float = 10.0
    ) -> Future[Outcome]:
        """Report an error by a source: `block` is a generic error status block (ACPI 6.3, 18.3.2.7.1).

        What becomes of it is in the future: an :class:`Outcome`, or TimeLimitError after `limit` seconds,
        NotRegisteredError, MovedError, StateError. If the report before has not been acknowledged, `when_busy` says
        whether to "wait" for that, to "fail" with BusyError, or to "queue" it and be told no more.
        `vcpu` is for sources with a private event. Raises UsageError, UnknownVcpuError, NotRegisteredError, StateError.
        """
        if when_busy not in WAYS:
            raise UsageError(f"there is no way {when_busy!r} to treat a busy source", f"there are {', '.join(WAYS)}")
        line = self._line(source)
        if not 4 <= len(block) <= BLOCK_SIZE:
            raise UsageError(f"a block of {len(block)} bytes cannot be reported", f"there is room for {BLOCK_SIZE}")
        report = _Report(bytes(block), vcpu, limit)
        with self._machine.lock:
            state = self._machine.state
            if state not in ("running", "paused"):
                raise StateError(f"the VM is {state}: no error can be reported", "wait for the guest, or start another")
            self._machine.firmware.sdei.handler(line.source.event, vcpu)
            busy = bool(line.waiting) or not line.is_free()
            if busy and when_busy == "fail":
                raise BusyError(
                    f"source {source} is busy: of the report before, {line.why_not()}",
                    "wait until it is acknowledged, or say --when-busy wait or queue",
                )
            if when_busy == "queue":
                report.limit = float("inf")
            line.submit(report)
        if when_busy == "queue":
            queued: Future[Outcome] = Future()
            queued.set_result(Outcome(source, line.source.event, "queued"))
            return queued
        return report.done

    def _line(self, source: int) -> _Line:
        line = self._lines.get(source)
        if line is None:
            known = ", ".join(map(str, self._lines)) if self._lines else "none"
            how = "sources are in the event file; the machine has to boot by ACPI: run --firmware acpi"
            raise UsageError(f"the VM has no error source {source}", f"it has {known}; {how}")
        return line

    def status(self) -> list[ErrorSourceStatus]:
        """Of all sources; with the lock held."""
        from ..machine.report import ErrorSourceStatus

        return [
            ErrorSourceStatus(
                number=line.source.number,
                event=line.source.event,
                ghes=line.source.ghes,
                address=line.window.address,
                state=line.state(),
                block_status=line.window.status(self._machine.physical),
                queued=max(0, len(line.waiting) - (line.reported > line.acknowledged)),
                reported=line.reported,
                acknowledged=line.acknowledged,
            )
            for line in self._lines.values()
        ]
