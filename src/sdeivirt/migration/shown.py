# SPDX-License-Identifier: Apache-2.0
"""What a section holds, for people and as JSON, whoever wrote it: fields by name, and SDEI's registers by theirs.

A stream need not be honest, and may be larger than memory. So what is shown of it is bounded: long
bytes are cut off, and a field that is too long is shown by its length alone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import msgspec

from ..registers import ids, text, values
from .inventory import field_types
from .sections import Section

__all__ = ["Field", "Shower"]

_FIELD_LIMIT = 1 << 20  # bytes of a field that is decoded
_LIMIT = 64 << 20  # of all fields of a stream
_DEPTH = 32  # lists in lists that are shown
_BYTES_LIMIT = 1024  # bytes that are shown of bytes

Json = None | bool | int | float | str | list[Any] | dict[str, Any]


@dataclass(frozen=True, slots=True)
class Field:
    """A field: its type in a word, its length as it stands in the stream, and its value, None where that is too long.

    In a value bytes are {"bytes": length, "hex": digits of the first 1024}; keys that are numbers are "0x...".
    """

    type: str
    length: int
    value: Json


class Shower:
    """Shows the sections of one stream, in their order."""

    def __init__(self) -> None:
        self._left = _LIMIT
        self._events: dict[int, int] = {}  # numbers of events by their place in the table

    def fields(self, section: Section) -> dict[str, Field]:
        """The fields of a section. Raises StreamError for what is no record."""
        types = field_types(section)
        parts = msgspec.msgpack.decode(section.data, type=dict[str, msgspec.Raw])
        return {name: self._field(section, name, types[name], parts[name]) for name in types}

    def _field(self, section: Section, name: str, word: str, raw: msgspec.Raw) -> Field:
        length = len(memoryview(raw))
        if length > min(_FIELD_LIMIT, self._left):
            return Field(word, length, None)
        self._left -= length
        try:
            value = msgspec.msgpack.decode(raw)
        except (msgspec.DecodeError, RecursionError, UnicodeDecodeError, ValueError) as error:
            return Field(word, length, f"damaged: {error}")
        if section.name in ("sdei", "sdei-pe") and name == "registers" and isinstance(value, dict):
            return Field(word, length, self._registers(value))
        return Field(word, length, jsonable(value))

    def _registers(self, registers: dict[Any, Any]) -> dict[str, Any]:
        """SDEI's registers: id and value in hexadecimal, and what it says if it is known."""
        for id, value in registers.items():
            if isinstance(id, int) and id >> 16 == ids.DEFINITION.id >> 16 and isinstance(value, int):
                self._events[id & 0xFFFF] = value & values.DEFINITION_NUMBER
        shown: dict[str, Any] = {}
        for id, value in registers.items():
            kind = _kind(id)
            number = int.from_bytes(value, "little") if isinstance(value, bytes) else value
            size = 8 * len(value) if isinstance(value, bytes) else 64
            if kind is None or not isinstance(number, int) or size != kind.size or number < 0:
                shown[_key(id)] = jsonable(value)
                continue
            name = kind.name + (self._event(id) if kind.indexed else "")
            says = text.describe(ids.Register(id, name, kind, False, None), number)
            shown[name] = {"id": f"{id:#x}", "value": f"{number:#x}", "says": says}
        return shown

    def _event(self, id: int) -> str:
        """Which event a register of a row is of."""
        number = self._events.get(id & 0xFFFF)
        return f"[{id & 0xFFFF}]" if number is None else f".{number:#x}"


def jsonable(value: object, depth: int = 0) -> Json:
    """A decoded value as JSON can have it."""
    if isinstance(value, dict | list) and depth > _DEPTH:
        return "..."
    if isinstance(value, dict):
        return {_key(key): jsonable(each, depth + 1) for key, each in value.items()}
    if isinstance(value, list):
        return [jsonable(each, depth + 1) for each in value]
    if isinstance(value, bytes):
        return {"bytes": len(value), "hex": value[:_BYTES_LIMIT].hex()}
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if value is None or isinstance(value, bool | int | float | str):
        return value
    return str(value)  # MessagePack's extensions


def _key(key: object) -> str:
    if isinstance(key, bool) or not isinstance(key, int):
        return key if isinstance(key, str) else repr(key)
    return f"{key:#x}"


def _kind(id: object) -> ids.Kind | None:
    """The register, or the row of them, that an id is of."""
    if isinstance(id, int):
        for kind in ids.KINDS:
            if id == kind.id or (kind.indexed and id >> 16 == kind.id >> 16):
                return kind
    return None
