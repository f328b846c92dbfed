# SPDX-License-Identifier: Apache-2.0
"""A VM in a process of its own, and clients that mean harm: nothing is lost, left over, or kept for ever."""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import resource
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from .control_support import LIMIT, Qmp, VmProcess, cli, wait_until

pytestmark = [pytest.mark.process, pytest.mark.machine]

MIB = 1 << 20
# What a VM may have grown by after an attack; each one sends, or asks for, far more.
GROWTH = 24 * MIB


@dataclass(frozen=True)
class Health:
    """What a process holds: descriptors, threads, and bytes of memory."""

    descriptors: int
    threads: int
    memory: int

    @classmethod
    def of(cls, pid: int) -> Health:
        status = Path(f"/proc/{pid}/status").read_text()
        number = {key: int(value) for key, value in re.findall(r"^(Threads|VmRSS):\s+(\d+)", status, re.MULTILINE)}
        return cls(len(os.listdir(f"/proc/{pid}/fd")), number["Threads"], number["VmRSS"] << 10)


def listen(runtime: Path, *words: str, **more: Any) -> VmProcess:
    vm = VmProcess(runtime, *("--guest", "listen", "--append", "events=0 quiet=1", "--vcpus", "2", *words), **more)
    vm.wait_out("listening: CPU#", 2)
    wait_until(vm.socket.exists)
    return vm


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[VmProcess]:
    """One VM for all attacks: whatever they do to it, the next finds it well, and in the end it ends well."""
    with listen(tmp_path_factory.mktemp("run")) as vm:
        with Qmp(vm.socket) as client:  # threads that are started once only
            for _ in range(8):
                client.execute("stop")
                client.execute("cont")
        yield vm
        with Qmp(vm.socket) as client:
            assert client.execute("quit") == {"return": {}}
        assert vm.wait() == 0
        assert not vm.path.exists()


@pytest.fixture
def vm(running: VmProcess) -> Iterator[VmProcess]:
    before = Health.of(running.process.pid)
    yield running
    assert running.process.poll() is None, running.err
    wait_until(lambda: Health.of(running.process.pid).descriptors <= before.descriptors, "descriptors are left")
    after = Health.of(running.process.pid)
    assert after.threads <= before.threads + 8  # the event loop's helpers, a few at most
    assert after.memory < before.memory + GROWTH
    assert "Traceback" not in running.err
    with Qmp(running.socket) as client:
        assert client.execute("query-status")["return"]["status"] == "running"


def connect(vm: VmProcess) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(os.fspath(vm.socket))
    connection.settimeout(LIMIT)
    return connection


def handlers(vm: VmProcess) -> list[dict[str, Any]]:
    with Qmp(vm.socket) as client:
        found: list[dict[str, Any]] = client.execute("query-vm")["return"]["events"][0]["handlers"]
    return found


@pytest.fixture
def many_files() -> Iterator[None]:
    """This process may open as many files as a test needs."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < 2048:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 2048), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_hundred_clients_at_once_and_every_injection_is_accounted_for(vm: VmProcess) -> None:
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    before = handlers(vm)
    clients = [Qmp(vm.socket) for _ in range(100)]
    each = 30
    for client in clients:
        requests = []
        for _ in range(each):
            arguments = chance.choice(
                ({"event": 0, "vcpu": 0}, {"event": "0x0", "affinity": 1}, {"event": 0, "vcpu": 2})
            )
            requests.append(json.dumps({"execute": "inject-event", "arguments": arguments, "id": arguments}))
        client.send("\n".join(requests).encode())
    accepted, coalesced, refused = [0, 0], [0, 0], 0
    for client in clients:
        for _ in range(each):
            answer = client.receive()
            if "error" in answer:
                assert answer["id"]["vcpu"] == 2
                refused += 1
            else:
                vcpu = answer["return"]["vcpu"]
                accepted[vcpu] += 1
                coalesced[vcpu] += answer["return"]["coalesced"]
        client.close()
    assert sum(accepted) + refused == 100 * each
    for vcpu, (old, new) in enumerate(zip(before, handlers(vm), strict=True)):
        assert new["injected"] - old["injected"] == accepted[vcpu]
        assert new["coalesced"] - old["coalesced"] == coalesced[vcpu]
        assert new["injected"] == new["delivered"] + new["coalesced"] + new["dropped"] + new["pending"]

    def handled() -> bool:
        return all(one["completed"] == one["delivered"] and not one["pending"] for one in handlers(vm))

    wait_until(handled, "an event that was accepted is not handled")


@pytest.mark.usefixtures("many_files")
def test_a_thousand_connections_without_a_word(vm: VmProcess) -> None:
    before = Health.of(vm.process.pid).descriptors
    with Qmp(vm.socket) as old, contextlib.ExitStack() as stack:
        for _ in range(1000):
            stack.enter_context(connect(vm))
        with Qmp(vm.socket) as new:
            for client in (old, new):
                assert client.execute("query-status")["return"]
        assert Health.of(vm.process.pid).descriptors <= before + 256 + 2
    wait_until(lambda: "was idle, and others want to come in" in vm.err)


@pytest.mark.parametrize("start", [b"", b'{"a": "', b'{"a": [', b'"'])
def test_a_message_without_end(vm: VmProcess, start: bytes) -> None:
    sent = 0
    with connect(vm) as connection:
        connection.sendall(start)
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            while sent < 16 * MIB:
                sent += connection.send(b"1," * (1 << 15))
        assert sent < 2 * MIB
        connection.recv(1)
        assert b"more than 64 KiB" in connection.recv(1 << 16)


def test_blanks_without_end_are_no_message(vm: VmProcess) -> None:
    with connect(vm) as connection:
        for _ in range(256):
            connection.sendall(b" \n" * (1 << 15))
        connection.sendall(b'{"execute": "qmp_capabilities"}')
        connection.shutdown(socket.SHUT_WR)
        received = bytearray()
        while data := connection.recv(1 << 16):
            received += data
        assert received.endswith(b'{"return":{}}\r\n')


def test_clients_that_ask_and_do_not_listen(vm: VmProcess) -> None:
    """They wait for themselves: what they ask is not read, and what is answered is not kept."""
    before = Health.of(vm.process.pid).memory
    requests = b'{"execute": "qmp_capabilities"}' + b'{"execute": "query-vm"}' * 1000
    with contextlib.ExitStack() as stack:
        for _ in range(30):
            deaf = stack.enter_context(connect(vm))
            deaf.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                while True:
                    deaf.send(requests)
        with Qmp(vm.socket) as client:
            for _ in range(20):
                assert client.execute("inject-event", event=0)["return"]
        assert Health.of(vm.process.pid).memory < before + GROWTH


def test_slow_clients(vm: VmProcess) -> None:
    """A byte at a time from twenty at once, and the answers a byte at a time to each."""
    session = b'{"execute": "qmp_capabilities"}{"execute": "query-status", "id": 7}'
    with contextlib.ExitStack() as stack:
        slow = [stack.enter_context(connect(vm)) for _ in range(20)]
        for byte in session:
            for connection in slow:
                connection.send(bytes([byte]))
        for connection in slow:
            connection.shutdown(socket.SHUT_WR)
            received = bytearray()
            while data := connection.recv(1):
                received += data
            assert json.loads(received.splitlines()[-1]) == {"return": {"running": True, "status": "running"}, "id": 7}


_DOOMED = """
import os, socket, sys
connection = socket.socket(socket.AF_UNIX)
connection.connect(sys.argv[1])
connection.send(b'{"execute": "qmp_capabilities"}' + b'{"execute": "query-vm"}' * 500 + b'{"execute": "stop"')
os.kill(os.getpid(), 9)
"""


def test_clients_that_are_killed(vm: VmProcess) -> None:
    doomed = [subprocess.Popen([sys.executable, "-S", "-c", _DOOMED, os.fspath(vm.socket)]) for _ in range(4)]
    assert [one.wait(LIMIT) for one in doomed] == [-9] * 4


def test_garbage_in_the_fifos(vm: VmProcess) -> None:
    """Four writers at once: noise, a number without end, words of all sorts, and numbers that count."""
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    before, memory = handlers(vm), Health.of(vm.process.pid).memory
    words = [b"zero", b"-1", b"0x", b"1e3", b"9" * 100, b"0x" + b"f" * 17, b"99", b"\x00", b"0\x00", b"\xff\xfe"]

    def write(vcpu: int, pieces: list[bytes]) -> None:
        for piece in pieces:
            with open(vm.path / f"vcpu-{vcpu}", "wb", buffering=0) as fifo:  # they come and go
                fifo.write(piece)

    chance = random.Random(seed)
    noise = [bytes(chance.choices(b"\x00\x01\xff-xXgG.\t \n", k=3000)) + b"\n" for _ in range(100)]
    work = [
        (0, noise),
        (1, [b"1" * 65536 + b"2" * 65536] * 16 + [b"\n"]),
        (0, [b" ".join(chance.choices(words, k=50)) + b"\n" for _ in range(100)]),
    ]
    writers = [threading.Thread(target=write, args=one) for one in work]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    write(0, [b"\n0\n"])
    wait_until(lambda: handlers(vm)[0]["injected"] == before[0]["injected"] + 1, "the number that counts")
    assert handlers(vm)[1]["injected"] == before[1]["injected"]
    assert Health.of(vm.process.pid).memory < memory + GROWTH
    wait_until(lambda: "is no event number" in vm.err)


@pytest.mark.parametrize("what", ["file", "directory", "link", "nothing", "folder"])
def test_a_fifo_that_is_exchanged_while_the_vm_runs(tmp_path: Path, what: str) -> None:
    with listen(tmp_path) as vm:
        fifo = vm.path / "vcpu-1"
        writer = os.open(fifo, os.O_WRONLY)
        if what == "folder":
            vm.path.rename(tmp_path / "elsewhere")
            vm.path.write_text("")
        else:
            fifo.unlink()
            if what == "file":
                fifo.write_text("0\n")
            elif what == "directory":
                fifo.mkdir()
            elif what == "link":
                fifo.symlink_to("/dev/zero")
        os.write(writer, b"0")
        os.close(writer)
        vm.wait_err("was removed: nothing can be injected through it any more")
        if what != "folder":
            (vm.path / "vcpu-0").write_text("0\n")
            wait_until(lambda: [handler["injected"] for handler in handlers(vm)] == [1, 1])
            with Qmp(vm.socket) as client:
                client.execute("quit")
        else:
            vm.process.terminate()
        assert vm.wait() == (143 if what == "folder" else 0)
        assert vm.err.count("was removed") == 1
        assert vm.path.exists() == (what in ("directory", "folder"))


def test_a_vm_with_few_descriptors_never_runs_out_of_them(tmp_path: Path) -> None:
    """It used to fail in accept(), with hundreds of tracebacks a second, and then to leave FIFOs for good."""
    with listen(tmp_path, prefix=("sh", "-c", 'ulimit -n 40; exec "$@"', "sh")) as vm, contextlib.ExitStack() as stack:

        def come() -> None:
            for _ in range(60):
                with contextlib.suppress(OSError):
                    stack.enter_context(connect(vm))

        crowd = threading.Thread(target=come, daemon=True)
        crowd.start()
        for _ in range(20):
            (vm.path / "vcpu-0").write_text("0\n")
        assert "running" in cli(tmp_path, "status", "vm").stdout
        crowd.join(LIMIT)
        vm.process.terminate()
        assert vm.wait() == 143
        assert "open files" not in vm.err
