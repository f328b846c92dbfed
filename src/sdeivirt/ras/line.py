# SPDX-License-Identifier: Apache-2.0
"""One source of errors: the reports that wait for their turn, and what becomes of each.

A report is put into the source's block once the one before has been acknowledged, and its event is injected. It
is over when the guest has acknowledged it and the handler has ended. As long as something is in line or in the block, a
thread sees to it: whoever asked may have gone, and an event that gets lost has to be injected again all the same.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter, deque
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ..errors import EnvironmentUnavailableError, MovedError, StateError, TimeLimitError
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
    """An error on its way, for `limit` seconds from now on. `quiet`: nobody waits to hear what becomes of it.

    `patient`: it waits for a guest that is not ready, and for one that reboots.
    """

    block: bytes
    vcpu: int | None
    limit: float
    quiet: bool = False
    patient: bool = False
    done: Future[Outcome] = field(default_factory=Future)
    until: float = field(init=False)
    since: float | None = None  # when it was put into the block
    reminded: bool = False  # of the report before: the guest has been told of it once more
    claimed: bool | None = None

    def __post_init__(self) -> None:
        self.until = time.monotonic() + self.limit

    def claim(self) -> bool:
        """From now on it cannot be called off; False where it has been. Can be called twice."""
        if self.claimed is None:
            self.claimed = self.done.set_running_or_notify_cancel()
        return self.claimed


class Line:
    """A source and its reports. All but the thread's own methods with the machine's lock held.

    `lost` were queued, and could not be reported any more.
    """

    def __init__(self, machine: Machine, window: Window) -> None:
        self.source = window.source
        self.slot = Slot(machine, window)
        self.lost = 0
        self._machine = machine
        self._waiting: deque[Report] = deque()
        self._current: Report | None = None  # is in the block, and is not over
        self._over: list[tuple[Report, Outcome | Exception]] = []  # the thread has to tell them
        self._changed = threading.Condition(machine.lock)
        self._thread: threading.Thread | None = None

    # -- told by the service and the machine

    def left(self, pe: Pe, handler: Handler) -> None:
        """The handler of its event has ended on a PE."""
        self.slot.left(pe, handler)
        self._changed.notify_all()

    def reset(self) -> None:
        """The system is about to be reset: what was reported is gone, and so is what waits."""
        slot, hint = self.slot, "report it again when the guest is up"
        slot.look()
        if (report := self._current) is not None and report.since is not None:
            late = StateError("the guest was reset before it had acknowledged the report", hint)
            self._ends(report, slot.panicked(report.block) or (slot.read(report.since) if slot.free else late))
        for report in self._in_line():
            if not report.patient:
                self._ends(report, StateError("the guest was reset before the error was reported", hint))
        slot.reset()
        self._changed.notify_all()

    def arrived(self) -> None:
        """The guest has come from elsewhere, perhaps with a report in its block."""
        self.slot.arrived()
        self._start()

    # -- what there is to know

    @property
    def queued(self) -> int:
        """How many reports wait for their turn."""
        return len(self._in_line())

    def state(self) -> str:
        """Why the last report is still there, or why none can be put there for those that wait; "" if neither."""
        self.slot.look()
        if self.slot.has_panicked():
            return "panicked"
        first = next(iter(self._in_line()), None)
        return self.slot.state() if first is None else self._hindrance(first)

    def why_not_now(self, report: Report) -> tuple[str, str]:
        """Why a report would have to wait, for people, and what helps; "" if it would not."""
        self.slot.look()
        number, hindrance = self.source.number, self._hindrance(report)
        if self._in_line() or not self._is_free():
            hint = "wait until it is acknowledged, or say --when-busy wait or queue"
            return f"source {number} is busy: of the report before, {REASONS[hindrance]}", hint
        if not hindrance or self.slot.has_panicked():  # whoever asks is told of that otherwise
            return "", ""
        return f"source {number} cannot report just now: {REASONS[hindrance]}", "say --when-busy wait or queue"

    def _is_free(self) -> bool:
        return self.slot.free and self._current is None

    def _in_line(self) -> deque[Report]:
        """Those that wait, without those that have been called off."""
        if any(each.done.cancelled() for each in self._waiting):
            self._waiting = deque(each for each in self._waiting if not each.done.cancelled() or each.claim())
        return self._waiting

    def _hindrance(self, report: Report) -> str:
        """Why it cannot be put in."""
        return self.slot.hindrance(report.vcpu) or ("" if self._current is None else "delivered")

    # -- reports

    def submit(self, report: Report) -> None:
        """Get in line. Raises StateError where that is too long, EnvironmentUnavailableError."""
        if len(self._in_line()) + (self._current is not None) >= MAX_QUEUE:
            raise StateError(f"{MAX_QUEUE} reports of source {self.source.number} wait already", "let them be read")
        self._start()
        self._waiting.append(report)
        self._changed.notify_all()

    def _start(self) -> None:
        if self._thread is not None:
            return
        thread = threading.Thread(target=self._work, name=f"errors-{self.source.number}", daemon=True)
        try:
            thread.start()
        except RuntimeError as error:
            raise EnvironmentUnavailableError(f"cannot report errors: {error}", "end other programs") from error
        self._thread = thread

    def finish(self) -> None:
        """The machine has ended: wait until everybody has been told. Without the lock."""
        if (thread := self._thread) is not None:
            thread.join(1.0)

    def _work(self) -> None:
        """The line's thread: round after round, until nothing is in line and nothing in the block."""
        while True:
            with self._changed:
                try:
                    kicks = self._round()
                except Exception as error:  # whoever asked is told, and the line goes on
                    self._end_all(error)
                    kicks = 0
                over, self._over = self._over, []
                if not over and not kicks:
                    if self._is_idle():
                        self._thread = None
                        return
                    self._changed.wait(self._patience())
            if kicks:
                self._machine.kick(kicks)
            self._tell(over)

    def _round(self) -> int:
        """Take out of line what is over, do what can be done for the others; PEs that are to be kicked."""
        self.slot.look()
        now = time.monotonic()
        for report in filter(None, (self._current, *self._in_line())):
            verdict = self._waits(report, now) if report.since is None else self._reported(report, report.since, now)
            if verdict is not None:
                self._ends(report, verdict)
        self._push()
        return self._machine.firmware.take_kicks()

    def _is_idle(self) -> bool:
        if self._waiting or self._current is not None:
            return False
        return self.slot.free or self._machine.state == "stopped"

    def _patience(self) -> float:
        """For how long nothing has to be done unless somebody tells."""
        first = min((each.until for each in filter(None, (self._current, *self._waiting))), default=float("inf"))
        return max(0.0, min(first - time.monotonic(), _LOOK_SECONDS))

    def _push(self) -> None:
        """Fill the block, or have the guest told of what is in it."""
        slot, waiting = self.slot, self._in_line()
        if not slot.free:
            if not slot.announce() and waiting and not waiting[0].reminded:
                waiting[0].reminded = slot.announce(again=True)
        elif self._current is None:
            report = next((each for each in waiting if slot.has_handler(each.vcpu)), None)
            if report is None or slot.has_panicked():
                return
            report.since = slot.put(report.block, report.vcpu, report.claim)
            if report.since is not None:
                waiting.remove(report)
                self._current = report

    # -- what becomes of them

    def _reported(self, report: Report, since: float, now: float) -> Outcome | Exception | None:
        """What has become of a report that was put in; None while that is open."""
        slot = self.slot
        if (panicked := slot.panicked()) is not None:  # Linux acknowledges, and panics then
            return panicked
        end = self._end("is in its block, and is read where the guest is now", "the report was not read")
        if end is not None and (panicked := slot.panicked(report.block)) is not None:
            return panicked
        if slot.free:  # past its time, that is all that was asked for, and its handler goes on
            return slot.read(since) if slot.is_over() or end is not None or now >= report.until else None
        if end is None and now >= report.until:
            return TimeLimitError(
                f"the guest has not acknowledged the report of source {self.source.number} within {report.limit:g} s: "
                f"{REASONS[slot.state()]}",
                "it stays in its block; `sdeivirt status` shows when it is read",
            )
        return end

    def _waits(self, report: Report, now: float) -> Exception | None:
        """Why a report need not wait for its turn any more."""
        end = self._end("was not reported", "the error was not reported")
        if report.patient and self._machine.state != "stopped":
            end = None
        if end is None and now >= report.until:
            number, limit, why = self.source.number, f"{report.limit:g}", REASONS[self._hindrance(report)]
            text = f"source {number} was not free within {limit} s: of the report before, {why}"
            if self._is_free():
                text = f"nothing could be reported by source {number} within {limit} s: {why}"
            return TimeLimitError(
                text,
                "nothing was overwritten, and nothing reported; --when-busy queue does not wait",
            )
        return end

    def _end(self, moved: str, panicked: str) -> Exception | None:
        """Why nothing is read here any more, with what has become of the error; None where it still is."""
        if self.slot.has_panicked():
            hint = "start another VM, or wait for its reboot: panic=N among its arguments, and --on-reset restart"
            return StateError(f"the guest's kernel has panicked: {panicked}", hint)
        if self._machine.state != "stopped":
            return None
        if self._machine.leaving:
            return MovedError(
                f"the guest has moved: the error {moved}",
                "`sdeivirt status` there has its state; counts begin at zero there",
            )
        return StateError("the VM has ended before the guest had read the report", "start another")

    def _ends(self, report: Report, verdict: Outcome | Exception) -> None:
        """It is over: the thread is to tell whoever asked."""
        if report is self._current:
            self._current = None
        else:
            self._waiting = deque(each for each in self._waiting if each is not report)
            self.lost += report.quiet
        self._over.append((report, verdict))

    def _end_all(self, error: Exception) -> None:
        for report in filter(None, (self._current, *self._in_line())):
            self._ends(report, error)

    def _tell(self, over: list[tuple[Report, Outcome | Exception]]) -> None:
        """Without the lock: who is told may ask for more at once."""
        lost = Counter(str(verdict) for report, verdict in over if report.quiet and isinstance(verdict, Exception))
        for text, count in lost.items():
            many = "an error that was" if count == 1 else f"{count:,} errors that were"
            _log.warning("%s queued for source %d: %s", many, self.source.number, text)
        for report, verdict in over:
            if not report.claim():
                continue
            if isinstance(verdict, Exception):
                report.done.set_exception(verdict)
            else:
                report.done.set_result(verdict)
