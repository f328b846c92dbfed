# SPDX-License-Identifier: Apache-2.0
"""The service as machines and hosts see it, beyond the calls: how it is made, what is bound, whom to kick."""

from __future__ import annotations

import pytest

from sdeivirt.errors import EventFileError, UsageError
from sdeivirt.fuzz.oracle import SUCCESS
from sdeivirt.sdei import EventDefinition, Policy, Priority, Sdei
from sdeivirt.sdei.events import check_events

from .fake_view import Rig

PRIVATE, SHARED = 5, 0x20
EVENTS = [EventDefinition(PRIVATE, interrupt=20), EventDefinition(SHARED, shared=True, interrupt=40)]


@pytest.mark.parametrize("affinities", [[], [0, 0], [1, 2, 1]])
def test_every_pe_has_an_affinity_of_its_own(affinities: list[int]) -> None:
    with pytest.raises(UsageError, match="affinity of its own"):
        Sdei(affinities)


@pytest.mark.parametrize("slots", [-1, 513])
def test_slots_that_cannot_be(slots: int) -> None:
    with pytest.raises(UsageError, match=f"cannot be {slots} shared slots"):
        Policy("mine", shared_slots=slots)


def test_interrupts_that_raise_events() -> None:
    """By definition and by binding: what a machine has to watch."""
    assert not Sdei(1).bindings.any
    rig = Rig(1, EVENTS, "kvm")
    bound = rig.call(0, "interrupt_bind", 41)
    bindings = rig.fw.sdei.bindings
    assert bindings.any
    assert {intid: event.number for intid, event in bindings.all()} == {20: PRIVATE, 40: SHARED, 41: bound}
    assert rig.call(0, "interrupt_release", bound) == SUCCESS
    assert 41 not in dict(bindings.all())


def test_who_could_take_an_event() -> None:
    rig = Rig(3, EVENTS, "kvm", unmasked=True)
    delivery, events = rig.fw.sdei.delivery, {event.number: event for event in rig.fw.sdei.events}
    rig.call(1, "pe_mask")
    assert delivery.takers(events[SHARED]) == 0b101


def test_kicks_are_asked_for_once() -> None:
    sdei = Sdei(2)
    sdei.delivery.kicks = 0b10
    assert sdei.take_kicks() == 0b10
    assert sdei.take_kicks() == 0


@pytest.mark.parametrize(
    ("definition", "complaint"),
    [
        ({"number": -1}, "is no event number"),
        ({"number": 1 << 31}, "is no event number"),
        ({"number": 0x4000_1000}, "taken by the dynamic events"),
        ({"number": 7, "shared": True, "signalable": True}, "shared and signalable"),
        ({"number": 0}, "event 0 is private, normal, signalable"),
        ({"number": 7, "interrupt": 40}, "interrupt 40 does not fit"),
        ({"number": 7, "shared": True, "interrupt": 20}, "interrupt 20 does not fit"),
        ({"number": 7, "interrupt": 15}, "interrupt 15 does not fit"),
    ],
)
def test_events_that_cannot_be(definition: dict[str, int], complaint: str) -> None:
    with pytest.raises(EventFileError, match=complaint):
        EventDefinition(**definition)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "pair",
    [
        (EventDefinition(7), EventDefinition(7, priority=Priority.CRITICAL)),
        (EventDefinition(7, interrupt=20), EventDefinition(8, interrupt=20)),
    ],
)
def test_events_that_contradict_each_other(pair: tuple[EventDefinition, EventDefinition]) -> None:
    with pytest.raises(EventFileError):
        list(check_events(pair))
