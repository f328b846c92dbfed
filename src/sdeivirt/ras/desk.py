# SPDX-License-Identifier: Apache-2.0
"""Reports of errors on their way into a guest: one at a time for each source, and what becomes of each.

A block that the guest has not acknowledged is not overwritten (ACPI 6.3, 18.3.2.8). So each source has a
line of reports, of which the first is put into the block when that is free. Sources do not wait for each other.
"""

from __future__ import annotations

from concurrent.futures import Future
from typing import TYPE_CHECKING

from ..errors import BusyError, NotRegisteredError, StateError, UsageError
from ..sdei.model import Handler, Pe
from ..sdei.observer import Observer
from .line import MAX_QUEUE, Line, Report
from .outcome import REASONS, WAYS, Outcome
from .status_block import Encodable, block_bytes, check_block
from .window import Window

if TYPE_CHECKING:
    from ..machine.base import Machine
    from ..machine.report import ErrorSourceStatus

__all__ = ["MAX_QUEUE", "REASONS", "WAYS", "BusyError", "ErrorDesk", "Outcome"]


class ErrorDesk(Observer):
    """Where a machine's sources of errors are. From any thread."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._lines: dict[int, Line] = {}
        self._by_event: dict[int, Line] = {}

    def open(self, windows: list[Window]) -> None:
        """The sources, by where their windows are. Once, before the guest runs."""
        for window in windows:
            line = Line(self._machine, window)
            self._lines[window.source.number] = self._by_event[window.source.event] = line
        if windows:
            self._machine.firmware.sdei.observe(self)

    def submit(
        self,
        block: bytes | Encodable,
        source: int = 0,
        vcpu: int | None = None,
        *,
        when_busy: str = "wait",
        limit: float = 10.0,
        wait_ready: bool = False,
    ) -> Future[Outcome]:
        """Report an error by a source: `block` is a generic error status block (ACPI 6.3, 18.3.2.7.1).

        What becomes of it is in the future: an :class:`Outcome`, or TimeLimitError after `limit` seconds,
        NotRegisteredError, MovedError, StateError. If the report before has not been acknowledged, `when_busy` says
        whether to "wait" for that, to "fail" with BusyError, or to "queue" it and be told no more. With `wait_ready`,
        a guest is waited for that has not registered the event, or whose kernel has panicked and reboots.
        `vcpu` is for sources with a private event. Cancelling the future takes a report back that still waits.
        Raises UsageError, UnknownVcpuError, NotRegisteredError, StateError.
        """
        if when_busy not in WAYS:
            raise UsageError(f"there is no way {when_busy!r} to treat a busy source", f"there are {', '.join(WAYS)}")
        if wait_ready and when_busy == "fail":
            raise UsageError("to fail and to wait for the guest do not go together", "leave out one of them")
        if not limit > 0:
            raise UsageError(f"a report cannot wait for {limit:g} seconds", "it can for more than 0")
        data = block_bytes(block)
        check_block(data)
        line = self._line(source)
        queue = when_busy == "queue"
        report = Report(data, vcpu, float("inf") if queue else limit, quiet=queue, patient=wait_ready)
        with self._machine.lock:
            state = self._machine.state
            if state not in ("running", "paused"):
                raise StateError(f"the VM is {state}: no error can be reported", "wait for the guest, or start another")
            try:
                self._check_handler(line, vcpu)
            except NotRegisteredError:
                if not wait_ready:
                    raise
            if when_busy == "fail":
                why, hint = line.why_not_now(report)
                if why:
                    raise BusyError(why, hint)
            line.submit(report)
        if queue:
            queued: Future[Outcome] = Future()
            queued.set_result(Outcome(source, line.source.event, "queued"))
            return queued
        return report.done

    def _line(self, source: int) -> Line:
        line = self._lines.get(source)
        if line is None:
            if not self._lines:
                raise UsageError(
                    "the VM has no sources of errors", "it has to boot by ACPI: run --machine qemu --firmware acpi"
                )
            known = ", ".join(map(str, self._lines))
            raise UsageError(f"the VM has no error source {source}", f"it has {known}; --error-source defines others")
        return line

    def _check_handler(self, line: Line, vcpu: int | None) -> None:
        """Raises UnknownVcpuError, UsageError, NotRegisteredError."""
        sdei, event = self._machine.firmware.sdei, line.source.event
        try:
            sdei.handler(event, vcpu)
        except NotRegisteredError as error:
            if sdei.event(event).shared or (pe := sdei.pe(vcpu or 0)).online:
                hint = "--wait-ready waits until it has registered one; `sdeivirt status` shows whether it has"
                raise NotRegisteredError(error.message, hint) from error
            raise NotRegisteredError(
                f"vCPU {pe.index} is off, and has no handler registered for event {event:#x}",
                "report the error to another vCPU, or when this one is on",
            ) from error

    def finish(self) -> None:
        """The machine has ended: wait until everybody has been told what has become of their reports."""
        for line in self._lines.values():
            line.finish()

    # -- what happens to the guest; with the lock held

    def delivered(self, pe: Pe, handler: Handler) -> None:
        line = self._by_event.get(handler.event.number)
        if line is not None:
            line.slot.entered(pe, handler)

    def completed(self, pe: Pe, handler: Handler, failed: bool) -> None:
        line = self._by_event.get(handler.event.number)
        if line is not None:
            line.left(pe, handler)

    def abandoned(self, pe: Pe) -> None:
        for line in self._lines.values():
            line.slot.abandoned(pe)

    def reset(self) -> None:
        """The system is about to be reset, and the windows will be as they were in the beginning."""
        for line in self._lines.values():
            line.reset()

    def arrived(self) -> None:
        """The guest has come from elsewhere, with its windows."""
        for line in self._lines.values():
            line.arrived()

    def status(self) -> list[ErrorSourceStatus]:
        """Of all sources."""
        from ..machine.report import ErrorSourceStatus

        return [
            ErrorSourceStatus(
                number=line.source.number,
                event=line.source.event,
                ghes=line.source.ghes,
                address=line.slot.window.address,
                state=line.state(),
                block_status=line.slot.status(),
                queued=line.queued,
                reported=line.slot.reported,
                acknowledged=line.slot.acknowledged,
                lost=line.slot.lost + line.lost,
            )
            for line in self._lines.values()
        ]
