# SPDX-License-Identifier: Apache-2.0
"""Pending events, who takes them, entry into a handler and the way back. DEN0054C 4.3, 6.1.

An event is *ready* when it is pending and its handler is enabled and not
running. Ready events stand in bitmaps: one per PE for events that only this
PE may take (private events, and shared events routed to it), and one for the
whole system for shared events that any PE may take. A PE is a *taker* of
normal events when it is on, unmasked and runs no handler, and of critical
events when it is on, unmasked and runs no critical handler.

Every change keeps this invariant: while a ready event has a taker, a taker
of it is about to look, because it is in the middle of a call (and looks at
the end of it) or because a kick has been asked for in `kicks`. A kick is a
hint: one too many is harmless.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..cpu import M64, PC, PSTATE, SCTLR, RegisterView
from .model import Event, Frame, Handler, Pe
from .observer import Observer
from .states import CELLS, Op, State

__all__ = ["Delivery"]

_ENABLED = int(State.ENABLED)
_UNREGISTERED = int(State.UNREGISTERED)
_DISPATCH = CELLS[Op.DISPATCH]
_COMPLETE = CELLS[Op.COMPLETE]
_X4_X17 = slice(4 * 8, 18 * 8)
_ZEROES = bytes(14 * 8)


class Delivery:
    """The moving part of the service. `events` and `pes` are in order of index."""

    def __init__(self, pes: list[Pe], events: list[Event], *, clear_registers: bool) -> None:
        self.pes = pes
        self.events = events
        self.critical_events = sum(event.bit for event in events if event.priority)
        self.shared_ready = 0
        self.shared_registered = 0  # shared events with a handler in any state but unregistered
        self.kicks = 0  # PEs that must stop and call deliver(); the machine takes and clears it
        self._takers_normal = 0
        self._takers_critical = 0
        self.last_offered = -1  # the PE that was last kicked for an event that any may take
        self._clear_registers = clear_registers
        self._on_posted: tuple[Callable[[Handler], None], ...] = ()
        self._on_delivered: tuple[Callable[[Pe, Handler], None], ...] = ()
        self._on_completed: tuple[Callable[[Pe, Handler, bool], None], ...] = ()
        self._on_abandoned: tuple[Callable[[Pe], None], ...] = ()

    def observe(self, observer: Observer) -> None:
        """Call the hooks that `observer` overrides."""

        def overridden(name: str) -> tuple[Any, ...]:
            hook = getattr(observer, name)
            return () if getattr(type(observer), name) is getattr(Observer, name) else (hook,)

        self._on_posted += overridden("posted")
        self._on_delivered += overridden("delivered")
        self._on_completed += overridden("completed")
        self._on_abandoned += overridden("abandoned")

    def take_kicks(self) -> int:
        """The PEs to be stopped, as a bitmap; asked once."""
        kicks, self.kicks = self.kicks, 0
        return kicks

    # -- pending and ready

    def post(self, handler: Handler) -> None:
        """Make the event pending. The handler is registered."""
        handler.injected += 1
        if handler.pending:
            handler.coalesced += 1
            return
        handler.pending = True
        if handler.state == _ENABLED:
            self._set_ready(handler)
        for hook in self._on_posted:
            hook(handler)

    def drop(self, handler: Handler) -> bool:
        """Forget a pending event; whether there was one."""
        if not handler.pending:
            return False
        handler.pending = False
        handler.dropped += 1
        self._clear_ready(handler)
        return True

    def change(self, handler: Handler, state: int) -> None:
        """Move a handler to another state, with all that follows from it."""
        handler.state = state
        if handler.pending:
            if state == _ENABLED:
                self._set_ready(handler)
            else:
                self._clear_ready(handler)

    def released(self, handler: Handler) -> None:
        """A handler has become unregistered: keep the books, and let go of its pending event."""
        self.drop(handler)
        event = handler.event
        event.registrations -= 1
        if event.shared:
            handler.target = None
            self.shared_registered &= ~event.bit
        elif handler.target is not None:
            handler.target.registered &= ~event.bit

    def _set_ready(self, handler: Handler) -> None:
        event = handler.event
        target = handler.target
        takers = self._takers_critical if event.priority else self._takers_normal
        if target is None:
            self.shared_ready |= event.bit
            self._kick_one(takers, bool(event.priority))
            return
        target.ready |= event.bit
        if takers & target.bit or target.wakeable:
            self.kicks |= target.bit

    def _clear_ready(self, handler: Handler) -> None:
        target = handler.target
        if target is None:
            self.shared_ready &= ~handler.event.bit
        else:
            target.ready &= ~handler.event.bit

    def _offer(self) -> None:
        """Kick a taker of the shared events that are ready; critical and normal ones may have different takers."""
        if self.shared_ready & self.critical_events:
            self._kick_one(self._takers_critical, critical=True)
        if self.shared_ready & ~self.critical_events:
            self._kick_one(self._takers_normal, critical=False)

    def _kick_one(self, takers: int, critical: bool) -> None:
        """Kick one of the takers, in turn, so that the load spreads over the PEs; or else wake one."""
        if not takers:
            sleepers = [pe for pe in self.pes if pe.wakeable and not (pe.critical or (pe.normal and not critical))]
            if sleepers:
                self.kicks |= sleepers[0].bit
            return
        later = takers >> (self.last_offered + 1) << (self.last_offered + 1)
        chosen = later or takers
        chosen &= -chosen
        self.last_offered = chosen.bit_length() - 1
        self.kicks |= chosen

    def recount(self, last_offered: int) -> None:
        """The records of PEs and handlers have been replaced: do the books anew, and kick the PEs that have work."""
        self.shared_ready = self.shared_registered = self._takers_normal = self._takers_critical = 0
        for event in self.events:
            event.registrations = 0
        for pe in self.pes:
            pe.ready = pe.registered = 0
            self.refresh(pe)
        handlers = [handler for pe in self.pes for handler in pe.handlers.values()]
        handlers += [event.handler for event in self.events if event.shared]
        for handler in handlers:
            event, target = handler.event, handler.target
            if handler.state != _UNREGISTERED:
                event.registrations += 1
                if event.shared:
                    self.shared_registered |= event.bit
                elif target is not None:
                    target.registered |= event.bit
            if handler.pending and handler.state == _ENABLED:
                if target is None:
                    self.shared_ready |= event.bit
                else:
                    target.ready |= event.bit
        for pe in self.pes:
            if pe.ready and (pe.wakeable or self.next(pe) is not None):
                self.kicks |= pe.bit
        # What any PE may take goes to the one that it was offered to before, if that one can take it.
        self.last_offered = max(last_offered - 1, -1)
        self._offer()
        self.last_offered = last_offered

    # -- the PE

    def refresh(self, pe: Pe) -> None:
        """Count the PE among the takers, or not, after its mask, frames or power changed."""
        bit = pe.bit
        if pe.online and not pe.masked and pe.critical is None:
            self._takers_critical |= bit
            if pe.normal is None:
                self._takers_normal |= bit
                return
        else:
            self._takers_critical &= ~bit
        self._takers_normal &= ~bit
        if self.shared_ready:
            self._offer()  # it may have been this PE that was to take one

    def takers(self, event: Event) -> int:
        """The PEs that could enter the handler of an event at once, as a bitmap."""
        return self._takers_critical if event.priority else self._takers_normal

    def next(self, pe: Pe) -> Handler | None:
        """The handler that the PE has to enter now: critical before normal, then by number."""
        if pe.masked or not pe.online or pe.critical is not None:
            return None
        ready = pe.ready | self.shared_ready
        choice = ready & self.critical_events
        if not choice:
            if pe.normal is not None or not ready:
                return None
            choice = ready
        index = (choice & -choice).bit_length() - 1
        event = self.events[index]
        return event.handler if event.shared else pe.handlers[index]

    def enter(self, pe: Pe, handler: Handler, view: RegisterView) -> None:
        """Put the PE into the handler. The whole window is valid before, and to be written back after."""
        event = handler.event
        x = view.x
        context = view.context
        frame = Frame(handler, context.tobytes())
        if event.priority:
            pe.critical = frame
        else:
            pe.normal = frame
        handler.state = _DISPATCH[handler.state][0]
        handler.pending = False
        handler.running_on = pe
        handler.delivered += 1
        self._clear_ready(handler)
        # What refresh() would find: a busy PE takes nothing but critical events, or nothing at all.
        self._takers_normal &= ~pe.bit
        if event.priority:
            self._takers_critical &= ~pe.bit
        if self.shared_ready:
            self._offer()

        pstate = x[PSTATE]
        if self._clear_registers:
            context[_X4_X17] = _ZEROES
        x[0] = event.number
        x[1] = handler.argument
        x[2] = x[PC]
        x[3] = pstate
        x[PC] = (view.vbar_el1() + handler.entry) & M64 if handler.relative else handler.entry
        x[PSTATE] = pe.features.exception_entry(pstate, x[SCTLR])
        for hook in self._on_delivered:
            hook(pe, handler)

    def leave(self, pe: Pe, failed: bool = False) -> bytes:
        """End the innermost handler; what it had interrupted is returned. A handler runs."""
        frame = pe.critical
        if frame is not None:
            pe.critical = None
        else:
            frame = pe.normal
            assert frame is not None
            pe.normal = None
        handler = frame.handler
        handler.running_on = None
        handler.completed += 1
        handler.failed += failed
        # A handler that was being unregistered is now; an event that came meanwhile is ready.
        state = _COMPLETE[handler.state][0]
        self.change(handler, state)
        if state == _UNREGISTERED:
            self.released(handler)
        self.refresh(pe)
        for hook in self._on_completed:
            hook(pe, handler, failed)
        return frame.saved

    def abandon(self, pe: Pe) -> None:
        """The PE is turned off or reset: its handlers never end, so they end here; private ones are unregistered."""
        pe.online = False
        pe.masked = True
        pe.suspended = pe.wakeable = False
        while pe.frame is not None:
            self.leave(pe, failed=True)
        for handler in pe.handlers.values():
            if handler.state != _UNREGISTERED:
                self.change(handler, _UNREGISTERED)
                self.released(handler)
        self.refresh(pe)
        for hook in self._on_abandoned:
            hook(pe)
