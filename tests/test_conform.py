# SPDX-License-Identifier: Apache-2.0
"""The conformance suite itself, on every machine and with every policy: it passes, but for what is listed here."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from sdeivirt import POLICIES
from sdeivirt.cli import main
from sdeivirt.conformance import Report, Verdict, read_catalogue, run_suite
from sdeivirt.conformance.known import KNOWN
from sdeivirt.conformance.table import catalogue_markdown
from sdeivirt.machine import MachineConfig
from sdeivirt.machine.base import EngineOptions
from sdeivirt.machine.qemu.options import QemuOptions
from sdeivirt.smccc.ids import Conduit

from .control_support import LIMIT, cli, environment
from .machine_support import NEEDS_QEMU

pytestmark = pytest.mark.machine

ROOT = Path(__file__).parents[1]

# What cannot be done: test -> the reason that it gives. Of the machines and their CPU models,
_MACHINE = {
    "unicorn": {
        "entry.pstate.dit": "this CPU has no DIT",
        "entry.pstate.ssbs": "this CPU has no SSBS",
        "entry.pstate.tco": "this CPU has no MTE2",
    },
    "qemu": {
        "entry.pstate.tco": "this CPU has no MTE2",
        "power.down": "CPU_SUSPEND to power-down is carried out as standby",
    },
}
# and of the policies, which are what the firmware is that they are named after.
_POLICY = {
    "kvm": {
        "entry.relative-refused": "relative mode is there",
        "signal.other.private": "this platform's events can be signalled",
        "signal.other.critical": "this platform's events can be signalled",
    },
    "tf-a": {
        "calls.features.relative": "SDEI 1.0 does not know relative mode",
        "entry.relative": "no relative mode",
        "entry.relative-shared": "no relative mode",
        "state.unregister-drops": "EVENT_SIGNAL refuses a target that is not enabled",
        "signal.collapse": "EVENT_SIGNAL refuses a target that is masked",
        "priority.critical-first": "events cannot be raised for a masked PE",
        "reset.private.pending": "EVENT_SIGNAL refuses a target that is masked",
    },
}


def failures(report: Report) -> list[tuple[str, str, str, str]]:
    """Everything that is neither passed, nor known, nor listed."""
    listed = _MACHINE[report.machine] | _POLICY[report.policy]
    found = []
    for run in report.runs:
        for record in run.records:
            skipped = record.verdict is Verdict.SKIP and record.message.startswith(listed.get(record.id, "\0"))
            if not skipped and not record.explained and (record.verdict is not Verdict.PASS or record.known):
                found.append((run.conduit, record.id, str(record.verdict), record.message))
    return found


def check_whole_suite(
    kind: str, policy: str, conduits: list[Conduit], engine: EngineOptions | None = None, vcpus: int = 4
) -> None:
    report = run_suite(kind, MachineConfig(vcpus=vcpus, policy=POLICIES[policy], engine=engine), conduits=conduits)
    assert failures(report) == []
    assert [run.conduit for run in report.runs] == [conduit.value for conduit in conduits]
    assert all(run.boots == 1 and not run.problems for run in report.runs)
    assert report.ok
    assert report.engine
    assert report.version == ".".join(map(str, POLICIES[policy].version))


@pytest.mark.parametrize("policy", POLICIES)
def test_the_whole_suite_on_unicorn(policy: str) -> None:
    check_whole_suite("unicorn", policy, [Conduit.HVC, Conduit.SMC])


# A minute: vCPUs that wait use the host's CPUs. Three are enough for every test.
@pytest.mark.qemu
@pytest.mark.campaign
@NEEDS_QEMU
def test_the_whole_suite_on_qemu() -> None:
    check_whole_suite("qemu", "kvm", [Conduit.HVC], QemuOptions(cpu="max,pauth-impdef=on"), vcpus=3)


@pytest.mark.qemu
@NEEDS_QEMU
def test_the_other_policy_and_conduit_on_qemu() -> None:
    engine = QemuOptions(cpu="max,pauth-impdef=on")
    config = MachineConfig(vcpus=3, policy=POLICIES["tf-a"], engine=engine)
    report = run_suite("qemu", config, conduits=[Conduit.SMC], only=["calls", "mask", "state.shared.running."])
    assert [entry for entry in failures(report) if not entry[3].startswith("not selected")] == []
    assert report.ok


@pytest.mark.parametrize("vcpus", [1, 2, 3, 8])
def test_with_fewer_or_more_vcpus_nothing_fails(vcpus: int) -> None:
    report = run_suite("unicorn", MachineConfig(vcpus=vcpus), conduits=[Conduit.HVC])
    assert report.ok
    needs = [entry for entry in failures(report) if entry[3].startswith("needs ")]
    assert failures(report) == needs
    assert bool(needs) is (vcpus < 3)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_in_any_schedule(seed: int) -> None:
    report = run_suite("unicorn", MachineConfig(vcpus=4, seed=seed), conduits=[Conduit.HVC])
    print(f"seed {seed}")
    assert failures(report) == []


def test_what_is_known_is_in_the_catalogue() -> None:
    ids = {record.id for record in read_catalogue()}
    assert {test for known in KNOWN.values() for test in known} <= ids
    assert KNOWN.keys() == POLICIES.keys()


def test_the_catalogue() -> None:
    records = read_catalogue()
    ids = [record.id for record in records]
    assert len(ids) == len(set(ids)) >= 100
    for record in records:
        assert re.fullmatch(r"[a-z0-9-]+(\.[a-z0-9-]+)+", record.id)
        assert record.rule
        assert record.title
    page = (ROOT / "docs" / "conformance-tests.md").read_text("utf-8")
    assert page.endswith(catalogue_markdown(records)), "run tools/make-conformance-page"


def test_the_list(capsys: pytest.CaptureFixture[str]) -> None:
    first = read_catalogue()[0]
    assert main(["conform", "--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split()[0] == first.id
    assert main(["conform", "--list", "--json", first.group]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert listed[0] == {"id": first.id, "rule": first.rule, "title": first.title}
    assert {test["id"].partition(".")[0] for test in listed} == {first.group}


def test_chosen_tests(capsys: pytest.CaptureFixture[str]) -> None:
    first, second, *_ = read_catalogue()
    words = ["conform", "--conduit", "smc", "--json", first.id, second.id]
    assert main(words) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["machine"], report["policy"], report["vcpus"], report["ok"]) == ("unicorn", "kvm", 4, True)
    (run,) = report["runs"]
    assert run["conduit"] == "smc"
    assert [test["id"] for test in run["tests"]] == [first.id, second.id]
    assert all(test["verdict"] == "PASS" for test in run["tests"])


def test_an_unknown_id(capsys: pytest.CaptureFixture[str]) -> None:
    first = read_catalogue()[0]
    assert main(["conform", first.id[:-1] + "_"]) == 2
    assert f"did you mean '{first.id}'?" in capsys.readouterr().err


def test_ids_complete(capsys: pytest.CaptureFixture[str]) -> None:
    first = read_catalogue()[0]
    assert main(["__complete", "conform", first.id[:-1]]) == 0
    assert first.id in capsys.readouterr().out.split()


def test_no_time(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["conform", "--conduit", "hvc", "--timeout", "0.0001"]) == 124
    out, err = capsys.readouterr()
    assert "no test was run after start number 1: it took longer than 0.0001 s" in out
    assert "did not begin a test within 0.0001 s" in err


@pytest.mark.process
def test_nothing_but_the_report_where_nobody_watches(tmp_path: Path) -> None:
    group = read_catalogue()[0].group
    done = cli(tmp_path, "conform", group)
    assert done.stderr == ""
    assert re.search(r"^\d+ tests: \d+ passed, 0 failed, \d+ skipped in ", done.stdout.splitlines()[-1])


@pytest.mark.process
def test_a_live_line_on_a_terminal(tmp_path: Path) -> None:
    group = read_catalogue()[0].group
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "sdeivirt", "conform", "--conduit", "hvc", group]
    process = subprocess.Popen(command, env=environment(tmp_path), stdout=subprocess.PIPE, stderr=theirs)
    os.close(theirs)
    shown = b""
    while True:
        try:
            data = os.read(ours, 4096)
        except OSError:  # how a terminal says that the other end is closed
            break
        if not data:
            break
        shown += data
    os.close(ours)
    out, _ = process.communicate(timeout=LIMIT)
    assert process.returncode == 0
    assert re.search(rb"\r\x1b\[Khvc 1/\d+: 1 passed, 0 failed, 0 skipped", shown)
    assert shown.endswith(b"\r\x1b[K")
    assert b"hvc 1/" not in out


@pytest.mark.process
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_signal_prints_what_was_found(number: signal.Signals, code: int, tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "sdeivirt", "conform"]
    process = subprocess.Popen(command, env=environment(tmp_path), stdout=subprocess.PIPE, stderr=theirs, text=True)
    os.close(theirs)
    shown = b""
    while b"3 passed" not in shown:
        shown += os.read(ours, 4096)
    process.send_signal(number)
    out, _ = process.communicate(timeout=LIMIT)
    os.close(ours)
    assert process.returncode == code
    assert "not run: interrupted" in out
    assert out.rstrip().endswith("; interrupted")


@pytest.mark.qemu
@NEEDS_QEMU
def test_options_of_a_machine(capsys: pytest.CaptureFixture[str]) -> None:
    group = read_catalogue()[0].group
    assert main(["conform", "--machine", "qemu", "--cpu", "neoverse-n1", "--conduit", "hvc", "--json", group]) == 0
    assert json.loads(capsys.readouterr().out)["engine"].endswith("neoverse-n1")
    assert main(["conform", "--cpu", "neoverse-n1"]) == 2
    assert "machine unicorn takes no --cpu" in capsys.readouterr().err
