# SPDX-License-Identifier: Apache-2.0
"""Channels over real sockets: everything arrives, in order; what blocks can be ended; every failure has a sentence."""

from __future__ import annotations

import errno
import os
import random
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdeivirt.errors import MigrationError, UsageError
from sdeivirt.migration.channel import (
    Channel,
    ChannelCancelledError,
    ChannelCutError,
    ChannelError,
    ChannelStalledError,
    Interrupt,
    Pace,
    SocketChannel,
    Uri,
    connect,
    parse_uri,
)
from sdeivirt.migration.channel.base import _Rest
from sdeivirt.migration.channel.sockets import cut
from sdeivirt.migration.frames import MAGIC

from .channel_support import (
    background,
    begins,
    child,
    finish_and_close,
    joined,
    pair,
    read_all,
    read_exactly,
    socket_pair,
)
from .control_support import LIMIT, wait_until

SHORT = 0.05
# More than any socket holds.
MUCH = memoryview(bytes(32 << 20))


# -- addresses


@pytest.mark.parametrize(
    ("text", "uri"),
    [
        ("tcp:127.0.0.1:4444", Uri("tcp", "127.0.0.1", 4444)),
        ("tcp:localhost:0", Uri("tcp", "localhost", 0)),
        ("tcp:a-host.example.org:65535", Uri("tcp", "a-host.example.org", 65535)),
        ("tcp:bücher.example:1", Uri("tcp", "bücher.example", 1)),
        ("tcp:[::1]:1", Uri("tcp", "::1", 1)),
        ("tcp:[fe80::1%eth0]:1", Uri("tcp", "fe80::1%eth0", 1)),
        ("unix:/run/a b,c:d", Uri("unix", path=Path("/run/a b,c:d"))),
        ("unix:relative", Uri("unix", path=Path("relative"))),
        ("file:/a", Uri("file", path=Path("/a"))),
    ],
)
def test_an_address_is_read_and_written(text: str, uri: Uri) -> None:
    assert parse_uri(text) == uri
    assert str(uri) == text
    assert parse_uri(str(uri.absolute())) == uri.absolute()


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "no address"),
        ("127.0.0.1:4444", "no address"),
        ("exec:rm", "no address"),
        ("TCP:a:1", "no address"),
        ("fd:3", "no address"),
        ("unix:", "no path"),
        ("file:", "no path"),
        ("file:a\0b", "no path"),
        ("tcp:", "host and a port"),
        ("tcp:host", "host and a port"),
        ("tcp:host:", "host and a port"),
        ("tcp:host:x", "host and a port"),
        ("tcp:host:-1", "host and a port"),
        ("tcp:host:123456", "host and a port"),
        ("tcp:host:65536", "no port 65536"),
        ("tcp:host:٣", "host and a port"),
        ("tcp::4444", "0.0.0.0"),
        ("tcp://host:1", "without slashes"),
        ("tcp:::1:4444", "host and a port"),
        ("tcp:::1", "host and a port"),
        ("tcp:[1.2.3.4]:1", "no IPv6 address"),
        ("tcp:[::g]:1", "host and a port"),
        ("tcp:[:::1]:1", "no IPv6 address"),
        ("tcp:a b:1", "host and a port"),
        ("tcp:a/b:1", "host and a port"),
        ("tcp:host:1\n", "host and a port"),
    ],
)
def test_what_is_no_address_is_refused_with_a_hint(text: str, sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence) as caught:
        parse_uri(text)
    assert caught.value.hint


@given(st.text())
def test_any_text_is_an_address_that_reads_back_or_a_usage_error(text: str) -> None:
    for scheme in ("", "tcp:", "unix:", "file:"):
        try:
            uri = parse_uri(scheme + text)
        except UsageError:
            continue
        assert parse_uri(str(uri)) == uri


def test_a_path_is_made_absolute_for_another_process(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert parse_uri("unix:a/../b").absolute() == Uri("unix", path=tmp_path / "b")
    assert parse_uri("tcp:h:1").absolute() == Uri("tcp", "h", 1)


# -- what is sent arrives


@given(
    st.lists(st.binary(max_size=3000), max_size=40),
    st.lists(st.integers(1, 5000), min_size=1),
    st.integers(1, 5),
)
def test_the_rest_of_some_buffers_is_what_was_not_yet_taken(pieces: list[bytes], steps: list[int], iov: int) -> None:
    rest = _Rest([memoryview(piece) if index % 2 else bytearray(piece) for index, piece in enumerate(pieces)])
    rest._IOV_MAX = iov
    whole, taken = b"".join(pieces), bytearray()
    for turn in range(len(whole) + 1):
        assert rest.left == len(whole) - len(taken)
        if not rest.left:
            break
        views = rest.first(steps[turn % len(steps)])
        assert 1 <= len(views) <= iov
        data = b"".join(views)
        assert 1 <= len(data) <= steps[turn % len(steps)]
        part = data[: 1 + turn * 7 % len(data)]  # the system takes as much as it likes
        taken += part
        rest.advance(len(part))
    assert bytes(taken) == whole


@pytest.mark.parametrize("uri", ["tcp:127.0.0.1:0", "tcp:[::1]:0", "tcp:localhost:0", "unix:{tmp}/socket"])
def test_buffers_of_all_sizes_arrive_in_order(uri: str, tmp_path: Path) -> None:
    seed = random.randrange(1 << 32)
    print("seed", seed)
    chance = random.Random(seed)
    sizes = [0, 1, 31, 4096, 2 << 20, *(chance.choice([0, 7, 32, 4096]) for _ in range(3000)), 5 << 20]
    buffers = [memoryview(chance.randbytes(size)) for size in sizes]
    with joined(uri.format(tmp=tmp_path)) as (near, far):
        answer = background(lambda: read_exactly(far, sum(sizes)))
        before = near.sent
        near.send(buffers)
        assert answer.result(LIMIT) == b"".join(buffers)
        assert near.sent - before == sum(sizes) == far.received - len(MAGIC)
        far.send([b"thanks"])
        assert read_exactly(near, 6) == b"thanks"


def test_buffers_of_other_items_than_bytes_are_sent_as_they_lie_in_memory() -> None:
    with pair() as (near, far):
        near.send([memoryview(struct.pack("<2Q", 1, 2)).cast("Q"), memoryview(bytes(12)).cast("B", (3, 4)), b""])
        assert read_exactly(far, 28) == struct.pack("<2Q", 1, 2) + bytes(12)
        assert near.sent == 28


def test_two_threads_send_without_mixing_and_receive_meanwhile() -> None:
    with pair() as (near, far):
        sizes = [100_000, 300_000]

        def send(n: int) -> None:
            for _ in range(20):
                near.send([bytes([n]) * sizes[n]] * 3)

        done = [background(partial(send, n)) for n in range(2)]
        back = background(lambda: far.send([bytes(1 << 20)] * 8))
        forth = background(lambda: read_exactly(near, 8 << 20))
        for _ in range(40):
            first = read_exactly(far, 1)
            assert read_exactly(far, 3 * sizes[first[0]] - 1) == first * (3 * sizes[first[0]] - 1)
        for future in (*done, back):
            future.result(LIMIT)
        assert forth.result(LIMIT) == bytes(8 << 20)


def test_a_connection_notices_that_the_other_host_is_gone() -> None:
    with joined("tcp:127.0.0.1:0") as ends:
        for end in ends:
            connection = socket.socket(fileno=os.dup(end.fileno))
            with connection:
                assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
                assert connection.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
                assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 30_000
                idle, interval, count = (
                    connection.getsockopt(socket.IPPROTO_TCP, option)
                    for option in (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT)
                )
                assert idle + interval * count <= 30


# -- the end


def test_the_end_is_no_bytes_and_stays_so() -> None:
    channel, other = socket_pair()
    with channel, other:
        other.sendall(b"last")
        other.close()
        assert read_all(channel) == b"last"
        assert channel.recv_into(bytearray(8)) == 0


def test_finish_lets_the_other_side_read_what_was_said_last() -> None:
    # A side that closes while bytes come in resets the connection, which can take its own last words with it.
    with joined("tcp:127.0.0.1:0") as (near, far):
        near.stall = LIMIT

        def flood() -> None:
            while True:
                near.send([MUCH])

        def hear() -> bytes:
            word = read_all(near)
            near.abort()  # ends the flood
            return word

        flooding = background(flood)
        heard = background(hear)
        wait_until(lambda: near.sent > len(MAGIC))
        far.send([b"no more"])
        finished = background(partial(finish_and_close, far))
        assert heard.result(LIMIT) == b"no more"
        with pytest.raises(ChannelCancelledError):
            flooding.result(LIMIT)
        near.close()
        finished.result(LIMIT)


def test_after_finish_nothing_is_sent_or_received() -> None:
    with pair() as (near, far):
        near.stall = far.stall = None
        far.send([b"unheard"])
        finished = [background(end.finish) for end in (near, far)]  # neither waits for the other to close
        for future in finished:
            future.result(LIMIT)
        assert far.recv_into(bytearray(8)) == near.recv_into(bytearray(8)) == 0
        with pytest.raises(ChannelCutError, match="this is the end"):
            far.send([b"x"])
        with pytest.raises(ChannelCutError):
            far.finish()


def test_finish_does_not_wait_for_ever() -> None:
    channel, other = socket_pair()
    with channel, other:
        channel.stall = SHORT
        channel.finish()  # the other side never ends
        assert other.recv(1) == b""


def _send_much(channel: Channel) -> None:
    channel.send([MUCH])


def _receive(channel: Channel) -> None:
    channel.recv_into(bytearray(8))


def _tell_and_run(started: threading.Event, blocks: Callable[[Channel], object], channel: Channel) -> None:
    started.set()
    blocks(channel)


def test_what_blocks_ends_when_the_channel_is_aborted_or_closed() -> None:
    for end in (Channel.abort, Channel.close):
        for blocks in (_send_much, _receive, Channel.finish):
            channel, other = socket_pair()
            channel.stall = None
            started = threading.Event()
            future = background(partial(_tell_and_run, started, blocks, channel))
            started.wait(LIMIT)
            end(channel)
            with pytest.raises(ChannelCancelledError, match="was cancelled"):
                future.result(LIMIT)
            for call in (lambda: channel.send([b"x"]), lambda: channel.recv_into(bytearray(1)), channel.finish):  # noqa: B023
                with pytest.raises(ChannelCancelledError):
                    call()
            channel.abort()
            channel.close()
            channel.close()
            channel.abort()
            other.close()


def test_an_error_inside_of_with_closes_at_once() -> None:
    channel, other = socket_pair()
    with other, pytest.raises(ValueError, match="mine"), channel:
        raise ValueError("mine")
    with pytest.raises(ChannelCancelledError):
        channel.send([b"x"])


def test_closed_channels_leave_no_descriptors() -> None:
    before = len(os.listdir("/dev/fd"))
    for _ in range(20):
        with joined("tcp:127.0.0.1:0") as (near, far):
            near.send([b"x"])
            read_exactly(far, 1)
    assert len(os.listdir("/dev/fd")) == before


# -- failures


def test_who_begins_to_send_waits_for_nobody() -> None:
    with pair() as (near, far):
        begins(near, far)
    with joined("tcp:127.0.0.1:0") as (near, far):
        begins(near, far)


def test_a_side_that_takes_nothing_has_stalled() -> None:
    channel, other = socket_pair()
    with channel, other:
        channel.stall = SHORT
        with pytest.raises(ChannelStalledError, match=r"the test has taken nothing for 0\.05 s") as caught:
            channel.send([b"head", MUCH])
        assert isinstance(caught.value, MigrationError)
        assert caught.value.hint
        # The other side has a part: what comes now would be taken for the rest.
        taken = other.recv(1 << 26)
        assert taken
        with pytest.raises(ChannelCutError, match=r"nothing more can be sent .* taken nothing"):
            channel.send([b"tail"])
        other.sendall(b"but it may still speak")
        assert channel.recv_into(bytearray(100)) == 22


def test_a_side_that_sends_nothing_has_stalled() -> None:
    channel, other = socket_pair()
    with channel, other:
        channel.stall = SHORT
        with pytest.raises(ChannelStalledError, match=r"the test has sent nothing for 0\.05 s"):
            channel.recv_into(bytearray(8))
        channel.stall = LIMIT
        other.sendall(b"late")
        assert read_exactly(channel, 4) == b"late"
        channel.send([b"x"])


def test_a_slow_side_has_not_stalled() -> None:
    """Every byte that moves starts the time anew."""
    channel, other = socket_pair()
    with channel, other:
        channel.stall = 1.0
        size = 24 << 20
        sending = background(lambda: channel.send([MUCH[:size]]))
        begin, got = time.monotonic(), 0
        while got < size:
            if time.monotonic() - begin < 1.2:  # longer than the limit, though never so long without a byte
                threading.Event().wait(0.1)
                got += len(other.recv(200_000))
            else:
                got += len(other.recv(1 << 20))
        sending.result(LIMIT)


def test_a_side_that_resets_the_connection_has_cut_it() -> None:
    for blocks in (_send_much, _receive):
        with socket.create_server(("127.0.0.1", 0)) as server:
            channel = connect(Uri("tcp", "127.0.0.1", server.getsockname()[1]))
            other, _ = server.accept()
            with channel:
                future = background(partial(blocks, channel))
                other.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                other.close()
                with pytest.raises(ChannelCutError, match=r"the connection to tcp:127\.0\.0\.1:\d+ was cut") as caught:
                    future.result(LIMIT)
                assert caught.value.hint


def test_sending_to_a_side_that_has_closed_is_a_cut_even_where_sigpipe_kills() -> None:
    program = """if True:
        import signal, socket
        from sdeivirt.migration.channel import ChannelCutError, SocketChannel
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
        near, far = socket.socketpair()
        channel = SocketChannel(near, "far")
        far.close()
        try:
            channel.send([b"x"])
        except ChannelCutError as error:
            print(error.message)
    """
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=LIMIT)
    assert (done.returncode, done.stdout) == (0, "the connection to far was cut\n")


@pytest.mark.process
@pytest.mark.parametrize("uri", ["tcp:127.0.0.1:0", "unix:{tmp}/socket"])
def test_a_process_that_is_killed_ends_what_waits_for_it(uri: str, tmp_path: Path) -> None:
    from sdeivirt.migration.channel import Listener

    program = """if True:
        import sys
        from sdeivirt.migration.channel import connect, parse_uri
        channel = connect(parse_uri(sys.argv[1]))
        channel.send([b"SDEIVIRT"])
        print("here", flush=True)
        channel.stall = None
        if sys.argv[2] == "reads":
            channel.recv_into(bytearray(8))
        sys.stdin.read()
    """
    with Listener(parse_uri(uri.format(tmp=tmp_path))) as listener:
        for does in ("reads", "sleeps"):
            with child(program, str(listener.uri), does) as process:
                channel = listener.accept(LIMIT)
                assert channel is not None
                with channel:
                    assert read_exactly(channel, 8) == b"SDEIVIRT"
                    assert process.stdout is not None
                    assert process.stdout.readline() == b"here\n"
                    waiting = background(lambda: channel.recv_into(bytearray(8)))  # noqa: B023
                    sending = background(lambda: channel.send([MUCH, MUCH])) if does == "sleeps" else None  # noqa: B023
                    if sending is not None:
                        wait_until(lambda: channel.sent > 0)  # noqa: B023
                    process.send_signal(signal.SIGKILL)
                    try:
                        assert waiting.result(LIMIT) == 0
                    except ChannelCutError:  # it had not read all
                        assert sending is not None
                    if sending is not None:
                        with pytest.raises(ChannelCutError):
                            sending.result(LIMIT)


@pytest.mark.parametrize(
    ("number", "kind", "sentence"),
    [
        (errno.ECONNRESET, ChannelCutError, "was cut"),
        (errno.EPIPE, ChannelCutError, "was cut"),
        (errno.ETIMEDOUT, ChannelCutError, "does not answer any more: Connection timed out"),
        (errno.EHOSTUNREACH, ChannelCutError, "does not answer any more: No route to host"),
        (errno.ENOMEM, ChannelError, "failed: Cannot allocate memory"),
    ],
)
def test_errors_of_the_system_become_sentences(number: int, kind: type[ChannelError], sentence: str) -> None:
    # Those of a network that fails cannot be had from loopback.
    error = cut("tcp:a:1", OSError(number, os.strerror(number)))
    assert type(error) is kind
    assert sentence in error.message
    assert "tcp:a:1" in error.message


# -- interrupts


def test_an_interrupt_ends_every_wait_now_and_later() -> None:
    interrupt = Interrupt()
    assert interrupt.wait(timeout=0) == []
    waits = [background(interrupt.wait) for _ in range(3)]
    interrupt.set()
    for wait in waits:
        with pytest.raises(ChannelCancelledError):
            wait.result(LIMIT)
    with pytest.raises(ChannelCancelledError):
        interrupt.wait(timeout=0)
    interrupt.close()
    interrupt.close()
    interrupt.set()


# -- bandwidth


class _Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@given(
    st.floats(1, 1e10),
    st.lists(st.tuples(st.integers(1, 1 << 24), st.floats(0, 0.03)), min_size=1, max_size=200),
)
def test_never_more_goes_than_the_rate_allows_and_never_much_less(rate: float, turns: list[tuple[int, float]]) -> None:
    clock = _Clock()
    pace = Pace(rate, clock)
    sent, start = 0, clock.now
    for wanted, late in turns:
        allowed, delay = pace.allow(wanted)
        assert (allowed == 0) == (delay > 0)
        if allowed:
            assert allowed <= wanted
            pace.spend(allowed)
            sent += allowed
        # A thread comes a bit later than it asked for; what it loses so, it catches up.
        clock.now += delay + late * (delay > 0)
        elapsed = clock.now - start
        assert sent <= rate * elapsed + 1
        if allowed == 0 and delay < 0.05:
            again, more = pace.allow(wanted)
            assert again or more < 1e-6 or rate < 200
    # In no span of time does more go than the rate, and 50 ms worth.
    clock.now += 10
    burst = 0
    while (allowed := pace.allow(1 << 40)[0]) > 0:
        pace.spend(allowed)
        burst += allowed
    assert burst <= max(1, rate * 0.05) + 1


def test_the_rate_is_exact_over_seconds() -> None:
    clock = _Clock()
    for rate in (1000, 1_000_000, 123_456_789):
        pace = Pace(rate, clock)
        sent, start = 0, clock.now
        while clock.now < start + 20:
            allowed, delay = pace.allow(300_000)
            pace.spend(allowed)
            sent += allowed
            clock.now += delay * 1.3  # as a busy host would have it
        assert sent == pytest.approx(rate * 20, rel=0.005)


def test_a_new_rate_holds_at_once() -> None:
    clock = _Clock()
    pace = Pace(None, clock)
    assert pace.allow(1 << 40) == (1 << 40, 0.0)
    pace.bytes_per_second = 1.0
    allowed, delay = pace.allow(1 << 20)
    assert allowed == 0
    assert delay <= 0.05  # so that a change is soon seen
    pace.bytes_per_second = 1e9
    clock.now += delay
    assert pace.allow(1 << 20)[0] == 1 << 20
    pace.spend(1 << 20)
    clock.now += 1
    pace.bytes_per_second = 1000.0
    assert pace.allow(1 << 20)[0] == 50  # not what was saved up at the old one
    pace.bytes_per_second = None
    assert pace.bytes_per_second is None
    assert pace.allow(5) == (5, 0.0)
    for rate in (0, -1, float("nan")):
        with pytest.raises(UsageError, match="for ever"):
            pace.bytes_per_second = rate
        with pytest.raises(UsageError):
            Pace(rate)
    assert pace.bytes_per_second is None


def test_a_channel_keeps_to_its_pace_and_can_be_ended_or_let_loose_meanwhile() -> None:
    with pair() as (near, far):
        rate = 4 << 20
        near.pace = Pace(rate)
        reading = background(lambda: read_exactly(far, 1 << 20))
        begin = time.monotonic()
        near.send([bytes(600_000), bytes((1 << 20) - 600_000)])
        reading.result(LIMIT)
        assert time.monotonic() - begin >= (1 << 20) / rate - 0.05
        near.pace.bytes_per_second = 1
        sending = background(lambda: near.send([bytes(1 << 20)]))
        reading = background(lambda: read_exactly(far, 1 << 20))
        near.pace.bytes_per_second = None
        sending.result(LIMIT)
        reading.result(LIMIT)
        near.pace.bytes_per_second = 1
        sending = background(lambda: near.send([bytes(1 << 20)]))
        near.abort()
        with pytest.raises(ChannelCancelledError):
            sending.result(LIMIT)


def test_a_side_that_speaks_tls_is_known_from_its_first_bytes() -> None:
    for first in (b"\x15\x03\x03\x00\x02\x02\x28", b"\x16\x03\x01\x02\x00"):
        channel, other = socket_pair()
        with channel, other:
            other.sendall(first)
            with pytest.raises(ChannelError, match="speaks TLS") as caught:
                channel.recv_into(bytearray(100))
            assert "--tls-creds" in caught.value.hint
        channel, other = socket_pair()
        with channel:
            other.sendall(first)
            other.close()
            with pytest.raises(ChannelError, match="speaks TLS"):
                channel.send([b"x"])
        channel, other = socket_pair()
        with channel, other:
            other.sendall(b"S")
            assert channel.recv_into(bytearray(1)) == 1
            other.sendall(first)
            assert read_exactly(channel, len(first)) == first


def test_the_peer_is_named(tmp_path: Path) -> None:
    with joined(f"unix:{tmp_path}/s") as (near, far):
        assert near.peer == far.peer == f"unix:{tmp_path}/s (pid {os.getpid()})"
    with joined("tcp:127.0.0.1:0") as (near, far):
        port = socket.socket(fileno=os.dup(near.fileno))
        with port:
            assert far.peer == f"{near.peer} (from 127.0.0.1:{port.getsockname()[1]})"
    assert isinstance(near, SocketChannel)
