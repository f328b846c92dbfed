# SPDX-License-Identifier: Apache-2.0
"""The proxy that makes a network bad: what each side gets, byte for byte, with plain sockets at both ends."""

from __future__ import annotations

import itertools
import random
import socket
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import xxhash

from .control_support import LIMIT
from .frame_proxy import BACK, FORTH, Act, Fault, FrameProxy, Part, Seen, steps

HEADER = struct.pack("<8sHHI", b"SDEIVIRT", 1, 1, 0)
RUNS_OUT = (Act.CUT, Act.KILL_SOURCE, Act.KILL_DESTINATION)


def frame(kind: str, payload: bytes, sequence: int) -> bytes:
    head = struct.pack("<4sHHIIQ", kind.encode(), 0, 0, 0, len(payload), sequence)
    return head + struct.pack("<Q", xxhash.xxh3_64(head + payload).intdigest()) + payload


HELLO, STATE, LAST = frame("HELO", b"who", 0), frame("SECT", bytes(range(100)), 1), frame("END ", bytes(24), 2)
EMPTY = frame("REDY", b"", 1)


class Ends:
    """A destination that listens, a proxy before it, and a source that has connected. A context manager."""

    def __init__(
        self, scheme: str, folder: Path, fault: Fault | None = None, kill: Callable[[str], None] | None = None
    ) -> None:
        self.listener = socket.socket(socket.AF_UNIX if scheme == "unix" else socket.AF_INET)
        self.listener.bind(str(folder / "d") if scheme == "unix" else ("127.0.0.1", 0))
        self.listener.listen()
        self.listener.settimeout(LIMIT)
        address = f"unix:{folder / 'd'}" if scheme == "unix" else f"tcp:127.0.0.1:{self.listener.getsockname()[1]}"
        listen = f"unix:{folder / 'p'}" if scheme == "unix" else "tcp:127.0.0.1:0"
        self.proxy = FrameProxy(address, listen, fault, kill)
        self._opened: list[socket.socket] = []
        self.source, self.destination = self.connect()

    def call(self) -> socket.socket:
        """A connection to the proxy."""
        scheme, _, address = self.proxy.uri.partition(":")
        made = socket.socket(socket.AF_UNIX if scheme == "unix" else socket.AF_INET)
        made.settimeout(LIMIT)
        self._opened.append(made)
        made.connect(address if scheme == "unix" else ("127.0.0.1", int(address.rpartition(":")[2])))
        return made

    def connect(self) -> tuple[socket.socket, socket.socket]:
        source = self.call()
        destination, _ = self.listener.accept()
        destination.settimeout(LIMIT)
        self._opened.append(destination)
        return source, destination

    def __enter__(self) -> Ends:
        return self

    def __exit__(self, *_: object) -> None:
        self.proxy.close()
        for made in (*self._opened, self.listener):
            made.close()


def exactly(connection: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        more = connection.recv(size - len(data))
        assert more, (size, data)
        data += more
    return data


def rest(connection: socket.socket) -> bytes:
    """What comes until the end, or until the connection is reset."""
    data = b""
    try:
        while more := connection.recv(1 << 16):
            data += more
    except ConnectionError:
        pass
    return data


def is_open(connection: socket.socket) -> bool:
    """Whether there is neither anything to read nor an end, now."""
    connection.setblocking(False)
    try:
        connection.recv(1, socket.MSG_PEEK)
    except BlockingIOError:
        return True
    finally:
        connection.settimeout(LIMIT)
    return False


SCHEMES = pytest.mark.parametrize("scheme", ["unix", "tcp"])


@SCHEMES
def test_both_directions_pass_unchanged(scheme: str, tmp_path: Path) -> None:
    large = frame("PAGE", random.Random(1).randbytes(2 << 20), 1)
    with Ends(scheme, tmp_path) as ends:
        ends.source.sendall(HEADER + HELLO)
        assert exactly(ends.destination, len(HEADER + HELLO)) == HEADER + HELLO
        ends.destination.sendall(HEADER + HELLO + EMPTY)
        assert exactly(ends.source, len(HEADER + HELLO + EMPTY)) == HEADER + HELLO + EMPTY
        ends.source.sendall(large[:1000])
        assert is_open(ends.destination)
        ends.source.sendall(large[1000:])
        assert exactly(ends.destination, len(large)) == large
        # Half of a frame is what a source leaves that dies.
        ends.source.sendall(LAST[:40])
        ends.source.shutdown(socket.SHUT_WR)
        assert rest(ends.destination) == LAST[:40]
        ends.destination.sendall(LAST)
        ends.destination.close()
        assert rest(ends.source) == LAST
        assert ends.proxy.seen == [
            Seen(FORTH, "HELO", 0, 0, 3),
            Seen(BACK, "HELO", 0, 0, 3),
            Seen(BACK, "REDY", 0, 0, 0),
            Seen(FORTH, "PAGE", 0, 0, 2 << 20),
            Seen(BACK, "END ", 0, 0, 24),
        ]
        assert ends.proxy.text() == "->HELO <-HELO <-REDY ->PAGE <-END"


THROUGH = {Part.BEFORE: 0, Part.HEADER: 16, Part.PAYLOAD: 32 + 50, Part.AFTER: len(STATE)}


@SCHEMES
@pytest.mark.parametrize("part", list(Part))
@pytest.mark.parametrize("act", RUNS_OUT)
@pytest.mark.parametrize("back", [False, True])
def test_cut_and_killed(scheme: str, tmp_path: Path, act: Act, part: Part, back: bool) -> None:
    killed: list[str] = []
    fault = Fault(act, BACK if back else FORTH, "SECT", part=part)
    with Ends(scheme, tmp_path, fault, killed.append) as ends:
        sender, receiver = (ends.destination, ends.source) if back else (ends.source, ends.destination)
        sender.sendall(HEADER + HELLO)
        assert exactly(receiver, len(HEADER + HELLO)) == HEADER + HELLO
        assert not ends.proxy.happened.is_set()
        sender.sendall(STATE + LAST)
        assert rest(receiver) == STATE[: THROUGH[part]]
        assert rest(sender) == b""
        ends.proxy.wait_fault()
        assert killed == {Act.CUT: [], Act.KILL_SOURCE: ["source"], Act.KILL_DESTINATION: ["destination"]}[act]
        assert [str(frame) for frame in ends.proxy.seen] == [f"{fault.direction.value} {k} 0" for k in ("HELO", "SECT")]


@SCHEMES
@pytest.mark.parametrize("part", list(Part))
def test_stalled(scheme: str, tmp_path: Path, part: Part) -> None:
    with Ends(scheme, tmp_path, Fault(Act.STALL, FORTH, "SECT", part=part)) as ends:
        ends.destination.sendall(HEADER + HELLO)
        assert exactly(ends.source, len(HEADER + HELLO)) == HEADER + HELLO
        ends.source.sendall(HEADER + HELLO + STATE + LAST)
        want = (HEADER + HELLO + STATE)[: len(HEADER + HELLO) + THROUGH[part]]
        ends.proxy.wait_fault()
        assert exactly(ends.destination, len(want)) == want
        ends.destination.sendall(EMPTY)
        ends.proxy.wait_for(lambda: any(seen.kind == "REDY" for seen in ends.proxy.seen))
        assert is_open(ends.destination)
        assert is_open(ends.source)
        ends.proxy.close()
        assert rest(ends.destination) == b""
        assert rest(ends.source) == b""


@SCHEMES
@pytest.mark.parametrize("part", list(Part))
def test_half_closed(scheme: str, tmp_path: Path, part: Part) -> None:
    with Ends(scheme, tmp_path, Fault(Act.HALF_CLOSE, FORTH, "SECT", part=part)) as ends:
        ends.source.sendall(HEADER + HELLO + STATE + LAST)
        assert rest(ends.destination) == HEADER + HELLO + STATE[: THROUGH[part]]
        ends.source.sendall(10_000 * LAST)  # into nothing
        ends.destination.sendall(HEADER + HELLO)
        assert exactly(ends.source, len(HEADER + HELLO)) == HEADER + HELLO
        ends.destination.close()
        assert rest(ends.source) == b""


@SCHEMES
def test_spoilt(scheme: str, tmp_path: Path) -> None:
    def through(fault: Fault) -> bytes:
        folder = tmp_path / str(next(numbers))
        folder.mkdir()
        with Ends(scheme, folder, fault) as ends:
            ends.source.sendall(HEADER + HELLO + STATE + LAST)
            ends.source.shutdown(socket.SHUT_WR)
            return rest(ends.destination)[len(HEADER) :]

    numbers = itertools.count()
    assert through(Fault(Act.DROP, FORTH, "SECT")) == HELLO + LAST
    assert through(Fault(Act.DUPLICATE, FORTH, "SECT")) == HELLO + STATE + STATE + LAST
    whole = int.from_bytes(HELLO + STATE + LAST, "little")
    for act, low, size in ((Act.FLIP_HEADER, 0, 32), (Act.FLIP_PAYLOAD, 32, 100)):
        for bit in (0, 77, 8 * size - 1, 8 * size):
            got = int.from_bytes(through(Fault(act, FORTH, "SECT", bit=bit)), "little")
            assert got ^ whole == 1 << 8 * (len(HELLO) + low) + bit % (8 * size), (act, bit)


def test_a_frame_without_payload_gets_its_wrong_bit_in_the_header(tmp_path: Path) -> None:
    with Ends("unix", tmp_path, Fault(Act.FLIP_PAYLOAD, FORTH, "REDY", bit=9)) as ends:
        ends.source.sendall(HEADER + EMPTY)
        got = exactly(ends.destination, len(HEADER + EMPTY))[len(HEADER) :]
        assert int.from_bytes(got, "little") ^ int.from_bytes(EMPTY, "little") == 1 << 9


@SCHEMES
def test_later_connections(scheme: str, tmp_path: Path) -> None:
    """A source connects again: its frames count on, and the fault comes once."""
    with Ends(scheme, tmp_path, Fault(Act.CUT, FORTH, "HELO", n=1)) as ends:
        ends.source.sendall(HEADER + HELLO)
        assert exactly(ends.destination, len(HEADER + HELLO))
        source, destination = ends.connect()
        source.sendall(HEADER + HELLO)
        assert rest(destination) == HEADER
        assert is_open(ends.source)
        source, destination = ends.connect()
        source.sendall(HEADER + HELLO)
        assert exactly(destination, len(HEADER + HELLO)) == HEADER + HELLO
        assert [(seen.connection, seen.n) for seen in ends.proxy.seen] == [(0, 0), (1, 1), (2, 2)]
        assert ends.proxy.connections == 3


@SCHEMES
def test_unreachable_afterwards(scheme: str, tmp_path: Path) -> None:
    with Ends(scheme, tmp_path, Fault(Act.CUT, FORTH, "HELO", unreachable=True)) as ends:
        ends.source.sendall(HEADER + HELLO)
        ends.proxy.wait_fault()
        assert rest(ends.call()) == b""
        assert ends.proxy.connections == 1


@SCHEMES
def test_a_destination_that_is_gone(scheme: str, tmp_path: Path) -> None:
    with Ends(scheme, tmp_path) as ends:
        ends.listener.close()
        assert rest(ends.call()) == b""


def test_what_is_no_stream_is_a_defect(tmp_path: Path) -> None:
    with Ends("unix", tmp_path) as ends:
        ends.source.sendall(bytes(16) + HELLO)
        with pytest.raises(AssertionError, match="begins with"):
            ends.proxy.wait_for(lambda: ends.proxy.seen)


def test_steps() -> None:
    seen = [Seen(FORTH, "HELO", 0, 0, 3), Seen(BACK, "HELO", 0, 0, 3)]
    seen += [Seen(FORTH, "PAGE", n, 0, 3) for n in range(5)] + [Seen(FORTH, "HELO", 1, 1, 3)]
    assert list(map(str, steps(seen))) == ["-> HELO 0", "-> HELO 1", "<- HELO 0", "-> PAGE 0", "-> PAGE 4"]
    assert str(Fault(Act.CUT, FORTH, "END ", 2, Part.PAYLOAD)) == "cut in the payload of -> END 2"
    assert str(Fault(Act.DROP, BACK, "LOAD")) == "drop <- LOAD 0"
