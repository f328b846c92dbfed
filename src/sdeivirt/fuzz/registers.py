# SPDX-License-Identifier: Apache-2.0
"""Where the oracle keeps a PE's registers: an array of 64-bit words, and their names."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, MutableMapping

__all__ = ["CONTEXT", "CONTEXT_NAMES", "ELR", "NAMES", "NamedRegisters", "PC", "PSTATE", "SCTLR", "SPSR", "VBAR"]

# x0..x17 stand at 0..17; then these.
PC, PSTATE, SCTLR, VBAR, ELR, SPSR = range(18, 24)
CONTEXT = slice(0, 20)  # what a handler's frame keeps: x0..x17, PC, PSTATE

CONTEXT_NAMES = (*(f"x{i}" for i in range(18)), "pc", "pstate")
NAMES = (*CONTEXT_NAMES, "sctlr", "vbar", "elr", "spsr")
_PLACES = {name: place for place, name in enumerate(NAMES)}


class NamedRegisters(MutableMapping[str, int]):
    """A PE's registers by name; of a frame, those that it keeps. There are always all of them."""

    def __init__(self, words: array[int]) -> None:
        self._words = words

    def __getitem__(self, name: str) -> int:
        return self._words[_PLACES[name]]

    def __setitem__(self, name: str, value: int) -> None:
        self._words[_PLACES[name]] = value

    def __delitem__(self, name: str) -> None:
        raise TypeError(f"a PE always has {name}")

    def __iter__(self) -> Iterator[str]:
        return iter(NAMES[: len(self._words)])

    def __len__(self) -> int:
        return len(self._words)
