# SPDX-License-Identifier: Apache-2.0
"""What came of a guest's state: all the sections that were described, each once and in order, or an error."""

from __future__ import annotations

from dataclasses import replace

from ..errors import StreamError
from .frames import AGAIN, END, End, Frame
from .inventory import Description, is_section_name, read_description
from .sections import Section

__all__ = ["Sections", "read_section"]

_BESIDE = 256 << 20  # bytes that a state may have beside the image of a guest
_MUCH = 1 << 30


class Sections:
    """Collects the state: is fed DESC, SECT and END frames. It is whole when :attr:`complete` is true.

    Without `keep` only the order is watched, and sections' data are not held. Else they may not
    be larger than a guest with `ram` bytes can have: its image goes along, and there is some state beside.
    """

    def __init__(self, keep: bool = True, ram: int = _MUCH) -> None:
        self.description: Description | None = None
        self.end: End | None = None
        self._keep = keep
        self._most = ram + _BESIDE
        self._sections: list[Section] = []

    @property
    def complete(self) -> bool:
        """Whether END has come, and everything before it."""
        return self.end is not None

    def feed(self, frame: Frame) -> None:
        """One frame. Raises StreamError for one that has no place here, and for a section other than described."""
        if self.complete:
            raise StreamError(f"{frame} comes after the end of the state", AGAIN)
        if frame.kind == b"DESC" and self.description is None:
            self.description = frame.description or read_description(frame.payload)
            self._check_size(self.description)
        elif frame.kind == b"SECT" and self.description is not None:
            self._take(frame, self.description)
        elif frame.kind == b"END " and self.description is not None:
            self._finish(frame, self.description)
        else:
            raise StreamError(f"{frame} has no place there", AGAIN)

    def sections(self) -> list[Section]:
        """All sections, in the order of the stream. Raises StreamError before END."""
        if not self.complete:
            raise StreamError(f"the state is not whole: {len(self._sections)} sections have come, and no end", AGAIN)
        return list(self._sections)

    def _check_size(self, description: Description) -> None:
        size = sum(each.length for each in description.sections)
        if self._keep and size > self._most:
            raise StreamError(f"the sections are to have {size} bytes together: {self._most} is the most", AGAIN)

    def _take(self, frame: Frame, description: Description) -> None:
        section = read_section(frame)
        at = len(self._sections)
        due = description.sections[at] if at < len(description.sections) else None
        if due is None or (section.name, section.instance) != (due.name, due.instance):
            raise self._out_of_place(frame, section, description)
        if (section.version, len(section.data)) != (due.version, due.length):
            raise StreamError(
                f"section {section} in {frame} has version {section.version} and {len(section.data)} bytes, "
                f"and was described with version {due.version} and {due.length} bytes",
                AGAIN,
            )
        self._sections.append(section if self._keep else replace(section, data=b""))

    def _out_of_place(self, frame: Frame, section: Section, description: Description) -> StreamError:
        if any((section.name, section.instance) == (each.name, each.instance) for each in self._sections):
            return StreamError(f"section {section} is there twice, again in {frame}", AGAIN)
        if not any((section.name, section.instance) == (each.name, each.instance) for each in description.sections):
            return StreamError(f"section {section} in {frame} was not described", AGAIN)
        due = description.sections[len(self._sections)]
        return StreamError(f"section {section} in {frame} stands where section {due} is due", AGAIN)

    def _finish(self, frame: Frame, description: Description) -> None:
        if len(self._sections) < len(description.sections):
            raise StreamError(f"section {description.sections[len(self._sections)]} is missing before {frame}", AGAIN)
        end = End(*END.unpack(frame.payload))
        if (end.frames, end.bytes) != (frame.number, frame.offset):
            raise StreamError(
                f"{frame} tells of {end.frames} frames and {end.bytes} bytes before it, "
                f"and {frame.number} and {frame.offset} came",
                AGAIN,
            )
        self.end = end


def read_section(frame: Frame) -> Section:
    """The section in a SECT frame. Raises StreamError."""
    payload = frame.payload
    begin = 1 + payload[0]
    name = bytes(payload[1:begin]).decode("latin-1")
    if begin > len(payload) or not is_section_name(name):
        raise StreamError(f"{frame} has no name of a section", AGAIN)
    return Section(name, frame.instance, frame.version, bytes(payload[begin:]))
