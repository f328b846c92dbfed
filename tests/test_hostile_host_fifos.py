# SPDX-License-Identifier: Apache-2.0
"""Injection FIFOs and whatever else can be written to them, or put in their place."""

from __future__ import annotations

import asyncio
import os
import random
import re
import resource
import socket
import threading
from pathlib import Path

import pytest

from sdeivirt.control import fifos
from sdeivirt.control.fifos import Numbers

from .control_support import LIMIT
from .test_control_fifos import Rig, with_rig

FORMS = [
    *(b"0", b"00", b"0x0", b"0X7F", b"18446744073709551615", b"0xffffffffffffffff", b"99999999999999999999"),
    *(b"-1", b"+1", b"1.", b"1e3", b"0x", b"x1", b"0b1", b"0o7", b"1_0", b"0x1g", b"0x10000000000000000"),
    *(
        b"1" * 21,
        b"1" * 5000,
        b"0x" + b"0" * 17,
        b"\x00",
        b"1\x00",
        b"\xd9\xa3",
        b"\xff",
        b"1;2",
        b"1,2",
        b'"1"',
        b"NaN",
    ),
]
BLANKS = [b" ", b"\n", b"\r\n", b"\t", b"\v\f", b"   \n\n"]


def numbers_in(data: bytes) -> list[int]:
    """What is to be injected, by a reader who has the whole text."""
    found = []
    for word in data.split():
        if re.fullmatch(rb"[0-9]{1,20}", word):
            found.append(int(word, 10))
        elif re.fullmatch(rb"0[xX][0-9a-fA-F]{1,16}", word):
            found.append(int(word, 16))
    return found


def garbage(chance: random.Random, size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        kind = chance.randrange(4)
        if kind < 2:
            data += chance.choice(FORMS) + chance.choice(BLANKS)
        elif kind == 2:
            data += chance.randbytes(chance.randrange(40))
        else:
            data += chance.choice(FORMS)
    return bytes(data)


async def served(rig: Rig, count: int) -> None:
    async with asyncio.timeout(LIMIT):
        while len(rig.injected) < count:
            await asyncio.sleep(0)
        for _ in range(20):  # and none too many
            await asyncio.sleep(0)


def test_of_any_garbage_only_numbers_are_injected(tmp_path: Path) -> None:
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    chance = random.Random(seed)

    async def body(rig: Rig) -> None:
        for _ in range(60):
            data = garbage(chance, chance.choice((10, 100, 5000, 20_000)))
            expected = [(number, 0) for number in numbers_in(data) if number != 999]
            rig.write(0, data)
            await served(rig, len(expected))
            assert rig.injected == expected
            rig.injected.clear()

    with_rig(tmp_path, 1, body)


@pytest.mark.campaign
def test_garbage_in_any_pieces() -> None:
    """The same without a FIFO, so that it can be a lot: 20,000 texts, each cut anywhere."""
    chance = random.Random(1)
    for _ in range(20_000):
        data = garbage(chance, chance.choice((5, 50, 500)))
        numbers = Numbers()
        words: list[bytes] = []
        at = 0
        while at < len(data):
            size = chance.choice((1, 2, 31, 32, 33, 4096))
            words += numbers.feed(data[at : at + size])
            assert len(numbers._word) <= 33
            at += size
        words += numbers.feed(b"")
        assert numbers_in(b" ".join(words)) == numbers_in(data)


def test_many_writers_at_once_lose_nothing(tmp_path: Path) -> None:
    writers, lines = 40, 50

    async def body(rig: Rig) -> None:
        def write(first: int) -> None:
            for i in range(lines):
                rig.write(0, b"%d\n" % (first + i))  # one piece, and then it leaves
                os.close(os.open(tmp_path / "vcpu-0", os.O_WRONLY))

        threads = [threading.Thread(target=write, args=(1000 + i * lines,)) for i in range(writers)]
        for thread in threads:
            thread.start()
        await served(rig, writers * lines)
        for thread in threads:
            await asyncio.to_thread(thread.join)
        assert sorted(event for event, _ in rig.injected) == list(range(1000, 1000 + writers * lines))

    with_rig(tmp_path, 1, body)


@pytest.mark.campaign
def test_a_million_lines_in_a_burst(tmp_path: Path) -> None:
    async def body(rig: Rig) -> None:
        def burst() -> None:
            with open(tmp_path / "vcpu-0", "wb") as fifo:
                fifo.write(b"7\n" * 1_000_000)

        await asyncio.gather(asyncio.to_thread(burst), served(rig, 1_000_000))
        assert set(rig.injected) == {(7, 0)}
        assert len(rig.injected) == 1_000_000

    with_rig(tmp_path, 1, body)


@pytest.mark.parametrize("what", ["file", "directory", "link", "link to a FIFO", "socket", "nothing"])
def test_what_takes_the_place_of_a_fifo_is_not_read(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, what: str
) -> None:
    """It used to raise in the event loop, over and over, and again at the end."""
    folder = tmp_path / "vm"
    folder.mkdir()
    place = folder / "vcpu-0"

    def exchange() -> None:
        place.unlink()
        match what:
            case "file":
                place.write_text("5\n")
            case "directory":
                place.mkdir()
            case "link":
                place.symlink_to("/dev/zero")
            case "link to a FIFO":
                os.mkfifo(tmp_path / "other")
                place.symlink_to(tmp_path / "other")
            case "socket":
                with socket.socket(socket.AF_UNIX) as listener:
                    listener.bind(os.fspath(place))

    async def body(rig: Rig) -> None:
        errors: list[object] = []
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _loop, context: errors.append(context))
        fd = os.open(place, os.O_WRONLY)
        exchange()
        os.write(fd, b"1")
        os.close(fd)
        await served(rig, 1)
        rig.write(1, b"2\n")
        await served(rig, 2)
        assert rig.injected == [(1, 0), (2, 1)]
        selector = loop._selector  # type: ignore[attr-defined]
        async with asyncio.timeout(LIMIT):
            while selector.select(0):  # nothing that keeps the loop busy
                await asyncio.sleep(0)
        assert errors == []
        rig.fifos.close()
        if what == "directory":
            place.rmdir()  # not ours to remove

    with_rig(folder, 2, body)
    assert caplog.text.count("was removed: nothing can be injected through it any more") == 1


def test_a_fifo_outlives_a_shortage_of_descriptors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """What is written meanwhile waits; it used to be lost, with a traceback for every turn of the loop."""
    monkeypatch.setattr(fifos, "_RETRY", 0.05)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)

    async def body(rig: Rig) -> None:
        loop = asyncio.get_running_loop()
        errors: list[object] = []
        loop.set_exception_handler(lambda _loop, context: errors.append(context))
        writer = os.open(tmp_path / "vcpu-0", os.O_WRONLY)
        os.write(writer, b"1\n")
        await served(rig, 1)
        later = os.open(tmp_path / "vcpu-0", os.O_WRONLY | os.O_NONBLOCK)
        taken: list[int] = []
        try:
            # Descriptors are numbers below the limit: none is free when all of those are in use.
            resource.setrlimit(resource.RLIMIT_NOFILE, (later + 8, hard))
            os.close(later)
            os.close(writer)
            try:
                while True:
                    taken.append(os.open(os.devnull, os.O_RDONLY))
            except OSError:
                pass
            async with asyncio.timeout(LIMIT):
                while not caplog.messages:
                    await asyncio.sleep(0.001)
        finally:
            for fd in taken:
                os.close(fd)
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        rig.write(0, b"2")  # there is a reader, or this would fail
        await served(rig, 2)
        assert rig.injected == [(1, 0), (2, 0)]
        assert errors == []

    with_rig(tmp_path, 1, body)
    assert "vcpu-0: Too many open files: it is read again in 0.05 s" in caplog.messages
