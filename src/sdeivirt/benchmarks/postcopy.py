# SPDX-License-Identifier: Apache-2.0
"""What asynchronous page faults are worth: a guest that leaves before its pages, and works where it has gone to.

Each run is a post-copy between two processes. The guest stands ready at the
source, moves, and its work begins at the destination; nothing is sent but what it asks
for, unless it is wanted otherwise. Each point is measured both ways, in turn, and its
bounds are measured in the same rounds: how long a thread that computes takes, and one
that waits for its pages alone. Those that compute are made as long as that.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..errors import MigrationError
from .postcopy_points import Baseline, Point, crossover
from .postcopy_scene import Link, Run, run_behind, run_here
from .qemu import LinuxFiles
from .report import Row, median
from .workload import Kit, LinuxKit, SmallKit, Work

__all__ = ["Findings", "PostcopyPlan", "kit_for", "measure"]

STANDARD = ((1, 1), (4, 1), (4, 0))  # memory threads, and those that compute
LATENCY = 0.003  # that of the targets
SWEEP_LATENCIES = (0.0001, 0.0003, 0.001, 0.003, 0.01)
SWEEP_THREADS = (1, 2, 4, 8, 16)
_TARGETS = {"small": {(1, 1): 41.0, (4, 1): 68.0}, "linux": {(1, 1): 42.0, (4, 1): 54.0, (4, 0): 70.0}}
_ABOVE = 10.0  # per cent
_COST = 2.0  # per cent
_FAULT = 1.1  # times
_SPIN = 100  # steps after each page
_PILOTS = 2
_LEAST_PAGES = 64


@dataclass(frozen=True, slots=True)
class PostcopyPlan:
    """What is to be measured: `latencies` in seconds, `threads` that walk over memory beside one that computes.

    No `threads`: those that have targets. `waiting` is how long one thread is to wait for its pages, about,
    `most` of them it may have. Without `targets` figures are not held against any.
    """

    latencies: tuple[float, ...] = (LATENCY,)
    threads: tuple[int, ...] = ()
    rounds: int = 5
    bandwidth: float | None = None
    rest: bool = False
    prefetch: int = 1
    waiting: float = 1.6
    most: int = 1024
    targets: bool = True

    @property
    def works(self) -> tuple[tuple[int, int], ...]:
        return tuple((number, 1) for number in self.threads) or STANDARD

    def pages(self, latency: float) -> int:
        """A power of two."""
        pages = _LEAST_PAGES
        while pages < self.most and 2 * pages * max(latency, 1e-6) * self._each() <= self.waiting:
            pages *= 2
        return pages

    def _each(self) -> float:
        return 1 / self.prefetch

    def link(self, latency: float) -> Link:
        return Link(latency, self.bandwidth, self.prefetch, self.rest)


@dataclass(slots=True)
class Findings:
    """The table, and all that was measured."""

    rows: list[Row] = field(default_factory=list)
    points: list[dict[str, Any]] = field(default_factory=list)


def kit_for(machine: str, files: LinuxFiles | None) -> Kit:
    """The guest to measure with: "unicorn", "qemu", or "linux", which needs its files."""
    if machine != "linux":
        return SmallKit(machine)
    assert files is not None
    return LinuxKit(files)


def measure(kit: Kit, plan: PostcopyPlan, say: Callable[[str], None] = lambda _: None) -> Findings:
    """All points of a plan; `say` is told what is measured.

    Raises MigrationError where a guest finds what it must not.
    """
    found = Findings()
    with tempfile.TemporaryDirectory(prefix="sdeivirt-") as directory, closing(kit):
        bench = _Bench(kit, plan, Path(directory), say)
        for latency in plan.latencies:
            baseline, alone, kernel, points = bench.at(latency)
            found.rows += _rows(kit, plan, latency, baseline, alone, kernel, points)
            found.points += [
                {**point.record(baseline), "machine": kit.kind}
                for point in (alone, kernel, *points)
                if point is not None
            ]
    found.rows += _crossings(kit, plan, found.points)
    return found


def _rows(
    kit: Kit, plan: PostcopyPlan, latency: float, baseline: Baseline, alone: Point, kernel: Point | None,
    points: Sequence[Point],
) -> list[Row]:  # fmt: skip
    standard = plan.targets and latency == LATENCY and plan.prefetch == 1 and not plan.rest and plan.bandwidth is None
    small = isinstance(kit, SmallKit)
    targets = _TARGETS["small" if small else "linux"] if standard else {}
    rows = []
    for point in points:
        wanted = targets.get((point.work.walkers, point.work.computers))
        rows += point.rows(baseline, wanted, _ABOVE if small and wanted is not None else None)
    ratio = _FAULT if standard else None
    rows += alone.cost_rows(baseline, _COST if standard else None, ratio)
    if kernel is not None:
        rows += kernel.cost_rows(baseline, ratio=ratio)
    return rows


def _crossings(kit: Kit, plan: PostcopyPlan, points: Sequence[dict[str, Any]]) -> list[Row]:
    if len(plan.latencies) < 2:
        return []
    rows = []
    for walkers, computers in plan.works:
        at = crossover(
            [
                (point["latency"], point["gain"])
                for point in points
                if (point["memory_threads"], point["compute_threads"], point["kernel"]) == (walkers, computers, False)
            ]
        )
        name = f"{kit.name}: {walkers} memory + {computers} compute: time is gained from a latency of"
        rows.append(Row(name, float("nan") if at is None else at * 1e3, "ms", *_spread(plan)))
    return rows


def _spread(plan: PostcopyPlan) -> tuple[float, float]:
    return min(plan.latencies) * 1e3, max(plan.latencies) * 1e3


class _Bench:
    """Measures with one guest; its snapshots are made once each."""

    def __init__(self, kit: Kit, plan: PostcopyPlan, directory: Path, say: Callable[[str], None]) -> None:
        self._kit = kit
        self._plan = plan
        self._directory = directory
        self._say = say
        self._snapshots: dict[tuple[Work, bool], Path] = {}
        self._expected: dict[Work, tuple[str, ...]] = {}

    def at(self, latency: float) -> tuple[Baseline, Point, Point | None, list[Point]]:
        """One latency: the bounds, a walker alone, one whose pages the kernel touches, and the rest."""
        plan, kit = self._plan, self._kit
        steps = self._calibrate(latency)
        walker = Work(1, 0, plan.pages(latency), _SPIN, 0)
        computer = replace(walker, walkers=0, computers=1, steps=steps)
        baseline = Baseline()
        alone = Point(kit.name, walker, latency)
        kernel = Point(kit.name, replace(walker, kernel=True), latency) if isinstance(kit, LinuxKit) else None
        points = [
            Point(kit.name, replace(walker, walkers=walkers, computers=computers, steps=steps), latency)
            for walkers, computers in plan.works
        ]
        for number in range(plan.rounds):
            self._say(f"{kit.name}, {latency * 1e3:g} ms, round {number + 1} of {plan.rounds}")
            baseline.walker.append(self._here(walker))
            baseline.computer.append(self._here(computer))
            for point in (alone, kernel, *points):
                if point is not None:
                    self._both(point, first_with=bool(number % 2))
            baseline.waiting.append(alone.without[-1].done.seconds)
        self._snapshots.clear()  # the next latency has others
        self._expected.clear()
        for file in self._directory.iterdir():
            file.unlink()
        return baseline, alone, kernel, points

    def _calibrate(self, latency: float) -> int:
        """How many steps a thread has to compute to take as long as one that waits for its pages."""
        self._say(f"{self._kit.name}, {latency * 1e3:g} ms: how long one thread waits, and how fast one computes")
        walker = Work(1, 0, self._plan.pages(latency), _SPIN, 0)
        computer = Work(0, 1, 1, _SPIN, self._kit.steps)
        waiting = median([self._behind(walker, False, latency).done.seconds for _ in range(_PILOTS)])
        computing = median([self._here(computer) for _ in range(_PILOTS)])
        steps = int(self._kit.steps * waiting / computing)
        self._say(f"  {waiting:.2f} s, {self._kit.steps / computing / 1e6:.0f} million steps a second")
        return max(1000, steps)

    def _both(self, point: Point, first_with: bool) -> None:
        for service in (first_with, not first_with):
            run = self._behind(point.work, service, point.latency)
            (point.with_ if service else point.without).append(run)
        off, on = point.without[-1], point.with_[-1]
        told = "" if on.done.told is None else f", {on.done.told} faults told, {on.done.refused} refused"
        self._say(f"  {point.work}{point.how}: {off.done.seconds:.2f} s without, {on.done.seconds:.2f} s with{told}")

    def _behind(self, work: Work, service: bool, latency: float) -> Run:
        run = run_behind(self._kit, self._snapshot(work, service), work, self._plan.link(latency))
        self._check(work, run.done.checksums)
        return run

    def _here(self, work: Work) -> float:
        done = run_here(self._kit, self._snapshot(work, False), work)
        self._check(work, done.checksums)
        return done.seconds

    def _check(self, work: Work, checksums: tuple[str, ...]) -> None:
        """All runs of the same work find the same; so does each walker of any."""
        expected = self._expected.setdefault(work, checksums)
        if checksums != expected or len(checksums) != work.walkers + work.computers:
            raise MigrationError(
                f"{work}: the guest has found {checksums}, and before {expected}",
                "a page has come that is not the one it left behind",
            )

    def _snapshot(self, work: Work, service: bool) -> Path:
        key = work, service
        if key not in self._snapshots:
            file = self._directory / f"{len(self._snapshots)}"
            self._kit.snapshot(work, service, file)
            self._snapshots[key] = file
        return self._snapshots[key]
