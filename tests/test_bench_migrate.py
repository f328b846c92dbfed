# SPDX-License-Identifier: Apache-2.0
"""The measurements of migrations run, and their figures can be; how good they are is not for a test to judge."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from sdeivirt.benchmarks import migrate, plain_migration, raw_copy
from sdeivirt.benchmarks.migrate_destination import destination, move
from sdeivirt.benchmarks.migrate_guests import Guest, computer, counter, fill, idle, running, writer
from sdeivirt.benchmarks.plain_migration import PlainGuest
from sdeivirt.machine.base import PAGE_SIZE
from sdeivirt.migration.source import SourceOptions

from .machine_support import KINDS, NEEDS_QEMU

pytestmark = [pytest.mark.machine, pytest.mark.process]

MIB = 1 << 20


@pytest.mark.parametrize("scheme", raw_copy.SCHEMES)
def test_a_raw_copy_takes_all_bytes_to_another_process(scheme: str) -> None:
    ram = memoryview(bytes(3 * MIB + 5))
    assert 0 < raw_copy.copy_seconds(ram, scheme) < 30


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_filled_is_sent_as_it_is_and_times_add_up(kind: str) -> None:
    raw, moved = migrate.throughput(kind, "unix", 16 * MIB)
    status = moved.status
    assert raw > 0
    assert status.plain >= 8 * MIB // PAGE_SIZE  # the noise
    assert status.plain * PAGE_SIZE <= status.bytes < 17 * MIB
    assert 0 < moved.downtime < moved.sending <= moved.total
    assert 0 < moved.running < moved.sending


def test_compression_makes_digits_smaller_and_slow_links_quicker() -> None:
    plain, packed = (migrate.compression("unicorn", 24 * MIB, level) for level in (0, 3))
    assert packed.status.bytes < 0.6 * plain.status.bytes
    # 16 MiB of digits at the pace of the link
    assert plain.total > 0.9 * 16 * MIB / migrate.LINK


def test_work_is_counted_while_the_guest_is_moved() -> None:
    guest = writer("writes", "mib=1", 16 * MIB)
    with destination() as there, running("unicorn", guest) as machine:
        fill(machine, 8 * MIB)
        count = counter(machine, guest)
        first = count()
        moved = move(machine, there.uri, SourceOptions(bandwidth=32 * MIB), count)
        assert moved.counted > 0
        assert count() >= first + moved.counted


@pytest.mark.parametrize("guest", [computer(), writer("writes", "mib=1", 16 * MIB)], ids=["computes", "writes"])
def test_a_loss_is_a_part_of_the_guest_s_work(guest: Guest) -> None:
    lost, moved = migrate.slow_down("unicorn", guest, 4 * MIB, 0.2)
    assert -200 < lost < 100
    assert moved.running > 0.1  # held to the pace that was asked for


@pytest.mark.parametrize("kind", KINDS)
def test_first_writes_cost_something(kind: str) -> None:
    costs = migrate.first_write_seconds(kind, 1, 3)
    assert len(costs) == 3
    assert all(abs(cost) < 0.1 for cost in costs)  # of a few pages: the difference may drown in noise


def test_a_writer_keeps_its_pace() -> None:
    guest = writer("writes", "mib=1 rate=2000", 16 * MIB)
    with running("unicorn", guest) as machine:
        count = counter(machine, guest)
        begin, first = time.monotonic(), count()
        while (last := count()) < first + 400:
            time.sleep(0.001)
        # What it is behind by when it is looked at first, it may make good for: 50 ms of it.
        assert (last - first) / (time.monotonic() - begin + 0.05) < 2200


@pytest.mark.qemu
@NEEDS_QEMU
def test_qemu_alone_moves_the_same_guest() -> None:
    guest = idle(64 * MIB)
    plain = PlainGuest(guest.image, guest.bootargs, guest.memory, guest.ready, counter=guest.counter)
    found = plain_migration.migrate(plain)
    assert 0 < found.total < 30
    assert 0 <= found.downtime <= found.total
    assert 0 < found.stopped < 30
    assert MIB < found.bytes < 64 * MIB


def test_a_guest_that_stays_is_an_error(tmp_path: Path) -> None:
    with running("unicorn", idle(16 * MIB)) as machine, pytest.raises(RuntimeError, match="not moved"):
        move(machine, f"unix:{tmp_path / 'nobody'}")
