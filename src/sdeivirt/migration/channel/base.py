# SPDX-License-Identifier: Apache-2.0
"""Channels: one side sends buffers, the other fills some, and any thread can end both.

The calls block, since RAM is moved by a thread of its own that has nothing
else to do. They return early in two cases: another thread calls abort(), or
nothing moves for `stall` seconds.

    MigrationError
     +-- ChannelError               it could not be opened, or has failed
          +-- ChannelCutError       the other side is gone
          +-- ChannelStalledError   the other side is there, and takes or sends nothing
          +-- ChannelCancelledError somebody here has called abort()
"""

from __future__ import annotations

import os
import select
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from types import TracebackType
from typing import Self

from ...errors import MigrationError
from .pace import Pace

__all__ = [
    "Buffer",
    "Channel",
    "ChannelCancelledError",
    "ChannelCutError",
    "ChannelError",
    "ChannelStalledError",
    "Interrupt",
]

Buffer = bytes | bytearray | memoryview

DEFAULT_STALL = 30.0
_LONGEST_WAIT = 86_400.0  # poll() counts milliseconds in an int


class ChannelError(MigrationError):
    """A channel could not be opened, or has failed."""


class ChannelCutError(ChannelError):
    """The other side is gone."""


class ChannelStalledError(ChannelError):
    """The other side takes or sends nothing."""


class ChannelCancelledError(ChannelError):
    """Somebody on this side has ended it."""


class Interrupt:
    """Ends what blocks in a thread, from any other, once and for all: a flag that poll() sees."""

    def __init__(self, what: str = "the transfer") -> None:
        """`what` is ended, for the message."""
        self._what = what
        self._lock = threading.RLock()  # a signal handler may come in between
        self._ear, self._mouth = os.pipe()  # poll() reports a pipe whose other end is closed
        self._set = False
        self._closed = False

    def set(self) -> None:
        """Let every wait, now and later, raise ChannelCancelledError. Can be called twice, and after :meth:`close`."""
        with self._lock:
            if not self._set:
                self._set = True
                os.close(self._mouth)

    @property
    def is_set(self) -> bool:
        return self._set

    @property
    def fileno(self) -> int:
        """For a poll() of one's own: it reports POLLHUP once this has been set."""
        return self._ear

    def check(self) -> None:
        """Raise ChannelCancelledError if it has been set."""
        if self._set:
            raise ChannelCancelledError(f"{self._what} was cancelled")

    def wait(self, waits: Iterable[tuple[int, int]] = (), timeout: float | None = None) -> list[int]:
        """Wait until one of the descriptors has one of its events (select.POLLIN, select.POLLOUT), or has failed.

        Gives those that have, none after `timeout` seconds. Raises ChannelCancelledError.
        """
        self.check()
        poll = select.poll()
        poll.register(self._ear, 0)
        for fd, events in waits:
            poll.register(fd, events)
        ready = poll.poll(None if timeout is None else max(0.0, min(timeout, _LONGEST_WAIT)) * 1000)
        self.check()
        return [fd for fd, _ in ready]

    def close(self) -> None:
        """Give the descriptors back. Nobody may wait any more."""
        self.set()
        with self._lock:
            if not self._closed:
                self._closed = True
                os.close(self._ear)


def _bytewise(buffer: Buffer) -> memoryview:
    view = memoryview(buffer)
    return view if view.format == "B" and view.ndim == 1 else view.cast("B")


class _Rest:
    """What of some buffers is still to be sent."""

    # More in one call is refused: sendmsg(2), writev(2).
    _IOV_MAX = min(1024, os.sysconf("SC_IOV_MAX")) if "SC_IOV_MAX" in os.sysconf_names else 16

    def __init__(self, buffers: Sequence[Buffer]) -> None:
        self._views = [_bytewise(buffer) for buffer in buffers if buffer]
        self._at = 0
        self.left = sum(map(len, self._views))

    def and_then(self, buffers: Sequence[Buffer]) -> _Rest:
        """That, and others behind it."""
        return _Rest([*self._views[self._at :], *buffers])

    def first(self, limit: int) -> list[memoryview]:
        """The first of them, at most so many bytes."""
        views = self._views[self._at : self._at + self._IOV_MAX]
        if limit < self.left:
            for index, view in enumerate(views):
                if limit <= len(view):
                    views[index] = view[:limit]
                    del views[index + 1 :]
                    break
                limit -= len(view)
        return views

    def advance(self, count: int) -> None:
        """So many bytes are gone."""
        self.left -= count
        while self.left and count:
            view = self._views[self._at]
            if count < len(view):
                self._views[self._at] = view[count:]
                return
            count -= len(view)
            self._at += 1


class Channel(ABC):
    """One end of a connection, or a file.

    `peer` says who is at the other end. `sent` and `received` count the bytes
    that crossed. `stall` is how many seconds send() and recv_into() wait for
    anything to move, None for ever; `pace` limits send(). Both may be changed
    at any time, by any thread; a wait that is under way keeps its limit.
    `hearing` is an interrupt that ends recv_into() and leaves send() alone: who gives up can still say so.

    One thread may send while another receives. Two that send do not mix their
    buffers: each send() goes as a whole. begin() is for who must not be held up.
    """

    # How much a single system call may be given, so that abort() is seen in good time.
    _most = 1 << 62

    def __init__(self, peer: str) -> None:
        self.peer = peer
        self.sent = 0
        self.received = 0
        self.stall: float | None = DEFAULT_STALL
        self.pace: Pace | None = None
        self.hearing: Interrupt | None = None
        self._interrupt = Interrupt()
        self._sending = threading.Lock()
        self._receiving = threading.Lock()
        self._rest: _Rest | None = None  # what begin() has left
        self._ended = ""  # why nothing more can be sent
        self._finished = False
        self._closed = False

    def send(self, buffers: Sequence[Buffer]) -> None:
        """Send all of the buffers, in order.

        Raises ChannelError. After that, or after an exception of a signal
        handler, nothing more can be sent: the other side would take it for the
        rest of what it got a part of.
        """
        with self._sending:
            self._send(buffers, wait=True)

    def begin(self, buffers: Sequence[Buffer]) -> bool:
        """Send what can be sent without waiting; whether that was all. The rest goes before what is sent next.

        The buffers must not change until then. It waits for nothing but for another thread that sends.
        Errors as of :meth:`send`.
        """
        with self._sending:
            self._send(buffers, wait=False)
            return self._rest is None

    def _send(self, buffers: Sequence[Buffer], wait: bool) -> None:
        self._interrupt.check()
        if self._ended:
            raise ChannelCutError(f"nothing more can be sent to {self.peer}: {self._ended}")
        rest = _Rest(buffers) if self._rest is None else self._rest.and_then(buffers)
        try:
            while rest.left:
                allowed = min(self._allowance(rest.left, wait), self._most)
                count = self._write(rest.first(allowed), wait) if allowed else 0
                if not count:
                    break
                rest.advance(count)
                self.sent += count
                if self.pace is not None:
                    self.pace.spend(count)
                self._interrupt.check()
        except BaseException as error:
            self._ended = getattr(error, "message", "") or "it was interrupted"
            raise
        self._rest = rest if rest.left else None

    def recv_into(self, view: memoryview | bytearray) -> int:
        """Wait for bytes, put what has come into the view, and give their number: 0 when the other side has ended.

        `view` has room for at least one byte. Raises ChannelError.
        """
        with self._receiving:
            self._interrupt.check()
            if self.hearing is not None:
                self.hearing.check()
            if self._finished:
                return 0
            count = self._read(memoryview(view))
            self.received += count
            return count

    def finish(self) -> bool:
        """Send nothing more, and wait, for at most `stall` seconds, until the other side has ended too; whether it has.

        What it still sends is thrown away, and recv_into() gives 0. A connection that is closed while
        bytes come in is reset, and the other side could lose what it was told last.
        Raises ChannelError where the end could not be sent.
        """
        with self._sending:
            self._send((), wait=True)
            self._ended = "it was told that this is the end"
            self._end()
        with self._receiving:
            self._finished = True
            return self._drain()

    def abort(self) -> None:
        """Let what blocks in this channel return with ChannelCancelledError, now and from now on. From any thread."""
        self._interrupt.set()

    def close(self) -> None:
        """Close it; what blocks in it ends as with :meth:`abort`. From any thread; can be called twice."""
        aborted = self._interrupt.is_set
        self._interrupt.set()
        with self._sending, self._receiving:
            if not self._closed:
                self._closed = True
                self._close(orderly=not aborted and not self._ended)
                self._interrupt.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            self.abort()
        self.close()

    def _allowance(self, wanted: int, wait: bool) -> int:
        """How many bytes may go now; waits until some may, or gives 0."""
        while (pace := self.pace) is not None:
            allowed, delay = pace.allow(wanted)
            if allowed or not wait:
                return allowed
            self._interrupt.wait(timeout=delay)
        return wanted

    @property
    @abstractmethod
    def fileno(self) -> int:
        """The descriptor."""

    @abstractmethod
    def _write(self, views: list[memoryview], wait: bool) -> int:
        """Write some of the bytes. Wait until some can be written, or, if it may not `wait`, give 0.

        Raises ChannelError.
        """

    @abstractmethod
    def _read(self, view: memoryview) -> int:
        """Read some bytes, wait until there are some; 0 at the end. Raises ChannelError."""

    @abstractmethod
    def _end(self) -> None:
        """Tell the other side that this is the end. Raises ChannelError."""

    @abstractmethod
    def _drain(self) -> bool:
        """Throw away what comes, until the other side has ended or `stall` is over; whether it has ended, in order.

        Raises ChannelCancelledError.
        """

    @abstractmethod
    def _close(self, orderly: bool) -> None:
        """Give everything back, with a farewell if `orderly`. Raises nothing."""
