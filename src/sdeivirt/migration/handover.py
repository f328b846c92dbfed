# SPDX-License-Identifier: Apache-2.0
"""The hand-over, from the source's side: the word that lets the guest run at the destination, and what follows it.

Once that has been sent, the guest goes on here only if it is certain that it does not run there: the
destination has ended, or somebody says so. A connection that breaks is made again, and the destination is
asked how far it has got.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from dataclasses import replace

from ..errors import MigrationError, SdeivirtError
from .channel import Interrupt, Pace, Uri
from .detour import Held
from .identity import Identity, dies, is_dead
from .leaving import Leaving, SourceOptions
from .messages import Commit, Done, Failure, Hello, Kind, LetGo, Running, Stage
from .pageserver import ServerOptions
from .postcopy import PagesBehind
from .slow import SlowLink
from .wire import Wire

__all__ = ["STAYS", "HandOver"]

_log = logging.getLogger(__name__)

STAYS = "the guest goes on at the source"
_CONNECT = 10.0  # seconds for the destination to answer
_PATIENCE = 10.0  # until a hand-over that broke off is left to a person
_CALL_OFF = 5.0  # for a destination that may have everything to hear that it is not to run it
_RETRY = 0.1


class _StrangerError(MigrationError):
    """Somebody else answers in the destination's place."""


class HandOver:
    """Has the guest run at the destination, which has everything; or calls that off."""

    def __init__(self, leaving: Leaving) -> None:
        self._leaving = leaving
        self._held: tuple[Held, ...] = ()  # what followed the guest
        self.behind: PagesBehind | None = None  # once it has gone before its pages
        self.taken_back = False  # somebody knows that the destination does not run it

    def run(self, wire: Wire) -> None:
        """CMIT, and what follows. The guest is stopped, its state is at the destination."""
        try:
            wire.channel.stall = self._leaving.stopped_stall
            wire.say(Kind.COMMIT, Commit(self._leaving.was_paused))
            wire.expect(Kind.RUNNING, Running)
        except (SdeivirtError, OSError) as loss:
            wire.channel.close()
            self._find_out(loss)
            return
        self._let_go(wire)

    def _let_go(self, wire: Wire) -> None:
        """It runs there. What was injected here meanwhile follows it."""
        downtime = time.monotonic() - self._leaving.stopped_at
        self._held = self._leaving.detour.leave(str(self._leaving.uri))
        deadline = time.monotonic() + _PATIENCE
        connected: Wire | None = wire
        while True:
            try:
                wire.say(Kind.LET_GO, LetGo(self._held))
                self._leaving.detour.answered(wire.expect(Kind.DONE, Done).answers)
                break
            except (SdeivirtError, OSError, ValueError) as error:
                wire.channel.close()
                again = self._reach(deadline)
                connected = again
                if again is None:
                    _log.warning("the guest runs at %s, but its last word was lost: %s", self._leaving.uri, error)
                    break
                wire = again
        self._leaving.detour.lost(
            MigrationError("the guest has moved, and whether the event arrived there is not known")
        )
        self._leaving.progress.update(downtime=downtime, limit=None)
        if self._leaving.options.postcopy is not None:
            if not self._send_behind(connected):
                return
        elif connected is not None:
            connected.channel.close()
        unneeded = self.behind.unneeded if self.behind is not None else 0
        self._leaving.progress.update(status="completed", remaining=0, unneeded=unneeded, error="", hint="")
        self._leaving.machine.depart()

    def _send_behind(self, wire: Wire | None) -> bool:
        """The pages that come after the guest; whether they all got there."""
        options, machine = self._leaving.options, self._leaving.machine
        pace = Pace(options.bandwidth) if options.bandwidth is not None else None
        if wire is not None:
            wire.channel.pace = None  # the limit is for what nobody has asked for
        link = options.link or SlowLink()
        how = ServerOptions(options.compress, pace, link, options.rest, options.stall)
        self.behind = PagesBehind(machine, self._leaving.progress, how, self._leaving.destination, self._recovered)
        return self.behind.run(wire)

    def recover(self, behind: PagesBehind, uri: Uri | None, options: SourceOptions) -> None:
        """Have `behind` connect again, perhaps elsewhere, which is remembered if the guest is found there.

        Of `options` counts what concerns the connection, and without a `uri` only what is said. Raises StateError.
        """
        leaving, before = self._leaving, self._leaving.options
        tls = options if uri is not None or options.tls is not None else before
        changed = replace(
            before,
            tls=tls.tls,
            tls_hostname=tls.tls_hostname,
            insecure=options.insecure or (uri is None and before.insecure),
            bandwidth=before.bandwidth if options.bandwidth is None else options.bandwidth,
        )
        old = leaving.uri

        def connect(attempt: Interrupt) -> Wire:
            leaving.uri, leaving.options = uri or old, changed
            try:
                wire = self._recovered(attempt)
            except BaseException:
                leaving.uri, leaving.options = old, before
                raise
            leaving.detour.follow(str(leaving.uri))
            leaving.progress.update(uri=str(leaving.uri))
            if changed.bandwidth is not None:
                behind.limit(changed.bandwidth)
            return wire

        behind.recover(connect)

    def _recovered(self, attempt: Interrupt | None = None) -> Wire:
        """A connection to the destination that has the guest, after one that broke. Raises MigrationError."""
        wire = self._leaving.connect_again(_CONNECT, attempt)
        try:
            if wire.expect(Kind.HELLO, Hello).stage not in (Stage.RUNNING, Stage.SETTLED):
                raise MigrationError("this guest does not run there", "name the place that it has gone to")
            wire.say(Kind.LET_GO, LetGo(self._held))
            wire.expect(Kind.DONE, Done)
            wire.channel.hearing = None
        except BaseException:
            wire.channel.close()
            raise
        return wire

    def _reach(self, deadline: float) -> Wire | None:
        """Another connection to the destination, which runs the guest; None if there is none to be had."""
        while time.monotonic() < deadline and self._leaving.machine.state != "stopped":
            try:
                wire = self._leaving.connect_again(2.0)
            except (SdeivirtError, OSError):
                if self._leaving.destination is not None and is_dead(self._leaving.destination):
                    return None
                threading.Event().wait(_RETRY)
                continue
            try:
                if wire.expect(Kind.HELLO, Hello).stage is not Stage.NEW:
                    return wire
            except (SdeivirtError, OSError):
                pass
            wire.channel.close()
            threading.Event().wait(_RETRY)
        return None

    def _find_out(self, loss: BaseException) -> None:
        """CMIT may have arrived or not. Nothing runs here until that is known."""
        destination = self._leaving.destination
        broke = f"the connection broke during the hand-over: {getattr(loss, 'message', loss)}"
        self._leaving.progress.update(
            status="undecided",
            error=broke,
            hint="if you know that the guest does not run there and never will: `sdeivirt migrate VM --take-back`",
        )
        if destination is not None and dies(destination):
            self._take_back("the destination's process has ended")
            return
        deadline = time.monotonic() + _PATIENCE
        while True:
            late = time.monotonic() > deadline
            try:
                self._ask()
                return
            except (SdeivirtError, OSError) as error:
                _log.debug("asking the destination: %s", error)
                shown = f"{broke}; {error.message}" if isinstance(error, _StrangerError) else broke
                if shown != self._leaving.progress.now.error:
                    self._leaving.progress.update(error=shown)
                gone = is_dead(destination) if destination is not None else None
                if gone and not late:
                    self._take_back("the destination's process has ended")
                    return
            if self.taken_back:
                self._take_back("the guest was taken back")
                return
            if self._leaving.machine.state == "stopped":  # somebody has ended the VM
                self._leaving.detour.lost(
                    MigrationError("the VM was ended while it was not known where the guest runs")
                )
                return
            threading.Event().wait(_RETRY if not late else 1.0)

    def can_see_us_die(self) -> bool:
        """Whether the destination would run what it has if this process died: see takeover.py."""
        destination = self._leaving.destination
        return destination not in (None, Identity.ours()) and is_dead(destination) is False

    def call_off(self, why: str) -> None:
        """The connection has broken, and the destination may wait for another: tell it that there is no need.

        Where it could see this process die, nothing may run here before it has heard that; but for ever it does
        not look, so if it cannot be reached, that comes to an end.
        """
        deadline, destination = time.monotonic() + _CALL_OFF, self._leaving.destination
        while True:
            with contextlib.suppress(SdeivirtError, OSError):
                wire = self._leaving.connect_again(1.0)
                try:
                    wire.channel.stall = 1.0
                    if wire.expect(Kind.HELLO, Hello).who == destination and wire.give_up(Failure(why, STAYS)):
                        return
                finally:
                    wire.channel.close()
            if time.monotonic() > deadline or self._leaving.machine.state == "stopped" or not self.can_see_us_die():
                return
            threading.Event().wait(_RETRY)

    def _ask(self) -> None:
        """Ask how far it has got there, and go on from that. Raises MigrationError where that cannot be told."""
        wire = self._leaving.connect_again(2.0)
        try:
            stage = wire.expect(Kind.HELLO, Hello).stage
            if stage is Stage.NEW:  # the destination has had all of it, so this is another
                raise _StrangerError(
                    f"who answers at {self._leaving.uri} now is another, and knows nothing of the guest"
                )
            self.taken_back = False  # it is there, so whoever said that it never will run the guest was wrong
            if stage is Stage.LOADED:
                wire.say(Kind.COMMIT, Commit(self._leaving.was_paused))
                wire.expect(Kind.RUNNING, Running)
        except BaseException:
            wire.channel.close()
            raise
        self._let_go(wire)

    def _take_back(self, why: str) -> None:
        """It is certain that the guest does not run there, and never will."""
        self._leaving.go_on()
        self._leaving.progress.update(status="failed", error=why, hint="start the destination again, and try again")
