# SPDX-License-Identifier: Apache-2.0
"""The source of a guest that has gone before its pages: keeps them until the last one has got through.

The guest runs at the destination and never again here, whatever happens: what
it has done there is not undone. A connection that breaks costs time and
nothing else. The destination pauses the guest; this side waits for somebody to
say `migrate --recover`, connects again and asks what is still lacking. But if one of the two
processes dies, the guest is lost: half of it was here, and half there.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import replace

from ..errors import MigrationError, SdeivirtError, StateError
from ..machine.base import PAGE_SIZE, Machine
from .channel import Interrupt, Pace
from .identity import Identity, dies, is_dead
from .lacking import read_map
from .messages import Kind
from .pageframes import RamStore
from .pageserver import PageServer, Served, ServerOptions
from .status import Progress
from .wire import RefusedError, Wire

__all__ = ["HOW_TO_RECOVER", "PagesBehind"]

HOW_TO_RECOVER = "when the two can reach each other: `sdeivirt migrate VM --recover [URI]`, VM being the source"
_TICK = 0.2
_PATIENCE = 10.0  # for a destination that has got everything to say so again
_TELL = 0.05


class PagesBehind:
    """The page phase, from the source's side. :meth:`run` is called on the migration's thread, the rest on others."""

    def __init__(
        self,
        machine: Machine,
        progress: Progress,
        options: ServerOptions,
        destination: Identity | None,
        connect: Callable[[], Wire],
    ) -> None:
        """`connect` gives a connection on which the destination has said that it has the guest, or raises.

        It is for the last word; for anything else :meth:`recover` is given another.
        """
        self._machine = machine
        self._progress = progress
        self._options = options
        self._destination = destination
        self._connect = connect
        self._changed = threading.Condition()
        self._recover: Callable[[Interrupt], Wire] | None = None  # how to, once somebody wants that
        self._attempt: Interrupt | None = None  # ends it
        self._waiting = False  # for that
        self._all_sent = False
        self.unneeded = 0  # pages that were not sent, for the guest has ended there, or was reset
        self._told = 0.0
        self._base = progress.now

    def recover(self, connect: Callable[[Interrupt], Wire]) -> None:
        """Connect again by `connect`, which an interrupt ends, and go on. Returns at once.

        Raises StateError where all is well.
        """
        with self._changed:
            if not self._waiting:
                raise StateError("no connection is broken", "see `sdeivirt migrate VM --status`")
            self._waiting = False
            self._recover, self._attempt = connect, Interrupt("connecting again")
            self._progress.update(status="postcopy-recover", error="", hint="")
            self._changed.notify()

    def cancel(self) -> None:
        """Give up connecting again. Returns at once. Raises StateError where there is nothing else to give up."""
        with self._changed:
            if self._attempt is not None:
                self._attempt.set()
            elif self._waiting:
                raise StateError("the guest has gone, and the last of its pages are here", HOW_TO_RECOVER)
            else:
                raise StateError(
                    "the guest runs at the destination already, and its pages follow: it is too late to cancel",
                    "without them it would be lost",
                )

    def limit(self, bandwidth: int) -> None:
        """So many bytes a second from the next connection on, of what nobody asks for."""
        self._options = replace(self._options, pace=Pace(bandwidth))

    def run(self, wire: Wire | None) -> bool:
        """Until the destination has all pages; False if the guest is lost. None: the connection is broken already."""
        loss: BaseException = MigrationError("the connection broke")
        while True:
            if wire is not None:
                try:
                    self._serve(wire)
                    return True
                except (SdeivirtError, OSError) as error:
                    loss = error
                finally:
                    wire.channel.close()
            wire = self._again(loss)
            if wire is None:
                return False

    def _serve(self, wire: Wire) -> None:
        frame = wire.next()
        if frame.kind != Kind.LACK:
            raise MigrationError(f"the destination sent {frame} where it was to tell which pages it lacks")
        lacking = read_map(frame, self._machine.config.memory // PAGE_SIZE)
        self._base = self._progress.now
        self._progress.update(status="postcopy-active", remaining=lacking.count(1), error="", hint="", dirty=0)
        server = PageServer(wire, RamStore(self._machine.memory()), lacking, self._options, self._tell)
        try:
            server.run()
            self.unneeded = server.served.left
        finally:
            self._all_sent = not server.served.left
            self._tell(server.served, now=True)

    def _tell(self, served: Served, now: bool = False) -> None:
        moment = time.monotonic()
        if moment - self._told < _TELL and not now:
            return
        self._told = moment
        base, got = self._base, served.got
        self._progress.update(
            remaining=served.left,
            plain=base.plain + served.plain,
            zero=base.zero + served.zero,
            bytes=base.bytes + got.taken,
            requests=base.requests + served.asked,
            faults=got.faults,
            fault_median=got.median / 1e6,
            fault_slowest=got.slowest / 1e6,
        )

    # -- a broken connection

    def _again(self, loss: BaseException) -> Wire | None:
        """Another connection, when somebody asks for one; None where there is no hope left."""
        message = _said(loss)
        if isinstance(loss, RefusedError):  # it has no guest any more
            self._lose(f"the guest is lost, for it broke off there before all pages had come: {message}")
            return None
        if self._all_sent and (wire := self._at_once()) is not None:
            return wire
        if self._destination is not None and dies(self._destination):
            self._lose_all()
            return None
        while True:
            with self._changed:
                self._waiting = True
                self._progress.update(status="postcopy-paused", error=message, hint=HOW_TO_RECOVER)
            recover = self._wait()
            if recover is None:
                return None
            attempt = self._attempt
            assert attempt is not None
            try:
                return recover(attempt)
            except (SdeivirtError, OSError) as error:
                message = f"it could not be connected again: {_said(error)}"
            finally:
                with self._changed:
                    self._attempt = None
                attempt.close()

    def _at_once(self) -> Wire | None:
        """Everything has been sent, and perhaps has got through: ask, without being told to."""
        deadline = time.monotonic() + _PATIENCE
        while time.monotonic() < deadline and self._machine.state != "stopped" and not self._destination_died():
            try:
                return self._connect()
            except (SdeivirtError, OSError):
                threading.Event().wait(_TICK)
        return None

    def _wait(self) -> Callable[[Interrupt], Wire] | None:
        """How somebody wants to recover, when somebody does; None if there is nothing to recover any more."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._recover is not None, _TICK)
                if self._recover is not None:
                    recover, self._recover = self._recover, None
                    return recover
                dead, stopped = self._destination_died(), self._machine.state == "stopped"
                self._waiting = not (dead or stopped)
            if dead:
                self._lose_all()
                return None
            if stopped:
                self._lose("the VM was ended while it had pages of the guest: the guest is lost")
                return None

    def _lose_all(self) -> None:
        self._lose("the destination's process has ended before all pages had got there: the guest is lost")

    def _lose(self, message: str) -> None:
        error = MigrationError(
            message, "what it had done there is nowhere else; start it anew, or restore it from a file"
        )
        self._progress.update(status="failed", error=error.message, hint=error.hint)
        self._machine.abandon(error)

    def _destination_died(self) -> bool:
        return self._destination is not None and bool(is_dead(self._destination))


def _said(error: BaseException) -> str:
    return error.message if isinstance(error, SdeivirtError) else str(error)
