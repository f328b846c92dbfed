# SPDX-License-Identifier: Apache-2.0
"""Interrupts of QEMU's machine as SDEI events: the guest `interrupts` counts, and so does the service."""

from __future__ import annotations

from typing import Any

import pytest

from sdeivirt.control.batch import Transcript, run_to_end
from sdeivirt.guests import guest_path
from sdeivirt.machine import MachineConfig, open_machine
from sdeivirt.machine.qemu import QemuMachine, QemuOptions
from sdeivirt.sdei import EventDefinition, Priority
from sdeivirt.sdei.model import Handler
from sdeivirt.smccc.ids import Conduit

from .machine_support import DEADLINE, NEEDS_QEMU

pytestmark = [pytest.mark.machine, pytest.mark.qemu, NEEDS_QEMU]

CASES = ["ppi", "edge", "any", "rtc", "release", "mask", "watchdog"]
TICKS = 20
TIMER = 27
DYNAMIC_PRIVATE, DYNAMIC_SHARED = 0x4000_1000, 0x4000_2000


def run(vcpus: int, cpu: str = "cortex-a72", **config: Any) -> tuple[Transcript, list[Handler]]:
    """A run of the guest, and every handler that there has been."""
    options = MachineConfig(**{"vcpus": vcpus, "engine": QemuOptions(cpu=cpu), **config})
    with open_machine("qemu", options) as machine:
        assert isinstance(machine, QemuMachine)
        transcript = run_to_end(machine, guest_path("interrupts"), DEADLINE)
        sdei = machine.firmware.sdei
        handlers = [handler for pe in sdei.pes for handler in pe.handlers.values()]
        handlers += [event.handler for event in sdei.events if event.shared]
    return transcript, handlers


def check_books(handlers: list[Handler]) -> None:
    """Every event that came was handled, and is over."""
    for handler in handlers:
        assert handler.delivered == handler.completed
        assert handler.injected == handler.delivered + handler.coalesced + handler.dropped
        assert (handler.pending, handler.running_on, handler.failed) == (False, None, 0)


@pytest.mark.parametrize(
    ("vcpus", "cpu", "conduit"),
    [(1, "cortex-a72", Conduit.HVC), (2, "max", Conduit.SMC), (4, "cortex-a72", Conduit.HVC)],
)
def test_bound_interrupts(vcpus: int, cpu: str, conduit: Conduit) -> None:
    transcript, handlers = run(vcpus, cpu, conduit=conduit)
    assert transcript.ok, transcript.output
    assert [line[4:] for line in transcript.output.splitlines() if line.startswith("--- ")] == CASES
    check_books(handlers)
    assert len([h for h in handlers if h.event.number == DYNAMIC_PRIVATE and h.delivered]) == vcpus
    assert next(h for h in handlers if h.event.number == DYNAMIC_SHARED).delivered


@pytest.mark.parametrize("case", ["ppi", "rtc"])
def test_a_level_that_stays_up_interrupts_once_for_each_time_it_is_handled(case: str) -> None:
    transcript, handlers = run(1, bootargs=f"case={case}")
    assert transcript.ok, transcript.output
    check_books(handlers)
    handler = next(h for h in handlers if h.delivered)
    assert (handler.injected, handler.coalesced, handler.dropped) == (handler.delivered, 0, 0)
    assert handler.delivered == 3 * 5 + 1


@pytest.mark.parametrize("priority", [Priority.NORMAL, Priority.CRITICAL])
def test_a_watchdog_whose_event_the_host_has_tied_to_the_timer(priority: Priority) -> None:
    number = 0x4000_0010
    event = EventDefinition(number, priority=priority, signalable=False, interrupt=TIMER)
    transcript, handlers = run(2, bootargs=f"case=watchdog tick={number:#x}", events=(event,))
    assert transcript.ok, transcript.output
    check_books(handlers)
    ticks = [handler.delivered for handler in handlers if handler.event.number == number]
    assert ticks == [TICKS, TICKS]


def test_a_case_that_does_not_exist_fails() -> None:
    transcript, _ = run(1, bootargs="case=none")
    assert transcript.result == "FAILED (bootargs: there is no such case)"
