# SPDX-License-Identifier: Apache-2.0
"""A report from the log of a serial port: for the guest under another hypervisor or firmware.

A log may hold several boots, one after the other: those by the same conduit are
put together. A failure in one of them stays a failure.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..errors import UsageError
from .known import known_deviations
from .model import Record, Report, SuiteRun, Verdict
from .selection import check_ids, selected
from .tap import Stream, TapParser

__all__ = ["report_of_log"]

_ENDS = "the log ends without a verdict"


def report_of_log(log: bytes, source: str, policy: str = "", only: Sequence[str] = ()) -> Report:
    """The report of a log. `policy` names whose deviations are known; `only` selects tests.

    Raises UsageError where the log has nothing of the suite, or `only` selects nothing.
    """
    parser = TapParser()
    parser.feed(log)
    parser.finish(_ENDS)
    if not parser.streams:
        raise UsageError(
            f"{source} holds no output of the conformance suite",
            "it begins with a line `TAP version 14`; give the log of the guest's serial port",
        )
    report = Report(source, policy)
    by_conduit: dict[str, list[Stream]] = {}
    for stream in parser.streams:
        by_conduit.setdefault(stream.platform.get("conduit", "unknown"), []).append(stream)
    report.runs = [_run(conduit, streams) for conduit, streams in by_conduit.items()]
    first = report.runs[0].platform
    report.version = first.get("version", "")
    report.vcpus = int(first.get("pes", "0"))
    if only:
        words = check_ids(only, [record.id for record in report.records()])
        for run in report.runs:
            run.records = [record for record in run.records if selected(record.id, words)]
        report.runs = [run for run in report.runs if run.records]
    for run in report.runs:
        run.mark_known(known_deviations(policy))
    return report


def _run(conduit: str, streams: list[Stream]) -> SuiteRun:
    run = SuiteRun(conduit, platform=streams[0].platform, boots=len(streams))
    records: dict[str, Record] = {}
    for stream in streams:
        for test, record in stream.records.items():
            mine = records.get(test)
            if mine is None or mine.verdict is None:
                records[test] = record
            elif record.verdict is Verdict.FAIL:
                mine.fail(record.message, record.detail)
                mine.at = mine.at or record.at
    run.records = list(records.values())
    last = streams[-1]
    why = f"the guest bailed out: {last.bail}" if last.bail is not None else "the log ends before the end of the suite"
    if not last.done:
        run.problems.append(why)
    for stream in streams[:-1]:
        if stream.bail is not None and stream.blameless:
            run.problems.append(
                f"after {stream.ran[-1]} had passed or was skipped, the guest bailed out: {stream.bail}"
            )
    planned = max((stream.plan or 0 for stream in streams), default=0)
    if len(records) < planned:
        run.problems.append(f"{len(records)} of {planned} tests are named in the log")
    elif not records:
        run.problems.append(f"there was no test to run: {last.nothing}" if last.nothing else "the log names no tests")
    run.settle(why if not last.done else "the guest left it out")
    return run
