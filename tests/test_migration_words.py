# SPDX-License-Identifier: Apache-2.0
"""What people type and read when they move a guest: options, hints, states, progress."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import signal
import subprocess
import sys
import termios
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from sdeivirt.cli import main
from sdeivirt.cli.options import PlaceOptions, complete_files
from sdeivirt.cli.output import _fold
from sdeivirt.cli.progress import counted, in_bytes
from sdeivirt.control.client import VmClient
from sdeivirt.errors import MigrationError, SdeivirtError, StateError, UsageError
from sdeivirt.machine.qemu.frontends import front_ends
from sdeivirt.machine.qemu.options import QemuOptions
from sdeivirt.migration.convergence import Convergence

from .control_support import LIMIT, VmProcess, cli, environment, wait_until
from .place_support import place

process = pytest.mark.process
machine = pytest.mark.machine


class Typed:
    """`sdeivirt WORDS` on a terminal of its own."""

    def __init__(self, runtime: Path, *words: str) -> None:
        self._ours, theirs = pty.openpty()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "sdeivirt", *words],
            env=environment(runtime),
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(theirs, termios.TIOCSCTTY, 0),
        )
        os.close(theirs)
        self._text = bytearray()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        try:
            while data := os.read(self._ours, 4096):
                self._text += data
        except OSError:  # the other end is closed
            pass

    @property
    def text(self) -> str:
        return self._text.decode()

    def wait_for(self, text: str, count: int = 1) -> None:
        wait_until(lambda: self.text.count(text) >= count, self.text)

    def type(self, keys: str) -> None:
        os.write(self._ours, keys.encode())

    def wait(self) -> int:
        code = self.process.wait(LIMIT)
        self._reader.join(LIMIT)
        return code

    def __enter__(self) -> Typed:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait(LIMIT)
        self._reader.join(LIMIT)
        os.close(self._ours)


@contextmanager
def moving(runtime: Path, bandwidth: str = "1K") -> Iterator[tuple[VmProcess, str, Typed]]:
    """The guest of VM `here` on its way: the place, its address, and the terminal."""
    with (
        place(runtime) as (there, uri),
        Typed(runtime, "migrate", "here", uri, "--max-bandwidth", bandwidth) as typed,
    ):
        typed.wait_for("pass 1")
        yield there, uri, typed


# -- a place that waits


@machine
@process
def test_a_place_has_its_name_and_says_that_it_waits(runtime: Path) -> None:
    with place(runtime) as (_, uri):
        assert f"waiting at {uri}" in cli(runtime, "status").stdout
        assert cli(runtime, "status", "there").stdout == f"VM there: waiting at {uri}\n"
        row = json.loads(cli(runtime, "status", "there", "--json").stdout)
        assert (row["state"], row["migration"]) == ("waiting", f"at {uri}")
        taken = cli(runtime, "run", "--name", "there", "--incoming", f"unix:{runtime}/other.sock", code=3)
        assert "a VM 'there' is running already" in taken.stderr
        for words in (("inject", "there", "0"), ("registers", "there"), ("migrate", "there", "--cancel")):
            refused = cli(runtime, *words, code=1).stderr
            assert "the guest of VM 'there' has not come yet" in refused
            assert f"`sdeivirt migrate VM {uri}` sends one" in refused
    assert not (runtime / "there.sock").exists() or (runtime / "sdeivirt" / "there").exists()


@machine
@process
def test_a_guest_that_is_coming_is_no_guest_yet(runtime: Path, here: VmProcess) -> None:
    with moving(runtime) as (there, uri, typed):
        there.wait_err("control directory")
        found = cli(runtime, "status").stdout
        assert f"running, moving to {uri}" in found
        assert f"incoming, coming to {uri}" in found
        with VmClient("there") as client:
            for wrong in (
                lambda: client.inject(0),
                lambda: client.cancel(0),
                client.list_registers,
                client.dump_registers,
                lambda: client.execute("migrate", uri="unix:/x"),
                lambda: client.execute("migrate-cancel"),
            ):
                with pytest.raises(StateError, match="the guest has not come yet"):
                    wrong()
        cli(runtime, "migrate", "here", "--cancel")
        assert typed.wait() == 1


# -- progress, and its end


@machine
@process
def test_a_slow_link_shows_that_it_lives(runtime: Path, here: VmProcess) -> None:
    with moving(runtime, "100") as (_, _, typed):
        typed.wait_for("each page takes 41.0 s")
        typed.wait_for("pass 1", 3)  # though the first window of pages is not through
        one = json.loads(cli(runtime, "migrate", "here", "--status", "--json").stdout)
        other = json.loads(cli(runtime, "migrate", "here", "--status", "--json").stdout)
        assert other["elapsed"] > one["elapsed"]
        assert one["downtime_limit"] == 0.3
        cli(runtime, "migrate", "here", "--cancel")


@machine
@process
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_who_is_ended_cancels(runtime: Path, here: VmProcess, number: signal.Signals) -> None:
    with moving(runtime) as (there, _, typed):
        typed.process.send_signal(number)
        assert typed.wait() == 128 + number
        assert there.wait() == 1
        assert "cancelled" in cli(runtime, "migrate", "here", "--status").stdout
        cli(runtime, "inject", "here", "0")


@machine
@process
@pytest.mark.parametrize(
    ("number", "code", "says"),
    [
        (signal.SIGKILL, 3, "the VM 'here' ended before its guest had moved"),
        (signal.SIGTERM, 1, "VM 'here' has not moved: its VM was ended"),
    ],
    ids=str,
)
def test_a_source_that_ends_is_told_of_on_a_line_of_its_own(
    runtime: Path, here: VmProcess, number: signal.Signals, code: int, says: str
) -> None:
    with moving(runtime) as (_, _, typed):
        here.signal(number)
        assert typed.wait() == code
        assert f"\r\x1b[Kerror: {says}\r\n" in typed.text
        assert "its guest stays there" not in typed.text  # there is none left


@machine
@process
def test_a_guest_that_comes_paused_is_said_to_be(runtime: Path, here: VmProcess) -> None:
    with VmClient("here") as client:
        client.pause()
    with place(runtime) as (there, uri):
        cli(runtime, "migrate", "here", uri)
        there.wait_err("the guest has come, and is paused")
        assert "goes on here" not in there.err


def test_what_cannot_converge_is_hopeless() -> None:
    policy = Convergence(0.001)
    policy.sent(1000, 10)  # each page takes 10 ms
    assert policy.next(5).hopeless
    policy = Convergence(0.3)
    policy.sent(1000, 1)
    steps = []
    for _ in range(20):
        steps.append(policy.next(500))  # held up more and more, and always as many
    assert not steps[0].hopeless
    assert steps[-1].hopeless
    assert not any(step.stop for step in steps)


# -- files


@machine
@process
def test_files_by_their_uri_and_over_others(runtime: Path, here: VmProcess) -> None:
    file = runtime / "guest.sdei"
    cli(runtime, "save", "here", f"file:{file}", "--stay", "--no-compress")
    analysis = json.loads(cli(runtime, "migrate", "--analyze", str(file), "--json").stdout)
    assert not any(each["compressed"] for each in analysis["passes"])
    assert "--overwrite" in cli(runtime, "migrate", "here", f"file:{file}", code=1).stderr
    cli(runtime, "migrate", "here", f"file:{file}", "--overwrite")
    assert here.wait() == 0
    refused = cli(runtime, "restore", str(file), "--poll", code=2)
    assert "this guest is one of machine unicorn: it takes no --poll" in refused.stderr
    assert "hint: leave --poll out" in refused.stderr
    file.write_bytes(file.read_bytes() + b"more")
    said = "4 bytes follow the end of the state, at offset 0x"
    assert said in cli(runtime, "restore", f"file:{file}", code=1).stderr
    assert said in cli(runtime, "restore", str(file), "--lazy", code=1).stderr
    assert said in cli(runtime, "migrate", "--analyze", str(file), code=1).stdout


# -- what is refused at once


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        ("--seed 7", 2, "brings its own --seed"),
        ("--vcpus 4", 2, "brings its own --vcpus"),
        ("--vcpus 2", 2, "brings its own --vcpus"),
        ("--conduit smc", 2, "brings its own --conduit"),
        ("--policy tf-a", 2, "brings its own --policy"),
        ("--cpu max", 2, "brings its own --cpu"),
        ("--qemu /nosuch", 3, "/nosuch is no program"),
        ("--machine unicorn --poll", 2, "machine unicorn takes no --poll"),
        ("--machine unicorn -- -device x", 2, "machine unicorn takes no arguments for QEMU"),
        ("--machine vax", 2, "there is no machine 'vax'"),
    ],
)
def test_options_that_come_with_the_guest(
    runtime: Path, capsys: pytest.CaptureFixture[str], words: str, code: int, says: str
) -> None:
    assert main(["run", "--incoming", f"unix:{runtime}/x", *words.split()]) == code
    assert says in capsys.readouterr().err
    assert not (runtime / "x").exists()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("here tcp:localhost:0", "nobody listens at port 0"),
        ("here tcp:192.0.2.1:4444", "--tls-creds"),
        ("here tcp:127.0.0.1:44 --max-bandwidth 0", "0 bytes a second"),
        ("here unix:/x --overwrite", "--overwrite is for files"),
        ("here unix:/x --tls-creds /nosuch", "/nosuch"),
        ("here unix:/x --tls-hostname a", "of no use without TLS"),
    ],
)
def test_a_move_that_can_never_be(runtime: Path, capsys: pytest.CaptureFixture[str], words: str, says: str) -> None:
    assert main(["migrate", *words.split()]) == 2
    assert says in capsys.readouterr().err


def test_help_of_restore_has_what_it_takes(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["restore", "--help"]) == 0
    text = capsys.readouterr().out
    assert all(f"--{name}" not in text for name in ("seed", "policy", "cpu", "vcpus"))
    assert "[default: unicorn]" not in text
    assert main(["migrate", "--help"]) == 0
    text = capsys.readouterr().out
    assert "Usage: sdeivirt migrate [OPTIONS] [VM] [URI]" in text
    assert "--max-bandwidth SIZE" in text


def test_options_of_a_place() -> None:
    with pytest.raises(UsageError, match="is one of machine qemu, and this is a place for machine unicorn"):
        PlaceOptions(machine="unicorn").engine("qemu")
    assert PlaceOptions().engine("unicorn") is None
    assert PlaceOptions(poll=True).engine("qemu") == QemuOptions(poll=True)


# -- machine qemu's devices


DEVICES = ("-device", "virtio-rng-pci,rng=r", "-device", "virtio-net-pci,netdev=n,mac=52:54:00:00:00:01")


@pytest.mark.parametrize(
    "behind",
    [
        (),
        ("-netdev", "user,id=n,hostfwd=tcp::2222-:22"),
        ("-object", "rng-random,id=r", "-s"),
        ("-drive", "if=none,id=d,file=/somewhere/else.img"),
        ("-chardev", "socket,id=c,path=/x"),
    ],
)
def test_what_stands_behind_devices_may_differ(behind: tuple[str, ...]) -> None:
    there = QemuOptions(arguments=(*DEVICES, *behind), cpu="max,pauth-impdef=on")
    here = QemuOptions(arguments=(*behind, *DEVICES))
    assert here.arrived(there.travelling()) == QemuOptions(arguments=here.arguments, cpu=there.cpu)


@pytest.mark.parametrize(
    "others",
    [
        (),
        DEVICES[:2],
        DEVICES * 2,
        (*DEVICES[2:], *DEVICES[:2]),
        (*DEVICES, "-drive", "if=virtio,file=/x"),
        (*DEVICES, "-global", "virtio-net-pci.mac=x"),
        (*DEVICES[:3], DEVICES[3] + ",mq=on"),
    ],
)
def test_devices_that_differ_are_refused(others: tuple[str, ...]) -> None:
    for one, other in ((DEVICES, others), (others, DEVICES)):
        with pytest.raises(MigrationError, match="after --"):
            QemuOptions(arguments=one).arrived(QemuOptions(arguments=other).travelling())


def test_arguments_that_make_no_device_bring_an_interrupt_controller() -> None:
    with pytest.raises(MigrationError, match="another interrupt controller"):
        QemuOptions().arrived(QemuOptions(arguments=("-netdev", "user,id=n")).travelling())


@pytest.mark.parametrize("cpu", ["", "-daemonize", "a b", "max\n", "x" * 600, True])
def test_a_cpu_that_cannot_be(cpu: str | bool) -> None:
    with pytest.raises(SdeivirtError, match="there is no CPU"):
        QemuOptions().arrived({"cpu": cpu})


def test_options_with_two_dashes_and_without_a_value() -> None:
    assert front_ends(["--device", "a,drive=b", "-cdrom", "/x", "-nic", "user,model=e1000", "-usb"]) == [
        *("-device", "a", "-cdrom", "-nic", "model=e1000", "-usb")
    ]


# -- how it is written


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (1023, "1,023 B"),
        (1024, "1.0 KiB"),
        (102400, "100 KiB"),
        (5 << 20, "5.0 MiB"),
        (3 << 40, "3,072 GiB"),
    ],
)
def test_bytes(count: int, text: str) -> None:
    assert in_bytes(count) == text


def test_one_page_and_many() -> None:
    assert (counted(1, "page"), counted(0, "page"), counted(1000, "page")) == ("1 page", "0 pages", "1,000 pages")


def test_long_lines_go_on_below_their_last_cell() -> None:
    line = "  name  array  " + "0x1234 " * 20
    lines = _fold(line.rstrip(), 60)
    assert all(len(each) <= 60 for each in lines)
    assert " ".join(lines).split() == line.split()
    assert all(each.startswith(" " * 15 + "0x1234") for each in lines[1:])
    assert _fold("short", 60) == ["short"]


@machine
@process
@pytest.mark.parametrize("words", [("status",), ("status", "here"), ("registers", "here", "list")])
def test_a_narrow_terminal_loses_nothing(runtime: Path, here: VmProcess, words: tuple[str, ...]) -> None:
    narrow, wide = (cli_on_terminal(runtime, columns, *words) for columns in (60, 300))
    assert "…" not in narrow
    assert "running" in narrow or "SDEI_PE_STATE" in narrow
    # No word is broken.
    assert set(narrow.split()) == set(wide.split())


def cli_on_terminal(runtime: Path, columns: int, *words: str) -> str:
    """What a terminal of so many columns is given."""
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-m", "sdeivirt", *words],
        env=environment(runtime, COLUMNS=str(columns), NO_COLOR="1"),
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
    ) as done:
        os.close(theirs)
        text = b""
        try:
            while data := os.read(ours, 4096):
                text += data
        except OSError:
            pass
        os.close(ours)
        assert done.wait(LIMIT) == 0
    return re.sub(r"\x1b\[[0-9;]*m", "", text.decode()).replace("\r\n", "\n")


# -- completion


def test_files_complete(tmp_path: Path) -> None:
    (tmp_path / "directory").mkdir()
    (tmp_path / "dump.json").touch()
    (tmp_path / ".hidden").touch()
    assert complete_files(f"{tmp_path}/") == [f"{tmp_path}/directory/", f"{tmp_path}/dump.json"]
    assert complete_files(f"{tmp_path}/du") == [f"{tmp_path}/dump.json"]
    assert complete_files(f"{tmp_path}/nothing/at") == []


def test_addresses_complete(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "there.sock").touch()
    assert main(["__complete", "migrate", "d", ""]) == 0
    assert {"tcp:", "unix:", "file:"} <= set(capsys.readouterr().out.split())
    assert main(["__complete", "migrate", "d", f"unix:{tmp_path}/th"]) == 0
    assert f"unix:{tmp_path}/there.sock" in capsys.readouterr().out.split()


@machine
@process
def test_registers_complete(runtime: Path, here: VmProcess, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["__complete", "registers", "here", "get", "SDEI_PE"]) == 0
    assert "SDEI_PE_STATE" in capsys.readouterr().out.split()
    assert main(["__complete", "registers", "here", "set", "SDEI_PE"]) == 0
    assert "SDEI_PE_STATE=" in capsys.readouterr().out.split()


@process
def test_bash_joins_what_it_breaks_at_colons(tmp_path: Path) -> None:
    (tmp_path / "there.sock").touch()
    script = cli(tmp_path, "completion", "bash").stdout
    words = f"COMP_WORDS=(sdeivirt migrate d unix : {tmp_path}/th); COMP_CWORD=5"
    binary = Path(sys.executable).with_name("sdeivirt")
    text = f'{script}\n{words}\n_sdeivirt_joined "{binary}"\necho "found ${{COMPREPLY[*]}}"\n'
    done = subprocess.run(
        ["bash", "-c", text],
        env=environment(tmp_path, PATH=f"{binary.parent}:{os.environ['PATH']}"),
        capture_output=True,
        text=True,
        timeout=LIMIT,
    )
    assert f"found {tmp_path}/there.sock\n" in done.stdout, done.stderr
