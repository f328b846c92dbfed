# SPDX-License-Identifier: Apache-2.0
"""Reading the registers: from the service's records to numbers."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ..sdei.abi import version_word
from ..sdei.model import Event, Frame, Handler, Pe
from . import asyncpf, ids, values
from .ids import LAYOUT_VERSION, Catalog, standard

if TYPE_CHECKING:
    from ..sdei.service import Sdei

__all__ = ["Dump", "dump", "read", "read_constants"]

_M64 = (1 << 64) - 1
_BITMAPS = (ids.EVENT_REGISTERED, ids.EVENT_ENABLED, ids.EVENT_RUNNING)


@dataclass(slots=True)
class Dump:
    """Values by id: of the VM's registers, and of each vCPU's. What is not named is as after reset."""

    vm: dict[int, int] = field(default_factory=dict)
    vcpus: list[dict[int, int]] = field(default_factory=list)

    def of(self, vcpu: int | None) -> dict[int, int]:
        """Those of a vCPU, or of the VM."""
        return self.vm if vcpu is None else self.vcpus[vcpu]


def dump(sdei: Sdei, catalog: Catalog) -> Dump:
    """All of the service's state that is not as after reset, and what it is made of."""
    return Dump(read(sdei, catalog, None, False), [read(sdei, catalog, pe.index, False) for pe in sdei.pes])


def read(sdei: Sdei, catalog: Catalog, vcpu: int | None, every: bool) -> dict[int, int]:
    """The registers of a vCPU, or those of the VM.

    With `every` also those that are as after reset, but for private events
    that the PE never registered and for slots that are free: there may be thousands.
    """
    return _read_vm(sdei, every) if vcpu is None else _read_pe(sdei.pes[vcpu], catalog, every)


def read_constants(sdei: Sdei) -> dict[int, int]:
    """The registers of the VM that say what it is made of, and never change."""
    policy = sdei.policy
    major, minor = LAYOUT_VERSION
    found = {
        ids.LAYOUT.id: major << 16 | minor,
        ids.VERSION.id: version_word(*policy.version, policy.vendor),
        ids.POLICY.id: values.policy_word(policy),
        ids.VCPUS.id: len(sdei.pes),
        ids.EVENTS.id: len(sdei.events),
    }
    for event in sdei.events:
        found[ids.DEFINITION.id | event.index] = values.definition(event)
    return found


def _read_vm(sdei: Sdei, every: bool) -> dict[int, int]:
    found = read_constants(sdei)
    offered = sdei.delivery.last_offered + 1
    if every or offered:
        found[ids.LAST_OFFERED.id] = offered
    for event in sdei.events:
        if event.dynamic and (every or event.interrupt):
            found[ids.BINDING.id | event.index] = event.interrupt or 0
        if event.shared:
            _read_handler(found, event, event.handler, every and not (event.dynamic and event.interrupt is None))
    return found


def _read_handler(found: dict[int, int], event: Event, handler: Handler, every: bool) -> None:
    """The three registers of a handler that are ours; of a standard event only what KVM's lack."""
    word = values.STATE_RELATIVE if handler.relative else 0
    if not standard(event):
        value = handler.entry | handler.argument << 64
        if every or value:
            found[ids.HANDLER.id | event.index] = value
        word |= handler.state
        if handler.pending:
            word |= values.STATE_PENDING
        if event.shared:
            if handler.target is not None:
                word |= values.STATE_RM_PE | handler.target.index << values.STATE_TARGET_SHIFT
            if handler.running_on is not None:
                word |= handler.running_on.index << values.STATE_RUNS_ON_SHIFT
    if every or word:
        found[ids.STATE.id | event.index] = word
    counts = values.counts(handler)
    if every or counts:
        found[ids.COUNTS.id | event.index] = counts


def _context(found: dict[int, int], id: int, frame: Frame | None, every: bool) -> None:
    """A context register. A frame has one though all of it may be zero."""
    if frame is not None:
        found[id] = values.context_of_frame(frame.saved)
    elif every:
        found[id] = 0


def _read_pe(pe: Pe, catalog: Catalog, every: bool) -> dict[int, int]:
    found: dict[int, int] = {ids.AFFINITY.id: pe.affinity}
    bitmaps, pending = [0, 0, 0], 0
    for number, kind in enumerate(ids.EVENT_HANDLER):
        event = catalog.standard.get(number)
        handler = None if event is None else pe.handlers.get(event.index)
        if handler is not None:
            for status in range(3):
                bitmaps[status] |= (handler.state >> status & 1) << number
            pending |= handler.pending << number
        value = 0 if handler is None else handler.entry | handler.argument << 64
        if every or value:
            found[kind.id] = value
    for kind, bitmap in (*zip(_BITMAPS, bitmaps, strict=True), (ids.EVENT_PENDING, pending)):
        if every or bitmap:
            found[kind.id] = bitmap
    _context(found, ids.EVENT_CONTEXT.id, pe.normal, every)
    if every or not pe.masked:
        found[ids.PE_STATE.id] = int(pe.masked)
    power = (
        values.POWER_ONLINE * pe.online | values.POWER_SUSPENDED * pe.suspended | values.POWER_WAKEABLE * pe.wakeable
    )
    if every or power:
        found[ids.POWER.id] = power
    _context(found, ids.CRITICAL_CONTEXT.id, pe.critical, every)
    found |= asyncpf.read(pe, every)
    for handler in sorted(pe.handlers.values(), key=lambda each: each.event.index):
        _read_handler(found, handler.event, handler, every)
    return found
