# SPDX-License-Identifier: Apache-2.0
"""`sdeivirt inject-error --count`: reports one after the other, and what is said of them."""

from __future__ import annotations

import json
import signal
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING, Any

from ..errors import BusyError, SdeivirtError

if TYPE_CHECKING:
    from ..control.client import VmClient

__all__ = ["Series", "say_interrupted", "terminated_like_interrupted"]

_REDRAW = 0.1


@contextmanager
def terminated_like_interrupted() -> Iterator[list[int]]:
    """SIGTERM and SIGHUP do what Ctrl-C does: a report is called off, and what was done is said. Gives which came."""
    seen: list[int] = []

    def interrupt(number: int, _frame: FrameType | None) -> None:
        seen.append(number)
        if signal.getsignal(signal.SIGINT) in (signal.SIG_IGN, signal.SIG_DFL, None):
            raise KeyboardInterrupt
        signal.raise_signal(signal.SIGINT)  # an event loop that runs has a handler of its own

    saved = {number: signal.signal(number, interrupt) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield seen
    finally:
        for number, handler in saved.items():
            signal.signal(number, handler)


def say_interrupted(withdrawn: bool | None, under_way: bool) -> None:
    """What becomes of the report that was under way when somebody interrupted us; None where that is not known."""
    if withdrawn:
        said = "the report was taken back: the guest has not been told of it"
    elif withdrawn is False:
        said = "the guest has been told of the report, which stays in its block until it is read"
    elif under_way:
        said = "whether the guest has been told of the report is not known"
    else:
        return
    print(f"interrupted: {said}", file=sys.stderr)


class Series:
    """Reports one after the other. It ends before its time where the guest does not take one, or has panicked."""

    def __init__(self, count: int, source: int) -> None:
        self._count = count
        self._source = source
        self.outcomes: list[dict[str, Any]] = []
        self.refused = 0
        self.panicked = False
        self.failure: SdeivirtError | None = None
        self._drawn = 0.0

    def run(self, client: VmClient, timeout: float, interval: float, arguments: Mapping[str, object]) -> None:
        """All of them, `interval` seconds apart at least. An error that ends it is in `failure`."""
        not_before = time.monotonic()
        for i in range(self._count):
            time.sleep(max(0.0, not_before - time.monotonic()))
            not_before = time.monotonic() + interval
            try:
                self.outcomes.append(client.report_error(timeout, **arguments))
            except BusyError:
                self.refused += 1
            except SdeivirtError as error:
                self.failure = error
                return
            self._draw(i + 1)
            if self.outcomes and self.outcomes[-1]["outcome"] == "panicked":
                self.panicked = True
                return

    def _draw(self, done: int) -> None:
        """How far it is, on a line that is written over, where standard error is a terminal."""
        now = time.monotonic()
        if sys.stderr.isatty() and (now - self._drawn >= _REDRAW or done == self._count):
            print(f"\r\x1b[K{done:,} of {self._count:,} reported", end="", file=sys.stderr, flush=True)
            self._drawn = now

    def show(self, as_json: bool) -> None:
        """What became of them."""
        if self._drawn:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)
        counts = {
            what: sum(each["outcome"] == what for each in self.outcomes)
            for what in ("acknowledged", "queued", "panicked")
        }
        times = sorted(each["seconds"] for each in self.outcomes if each["seconds"] is not None)
        if as_json:
            whole = {"source": self._source, "count": self._count, **counts, "refused": self.refused}
            print(json.dumps(whole | {"reports": self.outcomes}))
            return
        said = [f"{number:,} {what}" for what, number in counts.items() if number]
        if self.refused:
            said.append(f"{self.refused:,} refused because the source was busy")
        text = f"source {self._source}: of {self._count:,} reports {', '.join(said) if said else 'none was made'}"
        if times:
            median, most = times[len(times) // 2], times[-1]
            text += f"; handled in {median * 1e3:.1f} ms (median), {most * 1e3:.1f} ms at most"
        print(text, flush=True)
