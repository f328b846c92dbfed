# SPDX-License-Identifier: Apache-2.0
"""Pages that come after their guest, without processes: what is said, in which order, and what a hostile side says."""

from __future__ import annotations

import os
import queue
import random
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from sdeivirt.errors import MigrationError, StreamError, UsageError
from sdeivirt.machine import MachineConfig
from sdeivirt.machine.base import PAGE_SIZE, RAM_BASE
from sdeivirt.machine.unicorn import UnicornMachine
from sdeivirt.migration.arriving import PagesAhead, Standstill
from sdeivirt.migration.channel import ChannelCutError, ChannelError, Pace, SocketChannel
from sdeivirt.migration.frames import Frame
from sdeivirt.migration.identity import Identity
from sdeivirt.migration.lacking import (
    Got,
    pack_gift,
    pack_map,
    pack_wants,
    read_gift,
    read_got,
    read_map,
    read_wants,
    runs,
)
from sdeivirt.migration.messages import Failure, Kind
from sdeivirt.migration.pageframes import RamStore
from sdeivirt.migration.pager import Pager
from sdeivirt.migration.pageserver import PageServer, Served, ServerOptions
from sdeivirt.migration.slow import SlowLink
from sdeivirt.migration.status import Progress
from sdeivirt.migration.wants import Wants
from sdeivirt.migration.wire import RefusedError, Wire

from .channel_support import background
from .control_support import LIMIT, wait_until

MEMORY = 2 << 20
PAGES = MEMORY // PAGE_SIZE


def a_frame(kind: bytes, payload: bytes) -> Frame:
    return Frame(kind, 0, 0, 0, 16, memoryview(payload))


# -- what is said


@given(st.lists(st.tuples(st.integers(0, 1), st.integers(1, 300)), max_size=20))
def test_a_map_survives(pieces: list[tuple[int, int]]) -> None:
    lacking = bytearray(b"".join(bytes((bit,)) * count for bit, count in pieces)) or bytearray(1)
    packed = pack_map(lacking)
    assert read_map(a_frame(b"LACK", packed), len(lacking)) == lacking
    assert bytearray(PAGES).count(1) == 0
    found = bytearray(len(lacking))
    for first, count in runs(lacking, 0, len(lacking)):
        assert count > 0
        found[first : first + count] = b"\1" * count
    assert found == lacking


def test_a_map_of_a_large_ram_is_small() -> None:
    """64 GiB of which every other page is lacking; nobody may wait for that."""
    assert len(pack_map(bytearray(b"\0\1" * (8 << 20)))) < 1 << 16


@pytest.mark.parametrize(
    "payload",
    [
        b"\0",
        zstandard.compress(bytes(PAGES - 1)),
        zstandard.compress(bytes(PAGES + 1)),
        zstandard.compress(b"\2" * PAGES),
        zstandard.compress(bytes(PAGES)) + b"\0",
        zstandard.compress(bytes(PAGES))[:-1],
        zstandard.ZstdCompressor(write_content_size=False).compress(bytes(PAGES)),
        # It claims to be as long as it has to be, and unpacks to 2 GiB.
        zstandard.compress(bytes(PAGES))[:4] + b"\0" * 20,
    ],
    ids=range(8),
)
def test_what_is_no_map_is_refused(payload: bytes) -> None:
    with pytest.raises(StreamError, match="LACK"):
        read_map(a_frame(b"LACK", payload), PAGES)


@given(st.binary(max_size=200))
def test_any_bytes_are_a_map_or_refused(payload: bytes) -> None:
    with suppress(StreamError):
        assert len(read_map(a_frame(b"LACK", payload), PAGES)) == PAGES


some_runs = st.lists(
    st.integers(0, PAGES - 1).flatmap(lambda first: st.tuples(st.just(first), st.integers(1, PAGES - first))),
    min_size=1,
    max_size=8,
)


@given(some_runs)
def test_wants_and_gifts_survive(found: list[tuple[int, int]]) -> None:
    assert read_wants(a_frame(b"WANT", pack_wants(found)), PAGES) == found
    content = os.urandom(PAGE_SIZE) * sum(count for _, count in found)
    given_runs, data = read_gift(a_frame(b"GIVE", pack_gift(found) + content), PAGES)
    assert (given_runs, bytes(data)) == (found, content)


def test_what_is_said_of_progress_survives() -> None:
    assert read_got(a_frame(b"GOT ", Got(1 << 40, 7, 1 << 40, 9).pack())) == Got(1 << 40, 7, (1 << 32) - 1, 9)


BAD_RUNS = [(PAGES, 1), (PAGES - 1, 2), (0, 0), (0, PAGES + 1), ((1 << 32) - 1, (1 << 32) - 1)]


@pytest.mark.parametrize("run", BAD_RUNS, ids=str)
def test_no_page_outside_of_ram_can_be_asked_for_or_given(run: tuple[int, int]) -> None:
    with pytest.raises(StreamError, match="not in the guest's RAM"):
        read_wants(a_frame(b"WANT", pack_wants([(0, 1), run])), PAGES)
    with pytest.raises(StreamError, match="not in the guest's RAM"):
        read_gift(a_frame(b"GIVE", pack_gift([(0, 1), run]) + bytes(2 * PAGE_SIZE)), PAGES)


@pytest.mark.parametrize(
    "payload",
    [
        pack_gift([(0, 1)]),
        pack_gift([(0, 1)]) + bytes(PAGE_SIZE - 1),
        pack_gift([(0, 1)]) + bytes(PAGE_SIZE + 1),
        struct.pack("<I", 1 << 31) + bytes(PAGE_SIZE),
        struct.pack("<I", 0) + bytes(PAGE_SIZE),
    ],
    ids=range(5),
)
def test_a_gift_holds_what_it_says(payload: bytes) -> None:
    with pytest.raises(StreamError, match="GIVE"):
        read_gift(a_frame(b"GIVE", payload), PAGES)


# -- which pages to ask for


def test_those_around_a_page_come_with_it() -> None:
    lacking = bytearray(b"\1" * 64)
    lacking[10] = 0
    wants = Wants(lacking, prefetch=8)
    wants.want(13)
    assert wants.take() == [(11, 5)]  # its group of 8, up to the page that is here
    wants.want(12)  # asked for already
    wants.want(10)  # here
    wants.want(8)
    wants.want(63)
    assert wants.take() == [(8, 2), (56, 8)]
    assert wants.take() == []
    wants.came(11, 5)
    wants.came(8, 2)
    assert wants.left == 63 - 7
    # After a new connection what has not come is asked for again, if somebody waits for it.
    wants.again()
    assert wants.take() == [(56, 8)]


def test_a_group_ends_with_ram() -> None:
    wants = Wants(bytearray(b"\1" * 13), prefetch=8)
    wants.want(12)
    assert wants.take() == [(8, 5)]
    for prefetch in (0, 513):
        with pytest.raises(UsageError):
            Wants(bytearray(1), prefetch)


def test_the_rest_is_asked_for_in_turn() -> None:
    wants = Wants(bytearray(b"\1" * 100))
    wants.came(0, 90)
    assert wants.rest(40, 4) == (90, 4)
    wants.came(90, 4)
    assert wants.rest(97, 4) == (97, 3)
    wants.came(97, 3)
    assert wants.rest(99, 64) == (94, 3)
    wants.came(94, 3)
    assert wants.rest(0, 64) == (0, 0)


# -- a slower link


def test_requests_overlap_on_a_slow_link_and_answers_do_not() -> None:
    now = 10.0
    link = SlowLink(0.003, 1e6, lambda: now)
    assert link.due() == link.due() == 10.003
    assert link.busy() == 0
    link.sent(4000)
    link.sent(1000)
    assert link.busy() == pytest.approx(0.005)
    now += 0.004
    assert link.busy() == pytest.approx(0.001)
    now += 1
    assert link.busy() == 0
    assert SlowLink(clock=lambda: now).due() == now
    for delay, bandwidth in ((-1.0, None), (0.0, 0.0)):
        with pytest.raises(UsageError):
            SlowLink(delay, bandwidth)


# -- the side that has them, against a side that a test plays


class Other:
    """What the other side says and hears, frame by frame."""

    def __init__(self, connection: socket.socket) -> None:
        self.channel = SocketChannel(connection, "the other side")
        self.channel.stall = LIMIT
        self.taken = 0
        self.wire = Wire(self.channel, "the other side")
        self.wire.send(Kind.DONE)  # something has been said before

    def pages(self, until: Callable[[list[int]], bool]) -> list[int]:
        """The pages that come, in order, until that is enough."""
        found: list[int] = []
        while not until(found):
            frame = self.wire.next()
            self.taken += len(frame.payload)
            self.wire.send(Kind.GOT, Got(self.taken).pack())
            if frame.kind == Kind.GIVE:
                given_runs, _ = read_gift(frame, PAGES)
            elif frame.kind == b"ZERO":
                given_runs = [tuple(struct.unpack("<QQ", frame.payload))]
                given_runs = [((at - RAM_BASE) // PAGE_SIZE, count) for at, count in given_runs]
            else:
                assert frame.kind == b"PAGE"
                at, count = struct.unpack_from("<QI", frame.payload)
                given_runs = [((at - RAM_BASE) // PAGE_SIZE, count)]
            for first, count in given_runs:
                found += range(first, first + count)
        return found


@contextmanager
def serving(
    ram: bytes, lacking: bytearray, options: ServerOptions, tell: Callable[[Served], None] = lambda _: None
) -> Iterator[tuple[Other, Callable[[], None]]]:
    """A page server, the other side of it, and what waits for its end and raises what it raised."""
    near, far = socket.socketpair()
    other = Other(far)
    wire = Wire(SocketChannel(near, "the test"), "the test")
    wire.send(Kind.DONE)
    assert wire.next().kind == other.wire.next().kind == Kind.DONE
    server = PageServer(wire, RamStore(memoryview(ram)), lacking, options, tell)
    ended = background(server.run)
    try:
        yield other, lambda: ended.result(LIMIT)
    finally:
        other.channel.close()
        ended.exception(LIMIT)
        wire.channel.close()


RAM = random.Random(5).randbytes(MEMORY // 2) + bytes(MEMORY // 2)


@settings(max_examples=30, deadline=None)
@given(some_runs, some_runs, st.integers(0, 3))
def test_each_page_that_is_lacking_is_sent_once(
    lacks: list[tuple[int, int]], wanted: list[tuple[int, int]], compress: int
) -> None:
    lacking = bytearray(PAGES)
    for first, count in lacks:
        lacking[first : first + count] = b"\1" * count
    expected = [page for page in range(PAGES) if lacking[page]]
    with serving(RAM, lacking, ServerOptions(compress)) as (other, ended):
        for run in wanted:
            other.wire.send(Kind.WANT, pack_wants([run, run]))
        assert sorted(other.pages(lambda found: len(found) >= len(expected))) == expected
        other.wire.send(Kind.HAVE)
        assert other.wire.next().kind == Kind.HAVE  # and no page before it
        ended()


def test_what_is_asked_for_comes_alone_where_nothing_else_is_wanted() -> None:
    with serving(RAM, bytearray(b"\1" * PAGES), ServerOptions(rest=False)) as (other, ended):
        other.wire.send(Kind.WANT, pack_wants([(500, 2), (7, 1), (200, 100)]))
        assert other.pages(lambda found: len(found) >= 103) == [*range(500, 502), 7, *range(200, 300)]
        other.wire.send(Kind.HAVE)
        assert other.wire.next().kind == Kind.HAVE
        ended()


def test_what_is_asked_for_overtakes_the_rest() -> None:
    """Nobody takes note of the rest: only so much of it is under way, and what is asked for comes behind that."""
    ram = random.Random(7).randbytes(1 << 20) * 64
    pages = len(ram) // PAGE_SIZE
    with serving(ram, bytearray(b"\1" * pages), ServerOptions()) as (other, _):
        before = other.wire.next()
        assert before.kind == b"PAGE"
        other.wire.send(Kind.WANT, pack_wants([(pages - 1, 1)]))
        size = len(before.payload)
        while (frame := other.wire.next()).kind != Kind.GIVE:
            size += len(frame.payload)
        assert size <= 2 << 20  # of 64 MiB


def test_a_link_that_becomes_slow_does_not_stop_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    """Large pieces are under way, then hardly any may be; the end of a piece is told of with what follows."""
    now = 0.0
    monkeypatch.setattr("sdeivirt.migration.pageserver.time", SimpleNamespace(monotonic=lambda: now))
    ram = random.Random(11).randbytes(1 << 20) * 64
    pages = len(ram) // PAGE_SIZE
    lacking = bytearray(int(page % 4 != 0) for page in range(pages))
    expected = lacking.count(1)
    with serving(ram, lacking, ServerOptions()) as (other, ended):
        found = told = taken = 0
        while found < expected:
            frame = other.wire.next()
            assert frame.kind == b"PAGE"
            found += struct.unpack_from("<QI", frame.payload)[1]
            taken += len(frame.payload)
            if taken - told >= 32 << 10:  # as a pager does
                told = taken
                other.wire.send(Kind.GOT, Got(taken).pack())
                now += found > expected // 2
        other.wire.send(Kind.HAVE)
        assert other.wire.next().kind == Kind.HAVE
        ended()


def test_the_rest_goes_on_behind_what_was_asked_for() -> None:
    with serving(RAM, bytearray(b"\1" * PAGES), ServerOptions(pace=Pace(100 * PAGE_SIZE))) as (other, _):
        other.wire.send(Kind.WANT, pack_wants([(100, 1)]))
        found = other.pages(lambda found: 100 in found and found[-1] != 100)
        assert found[found.index(100) + 1] == 101


def test_the_limit_is_for_what_nobody_asked_for() -> None:
    told: list[int] = []
    options = ServerOptions(pace=Pace(1))
    with serving(RAM, bytearray(b"\1" * PAGES), options, lambda served: told.append(served.asked)) as (other, _):
        other.wire.send(Kind.WANT, pack_wants([(0, PAGES)]))
        assert sorted(other.pages(lambda found: len(found) >= PAGES)) == list(range(PAGES))
        assert told[-1] == 1


@pytest.mark.parametrize(
    ("kind", "payload"),
    [
        (Kind.WANT, pack_wants([(PAGES, 1)])),
        (Kind.WANT, pack_wants([(0, 1)]) + bytes(4)),
        (Kind.GOT, Got(1 << 50).pack()),
        (Kind.LACK, pack_map(bytearray(PAGES))),
        (b"PAGE", bytes(16)),
        (Kind.COMMIT, b"\x80"),
    ],
    ids=lambda value: value.decode("ascii", "replace")[:4] if isinstance(value, bytes) else "",
)
def test_who_asks_for_nonsense_gets_nothing_more(kind: bytes, payload: bytes) -> None:
    with serving(RAM, bytearray(b"\1" * PAGES), ServerOptions(rest=False)) as (other, ended):
        other.wire.send(kind, payload)
        with pytest.raises(MigrationError):
            ended()


def test_who_asks_again_and_again_costs_nothing() -> None:
    """The queue holds a page once, however often it is asked for."""
    with serving(RAM, bytearray(b"\1" * PAGES), ServerOptions(rest=False, link=SlowLink(0.2))) as (other, ended):
        for _ in range(50):
            other.wire.send(Kind.WANT, pack_wants([(0, 1), (0, 2)] * 100))
        other.wire.send(Kind.WANT, pack_wants([(5, 1)]))
        assert other.pages(lambda found: 5 in found) == [0, 1, 5]
        other.wire.send(Kind.HAVE)
        assert other.wire.next().kind == Kind.HAVE
        ended()


# -- the side that lacks them


@contextmanager
def paging(lacking: bytearray) -> Iterator[tuple[Other, UnicornMachine, Wants, Callable[[], None]]]:
    """A pager of a machine without a guest, the other side of it, and what waits for its end and raises."""
    near, far = socket.socketpair()
    other = Other(far)
    wire = Wire(SocketChannel(near, "the test"), "the test")
    wire.send(Kind.DONE)
    assert wire.next().kind == other.wire.next().kind == Kind.DONE
    with UnicornMachine(MachineConfig(vcpus=1, memory=MEMORY)) as machine:
        machine.start_incoming()
        wants = Wants(lacking, prefetch=1)
        machine.lack_pages(lacking[:], wants)
        ended = background(lambda: Pager(machine, wants).run(wire))
        frame = other.wire.next()
        assert frame.kind == Kind.LACK
        assert read_map(frame, PAGES) == lacking
        try:
            yield other, machine, wants, lambda: ended.result(LIMIT)
        finally:
            other.channel.close()
            ended.exception(LIMIT)
            wire.channel.close()


def test_what_is_wanted_is_asked_for_and_what_comes_is_supplied() -> None:
    lacking = bytearray(PAGES)
    lacking[3:6] = b"\1\1\1"
    lacking[100] = 1
    with paging(lacking) as (other, machine, wants, ended):
        machine.memory()[3 * PAGE_SIZE : 6 * PAGE_SIZE] = b"\xee" * 3 * PAGE_SIZE  # older than what comes
        wants.want(4)
        frame = other.wire.next()
        assert (frame.kind, read_wants(frame, PAGES)) == (Kind.WANT, [(4, 1)])
        wants.want(4)
        wants.want(100)
        frame = other.wire.next()
        assert (frame.kind, read_wants(frame, PAGES)) == (Kind.WANT, [(100, 1)])
        other.wire.send(Kind.GIVE, pack_gift([(4, 1), (100, 1)]), b"\4" * PAGE_SIZE, b"\5" * PAGE_SIZE)
        # One that is not lacking is left alone; one of the two others is zeroes.
        table = struct.pack("<QII4H", RAM_BASE + 2 * PAGE_SIZE, 4, 0, 0, 1, 3, 3)
        other.wire.send(b"PAGE", table + b"\6" * PAGE_SIZE)
        assert other.wire.next().kind == Kind.HAVE
        other.wire.send(Kind.HAVE)
        ended()
        ram = machine.memory()
        assert [ram[page * PAGE_SIZE] for page in (2, 3, 4, 5, 100)] == [0, 0, 4, 6, 5]
        assert not machine.absent_count


@pytest.mark.parametrize(
    ("kind", "payload"),
    [
        (Kind.GIVE, pack_gift([(PAGES, 1)]) + bytes(PAGE_SIZE)),
        (b"PAGE", struct.pack("<QIIH", RAM_BASE + MEMORY, 1, 0, 1)),
        (b"PAGE", struct.pack("<QIIH", RAM_BASE - PAGE_SIZE, 1, 0, 1)),
        (b"PAGE", struct.pack("<QIIH", RAM_BASE, 1, 1, 0) + zstandard.compress(bytes(1 << 30))),
        (b"ZERO", struct.pack("<QQ", RAM_BASE, PAGES + 1)),
        (Kind.WANT, pack_wants([(0, 1)])),
        (b"SECT", b"\4sdei\x80"),
        (Kind.HAVE, b""),
    ],
    ids=range(8),
)
def test_who_sends_nonsense_changes_nothing(kind: bytes, payload: bytes) -> None:
    with paging(bytearray(b"\1" * PAGES)) as (other, machine, wants, ended):
        other.wire.send(kind, payload)
        with pytest.raises(StreamError):
            ended()
        assert machine.absent_count == wants.left == PAGES


def test_who_hangs_up_at_once_has_damaged_nothing() -> None:
    near, far = socket.socketpair()
    far.close()
    with SocketChannel(near, "the test") as channel, pytest.raises(ChannelCutError, match="has hung up at once"):
        Wire(channel, "the destination").next()


def test_a_guest_that_is_lost_is_told_of_in_the_last_word() -> None:
    """Unlike one that has ended, which needs no more."""
    near, far = socket.socketpair()
    other = Other(far)
    wire = Wire(SocketChannel(near, "the test"), "the test")
    wire.send(Kind.DONE)
    assert wire.next().kind == other.wire.next().kind == Kind.DONE
    with UnicornMachine(MachineConfig(vcpus=1, memory=MEMORY)) as machine:
        machine.start_incoming()
        wants = Wants(bytearray(b"\1" * PAGES))
        machine.lack_pages(wants.map(), wants)
        pager = Pager(machine, wants)
        ended = background(lambda: pager.run(wire))
        assert other.wire.next().kind == Kind.LACK
        pager.enough(Failure("it was killed"))
        with pytest.raises(RefusedError, match="it was killed"):
            other.wire.next()
        other.channel.close()
        with pytest.raises(ChannelError):
            ended.result(LIMIT)
        wire.channel.close()


@pytest.mark.parametrize("rest", [False, True])
def test_why_a_guest_is_lost_is_heard_in_the_midst_of_its_pages(rest: bool) -> None:
    """Also where the other side takes no more of them."""
    with serving(RAM, bytearray(b"\1" * PAGES), ServerOptions(rest=rest)) as (other, ended):
        other.wire.say(Kind.FAILURE, Failure("it was killed"))
        with pytest.raises(RefusedError, match="it was killed"):
            ended()


def test_a_pager_begins_again_where_the_last_connection_ended() -> None:
    lacking = bytearray(b"\1" * PAGES)
    with paging(lacking) as (other, machine, wants, ended):
        wants.want(9)
        assert other.wire.next().kind == Kind.WANT
        other.wire.send(b"ZERO", struct.pack("<QQ", RAM_BASE + 100 * PAGE_SIZE, 300))
        wait_until(lambda: wants.left == PAGES - 300)
        other.channel.close()
        with pytest.raises(ChannelError):
            ended()
        near, far = socket.socketpair()
        again = Other(far)
        wire = Wire(SocketChannel(near, "the test"), "the test")
        wire.send(Kind.DONE)
        assert wire.next().kind == again.wire.next().kind == Kind.DONE
        second = background(lambda: Pager(machine, wants).run(wire))
        frame = again.wire.next()
        assert read_map(frame, PAGES) == b"\1" * 100 + bytes(300) + b"\1" * (PAGES - 400)
        frame = again.wire.next()
        assert (frame.kind, read_wants(frame, PAGES)) == (Kind.WANT, [(9, 1)])
        again.wire.send(b"ZERO", struct.pack("<QQ", RAM_BASE, PAGES))
        assert again.wire.next().kind == Kind.HAVE
        again.wire.send(Kind.HAVE)
        second.result(LIMIT)
        again.channel.close()
        wire.channel.close()


def test_a_guest_that_was_reset_needs_no_pages() -> None:
    """Whoever has them is told, hears of nothing else any more, and what is on its way is of no use."""
    with paging(bytearray(b"\1" * PAGES)) as (other, machine, wants, ended):
        wants.want(9)
        assert read_wants(other.wire.next(), PAGES) == [(9, 1)]
        machine.demand.forget()
        wants.want(10)
        assert other.wire.next().kind == Kind.HAVE
        other.wire.send(Kind.GIVE, pack_gift([(9, 1)]), b"\4" * PAGE_SIZE)
        other.wire.send(Kind.HAVE)
        ended()
        assert (wants.left, machine.absent_count) == (0, 0)
        assert not any(machine.memory())


def test_a_guest_that_is_reset_while_nobody_has_its_pages_goes_on() -> None:
    """And whoever comes again with them is told so."""
    callers: queue.SimpleQueue[Wire] = queue.SimpleQueue()
    shut = threading.Event()

    def caller(limit: float) -> Wire | None:
        if shut.is_set():
            raise MigrationError("nobody can come any more")
        with suppress(queue.Empty):
            return callers.get(timeout=min(limit, 0.05))
        return None

    with UnicornMachine(MachineConfig(vcpus=1, memory=MEMORY)) as machine:
        machine.start_incoming()
        wants = Wants(bytearray(b"\1" * PAGES))
        machine.lack_pages(wants.map(), wants)
        progress = Progress()
        ahead = PagesAhead(machine, progress, wants, Identity.ours(), caller, shut.set, Standstill(machine))

        def connected() -> tuple[Other, Wire]:
            near, far = socket.socketpair()
            other, wire = Other(far), Wire(SocketChannel(near, "the test"), "the test")
            wire.send(Kind.DONE)
            assert wire.next().kind == other.wire.next().kind == Kind.DONE
            return other, wire

        other, wire = connected()
        ended = background(lambda: ahead.run(wire, lambda _: None))
        assert other.wire.next().kind == Kind.LACK
        other.channel.close()
        wait_until(lambda: progress.now.status == "postcopy-paused")
        machine.demand.forget()
        wait_until(lambda: progress.now.status == "completed")
        assert progress.now.remaining == 0
        other, wire = connected()
        callers.put(wire)
        frame = other.wire.next()
        assert not any(read_map(frame, PAGES))
        assert other.wire.next().kind == Kind.HAVE
        other.wire.send(Kind.HAVE)
        ended.result(LIMIT)
        other.channel.close()


def test_who_wants_a_page_is_never_held_up() -> None:
    """The other side reads nothing, and neither side has room for what is asked for; who asks may hold any lock."""
    near, far = socket.socketpair()
    for end in (near, far):
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
    other = Other(far)
    wire = Wire(SocketChannel(near, "the test"), "the test")
    near.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)  # a channel wants much
    wire.send(Kind.DONE)
    assert wire.next().kind == other.wire.next().kind == Kind.DONE
    wire.channel.stall = None
    with UnicornMachine(MachineConfig(vcpus=1, memory=MEMORY)) as machine:
        machine.start_incoming()
        wants = Wants(bytearray(b"\1" * PAGES), prefetch=1)
        machine.lack_pages(wants.map(), wants)
        pager = Pager(machine, wants)
        ended = background(lambda: pager.run(wire))
        assert other.wire.next().kind == Kind.LACK
        order = random.Random(3).sample(range(PAGES), PAGES)

        def want_all() -> None:
            for page in order + order:
                wants.want(page)

        background(want_all).result(LIMIT)
        asked: list[int] = []
        while len(asked) < PAGES:
            frame = other.wire.next()
            assert frame.kind == Kind.WANT
            asked += [page for first, count in read_wants(frame, PAGES) for page in range(first, first + count)]
        assert sorted(asked) == list(range(PAGES))  # each once
        background(pager.enough).result(LIMIT)
        assert other.wire.next().kind == Kind.HAVE
        other.wire.send(Kind.HAVE)
        ended.result(LIMIT)
        other.channel.close()
        wire.channel.close()


class HeldWire(Wire):
    """Something happens before and while it is told which pages are lacking."""

    def __init__(self, connection: socket.socket, before: Callable[[], object]) -> None:
        super().__init__(SocketChannel(connection, "the test"), "the test")
        self.before = before

    def read_ahead(self) -> None:
        self.before()
        super().read_ahead()

    def send(self, kind: bytes, *buffers: bytes | memoryview, instance: int = 0, version: int = 0) -> None:
        if kind == Kind.LACK:
            self.before()
        super().send(kind, *buffers, instance=instance, version=version)


def test_who_comes_late_asks_on_no_connection_that_has_ended() -> None:
    """A thread that was about to ask when the connection broke, and goes on when another is being made."""
    with UnicornMachine(MachineConfig(vcpus=1, memory=MEMORY)) as machine:
        machine.start_incoming()
        wants = Wants(bytearray(b"\1" * PAGES), prefetch=1)
        machine.lack_pages(wants.map(), wants)
        pager = Pager(machine, wants)
        late: list[Callable[[], object]] = []

        def begin(before: Callable[[], object]) -> tuple[Other, Wire, Future[None]]:
            near, far = socket.socketpair()
            other, wire = Other(far), HeldWire(near, before)
            wire.send(Kind.DONE)
            assert wire.next().kind == other.wire.next().kind == Kind.DONE
            return other, wire, background(lambda: pager.run(wire))

        other, wire, ended = begin(lambda: None)
        assert other.wire.next().kind == Kind.LACK
        wants.want(9)
        assert read_wants(other.wire.next(), PAGES) == [(9, 1)]
        late.append(wants.hurry)
        other.channel.close()
        with pytest.raises(ChannelError):
            ended.result(LIMIT)

        other, again, ended = begin(lambda: late[0]())
        assert other.wire.next().kind == Kind.LACK
        assert read_wants(other.wire.next(), PAGES) == [(9, 1)]
        late[0]()
        wants.want(10)
        assert read_wants(other.wire.next(), PAGES) == [(10, 1)]
        other.wire.send(b"ZERO", struct.pack("<QQ", RAM_BASE, PAGES))
        assert other.wire.next().kind == Kind.HAVE
        other.wire.send(Kind.HAVE)
        ended.result(LIMIT)
        for channel in (other.channel, wire.channel, again.channel):
            channel.close()


def test_a_server_and_a_pager_agree_on_every_byte(tmp_path: Path) -> None:
    """All pages, while several threads want them in any order."""
    lacking = bytearray(b"\1" * PAGES)
    near, far = socket.socketpair()
    here, there = (Wire(SocketChannel(end, "the other"), "the other") for end in (near, far))
    for wire in (here, there):
        wire.send(Kind.DONE)
    assert here.next().kind == there.next().kind == Kind.DONE
    with UnicornMachine(MachineConfig(vcpus=1, memory=MEMORY)) as machine:
        machine.start_incoming()
        wants = Wants(lacking[:])
        machine.lack_pages(lacking, wants)
        served = background(lambda: _serve(there))

        def want(seed: int) -> None:
            for page in random.Random(seed).sample(range(PAGES), PAGES):
                wants.want(page)

        threads = [threading.Thread(target=want, args=(seed,)) for seed in range(3)]
        for thread in threads:
            thread.start()
        Pager(machine, wants).run(here)
        for thread in threads:
            thread.join()
        served.result(LIMIT)
        assert machine.memory() == RAM
    here.channel.close()
    there.channel.close()


def _serve(wire: Wire) -> None:
    lacking = read_map(wire.next(), PAGES)
    PageServer(wire, RamStore(memoryview(RAM)), lacking, ServerOptions(pace=Pace(4 << 20))).run()
