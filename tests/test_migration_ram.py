# SPDX-License-Identifier: Apache-2.0
"""RAM through PAGE and ZERO frames: exact for any content and any dirty map, and nothing hostile gets through."""

from __future__ import annotations

import mmap
import os
import random
import struct
import subprocess
import sys
import textwrap
import tracemalloc
from pathlib import Path

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from sdeivirt.errors import StreamError
from sdeivirt.machine.base import PAGE_SIZE
from sdeivirt.migration.ram import WINDOW_PAGES, PageDecoder, PageEncoder, PageStats
from sdeivirt.migration.stream import Frame, FrameWriter

from .stream_support import RAM_BASE, frames_of, joined

ZERO_PAGE = bytes(PAGE_SIZE)


def a_frame(kind: bytes, *buffers: bytes | memoryview) -> Frame:
    return Frame(kind, 0, 0, 0, 16, memoryview(joined(buffers)))


def pages_frame(address: int, count: int, encoding: int, table: list[int], data: bytes = b"") -> Frame:
    return a_frame(b"PAGE", struct.pack(f"<QII{len(table)}H", address, count, encoding, *table) + data)


def zero_frame(address: int, count: int) -> Frame:
    return a_frame(b"ZERO", struct.pack("<QQ", address, count))


def page(value: int) -> bytes:
    """Pages of few sorts: zeroes, alike but for one byte or where encoders look first, patterns, noise."""
    if value % 5 == 0:
        return ZERO_PAGE
    if value % 5 == 1:  # zeroes but for one byte
        return ZERO_PAGE[: value * 97 % PAGE_SIZE] + b"\x01" + ZERO_PAGE[value * 97 % PAGE_SIZE + 1 :]
    if value % 5 == 2:  # the same in most places
        return b"\x55" * 4000 + value.to_bytes(2, "little") + b"\x55" * 94
    if value % 5 == 3:
        return struct.pack("<I", value) * 1024
    return random.Random(value).randbytes(PAGE_SIZE)


def ram_of(values: list[int]) -> bytearray:
    return bytearray(b"".join(page(value) for value in values))


def transfer(encoder: PageEncoder, decoder: PageDecoder, first: int, count: int, dirty: bytearray | None) -> None:
    payload = encoder.window(first, count, dirty)
    if payload is None:
        decoder.apply(a_frame(b"ZERO", encoder.zero_run(first, count)))
    else:
        decoder.apply(a_frame(b"PAGE", *payload))


def counts(stats: PageStats) -> tuple[int, int, int, int]:
    return stats.plain, stats.zero, stats.duplicate, stats.bytes


# -- there and back

VALUES = st.lists(st.integers(0, 40), min_size=1, max_size=24)


@given(VALUES, st.sampled_from([0, 1, 3]), st.binary(min_size=1, max_size=3))
def test_all_of_ram_arrives(values: list[int], compress: int, before: bytes) -> None:
    ram = ram_of(values)
    there = bytearray((before * len(ram))[: len(ram)])
    encoder, decoder = PageEncoder(memoryview(ram), compress), PageDecoder(memoryview(there))
    transfer(encoder, decoder, 0, len(values), None)
    assert there == ram
    assert counts(encoder.stats) == counts(decoder.stats)
    different = {page(value) for value in values} - {ZERO_PAGE}
    zero = sum(page(value) == ZERO_PAGE for value in values)
    assert counts(encoder.stats)[:3] == (len(different), zero, len(values) - zero - len(different))


@given(VALUES, st.data())
def test_dirty_pages_arrive_and_others_stay(values: list[int], data: st.DataObject) -> None:
    ram = ram_of(values)
    there = bytearray(b"\xa5" * len(ram))
    dirty = bytearray(data.draw(st.lists(st.booleans(), min_size=len(values), max_size=len(values))))
    first = data.draw(st.integers(0, len(values) - 1))
    count = data.draw(st.integers(1, len(values) - first))
    dirty[data.draw(st.integers(first, first + count - 1))] = 1
    encoder, decoder = PageEncoder(memoryview(ram), 1), PageDecoder(memoryview(there))
    transfer(encoder, decoder, first, count, dirty)
    for number in range(len(values)):
        sent = first <= number < first + count and dirty[number]
        at = number * PAGE_SIZE
        assert there[at : at + PAGE_SIZE] == (ram[at : at + PAGE_SIZE] if sent else b"\xa5" * PAGE_SIZE)
    assert encoder.stats.pages == decoder.stats.pages == dirty.count(1, first, first + count)


@pytest.mark.parametrize("compress", [0, 1, 19, 22])
@pytest.mark.parametrize("seed", range(3))
def test_large_rams_arrive_pass_after_pass(seed: int, compress: int) -> None:
    chance = random.Random(seed)
    pages = 2 * WINDOW_PAGES + 100
    sorts = [ZERO_PAGE] * 3 + [chance.randbytes(PAGE_SIZE) for _ in range(5)]
    ram = bytearray(b"".join(chance.choice((*sorts, page(chance.randrange(2000)))) for _ in range(pages)))
    there = bytearray(len(ram))
    encoder, decoder = PageEncoder(memoryview(ram), compress), PageDecoder(memoryview(there))
    dirty: bytearray | None = None
    for _ in range(3):
        for first in range(0, pages, WINDOW_PAGES):
            count = min(WINDOW_PAGES, pages - first)
            if dirty is None or dirty.count(1, first, first + count):
                transfer(encoder, decoder, first, count, dirty)
        assert there == ram
        dirty = bytearray(chance.random() < 0.05 for _ in range(pages))
        for number in range(pages):
            if dirty[number]:
                ram[number * PAGE_SIZE : (number + 1) * PAGE_SIZE] = page(chance.randrange(2000))
    assert counts(encoder.stats) == counts(decoder.stats)


def test_windows_of_zeroes_and_of_noise_take_the_short_ways() -> None:
    ram = bytearray(random.Random(1).randbytes(2 << 20)) + bytearray(4 << 20)
    encoder = PageEncoder(memoryview(ram))
    noise = encoder.window(0, 512)
    assert noise is not None
    assert joined(noise) == struct.pack("<QII", RAM_BASE, 512, 0) + bytes(1024) + ram[: 2 << 20]
    assert encoder.window(512, 512) is None
    assert encoder.zero_run(512, 1024) == struct.pack("<QQ", RAM_BASE + (2 << 20), 1024)
    # The zeroes of a window that is not dirty as a whole are no reason to say so of all of it.
    some = encoder.window(512, 512, bytearray(600) + b"\x01\x00\x01" + bytes(1000))
    assert some is not None
    assert joined(some) == struct.pack("<QII3H", RAM_BASE + 600 * PAGE_SIZE, 3, 0, 1, 2, 1)


def test_compression_that_gains_nothing_is_left_out() -> None:
    noise = bytearray(random.Random(2).randbytes(8 * PAGE_SIZE))
    payload = PageEncoder(memoryview(noise), 3).window(0, 8)
    assert payload is not None
    assert struct.unpack_from("<QII", payload[0])[2] == 0
    payload = PageEncoder(memoryview(ram_of([2, 3, 7, 8])), 3).window(0, 4)
    assert payload is not None
    assert struct.unpack_from("<QII", payload[0])[2] == 1
    assert len(joined(payload)) < PAGE_SIZE


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory is counted by Linux")
def test_zeroes_are_not_written_where_zeroes_are() -> None:
    size = 64 << 20
    with mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as ram:
        ram[5 * PAGE_SIZE : 6 * PAGE_SIZE] = b"x" * PAGE_SIZE
        decoder = PageDecoder(memoryview(ram))
        before = resident()
        decoder.apply(zero_frame(RAM_BASE, size // PAGE_SIZE))
        assert ram[5 * PAGE_SIZE : 6 * PAGE_SIZE] == ZERO_PAGE
        decoder.apply(pages_frame(RAM_BASE + size // 2, 512, 0, [1] * 512))
        assert resident() - before < 1 << 20
        del decoder


def test_fresh_ram_is_not_even_read_where_nothing_was_written() -> None:
    """Reading a page of a file in memory that nobody has written gives it memory."""
    size = 64 << 20
    file = os.memfd_create("ram")
    os.ftruncate(file, size)
    with mmap.mmap(file, size, mmap.MAP_SHARED) as ram:
        decoder = PageDecoder(memoryview(ram), fresh=True)
        everything = zero_frame(RAM_BASE, size // PAGE_SIZE)
        decoder.apply(everything)
        assert os.fstat(file).st_blocks == 0
        decoder.apply(pages_frame(RAM_BASE + 7 * PAGE_SIZE, 2, 0, [0, 1], b"x" * PAGE_SIZE))
        assert ram[7 * PAGE_SIZE : 8 * PAGE_SIZE] == b"x" * PAGE_SIZE
        decoder.apply(everything)
        assert ram[7 * PAGE_SIZE : 8 * PAGE_SIZE] == ZERO_PAGE
        assert os.fstat(file).st_blocks * 512 <= 2 << 20
        del decoder
    os.close(file)


def resident() -> int:
    """Bytes of memory that this process has."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * mmap.PAGESIZE


# -- a guest that writes meanwhile

SCRIBBLER = """
    import mmap, random, sys
    size, chance = int(sys.argv[2]), random.Random(int(sys.argv[3]))
    with open(sys.argv[1], "r+b") as file:
        ram = mmap.mmap(file.fileno(), size)
    patterns = [bytes(4096), bytes([1]) * 4096, chance.randbytes(4096), bytes(2048) + chance.randbytes(2048)]
    print("writing", flush=True)
    while True:
        at = chance.randrange(size // 4096) * 4096
        ram[at : at + 4096] = chance.choice(patterns)
        at = chance.randrange(size)
        ram[at] = chance.randrange(256)
"""


@pytest.mark.process
@pytest.mark.parametrize("compress", [0, 1])
def test_content_and_checksum_agree_while_another_process_writes(tmp_path: Path, compress: int) -> None:
    size, seed = 4 << 20, 0x5DE1
    print(f"seed {seed:#x}")
    path = tmp_path / "ram"
    path.write_bytes(bytes(size))
    with path.open("r+b") as opened:
        ram = mmap.mmap(opened.fileno(), size)
    command = [sys.executable, "-c", textwrap.dedent(SCRIBBLER), str(path), str(size), str(seed)]
    there = bytearray(size)
    with subprocess.Popen(command, stdout=subprocess.PIPE) as scribbler:
        try:
            assert scribbler.stdout is not None
            assert scribbler.stdout.readline() == b"writing\n"
            writer = FrameWriter()
            encoder, decoder = PageEncoder(memoryview(ram), compress), PageDecoder(memoryview(there))
            changed, before = 0, bytes(there)
            for _ in range(100):
                stream = writer.header()
                for first in range(0, size // PAGE_SIZE, WINDOW_PAGES):
                    payload = encoder.window(first, WINDOW_PAGES)
                    buffers = [encoder.zero_run(first, WINDOW_PAGES)] if payload is None else payload
                    stream += joined(writer.frame(b"ZERO" if payload is None else b"PAGE", *buffers))
                for frame in frames_of(stream):
                    decoder.apply(frame)
                writer.frames = 0
                changed += before != there
                before = bytes(there)
            assert changed > 10  # it did write meanwhile
        finally:
            scribbler.kill()
    for first in range(0, size // PAGE_SIZE, WINDOW_PAGES):
        transfer(encoder, decoder, first, WINDOW_PAGES, None)
    assert there == ram[:]
    del encoder
    ram.close()


# -- hostile frames

RAM_PAGES = 8
PLAIN = page(3)


def squeezed(data: bytes, level: int = 3, checksum: bool = False) -> bytes:
    return zstandard.ZstdCompressor(level=level, write_checksum=checksum).compress(data)


def streamed(data: bytes) -> bytes:
    """Compressed without telling the size."""
    packer = zstandard.ZstdCompressor(level=3).compressobj()
    return packer.compress(data) + packer.flush()


END = RAM_BASE + RAM_PAGES * PAGE_SIZE
BOMB = squeezed(bytes(64 << 20), 1)


def lying(bomb: bytes, size: int) -> bytes:
    """Zstd that tells another size than it has. RFC 8878, 3.1.1.1: four bytes of it, behind one of the window."""
    assert bomb[4] >> 5 == 0b100
    return bomb[:6] + struct.pack("<I", size) + bomb[10:]


HOSTILE = {
    "no page": pages_frame(RAM_BASE, 0, 0, []),
    "513 pages": pages_frame(RAM_BASE, 513, 0, [1] * 513),
    "all pages": pages_frame(RAM_BASE, 2**32 - 1, 0, [1]),
    "below RAM": pages_frame(RAM_BASE - PAGE_SIZE, 1, 0, [1]),
    "address 0": pages_frame(0, 1, 0, [1]),
    "far away": pages_frame(2**64 - PAGE_SIZE, 1, 0, [1]),
    "behind RAM": pages_frame(END, 1, 0, [1]),
    "across the end": pages_frame(END - PAGE_SIZE, 2, 0, [1, 1]),
    "not a page's address": pages_frame(RAM_BASE + 8, 1, 0, [1]),
    "no table": pages_frame(RAM_BASE, 2, 0, [1]),
    "odd table": a_frame(b"PAGE", struct.pack("<QII", RAM_BASE, 2, 0) + b"\x01\x00\x01"),
    "the same as itself": pages_frame(RAM_BASE, 2, 0, [0, 3 + 1], PLAIN),
    "the same as a later one": pages_frame(RAM_BASE, 2, 0, [3 + 1, 0], PLAIN),
    "the same as none": pages_frame(RAM_BASE, 2, 0, [0, 0xFFFF], PLAIN),
    "the same as zeroes": pages_frame(RAM_BASE, 2, 0, [1, 3]),
    "the same as one that is not told": pages_frame(RAM_BASE, 2, 0, [2, 3]),
    "the same as the same": pages_frame(RAM_BASE, 3, 0, [0, 3, 3 + 1], PLAIN),
    "no data": pages_frame(RAM_BASE, 1, 0, [0]),
    "too little data": pages_frame(RAM_BASE, 2, 0, [0, 0], (PLAIN * 2)[:-1]),
    "too much data": pages_frame(RAM_BASE, 2, 0, [0, 0], PLAIN * 2 + b"x"),
    "data for none": pages_frame(RAM_BASE, 2, 0, [1, 1], b"x"),
    "another encoding": pages_frame(RAM_BASE, 1, 2, [0], PLAIN),
    "no zstd": pages_frame(RAM_BASE, 1, 1, [0], PLAIN),
    "zstd of nothing": pages_frame(RAM_BASE, 1, 1, [1], squeezed(b"")),
    "zstd, empty": pages_frame(RAM_BASE, 1, 1, [0]),
    "zstd of less": pages_frame(RAM_BASE, 2, 1, [0, 0], squeezed(PLAIN)),
    "zstd of more": pages_frame(RAM_BASE, 1, 1, [0], squeezed(PLAIN * 2)),
    "zstd of no size": pages_frame(RAM_BASE, 1, 1, [0], streamed(PLAIN)),
    "zstd, cut": pages_frame(RAM_BASE, 1, 1, [0], squeezed(PLAIN)[:-1]),
    "zstd and more": pages_frame(RAM_BASE, 1, 1, [0], squeezed(PLAIN) + b"x"),
    "zstd twice": pages_frame(RAM_BASE, 1, 1, [0], squeezed(PLAIN) * 2),
    "zstd, damaged": pages_frame(RAM_BASE, 1, 1, [0], squeezed(PLAIN, checksum=True)[:-1] + b"\x00"),
    "a bomb": pages_frame(RAM_BASE, 1, 1, [0], BOMB),
    "a bomb that lies": pages_frame(RAM_BASE, 1, 1, [0], lying(BOMB, PAGE_SIZE)),
    "zeroes: none": zero_frame(RAM_BASE, 0),
    "zeroes: 2^32": zero_frame(RAM_BASE, 2**32),
    "zeroes: 2^52": zero_frame(RAM_BASE, 2**52),
    "zeroes: all": zero_frame(RAM_BASE, 2**64 - 1),
    "zeroes: below": zero_frame(RAM_BASE - PAGE_SIZE, 2),
    "zeroes: behind": zero_frame(END, 1),
    "zeroes: across": zero_frame(RAM_BASE, RAM_PAGES + 1),
    "zeroes: between": zero_frame(RAM_BASE + 1, 1),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_frame_is_refused_whole(name: str) -> None:
    ram = bytearray(b"\xee" * RAM_PAGES * PAGE_SIZE)
    decoder = PageDecoder(memoryview(ram))
    frame = HOSTILE[name]
    with pytest.raises(StreamError, match=rf"damaged in frame 0 \({frame.kind.decode()}\) at offset 0x10: \w"):
        decoder.apply(frame)
    assert ram == b"\xee" * RAM_PAGES * PAGE_SIZE
    assert decoder.stats.pages == 0


@pytest.mark.parametrize("name", [name for name in HOSTILE if "bomb" in name])
def test_a_bomb_takes_no_memory(name: str) -> None:
    decoder = PageDecoder(memoryview(bytearray(RAM_PAGES * PAGE_SIZE)))
    tracemalloc.start()
    try:
        with pytest.raises(StreamError):
            decoder.apply(HOSTILE[name])
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


@given(
    st.integers(-2, RAM_PAGES + 2).map(lambda number: RAM_BASE + number * PAGE_SIZE) | st.integers(0, 2**64 - 1),
    st.integers(0, 12) | st.integers(0, 2**32 - 1),
    st.integers(0, 3),
    st.lists(st.integers(0, 14) | st.integers(0, 0xFFFF), max_size=12),
    st.integers(0, 12).map(lambda count: PLAIN * count) | st.binary(max_size=100),
)
def test_any_table_is_applied_as_it_says_or_refused(
    address: int, count: int, encoding: int, table: list[int], data: bytes
) -> None:
    ram = bytearray(b"\xee" * RAM_PAGES * PAGE_SIZE)
    there = bytearray(ram)
    try:
        PageDecoder(memoryview(there)).apply(pages_frame(address, count, encoding, table, data))
    except StreamError:
        assert there == ram
        return
    assert count == len(table)
    assert encoding == 0
    first = (address - RAM_BASE) // PAGE_SIZE
    for number, entry in enumerate(table, first):
        content = {1: ZERO_PAGE, 2: b"\xee" * PAGE_SIZE}.get(entry, PLAIN)
        ram[number * PAGE_SIZE : (number + 1) * PAGE_SIZE] = content
    assert there == ram
