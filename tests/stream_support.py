# SPDX-License-Identifier: Apache-2.0
"""Streams for tests: made by the writer or by hand, and read as a destination reads them."""

from __future__ import annotations

import io
import struct
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import xxhash

from sdeivirt.errors import StreamError
from sdeivirt.machine.base import PAGE_SIZE
from sdeivirt.migration.ram import PageDecoder, PageEncoder
from sdeivirt.migration.sections import Record, Section, pack
from sdeivirt.migration.stream import Frame, FrameReader, FrameWriter, Sections

RAM_BASE = 0x4000_0000
HEADER_SIZE, FRAME_SIZE = 16, 32
CONFIGURATION = b"\x81\xa6memory\xce\x00\x20\x00\x00"  # {"memory": 2 MiB}


class Clock(Record, frozen=True):
    ticks: int
    running: bool
    name: str = ""
    spare: bytes = b""
    history: list[int] = []  # noqa: RUF012 (msgspec copies it)


class Span(NamedTuple):
    """Where a frame is in a stream."""

    kind: bytes
    start: int
    end: int


def by_hand(
    number: int,
    kind: bytes,
    payload: bytes = b"",
    *,
    version: int = 0,
    flags: int = 0,
    instance: int = 0,
    sequence: int | None = None,
    length: int | None = None,
) -> bytes:
    """A frame as the format's description says, with a checksum that is right whatever else is wrong."""
    head = struct.pack(
        "<4sHHIIQ",
        kind,
        version,
        flags,
        instance,
        len(payload) if length is None else length,
        number if sequence is None else sequence,
    )
    return head + struct.pack("<Q", xxhash.xxh3_64_intdigest(head + payload)) + payload


def header(major: int = 1, minor: int = 2, reserved: int = 0, magic: bytes = b"SDEIVIRT") -> bytes:
    return struct.pack("<8sHHI", magic, major, minor, reserved)


def joined(parts: Iterable[bytes | memoryview]) -> bytes:
    return b"".join(parts)


def spans(stream: bytes) -> list[Span]:
    """The frames of a sound stream."""
    found, at = [], HEADER_SIZE
    while at < len(stream):
        end = at + FRAME_SIZE + int(struct.unpack_from("<I", stream, at + 12)[0])
        found.append(Span(stream[at : at + 4], at, end))
        at = end
    return found


def frames_of(stream: bytes, chunk: int | None = None) -> Iterator[Frame]:
    """All frames up to the end of the bytes, read `chunk` bytes at most at a time."""
    source = io.BytesIO(stream)
    reader = FrameReader(source.readinto if chunk is None else lambda view: source.readinto(view[:chunk]))
    reader.start()
    while (frame := reader.next()) is not None:
        yield frame


def load(stream: bytes, ram: memoryview) -> list[Section]:
    """Read a stream as a destination does. Raises StreamError."""
    reader = FrameReader(io.BytesIO(stream).readinto)
    reader.start()
    sections, decoder = Sections(), PageDecoder(ram)
    while not sections.complete:
        frame = reader.next()
        if frame is None:
            raise reader.cut_short()
        if frame.kind in (b"PAGE", b"ZERO"):
            decoder.apply(frame)
        elif frame.kind not in (b"CONF", b"PASS"):
            sections.feed(frame)
    if reader.next() is not None:
        raise StreamError(f"there is more behind the end, at offset {reader.offset:#x}")
    assert sections.end is not None
    assert sections.end.pages == decoder.stats.pages
    return sections.sections()


def a_ram(pages: int = 8) -> bytearray:
    """Pages of every sort: zeroes, text that packs well, bytes that do not, and the same again."""
    ram = bytearray(pages * PAGE_SIZE)
    text = (b"%d bottles of beer on the wall. " * 128)[:PAGE_SIZE]
    for page in range(pages):
        at = page * PAGE_SIZE
        if page % 4 == 1:
            ram[at : at + PAGE_SIZE] = text.replace(b"%d", b"%02d" % (page % 8))
        elif page % 4 == 3:
            ram[at : at + PAGE_SIZE] = text
    return ram


def some_sections() -> list[Section]:
    return [
        pack("board", Clock(1, True, "of the board", b"\x01\x02", [1, 2, 3])),
        pack("clock", Clock(2, False), 0),
        pack("clock", Clock(2**64 - 1, True, "second"), 1),
    ]


def a_stream(ram: bytearray | None = None, compress: int = 1, sections: list[Section] | None = None) -> bytes:
    """A whole stream: a description of a machine, RAM in windows of 8 pages, sections, end."""
    ram = a_ram() if ram is None else ram
    sections = some_sections() if sections is None else sections
    writer = FrameWriter()
    encoder = PageEncoder(memoryview(ram), compress)
    parts: list[bytes | memoryview] = [writer.header(), *writer.frame(b"CONF", CONFIGURATION, version=1)]
    for first in range(0, len(ram) // PAGE_SIZE, 8):
        payload = encoder.window(first, 8)
        if payload is None:
            parts += writer.frame(b"ZERO", encoder.zero_run(first, 8))
        else:
            parts += map(bytes, writer.frame(b"PAGE", *payload))
    parts += writer.frame(b"PASS", struct.pack("<I", 1))
    parts += writer.describe(sections)
    for section in sections:
        parts += writer.section(section)
    parts += writer.end(encoder.stats.pages)
    return joined(parts)
