# SPDX-License-Identifier: Apache-2.0
"""Pages that are sent after their guest: where they are, and the frames that tell of them."""

from __future__ import annotations

import struct
from typing import Protocol

import zstandard

from ..machine.base import PAGE_SIZE, RAM_BASE
from .lacking import pack_gift, runs
from .messages import Kind
from .pages import AS_THEY_ARE, PAGES, PLAIN, RUN, ZERO, ZEROES, ZSTD

__all__ = ["PageFrames", "PageStore", "RamStore"]

_SAMPLE, _WORDS = 259, PAGE_SIZE // 8  # the word of a page that is looked at first

_Frame = tuple[bytes, list[bytes | memoryview], int, int]  # kind, payload, pages, how many of them are zeroes


class PageStore(Protocol):
    """Where the pages are."""

    def read(self, first: int, count: int) -> memoryview | bytes:
        """What those pages hold, 512 at most; it stays as it is. Raises SdeivirtError."""


class RamStore:
    """RAM that nobody writes any more."""

    def __init__(self, ram: memoryview) -> None:
        self._ram = ram

    def read(self, first: int, count: int) -> memoryview:
        return self._ram[first * PAGE_SIZE : (first + count) * PAGE_SIZE]


class PageFrames:
    """Makes the frames. What they are made of must not change until they are sent."""

    def __init__(self, store: PageStore, compress: int = 0) -> None:
        """`compress` is a zstd level for pages that nobody has asked for, 0 for none."""
        self._store = store
        self._packer = zstandard.ZstdCompressor(level=compress) if compress else None

    def asked(self, found: list[tuple[int, int]]) -> list[_Frame]:
        """The frames that answer what was asked for."""
        frames: list[_Frame] = []
        given, parts = list[tuple[int, int]](), list[bytes | memoryview]()
        for first, count in found:
            content = memoryview(self._store.read(first, count))
            if ZEROES.startswith(content):
                frames.append((b"ZERO", [RUN.pack(RAM_BASE + first * PAGE_SIZE, count)], count, count))
            else:
                given.append((first, count))
                parts.append(content)
        if given:
            frames.append((Kind.GIVE, [pack_gift(given), *parts], sum(count for _, count in given), 0))
        return frames

    def rest(self, first: int, count: int) -> _Frame:
        """A frame that tells of a run that nobody has asked for."""
        content = memoryview(self._store.read(first, count))
        address = RAM_BASE + first * PAGE_SIZE
        if ZEROES.startswith(content):
            return b"ZERO", [RUN.pack(address, count)], count, count
        table, data, zeroes = ZEROES[: 2 * count], [content], 0
        if count > 1:
            words = content.cast("Q")[_SAMPLE::_WORDS].tolist()
            if 0 in words:
                entries = [
                    ZERO if not word and ZEROES.startswith(content[at * PAGE_SIZE : (at + 1) * PAGE_SIZE]) else PLAIN
                    for at, word in enumerate(words)
                ]
                zeroes = entries.count(ZERO)
                if zeroes:
                    table = struct.pack(f"<{count}H", *entries)
                    used = bytearray(entry == PLAIN for entry in entries)
                    data = [content[at * PAGE_SIZE : (at + n) * PAGE_SIZE] for at, n in runs(used, 0, count)]
        encoding, parts = AS_THEY_ARE, list[bytes | memoryview](data)
        if self._packer is not None:
            smaller = self._packer.compress(b"".join(data))
            if len(smaller) < (count - zeroes) * PAGE_SIZE:
                encoding, parts = ZSTD, [smaller]
        return b"PAGE", [PAGES.pack(address, count, encoding) + table, *parts], count, zeroes
