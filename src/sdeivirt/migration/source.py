# SPDX-License-Identifier: Apache-2.0
"""The side that a guest leaves: pre-copy, the hand-over, and the way back from every failure.

See messages.py for what is said. The rule: until CMIT has been sent, whatever
happens, the guest goes on here, unharmed; once it has been sent, the guest goes on here
only if it is certain that it does not at the destination.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from .. import __version__
from ..errors import MigrationError, SdeivirtError, StateError, UsageError
from ..machine.base import PAGE_SIZE, Machine
from ..machine.dirty import union
from .channel import (
    Channel,
    ChannelCancelledError,
    ChannelCutError,
    ChannelStalledError,
    Interrupt,
    Pace,
    TlsCredentials,
    Uri,
    connect,
    create_file,
)
from .convergence import Convergence
from .description import CONFIGURATION, Configuration
from .detour import Held, HeldInjections
from .identity import Identity, dies, is_dead
from .lacking import pack_map
from .messages import Commit, Done, Failure, Hello, Kind, LetGo, Loaded, Ready, Running, Stage
from .pageserver import ServerOptions
from .passes import Passes
from .postcopy import PagesBehind
from .sections import Section, pack
from .slow import SlowLink
from .status import MigrationStatus, Progress
from .wire import RefusedError, Wire

__all__ = ["Outgoing", "SourceOptions"]

_log = logging.getLogger(__name__)

_CONNECT = 10.0  # seconds for the destination to answer
_STOPPED_STALL = 10.0  # seconds without progress while the guest is stopped
_PATIENCE = 10.0  # until a hand-over that broke off is left to a person
_GRACE = 1.0  # for a process that is being killed
_RETRY = 0.1
_SMALL = 64 << 20  # bytes of RAM that are sent before an engine is done with what it has to prepare
_CALL_OFF = 5.0  # for a destination that may have everything to hear that it is not to run it
_QUIET_END = 2.0  # for the frame that is under way when somebody cancels; then the connection is cut
_CANCELLED = "the migration was cancelled"
_HOPELESS = "the limit of {:g} ms cannot be met: raise --downtime-limit or --max-bandwidth"
_STAYS = "the guest goes on at the source"


class _StrangerError(MigrationError):
    """Somebody else answers in the destination's place."""


@dataclass(frozen=True, slots=True)
class SourceOptions:
    """How to move a guest.

    `downtime` is how long it may be stopped, in seconds; `bandwidth` the most bytes a
    second; `compress` a zstd level, 0 for none; `tls` a directory of credentials, and `tls_hostname` whom the
    destination's certificate has to name, in place of the URI's host;
    `insecure` allows plain TCP to other hosts. `stop_first` stops the guest
    before the first pass, `stay` lets it go on here afterwards: both for files.
    `overwrite` lets a file take the place of one that is there. After `stall`
    seconds in which nothing moves it is given up; while the guest is stopped, after 10 at most.
    `postcopy` lets the guest go on at the destination after so many passes, 0 for at once, and sends what is left then;
    for experiments over a slower `link`, and without `rest` only what is asked for.
    Raises UsageError for a name without credentials.
    """

    downtime: float = 0.3
    bandwidth: int | None = None
    compress: int = 0
    tls: Path | None = None
    tls_hostname: str = ""
    insecure: bool = False
    stop_first: bool = False
    stay: bool = False
    overwrite: bool = False
    stall: float = 30.0
    postcopy: int | None = None
    link: SlowLink | None = None
    rest: bool = True

    def __post_init__(self) -> None:
        if self.bandwidth is not None and self.bandwidth <= 0:
            raise UsageError(
                f"{self.bandwidth} bytes a second would take for ever", "leave the limit out, or give more than 0"
            )
        if self.tls_hostname and self.tls is None:
            raise UsageError("a name for the destination's certificate is of no use without TLS", "add --tls-creds DIR")

    def credentials(self) -> TlsCredentials | None:
        """Those of TLS, if it is to be used. Raises UsageError."""
        return None if self.tls is None else TlsCredentials.load(self.tls, server=False, hostname=self.tls_hostname)


class Outgoing:
    """One attempt to move a guest. :meth:`run` makes it, on a thread of the caller's; the rest is for all others."""

    def __init__(self, machine: Machine, uri: Uri, options: SourceOptions, progress: Progress) -> None:
        if uri.scheme == "file" and options.postcopy is not None:
            raise UsageError("a file has all pages of a guest, or none", "leave out --postcopy")
        self._machine = machine
        self._uri = uri
        self._options = options
        self._progress = progress
        self._behind: PagesBehind | None = None  # once the guest has gone before its pages
        self._held: tuple[Held, ...] = ()  # what followed it
        self._migration = os.urandom(16)
        self._detour = HeldInjections()
        self._quit = Interrupt("the migration")  # seen between two frames, and by all that waits
        self._lock = threading.Lock()  # of the next four
        self._channel: Channel | None = None
        self._cut: threading.Timer | None = None
        self._cancelled = ""  # why
        self._committed = False
        self._taken_back = False
        # Who pauses the machine or lets it go on holds this lock, and leaves it alone while `held` is set.
        self.run_state = threading.Lock()
        self.held = False
        self._was_paused = False
        self._stopped_at = 0.0
        self._whole = False  # the destination may have everything
        self._apart = False  # some of the state can come early, and the destination says when it stands
        self._stands = False
        self._destination: Identity | None = None
        limit = options.downtime if uri.scheme != "file" and options.postcopy is None else None
        progress.update(status="setup", uri=str(uri), total=machine.config.memory // PAGE_SIZE, downtime_limit=limit)

    @property
    def status(self) -> MigrationStatus:
        """How far it has got, or how it has ended."""
        return self._progress.now

    def cancel(self, why: str = _CANCELLED) -> None:
        """Give up, and say `why` to the destination. Returns at once. Raises StateError where it is too late."""
        with self._lock:
            if self._committed:
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
    def moved(self) -> bool:
        """Whether the guest has left, for another process or into a file."""
        return self._detour.gone

    def take_back(self) -> None:
        """Somebody knows that the destination does not run the guest, and never will. Raises StateError."""
        if self._progress.now.status != "undecided":
            raise StateError("it is known where the guest runs", "see `sdeivirt migrate VM --status`")
        self._taken_back = True

    def recover(self, uri: Uri | None, options: SourceOptions) -> None:
        """Connect again, perhaps elsewhere, and send the pages that are still here. Returns at once.

        `options` has what concerns the connection. Raises StateError.
        """
        behind = self._behind
        if behind is None:
            raise StateError("no pages of a guest are left here", "see `sdeivirt migrate VM --status`")

        def prepare() -> None:
            self._uri = uri or self._uri
            self._options = replace(
                self._options, tls=options.tls, tls_hostname=options.tls_hostname, insecure=options.insecure
            )

        behind.recover(prepare)

    def run(self) -> None:
        """Move the guest. Never raises for what can go wrong with that: the status tells."""
        try:
            self._move()
        except BaseException as error:  # such as a machine that cannot go on: nobody is to wait for the end of that
            if self._progress.now.active:
                self._progress.update(status="failed", error=f"the migration broke off: {error}", limit=None)
            raise
        finally:
            self._quit.close()

    def _move(self) -> None:
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
                    raise ChannelCancelledError(self._cancelled)
                self._committed = True
        except BaseException as error:
            self._go_on_here(wire, _last_word(wire, error))
            if not isinstance(error, SdeivirtError | OSError):
                raise
            return
        self._hand_over(wire)

    # -- before the hand-over

    def _open(self) -> Wire:
        options = self._options
        channel = connect(self._uri, options.credentials(), options.insecure, _CONNECT, self._quit)
        self._use(channel)
        return Wire(channel, "the destination", self._quit)

    def _use(self, channel: Channel) -> None:
        channel.stall = self._options.stall
        if self._options.bandwidth is not None:
            channel.pace = Pace(self._options.bandwidth)
        with self._lock:
            self._channel = channel

    def _greet(self, wire: Wire) -> Identity | None:
        wire.say(Kind.HELLO, Hello(self._migration, f"sdeivirt {__version__}", Identity.ours()))
        hello = wire.expect(Kind.HELLO, Hello)
        self._describe(wire)
        self._apart = not wire.expect(Kind.READY, Ready).stands
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
        if options.stop_first or self._was_paused or options.postcopy == 0:
            self._send_early(wire, machine.prepare_save(self._apart))
            self._stop()
            self._rest(passes, wire, None)
        else:
            with ThreadPoolExecutor(1) as beside:
                dirty = self._converge(passes, wire, beside)
            self._stop()
            self._rest(passes, wire, union(dirty, machine.collect_dirty()))
        sections = machine.save_state(self._detour)
        if self._was_paused and self._uri.scheme != "file":
            wire.send(Kind.STAY)
        frames = wire.writer.describe(sections)
        for section in sections:
            frames += wire.writer.section(section)
        wire.send_frames(frames)
        self._whole = True
        passes.end()

    def _rest(self, passes: Passes, wire: Wire, dirty: bytearray | None) -> None:
        """The last pages, with the guest stopped; or which they are, if they are to come after it."""
        if self._options.postcopy is None:
            passes.run(dirty)
            return
        if dirty is None:
            dirty = bytearray(self._machine.config.memory // PAGE_SIZE)
            for start, end in self._machine.data_ranges():
                dirty[start // PAGE_SIZE : end // PAGE_SIZE] = b"\1" * ((end - start) // PAGE_SIZE)
        wire.send(Kind.LACK, pack_map(dirty))

    def _converge(self, passes: Passes, wire: Wire, beside: ThreadPoolExecutor) -> bytearray:
        """Passes while the guest runs, until it can be stopped; the pages that it has written since the last one."""
        machine = self._machine
        convergence = Convergence(self._options.downtime)
        most = math.inf if self._options.postcopy is None else self._options.postcopy
        dirty: bytearray | None = None
        early: Future[list[Section]] | None = None
        if self._apart and self._options.bandwidth is None and _bytes(machine.data_ranges()) <= _SMALL:
            early = beside.submit(machine.prepare_save, True)
        machine.start_dirty_log()
        while True:
            seconds, pages = passes.run(dirty)
            convergence.sent(pages, seconds)
            if early is not None and not self._stands:
                self._send_early(wire, early.result())
            dirty = machine.collect_dirty()
            step = convergence.next(dirty.count(1))
            self._progress.update(
                dirty=dirty.count(1),
                expected_downtime=step.expected_downtime,
                limit=step.limit,
                hint=_HOPELESS.format(self._options.downtime * 1000) if step.hopeless else "",
            )
            if not (step.stop or passes.number >= most):
                machine.limit_dirtying(step.limit)
            elif self._stands:
                return dirty
            elif self._apart:  # one pass more, meanwhile
                early = beside.submit(machine.prepare_save, True)
            else:
                machine.prepare_save()
                return dirty

    def _send_early(self, wire: Wire, early: list[Section]) -> None:
        """What of the state there is already, if the destination takes it; it has, and stands, when this returns."""
        if self._apart:
            for section in early:
                wire.send_frames(wire.writer.section(section, Kind.EARLY))
            wire.send(Kind.EARLY)
            self._stands = wire.expect(Kind.READY, Ready).stands

    def _stop(self) -> None:
        with self.run_state:
            self.held = True
            self._stopped_at = time.monotonic()
            self._was_paused = self._was_paused or self._machine.state == "paused"
            self._stopped_at = self._machine.pause_to_save()
        if self._machine.state != "paused":
            raise MigrationError("the guest has ended meanwhile", "")
        self._progress.update(status="device")
        if self._channel is not None:
            self._channel.stall = self._stopped_stall

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
            heard = wire.give_up(Failure(cancelled or shown, _STAYS if self._machine.state != "stopped" else ""))
            told = heard and not isinstance(error, ChannelCutError | ChannelStalledError)
        if channel is not None:
            channel.close()
        waits = self._whole and not told  # the destination may have everything, and wait for the word
        if waits and self._can_see_us_die():
            self._call_off(cancelled or shown)
            waits = False
        self._resume()
        if waits:
            self._call_off(cancelled or shown)
        if cancelled:
            self._progress.update(status="cancelled", error=cancelled, limit=None)
        else:
            self._progress.update(status="failed", error=shown, hint=hint, limit=None)

    def _resume(self) -> None:
        machine = self._machine
        machine.limit_dirtying(None)
        machine.stop_dirty_log()
        stood = 0.0
        with self.run_state:
            if self.held:
                self.held = False
                machine.keep_state()
                if not self._was_paused:
                    machine.resume()
                stood = time.monotonic() - self._stopped_at
        if stood:
            self._progress.update(downtime=stood)
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
        self._held = self._detour.leave(str(self._uri))
        deadline = time.monotonic() + _PATIENCE
        connected: Wire | None = wire
        while True:
            try:
                wire.say(Kind.LET_GO, LetGo(self._held))
                self._detour.answered(wire.expect(Kind.DONE, Done).answers)
                break
            except (SdeivirtError, OSError, ValueError) as error:
                wire.channel.close()
                again = self._reach(deadline)
                connected = again
                if again is None:
                    _log.warning("the guest runs at %s, but its last word was lost: %s", self._uri, error)
                    break
                wire = again
        self._detour.lost(MigrationError("the guest has moved, and whether the event arrived there is not known"))
        self._progress.update(downtime=downtime, limit=None)
        if self._options.postcopy is not None:
            if not self._send_behind(connected):
                return
        elif connected is not None:
            connected.channel.close()
        self._progress.update(status="completed", remaining=0, error="", hint="")
        self._machine.depart()

    def _send_behind(self, wire: Wire | None) -> bool:
        """The pages that come after the guest; whether they all got there."""
        options, machine = self._options, self._machine
        pace = Pace(options.bandwidth) if options.bandwidth is not None else None
        if wire is not None:
            wire.channel.pace = None  # the limit is for what nobody has asked for
        link = options.link or SlowLink()
        how = ServerOptions(options.compress, pace, link, options.rest, options.stall)
        self._behind = PagesBehind(machine, self._progress, how, self._destination, self._recovered)
        return self._behind.run(wire)

    def _recovered(self) -> Wire:
        """A connection to the destination that has the guest, after one that broke. Raises MigrationError."""
        wire = self._connect_again(_CONNECT)
        try:
            if wire.expect(Kind.HELLO, Hello).stage not in (Stage.RUNNING, Stage.SETTLED):
                raise MigrationError("this guest does not run there", "name the place that it has gone to")
            wire.say(Kind.LET_GO, LetGo(self._held))
            wire.expect(Kind.DONE, Done)
        except BaseException:
            wire.channel.close()
            raise
        return wire

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
        broke = f"the connection broke during the hand-over: {getattr(loss, 'message', loss)}"
        self._progress.update(
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
                if shown != self._progress.now.error:
                    self._progress.update(error=shown)
                gone = is_dead(destination) if destination is not None else None
                if gone and not late:
                    self._take_back("the destination's process has ended")
                    return
            if self._taken_back:
                self._take_back("the guest was taken back")
                return
            if self._machine.state == "stopped":  # somebody has ended the VM
                self._detour.lost(MigrationError("the VM was ended while it was not known where the guest runs"))
                return
            threading.Event().wait(_RETRY if not late else 1.0)

    def _can_see_us_die(self) -> bool:
        """Whether the destination would run what it has if this process died: see destination.py."""
        destination = self._destination
        return destination not in (None, Identity.ours()) and is_dead(destination) is False

    def _call_off(self, why: str) -> None:
        """The connection has broken, and the destination may wait for another: tell it that there is no need.

        Where it could see this process die, nothing may run here before it has heard that; but for ever it does
        not look, so if it cannot be reached, that comes to an end.
        """
        deadline = time.monotonic() + _CALL_OFF
        while True:
            with contextlib.suppress(SdeivirtError, OSError):
                wire = self._connect_again(1.0)
                try:
                    wire.channel.stall = 1.0
                    if wire.expect(Kind.HELLO, Hello).who == self._destination and wire.give_up(Failure(why, _STAYS)):
                        return
                finally:
                    wire.channel.close()
            if time.monotonic() > deadline or self._machine.state == "stopped" or not self._can_see_us_die():
                return
            threading.Event().wait(_RETRY)

    def _connect_again(self, limit: float) -> Wire:
        options = self._options
        channel = connect(self._uri, options.credentials(), options.insecure, limit)
        channel.stall = self._stopped_stall
        wire = Wire(channel, "the destination")
        wire.say(Kind.HELLO, Hello(self._migration, f"sdeivirt {__version__}", Identity.ours(), asks=True))
        return wire

    def _ask(self) -> None:
        """Ask how far it has got there, and go on from that. Raises MigrationError where that cannot be told."""
        wire = self._connect_again(2.0)
        try:
            stage = wire.expect(Kind.HELLO, Hello).stage
            if stage is Stage.NEW:  # the destination has had all of it, so this is another
                raise _StrangerError(f"who answers at {self._uri} now is another, and knows nothing of the guest")
            if stage is Stage.LOADED:
                wire.say(Kind.COMMIT, Commit(self._was_paused))
                wire.expect(Kind.RUNNING, Running)
        except BaseException:
            wire.channel.close()
            raise
        self._let_go(wire)

    def _take_back(self, why: str) -> None:
        """It is certain that the guest does not run there, and never will."""
        self._resume()
        self._progress.update(status="failed", error=why, hint="start the destination again, and try again")

    # -- files

    def _to_file(self) -> None:
        channel = create_file(self._uri, overwrite=self._options.overwrite)
        self._use(channel)
        wire = Wire(channel, "the file", self._quit)
        wire.say(Kind.HELLO, Hello(self._migration, f"sdeivirt {__version__}"))
        self._describe(wire)
        self._transfer(wire)
        with self._lock:
            if self._cancelled:
                raise ChannelCancelledError(self._cancelled)
            self._committed = True
        channel.commit()
        downtime = time.monotonic() - self._stopped_at
        if self._options.stay:
            self._resume()
            self._progress.update(status="completed", limit=None)
            return
        self._detour.leave(str(self._uri))
        self._detour.lost(
            MigrationError(f"the guest has gone into {self._uri}", "restore it, and inject the event then")
        )
        self._progress.update(status="completed", downtime=downtime, limit=None)
        self._machine.depart()


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


def _bytes(ranges: Sequence[tuple[int, int]]) -> int:
    return sum(end - start for start, end in ranges)
