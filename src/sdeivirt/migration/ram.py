# SPDX-License-Identifier: Apache-2.0
"""RAM into frames and out of them, a window of up to 2 MiB at a time. No I/O in here.

The guest may write a page while it is being sent. So a window is copied once,
and all that is said of it is said of the copy. Most windows are all zeroes, or have 512 pages
that are all different: one comparison, or one look at a word of each page, tells these.
"""

from __future__ import annotations

import struct
from collections import Counter

import xxhash
import zstandard

from ..machine.base import PAGE_SIZE, RAM_BASE
from .frames import Frame
from .pages import (
    AS_THEY_ARE,
    PAGES,
    PLAIN,
    RUN,
    SAME,
    SKIPPED,
    WINDOW_PAGES,
    WINDOW_SIZE,
    ZERO,
    ZEROES,
    ZSTD,
    PageFrame,
    PageStats,
    read_pages,
    read_zeroes,
)

__all__ = ["WINDOW_PAGES", "PageDecoder", "PageEncoder", "PageStats"]

_WORDS = PAGE_SIZE // 8
_SAMPLE = 259  # the word of a page to look at first: not where pages begin, many begin alike

_USED = b"\1" * WINDOW_PAGES

_Buffers = list[bytes | memoryview]


class PageEncoder:
    """Makes the payloads of PAGE and ZERO frames of a guest's RAM; `compress` is a zstd level, 0 for none.

    `ram` may be another from one window to the next.
    """

    def __init__(self, ram: memoryview, compress: int = 0) -> None:
        self.stats = PageStats()
        self.ram = ram
        self._copy = memoryview(bytearray(WINDOW_SIZE))
        self._packer = zstandard.ZstdCompressor(level=compress) if compress else None

    def window(self, first: int, count: int, dirty: bytearray | None = None) -> _Buffers | None:
        """The pages [first, first + count) of RAM, those that a dirty map names, or all (None): a PAGE frame's payload.

        None if all of the window is zeroes, for :meth:`zero_run`. At least one page has to be dirty, and
        512 is the most. The buffers are good until the next call.
        """
        end = first + count
        if dirty is not None and (count != dirty.count(1, first, end)):
            low, high = dirty.index(1, first, end), dirty.rindex(1, first, end) + 1
            where = self._copy_dirty(low, high, dirty)
            return self._encode(low, high - low, where)
        view = self.ram[first * PAGE_SIZE : end * PAGE_SIZE]
        if ZEROES.startswith(view):
            self.stats.zero += count
            self.stats.bytes += RUN.size
            return None
        self._copy[: len(view)] = view
        return self._encode(first, count, range(count))

    def zero_run(self, first: int, count: int) -> bytes:
        """That many pages of zeroes: a ZERO frame's payload."""
        return RUN.pack(RAM_BASE + first * PAGE_SIZE, count)

    def _copy_dirty(self, low: int, high: int, dirty: bytearray) -> list[int]:
        """Copy the dirty pages, without gaps; where each stands, counted from `low`."""
        where: list[int] = []
        at, filled = low, 0
        while at >= 0:
            stop = dirty.find(0, at, high)
            if stop < 0:
                stop = high
            size = (stop - at) * PAGE_SIZE
            self._copy[filled : filled + size] = self.ram[at * PAGE_SIZE : stop * PAGE_SIZE]
            filled += size
            where.extend(range(at - low, stop - low))
            at = dirty.find(1, stop, high)
        return where

    def _encode(self, first: int, count: int, where: range | list[int]) -> _Buffers:
        """The payload for the pages that were copied, which stand in the window at `where`."""
        pages, stats = len(where), self.stats
        words = self._copy[: pages * PAGE_SIZE].cast("Q")[_SAMPLE::_WORDS].tolist()
        if 0 not in words and len(set(words)) == pages:
            kept = pages
            if pages == count:
                table = ZEROES[: 2 * count]
            else:
                entries = [SKIPPED] * count
                for position in where:
                    entries[position] = PLAIN
                table = struct.pack(f"<{count}H", *entries)
        else:
            entries = self._classify(count, where, words)
            kept = self._compact(entries, where)
            zero = entries.count(ZERO)
            stats.zero += zero
            stats.duplicate += pages - kept - zero
            table = struct.pack(f"<{count}H", *entries)
        stats.plain += kept
        encoding, data = AS_THEY_ARE, self._copy[: kept * PAGE_SIZE]
        if self._packer is not None and kept:
            packed = memoryview(self._packer.compress(data))
            if len(packed) < len(data):
                encoding, data = ZSTD, packed
        stats.bytes += PAGES.size + len(table) + len(data)
        return [PAGES.pack(RAM_BASE + first * PAGE_SIZE, count, encoding) + table, data]

    def _classify(self, count: int, where: range | list[int], words: list[int]) -> list[int]:
        """The u16 of each page of the window."""
        entries = [SKIPPED] * count
        copy = self._copy
        common = {word for word, times in Counter(words).items() if times > 1}
        seen: dict[int, tuple[int, bytes]] = {}
        for number, (position, word) in enumerate(zip(where, words, strict=True)):
            entry = PLAIN
            if not word or word in common:
                page = copy[number * PAGE_SIZE : (number + 1) * PAGE_SIZE]
                if not word and ZEROES.startswith(page):
                    entry = ZERO
                elif word in common:
                    digest = xxhash.xxh3_64_intdigest(page)
                    other = seen.get(digest)
                    if other is None:
                        seen[digest] = position, bytes(page)
                    elif other[1].startswith(page):  # both are whole pages: they are the same
                        entry = SAME + other[0]
            entries[position] = entry
        return entries

    def _compact(self, entries: list[int], where: range | list[int]) -> int:
        """Close the gaps between the pages of the copy whose bytes are to be sent; how many these are."""
        copy, kept, start, number = self._copy, 0, 0, 0
        for number, position in enumerate((*where, -1)):
            if position >= 0 and entries[position] == PLAIN:
                continue
            if start < number:
                if kept != start:
                    run = (number - start) * PAGE_SIZE
                    copy[kept * PAGE_SIZE : kept * PAGE_SIZE + run] = copy[start * PAGE_SIZE : number * PAGE_SIZE]
                kept += number - start
            start = number + 1
        return kept


class PageDecoder:
    """Puts the pages of PAGE and ZERO frames into a guest's RAM. Nothing is written of a frame that is damaged.

    `fresh`: the RAM holds nothing but zeroes yet. Then what was never written need not be looked at when zeroes
    come, and most of an idle guest's RAM never is: to read it costs time, and memory where it is a file's.
    """

    def __init__(self, ram: memoryview, *, fresh: bool = False) -> None:
        self.stats = PageStats()
        self._ram = ram
        self._used = bytearray(b"\0" if fresh else b"\1") * (len(ram) // PAGE_SIZE)  # 1: may hold something

    def apply(self, frame: Frame) -> None:
        """One PAGE or ZERO frame. Raises StreamError."""
        if frame.kind == b"PAGE":
            pages = read_pages(frame, len(self._ram))
            first = pages.first // PAGE_SIZE
            self._used[first : first + pages.pages] = _USED[: pages.pages]
            if pages.entries is None:
                self._ram[pages.first : pages.first + len(pages.data)] = pages.data
                self.stats.plain += pages.pages
            else:
                self._apply_mixed(pages, pages.entries)
        else:
            first, count = read_zeroes(frame, len(self._ram))
            self._clear(first, count)
            self.stats.zero += count
        self.stats.bytes += len(frame.payload)

    def _apply_mixed(self, pages: PageFrame, entries: tuple[int, ...]) -> None:
        """Runs of pages that are alike are written at once."""
        ram, data, stats = self._ram, pages.data, self.stats
        sources: dict[int, int] = {}  # of the pages with data: where these are
        taken = index = 0
        while index < len(entries):
            entry, begin = entries[index], index
            index += 1
            at = pages.first + begin * PAGE_SIZE
            if entry >= SAME:
                source = sources[entry - SAME]
                ram[at : at + PAGE_SIZE] = data[source : source + PAGE_SIZE]
                stats.duplicate += 1
                continue
            while index < len(entries) and entries[index] == entry:
                index += 1
            if entry == PLAIN:
                size = (index - begin) * PAGE_SIZE
                ram[at : at + size] = data[taken : taken + size]
                sources.update(zip(range(begin, index), range(taken, taken + size, PAGE_SIZE), strict=True))
                taken += size
                stats.plain += index - begin
            elif entry == ZERO:
                self._clear(at, index - begin)
                stats.zero += index - begin

    def _clear(self, first: int, count: int) -> None:
        """Make pages zeroes that are not: writing one that was never written would cost the host a page."""
        end = first + count * PAGE_SIZE
        at = self._used.find(1, first // PAGE_SIZE, end // PAGE_SIZE) * PAGE_SIZE
        while at >= 0:
            stop = min(at + WINDOW_SIZE, end)
            self._clear_window(at, stop)
            at = self._used.find(1, stop // PAGE_SIZE, end // PAGE_SIZE) * PAGE_SIZE

    def _clear_window(self, begin: int, end: int) -> None:
        ram = self._ram
        if not ZEROES.startswith(ram[begin:end]):
            for at in range(begin, end, PAGE_SIZE):
                if not ZEROES.startswith(ram[at : at + PAGE_SIZE]):
                    ram[at : at + PAGE_SIZE] = ZEROES[:PAGE_SIZE]
