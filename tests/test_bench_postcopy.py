# SPDX-License-Identifier: Apache-2.0
"""The measurements of post-copy and lazy restore: real moves that are short, and what is made of figures."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from sdeivirt.benchmarks import lazy_restore
from sdeivirt.benchmarks.plot import check_plot, plot_postcopy
from sdeivirt.benchmarks.postcopy import LATENCY, STANDARD, PostcopyPlan, _rows, kit_for, measure
from sdeivirt.benchmarks.postcopy_points import Baseline, Point, crossover
from sdeivirt.benchmarks.postcopy_scene import Link, Run, run_behind, run_here
from sdeivirt.benchmarks.qemu import LinuxFiles
from sdeivirt.benchmarks.workload import Done, Kit, Work
from sdeivirt.errors import EnvironmentUnavailableError, UsageError
from sdeivirt.migration.status import MigrationStatus

from .control_support import LIMIT, cli, environment, wait_until
from .linux_support import linux_marks
from .machine_support import KINDS

WORK = Work(walkers=2, computers=1, pages=64, spin=50, steps=200_000)


@pytest.fixture(autouse=True)
def runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))


# -- what is measured


def moves_and_finds_the_same(kit: Kit, tmp_path: Path, link: Link) -> tuple[Run, Run]:
    runs = []
    for service in (False, True):
        snapshot = tmp_path / f"guest-{service}"
        kit.snapshot(WORK, service, snapshot)
        here = run_here(kit, snapshot, WORK)
        behind = run_behind(kit, snapshot, WORK, link)
        assert behind.done.checksums == here.checksums
        assert len(behind.done.threads) == 3
        assert 0 < max(behind.done.threads) <= behind.done.seconds * 1.01
        assert behind.status.status == "postcopy-active"
        assert behind.status.remaining > 0
        runs.append(behind)
    assert runs[0].done.checksums == runs[1].done.checksums
    assert len(set(runs[0].done.checksums)) == 3
    return runs[0], runs[1]


@pytest.mark.machine
@pytest.mark.process
@pytest.mark.parametrize("kind", KINDS)
def test_the_work_is_done_where_its_pages_are_not(kind: str, tmp_path: Path) -> None:
    off, on = moves_and_finds_the_same(kit_for(kind, None), tmp_path, Link(0.002))
    assert off.done.told == 0
    assert (on.done.told or 0) >= 128  # each page of the work's, since nothing is sent unless it is asked for
    assert off.done.seconds > 128 * 0.002  # one after the other
    assert off.status.fault_median >= 0.002


@pytest.mark.linux
@pytest.mark.process
def test_linux_does_the_same(tmp_path: Path) -> None:
    from guests.linux.fetch import fetch

    assets = fetch("bookworm")
    kit = kit_for("linux", LinuxFiles(assets.image, assets.initrd))
    try:
        moves_and_finds_the_same(kit, tmp_path, Link(0.0, prefetch=8))
    finally:
        kit.close()


test_linux_does_the_same.pytestmark += linux_marks  # type: ignore[attr-defined]


@pytest.mark.machine
@pytest.mark.process
def test_a_point_is_measured_both_ways_beside_its_bound() -> None:
    said: list[str] = []
    plan = PostcopyPlan(latencies=(0.001,), threads=(2,), rounds=1, waiting=0.05)
    found = measure(kit_for("unicorn", None), plan, said.append)
    alone, pair = found.points
    assert (alone["memory_threads"], alone["compute_threads"]) == (1, 0)
    assert (pair["memory_threads"], pair["compute_threads"], pair["pages"]) == (2, 1, 64)
    assert len(pair["with"]) == len(pair["without"]) == 1
    assert pair["bound"] > 0
    assert pair["told"][0] >= 128
    names = [row.name for row in found.rows]
    assert names[0] == "small guest, unicorn, 1 ms: 2 memory + 1 compute: without"
    assert all(row.target is None for row in found.rows), "targets are for 3 ms"
    assert any("round 1 of 1" in line for line in said)


@pytest.mark.machine
@pytest.mark.process
def test_a_lazy_restore_is_held_against_an_eager_one() -> None:
    rows = list(lazy_restore.measure("unicorn", 1, (4,)))
    assert [row.name.partition(", ")[2] for row in rows if row.name.startswith("unicorn")] == [
        f"4 MiB, {way}: it goes on after"
        for way in ("all of the file first", "lazily, from the file", "lazily, from a page server")
    ]
    seconds = [row.value for row in rows if row.unit == "s"]
    assert all(resumed < done for resumed, done in zip(seconds[::2], seconds[1::2], strict=True))


# -- what is made of it


def a_point(work: Work, off: list[float], on: list[float], latency: float = 0.003) -> Point:
    def runs(times: list[float]) -> list[Run]:
        return [Run(Done(each, (each,), ("1",), 5, 0), each, MigrationStatus()) for each in times]

    return Point("a guest", work, latency, runs(off), runs(on))


def test_the_bound_is_what_is_computed_or_the_longest_wait() -> None:
    baseline = Baseline(walker=[0.2, 0.1, 0.3], computer=[1.0], waiting=[1.1])
    assert baseline.bound(Work(1, 1, 64, 1, 1)) == pytest.approx(1.2)
    assert baseline.bound(Work(4, 0, 64, 1, 1)) == pytest.approx(1.1)
    assert baseline.bound(Work(0, 1, 64, 1, 1)) == pytest.approx(1.0)


def test_gains_are_of_pairs_and_held_against_targets() -> None:
    baseline = Baseline([0.1], [1.0], [1.0])
    point = a_point(Work(1, 1, 64, 1, 1), [2.0, 4.0, 2.0], [1.2, 1.0, 1.1])
    assert point.gains == pytest.approx([40.0, 75.0, 45.0])
    rows = {row.name.strip(): row for row in point.rows(baseline, 41.0, 10.0)}
    assert rows["less time"].value == pytest.approx(45.0)
    assert rows["less time"].met
    assert rows["above the ideal"].value == pytest.approx(0.0, abs=1e-9)
    worse = {row.name.strip(): row for row in point.rows(Baseline([0.1], [0.8], [0.5]), 50.0, 10.0)}
    assert worse["less time"].met is False
    assert worse["above the ideal"].met is False


def test_what_a_fault_costs_is_without_the_work() -> None:
    point = a_point(Work(1, 0, 100, 1, 0), [1.1], [1.2])
    rows = {row.name.strip(): row for row in point.cost_rows(Baseline([0.1], [], [1.1]), 2.0, 1.1)}
    assert rows["a fault, without"].value == pytest.approx(10.0)
    assert rows["a fault, with, is"].value == pytest.approx(1.1)
    assert rows["less time"].value == pytest.approx(-100 / 11)
    assert rows["less time"].met is False


def test_a_gain_that_is_beyond_the_ideal_is_not_asked_for() -> None:
    point = a_point(Work(1, 1, 64, 1, 1), [2.0], [1.5])
    rows = {row.name.strip(): row for row in point.rows(Baseline([0.1], [1.3], [0.5]), 41.0, 10.0)}
    assert rows["less time, ideally"].value == pytest.approx(30)
    assert rows["less time"].met is None
    assert "41" in rows["less time"].remark


def test_a_look_is_held_against_nothing() -> None:
    kit, baseline = kit_for("unicorn", None), Baseline([0.1], [1.0], [1.0])
    alone, pair = a_point(Work(1, 0, 64, 1, 0), [1.1], [1.2]), a_point(Work(1, 1, 64, 1, 1), [2.0], [1.9])
    for targets in (True, False):
        rows = _rows(kit, PostcopyPlan(targets=targets), LATENCY, baseline, alone, None, [pair])
        assert any(row.target is not None for row in rows) is targets


@pytest.mark.parametrize(
    ("points", "expected"),
    [
        ([], None),
        ([(1.0, -5.0), (10.0, -1.0)], None),
        ([(1.0, 5.0), (10.0, 10.0)], 1.0),
        ([(10.0, 10.0), (0.1, -10.0)], 1.0),
        ([(0.1, -10.0), (1.0, 0.0), (10.0, 30.0)], 1.0),
        ([(0.1, 4.0), (1.0, -20.0), (10.0, 20.0)], math.sqrt(10)),
    ],
)
def test_where_a_gain_begins(points: list[tuple[float, float]], expected: float | None) -> None:
    assert crossover(points) == (None if expected is None else pytest.approx(expected))


def test_a_plan_has_as_many_pages_as_a_thread_is_to_wait_for() -> None:
    plan = PostcopyPlan(waiting=1.6, most=1024)
    assert [plan.pages(latency) for latency in (0.1, 0.003, 0.001, 0.0)] == [64, 512, 1024, 1024]
    assert PostcopyPlan(waiting=1.6, prefetch=8).pages(0.01) == 1024
    assert plan.works == STANDARD
    assert PostcopyPlan(threads=(2, 3)).works == ((2, 1), (3, 1))


# -- pictures


def some_points(latencies: tuple[float, ...]) -> list[dict[str, object]]:
    baseline = Baseline([0.1], [1.0], [1.0])
    return [
        a_point(Work(walkers, 1, 64, 1, 1), [2.0 * walkers, 2.1], [1.0, 1.2], latency).record(baseline)
        for walkers in (1, 4)
        for latency in latencies
    ]


@pytest.mark.parametrize("latencies", [(0.003,), (0.0001, 0.001, 0.01)])
def test_a_picture_of_one_latency_or_of_many(latencies: tuple[float, ...], tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    for _ in range(2):
        plot_postcopy(some_points(latencies), tmp_path / "a.svg")
        text = (tmp_path / "a.svg").read_text()
        assert "less time with asynchronous page faults" in text
        assert ("4 memory + 1 compute" in text) == (len(latencies) > 1)
        (tmp_path / "a.svg").replace(tmp_path / f"{_}.svg")
    assert (tmp_path / "0.svg").read_bytes() == (tmp_path / "1.svg").read_bytes()
    plot_postcopy(some_points(latencies), tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


def test_what_cannot_be_drawn_is_found_out_before_anything_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UsageError, match="not the name of a picture"):
        check_plot(tmp_path / "a.gif")
    with pytest.raises(UsageError, match="no such directory"):
        check_plot(tmp_path / "nowhere" / "a.svg")
    monkeypatch.setitem(sys.modules, "matplotlib", None)  # as if it were not there
    with pytest.raises(EnvironmentUnavailableError) as caught:
        check_plot(tmp_path / "a.svg")
    assert "sdeivirt[plot]" in caught.value.hint


# -- the command


@pytest.mark.process
@pytest.mark.parametrize(
    "words",
    [
        ("postcopy", "linux"),
        ("postcopy", "--latency", "-1"),
        ("postcopy", "--threads", "0"),
        ("postcopy", "--threads", "1", "33"),
        ("postcopy", "--rounds", "0"),
        ("postcopy", "--prefetch", "0"),
        ("postcopy", "--plot", "picture"),
        ("postcopy", "--json", "/nonexistent/found.json"),
        ("postcopy", "--json", "/"),
        ("lazy-restore", "--size", "1"),
        ("lazy-restore", "--rounds", "0"),
    ],
)
def test_what_cannot_be_measured_is_refused(words: tuple[str, ...], tmp_path: Path) -> None:
    assert cli(tmp_path, "bench", *words, code=2).stderr.startswith("error: ")


@pytest.fixture
def short() -> Iterator[Path]:
    """A directory with a short name: a bench makes its own below it, and sockets in that."""
    with tempfile.TemporaryDirectory(prefix="sv-") as name:
        yield Path(name)


@pytest.mark.machine
@pytest.mark.process
def test_who_is_ended_leaves_nothing_behind(short: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "sdeivirt", "bench", "postcopy", "--quick"],
        env=environment(short, TMPDIR=str(short)),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    ) as bench:
        wait_until(lambda: bool(places(short)))
        bench.terminate()
        bench.communicate(timeout=LIMIT)
        assert bench.returncode == 128 + signal.SIGTERM
    assert not list(short.glob("sdeivirt-*"))
    assert not places(short)


@pytest.mark.machine
@pytest.mark.process
@pytest.mark.skipif(shutil.which("setpriv") is None, reason="needs setpriv")
def test_a_place_ends_with_who_has_made_it(short: Path) -> None:
    code = """
import signal
from sdeivirt.benchmarks.postcopy_scene import Place
with Place(("run", "--incoming", "unix:{}/there")) as place:
    place.wait_for("waiting for a guest")
    print("ready", flush=True)
    signal.pause()
"""
    with subprocess.Popen(
        [sys.executable, "-c", code],
        env=environment(short, TMPDIR=str(short)),
        stdout=subprocess.PIPE,
        text=True,
    ) as bench:
        assert bench.stdout is not None
        assert bench.stdout.readline() == "ready\n"
        assert places(short)
        bench.kill()
    wait_until(lambda: not places(short))


def places(directory: Path) -> list[str]:
    """The processes that wait for a guest below that directory."""
    found = []
    for process in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            line = process.read_bytes()
            if b"--incoming" in line and os.fsencode(directory) in line:
                found.append(process.parent.name)
    return found


@pytest.mark.machine
@pytest.mark.process
def test_everything_is_in_a_file_if_wanted(tmp_path: Path) -> None:
    file = tmp_path / "found.json"
    words = ("--quick", "--rounds", "1", "--threads", "1", "--latency", "0.1", "--json", str(file))
    shown = cli(tmp_path, "bench", "postcopy", *words)
    assert "small guest, unicorn, 0.1 ms: 1 memory + 1 compute: without" in shown.stdout
    found = json.loads(file.read_text())
    assert len(found["points"]) == 2
    assert {"name", "value", "unit", "met"} <= found["rows"][0].keys()
