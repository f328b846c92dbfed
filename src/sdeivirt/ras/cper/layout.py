# SPDX-License-Identifier: Apache-2.0
"""Structures with validation bits: which fields there are, where, and which bit says that one holds something."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .reader import CperError, Reader

__all__ = ["Field", "Layout", "check_fits"]

_BITS = {"B": 8, "H": 16, "I": 32, "Q": 64}
_VALIDATION = "validation"


def check_fits(name: str, value: int, bits: int) -> None:
    """Raises CperError where a value is too large for its field."""
    if not 0 <= value < 1 << bits:
        raise CperError(f"{name} cannot be {value:#x}", f"the field has {bits} bits")


@dataclass(frozen=True, slots=True)
class Field:
    """A field of a structure: its name, and struct's code.

    `bit` is the validation bit that says it is there, if one does; `parts` are those of what it is made of.
    """

    name: str
    code: str
    bit: int | None = None
    parts: tuple[int, ...] = ()

    @property
    def mask(self) -> int:
        """All validation bits that have to do with the field."""
        bits = self.parts if self.bit is None else (self.bit, *self.parts)
        return sum(1 << bit for bit in bits)


class Layout:
    """A structure, little-endian and packed, that is called `what`. One of its fields is named "validation".

    In Python a field whose bit is clear is None. Fields that share a bit are there together.
    """

    def __init__(self, what: str, *fields: Field) -> None:
        self.what = what
        self.fields = [field for field in fields if not field.code.endswith("x")]
        codes = "<"
        self._ends: dict[str, int] = {}
        for field in fields:
            codes += field.code
            self._ends[field.name] = struct.calcsize(codes)
        self._form = struct.Struct(codes)
        self.size = self._form.size

    def values(self, record: object) -> dict[str, Any]:
        """The attributes of a record that have the names of fields."""
        return {field.name: getattr(record, field.name, None) for field in self.fields}

    def pack(self, values: Mapping[str, Any], valid: int = 0, size: int | None = None) -> bytes:
        """The first `size` bytes of a structure; `valid` are the validation bits of parts. Raises CperError."""
        absent = 0
        for field in self.fields:
            if field.bit is not None and values[field.name] is None:
                absent |= 1 << field.bit
            elif field.bit is not None:
                valid |= 1 << field.bit
        if valid & absent:
            names = [field.name for field in self.fields if field.mask & valid & absent]
            raise CperError(f"{self.what} has not all of {' and '.join(names)}", "give all of them, or none")
        if beyond := self._beyond(valid, size):
            raise CperError(f"{beyond} is not in {size} bytes of {self.what}", f"the whole has {self.size}")
        packed: list[Any] = []
        for field in self.fields:
            value = valid if field.name == _VALIDATION else values[field.name]
            if field.code in _BITS:
                check_fits(f"{field.name} of {self.what}", value or 0, _BITS[field.code])
                packed.append(value or 0)
            else:
                packed.append(value or b"")
        return self._form.pack(*packed)[:size]

    def unpack(self, reader: Reader, size: int | None = None) -> tuple[dict[str, Any], int]:
        """The values of a structure, of which only `size` bytes are there, and validation bits. Raises CperError."""
        start = reader.offset
        size = self.size if size is None else size
        data = reader.take(size, self.what) + bytes(self.size - size)
        values = dict(zip((field.name for field in self.fields), self._form.unpack(data), strict=True))
        valid: int = values.pop(_VALIDATION)
        if beyond := self._beyond(valid, size):
            raise reader.wrong(f"{beyond} is said to be valid, and {self.what} ends before it", start)
        for field in self.fields:
            if field.bit is not None and not valid >> field.bit & 1:
                values[field.name] = None
        return values, valid

    def _beyond(self, valid: int, size: int | None) -> str:
        """The name of a field that is valid and not in the first `size` bytes; "" if there is none."""
        if size is None or size >= self.size:
            return ""
        return next((field.name for field in self.fields if field.mask & valid and self._ends[field.name] > size), "")
