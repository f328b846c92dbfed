# SPDX-License-Identifier: Apache-2.0
"""Passes over RAM: which windows to send, and the account of what was sent."""

from __future__ import annotations

import struct
import time
from collections.abc import Iterator, Sequence

from ..machine.base import PAGE_SIZE, Machine
from .ram import WINDOW_PAGES, PageEncoder
from .status import Progress
from .wire import Wire

__all__ = ["Passes"]

_PASS = struct.Struct("<I")


class Passes:
    """Sends RAM over a wire, pass after pass."""

    def __init__(self, machine: Machine, wire: Wire, compress: int, progress: Progress) -> None:
        self._wire = wire
        self._progress = progress
        self._pages = machine.config.memory // PAGE_SIZE
        self._machine = machine
        self._encoder = PageEncoder(machine.memory(), compress)
        self.number = 0  # of the last one
        progress.sent = lambda: wire.channel.sent
        self._began = time.monotonic()

    def run(self, dirty: bytearray | None) -> tuple[float, int]:
        """One pass: the pages of a dirty map, or all (None). How many seconds it took, and how many pages had content.

        Pages that were never written need not be sent the first time: RAM is
        zeroes at the destination.
        """
        began = time.monotonic()
        self.number += 1
        encoder, wire, stats = self._encoder, self._wire, self._encoder.stats
        encoder.ram = self._machine.memory()  # a reset may have brought another; all of that is dirty once more then
        content = stats.plain + stats.duplicate
        ranges = self._machine.data_ranges() if dirty is None else []
        left = sum(end - start for start, end in ranges) // PAGE_SIZE if dirty is None else dirty.count(1)
        zero_first, zero_count = 0, 0
        self._tell(left)
        for first, count in self._windows(ranges, dirty):
            wire.check()
            buffers = encoder.window(first, count, dirty)
            if buffers is not None:
                wire.send(b"PAGE", *buffers)
            elif zero_count and zero_first + zero_count == first:
                zero_count += count
            else:
                self._send_zeroes(zero_first, zero_count)
                zero_first, zero_count = first, count
            left -= count if dirty is None else dirty.count(1, first, first + count)
            self._tell(left)
        self._send_zeroes(zero_first, zero_count)
        wire.send(b"PASS", _PASS.pack(self.number))
        return time.monotonic() - began, stats.plain + stats.duplicate - content

    def _windows(self, ranges: Sequence[tuple[int, int]], dirty: bytearray | None) -> Iterator[tuple[int, int]]:
        """Windows that have something to be sent: first page, and how many."""
        if dirty is None:
            for start, end in ranges:
                for first in range(start // PAGE_SIZE, end // PAGE_SIZE, WINDOW_PAGES):
                    yield first, min(WINDOW_PAGES, end // PAGE_SIZE - first)
            return
        at = dirty.find(1)
        while at >= 0:
            first = at - at % WINDOW_PAGES
            count = min(WINDOW_PAGES, self._pages - first)
            yield first, count
            at = dirty.find(1, first + count)

    def _send_zeroes(self, first: int, count: int) -> None:
        if count:
            self._wire.send(b"ZERO", self._encoder.zero_run(first, count))

    def end(self) -> None:
        """After the sections: what all of it was."""
        self._wire.send_frames(self._wire.writer.end(self._encoder.stats.pages))
        self._tell(0)

    def _tell(self, left: int) -> None:
        stats, sent = self._encoder.stats, self._wire.channel.sent
        elapsed = time.monotonic() - self._began
        self._progress.update(
            passes=self.number,
            remaining=left,
            plain=stats.plain,
            zero=stats.zero,
            duplicate=stats.duplicate,
            bytes=sent,
            rate=sent / elapsed if elapsed else 0.0,
        )
