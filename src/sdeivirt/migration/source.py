# SPDX-License-Identifier: Apache-2.0
"""The side that a guest leaves, and the way back from every failure before the hand-over.

See messages.py for what is said. The rule: until CMIT has been sent, whatever
happens, the guest goes on here, unharmed; once it has been sent, the guest goes on here
only if it is certain that it does not at the destination.
"""

from __future__ import annotations

import threading
import time

from .. import __version__
from ..errors import MigrationError, SdeivirtError, StateError, UsageError
from ..machine.base import PAGE_SIZE, Machine
from .channel import (
    Channel,
    ChannelCancelledError,
    ChannelCutError,
    ChannelStalledError,
    Interrupt,
    Pace,
    Uri,
    connect,
    create_file,
)
from .handover import STAYS, HandOver
from .identity import Identity
from .leaving import Leaving, SourceOptions
from .messages import Failure, Hello, Kind, Loaded, Ready
from .precopy import PreCopy
from .status import MigrationStatus, Progress
from .wire import RefusedError, Wire

__all__ = ["Outgoing", "SourceOptions"]

_CONNECT = 10.0  # seconds for the destination to answer
_GRACE = 1.0  # for what the other side has said before it closed the connection
_QUIET_END = 2.0  # for the frame that is under way when somebody cancels; then the connection is cut
_CANCELLED = "the migration was cancelled"


class Outgoing:
    """One attempt to move a guest. :meth:`run` makes it, on a thread of the caller's; the rest is for all others."""

    def __init__(self, machine: Machine, uri: Uri, options: SourceOptions, progress: Progress) -> None:
        if uri.scheme == "file" and options.postcopy is not None:
            raise UsageError("a file has all pages of a guest, or none", "leave out --postcopy")
        if options.postcopy is not None:
            machine.check_post_copy()
        self._leaving = Leaving(machine, uri, options, progress)
        self._hand_over = HandOver(self._leaving)
        self._quit = Interrupt("the migration")  # seen between two frames, and by all that waits
        self._lock = threading.Lock()  # of the next four
        self._channel: Channel | None = None
        self._cut: threading.Timer | None = None
        self._cancelled = ""  # why
        self._committed = False
        limit = options.downtime if uri.scheme != "file" and options.postcopy is None else None
        progress.update(status="setup", uri=str(uri), total=machine.config.memory // PAGE_SIZE, downtime_limit=limit)

    @property
    def status(self) -> MigrationStatus:
        """How far it has got, or how it has ended."""
        return self._leaving.progress.now

    def cancel(self, why: str = _CANCELLED) -> None:
        """Give up, and say `why` to the destination; or give up connecting again for the last pages. Returns at once.

        Raises StateError where it is too late.
        """
        with self._lock:
            if self._committed:
                if (behind := self._hand_over.behind) is not None:
                    behind.cancel()
                    return
                raise StateError(
                    "the guest has been handed over: it is too late to cancel", "wait for the destination's answer"
                )
            if self._cancelled:
                return
            self._cancelled = why
            if (channel := self._channel) is not None:
                channel.pace = None
                self._cut = threading.Timer(_QUIET_END, channel.abort)
                self._cut.daemon = True
                self._cut.start()
        self._quit.set()

    @property
    def run_state(self) -> threading.Lock:
        """Held by who pauses the machine or lets it go on, and leaves it alone while :attr:`held` is set."""
        return self._leaving.run_state

    @property
    def held(self) -> bool:
        return self._leaving.held

    @property
    def moved(self) -> bool:
        """Whether the guest has left, for another process or into a file."""
        return self._leaving.detour.gone

    def take_back(self) -> None:
        """Somebody knows that the destination does not run the guest, and never will. Raises StateError."""
        if self._leaving.progress.now.status != "undecided":
            raise StateError("it is known where the guest runs", "see `sdeivirt migrate VM --status`")
        self._hand_over.taken_back = True

    def recover(self, uri: Uri | None, options: SourceOptions) -> None:
        """Connect again, perhaps elsewhere, and send the pages that are still here. Returns at once.

        `options` has what concerns the connection. Raises StateError.
        """
        behind = self._hand_over.behind
        if behind is None:
            raise StateError("no pages of a guest are left here", "see `sdeivirt migrate VM --status`")
        self._hand_over.recover(behind, uri, options)

    def run(self) -> None:
        """Move the guest. Never raises for what can go wrong with that: the status tells."""
        try:
            self._move()
        except BaseException as error:  # such as a machine that cannot go on: nobody is to wait for the end of that
            if self._leaving.progress.now.active:
                self._leaving.progress.update(status="failed", error=f"the migration broke off: {error}", limit=None)
            raise
        finally:
            self._quit.close()

    def _move(self) -> None:
        wire: Wire | None = None
        try:
            if self._leaving.uri.scheme == "file":
                self._to_file()
                return
            wire = self._open()
            stands = self._greet(wire)
            PreCopy(self._leaving, apart=not stands).run(wire)
            wire.expect(Kind.LOADED, Loaded)
            with self._lock:
                if self._cancelled:
                    raise ChannelCancelledError(self._cancelled)
                self._committed = True
        except BaseException as error:
            self._go_on_here(wire, _last_word(wire, error))
            if not isinstance(error, SdeivirtError | OSError):
                raise
            return
        self._hand_over.run(wire)

    # -- before the hand-over

    def _open(self) -> Wire:
        options = self._leaving.options
        channel = connect(self._leaving.uri, options.credentials(), options.insecure, _CONNECT, self._quit)
        self._use(channel)
        return Wire(channel, "the destination", self._quit)

    def _use(self, channel: Channel) -> None:
        channel.stall = self._leaving.options.stall
        if self._leaving.options.bandwidth is not None:
            channel.pace = Pace(self._leaving.options.bandwidth)
        with self._lock:
            self._channel = channel

    def _greet(self, wire: Wire) -> bool:
        """Say who we are and what the machine is made of; whether the destination stands."""
        wire.say(Kind.HELLO, Hello(self._leaving.migration, f"sdeivirt {__version__}", Identity.ours()))
        hello = wire.expect(Kind.HELLO, Hello)
        self._leaving.describe(wire)
        stands = wire.expect(Kind.READY, Ready).stands
        self._leaving.destination = hello.who
        return stands

    def _go_on_here(self, wire: Wire | None, error: BaseException) -> None:
        """Something went wrong, or somebody thought better of it: the guest goes on as if nothing had been."""
        with self._lock:
            cancelled, cut = self._cancelled, self._cut
            channel = self._channel
        if cut is not None:
            cut.cancel()
        shown = error.message if isinstance(error, SdeivirtError) else str(error) or type(error).__name__
        hint = error.hint if isinstance(error, SdeivirtError) else ""
        told = wire is None or isinstance(error, RefusedError)
        if wire is not None and not told:
            heard = wire.give_up(Failure(cancelled or shown, STAYS if self._leaving.machine.state != "stopped" else ""))
            told = heard and not isinstance(error, ChannelCutError | ChannelStalledError)
        if channel is not None:
            channel.close()
        waits = self._leaving.whole and not told  # the destination may have everything, and wait for the word
        if waits and self._hand_over.can_see_us_die():
            self._hand_over.call_off(cancelled or shown)
            waits = False
        self._leaving.go_on()
        if waits:
            self._hand_over.call_off(cancelled or shown)
        if cancelled:
            self._leaving.progress.update(status="cancelled", error=cancelled, limit=None)
        else:
            self._leaving.progress.update(status="failed", error=shown, hint=hint, limit=None)

    # -- files

    def _to_file(self) -> None:
        channel = create_file(self._leaving.uri, overwrite=self._leaving.options.overwrite)
        self._use(channel)
        wire = Wire(channel, "the file", self._quit)
        wire.say(Kind.HELLO, Hello(self._leaving.migration, f"sdeivirt {__version__}"))
        self._leaving.describe(wire)
        PreCopy(self._leaving, apart=False).run(wire)
        with self._lock:
            if self._cancelled:
                raise ChannelCancelledError(self._cancelled)
            self._committed = True
        channel.commit()
        downtime = time.monotonic() - self._leaving.stopped_at
        if self._leaving.options.stay:
            self._leaving.go_on()
            self._leaving.progress.update(status="completed", limit=None)
            return
        self._leaving.detour.leave(str(self._leaving.uri))
        self._leaving.detour.lost(
            MigrationError(f"the guest has gone into {self._leaving.uri}", "restore it, and inject the event then")
        )
        self._leaving.progress.update(status="completed", downtime=downtime, limit=None)
        self._leaving.machine.depart()


def _last_word(wire: Wire | None, error: BaseException) -> BaseException:
    """Why the destination has closed the connection, if it has said so; it may while we send, and do not listen."""
    if wire is not None and isinstance(error, ChannelCutError):
        wire.channel.stall = _GRACE
        try:
            while True:
                wire.next()
        except RefusedError as refusal:
            return refusal
        except (SdeivirtError, OSError):
            pass
    return error
