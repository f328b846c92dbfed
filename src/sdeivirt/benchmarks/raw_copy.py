# SPDX-License-Identifier: Apache-2.0
"""What a link carries at most: memory through a bare socket into another process, and nothing else done to it.

The socket is of the same kind and has the same options as a migration's, the
pieces are as big, and the receiver's memory is as fresh and of the same kind:
private as unicorn's, or shared as qemu's, which takes longer to get.

    python -m sdeivirt.benchmarks.raw_copy unix:PATH SIZE [shared]      is the receiver
"""

from __future__ import annotations

import contextlib
import mmap
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from ..migration.channel import Uri, parse_uri
from ..migration.channel.sockets import prepare
from ..migration.pages import WINDOW_SIZE

__all__ = ["SCHEMES", "copy_seconds"]

SCHEMES = ("unix", "tcp")
_PATIENCE = 60.0


def copy_seconds(ram: memoryview, scheme: str, *, shared: bool = False) -> float:
    """Seconds until a second process has all of `ram`, over a Unix socket or loopback TCP."""
    with tempfile.TemporaryDirectory(prefix="sdeivirt-") as directory, contextlib.ExitStack() as stack:
        listener = stack.enter_context(_listen(scheme, Path(directory)))
        listener.settimeout(_PATIENCE)
        listener.listen()
        command = [sys.executable, "-m", "sdeivirt.benchmarks.raw_copy", _name_of(listener), str(len(ram))]
        if shared:
            command.append("shared")
        receiver = stack.enter_context(subprocess.Popen(command))
        stack.callback(receiver.kill)
        connection, _ = listener.accept()
        stack.enter_context(connection)
        _make_ready(connection)
        _expect(connection)
        begin = time.perf_counter()
        for at in range(0, len(ram), WINDOW_SIZE):
            connection.sendall(ram[at : at + WINDOW_SIZE])
        _expect(connection)
        return time.perf_counter() - begin


def _listen(scheme: str, directory: Path) -> socket.socket:
    if scheme == "unix":
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(directory / "copy"))
    else:
        listener = socket.socket()
        listener.bind(("127.0.0.1", 0))
    return listener


def _name_of(listener: socket.socket) -> str:
    where = listener.getsockname()
    return f"unix:{where}" if listener.family == socket.AF_UNIX else f"tcp:{where[0]}:{where[1]}"


def _make_ready(connection: socket.socket) -> None:
    prepare(connection)
    connection.setblocking(True)


def _expect(connection: socket.socket) -> None:
    if not connection.recv(1):
        raise RuntimeError("the receiver of the raw copy has ended")


def _receive(uri: Uri, size: int, shared: bool) -> None:
    kind = mmap.MAP_SHARED if shared else mmap.MAP_PRIVATE
    connection = socket.socket(socket.AF_UNIX if uri.scheme == "unix" else socket.AF_INET)
    with connection, mmap.mmap(-1, size, kind | mmap.MAP_ANONYMOUS) as memory, memoryview(memory) as ram:
        connection.connect(str(uri.path) if uri.scheme == "unix" else (uri.host, uri.port))
        _make_ready(connection)
        connection.sendall(b"1")
        at = 0
        while at < size:
            count = connection.recv_into(ram[at : at + WINDOW_SIZE])
            if not count:
                return
            at += count
        connection.sendall(b"2")


if __name__ == "__main__":
    _receive(parse_uri(sys.argv[1]), int(sys.argv[2]), "shared" in sys.argv[3:])
