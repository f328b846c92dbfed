# SPDX-License-Identifier: Apache-2.0
"""SDEI's state, written down a second time: PEs, events, handlers, and who may enter what.

With :mod:`.judge`, which has the calls, this is the oracle. Both were written
from the specification (DEN0054C) and from what KVM's v7 series, TF-A and Linux
do, not from `sdeivirt.sdei`, and share no table, constant or code with it,
only the `EventDefinition` record that both are configured with.

A pending event whose handler is enabled and idle waits for nothing but a PE:
it is *ripe*, and stands in a list of the one PE that may take it, or in
anyone's. Each PE has *room*: 2 if it could enter any handler now, 1 if only a
critical one, 0 if none; each handler *needs* 2 (normal) or 1 (critical). A PE
is *due* while it has room for a ripe event of its own. Which PE takes an event
that any PE may take is the implementation's choice; the model says whether it
was one of the right ones.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable

from ..sdei.events import EventDefinition
from .exceptions import take_exception
from .records import IDLE, M64, OPERATIONS, REGISTERED, RUNNING, Event, Frame, Handler, Pe
from .registers import CONTEXT, PC, PSTATE, SCTLR, VBAR

__all__ = ["Model"]

_ZEROES = array("Q", [0] * 14)
_X4_X17 = slice(4, 18)


class Model:
    """The state of the whole service. `policy` is "kvm" or "tf-a"; `slots` are (private, shared)."""

    def __init__(
        self,
        affinities: list[int],
        events: Iterable[EventDefinition] = (),
        policy: str = "kvm",
        slots: tuple[int, int] = (4, 4),
        features: Iterable[str] = ("pan", "uao", "dit", "ssbs"),
        dynamic_numbers: tuple[int, int] = (0x40001000, 0x40002000),
    ) -> None:
        assert policy in ("kvm", "tf-a")
        self.policy = policy
        self.kvm = policy == "kvm"
        self.cpu_features = frozenset(features)
        self.slots = slots
        self.all_pes = [Pe(i, affinity) for i, affinity in enumerate(affinities)]
        self.by_affinity = {pe.affinity: pe.index for pe in self.all_pes}
        self.events: dict[int, Event] = {}
        self.interrupts: dict[int, Event] = {}  # static and dynamic
        self.ripe: dict[Handler, None] = {}  # anyone's, in order of their becoming so
        self.due = 0  # a bitmap of PEs
        # For each operation on a handler: the states in which it was tried, for coverage.
        self.tried = {name: bytearray(8) for name in OPERATIONS}
        self._pstates: dict[tuple[int, int], int] = {}
        self._define(Event(0, False, False, True, False, True, None))
        for event in events:
            signalable = event.signalable or event.number == 0
            made = Event(event.number, event.shared, int(event.priority) == 1, signalable, False, True, event.interrupt)
            self._define(made)
            if event.interrupt is not None:
                self.interrupts[event.interrupt] = made
        self.private_slots = [self._slot(dynamic_numbers[0] + i, False) for i in range(slots[0])]
        self.shared_slots = [self._slot(dynamic_numbers[1] + i, True) for i in range(slots[1])]

    def _slot(self, number: int, shared: bool) -> Event:
        return self._define(Event(number, shared, False, False, True, not self.kvm, None))

    def _define(self, event: Event) -> Event:
        needs = 1 if event.critical else 2
        if event.shared:
            event.handlers = [Handler(event.number, None, needs)] * len(self.all_pes)
        else:
            event.handlers = [Handler(event.number, pe.index, needs, routed_to=pe.index) for pe in self.all_pes]
        self.events[event.number] = event
        return event

    def handlers_of(self, event: Event) -> list[Handler]:
        return event.handlers[:1] if event.shared else event.handlers

    def pe_of(self, mpidr: int) -> int | None:
        """The PE of an affinity: Aff3 (39:32), Aff2, Aff1, Aff0 (23:0). A raw MPIDR_EL1 has more bits set."""
        return self.by_affinity.get(mpidr & 0x000000FF_00FFFFFF)

    # -- what follows from a change

    def _note(self, handler: Handler) -> None:
        """A handler's status or its pending event has changed."""
        pe = None if handler.routed_to is None else self.all_pes[handler.routed_to]
        ripe = self.ripe if pe is None else pe.ripe
        if handler.pending and handler.status == IDLE:
            ripe[handler] = None
        elif handler in ripe:
            del ripe[handler]
        else:
            return
        if pe is not None:
            self._see_due(pe)

    def _see_due(self, pe: Pe) -> None:
        """What is ripe for a PE, or its room, has changed."""
        room = pe.wakes_for if pe.asleep else pe.room
        if pe.ripe and room:
            for handler in pe.ripe:
                if handler.needs <= room:
                    self.due |= pe.bit
                    return
        self.due &= ~pe.bit

    def _measure(self, pe: Pe) -> None:
        """A PE's frames, mask or power have changed: normal handlers go below critical ones, one of each."""
        if not pe.frames:
            free = 2
        elif pe.frames[-1].handler.needs == 1:
            free = 0
        else:
            free = 1
        pe.room = free if pe.online and not pe.asleep and not pe.masked else 0
        pe.wakes_for = free if pe.asleep and pe.wakeable else 0
        self._see_due(pe)

    def _raise(self, handler: Handler) -> None:
        handler.injected += 1
        if handler.status != IDLE:
            self.tried["dispatch"][handler.status] = 1
        if handler.pending:
            handler.coalesced += 1
        else:
            handler.pending = True
            self._note(handler)

    def _drop(self, handler: Handler) -> None:
        if handler.pending:
            handler.dropped += 1
            handler.pending = False
            self._note(handler)

    def _unregister(self, handler: Handler) -> None:
        self._drop(handler)
        handler.status &= RUNNING

    # -- who may enter what

    def choices(self, pe: Pe) -> list[Handler]:
        """The handlers that `pe` may enter when it looks now; if it is due, it must enter one.

        Critical before normal, then the lowest number. Of the events that this PE alone can take, the
        first has to be entered, unless one that any PE can take comes before it and is entered instead.
        """
        own = _first(pe.ripe, pe.room)
        anyones = _first(self.ripe, pe.room) if self.ripe else None
        if own is None or anyones is None:
            return [handler for handler in (own, anyones) if handler is not None]
        return [own] if _order(own) < _order(anyones) else [own, anyones]

    def takers(self, handler: Handler) -> int:
        """The PEs that could enter a ripe handler of anyone's at once, as a bitmap."""
        return sum(pe.bit for pe in self.all_pes if pe.room >= handler.needs)

    def take(self, pe: Pe, handler: Handler) -> None:
        """The PE takes the event: what it was doing goes into a frame, and its handler starts."""
        words = pe.words
        saved = words[CONTEXT]
        pe.frames.append(Frame(handler, saved))
        self.tried["dispatch"][handler.status] = 1
        handler.pending = False
        handler.status |= RUNNING
        handler.running_on = pe.index
        handler.delivered += 1
        self._note(handler)
        self._measure(pe)
        if self.kvm:
            words[_X4_X17] = _ZEROES
        words[0] = handler.event
        words[1] = handler.argument
        words[2] = saved[PC]
        words[3] = saved[PSTATE]
        words[PC] = (handler.entry + (words[VBAR] if handler.relative else 0)) & M64
        words[PSTATE] = self.exception_pstate(saved[PSTATE], words[SCTLR])

    def leave(self, pe: Pe, failed: bool) -> array[int]:
        """The innermost handler ends; what it had interrupted."""
        frame = pe.frames.pop()
        handler = frame.handler
        handler.status &= ~RUNNING
        handler.running_on = None
        handler.completed += 1
        handler.failed += failed
        self._note(handler)
        self._measure(pe)
        return frame.words

    def exception_pstate(self, pstate: int, sctlr: int) -> int:
        """:func:`.exceptions.take_exception` for these PEs, and remembered."""
        key = pstate, sctlr
        found = self._pstates.get(key)
        if found is None:
            if len(self._pstates) > 10_000:
                self._pstates.clear()
            found = self._pstates[key] = take_exception(pstate, sctlr, self.cpu_features)
        return found

    # -- the host's side

    def inject(self, event: int, pe: int | None) -> str:
        """The host raises an event: "raised", "unknown", or "not registered"."""
        found = self.events.get(event)
        if found is None or not found.known:
            return "unknown"
        handler = found.handlers[pe or 0]
        if not handler.status & REGISTERED:
            self.tried["dispatch"][handler.status] = 1
            return "not registered"
        self._raise(handler)
        return "raised"

    def cancel(self, event: int, pe: int | None) -> str:
        """The host takes an event back: "cancelled", "not pending", or the reason against it.

        A pending event can be taken back even while its handler still runs for the time before.
        """
        found = self.events.get(event)
        if found is None or not found.known:
            return "unknown"
        handler = found.handlers[pe or 0]
        if not handler.status & REGISTERED:
            return "not registered"
        if not handler.pending:
            return "running" if handler.status & RUNNING else "not pending"
        self._drop(handler)
        return "cancelled"

    def interrupt(self, interrupt: int, pe: int | None) -> bool:
        """A device raises an interrupt; whether it is SDEI's, because a registered event is bound to it."""
        event = self.interrupts.get(interrupt)
        return event is not None and self.inject(event.number, pe) == "raised"

    def pe_on(self, pe: int) -> None:
        self.pe_off(pe)
        self.all_pes[pe].online = True
        self._measure(self.all_pes[pe])

    def pe_off(self, pe: int) -> None:
        """The PE loses its private handlers; whatever ran on it ends there, as failed."""
        state = self.all_pes[pe]
        while state.frames:
            self.tried["complete"][state.frames[-1].handler.status] = 1
            self.leave(state, failed=True)
        for event in self.events.values():
            if not event.shared:
                self._unregister(event.handlers[pe])
        state.online, state.masked, state.asleep, state.wakeable = False, True, False, False
        self._measure(state)

    def pe_suspend(self, pe: int) -> bool:
        """The PE goes to a power state that loses its registers; not while an event would wake it at once."""
        state = self.all_pes[pe]
        if self.choices(state):
            return False
        state.wakeable = not state.masked
        state.asleep = state.masked = True
        self._measure(state)
        return True

    def pe_resume(self, pe: int) -> None:
        """The PE is up again, masked until it says otherwise."""
        self.all_pes[pe].asleep = self.all_pes[pe].wakeable = False
        self._measure(self.all_pes[pe])

    def bind(self, event: Event, interrupt: int) -> None:
        event.interrupt = interrupt
        event.known = True
        self.interrupts[interrupt] = event

    def unbind(self, event: Event) -> bool:
        """Free a slot that is bound; not while anybody has a handler, or one that still runs."""
        if any(handler.status for handler in self.handlers_of(event)):
            return False
        assert event.interrupt is not None
        del self.interrupts[event.interrupt]
        event.interrupt = None
        event.known = not self.kvm
        return True

    def reset(self) -> None:
        """The whole machine starts again: nothing is registered or bound, every PE is off."""
        for pe in self.all_pes:
            self.pe_off(pe.index)
        for event in self.events.values():
            for handler in self.handlers_of(event):
                self._unregister(handler)
        for event in (*self.private_slots, *self.shared_slots):
            if event.interrupt is not None:
                self.unbind(event)


def _order(handler: Handler) -> tuple[int, int]:
    """Critical before normal, then the lowest number."""
    return handler.needs, handler.event


def _first(handlers: Iterable[Handler], room: int) -> Handler | None:
    """The first of those that fit into the room."""
    first = None
    for handler in handlers:
        if handler.needs <= room and (first is None or _order(handler) < _order(first)):
            first = handler
    return first
