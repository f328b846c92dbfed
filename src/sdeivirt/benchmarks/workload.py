# SPDX-License-Identifier: Apache-2.0
"""The work that a guest does while its pages are elsewhere: threads that walk over memory, and threads that compute.

Two guests do it. The small one (guests/tasks) is made for it; the other is
a Linux that nobody has changed, with a program (guests/linux/user/pagework.c),
and with a module for asynchronous page faults or without. Both say how long
each thread took by the guest's own clock, and what it has found in memory.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path

from ..guests import guest_path
from ..machine import MachineConfig, open_machine
from ..machine.base import PAGE_SIZE, EngineOptions, Machine
from ..machine.qemu import QemuOptions
from ..migration.channel import parse_uri
from ..migration.source import Outgoing, SourceOptions
from ..migration.status import Progress
from .migrate_guests import fill
from .qemu import LinuxFiles
from .shell import Shell

__all__ = ["Done", "Kit", "LinuxKit", "SmallKit", "Work"]

BOOT_SECONDS = 240.0
_STEP = 16 << 20  # of RAM's size
_SPEED = 1  # of zstd: a snapshot is read as often as there are rounds


@dataclass(frozen=True, slots=True)
class Work:
    """`walkers` threads visit `pages` pages each, and take `spin` steps after each; `computers` take `steps` each.

    `kernel`: the guest's kernel touches the pages first (Linux).
    """

    walkers: int
    computers: int
    pages: int
    spin: int
    steps: int
    kernel: bool = False

    def __str__(self) -> str:
        return f"{self.walkers} memory + {self.computers} compute"


@dataclass(frozen=True, slots=True)
class Done:
    """How it went: seconds until the slowest thread was done, and of each; what each has found."""

    seconds: float
    threads: tuple[float, ...]
    checksums: tuple[str, ...]
    told: int | None = None  # faults that the guest was told of, where it says
    refused: int | None = None


class Kit(ABC):
    """A guest that can do it, on a machine."""

    kind: str
    name: str
    steps: int  # of computing, for a first look at how fast it is

    @abstractmethod
    def snapshot(self, work: Work, service: bool, file: Path) -> None:
        """Write a guest to a file that is about to begin, with asynchronous page faults or without."""

    @abstractmethod
    def warm(self, shell: Shell, work: Work) -> None:
        """Have the pages come that are none of the work's own."""

    @abstractmethod
    def go(self, shell: Shell) -> None:
        """Have the work begin."""

    @abstractmethod
    def finish(self, shell: Shell, seconds: float) -> Done:
        """Wait for the end of the work. Raises ShellError."""

    def engine(self) -> EngineOptions | None:
        return None

    def close(self) -> None:  # noqa: B027 (most have nothing to close)
        """Nothing more is wanted."""


def _save(machine: Machine, file: Path, *, stay: bool) -> None:
    progress = Progress()
    Outgoing(
        machine,
        parse_uri(f"file:{file}"),
        SourceOptions(stop_first=True, stay=stay, overwrite=True, compress=_SPEED),
        progress,
    ).run()
    if progress.now.status != "completed":
        raise RuntimeError(f"the guest was not saved: {progress.now.error}")


class SmallKit(Kit):
    """guests/tasks."""

    steps = 20_000_000

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.name = f"small guest, {kind}"

    def engine(self) -> EngineOptions | None:
        return QemuOptions() if self.kind == "qemu" else None

    def snapshot(self, work: Work, service: bool, file: Path, room: int = 0) -> None:
        """With `room` more bytes of RAM that hold noise, which the work has nothing to do with."""
        words = (
            f"mem={work.walkers} comp={work.computers} pages={work.pages} spin={work.spin} cspin={work.steps} "
            f"async={'sdei' if service else 'off'}"
        )
        memory = (work.walkers * work.pages * PAGE_SIZE // _STEP + 2) * _STEP + room
        config = MachineConfig(vcpus=1, memory=memory, bootargs=words, engine=self.engine())
        with open_machine(self.kind, config) as machine:
            shell = Shell(machine.type_in, lambda: machine.state == "stopped")
            machine.console = shell.feed
            machine.load(guest_path("tasks"))
            machine.start()
            shell.wait_for("ready\n", BOOT_SECONDS)
            if room:
                fill(machine, room)
            _save(machine, file, stay=False)

    def warm(self, shell: Shell, work: Work) -> None:
        pass  # there are few

    def go(self, shell: Shell) -> None:
        shell.begin("g")

    def finish(self, shell: Shell, seconds: float) -> Done:
        shell.wait_for("summary run=1 ", seconds)
        at = shell.text.index("summary run=1 ")
        shell.wait_for("\n", seconds, shell.text.count("\n", 0, at) + 1)
        threads, checksums = [], []
        for line in shell.text[:at].splitlines():
            if (words := _words(line)).keys() >= {"thread", "ticks", "freq", "checksum"}:
                threads.append(int(words["ticks"]) / int(words["freq"]))
                checksums.append(words["checksum"])
        summary = _words(shell.text[at:].partition("\n")[0])
        return Done(
            int(summary["ticks"]) / int(summary["freq"]),
            tuple(threads),
            tuple(checksums),
            int(summary["told"]),
            int(summary["refused"]),
        )


def _words(line: str) -> dict[str, str]:
    return dict(re.findall(r"([\w-]+)=(\S+)", line))


class LinuxKit(Kit):
    """Debian's kernel, one CPU; it has booted once, and without the module."""

    kind = "qemu"
    name = "Linux, qemu"
    steps = 200_000_000
    MEMORY = 256 << 20
    GO = "/tmp/go"
    MODULE = "/lib/sdei_async_pf.ko"

    def __init__(self, files: LinuxFiles) -> None:
        self._files = files
        self._machines: dict[bool, tuple[Machine, Shell]] = {}

    def engine(self) -> EngineOptions | None:
        return QemuOptions(initrd=self._files.initrd)

    def _booted(self, service: bool) -> Shell:
        if service in self._machines:
            return self._machines[service][1]
        config = MachineConfig(
            vcpus=1, memory=self.MEMORY, bootargs="console=ttyAMA0 quiet run=serve", engine=self.engine()
        )
        machine = open_machine("qemu", config)
        shell = Shell(machine.type_in, lambda: machine.state == "stopped")
        self._machines[service] = machine, shell
        machine.console = shell.feed
        machine.load(self._files.kernel)
        machine.start()
        shell.wait_ready(BOOT_SECONDS)
        if service:
            shell.run(f"insmod {self.MODULE}")
        return shell

    def snapshot(self, work: Work, service: bool, file: Path) -> None:
        shell = self._booted(service)
        machine = self._machines[service][0]
        words = (
            f"mem={work.walkers} comp={work.computers} pages={work.pages} spin={work.spin} "
            f"cspin={max(1, work.steps // 1000)} kernel={int(work.kernel)} go={self.GO}"
        )
        before = shell.text.count("pagework: ready\n")
        shell.run(f"rm -f {self.GO}; pagework {words} </dev/null &", BOOT_SECONDS)
        shell.wait_for("pagework: ready\n", BOOT_SECONDS, before + 1)
        _save(machine, file, stay=True)
        shell.run("killall -9 pagework", BOOT_SECONDS)

    def warm(self, shell: Shell, work: Work) -> None:
        shell.run(f"pagework mem={max(1, work.walkers)} comp={work.computers} pages=4 spin=100 cspin=10", BOOT_SECONDS)

    def go(self, shell: Shell) -> None:
        shell.begin(f"touch {self.GO}")

    def finish(self, shell: Shell, seconds: float) -> Done:
        done = "pagework: done ns="
        count = shell.text.count(done)
        shell.wait_for(done, seconds, 2)
        at = shell.text.rindex(done)
        shell.wait_for("\n", seconds, shell.text.count("\n", 0, at) + 1)
        assert count < 2
        lines = shell.text[shell.text.index(done) : at].splitlines()[1:]
        threads, checksums = [], []
        for line in lines:
            if line.startswith(("pagework: mem ", "pagework: comp ")):
                words = _words(line)
                threads.append(int(words["ns"]) / 1e9)
                checksums.append(words["checksum"])
        slowest = int(_words(shell.text[at:].partition("\n")[0])["slowest"])
        return Done(slowest / 1e9, tuple(threads), tuple(checksums))

    def close(self) -> None:
        for machine, _ in self._machines.values():
            machine.close()
        self._machines.clear()
