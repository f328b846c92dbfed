# SPDX-License-Identifier: Apache-2.0
"""PSCI written down a second time (DEN0022), as far as the fuzzer's guest uses it."""

from __future__ import annotations

from ..machine.base import RAM_BASE
from .oracle import NOT_SUPPORTED, low32
from .puppet import MEMORY

__all__ = ["AFFINITY_INFO", "CPU_OFF", "CPU_ON", "CPU_SUSPEND", "CPU_SUSPENDS", "POWERDOWN", "SYSTEM_RESET"]

SMC64 = 1 << 30
CPU_SUSPEND, CPU_OFF, CPU_ON, AFFINITY_INFO = 0xC400_0001, 0x8400_0002, 0xC400_0003, 0xC400_0004
VERSION, MIGRATE_INFO_TYPE, FEATURES = 0x8400_0000, 0x8400_0006, 0x8400_000A
SYSTEM_OFF, SYSTEM_RESET = 0x8400_0008, 0x8400_0009
CPU_SUSPENDS = (CPU_SUSPEND, CPU_SUSPEND - SMC64)
POWERDOWN = 1 << 16
RESERVED = 0xFCFE_0000  # of a power state

BOTH_FORMS = (CPU_SUSPEND, CPU_ON, AFFINITY_INFO)
THERE = {*BOTH_FORMS, *(f - SMC64 for f in BOTH_FORMS)}
THERE |= {VERSION, CPU_OFF, MIGRATE_INFO_TYPE, SYSTEM_OFF, SYSTEM_RESET, FEATURES}
SMCCC_VERSION = 0x8000_0000

INVALID, ALREADY_ON, ON_PENDING, INVALID_ADDRESS = -2, -4, -5, -9
RAM = range(RAM_BASE, RAM_BASE + MEMORY)


def is_psci(function: int) -> bool:
    """Whether a function id is in PSCI's range."""
    return function & 0xBFFF_FFE0 == 0x8400_0000


class PsciOracle:
    """The power of PEs whose affinities are their indices. `powerdown`: whether CPU_SUSPEND can lose registers."""

    def __init__(self, pes: range, powerdown: bool) -> None:
        self.pes = pes
        self._powerdown = powerdown
        self.started: int | None = None  # by the last call, which gave this to whom it concerns
        self.context_id = 0
        self.reset()

    def reset(self) -> None:
        """PE 0 is about to start, all others are off."""
        self.power = {pe: "off" if pe else "on-pending" for pe in self.pes}

    def call(self, pe: int, x: list[int]) -> int | None:
        """The answer to the call in x0..x3; None where the PE may not go on: the machine tells what it does instead."""
        function = low32(x[0])
        self.started = None
        if function not in THERE:
            return NOT_SUPPORTED
        a, b, self.context_id = (value if function & SMC64 else low32(value) for value in x[1:4])
        match function | SMC64:
            case 0xC400_0001:
                return self._suspend(low32(a), b)
            case 0xC400_0003:
                return self._on(a, b)
            case 0xC400_0004:
                return self._affinity_info(a, low32(b))
        match function:
            case 0x8400_0000:
                return 1 << 16 | 1
            case 0x8400_0006:
                return 2
            case 0x8400_000A:
                return 0 if low32(a) in THERE or low32(a) == SMCCC_VERSION else NOT_SUPPORTED
        return None

    def _on(self, target: int, entry: int) -> int:
        if target not in self.pes:
            return INVALID
        if entry % 4 or entry not in RAM:
            return INVALID_ADDRESS
        state = self.power[target]
        if state == "off":
            self.power[target] = "on-pending"
            self.started = target
        return {"off": 0, "on-pending": ON_PENDING, "on": ALREADY_ON}[state]

    def _affinity_info(self, target: int, level: int) -> int:
        if level > 3 or target & ~0xFF_00FF_FFFF:
            return INVALID
        shift = (0, 8, 16, 32)[level]
        states = [self.power[pe] for pe in self.pes if pe >> shift == target >> shift]
        if not states:
            return INVALID
        return 0 if "on" in states else 2 if "on-pending" in states else 1

    def _suspend(self, state: int, entry: int) -> int | None:
        if state & RESERVED:
            return INVALID
        if not state & POWERDOWN:
            return 0
        if entry % 4 or entry not in RAM:
            return INVALID_ADDRESS
        return None if self._powerdown else 0
