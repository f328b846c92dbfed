# SPDX-License-Identifier: Apache-2.0
"""A measured point of post-copy: the same work with asynchronous page faults and without, and what was possible."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from .postcopy_scene import Run
from .report import Row, median, row
from .workload import Work

__all__ = ["Baseline", "Point", "crossover"]


@dataclass(slots=True)
class Baseline:
    """What the bounds are made of, seconds a round.

    `walker`: a thread's work where all its pages are; `computer`: one that computes; `waiting`: a walker
    alone whose pages are elsewhere, its work included.
    """

    walker: list[float] = field(default_factory=list)
    computer: list[float] = field(default_factory=list)
    waiting: list[float] = field(default_factory=list)

    def bound(self, work: Work) -> float:
        """No order of things on one CPU could be faster: all that is computed, and the longest thread with its waiting.

        Pages that the guest's kernel needs, and cannot do anything without, are part of that waiting.
        """
        computed = work.walkers * median(self.walker) + work.computers * median(self.computer)
        longest = median(self.waiting) if work.walkers else 0.0
        return max(computed, longest)


@dataclass(slots=True)
class Point:
    """Both ways, a run of each a round, in turn."""

    name: str  # of the guest
    work: Work
    latency: float
    without: list[Run] = field(default_factory=list)
    with_: list[Run] = field(default_factory=list)

    @property
    def gains(self) -> list[float]:
        """By how many per cent less time is taken with asynchronous page faults."""
        return [100 * (1 - on / off) for off, on in self._pairs()]

    @property
    def label(self) -> str:
        return f"{self.name}, {self.latency * 1e3:g} ms: {self.work}{self.how}"

    @property
    def how(self) -> str:
        """Who touches the pages, where it is not the threads themselves."""
        return ", touched by the kernel" if self.work.kernel else ""

    def _pairs(self) -> list[tuple[float, float]]:
        return [(off.done.seconds, on.done.seconds) for off, on in zip(self.without, self.with_, strict=True)]

    def rows(self, baseline: Baseline, least: float | None = None, above: float | None = None) -> list[Row]:
        """For a table; `least` is the gain that is wanted, `above` by how many per cent the bound may be missed.

        Where not even the bound gains so much, nothing is held against it.
        """
        off, on = zip(*self._pairs(), strict=True)
        bound = baseline.bound(self.work)
        beyond = [100 * (each / bound - 1) for each in on]
        could = [100 * (1 - bound / each) for each in off]
        remark = ""
        if least is not None and median(could) < least:
            least, remark = None, f">= {least:g} is more than the ideal here"
        return [
            row(f"{self.label}: without", off, "s"),
            row("  with", on, "s"),
            row("  less time", self.gains, "%", target=least, at_least=True, remark=remark),
            row("  ideal", [bound], "s"),
            row("  less time, ideally", could, "%"),
            row("  above the ideal", beyond, "%", target=above),
            row("  host's clock, less time", [
                100 * (1 - on.host / off.host) for off, on in zip(self.without, self.with_, strict=True)
            ], "%"),
        ]  # fmt: skip

    def cost_rows(self, baseline: Baseline, most: float | None = None, ratio: float | None = None) -> list[Row]:
        """The same where nothing can be gained: what it may cost in per cent, and how many times a fault's time."""
        off, on = zip(*self._pairs(), strict=True)
        work = median(baseline.walker)
        faults = [(b - work) / (a - work) for a, b in self._pairs()]
        each = [(a - work) / self.work.pages * 1e3 for a in off]
        return [
            row(f"{self.label}: without", off, "s"),
            row("  with", on, "s"),
            row("  less time", self.gains, "%", target=None if most is None else -most, at_least=True),
            row("  a fault, without", each, "ms"),
            row("  a fault, with, is", faults, "x", target=ratio),
        ]

    def record(self, baseline: Baseline) -> dict[str, Any]:
        """For JSON."""
        return {
            "guest": self.name,
            "latency": self.latency,
            "memory_threads": self.work.walkers,
            "compute_threads": self.work.computers,
            "pages": self.work.pages,
            "kernel": self.work.kernel,
            "without": [run.done.seconds for run in self.without],
            "with": [run.done.seconds for run in self.with_],
            "host_without": [run.host for run in self.without],
            "host_with": [run.host for run in self.with_],
            "told": [run.done.told for run in self.with_],
            "fault_median": [run.status.fault_median for run in (*self.without, *self.with_)],
            "gain": median(self.gains),
            "bound": baseline.bound(self.work),
        }


def crossover(points: Sequence[tuple[float, float]]) -> float | None:
    """The latency from which on time is gained, out of (latency, gain); None where it is lost at all or at the last.

    Between two that were measured it is where a straight line crosses 0, the latency by its logarithm.
    """
    ordered = sorted(points)
    if not ordered or ordered[-1][1] <= 0:
        return None
    for (low, lost), (high, gained) in reversed(list(pairwise(ordered))):
        if lost <= 0 < gained:
            return float(low * (high / low) ** (-lost / (gained - lost)))
    return ordered[0][0]
