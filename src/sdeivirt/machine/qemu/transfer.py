# SPDX-License-Identifier: Apache-2.0
"""QEMU's own migration, for all that is not the guest's RAM: its CPUs, its devices, their memory.

With the capability x-ignore-shared it leaves the shared RAM to us. What is
left has two parts. Memory of devices (most of it flash: 128 MiB of zeroes) takes ten milliseconds to look
through, and that is done while the guest still runs; QEMU is held at the end of it by not
reading on. Then the guest stops, and QEMU waits at its "pre-switchover" until we have
answered what was asked; what remains takes a millisecond or two.

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
_STATUS = "MIGRATION"
_NEEDED = ("x-ignore-shared", "pause-before-switchover", "events", "late-block-activate")
_UNLIMITED = 1 << 40  # bytes a second
_CHUNK = 1 << 16
_SMALLEST_BUFFER = 1  # the system rounds it up to some KiB
_POLL_SECONDS = 0.01
_ZERO_PAGE = 9  # bytes in QEMU's stream, at least: address and flags, and the value that it is filled with
_HELD_BACK = 48 << 10  # QEMU collects 32 KiB before it sends, and a few are under way


class _Migration:
    """One of QEMU's migrations, seen from outside; on the event loop."""

    def __init__(self, process: QemuProcess) -> None:
        self._process = process
        self._events = EventListener(_STATUS)
        self._ours, self._theirs = socket.socketpair()
        self._ours.setblocking(False)

    async def _begin(self, command: str, **parameters: int) -> None:
        """Have QEMU start, with the other end of our socket."""
        process = self._process
        process.qmp.register_listener(self._events)
        try:
            wanted = [{"capability": name, "state": True} for name in _NEEDED]
            await process.execute("migrate-set-capabilities", capabilities=wanted)
        except QMPError as error:
            raise EnvironmentUnavailableError(
                f"QEMU {process.version} cannot move a guest: {error}", "sdeivirt knows QEMU 7.2 to 11"
            ) from error
        if parameters:
            named = {name.replace("_", "-"): value for name, value in parameters.items()}
            await process.execute("migrate-set-parameters", **named)
        process.qmp.send_fd_scm(self._theirs.fileno())
        await process.execute("getfd", fdname=_FD)
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
        """Wait until QEMU's migration has one of these states."""
        while True:
            event: Any = await self._events.get()
            status: str = event["data"]["status"]
            if status in wanted:
                return status

    def close(self) -> None:
        """Let go of everything. Can be called twice."""
        with contextlib.suppress(ValueError):
            self._process.qmp.remove_listener(self._events)
        self._ours.close()
        self._theirs.close()


class Outgoing(_Migration):
    """A QEMU whose guest leaves."""

    async def ahead(self) -> bytes:
        """Begin, and read what can be had while the guest runs. Raises MigrationError, QemuDiedError."""
        self._theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SMALLEST_BUFFER)
        try:
            # No limit of down time: QEMU must not find that the rest is little enough, and stop the guest.
            await self._begin("migrate", max_bandwidth=_UNLIMITED, downtime_limit=0)
        except QMPError as error:
            raise MigrationError(f"QEMU cannot give its devices' state: {error}") from error
        return await self._unless_it_ends(self._read_ahead())

    async def _read_ahead(self) -> bytes:
        if await self._status("active", "failed") == "failed":
            raise await self._failure()
        found: Any = await self._process.execute("query-migrate")
        ram = found.get("ram", {})
        wanted = ram.get("total", 0) // ram.get("page-size", 4096) * _ZERO_PAGE - _HELD_BACK
        reading = asyncio.ensure_future(self._read(wanted))
        failing = asyncio.ensure_future(self._status("failed"))
        try:
            await asyncio.wait((reading, failing), return_when=asyncio.FIRST_COMPLETED)
            if not reading.done():
                raise await self._failure()
            return reading.result()
        finally:
            reading.cancel()
            failing.cancel()

    async def rest(self, settle: Callable[[], None]) -> bytes:
        """With the guest stopped: call `settle`, after which nothing changes any more, and read on to the end.

        Raises MigrationError, QemuDiedError; the guest can be resumed here then, as it can afterwards.
        """
        self._theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _CHUNK)
        self._theirs.close()  # so that the end of the stream is one
        return await self._unless_it_ends(self._read_rest(settle))

    async def _read_rest(self, settle: Callable[[], None]) -> bytes:
        reading = asyncio.ensure_future(self._read())
        try:
            if await self._status("pre-switchover", "failed") == "failed":
                raise await self._failure()
            settle()
            await self._process.execute("migrate-continue", state="pre-switchover")
            data = await reading
            if await self._status("completed", "failed") == "failed":
                raise await self._failure()
            return data
        except QMPError as error:
            raise MigrationError(f"QEMU cannot give its devices' state: {error}") from error
        finally:
            reading.cancel()

    async def _read(self, limit: int = sys.maxsize) -> bytes:
        """So many bytes, or all that come."""
        loop = asyncio.get_running_loop()
        data = bytearray()
        while len(data) < limit and (some := await loop.sock_recv(self._ours, min(_CHUNK, limit - len(data)))):
            data += some
        return bytes(data)

    async def _failure(self) -> MigrationError:
        found: Any = await self._process.execute("query-migrate")
        why = found.get("error-desc", "it does not say why")
        return MigrationError(f"QEMU cannot give its devices' state: {why}")

    async def cancel(self) -> None:
        """The guest stays: have QEMU forget about it. What has been completed needs nothing."""
        with contextlib.suppress(QMPError):
            await self._process.execute("migrate_cancel")
            while (await self._state()) in ("setup", "active", "pre-switchover", "device", "cancelling"):
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_POLL_SECONDS):
                        await self._events.get()
        self.close()

    async def _state(self) -> str:
        found: Any = await self._process.execute("query-migrate")
        status: str = found.get("status", "none")
        return status


class Incoming(_Migration):
    """A QEMU that waits for a guest."""

    async def begin(self) -> None:
        """Have QEMU wait for the state. Raises EnvironmentUnavailableError where it cannot."""
        await self._begin("migrate-incoming")
        self._theirs.close()

    async def feed(self, stream: bytes) -> None:
        """Give QEMU what another has given. Raises StreamError with its own words where it refuses."""
        try:
            await self._unless_it_ends(asyncio.get_running_loop().sock_sendall(self._ours, stream))
        except (OSError, EnvironmentUnavailableError):
            raise await self._refusal() from None

    async def finish(self) -> None:
        """That was all: wait until QEMU has taken it over. Raises StreamError."""
        self._ours.close()
        try:
            status = await self._unless_it_ends(self._status("completed", "failed"))
        except EnvironmentUnavailableError:
            raise await self._refusal() from None
        if status == "failed":
            found: Any = await self._process.execute("query-migrate")
            raise StreamError(f"QEMU does not take the state of its devices: {found.get('error-desc', '')}")

    async def _refusal(self) -> StreamError:
        """A QEMU that cannot load what it gets ends, and says why as its last words."""
        await self._process.death()
        said = self._process.last_words(2) or "it ended"
        return StreamError(
            f"QEMU does not take the state of its devices: {said}",
            "give this machine the same devices, with the same arguments for QEMU",
        )
