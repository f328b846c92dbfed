# SPDX-License-Identifier: Apache-2.0
"""A bad network between two processes: forwards the streams of a migration frame by frame, and does one thing wrong.

    with FrameProxy(destination, "unix:/tmp/x/proxy", fault) as proxy:
        ...                         # the source connects to proxy.uri instead of the destination
    proxy.seen                      # what went through, in order

All it knows of a stream is where frames begin and end (docs/migration-stream.md), and for that
it uses none of the code that is tested. A clean run says which steps there are; then a
fault is put into each of them.

Further connections are forwarded as well, since a source that has lost the destination connects
again. The fault comes once. Nothing here waits for time to pass: what is held back is so because
of its place in the stream.
"""

from __future__ import annotations

import contextlib
import enum
import os
import select
import socket
import stat
import struct
import threading
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from .control_support import LIMIT

__all__ = ["BACK", "FORTH", "Act", "Direction", "Fault", "FrameProxy", "Part", "Seen", "steps"]

_STREAM_HEADER = 16
_MAGIC = b"SDEIVIRT"
_FRAME = struct.Struct("<4sHHIIQQ")  # kind, version, flags, instance, length, sequence, checksum
_LONGEST = 128 << 20


class Direction(enum.Enum):
    FORTH = "->"  # from the source, which has connected
    BACK = "<-"


FORTH, BACK = Direction.FORTH, Direction.BACK


class Part(enum.Enum):
    """How much of the frame gets through before it happens."""

    BEFORE = "before"
    HEADER = "in the header of"  # half of it
    PAYLOAD = "in the payload of"  # the header, and half of the payload
    AFTER = "after"


class Act(enum.Enum):
    """What happens. The part of a frame that gets through counts for those that end or hold up the connection."""

    CUT = "cut"  # the connection is reset, for both sides
    HALF_CLOSE = "half-close"  # the receiver sees the end, and answers; the sender's words vanish
    STALL = "stall"  # nothing is forwarded any more, either way, and nothing is closed
    KILL_SOURCE = "kill the source"  # then the connection is cut
    KILL_DESTINATION = "kill the destination"
    FLIP_HEADER = "a wrong bit in the header"
    FLIP_PAYLOAD = "a wrong bit in the payload"
    DROP = "drop"
    DUPLICATE = "duplicate"
    END_SOURCE = "ask the source to end before"  # and everything goes on, the frame too
    END_DESTINATION = "ask the destination to end before"


_SPOIL = frozenset({Act.FLIP_HEADER, Act.FLIP_PAYLOAD, Act.DROP, Act.DUPLICATE})
_ASK = frozenset({Act.END_SOURCE, Act.END_DESTINATION})
_WHOLE = _SPOIL | _ASK  # those of which no part can be told


@dataclass(frozen=True)
class Fault:
    """What goes wrong at the `n`-th frame (from 0) of a kind in a direction, all connections counted together.

    `bit` is the one that is wrong, modulo how many there are. `unreachable` refuses all connections after it.
    """

    act: Act
    direction: Direction
    kind: str
    n: int = 0
    part: Part = Part.BEFORE
    bit: int = 0
    unreachable: bool = False

    def __str__(self) -> str:
        act = self.act.value if self.act in _WHOLE else f"{self.act.value} {self.part.value}"
        return f"{act} {self.direction.value} {self.kind.strip()} {self.n}"


@dataclass(frozen=True)
class Seen:
    """A frame that has come in whole: the `n`-th of its kind in its direction, of `length` bytes without its header."""

    direction: Direction
    kind: str
    n: int
    connection: int
    length: int

    def __str__(self) -> str:
        return f"{self.direction.value} {self.kind.strip()} {self.n}"


def steps(seen: Iterable[Seen]) -> list[Seen]:
    """The first and the last frame of each kind in each direction: the places to put faults into."""
    first: dict[tuple[Direction, str], Seen] = {}
    last: dict[tuple[Direction, str], Seen] = {}
    for frame in seen:
        first.setdefault((frame.direction, frame.kind), frame)
        last[frame.direction, frame.kind] = frame
    return [frame for key in first for frame in dict.fromkeys((first[key], last[key]))]


class FrameProxy:
    """Listens at `listen` and forwards to `target`: unix:PATH, or tcp:HOST:PORT (port 0: any). A context manager.

    `kill` gets "source" or "destination", and returns when that process is dead. `ask` gets the same, and
    has that side told to end; all that comes waits until it returns.
    """

    def __init__(
        self,
        target: str,
        listen: str,
        fault: Fault | None = None,
        kill: Callable[[str], None] | None = None,
        ask: Callable[[str], None] | None = None,
    ) -> None:
        self.fault = fault
        self.happened = threading.Event()  # the fault has been carried out
        self.seen: list[Seen] = []
        self.error: BaseException | None = None  # a defect: what went through was no stream
        self.connections = 0
        self._target = target
        self._kill = kill
        self._ask = ask
        self._changed = threading.Condition()
        self._counts: Counter[tuple[Direction, str]] = Counter()
        self._links: list[_Link] = []
        self._closing = False
        self._socket, self.uri = _listener(listen)
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    # -- for tests

    def wait_for(self, condition: Callable[[], object], what: str = "it never happened") -> None:
        """Until a condition holds that something which goes through, or the fault, brings about."""
        with self._changed:
            assert self._changed.wait_for(lambda: condition() or self.error, LIMIT), f"{what}: {self.text()}"
        if self.error is not None:
            raise self.error

    def wait_fault(self) -> None:
        """Until the fault has happened."""
        self.wait_for(self.happened.is_set, f"no {self.fault}")

    def text(self) -> str:
        """What went through, for people: repeated kinds once, with how many there were."""
        shown: list[str] = []
        for frame in list(self.seen):
            word = f"{frame.direction.value}{frame.kind.strip()}"
            if shown and shown[-1].split("*")[0] == word:
                count = int(shown[-1].partition("*")[2] or 1) + 1
                shown[-1] = f"{word}*{count}"
            else:
                shown.append(word)
        return " ".join(shown)

    def close(self) -> None:
        """End everything. Can be called twice."""
        with self._changed:
            if self._closing:
                return
            self._closing = True
        # The listener's own address: closing alone does not wake accept().
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._thread.join(LIMIT)
        self._socket.close()
        if self.uri.startswith("unix:"):
            Path(self.uri[5:]).unlink(missing_ok=True)
        for link in self._links:
            link.end()
            link.join()

    def __enter__(self) -> FrameProxy:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
        if error is None and self.error is not None:
            raise self.error

    # -- connections

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._socket.accept()
            except OSError:
                return
            fault = self.fault
            if self._closing or (fault is not None and fault.unreachable and self.happened.is_set()):
                near.close()
                continue
            try:
                far = _connected(self._target)
            except OSError:  # the destination has gone: so the source hears
                near.close()
                continue
            with self._changed:
                link = _Link(self, self.connections, near, far)
                self.connections += 1
                self._links.append(link)
            link.start()

    # -- for links

    def saw(self, direction: Direction, kind: str, connection: int, length: int) -> Fault | None:
        """Note a frame down; the fault if it is its turn."""
        with self._changed:
            n = self._counts[direction, kind]
            self._counts[direction, kind] += 1
            self.seen.append(Seen(direction, kind, n, connection, length))
            self._changed.notify_all()
        fault = self.fault
        if fault is not None and (fault.direction, fault.kind.strip(), fault.n) == (direction, kind.strip(), n):
            return fault
        return None

    def has_happened(self) -> None:
        with self._changed:
            self.happened.set()
            self._changed.notify_all()

    def failed(self, error: BaseException) -> None:
        with self._changed:
            self.error = self.error or error
            self._changed.notify_all()

    def kill(self, side: str) -> None:
        assert self._kill is not None, "nobody said how to kill"
        self._kill(side)

    def ask(self, side: str) -> None:
        assert self._ask is not None, "nobody said how to ask"
        self._ask(side)


class _EndedError(Exception):
    """The link ends: whoever forwards has to stop."""


class _Link:
    """A connection of the source, and ours to the destination that belongs to it."""

    def __init__(self, proxy: FrameProxy, number: int, near: socket.socket, far: socket.socket) -> None:
        self._proxy = proxy
        self._number = number
        self._sockets = (near, far)
        self._woken, self._waker = socket.socketpair()
        self._stalled = False
        self._left = 2
        self._lock = threading.Lock()
        self._reset = False
        for connection in self._sockets:
            connection.setblocking(False)
        self._threads = [
            threading.Thread(target=self._pump, args=(FORTH, near, far), daemon=True),
            threading.Thread(target=self._pump, args=(BACK, far, near), daemon=True),
        ]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def join(self) -> None:
        for thread in self._threads:
            thread.join(LIMIT)
            assert not thread.is_alive()

    def end(self, reset: bool = False) -> None:
        """Close both connections, as soon as nobody uses them any more; with a reset instead of an orderly end."""
        self._reset = self._reset or reset
        with contextlib.suppress(OSError):
            self._waker.send(b"x")

    def _pump(self, direction: Direction, come: socket.socket, go: socket.socket) -> None:
        try:
            # Where one side is gone, the other may still have said why, and gets to say it: so this half alone ends.
            with contextlib.suppress(OSError):
                self._forward(direction, come, go)
            with contextlib.suppress(OSError):
                go.shutdown(socket.SHUT_WR)
        except _EndedError:
            pass
        except BaseException as error:
            self._proxy.failed(error)
            self.end(reset=True)
        with self._lock:
            self._left -= 1
            last = not self._left
        if last:
            self._close()

    def _close(self) -> None:
        for connection in self._sockets:
            if self._reset and connection.family != socket.AF_UNIX:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            connection.close()
        self._woken.close()
        self._waker.close()

    # -- bytes

    def _wait(self, connection: socket.socket | None, events: int) -> None:
        """Until the connection is ready. Raises _EndedError."""
        poll = select.poll()
        poll.register(self._woken, select.POLLIN)
        if connection is not None:
            poll.register(connection, events)
        ready = {fd for fd, _ in poll.poll()}
        if self._woken.fileno() in ready:
            raise _EndedError

    def _read(self, connection: socket.socket, size: int) -> bytes:
        """So many bytes, or fewer at the end."""
        data = bytearray(size)
        view = memoryview(data)
        got = 0
        while got < size:
            self._wait(connection, select.POLLIN)
            try:
                count = connection.recv_into(view[got:])
            except BlockingIOError:
                continue
            if not count:
                break
            got += count
        return bytes(view[:got])

    def _write(self, connection: socket.socket, data: bytes) -> None:
        if self._stalled:
            self._wait(None, 0)
        view = memoryview(data)
        while view:
            self._wait(connection, select.POLLOUT)
            with contextlib.suppress(BlockingIOError):
                view = view[connection.send(view, socket.MSG_NOSIGNAL) :]

    # -- frames

    def _forward(self, direction: Direction, come: socket.socket, go: socket.socket) -> None:
        header = self._read(come, _STREAM_HEADER)
        if len(header) == _STREAM_HEADER:
            assert header.startswith(_MAGIC), f"{direction.value} begins with {header!r}"
        self._write(go, header)
        while head := self._read(come, _FRAME.size):
            if len(head) < _FRAME.size:
                self._write(go, head)
                return
            kind, _, _, _, length, _, _ = _FRAME.unpack(head)
            assert length <= _LONGEST, f"{direction.value} {kind!r} of {length} bytes"
            payload = self._read(come, length)
            if len(payload) < length:
                self._write(go, head + payload)
                return
            fault = self._proxy.saw(direction, kind.decode("ascii"), self._number, length)
            if fault is None:
                self._write(go, head + payload)
            else:
                self._do(fault, come, go, head, payload)

    def _do(self, fault: Fault, come: socket.socket, go: socket.socket, head: bytes, payload: bytes) -> None:
        frame = head + payload
        if fault.act in _ASK:
            self._proxy.ask("source" if fault.act is Act.END_SOURCE else "destination")
            self._proxy.has_happened()
            self._write(go, frame)
            return
        if fault.act in _SPOIL:
            self._write(go, _spoilt(fault, head, payload))
            self._proxy.has_happened()
            return
        through = {
            Part.BEFORE: 0,
            Part.HEADER: len(head) // 2,
            Part.PAYLOAD: len(head) + len(payload) // 2,
            Part.AFTER: len(frame),
        }
        self._write(go, frame[: through[fault.part]])
        match fault.act:
            case Act.CUT:
                self.end(reset=True)
            case Act.STALL:
                self._stalled = True
            case Act.KILL_SOURCE | Act.KILL_DESTINATION:
                self._proxy.kill("source" if fault.act is Act.KILL_SOURCE else "destination")
                self.end(reset=True)
            case Act.HALF_CLOSE:
                go.shutdown(socket.SHUT_WR)
        self._proxy.has_happened()
        while fault.act is Act.HALF_CLOSE and self._read(come, 1 << 16):
            pass
        if fault.act is Act.HALF_CLOSE:
            raise _EndedError
        self._wait(None, 0)


def _spoilt(fault: Fault, head: bytes, payload: bytes) -> bytes:
    if fault.act is Act.DROP:
        return b""
    if fault.act is Act.DUPLICATE:
        return 2 * (head + payload)
    frame = bytearray(head + payload)
    in_payload = fault.act is Act.FLIP_PAYLOAD and payload
    bit = 8 * len(head) + fault.bit % (8 * len(payload)) if in_payload else fault.bit % (8 * len(head))
    frame[bit // 8] ^= 1 << bit % 8
    return bytes(frame)


# -- addresses


def _listener(uri: str) -> tuple[socket.socket, str]:
    scheme, _, address = uri.partition(":")
    if scheme == "unix":
        made = socket.socket(socket.AF_UNIX)
        os.fchmod(made.fileno(), stat.S_IRUSR | stat.S_IWUSR)
        made.bind(address)
    else:
        host, _, port = address.rpartition(":")
        made = socket.socket(socket.AF_INET)
        made.bind((host, int(port)))
        uri = f"tcp:{host}:{made.getsockname()[1]}"
    made.listen()
    return made, uri


def _connected(uri: str) -> socket.socket:
    scheme, _, address = uri.partition(":")
    made = socket.socket(socket.AF_UNIX if scheme == "unix" else socket.AF_INET)
    try:
        if scheme == "unix":
            made.connect(address)
        else:
            host, _, port = address.rpartition(":")
            made.connect((host, int(port)))
            made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    except OSError:
        made.close()
        raise
    return made
