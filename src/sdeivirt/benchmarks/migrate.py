# SPDX-License-Identifier: Apache-2.0
"""What moving a running guest costs: against the link, against QEMU's own migration, and for the guest.

The source is a machine of this process, the destination `sdeivirt run
--incoming` in another. Each figure stands beside its baseline, measured in turn
with it:

    throughput   of RAM that no trick makes smaller, against a bare socket copy of the same bytes (raw_copy.py)
    qemu         the same guest that does the same, against two QEMUs alone (plain_migration.py)
    slow-down    what the guest does while it is moved, against what it does before
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence

from ..machine import Machine
from ..migration.source import SourceOptions
from . import plain_migration, raw_copy
from .migrate_destination import Moved, destination, move
from .migrate_guests import Guest, computer, counter, fill, idle, linux, paced, running, writer
from .plain_migration import PlainGuest, PlainMigration
from .qemu import LinuxFiles
from .report import Row, row

__all__ = ["compression", "first_write_seconds", "measure", "move_once", "slow_down", "throughput"]

MIB = 1 << 20
LINK_SHARE = 60.0  # per cent of a raw copy that RAM has to reach
QEMU_RATIO = 1.3
IDLE_SECONDS = 2.0
LINK = 125_000_000  # bytes a second: a gigabit
_PATIENCE = 30.0
_FLUSHES = 0.15  # seconds between two; QEMU looks back for a tenth


def _ratios(ours: Sequence[float], theirs: Sequence[float]) -> list[float]:
    return [one / other for one, other in zip(ours, theirs, strict=True)]


def move_once(kind: str, guest: Guest) -> Moved:
    """Boot a guest and move it."""
    with destination() as there, running(kind, guest) as machine:
        return move(machine, there.uri)


# -- against the link


def throughput(kind: str, scheme: str, size: int, *, copy_first: bool = True) -> tuple[float, Moved]:
    """Seconds of a raw copy of a guest's RAM, nearly all of it noise, and the migration of the same RAM.

    The memory that the receivers fill has been in use just before, by a copy that is not measured: a host
    that has to get it from its own host first takes several times as long.
    """
    shared = kind == "qemu"
    with running(kind, idle(size)) as machine:
        fill(machine, size)
        ram = machine.memory()
        raw = raw_copy.copy_seconds(ram, scheme, shared=shared)
        if copy_first:
            raw = raw_copy.copy_seconds(ram, scheme, shared=shared)
        with destination(scheme) as there:
            moved = move(machine, there.uri)
        if not copy_first:
            raw = raw_copy.copy_seconds(ram, scheme, shared=shared)
        del ram
    return raw, moved


def _throughput(kind: str, rounds: int, size: int) -> Iterator[Row]:
    target = LINK_SHARE if kind == "unicorn" else None
    for scheme in raw_copy.SCHEMES:
        pairs = [throughput(kind, scheme, size, copy_first=not i % 2) for i in range(rounds)]
        link = f"{size // MIB} MiB of noise, {scheme}"
        rates = [moved.status.bytes / moved.sending for _, moved in pairs]
        links = [size / raw for raw, _ in pairs]
        yield row(f"baseline: raw copy, {link}", [each / 1e6 for each in links], "MB/s")
        yield row(f"{link}: first page to the end", [each / 1e6 for each in rates], "MB/s")
        shares = [100 * each for each in _ratios(rates, links)]
        yield row("  that is", shares, "% of raw", "a raw copy, in turn", target, at_least=True)
        yield row("  total, handshake and all", [moved.total for _, moved in pairs], "s")
        yield row("  downtime", [1000 * moved.downtime for _, moved in pairs], "ms")
        yield row("  sent, of RAM's size", [100 * moved.status.bytes / size for _, moved in pairs], "%")


def compression(kind: str, size: int, level: int) -> Moved:
    """RAM full of hexadecimal digits over a gigabit link, at a zstd level (0: none)."""
    with destination() as there, running(kind, idle(size)) as machine:
        fill(machine, size, digits=True)
        return move(machine, there.uri, SourceOptions(bandwidth=LINK, compress=level))


def _compression(kind: str, rounds: int, size: int) -> Iterator[Row]:
    plain = [compression(kind, size, 0) for _ in range(rounds)]
    packed = [compression(kind, size, 3) for _ in range(rounds)]
    what = f"{size // MIB} MiB of hexadecimal digits at 1 Gbit/s"
    yield row(f"baseline: {what}", [moved.total for moved in plain], "s")
    yield row("  with --compress", [moved.total for moved in packed], "s")
    yield row("  sent with --compress, of RAM's size", [100 * moved.status.bytes / size for moved in packed], "%")


# -- against QEMU


def _plain(guest: Guest) -> PlainMigration:
    return plain_migration.migrate(
        PlainGuest(guest.image, guest.bootargs, guest.memory, guest.ready, guest.initrd, guest.vcpus)
    )


def _against_qemu(rounds: int, guest: Guest, limit: float | None) -> Iterator[Row]:
    pairs: list[tuple[PlainMigration, Moved]] = []
    for i in range(rounds):
        if i % 2:
            ours, theirs = move_once("qemu", guest), _plain(guest)
        else:
            theirs, ours = _plain(guest), move_once("qemu", guest)
        pairs.append((theirs, ours))
    yield row(f"baseline: {guest.name}: QEMU alone, total", [1000 * each.total for each, _ in pairs], "ms")
    yield row("  QEMU alone, downtime", [1000 * each.downtime for each, _ in pairs], "ms")
    yield row("  QEMU alone, from STOP here to RESUME there", [1000 * each.stopped for each, _ in pairs], "ms")
    yield row("  QEMU alone, sent", [each.bytes / 1e6 for each, _ in pairs], "MB")
    total = [moved.total for _, moved in pairs]
    yield row(f"{guest.name}: total", [1000 * each for each in total], "ms", "", limit and 1000 * limit)
    yield row("  that is", _ratios(total, [each.total for each, _ in pairs]), "x", "QEMU alone, in turn", QEMU_RATIO)
    yield row("  first page to the end", [1000 * moved.sending for _, moved in pairs], "ms")
    downtime = [moved.downtime for _, moved in pairs]
    yield row("  downtime", [1000 * each for each in downtime], "ms")
    # QEMU counts whole milliseconds, and of an idle guest none.
    stopped = [max(each.downtime, each.stopped) for each, _ in pairs]
    yield row("  that is", _ratios(downtime, stopped), "x", "QEMU alone, in turn", QEMU_RATIO)
    yield row("  sent", [moved.status.bytes / 1e6 for _, moved in pairs], "MB")


# -- an idle guest


def _idle(kind: str, rounds: int) -> Iterator[Row]:
    guest = idle()
    moves = [move_once(kind, guest) for _ in range(rounds)]
    yield row(f"{guest.name}: total", [moved.total for moved in moves], "s", "", IDLE_SECONDS)
    yield row("  downtime", [1000 * moved.downtime for moved in moves], "ms")
    yield row("  sent", [moved.status.bytes / 1e6 for moved in moves], "MB")


# -- what the guest loses


def slow_down(kind: str, guest: Guest, size: int, seconds: float) -> tuple[float, Moved]:
    """Per cent that a guest does less while its `size` bytes are moved within so many seconds than before."""
    with destination() as there, running(kind, guest) as machine:
        fill(machine, size)
        count = counter(machine, guest)
        _settle(machine)
        before = _rate(count, seconds)
        moved = move(machine, there.uri, SourceOptions(bandwidth=int(size / seconds)), count)
    return 100 * (1 - moved.counted / moved.running / before), moved


def _settle(machine: Machine) -> None:
    """QEMU gives its TLBs the size that a guest needs when it flushes them: as good as ever, then, before as well."""
    machine.start_dirty_log()
    for _ in range(3):
        time.sleep(_FLUSHES)
        machine.collect_dirty()
    machine.stop_dirty_log()


def _rate(count: Callable[[], int], seconds: float) -> float:
    """What it counts a second, over so many seconds; longer where a busy host lets it count nothing."""
    begin, first = time.perf_counter(), count()
    while True:
        time.sleep(seconds)
        counted, took = count() - first, time.perf_counter() - begin
        if counted or took > seconds + _PATIENCE:
            return max(counted, 1) / took


def first_write_seconds(kind: str, mib: int, turns: int) -> list[float]:
    """What the first write to a page costs more than others while writes are noted, each time over all of an arena."""
    guest = writer("writes", f"mib={mib}", (2 * mib + 32) * MIB)
    pages = mib * MIB // 4096
    costs = []
    with running(kind, guest) as machine:
        count = counter(machine, guest)
        other = 1 / _rate(count, 0.2)
        machine.start_dirty_log()
        for _ in range(turns):
            machine.collect_dirty()
            begin, first = time.perf_counter(), count()
            while (written := count() - first) < pages:
                time.sleep(0.001)
            took = time.perf_counter() - begin
            costs.append((took - (written - pages) * other) / pages - other)
    return costs


def _guest_s_side(kind: str, rounds: int, quick: bool) -> Iterator[Row]:
    size, seconds = (32 * MIB, 0.5) if quick else (64 * MIB, 2.0)
    writing = writer("writes 1,024 pages over and over", "mib=4", 128 * MIB)
    for guest in (computer(), writing):
        lost = [slow_down(kind, guest, size, seconds) for _ in range(rounds)]
        yield row(
            f"a guest that {guest.name}: lost while moved", [each for each, _ in lost], "%", "the same guest before"
        )
        yield row("  downtime", [1000 * moved.downtime for _, moved in lost], "ms")
    costs = first_write_seconds(kind, 4 if quick else 16, 2 if quick else 2 * rounds)
    yield row("first write to a page that is watched", [1e6 * cost for cost in costs], "us", "further writes")


# -- all of it


def measure(
    kind: str, rounds: int, quick: bool, files: LinuxFiles | None, progress: Callable[[str], None]
) -> Iterator[Row]:
    """All figures of a machine; those with Linux only where `files` are given."""
    size = (64 if quick else 512) * MIB
    progress("against the link ...")
    yield from _throughput(kind, rounds, size)
    progress("compression ...")
    yield from _compression(kind, max(1, rounds // 2), size // 4)
    if kind == "qemu":
        guests: list[tuple[Guest, float | None]] = [(idle(), IDLE_SECONDS), (paced(), None)]
        if files is not None:
            guests.append((linux(files.kernel, files.initrd), IDLE_SECONDS))
        for guest, limit in guests:
            progress(f"against QEMU's own: {guest.name} ...")
            yield from _against_qemu(rounds, guest, limit)
    else:
        progress("an idle guest ...")
        yield from _idle(kind, rounds)
    progress("what the guest loses ...")
    yield from _guest_s_side(kind, rounds, quick)
