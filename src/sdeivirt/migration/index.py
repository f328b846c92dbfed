# SPDX-License-Identifier: Apache-2.0
"""A file with a guest's state as a place to fetch single pages from, in any order.

The file is gone through once, and the pages' contents are passed over: what is kept is which frame
holds the newest content of each page. A frame is read whole when a page of it is needed for the first time, and
its checksum looked at; from one that is not compressed single pages are read after that, each of which has to be
what it was then: others can write to the file while we read.
"""

from __future__ import annotations

import os
import struct
import threading
from array import array
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path

import msgspec
import xxhash

from ..errors import StreamError, UsageError
from ..files import cannot_read, open_regular
from ..machine.base import PAGE_SIZE
from .collector import Sections
from .description import CONFIGURATION, Configuration, read_configuration
from .frames import AGAIN, CHECKED, FRAME, KINDS, Frame, check_end, damaged
from .messages import Hello, Kind
from .pages import (
    AS_THEY_ARE,
    PAGES,
    PLAIN,
    SAME,
    SKIPPED,
    WINDOW_PAGES,
    ZEROES,
    ZSTD,
    check_entries,
    offset_in,
    read_pages,
    read_zeroes,
)
from .sections import Section
from .stream import FrameReader

__all__ = ["FileIndex"]

_HINT = "give a file that `sdeivirt save` has written"
_KEPT = 8  # frames that are kept unpacked
_NOWHERE = 0xFFFF


@dataclass(slots=True)
class _PageFrame:
    """A PAGE frame in the file. `where` tells which of its data a page has, None: those of its own place."""

    offset: int
    number: int
    length: int
    first: int
    count: int
    packed: bool
    checksum: int
    where: array[int] | None
    sums: array[int] | None = None  # once it was whole, those of its data, page by page; if it is not packed

    @property
    def data(self) -> int:
        """Where the pages' contents are in the file."""
        return self.offset + FRAME.size + PAGES.size + 2 * self.count


class FileIndex:
    """A :class:`~sdeivirt.migration.pageframes.PageStore`: the pages of a guest that was saved, and the rest of it.

    `lacking` tells which pages hold something. Any thread may read.
    """

    def __init__(self, path: Path) -> None:
        """Goes through the file. Raises UsageError if it cannot be read, StreamError for what is no whole state."""
        self.path = path
        self._lock = threading.Lock()
        self._unpacked: OrderedDict[int, memoryview] = OrderedDict()
        self._frames: list[_PageFrame] = []
        self._file = open_regular(path, UsageError, _HINT)
        try:
            self._index()
        except OSError as error:
            self._file.close()
            raise cannot_read(path, error, UsageError, _HINT) from error
        except BaseException:
            self._file.close()
            raise

    def close(self) -> None:
        """Give the file back."""
        self._file.close()

    # -- going through the file

    def _index(self) -> None:
        at = 0

        def read_into(view: memoryview) -> int:
            nonlocal at
            count = os.preadv(self._file.fileno(), [view], at)
            at += count
            return count

        reader = FrameReader(read_into)
        reader.start()
        sections = Sections()
        hello: Hello | None = None
        configuration: Configuration | None = None
        self._place = array("I")

        while not sections.complete:
            skipped = self._pass_over(reader, at, configuration)
            if skipped:
                at += skipped
                continue
            frame = reader.next()
            if frame is None:
                raise reader.cut_short()
            if frame.kind == Kind.HELLO and hello is None:
                hello = _hello(frame)
            elif frame.kind == Kind.CONFIGURATION and configuration is None:
                section = Section(CONFIGURATION, 0, frame.version, bytes(frame.payload))
                configuration = read_configuration(section)
                sections = Sections(ram=configuration.memory)
                self.description = section
                self._place = array("I", bytes(4 * (configuration.memory // PAGE_SIZE)))
            elif frame.kind == b"ZERO" and configuration is not None:
                first, count = read_zeroes(frame, configuration.memory)
                first //= PAGE_SIZE
                self._place[first : first + count] = array("I", bytes(4 * count))
            elif frame.kind != b"PASS":
                sections.feed(frame)
        check_end(os.fstat(self._file.fileno()).st_size, reader.offset)
        if configuration is None or hello is None:
            raise StreamError("the stream does not tell what it is of", AGAIN)
        self.configuration, self.migration = configuration, hello.migration
        self.sections = sections.sections()
        self.lacking = bytearray(map(bool, self._place))

    def _pass_over(self, reader: FrameReader, at: int, configuration: Configuration | None) -> int:
        """If a PAGE frame is next: note it down, and give its length. Raises StreamError."""
        head = os.pread(self._file.fileno(), FRAME.size + PAGES.size, at)
        if len(head) < FRAME.size + PAGES.size or head[:4] != b"PAGE":
            return 0
        kind, version, flags, instance, length, number, checksum = FRAME.unpack_from(head)
        frame = Frame(kind, version, instance, reader.number, at, memoryview(b""))
        limits = KINDS[kind]
        if version or flags or instance or number != reader.number or not limits.shortest <= length <= limits.longest:
            return 0  # whoever reads it says what is wrong
        if configuration is None:
            raise damaged(frame, "it comes before the description of the machine")
        address, count, encoding = PAGES.unpack_from(head, FRAME.size)
        if not 1 <= count <= WINDOW_PAGES or length < PAGES.size + 2 * count or encoding not in (AS_THEY_ARE, ZSTD):
            return 0
        first = offset_in(frame, address, count, configuration.memory) // PAGE_SIZE
        table = os.pread(self._file.fileno(), 2 * count, at + FRAME.size + PAGES.size)
        if len(table) < 2 * count or os.fstat(self._file.fileno()).st_size < at + FRAME.size + length:
            return 0
        entries = None
        if not ZEROES.startswith(table):
            entries = struct.unpack(f"<{count}H", table)
            check_entries(frame, entries)
        packed = encoding == ZSTD
        self._note(_PageFrame(at, number, length, first, count, packed, checksum, _places(entries)), entries)
        reader.number += 1
        reader.offset += FRAME.size + length
        return int(FRAME.size + length)

    def _note(self, frame: _PageFrame, entries: tuple[int, ...] | None) -> None:
        self._frames.append(frame)
        this, first = len(self._frames), frame.first  # 0 is for pages that hold nothing
        if entries is None:
            self._place[first : first + frame.count] = array("I", [this]) * frame.count
            return
        assert frame.where is not None
        for index, entry in enumerate(entries):
            if entry != SKIPPED:
                self._place[first + index] = this if frame.where[index] != _NOWHERE else 0

    # -- pages

    def read(self, first: int, count: int) -> bytes:
        """What those pages hold. Raises StreamError where the file is damaged."""
        parts = []
        with self._lock:
            at, end = first, first + count
            while at < end:
                place = self._place[at]
                stop = at + 1
                while stop < end and self._place[stop] == place:
                    stop += 1
                parts.append(self._of_frame(place - 1, at, stop) if place else bytes((stop - at) * PAGE_SIZE))
                at = stop
        return b"".join(parts)

    def _of_frame(self, number: int, first: int, end: int) -> bytes:
        """Pages [first, end), all of which a frame has."""
        frame = self._frames[number]
        sums = frame.sums
        data = self._data(number, frame) if sums is None else memoryview(b"")
        parts = []
        begin = first - frame.first
        for index, count in _in_order(frame.where, begin, end - frame.first):
            if sums is not None:
                parts.append(self._again(frame.data + index * PAGE_SIZE, sums[index : index + count]))
            else:
                parts.append(bytes(data[index * PAGE_SIZE : (index + count) * PAGE_SIZE]))
        return b"".join(parts)

    def _data(self, number: int, frame: _PageFrame) -> memoryview:
        """All data of a frame, if need be out of the file. Raises StreamError."""
        data = self._unpacked.get(number)
        if data is None:
            return self._load(number, frame)
        self._unpacked.move_to_end(number)
        return data

    def _again(self, offset: int, sums: array[int]) -> bytes:
        """Pages that were whole when their frame was read. Raises StreamError where they are others now."""
        size = len(sums) * PAGE_SIZE
        part = os.pread(self._file.fileno(), size, offset)
        if len(part) < size:
            raise StreamError(f"{self.path} has become shorter", AGAIN)
        if _sums(memoryview(part)) != sums:
            raise self._changed()
        return part

    def _changed(self) -> StreamError:
        return StreamError(f"{self.path} has changed while it was read", AGAIN)

    def _load(self, number: int, frame: _PageFrame) -> memoryview:
        """The data of a frame, unpacked, which is sound. Raises StreamError."""
        content = memoryview(os.pread(self._file.fileno(), FRAME.size + frame.length, frame.offset))
        found = Frame(b"PAGE", 0, 0, frame.number, frame.offset, content[FRAME.size :])
        if len(content) < FRAME.size + frame.length:
            raise StreamError(f"{self.path} has become shorter", AGAIN)
        checksum = xxhash.xxh3_64(content[:CHECKED])
        checksum.update(found.payload)
        if FRAME.unpack_from(content)[-1] != frame.checksum:
            raise self._changed()
        if checksum.intdigest() != frame.checksum:
            raise damaged(found, "the checksum is wrong")
        pages = read_pages(found, self.configuration.memory)
        if _places(pages.entries) != frame.where:
            raise self._changed()
        data = pages.data
        if not frame.packed:
            frame.sums = _sums(data)
            return data
        self._unpacked[number] = data
        if len(self._unpacked) > _KEPT:
            self._unpacked.popitem(last=False)
        return data


def _sums(data: memoryview) -> array[int]:
    """Checksums of pages."""
    digest = xxhash.xxh3_64_intdigest
    return array("Q", [digest(data[at : at + PAGE_SIZE]) for at in range(0, len(data), PAGE_SIZE)])


def _places(entries: tuple[int, ...] | None) -> array[int] | None:
    """Which of a frame's data each of its pages has; None: those of its own place."""
    if entries is None:
        return None
    where = array("H")
    plain = 0
    for entry in entries:
        if entry == PLAIN:
            where.append(plain)
            plain += 1
        else:
            where.append(where[entry - SAME] if entry >= SAME else _NOWHERE)
    return where


def _in_order(where: array[int] | None, begin: int, end: int) -> list[tuple[int, int]]:
    """Where the pages [begin, end) of a frame are among its data: first, and how many are there in a row."""
    if where is None:
        return [(begin, end - begin)]
    found: list[tuple[int, int]] = []
    for index in where[begin:end]:
        if found and sum(found[-1]) == index:
            found[-1] = found[-1][0], found[-1][1] + 1
        else:
            found.append((index, 1))
    return found


def _hello(frame: Frame) -> Hello:
    try:
        return msgspec.msgpack.decode(frame.payload, type=Hello)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise damaged(frame, str(error)) from None
