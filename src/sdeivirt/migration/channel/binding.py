# SPDX-License-Identifier: Apache-2.0
"""Sockets that listen, and the files of Unix sockets.

Such a file is private before anybody can connect to it, replaces nothing but a
socket of ours at which nobody listens any more, and goes with its listener.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import stat
import time
from collections.abc import Iterator
from pathlib import Path

from ...errors import EnvironmentUnavailableError
from .connect import Address
from .uri import Uri

__all__ = ["bound", "remove"]

_BACKLOG = 128
_LOCK_PATIENCE = 5.0
_RETRY = 0.01


def bound(uri: Uri, addresses: list[Address]) -> socket.socket:
    """A socket that listens at the first of the addresses that can be had."""
    failure: OSError | None = None
    for family, address in addresses:
        listener = socket.socket(family, socket.SOCK_STREAM)
        try:
            listener.setblocking(False)
            if uri.scheme == "unix":
                _bind_file(listener, uri.path)
            else:
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                listener.bind(address)
                listener.listen(_BACKLOG)
            return listener
        except OSError as error:
            listener.close()
            failure = failure or error
        except BaseException:
            listener.close()
            raise
    assert failure is not None
    raise _cannot_listen(uri, failure) from failure


def _cannot_listen(uri: Uri, error: OSError) -> EnvironmentUnavailableError:
    hint = {
        errno.EADDRINUSE: "choose another port, or 0 for any that is free",
        errno.EADDRNOTAVAIL: "this host has no such address",
        errno.EACCES: "choose a port from 1024 on" if uri.scheme == "tcp" else "choose a directory of your own",
        errno.ENOENT: "make the directory first",
    }.get(error.errno or 0, "")
    return EnvironmentUnavailableError(f"cannot listen at {uri}: {error.strerror or error}", hint)


def _bind_file(listener: socket.socket, path: Path) -> None:
    """Bind and listen, so that nobody else could ever connect. Raises OSError, EnvironmentUnavailableError."""
    with _directory_lock(path.parent):
        with contextlib.suppress(OSError):
            os.fchmod(listener.fileno(), 0o600)  # on Linux the file gets this mode
        try:
            listener.bind(os.fspath(path))
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            _remove_dead(path)
            listener.bind(os.fspath(path))
        if stat.S_IMODE(path.lstat().st_mode) & 0o077:
            path.chmod(0o600)  # in time: nobody can connect before listen()
        listener.listen(_BACKLOG)


@contextlib.contextmanager
def _directory_lock(directory: Path) -> Iterator[None]:
    """Of two that find the same dead socket, one could remove what the other has just bound; so one at a time."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        deadline = time.monotonic() + _LOCK_PATIENCE
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise EnvironmentUnavailableError(
                        f"somebody has locked the directory {directory}", "use a directory of your own"
                    ) from None
                time.sleep(_RETRY)
            except OSError:  # this file system has no such locks
                break
        yield
    finally:
        os.close(fd)


def _remove_dead(path: Path) -> None:
    """Remove a socket of ours at which nobody listens any more. Raises EnvironmentUnavailableError for all else."""
    status = path.lstat()
    if not stat.S_ISSOCK(status.st_mode):
        raise EnvironmentUnavailableError(f"{path} exists, and is no socket", "choose another path")
    if status.st_uid != os.geteuid():
        raise EnvironmentUnavailableError(
            f"{path} is a socket of user {status.st_uid}", "choose a path in a directory of your own"
        )
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        if probe.connect_ex(os.fspath(path)) != errno.ECONNREFUSED:
            raise EnvironmentUnavailableError(f"somebody listens at {path} already", "choose another path")
    path.unlink()


def remove(path: Path, ours: os.stat_result) -> None:
    """Remove our socket's file, unless somebody has put another in its place."""
    with contextlib.suppress(OSError):
        if os.path.samestat(path.lstat(), ours):
            path.unlink()
