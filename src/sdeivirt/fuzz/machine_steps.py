# SPDX-License-Identifier: Apache-2.0
"""What guests and host do next on a machine, drawn at random."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from random import Random

from .machine_calls import INTERRUPTS, RELATIVE, CallDrawer
from .plan import Step
from .walk import Walk

__all__ = ["Chooser"]

STRETCHES = ("take", "take", "tell", "arrive", "resume")
ABOUT_ONE = (
    "event_unregister",
    "event_disable",
    "event_enable",
    "event_register",
    "event_routing_set",
    "interrupt_release",
    "event_context",
)


class Chooser(CallDrawer):
    """Draws steps for a walk. What it draws depends on the random numbers and on the state of the walk."""

    def __init__(self, walk: Walk, random: Random) -> None:
        super().__init__(walk, random)
        # Time is ours only where there is a seed, and only then can a PE be caught in the midst of something.
        self._stepped = walk.shadow.puppet.gate is not None
        rules: dict[Callable[[], Iterator[Step]], int] = {
            self._any_call: 6,
            self._finish: 5,
            self._context: 2,
            self._common: 5,
            self._another_handler: 3,
            self._about_what_runs: 2,
            self._raise: 6,
            self._take_back: 1,
            self._interrupt: 2,
            self._at_once: 8,
            self._pass_on: 1 if self._shared else 0,
            self._nap: 2,
            self._wake: 2,
            self._start_over: 2,
            self._interrupt_call: 4 if self._stepped else 0,
        }
        self._rules = list(rules)
        self._weights = list(rules.values())

    # -- other steps than calls

    def _inject(self, pe: int, *events: int) -> Step:
        numbers = events or (*self._walk.numbers * 2, *self._dynamic, 99)
        return ["inject", self._one(*numbers), pe]

    def _sleep(self, pe: int, *how: str) -> Step:
        return ["sleep", pe, self._random.choice(how or ("wfi", "standby", "powerdown", "off")), *self._way()]

    def _catch(self, pe: int, stretch: str = "", goes_on: int | None = None) -> Iterator[Step]:
        if self._stepped:
            on = self._random.randrange(2) if goes_on is None else goes_on
            yield ["catch", pe, stretch or self._random.choice(STRETCHES), on]

    def _busy(self) -> Sequence[int]:
        """The PEs that run a handler, or all if none does."""
        shadow = self._walk.shadow
        shadow.drain()
        return [pe for pe in self._walk.pes if shadow.ready(pe) and shadow.context(pe)] or self._walk.pes

    def _some(self, pes: Sequence[int]) -> Sequence[int]:
        """One or several of them, in any order."""
        return self._random.sample(pes, self._random.randint(1, len(pes)))

    # -- what a guest does when it starts, so that walks need not find it by chance

    def start(self) -> Iterator[Step]:
        """All PEs come up and register everything."""
        for pe in self._walk.pes[1:]:
            yield from (["power on", pe, self._random.getrandbits(64)], ["settle"])
        if self._walk.world.machine == "qemu" and self._random.randrange(3):
            yield ["edges", 0]
        yield from self._prepare(self._walk.pes)

    def _prepare(self, pes: Sequence[int]) -> Iterator[Step]:
        how = self._random.choice(("plain", "plain", "bound", "bare"))
        if how == "bare":
            return
        known = list(self._walk.numbers)
        if how == "bound":
            for intid in (21, 41):
                yield self._call(pes[0], "interrupt_bind", intid)
                yield ["settle"]
            known += [event for event in self._dynamic if event in self._oracle.bound]
        for number in known:
            takers = pes[:1] if number in self._oracle.shared else pes
            flags = RELATIVE if number % 2 and self._walk.world.policy == "kvm" else 0
            for pe in takers:
                entry = self._walk.entry(pe, number, 1, bool(flags))
                yield self._call(pe, "event_register", number, entry, number, flags)
            yield ["settle"]
            yield from (self._call(pe, "event_enable", number) for pe in takers)
            yield ["settle"]
        yield from (self._call(pe, "pe_unmask") for pe in pes)
        yield ["settle"]

    # -- rules, one of which makes a turn

    def turn(self) -> Iterator[Step]:
        """The next few steps. Each has to be taken before the one after it is drawn."""
        yield from self._random.choices(self._rules, self._weights)[0]()

    def _any_call(self) -> Iterator[Step]:
        for pe in self._some(self._walk.pes):
            foreign = not self._random.randrange(12)
            yield self._foreign(pe) if foreign else self._drawn(pe, self._random.choice(self._names))
        yield ["settle"]

    def _finish(self) -> Iterator[Step]:
        yield from (self._end(pe) for pe in self._some(self._busy()))
        yield ["settle"]

    def _context(self) -> Iterator[Step]:
        for pe in self._some(self._busy()):
            yield self._call(pe, "event_context", self._random.randrange(19))
        yield ["settle"]

    def _common(self) -> Iterator[Step]:
        yield from (self._usual(pe) for pe in self._some(self._walk.pes))
        yield ["settle"]

    def _another_handler(self) -> Iterator[Step]:
        """Another handler for an event, and the event."""
        pe, event, flags = self._pe(), self._one(*self._walk.numbers), self._random.randrange(4)
        entry = self._walk.entry(pe, event, self._one(1, 2, 3), bool(flags & RELATIVE))
        yield self._call(pe, "event_unregister", event)
        yield ["settle"]
        yield self._call(pe, "event_register", event, entry, self._random.getrandbits(64), flags, self._pe())
        yield ["settle"]
        yield self._call(pe, "event_enable", event)
        yield ["settle"]
        yield self._inject(pe, event)
        yield ["settle"]

    def _about_what_runs(self) -> Iterator[Step]:
        """Calls about an event whose handler runs, by its own PE or, if it is shared, any other."""
        pe = self._random.choice(self._busy())
        frame = self._oracle.top(pe)
        if frame is None:
            return
        event = frame.handler.event
        for name in self._random.sample(ABOUT_ONE, self._random.randint(1, 4)):
            caller = self._pe() if event in self._oracle.shared else pe
            step = self._drawn(caller, name)
            step[3] = event if name != "event_context" else self._random.randrange(18)
            yield step
            yield ["settle"]

    def _raise(self) -> Iterator[Step]:
        for pe in self._some(self._walk.pes):
            yield from [self._inject(pe)] * self._one(1, 1, 2)
        yield ["settle"]

    def _take_back(self) -> Iterator[Step]:
        yield ["cancel", *self._inject(self._pe())[1:]]
        yield ["settle"]

    def _interrupt(self) -> Iterator[Step]:
        yield ["interrupt", self._one(*self._bound * 2, *INTERRUPTS), self._pe()]
        yield ["settle"]

    def _at_once(self) -> Iterator[Step]:
        """Several things, and nobody waits for the one before."""
        for _ in range(self._random.randrange(2, 9)):
            pe = self._pe()
            match self._random.randrange(14):
                case 0 | 1 | 2:
                    yield self._usual(pe)
                case 3 | 4 | 5:
                    yield self._drawn(pe, self._random.choice(self._names))
                case 6 | 7 | 8:
                    yield self._inject(pe)
                case 9:
                    yield ["cancel", *self._inject(pe)[1:]]
                case 10:
                    yield ["interrupt", self._one(*self._bound, *INTERRUPTS), pe]
                case 11:
                    yield self._sleep(pe)
                case 12:
                    yield ["power on", pe, self._random.getrandbits(64)]
                case 13 if self._stepped:
                    yield ["go", self._random.randrange(1, 7)]
            if not self._random.randrange(8):
                yield from self._catch(pe)
        yield ["settle"]

    def _interrupt_call(self) -> Iterator[Step]:
        """An event comes while the guest makes a call, enters a handler, or comes back from one."""
        pe, where = self._pe(), self._pe()
        yield self._end(pe) if self._random.randrange(2) else self._usual(pe)
        yield from self._catch(pe)
        yield self._inject(where)
        yield from self._catch(where, "arrive", 0)
        yield self._inject(where, *self._private)
        yield ["settle"]

    def _pass_on(self) -> Iterator[Step]:
        """A PE that an event was offered to does something else first: another has to take it."""
        pe, event, how = self._pe(), self._one(*self._shared), self._random.randrange(3)
        for _ in self._walk.pes:  # they are asked in turn
            yield ["tidy"]
            if how == 0:
                yield self._inject(pe, event)
                yield from (self._inject(other, *self._private) for other in self._walk.pes if other != pe)
            else:
                yield self._call(pe, "pe_mask") if how == 1 else self._sleep(pe, "off")
                yield from self._catch(pe, "take", 1)
                yield self._inject(pe, event)
            yield ["settle"]

    def _nap(self) -> Iterator[Step]:
        """A PE waits, and perhaps an event comes for it."""
        pe = self._pe()
        yield self._sleep(pe)
        if self._stepped:
            yield ["go", 9]
        yield self._inject(pe)
        yield ["settle"]

    def _wake(self) -> Iterator[Step]:
        """The host starts a PE that is suspended; one that is off, another PE."""
        shadow = self._walk.shadow
        down = [pe for pe in self._walk.pes if not shadow.up(pe)]
        pe = self._random.choice(down or self._walk.pes)
        yield ["wake", pe]
        yield ["settle"]
        if self._random.randrange(2):
            yield self._call(pe, "pe_unmask")
            yield ["settle"]

    def _start_over(self) -> Iterator[Step]:
        """A PE registers everything again; now and then it resets the system before that."""
        pe = self._pe()
        if self._random.randrange(16):
            yield from self._prepare([pe])
        else:
            yield ["reset", pe]
            yield ["settle"]
            yield from self.start()
