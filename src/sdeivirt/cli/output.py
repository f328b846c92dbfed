# SPDX-License-Identifier: Apache-2.0
"""Tables for people."""

from __future__ import annotations

import re
import shutil
import sys
import textwrap
from collections.abc import Iterable, Sequence

from rich.console import Console, ConsoleDimensions, ConsoleOptions, RenderableType
from rich.measure import Measurement
from rich.table import Table

__all__ = ["flags", "folded", "ranges", "show", "table"]

_PIPED_WIDTH = 200
_WIDEST = 4000
_LAST_CELL = re.compile(r".*\S {2,}(?=\S)")


def show(*parts: RenderableType) -> None:
    """Print to standard output: colours on a terminal unless NO_COLOR says otherwise, nothing cut off in a pipe."""
    console = Console(width=None if sys.stdout.isatty() else _PIPED_WIDTH, highlight=False)
    # On a terminal that is too narrow it is the terminal that breaks a line: nothing is left out.
    wide = console.options.update(width=_WIDEST)
    for part in parts:
        if isinstance(part, Table):
            _keep_whole(console, wide, part)
    least = max((Measurement.get(console, wide, part).minimum for part in parts), default=0)
    console.size = ConsoleDimensions(max(console.width, least), console.height)
    with console.capture() as capture:
        console.print(*parts, sep="\n")
    # Tables pad their last column.
    print("\n".join(line.rstrip() for line in capture.get().rstrip().split("\n")))


def _keep_whole(console: Console, wide: ConsoleOptions, made: Table) -> None:
    """Columns that must not be broken are as wide as what they hold, and others as their longest word."""
    for column in made.columns:
        header, *cells = (Measurement.get(console, wide, cell) for cell in (column.header, *column.cells))
        widths = (each.maximum if column.no_wrap else each.minimum for each in cells)
        column.min_width = max(header.maximum, *widths, 0)


def table(title: str, *columns: str) -> Table:
    """An empty table without frame."""
    made = Table(title=title, title_justify="left", title_style="bold", box=None, padding=(0, 2, 0, 0), pad_edge=False)
    for column in columns:
        # Where a terminal is too narrow, only what consists of words is broken, and between words.
        made.add_column(column, header_style="dim", justify="left", no_wrap=column not in ("state", "of these"))
    return made


def folded(text: str) -> str:
    """Lines of text in columns: on a terminal those that are too long go on below their last cell."""
    if not sys.stdout.isatty():
        return text
    width = shutil.get_terminal_size().columns
    return "\n".join(each for line in text.split("\n") for each in _fold(line, width))


def _fold(line: str, width: int) -> list[str]:
    if len(line) <= width:
        return [line]
    cell = _LAST_CELL.match(line)
    indent = cell.end() if cell else len(line) - len(line.lstrip()) + 2
    if indent > width * 2 // 3:
        indent = 4
    return textwrap.wrap(line, width, subsequent_indent=" " * indent, break_long_words=False, break_on_hyphens=False)


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
