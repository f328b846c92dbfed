# SPDX-License-Identifier: Apache-2.0
"""What can be read of a report that is damaged, and how much of a file is the report."""

from __future__ import annotations

import struct

from .block import block_size, decode_block, first_entries
from .reader import MAX_SIZE, CperError
from .record import SIGNATURE, decode_record
from .render import render

__all__ = ["decoded_size", "salvage"]

_LENGTH = struct.Struct("<I")
_RECORD_LENGTH_AT, _BLOCK_LENGTH_AT, _BLOCK_HEAD = 20, 12, 20


def decoded_size(data: bytes) -> int:
    """How many bytes the record or block at the start of `data` has, which can be decoded."""
    return _declared(data) if data.startswith(SIGNATURE) else block_size(data)


def salvage(data: bytes) -> list[str]:
    """As much of what Linux would print as can be made out of what cannot be decoded. What is cut off reads as zero."""
    if len(data) < _RECORD_LENGTH_AT + _LENGTH.size:
        return []
    is_record = data.startswith(SIGNATURE)
    if len(data) < (declared := _declared(data)) <= min(2 * len(data), MAX_SIZE):  # what is more is no report
        padded = data.ljust(declared, b"\0")
        try:
            return render(decode_record(padded) if is_record else decode_block(padded))
        except CperError:
            pass
    first = None if is_record else first_entries(data)
    return [] if first is None else render(first)


def _declared(data: bytes) -> int:
    """What is said at its start of its length."""
    if data.startswith(SIGNATURE):
        return int(_LENGTH.unpack_from(data, _RECORD_LENGTH_AT)[0])
    return _BLOCK_HEAD + int(_LENGTH.unpack_from(data, _BLOCK_LENGTH_AT)[0])
