# SPDX-License-Identifier: Apache-2.0
"""What a PE's power and reset do to its mask, its handlers and its events. DEN0054C 6.3."""

from __future__ import annotations

import pytest

from sdeivirt.fuzz.oracle import DENIED, SUCCESS
from sdeivirt.sdei.events import EventDefinition, Priority

from .fake_view import Rig

PRIVATE, CRITICAL, SHARED = 5, 9, 0x20
ENTRY = 0x4010_0000
EVENTS = [
    EventDefinition(PRIVATE, interrupt=20),
    EventDefinition(CRITICAL, priority=Priority.CRITICAL),
    EventDefinition(SHARED, shared=True),
]


@pytest.fixture(params=["kvm", "tf-a"])
def rig(request: pytest.FixtureRequest) -> Rig:
    """Two unmasked PEs; everything is registered and enabled on both."""
    rig = Rig(2, EVENTS, request.param, unmasked=True)
    for pe in range(2):
        for event in (0, PRIVATE, CRITICAL):
            rig.call(pe, "event_register", event, ENTRY, 0, 0, 0)
            rig.call(pe, "event_enable", event)
    rig.call(0, "event_register", SHARED, ENTRY, 0, 1, rig.fw.pes[1].affinity)
    rig.call(0, "event_enable", SHARED)
    return rig


def running(rig: Rig, pe: int) -> list[int]:
    return [frame.handler.event for frame in rig.oracle.pes[pe].frames]


# -- off and on


def test_a_pe_starts_masked() -> None:
    assert Rig(1).call(0, "pe_mask") == 0


def test_off_unregisters_what_is_private(rig: Rig) -> None:
    rig.pe_off(1)
    rig.pe_on(1)
    assert [rig.call(1, "event_status", event) for event in (0, PRIVATE, CRITICAL, SHARED)] == [0, 0, 0, 3]
    assert [rig.call(0, "event_status", event) for event in (0, PRIVATE, CRITICAL)] == [3, 3, 3]
    assert rig.call(1, "pe_mask") == 0


def test_off_ends_running_handlers(rig: Rig) -> None:
    """Nested ones, a shared one among them, and one that is unregister-pending."""
    rig.inject(SHARED)
    rig.look(1)
    rig.inject(CRITICAL, 1)
    rig.look(1)
    rig.call(1, "event_unregister", CRITICAL)
    assert running(rig, 1) == [SHARED, CRITICAL]
    rig.pe_off(1)
    assert rig.call(0, "event_status", SHARED) == 3
    rig.pe_on(1)
    assert rig.call(1, "event_complete", 0) == DENIED
    assert rig.log.ended == [(1, CRITICAL, True), (1, SHARED, True)]


def test_off_ends_a_shared_handler_that_is_unregister_pending(rig: Rig) -> None:
    rig.inject(SHARED)
    rig.look(1)
    rig.call(0, "event_unregister", SHARED)
    rig.pe_off(1)
    assert rig.call(0, "event_status", SHARED) == 0
    assert rig.call(0, "event_register", SHARED, ENTRY, 0, 0, 0) == SUCCESS


def test_off_drops_what_was_pending(rig: Rig) -> None:
    rig.inject(PRIVATE, 1)
    rig.inject(CRITICAL, 1)
    rig.pe_off(1)
    rig.pe_on(1)
    rig.call(1, "pe_unmask")
    assert running(rig, 1) == []
    assert rig.oracle.handler(PRIVATE, 1).dropped == 1


def test_off_from_inside_a_handler_does_not_stay_behind(rig: Rig) -> None:
    """Linux's crash stop turns the PE off from the handler of event 0."""
    rig.call(0, "event_signal", 0, rig.fw.pes[1].affinity)
    rig.settle()
    assert running(rig, 1) == [0]
    rig.pe_off(1)
    assert rig.call(0, "shared_reset") == SUCCESS
    assert rig.inject(0, 1) == "not registered"


def test_on_without_off_is_a_reset_of_the_pe(rig: Rig) -> None:
    rig.inject(PRIVATE, 1)
    rig.look(1)
    rig.pe_on(1)
    assert running(rig, 1) == []
    assert rig.call(1, "event_status", PRIVATE) == 0
    assert rig.call(1, "pe_mask") == 0


# -- suspend


def test_suspend_masks_and_keeps_registrations(rig: Rig) -> None:
    assert rig.pe_suspend(1)
    rig.pe_resume(1)
    assert rig.call(1, "event_status", PRIVATE) == 3
    assert rig.call(1, "pe_mask") == 0


@pytest.mark.parametrize("event", [0, PRIVATE, CRITICAL, SHARED])
def test_suspend_is_refused_while_an_event_is_ready(rig: Rig, event: int) -> None:
    rig.inject(event, None if event == SHARED else 1)
    assert not rig.pe_suspend(1)
    assert rig.look(1) == event


@pytest.mark.parametrize("event", [PRIVATE, SHARED])
def test_a_suspended_pe_wakes_for_its_events(rig: Rig, event: int) -> None:
    """It starts again masked, and takes the event when it unmasks."""
    assert rig.pe_suspend(1)
    rig.inject(event, None if event == SHARED else 1)
    assert rig.kicked == {1}
    assert rig.look(1) is None
    rig.call(1, "pe_unmask")
    assert running(rig, 1) == [event]


def test_a_suspended_pe_wakes_for_what_is_enabled_meanwhile(rig: Rig) -> None:
    rig.call(0, "event_disable", SHARED)
    rig.inject(SHARED)
    assert rig.pe_suspend(1)
    rig.call(0, "event_enable", SHARED)
    assert rig.kicked == {1}


@pytest.mark.parametrize("event", [PRIVATE, SHARED])
def test_a_pe_that_masked_before_it_was_suspended_sleeps_on(rig: Rig, event: int) -> None:
    """As Linux does: PE_MASK, CPU_SUSPEND."""
    rig.call(1, "pe_mask")
    rig.inject(event, None if event == SHARED else 1)
    assert rig.pe_suspend(1)
    rig.inject(CRITICAL, 1)
    assert rig.kicked == set()


def test_a_disabled_event_does_not_wake(rig: Rig) -> None:
    rig.call(1, "event_disable", PRIVATE)
    assert rig.pe_suspend(1)
    rig.inject(PRIVATE, 1)
    assert rig.kicked == set()


def test_signal_to_a_suspended_pe(rig: Rig) -> None:
    """It wakes, whichever rule is followed for masked PEs: this one is masked only when it wakes up."""
    assert rig.pe_suspend(1)
    assert rig.call(0, "event_signal", 0, rig.fw.pes[1].affinity) == SUCCESS
    assert rig.kicked == {1}


def test_signal_to_a_pe_that_was_suspended_masked(rig: Rig) -> None:
    """KVM's rule pends the event, which does not wake it; TF-A refuses."""
    rig.call(1, "pe_mask")
    assert rig.pe_suspend(1)
    result = rig.call(0, "event_signal", 0, rig.fw.pes[1].affinity)
    assert (result == SUCCESS) == (rig.policy == "kvm")
    assert rig.kicked == set()


def test_off_while_suspended(rig: Rig) -> None:
    assert rig.pe_suspend(1)
    rig.pe_off(1)
    assert rig.inject(PRIVATE, 1) == "not registered"
    rig.pe_on(1)
    assert rig.call(1, "pe_mask") == 0


# -- system reset


def test_system_reset_forgets_everything_but_the_counts(rig: Rig) -> None:
    bound = rig.call(0, "interrupt_bind", 41)
    rig.call(0, "event_register", bound, ENTRY, 0, 0, 0)
    rig.inject(SHARED)
    rig.inject(PRIVATE, 0)
    rig.settle()
    rig.inject(PRIVATE, 0)
    rig.inject(bound)
    rig.reset()
    assert rig.fw.take_kicks() == 0
    for pe in range(2):
        rig.pe_on(pe)
        assert [rig.call(pe, "event_status", event) for event in (0, PRIVATE, CRITICAL, SHARED)] == [0] * 4
        rig.call(pe, "pe_unmask")
        assert running(rig, pe) == []
    assert not rig.interrupt(41)
    assert rig.call(0, "interrupt_bind", 42) == bound
    handler = rig.oracle.handler(PRIVATE, 0)
    assert (handler.injected, handler.delivered, handler.dropped) == (2, 1, 1)


def test_system_reset_while_suspended(rig: Rig) -> None:
    assert rig.pe_suspend(0)
    rig.reset()
    rig.pe_on(0)
    assert rig.call(0, "event_register", PRIVATE, ENTRY, 0, 0, 0) == SUCCESS


@pytest.mark.parametrize("priority", list(Priority))
def test_a_shared_event_wakes_a_pe_when_everybody_sleeps(priority: Priority) -> None:
    """RM_ANY: nobody can take it at once, so one PE that may be woken is; not one that masked itself before."""
    rig = Rig(3, [EventDefinition(0x20, shared=True, priority=priority)], unmasked=True)
    rig.call(0, "event_register", 0x20, 0x4010_0000, 0, 0, 0)
    rig.call(0, "event_enable", 0x20)
    rig.call(0, "pe_mask")
    for pe in range(3):
        assert rig.pe_suspend(pe)
    rig.inject(0x20)
    assert rig.kicked == {1}
    assert rig.look(1) is None  # it wakes up masked
    rig.call(1, "pe_unmask")
    assert rig.oracle.handler(0x20, None).running_on == 1


def test_a_shared_event_that_nobody_can_take_stays_pending() -> None:
    rig = Rig(2, [EventDefinition(0x20, shared=True)])
    rig.call(0, "event_register", 0x20, 0x4010_0000, 0, 0, 0)
    rig.call(0, "event_enable", 0x20)
    rig.pe_suspend(1)
    rig.inject(0x20)
    assert not rig.kicked
    rig.call(0, "pe_unmask")
    assert rig.oracle.handler(0x20, None).running_on == 0
