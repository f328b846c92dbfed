# SPDX-License-Identifier: Apache-2.0
"""The oracle for those who know registers by their names: tests, and fuzzers of whole machines.

The oracle holds the registers that each PE ought to have. A test puts the same
values into a PE, lets both sides act, and compares all of them:

    oracle.registers[pe].update(x0=0xC4000021, x1=0, ...)
    oracle.call(pe)                  # the registers are now what the guest must see
    oracle.allowed(pe)               # the events that may be entered now on this PE
    oracle.enter(pe, event)          # ... and what the guest then sees

The rules themselves are in :mod:`.model` and :mod:`.judge`.
"""

from __future__ import annotations

from typing import Any

from .exceptions import take_exception
from .judge import (
    CALLS,
    DENIED,
    INVALID,
    NOT_SUPPORTED,
    OUT_OF_RESOURCE,
    PENDING,
    SUCCESS,
    Judge,
    low32,
)
from .records import M64, Frame, Handler, Pe
from .registers import CONTEXT_NAMES, NamedRegisters

__all__ = [
    "Oracle",
    "NamedRegisters",
    "Registers",
    "Handler",
    "Frame",
    "Pe",
    "CONTEXT",
    "SYSTEM",
    "CALLS",
    "SUCCESS",
    "NOT_SUPPORTED",
    "INVALID",
    "DENIED",
    "PENDING",
    "OUT_OF_RESOURCE",
    "M64",
    "low32",
    "take_exception",
]

CONTEXT = CONTEXT_NAMES
SYSTEM = ("sctlr", "vbar", "elr", "spsr")

Registers = dict[str, int]


class Oracle(Judge):
    """The rules, with PEs by index and registers by name. Arguments as of :class:`.model.Model`."""

    def __init__(self, *arguments: Any, **more: Any) -> None:
        super().__init__(*arguments, **more)
        self.pes = dict(enumerate(self.all_pes))
        self.registers = {pe.index: NamedRegisters(pe.words) for pe in self.all_pes}
        self.shared = {number for number, event in self.events.items() if event.shared}
        self.critical = {number for number, event in self.events.items() if event.critical}
        self.handlers = {
            (number, handler.pe): handler
            for number, event in self.events.items()
            for handler in self.handlers_of(event)
        }

    def handler(self, event: int, pe: int | None) -> Handler:
        """The handler that `pe` means when it says `event`."""
        return self.handlers[event, None if event in self.shared else pe]

    @property
    def bound(self) -> dict[int, int]:
        """The interrupts of the dynamic events that are bound."""
        slots = (*self.private_slots, *self.shared_slots)
        return {event.number: event.interrupt for event in slots if event.interrupt is not None}

    def top(self, pe: int) -> Frame | None:
        frames = self.all_pes[pe].frames
        return frames[-1] if frames else None

    def deliverable(self) -> list[tuple[Handler, set[int]]]:
        """Every event that waits for nothing but a PE to look, with the PEs that may take it."""
        found = [(handler, {pe.index}) for pe in self.all_pes for handler in pe.ripe if pe.room >= handler.needs]
        for handler in self.ripe:
            takers = {pe.index for pe in self.all_pes if pe.room >= handler.needs}
            if takers:
                found.append((handler, takers))
        return found

    def allowed(self, pe: int) -> tuple[set[int], bool]:
        """The events that `pe` may enter when it looks now, and whether it must enter one."""
        state = self.all_pes[pe]
        return {handler.event for handler in self.choices(state)}, bool(self.due & state.bit and state.room)

    def wakes(self, pe: int) -> bool:
        """Whether a suspended PE has to wake up: for an event of its own that it would take, were it unmasked."""
        state = self.all_pes[pe]
        return bool(self.due & state.bit and state.asleep)

    def call(self, pe: int) -> None:
        """The PE makes the call that stands in its registers."""
        words = self.all_pes[pe].words
        result = self.judge(words[:6])(self.all_pes[pe])
        if result is not None:
            self.registers[pe].update(x0=result & M64, x1=0, x2=0, x3=0)

    def enter(self, pe: int, event: int) -> None:
        """The PE takes the event: what it was doing goes into a frame, and its handler starts."""
        handler = self.handler(event, pe)
        assert handler.pending, "entered an event that nobody raised"
        ready = handler in self.choices(self.all_pes[pe])
        assert ready, "entered a handler that must not start now"
        self.take(self.all_pes[pe], handler)
