# SPDX-License-Identifier: Apache-2.0
"""Channels over TCP and Unix sockets, with and without TLS.

The sockets do not block; poll() does, on the socket and on the interrupt.
Over TLS a byte takes the same way, but one thread at a time is in OpenSSL.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import socket
import ssl
import struct
import threading
import time

from .base import Channel, ChannelCutError, ChannelError, ChannelStalledError, Interrupt
from .tls import explain

__all__ = ["SocketChannel", "TlsChannel", "cut", "peer_credentials", "prepare"]

_FLAGS: int = getattr(socket, "MSG_NOSIGNAL", 0)
_CREDENTIALS = struct.Struct("iII")  # struct ucred: unix(7)
# What a Unix socket holds. More than the usual 208 KiB saves waits; TCP sizes its buffers itself, and better.
_UNIX_BUFFER = 1 << 20
# A connection that nobody confirms for so many seconds is dead.
_TCP_PATIENCE = 30
_TCP_OPTIONS = (
    ("TCP_NODELAY", 1),
    ("TCP_KEEPIDLE", 10),
    ("TCP_KEEPINTVL", 5),
    ("TCP_KEEPCNT", 4),
    ("TCP_USER_TIMEOUT", _TCP_PATIENCE * 1000),
)
# A TLS record of type alert, or handshake, of any version: no stream of ours begins so.
_TLS_ANSWERS = (b"\x15\x03", b"\x16\x03")
# What OpenSSL gets at once, of which it makes records of 16 KiB; smaller buffers are joined.
_AT_ONCE = 256 << 10
_SMALL = 64 << 10
_SCRATCH = 64 << 10


def prepare(connection: socket.socket) -> None:
    """Set what is good for bulk data, where this system has it."""
    connection.setblocking(False)
    with contextlib.suppress(OSError):
        if connection.family == socket.AF_UNIX:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _UNIX_BUFFER)
            return
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in _TCP_OPTIONS:
            if (option := getattr(socket, name, None)) is not None:
                connection.setsockopt(socket.IPPROTO_TCP, option, value)


def peer_credentials(connection: socket.socket) -> tuple[int, int] | None:
    """Process and user at the other end of a Unix socket, where the system tells."""
    option = getattr(socket, "SO_PEERCRED", None)
    if option is None:
        return None
    pid, uid, _gid = _CREDENTIALS.unpack(connection.getsockopt(socket.SOL_SOCKET, option, _CREDENTIALS.size))
    return pid, uid


def cut(peer: str, error: OSError) -> ChannelError:
    """The error for a connection that has failed."""
    if error.errno in (errno.ECONNRESET, errno.EPIPE, errno.ECONNABORTED, errno.ENOTCONN, errno.ESHUTDOWN):
        return ChannelCutError(f"the connection to {peer} was cut", "look at what the other side printed")
    if error.errno in (errno.ETIMEDOUT, errno.EHOSTUNREACH, errno.ENETUNREACH, errno.ENETDOWN):
        return ChannelCutError(
            f"{peer} does not answer any more: {os.strerror(error.errno)}", "look at the network and at the other host"
        )
    return ChannelError(f"the connection to {peer} failed: {error.strerror or error}")


class SocketChannel(Channel):
    """A connected stream socket."""

    def __init__(self, connection: socket.socket, peer: str) -> None:
        """Takes the socket over."""
        super().__init__(peer)
        self._socket = connection
        prepare(connection)

    @property
    def fileno(self) -> int:
        return self._socket.fileno()

    def _wait(self, events: int, has: str, limit: float | None, hearing: Interrupt | None = None) -> None:
        waits = [(self._socket.fileno(), events)]
        if hearing is not None:
            waits.append((hearing.fileno, 0))
        ready = self._interrupt.wait(waits, limit)
        if hearing is not None:
            hearing.check()
        if not ready:
            raise ChannelStalledError(
                f"{self.peer} has {has} for {limit:g} s", "look at the other side, and at the network"
            )

    def _write(self, views: list[memoryview], wait: bool) -> int:
        while True:
            try:
                return self._socket.sendmsg(views, (), _FLAGS)
            except BlockingIOError:
                if not wait:
                    return 0
                self._wait(select.POLLOUT, "taken nothing", self.stall)
            except OSError as error:
                self._check_answer(self._peek())
                raise cut(self.peer, error) from error

    def _read(self, view: memoryview) -> int:
        while True:
            try:
                count = self._socket.recv_into(view)
            except BlockingIOError:
                self._wait(select.POLLIN, "sent nothing", self.stall, self.hearing)
            except OSError as error:
                raise cut(self.peer, error) from error
            else:
                if not self.received:
                    self._check_answer(bytes(view[:2]) if count >= 2 else b"")
                return count

    def _peek(self) -> bytes:
        """What the other side has said before it went, if it was the first it said."""
        if not self.received:
            with contextlib.suppress(OSError):
                return self._socket.recv(2, socket.MSG_PEEK)
        return b""

    def _check_answer(self, answer: bytes) -> None:
        if answer in _TLS_ANSWERS:
            raise ChannelError(f"{self.peer} speaks TLS, and this side does not", "give --tls-creds DIR on both sides")

    def _end(self) -> None:
        try:
            self._socket.shutdown(socket.SHUT_WR)
        except OSError as error:
            raise cut(self.peer, error) from error

    def _drain(self) -> bool:
        deadline = time.monotonic() + self.stall if self.stall is not None else None
        scratch = bytearray(_SCRATCH)
        while True:
            try:
                # Of the socket itself, also where TLS is above it: what it says is of no interest.
                if not socket.socket.recv_into(self._socket, scratch):
                    return True
            except BlockingIOError:
                pass
            except OSError:
                return False
            left = deadline - time.monotonic() if deadline is not None else None
            if left is not None and left <= 0:
                return False
            self._interrupt.wait([(self._socket.fileno(), select.POLLIN)], left)

    def _close(self, orderly: bool) -> None:
        self._socket.close()


class TlsChannel(SocketChannel):
    """A connection whose handshake is done."""

    _socket: ssl.SSLSocket

    def __init__(self, connection: ssl.SSLSocket, peer: str) -> None:
        super().__init__(connection, peer)
        self._openssl = threading.Lock()
        self._offered: memoryview | bytes | None = None  # OpenSSL wants the same bytes again until it has taken them
        self._failure: ChannelError | None = None

    def _write(self, views: list[memoryview], wait: bool) -> int:
        data = self._offered if self._offered is not None else _joined(views)
        while True:
            try:
                with self._openssl:
                    count = self._socket.send(data)
                self._offered = None
                return count
            except (ssl.SSLWantWriteError, ssl.SSLWantReadError) as error:
                self._offered = data
                if not wait:
                    return 0
                events = select.POLLOUT if isinstance(error, ssl.SSLWantWriteError) else select.POLLIN
                self._wait(events, "taken nothing", self.stall)
            except OSError as error:
                raise self._explained(error) from error

    def _read(self, view: memoryview) -> int:
        # A call gives a record at most.
        count = 0
        while count < len(view):
            if self._failure is not None:
                if count:
                    break
                raise self._failure
            try:
                with self._openssl:
                    got = self._socket.recv_into(view[count:])
            except ssl.SSLZeroReturnError:
                break
            except (ssl.SSLWantReadError, ssl.SSLWantWriteError) as error:
                if count:
                    break
                events = select.POLLIN if isinstance(error, ssl.SSLWantReadError) else select.POLLOUT
                self._wait(events, "sent nothing", self.stall, self.hearing)
            except OSError as error:
                self._failure = self._explained(error)
                self._failure.__cause__ = error
            else:
                if not got:
                    break
                count += got
        return count

    def _explained(self, error: OSError) -> ChannelError:
        if not isinstance(error, ssl.SSLError):
            return cut(self.peer, error)
        if isinstance(error, ssl.SSLEOFError):
            return cut(self.peer, ConnectionResetError(errno.ECONNRESET, os.strerror(errno.ECONNRESET)))
        return ChannelError(f"the TLS connection to {self.peer} failed: {explain(error)}")

    def _end(self) -> None:
        while True:
            try:
                with self._openssl:
                    self._socket.unwrap()
            except ssl.SSLWantWriteError:
                self._wait(select.POLLOUT, "taken nothing", self.stall)
            except ssl.SSLError:  # the farewell is out; the other side's is not there yet
                break
            except OSError as error:
                raise cut(self.peer, error) from error
            else:
                break
        with contextlib.suppress(OSError):
            socket.socket.shutdown(self._socket, socket.SHUT_WR)

    def _close(self, orderly: bool) -> None:
        if orderly:
            with contextlib.suppress(OSError, ValueError):
                self._socket.unwrap()
        self._socket.close()


def _joined(views: list[memoryview]) -> memoryview | bytes:
    """The first of the views or a part of it, or, where it is small, it with those after it."""
    if len(views) == 1 or len(views[0]) >= _SMALL:
        return views[0][:_AT_ONCE]
    parts: list[memoryview] = []
    room = _AT_ONCE
    for view in views:
        parts.append(view[:room])
        room -= len(parts[-1])
        if not room:
            break
    return b"".join(parts)
