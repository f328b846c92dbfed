# SPDX-License-Identifier: Apache-2.0
"""Shared events: one PE takes them, chosen by the firmware (RM_ANY) or by the guest (RM_PE).

The rig asserts after each step that an event which some PE could take has such a PE kicked, so most
of these tests only need to make the step that would strand it.
"""

from __future__ import annotations

import pytest

from sdeivirt.fuzz.oracle import SUCCESS
from sdeivirt.sdei.events import EventDefinition, Priority

from .fake_view import Rig

PRIVATE, CRITICAL, SHARED, SHARED_TOO, SHARED_CRITICAL = 5, 9, 0x20, 0x21, 0x22
ENTRY = 0x4010_0000
EVENTS = [
    EventDefinition(PRIVATE),
    EventDefinition(CRITICAL, priority=Priority.CRITICAL),
    EventDefinition(SHARED, shared=True),
    EventDefinition(SHARED_TOO, shared=True),
    EventDefinition(SHARED_CRITICAL, shared=True, priority=Priority.CRITICAL),
]
PES = 4


def boot(policy: str = "kvm") -> Rig:
    """Four unmasked PEs; every event is registered and enabled, on every PE where it is private."""
    rig = Rig(PES, EVENTS, policy, unmasked=True)
    for event in (SHARED, SHARED_TOO, SHARED_CRITICAL):
        route(rig, event)
    for pe in range(PES):
        for event in (0, PRIVATE, CRITICAL):
            assert rig.call(pe, "event_register", event, ENTRY, event, 0, 0) == SUCCESS
            assert rig.call(pe, "event_enable", event) == SUCCESS
    return rig


def route(rig: Rig, event: int, pe: int | None = None) -> None:
    """Register and enable a shared event, for one PE or for any."""
    affinity = 0 if pe is None else rig.fw.pes[pe].affinity
    assert rig.call(0, "event_register", event, ENTRY, event, pe is not None, affinity) == SUCCESS
    assert rig.call(0, "event_enable", event) == SUCCESS


@pytest.fixture(params=["kvm", "tf-a"])
def rig(request: pytest.FixtureRequest) -> Rig:
    return boot(request.param)


def occupy(rig: Rig, pe: int, event: int = PRIVATE) -> None:
    """Bring a PE into a handler of its own, where it stays."""
    rig.inject(event, pe)
    assert rig.look(pe) == event


def busy(rig: Rig) -> dict[int, list[int]]:
    """What runs where."""
    return {pe: [frame.handler.event for frame in state.frames] for pe, state in rig.oracle.pes.items() if state.frames}


def takes(rig: Rig, event: int) -> int:
    """The PE that takes an injected event."""
    rig.inject(event)
    entered = rig.settle()
    assert [number for _, number in entered] == [event]
    return entered[0][0]


# -- any PE


def test_only_one_pe_takes_it(rig: Rig) -> None:
    takes(rig, SHARED)
    assert len(busy(rig)) == 1
    assert all(rig.look(pe) is None for pe in range(PES))


def test_the_load_is_spread(rig: Rig) -> None:
    chosen = []
    for _ in range(PES):
        pe = takes(rig, SHARED)
        chosen.append(pe)
        rig.call(pe, "event_complete", 0)
    assert sorted(chosen) == list(range(PES))


@pytest.mark.parametrize("free", range(PES))
def test_masked_pes_are_passed_over(rig: Rig, free: int) -> None:
    for pe in range(PES):
        if pe != free:
            rig.call(pe, "pe_mask")
    assert takes(rig, SHARED) == free


@pytest.mark.parametrize("free", range(PES))
def test_busy_pes_are_passed_over(rig: Rig, free: int) -> None:
    for pe in range(PES):
        if pe != free:
            occupy(rig, pe)
    assert takes(rig, SHARED) == free


@pytest.mark.parametrize("free", range(PES))
def test_absent_pes_are_passed_over(rig: Rig, free: int) -> None:
    for pe in range(PES):
        if pe != free:
            rig.pe_off(pe)
    assert takes(rig, SHARED) == free


@pytest.mark.parametrize("free", range(PES))
def test_suspended_pes_are_passed_over(rig: Rig, free: int) -> None:
    for pe in range(PES):
        if pe != free:
            assert rig.pe_suspend(pe)
    assert takes(rig, SHARED) == free


@pytest.mark.parametrize("free", range(PES))
def test_pes_in_critical_handlers_are_passed_over(rig: Rig, free: int) -> None:
    for pe in range(PES):
        if pe != free:
            occupy(rig, pe, CRITICAL)
    assert takes(rig, SHARED_CRITICAL) == free


def test_a_critical_event_may_go_to_a_pe_in_a_normal_handler(rig: Rig) -> None:
    for pe in range(PES):
        occupy(rig, pe, CRITICAL if pe != 2 else PRIVATE)
    assert takes(rig, SHARED_CRITICAL) == 2


def test_two_events_go_to_two_pes(rig: Rig) -> None:
    rig.inject(SHARED)
    rig.inject(SHARED_TOO)
    assert sorted(event for _, event in rig.settle()) == [SHARED, SHARED_TOO]
    assert len(busy(rig)) == 2


def test_while_it_runs_it_is_not_given_to_another_pe(rig: Rig) -> None:
    pe = takes(rig, SHARED)
    rig.inject(SHARED)
    assert rig.settle() == []
    rig.call(pe, "event_complete", 0)
    rig.settle()
    assert [event for events in busy(rig).values() for event in events] == [SHARED]


@pytest.mark.parametrize("obstacle", ["masks", "goes off", "gets busy", "is suspended"])
def test_it_is_offered_again_when_the_chosen_pe_cannot(rig: Rig, obstacle: str) -> None:
    """Whichever PE is kicked, it finds something else to do; in the end nobody is left, then one comes back."""
    rig.inject(SHARED)
    for _ in range(PES - 1):
        chosen = min(rig.kicked)
        if obstacle == "masks":
            # The call that masks is also the last chance to take it, but it masks first.
            rig.call(chosen, "pe_mask")
        elif obstacle == "goes off":
            rig.pe_off(chosen)
        elif obstacle == "gets busy":
            rig.inject(PRIVATE, chosen)
        else:
            assert not rig.pe_suspend(chosen), "an event is ready: a PE that could take it must not sleep"
            rig.call(chosen, "pe_mask")
            assert rig.pe_suspend(chosen)
        rig.look(chosen) if obstacle != "goes off" else None
    rig.settle()
    assert [SHARED] in busy(rig).values()


def test_it_waits_for_the_first_pe_that_can(rig: Rig) -> None:
    for pe in range(PES):
        rig.call(pe, "pe_mask")
    rig.inject(SHARED)
    assert rig.kicked == set()
    rig.call(3, "pe_unmask")
    assert busy(rig) == {3: [SHARED]}


def test_it_goes_on_when_its_pe_is_turned_off(rig: Rig) -> None:
    pe = takes(rig, SHARED)
    rig.inject(SHARED)
    rig.pe_off(pe)
    rig.settle()
    assert [SHARED] in busy(rig).values()
    assert pe not in busy(rig)


def test_a_critical_event_does_not_hide_a_normal_one(rig: Rig) -> None:
    """Both are ready; the PE that was to take the normal one masks; the critical one is taken back.

    PEs 0 and 1 are in normal handlers, so the normal event is PE 2's, and somebody has to tell it.
    """
    occupy(rig, 0)
    occupy(rig, 1)
    assert takes(rig, SHARED) == 2  # so that the next in turn is PE 3
    rig.call(2, "event_complete", 0)
    rig.inject(SHARED)
    assert rig.kicked == {3}
    rig.inject(SHARED_CRITICAL)
    rig.call(3, "pe_mask")
    rig.cancel(SHARED_CRITICAL)
    rig.settle()
    assert busy(rig)[2] == [SHARED]


# -- one PE


@pytest.mark.parametrize("target", range(PES))
def test_one_pe(rig: Rig, target: int) -> None:
    rig.call(0, "event_unregister", SHARED)
    route(rig, SHARED, target)
    assert takes(rig, SHARED) == target


def test_one_pe_that_is_masked_keeps_it_waiting(rig: Rig) -> None:
    rig.call(0, "event_unregister", SHARED)
    route(rig, SHARED, 1)
    rig.call(1, "pe_mask")
    rig.inject(SHARED)
    assert rig.settle() == []
    rig.call(1, "pe_unmask")
    assert busy(rig) == {1: [SHARED]}


def test_one_pe_that_is_off_keeps_it_waiting(rig: Rig) -> None:
    rig.pe_off(3)
    rig.call(0, "event_unregister", SHARED)
    route(rig, SHARED, 3)
    rig.inject(SHARED)
    assert rig.settle() == []
    rig.pe_on(3)
    assert rig.settle() == []
    rig.call(3, "pe_unmask")
    assert busy(rig) == {3: [SHARED]}


def test_one_pe_goes_off_and_keeps_the_registration(rig: Rig) -> None:
    rig.call(0, "event_unregister", SHARED)
    route(rig, SHARED, 1)
    assert takes(rig, SHARED) == 1
    rig.pe_off(1)
    assert rig.call(0, "event_status", SHARED) == 3
    assert rig.call(0, "event_get_info", SHARED, 4) == rig.fw.pes[1].affinity


def test_a_pending_event_follows_its_routing(rig: Rig) -> None:
    rig.call(0, "event_disable", SHARED)
    rig.inject(SHARED)
    assert rig.call(0, "event_routing_set", SHARED, 1, rig.fw.pes[2].affinity) == SUCCESS
    rig.call(0, "event_enable", SHARED)
    assert rig.settle() == [(2, SHARED)]


def test_own_and_shared_events_keep_their_order(rig: Rig) -> None:
    for pe in (1, 2, 3):
        rig.call(pe, "pe_mask")
    for event in (SHARED, PRIVATE, SHARED_CRITICAL, CRITICAL):
        rig.inject(event)
    order = [rig.look(0)]
    while 0 in busy(rig):
        rig.call(0, "event_complete", 0)
        order += busy(rig).get(0, [])
    assert order == [CRITICAL, SHARED_CRITICAL, PRIVATE, SHARED]


# -- signals to other PEs


@pytest.mark.parametrize("target", range(PES))
def test_signal_reaches_a_pe_in_a_handler(rig: Rig, target: int) -> None:
    """Event 0 is normal: the target takes it when its handler completes."""
    occupy(rig, target)
    caller = (target + 1) % PES
    raw_mpidr = rig.fw.pes[target].affinity | 0xC100_0000
    assert rig.call(caller, "event_signal", 0, raw_mpidr) == SUCCESS
    rig.settle()
    rig.call(target, "event_complete", 0)
    assert busy(rig) == {target: [0]}


def test_signal_from_inside_a_handler(rig: Rig) -> None:
    occupy(rig, 0)
    for target in range(1, PES):
        assert rig.call(0, "event_signal", 0, rig.fw.pes[target].affinity) == SUCCESS
    assert rig.kicked == {1, 2, 3}
    assert rig.settle() == [(1, 0), (2, 0), (3, 0)]


def test_with_many_pes() -> None:
    """Affinities of the virt board: 16 in a cluster."""
    rig = Rig(40, EVENTS, unmasked=True)
    rig.call(39, "event_register", 0, ENTRY, 0, 0, 0)
    rig.call(39, "event_enable", 0)
    assert rig.call(0, "event_signal", 0, 0x8000_0207) == SUCCESS
    assert rig.settle() == [(39, 0)]
