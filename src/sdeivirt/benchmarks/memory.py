# SPDX-License-Identifier: Apache-2.0
"""Whether memory grows with the number of events: the resident set while millions of them are delivered and completed.

    core       signals and injections on two PEs, without an engine
    unicorn    the bench guest signals itself for ever
    qemu       the same there; QEMU's own process is looked at as well

The first fifth warms up: translated code, allocator, caches. From there on the
resident set must stay where it is.
"""

from __future__ import annotations

import array
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..cpu import PC
from ..errors import EnvironmentUnavailableError
from ..firmware import Firmware
from ..guests import guest_path
from ..machine import MachineConfig, open_machine
from ..machine.base import Machine
from ..sdei import Function
from .core import MemoryView, NoPower
from .report import Row

__all__ = ["ALLOWED", "MEASURED", "Sample", "growth", "measure", "render_samples", "resident", "row"]

ALLOWED = 1 << 20  # bytes that may be added after the first fifth
SAMPLES = 10
_WARM = 0.2
_LOOK = 0.005  # seconds between two looks at the counters
_PATIENCE = 120.0  # seconds without any event


@dataclass(frozen=True, slots=True)
class Sample:
    """Resident sets in bytes when so many events had been completed; `engine` is that of QEMU's process, if any."""

    events: int
    host: int
    engine: int | None = None


def resident(pid: int | None = None) -> int:
    """The resident set of a process in bytes, by default of this one. Raises EnvironmentUnavailableError."""
    try:
        pages = Path(f"/proc/{'self' if pid is None else pid}/statm").read_text().split()[1]
    except OSError as error:
        raise EnvironmentUnavailableError("memory is measured through /proc", "use a Linux host") from error
    return int(pages) * os.sysconf("SC_PAGESIZE")


def _marks(events: int) -> list[int]:
    return [events * (i + 1) // SAMPLES for i in range(SAMPLES)]


def core(events: int) -> Iterator[Sample]:
    """Half of the events are signalled by PE 0 to itself, half injected into PE 1."""
    firmware = Firmware(2, NoPower())
    firmware.freeze()
    view = MemoryView()
    x = view.x
    x[PC] = 0x4008_1000

    def call(*words: int) -> memoryview:
        return memoryview(array.array("Q", words))

    for pe in firmware.pes:
        firmware.sdei.pe_on(pe)
        for words in (
            (Function.EVENT_REGISTER, 0, 0x4008_0000, 7, 0, 0),
            (Function.EVENT_ENABLE, 0),
            (Function.PE_UNMASK,),
        ):
            x[: len(words)] = call(*words)
            firmware.hypercall(pe, view)
    signal, complete = call(Function.EVENT_SIGNAL, 0, 0), call(Function.EVENT_COMPLETE, 0)
    first, second = firmware.pes
    hypercall, inject, deliver = firmware.hypercall, firmware.sdei.inject, firmware.deliver
    done = 0
    for mark in _marks(events):
        for _ in range((mark - done + 1) // 2):
            x[:3] = signal
            hypercall(first, view)
            x[:2] = complete
            hypercall(first, view)
            inject(0, 1)
            firmware.take_kicks()
            deliver(second, view)
            x[:2] = complete
            hypercall(second, view)
            done += 2
        completed = sum(pe.handlers[0].completed for pe in firmware.pes)
        if completed != done:
            raise RuntimeError(f"{completed} events were completed instead of {done}")
        yield Sample(done, resident())


def _completed(machine: Machine) -> int:
    return sum(handler.completed for event in machine.status().events for handler in event.handlers)


def _machine(kind: str, events: int) -> Iterator[Sample]:
    # More than are wanted, so that the last sample is of a machine that still runs.
    config = MachineConfig(vcpus=1, bootargs=f"loop=signal count={2 * events + 10_000}")
    with open_machine(kind, config) as machine:
        machine.load(guest_path("bench"))
        machine.start()
        for mark in _marks(events):
            completed, progress = 0, time.monotonic()
            while (now := _completed(machine)) < mark:
                if now != completed:
                    completed, progress = now, time.monotonic()
                if machine.state == "stopped" or time.monotonic() > progress + _PATIENCE:
                    raise RuntimeError(f"the bench guest stopped after {now} events")
                time.sleep(_LOOK)
            pid = machine.details().get("pid")
            yield Sample(now, resident(), resident(pid) if isinstance(pid, int) else None)


MEASURED: dict[str, Callable[[int], Iterator[Sample]]] = {
    "core": core,
    "unicorn": lambda events: _machine("unicorn", events),
    "qemu": lambda events: _machine("qemu", events),
}


def growth(sets: Sequence[int]) -> int:
    """How much the resident set has grown at most after the first fifth of the samples."""
    warm = sets[int(len(sets) * _WARM) - 1 :] if len(sets) * _WARM >= 1 else sets
    return max(warm) - warm[0]


def row(name: str, sets: Sequence[int]) -> Row:
    """The growth in KiB, held against what is allowed."""
    return Row(
        f"{name}: growth after the first fifth",
        growth(sets) / 1024,
        "KiB",
        min(sets) / 1024,
        max(sets) / 1024,
        "the range is that of the resident set",
        ALLOWED / 1024,
    )


def measure(name: str, events: int, progress: Callable[[str], None] = lambda _: None) -> tuple[list[Sample], list[Row]]:
    """Samples and growth of one of MEASURED."""
    samples = []
    for sample in MEASURED[name](events):
        samples.append(sample)
        progress(render_samples(name, [sample], head=False))
    rows = [row(name, [sample.host for sample in samples])]
    engines = [sample.engine for sample in samples if sample.engine is not None]
    if engines:
        rows.append(row(f"{name}, QEMU's process", engines))
    return samples, rows


def render_samples(name: str, samples: Sequence[Sample], head: bool = True) -> str:
    """A table for people, resident sets in KiB."""
    lines = [f"{'machine':<8} {'events':>12} {'resident KiB':>13} {'QEMU KiB':>9}"] if head else []
    for sample in samples:
        engine = "" if sample.engine is None else f"{sample.engine // 1024:>9,}"
        lines.append(f"{name:<8} {sample.events:>12,} {sample.host // 1024:>13,} {engine}".rstrip())
    return "\n".join(lines)
