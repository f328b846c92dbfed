# SPDX-License-Identifier: Apache-2.0
"""For tests of migration channels: two connected ends, and calls that block in a thread of their own."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from random import Random
from typing import TypeVar

from sdeivirt.migration.channel import Channel, Listener, Pace, SocketChannel, TlsCredentials, connect, parse_uri
from sdeivirt.migration.frames import MAGIC

from .control_support import LIMIT

__all__ = [
    "background",
    "begins",
    "child",
    "finish_and_close",
    "joined",
    "pair",
    "read_all",
    "read_exactly",
    "socket_pair",
]

T = TypeVar("T")


def background(function: Callable[[], T]) -> Future[T]:
    """The result of a call that another thread makes."""
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(function())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return future


@contextlib.contextmanager
def joined(
    uri: str, server: TlsCredentials | None = None, client: TlsCredentials | None = None
) -> Iterator[tuple[Channel, Channel]]:
    """Two ends that have found each other at an address: who has connected, who has accepted."""
    with Listener(parse_uri(uri), server) as listener:
        accepted = background(lambda: listener.accept(LIMIT))
        near = connect(listener.uri, client, timeout=LIMIT)
        near.send([MAGIC])
        far = accepted.result(LIMIT)
        assert far is not None
        assert read_exactly(far, len(MAGIC)) == MAGIC
        near.stall = far.stall = LIMIT
        with near, far:
            yield near, far


def socket_pair() -> tuple[SocketChannel, socket.socket]:
    """A channel, and a plain blocking socket at its other end."""
    near, far = socket.socketpair()
    far.settimeout(LIMIT)
    return SocketChannel(near, "the test"), far


@contextlib.contextmanager
def pair() -> Iterator[tuple[SocketChannel, SocketChannel]]:
    """Two ends without an address."""
    near, far = socket.socketpair()
    with SocketChannel(near, "the far end") as one, SocketChannel(far, "the near end") as other:
        one.stall = other.stall = LIMIT
        yield one, other


def begins(near: Channel, far: Channel) -> None:
    """Check that begin() waits for nobody to read, and that what is begun and sent arrives as it was, in order."""
    near.stall = None
    before = near.sent
    sent = bytearray()
    random = Random(1)
    while True:
        buffers = [random.randbytes(random.randrange(1, 100_000)) for _ in range(random.randrange(1, 4))]
        sent += b"".join(buffers)
        if not near.begin(buffers):
            break
    for size in (1, 40, 200_000):
        more = random.randbytes(size)
        sent += more
        assert not near.begin([more])
    rest = background(lambda: near.send([b"end"]))
    assert read_exactly(far, len(sent) + 3) == sent + b"end"
    rest.result(LIMIT)
    assert near.sent == before + len(sent) + 3
    assert near.begin([b"more"])
    assert read_exactly(far, 4) == b"more"
    near.pace = Pace(1)
    assert not near.begin([b"still more"])
    near.pace = None
    finished = background(near.finish)  # with what was begun
    assert read_all(far) == b"still more"
    far.close()
    assert finished.result(LIMIT)


def finish_and_close(channel: Channel) -> None:
    """The orderly end."""
    channel.finish()
    channel.close()


def read_exactly(channel: Channel, size: int) -> bytes:
    """So many bytes."""
    data = bytearray(size)
    view = memoryview(data)
    while view:
        count = channel.recv_into(view)
        assert count, f"the end after {size - len(view)} of {size} bytes"
        view = view[count:]
    return bytes(data)


def read_all(channel: Channel) -> bytes:
    """Everything up to the end."""
    data, room = bytearray(), bytearray(1 << 16)
    while count := channel.recv_into(room):
        data += room[:count]
    return bytes(data)


@contextlib.contextmanager
def child(program: str, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    """A Python program in a process of its own, with pipes to its standard input and output; killed in the end."""
    process = subprocess.Popen(
        [sys.executable, "-c", program, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()
