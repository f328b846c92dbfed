# SPDX-License-Identifier: Apache-2.0
"""A report for programs: JSON, JUnit XML, TAP 14.

A known deviation is a failure in each of them, and marked as what it is:
`known` in JSON, the failure's type in JUnit, a TODO directive in TAP.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any
from xml.etree import ElementTree as ET

from .model import Record, Report, SuiteRun, Verdict

__all__ = ["to_json", "to_junit", "to_tap"]

# What XML 1.0 cannot hold.
_NOT_XML = re.compile("[^\\t\\n\\r\\x20-\\ud7ff\\ue000-\\ufffd\\U00010000-\\U0010ffff]")


# -- JSON


def to_json(report: Report) -> dict[str, Any]:
    """The whole report, for json.dumps."""
    return {
        "machine": report.machine,
        "policy": report.policy,
        "vcpus": report.vcpus,
        "version": report.version,
        "engine": report.engine,
        "ok": report.ok,
        "interrupted": report.interrupted,
        "error": str(report.error) if report.error is not None else None,
        "totals": report.totals(),
        "runs": [
            {
                "conduit": run.conduit,
                "platform": run.platform,
                "boots": run.boots,
                "seconds": round(run.seconds, 3),
                "problems": run.problems,
                "tests": [_test(record) for record in run.records],
            }
            for run in report.runs
        ],
    }


def _test(record: Record) -> dict[str, Any]:
    return {
        "id": record.id,
        "rule": record.rule,
        "title": record.title,
        "verdict": record.verdict.value if record.verdict else None,
        "message": record.message,
        "at": record.at,
        "known": record.known,
        "notes": record.notes,
        "detail": record.detail,
        "seconds": None if record.seconds is None else round(record.seconds, 3),
    }


# -- JUnit


def to_junit(report: Report) -> str:
    """JUnit XML: a test suite for each conduit, a class for each group of tests.

    A run that did not come to its end has an error besides: a test case of its own.
    """
    totals = report.totals()
    errors = sum(bool(run.problems) for run in report.runs)
    root = ET.Element(
        "testsuites",
        name="sdeivirt conform",
        tests=str(totals["tests"] + errors),
        failures=str(totals["failed"]),
        errors=str(errors),
        skipped=str(totals["skipped"]),
        time=_seconds(sum(run.seconds for run in report.runs)),
    )
    for run in report.runs:
        _suite(root, report, run)
    ET.indent(root)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ET.tostring(root, encoding="unicode") + "\n"


def _suite(root: ET.Element, report: Report, run: SuiteRun) -> None:
    counts = run.counts()
    suite = ET.SubElement(
        root,
        "testsuite",
        name=f"conform.{run.conduit}",
        tests=str(len(run.records) + bool(run.problems)),
        failures=str(counts[Verdict.FAIL]),
        errors=str(int(bool(run.problems))),
        skipped=str(counts[Verdict.SKIP]),
        time=_seconds(run.seconds),
    )
    properties = ET.SubElement(suite, "properties")
    facts = {
        "machine": report.machine,
        "policy": report.policy,
        "vcpus": str(report.vcpus),
        "version": run.platform.get("version", report.version),
        "engine": report.engine,
        "platform": run.platform.get("text", ""),
    }
    for name, value in facts.items():
        ET.SubElement(properties, "property", name=name, value=_xml(value))
    for record in run.records:
        _case(suite, record)
    if run.problems:
        case = ET.SubElement(suite, "testcase", classname="suite", name="the run as a whole", time="0.000")
        error = ET.SubElement(case, "error", message=_xml(run.problems[0].partition("\n")[0]), type="incomplete")
        error.text = _xml("\n".join(run.problems))


def _case(suite: ET.Element, record: Record) -> None:
    case = ET.SubElement(
        suite, "testcase", classname=record.group, name=record.id, time=_seconds(record.seconds or 0.0)
    )
    if record.verdict is Verdict.FAIL:
        known = f"known: {record.known}: " if record.known else ""
        failure = ET.SubElement(
            case, "failure", message=_xml(known + record.message), type="known" if record.known else "nonconforming"
        )
        facts = [f"rule: {record.rule}", f"title: {record.title}", f"at: {record.at}" if record.at else ""]
        failure.text = _xml("\n".join(filter(None, [*facts, record.detail])))
    elif record.verdict is Verdict.SKIP:
        ET.SubElement(case, "skipped", message=_xml(record.message))
    lines = [f"note: {note}" for note in record.notes]
    if record.surprising:
        lines.append(f"expected to fail, passed; known: {record.known}")
    if lines:
        ET.SubElement(case, "system-out").text = _xml("\n".join(lines))


def _seconds(value: float) -> str:
    return f"{value:.3f}"


def _xml(text: str) -> str:
    return _NOT_XML.sub("\ufffd", text)


# -- TAP


def to_tap(report: Report) -> str:
    """TAP 14, all conduits in one stream; a run that did not come to its end is a failure of its own."""
    lines = list(_points(report))
    return (
        "\n".join(["TAP version 14", f"1..{len(lines)}", *(_numbered(i, line) for i, line in enumerate(lines, 1))])
        + "\n"
    )


def _numbered(number: int, line: tuple[bool, str, list[str]]) -> str:
    ok, text, block = line
    return "\n".join([f"{'ok' if ok else 'not ok'} {number} - {text}", *block])


def _points(report: Report) -> Iterator[tuple[bool, str, list[str]]]:
    for run in report.runs:
        for record in run.records:
            yield _point(run, record)
        if run.problems:
            yield False, f"{run.conduit} the run as a whole", _block({"message": "; ".join(run.problems)})


def _point(run: SuiteRun, record: Record) -> tuple[bool, str, list[str]]:
    text = f"{run.conduit} {record.id}"
    notes = {f"note{i or ''}": note for i, note in enumerate(record.notes)}
    if record.verdict is Verdict.SKIP:
        return True, f"{text} # SKIP {_escaped(record.message)}", _block(notes)
    if record.verdict is Verdict.PASS:
        if record.known:
            notes = {"expected": f"failure, known: {record.known}", **notes}
        return True, text, _block(notes)
    if record.known:
        text += f" # TODO known: {_escaped(record.known)}"
    facts = {"message": record.message, "rule": record.rule, "title": record.title, "at": record.at}
    return False, text, _block({name: fact for name, fact in facts.items() if fact} | notes)


def _escaped(text: str) -> str:
    return re.sub(r"([\\#])", r"\\\1", " ".join(text.split()))


def _block(facts: dict[str, str]) -> list[str]:
    if not facts:
        return []
    # A JSON string is a YAML scalar.
    return ["  ---", *(f"  {name}: {json.dumps(fact)}" for name, fact in facts.items()), "  ..."]
