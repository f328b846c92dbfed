# SPDX-License-Identifier: Apache-2.0
"""A VM on a terminal: raw while it runs, as it was before on every way out."""

from __future__ import annotations

import os
import pty
import random
import select
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

import pytest

from .asm import assemble
from .control_support import LIMIT, environment

pytestmark = [pytest.mark.process, pytest.mark.machine]

# Says that it listens, then sends back what it is sent, Ctrl-C too, until a q.
ECHO = """
    say '>'
    say 10
    mov x20, #0x09000000
1:  ldr w0, [x20, #0x18]
    tbnz w0, #4, 1b
    ldr w0, [x20]
    cmp w0, #'q'
    b.eq 2f
    cmp w0, #'!'
    b.eq 3f
    add w0, w0, #0x40
    str w0, [x20]
    mov w0, #10
    str w0, [x20]
    b 1b
2:  off
3:  .inst 0
"""

LOCAL_FLAGS = termios.ECHO | termios.ICANON | termios.ISIG


class TerminalVm:
    """`sdeivirt run` with a pseudo terminal for its standard streams, as the terminal's foreground job."""

    def __init__(self, runtime: Path, *words: str) -> None:
        self.runtime = runtime
        self.master, self.slave = pty.openpty()
        self.before = termios.tcgetattr(self.slave)
        self.seen = ""
        self.process = subprocess.Popen(
            [
                # A session leader that opens a terminal gets it as its own; then sdeivirt.
                *(
                    sys.executable,
                    "-c",
                    "import os, sys; os.close(os.open(os.ttyname(0), os.O_RDWR)); os.execv(sys.argv[1], sys.argv[1:])",
                ),
                *(sys.executable, "-m", "sdeivirt", "run", "--guest", str(assemble(ECHO)), *words),
            ],
            env=environment(runtime),
            stdin=self.slave,
            stdout=self.slave,
            stderr=self.slave,
            start_new_session=True,
        )

    def expect(self, text: str) -> None:
        deadline = time.monotonic() + LIMIT
        while text not in self.seen:
            ready, _, _ = select.select([self.master], [], [], max(0, deadline - time.monotonic()))
            assert ready, f"{text!r} is not in {self.seen!r}"
            self.seen += os.read(self.master, 4096).decode()

    def press(self, keys: bytes) -> None:
        os.write(self.master, keys)

    @property
    def raw(self) -> bool:
        return not termios.tcgetattr(self.slave)[3] & LOCAL_FLAGS

    def wait(self) -> int:
        code = self.process.wait(LIMIT)
        assert termios.tcgetattr(self.slave) == self.before
        return code

    def __enter__(self) -> TerminalVm:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(LIMIT)
        os.close(self.master)
        os.close(self.slave)


@pytest.fixture
def vm(tmp_path: Path) -> Iterator[TerminalVm]:
    with TerminalVm(tmp_path) as vm:
        vm.expect("Ctrl-] ends the VM\r\n")
        vm.expect(">\r\n")
        assert vm.raw
        yield vm
        assert os.listdir(tmp_path / "sdeivirt") == []


def test_every_key_goes_to_the_guest_until_the_escape_key(vm: TerminalVm) -> None:
    vm.press(b"\x03")  # Ctrl-C
    vm.expect("C\r\n")
    vm.press(b"\x1a\x04")  # Ctrl-Z, Ctrl-D
    vm.expect("Z\r\nD\r\n")
    vm.press(b"\x01\x1dq")
    assert vm.wait() == 0
    assert vm.seen.count("Ctrl-]") == 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal(vm: TerminalVm, number: signal.Signals) -> None:
    vm.process.send_signal(number)
    assert vm.wait() == 128 + number


def test_power_off(vm: TerminalVm) -> None:
    vm.press(b"q")
    assert vm.wait() == 0


def test_a_fault(vm: TerminalVm) -> None:
    vm.press(b"!")
    vm.expect("vCPU 0 stopped: undefined")
    assert vm.wait() == 1


def test_time_out(tmp_path: Path) -> None:
    with TerminalVm(tmp_path, "--timeout", "0.2") as vm:
        vm.expect("error: the guest ran longer than 0.2 s")
        assert vm.wait() == 124


def test_bad_input(tmp_path: Path) -> None:
    with TerminalVm(tmp_path, "--memory", "1M") as vm:
        vm.expect("0x100000 bytes of memory")
        assert vm.wait() == 2


SUM_INPUT = """
    ldr x10, =300000
    mov x11, #0
    mov x20, #0x09000000
    mov x13, #31
    ldr x14, =200000
0:  subs x14, x14, #1
    b.ne 0b
1:  ldr w12, [x20, #0x18]
    tbnz w12, #4, 1b
    ldr w12, [x20]
    mul x11, x11, x13
    add x11, x11, x12
    and x11, x11, #0xffffffff
    subs x10, x10, #1
    b.ne 1b
    mov x10, #8
2:  ror w11, w11, #28
    and w12, w11, #0xf
    add w12, w12, #65
    str w12, [x20]
    subs x10, x10, #1
    b.ne 2b
    say 10
    off
"""


@pytest.mark.parametrize("through", ["pipe", "file"])
def test_more_input_than_the_serial_port_holds_arrives_whole(through: str, tmp_path: Path) -> None:
    data = random.Random(5).randbytes(300_000)
    checksum = 0
    for byte in data:
        checksum = (checksum * 31 + byte) & 0xFFFF_FFFF
    letters = "".join(chr(65 + (checksum >> shift & 15)) for shift in range(28, -1, -4))
    command = [sys.executable, "-m", "sdeivirt", "run", "--guest", str(assemble(SUM_INPUT)), "--vcpus", "1"]
    if through == "pipe":
        done = subprocess.run(
            command, input=data, capture_output=True, env=environment(tmp_path), timeout=LIMIT, check=False
        )
    else:
        (tmp_path / "input").write_bytes(data)
        with (tmp_path / "input").open("rb") as stdin:
            done = subprocess.run(
                command, stdin=stdin, capture_output=True, env=environment(tmp_path), timeout=LIMIT, check=False
            )
    assert done.stdout.decode() == letters + "\n"
    assert done.returncode == 0


def test_an_unclosed_client_says_nothing_at_exit(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "sdeivirt", "run", "--guest", "listen"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        env=environment(tmp_path),
    ) as vm:
        assert vm.stdout is not None
        assert b"listening" in vm.stdout.readline()
        try:
            code = "from sdeivirt import VmClient; vm = VmClient('vm'); print(vm.status().state)"
            done = subprocess.run(
                [sys.executable, "-X", "dev", "-c", code], capture_output=True, env=environment(tmp_path), check=False
            )
            assert (done.returncode, done.stdout, done.stderr) == (0, b"running\n", b"")
        finally:
            vm.send_signal(signal.SIGTERM)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="this host has no /dev/full")
@pytest.mark.parametrize("words", [["status"], ["doctor", "--json"], ["--help"], ["completion", "bash"]])
def test_a_full_disk_is_one_sentence(words: list[str], tmp_path: Path) -> None:
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            [sys.executable, "-m", "sdeivirt", *words],
            stdout=full,
            stderr=subprocess.PIPE,
            env=environment(tmp_path),
            check=False,
        )
    assert done.stderr.decode().splitlines()[0] == "error: cannot write the output: No space left on device"
    assert done.returncode == 3
