# SPDX-License-Identifier: Apache-2.0
"""From numbers to records: a draft of the state that the service is to have.

Registers come in any order, and each adds to fresh records what it knows. Here
each is judged alone: whether it exists, its size, its bits, its fields. What
they mean together is for :mod:`.rules`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ..sdei.events import is_ppi, is_spi
from ..sdei.model import Event, Handler, Pe
from . import ids, values
from .capture import Dump
from .ids import Catalog, Impossible, Kind, standard
from .values import M64

if TYPE_CHECKING:
    from ..asyncpf.state import PeFaults
    from ..sdei.service import Sdei

__all__ = ["Context", "Draft", "DraftPe", "draft"]

_STANDARD_EVENTS = (1 << len(ids.EVENT_HANDLER)) - 1
_STATUS_OF = {
    ids.EVENT_REGISTERED: values.STATE_REGISTERED,
    ids.EVENT_ENABLED: values.STATE_ENABLED,
    ids.EVENT_RUNNING: values.STATE_RUNNING,
    ids.EVENT_PENDING: values.STATE_PENDING,
}
_COUNT_SHIFTS = (0, 64, 128, 192)


@dataclass(slots=True)
class Context:
    """A context register, None if nothing names it; and the handler whose frame it makes."""

    kind: Kind
    value: int | None = None
    handler: Handler | None = None


@dataclass(slots=True)
class DraftPe:
    """What a PE is to have; `power` is SDEI_POWER, `handlers` are by event index, `async_pf` by register."""

    power: int = 0
    masked: bool = True
    normal: Context = field(default_factory=lambda: Context(ids.EVENT_CONTEXT))
    critical: Context = field(default_factory=lambda: Context(ids.CRITICAL_CONTEXT))
    handlers: dict[int, Handler] = field(default_factory=dict)
    async_pf: dict[Kind, int] = field(default_factory=dict)
    faults: PeFaults | None = None  # what those say

    @property
    def online(self) -> bool:
        return bool(self.power & values.POWER_ONLINE)


@dataclass(slots=True)
class Draft:
    """What the service is to have. Handlers refer to the events and PEs that there are."""

    pes: list[DraftPe]
    shared: dict[int, Handler] = field(default_factory=dict)  # by event index
    bound: dict[int, Event] = field(default_factory=dict)  # by interrupt
    counts: dict[tuple[int | None, int], int] = field(default_factory=dict)  # SDEI_COUNTS by vCPU and event index
    last_offered: int = -1

    def handlers(self) -> Iterator[tuple[int | None, Handler]]:
        """All handlers, each with its vCPU, or None for a shared event's."""
        yield from ((None, handler) for handler in self.shared.values())
        for vcpu, pe in enumerate(self.pes):
            yield from ((vcpu, handler) for handler in pe.handlers.values())


def draft(sdei: Sdei, catalog: Catalog, dump: Dump) -> Draft:
    """What the registers say, each alone. Raises Impossible."""
    reader = _Reader(sdei, catalog)
    for vcpu in (None, *range(len(sdei.pes))):
        for id, value in dump.of(vcpu).items():
            reader.take(id, vcpu, value)
    return reader.draft


class _Reader:
    def __init__(self, sdei: Sdei, catalog: Catalog) -> None:
        self._sdei = sdei
        self._catalog = catalog
        self.draft = Draft([DraftPe() for _ in sdei.pes])

    def take(self, id: int, vcpu: int | None, value: int) -> None:
        """Add a register to the records."""
        register = self._catalog.find(id, vcpu)
        if register.of_vcpu != (vcpu is not None):
            raise Impossible(id, vcpu, f"it is a register of {'each vCPU' if register.of_vcpu else 'the VM'}")
        if not 0 <= value < 1 << register.kind.size:
            raise Impossible(id, vcpu, f"it has {register.kind.size} bits, and the value does not fit")
        if register.event is not None and register.kind is not ids.DEFINITION:
            self._take_event(register.kind, id, register.event, vcpu, value)
        elif vcpu is not None:
            self._take_pe(register.kind, vcpu, value)
        elif register.kind is ids.LAST_OFFERED:
            if value > len(self.draft.pes):
                raise Impossible(id, None, f"there is no vCPU {value - 1}")
            self.draft.last_offered = value - 1

    def _take_event(self, kind: Kind, id: int, event: Event, vcpu: int | None, value: int) -> None:
        if kind is ids.BINDING:
            self._bind(id, event, value)
        elif kind is ids.HANDLER:
            self._entry(id, event, vcpu, value)
        elif kind is ids.STATE:
            self._state(id, event, vcpu, value)
        else:
            self._count(id, event, vcpu, value)

    def _take_pe(self, kind: Kind, vcpu: int, value: int) -> None:
        pe = self.draft.pes[vcpu]
        if kind in ids.EVENT_HANDLER:
            event = self._standard(kind, vcpu, ids.EVENT_HANDLER.index(kind), value)
            if event is not None:
                self._entry(kind.id, event, vcpu, value)
        elif kind in _STATUS_OF:
            self._bitmap(kind, vcpu, value)
        elif kind is ids.EVENT_CONTEXT or kind is ids.CRITICAL_CONTEXT:
            if value >> values.CONTEXT_USED:
                raise Impossible(kind.id, vcpu, "160 of its 256 bytes are in use, and another is not zero")
            (pe.normal if kind is ids.EVENT_CONTEXT else pe.critical).value = value
        elif kind is ids.PE_STATE:
            _check_bits(kind.id, vcpu, value, 1)
            pe.masked = bool(value)
        elif kind is ids.POWER:
            _check_bits(kind.id, vcpu, value, values.POWER_ALL)
            pe.power = value
        elif kind in ids.ASYNC_PF:
            pe.async_pf[kind] = value

    # -- an event

    def _handler(self, event: Event, vcpu: int | None) -> Handler:
        handlers = self.draft.shared if vcpu is None else self.draft.pes[vcpu].handlers
        handler = handlers.get(event.index)
        if handler is None:
            target = None if vcpu is None else self._sdei.pes[vcpu]
            handler = handlers[event.index] = Handler(event, target)
        return handler

    def _bind(self, id: int, event: Event, interrupt: int) -> None:
        if not interrupt:
            return
        if not (is_spi(interrupt) if event.shared else is_ppi(interrupt)):
            what = "a shared slot takes an SPI, 32 to 1019" if event.shared else "a private slot takes a PPI, 16 to 31"
            raise Impossible(id, None, f"interrupt {interrupt} does not fit: {what}")
        taken = self.draft.bound.get(interrupt) or self._sdei.bindings.defined(interrupt)
        if taken is not None:
            raise Impossible(id, None, f"interrupt {interrupt} is bound to event {taken.number:#x}, too")
        self.draft.bound[interrupt] = event

    def _entry(self, id: int, event: Event, vcpu: int | None, value: int) -> None:
        entry = value & M64
        if entry & 3:
            raise Impossible(id, vcpu, f"no instruction can be at the entry point {entry:#x}")
        handler = self._handler(event, vcpu)
        handler.entry, handler.argument = entry, value >> 64

    def _state(self, id: int, event: Event, vcpu: int | None, value: int) -> None:
        if standard(event):
            _check_bits(id, vcpu, value, values.STATE_STANDARD)
        else:
            _check_bits(id, vcpu, value, values.STATE_SHARED if event.shared else values.STATE_PRIVATE)
        handler = self._handler(event, vcpu)
        handler.relative = bool(value & values.STATE_RELATIVE)
        self._add_status(handler, value)
        if event.shared:
            handler.target = self._vcpu(id, value, values.STATE_RM_PE, values.STATE_TARGET_SHIFT)
            handler.running_on = self._vcpu(id, value, values.STATE_RUNNING, values.STATE_RUNS_ON_SHIFT)

    def _add_status(self, handler: Handler, word: int) -> None:
        handler.state |= word & values.STATE_STATUS
        if word & values.STATE_PENDING:
            handler.pending = True

    def _vcpu(self, id: int, value: int, flag: int, shift: int) -> Pe | None:
        """The PE that a field names. The field counts with a flag, and is zero without it."""
        index = value >> shift & values.STATE_VCPU
        if not value & flag:
            if index:
                raise Impossible(id, None, f"its bits {shift + 15}:{shift} are {index}, but bit {flag:#x} is not set")
            return None
        if index >= len(self._sdei.pes):
            raise Impossible(id, None, f"there is no vCPU {index}")
        return self._sdei.pes[index]

    def _count(self, id: int, event: Event, vcpu: int | None, value: int) -> None:
        _coalesced, _dropped, completed, failed = (counts := [value >> shift & M64 for shift in _COUNT_SHIFTS])
        if max(counts) > values.MAX_COUNT:
            raise Impossible(id, vcpu, f"a count of {max(counts)} is more than the 62 bits that it has")
        if failed > completed:
            raise Impossible(id, vcpu, f"{failed} handlers have failed of {completed} that were completed")
        if value:
            self._handler(event, vcpu)
            self.draft.counts[vcpu, event.index] = value

    # -- KVM's registers

    def _standard(self, kind: Kind, vcpu: int, number: int, value: int) -> Event | None:
        """The event that KVM's registers hold under a number; they are zero where there is none."""
        event = self._catalog.standard.get(number)
        if event is None and value:
            raise Impossible(kind.id, vcpu, f"no private event {number:#x} is defined")
        return event

    def _bitmap(self, kind: Kind, vcpu: int, value: int) -> None:
        _check_bits(kind.id, vcpu, value, _STANDARD_EVENTS)
        for number in range(len(ids.EVENT_HANDLER)):
            if value >> number & 1:
                event = self._standard(kind, vcpu, number, value)
                if event is not None:
                    self._add_status(self._handler(event, vcpu), _STATUS_OF[kind])


def _check_bits(id: int, vcpu: int | None, value: int, known: int) -> None:
    if value & ~known:
        raise Impossible(id, vcpu, f"it has no bits {value & ~known:#x}")
