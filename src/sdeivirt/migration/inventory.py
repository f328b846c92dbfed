# SPDX-License-Identifier: Apache-2.0
"""The self-description of a stream: which sections follow, and what is in them, told before they come.

Whoever reads it knows what to wait for, and can tell one section that is missing
from one that was not there; people and tools read the fields without the code that wrote them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Annotated, ClassVar

import msgspec

from ..errors import StreamError
from .foreign import printable
from .sections import Record, Section

__all__ = ["Description", "SectionDescription", "describe", "is_section_name", "read_description"]

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,254}", re.ASCII)

# Far more than there are. A description takes some twenty times the memory of its bytes.
_MAX_SECTIONS = 1 << 14
_MAX_FIELDS = 256

_U16 = Annotated[int, msgspec.Meta(ge=0, le=0xFFFF)]
_U32 = Annotated[int, msgspec.Meta(ge=0, le=0xFFFF_FFFF)]


class SectionDescription(Record, frozen=True):
    """One section that follows: `length` is that of its data in bytes, `fields` says the type of each field in a word.

    Types are MessagePack's: int, float, bool, str, bytes, list, map, nil, ext. Streams of version 1.0 have none.
    """

    name: str
    instance: _U32
    version: _U16
    length: _U32
    fields: Annotated[dict[str, str], msgspec.Meta(max_length=_MAX_FIELDS)] = msgspec.field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.name!r}" + (f" of instance {self.instance}" if self.instance else "")


class Description(Record, frozen=True):
    """DESC: all sections, in the order in which they follow."""

    VERSION: ClassVar[int] = 2  # 2: the fields' types

    sections: Annotated[list[SectionDescription], msgspec.Meta(max_length=_MAX_SECTIONS)]


def is_section_name(name: str) -> bool:
    """Letters, digits, full stops, underscores and hyphens, 255 at most."""
    return _NAME.fullmatch(name) is not None


def describe(sections: Iterable[Section]) -> Description:
    """The description of sections. Raises StreamError for one that is no record."""
    return Description(
        [
            SectionDescription(each.name, each.instance, each.version, len(each.data), field_types(each))
            for each in sections
        ]
    )


def field_types(section: Section) -> dict[str, str]:
    """The type of each field, by name. What the fields hold is not looked at. Raises StreamError."""
    try:
        fields = msgspec.msgpack.decode(section.data, type=dict[str, msgspec.Raw])
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise StreamError(f"section {section} is damaged: {printable(str(error))}") from None
    return {name: _TYPES[memoryview(raw)[0]] for name, raw in fields.items()}


def read_description(data: bytes | memoryview) -> Description:
    """The description in a DESC frame. Raises StreamError."""
    try:
        description = msgspec.msgpack.decode(data, type=Description)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise StreamError(f"the description of the sections is damaged: {printable(str(error))}") from None
    seen = set()
    for each in description.sections:
        if not is_section_name(each.name):
            raise StreamError(f"the description has a section {each.name[:40]!r}, and that is no section's name")
        if (each.name, each.instance) in seen:
            raise StreamError(f"the description has section {each} twice")
        seen.add((each.name, each.instance))
    return description


def _types() -> list[str]:
    """The types by the first byte of an encoding. MessagePack specification, "Overview"."""
    types = ["int"] * 256  # 00-7f, cc-d3 and e0-ff stay
    for first, last, word in (
        (0x80, 0x8F, "map"),
        (0x90, 0x9F, "list"),
        (0xA0, 0xBF, "str"),
        (0xC0, 0xC1, "nil"),  # c1 is never used
        (0xC2, 0xC3, "bool"),
        (0xC4, 0xC6, "bytes"),
        (0xC7, 0xC9, "ext"),
        (0xCA, 0xCB, "float"),
        (0xD4, 0xD8, "ext"),
        (0xD9, 0xDB, "str"),
        (0xDC, 0xDD, "list"),
        (0xDE, 0xDF, "map"),
    ):
        types[first : last + 1] = [word] * (last + 1 - first)
    return types


_TYPES = _types()
