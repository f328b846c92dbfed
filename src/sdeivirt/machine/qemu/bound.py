# SPDX-License-Identifier: Apache-2.0
"""Interrupts that are bound to SDEI events: who has them, and when they may fire.

The service decides by the state of the event's handler; nothing here is
remembered but what the interrupt controller is like and was last told:

    ours      while a handler is registered: group 0, which goes to EL2
    enabled   while the event could be taken at once: its handler is enabled and not
              running, the event is not pending, and a PE is there to take it

So a level that stays up fires once, waits for COMPLETE, and fires again; an
edge in between is kept by the interrupt controller. RM_ANY follows the PEs that
can take the event. DEN0054C 4.4, 5.1.14.

The controller follows a moment later, so an interrupt can still fire after it
was to be disabled, or where it no longer belongs, and what the monitor disables
then, an "enable" that was on its way enables again.
"""

from __future__ import annotations

from collections.abc import Iterator

from ...sdei.model import Event, Handler, bits
from ...sdei.service import Sdei
from ...sdei.states import State
from .gic import FIRST_SPI, Gic

__all__ = ["BoundInterrupts"]

_REGISTERED = int(State.REGISTERED)
_ENABLED = int(State.ENABLED)


class BoundInterrupts:
    """Keeps the interrupt controller in step with the service; call :meth:`update` after each call into the latter."""

    def __init__(self, sdei: Sdei, gic: Gic) -> None:
        self._sdei = sdei
        self._gic = gic
        self._told: dict[tuple[int, int], int | None] = {}  # (INTID, vCPU of a private one) -> where it is enabled
        self._levels: set[tuple[int, int]] = set()

    @property
    def told(self) -> tuple[dict[tuple[int, int], int | None], set[tuple[int, int]]]:
        """Where each interrupt that is ours is enabled, by (INTID, vCPU), and which of them are levels."""
        return self._told, self._levels

    def take_over(self, told: dict[tuple[int, int], int | None], levels: set[tuple[int, int]]) -> None:
        """The same from another machine, whose interrupt controller is here now."""
        self._told = told
        self._levels = levels

    def fired(self, intid: int, vcpu: int) -> bool:
        """The monitor has taken an interrupt, and disabled it. False: it is not to be handled now.

        That is a level which fired where it was no longer to be enabled: if it
        is still up then it fires again where and when it may be taken.
        """
        key = (intid, vcpu if intid < FIRST_SPI else 0)
        if key not in self._told:
            return True
        where, self._told[key] = self._told[key], None
        if intid >= FIRST_SPI:
            # Another PE's call may have enabled it elsewhere meanwhile. A private one's calls come from this PE.
            self._gic.enable(intid, vcpu, on=False)
        return where == vcpu or key not in self._levels

    def update(self) -> None:
        """Tell the interrupt controller what has changed."""
        wanted = dict(self._wanted()) if self._sdei.bindings.any else {}
        for key in self._told.keys() - wanted.keys():
            del self._told[key]
            self._levels.discard(key)
            self._gic.give_back(*key)
        for key, where in wanted.items():
            intid, vcpu = key
            if key not in self._told:
                if self._gic.take(intid, vcpu):
                    self._levels.add(key)
                self._told[key] = None
            old = self._told[key]
            if where != old:
                self._gic.enable(intid, vcpu if where is None else where, on=where is not None)
                self._told[key] = where

    def _wanted(self) -> Iterator[tuple[tuple[int, int], int | None]]:
        for intid, event in self._sdei.bindings.all():
            if event.shared:
                if event.handler.state & _REGISTERED:
                    yield (intid, 0), self._where(intid, event, event.handler)
                continue
            for pe in self._sdei.pes:
                handler = pe.handlers.get(event.index)
                if handler is not None and handler.state & _REGISTERED:
                    yield (intid, pe.index), self._where(intid, event, handler)

    def _where(self, intid: int, event: Event, handler: Handler) -> int | None:
        """The vCPU that the interrupt may interrupt now."""
        if handler.state != _ENABLED or handler.pending:
            return None
        takers = self._sdei.delivery.takers(event)
        if handler.target is not None:
            return handler.target.index if takers & handler.target.bit else None
        now = self._told.get((intid, 0))
        if now is not None and takers >> now & 1:
            return now  # do not move what stands well
        return next(bits(takers), None)
