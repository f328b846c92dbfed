# SPDX-License-Identifier: Apache-2.0
"""A migration's progress: one line that is written over on a terminal, a line a pass elsewhere."""

from __future__ import annotations

from typing import TextIO

from ..migration.status import MigrationStatus

__all__ = ["ProgressLine"]


class ProgressLine:
    """Lines on a stream. `end` leaves the cursor on a line of its own."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._terminal = stream.isatty()
        self._open = False
        self._passes = -1
        self._status = ""

    def show(self, status: MigrationStatus) -> None:
        if self._terminal:
            self._write(f"\r\x1b[K{_describe(status)}")
            self._open = True
        elif (status.passes, status.status) != (self._passes, self._status):
            self._write(_describe(status) + "\n")
        self._passes, self._status = status.passes, status.status

    def say(self, text: str) -> None:
        self.end()
        self._write(text + "\n")

    def end(self) -> None:
        if self._open:
            self._write("\r\x1b[K")
        self._open = False

    def _write(self, text: str) -> None:
        self._stream.write(text)
        self._stream.flush()


def _describe(status: MigrationStatus) -> str:
    if status.status == "active":
        text = (
            f"pass {status.passes}: {status.remaining:,} of {status.total:,} pages left, {status.rate / 1e6:,.0f} MB/s"
        )
        if status.passes > 1:
            text += f", downtime {status.expected_downtime * 1e3:,.0f} ms if it were now"
        if status.limit is not None:
            text += f", held up to {status.limit:,} new pages/s"
        return text
    if status.status == "device":
        return f"the guest is stopped: {status.remaining:,} pages left"
    if status.status == "undecided":
        return f"nobody runs the guest: {status.error}; asking the destination"
    return {"setup": "connecting", "completed": "the guest has moved"}.get(status.status, status.status)
