# SPDX-License-Identifier: Apache-2.0
"""What each call has to answer, written down a second time; see :mod:`.model` for where from.

A call is judged in two parts. :meth:`Judge.judge` takes x0..x5 and settles
what they alone decide; it gives back a function of the calling PE, which
settles what depends on the state, and changes it. A campaign draws its calls
from a pool, so the first part is done once for each of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial

from .model import Model
from .records import ENABLED, REGISTERED, RUNNING, Event, Handler, Pe
from .registers import CONTEXT, ELR, PC, PSTATE, SCTLR, SPSR

__all__ = [
    "Answer",
    "CALLS",
    "DENIED",
    "INVALID",
    "Judge",
    "NOT_SUPPORTED",
    "OUT_OF_RESOURCE",
    "PENDING",
    "SUCCESS",
    "low32",
]

SUCCESS, NOT_SUPPORTED, INVALID, DENIED, PENDING, OUT_OF_RESOURCE = 0, -1, -2, -3, -5, -10

CALLS = {
    0xC4000020: "version",
    0xC4000021: "event_register",
    0xC4000022: "event_enable",
    0xC4000023: "event_disable",
    0xC4000024: "event_context",
    0xC4000025: "event_complete",
    0xC4000026: "event_complete_and_resume",
    0xC4000027: "event_unregister",
    0xC4000028: "event_status",
    0xC4000029: "event_get_info",
    0xC400002A: "event_routing_set",
    0xC400002B: "pe_mask",
    0xC400002C: "pe_unmask",
    0xC400002D: "interrupt_bind",
    0xC400002E: "interrupt_release",
    0xC400002F: "event_signal",
    0xC4000030: "features",
    0xC4000031: "private_reset",
    0xC4000032: "shared_reset",
}
SVE_HINT = 1 << 16  # says that the caller keeps no SVE state: not a part of the id

# What a call answers to a PE: x0 as a signed number, or None where the PE's registers are whole new ones.
Answer = Callable[[Pe], int | None]
Words = Sequence[int]


def low32(value: int) -> int:
    return value % 2**32


def always(result: int) -> Answer:
    """The answer where the state does not matter."""
    return lambda _me: result


class Judge(Model):
    """The calls over the state."""

    def judge(self, x: Words) -> Answer:
        """What the call in x0..x5 has to answer."""
        name = CALLS.get(low32(x[0]) & ~SVE_HINT)
        if name is None:
            return always(NOT_SUPPORTED)
        method: Callable[[Words], Answer] = getattr(self, name)
        return method(x)

    def _named(self, number: int, then: Callable[[Event, Pe], int]) -> Answer:
        """The answer of a call that names an event, which has to be known when the call is made."""
        event = self.events.get(low32(number))
        if event is None:
            return always(INVALID)
        if event.known and not event.dynamic:
            return partial(then, event)
        return lambda me: then(event, me) if event.known else INVALID

    # -- what there is

    def version(self, x: Words) -> Answer:
        return always((1 << 48 | 1 << 32 | 0x4B564D) if self.kvm else 1 << 48)

    def features(self, x: Words) -> Answer:
        feature = low32(x[1])
        if feature == 0:
            return always(self.slots[1] << 16 | self.slots[0])
        return always(1 if feature == 1 and self.kvm else INVALID)

    def event_status(self, x: Words) -> Answer:
        return self._named(x[1], lambda event, me: event.handlers[me.index].status)

    def event_get_info(self, x: Words) -> Answer:
        info = low32(x[2])

        def answer(event: Event, me: Pe) -> int:
            if info == 0:
                return int(event.shared)
            if info == 1:
                return int(event.signalable == self.kvm)
            if info == 2:
                return int(event.critical)
            if info > 4 or not event.shared:
                return INVALID
            handler = event.handlers[0]
            if not handler.status & REGISTERED:
                return DENIED
            if info == 3:
                return int(handler.routed_to is not None)
            return INVALID if handler.routed_to is None else self.all_pes[handler.routed_to].affinity

        return self._named(x[1], answer)

    # -- the life of a handler

    def event_register(self, x: Words) -> Answer:
        _, _, entry, argument, flags, affinity = x
        one_pe, relative = bool(flags & 1), bool(flags & 2)
        target = self.pe_of(affinity) if one_pe else None
        if flags not in ((0, 1, 2, 3) if self.kvm else (0, 1)) or entry % 4 or (entry == 0 and not relative):
            return always(INVALID)
        tried = self.tried["register"]

        def answer(event: Event, me: Pe) -> int:
            if one_pe and target is None and (event.shared or not self.kvm):
                return INVALID
            handler = event.handlers[me.index]
            tried[handler.status] = 1
            if handler.status or (event.dynamic and event.interrupt is None):
                return DENIED
            handler.status = REGISTERED
            handler.entry, handler.argument, handler.relative = entry, argument, relative
            if event.shared:
                handler.routed_to = target
            return SUCCESS

        return self._named(x[1], answer)

    def event_enable(self, x: Words) -> Answer:
        tried = self.tried["enable"]

        def answer(event: Event, me: Pe) -> int:
            handler = event.handlers[me.index]
            tried[handler.status] = 1
            if not handler.status & REGISTERED:
                return DENIED
            handler.status |= ENABLED
            self._note(handler)
            return SUCCESS

        return self._named(x[1], answer)

    def event_disable(self, x: Words) -> Answer:
        tried = self.tried["disable"]

        def answer(event: Event, me: Pe) -> int:
            handler = event.handlers[me.index]
            tried[handler.status] = 1
            if not handler.status & REGISTERED:
                return DENIED
            handler.status &= ~ENABLED
            self._note(handler)
            return SUCCESS

        return self._named(x[1], answer)

    def event_unregister(self, x: Words) -> Answer:
        tried = self.tried["unregister"]

        def answer(event: Event, me: Pe) -> int:
            handler = event.handlers[me.index]
            tried[handler.status] = 1
            if not handler.status:
                return DENIED
            self._unregister(handler)
            return PENDING if handler.status else SUCCESS

        return self._named(x[1], answer)

    def event_routing_set(self, x: Words) -> Answer:
        mode, target = x[2], self.pe_of(x[3])
        if mode not in (0, 1) or (mode == 1 and target is None):
            return always(INVALID)
        tried = self.tried["routing_set"]

        def answer(event: Event, me: Pe) -> int:
            if not event.shared or (event.dynamic and event.interrupt is None):
                return INVALID
            handler = event.handlers[0]
            tried[handler.status] = 1
            if handler.status != REGISTERED:
                return DENIED
            handler.routed_to = target if mode == 1 else None
            return SUCCESS

        return self._named(x[1], answer)

    # -- inside a handler

    def event_context(self, x: Words) -> Answer:
        index = low32(x[1])
        tried = self.tried["context"]

        def answer(me: Pe) -> int:
            if not me.frames:
                self._try_idle(tried, me)
                return INVALID if index > 17 and not self.kvm else DENIED
            if index > 17:
                return INVALID
            frame = me.frames[-1]
            tried[frame.handler.status] = 1
            return frame.words[index]

        return answer

    def event_complete(self, x: Words) -> Answer:
        failed = low32(x[1]) != 0
        tried = self.tried["complete"]

        def answer(me: Pe) -> int | None:
            if not me.frames:
                self._try_idle(tried, me)
                return DENIED
            tried[me.frames[-1].handler.status] = 1
            me.words[CONTEXT] = self.leave(me, failed)
            return None

        return answer

    def event_complete_and_resume(self, x: Words) -> Answer:
        address = x[1]
        if address % 4:
            return always(DENIED)
        tried = self.tried["complete"]

        def answer(me: Pe) -> int | None:
            if not me.frames:
                return DENIED
            tried[me.frames[-1].handler.status] = 1
            words = me.words
            saved = words[CONTEXT] = self.leave(me, failed=False)
            words[ELR], words[SPSR] = saved[PC], saved[PSTATE]
            words[PC] = address
            words[PSTATE] = self.exception_pstate(saved[PSTATE], words[SCTLR])
            return None

        return answer

    def _try_idle(self, tried: bytearray, me: Pe) -> None:
        """The PE runs no handler: the call is tried on all that do not run at all."""
        if not (tried[0] and tried[REGISTERED] and tried[REGISTERED | ENABLED]):
            for event in self.events.values():
                status = event.handlers[me.index].status
                if event.known and not status & RUNNING:
                    tried[status] = 1

    # -- the PE

    def pe_mask(self, x: Words) -> Answer:
        def answer(me: Pe) -> int:
            if me.masked:
                return 0
            me.masked = True
            self._measure(me)
            return 1

        return answer

    def pe_unmask(self, x: Words) -> Answer:
        def answer(me: Pe) -> int:
            if me.masked:
                me.masked = False
                self._measure(me)
            return SUCCESS

        return answer

    # -- raising events

    def interrupt_bind(self, x: Words) -> Answer:
        interrupt = low32(x[1])
        if 16 <= interrupt < 32:
            slots = self.private_slots
        elif 32 <= interrupt < 1020:
            slots = self.shared_slots
        else:
            return always(INVALID)

        def answer(me: Pe) -> int:
            bound = self.interrupts.get(interrupt)
            if bound is not None:
                return bound.number if bound.dynamic else INVALID
            for event in slots:
                if event.interrupt is None:
                    self.bind(event, interrupt)
                    return event.number
            return OUT_OF_RESOURCE

        return answer

    def interrupt_release(self, x: Words) -> Answer:
        tried = self.tried["release"]

        def answer(event: Event, me: Pe) -> int:
            if not event.dynamic or event.interrupt is None:
                return INVALID
            tried[event.handlers[me.index].status] = 1
            return SUCCESS if self.unbind(event) else DENIED

        return self._named(x[1], answer)

    def event_signal(self, x: Words) -> Answer:
        target = self.pe_of(x[2])
        if target is None:
            return always(INVALID)
        state = self.all_pes[target]

        def answer(event: Event, me: Pe) -> int:
            if not event.signalable:
                return INVALID
            handler = event.handlers[target]
            if not handler.status & REGISTERED:
                self.tried["dispatch"][handler.status] = 1
                return INVALID
            # TF-A masks a PE that was suspended when it wakes up, not before.
            masked = state.masked and not state.wakeable
            if not self.kvm and (masked or not handler.status & ENABLED):
                return INVALID
            self._raise(handler)
            return SUCCESS

        return self._named(x[1], answer)

    # -- resets

    def private_reset(self, x: Words) -> Answer:
        def answer(me: Pe) -> int:
            return self._reset(event.handlers[me.index] for event in self.events.values() if not event.shared)

        return answer

    def shared_reset(self, x: Words) -> Answer:
        def answer(me: Pe) -> int:
            result = self._reset(event.handlers[0] for event in self.events.values() if event.shared)
            if result == SUCCESS:
                bound = [event for event in (*self.private_slots, *self.shared_slots) if event.interrupt is not None]
                freed = [self.unbind(event) for event in bound]
                if not all(freed):
                    return DENIED
            return result

        return answer

    def _reset(self, handlers: Iterable[Handler]) -> int:
        """All that can go goes; one that runs goes when it ends, and that is an error."""
        result = SUCCESS
        for handler in handlers:
            self._unregister(handler)
            if handler.status:
                result = DENIED
        return result
