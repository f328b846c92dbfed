# SPDX-License-Identifier: Apache-2.0
"""Words that came from another side: they end on somebody's terminal, and nobody there may be told what to show."""

from __future__ import annotations

__all__ = ["printable"]

_LONGEST = 1000


def printable(text: str, longest: int = _LONGEST) -> str:
    """The text in one line, cut off, with a question mark for what is no letter: escape sequences are none then."""
    return "".join(c if c.isprintable() else " " if c.isspace() else "?" for c in text[:longest])
