# SPDX-License-Identifier: Apache-2.0
"""The calls that a campaign on the core draws from: mostly plausible, some at boundaries, some anything at all.

Drawing a call from a pool costs next to nothing, and its arguments are judged once. There are two pools: a
PE in a handler mostly does what handlers do, and sooner or later completes.
"""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

from .judge import CALLS, SVE_HINT, low32
from .plan import Step, World
from .psci_oracle import AFFINITY_INFO, CPU_OFF, CPU_ON, CPU_SUSPEND, POWERDOWN, RAM
from .records import M64

__all__ = ["AFFINITIES", "ENTRIES", "FUNCTION", "Pool"]

FUNCTION = {name: number for number, name in CALLS.items()}
BOUNDARIES = (0, 1, 2, 3, 4, 15, 16, 17, 18, 31, 32, 1019, 1020, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**63, M64)
NUMBERS_ELSEWHERE = (99, 0x4000_1004, 0x4000_2004)  # events that there are not
INTERRUPTS = (20, 21, 22, 23, 40, 41, 42, 43)  # two are bound from the start, and slots are for fewer than the rest
AFFINITIES = (0x8, 0x100, 0x01_0000_0000)  # of no PE
ENTRIES = (RAM.start + 0x10_0000, RAM.start + 0x10_0400, 0xFFFF_8000_0001_0000)

# PSCI's calls that change nothing.
QUESTIONS = (AFFINITY_INFO, AFFINITY_INFO, 0x8400_0000, 0x8400_0006, 0x8400_000A, 0x8400_000A)
SYSTEM_ENDS = (0x8400_0008, 0x8400_0009)  # off and reset
PSTATES = (0x0, 0x5, 0x3C5, 0x6000_03C5, 0xF1F0_1C05, 0x0000_0010, 0x8120_0010, 0xFFFF_FFFF)
SCTLRS = (0, 1 << 23, 1 << 44, 1 << 62, 1 << 23 | 1 << 44, M64)

# How often each call is made, in about a thousand: by a PE outside of handlers, and inside of one.
WEIGHTS = {
    "version": (4, 4),
    "event_register": (70, 30),
    "event_enable": (100, 50),
    "event_disable": (16, 40),
    "event_context": (15, 200),
    "event_complete": (20, 210),
    "event_complete_and_resume": (10, 90),
    "event_unregister": (10, 20),
    "event_status": (60, 40),
    "event_get_info": (60, 30),
    "event_routing_set": (40, 30),
    "pe_mask": (16, 8),
    "pe_unmask": (100, 20),
    "interrupt_bind": (30, 12),
    "interrupt_release": (15, 20),
    "event_signal": (350, 200),
    "features": (12, 6),
    "private_reset": (0.8, 0.8),
    "shared_reset": (0.8, 0.8),
    "psci": (30, 20),
    "other": (20, 10),
}
# The same of steps that are no calls.
OTHERS = {"inject": 44, "cancel": 6, "interrupt": 18, "look": 8, "set": 14, "power": 9.9, "reset": 0.1}

# What each argument is, from x1 on.
ARGUMENTS = {
    "version": (),
    "event_register": ("event", "entry", "word", "flags", "affinity"),
    "event_enable": ("event",),
    "event_disable": ("event",),
    "event_context": ("index",),
    "event_complete": ("status",),
    "event_complete_and_resume": ("entry",),
    "event_unregister": ("event",),
    "event_status": ("event",),
    "event_get_info": ("event", "info"),
    "event_routing_set": ("shared", "mode", "affinity"),
    "pe_mask": (),
    "pe_unmask": (),
    "interrupt_bind": ("interrupt",),
    "interrupt_release": ("dynamic",),
    "event_signal": ("signalable", "affinity"),
    "features": ("feature",),
    "private_reset": (),
    "shared_reset": (),
}
NARROW = ("event", "shared", "dynamic", "signalable", "index", "status", "info", "interrupt", "feature")
RARE = 0.02  # an argument at a boundary; and again, one that is anything at all


class Pool:
    """Draws calls for a world; x0..x5 each."""

    def __init__(self, world: World, random: Random) -> None:
        self._random = random
        numbers = [0, *(event.number for event in world.events)]
        private = [0x4000_1000 + i for i in range(world.slots[0])]
        shared = [0x4000_2000 + i for i in range(world.slots[1])]
        self.numbers = [*numbers, *private, *shared]
        self.shared = {event.number for event in world.events if event.shared} | set(shared)
        signalable = [0, *(event.number for event in world.events if event.signalable)]
        self._pes = pes = range(world.vcpus)
        self._plausible: dict[str, Sequence[int]] = {
            "event": [*signalable * 4, *numbers * 4, *(private + shared) * 2, *NUMBERS_ELSEWHERE],
            "shared": [*sorted(self.shared) * 6, *numbers[:3]],
            "dynamic": [*(private + shared) * 4, *numbers],
            "signalable": [*signalable * 12, *numbers],
            "entry": [*ENTRIES * 8, 0, 1, 2, RAM.start + 6],
            "flags": [*[0, 1] * 8, 2, 3, 4],
            "affinity": [*pes, *pes, *(0x8000_0000 | pe for pe in pes), AFFINITIES[0]],
            "index": [*range(18), 18],
            "status": [0, 0, 0, 1],
            "info": [*[0, 1, 2, 3, 4] * 4, 5],
            "mode": [*[0, 1, 1] * 4, 2],
            "interrupt": INTERRUPTS,
            "feature": [0, 1, 2],
        }

    def draw(self, size: int, inside: bool) -> list[list[int]]:
        """So many calls of a PE inside, or outside, of a handler."""
        names = list(WEIGHTS)
        weights = [WEIGHTS[name][inside] for name in names]
        calls = [self._call(name) for name in self._random.choices(names, weights, k=size)]
        if not inside:
            calls[0] = [
                self._random.choice(SYSTEM_ENDS),
                *calls[0][1:],
            ]  # one, for it undoes what the others have built
        return calls

    def draw_others(self, size: int) -> list[Step]:
        """So many steps of the host, of devices, of the machine, and of guest code between calls."""
        verbs = self._random.choices(list(OTHERS), list(OTHERS.values()), k=size)
        return [[verb, *self._arguments_of(verb)] for verb in verbs]

    def _arguments_of(self, verb: str) -> Sequence[int | str]:
        choose = self._random.choice
        pe = choose(self._pes)
        match verb:
            case "inject" | "cancel":
                return choose([*self.numbers * 6, *NUMBERS_ELSEWHERE]), pe
            case "interrupt":
                return choose(INTERRUPTS), pe
            case "set":
                return pe, *self._registers()
            case "power":
                return pe, choose(["on"] * 20 + ["reset"])
        return [pe] if verb == "look" else []

    def _registers(self) -> list[int]:
        """What a guest has computed: x6..x17, PC, PSTATE, SCTLR_EL1, VBAR_EL1."""
        choose, bits = self._random.choice, self._random.getrandbits
        words = [bits(64) for _ in range(12)]
        return [*words, bits(46) << 2, choose(PSTATES), choose(SCTLRS), choose((0x4008_0000, 0xFFFF_8000_0001_0800))]

    def _call(self, name: str) -> list[int]:
        chance = self._random.random
        if name == "psci":
            words = self._psci()
        elif name == "other":
            words = self._other()
        else:
            words = [FUNCTION[name], *(self._argument(kind) for kind in ARGUMENTS[name])]
        if chance() < 0.05:
            words[0] |= self._random.getrandbits(32) << 32  # noise: an id is 32 bits
        if chance() < 0.02:
            words[0] |= SVE_HINT
        return [*words, *(self._argument("word") for _ in range(6 - len(words)))]

    def _argument(self, kind: str) -> int:
        chance, choose, bits = self._random.random(), self._random.choice, self._random.getrandbits
        if kind == "word":
            return bits(64) if chance < 0.7 else choose(BOUNDARIES)
        if chance < RARE:
            return bits(64)
        if chance < 2 * RARE:
            return choose(BOUNDARIES)
        value = choose(self._plausible[kind])
        if kind in NARROW and chance < 0.1:
            value |= bits(32) << 32
        return value

    def _psci(self) -> list[int]:
        """A power call; those that turn PEs off are few, so that the others have company."""
        choose, chance = self._random.choice, self._random.random()
        affinity = (
            choose(self._plausible["affinity"]) if chance < 0.1 else low32(choose(self._plausible["affinity"])) & 7
        )
        entry = choose([*[RAM.start + 0x8_0000] * 6, RAM.start + 2, RAM.stop, 0])
        if chance < 0.55:
            words = [CPU_ON, affinity, entry, self._random.getrandbits(64)]
        elif chance < 0.75:
            state = choose([0, 0, POWERDOWN, POWERDOWN, POWERDOWN | 1 << 24, 1 << 17, 1 << 30])
            words = [CPU_SUSPEND, state, entry, self._random.getrandbits(64)]
        elif chance < 0.985:
            function = choose([*QUESTIONS, 0x8400_0000 + choose(range(0xB, 0x20))])
            words = [function, choose([affinity, affinity, CPU_OFF, 0x8000_0000]), choose([0, 0, 1, 4])]
        else:
            words = [CPU_OFF]
        if words[0] in (CPU_ON, CPU_SUSPEND, AFFINITY_INFO) and self._random.random() < 0.3:
            words[0] -= 1 << 30  # the 32-bit form, which has 32-bit arguments
        return words

    def _other(self) -> list[int]:
        """Other services, ids that nobody has, and anything at all."""
        choose, bits = self._random.choice, self._random.getrandbits
        function = choose(
            [
                choose([0x8000_0000, 0x8000_0001, 0x8600_0000, 0x8600_FF01, 0x8400_0050, 0x8400_0051, 0x8400_0052]),
                choose([0x8400_0053, 0xC400_0053]),
                0xC400_0020 + self._random.randrange(0x13, 0x20),
                0x8400_0020 + self._random.randrange(0x20),
                choose(list(CALLS)) | 1 << self._random.randrange(17, 24),
                bits(32),
            ]
        )
        if function & 0xBFFE_FFE0 == 0x8400_0000:
            function = 0xC400_0033
        return [
            function,
            choose([1, 31, 32, 33, 64, 65, 96, 97, 191, 192, 193, function, 0x8600_0000, 0x8400_0053, bits(32)]),
        ]
