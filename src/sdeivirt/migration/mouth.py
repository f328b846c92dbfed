# SPDX-License-Identifier: Apache-2.0
"""What a pager says on one connection, without ever holding up who wants a page.

Who wants one may hold the machine's lock, and the other side may have stopped reading. So what there
is to say is said on the thread on which it comes up as far as that goes without waiting, which spares it a change of
threads; and a thread of our own, which can wait, says the rest.
"""

from __future__ import annotations

import threading
from collections import deque

import msgspec

from ..errors import SdeivirtError
from .lacking import Got, pack_wants
from .messages import Failure, Kind
from .wants import Wants
from .wire import Wire

__all__ = ["Mouth"]

_PATIENCE = 1.0  # seconds for a last word to be finished


class Mouth:
    """Says WANT, GOT, and HAVE or FAIL on a wire. Any thread may call any method; only :meth:`close` blocks."""

    def __init__(self, wire: Wire, wants: Wants) -> None:
        self._wire = wire
        self._wants = wants
        self._speaking = threading.Lock()  # held by who says something; nobody waits for it but our own thread
        self._unfinished = False  # a frame that has been begun; guarded by it, as the next
        self._silent = False  # nothing more is begun
        self._closed = False
        self._got: deque[Got] = deque(maxlen=1)  # only the last one is news
        self._have = False
        self._crash: Failure | None = None  # said instead
        self._bell = threading.Event()  # something was left to our own thread
        self.error: BaseException | None = None  # why nothing more can be said
        self._thread = threading.Thread(target=self._run, name="pager", daemon=True)
        self._thread.start()

    def got(self, got: Got) -> None:
        """Tell how far it is here."""
        self._got.append(got)
        self.speak()

    def have(self, crash: Failure | None = None) -> None:
        """Tell that nothing is lacking, or needed, or that the guest is lost: the last word."""
        self._crash = crash
        self._have = True
        self.speak()

    def speak(self) -> None:
        """Say what there is to say, what is wanted too."""
        if self._speaking.acquire(blocking=False):
            try:
                if self._say(wait=False):
                    return
            finally:
                self._speaking.release()
        self._bell.set()

    def close(self) -> None:
        """Say nothing more: nobody listens any more, or needs to."""
        if not self._speaking.acquire(timeout=_PATIENCE):
            self._wire.channel.abort()
            self._speaking.acquire()
        self._silent = self._closed = True
        self._speaking.release()
        self._bell.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._closed:
            self._bell.wait()
            self._bell.clear()
            with self._speaking:
                if not self._closed:
                    self._say(wait=True)

    def _say(self, wait: bool) -> bool:
        """Whether nothing is left to be said."""
        try:
            while True:
                if self._unfinished:
                    if not wait:
                        return False
                    self._wire.finish()
                    self._unfinished = False
                if (word := self._next()) is None:
                    return True
                self._unfinished = not self._wire.begin(*word)
        except (SdeivirtError, OSError) as error:  # who receives will find out
            self.error = error
            self._silent = True
            self._wire.channel.abort()
            return True

    def _next(self) -> tuple[bytes, bytes] | None:
        if self._silent:
            return None
        if self._got:
            return Kind.GOT, self._got.popleft().pack()
        if self._have or self._wants.forgotten:
            self._silent = True
            return (Kind.FAILURE, msgspec.msgpack.encode(self._crash)) if self._crash is not None else (Kind.HAVE, b"")
        runs = self._wants.take()
        return (Kind.WANT, pack_wants(runs)) if runs else None
