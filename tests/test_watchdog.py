# SPDX-License-Identifier: Apache-2.0
"""What counts as the time that a handler runs, also where it began elsewhere."""

from __future__ import annotations

import time

import pytest

from sdeivirt.machine import ExitReason, MachineConfig, open_machine
from sdeivirt.machine.watchdog import Watchdog
from sdeivirt.migration.detour import HeldInjections
from sdeivirt.registers import Registers
from sdeivirt.sdei import Function

from .control_support import FakeMachine, wait_until
from .fake_view import FakePe
from .guest_texts import HANDLER_THAT_SPINS
from .machine_support import KINDS, Until, boot, engine


def with_a_handler_that_runs() -> FakeMachine:
    """PE 0 is in its handler of event 0."""
    machine = FakeMachine(MachineConfig(vcpus=2))
    machine.start()
    machine.register(0)
    assert machine.call(0, Function.PE_UNMASK) == 0
    machine.inject(0, 0)
    return machine


def test_a_handler_that_was_running_before_is_timed_from_when_it_is_first_seen() -> None:
    machine = with_a_handler_that_runs()
    deliver(machine)
    dog = Watchdog(machine, 1.0)
    assert dog.late(100.0) == []
    assert dog.late(101.0) == []
    assert dog.late(101.1) == [(0, 0)]


def test_time_in_which_the_vm_is_paused_does_not_count() -> None:
    machine = with_a_handler_that_runs()
    deliver(machine)
    dog = Watchdog(machine, 1.0)
    assert dog.late(100.0) == []
    assert dog.late(100.5) == []
    machine.pause()
    assert dog.late(110.0) == []
    machine.resume()
    assert dog.late(110.5) == []
    assert dog.late(110.6) == [(0, 0)]


def test_a_handler_that_registers_have_ended_is_timed_no_more() -> None:
    machine = with_a_handler_that_runs()
    before = Registers(machine.firmware.sdei).dump()
    dog = Watchdog(machine, 1.0)
    deliver(machine)
    began = time.monotonic()
    assert dog.late(began) == []
    Registers(machine.firmware.sdei).load(before)
    assert dog.late(began + 10) == []


def test_each_run_of_a_handler_has_its_own_time() -> None:
    machine = with_a_handler_that_runs()
    dog = Watchdog(machine, 1.0)
    deliver(machine)
    began = time.monotonic()
    assert dog.late(began + 0.9) == []
    machine.firmware.sdei.inject(0, 0)
    machine.call(0, Function.EVENT_COMPLETE)  # and the handler is entered again at once
    assert machine.status().events[0].handlers[0].delivered == 2
    assert dog.late(began + 1.0) == []


def deliver(machine: FakeMachine) -> None:
    """PE 0 takes its event."""
    view = FakePe()
    view.stop(6)
    assert machine.firmware.deliver(machine.firmware.pes[0], view)


@pytest.mark.machine
@pytest.mark.parametrize("kind", KINDS)
def test_a_handler_that_never_ends_is_reported_where_the_guest_has_come(kind: str) -> None:
    """It began where no watchdog was, and would go on for ever here."""
    with boot(kind, HANDLER_THAT_SPINS) as here:
        until = Until(here)
        here.start()
        wait_until(lambda: until.entered)
        here.prepare_save()
        here.pause()
        sections = here.save_state(HeldInjections())
        config = MachineConfig(
            **{name: getattr(here.config, name) for name in ("vcpus", "memory", "events", "bootargs", "restart")},
            watchdog=0.3,
            engine=engine(kind),
        )
        with open_machine(kind, config) as there:
            there.start_incoming()
            there.memory()[:] = here.memory()
            there.load_state(sections)
            there.resume()
            outcome = there.wait(limit=30)
    assert outcome.reason is ExitReason.FAULT
    assert "handler of event 0x0 has run for more than 0.3 s" in outcome.faults[0].reason
