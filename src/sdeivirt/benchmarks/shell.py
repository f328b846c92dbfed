# SPDX-License-Identifier: Apache-2.0
"""A shell in a guest, by its serial port: the other side of `run=serve` (guests/linux/README.md)."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable

__all__ = ["Shell", "ShellError"]

_EXIT = re.compile(r"<<<EXIT (\d+)>>>\n")
READY = "SERVE-READY\n"


class ShellError(Exception):
    """The guest does not do what it was told to, or not in time; with the end of what it has printed."""


class Shell:
    """Commands in, output and exit codes out.

    `type_in` takes bytes and says how many there was room for; whatever the
    guest prints goes to :meth:`feed`, from any thread. `over` says whether
    nothing more will come.
    """

    def __init__(self, type_in: Callable[[bytes], int], over: Callable[[], bool] = lambda: False) -> None:
        self._type_in = type_in
        self._over = over
        self._changed = threading.Condition()
        self._seen = 0  # the end of the last command's output
        self.text = ""

    def feed(self, data: bytes) -> None:
        """More output."""
        with self._changed:
            self.text += data.decode("utf-8", "replace")
            self._changed.notify_all()

    def _wait(self, found: Callable[[], object], seconds: float, what: str) -> None:
        with self._changed:
            until = time.monotonic() + seconds
            # Whether it is over is looked at now and then: nobody notifies of that.
            while not found():
                left = until - time.monotonic()
                if left <= 0 or (self._over() and not found()):
                    raise ShellError(f"no {what} from the guest:\n{self.text[-3000:]}")
                self._changed.wait(min(left, 0.5))

    def wait_for(self, text: str, seconds: float = 120, count: int = 1) -> None:
        """Wait until a text has been printed `count` times."""
        self._wait(lambda: self.text.count(text) >= count, seconds, text.strip())

    def wait_ready(self, seconds: float = 120, count: int = 1) -> None:
        """Wait for the shell; for that of the count-th boot."""
        self.wait_for(READY, seconds, count)
        with self._changed:
            self._seen = self.text.rindex(READY) + len(READY)

    @property
    def busy(self) -> bool:
        """Whether the last command runs."""
        with self._changed:
            return _EXIT.search(self.text, self._seen) is None

    def begin(self, command: str, seconds: float = 60) -> None:
        """Type a command; :meth:`end` waits for its end."""
        data = command.encode() + b"\n"
        until = time.monotonic() + seconds
        while data := data[self._type_in(data) :]:
            if time.monotonic() > until:
                raise ShellError("the guest takes no input")

    def end(self, seconds: float = 60) -> tuple[int, str]:
        """The exit code of the command, and what it has printed."""
        self._wait(lambda: not self.busy, seconds, "end of the command")
        with self._changed:
            found = _EXIT.search(self.text, self._seen)
            assert found is not None
            output = self.text[self._seen : found.start()]
            self._seen = found.end()
        return int(found.group(1)), output

    def run(self, command: str, seconds: float = 60) -> str:
        """Run a command; what it prints. Raises ShellError where it fails."""
        self.begin(command)
        code, output = self.end(seconds)
        if code:
            raise ShellError(f"`{command}` ended with {code}:\n{output}")
        return output
