# SPDX-License-Identifier: Apache-2.0
"""doctor, tables, completion, help, and how fast it all starts."""

from __future__ import annotations

import json
import re
import signal
import struct
import subprocess
import sys
from pathlib import Path

import pytest

import sdeivirt
from sdeivirt.cli import main
from sdeivirt.cli.output import ranges
from sdeivirt.cli.status import _show
from sdeivirt.machine import FaultReport, MachineConfig
from sdeivirt.sdei import EventDefinition

from .acpi_reader import Hardware, read_root, u
from .control_support import LIMIT, FakeMachine, cli, environment, read_tree

VERBS = [
    *(
        "bench",
        "completion",
        "conform",
        "cper",
        "doctor",
        "fuzz",
        "inject",
        "migrate",
        "registers",
        "restore",
        "run",
        "save",
    ),
    *("selftest", "serve", "status", "tables"),
]


# -- doctor


@pytest.mark.process
@pytest.mark.machine
def test_doctor_finds_everything_in_order(tmp_path: Path) -> None:
    text = cli(tmp_path, "doctor").stdout
    assert "MISSING" not in text
    assert "a guest booted, its hypercalls were served" in text
    assert str(tmp_path / "sdeivirt") in text
    assert "\x1b" not in text


@pytest.mark.process
def test_doctor_says_what_to_do_about_what_is_missing(tmp_path: Path) -> None:
    (tmp_path / "unicorn").mkdir()
    (tmp_path / "unicorn" / "__init__.py").write_text("raise ImportError('no library for this host')")
    (tmp_path / "sdeivirt").mkdir(mode=0o700)
    (tmp_path / "sdeivirt").chmod(0o755)
    path = f"{tmp_path}:{Path(sdeivirt.__file__).parent.parent}"
    done = cli(tmp_path, "doctor", "--json", code=3, PYTHONPATH=path)
    findings = {finding["check"]: finding for finding in json.loads(done.stdout)}
    assert findings["python"]["state"] == "ok"
    assert findings["guests"]["state"] == "ok"
    for check, detail, advice in (
        ("unicorn", "no library for this host", "pip install unicorn"),
        ("machine unicorn", "not available", "pip install unicorn"),
        ("runtime directory", "open to other users", "chmod 700"),
    ):
        assert findings[check]["state"] == "missing"
        assert detail in findings[check]["detail"]
        assert advice in findings[check]["advice"]
    # Without the engine, the verbs that need it say the same.
    done = cli(tmp_path, "selftest", code=3, PYTHONPATH=path)
    assert "machine unicorn is not available" in done.stderr
    assert "hint: install it with `pip install unicorn`" in done.stderr


# -- tables


def test_tables_to_a_file(tmp_path: Path) -> None:
    assert main(["tables", "acpi", "--only", "sdei", "-o", str(tmp_path / "sdei.aml")]) == 0
    assert (tmp_path / "sdei.aml").read_bytes()[:8] == b"SDEI" + struct.pack("<I", 36)
    words = ["--vcpus", "0x11", "--memory", "1G", "--conduit", "smc", "--append", "quiet", "--output"]
    assert main(["tables", "dt", *words, str(tmp_path / "sdei.dtb")]) == 0
    tree = read_tree((tmp_path / "sdei.dtb").read_bytes())
    assert tree.get_property("method", "/firmware/sdei").value == "smc"
    assert tree.get_property("bootargs", "/chosen").value == "quiet"
    assert len(tree.get_node("/cpus").nodes) == 17
    assert tree.get_property("reg", "/memory@40000000").data == [0, 0x4000_0000, 0, 0x4000_0000]


def test_acpi_tables_to_a_directory(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What is printed says where they stand: read from there, each leads to the next."""
    words = ["--vcpus", "3", "--memory", "96M", "--conduit", "smc"]
    assert main(["tables", "acpi", *words, "-o", str(tmp_path / "new")]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    pieces = {int(at, 16): Path(file).read_bytes() for at, _, _, file in lines}
    assert [int(size) for _, size, _, _ in lines] == [len(data) for data in pieces.values()]
    assert {Path(file).name for *_, file in lines} == {file.name for file in (tmp_path / "new").iterdir()}
    found = read_root(Hardware(pieces), min(pieces))
    assert {f"{name.lower()}.aml" for name in found} | {"rsdp.bin"} == {Path(file).name for *_, file in lines}
    assert all(0x4000_0000 < at < 0x4600_0000 for at in pieces)
    assert u(found["FACP"][1], 129, 2) == 1
    assert len(found["APIC"][1]) == 84 + 3 * 80
    # The same place is written over.
    assert main(["tables", "acpi", "-o", str(tmp_path / "new")]) == 0
    assert len((tmp_path / "new" / "apic.aml").read_bytes()) == 84 + 2 * 80


def test_acpi_tables_name_the_sources_of_errors_that_are_defined(tmp_path: Path) -> None:
    (tmp_path / "events.toml").write_text("[[event]]\nnumber = 9\n\n[[error-source]]\nevent = 9\nghes = 1\n")
    words = ["--events", str(tmp_path / "events.toml"), "--error-source", "0x331:critical,number=5"]
    assert main(["tables", "acpi", *words, "--only", "hest", "-o", str(tmp_path / "hest.aml")]) == 0
    hest = (tmp_path / "hest.aml").read_bytes()
    assert len(hest) == 40 + 64 + 92
    # Type, number and event of each.
    assert (u(hest, 40, 2), u(hest, 42, 2), u(hest, 80, 4)) == (9, 0, 9)
    assert (u(hest, 104, 2), u(hest, 106, 2), u(hest, 144, 4)) == (10, 5, 0x331)


def test_tables_to_standard_output(capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    for words in (["--only", "SDEI"], ["--only", "SDEI", "-o", "-"]):
        assert main(["tables", "acpi", *words]) == 0
        assert len(capfdbinary.readouterr().out) == 36
    assert main(["tables", "acpi", "--asl", "--vcpus", "3"]) == 0
    assert capfdbinary.readouterr().out.count(b"ACPI0007") == 3
    assert main(["tables", "dt", "--node", "--conduit", "smc"]) == 0
    node = capfdbinary.readouterr().out.decode()
    assert node.split() == ["sdei", "{", "compatible", "=", '"arm,sdei-1.0";', "method", "=", '"smc";', "};"]


def test_tables_bad_input(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    sdei = ("acpi", "--only", "SDEI")
    for words, said in (
        ((*sdei, "-o", str(tmp_path / "no" / "file")), "cannot write"),
        (("dt", "--append", "ü"), "boot arguments"),
        (("acpi",), "several tables: RSDP, DSDT, FACP, APIC, GTDT, SPCR, SDEI, HEST, XSDT"),
        (("acpi", "-o", "-"), "several tables"),
        (("acpi", "-o", str(tmp_path / "file")), "cannot make the directory"),
        (("acpi", "-o", str(tmp_path / "no" / "directory")), "cannot make the directory"),
        (("acpi", "--only", "PPTT", "-o", "-"), "there is no table 'PPTT'"),
        (("acpi", "--only", "SDEI", "--asl"), "do not go together"),
        (("acpi", "--vcpus", "65", "-o", str(tmp_path)), "cannot have 65 vCPUs"),
        (("acpi", "--event", "7", "--event", "7", "-o", str(tmp_path)), "defined twice"),
        (("acpi", "--error-source", "0", "-o", str(tmp_path)), "cannot be announced by event 0"),
        (("acpi", "--error-source", "0x99999999999", "-o", str(tmp_path)), "numbered up to 0x7fffffff"),
        (("acpi", "--error-source", "0x40400001", "-o", str(tmp_path)), "asynchronous page faults"),
    ):
        assert main(["tables", *words]) == 2
        assert said in capsys.readouterr().err
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert main(["tables", *sdei]) == 2
    assert "nothing for a terminal" in capsys.readouterr().err


# -- completion


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts_know_the_verbs(capsys: pytest.CaptureFixture[str], shell: str) -> None:
    assert main(["completion", shell]) == 0
    script = capsys.readouterr().out
    assert all(verb in script for verb in VERBS)
    assert "--affinity" in script


@pytest.mark.process
def test_the_bash_script_is_bash(tmp_path: Path) -> None:
    script = cli(tmp_path, "completion", "bash").stdout
    subprocess.run(["bash", "-n"], input=script, text=True, check=True, timeout=LIMIT)


@pytest.mark.process
@pytest.mark.parametrize(
    ("words", "found"),
    [
        ("inject-error vm memory --s", "--severity --source"),
        ("inject-error vm memory --when-busy f", "fail"),
        ("inject-error run pcie --aer bad-t", "bad-tlp"),
        ("cper encode memory --severity f", "fatal"),
        ("bench mem", "memory"),
        ("tables acpi --o", "--only --output"),
    ],
)
def test_bash_knows_a_command_by_where_it_stands(tmp_path: Path, words: str, found: str) -> None:
    """`memory` is a benchmark as well."""
    done = subprocess.run(
        ["bash"],
        input=cli(tmp_path, "completion", "bash").stdout
        + f"""
COMP_WORDS=(sdeivirt {words}) COMP_CWORD={len(words.split())}
_sdeivirt_joined sdeivirt "${{COMP_WORDS[-1]}}" "${{COMP_WORDS[-2]}}" && echo "${{COMPREPLY[@]}}"
""",
        env=environment(tmp_path) | {"PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=True,
        timeout=LIMIT,
    )
    assert done.stdout.strip() == found


def test_names_of_running_vms_complete(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sdeivirt.control.runtime import VmDirectory

    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    with VmDirectory.acquire("one"), VmDirectory.acquire("two"):
        assert main(["__complete", "inject", ""]) == 0
    assert {"one", "two"} <= set(capsys.readouterr().out.split())


def test_guests_and_where_to_listen_complete(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine.elf").touch()
    assert main(["__complete", "run", "--guest", ""]) == 0
    assert {"tasks", "writer", "ghes"} <= set(capsys.readouterr().out.split())
    assert main(["__complete", "run", "--guest", f"{tmp_path}/m"]) == 0
    assert f"{tmp_path}/mine.elf" in capsys.readouterr().out.split()
    assert main(["__complete", "run", "--incoming", ""]) == 0
    assert {"tcp:", "unix:", "file:"} <= set(capsys.readouterr().out.split())
    assert main(["__complete", "serve", "guest", ""]) == 0
    assert {"tcp:", "unix:"} == {each for each in capsys.readouterr().out.split() if each.endswith(":")}


# -- the whole


def test_help_and_version(capsys: pytest.CaptureFixture[str]) -> None:
    for words in ([], ["--help"], ["-h"]):
        assert main(words) == 0
        text = capsys.readouterr().out
        assert re.findall(r"^│ (\w+) +\w", text, re.MULTILINE) == VERBS
    for verb in VERBS:
        assert main([verb, "--help"]) == 0
        assert f"Usage: sdeivirt {verb}" in capsys.readouterr().out
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"{sdeivirt.__version__}\n"


@pytest.mark.process
def test_usage_errors_exit_with_2(tmp_path: Path) -> None:
    done = cli(tmp_path, "injekt", code=2)
    assert 'Unknown command "injekt"' in done.stderr
    assert "hint: see `sdeivirt --help`" in done.stderr


_LOADED = """
import sys
from sdeivirt.cli import main
code = main(sys.argv[1:])
print(*sorted(name for name in sys.modules), file=sys.stderr)
sys.exit(code)
"""


@pytest.mark.process
@pytest.mark.process
@pytest.mark.parametrize("when", ["while modules are loaded", "when all is done"])
def test_ctrl_c_leaves_no_traceback(when: str, tmp_path: Path) -> None:
    code = """
import atexit, os, signal, sys
import sdeivirt.__main__ as command
def type_it(): os.kill(os.getpid(), signal.SIGINT)
class Loading:
    def find_spec(self, name, path=None, target=None):
        if name == "cyclopts": type_it()
if sys.argv.pop() == "while modules are loaded":
    sys.meta_path.insert(0, Loading())
else:
    atexit.register(type_it)
sys.exit(command.main())
"""
    done = subprocess.run(
        [sys.executable, "-c", code, "--version", when],
        env=environment(tmp_path),
        capture_output=True,
        text=True,
        timeout=LIMIT,
    )
    assert done.stderr == ""
    assert done.returncode == (0 if when == "when all is done" else -signal.SIGINT)


def test_inject_loads_neither_the_engine_nor_the_service(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _LOADED, "inject", "vm", "0"],
        env=environment(tmp_path),
        capture_output=True,
        text=True,
        timeout=LIMIT,
    )
    assert done.returncode == 3
    loaded = done.stderr.splitlines()[-1].split()
    assert "qemu.qmp" in loaded
    assert not {"unicorn", "capstone", "elftools", "fdt", "rich.table", "sdeivirt.machine", "sdeivirt.sdei"} & {*loaded}


@pytest.mark.process
def test_importing_the_package_loads_nothing_else(tmp_path: Path) -> None:
    code = "import sys, sdeivirt; print([n for n in sys.modules if n.startswith('sdeivirt.')]); sdeivirt.open_machine"
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment(tmp_path), capture_output=True, text=True, check=True
    )
    assert done.stdout == "[]\n"


def test_what_the_package_exports_is_there() -> None:
    for name in sdeivirt.__all__:
        assert getattr(sdeivirt, name) is not None
    assert set(sdeivirt.__all__) <= set(dir(sdeivirt))
    with pytest.raises(AttributeError, match="nonsense"):
        _ = sdeivirt.nonsense


# -- how status looks


def test_vcpus_in_the_same_state_share_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    events = (EventDefinition(7), EventDefinition(0x4000_0010, shared=True, interrupt=40))
    machine = FakeMachine(MachineConfig(vcpus=512, events=events))
    for vcpu in range(500):
        machine.register(vcpu)
        machine.inject(0, vcpu)
    machine.found.append(FaultReport(1, "undefined", 0, {"x0": 1}, ["=> udf #0"]))
    _show(machine.status(), fold=True)
    text = capsys.readouterr().out
    assert re.search(r"^0,2-511 +0x0 to 0x1f0f +off +yes +- +0$", text, re.MULTILINE)
    assert re.search(r"^1 +0x1 +faulted +yes +- +0$", text, re.MULTILINE)
    assert re.search(r"^0x0 +private +normal +signal, host +500$", text, re.MULTILINE)
    assert re.search(r"^0x0 +0-499 +registered enabled pending +1 +0 +0$", text, re.MULTILINE)
    assert re.search(r"^0x7 +private +normal +host +none registered$", text, re.MULTILINE)
    assert re.search(r"^0x40000010 +shared +normal +INTID 40 +none registered$", text, re.MULTILINE)
    assert re.search(r"^0x40000010 +any +- +0 +0 +0$", text, re.MULTILINE)
    assert "vCPU 1 stopped: undefined" in text
    assert len(text.splitlines()) < 24
    machine.inject(0, 1)
    _show(machine.status(), fold=True)
    text = capsys.readouterr().out
    assert re.search(r"^0x0 +0,2-499 +registered enabled pending +1 +0 +0$", text, re.MULTILINE)
    assert re.search(r"^0x0 +1 +registered enabled pending +2 +0 +0 +1 coalesced$", text, re.MULTILINE)
    _show(machine.status(), fold=False)
    assert len(capsys.readouterr().out.splitlines()) > 1000


@pytest.mark.parametrize(
    ("numbers", "text"), [([], ""), ([3], "3"), ([0, 1, 2], "0-2"), ([0, 2, 3, 9], "0,2-3,9"), ([1, 0], "1,0")]
)
def test_ranges(numbers: list[int], text: str) -> None:
    assert ranges(numbers) == text
