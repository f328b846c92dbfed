# SPDX-License-Identifier: Apache-2.0
"""A report for people: a line for each group, every failure and skip with its reason, the totals."""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Iterator

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from .model import Record, Report, SuiteRun, Verdict

__all__ = ["catalogue_markdown", "catalogue_table", "render"]

# Of a vCPU's report: why it stopped, and the instruction. The registers are in the other forms.
_REPORT_LINE = re.compile(r"vCPU |\s*=> |\S*Error")
MANY = 3  # so many more tests that are skipped for one reason are one line
_STYLES = {Verdict.PASS: "green", Verdict.FAIL: "bold red", Verdict.SKIP: "yellow"}


def render(report: Report, *, verbose: bool = False) -> list[RenderableType]:
    """What to print, part by part. `verbose` gives every test a line, with the rule."""
    parts: list[RenderableType] = []
    for run in report.runs:
        parts += [*_run(report, run, verbose), Text("")]
    parts.append(_totals(report))
    return parts


def catalogue_table(records: list[Record]) -> Table:
    """The tests there are, with the rule of each."""
    made = _frame("test", "rule", "title")
    for record in records:
        made.add_row(record.id, Text(record.rule), Text(record.title))
    return made


def catalogue_markdown(records: list[Record]) -> str:
    """The same for a page of the documentation: a table for each group."""
    lines: list[str] = []
    group = ""
    for record in records:
        if record.group != group:
            group = record.group
            lines += [*([""] if lines else []), f"## {group}", "", "| test | rule | |", "|---|---|---|"]
        cells = (f"`{record.id}`", record.rule, record.title)
        lines.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
    return "\n".join(lines) + "\n"


def _run(report: Report, run: SuiteRun, verbose: bool) -> Iterator[RenderableType]:
    where = [report.machine, *([f"policy {report.policy}"] if report.policy else [])]
    where.append(run.platform.get("text") or f"conduit {run.conduit}")
    yield Text(", ".join(where), style="bold")
    if verbose:
        yield _every_test(run)
    else:
        yield _groups(run)
        told = [record for record in run.records if _worth_telling(record)]
        if told:
            yield Text("")
            yield _table_of(told)
    for problem in run.problems:
        yield Text(f"The run did not go well: {problem}", style="bold red")


def _frame(*columns: str) -> Table:
    made = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    for column in columns:
        made.add_column(
            column, header_style="dim", no_wrap=column not in ("reason", "title"), overflow="fold",
            justify="right" if column in ("pass", "fail", "known", "skip") else "left",
        )  # fmt: skip
    return made


def _groups(run: SuiteRun) -> Table:
    made = _frame("group", "pass", "fail", "known", "skip")
    for group, records in run.groups().items():
        counts = Counter(record.verdict for record in records)
        known = sum(record.explained for record in records)
        numbers = [counts[Verdict.PASS], counts[Verdict.FAIL] - known, known, counts[Verdict.SKIP]]
        cells = zip(numbers, ("", "bold red", "yellow", "yellow"), strict=True)
        made.add_row(group, *(Text(str(number), style) if number else Text("-", "dim") for number, style in cells))
    return made


def _worth_telling(record: Record) -> bool:
    return record.verdict is not Verdict.PASS or record.surprising


def _verdict(record: Record) -> Text:
    assert record.verdict is not None
    word = record.verdict.value + (" known" if record.explained else " (expected to fail)" if record.surprising else "")
    return Text(word, "yellow" if record.known else _STYLES[record.verdict])


def _reason(record: Record, notes: bool) -> Text:
    lines = [record.message] if record.message else []
    if record.known:
        lines.append(f"known: {record.known}")
    if record.verdict is Verdict.FAIL:
        lines += [f"at {record.at}"] if record.at else []
        lines += [line for line in record.detail.splitlines() if _REPORT_LINE.match(line)]
    if notes or record.verdict is Verdict.FAIL:
        lines += [f"note: {note}" for note in record.notes]
    return Text("\n".join(lines))


def _table_of(records: list[Record]) -> Table:
    made = _frame("verdict", "test", "rule", "reason")
    for (_, message), alike in itertools.groupby(records, key=lambda record: (record.verdict, record.message)):
        first, *more = alike
        if (more and message.startswith("not run: ")) or (len(more) >= MANY and first.verdict is Verdict.SKIP):
            made.add_row(_verdict(first), f"{first.id} ... {more[-1].id}", f"{1 + len(more)} tests", Text(message))
            continue
        for record in (first, *more):
            made.add_row(_verdict(record), record.id, Text(record.rule), _reason(record, notes=False))
    return made


def _every_test(run: SuiteRun) -> Table:
    made = _frame("verdict", "test", "rule", "reason")
    for record in run.records:
        text = _reason(record, notes=True)
        what = Text(record.title) if not text else Text(record.title + "\n", "") + text
        made.add_row(_verdict(record), record.id, Text(record.rule), what)
    return made


def _totals(report: Report) -> Text:
    totals = report.totals()
    parts = [f"{totals['passed']} passed", f"{totals['failed']} failed", f"{totals['skipped']} skipped"]
    if totals["known"]:
        parts[1] += f" ({totals['known']} known)"
    if totals["unexpectedly_passed"]:
        parts[0] += f" ({totals['unexpectedly_passed']} expected to fail)"
    seconds = sum(run.seconds for run in report.runs)
    took = f" in {seconds:.1f} s" if seconds else ""
    ended = "; interrupted" if report.interrupted else ""
    return Text(f"{totals['tests']} tests: {', '.join(parts)}{took}{ended}", "bold green" if report.ok else "bold red")
