# SPDX-License-Identifier: Apache-2.0
"""The side that a guest leaves: pre-copy, the hand-over, and the way back from every failure.

See messages.py for what is said. The rule: until CMIT has been sent, whatever
happens, the guest goes on here, unharmed; once it has been sent, the guest goes on here
only if it is certain that it does not at the destination.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from .. import __version__
from ..errors import MigrationError, SdeivirtError, StateError
from ..machine.base import PAGE_SIZE, Machine
from .channel import Channel, ChannelCancelledError, Interrupt, Pace, TlsCredentials, Uri, connect, create_file
from .convergence import Convergence
from .description import CONFIGURATION, Configuration
from .detour import HeldInjections
from .identity import Identity, is_dead
from .messages import Commit, Done, Failure, Hello, Kind, LetGo, Loaded, Ready, Running, Stage
from .passes import Passes
from .sections import pack
from .status import Progress
from .wire import RefusedError, Wire

__all__ = ["Outgoing", "SourceOptions"]

_log = logging.getLogger(__name__)

_CONNECT = 10.0  # seconds for the destination to answer
_STOPPED_STALL = 10.0  # seconds without progress while the guest is stopped
_PATIENCE = 10.0  # until a hand-over that broke off is left to a person
_GRACE = 1.0  # for a process that is being killed
_RETRY = 0.1


@dataclass(frozen=True, slots=True)
class SourceOptions:
    """How to move a guest.

    `downtime` is how long it may be stopped, in seconds; `bandwidth` the most bytes a
    second; `compress` a zstd level, 0 for none; `tls` a directory of credentials;
    `insecure` allows plain TCP to other hosts. `stop_first` stops the guest
    before the first pass, `stay` lets it go on here afterwards: both for files.
    `overwrite` lets a file take the place of one that is there. After `stall`
    seconds in which nothing moves it is given up; while the guest is stopped, after 10 at most.
    """

    downtime: float = 0.3
    bandwidth: int | None = None
    compress: int = 0
    tls: Path | None = None
    insecure: bool = False
    stop_first: bool = False
    stay: bool = False
    overwrite: bool = False
    stall: float = 30.0


class Outgoing:
    """One attempt to move a guest. :meth:`run` makes it, on a thread of the caller's; the rest is for all others."""

    def __init__(self, machine: Machine, uri: Uri, options: SourceOptions, progress: Progress) -> None:
        self._machine = machine
        self._uri = uri
        self._options = options
        self._progress = progress
        self._migration = os.urandom(16)
        self._detour = HeldInjections()
        self._lock = threading.Lock()  # of the next three
        self._channel: Channel | None = None
        self._connecting = Interrupt()
        self._cancelled = False
        self._committed = False
        self._taken_back = False
        # Who pauses the machine or lets it go on holds this lock, and leaves it alone while `held` is set.
        self.run_state = threading.Lock()
        self.held = False
        self._was_paused = False
        self._stopped_at = 0.0
        self._destination: Identity | None = None
        progress.update(status="setup", uri=str(uri), total=machine.config.memory // PAGE_SIZE)

    def cancel(self) -> None:
        """Give up. Raises StateError where it is too late."""
        with self._lock:
            if self._committed:
                raise StateError(
                    "the guest has been handed over: it is too late to cancel", "wait for the destination's answer"
                )
            self._cancelled = True
            channel = self._channel
        self._connecting.set()
        if channel is not None:
            channel.abort()

    def take_back(self) -> None:
        """Somebody knows that the destination does not run the guest, and never will. Raises StateError."""
        if self._progress.now.status != "undecided":
            raise StateError("it is known where the guest runs", "see `sdeivirt migrate VM --status`")
        self._taken_back = True

    def run(self) -> None:
        """Move the guest. Never raises for what can go wrong with that: the status tells."""
        wire: Wire | None = None
        try:
            if self._uri.scheme == "file":
                self._to_file()
                return
            wire = self._open()
            self._destination = self._greet(wire)
            self._transfer(wire)
            wire.expect(Kind.LOADED, Loaded)
            with self._lock:
                if self._cancelled:
                    raise ChannelCancelledError("cancelled")
                self._committed = True
        except BaseException as error:
            self._go_on_here(wire, error)
            if not isinstance(error, SdeivirtError | OSError):
                raise
            return
        self._hand_over(wire)

    # -- before the hand-over

    def _open(self) -> Wire:
        options = self._options
        tls = TlsCredentials.load(options.tls, server=False) if options.tls is not None else None
        channel = connect(self._uri, tls, options.insecure, _CONNECT, self._connecting)
        self._use(channel)
        return Wire(channel, "the destination")

    def _use(self, channel: Channel) -> None:
        channel.stall = self._options.stall
        if self._options.bandwidth is not None:
            channel.pace = Pace(self._options.bandwidth)
        with self._lock:
            self._channel = channel
            if self._cancelled:
                channel.abort()

    def _greet(self, wire: Wire) -> Identity | None:
        wire.say(Kind.HELLO, Hello(self._migration, f"sdeivirt {__version__}", Identity.ours()))
        hello = wire.expect(Kind.HELLO, Hello)
        self._describe(wire)
        wire.expect(Kind.READY, Ready)
        return hello.who

    def _describe(self, wire: Wire) -> None:
        configuration = pack(CONFIGURATION, Configuration.of(self._machine.kind, self._machine.config))
        wire.send(Kind.CONFIGURATION, configuration.data, version=configuration.version)

    def _transfer(self, wire: Wire) -> None:
        """RAM and state up to END; the guest is stopped when this returns."""
        machine, options = self._machine, self._options
        passes = Passes(machine, wire, options.compress, self._progress)
        self._progress.update(status="active")
        self._was_paused = machine.state == "paused"
        if options.stop_first or self._was_paused:
            self._stop()
            passes.run(None)
        else:
            machine.start_dirty_log()
            convergence = Convergence(options.downtime)
            dirty: bytearray | None = None
            while True:
                seconds, pages = passes.run(dirty)
                convergence.sent(pages, seconds)
                dirty = machine.collect_dirty()
                step = convergence.next(dirty.count(1))
                self._progress.update(dirty=dirty.count(1), expected_downtime=step.expected_downtime, limit=step.limit)
                if step.stop:
                    break
                machine.limit_dirtying(step.limit)
            self._stop()
            passes.run(_union(dirty, machine.collect_dirty()))
        sections = machine.save_state(self._detour)
        wire.send_frames(wire.writer.describe(sections))
        for section in sections:
            wire.send_frames(wire.writer.section(section))
        passes.end()

    def _stop(self) -> None:
        with self.run_state:
            self.held = True
            self._was_paused = self._was_paused or self._machine.state == "paused"
            self._machine.prepare_save()
            self._stopped_at = time.monotonic()
            self._machine.pause()
        if self._machine.state != "paused":
            raise MigrationError("the guest has ended meanwhile", "")
        self._progress.update(status="device")
        if self._channel is not None:
            self._channel.stall = self._stopped_stall

    def _go_on_here(self, wire: Wire | None, error: BaseException) -> None:
        """Something went wrong, or somebody thought better of it: the guest goes on as if nothing had been."""
        with self._lock:
            cancelled = self._cancelled
            channel = self._channel
        message = "the migration was cancelled" if cancelled else str(error)
        if wire is not None and not isinstance(error, RefusedError):
            wire.give_up(Failure(f"the guest goes on at the source: {message}"))
        if channel is not None:
            channel.close()
        told = wire is None or isinstance(error, RefusedError) or cancelled
        waits = self.held  # the destination may have everything, and wait for the word
        self._resume()
        if waits and not told:
            self._call_off()
        shown = error.message if isinstance(error, SdeivirtError) else str(error) or type(error).__name__
        hint = error.hint if isinstance(error, SdeivirtError) else ""
        if cancelled:
            self._progress.update(status="cancelled", limit=None)
        else:
            self._progress.update(status="failed", error=shown, hint=hint, limit=None)

    def _resume(self) -> None:
        machine = self._machine
        machine.limit_dirtying(None)
        machine.stop_dirty_log()
        with self.run_state:
            if self.held:
                self.held = False
                machine.keep_state()
                if not self._was_paused:
                    machine.resume()
        self._detour.stay(machine)

    # -- the hand-over

    def _hand_over(self, wire: Wire) -> None:
        """CMIT, and what follows. The guest is stopped, its state is at the destination."""
        try:
            wire.channel.stall = self._stopped_stall
            wire.say(Kind.COMMIT, Commit(self._was_paused))
            wire.expect(Kind.RUNNING, Running)
        except (SdeivirtError, OSError) as loss:
            wire.channel.close()
            self._find_out(loss)
            return
        self._let_go(wire)

    def _let_go(self, wire: Wire) -> None:
        """It runs there. What was injected here meanwhile follows it."""
        downtime = time.monotonic() - self._stopped_at
        held = self._detour.leave(str(self._uri))
        deadline = time.monotonic() + _PATIENCE
        while True:
            try:
                wire.say(Kind.LET_GO, LetGo(held))
                self._detour.answered(wire.expect(Kind.DONE, Done).answers)
                wire.channel.close()
                break
            except (SdeivirtError, OSError, ValueError) as error:
                wire.channel.close()
                again = self._reach(deadline)
                if again is None:
                    _log.warning("the guest runs at %s, but its last word was lost: %s", self._uri, error)
                    break
                wire = again
        self._detour.lost(MigrationError("the guest has moved, and whether the event arrived there is not known"))
        self._progress.update(status="completed", downtime=downtime, limit=None, remaining=0)
        self._machine.depart()

    def _reach(self, deadline: float) -> Wire | None:
        """Another connection to the destination, which runs the guest; None if there is none to be had."""
        while time.monotonic() < deadline and self._machine.state != "stopped":
            try:
                wire = self._connect_again(2.0)
            except (SdeivirtError, OSError):
                if self._destination is not None and is_dead(self._destination):
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

    @property
    def _stopped_stall(self) -> float:
        return min(_STOPPED_STALL, self._options.stall)

    def _find_out(self, loss: BaseException) -> None:
        """CMIT may have arrived or not. Nothing runs here until that is known."""
        destination = self._destination
        self._progress.update(status="undecided", error=f"the connection broke during the hand-over: {loss}")
        if destination is not None and _died(destination):
            self._take_back("the destination's process has ended")
            return
        deadline = time.monotonic() + _PATIENCE
        while True:
            late = time.monotonic() > deadline
            try:
                answer = self._ask()
            except (SdeivirtError, OSError) as error:
                _log.debug("asking the destination: %s", error)
                gone = is_dead(destination) if destination is not None else None
                if gone and not late:
                    self._take_back("the destination's process has ended")
                    return
            else:
                if answer:
                    return
                self._take_back("the destination does not have the guest")
                return
            if self._taken_back:
                self._take_back("somebody said so")
                return
            if self._machine.state == "stopped":  # somebody has ended the VM
                self._detour.lost(MigrationError("the VM was ended while it was not known where the guest runs"))
                return
            threading.Event().wait(_RETRY if not late else 1.0)

    def _call_off(self) -> None:
        """The connection has broken, and the destination may wait for another: tell it that there is no need."""
        with contextlib.suppress(SdeivirtError, OSError):
            wire = self._connect_again(1.0)
            wire.expect(Kind.HELLO, Hello)
            wire.give_up(Failure("the guest goes on at the source"))
            wire.channel.close()

    def _connect_again(self, limit: float) -> Wire:
        options = self._options
        tls = TlsCredentials.load(options.tls, server=False) if options.tls is not None else None
        channel = connect(self._uri, tls, options.insecure, limit)
        channel.stall = self._stopped_stall
        wire = Wire(channel, "the destination")
        wire.say(Kind.HELLO, Hello(self._migration, f"sdeivirt {__version__}", Identity.ours(), asks=True))
        return wire

    def _ask(self) -> bool:
        """Ask how far it has got there, and go on from that; False: it never heard of it."""
        wire = self._connect_again(2.0)
        try:
            stage = wire.expect(Kind.HELLO, Hello).stage
            if stage is Stage.NEW:
                return False
            if stage is Stage.LOADED:
                wire.say(Kind.COMMIT, Commit(self._was_paused))
                wire.expect(Kind.RUNNING, Running)
        except BaseException:
            wire.channel.close()
            raise
        self._let_go(wire)
        return True

    def _take_back(self, why: str) -> None:
        """It is certain that the guest does not run there, and never will."""
        self._resume()
        self._progress.update(
            status="failed", error=f"{why}: the guest goes on here", hint="start the destination again, and try again"
        )

    # -- files

    def _to_file(self) -> None:
        channel = create_file(self._uri, overwrite=self._options.overwrite)
        self._use(channel)
        wire = Wire(channel, "the file")
        wire.say(Kind.HELLO, Hello(self._migration, f"sdeivirt {__version__}"))
        self._describe(wire)
        self._transfer(wire)
        with self._lock:
            if self._cancelled:
                raise ChannelCancelledError("cancelled")
            self._committed = True
        channel.commit()
        downtime = time.monotonic() - self._stopped_at
        if self._options.stay:
            self._resume()
            self._progress.update(status="completed", downtime=downtime, limit=None)
            return
        self._detour.leave(str(self._uri))
        self._detour.lost(
            MigrationError(f"the guest has gone into {self._uri}", "restore it, and inject the event then")
        )
        self._progress.update(status="completed", downtime=downtime, limit=None)
        self._machine.depart()


def _died(process: Identity) -> bool:
    """Whether a process has ended, or does within a moment: a connection can be told of it first."""
    deadline = time.monotonic() + _GRACE
    while (dead := is_dead(process)) is False and time.monotonic() < deadline:
        threading.Event().wait(_RETRY / 4)
    return bool(dead)


def _union(one: bytearray, other: bytearray) -> bytearray:
    """Pages of either."""
    joined = int.from_bytes(one, "little") | int.from_bytes(other, "little")
    return bytearray(joined.to_bytes(len(one), "little"))
