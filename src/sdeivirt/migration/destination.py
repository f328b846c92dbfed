# SPDX-License-Identifier: Apache-2.0
"""The side that a guest comes to. See messages.py for what is said.

Nothing runs here before the source has said CMIT; but where the source's process has
died after it had sent everything, the guest goes on here: nobody else has it. (A source that lets it go on
instead says so first, and does not before that is heard.)
Until the source knows that it runs here, whoever asks is told so.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import threading
import time
from collections.abc import Callable

from .. import __version__
from ..errors import MigrationError, SdeivirtError, StateError, StreamError
from ..machine.base import PAGE_SIZE, Machine
from ..registers.sections import rehearse
from .arriving import PagesAhead, Standstill
from .channel import Channel, Listener
from .collector import read_section
from .description import CONFIGURATION, Configuration, read_configuration
from .detour import Answer, carry_out
from .door import Door
from .frames import damaged
from .identity import Identity, is_dead
from .lacking import read_map
from .messages import Commit, Done, Failure, Hello, Kind, LetGo, Loaded, Ready, Running, Stage
from .ram import PageDecoder
from .sections import Section
from .status import Progress
from .stream import Frame, Sections
from .wants import PREFETCH, Wants
from .wire import RefusedError, Wire

__all__ = ["Incoming", "import_machines"]

_log = logging.getLogger(__name__)

_STALL = 60.0  # seconds without anything from the source: it may be held up by a bandwidth limit
_HELLO_STALL = 5.0
_WORD_STALL = 3.0  # ... once everything has come: then it is the source's turn, or it asks again
_PATIENCE = 30.0  # for a source that has lost us between LOAD and CMIT
_LAST_WORDS = 15.0  # ... when the guest ends before the source knows that it has run here
_GRACE = 1.0  # for a source that is being killed: a connection can be told of it first
_LOOK = 0.05
_TICK = 0.5


class Incoming:
    """A guest that comes over a listener, or out of a file: first :meth:`configuration`, then :meth:`start`."""

    def __init__(self, listener: Listener | None, channel: Channel | None = None, prefetch: int = PREFETCH) -> None:
        """A listener for the network, or the open channel of a file.

        `prefetch`: how many pages are asked for at once where one is missing, if they come after the guest.
        """
        self._listener = listener
        self._channel = channel
        self._wire: Wire
        self._hello: Hello
        self._stage = Stage.NEW
        self._door: Door | None = None  # once a guest is on its way
        self._stays = False  # it was paused, and is to stay so
        self._runs_since = 0.0
        self._prefetch = prefetch
        self._wants: Wants | None = None  # the pages that come after the guest
        self.ahead: PagesAhead | None = None  # once it runs here
        self.standstill: Standstill | None = None
        self._answers: tuple[Answer, ...] | None = None  # to what followed the guest; carried out once
        self._machine: Machine
        self._progress = Progress()
        self._thread: threading.Thread | None = None
        self.arrived: Callable[[], None] = lambda: None  # called when the guest runs here, from another thread

    @property
    def progress(self) -> Progress:
        return self._progress

    # -- the beginning

    def configuration(self) -> Configuration:
        """Wait for a source, and for what its machine is made of. Whoever is no source is sent away.

        Raises MigrationError where the listener was closed, StreamError for a file that is no stream.
        """
        if self._channel is not None:
            return self._greet(self._channel)
        assert self._listener is not None
        while True:
            channel = self._listener.accept(None)
            try:
                configuration = self._greet(channel)
                self._door = Door(
                    self._listener, self._hello.migration, lambda: self._stage, lambda: self._wire.channel.abort()
                )
                return configuration
            except (SdeivirtError, OSError) as error:
                channel.close()
                _log.warning("%s was sent away: %s", channel.peer, error)

    def _greet(self, channel: Channel) -> Configuration:
        channel.stall = _HELLO_STALL
        wire = Wire(channel, "the source" if self._listener is not None else "the file")
        try:
            hello = wire.expect(Kind.HELLO, Hello)
            if self._listener is not None:
                wire.say(Kind.HELLO, Hello(hello.migration, f"sdeivirt {__version__}", Identity.ours()))
            if hello.asks:
                raise MigrationError("it asked for a guest that never was here")
            frame = wire.next()
            if frame.kind != Kind.CONFIGURATION:
                raise StreamError(f"the stream has no description of a machine at offset {frame.offset:#x}")
            configuration = read_configuration(Section(CONFIGURATION, 0, frame.version, bytes(frame.payload)))
        except (SdeivirtError, OSError) as error:
            if self._listener is not None:
                wire.give_up(Failure(str(error)))
            raise
        self._hello, self._wire = hello, wire
        return configuration

    def refuse(self, error: SdeivirtError) -> None:
        """The machine cannot be built here, or does not start. Without effect once it has."""
        if self._listener is not None and self._stage is Stage.NEW and self._thread is None:
            self._wire.give_up(Failure(error.message, error.hint))
        self.close()

    def start(self, machine: Machine, progress: Progress) -> None:
        """Instead of the machine's own start: a thread fills it. What fails ends the machine's run."""
        self._machine, self._progress = machine, progress
        progress.update(
            status="setup",
            role="destination",
            uri=self._origin(),
            total=machine.config.memory // PAGE_SIZE,
        )
        machine.start_incoming()
        self._thread = threading.Thread(target=self._run, name=f"{machine.config.name}-incoming", daemon=True)
        self._thread.start()

    def _origin(self) -> str:
        """Where the guest comes from."""
        return str(self._listener.uri) if self._listener is not None else self._wire.channel.peer

    def check_settled(self) -> None:
        """Raise StateError where the source may still ask whether the guest runs here: nobody else could tell it."""
        if self._listener is None or self._thread is None or not self._thread.is_alive():
            return
        if self._stage in (Stage.NEW, Stage.LOADED):
            raise StateError("the guest has not come yet", "see `sdeivirt migrate VM --status`")
        who = self._hello.who
        known = who is not None and is_dead(who) is not None  # then it takes the guest back when we are gone
        if self._stage is Stage.RUNNING and (known or time.monotonic() - self._runs_since < _PATIENCE):
            raise StateError(
                f"the source does not know yet that the guest runs here{f': {who}' if who is not None else ''}",
                "wait until the two can reach each other, or until the source has ended",
            )

    def close(self) -> None:
        """End whatever goes on. Can be called twice.

        A guest that has run here, of which the source does not know yet, must not go on there: it may ask first.
        """
        if self.ahead is not None:
            self.ahead.close()
        elif self._stage is Stage.RUNNING and self._thread is not None:
            self._thread.join(_LAST_WORDS)
        if self._door is not None:
            self._door.close()
        if self._listener is not None:
            self._listener.close()
        wire = getattr(self, "_wire", None)
        if wire is not None:
            wire.channel.abort()
        if self._thread is not None:
            self._thread.join()
        if wire is not None:
            wire.channel.close()

    # -- the thread

    def _run(self) -> None:
        try:
            self._receive()
            paused = self._hear_the_word() if self._listener is not None else False
            self._runs_since = time.monotonic()
            self._stage = Stage.RUNNING
            if not paused:
                self._machine.resume()
        except BaseException as error:
            self._fail(self._last_word(error))
            return
        if self._wants is not None:
            self._page_in(self._wants)
            return
        self._progress.update(status="completed", remaining=0)
        self.arrived()
        if self._listener is not None:
            try:
                self._settle()
            except BaseException as error:
                _log.warning("the source was not told that the guest runs here: %s", error)
            finally:
                self._listener.close()
                self._wire.channel.close()
        else:
            self._wire.channel.close()

    def _fail(self, error: BaseException) -> None:
        if self._listener is not None and not isinstance(error, RefusedError):
            self._wire.give_up(Failure(error.message if isinstance(error, SdeivirtError) else repr(error)))
        if self._listener is not None:
            self._listener.close()
        if (wire := getattr(self, "_wire", None)) is not None:
            wire.channel.close()
        message = error.message if isinstance(error, SdeivirtError) else str(error) or type(error).__name__
        hint = error.hint if isinstance(error, SdeivirtError) else ""
        self._progress.update(status="failed", error=message, hint=hint)
        standing = self._machine.standing()
        stands = not standing.done() or standing.exception() is not error  # else it says enough by itself
        if isinstance(error, SdeivirtError | OSError) and stands:
            what = "the guest did not come" if self._listener is not None else "the guest was not restored"
            error = MigrationError(f"{what}: {message}", hint)
        self._machine.abandon(error)

    def _receive(self) -> None:
        """RAM and state, to the last byte; the machine is paused then and could go on."""
        machine, wire, progress = self._machine, self._wire, self._progress
        wire.channel.stall = _STALL
        standing = machine.standing()
        stands = not machine.takes_early
        if self._listener is not None:
            wire.say(Kind.READY, Ready(stands))
            with machine.lock:
                rehearse(machine.firmware)
        progress.update(status="active")
        decoder = PageDecoder(machine.memory(), fresh=True)
        sections = Sections(ram=machine.config.memory)
        while not sections.complete:
            frame = wire.next()
            if standing.done():
                standing.result()
            if frame.kind in (b"PAGE", b"ZERO"):
                decoder.apply(frame)
            elif frame.kind == Kind.LACK and self._listener is not None and self._wants is None:
                self._lack(frame)
            elif frame.kind == b"PASS":
                progress.update(passes=progress.now.passes + 1)
            elif frame.kind == Kind.EARLY and not stands and self._listener is not None:
                stands = self._take_early(frame)
            elif frame.kind == Kind.STAY and self._listener is not None:
                self._stays = True
            else:
                sections.feed(frame)
            stats = decoder.stats
            progress.update(
                plain=stats.plain, zero=stats.zero, duplicate=stats.duplicate, bytes=wire.channel.received, remaining=0
            )
        assert sections.end is not None
        if sections.end.pages != decoder.stats.pages:
            raise damaged(frame, f"it tells of {sections.end.pages} pages, and {decoder.stats.pages} came")
        if self._listener is None:
            wire.check_end()
        progress.update(status="device")
        machine.load_state(sections.sections())

    def _lack(self, frame: Frame) -> None:
        """These pages come after the guest."""
        self._machine.standing().result()
        lacking = read_map(frame, self._machine.config.memory // PAGE_SIZE)
        self._wants = Wants(lacking, self._prefetch)
        self._machine.lack_pages(lacking[:], self._wants)

    def _take_early(self, frame: Frame) -> bool:
        """A section that comes early, or the end of these: whether it was."""
        if frame.payload:
            self._machine.load_early(read_section(frame))
            return False
        self._machine.standing().result()
        self._wire.say(Kind.READY, Ready())
        return True

    # -- the hand-over

    def _hear_the_word(self) -> bool:
        """Say LOAD and wait for CMIT, over another connection if need be; whether the guest is to stay paused.

        Raises MigrationError where the guest is not to run here.
        """
        self._stage = Stage.LOADED
        self._wire.channel.stall = _WORD_STALL
        try:
            self._wire.say(Kind.LOADED, Loaded())
            return self._wire.expect(Kind.COMMIT, Commit).paused or self._stays
        except RefusedError:
            raise
        except (SdeivirtError, OSError) as error:
            self._wire.channel.close()
            loss = error
        assert self._door is not None
        source, dead = self._hello.who, False
        began = time.monotonic()
        while (waited := time.monotonic() - began) < _PATIENCE:
            looks = source is not None and waited < _GRACE
            wire = self._door.next(_LOOK if looks and not dead else _TICK)
            if wire is not None:
                paused = self._word(wire)
                if paused is not None:
                    return paused or self._stays
            elif dead:  # and it would have been heard by now if it had said anything before that
                return self._inherit()
            else:
                dead = source is not None and looks and is_dead(source) is True
        raise MigrationError(f"the source did not say that the guest is to run here: {loss}", "it goes on there")

    def _word(self, wire: Wire) -> bool | None:
        """The word of a source that has come again: whether the guest is to stay paused; None if it did not come.

        Raises RefusedError where the guest is not to run here.
        """
        self._wire = wire
        try:
            return wire.expect(Kind.COMMIT, Commit).paused
        except RefusedError:
            raise
        except (SdeivirtError, OSError) as error:
            _log.warning("%s was sent away: %s", wire.channel.peer, error)
            wire.channel.close()
            return None

    def _inherit(self) -> bool:
        """The source's process has ended, and nobody else has the guest: whether it is to stay paused."""
        if self._wants is not None and self._wants.left:
            raise MigrationError(
                f"the source's process has ended, and with it {self._wants.left} pages of the guest",
                "start it anew, or restore it from a file",
            )
        _log.warning("the source's process has ended; the guest had come whole, and goes on here")
        return self._stays

    def _last_word(self, error: BaseException) -> BaseException:
        """Why the guest does not come, if its source has connected once more to say so."""
        if self._door is None or isinstance(error, RefusedError):
            return error
        with contextlib.suppress(SdeivirtError, OSError):
            while (wire := self._door.next(0.0)) is not None:
                try:
                    wire.next()
                except RefusedError as refusal:
                    return refusal
                finally:
                    wire.channel.close()
        return error

    def _page_in(self, wants: Wants) -> None:
        """It runs, and its pages follow."""
        assert self._listener is not None
        assert self._door is not None
        self.standstill = Standstill(self._machine)
        shut = self._listener.close
        self.ahead = PagesAhead(
            self._machine, self._progress, wants, self._hello.who, self._door.next, shut, self.standstill
        )
        wire, tell = self._wire, True

        def settle(wire: Wire) -> None:
            nonlocal tell
            wire.channel.stall = _WORD_STALL
            if tell:
                tell = False
                wire.say(Kind.RUNNING, Running())
            self._let_go(wire)
            self._stage = Stage.SETTLED
            wire.channel.stall = _STALL

        self.arrived()
        self.ahead.run(wire, settle)

    def _let_go(self, wire: Wire) -> None:
        """What was injected at the source meanwhile."""
        held = wire.expect(Kind.LET_GO, LetGo).held
        if self._answers is None:
            self._answers = tuple(carry_out(self._machine, each) for each in held)
        wire.say(Kind.DONE, Done(self._answers))

    def _settle(self) -> None:
        """It runs. Tell the source, however often the connection breaks, until it knows or is no more."""
        assert self._door is not None
        wire: Wire | None = self._wire
        self._wire.channel.stall = _WORD_STALL
        tell = True
        deadline = 0.0
        while True:
            if wire is not None:
                try:
                    if tell:
                        wire.say(Kind.RUNNING, Running())
                    self._let_go(wire)
                    if self._stage is not Stage.SETTLED:
                        self._stage, deadline = Stage.SETTLED, time.monotonic() + _PATIENCE
                except (SdeivirtError, OSError) as error:
                    _log.debug("settling: %s", error)
                wire.channel.close()
            if self._stage is Stage.SETTLED and (self._machine.state == "stopped" or time.monotonic() > deadline):
                return  # the answers may be lost on their way, so it may ask for them once more
            if self._hello.who is not None and is_dead(self._hello.who):
                return
            wire = self._door.next(_TICK)
            if wire is not None:
                self._wire, tell = wire, False


def import_machines() -> None:
    """Have loaded what machines are made of before a guest comes: it would wait for that."""
    for kind in ("unicorn", "qemu"):
        with contextlib.suppress(ImportError):  # open_machine() says what is missing, if that is wanted
            importlib.import_module(f"{__package__}.{kind}".replace("migration", "machine"))
