# SPDX-License-Identifier: Apache-2.0
"""The far end of the guest's serial port: standard input and output of this process.

Where standard input is a terminal, it goes into raw mode so that every key,
Ctrl-C too, reaches the guest; Ctrl-] ends the VM. Anything else on standard
input is typed in as it stands. Or the serial port writes to a file: then
nothing is typed in, and Ctrl-C is the shell's again.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import sys
import termios
import threading
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

from ..errors import UsageError

__all__ = ["ESCAPE", "Terminal"]

ESCAPE = b"\x1d"  # Ctrl-]

_STDIN = 0
_STDOUT = 1
_CHUNK = 1024
_RETRY = 0.02  # seconds until input is offered again to a guest that has not made room
# A pipe that polls as writable takes so much without blocking (POSIX: at least 512).
_PIECE = select.PIPE_BUF


def _may_control_terminal() -> bool:
    """Whether standard input is a terminal that this process may read: a background job may not."""
    try:
        return os.isatty(_STDIN) and os.tcgetpgrp(_STDIN) == os.getpgrp()
    except OSError:
        return False


class Terminal:
    """A context manager: raw mode while inside, the mode before on every way out.

    `file` gets the output instead, if given. Raises UsageError where it cannot be written.
    """

    def __init__(self, file: Path | None = None) -> None:
        self._attached = file is None
        self._out = _STDOUT
        if file is not None:
            try:
                self._out = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            except OSError as error:
                raise UsageError(f"cannot write {file}: {error.strerror}", "choose another file") from error
        self.interactive = self._attached and _may_control_terminal()
        self._at_line_start = True
        self.broken = False  # whoever read our output has gone
        self._saved: list[object] | None = None
        self._closing = threading.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._on_broken: Callable[[], None] = lambda: None
        self._listen: Callable[[], None] = lambda: None

    def __enter__(self) -> Terminal:
        if self.interactive:
            self._make_raw()
        return self

    def _make_raw(self) -> None:
        if self._saved is None:
            self._saved = termios.tcgetattr(_STDIN)
        mode = termios.tcgetattr(_STDIN)
        mode[0] &= ~(termios.BRKINT | termios.ICRNL | termios.INPCK | termios.ISTRIP | termios.IXON)
        # Output processing stays on: it turns the guest's \n, and that of our own messages, into \r\n.
        mode[3] &= ~(termios.ECHO | termios.ICANON | termios.IEXTEN | termios.ISIG)
        mode[6][termios.VMIN] = 1
        mode[6][termios.VTIME] = 0
        termios.tcsetattr(_STDIN, termios.TCSADRAIN, mode)

    def continued(self) -> None:
        """SIGCONT: whoever goes on in the foreground takes the terminal, whose mode the shell may have reset."""
        if self._closing.is_set() or not self._attached or not _may_control_terminal():
            return
        self.interactive = True
        self._make_raw()
        self._listen()
        self.say("Ctrl-] ends the VM")

    def take_if_ours(self) -> None:
        """A background job may have come to the foreground: shells do not tell one that runs."""
        if not self.interactive and _may_control_terminal():
            self.continued()

    def restore(self) -> None:
        """Put the terminal back into the mode it was in. Can be called twice."""
        saved, self._saved = self._saved, None
        if saved is not None:
            with contextlib.suppress(termios.error):
                termios.tcsetattr(_STDIN, termios.TCSANOW, saved)  # type: ignore[arg-type]

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.restore()
        if self._out != _STDOUT:
            os.close(self._out)

    # -- output: called on the machine's thread

    def write(self, data: bytes) -> None:
        """The guest's output, unbuffered. Waits for a slow reader, but no longer than until :meth:`close`."""
        self._at_line_start = data.endswith(b"\n")
        view = memoryview(data)
        poll = select.poll()
        poll.register(self._out, select.POLLOUT)
        while view and not self.broken:
            if not poll.poll(100):
                if self._closing.is_set():
                    return
                continue
            try:
                view = view[os.write(self._out, view[:_PIECE]) :]
            except BlockingIOError:
                continue
            except OSError:
                self.broken = True
                if self._loop is not None:
                    self._loop.call_soon_threadsafe(self._on_broken)

    # -- input: on the event loop

    def attach(self, type_in: Callable[[bytes], int], escape: Callable[[], None], broken: Callable[[], None]) -> None:
        """From now on give input to `type_in`; call `escape` on Ctrl-], `broken` when nobody reads our output.

        `type_in` says how many bytes it took; the rest is offered again, and
        nothing more is read in the meantime. From a terminal it is dropped
        instead: somebody types to a guest that does not listen, and wants out.
        """
        loop = self._loop = asyncio.get_running_loop()
        self._on_broken = broken

        def readable() -> None:
            try:
                data = os.read(_STDIN, _CHUNK)
            except (BlockingIOError, InterruptedError):
                return
            except OSError:
                data = b""
            if not data:
                loop.remove_reader(_STDIN)
            elif self.interactive and ESCAPE in data:
                type_in(data[: data.index(ESCAPE)])
                escape()
            elif self.interactive:
                type_in(data)
            else:
                offer(data)

        def offer(data: bytes) -> None:
            if self._closing.is_set():
                return
            left = data[type_in(data) :]
            if left:
                loop.remove_reader(_STDIN)
                loop.call_later(_RETRY, offer, left)
            else:
                loop.add_reader(_STDIN, readable)

        def listen() -> None:
            try:
                loop.add_reader(_STDIN, readable)
            except (
                OSError
            ):  # a regular file or /dev/null, which epoll refuses and which never blocks; or no stdin at all
                threading.Thread(target=self._type_file, args=(type_in,), daemon=True).start()

        self._listen = listen
        if self.interactive or (self._attached and not os.isatty(_STDIN)):
            listen()

    def _type_file(self, type_in: Callable[[bytes], int]) -> None:
        with contextlib.suppress(OSError):
            while not self._closing.is_set() and (data := os.read(_STDIN, _CHUNK)):
                while data := data[type_in(data) :]:
                    if self._closing.wait(_RETRY):
                        return

    def detach(self) -> None:
        """No more input, and no more waiting for a slow reader of our output."""
        self._closing.set()
        if self._loop is not None:
            self._loop.remove_reader(_STDIN)

    def say_ended(self, text: str) -> None:
        """The last message, to whoever watched: on a line of its own, wherever the guest has left the cursor."""
        if self.interactive:
            self.say(("" if self._at_line_start else "\n") + text)

    def say(self, text: str) -> None:
        """A message of ours, on standard error."""
        with contextlib.suppress(OSError, ValueError):
            print(text, file=sys.stderr, flush=True)
