# SPDX-License-Identifier: Apache-2.0
"""Connecting, and what both ends of a connection ask of the other.

Guest memory crosses a network only under TLS; without it an address has to be
one of this host, unless the user says that the network is safe (`insecure`).
A Unix socket has to belong to the same user, or to root.
"""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import os
import select
import socket
import ssl
import time
from typing import Any

from ...errors import SdeivirtError, UsageError
from .base import Channel, ChannelCancelledError, ChannelError, ChannelStalledError, Interrupt
from .sockets import SocketChannel, TlsChannel, cut, peer_credentials, prepare
from .tls import WELCOME, TlsCredentials, explain
from .uri import Uri

__all__ = ["Address", "check_network", "check_path", "check_user", "connect", "is_loopback", "resolve"]

Address = tuple[socket.AddressFamily, Any]

# sun_path of struct sockaddr_un, one byte of it for the final NUL: unix(7).
_MAX_SOCKET_PATH = 107
_RETRY = 0.02


def connect(
    uri: Uri,
    tls: TlsCredentials | None = None,
    insecure: bool = False,
    timeout: float = 30.0,
    interrupt: Interrupt | None = None,
) -> Channel:
    """A connection to a listener there, within so many seconds.

    `interrupt`, set by another thread, ends the attempt. Raises UsageError for
    what is not allowed, ChannelError where nobody answers, or somebody whom we
    do not trust.
    """
    own = Interrupt("connecting")
    try:
        return _Attempt(uri, tls, insecure, timeout, interrupt or own).run()
    finally:
        own.close()


class _Attempt:
    def __init__(
        self, uri: Uri, tls: TlsCredentials | None, insecure: bool, timeout: float, interrupt: Interrupt
    ) -> None:
        if tls is not None and tls.server:
            raise UsageError("who connects needs the credentials of a client")
        self._uri = uri
        self._tls = tls
        self._insecure = insecure
        self._timeout = timeout
        self._deadline = 0.0  # for one address: each gets its share of the time
        self._interrupt = interrupt

    def run(self) -> Channel:
        end = time.monotonic() + self._timeout
        failure: ChannelError | None = None
        addresses = resolve(self._uri, ChannelError)
        check_network(self._uri, addresses, self._tls is not None, self._insecure)
        for index, (family, address) in enumerate(addresses):
            now = time.monotonic()
            self._deadline = now + (end - now) / (len(addresses) - index)
            connection = socket.socket(family, socket.SOCK_STREAM)
            reached = False
            try:
                prepare(connection)
                self._establish(connection, address)
                reached = True
                return self._greeted(connection)
            except BaseException as error:
                connection.close()
                if not isinstance(error, ChannelError) or isinstance(error, ChannelCancelledError):
                    raise
                if failure is None or reached:  # what was found at one address says more than that others are empty
                    failure = error
        assert failure is not None
        raise failure

    def _establish(self, connection: socket.socket, address: Any) -> None:
        while True:
            self._interrupt.check()
            code = connection.connect_ex(address)
            if code == errno.EINPROGRESS:
                self._wait(connection, select.POLLOUT)
                code = connection.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if not code:
                return
            if code != errno.EAGAIN:  # EAGAIN: a Unix socket whose queue is full
                raise self._failed(code)
            self._wait(None, 0, _RETRY)

    def _wait(self, connection: socket.socket | None, events: int, at_most: float | None = None) -> None:
        left = self._deadline - time.monotonic()
        waits = [(connection.fileno(), events)] if connection is not None else []
        if left > 0 and (self._interrupt.wait(waits, left if at_most is None else min(left, at_most)) or at_most):
            return
        raise ChannelStalledError(
            f"{self._uri} has not answered for {self._timeout:g} s", "look at the other side, and at the network"
        )

    def _failed(self, code: int) -> ChannelError:
        if code in (errno.ECONNREFUSED, errno.ENOENT):
            return ChannelError(
                f"nobody listens at {self._uri}", f"start the destination first, with --incoming {self._uri}"
            )
        return ChannelError(f"cannot connect to {self._uri}: {os.strerror(code)}")

    def _greeted(self, connection: socket.socket) -> Channel:
        if self._uri.scheme == "unix":
            return SocketChannel(connection, f"{self._uri}{check_user(connection, str(self._uri))}")
        if self._tls is None:
            return SocketChannel(connection, str(self._uri))
        try:
            secured = self._tls.context.wrap_socket(
                connection,
                server_hostname=self._tls.hostname or self._uri.host,
                do_handshake_on_connect=False,
                suppress_ragged_eofs=False,
            )
        except (ssl.SSLError, ValueError) as error:  # a name that cannot be one
            raise ChannelError(f"no TLS connection to {self._uri}: {error}") from error
        try:
            self._until_done(secured, secured.do_handshake)
            if self._until_done(secured, lambda: secured.recv(1)) != WELCOME:
                raise ChannelError(
                    f"no TLS connection to {self._uri}: there is something else than sdeivirt",
                    "look at what the other side printed",
                )
        except BaseException:
            secured.close()
            raise
        return TlsChannel(secured, str(self._uri))

    def _until_done(self, secured: ssl.SSLSocket, step: Any) -> Any:
        while True:
            try:
                return step()
            except ssl.SSLWantReadError:
                self._wait(secured, select.POLLIN)
            except ssl.SSLWantWriteError:
                self._wait(secured, select.POLLOUT)
            except ssl.SSLError as error:
                raise ChannelError(
                    f"no TLS connection to {self._uri}: {explain(error)}", "look at what the other side printed"
                ) from error
            except OSError as error:
                if isinstance(error, ConnectionError):
                    raise ChannelError(
                        f"no TLS connection to {self._uri}: {explain(ssl.SSLEOFError())}",
                        "look at what the other side printed",
                    ) from error
                raise cut(str(self._uri), error) from error


def resolve(uri: Uri, kind: type[SdeivirtError], any_port: bool = False) -> list[Address]:
    """The addresses of a socket, in the system's order. Raises UsageError, and `kind` for an unknown host."""
    if uri.scheme == "file":
        raise UsageError(f"{uri} is a file, and nobody connects to it")
    if uri.scheme == "unix":
        return [(socket.AF_UNIX, check_path(uri))]
    if not uri.port and not any_port:
        raise UsageError(f"{uri} names no port", "give the port that the destination printed")
    try:
        found = socket.getaddrinfo(uri.host, uri.port, type=socket.SOCK_STREAM)
    except (socket.gaierror, UnicodeError) as error:
        why = error.strerror if isinstance(error, socket.gaierror) else "that is no name of a host"
        raise kind(f"cannot find the host {uri.host!r}: {why}") from error
    return [(family, address) for family, _, _, _, address in found]


def check_path(uri: Uri) -> str:
    """The path of a Unix socket. Raises UsageError for one that is too long."""
    excess = len(os.fsencode(uri.path)) - _MAX_SOCKET_PATH
    if excess > 0:
        raise UsageError(f"{uri.path} is {excess} bytes too long for the path of a Unix socket", "choose a shorter one")
    return os.fspath(uri.path)


def is_loopback(address: Any) -> bool:
    """Whether a socket's address is one that never leaves this host."""
    ip = ipaddress.ip_address(address[0])
    mapped = ip.ipv4_mapped if isinstance(ip, ipaddress.IPv6Address) else None
    return (mapped or ip).is_loopback


def check_network(uri: Uri, addresses: list[Address], tls: bool, insecure: bool) -> None:
    """Raise UsageError where the guest's memory could be read on its way."""
    if uri.scheme == "unix":
        if tls:
            raise UsageError(f"{uri} is a Unix socket, and TLS is for tcp", "leave out --tls-creds")
        return
    if tls or insecure:
        return
    for _, address in addresses:
        if not is_loopback(address):
            raise UsageError(
                f"{uri} is not on this host alone, and all of the guest's memory would cross the network unprotected",
                "give --tls-creds DIR; or --insecure, if nobody else can read or write on that network",
            )


def check_user(connection: socket.socket, name: str) -> str:
    """A Unix socket's other process, as " (pid N)" for messages. Raises ChannelError if it is another user's."""
    with contextlib.suppress(OSError):
        credentials = peer_credentials(connection)
        if credentials is None:
            return ""
        pid, uid = credentials
        if uid not in (os.geteuid(), 0):
            raise ChannelError(
                f"at the other end of {name} is user {uid}, and you are user {os.geteuid()}",
                "use a socket in a directory of your own",
            )
        return f" (pid {pid})"
    raise ChannelError(f"the system does not tell who is at the other end of {name}")
