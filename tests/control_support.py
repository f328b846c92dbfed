# SPDX-License-Identifier: Apache-2.0
"""For tests of control/ and cli/: a machine without an engine, VMs in processes of their own, a bare QMP client."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from sdeivirt.control.runtime import VmDirectory
from sdeivirt.control.server import ControlServer
from sdeivirt.machine import ExitReason, FaultReport, Machine, MachineConfig, Outcome
from sdeivirt.sdei import EventDefinition, Function
from sdeivirt.smccc.psci import PowerControl
from sdeivirt.tables import devicetree  # noqa: F401 (imports fdt)

from .fake_view import FakePe, NoPower

__all__ = [
    "LIMIT",
    "SHARED",
    "FakeMachine",
    "Qmp",
    "Served",
    "VmProcess",
    "cli",
    "environment",
    "read_tree",
    "wait_until",
]

# Seconds that anything may take before a test gives up; nothing takes that long unless it is broken.
LIMIT = 30.0
SHARED = 0x4000_0010


def wait_until(condition: Callable[[], object], what: str = "") -> None:
    """Wait for a condition that another thread or process brings about."""
    deadline = time.monotonic() + LIMIT
    while not condition():
        assert time.monotonic() < deadline, what or "it never happened"
        time.sleep(0.002)


def read_tree(blob: bytes) -> Any:
    """A device tree, taken apart by the library that also wrote it; its import has been made quiet there."""
    import fdt

    return fdt.parse_dtb(blob)


class FakeMachine(Machine):
    """The services of a real machine, and PEs that never execute anything."""

    kind = "fake"

    def __init__(self, config: MachineConfig) -> None:
        super().__init__(config)
        self._state = "created"
        self._reason = ExitReason.STOPPED
        self._over = threading.Event()
        self.found: list[FaultReport] = []
        self.typed = bytearray()
        self.pauses = 0
        self.firmware.freeze()

    def call(self, vcpu: int, function: Function, *arguments: int) -> int:
        """A hypercall by a PE; its result."""
        pe = FakePe()
        for i, value in enumerate((int(function), *arguments)):
            pe.registers[f"x{i}"] = value
        pe.stop(6)
        self.firmware.hypercall(self.firmware.pes[vcpu], pe)
        return pe.registers["x0"]

    def stuck(self, index: int, event: int, limit: float) -> None:
        """No handler ever runs here."""

    def register(self, vcpu: int, event: int = 0) -> None:
        """Have a PE register and enable an event, and stay masked."""
        self.firmware.sdei.pe_on(self.firmware.pes[vcpu])
        assert self.call(vcpu, Function.EVENT_REGISTER, event, 0x4000_0000) == 0
        assert self.call(vcpu, Function.EVENT_ENABLE, event) == 0

    def end(self, reason: ExitReason) -> None:
        """The guest's doing."""
        self._reason = reason
        self._state = "stopped"
        self._over.set()

    @property
    def state(self) -> str:
        return self._state

    def load(self, path: Path | str) -> None:
        raise AssertionError("nothing to load into")

    def start(self) -> None:
        self._state = "running"

    def pause(self) -> None:
        self.pauses += 1
        self._state = "paused"

    def resume(self) -> None:
        self._state = "running"

    def stop(self) -> None:
        self.end(ExitReason.STOPPED)

    def wait(self, limit: float | None = None) -> Outcome:
        if not self._over.wait(limit):
            self.end(ExitReason.TIME_LIMIT)
        return Outcome(self._reason, self.found)

    def close(self) -> None:
        self.stop()

    def type_in(self, data: bytes) -> int:
        self.typed += data
        return len(data)

    def faults(self) -> list[FaultReport]:
        return self.found

    def kick(self, bitmap: int) -> None:
        pass

    def _power_control(self) -> PowerControl:
        return NoPower()

    def _entry_ok(self, address: int) -> bool:
        return True


# -- the control socket without a process


class Served:
    """A fake machine behind a control socket, the event loop on a thread of its own."""

    def __init__(self, directory: VmDirectory, config: MachineConfig | None = None) -> None:
        events = (EventDefinition(SHARED, shared=True),)
        self.machine = FakeMachine(config if config is not None else MachineConfig(vcpus=3, events=events))
        self.machine.start()
        self.path = directory.control_socket
        self.quits = 0
        self.loop = asyncio.new_event_loop()
        self.errors: list[dict[str, Any]] = []
        self.loop.set_exception_handler(lambda _loop, context: self.errors.append(context))
        self.server = ControlServer(self.machine, self.path, self._quit)
        self._thread = threading.Thread(target=self.loop.run_forever)
        self._thread.start()
        self.run(self.server.open())

    def _quit(self) -> None:
        self.quits += 1

    def run(self, work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(LIMIT)

    def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        async def work() -> Any:
            return function(*arguments)

        return self.run(work())

    def clients(self) -> int:
        return len(self.server._clients)

    def tasks(self) -> int:
        """How many tasks there are on the loop, the one that counts left out."""
        count = self.call(lambda: len(asyncio.all_tasks()))
        assert isinstance(count, int)
        return count - 1

    def close(self) -> None:
        self.run(self.server.close())
        self.run(self.loop.shutdown_default_executor())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self.loop.close()


# -- processes


def environment(runtime: Path, **extra: str) -> dict[str, str]:
    """This process's environment, with a runtime directory of the test's own and nothing that colours output."""
    env = {
        name: value
        for name, value in os.environ.items()
        if name not in ("FORCE_COLOR", "NO_COLOR", "COLUMNS", "PYTHONWARNINGS")
    }
    return env | {"XDG_RUNTIME_DIR": str(runtime), "TERM": "xterm"} | extra


def cli(runtime: Path, *words: str, code: int = 0, **extra: str) -> subprocess.CompletedProcess[str]:
    """Run `sdeivirt` and check its exit code; never a traceback."""
    done = subprocess.run(
        [sys.executable, "-m", "sdeivirt", *words],
        env=environment(runtime, **extra),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=LIMIT,
    )
    assert done.returncode == code, (words, done.returncode, done.stdout, done.stderr)
    assert "Traceback" not in done.stderr, done.stderr
    return done


class VmProcess:
    """`sdeivirt run` in a process of its own. A context manager that kills it if it still lives."""

    def __init__(
        self, runtime: Path, *words: str, name: str = "vm", stdout: int | None = None, prefix: Sequence[str] = ()
    ) -> None:
        self.runtime = runtime
        self.path = runtime / "sdeivirt" / name
        self._out = bytearray()
        self._err = bytearray()
        self.process = subprocess.Popen(
            [*prefix, sys.executable, "-m", "sdeivirt", "run", "--name", name, *words],
            env=environment(runtime),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE if stdout is None else stdout,
            stderr=subprocess.PIPE,
        )
        self._readers = []
        for stream, buffer in ((self.process.stdout, self._out), (self.process.stderr, self._err)):
            if stream is not None:
                reader = threading.Thread(target=self._read, args=(stream.fileno(), buffer), daemon=True)
                reader.start()
                self._readers.append(reader)

    @staticmethod
    def _read(fd: int, buffer: bytearray) -> None:
        while data := os.read(fd, 4096):
            buffer.extend(data)

    @property
    def out(self) -> str:
        return self._out.decode()

    @property
    def err(self) -> str:
        return self._err.decode()

    @property
    def socket(self) -> Path:
        return self.path / "control.sock"

    def wait_out(self, text: str, count: int = 1) -> None:
        """Wait until the guest has printed a text `count` times."""
        wait_until(lambda: self.out.count(text) >= count or self.process.poll() is not None, f"{text!r} in {self.out}")
        assert self.out.count(text) >= count, (self.out, self.err)

    def wait_err(self, text: str) -> None:
        wait_until(lambda: text in self.err or self.process.poll() is not None, f"{text!r} in {self.err}")
        assert text in self.err, (self.out, self.err)

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def wait(self) -> int:
        """The exit code; all output has been read."""
        code = self.process.wait(LIMIT)
        for reader in self._readers:
            reader.join(LIMIT)
        assert "Traceback" not in self.err, self.err
        return code

    def __enter__(self) -> VmProcess:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(LIMIT)
        for reader in self._readers:
            reader.join(LIMIT)
        for stream in (self.process.stdin, self.process.stdout, self.process.stderr):
            if stream is not None:
                stream.close()


class Qmp:
    """A QMP client that may also send what no client should."""

    def __init__(self, path: Path, negotiate: bool = True) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(LIMIT)
        self.socket.connect(str(path))
        self._lines = self.socket.makefile("rb")
        self.greeting = self.receive()
        if negotiate:
            assert self.execute("qmp_capabilities") == {"return": {}}

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def receive(self) -> dict[str, Any]:
        """The next message. Raises EOFError."""
        line = self._lines.readline()
        if not line:
            raise EOFError
        message = json.loads(line)
        assert isinstance(message, dict)
        return message

    def execute(self, command: str, **arguments: object) -> dict[str, Any]:
        """Run a command; its answer, events before it passed over."""
        self.send(json.dumps({"execute": command, "arguments": arguments}).encode())
        while "event" in (answer := self.receive()):
            pass
        return answer

    def event(self, name: str) -> dict[str, Any]:
        """The next event of that name."""
        while (message := self.receive()).get("event") != name:
            pass
        return message

    def close(self) -> None:
        self._lines.close()
        self.socket.close()

    def __enter__(self) -> Qmp:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
