# SPDX-License-Identifier: Apache-2.0
"""The guest's serial port: its output on a thread of its own, and what it says of a panic.

QEMU sends every character by itself. The thread sleeps a moment after each
read, so that a chatty guest does not wake us for every letter; a reader of our
output that is slow makes the guest wait, as a serial line does, and not the
SDEI service.
"""

from __future__ import annotations

import asyncio
import re
import socket
import threading
import time
from collections.abc import Callable

__all__ = ["Console", "PanicWatch"]

_CHUNK = 1 << 16
_PAUSE = 0.002
_JOIN_SECONDS = 5.0


class PanicWatch:
    """Reads along, for the two messages that a panicking Linux prints: first and last.

    With the last one the kernel stops for ever: no reboot was asked for and
    no crash kernel is loaded (kernel/panic.c). Only the kernel's own messages
    count, with their time at the start of a line: guests print all sorts of things.
    """

    _LINE = re.compile(rb"\n\[ *\d+\.\d+\](?:\[ *[TC]\d+\])? (Kernel panic - not syncing|---\[ end Kernel panic)")
    _LONGEST = 120

    def __init__(self) -> None:
        self.panicked = False
        self.over = False
        self._tail = b"\n"  # the line that is being printed, with the end of the one before it

    def feed(self, data: bytes) -> None:
        """Look at more output."""
        text = self._tail + data
        for match in self._LINE.finditer(text):
            self.panicked = True
            self.over = self.over or match.group(1).startswith(b"---")
        self._tail = text[text.rfind(b"\n") :][: self._LONGEST]


class Console:
    """Hands over what the guest prints until QEMU closes the line, and calls `over` after the last words of a panic."""

    def __init__(
        self, connection: socket.socket, sink: Callable[[bytes], None], over: Callable[[], None],
        crash: Callable[[BaseException], None],
    ) -> None:  # fmt: skip
        self._connection = connection
        self._sink = sink
        self._over = over
        self._crash = crash
        self.panic = PanicWatch()
        self._lock = threading.Lock()
        self._held = False  # no input is taken
        self._first = b""  # goes before all other
        self._thread = threading.Thread(target=self._run, name="console", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def _run(self) -> None:
        try:
            while data := self._receive():
                self.panic.feed(data)
                self._sink(data)
                if self.panic.over:
                    self.panic.over = False
                    self._over()
                time.sleep(_PAUSE)
        except BaseException as error:  # the sink's: a console that is gone ends the run
            self._crash(error)

    def _receive(self) -> bytes:
        try:
            return self._connection.recv(_CHUNK)
        except OSError:
            return b""

    def type_in(self, data: bytes) -> int:
        """Input for the guest; how much of it there was room for."""
        with self._lock:
            return 0 if self._held or self._first else self._send(data)

    def hold(self) -> None:
        """Take no input, as if there were no room: the guest is on its way from or to somewhere else.

        On the event loop, as the next two.
        """
        with self._lock:
            self._held = True
        self.give_up()

    def give_up(self) -> None:
        """Send no more of what is waiting."""
        if self._first:
            asyncio.get_running_loop().remove_writer(self._connection)

    def release(self, first: bytes = b"") -> None:
        """Take input again, after some that has waited somewhere else, even if that finds no room at once."""
        with self._lock:
            self._held = False
            self._first += first
        if self._first:
            asyncio.get_running_loop().add_writer(self._connection, self._send_first)
            self._send_first()

    def _send_first(self) -> None:
        with self._lock:
            self._first = self._first[self._send(self._first) :]
        if not self._first:
            asyncio.get_running_loop().remove_writer(self._connection)

    @property
    def waiting(self) -> bytes:
        """What :meth:`release` was given and has found no room yet."""
        return self._first

    def _send(self, data: bytes) -> int:
        try:
            return self._connection.send(data, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return 0
        except OSError:
            return len(data)  # nobody will ever read it

    def finish(self) -> None:
        """QEMU has closed the line: wait for the last of the output."""
        if self._thread.ident is not None and self._thread is not threading.current_thread():
            self._thread.join(_JOIN_SECONDS)
