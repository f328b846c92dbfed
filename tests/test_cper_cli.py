# SPDX-License-Identifier: Apache-2.0
"""`sdeivirt cper`."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from sdeivirt.cli import main
from sdeivirt.ras.cper import (
    MAX_SIZE,
    CperRecord,
    MemorySection,
    RecordSection,
    Severity,
    decode,
    make_block,
    render,
)

from .control_support import LIMIT, environment


def test_what_was_encoded_is_decoded(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "report"
    words = ("--severity", "corrected", "--address", "0x48000000", "--threshold-exceeded", "--fru-text", "DIMM 1")
    assert main(["cper", "encode", "memory", *words, "-o", str(path)]) == 0
    block = make_block("memory", Severity.CORRECTED, address=0x4800_0000, threshold_exceeded=True, fru_text="DIMM 1")
    assert path.read_bytes() == block.encode()
    assert capsys.readouterr().out == ""
    assert main(["cper", "decode", str(path)]) == 0
    assert capsys.readouterr().out.split("\n")[:-1] == render(block)
    assert main(["cper", "decode", str(path), "--json"]) == 0
    (entry,) = json.loads(capsys.readouterr().out)["entries"]
    assert (entry["flags"], entry["section"]["physical_address"]) == (9, 0x4800_0000)
    assert entry["flags_names"] == ["primary", "threshold_exceeded"]
    assert entry["section"]["error_type_name"] == "single-bit ECC"


@pytest.mark.parametrize("severity", ["corrected", "recoverable", "fatal", "informational"])
def test_every_severity_of_every_kind(severity: str, tmp_path: Path) -> None:
    path = tmp_path / "report"
    level = Severity.parse(severity)
    for words, block in (
        (["memory"], make_block("memory", level)),
        (["pcie", "--address", "4096"], make_block("pcie", level, address=4096)),
        (["pcie", "--device", "0000:03:02.1"], make_block("pcie", level, at="03:02.1")),
        (
            ["processor", "--part", "bus", "--mpidr", "0x80000101", "--midr", "0x413fd0c1"],
            make_block("processor", level, part="bus", mpidr=0x8000_0101, midr=0x413F_D0C1),
        ),
    ):
        assert main(["cper", "encode", *words, "--severity", severity, "-o", str(path)]) == 0
        assert decode(path.read_bytes()) == block


def test_a_record_says_which_it_is(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "record"
    section = RecordSection(section=MemorySection(node=3), severity=Severity.FATAL)
    path.write_bytes(CperRecord(severity=Severity.FATAL, sections=(section,), record_id=0x123).encode())
    assert main(["cper", "decode", str(path)]) == 0
    nobody = "00000000-0000-0000-0000-000000000000"
    assert capsys.readouterr().out.split("\n") == [
        f"record 0x123, creator {nobody}, notification {nobody}",
        "event severity: fatal",
        " Error 0, type: fatal",
        "  section_type: memory error",
        "  node:3 ",
        "",
    ]
    assert main(["cper", "decode", str(path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["record_id"] == 0x123


def test_an_error_of_pcie_is_chosen_by_its_name(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "report"
    for severity, name, line in (
        ("corrected", "replay-timeout", "aer_cor_status: 0x00001000"),
        ("recoverable", "unsupported-request", "aer_uncor_status: 0x00100000"),
        ("fatal", "data-link-protocol", "aer_uncor_severity: 0x00040010"),
    ):
        assert main(["cper", "encode", "pcie", "--severity", severity, "--aer", name, "-o", str(path)]) == 0
        assert main(["cper", "decode", str(path)]) == 0
        assert line in capsys.readouterr().out


def test_what_is_left_of_a_damaged_report_is_shown(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "report"
    block = make_block("memory", Severity.CORRECTED, address=0x4800_0000)
    path.write_bytes(block.encode()[:-1])
    assert main(["cper", "decode", str(path)]) == 2
    out, err = capsys.readouterr()
    assert out.split("\n")[:-1] == render(block)
    assert "look at offset" in err
    path.write_bytes(block.encode() * 2)
    assert main(["cper", "decode", str(path)]) == 0
    out, err = capsys.readouterr()
    assert out.split("\n")[:-1] == render(block)
    assert err == "warning: 172 bytes follow, which nobody reads\n"


@pytest.mark.process
def test_a_pipe_from_one_to_the_other(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "sdeivirt", "cper"]
    encoded = subprocess.run(
        [*command, "encode", "pcie", "--severity", "fatal"],
        env=environment(tmp_path),
        capture_output=True,
        timeout=LIMIT,
        check=True,
    )
    assert encoded.stderr == b""
    decoded = subprocess.run(
        [*command, "decode", "-"],
        env=environment(tmp_path),
        input=encoded.stdout,
        capture_output=True,
        timeout=LIMIT,
        check=True,
    )
    assert decoded.stdout.decode().split("\n")[:-1] == render(make_block("pcie", Severity.FATAL))


def test_bad_input(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "short").write_bytes(b"CPER")
    (tmp_path / "big").touch()
    os.truncate(tmp_path / "big", MAX_SIZE + 1)
    fatal = ("--severity", "fatal")
    for words, said in (
        (("decode", str(tmp_path / "none")), "No such file"),
        (("decode", str(tmp_path)), "it is a directory"),
        (("decode", str(tmp_path / "fifo")), "it is a FIFO"),
        (("decode", "/dev/zero"), "it is a device"),
        (("decode", str(tmp_path / "short")), "look at offset 0x0, in the header of the record"),
        (("decode", str(tmp_path / "big")), "has more than 1 MiB"),
        (("encode", "memory"), "--severity"),
        (("encode", "disk", *fatal), "disk"),
        (("encode", "memory", *fatal, "--address", "-1"), "'-1' is no number"),
        (("encode", "memory", *fatal, "--address", f"{1 << 64:#x}"), "no physical address"),
        (("encode", "memory", *fatal, "--part", "tlb"), "no --part"),
        (("encode", "pcie", *fatal, "--mpidr", "0"), "no --part"),
        (("encode", "memory", *fatal, "--device", "00:01.0"), "not in a PCIe device"),
        (("encode", "memory", *fatal, "--aer", "ecrc"), "not in a PCIe device"),
        (("encode", "pcie", *fatal, "--aer", "bad-tlp"), "no uncorrectable error of PCIe is called 'bad-tlp'"),
        (("encode", "pcie", *fatal, "--device", "1"), "no PCIe device is at '1'"),
        (("encode", "processor", *fatal, "--midr", f"{1 << 64}"), "midr"),
        (("encode", "memory", *fatal, "--fru-text", "x" * 21), "up to 20 characters"),
        (("encode", "memory", *fatal, "-o", str(tmp_path / "no" / "file")), "cannot write"),
    ):
        assert main(["cper", *words]) == 2, words
        said_all = capsys.readouterr().err
        assert said in said_all, words
        assert "hint: " in said_all, words
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert main(["cper", "encode", "memory", *fatal]) == 2
    assert "nothing for a terminal" in capsys.readouterr().err


def test_standard_input_may_have_no_end(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    with open("/dev/zero", "rb", buffering=0) as zeros:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BufferedReader(zeros)))
        assert main(["cper", "decode", "-"]) == 2
    assert "standard input has more than 1 MiB" in capsys.readouterr().err
