# SPDX-License-Identifier: Apache-2.0
"""All state of the firmware against all state of the oracle: PEs, frames, events, handlers with their counts, power.

This is done every few hundred calls, and after each step of a replay. The
words for what is wrong are only looked for when something is.
"""

from __future__ import annotations

from operator import attrgetter
from typing import TYPE_CHECKING

from ..sdei.model import Event as RealEvent
from ..smccc.psci import Power
from .disagreement import Disagreement
from .records import Event

if TYPE_CHECKING:
    from .seats import Seat
    from .sides import Sides

__all__ = ["compare"]

COUNTS = ("injected", "coalesced", "dropped", "delivered", "completed", "failed")
_real_handler = attrgetter("state", "pending", *COUNTS)
_handler = attrgetter("status", "pending", *COUNTS)
_real_pe = attrgetter("online", "masked", "suspended", "wakeable")
_pe = attrgetter("online", "masked", "asleep", "wakeable")
POWER = {Power.ON: "on", Power.OFF: "off", Power.ON_PENDING: "on-pending"}


def compare(sides: Sides) -> None:
    """Raises Disagreement for the first difference, and for what must not be in any case."""
    firmware = sides.firmware
    for seat in sides.seats:
        _compare_pe(seat)
        if len(seat.real.handlers) > len(firmware.sdei.events):
            raise Disagreement("handlers of a PE", f"PE {seat.model.index} has more handlers than there are events")
    known = firmware.sdei.bindings.known
    for event in firmware.sdei.events:
        rule = sides.rules.events[event.number]
        if (known.get(event.number) is event, event.interrupt) != (rule.known, rule.interrupt):
            found = f"{'known' if event.number in known else 'unknown'}, interrupt {event.interrupt}"
            wanted = f"{'known' if rule.known else 'unknown'}, interrupt {rule.interrupt}"
            raise Disagreement("state of a binding", f"event {event.number:#x} is {found}; not {wanted}")
        _compare_handlers(sides, event, rule)
    power = [POWER[state] for state in firmware.psci.power]
    if power != list(sides.psci.power.values()):
        raise Disagreement("PSCI's state", f"PEs are {power}, not {list(sides.psci.power.values())}")


def _compare_pe(seat: Seat) -> None:
    real, me = seat.real, seat.model
    if _real_pe(real) != _pe(me):
        names = "on, masked, suspended, wakeable"
        raise Disagreement("state of a PE", f"PE {me.index} ({names}) is {_real_pe(real)}, not {_pe(me)}")
    frames = [frame for frame in (real.normal, real.critical) if frame is not None]
    if not frames and not me.frames:
        return
    found = [(frame.handler.event.number, frame.saved) for frame in frames]
    wanted = [(frame.handler.event, frame.words.tobytes()) for frame in me.frames]
    if found != wanted:
        text = [hex(event) for event, _ in found], [hex(event) for event, _ in wanted]
        what = "saves other registers" if text[0] == text[1] else f"runs {text[0]}, not {text[1]}"
        raise Disagreement("frames of a PE", f"PE {me.index} {what}")


def _compare_handlers(sides: Sides, event: RealEvent, rule: Event) -> None:
    """The handlers of one event, and how many there are."""
    registrations = 0
    for handler in sides.rules.handlers_of(rule):
        real = event.handler
        if handler.pe is not None:
            real = sides.firmware.pes[handler.pe].handlers.get(event.index, real)
        found, wanted = _real_handler(real), _handler(handler)
        on = None if real.running_on is None else real.running_on.index
        target = None if real.target is None else real.target.index
        if found != wanted or on != handler.running_on or (found[0] and target != handler.routed_to):
            whose = "" if handler.pe is None else f" of PE {handler.pe}"
            names = ("status", "pending", *COUNTS, "running on", "target")
            rows = zip(names, (*found, on, target), (*wanted, handler.running_on, handler.routed_to), strict=True)
            wrong = ", ".join(f"{name} is {a}, not {b}" for name, a, b in rows if a != b)
            raise Disagreement("state of a handler", f"event {event.number:#x}{whose}: {wrong}")
        if real.injected - real.delivered - real.coalesced - real.dropped != real.pending:
            raise Disagreement("accounts of a handler", f"event {event.number:#x}: raised, and not accounted for")
        registrations += found[0] != 0
    if registrations != event.registrations:
        message = f"event {event.number:#x} has {registrations} handlers, but counts {event.registrations}"
        raise Disagreement("count of registrations", message)
