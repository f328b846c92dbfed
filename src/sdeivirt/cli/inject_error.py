# SPDX-License-Identifier: Apache-2.0
"""`sdeivirt inject-error`."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from ..control.client import VmClient
from ..errors import BusyError, SdeivirtError, UsageError
from ..files import read_regular
from ..ras.outcome import REASONS
from .options import Json, Number, Seconds, VmName

__all__ = ["inject_error"]

_MAX_BLOCK = 0x1000
_SEVERITY = slice(16, 20)  # of a generic error status block
_FATAL = 1
_REDRAW = 0.1


def inject_error(
    vm: VmName,
    kind: Literal["memory", "processor", "pcie"] | None = None,
    /,
    *,
    severity: Literal["corrected", "recoverable", "fatal", "informational"] | None = None,
    address: Number | None = None,
    process: str | None = None,
    threshold_exceeded: bool = False,
    record: Path | None = None,
    source: Number = 0,
    vcpu: Number | None = None,
    when_busy: Literal["wait", "fail", "queue"] = "wait",
    timeout: Seconds = 10.0,
    count: Number = 1,
    interval: Number = 0,
    list_sources: bool = False,
    json_: Json = False,
) -> int:
    """Report a hardware error to the guest of a running VM, as firmware does: by ACPI's GHES and an SDEI event.

    The error is described in memory that the guest knows from its HEST, the source's event is injected, and the
    guest says when it has read it. The VM has to boot by ACPI: run --machine qemu --firmware acpi.
    Exit codes: 0 the guest has acknowledged it, or it is queued, or the kernel has panicked at a fatal one;
    1 it could not be delivered, or the guest has panicked or ended; 124 not acknowledged in time.

    Parameters
    ----------
    vm
        The VM's name.
    kind
        What is broken: memory, processor or pcie.
    severity
        How bad it is. Linux goes on after a corrected error, may lose a page or a process by a recoverable
        one, and panics at a fatal one.
    address
        The guest physical address of the error.
    process
        Have the error in the page of a process that watches one: its pid, or its name with * and ?.
        In the Linux guest the program `victim` is such a process.
    threshold_exceeded
        Say that there were too many corrected errors: Linux takes the page out of use.
    record
        A file with a generic error status block to report as it is, instead of kind and severity.
    source
        The source that reports it, by number.
    vcpu
        The vCPU that is told, where the source's event is private; 0 by default.
    when_busy
        What to do while the guest has not acknowledged the report before: wait for it, fail, or
        queue this one and wait for nothing.
    timeout
        Seconds to wait for the source to be free and for the acknowledgement.
    count
        Report it so many times, each after the one before.
    interval
        The least milliseconds from one report to the next.
    list_sources
        Show the VM's sources of errors and their state instead.
    """
    if list_sources:
        return _list(vm, json_)
    arguments = _arguments(kind, severity, address, process, threshold_exceeded, record)
    if count < 1:
        raise UsageError("nothing is to be reported", "give a --count of 1 or more")
    arguments |= {"source": source, "vcpu": vcpu, "when_busy": when_busy}
    fatal = _is_fatal(arguments, severity)
    with VmClient(vm) as client:
        if count == 1:
            outcome = client.report_error(timeout, **arguments)
            print(json.dumps(outcome) if json_ else _describe(outcome))
            return 0 if outcome["outcome"] != "panicked" or fatal else 1
        series = _Series(count, source)
        try:
            series.run(client, timeout, interval / 1000, arguments)
        finally:
            series.show(json_)
    if series.failure is not None:
        raise series.failure
    return 1 if series.refused or (series.panicked and not fatal) else 0


def _arguments(
    kind: str | None,
    severity: str | None,
    address: int | None,
    process: str | None,
    threshold_exceeded: bool,
    record: Path | None,
) -> dict[str, object]:
    """What is to be reported, for the VM. Raises UsageError."""
    if record is not None:
        if kind or severity or address is not None or process or threshold_exceeded:
            raise UsageError("a record says itself what is broken", "give --record, or a kind and --severity")
        block = read_regular(
            record, _MAX_BLOCK, UsageError, "give a generic error status block", "it has 4 KiB at most"
        )
        import base64

        return {"block": base64.b64encode(block).decode()}
    if kind is None:
        raise UsageError("nothing is said of the error", "name memory, processor or pcie; or --record FILE")
    if severity is None:
        raise UsageError(
            "nothing is said of how bad it is", "--severity corrected, recoverable, fatal or informational"
        )
    if address is not None and process is not None:
        raise UsageError("an address and a process were both named", "the process's page is the address")
    given: dict[str, object] = {"kind": kind, "severity": severity, "address": address, "process": process}
    return given | ({"threshold_exceeded": True} if threshold_exceeded else {})


def _is_fatal(arguments: Mapping[str, object], severity: str | None) -> bool:
    block = arguments.get("block")
    if not isinstance(block, str):
        return severity == "fatal"
    import base64

    return int.from_bytes(base64.b64decode(block)[_SEVERITY], "little") == _FATAL


# -- one


def _describe(outcome: Mapping[str, Any]) -> str:
    """For people, from the members of :class:`sdeivirt.ras.outcome.Outcome`."""
    where = ""
    if (victim := outcome.get("process")) is not None:
        where = f" at {victim['address']:#x}, the page of process {victim['pid']} ({victim['name']})"
    elif outcome.get("address") is not None:
        where = f" at {outcome['address']:#x}"
    head = f"source {outcome['source']} (event {outcome['event']:#x}): the error{where} "
    on = "" if outcome["vcpu"] is None else f" on vCPU {outcome['vcpu']}"
    if outcome["outcome"] == "queued":
        return head + "is queued: it is reported when the guest has read those before it"
    if outcome["outcome"] == "panicked":
        return head + f"was reported, and the guest's kernel has panicked{on}"
    took = "" if outcome["seconds"] is None else f", handled{on} in {outcome['seconds'] * 1e3:.1f} ms"
    return head + "was reported and acknowledged" + took


# -- many


class _Series:
    """Reports one after the other. It ends before its time where the guest does not take one, or has panicked."""

    def __init__(self, count: int, source: int) -> None:
        self._count = count
        self._source = source
        self.outcomes: list[dict[str, Any]] = []
        self.refused = 0
        self.panicked = False
        self.failure: SdeivirtError | None = None
        self._drawn = 0.0

    def run(self, client: VmClient, timeout: float, interval: float, arguments: Mapping[str, object]) -> None:
        """All of them. An error that ends it is in `failure`."""
        began = time.monotonic()
        for i in range(self._count):
            time.sleep(max(0.0, began + i * interval - time.monotonic()))
            try:
                self.outcomes.append(client.report_error(timeout, **arguments))
            except BusyError:
                self.refused += 1
            except SdeivirtError as error:
                self.failure = error
                return
            self._draw(i + 1)
            if self.outcomes and self.outcomes[-1]["outcome"] == "panicked":
                self.panicked = True
                return

    def _draw(self, done: int) -> None:
        """How far it is, on a line that is written over, where standard error is a terminal."""
        now = time.monotonic()
        if sys.stderr.isatty() and (now - self._drawn >= _REDRAW or done == self._count):
            print(f"\r\x1b[K{done:,} of {self._count:,} reported", end="", file=sys.stderr, flush=True)
            self._drawn = now

    def show(self, as_json: bool) -> None:
        """What became of them."""
        if self._drawn:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)
        counts = {
            what: sum(each["outcome"] == what for each in self.outcomes)
            for what in ("acknowledged", "queued", "panicked")
        }
        times = sorted(each["seconds"] for each in self.outcomes if each["seconds"] is not None)
        if as_json:
            whole = {"source": self._source, "count": self._count, **counts, "refused": self.refused}
            print(json.dumps(whole | {"reports": self.outcomes}))
            return
        said = [f"{number:,} {what}" for what, number in counts.items() if number]
        if self.refused:
            said.append(f"{self.refused:,} refused because the source was busy")
        text = f"source {self._source}: of {self._count:,} reports {', '.join(said) if said else 'none was made'}"
        if times:
            median, most = times[len(times) // 2], times[-1]
            text += f"; handled in {median * 1e3:.1f} ms (median), {most * 1e3:.1f} ms at most"
        print(text, flush=True)


# -- which there are


def _list(vm: str, as_json: bool) -> int:
    with VmClient(vm) as client:
        report = client.execute("query-vm")
    sources = report.get("error_sources", [])
    if as_json:
        print(json.dumps(sources, indent=2))
        return 0
    if not sources:
        print(f"VM {vm} has no sources of errors: it has to boot by ACPI, run --machine qemu --firmware acpi")
        return 0
    from .output import show, table

    events = {event["number"]: event for event in report["events"]}
    made = table(
        "", "source", "event", "type", "priority", "GHES", "reported", "acknowledged", "lost", "queued", "state"
    )
    for each in sources:
        event = events.get(each["event"], {})
        counts = (each.get(name, 0) for name in ("reported", "acknowledged", "lost", "queued"))
        made.add_row(
            str(each["number"]),
            f"{each['event']:#x}",
            event.get("type", "-"),
            event.get("priority", "-"),
            f"version {each['ghes']}",
            *map(str, counts),
            _state(each, event),
        )
    show(made)
    return 0


def _state(source: Mapping[str, Any], event: Mapping[str, Any]) -> str:
    """In words: whether it is free, and if not, why."""
    if source["state"]:
        return str(REASONS.get(source["state"], source["state"]))
    if any(handler["registered"] for handler in event.get("handlers", [])):
        return "free"
    return REASONS["unregistered"]
