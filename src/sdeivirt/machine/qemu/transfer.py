# SPDX-License-Identifier: Apache-2.0
"""QEMU's own migration, for all that is not the guest's RAM: its CPUs, its devices, their memory.

With the capability x-ignore-shared it leaves the shared RAM to us. What is
left has two parts. Memory of devices (most of it flash: 128 MiB of zeroes) takes ten milliseconds to look
through, on either side, and that is done while the guest still runs; QEMU is held at the end of it by not
reading on. When we do, it stops the guest by itself, and waits at its "pre-switchover" until we have
answered what was asked; what remains takes a millisecond.

The stream goes through a socket pair, whose other end QEMU gets by its QMP.
A QEMU that has been left can go on with the guest at once, at every step of this.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import sys
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from qemu.qmp import EventListener, QMPError

from ...errors import EnvironmentUnavailableError, MigrationError, StreamError
from .process import QemuProcess

__all__ = ["Incoming", "Outgoing"]

T = TypeVar("T")

_FD = "sdeivirt-state"
_EVENTS = ("MIGRATION", "STOP", "RESUME")
_NEEDED = ("x-ignore-shared", "pause-before-switchover", "events", "late-block-activate")
_UNLIMITED = 1 << 40  # bytes a second
_CHUNK = 1 << 16
_BUFFER = 1 << 20  # what can wait for us to be read once the guest stands
_SMALLEST_BUFFER = 1  # the system rounds it up to some KiB
_POLL_SECONDS = 0.01
_ZERO_PAGE = 9  # bytes in QEMU's stream, at least: address and flags, and the value that it is filled with
_HELD_BACK = 48 << 10  # QEMU collects 32 KiB before it sends, and a few are under way
_BACKLOG = 16 << 10  # that QEMU has not looked at yet when it has got all that came early


class _Migration:
    """One of QEMU's migrations, seen from outside; on the event loop."""

    def __init__(self, process: QemuProcess) -> None:
        self._process = process
        self._events = EventListener(_EVENTS)
        self._ours, self._theirs = socket.socketpair()
        self._ours.setblocking(False)
        self._now = ""

    async def _begin(self, command: str, waits: bool, **parameters: int) -> None:
        """Have QEMU start, with the other end of our socket; `waits` until it has said that it is able to."""
        process = self._process
        process.qmp.register_listener(self._events)
        process.qmp.send_fd_scm(self._theirs.fileno())
        wanted = [{"capability": name, "state": True} for name in _NEEDED]
        named = {name.replace("_", "-"): value for name, value in parameters.items()}
        set_up = [
            process.execute("migrate-set-capabilities", capabilities=wanted),
            process.execute("getfd", fdname=_FD),
            *([process.execute("migrate-set-parameters", **named)] if named else []),
            *([] if waits else [process.execute(command, uri=f"fd:{_FD}")]),
        ]
        able, *others = await asyncio.gather(*set_up, return_exceptions=True)  # QEMU takes them in this order
        if isinstance(able, QMPError):
            raise EnvironmentUnavailableError(
                f"QEMU {process.version} cannot move a guest: {able}", "sdeivirt knows QEMU 7.2 to 11"
            ) from able
        for each in (able, *others):
            if isinstance(each, BaseException):
                raise each
        if waits:
            await process.execute(command, uri=f"fd:{_FD}")

    async def _unless_it_ends(self, work: Coroutine[Any, Any, T]) -> T:
        """What the work gives; raises QemuDiedError where QEMU ends before."""
        assert self._process.process is not None
        ending = asyncio.ensure_future(self._process.process.wait())
        task = asyncio.ensure_future(work)
        try:
            await asyncio.wait((task, ending), return_when=asyncio.FIRST_COMPLETED)
            if not task.done():
                raise await self._process.death()
            return await task
        finally:
            task.cancel()
            ending.cancel()

    async def _status(self, *wanted: str) -> str:
        """Wait until QEMU's migration has one of these states, unless it has; or until QEMU says STOP or RESUME."""
        while self._now not in wanted:
            event: Any = await self._events.get()
            name = event["event"]
            self._now = event["data"]["status"] if name == "MIGRATION" else name
        return self._now

    def close(self) -> None:
        """Let go of everything. Can be called twice."""
        with contextlib.suppress(ValueError):
            self._process.qmp.remove_listener(self._events)
        self._ours.close()
        self._theirs.close()


class Outgoing(_Migration):
    """A QEMU whose guest leaves: :meth:`ahead`, :meth:`stop`, :meth:`rest`."""

    def __init__(self, process: QemuProcess) -> None:
        super().__init__(process)
        self._data = bytearray()
        self._wanted = 0  # bytes, for now
        self._enough = asyncio.Event()  # they are there

    async def ahead(self) -> bytes:
        """Begin, and read what can be had while the guest runs. Raises MigrationError, QemuDiedError."""
        self._theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SMALLEST_BUFFER)
        try:
            # No limit of down time: QEMU must not find that the rest is little enough, and stop the guest.
            await self._begin("migrate", True, max_bandwidth=_UNLIMITED, downtime_limit=0)
        except QMPError as error:
            raise MigrationError(f"QEMU cannot give its devices' state: {error}") from error
        return await self._unless_it_ends(self._read_ahead())

    async def _read_ahead(self) -> bytes:
        if await self._status("active", "failed") == "failed":
            raise await self._failure()
        found: Any = await self._process.execute("query-migrate")
        ram = found.get("ram", {})
        self._read_on(ram.get("total", 0) // ram.get("page-size", 4096) * _ZERO_PAGE - _HELD_BACK)
        enough = asyncio.ensure_future(self._enough.wait())
        ending = asyncio.ensure_future(self._status("pre-switchover", "failed"))  # it was less than we thought
        try:
            await asyncio.wait((enough, ending), return_when=asyncio.FIRST_COMPLETED)
            if self._now == "failed":
                raise await self._failure()
            self._stop_reading()
            return self._taken()
        finally:
            enough.cancel()
            ending.cancel()

    async def stop(self, devices: bool) -> None:
        """Read on, so that QEMU stops the guest if it runs; its vCPUs stand when this returns, and `devices` do.

        Raises MigrationError, QemuDiedError; the guest can be resumed here then, as it can afterwards.
        """
        self._theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _BUFFER)
        self._theirs.close()  # so that the end of the stream is one
        self._read_on(sys.maxsize)
        stops = () if devices else ("STOP",)  # what disks are doing is waited for after that
        if await self._unless_it_ends(self._status("pre-switchover", "failed", *stops)) == "failed":
            raise await self._failure()

    async def rest(self, meanwhile: Callable[[], None]) -> bytes:
        """After :meth:`stop`, when nothing changes any more: what ahead() has not given. Errors as there.

        While QEMU writes it down, `meanwhile` is called.
        """
        try:
            return await self._unless_it_ends(self._read_rest(meanwhile))
        except QMPError as error:
            raise MigrationError(f"QEMU cannot give its devices' state: {error}") from error

    async def _read_rest(self, meanwhile: Callable[[], None]) -> bytes:
        if await self._status("pre-switchover", "failed") == "failed":
            raise await self._failure()
        await self._process.execute("migrate-continue", state="pre-switchover")
        meanwhile()
        if await self._status("completed", "failed") == "failed":
            raise await self._failure()
        # QEMU has sent all before it says so. It closes the stream some time later, which need not be waited for.
        while self._read():
            pass
        self._stop_reading()
        return self._taken()

    def _read_on(self, wanted: int) -> None:
        """Read so many bytes, or all that come."""
        self._wanted = wanted
        self._enough.clear()
        asyncio.get_running_loop().add_reader(self._ours, self._read)

    def _read(self) -> bool:
        """Read what is there; False if nothing is, or nothing more is wanted."""
        some = b""
        with contextlib.suppress(BlockingIOError):
            with contextlib.suppress(ConnectionError):  # QEMU has ended; others say why
                some = self._ours.recv(max(0, min(_CHUNK, self._wanted - len(self._data))))
            self._data += some
            if not some or len(self._data) >= self._wanted:
                self._enough.set()
                self._stop_reading()
        return bool(some)

    def _taken(self) -> bytes:
        """What has been read, which is forgotten."""
        data = bytes(self._data)
        self._data.clear()
        return data

    def _stop_reading(self) -> None:
        if self._ours.fileno() >= 0:
            asyncio.get_running_loop().remove_reader(self._ours)

    def close(self) -> None:
        self._stop_reading()
        super().close()

    async def _failure(self) -> MigrationError:
        found: Any = await self._process.execute("query-migrate")
        why = found.get("error-desc", "it does not say why")
        return MigrationError(f"QEMU cannot give its devices' state: {why}")

    async def cancel(self) -> None:
        """The guest stays: have QEMU forget about it. What has been completed is only waited for."""
        with contextlib.suppress(QMPError):
            await self._process.execute("migrate_cancel")
            while await self._under_way():
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_POLL_SECONDS):
                        await self._events.get()
        self.close()

    async def _under_way(self) -> bool:
        """Whether QEMU is still at it, so that the guest cannot go on."""
        found: Any = await self._process.execute("query-migrate")
        if found.get("status", "none") in ("setup", "active", "pre-switchover", "device", "cancelling"):
            return True
        guest: Any = await self._process.execute("query-status")
        return bool(guest["status"] == "finish-migrate")


class Incoming(_Migration):
    """A QEMU that waits for a guest."""

    _offered = 0

    async def begin(self) -> None:
        """Have QEMU wait for the state. Raises EnvironmentUnavailableError where it cannot."""
        self._ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _BACKLOG)
        await self._begin("migrate-incoming", False)
        self._theirs.close()

    async def feed(self, stream: bytes) -> None:
        """Give QEMU what another has given; it has looked at nearly all of it when this returns.

        Raises StreamError with its own words where it refuses.
        """
        try:
            await self._unless_it_ends(asyncio.get_running_loop().sock_sendall(self._ours, stream))
        except (OSError, EnvironmentUnavailableError):
            raise await self._refusal() from None

    def offer(self, stream: bytes) -> None:
        """Give QEMU as much of the end of it as there is room for, so that it works while we do. From any thread."""
        with contextlib.suppress(OSError):
            self._ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _BUFFER)
            self._offered = self._ours.send(stream)

    async def take(self, stream: bytes) -> None:
        """Give QEMU the end of it, or what offer() has left; it has taken it over then. Raises StreamError."""
        stream = stream[self._offered :]
        try:
            with contextlib.suppress(OSError):  # it closes the stream when it has got all that it wants, or has failed
                await self._unless_it_ends(asyncio.get_running_loop().sock_sendall(self._ours, stream))
            self._ours.close()
            status = await self._unless_it_ends(self._status("completed", "failed"))
        except EnvironmentUnavailableError:
            status = "failed"
        if status == "failed":
            raise await self._refusal()

    async def _refusal(self) -> StreamError:
        """A QEMU that cannot load what it gets ends, and says why as its last words."""
        await self._process.death()
        said = self._process.last_words(2) or "it ended"
        return StreamError(
            f"QEMU does not take the state of its devices: {said}",
            "give this machine the same devices, with the same arguments for QEMU",
        )
