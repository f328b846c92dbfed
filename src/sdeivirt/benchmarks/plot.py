# SPDX-License-Identifier: Apache-2.0
"""Curves of what was measured, as SVG or PNG, by matplotlib (the extra `plot`)."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..errors import EnvironmentUnavailableError, UsageError

__all__ = ["check_plot", "plot_postcopy"]

_KINDS = (".svg", ".png")


def check_plot(file: Path) -> None:
    """Whether there could be such a file, before hours are spent. Raises UsageError, EnvironmentUnavailableError."""
    if file.suffix not in _KINDS:
        raise UsageError(f"{file} is not the name of a picture", "let it end in .svg or .png")
    if not file.absolute().parent.is_dir():
        raise UsageError(f"{file} cannot be written: there is no such directory", "make it first")
    if importlib.util.find_spec("matplotlib") is None:
        raise EnvironmentUnavailableError("matplotlib is not installed, and draws", "pip install 'sdeivirt[plot]'")


def plot_postcopy(points: Sequence[dict[str, Any]], file: Path) -> None:
    """Time that is gained, by the latency of a page, a line for each number of threads; or bars for one latency.

    `points` are those of :class:`~sdeivirt.benchmarks.postcopy.Findings`.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    shown = [point for point in points if not point["kernel"]]
    latencies = sorted({point["latency"] for point in shown})
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot()
    if len(latencies) > 1:
        _curves(axes, shown)
    else:
        _bars(axes, shown)
    axes.axhline(0, color="0.4", linewidth=0.8)
    axes.set_ylabel("less time with asynchronous page faults (%)")
    axes.set_title(", ".join(sorted({point["guest"] for point in shown})))
    axes.grid(alpha=0.3)
    # Text stays text, and the same figures give the same file.
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "sdeivirt"}):
        figure.savefig(file, metadata={"Date": None} if file.suffix == ".svg" else None)


def _works(points: Sequence[dict[str, Any]]) -> list[tuple[int, int]]:
    return sorted({(point["memory_threads"], point["compute_threads"]) for point in points})


def _curves(axes: Any, points: Sequence[dict[str, Any]]) -> None:
    for walkers, computers in _works(points):
        line = sorted(
            (point["latency"] * 1e3, point["gain"], *_spread(point))
            for point in points
            if (point["memory_threads"], point["compute_threads"]) == (walkers, computers)
        )
        at, gains, low, high = zip(*line, strict=True)
        axes.plot(at, gains, marker="o", label=f"{walkers} memory + {computers} compute")
        axes.fill_between(at, low, high, alpha=0.15)
    axes.set_xscale("log")
    ticks = sorted({point["latency"] * 1e3 for point in points})
    axes.set_xticks(ticks, [f"{each:g}" for each in ticks])
    axes.set_xlabel("latency of a page (ms)")
    axes.legend()


def _bars(axes: Any, points: Sequence[dict[str, Any]]) -> None:
    names = [f"{point['memory_threads']} + {point['compute_threads']}" for point in points]
    places = range(len(points))
    spreads = [_spread(point) for point in points]
    errors = [
        [point["gain"] - low for point, (low, _) in zip(points, spreads, strict=True)],
        [high - point["gain"] for point, (_, high) in zip(points, spreads, strict=True)],
    ]
    axes.bar([place - 0.2 for place in places], [point["gain"] for point in points], 0.4, yerr=errors, label="measured")
    ideal = [100 * (1 - point["bound"] / _middle(point["without"])) for point in points]
    axes.bar([place + 0.2 for place in places], ideal, 0.4, label="ideal", color="0.75")
    axes.set_xticks(list(places), names)
    axes.set_xlabel(f"memory + compute threads, {points[0]['latency'] * 1e3:g} ms")
    axes.legend()


def _middle(values: Sequence[float]) -> float:
    return sorted(values)[len(values) // 2]


def _spread(point: dict[str, Any]) -> tuple[float, float]:
    gains = [100 * (1 - on / off) for off, on in zip(point["without"], point["with"], strict=True)]
    return min(gains), max(gains)
