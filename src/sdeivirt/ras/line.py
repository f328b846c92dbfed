# SPDX-License-Identifier: Apache-2.0
"""One source of errors: the reports that wait for their turn, and what becomes of each.

A report is put into the source's block once the one before has been acknowledged, and its event is injected. It
is over when the guest has acknowledged it and the handler has ended.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ..errors import MovedError, StateError, TimeLimitError
from ..sdei.model import Handler, Pe
from .outcome import REASONS, Outcome
from .slot import Slot
from .window import Window

if TYPE_CHECKING:
    from ..machine.base import Machine

__all__ = ["MAX_QUEUE", "Line", "Report"]

_log = logging.getLogger(__name__)

MAX_QUEUE = 1024
_LOOK_SECONDS = 0.05  # how often to look for what nobody tells: the end of the machine, a late acknowledgement


@dataclass(slots=True, eq=False)
class Report:
    """An error on its way. `quiet`: nobody waits to hear what becomes of it."""

    block: bytes
    vcpu: int | None
    limit: float
    quiet: bool = False
    done: Future[Outcome] = field(default_factory=Future)
    since: float | None = None  # when it was put into the block
    verdict: Outcome | StateError | None = None  # a reset has decided
    reminded: bool = False  # of the report before: the guest has been told of it once more
    claimed: bool | None = None

    def claim(self) -> bool:
        """From now on it cannot be called off; False where it has been. Can be called twice."""
        if self.claimed is None:
            self.claimed = self.done.set_running_or_notify_cancel()
        return self.claimed


class Line:
    """A source and its reports. All but the thread's methods with the machine's lock held."""

    def __init__(self, machine: Machine, window: Window) -> None:
        self.source = window.source
        self.slot = Slot(machine, window)
        self._machine = machine
        self._waiting: deque[Report] = deque()
        self._changed = threading.Condition(machine.lock)
        self._thread: threading.Thread | None = None

    def left(self, pe: Pe, handler: Handler) -> None:
        """The handler of its event has ended on a PE."""
        self.slot.left(pe, handler)
        self._changed.notify_all()

    def reset(self) -> None:
        """The system is about to be reset: what was reported is gone, and so is what waits."""
        panicked, hint = self.slot.panicked(), "report it again when the guest is up"
        for report in self._waiting:
            if report.since is None:
                report.verdict = StateError("the guest was reset before the error was reported", hint)
            else:
                late = StateError("the guest was reset before it had acknowledged the report", hint)
                report.verdict = panicked or late
        self.slot.reset()
        self._changed.notify_all()

    @property
    def queued(self) -> int:
        """How many reports wait for their turn."""
        return sum(report.since is None for report in self._waiting)

    def state(self) -> str:
        """Why the last report is still there, or why none can be put there for those that wait; "" if neither."""
        return self.slot.hindrance() if self.queued else self.slot.state()

    def why_busy(self) -> str:
        """Why a report would have to wait for others, for people; "" if it would not."""
        if not self._waiting and self.slot.is_free():
            return ""
        return REASONS[self.slot.hindrance()]

    # -- reports

    def submit(self, report: Report) -> None:
        """Get in line. Raises StateError where that is too long."""
        if len(self._waiting) >= MAX_QUEUE:
            raise StateError(f"{MAX_QUEUE} reports of source {self.source.number} wait already", "let them be read")
        self._waiting.append(report)
        self._changed.notify_all()
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name=f"errors-{self.source.number}", daemon=True)
            self._thread.start()

    def _work(self) -> None:
        """The line's thread: report after report, until there is none."""
        while True:
            with self._changed:
                if not self._waiting:
                    self._thread = None
                    return
                report = self._waiting[0]
            outcome: Outcome | None = None
            failure: BaseException | None = None
            try:
                outcome = self._report(report)
            except BaseException as error:  # whoever asked is told, and the next is served
                failure = error
            with self._changed:
                self._waiting.popleft()
            self._tell(report, outcome, failure)

    def _tell(self, report: Report, outcome: Outcome | None, failure: BaseException | None) -> None:
        if report.quiet and failure is not None:
            _log.warning("an error that was queued for source %d: %s", self.source.number, failure)
        if not report.claim():
            return
        if failure is not None:
            report.done.set_exception(failure)
        elif outcome is not None:
            report.done.set_result(outcome)

    def _report(self, report: Report) -> Outcome | None:
        """See to it that a report is put into the block and read; None where it was called off before."""
        until = time.monotonic() + report.limit
        while True:
            with self._changed:
                if report.since is None and report.done.cancelled():
                    return None
                if (over := self._over(report)) is not None:
                    return over
                self._push(report)
                kicks = self._machine.firmware.take_kicks()
                if not kicks:
                    left = until - time.monotonic()
                    if left <= 0:
                        return self._late(report)
                    self._changed.wait(min(left, _LOOK_SECONDS))
            if kicks:
                self._machine.kick(kicks)

    def _push(self, report: Report) -> None:
        """Do what can be done for a report: fill the block, or have the guest told of what is in it."""
        slot = self.slot
        if slot.is_free():
            if report.since is None:
                report.since = slot.put(report.block, report.vcpu, report.claim)
        elif not slot.announce() and report.since is None and not report.reminded:
            report.reminded = slot.announce(again=True)

    def _over(self, report: Report) -> Outcome | None:
        """There is nothing to wait for any more: it has been read, or nobody is there any more who could.

        Raises StateError, MovedError where it was not read.
        """
        machine, slot = self._machine, self.slot
        if report.verdict is not None:
            if isinstance(report.verdict, StateError):
                raise report.verdict
            return report.verdict
        read = None
        if report.since is not None:
            if (panicked := slot.panicked()) is not None:  # Linux acknowledges, and panics then
                return panicked
            read = slot.read(report.since) if slot.is_free() else None
            if read is not None and (slot.is_over() or slot.has_panicked() or machine.state == "stopped"):
                return read
        if slot.has_panicked():
            raise StateError("the guest's kernel has panicked: the report was not read", "start another VM")
        if machine.state != "stopped":
            return None
        if machine.leaving:
            where = "is in its block, and is read where the guest is now" if report.since else "was not reported"
            raise MovedError(f"the guest has moved: the error {where}", "see `sdeivirt status` there")
        raise StateError("the VM has ended before the guest had read the report", "start another")

    def _late(self, report: Report) -> Outcome:
        number, limit, slot = self.source.number, report.limit, self.slot
        if report.since is None:
            of = "" if slot.is_free() else "of the report before, "
            raise TimeLimitError(
                f"source {number} was not free within {limit:g} s: {of}{REASONS[slot.hindrance()]}",
                "nothing was overwritten, and nothing reported; --when-busy queue does not wait",
            )
        if slot.is_free():  # all that was asked for; its handler goes on
            return slot.read(report.since)
        raise TimeLimitError(
            f"the guest has not acknowledged the report of source {number} within {limit:g} s: {REASONS[slot.state()]}",
            "it stays in its block; `sdeivirt status` shows when it is read",
        )
