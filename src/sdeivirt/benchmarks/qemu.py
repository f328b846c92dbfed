# SPDX-License-Identifier: Apache-2.0
"""The machine `qemu`: what a call costs, how long an event takes, what the guest loses.

The baselines come from the same QEMU in the same run: a trap that the monitor
answers by itself, and the same kernel and programs under QEMU alone.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from ..guests import guest_path
from ..machine import MachineConfig, open_machine
from ..machine.base import Machine
from ..machine.qemu import QemuOptions
from ..sdei.model import Handler, Pe
from ..sdei.observer import Observer
from .marks import marked
from .plain_qemu import PlainQemu
from .report import Row, median, percentile
from .shell import Shell

__all__ = ["LinuxFiles", "measure"]

MEMORY = 1 << 30
APPEND = "console=ttyAMA0 quiet run=serve"
CLIENT = " client.events=0 client.quiet=1"
BOOT_SECONDS = 120.0


@dataclass(frozen=True)
class LinuxFiles:
    """A kernel and an initial RAM disk as guests/linux makes them."""

    kernel: Path
    initrd: Path


# -- calls


def call_seconds(loop: str, count: int, **options: bool) -> float:
    """Seconds of one turn of a loop of the bench guest, on one vCPU."""
    config = MachineConfig(
        vcpus=1,
        bootargs=f"loop={loop} count={count}",
        engine=QemuOptions(**options),  # type: ignore[arg-type]
    )
    with open_machine("qemu", config) as machine, marked(machine) as marks:
        machine.load(guest_path("bench"))
        machine.start()
        machine.wait(120)
    return (marks[1] - marks[0]) / count


def _calls(rounds: int, count: int) -> Iterator[Row]:
    """A round trip to us, in units of a trap that the monitor answers."""
    cases: tuple[tuple[str, str, dict[str, bool]], ...] = (
        ("EVENT_CONTEXT answered by us", "context", {"contexts": False}),
        ("SDEI_VERSION", "version", {}),
        ("SDEI_VERSION, --poll", "version", {"poll": True}),
        ("EVENT_SIGNAL to itself -> handler -> COMPLETE", "signal", {}),
        ("EVENT_SIGNAL ... COMPLETE, --poll", "signal", {"poll": True}),
    )
    bare: list[float] = []
    times: dict[str, list[float]] = {name: [] for name, _, _ in cases}
    for _ in range(rounds):
        bare.append(call_seconds("context", 20 * count))
        for name, loop, options in cases:
            times[name].append(call_seconds(loop, count, **options))
    micro = [t * 1e6 for t in bare]
    yield Row("baseline: a trap that the monitor answers (EVENT_CONTEXT)", median(micro), "us", min(micro), max(micro))
    for name, values in times.items():
        ratios = [value / base for value, base in zip(values, bare, strict=True)]
        yield Row(name, median(values) * 1e6, "us", min(values) * 1e6, max(values) * 1e6)
        yield Row("  that is", median(ratios), "traps", min(ratios), max(ratios), "a trap answered by the monitor")


# -- events


@dataclass
class _Events(Observer):
    """Notes when handlers are entered and when they end."""

    entered: float = 0.0
    ended: float = 0.0
    done: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))

    def delivered(self, pe: Pe, handler: Handler) -> None:
        self.entered = time.perf_counter()

    def completed(self, pe: Pe, handler: Handler, failed: bool) -> None:
        self.ended = time.perf_counter()
        self.done.release()


def _latencies(machine: Machine, count: int) -> tuple[list[float], list[float], list[float]]:
    """Microseconds from inject() to the handler's entry, from there to its end, and all of it; in turn on all vCPUs."""
    events = _Events()
    machine.firmware.sdei.observe(events)
    entry, handling, whole = [], [], []
    for i in range(count):
        begin = time.perf_counter()
        machine.inject(0, i % machine.config.vcpus)
        if not events.done.acquire(timeout=10):
            raise RuntimeError("an event was not completed")
        entry.append((events.entered - begin) * 1e6)
        handling.append((events.ended - events.entered) * 1e6)
        whole.append((events.ended - begin) * 1e6)
    return entry, handling, whole


def _rows(what: str, latencies: Sequence[list[float]], targets: Sequence[float | None]) -> Iterator[Row]:
    for name, values, target in zip(("entry", "handler", "all"), latencies, targets, strict=True):
        yield Row(
            f"{what}: {_NAMES[name]} (to p99)", median(values), "us", min(values), percentile(values, 99),
            "the range goes to the 99th percentile", target,
        )  # fmt: skip


_NAMES = {
    "entry": "inject -> handler entered",
    "handler": "handler entered -> completed",
    "all": "inject -> completed",
}


def _bare_metal(count: int) -> Iterator[Row]:
    for vcpus in (1, 2, 4):
        for idle in ("wfi", "spin"):
            config = MachineConfig(vcpus=vcpus, bootargs=f"quiet=1 idle={idle}", engine=QemuOptions())
            with open_machine("qemu", config) as machine:
                shell = Shell(machine.type_in)
                machine.console = shell.feed
                machine.load(guest_path("listen"))
                machine.start()
                shell.wait_for("listening: CPU#", 60, vcpus)
                latencies = _latencies(machine, count)
            state = "idle" if idle == "wfi" else "busy"
            yield from _rows(f"bare metal, {vcpus} {state} vCPU{'s' * (vcpus > 1)}", latencies, (None, None, None))


@contextmanager
def _linux(files: LinuxFiles, vcpus: int, append: str = "", **options: bool) -> Iterator[tuple[Machine, Shell]]:
    config = MachineConfig(
        vcpus=vcpus,
        memory=MEMORY,
        bootargs=APPEND + append,
        engine=QemuOptions(initrd=files.initrd, **options),  # type: ignore[arg-type]
    )
    with open_machine("qemu", config) as machine:
        shell = Shell(machine.type_in)
        machine.console = shell.feed
        machine.load(files.kernel)
        machine.start()
        shell.wait_ready(BOOT_SECONDS)
        yield machine, shell


def _linux_events(files: LinuxFiles, count: int) -> Iterator[Row]:
    for vcpus in (1, 2, 4):
        with _linux(files, vcpus, CLIENT) as (machine, _shell):
            yield from _rows(
                f"Linux, {vcpus} idle vCPU{'s' * (vcpus > 1)}", _latencies(machine, count), (150.0, None, 250.0)
            )
    with _linux(files, 1, CLIENT, contexts=False) as (machine, _shell):
        yield from _rows("Linux, 1 vCPU, every EVENT_CONTEXT asked of us", _latencies(machine, count), (None,) * 3)
    with _linux(files, 1, CLIENT, poll=True) as (machine, _shell):
        yield from _rows("Linux, 1 vCPU, --poll", _latencies(machine, count), (None,) * 3)


def _idle(files: LinuxFiles, seconds: float) -> Iterator[Row]:
    with _linux(files, 2, CLIENT):
        time.sleep(1)
        shares = []
        for _ in range(3):
            cpu, wall = time.process_time(), time.perf_counter()
            time.sleep(seconds)
            shares.append(100 * (time.process_time() - cpu) / (time.perf_counter() - wall))
    yield Row("CPU use of this process, the guest being idle", median(shares), "%", min(shares), max(shares), "", 1.0)


# -- what the guest loses


def _throughput(files: LinuxFiles, rounds: int, quick: bool) -> Iterator[Row]:
    """The same programs on the same kernel: QEMU alone, under the monitor, and with stage 2; in turn."""
    programs = {
        "integer work": f"cpubench {20 if quick else 100}",
        "fork and exec": f"forkbench {20 if quick else 100}",
    }
    with ExitStack() as stack:
        plain = stack.enter_context(PlainQemu(files.kernel, files.initrd, APPEND, MEMORY))
        shells = {
            "plain": plain.shell,
            "monitor": stack.enter_context(_linux(files, 1, stage2=False))[1],
            "stage 2": stack.enter_context(_linux(files, 1))[1],
        }
        plain.shell.wait_ready(BOOT_SECONDS)
        for name, command in programs.items():
            for shell in shells.values():
                _nanoseconds(shell, command)
            times: dict[str, list[float]] = {where: [] for where in shells}
            for _ in range(3 * rounds):  # they are short, and scatter most of all figures
                for where, shell in shells.items():
                    times[where].append(_nanoseconds(shell, command))
            base = times["plain"]
            yield Row(f"baseline: {name}, QEMU alone", median(base) / 1e6, "ms", min(base) / 1e6, max(base) / 1e6)
            for where, target in (("monitor", 5.0), ("stage 2", 12.0)):
                lost = [100 * (t / b - 1) for t, b in zip(times[where], base, strict=True)]
                label = "under the monitor" if where == "monitor" else "under the monitor with stage 2"
                yield Row(f"  lost {label}", median(lost), "%", min(lost), max(lost), "QEMU alone, in turn", target)


def _nanoseconds(shell: Shell, command: str) -> float:
    output = shell.run(command, 300)
    return float(output.split(" ns=")[1].split()[0])


# -- all of it


def measure(rounds: int, quick: bool, files: LinuxFiles | None, progress: Callable[[str], None]) -> list[Row]:
    """All figures; those with Linux only where `files` are given."""
    count = 300 if quick else 3000
    rows: list[Row] = []
    progress("calls ...")
    rows += _calls(min(rounds, 2) if quick else rounds, count)
    progress("events, bare metal ...")
    rows += _bare_metal(count)
    if files is None:
        progress("no kernel: figures with Linux are left out; give --kernel and --initrd")
        return rows
    progress("events, Linux ...")
    rows += _linux_events(files, count)
    progress("idle ...")
    rows += _idle(files, 1 if quick else 5)
    progress("throughput ...")
    rows += _throughput(files, rounds, quick)
    return rows
