# SPDX-License-Identifier: Apache-2.0
"""How pages stand in a stream: the layout of PAGE and ZERO frames, and reading it with suspicion.

PAGE  u64 address of the first page, u32 how many, u32 encoding of the data, a u16 for each page, the data
ZERO  u64 address of the first page, u64 how many: all of them zeroes

The u16 of a page: 0 its 4096 bytes are in the data, after those of the pages before it; 1 it is
all zeroes; 2 the frame does not tell of it; 3 + k it is as page k of the frame, an
earlier one that has its bytes in the data. Little endian, as all of the stream.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

import zstandard

from ..errors import StreamError
from ..machine.base import PAGE_SIZE, RAM_BASE
from .frames import Frame, damaged

__all__ = [
    "PLAIN",
    "SAME",
    "SKIPPED",
    "WINDOW_PAGES",
    "WINDOW_SIZE",
    "ZERO",
    "ZEROES",
    "PageFrame",
    "PageStats",
    "check_entries",
    "offset_in",
    "read_pages",
    "read_zeroes",
]

WINDOW_PAGES = 512
WINDOW_SIZE = WINDOW_PAGES * PAGE_SIZE

PLAIN, ZERO, SKIPPED, SAME = 0, 1, 2, 3  # a page's u16; SAME is the first of many
AS_THEY_ARE, ZSTD = 0, 1  # how the data are encoded

PAGES = struct.Struct("<QII")
RUN = struct.Struct("<QQ")

# ZEROES.startswith(view) tells by one memcmp whether a view of that size at most is all zeroes.
ZEROES = bytes(WINDOW_SIZE)


class PageStats:
    """How many pages went as their bytes, as zeroes, and as the same as another; bytes of frames' payloads."""

    __slots__ = ("bytes", "duplicate", "plain", "zero")

    def __init__(self) -> None:
        self.plain = 0
        self.zero = 0
        self.duplicate = 0
        self.bytes = 0

    @property
    def pages(self) -> int:
        """All of them."""
        return self.plain + self.zero + self.duplicate


class PageFrame(NamedTuple):
    """A PAGE frame of `pages` pages from `first` on, an offset in RAM in bytes. `entries` is None if all are PLAIN."""

    first: int
    pages: int
    entries: tuple[int, ...] | None
    data: memoryview
    compressed: bool


def read_pages(frame: Frame, size: int) -> PageFrame:
    """What a PAGE frame tells of a RAM of `size` bytes. Its data are good until the next frame is read.

    Raises StreamError for whatever cannot be.
    """
    payload = frame.payload
    address, count, encoding = PAGES.unpack_from(payload)
    if not 1 <= count <= WINDOW_PAGES:
        raise damaged(frame, f"{count} pages are not 1 to {WINDOW_PAGES}")
    first = offset_in(frame, address, count, size)
    begin = PAGES.size + 2 * count
    if len(payload) < begin:
        raise damaged(frame, f"it has no room for a table of {count} pages")
    table = payload[PAGES.size : begin]
    entries, plain = None, count
    if not ZEROES.startswith(table):
        entries = struct.unpack(f"<{count}H", table)
        plain = entries.count(PLAIN)
        check_entries(frame, entries)
    data = payload[begin:]
    expected = plain * PAGE_SIZE
    if encoding == ZSTD:
        data = memoryview(_unpack(frame, data, expected))
    elif encoding != AS_THEY_ARE:
        raise damaged(frame, f"an encoding {encoding} of pages is not known")
    if len(data) != expected:
        raise damaged(frame, f"it has {len(data)} bytes of data for {plain} pages")
    return PageFrame(first, count, entries, data, encoding == ZSTD)


def read_zeroes(frame: Frame, size: int) -> tuple[int, int]:
    """A ZERO frame: the offset in RAM of its first page, in bytes, and how many pages. Raises StreamError."""
    address, count = RUN.unpack(frame.payload)
    if not count:
        raise damaged(frame, "it is of no page")
    return offset_in(frame, address, count, size), count


def offset_in(frame: Frame, address: int, count: int, size: int) -> int:
    """Where in a RAM of `size` bytes those pages are. Raises StreamError."""
    first = address - RAM_BASE
    if address % PAGE_SIZE or first < 0 or count * PAGE_SIZE > size - first:
        raise damaged(frame, f"{count} pages from {address:#x} on are not in the guest's RAM")
    return first


def check_entries(frame: Frame, entries: tuple[int, ...]) -> None:
    """Raise StreamError for a table that points elsewhere."""
    if max(entries) < SAME:
        return
    for index, entry in enumerate(entries):
        if entry >= SAME and (entry - SAME >= index or entries[entry - SAME] != PLAIN):
            raise damaged(frame, f"page {index} of it is as page {entry - SAME}, which does not come before with data")


def _unpack(frame: Frame, packed: memoryview, expected: int) -> bytes:
    """Decompress exactly that many bytes."""
    try:
        # A frame that does not tell its size, or lies, would be given as much memory as it likes.
        if zstandard.frame_content_size(packed) != expected or not expected:
            raise damaged(frame, f"its data do not tell that they unpack to {expected} bytes")
        unpacker = zstandard.ZstdDecompressor(max_window_size=WINDOW_SIZE)
        return unpacker.decompress(packed, max_output_size=expected, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise StreamError(f"the stream is damaged in {frame}: its data cannot be unpacked: {error}") from None
