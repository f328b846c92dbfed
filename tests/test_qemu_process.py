# SPDX-License-Identifier: Apache-2.0
"""`sdeivirt run --machine qemu` as processes: how runs end, and that nothing of them stays behind."""

from __future__ import annotations

import json
import os
import shlex
import signal
import socket
import stat
import subprocess
from pathlib import Path

import pytest

from sdeivirt.control.client import VmClient
from sdeivirt.machine.qemu.process import tied_to

from .asm import assemble
from .control_support import LIMIT, Qmp, VmProcess, cli, wait_until
from .machine_support import NEEDS_QEMU

pytestmark = [pytest.mark.process, pytest.mark.machine, pytest.mark.qemu, NEEDS_QEMU]

LISTENING = "listening: CPU#"


def start(runtime: Path, *words: str, guest: str = "listen", name: str = "vm", append: str = "quiet=1") -> VmProcess:
    return VmProcess(runtime, "--machine", "qemu", "--guest", guest, "--append", append, *words, name=name)


def listen(runtime: Path, *words: str, name: str = "vm", append: str = "quiet=1") -> VmProcess:
    vm = start(runtime, *words, name=name, append=append)
    vm.wait_out(LISTENING, 2)
    return vm


def qemu_of(vm: VmProcess) -> int:
    """The process id of a VM's QEMU."""
    report = json.loads(cli(vm.runtime, "status", vm.path.name, "--json").stdout)
    pid = report["engine"]["pid"]
    assert isinstance(pid, int)
    return pid


def alive(pid: int) -> bool:
    """Whether a process runs; a zombie, whose parent has not looked, does not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state not in ("Z", "X")


def nothing_left(vm: VmProcess, qemu: int) -> None:
    wait_until(lambda: not alive(qemu), "QEMU is still there")
    assert not vm.path.exists()


def test_power_off_and_reset(tmp_path: Path) -> None:
    with start(tmp_path, guest="selftest", append="") as vm:
        assert vm.wait() == 0
        assert "Result: OK" in vm.out
        assert not vm.path.exists()
    reset = str(assemble("    say 'B'\n    say 10\n    call SYSTEM_RESET\n    b ."))
    with start(tmp_path, guest=reset, append="") as vm:
        assert vm.wait() == 0
        assert vm.out == "B\n"


def test_a_reset_restarts_where_that_is_wanted(tmp_path: Path) -> None:
    reset = str(assemble("    say 'B'\n    say 10\n    call SYSTEM_RESET\n    b ."))
    with start(tmp_path, "--on-reset", "restart", guest=reset, append="") as vm:
        vm.wait_out("B\n", 3)
        vm.signal(signal.SIGTERM)
        assert vm.wait() == 128 + signal.SIGTERM


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals(tmp_path: Path, number: signal.Signals) -> None:
    with listen(tmp_path) as vm:
        qemu = qemu_of(vm)
        vm.signal(number)
        assert vm.wait() == 128 + number
        nothing_left(vm, qemu)


def test_a_time_limit_shows_what_each_vcpu_did(tmp_path: Path) -> None:
    with start(tmp_path, "--timeout", "2", append="idle=spin") as vm:
        assert vm.wait() == 124
        assert vm.err.count("still running when the time was up") == 2
        assert "=>" in vm.err
        assert "the guest ran longer than 2 s" in vm.err


def test_qemu_killed(tmp_path: Path) -> None:
    with listen(tmp_path) as vm:
        qemu = qemu_of(vm)
        os.kill(qemu, signal.SIGKILL)
        assert vm.wait() == 3
        assert "error: QEMU was killed by signal 9" in vm.err
        nothing_left(vm, qemu)


def test_we_are_killed_and_qemu_does_not_survive_us(tmp_path: Path) -> None:
    with listen(tmp_path) as vm:
        qemu = qemu_of(vm)
        vm.signal(signal.SIGKILL)
        vm.process.wait(LIMIT)
        wait_until(lambda: not alive(qemu), "QEMU has survived")
    assert not [path for path in Path("/dev/shm").iterdir() if "sdeivirt" in path.name]
    with listen(tmp_path) as vm:  # the name is free, and so is the directory
        vm.signal(signal.SIGTERM)
        assert vm.wait() == 128 + signal.SIGTERM


def test_who_is_killed_before_qemu_has_begun_leaves_none_behind(tmp_path: Path) -> None:
    """Then nothing tells the new process of the death any more, so it has to look."""
    ours = subprocess.run(tied_to(os.getpid(), ["touch", str(tmp_path / "ours")]), check=False)
    assert ours.returncode == 0
    assert (tmp_path / "ours").exists()
    dead = subprocess.Popen(["true"])
    dead.wait()
    orphan = subprocess.run(tied_to(dead.pid, ["touch", str(tmp_path / "orphan")]), check=False)
    assert orphan.returncode != 0
    assert not (tmp_path / "orphan").exists()


def test_two_vms_at_once_do_not_disturb_each_other(tmp_path: Path) -> None:
    with listen(tmp_path, name="one") as one, listen(tmp_path, name="two") as two:
        first, second = qemu_of(one), qemu_of(two)
        assert first != second
        for i in range(10):
            cli(tmp_path, "inject", "one", "0", "--vcpu", str(i % 2))
        one.signal(signal.SIGTERM)
        assert one.wait() == 128 + signal.SIGTERM
        assert alive(second)
        cli(tmp_path, "inject", "two", "0")
        report = json.loads(cli(tmp_path, "status", "two", "--json").stdout)
        counts = [handler["injected"] for event in report["events"] for handler in event["handlers"]]
        assert sum(counts) == 1


def test_qemus_own_qmp_is_open_to_its_user_and_to_nobody_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    with listen(tmp_path, append="idle=spin quiet=1") as vm:
        path = vm.path / "qmp.sock"
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0
        with Qmp(path) as qmp, VmClient("vm") as client:
            assert qmp.execute("query-status")["return"]["running"] is True
            qmp.execute("stop")
            wait_until(lambda: client.status().state == "paused")
            assert client.inject(0, 1).waits == "paused"
            qmp.execute("cont")
            wait_until(lambda: client.status().events[0].handlers[1].completed == 1)
            assert qmp.execute("quit") == {"return": {}}
        assert vm.wait() == 0


def test_a_reset_by_qmp_is_a_reset(tmp_path: Path) -> None:
    with listen(tmp_path, "--on-reset", "restart") as vm:
        before = qemu_of(vm)
        with Qmp(vm.path / "qmp.sock") as qmp:
            qmp.send(b'{"execute": "system_reset"}')
            vm.wait_out(LISTENING, 4)
        assert qemu_of(vm) != before
        cli(tmp_path, "inject", "vm", "0", "--vcpu", "1")
        vm.signal(signal.SIGTERM)
        assert vm.wait() == 128 + signal.SIGTERM


def test_a_console_file(tmp_path: Path) -> None:
    console = tmp_path / "console.txt"
    with start(tmp_path, "--console", str(console), guest="selftest", append="") as vm:
        assert vm.wait() == 0
        assert vm.out == ""
    assert console.read_text().rstrip().endswith("Result: OK")
    assert stat.S_IMODE(console.stat().st_mode) == 0o600


def test_dry_run_prints_a_line_that_qemu_takes(tmp_path: Path) -> None:
    line = cli(
        tmp_path, "run", "--machine", "qemu", "--guest", "listen", "--dry-run", "--", "-device", "virtio-rng-pci"
    )
    words = shlex.split(line.stdout)
    assert words[0].endswith("qemu-system-aarch64")
    assert words[-2:] == ["-device", "virtio-rng-pci"]
    assert "memory-backend-file,id=ram,share=on" in line.stdout
    assert not (tmp_path / "sdeivirt").exists()


def test_gdb_can_connect_where_the_line_says(tmp_path: Path) -> None:
    with listen(tmp_path, "--gdb") as vm:
        assert f"target remote {vm.path / 'gdb.sock'}" in vm.err
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(LIMIT)
            connection.connect(str(vm.path / "gdb.sock"))
            connection.sendall(b"+$qSupported#37")
            answer = b""
            while b"PacketSize" not in answer:  # the stop that a new debugger causes may come first
                more = connection.recv(4096)
                assert more, answer
                answer += more
        vm.signal(signal.SIGTERM)
        assert vm.wait() == 128 + signal.SIGTERM


BAD = [
    ("run --machine qemu --guest listen --cpu bogus", 3, "unable to find CPU model"),
    ("run --machine qemu --guest listen -- -device nosuch", 3, "not a valid device model"),
    ("run --machine qemu --guest listen --qemu /nonexistent", 3, "is no program that can be run"),
    ("run --machine qemu --guest listen --vcpus 65", 2, "1 to 64"),
    ("run --machine qemu --guest listen --seed 1", 2, "cannot repeat a schedule"),
    ("run --machine qemu --guest listen --memory 2M", 2, "8M or more"),
    ("run --machine qemu --guest listen --initrd /nonexistent", 2, "cannot read /nonexistent"),
    ("run --machine qemu --guest listen --vcpu 4", 2, "--vcpu"),
    ("run --machine qemu --guest listen -- -smp 8", 2, "QEMU cannot be given -smp"),
    ("run --machine qemu --guest listen -- -M gic-version=2", 2, "gic-version=2"),
    ("run --machine qemu --guest listen --firmware acpi -- -machine acpi=off", 2, "say --firmware dt"),
    ("run --machine qemu --guest listen --firmware uefi -- -M virt,ras=on", 2, "--error-source"),
    ("run --machine qemu --guest listen -- -no-acpi", 2, "say --firmware dt"),
    ("run --machine qemu --guest listen stray", 2, "unexpected argument 'stray'"),
    ("run --guest listen --cpu max", 2, "takes no --cpu"),
    ("run --guest listen -- -device x", 2, "takes no arguments for QEMU"),
    ("run --guest listen --dry-run", 2, "no other program"),
]


@pytest.mark.parametrize(("words", "code", "message"), BAD)
def test_bad_input(tmp_path: Path, words: str, code: int, message: str) -> None:
    done = cli(tmp_path, *words.split(), code=code)
    assert message in done.stderr
    assert "hint: " in done.stderr
    assert not list((tmp_path / "sdeivirt").glob("*")), "something stayed behind"


def test_without_qemu_the_error_says_what_to_install(tmp_path: Path) -> None:
    done = cli(tmp_path, "selftest", "--machine", "qemu", code=3, PATH="/nonexistent")
    assert "there is no qemu-system-aarch64" in done.stderr
    assert "apt-get install qemu-system-arm" in done.stderr
