# SPDX-License-Identifier: Apache-2.0
"""What a measurement says: a figure, its baseline, the target."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["Row", "median", "percentile", "render", "row"]


@dataclass(frozen=True, slots=True)
class Row:
    """One figure.

    `value` in `unit`; `low` and `high` are the least and greatest round.
    `baseline` says what the figure is held against. `target` is a bound on
    `value`: an upper one unless `at_least`. None where there is only something to know, or where `remark` says
    why it is not held against anything.
    """

    name: str
    value: float
    unit: str
    low: float
    high: float
    baseline: str = ""
    target: float | None = None
    at_least: bool = False
    remark: str = ""

    @property
    def met(self) -> bool | None:
        """Whether the target is met; None without one."""
        if self.target is None:
            return None
        return self.value >= self.target if self.at_least else self.value <= self.target


def median(values: Sequence[float]) -> float:
    return statistics.median(values)


def percentile(values: Sequence[float], percent: float) -> float:
    """The value below which `percent` of the values lie."""
    ordered = sorted(values)
    return ordered[min(int(len(ordered) * percent / 100), len(ordered) - 1)]


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.2f}"


def row(
    name: str,
    values: Sequence[float],
    unit: str,
    baseline: str = "",
    target: float | None = None,
    *,
    at_least: bool = False,
    remark: str = "",
) -> Row:
    """The median of what was measured in several rounds, with the least and the greatest."""
    return Row(name, median(values), unit, min(values), max(values), baseline, target, at_least, remark)


def _range(low: float, high: float) -> str:
    """The least and the greatest; nothing where there is but one. Both may be less than 0."""
    return f"{_number(low)} to {_number(high)}" if high != low else ""


def render(rows: Sequence[Row]) -> str:
    """A table for people."""
    lines = []
    for row in rows:
        target = row.remark
        if row.target is not None:
            bound = ">=" if row.at_least else "<="
            target = f"{bound} {row.target:,g} {'ok' if row.met else 'MISSED'}"
        lines.append(
            (
                row.name,
                f"{_number(row.value)} {row.unit}",
                _range(row.low, row.high),
                target,
            )
        )
    head = ("figure", "median", "range", "target")
    widths = [max(len(line[i]) for line in [head, *lines]) for i in range(len(head))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in [head, *lines]
    )
