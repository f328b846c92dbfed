# SPDX-License-Identifier: Apache-2.0
"""Dynamic events: slots for interrupts that a client binds, DEN0054C 5.1.14 and 5.1.15."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from .abi import Status
from .events import DYNAMIC_PRIVATE, DYNAMIC_SHARED, EventDefinition, Priority, is_ppi, is_spi
from .model import Event
from .policy import Policy

__all__ = ["Bindings", "make_events"]

_INVALID = int(Status.INVALID_PARAMETERS)
_DENIED = int(Status.DENIED)
_OUT_OF_RESOURCE = int(Status.OUT_OF_RESOURCE)


def make_events(definitions: list[EventDefinition], policy: Policy) -> list[Event]:
    """All events in order of number: those defined, and the policy's slots."""
    slots = [(DYNAMIC_PRIVATE + i, False) for i in range(policy.private_slots)]
    slots += [(DYNAMIC_SHARED + i, True) for i in range(policy.shared_slots)]
    rows = [(d.number, d.shared, d.priority, d.signalable, False, d.interrupt) for d in definitions]
    rows += [(number, shared, Priority.NORMAL, False, True, None) for number, shared in slots]
    rows.sort(key=lambda row: row[0])
    return [
        Event(number, index, shared, priority, signalable, dynamic, interrupt)
        for index, (number, shared, priority, signalable, dynamic, interrupt) in enumerate(rows)
    ]


class Bindings:
    """Which interrupt is bound to which event. `known` is every event that calls may name."""

    def __init__(self, events: list[Event], policy: Policy) -> None:
        self._slots = {shared: [e for e in events if e.dynamic and e.shared == shared] for shared in (False, True)}
        self._static = {e.interrupt: e for e in events if not e.dynamic and e.interrupt is not None}
        self._unbound_known = policy.unbound_known
        self.bound: dict[int, Event] = {}
        self.known = {e.number: e for e in events if not e.dynamic or policy.unbound_known}

    def find(self, interrupt: int) -> Event | None:
        """The event that an interrupt raises, by definition or by binding."""
        return self.bound.get(interrupt) or self._static.get(interrupt)

    def defined(self, interrupt: int) -> Event | None:
        """The event that an interrupt raises by definition."""
        return self._static.get(interrupt)

    @property
    def any(self) -> bool:
        """Whether there is an interrupt that raises an event at all."""
        return bool(self.bound or self._static)

    def all(self) -> Iterator[tuple[int, Event]]:
        """Every interrupt that raises an event, by definition or by binding."""
        yield from self._static.items()
        yield from self.bound.items()

    def bind(self, interrupt: int) -> int:
        """The event number, or an error. A PPI becomes a private event, an SPI a shared one."""
        if not is_ppi(interrupt) and not is_spi(interrupt):
            return _INVALID
        if interrupt in self._static:
            return _INVALID
        if interrupt in self.bound:
            return self.bound[interrupt].number
        for event in self._slots[is_spi(interrupt)]:
            if event.interrupt is None:
                event.interrupt = interrupt
                self.bound[interrupt] = event
                self.known[event.number] = event
                return event.number
        return _OUT_OF_RESOURCE

    def release(self, event: Event) -> int:
        """Free the slot. The event is known; DENIED while anybody has it registered."""
        if not event.dynamic or event.interrupt is None:
            return _INVALID
        if event.registrations:
            return _DENIED
        del self.bound[event.interrupt]
        event.interrupt = None
        if not self._unbound_known:
            del self.known[event.number]
        return 0

    def release_all(self) -> int:
        """Free every slot that can be freed; the first error."""
        results = [self.release(event) for event in list(self.bound.values())]
        return next(filter(None, results), 0)

    def replace(self, bound: Mapping[int, Event]) -> None:
        """Have these interrupts bound to these slots, and no others."""
        for event in self.bound.values():
            event.interrupt = None
            if not self._unbound_known:
                del self.known[event.number]
        self.bound.clear()
        for interrupt, event in bound.items():
            event.interrupt = interrupt
            self.bound[interrupt] = event
            self.known[event.number] = event
