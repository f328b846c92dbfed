# SPDX-License-Identifier: Apache-2.0
"""The hand-over, from the destination's side: is the guest to run here, and does its source know that it does?

Nothing runs here before the source has said CMIT; but where the source's process has died after it had sent
everything, the guest goes on here: nobody else has it. (A source that lets it go on instead says so first, and does
not before that is heard.) Until the source knows that it runs here, whoever asks is told so.
"""

from __future__ import annotations

import contextlib
import logging
import time

from ..errors import MigrationError, SdeivirtError, StateError
from ..machine.base import Machine
from .channel import Listener
from .detour import Answer, carry_out
from .door import Door
from .identity import is_dead
from .messages import Commit, Done, Hello, Kind, LetGo, Loaded, Running, Stage
from .wire import RefusedError, Wire

__all__ = ["WORD_STALL", "TakeOver"]

_log = logging.getLogger(__name__)

WORD_STALL = 3.0  # seconds, once everything has come: then it is the source's turn, or it asks again
_PATIENCE = 30.0  # for a source that has lost us between LOAD and CMIT
_GRACE = 1.0  # for a source that is being killed: a connection can be told of it first
_LOOK = 0.05
_TICK = 0.5


class TakeOver:
    """How far a guest has got here, `wire` being the connection to its source, and the `door` for when that breaks."""

    def __init__(self, wire: Wire, hello: Hello, listener: Listener) -> None:
        self.wire = wire
        self.stage = Stage.NEW
        self.source = hello.who
        self.door = Door(listener, hello.migration, lambda: self.stage, lambda: self.wire.channel.abort())
        self._runs_since = 0.0
        self._answers: tuple[Answer, ...] | None = None  # to what followed the guest; carried out once

    def hear_the_word(self, stays: bool, lacking: int) -> bool:
        """Say LOAD and wait for CMIT, over another connection if need be; whether the guest is to stay paused.

        `stays`: it is, if nobody says so any more. `lacking` pages come after it. Raises MigrationError where it is
        not to run here.
        """
        self.stage = Stage.LOADED
        self.wire.channel.stall = WORD_STALL
        try:
            self.wire.say(Kind.LOADED, Loaded())
            return self.wire.expect(Kind.COMMIT, Commit).paused or stays
        except RefusedError:
            raise
        except (SdeivirtError, OSError) as error:
            self.wire.channel.close()
            loss = error
        source, dead = self.source, False
        began = time.monotonic()
        while (waited := time.monotonic() - began) < _PATIENCE:
            looks = source is not None and waited < _GRACE
            wire = self.door.next(_LOOK if looks and not dead else _TICK)
            if wire is not None:
                paused = self._word(wire)
                if paused is not None:
                    return paused or stays
            elif dead:  # and it would have been heard by now if it had said anything before that
                self._inherit(lacking)
                return stays
            else:
                dead = source is not None and looks and is_dead(source) is True
        raise MigrationError(f"the source did not say that the guest is to run here: {loss}", "it goes on there")

    def _word(self, wire: Wire) -> bool | None:
        """The word of a source that has come again: whether the guest is to stay paused; None if it did not come.

        Raises RefusedError where the guest is not to run here.
        """
        self.wire = wire
        try:
            return wire.expect(Kind.COMMIT, Commit).paused
        except RefusedError:
            raise
        except (SdeivirtError, OSError) as error:
            _log.warning("%s was sent away: %s", wire.channel.peer, error)
            wire.channel.close()
            return None

    def _inherit(self, lacking: int) -> None:
        """The source's process has ended, and nobody else has the guest. Raises MigrationError if it is not whole."""
        if lacking:
            raise MigrationError(
                f"the source's process has ended, and with it {lacking} pages of the guest",
                "start it anew, or restore it from a file",
            )
        _log.warning("the source's process has ended; the guest had come whole, and goes on here")

    def last_word(self, error: BaseException) -> BaseException:
        """Why the guest does not come, if its source has connected once more to say so."""
        if isinstance(error, RefusedError):
            return error
        with contextlib.suppress(SdeivirtError, OSError):
            while (wire := self.door.next(0.0)) is not None:
                try:
                    wire.next()
                except RefusedError as refusal:
                    return refusal
                finally:
                    wire.channel.close()
        return error

    def runs(self) -> None:
        """From here on it runs here, and nowhere else."""
        self._runs_since = time.monotonic()
        self.stage = Stage.RUNNING

    def check_settled(self) -> None:
        """Raise StateError where the source may still ask whether the guest runs here: nobody else could tell it."""
        if self.stage in (Stage.NEW, Stage.LOADED):
            raise StateError("the guest has not come yet", "see `sdeivirt migrate VM --status`")
        who = self.source
        known = who is not None and is_dead(who) is not None  # then it takes the guest back when we are gone
        if self.stage is Stage.RUNNING and (known or time.monotonic() - self._runs_since < _PATIENCE):
            raise StateError(
                f"the source does not know yet that the guest runs here{f': {who}' if who is not None else ''}",
                "wait until the two can reach each other, or until the source has ended",
            )

    def let_go(self, wire: Wire, machine: Machine) -> None:
        """What was injected at the source meanwhile."""
        held = wire.expect(Kind.LET_GO, LetGo).held
        if self._answers is None:
            self._answers = tuple(carry_out(machine, each) for each in held)
        wire.say(Kind.DONE, Done(self._answers))

    def settle(self, machine: Machine) -> None:
        """It runs. Tell the source, however often the connection breaks, until it knows or is no more."""
        wire: Wire | None = self.wire
        self.wire.channel.stall = WORD_STALL
        tell = True
        deadline = 0.0
        while True:
            if wire is not None:
                try:
                    if tell:
                        wire.say(Kind.RUNNING, Running())
                    self.let_go(wire, machine)
                    if self.stage is not Stage.SETTLED:
                        self.stage, deadline = Stage.SETTLED, time.monotonic() + _PATIENCE
                except (SdeivirtError, OSError) as error:
                    _log.debug("settling: %s", error)
                wire.channel.close()
            if self.stage is Stage.SETTLED and (machine.state == "stopped" or time.monotonic() > deadline):
                return  # the answers may be lost on their way, so it may ask for them once more
            if self.source is not None and is_dead(self.source):
                return
            wire = self.door.next(_TICK)
            if wire is not None:
                self.wire, tell = wire, False
