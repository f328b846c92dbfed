# SPDX-License-Identifier: Apache-2.0
"""The block of a source: what is in it, whether the guest has read that, and if not, why. With the machine's lock held.

An event that is lost on the way, because somebody takes it back or because its PE is turned off, can be announced
again: the block would be full for ever.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from ..errors import StateError
from ..sdei.model import Handler, Pe
from ..sdei.states import State
from .outcome import Outcome
from .status_block import is_fatal
from .window import Window

if TYPE_CHECKING:
    from ..machine.base import Machine

__all__ = ["Slot"]


class Slot:
    """The block of one source. Counts: `reported` were put in, of these `acknowledged`; resets took those `lost`.

    `free` is whether the guest has read what was last reported, when :meth:`look` last looked.
    """

    def __init__(self, machine: Machine, window: Window) -> None:
        self.window = window
        self.source = window.source
        self.reported = 0
        self.acknowledged = 0
        self.lost = 0
        self.free = True
        self._machine = machine
        self._sdei = machine.firmware.sdei
        self._event = self._sdei.event(window.source.event)
        self._target: int | None = None  # the PE that the last report was announced to, if the event is private
        self._taken: int | None = None  # the PE that has entered the handler since
        self._ended: float | None = None  # when it has left that

    # -- told by the service

    def entered(self, pe: Pe, handler: Handler) -> None:
        """The event was delivered."""
        if not self.free and handler is self._handler():
            self._taken, self._ended = pe.index, None

    def left(self, pe: Pe, handler: Handler) -> None:
        """Its handler has ended."""
        if self._taken == pe.index and handler is self._handler():
            self._ended = time.monotonic()
            self.look()
            if not (self.free or pe.online):  # it was turned off inside, and nobody else has been told
                self._taken = None

    def abandoned(self, pe: Pe) -> None:
        """A PE was turned off, and has unregistered what is private."""
        if self._target == pe.index:
            self._taken = None

    # -- told by the machine

    def reset(self) -> None:
        """The system is about to be reset."""
        if not self.free:
            self.lost = self.reported - self.acknowledged
        self.free = True
        self._target = self._taken = self._ended = None

    def arrived(self) -> None:
        """The guest has come from elsewhere: there may be a report of which nothing is known here."""
        self.free = False

    # -- what there is to know

    def look(self) -> None:
        """See whether the guest has read what was last reported, and count it if so."""
        if not self.free and self.window.acknowledged(self._machine.physical):
            self.free = True
            self.acknowledged = self.reported - self.lost

    def is_over(self) -> bool:
        """Whether it has, and its handler has ended."""
        handler = self._handler()
        return self.free and not handler.pending and handler.running_on is None

    def status(self) -> int | None:
        """The first word of the block; None where there is no memory, or not yet."""
        try:
            return self.window.status(self._machine.physical)
        except StateError:  # before the machine is started
            return None

    def state(self) -> str:
        """Why the last report is still there; "" if it is not."""
        if self.free:
            return ""
        if self.status() is None:
            return "absent"
        if self._machine.leaving:
            return "moving"
        if self.has_panicked():
            return "panicked"
        handler = self._handler()
        if not handler.state & State.REGISTERED:
            return self._without_handler(self._target)
        if handler.running_on is not None:
            return "delivered"
        if not handler.pending:
            return "dropped" if self._taken is None else "unread"
        paused = "paused" if self._machine.state == "paused" else ""
        return self._sdei.why_it_waits(handler) or paused

    def hindrance(self, vcpu: int | None) -> str:
        """Why nothing can be put in for a vCPU: as :meth:`state`, or what is wrong although it is free."""
        if not self.free:
            return self.state()
        if self._machine.leaving:
            return "moving"
        if self.has_panicked():
            return "panicked"
        if self._machine.state == "paused":
            return "paused"
        if not self.has_handler(vcpu):
            return self._without_handler(vcpu)
        return "absent" if self.status() is None else ""

    def has_handler(self, vcpu: int | None) -> bool:
        """Whether there is one to announce a report to; `vcpu` is None where the event is shared, or for the first."""
        event = self._event
        handler = event.handler if event.shared else self._sdei.pe(vcpu or 0).handler_of(event)
        return bool(handler.state & State.REGISTERED)

    def _without_handler(self, vcpu: int | None) -> str:
        """Why there is none."""
        return "unregistered" if self._event.shared or self._sdei.pe(vcpu or 0).online else "offline"

    def has_panicked(self) -> bool:
        """Whether the guest's kernel has. Linux masks all PEs then; with none masked somebody quotes what it says."""
        machine = self._machine
        return machine.panicked and (
            machine.state == "stopped" or any(pe.online and pe.masked for pe in self._sdei.pes)
        )

    def panicked(self, ended_at: bytes = b"") -> Outcome | None:
        """What has become of the last report, if the guest's kernel has panicked in its handler.

        A kernel that still boots has no console to say so. But where it ends in the handler of a fatal
        report, `ended_at`, which it has read, that is why.
        """
        running_on = self._handler().running_on
        if running_on is None or self._taken is None:
            return None
        if not self.has_panicked() and not (self.free and is_fatal(ended_at) and not self._machine.leaving):
            return None
        return Outcome(self.source.number, self.source.event, "panicked", running_on.index)

    def read(self, since: float) -> Outcome:
        """What has become of the last report, which was put in at that time, once it has been read."""
        took = None if self._ended is None else self._ended - since
        return Outcome(self.source.number, self.source.event, "acknowledged", self._taken, took)

    def _handler(self) -> Handler:
        """Whom the last report was announced to."""
        if self._event.shared:
            return self._event.handler
        if self._target is not None:
            return self._sdei.pe(self._target).handler_of(self._event)
        handlers = [pe.handler_of(self._event) for pe in self._sdei.pes]
        at_work = (each for each in handlers if each.pending or each.running_on is not None)
        return next(at_work, handlers[0])

    # -- what is done

    def put(self, block: bytes, vcpu: int | None, claim: Callable[[], bool]) -> float | None:
        """Fill the free block and have its event injected: when that was; None where it cannot be now.

        `claim` is asked at the last moment whether that is still wanted. There is a handler.
        """
        if not self._may_change():
            return None
        memory = self._machine.physical
        if not self.window.fill(memory, block):
            return None
        if not self._may_change() or not claim():  # the guest has been stopped meanwhile, and has not been told
            self.window.empty(memory)
            return None
        self.reported += 1
        self.free = False
        self._target = None if self._event.shared else vcpu or 0
        self._taken = self._ended = None
        since = time.monotonic()
        self._sdei.inject(self.source.event, vcpu)
        return since

    def announce(self, *, again: bool = False) -> bool:
        """See to it that the guest gets to know of what is in the block; whether there was something to do.

        With `again`, also where it has known, and has not read it.
        """
        handler = self._handler()
        if self.free or handler.pending or handler.running_on is not None or not self._may_change():
            return False
        if not handler.state & State.REGISTERED:
            self._taken = None  # whoever registers it anew has not been told
            return False
        if self._taken is not None and not again:
            return False
        target = None if self._event.shared else handler.target
        self._sdei.inject(self.source.event, None if target is None else target.index)
        return True

    def _may_change(self) -> bool:
        """What is written while a guest that moves stands still would get lost on the way."""
        return self._machine.state == "running" and not self._machine.leaving
