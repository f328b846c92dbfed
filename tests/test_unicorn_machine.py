# SPDX-License-Identifier: Apache-2.0
"""The embedded machine: delivery into guests that mask everything, precise stops, schedules, power."""

from __future__ import annotations

import pytest

from sdeivirt.machine import ExitReason
from sdeivirt.machine.unicorn import UnicornMachine
from sdeivirt.machine.unicorn.schedulers import DeterministicScheduler

from .guest_texts import COUNTING, PING_PONG
from .machine_support import DEADLINE, Console, Until, takes_every_event
from .machine_support import boot as boot_any

pytestmark = pytest.mark.machine


def boot(body: str, seed: int | None = None, **config: object) -> UnicornMachine:
    machine = boot_any("unicorn", body, seed=seed, **config)
    assert isinstance(machine, UnicornMachine)
    return machine


@pytest.mark.parametrize("seed", [None, 11])
def test_a_masked_spinning_guest_takes_every_event_between_two_instructions(seed: int | None) -> None:
    count = 3000 if seed is None else 100
    with boot(COUNTING, seed) as machine:
        takes_every_event(machine, count)


def trace(seed: int) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """Which vCPU ran from where, slice by slice, and the events in order."""
    slices: list[tuple[int, int]] = []
    with boot(PING_PONG, seed, vcpus=2) as machine:
        until = Until(machine)
        machine.on_slice = lambda vcpu, pc: slices.append((vcpu, pc))
        machine.start()
        assert machine.wait(DEADLINE).reason is ExitReason.POWER_OFF
        return slices, until.entered


def test_same_seed_same_trace() -> None:
    first, events = trace(1234)
    assert len(first) > 50
    assert len(events) > 500
    assert trace(1234) == (first, events)
    assert trace(1235)[0] != first


@pytest.mark.parametrize("seed", [None, *range(5)])
def test_two_vcpus_signal_each_other(seed: int | None) -> None:
    with boot(PING_PONG, seed, vcpus=2) as machine:
        machine.start()
        assert machine.wait(DEADLINE).reason is ExitReason.POWER_OFF


def test_counted_slices_serve_where_there_is_no_stub() -> None:
    with boot(PING_PONG, vcpus=2) as machine:
        machine._scheduler = DeterministicScheduler(None)
        assert machine.scheduler == "counted slices"
        machine.start()
        assert machine.wait(DEADLINE).reason is ExitReason.POWER_OFF


def test_suspend_to_powerdown_comes_back_masked_with_its_registration() -> None:
    with boot(
        """
    take_event handler
    say 'S'
    say 10
    ldr x1, =0x10000
    adr x2, back
    mov x3, #0x5a
    call CPU_SUSPEND
    .inst 0
back:
    add w21, w0, #0
    mov x20, #0x09000000
    str w21, [x20]
    call SDEI_UNMASK
    b .
handler:
    say 'H'
    say 10
    off
"""
    ) as machine:
        console = Console(machine)
        machine.start()
        console.shows("S\n")
        while machine.status().vcpus[0].power != "suspended":
            pass
        assert machine.status().vcpus[0].masked
        machine.inject(0, 0)
        assert machine.wait(DEADLINE).reason is ExitReason.POWER_OFF
        assert console.text == "S\nZH\n"
