# SPDX-License-Identifier: Apache-2.0
"""What a machine tells of itself: status records and fault reports. Plain data, ready for JSON."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ..sdei.model import Event, Handler
from ..sdei.states import State

if TYPE_CHECKING:
    from ..firmware import Firmware

__all__ = [
    "AsyncPfStatus",
    "ErrorSourceStatus",
    "EventStatus",
    "FaultReport",
    "HandlerReport",
    "PeStatus",
    "VmStatus",
    "async_pf_status",
    "firmware_status",
]


@dataclass(frozen=True, slots=True)
class PeStatus:
    """One PE. `running` lists the events whose handlers run there, outermost first."""

    vcpu: int
    affinity: int
    power: str  # on, off, on-pending, suspended, faulted
    masked: bool
    running: list[int]
    nesting: int


@dataclass(frozen=True, slots=True)
class HandlerReport:
    """One handler: of a PE for a private event, of the whole VM (`vcpu` None) for a shared one.

    `runs_on` is the vCPU that runs it; `routed_to` the vCPU of RM_PE, None for RM_ANY.
    Counts: injected = delivered + coalesced + dropped + (1 if pending).
    """

    vcpu: int | None
    registered: bool
    enabled: bool
    running: bool
    pending: bool
    runs_on: int | None
    routed_to: int | None
    injected: int
    coalesced: int
    dropped: int
    delivered: int
    completed: int
    failed: int


@dataclass(frozen=True, slots=True)
class EventStatus:
    """One event, with the handlers that were ever registered for it."""

    number: int
    type: str  # private, shared
    priority: str  # normal, critical
    signalable: bool
    dynamic: bool
    interrupt: int | None
    handlers: list[HandlerReport]


@dataclass(frozen=True, slots=True)
class AsyncPfStatus:
    """The asynchronous page faults of a vCPU that has, or had, enabled them.

    `transport` is how it is told of a page that is not present: "sdei", "ppi", or "" while it is not.
    Counts: `told` as not present, of these `answered` as ready and `refused` by the guest; `waits` are faults
    that it was not told of. `outstanding` are told and not answered, `ready` of them are on their way.
    """

    vcpu: int
    transport: str
    told: int
    answered: int
    refused: int
    waits: int
    outstanding: int
    ready: int


@dataclass(frozen=True, slots=True)
class ErrorSourceStatus:
    """A source of hardware errors.

    `state` is "" where nothing is under way, else why the last report has not been acknowledged: as
    :attr:`Injection.waits`, or one of those in :mod:`sdeivirt.ras.outcome`, such as "delivered", and "unread" (its
    handler has ended, and left it there). `block_status` is the first word of its block. `queued` reports wait for
    their turn. Counts: `reported` were put into the block, of these `acknowledged` by the guest. `lost` are those
    of which a reset has made an end, and those that were queued and could not be reported any more.
    """

    number: int
    event: int
    ghes: int
    address: int
    state: str
    block_status: int | None
    queued: int
    reported: int
    acknowledged: int
    lost: int = 0


@dataclass(frozen=True, slots=True)
class FaultReport:
    """Why a vCPU cannot go on. `registers` holds x0..x30, sp, pc, pstate and EL1's exception registers."""

    vcpu: int
    reason: str
    pc: int
    registers: dict[str, int]
    disassembly: list[str]

    def render(self) -> str:
        """For people: the reason, the code around PC, the registers four a line."""
        lines = [f"vCPU {self.vcpu} stopped: {self.reason}"]
        lines += [f"    {line}" for line in self.disassembly]
        items = [f"{name:>8} {value:016x}" for name, value in self.registers.items()]
        lines += ["    " + " ".join(items[i : i + 4]) for i in range(0, len(items), 4)]
        return "\n".join(lines)


@dataclass(frozen=True, slots=True)
class VmStatus:
    """A whole VM. `state` is created, running, paused or stopped; `engine` what the machine tells of its engine."""

    name: str
    machine: str
    state: str
    policy: str
    memory: int
    scheduler: str
    vcpus: list[PeStatus]
    events: list[EventStatus]
    faults: list[FaultReport] = field(default_factory=list)
    engine: dict[str, int | str] = field(default_factory=dict)
    async_pf: list[AsyncPfStatus] = field(default_factory=list)
    error_sources: list[ErrorSourceStatus] = field(default_factory=list)


def _handler(handler: Handler, vcpu: int | None) -> HandlerReport:
    state = handler.state
    return HandlerReport(
        vcpu=vcpu,
        registered=bool(state & State.REGISTERED),
        enabled=state & State.ENABLED == State.ENABLED,
        running=bool(state & State.UNREGISTER_PENDING),
        pending=handler.pending,
        runs_on=handler.running_on.index if handler.running_on else None,
        routed_to=handler.target.index if vcpu is None and handler.target else None,
        injected=handler.injected,
        coalesced=handler.coalesced,
        dropped=handler.dropped,
        delivered=handler.delivered,
        completed=handler.completed,
        failed=handler.failed,
    )


def firmware_status(firmware: Firmware) -> tuple[list[PeStatus], list[EventStatus]]:
    """The PEs and events of a firmware; call it with the machine's lock held."""
    power_names = {0: "on", 1: "off", 2: "on-pending"}
    vcpus = []
    for pe in firmware.pes:
        running = [frame.handler.event.number for frame in (pe.normal, pe.critical) if frame]
        power = "suspended" if pe.suspended else power_names[firmware.psci.power[pe.index]]
        vcpus.append(PeStatus(pe.index, pe.affinity, power, pe.masked, running, len(running)))
    return vcpus, [_event(firmware, event) for event in firmware.sdei.events if _shown(event)]


def async_pf_status(firmware: Firmware) -> list[AsyncPfStatus]:
    """The vCPUs that have, or had, asynchronous page faults enabled; call it with the machine's lock held."""
    found = []
    for pe in firmware.pes:
        state = pe.async_pf
        if state is not None and (state.control or state.told):
            transport = "" if not state.control else "sdei" if state.sdei else "ppi"
            counts = state.told, state.answered, state.refusals, state.waits
            found.append(AsyncPfStatus(pe.index, transport, *counts, state.pending, len(state.ready)))
    return found


def _shown(event: Event) -> bool:
    return not event.dynamic or event.interrupt is not None


def _event(firmware: Firmware, event: Event) -> EventStatus:
    if event.shared:
        handlers = [_handler(event.handler, None)]
    else:
        handlers = [_handler(pe.handlers[event.index], pe.index) for pe in firmware.pes if event.index in pe.handlers]
    return EventStatus(
        number=event.number,
        type="shared" if event.shared else "private",
        priority="critical" if event.priority else "normal",
        signalable=event.signalable,
        dynamic=event.dynamic,
        interrupt=event.interrupt,
        handlers=handlers,
    )
