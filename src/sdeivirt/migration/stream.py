# SPDX-License-Identifier: Apache-2.0
"""Frames: what a stream is made of. No I/O in here; docs/migration-stream.md has the format.

Each frame says what it is and how long, counts, and has a checksum over all of
that and its payload, so nothing can be lost, doubled, changed or put
elsewhere without being noticed. No length is believed further than its kind allows, and
memory for more than that of a window of pages is taken only as bytes arrive.
"""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Callable, Iterable

import msgspec
import xxhash

from ..errors import MigrationError, StreamError
from .collector import Sections
from .frames import (
    AGAIN,
    CHECKED,
    END,
    FRAME,
    HEADER,
    KINDS,
    MAGIC,
    MAJOR,
    MINOR,
    NEWER,
    UNKNOWN,
    Frame,
    StreamHeader,
    no_stream,
)
from .inventory import Description, SectionDescription, describe, read_description
from .sections import Section

__all__ = ["MAJOR", "MINOR", "Frame", "FrameReader", "FrameWriter", "Sections", "StreamHeader"]

_CHECKSUM = struct.Struct("<Q")
_SMALL, _BUFFER = 1 << 14, KINDS[b"PAGE"].longest


class FrameWriter:
    """Makes frames, ready for sendmsg or writev; counts them, and their bytes."""

    def __init__(self) -> None:
        self.frames = 0
        self.bytes = 0

    def header(self) -> bytes:
        """What comes before all frames."""
        self.bytes += HEADER.size
        return StreamHeader().pack()

    def frame(
        self, kind: bytes, *buffers: bytes | memoryview, instance: int = 0, version: int = 0
    ) -> list[bytes | memoryview]:
        """One frame: its header, then the buffers as they are. They must not change until they are sent.

        Raises MigrationError for more than a frame of that kind may hold.
        """
        length = sum(map(len, buffers))
        if length > KINDS[kind].longest:
            raise MigrationError(
                f"a frame {kind.decode().strip()} of {length} bytes cannot be: {KINDS[kind].longest} is the most"
            )
        head = FRAME.pack(kind, version, 0, instance, length, self.frames, 0)[:CHECKED]
        checksum = xxhash.xxh3_64(head)
        for buffer in buffers:
            checksum.update(buffer)
        self.frames += 1
        self.bytes += FRAME.size + length
        return [head + _CHECKSUM.pack(checksum.intdigest()), *buffers]

    def describe(self, sections: Iterable[Section]) -> list[bytes | memoryview]:
        """DESC: which sections follow. Raises MigrationError."""
        data = msgspec.msgpack.encode(describe(sections))
        return self.frame(b"DESC", data, version=Description.VERSION)

    def section(self, section: Section, kind: bytes = b"SECT") -> list[bytes | memoryview]:
        """SECT, or ERLY. Raises MigrationError for a section that is too large."""
        name = section.name.encode("ascii")
        return self.frame(
            kind, bytes((len(name),)) + name, section.data, instance=section.instance, version=section.version
        )

    def end(self, pages: int) -> list[bytes | memoryview]:
        """END: the state is whole. `pages` is how many pages all PAGE and ZERO frames told of."""
        return self.frame(b"END ", END.pack(self.frames, pages, self.bytes))


class FrameReader:
    """Reads frames, and believes nothing. Each method raises StreamError, which says where.

    `read_into` fills as much of a buffer as it can and returns how many bytes
    that was, 0 at the end: recv_into() of a socket, readinto() of a file.
    What else it raises passes through.
    """

    def __init__(self, read_into: Callable[[memoryview], int]) -> None:
        self._read_into = read_into
        self._head = memoryview(bytearray(FRAME.size))
        self._buffer = memoryview(bytearray(_SMALL))
        self._due: deque[SectionDescription] = deque()
        self._minor = MINOR
        self.number = 0  # of the frame that is next
        self.offset = 0  # of that frame

    def start(self) -> StreamHeader:
        """What the stream begins with. Call it once, first."""
        view = self._head[: HEADER.size]
        got = self._fill(view)
        if view[:got][: len(MAGIC)] != MAGIC[:got]:
            raise no_stream()
        if got < HEADER.size:
            raise StreamError(f"the stream is cut short at offset {got:#x}, in its header", AGAIN)
        header = StreamHeader.parse(view)
        self._minor = header.minor
        self.offset = HEADER.size
        return header

    def next(self) -> Frame | None:
        """The next frame; None where the stream ends behind a frame."""
        got = self._fill(self._head)
        if not got:
            return None
        if got < FRAME.size:
            raise self._cut(self.offset + got, None)
        kind, version, flags, instance, length, sequence, checksum = FRAME.unpack(self._head)
        limits = KINDS.get(kind, UNKNOWN)
        if not limits.shortest <= length <= limits.longest:
            raise self._damaged(f"a length of {length} bytes cannot be", kind)
        payload = self._payload(length, kind)
        actual = xxhash.xxh3_64(self._head[:CHECKED])
        actual.update(payload)
        if actual.intdigest() != checksum:
            raise self._damaged("the checksum is wrong", kind)
        if sequence != self.number:
            raise self._damaged(f"it has number {sequence}: frames are missing, doubled or out of order", kind)
        # Whoever wrote this meant it.
        if limits is UNKNOWN:
            raise self._newer("such frames are not known", kind)
        if limits.since > self._minor:
            raise StreamError(f"{self._name(kind)} has no place in a stream of version {MAJOR}.{self._minor}")
        if flags:
            raise self._newer(f"flags {flags:#x} are not known", kind)
        known = limits.versions[min(self._minor, len(limits.versions) - 1)]
        if version > known:
            raise self._newer(f"version {version} is not known, up to {known} are", kind)
        if instance and kind != b"SECT":
            raise self._newer(f"an instance of {instance} is not known", kind)
        frame = Frame(kind, version, instance, self.number, self.offset, payload)
        self._follow(frame)
        self.number += 1
        self.offset += FRAME.size + length
        return frame

    def cut_short(self) -> StreamError:
        """The error for a stream that ended, as :meth:`next` told by None, where there should have been more."""
        what = f"section {self._due[0]}" if self._due else "the end of the state"
        return StreamError(
            f"the stream is cut short at offset {self.offset:#x}, behind {self.number} frames: {what} is missing", AGAIN
        )

    def _payload(self, length: int, kind: bytes) -> memoryview:
        """That many bytes, in the buffer if they fit."""
        if len(self._buffer) < length and len(self._buffer) < _BUFFER:
            self._buffer = memoryview(bytearray(_BUFFER))
        if length <= len(self._buffer):
            view = self._buffer[:length]
            got = self._fill(view)
        else:
            view, got = self._grown(length)
        if got < length:
            raise self._cut(self.offset + FRAME.size + got, kind)
        return view

    def _grown(self, length: int) -> tuple[memoryview, int]:
        """A buffer of its own for a large payload; never more than twice what has come. Also tells how much that is."""
        buffer, got = self._buffer, self._fill(self._buffer)
        while got == len(buffer) < length:
            larger = memoryview(bytearray(min(2 * got, length)))
            larger[:got] = buffer
            got += self._fill(larger[got:])
            buffer = larger
        return buffer, got

    def _fill(self, view: memoryview) -> int:
        """As many bytes as there are."""
        got = 0
        while got < len(view):
            more = self._read_into(view[got:] if got else view)
            if not more:
                break
            got += more
        return got

    def _follow(self, frame: Frame) -> None:
        """Keep in mind which section is next: an error names it even where the frame cannot be read any more."""
        if frame.kind == b"DESC":
            try:
                description = read_description(frame.payload)
            except StreamError as error:
                raise StreamError(f"{error.message}, in {frame}", error.hint) from None
            frame.description = description
            self._due = deque(description.sections)
        elif frame.kind == b"SECT" and self._due:
            self._due.popleft()

    def _name(self, kind: bytes | None) -> str:
        """The frame that is being read, for people."""
        said = "" if kind is None else kind.decode("ascii").strip() if kind in KINDS else repr(kind)
        if self._due:
            due = f"section {self._due[0]}"
            said = due if kind in (b"SECT", None) else f"{said}, where {due} is due"
        return f"frame {self.number}{f' ({said})' if said else ''} at offset {self.offset:#x}"

    def _cut(self, offset: int, kind: bytes | None) -> StreamError:
        return StreamError(f"the stream is cut short at offset {offset:#x}, in {self._name(kind)}", AGAIN)

    def _damaged(self, why: str, kind: bytes) -> StreamError:
        return StreamError(f"the stream is damaged in {self._name(kind)}: {why}", AGAIN)

    def _newer(self, why: str, kind: bytes) -> StreamError:
        return StreamError(f"the stream is newer than this sdeivirt, in {self._name(kind)}: {why}", NEWER)
