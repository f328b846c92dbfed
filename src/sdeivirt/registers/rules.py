# SPDX-License-Identifier: Apache-2.0
"""Which states can be, and going on from one of them.

What no sequence of calls, injections and power changes leads to is refused,
with the register that is to blame: a guest could otherwise be given what it
cannot have (a context of EL2, say), or the service a state that its own
rules do not provide for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..sdei.model import Frame, Handler, Pe
from . import asyncpf, ids, values
from .draft import Context, Draft, DraftPe
from .ids import Impossible, standard

if TYPE_CHECKING:
    from ..sdei.service import Sdei

__all__ = ["install", "judge"]

_REGISTERED = values.STATE_REGISTERED
_ENABLED = values.STATE_ENABLED
_RUNNING = values.STATE_RUNNING
_PENDING = values.STATE_PENDING
_BITMAP = {
    _REGISTERED: ids.EVENT_REGISTERED,
    _ENABLED: ids.EVENT_ENABLED,
    _RUNNING: ids.EVENT_RUNNING,
    _PENDING: ids.EVENT_PENDING,
}


def judge(sdei: Sdei, draft: Draft) -> None:
    """Look at the whole, and complete the records. Raises Impossible."""
    bound = {event.index for event in draft.bound.values()}
    for vcpu, handler in draft.handlers():
        _judge_handler(sdei, draft, vcpu, handler, bound)
        values.set_counts(handler, draft.counts.get((vcpu, handler.event.index), 0))
    for vcpu, pe in enumerate(draft.pes):
        _judge_pe(vcpu, pe)
        pe.faults = asyncpf.make(sdei.pes[vcpu], pe.online, pe.async_pf)


def _refuse(handler: Handler, vcpu: int | None, status: int, reason: str) -> Impossible:
    """A handler's status cannot be; the register that holds this bit of it is to blame."""
    event = handler.event
    id = _BITMAP[status].id if standard(event) and status in _BITMAP else ids.STATE.id | event.index
    return Impossible(id, vcpu, f"event {event.number:#x} {reason}")


def _judge_handler(sdei: Sdei, draft: Draft, vcpu: int | None, handler: Handler, bound: set[int]) -> None:
    event, state = handler.event, handler.state
    if handler.relative and not sdei.policy.relative_mode:
        raise _refuse(handler, vcpu, values.STATE_RELATIVE, f"is relative, which policy {sdei.policy.name!r} has not")
    if state & _ENABLED and not state & _REGISTERED:
        raise _refuse(handler, vcpu, _ENABLED, "is enabled, but not registered")
    if handler.pending and not state & _REGISTERED:
        raise _refuse(handler, vcpu, _PENDING, "is pending, but not registered")
    if not state:
        if event.shared and handler.target is not None:
            raise _refuse(handler, vcpu, values.STATE_RM_PE, "is routed to a vCPU, but not registered")
        return
    status = _REGISTERED if state & _REGISTERED else _RUNNING
    if not handler.entry and not handler.relative:
        raise _refuse(handler, vcpu, status, "is registered, but has no entry point")
    if event.dynamic and event.index not in bound:
        raise _refuse(handler, vcpu, status, "is registered, but no interrupt is bound to it")
    if vcpu is not None and not draft.pes[vcpu].online:
        raise _refuse(handler, vcpu, status, "is registered, but the vCPU is off")
    if state & _RUNNING:
        if vcpu is not None:
            handler.running_on = sdei.pes[vcpu]
        assert handler.running_on is not None
        _give_frame(draft, vcpu, handler, handler.running_on)


def _give_frame(draft: Draft, vcpu: int | None, handler: Handler, where: Pe) -> None:
    """A handler that runs has the frame of its priority where it runs."""
    pe = draft.pes[where.index]
    context = pe.critical if handler.event.priority else pe.normal
    runs = f"runs on vCPU {where.index}"
    if handler.target not in (None, where):
        raise _refuse(handler, vcpu, _RUNNING, f"{runs}, but is routed to another")
    if not pe.online:
        raise _refuse(handler, vcpu, _RUNNING, f"{runs}, which is off")
    if context.handler is not None:
        other = f"so does event {context.handler.event.number:#x} of the same priority"
        raise _refuse(handler, vcpu, _RUNNING, f"{runs}, and {other}")
    if context.value is None:
        raise _refuse(handler, vcpu, _RUNNING, f"{runs}, but {context.kind.name} does not say what it has interrupted")
    context.handler = handler


def _judge_pe(vcpu: int, pe: DraftPe) -> None:
    for context in (pe.normal, pe.critical):
        if context.handler is None:
            if context.value:
                priority = "critical" if context is pe.critical else "normal"
                raise Impossible(context.kind.id, vcpu, f"no {priority} event runs on the vCPU", "set it to 0")
        elif fault := values.pstate_fault(values.pstate_of_context(context.value or 0)):
            raise Impossible(context.kind.id, vcpu, fault)
    suspended = bool(pe.power & values.POWER_SUSPENDED)
    if suspended and not pe.online:
        raise Impossible(ids.POWER.id, vcpu, "a vCPU that is off is not suspended")
    if pe.power & values.POWER_WAKEABLE and not suspended:
        raise Impossible(ids.POWER.id, vcpu, "only a vCPU that is suspended waits for an event")
    if not pe.masked and (suspended or not pe.online):
        raise Impossible(ids.PE_STATE.id, vcpu, f"a vCPU that is {'suspended' if suspended else 'off'} is masked")


def install(sdei: Sdei, draft: Draft) -> None:
    """Have the service go on from a draft that has been judged. PEs that have an event to take are in its kicks.

    Nothing here can fail, and the lists of PEs and events and their members stay the same objects.
    """
    for event in sdei.events:
        if event.shared:
            event.handler = draft.shared.get(event.index) or Handler(event, None)
    sdei.bindings.replace(draft.bound)
    for pe, new in zip(sdei.pes, draft.pes, strict=True):
        pe.online = new.online
        pe.suspended = bool(new.power & values.POWER_SUSPENDED)
        pe.wakeable = bool(new.power & values.POWER_WAKEABLE)
        pe.masked = new.masked
        pe.async_pf = new.faults
        pe.normal = _frame(new.normal)
        pe.critical = _frame(new.critical)
        pe.handlers = {index: handler for index, handler in new.handlers.items() if _used(handler)}
    sdei.delivery.recount(draft.last_offered)


def _used(handler: Handler) -> bool:
    """Whether the PE ever registered the event."""
    return bool(handler.state or handler.entry or handler.argument or handler.relative or handler.injected)


def _frame(context: Context) -> Frame | None:
    if context.handler is None:
        return None
    return Frame(context.handler, values.frame_of_context(context.value or 0))
