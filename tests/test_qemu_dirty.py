# SPDX-License-Identifier: Apache-2.0
"""The dirty log of machine qemu: what CPUs write is what it says, while they write and when they are stopped."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest

from sdeivirt.machine import MachineConfig, open_machine
from sdeivirt.machine.base import PAGE_SIZE, RAM_BASE
from sdeivirt.machine.qemu import QemuMachine, QemuOptions

from .control_support import wait_until
from .machine_support import NEEDS_QEMU, Console, Until
from .qemu_writer import AREA, COUNTS, reader, writer

pytestmark = [pytest.mark.machine, pytest.mark.qemu, NEEDS_QEMU]

MIB = 1 << 20


def machine_with(vcpus: int, *, cpu: str = "neoverse-n1", memory: int = 16, **guest: Any) -> QemuMachine:
    """A machine with the guest `writer`, not started."""
    config = MachineConfig(vcpus=vcpus, memory=memory * MIB, engine=QemuOptions(cpu=cpu))
    machine = open_machine("qemu", config)
    assert isinstance(machine, QemuMachine)
    machine.load(writer(vcpus, **guest))
    return machine


def counts(machine: QemuMachine) -> list[int]:
    """How many batches each vCPU has written."""
    ram = machine.memory()[COUNTS - RAM_BASE :].cast("Q")
    return [ram[i * PAGE_SIZE // 8] for i in range(machine.config.vcpus)]


def all_go_on(machine: QemuMachine) -> None:
    """Wait until each vCPU has written a batch, or the rest of one and more."""
    before = counts(machine)
    wait_until(lambda: all(now > then for now, then in zip(counts(machine), before, strict=True)))


def pages_that_differ(before: bytes, now: memoryview) -> list[int]:
    return [
        page
        for page in range(len(before) // PAGE_SIZE)
        if before[page * PAGE_SIZE : (page + 1) * PAGE_SIZE] != now[page * PAGE_SIZE : (page + 1) * PAGE_SIZE]
    ]


def pages_noted(dirty: bytearray) -> list[int]:
    return [page for page, noted in enumerate(dirty) if noted]


@pytest.mark.parametrize("vcpus", [1, 2])
def test_each_page_that_is_written_is_noted_and_no_other(vcpus: int) -> None:
    """Each vCPU writes 200 pages for each event, in eight ways; then the RAM is compared with what it was."""
    with machine_with(vcpus, batch=200, events=True) as machine:
        console, until = Console(machine), Until(machine)
        machine.start()
        wait_until(lambda: console.text.count("R\n") == vcpus)
        machine.start_dirty_log()
        for round_ in range(10):
            machine.collect_dirty()
            before = bytes(machine.memory())
            for vcpu in range(vcpus):
                machine.inject(0, vcpu)
            until.reaches(vcpus * (round_ + 1))
            assert counts(machine) == [round_ + 1] * vcpus
            noted = pages_noted(machine.collect_dirty())
            assert noted == pages_that_differ(before, machine.memory())
            assert len(noted) > 100 * vcpus
        assert not any(machine.collect_dirty())
        machine.stop_dirty_log()
        for vcpu in range(vcpus):
            machine.inject(0, vcpu)
        until.reaches(vcpus * 11)
        assert not any(machine.collect_dirty())


def copy_pages(dirty: bytearray, ram: memoryview, copy: bytearray) -> int:
    noted = pages_noted(dirty)
    for page in noted:
        at = page * PAGE_SIZE
        copy[at : at + PAGE_SIZE] = ram[at : at + PAGE_SIZE]
    return len(noted)


@pytest.mark.parametrize("vcpus", [1, 2, 4])
def test_a_copy_that_follows_the_log_is_the_guest_s_ram_in_the_end(vcpus: int) -> None:
    """vCPUs write all the time; passes over what was noted, and a last one when they have stopped: pre-copy."""
    with machine_with(vcpus, batch=50) as machine:
        machine.start()
        wait_until(lambda: all(counts(machine)))
        for attempt in range(3):
            machine.start_dirty_log()
            ram = machine.memory()
            copy = bytearray(ram)
            passed = []
            for _ in range(8):
                all_go_on(machine)
                passed.append(copy_pages(machine.collect_dirty(), ram, copy))
            all_go_on(machine)
            machine.pause()
            last = copy_pages(machine.collect_dirty(), ram, copy)
            assert pages_that_differ(bytes(copy), ram) == []
            assert min(*passed, last) > 0, (attempt, passed, last)
            machine.resume()
            machine.stop_dirty_log()


def test_what_is_collected_from_a_stopped_guest_is_noted_again_once_it_has_run() -> None:
    """No vCPU can flush its TLB while all are stopped; what they write through old entries must not be missed."""
    with machine_with(2, batch=50) as machine:
        machine.start()
        machine.start_dirty_log()
        for _ in range(10):
            all_go_on(machine)
            machine.pause()
            copy = bytearray(machine.memory())
            first = machine.collect_dirty()
            assert not any(machine.collect_dirty()), "nothing has run in between"
            machine.resume()
            all_go_on(machine)
            machine.pause()
            copy_pages(machine.collect_dirty(), machine.memory(), copy)
            assert pages_that_differ(bytes(copy), machine.memory()) == []
            assert any(first)
            machine.resume()


def test_a_log_that_is_started_while_the_guest_stands_misses_nothing() -> None:
    """vCPUs go on with translations by which they may write, until one of them has flushed all TLBs."""
    with machine_with(2, batch=50) as machine:
        machine.start()
        wait_until(lambda: all(counts(machine)))
        for _ in range(5):
            all_go_on(machine)
            machine.pause()
            copy = bytearray(machine.memory())
            machine.start_dirty_log()
            machine.resume()
            all_go_on(machine)
            machine.pause()
            copy_pages(machine.collect_dirty(), machine.memory(), copy)
            assert pages_that_differ(bytes(copy), machine.memory()) == []
            machine.stop_dirty_log()
            machine.resume()


def cpu_seconds(machine: QemuMachine) -> float:
    """What QEMU has used of the host's CPUs."""
    fields = Path(f"/proc/{machine.details()['pid']}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def test_vcpus_that_write_too_fast_sleep_until_their_time_comes_and_take_events_meanwhile() -> None:
    """They sleep although an interrupt of the guest's own is pending all the time."""
    with machine_with(2, batch=50) as machine:
        until = Until(machine)
        machine.start()
        wait_until(lambda: all(counts(machine)))
        machine.limit_dirtying(50)
        machine.start_dirty_log()
        begun, used = time.monotonic(), cpu_seconds(machine)
        noted: set[int] = set()
        while len(noted) < 50:
            noted |= set(pages_noted(machine.collect_dirty()))
            time.sleep(0.1)  # what is collected has to be begun anew
        seconds, used = time.monotonic() - begun, cpu_seconds(machine) - used
        assert seconds > 0.7
        assert used < 0.6 * seconds, "two vCPUs that wait would burn two cores"

        machine.limit_dirtying(1)
        begun = time.monotonic()
        for i in range(10):
            machine.inject(0, i % 2)
            until.reaches(i + 1)
        assert time.monotonic() - begun < 5
        before = counts(machine)
        machine.limit_dirtying(None)
        wait_until(lambda: all(now > then + 1 for now, then in zip(counts(machine), before, strict=True)))


def test_what_a_cpu_writes_into_page_tables_by_itself_is_noted() -> None:
    """Access flags that hardware sets (FEAT_HAFDBS): a write that no instruction makes."""
    config = MachineConfig(vcpus=1, memory=16 * MIB, engine=QemuOptions(cpu="max,pauth-impdef=on"))
    with open_machine("qemu", config) as machine:
        assert isinstance(machine, QemuMachine)
        machine.load(reader())
        console, until = Console(machine), Until(machine)
        machine.start()
        console.shows("R\n")
        machine.start_dirty_log()
        for i in range(4):
            machine.collect_dirty()
            before = bytes(machine.memory())
            machine.inject(0, 0)
            until.reaches(i + 1)
            noted = pages_noted(machine.collect_dirty())
            assert noted == pages_that_differ(before, machine.memory())
            assert (AREA - RAM_BASE) // PAGE_SIZE - 1 in noted
