# SPDX-License-Identifier: Apache-2.0
"""`sdeivirt run`, `inject` and `status` as processes, with real guests on the real machine."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import random
import select
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sdeivirt.cli import main
from sdeivirt.control.client import VmClient
from sdeivirt.errors import EnvironmentUnavailableError
from sdeivirt.sdei.service import Injection

from .asm import assemble
from .control_support import LIMIT, Qmp, VmProcess, cli, environment, wait_until

pytestmark = [pytest.mark.process, pytest.mark.machine]

LISTENING = "listening: CPU#"
SHARED = 0x4000_0010

# Everything masked, and never a hypercall: only a handler gets in here.
SPIN = "    b ."
# Sends back what it is sent.
ECHO = """
    mov x20, #0x09000000
1:  ldr w0, [x20, #0x18]
    tbnz w0, #4, 1b
    ldr w0, [x20]
    str w0, [x20]
    cmp w0, #'q'
    b.ne 1b
    off
"""


def listen(runtime: Path, *words: str, vcpus: int = 2, append: str = "events=0,0x1234", name: str = "vm") -> VmProcess:
    """A VM whose guest waits for events on all vCPUs."""
    vm = VmProcess(
        runtime,
        *("--guest", "listen", "--append", append, "--vcpus", str(vcpus)),
        *("--event", "0x1234:critical", "--event", f"{SHARED:#x}:shared", *words),
        name=name,
    )
    vm.wait_out(LISTENING, vcpus)
    return vm


@pytest.fixture(scope="module")
def runtime(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("run")


@pytest.fixture(scope="module")
def vm(runtime: Path) -> Iterator[VmProcess]:
    """One VM for all tests that leave it as it is."""
    with listen(runtime) as vm:
        yield vm


@pytest.fixture
def qmp(vm: VmProcess) -> Iterator[Qmp]:
    with Qmp(vm.socket) as client:
        yield client


def nothing_left(runtime: Path) -> bool:
    return not (runtime / "sdeivirt").exists() or os.listdir(runtime / "sdeivirt") == []


# -- injections


def test_run_says_where_and_how(vm: VmProcess) -> None:
    assert f"control directory {vm.path}" in vm.err
    assert f"`echo 0x1234 > {vm.path}/vcpu-0`" in vm.err
    assert "`sdeivirt inject vm 0x1234`" in vm.err
    assert sorted(os.listdir(vm.path)) == ["control.sock", "lock", "vcpu-0", "vcpu-1"]
    for entry in vm.path.iterdir():
        assert stat.S_IMODE(entry.stat().st_mode) == 0o600, entry


@pytest.mark.parametrize(
    ("words", "says", "prints"),
    [
        (["0"], "event 0x0 injected into vCPU 0", "SDEI Event (CPU#0)"),
        (["0x0", "--vcpu", "1"], "event 0x0 injected into vCPU 1", "SDEI Event (CPU#1)"),
        (["4660", "--affinity", "0x1"], "event 0x1234 injected into vCPU 1", "Event: 0000000000001234"),
        (["0", "--affinity", "0x80000001"], "event 0x0 injected into vCPU 1", "SDEI Event (CPU#1)"),
    ],
)
def test_inject(runtime: Path, vm: VmProcess, words: list[str], says: str, prints: str) -> None:
    before = vm.out.count(prints)
    done = cli(runtime, "inject", "vm", *words)
    assert done.stdout.strip() == says
    assert done.stderr == ""
    vm.wait_out(prints, before + 1)


def test_inject_json_and_cancel(runtime: Path, vm: VmProcess) -> None:
    answer = json.loads(cli(runtime, "inject", "vm", "0", "--json").stdout)
    assert answer == {"event": 0, "vcpu": 0, "waits": "", "coalesced": False}
    wait_until(lambda: not query(vm)["events"][0]["handlers"][0]["running"])
    assert cli(runtime, "inject", "vm", "0", "--cancel", code=1).stdout == "event 0x0 was not pending\n"
    answer = json.loads(cli(runtime, "inject", "vm", "0", "--cancel", "--json", code=1).stdout)
    assert answer == {"event": 0, "cancelled": False}


def test_echo_into_a_fifo(vm: VmProcess) -> None:
    before = vm.out.count("SDEI Event (CPU#1)")
    subprocess.run(["sh", "-c", f"echo 0 > {vm.path}/vcpu-1; printf '0x1234 nonsense' > {vm.path}/vcpu-1"], check=True)
    vm.wait_out("SDEI Event (CPU#1)", before + 2)
    vm.wait_err("warning: vcpu-1: 'nonsense' is no event number")


def query(vm: VmProcess) -> dict[str, Any]:
    """What `status --json` prints, without a process for it."""
    with Qmp(vm.socket) as client:
        result: dict[str, Any] = client.execute("query-vm")["return"]
    return result


def test_status(runtime: Path, vm: VmProcess) -> None:
    report = json.loads(cli(runtime, "status", "vm", "--json").stdout)
    assert (report["name"], report["machine"], report["state"], report["policy"]) == ("vm", "unicorn", "running", "kvm")
    assert [(pe["vcpu"], pe["affinity"], pe["power"], pe["masked"]) for pe in report["vcpus"]] == [
        (0, 0, "on", False),
        (1, 1, "on", False),
    ]
    assert [event["number"] for event in report["events"]] == [0, 0x1234, SHARED, 0x4040_0001]
    text = cli(runtime, "status", "vm").stdout
    assert "VM vm: running, machine unicorn" in text
    assert "0-1   0x0 to 0x1  on" in text
    assert "0x1234      private  critical" in text
    assert f"{SHARED:#x}  shared   normal    host          none registered" in text
    assert "registered enabled" in text
    assert max(map(len, text.splitlines())) <= 100
    assert "\x1b" not in text
    assert all(line == line.rstrip() for line in text.splitlines())
    assert len(cli(runtime, "status", "vm", "--all").stdout.splitlines()) > len(text.splitlines())


def test_status_of_all(runtime: Path, vm: VmProcess) -> None:
    row = {"name": "vm", "pid": vm.process.pid, "machine": "unicorn", "vcpus": 2, "state": "running", "migration": ""}
    assert json.loads(cli(runtime, "status", "--json").stdout) == [row]
    assert str(vm.process.pid) in cli(runtime, "status").stdout


def test_status_of_none(tmp_path: Path) -> None:
    assert cli(tmp_path, "status").stdout == "no VM is running\n"
    assert json.loads(cli(tmp_path, "status", "--json").stdout) == []


def test_pause_shows_what_is_pending(runtime: Path, vm: VmProcess, qmp: Qmp, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(runtime))
    with VmClient("vm") as client:
        client.pause()
        try:
            assert client.status().state == "paused"
            assert client.inject(0, vcpu=1) == Injection(0, 1, "paused", coalesced=False)
            assert client.inject(0, vcpu=1) == Injection(0, 1, "paused", coalesced=True)
            assert [handler.pending for handler in client.status().events[0].handlers] == [False, True]
            assert client.cancel(0, vcpu=1) is True
        finally:
            client.resume()
    assert [qmp.receive()["event"] for _ in range(2)] == ["STOP", "RESUME"]
    handlers = query(vm)["events"][0]["handlers"]
    assert [handler["dropped"] for handler in handlers] == [0, 1]


def test_qmp_shell_can_talk_to_it(vm: VmProcess) -> None:
    before = vm.out.count("SDEI Event (CPU#0)")
    done = subprocess.run(
        [sys.executable, "-m", "qemu.qmp.qmp_shell", str(vm.socket)],
        input="query-status\ninject-event event=0x0 vcpu=0\ninject-event event=7\n",
        env=environment(vm.runtime, HOME=str(vm.runtime)),
        capture_output=True,
        text=True,
        timeout=LIMIT,
    )
    assert '{"return": {"running": true, "status": "running"}}' in done.stdout
    assert '"coalesced": false' in done.stdout
    assert "no event 0x7 is defined" in done.stdout
    vm.wait_out("SDEI Event (CPU#0)", before + 1)


def test_a_masked_guest_that_spins_keeps_an_event_pending(tmp_path: Path) -> None:
    register = "    take_event handler\n    call SDEI_MASK\n    say 'm'\n    say 10\n    b .\nhandler: b ."
    with VmProcess(tmp_path, "--guest", str(assemble(register)), "--vcpus", "1") as vm:
        vm.wait_out("m")
        text = cli(tmp_path, "inject", "vm", "0").stdout
        assert text == "event 0x0 injected into vCPU 0: pending, the PE is masked\n"
        text = cli(tmp_path, "inject", "vm", "0").stdout
        assert text == "event 0x0 injected into vCPU 0: pending, the PE is masked (it was pending already)\n"
        assert cli(tmp_path, "inject", "vm", "0", "--cancel").stdout == "event 0x0 cancelled\n"


def test_512_vcpus(tmp_path: Path) -> None:
    guest = "    take_event handler\n    say 'r'\n    say 10\n    b .\nhandler:\n    call SDEI_COMPLETE"
    with VmProcess(tmp_path, "--guest", str(assemble(guest)), "--vcpus", "512") as vm:
        vm.wait_out("r")
        (vm.path / "vcpu-511").write_text("0\n")
        vm.wait_err("warning: vcpu-511: vCPU 511 has no handler registered")
        (vm.path / "vcpu-0").write_text("0\n")
        wait_until(lambda: query(vm)["events"][0]["handlers"][0]["completed"] == 1)
        text = cli(tmp_path, "status", "vm").stdout
        assert "1-511  0x1 to 0x1f0f  off    yes" in text
        assert len(text.splitlines()) < 16
        assert len(cli(tmp_path, "status", "vm", "--all").stdout.splitlines()) > 512
        vm.signal(signal.SIGTERM)
        assert vm.wait() == 128 + signal.SIGTERM
    assert nothing_left(tmp_path)


# -- how a run ends


def test_power_off(tmp_path: Path) -> None:
    with VmProcess(tmp_path, "--guest", "selftest") as vm:
        assert vm.wait() == 0
        assert vm.out.rstrip().endswith("Result: OK")
    assert nothing_left(tmp_path)


def test_a_fault_is_reported(tmp_path: Path) -> None:
    with VmProcess(tmp_path, "--guest", str(assemble("    mov x19, #0x77\n    .inst 0")), "--vcpus", "1") as vm:
        assert vm.wait() == 1
        assert "vCPU 0 stopped: undefined" in vm.err
        assert "x19 0000000000000077" in vm.err
    assert nothing_left(tmp_path)


def test_time_out(tmp_path: Path) -> None:
    with VmProcess(tmp_path, "--guest", str(assemble(SPIN)), "--vcpus", "1", "--timeout", "0.2") as vm:
        assert vm.wait() == 124
        assert "vCPU 0 stopped: still running when the time was up" in vm.err
        assert "error: the guest ran longer than 0.2 s" in vm.err
        assert "hint: allow more with --timeout" in vm.err
    assert nothing_left(tmp_path)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signals(tmp_path: Path, number: signal.Signals) -> None:
    with VmProcess(tmp_path, "--guest", str(assemble(SPIN))) as vm:
        wait_until(vm.socket.exists)
        with Qmp(vm.socket) as client:
            vm.signal(number)
            event = client.event("SHUTDOWN")
            assert event["data"] == {"guest": False, "reason": "host-signal", "outcome": "stopped"}
        assert vm.wait() == 128 + number
    assert nothing_left(tmp_path)


def test_quit_and_shutdown_of_the_guest_tell_the_clients(tmp_path: Path) -> None:
    with listen(tmp_path) as vm, Qmp(vm.socket) as client, Qmp(vm.socket) as other:
        assert client.execute("quit") == {"return": {}}
        for one in (client, other):
            assert one.event("SHUTDOWN")["data"]["reason"] == "host-qmp-quit"
            with pytest.raises(EOFError):
                one.receive()
        assert vm.wait() == 0
    with VmProcess(tmp_path, "--guest", str(assemble(ECHO))) as vm:
        wait_until(vm.socket.exists)
        with Qmp(vm.socket) as client:
            assert vm.process.stdin is not None
            vm.process.stdin.write(b"q")
            vm.process.stdin.flush()
            data = {"guest": True, "reason": "guest-shutdown", "outcome": "power-off"}
            assert client.event("SHUTDOWN")["data"] == data
        assert vm.wait() == 0
    assert nothing_left(tmp_path)


def test_a_fault_is_an_event(tmp_path: Path) -> None:
    guest = "    take_event handler\n    say 'r'\n    say 10\n1:  wfi\n    b 1b\nhandler: .inst 0"
    with VmProcess(tmp_path, "--guest", str(assemble(guest)), "--vcpus", "1") as vm:
        vm.wait_out("r")
        with Qmp(vm.socket) as client:
            assert client.execute("inject-event", event=0)["return"]["waits"] == ""
            fault = client.event("VCPU_FAULT")["data"]
            assert fault["vcpu"] == 0
            assert "undefined" in fault["reason"]
            assert client.event("SHUTDOWN")["data"]["reason"] == "guest-panic"
        assert vm.wait() == 1


def test_piped_input_reaches_the_guest_and_output_comes_at_once(tmp_path: Path) -> None:
    with VmProcess(tmp_path, "--guest", str(assemble(ECHO))) as vm:
        assert vm.process.stdin is not None
        vm.process.stdin.write(b"hello\n")
        vm.process.stdin.flush()
        vm.wait_out("hello\n")
        vm.process.stdin.write(b"q")
        vm.process.stdin.close()
        vm.process.stdin = None
        assert vm.wait() == 0
        assert vm.out == "hello\nq"


@pytest.mark.parametrize("source", ["file", "null"])
def test_input_that_is_no_pipe(tmp_path: Path, source: str) -> None:
    script = tmp_path / "script"
    script.write_text("from a file\nq")
    with open(script if source == "file" else os.devnull) as stdin:
        done = subprocess.run(
            [sys.executable, "-m", "sdeivirt", "run", "--guest", str(assemble(ECHO)), "--timeout", "0.5"],
            env=environment(tmp_path),
            stdin=stdin,
            capture_output=True,
            text=True,
            timeout=LIMIT,
        )
    assert "Traceback" not in done.stderr
    assert (done.returncode, done.stdout) == ((0, "from a file\nq") if source == "file" else (124, ""))


def test_nobody_reads_the_output(tmp_path: Path) -> None:
    flood = "    mov x20, #0x09000000\n    mov w21, #10\n1:  str w21, [x20]\n    b 1b"
    reader, writer = os.pipe()
    with VmProcess(tmp_path, "--guest", str(assemble(flood)), stdout=writer) as vm:
        os.close(writer)
        os.read(reader, 100)
        os.close(reader)
        assert vm.wait() == 128 + signal.SIGPIPE
    assert nothing_left(tmp_path)


def test_a_reader_that_does_not_read_holds_the_guest_but_not_the_signal(tmp_path: Path) -> None:
    flood = "    mov x20, #0x09000000\n    mov w21, #10\n1:  str w21, [x20]\n    b 1b"
    reader, writer = os.pipe()
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 4096)
    try:
        with VmProcess(tmp_path, "--guest", str(assemble(flood)), stdout=writer) as vm:
            wait_until(lambda: not select.select([], [writer], [], 0)[1], "the pipe is never full")
            with Qmp(vm.socket) as client:
                assert client.execute("query-status")["return"]["running"]
            vm.signal(signal.SIGTERM)
            assert vm.wait() == 128 + signal.SIGTERM
    finally:
        os.close(reader)
        os.close(writer)
    assert nothing_left(tmp_path)


@pytest.mark.parametrize("closed", ["<&-", ">&-", "<&- >&- 2>&-"])
def test_closed_standard_streams(tmp_path: Path, closed: str) -> None:
    """Whatever is opened next would get their numbers, and the guest would write into it."""
    script = f"{sys.executable} -m sdeivirt run --guest selftest {closed}"
    done = subprocess.run(
        ["sh", "-c", script], env=environment(tmp_path), capture_output=True, text=True, timeout=LIMIT
    )
    assert done.returncode == 0
    assert ("Result: OK" in done.stdout) == (closed == "<&-")
    assert "Traceback" not in done.stderr
    assert nothing_left(tmp_path)


# -- bad input: one sentence, a hint, the right exit code, nothing left behind


BAD_INPUT = [
    ("inject other 0", 3, "no VM 'other' is running", "running: vm"),
    ("status other", 3, "no VM 'other' is running", "running: vm"),
    ("inject vm 5", 2, "no event 0x5 is defined", "defined: 0x0, 0x1234, 0x40000010"),
    ("inject vm 0 --vcpu 2", 2, "there is no vCPU 2", "0 to 1"),
    ("inject vm 0 --affinity 0x100", 2, "no vCPU has the affinity 0x100", "0x0, 0x1"),
    ("inject vm zero", 2, "'zero' is no number", "inject --help"),
    ("run --guest listen --name x --machine kvm", 2, "no machine 'kvm'", "unicorn"),
    ("run --guest /etc/passwd --name x", 2, "no AArch64 ELF file", None),
    ("run --kernel {image} --name x --memory 8M", 2, "RAM is", "--memory"),
    ("run --guest listen", 3, "a VM 'vm' is running already (pid", "--name"),
]
# The same, but not worth a process each.
MORE_BAD_INPUT = [
    ("inject .. 0", 2, "cannot be the name of a VM", "letters"),
    ("inject vm 0xffffffffff", 2, "no event 0xffffffffff is defined", "--event"),
    ("inject vm 0 --vcpu 0 --affinity 0", 2, "a vCPU and an affinity were both named", "one of them"),
    ("inject vm 0x40000010", 1, "no handler registered", "wait until"),
    ("inject vm 0x40000010 --vcpu 1", 2, "is shared", "leave the vCPU out"),
    ("inject vm 1.5", 2, "'1.5' is no number", "inject --help"),
    ("inject vm -1", 2, "'-1' is no number", "inject --help"),
    ("inject vm", 2, "EVENT", "inject --help"),
    ("inject vm 0 0", 2, "unexpected argument", "inject --help"),
    ("inject vm 0 --cpu 1", 2, "--cpu", "inject --help"),
    ("run --guest listen --name a/b", 2, "cannot be the name of a VM", "letters"),
    ("run --guest listen --name x --policy none", 2, "no policy 'none'", "kvm, tf-a"),
    ("run --guest listen --name x --vcpus 513", 2, "cannot have 513 vCPUs", "1 to 512"),
    ("run --guest listen --name x --memory 1M", 2, "bytes of memory", "64M"),
    ("run --guest listen --name x --memory 1T", 2, "'1T' is no size", "run --help"),
    ("run --guest listen --name x --timeout -1", 2, "is no time", "run --help"),
    ("run --guest listen --name x --timeout nan", 2, "is no time", "run --help"),
    ("run --guest listen --name x --disable sdei", 2, "no service 'sdei'", "std-sdei"),
    ("run --guest listen --name x --conduit svc", 2, "svc", "run --help"),
    ("run --guest listen --name x --event 7:odd", 2, "'odd' says nothing of an event", "private"),
    ("run --guest listen --name x --event 7 --event 7", 2, "event 0x7 is defined twice", None),
    ("run --guest listen --name x --events /no/such", 2, "cannot read /no/such", None),
    ("run --guest listen --name x --private-slots 600", 2, "there cannot be 600 private slots", "0 to 512"),
    ("run --guest nope --name x", 2, "there is no guest 'nope'", "listen"),
    ("run --guest {x86} --name x", 2, "for x86-64", None),
    ("run --name x", 2, "name either a guest or a kernel", "--guest"),
    ("run --name x --guest listen --kernel foo", 2, "name either a guest or a kernel", "--guest"),
    ("run --name x --guest", 2, "requires an argument", "run --help"),
    ("rum --name x", 2, "Unknown command", "sdeivirt --help"),
]


@pytest.fixture
def bad_files(tmp_path: Path) -> dict[str, Path]:
    x86, image = tmp_path / "x86.elf", tmp_path / "Image"
    data = bytearray(assemble(SPIN).read_bytes())
    data[18:20] = b"\x3e\0"  # e_machine
    x86.write_bytes(data)
    image.write_bytes(bytes(16) + (32 << 20).to_bytes(8, "little") + b"\x0a" + bytes(31) + b"ARM\x64" + bytes(4))
    return {"x86": x86, "image": image}


def check_complaint(runtime: Path, out: str, err: str, message: str, hint: str | None) -> None:
    assert out == ""
    lines = err.splitlines()
    assert len(lines) <= 2, lines
    assert lines[0].startswith("error: ")
    assert message in lines[0]
    if hint is not None:
        assert lines[1].startswith("hint: ")
        assert hint in lines[1]
    assert os.listdir(runtime / "sdeivirt") == ["vm"]


@pytest.mark.parametrize(("words", "code", "message", "hint"), BAD_INPUT)
def test_bad_input(
    runtime: Path, vm: VmProcess, bad_files: dict[str, Path], words: str, code: int, message: str, hint: str | None
) -> None:
    done = cli(runtime, *(word.format(**bad_files) for word in words.split()), code=code)
    check_complaint(runtime, done.stdout, done.stderr, message, hint)


@pytest.mark.parametrize(("words", "code", "message", "hint"), MORE_BAD_INPUT)
def test_more_bad_input(
    runtime: Path,
    vm: VmProcess,
    bad_files: dict[str, Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: str,
    code: int,
    message: str,
    hint: str | None,
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(runtime))
    assert main([word.format(**bad_files) for word in words.split()]) == code
    check_complaint(runtime, *capsys.readouterr(), message, hint)


def test_the_directory_of_a_killed_vm_is_reused(tmp_path: Path) -> None:
    with listen(tmp_path) as vm:
        vm.signal(signal.SIGKILL)
        assert vm.wait() == -signal.SIGKILL
        assert len(os.listdir(vm.path)) == 4
        assert cli(tmp_path, "status").stdout == "no VM is running\n"
        assert "none is running" in cli(tmp_path, "inject", "vm", "0", code=3).stderr
    with listen(tmp_path, vcpus=1, append="events=0") as vm:
        assert sorted(os.listdir(vm.path)) == ["control.sock", "lock", "vcpu-0"]
        assert cli(tmp_path, "inject", "vm", "0").stdout == "event 0x0 injected into vCPU 0\n"
        vm.signal(signal.SIGTERM)
        assert vm.wait() == 128 + signal.SIGTERM
    assert nothing_left(tmp_path)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to give a directory to another user")
def test_a_runtime_directory_of_another_user(tmp_path: Path) -> None:
    (tmp_path / "sdeivirt").mkdir(mode=0o700)
    os.chown(tmp_path / "sdeivirt", 65534, -1)
    for words in (["run", "--guest", "listen"], ["inject", "vm", "0"], ["status"]):
        done = cli(tmp_path, *words, code=3)
        assert "belongs to user 65534" in done.stderr
        assert "hint: set XDG_RUNTIME_DIR" in done.stderr
    assert os.listdir(tmp_path / "sdeivirt") == []


def test_a_control_socket_under_attack(vm: VmProcess, runtime: Path) -> None:
    noise = random.Random(2)
    with contextlib.ExitStack() as stack:
        deaf = [stack.enter_context(Qmp(vm.socket)) for _ in range(20)]
        for client in deaf:
            client.socket.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                for _ in range(50):
                    client.send(b'{"execute": "query-vm"}' * 20)
        for _ in range(50):
            with Qmp(vm.socket, negotiate=False) as client, contextlib.suppress(OSError):
                client.send(noise.randbytes(noise.randrange(100_000)))
        assert cli(runtime, "inject", "vm", "0", "--vcpu", "1").returncode == 0
    assert cli(runtime, "status", "vm").returncode == 0


def test_a_stopped_process_does_not_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    with listen(tmp_path) as vm:
        vm.signal(signal.SIGSTOP)
        with pytest.raises(EnvironmentUnavailableError, match=rf"\(pid {vm.process.pid}\) does not answer"):
            VmClient("vm", patience=0.2)
        vm.signal(signal.SIGCONT)
        assert cli(tmp_path, "inject", "vm", "0").returncode == 0
