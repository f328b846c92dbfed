# SPDX-License-Identifier: Apache-2.0
"""What is said of pages that come after the guest: which are lacking, which are needed, which have come.

LACK  zstd of a byte a page of RAM, 1 where the page is lacking
WANT  up to 1024 runs of pages, u32 first and u32 how many each, the most urgent first
GIVE  some of them: u32 how many runs, the runs, and what their pages hold, 512 pages at most
GOT   u64 bytes of payload taken so far, u32 faults so far, u32 their median and u32 their 99th percentile in us
HAVE  nothing: no page is lacking any more; the answer is the same

Pages are counted from the beginning of RAM. A map of bytes packs into next to nothing, and C reads it: the
guest stands still meanwhile.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import zstandard

from ..machine.base import PAGE_SIZE
from .frames import Frame, damaged

__all__ = [
    "MOST_RUNS",
    "Got",
    "pack_gift",
    "pack_map",
    "pack_wants",
    "read_gift",
    "read_got",
    "read_map",
    "read_wants",
    "runs",
]

MOST_RUNS = 1024
_GOT = struct.Struct("<QIII")
_LEVEL = 1
_WINDOW = 1 << 20
_U32 = 0xFFFF_FFFF


class Got(NamedTuple):
    """GOT: how far the other side is."""

    taken: int
    faults: int = 0
    median: int = 0
    slowest: int = 0

    def pack(self) -> bytes:
        """The 20 bytes of it."""
        return _GOT.pack(self.taken, *(min(value, _U32) for value in self[1:]))


def pack_map(lacking: bytes | bytearray) -> bytes:
    """LACK of a map, a byte a page: 0 or 1."""
    parameters = zstandard.ZstdCompressionParameters.from_level(_LEVEL, window_log=_WINDOW.bit_length() - 1)
    return zstandard.ZstdCompressor(compression_params=parameters).compress(bytes(lacking))


def read_map(frame: Frame, pages: int) -> bytearray:
    """The map of LACK for a RAM of that many pages. Raises StreamError."""
    try:
        # What does not tell its size, or lies, would be given as much memory as it likes.
        if zstandard.frame_content_size(frame.payload) != pages:
            raise damaged(frame, f"it is no map of {pages} pages")
        unpacker = zstandard.ZstdDecompressor(max_window_size=_WINDOW)
        lacking = bytearray(unpacker.decompress(frame.payload, max_output_size=pages, allow_extra_data=False))
    except zstandard.ZstdError as error:
        raise damaged(frame, f"the map cannot be unpacked: {error}") from None
    if len(lacking) != pages or lacking.count(0) + lacking.count(1) != pages:
        raise damaged(frame, "a page is lacking or it is not, and the map has something else")
    return lacking


def pack_wants(wanted: Sequence[tuple[int, int]]) -> bytes:
    """WANT of (first page, how many), 1 to 1024 of them."""
    return struct.pack(f"<{2 * len(wanted)}I", *(number for run in wanted for number in run))


def read_wants(frame: Frame, pages: int) -> list[tuple[int, int]]:
    """The runs of WANT, all in a RAM of that many pages. Raises StreamError."""
    if len(frame.payload) % 8:
        raise damaged(frame, "it ends in the middle of a run")
    return _runs(frame, frame.payload, pages)


def pack_gift(given: Sequence[tuple[int, int]]) -> bytes:
    """GIVE up to where the pages follow."""
    return struct.pack(f"<{1 + 2 * len(given)}I", len(given), *(number for run in given for number in run))


def read_gift(frame: Frame, pages: int) -> tuple[list[tuple[int, int]], memoryview]:
    """The runs of GIVE, all in a RAM of that many pages, and what they hold. Raises StreamError."""
    payload = frame.payload
    count = int.from_bytes(payload[:4], "little")
    begin = 4 + 8 * count
    if not count or begin > len(payload):
        raise damaged(frame, f"it has no room for {count} runs")
    given = _runs(frame, payload[4:begin], pages)
    total = sum(many for _, many in given)
    if len(payload) - begin != total * PAGE_SIZE:
        raise damaged(frame, f"it has {len(payload) - begin} bytes for {total} pages")
    return given, payload[begin:]


def _runs(frame: Frame, data: memoryview, pages: int) -> list[tuple[int, int]]:
    numbers = struct.unpack(f"<{len(data) // 4}I", data)
    found = list(zip(numbers[::2], numbers[1::2], strict=True))
    for first, count in found:
        if not count or first + count > pages:
            raise damaged(frame, f"{count} pages from page {first} on are not in the guest's RAM")
    return found


def read_got(frame: Frame) -> Got:
    """What GOT tells."""
    return Got(*_GOT.unpack(frame.payload))


def runs(pages: bytearray, first: int, end: int) -> Iterator[tuple[int, int]]:
    """The runs of 1 in that part of a map: first page, and how many."""
    at = pages.find(1, first, end)
    while at >= 0:
        stop = pages.find(0, at, end)
        stop = end if stop < 0 else stop
        yield at, stop - at
        at = pages.find(1, stop, end)
