# SPDX-License-Identifier: Apache-2.0
"""`sdeivirt fuzz` from outside: exit codes, JSON, files, Ctrl-C."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from sdeivirt.cli import main
from sdeivirt.fuzz.coverage import CELLS, CODES
from sdeivirt.fuzz.plan import Failure, World
from sdeivirt.fuzz.replay import load, save
from sdeivirt.sdei.calls import Calls

SHORT = ["fuzz", "--jobs", "1", "--seed", "0x11"]


def fuzz(*arguments: str) -> int:
    return main([*SHORT, *arguments])


@pytest.fixture
def defect(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """PE_MASK answers 0 at all times; undone by the fixture's undo()."""
    real = Calls.pe_mask
    monkeypatch.setattr(Calls, "pe_mask", lambda *arguments: real(*arguments) and 0)
    return monkeypatch


def test_passes(capsys: pytest.CaptureFixture[str]) -> None:
    """The summary is the result; the seed is told before anything happens."""
    assert fuzz("--calls", "0x1000") == 0
    out, err = capsys.readouterr()
    assert err.startswith("seed 0x11, 1 at a time\n")
    lines = out.splitlines()
    assert lines[0] == "machine      core, seed 0x11"
    assert lines[1].startswith("calls        4,")
    assert any(line.startswith("kvm") and f"of {len(CELLS)} cells" in line for line in lines)
    assert any(line.startswith("tf-a") and f"of {len(CODES)} results" in line for line in lines)
    assert lines[-1] == "PASSED"


def test_json_and_the_same_seed(capsys: pytest.CaptureFixture[str]) -> None:
    documents = []
    for _ in range(2):
        assert fuzz("--calls", "3000", "--policy", "tf-a", "--vcpus", "2", "--json") == 0
        documents.append(json.loads(capsys.readouterr().out))
    first, second = documents
    assert first["digest"] == second["digest"]
    assert (first["machine"], first["seed"], first["ended"], first["failures"]) == ("core", 0x11, "done", [])
    assert 3000 <= first["calls"] < 3200
    assert list(first["coverage"]) == ["tf-a"]
    part = first["coverage"]["tf-a"]
    assert (part["all_cells"], part["all_results"]) == (len(CELLS), len(CODES))
    assert len(part["missing"]) == len(CELLS) + len(CODES) - part["cells"] - part["results"]


def test_a_new_seed_each_time(capsys: pytest.CaptureFixture[str]) -> None:
    seeds = set()
    for _ in range(2):
        assert main(["fuzz", "--jobs", "1", "--calls", "100", "--json"]) == 0
        seeds.add(json.loads(capsys.readouterr().out)["seed"])
    assert len(seeds) == 2


def test_minutes(capsys: pytest.CaptureFixture[str]) -> None:
    """The time is the limit: it ends after the first job here, which takes longer."""
    assert fuzz("--minutes", "0.001", "--calls", "1_000_000".replace("_", ""), "--json") == 0
    document = json.loads(capsys.readouterr().out)
    assert document["jobs"] >= 1
    assert document["calls"] < 1_000_000


def test_finds_writes_and_replays(
    defect: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A defect is found (1), its file is named, fails again when replayed (1), and does not when it is mended (0)."""
    assert fuzz("--calls", "5000", "--output", str(tmp_path)) == 1
    out = capsys.readouterr().out
    (path,) = tmp_path.iterdir()
    assert f"written to {path}; take it again with: sdeivirt fuzz --replay {path}" in out
    assert "FAILED       x0 after PE_MASK" in out

    assert main(["fuzz", "--replay", str(path)]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert "calls PE_MASK()" in lines[-2]
    assert lines[-1].startswith("FAILED: x0 after PE_MASK: after PE_MASK of PE ")
    assert main(["fuzz", "--replay", str(path), "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["failure"]["kind"] == "x0 after PE_MASK"

    defect.undo()
    assert main(["fuzz", "--replay", str(path)]) == 0
    assert "it does not fail any more; it was: x0 after PE_MASK" in capsys.readouterr().out
    assert main(["fuzz", "--replay", str(path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["failure"] is None


def test_where_failures_go(defect: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Into a new file of ours alone; what exists is never written over, whatever it is."""
    assert fuzz("--calls", "5000", "--output", str(tmp_path / "it.json")) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["it.json"]
    assert (tmp_path / "it.json").stat().st_mode & 0o777 == 0o600
    link = tmp_path.parent / f"{tmp_path.name}-link"
    link.symlink_to(tmp_path / "target")
    for place in (tmp_path / "it.json", Path("/dev/null"), link):
        assert fuzz("--calls", "5000", "--output", str(place)) == 2
        assert "exists already" in capsys.readouterr().err
    assert link.is_symlink()
    for _ in range(2):
        assert fuzz("--calls", "5000", "--output", str(tmp_path), "--json") == 1
    capsys.readouterr()
    assert len(list(tmp_path.iterdir())) == 3
    for path in tmp_path.iterdir():
        assert load(path) == load(tmp_path / "it.json")


def test_a_failure_that_cannot_be_written_is_not_lost(
    defect: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fuzz("--calls", "5000", "--output", str(tmp_path / ("x" * 300))) == 1
    out, err = capsys.readouterr()
    assert "x0 after PE_MASK" in out
    assert "cannot write the failure" in err
    text = err[err.index("{\n") : err.index("\n}\n") + 3]
    (tmp_path / "saved.json").write_text(text)
    assert main(["fuzz", "--replay", str(tmp_path / "saved.json")]) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--calls", "0"], "--calls 0 does nothing"),
        (["--jobs", "0"], "--jobs 0 does nothing"),
        (["--output", "/nonexistent/it.json"], "there is no directory /nonexistent"),
        (["--jobs", "5000"], "5000 jobs at a time are too many"),
        (["--calls", "x"], "'x' is no number"),
        (["--minutes", "0"], "'0' are no minutes"),
        (["--minutes", "nan"], "'nan' are no minutes"),
        (["--policy", "arm"], "there is no policy 'arm'"),
        (["--vcpus", "0"], "the fuzzer cannot have 0 vCPUs"),
        (["--vcpus", "999"], "the fuzzer cannot have 999 vCPUs"),
        (["--machine", "kvm"], "kvm"),
        (["--executor", "thread"], "thread"),
        (["--replay", "/nonexistent"], "No such file"),
    ],
)
def test_usage(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fuzz", *arguments]) == 2
    out, err = capsys.readouterr()
    assert message in err
    assert out == ""


def test_bad_replay_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit code 2, whatever is wrong with it."""
    path = tmp_path / "it.json"
    save(Failure(World(), 1, "kind", "message", [["reset"]]), path)
    document: dict[str, Any] = json.loads(path.read_text())
    for change, message in (({"version": 9}, "has version 9"), ({"steps": [["x"]]}, "is damaged: step 1 is ['x']")):
        path.write_text(json.dumps(document | change))
        assert main(["fuzz", "--replay", str(path)]) == 2
        assert message in capsys.readouterr().err


def test_machine_of_a_replay_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "it.json"
    save(Failure(World(machine="abacus"), 1, "kind", "message", [["settle"]]), path)
    assert main(["fuzz", "--replay", str(path)]) == 2
    assert "no machine 'abacus'" in capsys.readouterr().err


@pytest.mark.process
@pytest.mark.parametrize("when", ["at once", "after some jobs"])
def test_ctrl_c(when: str, tmp_path: Path) -> None:
    """The summary of what was done, 130, and no process stays behind. All of them are told, as by a terminal."""
    command = [sys.executable, "-m", "sdeivirt", "fuzz", "--minutes", "60", "--jobs", "2", "--seed", "1"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path, process_group=0
    ) as process:
        try:
            assert process.stderr is not None
            assert process.stderr.readline() == "seed 0x1, 2 at a time\n"
            if when == "after some jobs":
                assert "calls/s" in process.stderr.readline()
            os.killpg(process.pid, signal.SIGINT)
            out, err = process.communicate(timeout=60)
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            raise
    assert process.returncode == 130, err
    assert "Traceback" not in err
    if when == "after some jobs":
        assert out.splitlines()[-1] == "INTERRUPTED"
        assert "calls        0 in" not in out
    assert group_ends(process.pid)


def group_ends(group: int) -> bool:
    """Whether all processes of a group end within some time."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return True
        os.sched_yield()
    return False
