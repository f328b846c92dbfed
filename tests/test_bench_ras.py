# SPDX-License-Identifier: Apache-2.0
"""The measurements of reports and boots run, and their figures can be; how good they are is not for a test to judge."""

from __future__ import annotations

from pathlib import Path

import pytest

from sdeivirt.benchmarks import ras
from sdeivirt.benchmarks.qemu import LinuxFiles
from sdeivirt.benchmarks.ras_guest import booted, load
from sdeivirt.errors import EnvironmentUnavailableError
from sdeivirt.machine.qemu.uefi import find_firmware

from .control_support import cli
from .linux_support import linux_marks

LINUX = [pytest.mark.linux, pytest.mark.process, *linux_marks]


def _firmware() -> bool:
    try:
        find_firmware()
    except EnvironmentUnavailableError:
        return False
    return True


UEFI = _firmware()


def marked(test: object) -> object:
    for mark in LINUX:
        test = mark(test)
    return test


@pytest.fixture
def files() -> LinuxFiles:
    from guests.linux.fetch import fetch

    assets = fetch("bookworm")
    return LinuxFiles(assets.image, assets.initrd)


@marked
def test_reports_are_measured_in_turn_with_events_idle_and_loaded(files: LinuxFiles) -> None:
    with booted(files, 2, "acpi", ras.CLIENT) as guest:
        reports = ras.Reports(guest.machine)
        idle = reports.measure(5)
        load(guest)
        loaded = reports.measure(5)
        for times in (idle, loaded):
            assert [len(each) for each in times.values()] == [5, 5, 5]
            assert all(0 < each < 30 for many in times.values() for each in many)
        acknowledged = {one.number: one.acknowledged for one in guest.machine.status().error_sources}
        assert acknowledged == {0: 10, 1: 10}
        assert "regcheck" in guest.shell.run("ps")  # the load has lasted


@marked
def test_boots_are_measured_in_turn(files: LinuxFiles, tmp_path: Path) -> None:
    said: list[str] = []
    times = ras.boots(files, 2, 1, tmp_path / "no firmware", said.append)
    assert set(times) == {"dt", "acpi"}
    assert all(len(each) == 2 and min(each) > 0 and max(each) < 240 for each in times.values())
    turns = [line.split(",")[0] for line in said if line.startswith("boot by")]
    assert turns == [f"boot by {how}" for how in ("device tree", "ACPI", "UEFI", "device tree", "ACPI")]
    assert sum("left out" in line for line in said) == 1


@marked
@pytest.mark.skipif(not UEFI, reason="needs qemu-efi-aarch64")
def test_a_boot_by_uefi_is_one(files: LinuxFiles) -> None:
    with booted(files, 1, "uefi") as guest:
        assert 0 < guest.seconds < 240


def test_rows_hold_each_figure_against_its_baseline() -> None:
    times = {"event to a client": [1e-4, 2e-4, 4e-4], "report, normal priority": [2e-4, 6e-4, 4e-4]}
    event, report, ratio = ras.report_rows("2 idle vCPUs", times)
    assert event.name == "2 idle vCPUs: baseline: event to a client: inject -> COMPLETE (to p99)"
    assert (event.value, event.low, event.high) == pytest.approx((200, 100, 400))
    assert report.value == pytest.approx(400)
    assert (ratio.value, ratio.low, ratio.high) == pytest.approx((2, 1, 3))
    first, second, more = ras.boot_rows({"dt": [2.0, 3.0, 2.5], "acpi": [3.0, 3.5, 3.0]})
    assert "baseline" in first.name
    assert first.value == pytest.approx(2.5)
    assert second.value == pytest.approx(3)
    assert (more.value, more.low, more.high) == pytest.approx((0.5, 0.5, 1.0))


@pytest.mark.process
@pytest.mark.parametrize("words", [(), ("--rounds", "0"), ("--kernel", "Image")])
def test_what_cannot_be_measured_is_refused(words: tuple[str, ...], tmp_path: Path) -> None:
    assert cli(tmp_path, "bench", "ras", *words, code=2).stderr.startswith("error: ")
