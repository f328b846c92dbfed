# SPDX-License-Identifier: Apache-2.0
"""The parts of machine qemu that watch what is written and typed, each by itself: no QEMU is needed."""

from __future__ import annotations

import asyncio
import os
import random
import socket
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import pytest

from sdeivirt.machine.base import PAGE_SIZE, RAM_BASE
from sdeivirt.machine.dirty import union
from sdeivirt.machine.qemu.console import Console
from sdeivirt.machine.qemu.dirtying import Dirtying
from sdeivirt.machine.qemu.dma import DeviceWrites
from sdeivirt.machine.qemu.flush import Flusher
from sdeivirt.machine.stage2 import Kind, Stage2, table_bytes

MIB = 1 << 20

# -- flushes


def flushing(work: Callable[[Flusher, list[int]], Coroutine[Any, Any, None]], online: int = 3) -> None:
    """Do that with a flusher, and a list of whom it has kicked, on an event loop."""
    kicked: list[int] = []

    async def run() -> None:
        await work(Flusher(kicked.append, lambda: online), kicked)

    asyncio.run(run())


def test_a_flush_is_done_by_the_vcpu_that_was_told_to() -> None:
    """Another that says so has done an earlier one."""

    async def work(flusher: Flusher, kicked: list[int]) -> None:
        flush = asyncio.ensure_future(flusher.flush())
        await asyncio.sleep(0)
        assert kicked == [1]
        flusher.flushed(0)
        flusher.flushed(1)
        await asyncio.sleep(0)
        assert not flush.done(), "nobody has been told to yet"
        flusher.offer(1)
        flusher.flushed(0)
        await asyncio.sleep(0)
        assert not flush.done(), "it was another one's"
        flusher.flushed(1)
        assert await flush

    flushing(work)


def test_a_flush_that_is_under_way_is_too_early_for_whoever_asks_later() -> None:
    async def work(flusher: Flusher, kicked: list[int]) -> None:
        first = asyncio.ensure_future(flusher.flush())
        await asyncio.sleep(0)
        flusher.offer(0)
        second = asyncio.ensure_future(flusher.flush())
        await asyncio.sleep(0)
        flusher.flushed(0)
        await asyncio.sleep(0)
        assert not first.done()
        assert not second.done()
        flusher.offer(0)
        flusher.flushed(0)
        assert await first
        assert await second

    flushing(work)


# -- the log


@pytest.fixture
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    loop = asyncio.new_event_loop()
    yield loop
    loop.close()


class Watched:
    """RAM with its tables and its log; a vCPU that does flushes at once, while `runs`."""

    def __init__(self, loop: asyncio.AbstractEventLoop, size: int, devices: bool = False) -> None:
        self.ram = memoryview(bytearray(size))
        self.stage2 = Stage2(memoryview(bytearray(table_bytes(size))).cast("Q"), 0)
        self.stage2.map(RAM_BASE, RAM_BASE + size, Kind.RAM)
        self.loop = loop
        self.flushes = 0
        self.dirtying = Dirtying(
            self.stage2, self.ram, self.loop.run_until_complete, self._kick, lambda: 1, devices=devices
        )

    def _kick(self, _bitmap: int) -> None:
        self.flushes += 1
        flusher = self.dirtying.flusher

        def flush() -> None:
            flusher.offer(0)
            flusher.flushed(0)

        self.loop.call_soon(flush)

    def noted(self) -> list[int]:
        return [page for page, dirty in enumerate(self.dirtying.collect()) if dirty]


def test_a_log_that_was_started_without_a_flush_takes_all_for_written(loop: asyncio.AbstractEventLoop) -> None:
    """vCPUs may have gone on writing through old translations, as soon as the guest has run; but no sooner."""
    watched = Watched(loop, 4 * MIB)
    watched.dirtying.start()
    assert watched.noted() == []
    watched.dirtying.goes_on()
    assert watched.noted() == list(range(1024))
    assert watched.noted() == []
    assert watched.flushes == 2


def test_a_log_that_was_started_with_a_flush_has_nothing_to_make_up_for(loop: asyncio.AbstractEventLoop) -> None:
    watched = Watched(loop, 4 * MIB)
    watched.dirtying.goes_on()
    watched.dirtying.start()
    assert watched.noted() == []
    assert watched.dirtying.log.written(RAM_BASE + 5 * PAGE_SIZE)
    assert watched.noted() == [5]


def test_tables_are_used_again_once_a_flush_has_come_between(loop: asyncio.AbstractEventLoop) -> None:
    """The log is stopped while the guest runs: a vCPU may be on its way through a table that a block replaces."""
    watched = Watched(loop, 64 * MIB)
    watched.dirtying.goes_on()
    for _ in range(3):
        watched.dirtying.start()
        for block in range(32):
            assert watched.dirtying.log.written(RAM_BASE + block * 2 * MIB)
        assert not watched.stage2.resting
        watched.dirtying.log.stop()
        assert watched.stage2.resting
        before = watched.flushes
        watched.loop.run_until_complete(watched.dirtying.stop())
        assert watched.flushes == before + 1
        assert not watched.stage2.resting
    watched.dirtying.stopped()
    watched.dirtying.start()
    assert watched.dirtying.log.written(RAM_BASE)
    watched.loop.run_until_complete(watched.dirtying.stop())
    assert watched.stage2.resting, "a guest that stands still flushes nothing"
    watched.dirtying.goes_on()
    watched.dirtying.start()
    assert not watched.stage2.resting


# -- devices


@pytest.mark.parametrize("size", [PAGE_SIZE, 2 * MIB, 5 * MIB + PAGE_SIZE])
def test_every_page_that_a_device_writes_is_found_and_no_other(size: int) -> None:
    ram = memoryview(bytearray(size))
    chance = random.Random(size)
    writes = DeviceWrites(ram)
    pages = size // PAGE_SIZE
    for _ in range(20):
        found, wanted = bytearray(pages), bytearray(pages)
        for page in {0, pages - 1, *(chance.randrange(pages) for _ in range(3))}:
            ram[page * PAGE_SIZE + chance.randrange(PAGE_SIZE)] ^= 1 << chance.randrange(8)
            wanted[page] = 1
        writes.add_changed(found)
        assert found == wanted
        writes.add_changed(found := bytearray(pages))
        assert not any(found)


def test_what_cpus_and_what_devices_write_is_one_map(loop: asyncio.AbstractEventLoop) -> None:
    watched = Watched(loop, 4 * MIB, devices=True)
    watched.dirtying.goes_on()
    watched.dirtying.start()
    assert watched.dirtying.log.written(RAM_BASE + 7 * PAGE_SIZE)
    watched.ram[600 * PAGE_SIZE] = 1
    assert watched.noted() == [7, 600]
    assert watched.noted() == []
    without = Watched(loop, 4 * MIB)
    without.dirtying.goes_on()
    without.dirtying.start()
    without.ram[600 * PAGE_SIZE] = 1
    assert without.noted() == []


def test_maps_are_joined() -> None:
    one, other = bytearray([0, 1, 0, 1]), bytearray([0, 0, 1, 1])
    assert union(one, other) == bytearray([0, 1, 1, 1])
    assert (one, other) == (bytearray([0, 1, 0, 1]), bytearray([0, 0, 1, 1]))
    assert union(one, bytearray(4)) is one


# -- the serial port


def received(line: socket.socket, count: int) -> bytes:
    got = b""
    while len(got) < count and (more := line.recv(1 << 16)):
        got += more
    return got


def test_input_that_has_waited_elsewhere_arrives_whole_and_first() -> None:
    """However little room there is: a part of it finds none, and what is typed meanwhile has to wait."""
    typed = os.urandom(1 << 18)

    async def run() -> None:
        ours, theirs = socket.socketpair()
        with ours, theirs:
            ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
            console = Console(ours, lambda _data: None, lambda: None, lambda _error: None)
            console.hold()
            assert console.type_in(b"x") == 0
            console.release(typed)
            assert console.waiting, "there was room for all of it"
            assert console.type_in(b"x") == 0
            reading = asyncio.create_task(asyncio.to_thread(received, theirs, len(typed)))
            assert await asyncio.wait_for(reading, 30) == typed
            while console.waiting:
                await asyncio.sleep(0)
            assert console.type_in(b"y") == 1
            assert await asyncio.to_thread(received, theirs, 1) == b"y"

    asyncio.run(run())


def test_input_that_found_no_room_goes_with_the_guest() -> None:
    """It moves again before all has got in: what has and what has not are all of it."""
    typed = os.urandom(1 << 16)

    async def run() -> None:
        ours, theirs = socket.socketpair()
        with ours, theirs:
            ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
            console = Console(ours, lambda _data: None, lambda: None, lambda _error: None)
            console.release(typed)
            console.hold()
            left = console.waiting
            assert 0 < len(left) < len(typed)
            assert await asyncio.to_thread(received, theirs, len(typed) - len(left)) + left == typed
            await asyncio.sleep(0)
            assert console.waiting == left, "what is held is not sent"
            console.release()
            assert await asyncio.to_thread(received, theirs, len(left)) == left
            console.give_up()

    asyncio.run(run())
