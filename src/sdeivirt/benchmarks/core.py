# SPDX-License-Identifier: Apache-2.0
"""The service alone: calls a second on one core, through routing, with a window of plain memory."""

from __future__ import annotations

import array
import time
from collections.abc import Callable

from ..cpu import CONTEXT_REGISTERS, PC, WINDOW_SIZE
from ..firmware import Firmware
from ..sdei import EventDefinition, Function
from .report import Row, median

__all__ = ["MemoryView", "NoPower", "measure"]


class MemoryView:
    """A register view without a PE behind it."""

    def __init__(self) -> None:
        self.x = memoryview(array.array("Q", bytes(8 * WINDOW_SIZE)))
        self.context = self.x.cast("B")[: 8 * CONTEXT_REGISTERS]

    def fetch_all(self) -> None: ...

    def fetch_rest(self) -> None: ...

    def flush_result(self) -> None: ...

    def flush_context(self) -> None: ...

    def vbar_el1(self) -> int:
        return 0

    def set_exception_return(self, elr: int, spsr: int) -> None: ...


class NoPower:
    """PSCI's decisions, ignored."""

    def cpu_on(self, index: int, entry: int, context_id: int) -> None: ...

    def cpu_off(self, index: int) -> None: ...

    def cpu_standby(self, index: int) -> None: ...

    def cpu_powerdown(self, index: int, entry: int, context_id: int) -> bool:
        return True

    def system_off(self) -> None: ...

    def system_reset(self) -> None: ...


# What a client does for an event, as Linux does: the calls that a service is busy with.
CYCLE: tuple[tuple[int, ...], ...] = (
    (Function.VERSION,),
    (Function.FEATURES, 0),
    (Function.EVENT_GET_INFO, 0, 2),
    (Function.EVENT_GET_INFO, 0, 0),
    (Function.EVENT_REGISTER, 0, 0x4008_0000, 7, 0, 0),
    (Function.EVENT_ENABLE, 0),
    (Function.PE_UNMASK,),
    (Function.EVENT_SIGNAL, 0, 0),
    (Function.EVENT_CONTEXT, 0),
    (Function.EVENT_CONTEXT, 1),
    (Function.EVENT_CONTEXT, 2),
    (Function.EVENT_CONTEXT, 3),
    (Function.EVENT_STATUS, 0),
    (Function.EVENT_COMPLETE, 0),
    (Function.EVENT_DISABLE, 0),
    (Function.EVENT_UNREGISTER, 0),
    (Function.PE_MASK,),
)


def make(pes: int = 2, events: int = 1) -> Callable[[int], float]:
    """A service; what is returned runs n cycles and gives the seconds they took."""
    definitions = [EventDefinition(0x4000_0001 + i, shared=bool(i % 2)) for i in range(events - 1)]
    firmware = Firmware(pes, NoPower(), events=definitions)
    firmware.freeze()
    for pe in firmware.pes:
        firmware.sdei.pe_on(pe)
    pe, view = firmware.pes[0], MemoryView()
    x = view.x
    x[PC] = 0x4008_1000
    hypercall = firmware.hypercall
    calls = [array.array("Q", call) for call in CYCLE]
    windows = [(memoryview(call), len(call)) for call in calls]

    def run(cycles: int) -> float:
        begin = time.perf_counter()
        for _ in range(cycles):
            for call, length in windows:
                x[:length] = call
                hypercall(pe, view)
        return time.perf_counter() - begin

    return run


def measure(rounds: int, quick: bool) -> list[Row]:
    cycles = 1000 if quick else 6000
    run = make()
    run(100)
    rates = [cycles * len(CYCLE) / run(cycles) for _ in range(rounds)]
    rows = [
        Row(
            "core alone, one core: a client's calls",
            median(rates),
            "calls/s",
            min(rates),
            max(rates),
            "one core, no engine",
            300_000,
            at_least=True,
        )
    ]
    for name, pes, events in (("512 PEs / 1 PE", 512, 1), ("1,000 events / 1 event", 1, 1000)):
        small, large = make(1, 1), make(pes, events)
        small(100), large(100)
        ratios = [large(cycles // 2) / small(cycles // 2) for _ in range(rounds)]
        rows.append(
            Row(f"core alone: cost of a call, {name}", median(ratios), "x", min(ratios), max(ratios), "in turn", 1.2)
        )
    return rows
