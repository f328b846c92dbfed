# SPDX-License-Identifier: Apache-2.0
"""The control socket: QMP framing (QEMU docs/interop/qmp-spec) over a Unix socket.

    S: {"QMP": {"version": {...}, "capabilities": []}}
    C: {"execute": "qmp_capabilities"}
    S: {"return": {}}
    C: {"execute": "inject-event", "arguments": {"event": 0, "vcpu": 1}, "id": 7}
    S: {"return": {"event": 0, "vcpu": 1, "waits": "", "coalesced": false}, "id": 7}
    S: {"event": "SHUTDOWN", "data": {...}, "timestamp": {"seconds": ..., "microseconds": ...}}

Events: VCPU_FAULT, STOP, RESUME, SHUTDOWN, and MIGRATION, MIGRATION_PASS and
MIGRATION_PROGRESS while a guest moves. A client can be as slow, silent or
broken as it likes: it is served from a task and a bounded buffer of its own,
and dropped, with a warning, when that does not suffice. The VM and the other
clients do not notice.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import resource
import select
import socket
import struct
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

from ..errors import StateError
from ..machine import Machine
from .commands import FOR_CALLER, CommandError, Commands, error_object, parse_request, version_object
from .framing import FramingError, Splitter, decode, encode
from .migration import Migrations
from .notices import Notices

__all__ = ["ControlServer"]

_log = logging.getLogger(__name__)

MAX_CLIENTS = 256
# Events that a client has not read. More, and it is dropped.
MAX_UNREAD = 256 << 10
# A client that does not take a reply, or its last events, for so many seconds is dropped.
REPLY_PATIENCE = 30.0
CLOSE_PATIENCE = 1.0

_LOOK_SECONDS = 0.25  # how often to look whether a client has gone that waits for an answer
_CHUNK = 64 << 10
_PLENTY = 1 << 20
_CREDENTIALS = struct.Struct("iII")  # struct ucred: unix(7)


class _Client:
    """One connection. Commands are answered one after the other, in order."""

    def __init__(
        self,
        commands: Commands,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        warn: Callable[[str], None],
    ) -> None:
        self._commands = commands
        self._reader = reader
        self._writer = writer
        self._warn = warn
        self._negotiated = False
        self._leaving = False
        self._replying = False
        self._idle = asyncio.Event()  # no command is being carried out
        self._idle.set()
        self._late_events = bytearray()  # came up in the middle of a reply
        self.dropped = False
        writer.transport.set_write_buffer_limits(high=_CHUNK)

    @property
    def expendable(self) -> bool:
        """Whether nobody would miss it: it has not said a word that counts, or all that it had to say."""
        return self._leaving or not self._negotiated

    async def serve(self) -> None:
        """Answer until the client leaves or has to go."""
        splitter = Splitter()
        try:
            await self._reply({"QMP": {"version": version_object(), "capabilities": []}})
            while data := await self._reader.read(_CHUNK):
                try:
                    for text in splitter.feed(data):
                        if self._leaving:
                            return
                        self._idle.clear()
                        try:
                            await self._reply(await self._answer(text))
                        finally:
                            self._idle.set()
                        await asyncio.sleep(0)  # the others' turn, though this one may have sent a thousand commands
                except FramingError as error:
                    await self._reply({"error": {"class": "GenericError", "desc": f"JSON parse error, {error}"}})
                    break
            await self.close(REPLY_PATIENCE)  # it may have closed its own half only
        except TimeoutError:
            self.drop(f"it has not taken a reply for {REPLY_PATIENCE:g} s")
        except OSError:
            self.drop()
        finally:
            self._writer.close()

    async def _answer(self, text: bytes) -> dict[str, Any]:
        try:
            message = decode(text)
        except (ValueError, RecursionError) as error:
            return {"error": {"class": "GenericError", "desc": f"JSON parse error, {error}"}}
        tag = {"id": message["id"]} if isinstance(message, dict) and "id" in message else {}
        try:
            return {"return": await self._execute(message)} | tag
        except Exception as error:
            return {"error": error_object(error)} | tag

    async def _execute(self, message: object) -> object:
        request = parse_request(message)
        if request.name == "qmp_capabilities":
            if self._negotiated:
                raise CommandError("Capabilities negotiation is already complete, command ignored", "CommandNotFound")
            if request.arguments.get("enable"):
                raise CommandError("there are no capabilities to enable")
            self._negotiated = True
            return {}
        if not self._negotiated:
            raise CommandError("Expecting capabilities negotiation with 'qmp_capabilities'", "CommandNotFound")
        work = self._commands.execute(request)
        return await (self._while_here(work) if request.name in FOR_CALLER else work)

    async def _while_here(self, work: Coroutine[Any, Any, object]) -> object:
        """Carry a command out, unless the client goes: both halves of its connection are closed then."""
        task = asyncio.ensure_future(work)
        look = select.poll()
        look.register(self._writer.get_extra_info("socket").fileno(), 0)  # POLLHUP is always told
        try:
            while not task.done():
                await asyncio.wait((task,), timeout=_LOOK_SECONDS)
                if self.dropped or look.poll(0):
                    break
        finally:
            if not task.done():
                task.cancel()
        if not task.done():
            raise StateError("the client that has asked has gone")
        return task.result()

    async def _reply(self, message: dict[str, Any]) -> None:
        data = encode(message)
        self._replying = True
        async with asyncio.timeout(REPLY_PATIENCE):
            for start in range(0, len(data), _CHUNK):
                self._writer.write(data[start : start + _CHUNK])
                await self._writer.drain()
        self._replying = False
        if self._late_events:
            self._writer.write(bytes(self._late_events))
            self._late_events.clear()

    def tell(self, data: bytes) -> None:
        """Send an event, now or after the reply that is under way."""
        if not self._negotiated or self._leaving or self.dropped:
            return
        if self._replying:
            self._late_events += data
        else:
            self._writer.write(data)
        if len(self._late_events) + self._writer.transport.get_write_buffer_size() > MAX_UNREAD:
            self.drop(f"it has not read {MAX_UNREAD >> 10} KiB of events")

    def drop(self, reason: str = "") -> None:
        """Cut the connection, whatever is still to be sent. A client that does not read is not told why; people are."""
        if reason and not self.dropped:
            self._warn(f"a client of the control socket{_peer(self._writer)} was dropped: {reason}")
        self.dropped = True
        self._writer.transport.abort()

    async def close(self, patience: float) -> None:
        """Send what is still to be sent, the answer to a command under way too, unless the client does not want it."""
        self._leaving = True
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(patience):
                await self._idle.wait()
        self._writer.close()
        with contextlib.suppress(OSError, TimeoutError):
            async with asyncio.timeout(patience):
                await self._writer.wait_closed()
        self.drop()


def _descriptors_left() -> int:
    """How many descriptors this process may still open."""
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        used = len(os.listdir("/dev/fd"))
    except OSError:
        used = 0
    return _PLENTY if limit == resource.RLIM_INFINITY else limit - used


def _peer(writer: asyncio.StreamWriter) -> str:
    """Whose end of the connection the other one is, where the system tells."""
    connection = writer.get_extra_info("socket")
    option = getattr(socket, "SO_PEERCRED", None)
    if option is None or connection is None:
        return ""
    try:
        pid, _uid, _gid = _CREDENTIALS.unpack(connection.getsockopt(socket.SOL_SOCKET, option, _CREDENTIALS.size))
    except OSError:
        return ""
    return f" (pid {pid})"


class ControlServer:
    """The control socket of a machine; `quit` is called when a client asks for the VM's end."""

    def __init__(self, machine: Machine, path: Path, quit: Callable[[], None]) -> None:
        self.migrations = Migrations(machine, self.emit)
        self._commands = Commands(machine, self.migrations, self.emit, quit)
        self._path = path
        self._server: asyncio.Server | None = None
        self._clients: dict[_Client, asyncio.Task[None]] = {}
        self._warn = Notices(_log, "the control socket")
        self._capacity = MAX_CLIENTS

    async def open(self) -> None:
        """Listen. Raises OSError."""
        # accept() must never run out of descriptors, for asyncio then complains at length. It takes as many connections
        # at once as the backlog has, and some rounds later one that is to be turned away is closed.
        left = _descriptors_left()
        self._capacity = max(1, min(MAX_CLIENTS, left // 4))
        backlog = max(1, min(MAX_CLIENTS, left // 16))
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            # Under its name once it listens: whoever finds the socket can connect.
            unnamed = self._path.with_name(".sock")
            listener.bind(os.fspath(unnamed))
            unnamed.chmod(0o600)
            self._server = await asyncio.start_unix_server(self._accept, sock=listener, backlog=backlog)
            unnamed.rename(self._path)
        except BaseException:
            listener.close()
            raise

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if not self._has_room():
            writer.write(
                encode({"error": {"class": "GenericError", "desc": f"{len(self._clients)} clients are enough"}})
            )
            writer.close()
            return
        client = _Client(self._commands, reader, writer, self._warn)
        task = asyncio.current_task()
        assert task is not None
        self._clients[client] = task
        try:
            await client.serve()
        except asyncio.CancelledError:
            pass  # by close(); asyncio would complain of a task that ends like that
        finally:
            del self._clients[client]

    def _has_room(self) -> bool:
        """Whether there may be one client more. Those that only sit there do not keep others out."""
        clients = [client for client in self._clients if not client.dropped]
        if len(clients) < min(self._capacity, MAX_CLIENTS):
            return True
        for client in clients:  # the oldest first
            if client.expendable:
                client.drop("it was idle, and others want to come in")
                return True
        return False

    def emit(self, event: str, data: dict[str, Any]) -> None:
        """Tell every client of an event. On the loop's thread."""
        seconds, nanoseconds = divmod(time.time_ns(), 1_000_000_000)
        timestamp = {"seconds": seconds, "microseconds": nanoseconds // 1000}
        line = encode({"event": event, "data": data, "timestamp": timestamp})
        for client in list(self._clients):
            client.tell(line)

    async def close(self) -> None:
        """Stop listening and let the clients go. The socket is removed first, so that nobody new comes."""
        with contextlib.suppress(OSError):  # somebody has removed it, or put a directory in its place
            self._path.unlink()
        if self._server is not None:
            self._server.close()
        clients = dict(self._clients)
        await asyncio.gather(*(client.close(CLOSE_PATIENCE) for client in clients))
        for task in clients.values():
            task.cancel()
        await asyncio.gather(*clients.values(), return_exceptions=True)
