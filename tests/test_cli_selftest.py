# SPDX-License-Identifier: Apache-2.0
"""`sdeivirt selftest`: real guests, and their verdict as an exit code."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from sdeivirt.cli import main
from sdeivirt.control.batch import run_to_end, sections
from sdeivirt.machine import ExitReason, MachineConfig, open_machine

from .asm import assemble
from .control_support import LIMIT, cli, environment

pytestmark = pytest.mark.machine

SECTIONS = [
    *("VERSION", "FEATURES", "PRIVATE_RESET", "SHARED_RESET", "PE_UNMASK", "EVENT_GET_INFO", "EVENT_REGISTER"),
    *("EVENT_ENABLE", "EVENT_SIGNAL", "PE_MASK", "EVENT_DISABLE", "EVENT_UNREGISTER"),
]


def as_json(capsys: pytest.CaptureFixture[str], *words: str, code: int = 0) -> dict[str, Any]:
    assert main(["selftest", *words, "--json"]) == code
    result: dict[str, Any] = json.loads(capsys.readouterr().out)
    return result


@pytest.mark.process
def test_it_prints_what_the_guest_says(tmp_path: Path) -> None:
    done = cli(tmp_path, "selftest")
    assert "NR_VCPUS: 2    SDEI Event: 0x00000000" in done.stdout
    assert re.findall(r"--- (\S+)", done.stdout) == SECTIONS
    assert "    Version:              1.1 (vendor: 0x4b564d)\n" in done.stdout
    assert done.stdout.rstrip().splitlines()[-1].strip() == "Result: OK"
    assert done.stderr == ""
    assert list(tmp_path.iterdir()) == []


def test_json(capsys: pytest.CaptureFixture[str]) -> None:
    report = as_json(capsys, "--vcpus", "3", "--event", "0x40000007")
    assert (report["machine"], report["vcpus"], report["event"]) == ("unicorn", 3, 0x40000007)
    assert (report["ok"], report["result"], report["reason"], report["faults"]) == (True, "OK", "power-off", [])
    assert list(report["sections"]) == SECTIONS
    assert report["sections"]["VERSION"] == {"Version": "1.1 (vendor: 0x4b564d)"}
    assert report["sections"]["EVENT_SIGNAL"]["Status"] == "Registered-Enabled-Running"
    assert len(report["sections"]["EVENT_SIGNAL"]["Regs"].split()) == 4
    assert "NR_VCPUS: 3    SDEI Event: 0x40000007" in report["output"]


@pytest.mark.parametrize("words", [["--conduit", "smc"], ["--seed", "7"], ["--vcpus", "1"], ["--vcpus", "0x8"]])
def test_it_passes_however_the_machine_is_made(capsys: pytest.CaptureFixture[str], words: list[str]) -> None:
    assert as_json(capsys, *words)["ok"]


def test_the_policy_shows(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["selftest", "--policy", "tf-a", "--json"]) in (0, 1)  # the guest decides, and we say what it said
    report = json.loads(capsys.readouterr().out)
    assert report["sections"]["VERSION"] == {"Version": "1.0 (vendor: 0x0)"}
    assert report["ok"] == (report["result"] == "OK")


def test_hypercalls(capfd: pytest.CaptureFixture[str]) -> None:
    report = as_json(capfd, "hypercalls")
    assert report["ok"]
    assert [run["disabled"] for run in report["runs"]] == [None, "std-trng", "std-sdei", "vendor-hyp", "async-pf"]
    for run in report["runs"]:
        assert run["disabled"] not in run["services"]
        lines = [line.split() for line in run["output"].splitlines()]
        verdicts = {line[1]: line[4] for line in lines if len(line) == 6}
        assert verdicts["SDEI_VERSION"] == ("disabled" if run["disabled"] == "std-sdei" else "enabled")
        assert verdicts["ASYNC_PF_SLOTS"] == ("disabled" if run["disabled"] == "async-pf" else "enabled")
    assert main(["selftest", "hypercalls"]) == 0
    out = capfd.readouterr().out
    assert out.count("Result: OK") == 5
    assert out.index("=== all services") < out.index("=== without std-trng") < out.index("    without vendor-hyp ")


def test_a_time_out(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["selftest", "--vcpus", "32", "--timeout", "0.001"]) == 124
    err = capfd.readouterr().err
    assert "vCPU 0 stopped: still" in err
    assert "error: the guest took longer than 0.001 s\nhint: allow more with --timeout" in err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--machine", "kvm"], "no machine 'kvm'"),
        (["--event", "0x40001000"], "taken by the dynamic events"),
        (["--vcpus", "0"], "cannot have 0 vCPUs"),
        (["other"], "other"),
    ],
)
def test_bad_input(capsys: pytest.CaptureFixture[str], words: list[str], message: str) -> None:
    assert main(["selftest", *words]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.process
def test_ctrl_c(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "sdeivirt", "selftest", "--vcpus", "512"],
        env=environment(tmp_path),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    process.stdout.readline()
    process.send_signal(signal.SIGINT)
    _out, err = process.communicate(timeout=LIMIT)
    assert process.returncode == 130
    assert "Traceback" not in err


@pytest.mark.process
def test_nobody_reads(tmp_path: Path) -> None:
    done = subprocess.run(
        ["sh", "-c", f"{{ {sys.executable} -m sdeivirt selftest; echo $? >&2; }} | head -n 1"],
        env=environment(tmp_path),
        capture_output=True,
        text=True,
        timeout=LIMIT,
    )
    assert done.stderr in ("141\n", "0\n")  # the guest may have been done before `head` left


# -- the verdict


def verdict(text: str) -> tuple[bool, str, ExitReason]:
    """What a guest is taken to say that prints `text` and powers off."""
    says = "\n".join(f"    say {ord(c)}" for c in text)
    with open_machine("unicorn", MachineConfig(vcpus=1)) as machine:
        transcript = run_to_end(machine, assemble(f"{says}\n    off"), LIMIT)
    return transcript.ok, transcript.result, transcript.reason


@pytest.mark.parametrize(
    ("text", "ok", "result"),
    [
        ("Result: OK\n", True, "OK"),
        ("x\n\n        Result: OK\r\n\n", True, "OK"),
        ("Result: OK", True, "OK"),
        ("Result: FAILED (why)\n", False, "FAILED (why)"),
        ("Result: OK\nmore\n", False, ""),
        ("Result: OKAY\n", False, ""),
        ("the Result: OK\n", False, ""),
        ("", False, ""),
    ],
)
def test_only_the_last_line_counts(text: str, ok: bool, result: str) -> None:
    assert verdict(text) == (ok, result, ExitReason.POWER_OFF)


def test_a_guest_that_says_ok_and_then_faults_has_failed() -> None:
    says = "\n".join(f"    say {ord(c)}" for c in "Result: OK\n")
    with open_machine("unicorn", MachineConfig(vcpus=1)) as machine:
        transcript = run_to_end(machine, assemble(f"{says}\n    .inst 0"), LIMIT)
    assert (transcript.ok, transcript.result, transcript.reason) == (False, "OK", ExitReason.FAULT)
    assert len(transcript.faults) == 1


def test_sections() -> None:
    text = (
        "head\n  --- A\n    Key:   1\n    Long:  a b\n           c d\n--- B\n--- A\n    Key 2: x: y\n\n    Result: OK\n"
    )
    assert sections(text) == {"A": {"Key": "1", "Long": "a b c d", "Key 2": "x: y"}, "B": {}}
    assert sections("") == {}
