# SPDX-License-Identifier: Apache-2.0
"""QEMU's qtest protocol, as far as it is of use: writes to device registers from outside.

Lines go out, one reply line comes back for each, in order. Nobody waits for
the reply to a write; what was refused is logged. QEMU docs/devel/testing/qtest.rst.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import threading
from collections import deque

__all__ = ["Qtest"]

_log = logging.getLogger(__name__)


class Qtest:
    """The client's end. `send` may be called from any thread, everything else on the event loop."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._lock = threading.Lock()
        self._waiting: deque[asyncio.Future[int] | list[bytes] | None] = deque()
        self._partial = b""

    def send(self, lines: bytes) -> None:
        """Send whole command lines, each with its newline. What cannot be sent is lost with the QEMU that is gone."""
        with self._lock:
            self._waiting.extend([None] * lines.count(b"\n"))
            self._send(lines)

    def ask(self, lines: bytes) -> list[int]:
        """Have QEMU do all that was sent before and whole command lines, and wait for it; what the lines have read.

        On the event loop's thread, which stands still meanwhile: for what must not be seen half done.
        """
        replies: list[bytes] = []
        count = lines.count(b"\n")
        with self._lock:
            self._waiting.extend([replies] * count)
            self._send(lines)
        while len(replies) < count and self._receive(0):
            pass
        return [int(words[1], 16) for line in replies if len(words := line.split()) > 1 and words[0] == b"OK"]

    async def read32(self, address: int) -> int:
        """Read a register. Raises OSError where QEMU refuses."""
        reply: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        with self._lock:
            self._waiting.append(reply)
            self._send(b"readl %#x\n" % address)
        return await reply

    def _send(self, lines: bytes) -> None:
        try:
            self._connection.sendall(lines)
        except OSError as error:
            _log.debug("qtest: %s", error)

    def readable(self) -> bool:
        """Take the replies that have come; False where the other end has gone."""
        return self._receive(socket.MSG_DONTWAIT)

    def _receive(self, flags: int) -> bool:
        try:
            data = self._connection.recv(1 << 16, flags)
        except BlockingIOError:
            return True
        except OSError:
            data = b""
        *lines, self._partial = (self._partial + data).split(b"\n")
        for line in lines:
            self._reply(line)
        return bool(data)

    def _reply(self, line: bytes) -> None:
        if line.startswith(b"IRQ") or not self._waiting:
            return
        waiter = self._waiting.popleft()
        good = line.startswith(b"OK")
        if waiter is None or isinstance(waiter, list):
            if not good:
                _log.warning("QEMU refused a device access: %s", line.decode("ascii", "replace"))
            if waiter is not None:
                waiter.append(line)
        elif not waiter.done():
            if good:
                waiter.set_result(int(line.split()[1], 16))
            else:
                waiter.set_exception(OSError(line.decode("ascii", "replace")))
