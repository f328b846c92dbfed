# SPDX-License-Identifier: Apache-2.0
"""A stream told: what it is of, its passes over RAM, its sections, and where it is damaged.

It is read once from its beginning to its end, a frame at a time, and no
more is held of it than what is told.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from ..errors import StreamError, UsageError
from ..files import cannot_read, open_regular
from ..machine.base import MAX_MEMORY, PAGE_SIZE
from .collector import Sections, read_section
from .frames import Frame, check_end, damaged
from .histogram import Histogram, Region
from .inventory import field_types
from .pages import PLAIN, SKIPPED, ZERO, read_pages, read_zeroes
from .report import render
from .shown import Field, Shower, jsonable
from .stream import FrameReader

__all__ = ["Analysis", "Frames", "Pass", "Region", "SectionFound", "analyze", "render"]

_HINT = "name a file that `sdeivirt save`, or `sdeivirt migrate VM file:FILE`, has written"


@dataclass(slots=True)
class Frames:
    """How many frames of a kind there are, and how many bytes they are, headers included."""

    frames: int = 0
    bytes: int = 0


@dataclass(slots=True)
class Pass:
    """The pages of one pass over RAM; `ended` tells whether its PASS frame came."""

    number: int
    frames: int = 0
    plain: int = 0
    zero: int = 0
    duplicate: int = 0
    compressed: int = 0  # frames whose data are
    bytes: int = 0
    ended: bool = False


@dataclass(slots=True)
class SectionFound:
    """A section that came, or, with `offset` None, one that was described and did not."""

    name: str
    instance: int
    version: int
    offset: int | None
    length: int
    fields: dict[str, Field]
    note: str = ""


@dataclass(slots=True)
class Analysis:
    """A stream of `size` bytes. It is sound up to offset `sound`; where that is not all of it, `error` tells why.

    `complete`: it holds the whole state of a guest, and nothing is wrong with it.
    """

    path: str
    size: int
    version: str
    complete: bool = False
    sound: int = 0
    error: str = ""
    hint: str = ""
    configuration: dict[str, Any] = field(default_factory=dict)
    frames: dict[str, Frames] = field(default_factory=dict)
    passes: list[Pass] = field(default_factory=list)
    regions: list[Region] = field(default_factory=list)
    sections: list[SectionFound] = field(default_factory=list)


def analyze(path: Path | str) -> Analysis:
    """Read a stream. Raises UsageError for a file that cannot be read, StreamError for one that is no stream of ours.

    A stream that is damaged is told as far as it is sound.
    """
    path = Path(path)
    with open_regular(path, UsageError, _HINT) as file:
        try:
            reader = FrameReader(lambda view: os.readv(file.fileno(), [view]))
            try:
                version = str(reader.start())
            except StreamError as error:
                raise StreamError(f"{path}: {error.message}", error.hint or _HINT) from None
            analysis = Analysis(str(path), os.fstat(file.fileno()).st_size, version)
            _Walk(analysis, reader).run()
        except OSError as error:
            raise cannot_read(path, error, UsageError, _HINT) from error
    return analysis


class _Walk:
    """One reading of a stream."""

    def __init__(self, analysis: Analysis, reader: FrameReader) -> None:
        self._analysis = analysis
        self._reader = reader
        self._sections = Sections(keep=False)
        self._shower = Shower()
        self._memory = 0
        self._histogram = Histogram()
        self._pages = 0

    def run(self) -> None:
        analysis, reader = self._analysis, self._reader
        analysis.sound = reader.offset
        try:
            while (frame := reader.next()) is not None:
                self._take(frame)
                analysis.sound = reader.offset
                tally = analysis.frames.setdefault(frame.kind.decode().strip(), Frames())
                tally.frames += 1
                tally.bytes += reader.offset - frame.offset
                if self._sections.complete:
                    check_end(analysis.size, reader.offset)
            if not self._sections.complete:
                raise reader.cut_short()
            analysis.complete = True
        except StreamError as error:
            analysis.error, analysis.hint = error.message, error.hint
        analysis.regions = self._histogram.regions()
        if self._sections.description is not None:
            for each in self._sections.description.sections[len(analysis.sections) :]:
                missing = {name: Field(word, 0, None) for name, word in each.fields.items()}
                analysis.sections.append(
                    SectionFound(each.name, each.instance, each.version, None, each.length, missing, "it did not come")
                )

    def _take(self, frame: Frame) -> None:
        if frame.kind == b"CONF":
            self._configure(frame)
        elif frame.kind in (b"PAGE", b"ZERO", b"PASS", b"DESC", b"SECT", b"END "):
            if not self._memory:
                raise damaged(frame, "it comes before the description of the machine")
            if frame.kind in (b"PAGE", b"ZERO"):
                self._count_pages(frame)
            elif frame.kind == b"PASS":
                self._pass().number = int.from_bytes(frame.payload, "little")
                self._pass().ended = True
            else:
                self._collect(frame)

    def _configure(self, frame: Frame) -> None:
        if self._memory:
            raise damaged(frame, "the machine is described a second time")
        try:
            fields = msgspec.msgpack.decode(frame.payload, type=dict[str, Any])
        except (msgspec.DecodeError, RecursionError, UnicodeDecodeError, ValueError) as error:
            raise damaged(frame, str(error)) from None
        memory = fields.get("memory")
        if not isinstance(memory, int) or not PAGE_SIZE <= memory <= MAX_MEMORY:
            raise damaged(frame, "it does not tell how much memory the machine has")
        self._memory = memory
        self._analysis.configuration = {name: jsonable(value) for name, value in fields.items()}

    def _pass(self) -> Pass:
        """The pass that is under way."""
        passes = self._analysis.passes
        if not passes or passes[-1].ended:
            passes.append(Pass(passes[-1].number + 1 if passes else 1))
        return passes[-1]

    def _count_pages(self, frame: Frame) -> None:
        if frame.kind == b"ZERO":
            first, zero = read_zeroes(frame, self._memory)
            plain = duplicate = compressed = 0
            self._histogram.run(first // PAGE_SIZE, zero, Histogram.ZERO)
        else:
            pages = read_pages(frame, self._memory)
            first, compressed = pages.first // PAGE_SIZE, int(pages.compressed)
            if pages.entries is None:
                plain, zero, duplicate = pages.pages, 0, 0
                self._histogram.run(first, plain, Histogram.PLAIN)
            else:
                plain, zero = pages.entries.count(PLAIN), pages.entries.count(ZERO)
                duplicate = pages.pages - plain - zero - pages.entries.count(SKIPPED)
                for number, entry in enumerate(pages.entries, first):
                    if entry != SKIPPED:
                        self._histogram.run(number, 1, min(entry, Histogram.DUPLICATE))
        now = self._pass()
        now.frames += 1
        now.plain += plain
        now.zero += zero
        now.duplicate += duplicate
        now.compressed += compressed
        now.bytes += self._reader.offset - frame.offset
        self._pages += plain + zero + duplicate

    def _collect(self, frame: Frame) -> None:
        self._sections.feed(frame)
        found = self._analysis.sections
        if frame.kind == b"SECT":
            section = read_section(frame)
            described = self._sections.description
            assert described is not None
            note, fields = "", {}
            try:
                fields = self._shower.fields(section)
                types = described.sections[len(found)].fields
                if types and types != field_types(section):
                    note = "its fields are not those that were described"
            except StreamError as error:
                note = error.message
            found.append(
                SectionFound(
                    section.name, section.instance, section.version, frame.offset, len(section.data), fields, note
                )
            )
        elif self._sections.end is not None and self._sections.end.pages != self._pages:
            raise damaged(frame, f"it tells of {self._sections.end.pages} pages, and {self._pages} came")
