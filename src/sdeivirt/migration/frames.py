# SPDX-License-Identifier: Apache-2.0
"""The layout of a stream: its header, the kinds of frames there are, and what each may be.

docs/migration-stream.md has all of it for people.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import NamedTuple

from ..errors import StreamError
from .inventory import Description

__all__ = [
    "AGAIN",
    "END",
    "FRAME",
    "HEADER",
    "KINDS",
    "MAJOR",
    "MINOR",
    "NEWER",
    "End",
    "Frame",
    "FrameKind",
    "StreamHeader",
]

MAJOR, MINOR = 1, 2
MAGIC = b"SDEIVIRT"

HEADER = struct.Struct("<8sHHI")  # magic, major, minor, zero
FRAME = struct.Struct("<4sHHIIQQ")  # kind, version, flags, instance, length, sequence, checksum
CHECKED = 24  # bytes of a frame's header that its checksum covers: all but itself
END = struct.Struct("<QQQ")  # frames, pages, bytes

# Hints.
AGAIN = "make the stream again, and see that it is copied whole"
NEWER = "load it with a newer sdeivirt"

_MIB = 1 << 20
_ANY = (0xFFFF,)


class FrameKind(NamedTuple):
    """What a kind of frame may be: bytes of payload, the minor version it came with, and its newest version in
    streams of minor version 0, 1 and so on; the last holds for later ones."""

    shortest: int
    longest: int
    since: int = 0
    versions: tuple[int, ...] = (0,)


_MESSAGE = FrameKind(0, _MIB)
_WINDOW = FrameKind(16, 16 + 512 * 2 + 512 * 4096)  # ram.py

KINDS: dict[bytes, FrameKind] = {
    b"DESC": FrameKind(1, 4 * _MIB, versions=(1, Description.VERSION)),
    b"SECT": FrameKind(2, 64 * _MIB, versions=_ANY),  # the section's own, which its reader judges
    b"PAGE": _WINDOW,
    b"ZERO": FrameKind(16, 16),
    b"PASS": FrameKind(4, 4, since=1),
    b"ERLY": FrameKind(0, 64 * _MIB, since=2, versions=_ANY),
    b"STAY": FrameKind(0, 0, since=2),
    b"END ": FrameKind(END.size, END.size),
    b"LACK": FrameKind(1, 17 * _MIB, since=2),  # lacking.py has these five
    b"WANT": FrameKind(8, 8 * 1024, since=2),
    b"GIVE": FrameKind(12 + 4096, 4 + 512 * (8 + 4096), since=2),
    b"GOT ": FrameKind(20, 20, since=2),
    b"HAVE": FrameKind(0, 0, since=2),
    b"CONF": FrameKind(0, _MIB, versions=_ANY),
    **dict.fromkeys((b"HELO", b"REDY", b"LOAD", b"CMIT", b"RUNS", b"LETG", b"DONE", b"FAIL"), _MESSAGE),
}
# Enough of a frame of any other kind is read to see whether it is newer or damaged.
UNKNOWN = FrameKind(0, _WINDOW.longest)


class StreamHeader(NamedTuple):
    """What a stream begins with: its version."""

    major: int = MAJOR
    minor: int = MINOR

    def pack(self) -> bytes:
        """The 16 bytes of it."""
        return HEADER.pack(MAGIC, self.major, self.minor, 0)

    @classmethod
    def parse(cls, data: bytes | memoryview) -> StreamHeader:
        """The header in 16 bytes. Raises StreamError for what is no stream, or cannot be read by this code."""
        magic, major, minor, reserved = HEADER.unpack(data)
        if magic != MAGIC:
            raise no_stream()
        if major != MAJOR or minor > MINOR:
            raise StreamError(
                f"the stream has version {major}.{minor}, and this sdeivirt knows {MAJOR}.0 to {MAJOR}.{MINOR}",
                NEWER if (major, minor) > (MAJOR, MINOR) else "load it with an older sdeivirt",
            )
        if reserved:
            raise StreamError("the stream is damaged in its header, at offset 0xc: there should be zeroes", AGAIN)
        return cls(major, minor)

    def __str__(self) -> str:
        return f"{self.major}.{self.minor}"


def no_stream() -> StreamError:
    """The error for what begins with anything else."""
    return StreamError("that is no stream of sdeivirt: it does not begin like one, at offset 0x0")


@dataclass(slots=True)
class Frame:
    """One frame: the `number`-th (from 0), at `offset` bytes. `payload` is good until the next frame is read."""

    kind: bytes
    version: int
    instance: int
    number: int
    offset: int
    payload: memoryview
    description: Description | None = None  # what a DESC holds

    def __str__(self) -> str:
        return f"frame {self.number} ({self.kind.decode('ascii', 'replace').strip()}) at offset {self.offset:#x}"


class End(NamedTuple):
    """END: what came before it. `frames` includes messages, `bytes` the stream's header."""

    frames: int
    pages: int
    bytes: int


def check_end(size: int, offset: int) -> None:
    """The state has ended at `offset`: a file of `size` bytes has to end there, too. Raises StreamError."""
    if size > offset:
        more = "1 byte follows" if size == offset + 1 else f"{size - offset:,} bytes follow"
        raise StreamError(f"{more} the end of the state, at offset {offset:#x}", AGAIN)


def damaged(frame: Frame, why: str) -> StreamError:
    """The error for a frame that holds what it cannot."""
    return StreamError(f"the stream is damaged in {frame}: {why}", AGAIN)
