# SPDX-License-Identifier: Apache-2.0
"""A migration's progress: one line that is written over on a terminal, a line a pass elsewhere."""

from __future__ import annotations

import contextlib
import shutil
import time
from typing import TextIO

from ..migration.status import MigrationStatus

__all__ = ["ProgressLine", "counted", "in_bytes"]

_SILENCE = 10.0  # seconds without a word where lines are not written over


class ProgressLine:
    """Lines on a stream, as long as it is under way. `end` leaves the cursor on a line of its own."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._terminal = stream.isatty()
        self._open = False
        self._passes = -1
        self._status = ""
        self._hint = ""
        self._spoke = time.monotonic()

    def show(self, status: MigrationStatus) -> None:
        """How far it is. How it has ended is for the caller to say."""
        new = (status.passes, status.status) != (self._passes, self._status)
        if status.status == "active" and status.hint and status.hint != self._hint:
            self.say(f"hint: {status.hint}")
        self._hint = status.hint
        if status.status == "undecided" and self._status != "undecided":
            self.say(f"nobody runs the guest: {status.error}\nhint: {status.hint}")
        self._passes, self._status = status.passes, status.status
        if not status.active:
            self.end()
        elif self._terminal:
            # A line that wraps could not be written over.
            room = shutil.get_terminal_size().columns - 1
            self._write(f"\r\x1b[K{_describe(status)[:room]}")
            self._open = True
        elif new or time.monotonic() - self._spoke >= _SILENCE:
            self._write(_describe(status) + "\n")

    def say(self, text: str) -> None:
        """Something else, on lines of its own."""
        self.end()
        self._write(text + "\n")

    def end(self) -> None:
        if self._open:
            self._write("\r\x1b[K")
        self._open = False

    def _write(self, text: str) -> None:
        self._spoke = time.monotonic()
        with contextlib.suppress(OSError):  # the terminal may be gone; what has been begun goes on to its end
            self._stream.write(text)
            self._stream.flush()


def in_bytes(count: float, step: int = 1024) -> str:
    """So many bytes, with a unit that suits: of 1024 each, or of 1000 for what goes over a link."""
    units = ("B", "KiB", "MiB", "GiB") if step == 1024 else ("B", "KB", "MB", "GB")
    power = 0
    while count >= step and power < len(units) - 1:
        count /= step
        power += 1
    return f"{count:,.0f} {units[power]}" if not power or count >= 100 else f"{count:,.1f} {units[power]}"


def counted(count: int, what: str) -> str:
    """So many of them."""
    return f"{count:,} {what}" + "s" * (count != 1)


def _describe(status: MigrationStatus) -> str:
    if status.status == "active" and not status.passes:
        return "beginning"
    if status.status == "active":
        text = (
            f"pass {status.passes}: {status.remaining:,} of {counted(status.total, 'page')} left, "
            f"{in_bytes(status.rate, 1000)}/s, {in_bytes(status.bytes)} in {status.elapsed:.0f} s"
        )
        if status.passes > 1:
            text += f", downtime {status.expected_downtime * 1e3:,.0f} ms if it were now"
            if status.downtime_limit is not None:
                text += f" ({status.downtime_limit * 1e3:,.0f} allowed)"
        if status.limit is not None:
            text += f", held up to {status.limit:,} new pages/s"
        return text
    if status.status == "postcopy-active":
        text = f"the guest runs there: {status.remaining:,} of {counted(status.total, 'page')} left"
        if status.faults:
            text += (
                f", {status.faults:,} faults of {status.fault_median * 1e3:,.2f} ms "
                f"(99 %: {status.fault_slowest * 1e3:,.2f})"
            )
        return text
    if status.status == "postcopy-recover":
        return "connecting again"
    if status.status == "device":
        # Those that come after it are not counted yet, nor are those of a guest that is stopped first.
        left = f": {counted(status.remaining, 'page')} left" if status.remaining else ""
        return f"the guest is stopped{left}"
    if status.status == "undecided":
        return "asking the destination"
    return "opening the file" if status.uri.startswith("file:") else "connecting"
