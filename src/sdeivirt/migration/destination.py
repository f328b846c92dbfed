# SPDX-License-Identifier: Apache-2.0
"""The side that a guest comes to. See messages.py for what is said.

Nothing runs here before the source has said CMIT; but where the source's process has
died after it had sent everything, the guest goes on here: nobody else has it.
Until the source knows that it runs here, whoever asks is told so.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from .. import __version__
from ..errors import MigrationError, SdeivirtError, StreamError
from ..machine.base import PAGE_SIZE, Machine
from .channel import Channel, Listener
from .description import CONFIGURATION, Configuration, read_configuration
from .detour import Answer, carry_out
from .identity import Identity, is_dead
from .messages import Commit, Done, Failure, Hello, Kind, LetGo, Loaded, Ready, Running, Stage
from .ram import PageDecoder
from .sections import Section
from .status import Progress
from .stream import Sections
from .wire import RefusedError, Wire

__all__ = ["Incoming"]

_log = logging.getLogger(__name__)

_STALL = 60.0  # seconds without anything from the source: it may be held up by a bandwidth limit
_HELLO_STALL = 5.0
_WORD_STALL = 3.0  # ... once everything has come: then it is the source's turn, or it asks again
_PATIENCE = 30.0  # for a source that has lost us between LOAD and CMIT
_GRACE = 1.0
_TICK = 0.5


class Incoming:
    """A guest that comes over a listener, or out of a file: first :meth:`configuration`, then :meth:`start`."""

    def __init__(self, listener: Listener | None, channel: Channel | None = None) -> None:
        """A listener for the network, or the open channel of a file."""
        self._listener = listener
        self._channel = channel
        self._wire: Wire
        self._hello: Hello
        self._stage = Stage.NEW
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
                return self._greet(channel)
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
            uri=str(self._listener.uri) if self._listener is not None else self._wire.channel.peer,
            total=machine.config.memory // PAGE_SIZE,
        )
        machine.start_incoming()
        self._thread = threading.Thread(target=self._run, name=f"{machine.config.name}-incoming", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End whatever goes on. Can be called twice."""
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
        except BaseException as error:
            self._fail(error)
            return
        if not paused:
            self._machine.resume()
        self._stage = Stage.RUNNING
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
            self._wire.give_up(Failure(f"the destination gave up: {error}"))
        if self._listener is not None:
            self._listener.close()
        self._wire.channel.close()
        message = error.message if isinstance(error, SdeivirtError) else str(error) or type(error).__name__
        hint = error.hint if isinstance(error, SdeivirtError) else ""
        self._progress.update(status="failed", error=message, hint=hint)
        if isinstance(error, SdeivirtError | OSError):
            what = "the guest did not come" if self._listener is not None else "the guest was not restored"
            error = MigrationError(f"{what}: {message}", hint)
        self._machine.abandon(error)

    def _receive(self) -> None:
        """RAM and state, to the last byte; the machine is paused then and could go on."""
        machine, wire, progress = self._machine, self._wire, self._progress
        wire.channel.stall = _STALL
        if self._listener is not None:
            wire.say(Kind.READY, Ready())
        progress.update(status="active")
        decoder = PageDecoder(machine.memory(), fresh=True)
        sections = Sections()
        while not sections.complete:
            frame = wire.next()
            if frame.kind in (b"PAGE", b"ZERO"):
                decoder.apply(frame)
            elif frame.kind == b"PASS":
                progress.update(passes=progress.now.passes + 1)
            else:
                sections.feed(frame)
            stats = decoder.stats
            progress.update(
                plain=stats.plain, zero=stats.zero, duplicate=stats.duplicate, bytes=wire.channel.received, remaining=0
            )
        progress.update(status="device")
        machine.load_state(sections.sections())

    # -- the hand-over

    def _hear_the_word(self) -> bool:
        """Say LOAD and wait for CMIT, over another connection if need be; whether the guest is to stay paused.

        Raises MigrationError where the guest is not to run here.
        """
        self._stage = Stage.LOADED
        self._wire.channel.stall = _WORD_STALL
        try:
            self._wire.say(Kind.LOADED, Loaded())
            return self._wire.expect(Kind.COMMIT, Commit).paused
        except RefusedError:
            raise
        except (SdeivirtError, OSError) as error:
            self._wire.channel.close()
            loss = error
        if self._hello.who is not None and _died(self._hello.who):
            _log.warning("the source's process has ended; the guest had come whole, and goes on here")
            return False
        deadline = time.monotonic() + _PATIENCE
        while time.monotonic() < deadline:
            wire = self._somebody_asks(_TICK)
            if wire is None:
                continue
            try:
                paused = wire.expect(Kind.COMMIT, Commit).paused
            except RefusedError:
                wire.channel.close()
                raise
            except (SdeivirtError, OSError) as error:
                _log.warning("%s was sent away: %s", wire.channel.peer, error)
                wire.channel.close()
                continue
            self._wire = wire
            return paused
        raise MigrationError(f"the source did not say that the guest is to run here: {loss}", "it goes on there")

    def _somebody_asks(self, limit: float) -> Wire | None:
        """The next one to connect and to ask for this migration; it is told how far it has got."""
        assert self._listener is not None
        channel = self._listener.accept(limit)
        if channel is None:
            return None
        channel.stall = _HELLO_STALL
        wire = Wire(channel, "the source")
        try:
            hello = wire.expect(Kind.HELLO, Hello)
            ours = hello.migration == self._hello.migration and hello.asks
            stage = self._stage if ours else Stage.NEW
            wire.say(Kind.HELLO, Hello(hello.migration, f"sdeivirt {__version__}", Identity.ours(), stage=stage))
            if not ours:
                raise MigrationError("another guest has come here")
        except (SdeivirtError, OSError) as error:
            wire.give_up(Failure(str(error)))
            channel.close()
            return None
        return wire

    def _settle(self) -> None:
        """It runs. Tell the source, however often the connection breaks, until it knows or is no more."""
        wire: Wire | None = self._wire
        self._wire.channel.stall = _WORD_STALL
        tell = True
        deadline = 0.0
        while True:
            if wire is not None:
                try:
                    if tell:
                        wire.say(Kind.RUNNING, Running())
                    held = wire.expect(Kind.LET_GO, LetGo).held
                    if self._answers is None:
                        self._answers = tuple(carry_out(self._machine, each) for each in held)
                    wire.say(Kind.DONE, Done(self._answers))
                    if self._stage is not Stage.SETTLED:
                        self._stage, deadline = Stage.SETTLED, time.monotonic() + _PATIENCE
                except (SdeivirtError, OSError) as error:
                    _log.debug("settling: %s", error)
                wire.channel.close()
            if self._machine.state == "stopped" or (self._stage is Stage.SETTLED and time.monotonic() > deadline):
                return  # the answers may be lost on their way, so it may ask for them once more
            if self._hello.who is not None and is_dead(self._hello.who):
                return
            wire = self._somebody_asks(_TICK)
            if wire is not None:
                self._wire, tell = wire, False


def _died(process: Identity) -> bool:
    """Whether a process has ended, or does within a moment: a connection can be told of it first."""
    deadline = time.monotonic() + _GRACE
    while (dead := is_dead(process)) is False and time.monotonic() < deadline:
        threading.Event().wait(_TICK / 20)
    return bool(dead)
