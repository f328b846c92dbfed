# SPDX-License-Identifier: Apache-2.0
"""The destination of a guest that has come before its pages: it runs here, and they follow.

Where the connection breaks the guest is paused, and the listener stays: the source, told to recover, connects
again. A new connection takes the place of one that only seems to be alive. If the source's process has died
the pages that had not come are gone, and the guest stays paused: it can be looked at, and that is all.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import replace

from ..errors import MigrationError, SdeivirtError
from ..machine.base import Machine
from .identity import Identity, is_dead
from .messages import Failure
from .pager import Pager, tell_figures
from .postcopy import HOW_TO_RECOVER
from .status import Progress
from .wants import Wants
from .wire import Wire

__all__ = ["PagesAhead", "Standstill"]

_log = logging.getLogger(__name__)

_TICK = 0.5
_LAST_WORDS = 1.0
_NEWS = 15.0  # ... for a source that does not know yet that the guest has run here
_PATIENCE = 30.0  # for a source that has not heard that everything is here


class Standstill:
    """A machine that is paused since its pages are out of reach.

    `run_state` is held by who pauses it or lets it go on, and leaves it alone while `held` is set.
    """

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._was_running = False
        self.run_state = threading.Lock()
        self.held = False

    def begin(self) -> None:
        """Pause it, unless it is."""
        with self.run_state:
            if not self.held and self._machine.state in ("running", "paused"):
                self.held = True
                self._was_running = self._machine.state == "running"
                self._machine.pause()

    def end(self) -> None:
        """Let it go on, if it was running."""
        with self.run_state:
            if self.held:
                self.held = False
                if self._was_running:
                    self._machine.resume()


class PagesAhead:
    """The page phase, from the destination's side. :meth:`run` is called on one thread, the rest on others."""

    def __init__(
        self,
        machine: Machine,
        progress: Progress,
        wants: Wants,
        source: Identity | None,
        caller: Callable[[float], Wire | None],
        shut: Callable[[], None],
        standstill: Standstill,
        hint: str = HOW_TO_RECOVER,
    ) -> None:
        """`source` is the process that has the pages, None where another can take its place.

        `caller` waits so many seconds for another connection on which this guest's pages can come;
        `shut` ends that, and has it raise MigrationError. `hint` says what to do where there is no connection.
        """
        self._machine = machine
        self._progress = progress
        self._wants = wants
        self._pager = Pager(machine, wants, self._tell, self._complete)
        self._standstill = standstill
        self._hint = hint
        self._base = progress.now  # before a page has come
        self._said = ""  # why it stood still last
        self._source = source
        self._caller, self._shut = caller, shut
        self._changed = threading.Condition()
        self._wire: Wire | None = None
        self._next: Wire | None = None
        self._known = source is None  # that the guest runs here, or it is nobody's concern
        self._over = False
        self._ended = threading.Event()

    @property
    def broken(self) -> bool:
        """Whether there is no connection."""
        return self._wire is None

    def run(self, wire: Wire, settle: Callable[[Wire], None]) -> None:
        """Until all pages are here and the source knows, or there is no hope. `settle` comes first on each connection.

        Raises nothing for what can go wrong with that: the status tells.
        """
        self._base = replace(self._progress.now, bytes=max(self._progress.now.bytes, wire.channel.received))
        self._progress.update(status="postcopy-active", remaining=self._wants.left)
        self._wire = wire
        door = threading.Thread(target=self._mind_the_door, name="migration-door", daemon=True)
        door.start()
        try:
            self._go_through(wire, settle)
        finally:
            self._ended.set()
            with self._changed:
                self._over = True
            self._shut()
            door.join()
            if self._next is not None:
                self._next.channel.close()

    def close(self, crash: Failure | None = None) -> None:
        """The VM has ended: whatever is still to come, nobody needs it. `crash` says why, where nobody wanted that."""
        if self._machine.state == "stopped":
            self._pager.enough(crash)
            if not self._known:
                self._ended.wait(_NEWS)  # if the connection breaks it comes again
        with self._changed:
            self._over = True
            wire = self._wire
            self._changed.notify_all()
        if wire is not None:
            if self._machine.state == "stopped":
                wire.channel.stall = _LAST_WORDS
                self._ended.wait(_LAST_WORDS)  # when the source has answered
            wire.channel.abort()

    def _go_through(self, wire: Wire | None, settle: Callable[[Wire], None]) -> None:
        deadline = None
        while wire is not None:
            with self._changed:
                self._wire = wire
            try:
                settle(wire)
                self._known = True
                self._go_on()
                self._pager.run(wire)
                return
            except (SdeivirtError, OSError) as loss:
                message = loss.message if isinstance(loss, SdeivirtError) else str(loss)
                wire.channel.abort()
            finally:
                with self._changed:
                    self._wire = None
                wire.channel.close()
            if self._over:
                return
            if self._wants.left:
                self._stand_still(message, wire.other)
            elif not self._wants.forgotten:  # else the source has pages, and comes when somebody has it recover
                deadline = deadline or time.monotonic() + _PATIENCE
            wire = self._await(deadline)

    # -- the guest

    def _go_on(self) -> None:
        if self._wants.left:
            self._progress.update(status="postcopy-active", error="", hint="")
        self._standstill.end()

    def _stand_still(self, message: str, other: str) -> None:
        if self._machine.state == "stopped":
            return
        self._standstill.begin()
        self._tell()
        self._progress.update(status="postcopy-paused", error=message, hint=self._hint)
        if message != self._said:  # another connection may break like the last one, and so on
            self._said = message
            _log.warning("the connection to %s broke, and the guest stands still: %s", other, message)

    def _complete(self) -> None:
        self._tell()
        self._progress.update(status="completed", error="", hint="")

    def _reset(self) -> bool:
        """The guest was reset and stands still for nothing; whether there is a source that is to know."""
        if self._progress.now.status != "completed" and self._machine.state != "stopped":
            self._standstill.end()
            self._complete()
        return self._source is not None

    def _tell(self) -> None:
        base, (plain, zero, same) = self._base, self._pager.pages
        tell_figures(
            self._machine,
            self._wants,
            self._progress,
            plain=base.plain + plain,
            zero=base.zero + zero,
            duplicate=base.duplicate + same,
            bytes=base.bytes + self._pager.received,
        )

    # -- connections

    def _mind_the_door(self) -> None:
        try:
            while not self._over:
                wire = self._caller(_TICK)
                if wire is None:
                    continue
                with self._changed:
                    if self._next is not None:
                        self._next.channel.close()
                    self._next = wire
                    if self._wire is not None:
                        self._wire.channel.abort()  # the source knows better than we do that it is dead
                    self._changed.notify_all()
        except (SdeivirtError, OSError) as error:
            _log.debug("nobody can come any more: %s", error)

    def _await(self, deadline: float | None) -> Wire | None:
        """The next connection; None if none will come, or is needed."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._next is not None or self._over, _TICK)
                wire, self._next = self._next, None
                if wire is not None or self._over:
                    return wire
            if self._wants.forgotten and not self._reset():
                return None
            stopped = self._machine.state == "stopped"
            if self._source is not None and is_dead(self._source):
                if self._wants.left and not stopped:
                    self._lose()
                return None
            if (stopped and self._known) or (deadline is not None and time.monotonic() > deadline):
                return None

    def _lose(self) -> None:
        error = MigrationError(
            f"the source's process has ended, and with it {self._wants.left} pages of the guest that had not come",
            "the guest stays paused, and cannot go on; start it anew, or restore it from a file",
        )
        self._progress.update(status="failed", error=error.message, hint=error.hint)
        _log.warning("%s: %s", error.message, error.hint)
