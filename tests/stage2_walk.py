# SPDX-License-Identifier: Apache-2.0
"""A walk through stage-2 tables by the architecture's rules, apart from the code that writes them."""

from __future__ import annotations

__all__ = ["BLOCK", "GIB", "PAGE", "walk"]

PAGE, BLOCK, GIB = 1 << 12, 1 << 21, 1 << 30


def walk(words: memoryview, base: int, address: int) -> int | None:
    """Where an address is mapped and how: (output page | attributes) or None."""
    index = address >> 30
    table = 0
    for level, shift in ((1, 30), (2, 21), (3, 12)):
        entry: int = words[table + (index if level == 1 else address >> shift & 511)]
        if not entry & 1:
            return None
        attributes = entry & ~0xFF_FFFF_F003
        if level == 3:
            assert entry & 2, "a page entry has bit 1 set"
            return (entry & 0xFF_FFFF_F000) | attributes
        if not entry & 2:  # a block
            return (entry & 0xFF_FFFF_F000) + (address & ((1 << shift) - 1) & ~0xFFF) | attributes
        table = ((entry & 0xFF_FFFF_F000) - base) >> 3
    raise AssertionError
