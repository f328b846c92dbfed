# SPDX-License-Identifier: Apache-2.0
"""The side that a guest comes to. See messages.py for what is said.

A source is greeted, a machine is made of what it says, a thread fills that (receiving.py), has it run when the source
says so (takeover.py), and sees to pages that come later (arriving.py).
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import threading
from collections.abc import Callable

from .. import __version__
from ..errors import MigrationError, SdeivirtError, StreamError
from ..machine.base import PAGE_SIZE, Machine
from .arriving import PagesAhead, Standstill
from .channel import Channel, Listener
from .description import CONFIGURATION, Configuration, read_configuration
from .identity import Identity
from .messages import Failure, Hello, Kind, Running, Stage
from .receiving import STALL, Receiving
from .sections import Section
from .status import Progress
from .takeover import WORD_STALL, TakeOver
from .wants import PREFETCH, Wants
from .wire import RefusedError, Wire

__all__ = ["Incoming", "import_machines"]

_log = logging.getLogger(__name__)

_HELLO_STALL = 5.0  # seconds without anything from the source
_LAST_WORDS = 15.0  # ... when the guest ends before the source knows that it has run here


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
        self._take_over: TakeOver | None = None  # once a guest is on its way, if not out of a file
        self._prefetch = prefetch
        self._wants: Wants | None = None  # the pages that come after the guest
        self.ahead: PagesAhead | None = None  # once it runs here
        self.standstill: Standstill | None = None
        self.crash: SdeivirtError | None = None  # what ended the guest, where that was neither itself nor a person
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
                self._take_over = TakeOver(self._wire, self._hello, self._listener)
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
        if self._listener is not None and self._take_over is not None and self._thread is None:
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

    @property
    def has_source(self) -> bool:
        """Whether another VM's process has the guest, or has had it."""
        return self._take_over is not None

    def check_settled(self) -> None:
        """Raise StateError where the source may still ask whether the guest runs here: nobody else could tell it."""
        if self._take_over is not None and self._thread is not None and self._thread.is_alive():
            self._take_over.check_settled()

    def close(self) -> None:
        """End whatever goes on. Can be called twice.

        A guest that has run here, of which the source does not know yet, must not go on there: it may ask first.
        """
        if self.ahead is not None:
            self.ahead.close(Failure(self.crash.message, self.crash.hint) if self.crash is not None else None)
        elif self._take_over is not None and self._take_over.stage is Stage.RUNNING and self._thread is not None:
            self._thread.join(_LAST_WORDS)
        if self._take_over is not None:
            self._take_over.door.close()
        if self._listener is not None:
            self._listener.close()
        for wire in self._wires():
            wire.channel.abort()
        if self._thread is not None:
            self._thread.join()
        for wire in self._wires():
            wire.channel.close()

    def _wires(self) -> list[Wire]:
        """The connection to the source, and the first one."""
        first = getattr(self, "_wire", None)
        return [wire for wire in (first, self._take_over.wire if self._take_over is not None else None) if wire]

    # -- the thread

    def _run(self) -> None:
        take_over = self._take_over
        receiving = Receiving(self._machine, self._wire, self._progress, self._prefetch, alive=take_over is not None)
        try:
            receiving.run()
            wants = receiving.wants
            paused = False
            if take_over is not None:
                paused = take_over.hear_the_word(receiving.stays, wants.left if wants is not None else 0)
                take_over.runs()
            if not paused:
                self._machine.resume()
        except BaseException as error:
            self._fail(take_over.last_word(error) if take_over is not None else error)
            return
        if take_over is not None and wants is not None:
            self._page_in(wants, take_over)
            return
        self._progress.update(status="completed", remaining=0)
        self.arrived()
        if take_over is None:
            self._wire.channel.close()
            return
        assert self._listener is not None
        try:
            take_over.settle(self._machine)
        except BaseException as error:
            _log.warning("the source was not told that the guest runs here: %s", error)
        finally:
            self._listener.close()
            take_over.wire.channel.close()

    def _fail(self, error: BaseException) -> None:
        if self._listener is not None and not isinstance(error, RefusedError):
            self._wires()[-1].give_up(Failure(error.message if isinstance(error, SdeivirtError) else repr(error)))
        if self._listener is not None:
            self._listener.close()
        for wire in self._wires():
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

    def _page_in(self, wants: Wants, take_over: TakeOver) -> None:
        """It runs, and its pages follow."""
        assert self._listener is not None
        self.standstill = Standstill(self._machine)
        shut = self._listener.close
        self.ahead = PagesAhead(
            self._machine, self._progress, wants, take_over.source, take_over.door.next, shut, self.standstill
        )
        tell = True

        def settle(wire: Wire) -> None:
            nonlocal tell
            wire.channel.stall = WORD_STALL
            if tell:
                tell = False
                wire.say(Kind.RUNNING, Running())
            take_over.let_go(wire, self._machine)
            take_over.stage = Stage.SETTLED
            wire.channel.stall = STALL

        self.arrived()
        self.ahead.run(take_over.wire, settle)


def import_machines() -> None:
    """Have loaded what machines are made of before a guest comes: it would wait for that."""
    for kind in ("unicorn", "qemu"):
        with contextlib.suppress(ImportError):  # open_machine() says what is missing, if that is wanted
            importlib.import_module(f"{__package__}.{kind}".replace("migration", "machine"))
