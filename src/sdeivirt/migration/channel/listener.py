# SPDX-License-Identifier: Apache-2.0
"""Listening for the one who brings a guest, whoever else calls.

All callers are served side by side until one has said the first word of a
stream, and under TLS shown a certificate: that one is accepted. A caller that is
silent, speaks something else or shows a bad certificate costs the others nothing
and is sent away, with an answer from which it can tell why.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import select
import socket
import ssl
import threading
import time
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any, Self, overload

from ...control.notices import Notices
from ...errors import EnvironmentUnavailableError, UsageError
from ..frames import MAGIC
from .base import Channel, ChannelError, Interrupt
from .binding import bound, remove
from .connect import check_network, check_user, is_loopback, resolve
from .sockets import SocketChannel, TlsChannel, prepare
from .tls import ALERT, HANDSHAKE, WELCOME, TlsCredentials, explain
from .uri import Uri

__all__ = ["Listener"]

_log = logging.getLogger(__name__)

# Seconds in which a caller has to come out with how a stream begins.
PATIENCE = 10.0
MAX_CALLERS = 32

_RETRY = 0.01
_FULL = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


@dataclass
class _Caller:
    """Somebody who has connected and has not yet shown that they bring a guest."""

    connection: socket.socket
    name: str
    deadline: float
    events: int = select.POLLIN
    secured: bool = False  # it speaks TLS; the handshake has begun
    shaken: bool = False  # and has ended well


class Listener:
    """An address at which a guest can arrive. A context manager that closes it."""

    def __init__(
        self, uri: Uri, tls: TlsCredentials | None = None, insecure: bool = False, begins: bytes = MAGIC
    ) -> None:
        """Listen at once. The callers of interest say `begins` first; if it is empty, they need not say anything.

        Raises UsageError for an address that cannot be or is not allowed,
        EnvironmentUnavailableError for one that is not free or not of this host.
        """
        if tls is not None and not tls.server:
            raise UsageError("who listens needs the credentials of a server")
        addresses = resolve(uri, EnvironmentUnavailableError, any_port=True)
        check_network(uri, addresses, tls is not None, insecure)
        self._tls = tls
        self._insecure = insecure
        self._begins = begins
        self._callers: list[_Caller] = []
        self._warn = Notices(_log, f"callers at {uri}")
        self._interrupt = Interrupt(f"waiting at {uri}")
        self._accepting = threading.Lock()
        self._closed = False
        self._path = uri.absolute().path  # of a Unix socket; the process may change its directory
        self._file: os.stat_result | None = None
        try:
            self._socket = bound(uri, addresses)
            if uri.scheme == "unix":
                self._file = self._path.lstat()
        except BaseException:
            self._interrupt.close()
            raise
        self.uri = replace(uri, port=self._socket.getsockname()[1]) if uri.scheme == "tcp" else uri

    @property
    def fileno(self) -> int:
        """The descriptor."""
        return self._socket.fileno()

    @overload
    def accept(self, timeout: None = None) -> Channel: ...

    @overload
    def accept(self, timeout: float) -> Channel | None: ...

    def accept(self, timeout: float | None = None) -> Channel | None:
        """Wait for the next who can bring a guest; None if nobody came within so many seconds.

        Raises ChannelCancelledError when another thread closes the listener.
        """
        end = time.monotonic() + timeout if timeout is not None else None
        with self._accepting:
            while True:
                self._interrupt.check()
                now = time.monotonic()
                self._send_away_the_silent(now)
                limits = [caller.deadline - now for caller in self._callers]
                if end is not None:
                    if now >= end:
                        return None
                    limits.append(end - now)
                waits = [(caller.connection.fileno(), caller.events) for caller in self._callers]
                waits.append((self._socket.fileno(), select.POLLIN))
                ready = set(self._interrupt.wait(waits, min(limits, default=None)))
                for caller in list(self._callers):
                    if caller.connection.fileno() in ready and (channel := self._hear(caller)):
                        return channel
                if self._socket.fileno() in ready and (channel := self._answer_the_door()):
                    return channel

    def close(self) -> None:
        """Listen no more, and remove the socket's file. From any thread; can be called twice."""
        self._interrupt.set()
        with self._accepting:
            if self._closed:
                return
            self._closed = True
            if self._file is not None:
                remove(self._path, self._file)
            self._socket.close()
            for caller in self._callers:
                caller.connection.close()
            self._callers.clear()
            self._interrupt.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # -- callers

    def _answer_the_door(self) -> Channel | None:
        try:
            connection, address = self._socket.accept()
        except OSError as error:
            if error.errno in _FULL:
                # Still at the door: poll() would report it again at once.
                if self._callers:
                    self._send_away(self._callers[0], "there is no room for more")
                self._interrupt.wait(timeout=_RETRY)
            return None  # or it has gone already
        if len(self._callers) >= MAX_CALLERS:
            self._send_away(self._callers[0], "others want to come in, and it says nothing")
        caller = _Caller(connection, str(self.uri), time.monotonic() + PATIENCE)
        self._callers.append(caller)
        try:
            prepare(connection)
            caller.name += self._check(connection, address)
            if self._tls is None and not self._begins:
                return self._accepted(caller)
        except ChannelError as error:
            self._send_away(caller, error.message)
        except OSError as error:
            self._send_away(caller, _failed(error))
        return None

    def _check(self, connection: socket.socket, address: Any) -> str:
        if connection.family == socket.AF_UNIX:
            return check_user(connection, str(self.uri))
        if self._tls is None and not self._insecure and not is_loopback(address):
            raise ChannelError(f"{address[0]} is another host")
        host = f"[{address[0]}]" if ":" in address[0] else address[0]
        return f" (from {host}:{address[1]})"

    def _hear(self, caller: _Caller) -> Channel | None:
        """What a caller has to say now; the channel if it is the one."""
        try:
            if not caller.secured:
                first = caller.connection.recv(max(1, len(self._begins)), socket.MSG_PEEK)
                if not first:
                    self._send_away(caller, "")
                    return None
                if self._tls is None:
                    return self._plain(caller, first)
                if not first.startswith(HANDSHAKE):
                    self._send_away(caller, "it speaks no TLS, and this side does", ALERT)
                    return None
                self._secure(caller, self._tls)
            return self._shake_hands(caller)
        except ssl.SSLWantWriteError:
            caller.events = select.POLLOUT
        except (BlockingIOError, ssl.SSLWantReadError):
            caller.events = select.POLLIN
        except ssl.SSLError as error:
            self._send_away(caller, explain(error))
        except OSError as error:
            if error.errno in _FULL:
                self._interrupt.wait(timeout=_RETRY)  # what it has said is still there, and it has some time left
            else:
                self._send_away(caller, _failed(error))
        return None

    def _plain(self, caller: _Caller, first: bytes) -> Channel | None:
        if self._begins.startswith(first):
            return self._accepted(caller)
        tls = first.startswith(HANDSHAKE)
        # Our first word, which no TLS client takes for TLS.
        self._send_away(caller, "it speaks TLS, and this side does not" if tls else "it brings no guest", self._begins)
        return None

    def _secure(self, caller: _Caller, tls: TlsCredentials) -> None:
        caller.connection = tls.context.wrap_socket(
            caller.connection, server_side=True, do_handshake_on_connect=False, suppress_ragged_eofs=False
        )
        caller.secured = True

    def _shake_hands(self, caller: _Caller) -> Channel:
        """One step more of the handshake, and the word after it. Raises OSError."""
        assert isinstance(caller.connection, ssl.SSLSocket)
        if not caller.shaken:
            caller.connection.do_handshake()
            caller.shaken = True
        caller.connection.send(WELCOME)
        return self._accepted(caller)

    def _accepted(self, caller: _Caller) -> Channel:
        channel: Channel
        if isinstance(caller.connection, ssl.SSLSocket):
            channel = TlsChannel(caller.connection, caller.name)
        else:
            channel = SocketChannel(caller.connection, caller.name)
        self._callers.remove(caller)
        return channel

    def _send_away_the_silent(self, now: float) -> None:
        for caller in list(self._callers):
            if caller.deadline <= now:
                self._send_away(caller, f"it has said nothing of interest for {PATIENCE:g} s")

    def _send_away(self, caller: _Caller, why: str, answer: bytes = b"") -> None:
        self._callers.remove(caller)
        if why:  # one that left without a word was only looking whether somebody is here
            self._warn(f"a caller at {caller.name} was sent away: {why}")
        with contextlib.suppress(OSError):
            if answer:
                caller.connection.send(answer)
                caller.connection.shutdown(socket.SHUT_WR)
            # What was not read would reset the connection, and take the answer with it.
            if not caller.secured:
                caller.connection.recv(1 << 16)
        caller.connection.close()


def _failed(error: OSError) -> str:
    return f"the connection failed: {error.strerror or error}"
