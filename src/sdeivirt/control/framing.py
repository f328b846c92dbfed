# SPDX-License-Identifier: Apache-2.0
"""A byte stream cut into the JSON texts of QMP (QEMU docs/interop/qmp-spec).

A text may span lines and chunks, and a chunk may hold several. What is no
JSON object is handed on as it stands, one line at a time, so that the parser
can say what is wrong with it and the stream goes on with the next line.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any, NoReturn

__all__ = ["FramingError", "MAX_MESSAGE", "Splitter", "decode", "encode"]

MAX_MESSAGE = 64 << 10
MAX_DEPTH = 64

# What changes the state of the scanner: outside of strings, and inside.
_OUTSIDE = re.compile(rb'["{}\[\]\n]')
_INSIDE = re.compile(rb'[\\"\n]')
_BLANKS = b" \t\r\n"
_INK = re.compile(rb"[^ \t\r\n]")


class FramingError(Exception):
    """The stream cannot be followed any further."""


class Splitter:
    """Feed it bytes; it yields whole texts. Time and memory are linear in what is fed."""

    def __init__(self) -> None:
        self._text = bytearray()  # of the text that is not complete yet
        self._scanned = 0
        self._depth = 0
        self._in_string = False

    def feed(self, data: bytes) -> Iterator[bytes]:
        """The texts that `data` completes. Raises FramingError for one that is too long or nested too deep."""
        self._text += data
        while True:
            self._drop_blanks()
            if (end := self._scan()) is None:
                break
            text = bytes(self._text[:end])
            del self._text[:end]
            self._scanned = self._depth = 0
            self._in_string = False
            if len(text) > MAX_MESSAGE:
                raise _too_long()
            yield text.rstrip(_BLANKS)
        if len(self._text) > MAX_MESSAGE:
            raise _too_long()

    def _drop_blanks(self) -> None:
        """Those before a text do not count as its own, in however many pieces it comes."""
        ink = _INK.search(self._text)
        blanks = ink.start() if ink else len(self._text)
        if blanks:
            del self._text[:blanks]
            self._scanned = max(0, self._scanned - blanks)

    def _scan(self) -> int | None:
        """Go on to where the first text ends, or None where it does not yet."""
        text = self._text
        while True:
            match = (_INSIDE if self._in_string else _OUTSIDE).search(text, self._scanned)
            if match is None:
                self._scanned = len(text)
                return None
            end = match.end()
            token = text[match.start()]
            if self._in_string and token == 0x5C:
                if end == len(text):
                    self._scanned = match.start()
                    return None
                self._scanned = end + (text[end] != 0x0A)  # a backslash hides the next byte, but no line end
                continue
            self._scanned = end
            if token == 0x22:
                self._in_string = not self._in_string
            elif token == 0x0A:
                # No string runs over a line end: a quote is missing. Outside of an object, a line is a text.
                if self._in_string or not self._depth:
                    return end
            elif token in b"{[":
                self._depth += 1
                if self._depth > MAX_DEPTH:
                    raise FramingError(f"JSON nested more than {MAX_DEPTH} deep")
            elif self._depth <= 1:
                return end
            else:
                self._depth -= 1


def _too_long() -> FramingError:
    return FramingError(f"a message of more than {MAX_MESSAGE >> 10} KiB")


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")


def _float(text: str) -> float:
    value = float(text)
    if value in (float("inf"), float("-inf")):
        raise ValueError(f"{text[:20]} is too big a number")
    return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise ValueError("a key stands twice in an object")
    return members


_DECODER = json.JSONDecoder(object_pairs_hook=_object, parse_constant=_refuse_constant, parse_float=_float)


def decode(text: bytes) -> Any:
    """One JSON text. Raises ValueError, strictly by RFC 8259."""
    return _DECODER.decode(text.decode("utf-8"))


def encode(message: object) -> bytes:
    """A message on a line of its own."""
    return json.dumps(message, separators=(",", ":")).encode("ascii") + b"\r\n"
