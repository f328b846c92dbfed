# SPDX-License-Identifier: Apache-2.0
"""The side that still has a guest's pages: sends them, those that are asked for first.

There is one connection. So that what is asked for need not stand in a queue
behind megabytes that are not, the rest is sent in small pieces, and no more of
it is under way than takes a fraction of a millisecond: the other side tells how much
it has taken, and from the time that takes we see whether a queue grows, here, there or anywhere between
(as TCP Vegas does). When nothing is asked for, the rest goes as fast as the link carries it.

A page is sent once on a connection, however often it is asked for.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from ..errors import MigrationError
from ..machine.base import PAGE_SIZE
from .channel import ChannelCancelledError, ChannelStalledError, Pace
from .frames import damaged
from .lacking import Got, read_got, read_wants, runs
from .messages import Kind
from .pageframes import PageFrames, PageStore
from .pages import WINDOW_PAGES
from .slow import SlowLink
from .wire import Wire

__all__ = ["PageServer", "ServerOptions", "Served"]

_PIECE = 64  # pages that are sent at once, at most
_LEAST, _MOST = 128 << 10, 16 << 20  # bytes of the rest that are under way
_UNHEARD = 32 << 10  # bytes that the other side may have taken without telling, at most: see pager.py
_QUEUE = 0.0001  # seconds that a queue may take, and a quarter of the time that there is without one


@dataclass(frozen=True, slots=True)
class ServerOptions:
    """How pages are sent: `compress` is a zstd level for those that nobody asked for, 0 for none; `pace` limits these.

    Without `rest` only what is asked for is sent. After `stall` seconds in which nothing is taken it is given up.
    """

    compress: int = 0
    pace: Pace | None = None
    link: SlowLink = field(default_factory=SlowLink)
    rest: bool = True
    stall: float = 30.0


@dataclass(slots=True)
class Served:
    """How far it is: pages that are left to be sent, those sent as their bytes and as zeroes, runs asked for."""

    left: int
    plain: int = 0
    zero: int = 0
    asked: int = 0
    got: Got = field(default_factory=lambda: Got(0))


class PageServer:
    """Sends the pages of `store` that the map says are lacking. :meth:`run` does it, on the caller's thread."""

    def __init__(
        self,
        wire: Wire,
        store: PageStore,
        lacking: bytearray,
        options: ServerOptions,
        tell: Callable[[Served], None] = lambda _: None,
    ) -> None:
        """`tell` is called now and then, with the lock held."""
        self._wire = wire
        self._frames = PageFrames(store, options.compress)
        self._options = options
        self._tell = tell
        self._changed = threading.Condition()
        # All that follows is guarded by it.
        self._left = lacking
        self._asked = bytearray(len(lacking))  # 1: asked for, and not sent yet
        self._wanted: deque[tuple[float, int, int]] = deque()  # when due, first page, how many
        self._next = 0  # where the rest goes on
        self._sent = 0  # bytes of payload
        self._under_way: deque[tuple[int, int, float]] = deque()  # of the rest: bytes sent up to it, its own, when
        self._rest_bytes = 0  # of these
        self._limit = 1 << 18  # of them
        self._quickest = 1.0  # seconds from sending a piece to hearing of it
        self._done = False
        self._error: BaseException | None = None
        self.served = Served(lacking.count(1))

    def run(self) -> None:
        """Until the other side has all that it lacks. Raises MigrationError where the connection breaks."""
        channel = self._wire.channel
        channel.stall = self._options.stall
        ear = threading.Thread(target=self._listen, name="page-server", daemon=True)
        ear.start()
        try:
            while (job := self._job()) is not None:
                self._send(*job)
            self._wire.send(Kind.HAVE)
        except BaseException as error:
            channel.abort()
            if isinstance(error, ChannelCancelledError):
                ear.join()  # who listens has ended it, and knows why
                if self._error is not None:
                    raise self._error from error
            raise
        finally:
            ear.join()

    # -- what is sent next

    def _job(self) -> tuple[list[tuple[int, int]], bool] | None:
        """Runs of pages to send now, and whether they were asked for; waits for some. None at the end."""
        with self._changed:
            while True:
                if self._error is not None:
                    raise self._error
                if self._done:
                    return None
                wait: float | None = self._options.link.busy()
                if not wait:
                    wanted = self._take_wanted()
                    if wanted:
                        return wanted, True
                    rest, wait = self._take_rest()
                    if rest:
                        return rest, False
                    if self._wanted:
                        until_due = max(0.0, self._wanted[0][0] - time.monotonic())
                        wait = until_due if wait is None else min(wait, until_due)
                self._changed.wait(wait)

    def _take_wanted(self) -> list[tuple[int, int]]:
        """What was asked for, and is due and not sent yet."""
        found: list[tuple[int, int]] = []
        room, now = _PIECE, time.monotonic()
        while self._wanted and self._wanted[0][0] <= now and room:
            due, first, count = self._wanted.popleft()
            for at, many in runs(self._left, first, first + count):
                if not room:
                    self._wanted.appendleft((due, at, first + count - at))
                    break
                taken = min(many, room)
                found.append((at, taken))
                self._take(at, taken)
                self._next = at + taken
                room -= taken
                if taken < many:
                    self._wanted.appendleft((due, at + taken, first + count - at - taken))
                    break
        return found

    def _take_rest(self) -> tuple[list[tuple[int, int]], float | None]:
        """A piece of what nobody asked for; or nothing, and in how many seconds to ask again (None: when told)."""
        options, left = self._options, self._left
        if not options.rest or not self.served.left:
            return [], None
        if self._rest_bytes and self._rest_bytes + _UNHEARD > self._limit:
            return [], None
        room = max(1, min(_PIECE, (self._limit // 4) // PAGE_SIZE))
        if options.pace is not None:
            allowed, delay = options.pace.allow(room * PAGE_SIZE)
            if not allowed:
                return [], delay
            room = min(room, max(1, allowed // PAGE_SIZE))
        first = left.find(1, self._next)
        if first < 0:
            first = left.find(1)
        found: list[tuple[int, int]] = []
        for at, count in runs(left, first, min(first + WINDOW_PAGES, len(left))):
            count = min(count, room)
            found.append((at, count))
            room -= count
            if not room:
                break
        for run in found:
            self._take(*run)
        self._next = found[-1][0] + found[-1][1]
        return found, None

    def _take(self, first: int, count: int) -> None:
        self._left[first : first + count] = bytes(count)
        self.served.left -= count

    # -- sending

    def _send(self, found: list[tuple[int, int]], asked: bool) -> None:
        make = self._frames
        frames = make.asked(found) if asked else [make.rest(first, count) for first, count in found]
        buffers = list[bytes | memoryview]()
        size = plain = zero = 0
        for kind, parts, pages, zeroes in frames:
            plain += pages - zeroes
            zero += zeroes
            size += sum(map(len, parts))
            buffers += self._wire.writer.frame(kind, *parts)
        now = time.monotonic()
        with self._changed:
            if asked:
                self._sent += size
            else:
                self._rest_bytes += size
                # In parts no larger than what may be unheard of. Were it one, and the limit had become less than it,
                # then both sides would wait: the other one to take more before it tells, and we to be told.
                for at in range(0, size, _UNHEARD):
                    part = min(_UNHEARD, size - at)
                    self._sent += part
                    self._under_way.append((self._sent, part, now))
            self.served.plain += plain
            self.served.zero += zero
        self._options.link.sent(size)
        self._wire.send_frames(buffers)
        if not asked and self._options.pace is not None:
            self._options.pace.spend(size)
        self._tell(self.served)

    # -- what the other side says

    def _listen(self) -> None:
        try:
            while not self._done:
                before = self._wire.channel.received
                try:
                    frame = self._wire.next()
                except ChannelStalledError:
                    # It need not say anything as long as it has got all that was sent.
                    if self._wire.channel.received != before or self._overdue():
                        raise
                    continue
                if frame.kind == Kind.WANT:
                    self._want(read_wants(frame, len(self._left)))
                elif frame.kind == Kind.GOT:
                    self._hear(read_got(frame))
                elif frame.kind == Kind.HAVE:
                    with self._changed:
                        self._done = True
                        self._changed.notify()
                else:
                    raise damaged(frame, "it has no place among pages")
        except BaseException as error:
            with self._changed:
                self._error = error
                self._changed.notify()
            self._wire.channel.abort()

    def _overdue(self) -> bool:
        with self._changed:
            return bool(self._under_way) and time.monotonic() - self._under_way[0][2] > self._options.stall

    def _want(self, wanted: list[tuple[int, int]]) -> None:
        due = self._options.link.due()
        with self._changed:
            self.served.asked += len(wanted)
            for first, count in wanted:
                asked = self._asked
                for at, many in runs(self._left, first, first + count):
                    # Of what is asked for again nothing is kept: the queue is never longer than RAM.
                    if asked.count(1, at, at + many) < many:
                        asked[at : at + many] = b"\1" * many
                        self._wanted.append((due, at, many))
            self._changed.notify()

    def _hear(self, got: Got) -> None:
        """It has taken so much: more of the rest may follow, and so much the more if there was no queue."""
        now = time.monotonic()
        with self._changed:
            if not self.served.got.taken <= got.taken <= self._sent:
                raise MigrationError(f"the other side has taken {got.taken} bytes, and {self._sent} were sent")
            self.served.got = got
            while self._under_way and self._under_way[0][0] <= got.taken:
                _, size, when = self._under_way.popleft()
                self._rest_bytes -= size
                took = now - when
                self._quickest = min(self._quickest, took)
                step = size if took < self._quickest * 1.25 + _QUEUE else -size
                self._limit = max(_LEAST, min(_MOST, self._limit + step))
            self._changed.notify()
