# SPDX-License-Identifier: Apache-2.0
"""Sections: the parts of a guest's state, each with a name, an instance and a version of its own.

What a section holds is a :class:`Record` (a msgspec structure), encoded as a
MessagePack map with the fields' names, so it can be read by people without
knowing it. Reading one checks every type and refuses unknown fields. A field that
is added later has a default, and raises the record's `VERSION`; so an older
section is read by newer code, and a newer one is refused.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

import msgspec

from ..errors import StreamError
from .foreign import printable

__all__ = ["Record", "Section", "pack", "unpack"]


class Record(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a section holds, in plain fields: integers of up to 64 bits, str, bytes, lists, maps, records."""

    VERSION: ClassVar[int] = 1


@dataclass(frozen=True, slots=True)
class Section:
    """A part of the state: `name` such as "psci", `instance` a vCPU's index or 0; `data` is MessagePack."""

    name: str
    instance: int
    version: int
    data: bytes

    def __str__(self) -> str:
        return f"{self.name!r}" + (f" of instance {self.instance}" if self.instance else "")

    def fields(self) -> dict[str, Any]:
        """The fields by name, whatever they are. Raises StreamError."""
        try:
            return msgspec.msgpack.decode(self.data, type=dict[str, Any])
        except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
            raise StreamError(f"section {self} is damaged: {printable(str(error))}") from None


R = TypeVar("R", bound=Record)


def pack(name: str, record: Record, instance: int = 0) -> Section:
    """A section of a record, in the version that this code has."""
    return Section(name, instance, type(record).VERSION, msgspec.msgpack.encode(record))


def unpack(section: Section, kind: type[R]) -> R:
    """The record of a section. Raises StreamError for a newer version, and for what is not such a record."""
    if section.version > kind.VERSION:
        raise StreamError(
            f"section {section} has version {section.version}, and this sdeivirt knows versions up to {kind.VERSION}",
            "load it with a newer sdeivirt",
        )
    try:
        return msgspec.msgpack.decode(section.data, type=kind)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise StreamError(f"section {section} is damaged: {printable(str(error))}") from None
