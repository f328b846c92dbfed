# SPDX-License-Identifier: Apache-2.0
"""Hardware errors that reach Linux by SDEI: how long a report takes, and what it costs to boot by ACPI.

    reports   from injection to EVENT_COMPLETE of the handler that has read the report and acknowledged it, against
              an event to a client (guests/linux/sdei_client.c) that does next to nothing, injected in turn with them
    boots     from the machine's start to /init, by ACPI and by UEFI against a device tree, in turn

Linux reads a report in its handler and leaves all else to later; so what it prints is not in these times.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from ..errors import EnvironmentUnavailableError
from ..machine.base import RAM_BASE, Machine
from ..ras.cper import Severity, make_block
from ..ras.sources import STANDARD_SOURCES
from ..sdei.model import Handler, Pe
from ..sdei.observer import Observer
from .qemu import LinuxFiles
from .ras_guest import booted, load
from .report import Row, median, percentile, row

__all__ = ["CLIENT", "Reports", "boot_rows", "boots", "measure", "report_rows"]

CLIENT = "client.events=0 client.quiet=1"
VCPUS = (1, 4)
BOOT_VCPUS = 2
EACH_ROUND = 200
EACH_QUICK_ROUND = 20
_LIMIT = 30.0
_EVENT, _NORMAL, _CRITICAL = "event to a client", "report, normal priority", "report, critical priority"
_SOURCES = {_NORMAL: STANDARD_SOURCES[0].number, _CRITICAL: STANDARD_SOURCES[1].number}
FIRMWARES = {"dt": "device tree", "acpi": "ACPI", "uefi": "UEFI"}


# -- reports


class Reports(Observer):
    """Reports errors to a guest that has booted by ACPI with a client for event 0."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._ended = 0.0
        self._done = threading.Semaphore(0)
        machine.firmware.sdei.observe(self)

    def completed(self, pe: Pe, handler: Handler, failed: bool) -> None:
        if handler.event.number == 0:
            self._ended = time.monotonic()
            self._done.release()

    def measure(self, count: int) -> dict[str, list[float]]:
        """Seconds by what was injected; `count` of each, in turn."""
        times: dict[str, list[float]] = {_EVENT: [], **{name: [] for name in _SOURCES}}
        for i in range(count):
            times[_EVENT].append(self._event(i % self._machine.config.vcpus))
            for name, source in _SOURCES.items():
                times[name].append(self._report(source, RAM_BASE + (i << 12) % self._machine.config.memory))
        return times

    def _event(self, vcpu: int) -> float:
        begin = time.monotonic()
        self._machine.inject(0, vcpu)
        if not self._done.acquire(timeout=_LIMIT):
            raise RuntimeError("an event was not completed")
        return self._ended - begin

    def _report(self, source: int, address: int) -> float:
        """Of a corrected memory error, of which Linux takes note and does no more."""
        block = make_block("memory", Severity.CORRECTED, address=address)
        outcome = self._machine.inject_error(block, source, limit=_LIMIT)
        if outcome.seconds is None:
            raise RuntimeError(f"the report was not acknowledged: {outcome.outcome}")
        return outcome.seconds


def report_rows(what: str, times: dict[str, list[float]]) -> Iterator[Row]:
    """Median and 99th percentile of each, and how many events to a client a report is."""
    base = times[_EVENT]
    for name, seconds in times.items():
        micro = [each * 1e6 for each in seconds]
        yield Row(
            f"{what}: {'baseline: ' * (name == _EVENT)}{name}: inject -> COMPLETE (to p99)",
            median(micro), "us", min(micro), percentile(micro, 99), "the range goes to the 99th percentile",
        )  # fmt: skip
        if name != _EVENT:
            ratios = [one / other for one, other in zip(seconds, base, strict=True)]
            yield Row(
                "  that is (middle half)", median(ratios), "events", percentile(ratios, 25), percentile(ratios, 75),
                "an event to a client, in turn",
            )  # fmt: skip


def _all_reports(files: LinuxFiles, count: int, progress: Callable[[str], None]) -> Iterator[Row]:
    for vcpus in VCPUS:
        with booted(files, vcpus, "acpi", CLIENT) as guest:
            reports = Reports(guest.machine)
            for state in ("idle", "loaded"):
                progress(f"reports, {vcpus} {state} ...")
                if state == "loaded":
                    load(guest)
                yield from report_rows(f"{vcpus} {state} vCPU{'s' * (vcpus > 1)}", reports.measure(count))


# -- boots


def boots(
    files: LinuxFiles,
    rounds: int,
    vcpus: int = BOOT_VCPUS,
    uefi: Path | None = None,
    progress: Callable[[str], None] = lambda _: None,
) -> dict[str, list[float]]:
    """Seconds until /init took commands, by firmware; without UEFI's where there is none."""
    times: dict[str, list[float]] = {firmware: [] for firmware in FIRMWARES}
    for number in range(rounds):
        for firmware in list(times):
            progress(f"boot by {FIRMWARES[firmware]}, {number + 1} of {rounds} ...")
            try:
                with booted(files, vcpus, firmware, uefi=uefi) as guest:
                    times[firmware].append(guest.seconds)
            except EnvironmentUnavailableError as error:
                if firmware != "uefi":
                    raise
                progress(f"boots by UEFI are left out: {error}; {error.hint}")
                del times[firmware]
    return times


def boot_rows(times: dict[str, list[float]], vcpus: int = BOOT_VCPUS) -> Iterator[Row]:
    """Each, and how much longer than by a device tree it is."""
    base = times["dt"]
    for firmware, seconds in times.items():
        first = firmware == "dt"
        yield row(f"{'baseline: ' * first}start -> /init, {vcpus} vCPUs, by {FIRMWARES[firmware]}", seconds, "s")
        if not first:
            longer = [one - other for one, other in zip(seconds, base, strict=True)]
            yield row("  longer than by device tree", longer, "s", "a boot by device tree, in turn")


# -- all of it


def measure(
    rounds: int, quick: bool, files: LinuxFiles, uefi: Path | None, progress: Callable[[str], None]
) -> list[Row]:
    """All figures. Each boot is measured `rounds` times, and reports by the hundred."""
    count = rounds * (EACH_QUICK_ROUND if quick else EACH_ROUND)
    rows = list(_all_reports(files, count, progress))
    rows += boot_rows(boots(files, rounds, BOOT_VCPUS, uefi, progress))
    return rows
