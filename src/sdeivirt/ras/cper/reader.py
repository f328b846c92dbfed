# SPDX-License-Identifier: Apache-2.0
"""Reading what may be anything: bytes in order, every error with the offset at which it is."""

from __future__ import annotations

import struct
from typing import Any

from ...errors import UsageError

__all__ = ["MAX_SIZE", "CperError", "Reader"]

MAX_SIZE = 1 << 20  # a block is some KiB, a record that ERST stores 64 at most


class CperError(UsageError):
    """Bytes that are no block and no record, or values that cannot be in one."""


class Reader:
    """Bytes from `offset` up to `end`, which are `what`; offsets count from the start of `data`."""

    def __init__(self, data: bytes, what: str, offset: int = 0, end: int | None = None) -> None:
        self.data = data
        self.what = what
        self.offset = offset
        self.end = len(data) if end is None else end

    @property
    def left(self) -> int:
        return self.end - self.offset

    def wrong(self, message: str, offset: int | None = None) -> CperError:
        """An error at an offset, by default the present one."""
        return CperError(message, f"look at offset {self.offset if offset is None else offset:#x}, in {self.what}")

    def take(self, size: int, what: str) -> bytes:
        """The next bytes, which are `what`. Raises CperError."""
        if size > self.left:
            raise self.wrong(f"there is no room for {what}: {size} bytes are to come, and {self.left} are left")
        self.offset += size
        return bytes(self.data[self.offset - size : self.offset])

    def unpack(self, form: struct.Struct, what: str) -> tuple[Any, ...]:
        """The values of the next structure, which is `what`. Raises CperError."""
        return form.unpack(self.take(form.size, what))

    def part(self, size: int, what: str) -> Reader:
        """The next bytes, to be read on their own. Raises CperError."""
        self.take(size, what)
        return Reader(self.data, what, self.offset - size, self.offset)
