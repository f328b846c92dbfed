# SPDX-License-Identifier: Apache-2.0
"""The embedded machine, in units of a bare engine exit.

A bare exit is the least that a hypervisor in Python can do with this engine:
an HVC whose hook reads x0..x4 and writes x0..x3 through preallocated memory.
It runs on the same engine set-up, in turn with what it is held against.
"""

from __future__ import annotations

import ctypes as C
import mmap
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from ..cpu import RegisterView
from ..guests import guest_path
from ..machine import ExitReason, MachineConfig, open_machine
from ..machine.base import RAM_BASE, Machine
from ..machine.unicorn.binding import Engine, X
from ..machine.unicorn.binding import arm64_const as reg
from ..machine.unicorn.exceptions import ExceptionNumber
from ..machine.unicorn.stage2 import Translation
from ..sdei import EventDefinition
from ..sdei.model import Handler, Pe
from ..sdei.observer import Observer
from ..smccc.ids import Owner
from ..smccc.router import Caller, Result, Service
from .marks import BENCH_START, BENCH_STOP, marked
from .report import Row, median, percentile

__all__ = ["bare_exit", "guest_loop", "injection_latencies", "measure"]


def bare_exit() -> Callable[[int], float]:
    """What is returned runs n bare exits and gives the seconds of each."""
    engine = Engine()
    engine.set_sysreg("SCR_EL3", 0x501)
    memory = mmap.mmap(-1, 2 << 20)
    engine.map_host_memory(RAM_BASE, memory)
    Translation(RAM_BASE, 2 << 20).enable(engine)
    # hvc #0; subs x5, x5, #1; b.ne back; wfi (which traps)
    memory[:16] = struct.pack("<4I", 0xD400_0002, 0xF100_04A5, 0x54FF_FFC1, 0xD503_207F)
    engine.set(reg.UC_ARM64_REG_PSTATE, 0x3C5)
    cells = (C.c_uint64 * 5)()
    x = memoryview(cells).cast("B").cast("Q")
    at = [C.addressof(cells) + 8 * i for i in range(5)]
    read, _ = engine.batch(X[:5], at)
    _, write = engine.batch(X[:4], at[:4])

    def hook(_engine: int, number: int, _user: int) -> None:
        if number == hvc:
            read()
            x[0] = 0
            x[1] = x[2] = x[3] = 0
            write()
        else:
            engine.stop()

    hvc = int(ExceptionNumber.HVC)
    engine.on_interrupt(hook)

    def run(exits: int) -> float:
        engine.set(X[5], exits)
        begin = time.perf_counter()
        engine.run(RAM_BASE)
        return (time.perf_counter() - begin) / exits

    return run


def guest_loop(loop: str, count: int, vcpus: int = 1, events: int = 1) -> float:
    """Seconds of one turn of a loop of the bench guest."""
    definitions = tuple(EventDefinition(0x4000_0001 + i, shared=bool(i % 2)) for i in range(events - 1))
    config = MachineConfig(vcpus=vcpus, events=definitions, bootargs=f"loop={loop} count={count}")
    with open_machine("unicorn", config) as machine, marked(machine) as marks:
        machine.load(guest_path("bench"))
        machine.start()
        outcome = machine.wait(120)
    if outcome.reason is not ExitReason.POWER_OFF or len(marks) != 2:
        raise RuntimeError(f"the bench guest ended with {outcome}")
    return (marks[1] - marks[0]) / count


class _Arrival(Observer):
    """Notes when a handler is entered, and wakes the injecting thread when it has ended."""

    def __init__(self) -> None:
        self.delivered_at = 0.0
        self.done = threading.Semaphore(0)

    def delivered(self, pe: Pe, handler: Handler) -> None:
        self.delivered_at = time.perf_counter()

    def completed(self, pe: Pe, handler: Handler, failed: bool) -> None:
        self.done.release()


@contextmanager
def _spinning(arrival: _Arrival) -> Iterator[Machine]:
    """A guest that spins with everything masked, its handler registered."""
    ready = threading.Event()

    def mark(_caller: Caller, _view: RegisterView) -> Result:
        ready.set()
        return 0

    with open_machine("unicorn", MachineConfig(vcpus=1, bootargs="loop=spin")) as machine:
        machine.firmware.sdei.observe(arrival)
        machine.firmware.router.register(
            Service("bench", Owner.VENDOR_HYP, (range(0xB000, 0xB002),), {BENCH_START: mark, BENCH_STOP: mark})
        )
        machine.load(guest_path("bench"))
        machine.start()
        if not ready.wait(30):
            raise RuntimeError("the bench guest did not come up")
        yield machine


def injection_latencies(count: int) -> list[float]:
    """Seconds from inject() on another thread to the entry of the handler, `count` times."""
    arrival = _Arrival()
    latencies = []
    with _spinning(arrival) as machine:
        for _ in range(count):
            begin = time.perf_counter()
            machine.inject(0, 0)
            arrival.done.acquire()
            latencies.append(arrival.delivered_at - begin)
    return latencies


def measure(rounds: int, quick: bool) -> list[Row]:
    count = 2_000 if quick else 20_000
    bare = bare_exit()
    bare(1000)
    rows = []
    exits: list[float] = []
    cases = (
        ("SDEI_VERSION", "version", 2.5),
        ("SDEI_EVENT_STATUS", "status", None),
        ("EVENT_SIGNAL -> handler -> COMPLETE", "signal", 10.0),
    )
    for name, loop, target in cases:
        ratios, times = [], []
        for _ in range(rounds):
            before = bare(count)
            took = guest_loop(loop, count)
            after = bare(count)
            exits += [before, after]
            times.append(took * 1e6)
            ratios.append(took / ((before + after) / 2))
        rows.append(Row(name, median(ratios), "bare exits", min(ratios), max(ratios), "a bare exit, in turn", target))
        rows.append(Row(f"  {name}, raw", median(times), "us", min(times), max(times)))
    micro = [e * 1e6 for e in exits]
    rows.insert(
        0,
        Row(
            "baseline: a bare exit (HVC, 5 reads, 4 writes)",
            median(micro),
            "us",
            min(micro),
            max(micro),
            "the baseline",
        ),
    )
    for name, vcpus, events in (("512 PEs / 1 PE", 512, 1), ("1,000 events / 1 event", 1, 1000)):
        ratios = [guest_loop("signal", count, vcpus, events) / guest_loop("signal", count) for _ in range(rounds)]
        rows.append(Row(f"SIGNAL to COMPLETE, {name}", median(ratios), "x", min(ratios), max(ratios), "in turn", 1.2))
    latencies = [t * 1e6 for t in injection_latencies(500 if quick else 5_000)]
    p99 = percentile(latencies, 99)
    rows.append(
        Row(
            "inject() by a thread -> handler entered",
            median(latencies),
            "us",
            min(latencies),
            p99,
            "the guest spins with everything masked; high is the 99th percentile",
            50.0,
        )
    )
    return rows
