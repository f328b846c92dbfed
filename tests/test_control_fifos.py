# SPDX-License-Identifier: Apache-2.0
"""Injection FIFOs: numbers in, injections out, whatever else is written."""

from __future__ import annotations

import asyncio
import os
import stat
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdeivirt.control import fifos
from sdeivirt.control.fifos import InjectionFifos, Numbers
from sdeivirt.errors import UnknownEventError
from sdeivirt.sdei.service import Injection

from .control_support import LIMIT

Injected = list[tuple[int, int]]


class Rig:
    """FIFOs on a running event loop, and what was injected through them."""

    def __init__(self, folder: Path, vcpus: int) -> None:
        self.injected: Injected = []
        self.fifos = InjectionFifos(vcpus, lambda vcpu: folder / f"vcpu-{vcpu}", self._inject)
        self.folder = folder

    def _inject(self, event: int, vcpu: int) -> Future[Injection]:
        future: Future[Injection] = Future()
        if event == 999:
            future.set_exception(UnknownEventError("no event 0x3e7 is defined", "define it"))
        else:
            self.injected.append((event, vcpu))
            future.set_result(Injection(event, vcpu, "", False))
        return future

    def write(self, vcpu: int, data: bytes) -> None:
        """What `printf ... > vcpu-N` does."""
        fd = os.open(self.folder / f"vcpu-{vcpu}", os.O_WRONLY)
        assert os.write(fd, data) == len(data)
        os.close(fd)

    async def expect(self, *injected: tuple[int, int]) -> None:
        async with asyncio.timeout(LIMIT):
            while len(self.injected) < len(injected):
                await asyncio.sleep(0)
        assert self.injected == list(injected)
        self.injected.clear()


def with_rig(folder: Path, vcpus: int, body: Callable[[Rig], Awaitable[None]]) -> None:
    async def main() -> None:
        rig = Rig(folder, vcpus)
        rig.fifos.open()
        try:
            await body(rig)
        finally:
            rig.fifos.close()
        assert list(folder.iterdir()) == []

    asyncio.run(main())


def test_an_echo_injects(tmp_path: Path) -> None:
    async def body(rig: Rig) -> None:
        assert stat.S_ISFIFO((tmp_path / "vcpu-1").stat().st_mode)
        assert stat.S_IMODE((tmp_path / "vcpu-1").stat().st_mode) == 0o600
        rig.write(1, b"0\n")
        await rig.expect((0, 1))
        rig.write(0, b"0x40000010\n")
        await rig.expect((0x40000010, 0))
        rig.write(2, b"1 2\t3\n\n 0X4\r\n005\n")
        await rig.expect((1, 2), (2, 2), (3, 2), (4, 2), (5, 2))
        rig.write(1, b"7")  # no line end: the writer's leaving ends it
        await rig.expect((7, 1))

    with_rig(tmp_path, 3, body)


def test_writers_come_and_go(tmp_path: Path) -> None:
    async def body(rig: Rig) -> None:
        for i in range(200):
            rig.write(0, b"%d\n" % i)
            if i % 3 == 0:
                await rig.expect(*((j, 0) for j in range(max(0, i - 2), i + 1)))
        rig.injected.clear()
        stay = os.open(tmp_path / "vcpu-0", os.O_WRONLY)
        os.write(stay, b"1")
        rig.write(0, b"2\n")
        os.write(stay, b"3\n")
        os.close(stay)
        os.close(os.open(tmp_path / "vcpu-0", os.O_WRONLY))  # says nothing
        async with asyncio.timeout(LIMIT):
            while (3, 0) not in rig.injected:
                await asyncio.sleep(0)

    with_rig(tmp_path, 1, body)


def test_a_writer_never_meets_a_closed_fifo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The FIFO is opened anew whenever its writers have left; another that comes just then must not notice."""
    original = fifos._Fifo._open

    def open_late(fifo: fifos._Fifo) -> int:
        if events:
            fd = os.open(tmp_path / "vcpu-0", os.O_WRONLY | os.O_NONBLOCK)  # ENXIO, were there no reader
            os.write(fd, b"%d" % events.pop())
            os.close(fd)
        return original(fifo)

    async def body(rig: Rig) -> None:
        events.extend([3, 2])
        rig.write(0, b"1\n")
        await rig.expect((1, 0), (2, 0), (3, 0))

    events: list[int] = []
    monkeypatch.setattr(fifos._Fifo, "_open", open_late)
    with_rig(tmp_path, 1, body)


def test_an_idle_fifo_costs_nothing(tmp_path: Path) -> None:
    """A FIFO whose writers have all gone polls as hung up; that must not keep the loop busy."""

    async def body(rig: Rig) -> None:
        rig.write(0, b"1\n")
        await rig.expect((1, 0))
        selector = asyncio.get_running_loop()._selector  # type: ignore[attr-defined]
        async with asyncio.timeout(LIMIT):
            while selector.select(0):
                await asyncio.sleep(0)

    with_rig(tmp_path, 1, body)


def test_garbage_is_warned_of_and_passed_over(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def body(rig: Rig) -> None:
        rig.write(0, b"zero 0x -1 1.5 \xff\x00 999 " + b"9" * 5000 + b" 8\n")
        await rig.expect((8, 0))

    with_rig(tmp_path, 1, body)
    assert "vcpu-0: 'zero' is no event number" in caplog.messages
    assert all(len(message) < 120 for message in caplog.messages)


def test_what_cannot_be_injected_is_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def body(rig: Rig) -> None:
        rig.write(0, b"999 1\n")
        await rig.expect((1, 0))

    with_rig(tmp_path, 1, body)
    assert caplog.messages == ["vcpu-0: no event 0x3e7 is defined (define it)"]


def test_a_flood_is_served_and_its_warnings_are_few(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def body(rig: Rig) -> None:
        def flood() -> None:
            with open(tmp_path / "vcpu-0", "wb") as fifo:
                for _ in range(200):
                    fifo.write(b"1\n" * 500 + b"\xde\xad" * 500 + b"\n")

        await asyncio.gather(asyncio.to_thread(flood), other(rig))
        async with asyncio.timeout(LIMIT):
            while rig.injected.count((1, 0)) < 100_000:
                await asyncio.sleep(0.001)

    async def other(rig: Rig) -> None:
        """The other FIFO gets its turn all the while."""
        for i in range(20):
            rig.write(1, b"%d\n" % i)
            async with asyncio.timeout(LIMIT):
                while (i, 1) not in rig.injected[-5000:]:
                    await asyncio.sleep(0)

    with_rig(tmp_path, 2, body)
    assert 1 <= len(caplog.messages) < 100


def test_512_vcpus(tmp_path: Path) -> None:
    async def body(rig: Rig) -> None:
        for vcpu in range(512):
            rig.write(vcpu, b"0\n")
        async with asyncio.timeout(LIMIT):
            while len(rig.injected) < 512:
                await asyncio.sleep(0)
        assert sorted(vcpu for _event, vcpu in rig.injected) == list(range(512))

    with_rig(tmp_path, 512, body)


def test_a_fifo_that_was_removed_is_no_harm(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def body(rig: Rig) -> None:
        fd = os.open(tmp_path / "vcpu-0", os.O_WRONLY)
        (tmp_path / "vcpu-0").unlink()
        os.write(fd, b"1")
        os.close(fd)
        await rig.expect((1, 0))
        rig.write(1, b"2\n")
        await rig.expect((2, 1))

    with_rig(tmp_path, 2, body)
    assert "was removed" in caplog.text


@given(st.lists(st.sampled_from([b"1", b"0x1f", b"word"]), max_size=8), st.lists(st.integers(0, 60), max_size=6))
def test_words_are_the_same_from_any_chunks(words: list[bytes], cuts: list[int]) -> None:
    data = b" ".join(words)
    bounds = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    numbers = Numbers()
    found: list[bytes] = []
    for start, end in pairwise(bounds):
        if start < end:
            found += numbers.feed(data[start:end])
    found += numbers.feed(b"")
    assert found == words


def test_a_word_without_end_is_not_kept() -> None:
    numbers = Numbers()
    for _ in range(1000):
        assert list(numbers.feed(b"1" * 4096)) == []
    (word,) = numbers.feed(b" ")
    assert 32 < len(word) < 5000
