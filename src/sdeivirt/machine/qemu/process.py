# SPDX-License-Identifier: Apache-2.0
"""A QEMU process: its command line, its memory, the sockets to it, and its end.

Everything it shares with us is a file descriptor that it inherits: the guest's
RAM is a memfd, the serial port, the doorbell, qtest and QMP are socket pairs.
So nothing of it stands in a file system, and nothing stays when either of
us is killed. QEMU itself does not survive us: its parent's death kills it.

Without arguments of the user's it gets no ITS: there is no device that would send it messages,
and it writes its tables into the guest's RAM where no stage 2 sees that.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import mmap
import os
import shutil
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from qemu.qmp import EventListener, ExecInterruptedError, QMPClient, QMPError, StateError

from ...errors import EnvironmentUnavailableError, UsageError
from ...tables.bootargs import check_bootargs
from ..base import MachineConfig
from .options import QemuOptions

__all__ = [
    "BELL_SLOT",
    "GDB_SOCKET",
    "QMP_SOCKET",
    "QemuDiedError",
    "QemuProcess",
    "command_line",
    "find_qemu",
]

BELL_SLOT = 0x1E
QMP_SOCKET = "qmp.sock"
GDB_SOCKET = "gdb.sock"
_NAME = "qemu-system-aarch64"
_VARIABLE = "SDEIVIRT_QEMU"
_INSTALL = "install it with `apt-get install qemu-system-arm`, or name one with --qemu or SDEIVIRT_QEMU"
_START_SECONDS = 30.0
_QUIT_SECONDS = 5.0
_STDERR_KEPT = 4096
_CHANNELS = ("serial", "bell", "qtest", "qmp")


class QemuDiedError(EnvironmentUnavailableError):
    """QEMU ended by itself."""


def find_qemu(wanted: Path | None = None) -> Path:
    """The QEMU to use. Raises EnvironmentUnavailableError where there is none."""
    named = str(wanted) if wanted is not None else os.environ.get(_VARIABLE, "")
    found = shutil.which(named or _NAME)
    if found is None:
        what = f"{named} is no program that can be run" if named else f"there is no {_NAME}"
        raise EnvironmentUnavailableError(f"machine qemu needs QEMU, and {what}", _INSTALL)
    return Path(found)


def command_line(
    qemu: Path,
    config: MachineConfig,
    options: QemuOptions,
    memory: int,
    entry: int,
    ram: int,
    channels: Sequence[int],
    *,
    files: Mapping[str, int] = MappingProxyType({}),
    incoming: bool = False,
) -> list[str]:
    """The exact command line.

    `memory` is QEMU's, `entry` where vCPU 0 begins; `ram` and `channels` are the descriptors that QEMU inherits, and so
    are `files`, by the option that each is for. `incoming`: it waits for the state of another.
    """
    uefi = options.firmware == "uefi"
    size = f"{memory >> 20}M"
    its = "" if options.arguments else ",its=off"
    words = [
        str(qemu),
        *("-machine", f"virt,virtualization=on,gic-version=3,memory-backend=ram{its}"),
        *("-accel", "tcg,thread=multi"),
        *("-cpu", options.cpu),
        *("-smp", str(config.vcpus)),
        *("-m", size),
        *("-object", f"memory-backend-file,id=ram,share=on,size={size},mem-path=/proc/self/fd/{ram}"),
        *("-device", f"loader,addr={entry:#x},cpu-num=0"),
        *("-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-S"),
        # It writes wherever the guest says, monitor included. A guest with UEFI cannot use it without us: see fwcfg.py.
        *(() if uefi else ("-global", "fw_cfg_mem.dma_enabled=off")),
        *("-global", "virtio-net-pci.romfile="),  # nobody boots from it, and the ROM is a package of its own
    ]
    for name, fd in zip(_CHANNELS, channels, strict=True):
        words += ["-chardev", f"socket,id=sdeivirt-{name},fd={fd}"]
    words += [
        *("-serial", "chardev:sdeivirt-serial"),
        *("-device", f"pci-serial,chardev=sdeivirt-bell,addr={BELL_SLOT:#x}"),
        *("-object", f"qtest,id=sdeivirt-qtest-server,chardev=sdeivirt-qtest,log={os.devnull}"),
        *("-qmp", "chardev:sdeivirt-qmp"),
    ]
    if incoming:
        words += ["-incoming", "defer"]
    if config.directory is not None:
        words += ["-qmp", f"unix:{config.directory / QMP_SOCKET},server=on,wait=off"]
    if options.gdb:
        if config.directory is None:
            raise UsageError("a socket for gdb needs a directory", "give the machine one")
        words += ["-gdb", f"unix:{config.directory / GDB_SOCKET},server=on,wait=off"]
    words += options.arguments
    if uefi:
        words += ["-global", "fw_cfg_mem.dma_enabled=on"]
        for name, fd in files.items():
            words += [f"-{name}", f"/proc/self/fd/{fd}"]
        if "kernel" in files and config.bootargs:
            words += ["-append", check_bootargs(config.bootargs)]
    return words


def tied_to(parent: int, command: Sequence[str]) -> list[str]:
    """A command line that runs another one in its place, as a child of `parent` that ends when that does.

    A parent that has died before the child asked to be killed with it is noticed by the child's having
    another one: it does not begin. Raises EnvironmentUnavailableError without setpriv.
    """
    killer = shutil.which("setpriv")
    if killer is None:
        raise EnvironmentUnavailableError(
            "machine qemu needs setpriv, so that QEMU ends when we do", "install it: it is part of util-linux"
        )
    begin = 'test "$PPID" = "$0" && exec "$@"'
    return [killer, "--pdeathsig", "KILL", "--", "sh", "-c", begin, str(parent), *command]


class QemuProcess:
    """One QEMU, from :meth:`launch` to :meth:`end` and :meth:`abandon`; on an event loop.

    `ram` maps the guest's RAM; `serial`, `bell` and `qtest` are our ends of
    the socket pairs; `qmp` is connected.
    """

    def __init__(
        self,
        config: MachineConfig,
        options: QemuOptions,
        memory: int,
        entry: int,
        *,
        files: Mapping[str, bytes] = MappingProxyType({}),
        incoming: bool = False,
    ) -> None:
        self.binary = find_qemu(options.qemu)
        self._open: list[int | socket.socket] = []
        try:
            fd = os.memfd_create(f"sdeivirt-{config.name}", os.MFD_CLOEXEC)
            self._open.append(fd)
            os.ftruncate(fd, memory)
            self.ram = mmap.mmap(fd, memory, mmap.MAP_SHARED)
            self._memory = open(os.dup(fd), "rb", buffering=0)  # noqa: SIM115 (until abandon())
        except (OSError, ValueError) as error:
            self._close_ours()
            raise UsageError(
                f"this host has no {config.memory >> 20} MiB to give", "choose a smaller --memory"
            ) from error
        pairs = [socket.socketpair() for _ in _CHANNELS]
        self.serial, self.bell, self.qtest, self._qmp_socket = (ours for ours, _ in pairs)
        theirs = [other for _, other in pairs]
        self._inherited = [fd, *(other.fileno() for other in theirs)]
        self._open += theirs
        self._far_serial = socket.socket(fileno=os.dup(theirs[0].fileno()))
        channels = self._inherited[1:]
        handed = {name: self._hand_down(name, content) for name, content in files.items()}
        self.command = command_line(
            self.binary, config, options, memory, entry, fd, channels, files=handed, incoming=incoming
        )
        self.qmp = QMPClient(f"{config.name}-qmp")
        self.qmp.logger.setLevel(100)  # every failure reaches the caller; the log would say it twice
        self.events = EventListener()
        self.qmp.register_listener(self.events)
        self.version = ""
        self.errors = bytearray()  # the last that it said on standard error
        self.process: asyncio.subprocess.Process | None = None
        self._listening: asyncio.Task[None] | None = None

    def _hand_down(self, name: str, content: bytes) -> int:
        """A file that QEMU inherits. Raises UsageError where there is no memory for it."""
        try:
            fd = os.memfd_create(f"sdeivirt-{name}", os.MFD_CLOEXEC)
            self._open.append(fd)
            self._inherited.append(fd)
            with open(os.dup(fd), "wb") as file:
                file.write(content)
        except OSError as error:
            self.abandon()
            raise UsageError(
                f"this host cannot hold {len(content)} bytes for -{name}", "give it a smaller one"
            ) from error
        return fd

    @property
    def pid(self) -> int | None:
        return self.process.pid if self.process else None

    async def launch(self) -> None:
        """Start QEMU, stopped before the first instruction. Raises EnvironmentUnavailableError."""
        self.process = await asyncio.create_subprocess_exec(
            *tied_to(os.getpid(), self.command),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
            pass_fds=self._inherited,
            start_new_session=True,  # Ctrl-C is ours to handle
            umask=0o077,
        )
        self._listening = asyncio.create_task(self._listen())
        self._close_ours()  # so that the sockets end when QEMU does
        try:
            async with asyncio.timeout(_START_SECONDS):
                await self.qmp.connect(self._qmp_socket)
        except (QMPError, OSError, EOFError, TimeoutError) as error:
            if isinstance(error, TimeoutError):
                raise EnvironmentUnavailableError(
                    f"QEMU does not answer after {_START_SECONDS:g} s", f"does `{self.binary} --version` work?"
                ) from error
            raise await self.death() from error
        greeting = self.qmp.greeting
        assert greeting is not None  # it has been connected
        numbers: Any = greeting.QMP.version["qemu"]
        self.version = f"{numbers['major']}.{numbers['minor']}.{numbers['micro']}"

    def last_words(self, lines: int = 1) -> str:
        """The last that QEMU has said on standard error."""
        text = "".join(each if each.isprintable() else "\n" for each in self.errors.decode("utf-8", "replace"))
        said = [line.strip().removeprefix(f"{_NAME}: ") for line in text.splitlines() if line.strip()]
        return "; ".join(said[-lines:])

    async def death(self) -> QemuDiedError:
        """QEMU has ended, or is about to; how and why, as an error."""
        code = await self._reap(_QUIT_SECONDS)
        how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
        if said := self.last_words():
            how += f": {said}"
        if self.version:
            return QemuDiedError(f"QEMU {how}", "start the VM again")
        hint = f"`{self.binary.name} -cpu help` and `-device help` list what there is; --dry-run shows the command line"
        return QemuDiedError(f"QEMU did not start: it {how}", hint)

    async def execute(self, command: str, **arguments: object) -> Any:
        """A QMP command; its return value. Raises QMPError, or QemuDiedError."""
        try:
            return await self.qmp.execute(command, arguments or None)
        except (OSError, EOFError, ExecInterruptedError, StateError) as error:
            raise await self.death() from error

    def data_ranges(self, size: int) -> list[tuple[int, int]]:
        """Which of the first `size` bytes of RAM anybody has ever touched: offsets [start, end), whole pages.

        To read what nobody has touched would give it memory.
        """
        ranges = []
        at = 0
        try:
            while at < size and (start := self._memory.seek(at, os.SEEK_DATA)) < size:
                at = min(self._memory.seek(start, os.SEEK_HOLE), size)
                ranges.append((start, at))
        except OSError as error:
            if error.errno != errno.ENXIO:  # nothing but a hole comes
                raise
        except ValueError:  # it has ended
            return []
        return ranges

    def unread_input(self, limit: int) -> bytes:
        """What has been typed and QEMU has not taken yet; it stays there."""
        try:
            return self._far_serial.recv(limit, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        except OSError:
            return b""

    async def _listen(self) -> None:
        assert self.process is not None
        stderr = self.process.stderr
        assert stderr is not None
        while data := await stderr.read(_STDERR_KEPT):
            self.errors += data
            del self.errors[:-_STDERR_KEPT]

    async def _reap(self, patience: float) -> int:
        """Wait for the end, and kill it when that takes too long; the exit code."""
        assert self.process is not None
        try:
            async with asyncio.timeout(patience):
                code = await self.process.wait()
        except TimeoutError:
            with contextlib.suppress(ProcessLookupError):
                self.process.kill()
            code = await self.process.wait()
        if self._listening is not None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(1):
                    await self._listening
        return code

    async def end(self) -> None:
        """End QEMU, politely so that disks are written back. What it has sent can still be read."""
        if self.process is not None:
            with contextlib.suppress(QMPError, OSError, EOFError, TimeoutError):
                async with asyncio.timeout(_QUIT_SECONDS):
                    await self.qmp.execute("quit")
            await self._reap(_QUIT_SECONDS)
        self._far_serial.close()  # the last of those that keep the line open
        with contextlib.suppress(QMPError, OSError, EOFError):
            await self.qmp.disconnect()

    def abandon(self) -> None:
        """Let go of a QEMU that has ended or never ran. Its memory stays as long as somebody looks at it."""
        self._close_ours()
        self._memory.close()
        for ours in (self.serial, self._far_serial, self.bell, self.qtest, self._qmp_socket):
            ours.close()

    def _close_ours(self) -> None:
        while self._open:
            one = self._open.pop()
            if isinstance(one, int):
                os.close(one)
            else:
                one.close()
