# SPDX-License-Identifier: Apache-2.0
"""Calls that a guest on a machine makes, drawn at random: plausible, at the boundaries, or anything at all."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random

from .judge import SVE_HINT
from .oracle import M64
from .plan import Step
from .psci_oracle import AFFINITY_INFO, CPU_ON, CPU_SUSPEND, FEATURES, MIGRATE_INFO_TYPE, POWERDOWN, VERSION
from .walk import FIRM, FUNCTION, LOOSE, Walk

__all__ = ["INTERRUPTS", "RELATIVE", "CallDrawer"]

ELSEWHERE = (99, 0x8000_0000, 0xFFFF_FFFF)  # events that there are not
INTERRUPTS = (21, 22, 23, 41, 42, 50)  # that no device of any machine raises
BOUNDS = (0, 15, 16, 31, 32, 1019, 1020)
# What of PSTATE a guest can choose at EL1: NZCV, DIT, UAO, PAN, SSBS, DAIF, SPSel.
PSTATES = (FIRM, LOOSE, 0xF040_0005, 0x90C0_10C5, 0x0180_03C4, 0xA1C0_1244)
FIRST, LAST = min(FUNCTION.values()), max(FUNCTION.values())
RELATIVE = 2

# Of four times that other calls are drawn: they undo what the others have built up.
RARELY = {"private_reset": 1, "shared_reset": 1, "event_unregister": 2, "event_disable": 2, "pe_mask": 2}

Draw = Callable[[int], Sequence[int]]


class CallDrawer:
    """Draws calls for a walk, as steps."""

    def __init__(self, walk: Walk, random: Random) -> None:
        self._walk = walk
        self._random = random
        self._oracle = walk.oracle
        self._dynamic = list(walk.places)[len(walk.numbers) :]
        self._signalable = [n for n in walk.numbers if self._oracle.events[n].signalable]
        self._private = [n for n in walk.numbers if n not in self._oracle.shared]
        self._shared = [n for n in walk.numbers if n in self._oracle.shared]
        self._bound = [event.interrupt for event in walk.world.events if event.interrupt is not None]
        self._draws: dict[str, Draw] = {
            "version": lambda pe: (),
            "features": lambda pe: (self._low(0, 1, 2),),
            "event_register": self._register,
            "event_enable": lambda pe: (self._event(),),
            "event_disable": lambda pe: (self._event(),),
            "event_context": lambda pe: (self._low(0, 1, 2, 17, 18, 0xFFFF_FFFF),),
            "event_complete": lambda pe: (self._low(0, 0, 1, 2),),
            "event_complete_and_resume": lambda pe: (walk.resume(random.randrange(4)),),
            "event_unregister": lambda pe: (self._event(),),
            "event_status": lambda pe: (self._event(),),
            "event_get_info": lambda pe: (self._event(), self._low(*range(6))),
            "event_routing_set": lambda pe: (
                self._low(*self._shared, self._event()),
                self._one(0, 1, 1, 2, 1 << 32),
                self._affinity(),
            ),
            "pe_mask": lambda pe: (),
            "pe_unmask": lambda pe: (),
            "interrupt_bind": lambda pe: (self._low(*self._bound, *INTERRUPTS, *BOUNDS),),
            "interrupt_release": lambda pe: (self._low(*self._dynamic, self._event()),),
            "event_signal": lambda pe: (self._low(*self._signalable * 3, 5, 0x20), self._affinity()),
            "private_reset": lambda pe: (),
            "shared_reset": lambda pe: (),
        }
        self._names = [name for name in sorted(self._draws) for _ in range(RARELY.get(name, 4))]

    # -- values

    def _one(self, *values: int) -> int:
        return self._random.choice(values)

    def _low(self, *values: int) -> int:
        """A 32-bit parameter: now and then the high word holds something, and must not count."""
        return self._one(*values) | self._one(0, 0, 0, 0, 1 << 32, 0xFFFF_FFFF << 32)

    def _event(self) -> int:
        return self._low(*self._walk.numbers * 2, *self._dynamic, self._one(*ELSEWHERE))

    def _pe(self) -> int:
        return self._random.choice(self._walk.pes)

    def _affinity(self) -> int:
        pe = self._pe()
        return self._one(pe, pe, pe, pe | 1 << 31, pe | 1 << 24, 9, 1 << 32, self._random.getrandbits(64))

    def _register(self, pe: int) -> Sequence[int]:
        event, flags = self._event(), self._one(0, 0, 1, 1, 2, 3, 4, 1 << 32)
        entry = self._walk.entry(pe, event, self._random.randrange(4), bool(flags & RELATIVE))
        return event, entry, self._random.getrandbits(64), flags, self._affinity()

    def _way(self) -> tuple[int, int, int]:
        """Noise for the other registers, PSTATE, and whether by SMC."""
        return self._random.randrange(256), self._one(*PSTATES), self._random.randrange(2)

    # -- calls

    def _call(self, pe: int, name: str, *arguments: int) -> Step:
        x = [*arguments, 0, 0, 0, 0, 0][:5]
        return ["call", pe, FUNCTION[name], *x, *self._way()]

    def _drawn(self, pe: int, name: str) -> Step:
        step = self._call(pe, name, *self._draws[name](pe))
        step[2] |= self._one(*[0] * 12, SVE_HINT, 1 << 32, 0xFFFF_FFFF << 32)
        return step

    def _foreign(self, pe: int) -> Step:
        """A call of PSCI's that leaves the PE alone, or one that there is not."""
        here = self._walk.shadow.code.at["_start"]
        bits = self._random.getrandbits
        function, *arguments = self._random.choice(
            [
                (VERSION,),
                (MIGRATE_INFO_TYPE,),
                (FEATURES, self._one(CPU_ON, VERSION, 0x8000_0000, FIRST, bits(32))),
                (AFFINITY_INFO, self._one(self._pe(), 9, bits(64)), self._one(0, 0, 1, 3, 4)),
                (CPU_ON, self._one(self._pe(), 9, 1 << 31), self._one(here + 2, 0, M64), 5),
                (CPU_SUSPEND, 1 << 31 | POWERDOWN, here),
                (CPU_SUSPEND, POWERDOWN, here + 2),
                (0xC400_0005 + self._random.randrange(0x1B),),
                (self._random.randrange(LAST + 1, 0xC400_0040),),
                (FIRST - (1 << 30) + self._random.randrange(0x20), 0),  # SDEI has no SMC32 calls
                (0xC500_0000 | bits(16), bits(64)),
            ]
        )
        return ["call", pe, function, *[*arguments, 0, 0, 0, 0, 0][:5], *self._way()]

    def _usual(self, pe: int) -> Step:
        """What guests do all the time."""
        match self._random.randrange(5):
            case 0:
                return self._call(pe, self._random.choice(("pe_mask", "pe_unmask", "pe_unmask")))
            case 1:
                name = self._random.choice(("event_enable", "event_enable", "event_disable"))
                return self._call(pe, name, self._one(*self._walk.numbers))
            case 2:
                return self._call(pe, "event_signal", self._one(*self._signalable), self._pe())
        return self._end(pe)

    def _end(self, pe: int) -> Step:
        """The end of a handler."""
        return self._drawn(pe, self._random.choice(("event_complete", "event_complete", "event_complete_and_resume")))
