# SPDX-License-Identifier: Apache-2.0
"""How a campaign goes on, and what came of it, for people."""

from __future__ import annotations

import sys
import time

from rich.console import Console
from rich.status import Status

from .campaign import Summary
from .coverage import missing, reached

__all__ = ["Progress", "render"]

EVERY = (1.0, 60.0)  # seconds between two lines where there is no terminal: at first, and at most
SHOWN = 12  # of what is missing


class Progress:
    """Says on standard error how far a campaign is: a line that changes on a terminal, else one now and then."""

    def __init__(self, calls: int | None, seconds: float | None) -> None:
        self._calls = calls
        self._seconds = seconds
        self._pause, self._longest = EVERY
        self._said = time.monotonic()
        self._status: Status | None = None
        if sys.stderr.isatty():
            self._status = Status("starting", console=Console(stderr=True))

    def __enter__(self) -> Progress:
        if self._status is not None:
            self._status.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def close(self) -> None:
        """Leave the terminal as it was."""
        if self._status is not None:
            self._status.stop()

    def __call__(self, summary: Summary) -> None:
        if self._status is not None:
            self._status.update(self.line(summary))
        elif time.monotonic() - self._said >= self._pause and summary.calls:
            self._said = time.monotonic()
            self._pause = min(2 * self._pause, self._longest)
            print(self.line(summary), file=sys.stderr, flush=True)

    def line(self, summary: Summary) -> str:
        """One line: how far, how fast, how much of the table."""
        of_calls = f" of {self._calls:,}" if self._calls is not None else ""
        of_time = f" of {self._seconds:.0f}" if self._seconds is not None else ""
        cells = " and ".join(
            f"{done}/{total}" for done, total, _, _ in (reached(c, summary.machine) for c in summary.coverage.values())
        )
        return (
            f"{summary.calls:,}{of_calls} calls, {summary.seconds:.0f}{of_time} s, {summary.rate:,.0f} calls/s, "
            f"{summary.delivered:,} events delivered, cells {cells}"
        )


def _steps(number: int) -> str:
    return f"{number} step{'s' * (number != 1)}"


def render(summary: Summary) -> str:
    """What came of the campaign."""
    calls = max(summary.calls, 1)
    cpu = f", {summary.calls / summary.cpu:,.0f} for each second of CPU time" if summary.cpu else ""
    lines = [
        f"machine      {summary.machine}, seed {summary.seed:#x}",
        f"calls        {summary.calls:,} in {summary.seconds:.1f} s: {summary.rate:,.0f} calls/s "
        f"by {summary.workers} worker{'s' * (summary.workers != 1)}{cpu}",
        f"of these     {summary.succeeded / calls:.0%} without an error code; "
        f"{summary.steps - summary.calls:,} other steps between them",
        f"delivered    {summary.delivered:,} events, {summary.delivered / calls:.1%} of the calls",
    ]
    for policy, coverage in summary.coverage.items():
        cells, all_cells, codes, all_codes = reached(coverage, summary.machine)
        if not codes:
            lines.append(f"{policy:12} not attacked: there were too few calls for a job of each policy")
            continue
        lines.append(
            f"{policy:12} {cells} of {all_cells} cells of the state table, {codes} of {all_codes} results of calls"
        )
        absent = missing(coverage, summary.machine) if summary.ended == "done" else []
        lines += [f"             not reached: {what}" for what in absent[:SHOWN]]
        if len(absent) > SHOWN:
            lines.append(f"             and {len(absent) - SHOWN} more")
    lines.append(f"digest       {summary.digest:#010x}")
    for failure in summary.failures:
        lines.append(f"FAILED       {failure.kind}, in {failure.world.policy}, {_steps(len(failure.steps))}")
        lines += [f"             {line}" for line in failure.message.splitlines()]
    lines.append({"done": "PASSED", "failed": "FAILED", "interrupted": "INTERRUPTED"}.get(summary.ended, "ENDED EARLY"))
    return "\n".join(lines)
