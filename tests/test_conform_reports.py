# SPDX-License-Identifier: Apache-2.0
"""What the suite's reports say to people and to programs."""

from __future__ import annotations

import io
import json
import re
from typing import Any
from xml.etree import ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from sdeivirt.cli import main
from sdeivirt.conformance import Record, Report, SuiteRun, Verdict, report_of_log
from sdeivirt.conformance import known as known_module
from sdeivirt.conformance.reports import to_json, to_junit, to_tap
from sdeivirt.conformance.table import render
from sdeivirt.errors import UsageError

from .conform_support import stream

TESTS = [("state.a", "pass"), ("state.b", "fail"), ("mask.c", "skip"), ("mask.d", "fail"), ("mask.e", "pass")]
LOG = stream(TESTS).encode()


@pytest.fixture
def deviations(monkeypatch: pytest.MonkeyPatch) -> None:
    """A policy that deviates in one test, and is held to deviate in another."""
    known = {"tf-a": {"state.b": "TF-A #1 does so", "mask.e": "nobody saw it pass"}}
    monkeypatch.setattr(known_module, "KNOWN", known)


def shown(report: Report, verbose: bool = False) -> str:
    out = io.StringIO()
    Console(file=out, width=200).print(*render(report, verbose=verbose), sep="\n")
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines())


# -- from a log


def test_a_log_becomes_a_report() -> None:
    report = report_of_log(b"U-Boot 2024.01\r\n" + LOG.replace(b"\n", b"\r\n"), "uart.log")
    assert (report.machine, report.vcpus, report.version, report.policy) == ("uart.log", 4, "1.1", "")
    (run,) = report.runs
    assert (run.conduit, run.boots, run.problems) == ("hvc", 1, [])
    assert [record.verdict for record in run.records] == [
        *(Verdict.PASS, Verdict.FAIL, Verdict.SKIP, Verdict.FAIL, Verdict.PASS)
    ]
    assert not report.ok


def test_boots_in_a_log_are_put_together_by_conduit() -> None:
    crashed = LOG[: LOG.index(b"not ok 2")]
    rest = stream(TESTS[2:]).encode()
    smc = LOG.replace(b"conduit hvc", b"conduit smc")
    report = report_of_log(crashed + b"\nreboot\n" + rest + smc, "uart.log")
    hvc, other = report.runs
    assert (hvc.conduit, hvc.boots, other.conduit, other.boots) == ("hvc", 2, "smc", 1)
    assert [record.id for record in hvc.records] == [test for test, _ in TESTS]
    assert [record.verdict for record in hvc.records] == [record.verdict for record in other.records]
    assert hvc.records[1].message == "the guest stopped without a verdict: it began anew"
    assert hvc.problems == []


def test_a_failure_in_one_boot_stays_one() -> None:
    good = stream([("state.a", "pass")]).encode()
    bad = stream([("state.a", "fail")]).encode()
    for log in (good + bad, bad + good):
        (run,) = report_of_log(log, "log").runs
        assert [record.verdict for record in run.records] == [Verdict.FAIL]


def test_a_log_without_an_end_is_no_success() -> None:
    report = report_of_log(stream([("state.a", "pass"), ("state.b", "pass")]).encode()[: -len("# done\n")], "log")
    assert report.totals()["passed"] == 2
    assert report.runs[0].problems == ["the log ends before the end of the suite"]
    assert not report.ok


def test_a_log_of_a_platform_without_sdei() -> None:
    report = report_of_log(b"TAP version 14\n1..0 # SKIP no /firmware/sdei in the device tree\n# done\n", "log")
    assert report.runs[0].problems == ["there was no test to run: no /firmware/sdei in the device tree"]
    assert not report.ok
    assert "no /firmware/sdei" in shown(report)
    assert ET.fromstring(to_junit(report)).attrib["errors"] == "1"


def test_a_log_of_something_else_is_refused() -> None:
    with pytest.raises(UsageError, match="no output of the conformance suite"):
        report_of_log(b"ok 1 - hello\nBail\n", "some.log")


def test_tests_of_a_log_can_be_chosen() -> None:
    report = report_of_log(LOG, "log", only=["mask"])
    assert [record.id for record in report.records()] == ["mask.c", "mask.d", "mask.e"]
    with pytest.raises(UsageError, match="did you mean 'mask"):
        report_of_log(LOG, "log", only=["masc"])


# -- for people


def test_the_table_has_groups_failures_and_skips() -> None:
    text = shown(report_of_log(LOG, "uart.log"))
    assert re.search(r"^state +1 +1 +- +-$", text, re.MULTILINE)
    assert re.search(r"^mask +1 +1 +- +1$", text, re.MULTILINE)
    assert re.search(r"^FAIL +state\.b +DEN0054C 5\.1 +state\.b is wrong$", text, re.MULTILINE)
    assert "at x.c:1" in text
    assert re.search(r"^SKIP +mask\.c +DEN0054C 5\.2 +there is no mask\.c$", text, re.MULTILINE)
    assert "state.a" not in text
    assert text.endswith("5 tests: 2 passed, 2 failed, 1 skipped")


def test_tests_that_were_not_run_share_a_line() -> None:
    log = LOG[: LOG.index(b"# run state.b")] + b"Bail out! PE 1 does not answer\n"
    text = shown(report_of_log(log, "uart.log"))
    assert re.search(
        r"^SKIP +state\.b \.\.\. mask\.e +4 tests +not run: the guest bailed out: PE 1 does not", text, re.M
    )
    assert text.count("not run: ") == 1


def test_verbose_shows_every_test() -> None:
    text = shown(report_of_log(LOG, "uart.log"), verbose=True)
    for i, (test, _) in enumerate(TESTS):
        assert re.search(rf"^(PASS|FAIL|SKIP) +{re.escape(test)} +DEN0054C 5\.{i} +the title of {test}$", text, re.M)


@pytest.mark.usefixtures("deviations")
def test_known_deviations_fail_and_are_marked() -> None:
    report = report_of_log(LOG, "uart.log", "tf-a")
    assert report.totals() == {
        "tests": 5, "passed": 2, "failed": 2, "skipped": 1, "known": 1, "unexpectedly_passed": 1,
    }  # fmt: skip
    assert not report.ok  # mask.d
    text = shown(report)
    assert re.search(r"^state +1 +- +1 +-$", text, re.MULTILINE)
    assert re.search(r"^FAIL known +state\.b ", text, re.MULTILINE)
    assert "known: TF-A #1 does so" in text
    assert re.search(r"^PASS \(expected to fail\) +mask\.e ", text, re.MULTILINE)
    assert text.endswith("2 passed (1 expected to fail), 2 failed (1 known), 1 skipped")
    tests = {test["id"]: test for test in to_json(report)["runs"][0]["tests"]}
    assert (tests["state.b"]["verdict"], tests["state.b"]["known"]) == ("FAIL", "TF-A #1 does so")
    failure = ET.fromstring(to_junit(report)).find(".//testcase[@name='state.b']/failure")
    assert failure is not None
    assert failure.attrib == {"type": "known", "message": "known: TF-A #1 does so: state.b is wrong"}
    assert "not ok 2 - hvc state.b # TODO known: TF-A \\#1 does so\n" in to_tap(report)
    assert "not ok 4 - hvc mask.d\n" in to_tap(report)
    report.runs[0].records = [record for record in report.runs[0].records if record.id != "mask.d"]
    assert report.ok


@pytest.mark.usefixtures("deviations")
def test_other_policies_know_nothing_of_them() -> None:
    assert not any(record.known for record in report_of_log(LOG, "log", "kvm").records())


# -- for programs


def check_junit(text: str) -> ET.Element:
    """The shape that CI systems agree on (the schema of Jenkins' xUnit plug-in)."""
    root = ET.fromstring(text)
    assert root.tag == "testsuites"
    assert {"tests", "failures", "errors", "skipped", "time"} < root.attrib.keys()
    sums = dict.fromkeys(("tests", "failures", "errors", "skipped"), 0)
    for suite in root:
        assert suite.tag == "testsuite"
        assert {"name", *sums, "time"} == suite.attrib.keys()
        float(suite.attrib["time"])
        properties, *cases = suite
        assert properties.tag == "properties"
        assert all(p.tag == "property" and p.attrib.keys() == {"name", "value"} for p in properties)
        found = dict.fromkeys(sums, 0) | {"tests": len(cases)}
        for case in cases:
            assert case.tag == "testcase"
            assert case.attrib.keys() == {"classname", "name", "time"}
            float(case.attrib["time"])
            outcomes = [child.tag for child in case if child.tag != "system-out"]
            assert len(outcomes) <= 1
            assert {child.tag for child in case} <= {"failure", "error", "skipped", "system-out"}
            for tag, name in (("failure", "failures"), ("error", "errors"), ("skipped", "skipped")):
                found[name] += outcomes.count(tag)
            assert all("message" in child.attrib for child in case if child.tag != "system-out")
        for name, count in found.items():
            assert int(suite.attrib[name]) == count
            sums[name] += count
    assert sums == {name: int(root.attrib[name]) for name in sums}
    return root


def check_tap(text: str) -> list[tuple[bool, str, str]]:
    """TAP 14 as its specification has it; (ok, description, directive) of each test point."""
    version, plan, *lines = text.splitlines()
    assert version == "TAP version 14"
    points: list[tuple[bool, str, str]] = []
    in_block = False
    for line in lines:
        if line == "  ---":
            assert points
            in_block = True
        elif line == "  ...":
            in_block = False
        elif in_block:
            key, colon, value = line.strip().partition(": ")
            assert colon
            assert re.fullmatch(r"\w+", key)
            assert isinstance(json.loads(value), str)
        else:
            match = re.fullmatch(r"(not )?ok (\d+) - ((?:[^\\#]|\\.)*?)(?: # (.*))?", line)
            assert match, line
            points.append((not match[1], match[3], match[4] or ""))
            assert int(match[2]) == len(points)
    assert not in_block
    assert plan == f"1..{len(points)}"
    return points


def test_junit() -> None:
    report = report_of_log(LOG + LOG.replace(b"conduit hvc", b"conduit smc"), "uart.log", "kvm")
    report.engine = "QEMU 7.2"
    root = check_junit(to_junit(report))
    assert [suite.attrib["name"] for suite in root] == ["conform.hvc", "conform.smc"]
    facts = {p.attrib["name"]: p.attrib["value"] for p in root[0][0]}
    assert facts == {
        "machine": "uart.log",
        "policy": "kvm",
        "vcpus": "4",
        "version": "1.1",
        "engine": "QEMU 7.2",
        "platform": "4 PEs, conduit hvc, SDEI 1.1, vendor 0x4b564d",
    }
    failed = root.find(".//testcase[@name='state.b']")
    assert failed is not None
    assert failed.attrib["classname"] == "state"
    assert failed[0].attrib == {"message": "state.b is wrong", "type": "nonconforming"}
    assert "at: x.c:1" in (failed[0].text or "")
    skipped = root.find(".//testcase[@name='mask.c']/skipped")
    assert skipped is not None
    assert skipped.attrib == {"message": "there is no mask.c"}


def test_tap() -> None:
    assert check_tap(to_tap(report_of_log(LOG, "uart.log"))) == [
        (True, "hvc state.a", ""),
        (False, "hvc state.b", ""),
        (True, "hvc mask.c", "SKIP there is no mask.c"),
        (False, "hvc mask.d", ""),
        (True, "hvc mask.e", ""),
    ]


TEXT = st.text(max_size=30)
RECORDS = st.builds(
    Record,
    id=st.from_regex(r"[a-z]{1,6}\.[a-z]{1,6}", fullmatch=True),
    rule=TEXT,
    title=TEXT,
    verdict=st.sampled_from(Verdict),
    message=TEXT,
    at=TEXT,
    notes=st.lists(TEXT, max_size=2),
    detail=TEXT,
    seconds=st.none() | st.floats(0, 100),
    known=TEXT,
)
RUNS = st.builds(
    SuiteRun, st.sampled_from(["hvc", "smc"]), st.lists(RECORDS, max_size=5),
    st.just({}) | st.builds(lambda text: {"text": text}, TEXT), st.lists(TEXT.filter(bool), max_size=2),
)  # fmt: skip


@given(st.builds(Report, TEXT, policy=TEXT, engine=TEXT, runs=st.lists(RUNS, min_size=1, max_size=2)))
def test_whatever_is_in_a_report_its_forms_are_sound(report: Report) -> None:
    check_junit(to_junit(report))
    points = check_tap(to_tap(report))
    assert sum(not ok for ok, _, directive in points if not directive.startswith("TODO")) == sum(
        record.verdict is Verdict.FAIL and not record.known for record in report.records()
    ) + sum(bool(run.problems) for run in report.runs)
    document = json.loads(json.dumps(to_json(report)))
    assert document["ok"] is report.ok
    assert document["totals"]["tests"] == sum(len(run.records) for run in report.runs)
    shown(report)
    shown(report, verbose=True)


# -- the command


def write(tmp_path: Any, data: bytes) -> str:
    path = tmp_path / "uart.log"
    path.write_bytes(data)
    return str(path)


def test_a_log_on_the_command_line(tmp_path: Any, capsys: pytest.CaptureFixture[str]) -> None:
    junit, tap = tmp_path / "o.xml", tmp_path / "o.tap"
    words = ["conform", "--from-log", write(tmp_path, LOG), "--junit", str(junit), "--tap", str(tap)]
    assert main(words) == 1
    out, err = capsys.readouterr()
    assert "2 passed, 2 failed, 1 skipped" in out
    assert err == ""
    assert len(check_junit(junit.read_text("utf-8"))) == 1
    assert len(check_tap(tap.read_text("utf-8"))) == 5
    assert main([*words, "--json", "state.a"]) == 0
    assert [test["id"] for test in json.loads(capsys.readouterr().out)["runs"][0]["tests"]] == ["state.a"]


@pytest.mark.usefixtures("deviations")
def test_known_deviations_of_a_log_need_a_policy(tmp_path: Any, capsys: pytest.CaptureFixture[str]) -> None:
    log = write(tmp_path, stream([("state.b", "fail")]).encode())
    assert main(["conform", "--from-log", log]) == 1
    assert main(["conform", "--from-log", log, "--policy", "tf-a"]) == 0
    assert main(["conform", "--from-log", log, "--policy", "other"]) == 2
    capsys.readouterr()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--from-log", "/nowhere/at.all"], "cannot read /nowhere/at.all: No such file"),
        (["--list", "--export", "x"], "exclude each other"),
        (["--junit", "/nowhere/at/all.xml"], "cannot write /nowhere/at/all.xml"),
        (["--tap", "/"], "cannot write /"),
        (["--export", "x", "state"], "the exported guest has all tests"),
        (["--conduit", "svc"], "svc"),
        (["--timeout", "0"], "no time"),
        (["--policy", "x"], "no policy 'x'"),
        (["--machine", "x"], "no machine 'x'"),
    ],
)
def test_bad_input(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["conform", *words]) == 2
    assert message in capsys.readouterr().err
