# SPDX-License-Identifier: Apache-2.0
"""Tables for people."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence

from rich.console import Console, RenderableType
from rich.table import Table

__all__ = ["flags", "ranges", "show", "table"]

_PIPED_WIDTH = 200


def show(*parts: RenderableType) -> None:
    """Print to standard output: colours on a terminal unless NO_COLOR says otherwise, nothing cut off in a pipe."""
    console = Console(width=None if sys.stdout.isatty() else _PIPED_WIDTH, highlight=False)
    with console.capture() as capture:
        console.print(*parts, sep="\n")
    # Tables pad their last column.
    print("\n".join(line.rstrip() for line in capture.get().rstrip().split("\n")))


def table(title: str, *columns: str) -> Table:
    """An empty table without frame."""
    made = Table(title=title, title_justify="left", title_style="bold", box=None, padding=(0, 2, 0, 0), pad_edge=False)
    for column in columns:
        # Where a terminal is too narrow, only what consists of words is broken, and between words.
        made.add_column(column, header_style="dim", justify="left", no_wrap=column not in ("state", "of these"))
    return made


def ranges(numbers: Iterable[int]) -> str:
    """Numbers in ascending order, runs folded: 0-3,7."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1][1:] = [number]
        else:
            runs.append([number])
    return ",".join("-".join(map(str, run)) for run in runs)


def flags(named: Sequence[tuple[str, bool]]) -> str:
    """The names of the flags that are set."""
    return " ".join(name for name, flag in named if flag) or "-"
