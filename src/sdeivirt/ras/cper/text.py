# SPDX-License-Identifier: Apache-2.0
"""Bytes as text, the way the kernel has them in its log."""

from __future__ import annotations

import struct
from collections.abc import Iterator

__all__ = ["hex_dump", "printable"]

_ROW = 16
_WORD = 4


def hex_dump(data: bytes, *, ascii_too: bool = False) -> Iterator[str]:
    """Rows of 16 bytes, in words of 32 bits; a row that does not end with a word, in bytes."""
    for offset in range(0, len(data), _ROW):
        row = data[offset : offset + _ROW]
        if len(row) % _WORD:
            text, width = " ".join(f"{byte:02x}" for byte in row), _ROW * 3
        else:
            words = struct.unpack(f"<{len(row) // _WORD}I", row)
            text, width = " ".join(f"{word:08x}" for word in words), _ROW * 2 + _ROW // _WORD
        if ascii_too:
            text = text.ljust(width + 1) + "".join(chr(byte) if 0x20 <= byte < 0x7F else "." for byte in row)
        yield f"{offset:08x}: {text}"


def printable(text: str) -> str:
    """The text, with escapes for what is no printable ASCII: a terminal could take that for an order."""
    return "".join(char if " " <= char <= "~" else f"\\x{ord(char):02x}" for char in text)
