# SPDX-License-Identifier: Apache-2.0
"""The calls that reach beyond the calling PE: routing, bindings, signals and resets. DEN0054C 5.1."""

from __future__ import annotations

import pytest

from sdeivirt.fuzz.oracle import DENIED, INVALID, M64, OUT_OF_RESOURCE, PENDING, SUCCESS
from sdeivirt.sdei.events import EventDefinition, Priority

from .fake_view import Rig

PRIVATE, SHARED, OTHER_SHARED, VENDOR, WITH_PPI, WITH_SPI = 5, 0x20, 0x21, 0x4000_0001, 7, 0x30
STATIC_PPI, STATIC_SPI = 20, 40
EVENTS = [
    EventDefinition(PRIVATE),
    EventDefinition(SHARED, shared=True),
    EventDefinition(OTHER_SHARED, shared=True, priority=Priority.CRITICAL),
    EventDefinition(VENDOR, signalable=True),
    EventDefinition(WITH_PPI, interrupt=STATIC_PPI),
    EventDefinition(WITH_SPI, shared=True, interrupt=STATIC_SPI),
]
AFFINITIES = [0x0, 0x1, 0x02_0000_0100]
ENTRY = 0x4010_0000
NOISE = 0xDEAD_BEEF << 32
# MPIDR_EL1 as it reads: bit 31 is one, U (30) and MT (24) may be.
RAW_MPIDR = 0x8000_0000 | 1 << 30 | 1 << 24


@pytest.fixture(params=["kvm", "tf-a"])
def rig(request: pytest.FixtureRequest) -> Rig:
    """Three unmasked PEs."""
    return Rig(AFFINITIES, EVENTS, request.param, unmasked=True)


def register(rig: Rig, event: int, pe: int = 0, *, enable: bool = False) -> None:
    assert rig.call(pe, "event_register", event, ENTRY, 0x77, 0, 0) == SUCCESS
    if enable:
        assert rig.call(pe, "event_enable", event) == SUCCESS


def run(rig: Rig, event: int, pe: int = 0) -> None:
    """Bring a PE into the handler of an event."""
    register(rig, event, pe, enable=True)
    rig.inject(event, None if event in rig.oracle.shared else pe)
    assert rig.look(pe) == event


# -- EVENT_ROUTING_SET


def test_routing_set(rig: Rig) -> None:
    register(rig, SHARED)
    for pe, affinity in enumerate(AFFINITIES):
        assert rig.call(0, "event_routing_set", SHARED | NOISE, 1, affinity | RAW_MPIDR) == SUCCESS
        assert rig.call(0, "event_get_info", SHARED, 3) == 1
        assert rig.call(0, "event_get_info", SHARED, 4) == affinity, pe
    for ignored in (0x7777, AFFINITIES[1]):
        assert rig.call(0, "event_routing_set", SHARED, 0, ignored) == SUCCESS
        assert rig.call(0, "event_get_info", SHARED, 3) == 0
        assert rig.call(0, "event_get_info", SHARED, 4) == INVALID


def test_routing_info_of_an_unregistered_event(rig: Rig) -> None:
    assert [rig.call(0, "event_get_info", SHARED, info) for info in (3, 4)] == [DENIED, DENIED]
    run(rig, SHARED)
    rig.call(0, "event_unregister", SHARED)
    assert [rig.call(0, "event_get_info", SHARED, info) for info in (3, 4)] == [DENIED, DENIED]


@pytest.mark.parametrize("mode", [2, 3, 1 << 31, 1 << 32, 1 << 63 | 1, M64])
def test_routing_set_reserved_modes(rig: Rig, mode: int) -> None:
    register(rig, SHARED)
    assert rig.call(0, "event_routing_set", SHARED, mode, 0) == INVALID


@pytest.mark.parametrize("affinity", [0x2, 0x100, 0x03_0000_0100, 0x8000_0002])
def test_routing_set_unknown_affinity(rig: Rig, affinity: int) -> None:
    register(rig, SHARED)
    assert rig.call(0, "event_routing_set", SHARED, 1, affinity) == INVALID


@pytest.mark.parametrize("event", [0, PRIVATE, WITH_PPI, 99, 0x8000_0020])
def test_routing_set_of_what_is_not_shared(rig: Rig, event: int) -> None:
    assert rig.call(0, "event_routing_set", event, 0, 0) == INVALID


def test_routing_set_only_while_registered_and_disabled(rig: Rig) -> None:
    assert rig.call(0, "event_routing_set", SHARED, 0, 0) == DENIED
    register(rig, SHARED, enable=True)
    assert rig.call(0, "event_routing_set", SHARED, 0, 0) == DENIED
    # The parameters are looked at first.
    assert rig.call(0, "event_routing_set", SHARED, 2, 0) == INVALID


def test_registration_starts_with_its_own_routing(rig: Rig) -> None:
    assert rig.call(0, "event_register", SHARED, ENTRY, 0, 1, AFFINITIES[2]) == SUCCESS
    assert rig.call(0, "event_get_info", SHARED, 4) == AFFINITIES[2]
    rig.call(0, "event_unregister", SHARED)
    register(rig, SHARED)
    assert rig.call(0, "event_get_info", SHARED, 3) == 0


# -- INTERRUPT_BIND, INTERRUPT_RELEASE


def test_bind_gives_private_events_for_ppis_and_shared_ones_for_spis(rig: Rig) -> None:
    for interrupt, shared in ((16, 0), (31, 0), (32, 1), (1019, 1)):
        event = rig.call(0, "interrupt_bind", interrupt | NOISE)
        assert event & 1 << 30, "dynamic numbers are vendor-defined ones"
        assert not event >> 31
        assert [rig.call(0, "event_get_info", event, info) for info in (0, 2)] == [shared, 0]
        assert rig.call(1, "interrupt_bind", interrupt) == event


@pytest.mark.parametrize("interrupt", [0, 15, 1020, 1023, 1056, 4096, 8192, 0x8000_0010, 0xFFFF_FFFF])
def test_bind_what_is_neither_ppi_nor_spi(rig: Rig, interrupt: int) -> None:
    assert rig.call(0, "interrupt_bind", interrupt) == INVALID


@pytest.mark.parametrize("interrupt", [STATIC_PPI, STATIC_SPI])
def test_bind_an_interrupt_of_a_static_event(rig: Rig, interrupt: int) -> None:
    assert rig.call(0, "interrupt_bind", interrupt) == INVALID


@pytest.mark.parametrize("policy", ["kvm", "tf-a"])
@pytest.mark.parametrize("first", [16, 32])
def test_bind_until_the_slots_are_used_up(policy: str, first: int) -> None:
    rig = Rig(1, EVENTS, policy, slots=(2, 2))
    events = [rig.call(0, "interrupt_bind", first + i) for i in range(2)]
    assert len(set(events)) == 2
    assert rig.call(0, "interrupt_bind", first + 2) == OUT_OF_RESOURCE
    assert rig.call(0, "interrupt_bind", first) == events[0]
    assert rig.call(0, "interrupt_release", events[1]) == SUCCESS
    assert rig.call(0, "interrupt_bind", first + 2) == events[1]


def test_bind_more_ppis_than_slots_does_not_touch_the_spis() -> None:
    rig = Rig(slots=(1, 1))
    assert rig.call(0, "interrupt_bind", 16) > 0
    assert rig.call(0, "interrupt_bind", 17) == OUT_OF_RESOURCE
    assert rig.call(0, "interrupt_bind", 32) > 0
    assert Rig(slots=(0, 0)).call(0, "interrupt_bind", 16) == OUT_OF_RESOURCE


def test_release(rig: Rig) -> None:
    event = rig.call(0, "interrupt_bind", 21)
    assert rig.call(1, "interrupt_release", event | NOISE) == SUCCESS
    assert rig.call(0, "interrupt_release", event) == INVALID


@pytest.mark.parametrize("event", [0, PRIVATE, SHARED, WITH_PPI, WITH_SPI, 99])
def test_release_of_what_is_not_dynamic(rig: Rig, event: int) -> None:
    assert rig.call(0, "interrupt_release", event) == INVALID


@pytest.mark.parametrize("interrupt", [21, 41])
def test_release_while_any_registration_is_left(rig: Rig, interrupt: int) -> None:
    event = rig.call(0, "interrupt_bind", interrupt)
    run(rig, event, pe=1)
    assert rig.call(0, "interrupt_release", event) == DENIED
    assert rig.call(1, "event_unregister", event) == PENDING
    assert rig.call(0, "interrupt_release", event) == DENIED
    rig.call(1, "event_complete", 0)
    assert rig.call(0, "interrupt_release", event) == SUCCESS


def test_release_counts_the_registrations_of_all_pes(rig: Rig) -> None:
    event = rig.call(0, "interrupt_bind", 21)
    for pe in range(3):
        register(rig, event, pe)
    for pe in range(3):
        assert rig.call(0, "interrupt_release", event) == DENIED
        assert rig.call(pe, "event_unregister", event) == SUCCESS
    assert rig.call(0, "interrupt_release", event) == SUCCESS


def test_a_bound_interrupt_is_sdeis_once_registered(rig: Rig) -> None:
    event = rig.call(0, "interrupt_bind", 21)
    assert not rig.interrupt(21, 0)
    register(rig, event, pe=1, enable=True)
    assert not rig.interrupt(21, 0)
    assert rig.interrupt(21, 1)
    assert rig.look(1) == event
    rig.call(1, "event_unregister", event)
    assert not rig.interrupt(21, 1)


def test_a_slot_used_again_remembers_nothing(rig: Rig) -> None:
    event = rig.call(0, "interrupt_bind", 21)
    register(rig, event)
    rig.interrupt(21, 0)
    rig.call(0, "event_unregister", event)
    rig.call(0, "interrupt_release", event)
    assert rig.call(0, "interrupt_bind", 22) == event
    register(rig, event, enable=True)
    assert rig.look(0) is None
    assert not rig.interrupt(21, 0)


# -- EVENT_SIGNAL


@pytest.mark.parametrize("target", range(3))
@pytest.mark.parametrize("event", [0, VENDOR])
def test_signal_goes_to_the_pe_of_the_affinity(rig: Rig, event: int, target: int) -> None:
    for pe in range(3):
        register(rig, event, pe, enable=True)
    caller = (target + 1) % 3
    assert rig.call(caller, "event_signal", event | NOISE, AFFINITIES[target] | RAW_MPIDR) == SUCCESS
    assert rig.settle() == [(target, event)]


@pytest.mark.parametrize("event", [PRIVATE, SHARED, WITH_PPI, 99, 0x8000_0000])
def test_signal_of_what_is_not_signalable(rig: Rig, event: int) -> None:
    if event in (PRIVATE, SHARED):
        register(rig, event, enable=True)
    assert rig.call(0, "event_signal", event, 0) == INVALID


@pytest.mark.parametrize("affinity", [0x2, 0x100, 0x1_0000_0000, 0xFF_0000_0000])
def test_signal_to_nobody(rig: Rig, affinity: int) -> None:
    register(rig, 0, enable=True)
    assert rig.call(0, "event_signal", 0, affinity) == INVALID


def test_signal_to_an_unregistered_or_absent_target(rig: Rig) -> None:
    register(rig, 0, enable=True)
    assert rig.call(0, "event_signal", 0, AFFINITIES[1]) == INVALID
    register(rig, 0, pe=1, enable=True)
    rig.pe_off(1)
    assert rig.call(0, "event_signal", 0, AFFINITIES[1]) == INVALID


@pytest.mark.parametrize("obstacle", ["masked", "disabled"])
def test_signal_to_a_target_that_is_not_ready(rig: Rig, obstacle: str) -> None:
    """Under kvm the event waits; TF-A refuses it, and nothing is remembered."""
    register(rig, 0, pe=1, enable=obstacle == "masked")
    if obstacle == "masked":
        rig.call(1, "pe_mask")
    expected = SUCCESS if rig.policy == "kvm" else INVALID
    assert rig.call(0, "event_signal", 0, AFFINITIES[1]) == expected
    rig.call(1, "event_enable", 0)
    assert (1, 0) not in rig.settle()
    rig.call(1, "pe_unmask")
    assert [frame.handler.event for frame in rig.oracle.pes[1].frames] == ([0] if rig.policy == "kvm" else [])


# -- resets


def test_private_reset_is_the_calling_pes(rig: Rig) -> None:
    for pe in range(2):
        register(rig, PRIVATE, pe, enable=True)
        register(rig, 0, pe)
    register(rig, SHARED)
    assert rig.call(0, "private_reset") == SUCCESS
    assert [rig.call(0, "event_status", event) for event in (0, PRIVATE, SHARED)] == [0, 0, 1]
    assert [rig.call(1, "event_status", event) for event in (0, PRIVATE)] == [1, 3]


def test_private_reset_with_a_running_handler(rig: Rig) -> None:
    register(rig, 0, enable=True)
    run(rig, PRIVATE)
    assert rig.call(0, "private_reset") == DENIED
    assert [rig.call(0, "event_status", event) for event in (0, PRIVATE)] == [0, 4]
    assert rig.call(0, "private_reset") == DENIED
    rig.call(0, "event_complete", 0)
    assert rig.call(0, "private_reset") == SUCCESS


def test_an_event_that_never_completes_blocks_nobody_else(rig: Rig) -> None:
    run(rig, 0, pe=1)
    assert rig.call(0, "private_reset") == SUCCESS
    assert rig.call(0, "shared_reset") == SUCCESS


def test_shared_reset(rig: Rig) -> None:
    register(rig, PRIVATE)
    register(rig, SHARED, enable=True)
    bound = [rig.call(0, "interrupt_bind", interrupt) for interrupt in (21, 41)]
    register(rig, bound[1], enable=True)
    assert rig.call(1, "shared_reset") == SUCCESS
    assert [rig.call(0, "event_status", event) for event in (PRIVATE, SHARED)] == [1, 0]
    assert [rig.call(0, "interrupt_release", event) for event in bound] == [INVALID, INVALID]


def test_shared_reset_with_a_handler_running_anywhere_keeps_bindings(rig: Rig) -> None:
    bound = rig.call(0, "interrupt_bind", 41)
    register(rig, OTHER_SHARED)
    run(rig, SHARED, pe=1)
    assert rig.call(0, "shared_reset") == DENIED
    assert [rig.call(0, "event_status", event) for event in (SHARED, OTHER_SHARED)] == [4, 0]
    assert rig.call(0, "interrupt_bind", 42) != bound, "its slot is taken still"
    rig.call(1, "event_complete", 0)
    assert rig.call(0, "shared_reset") == SUCCESS
    assert rig.call(0, "interrupt_release", bound) == INVALID


def test_shared_reset_with_a_bound_private_event_registered(rig: Rig) -> None:
    private, other, shared = (rig.call(0, "interrupt_bind", interrupt) for interrupt in (21, 22, 41))
    register(rig, private, pe=2)
    assert rig.call(0, "shared_reset") == DENIED
    assert [rig.call(0, "interrupt_release", event) for event in (private, other, shared)] == [DENIED, INVALID, INVALID]
