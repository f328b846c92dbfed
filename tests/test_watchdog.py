# SPDX-License-Identifier: Apache-2.0
"""What counts as the time that a handler runs, also where it began elsewhere."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from sdeivirt.machine import ExitReason, MachineConfig, open_machine
from sdeivirt.machine.base import PAGE_SIZE, RAM_BASE, Machine
from sdeivirt.machine.watchdog import Watchdog
from sdeivirt.migration.detour import HeldInjections
from sdeivirt.registers import Registers
from sdeivirt.sdei import EventDefinition, Function, Priority

from .control_support import FakeMachine, wait_until
from .fake_view import FakePe
from .guest_texts import HANDLER_THAT_SPINS
from .machine_support import KINDS, Console, Until, boot, engine
from .pages_support import Store


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


def test_time_in_which_a_vcpu_waits_for_pages_does_not_count() -> None:
    machine = with_a_handler_that_runs()
    deliver(machine)
    stood, entered = [0.0, 0.0], list[int]()
    dog = Watchdog(machine, 1.0, stood.__getitem__, entered.append)
    assert dog.late(100.0) == []
    stood[0] += 5
    assert dog.late(105.9) == []  # it has run for 0.9 s
    stood[1] += 5  # another one
    assert dog.late(106.1) == [(0, 0)]
    machine.firmware.sdei.inject(0, 0)
    machine.call(0, Function.EVENT_COMPLETE)
    assert entered == [0]
    stood[0] += 100
    assert dog.late(time.monotonic() + 100.9) == []
    assert dog.late(time.monotonic() + 101.1) == [(0, 0)]


def deliver(machine: FakeMachine) -> None:
    """PE 0 takes its event."""
    view = FakePe()
    view.stop(6)
    assert machine.firmware.deliver(machine.firmware.pes[0], view)


# Its handler reads a page; then it may spin. A critical one spins at once.
WAITS_IN_ITS_HANDLER = """
    take_event handler
    ldr x1, =0x40000010
    adr x2, critical
    mov x3, #0
    mov x4, #0
    mov x5, #0
    call SDEI_REGISTER
    ldr x1, =0x40000010
    call SDEI_ENABLE
    say 'R'
    say 10
    b .
handler:
    say 'H'
    say 10
    ldr x26, =0x40400000
    ldr x25, [x26]
    say 'G'
    say 10
    cbnz x25, .
    off
critical:
    say 'C'
    say 10
    b .
"""
PAGE = (0x4040_0000 - RAM_BASE) // PAGE_SIZE
LIMIT_OF_HANDLERS = 0.3


@contextmanager
def waiting_in_its_handler(kind: str, content: int) -> Iterator[tuple[Machine, Console, Store]]:
    """The guest is in its handler and waits for a page, which holds that number."""
    critical = EventDefinition(0x4000_0010, priority=Priority.CRITICAL)
    with boot(kind, WAITS_IN_ITS_HANDLER, watchdog=LIMIT_OF_HANDLERS, events=(critical,), memory=16 << 20) as machine:
        console = Console(machine)
        machine.start()
        console.shows("R\n")
        with Store(machine) as store:
            machine.memory()[PAGE * PAGE_SIZE] = content
            store.held = {PAGE}
            assert store.take([PAGE])
            machine.inject(0, 0)
            store.waits_for(1)
            yield machine, console, store


@pytest.mark.machine
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("spins", [False, True])
def test_a_handler_that_waits_for_a_page_is_not_stuck(kind: str, spins: bool) -> None:
    with waiting_in_its_handler(kind, int(spins)) as (machine, console, store):
        watched = time.monotonic() + 3 * LIMIT_OF_HANDLERS
        wait_until(lambda: time.monotonic() > watched)  # what is not to happen has its time
        assert machine.state == "running"
        store.release()
        outcome = machine.wait(limit=30)
    assert console.text == "R\nH\nG\n"
    assert outcome.reason is (ExitReason.FAULT if spins else ExitReason.POWER_OFF)


@pytest.mark.machine
@pytest.mark.parametrize("kind", KINDS)
def test_a_critical_handler_is_timed_where_the_one_below_it_waits_for_a_page(kind: str) -> None:
    with waiting_in_its_handler(kind, 0) as (machine, console, _):
        machine.inject(0x4000_0010, 0)
        outcome = machine.wait(limit=30)
    assert console.text == "R\nH\nC\n"
    assert outcome.reason is ExitReason.FAULT
    assert "handler of event 0x40000010 has run" in outcome.faults[0].reason


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
