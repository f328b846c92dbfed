# SPDX-License-Identifier: Apache-2.0
"""Which event a PE takes, when, and in which order. DEN0054C 4.3 and 6.1.

Shared events that any PE may take are in test_sdei_routing.py, power changes in test_sdei_power.py,
and the registers of a handler's start and end in test_sdei_entry.py.
"""

from __future__ import annotations

import pytest

from sdeivirt.errors import EventRunningError, NotRegisteredError, UnknownEventError, UnknownVcpuError, UsageError
from sdeivirt.fuzz.oracle import SUCCESS
from sdeivirt.sdei.events import EventDefinition, Priority

from .fake_view import Rig

LOW, HIGH, CRITICAL, CRITICAL_HIGH, SHARED = 5, 6, 9, 10, 0x20
ENTRY = 0x4010_0000
EVENTS = [
    EventDefinition(LOW, interrupt=20),
    EventDefinition(HIGH),
    EventDefinition(CRITICAL, priority=Priority.CRITICAL),
    EventDefinition(CRITICAL_HIGH, priority=Priority.CRITICAL),
    EventDefinition(SHARED, shared=True, interrupt=40),
]


@pytest.fixture(params=["kvm", "tf-a"])
def rig(request: pytest.FixtureRequest) -> Rig:
    """Two unmasked PEs; everything is registered and enabled on PE 0."""
    rig = Rig(2, EVENTS, request.param, unmasked=True)
    for event in (0, LOW, HIGH, CRITICAL, CRITICAL_HIGH, SHARED):
        assert rig.call(0, "event_register", event, ENTRY + event * 4, event, 0, 0) == SUCCESS
        assert rig.call(0, "event_enable", event) == SUCCESS
    return rig


def running(rig: Rig, pe: int = 0) -> list[int]:
    """The handlers that run on a PE, outermost first."""
    return [frame.handler.event for frame in rig.oracle.pes[pe].frames]


# -- when


def test_on_injection(rig: Rig) -> None:
    rig.inject(LOW)
    assert rig.kicked == {0}
    assert rig.look(0) == LOW


def test_on_enable(rig: Rig) -> None:
    rig.call(0, "event_disable", LOW)
    rig.inject(LOW)
    assert rig.kicked == set()
    assert rig.look(0) is None
    rig.call(0, "event_enable", LOW)
    assert running(rig) == [LOW]


def test_on_unmask(rig: Rig) -> None:
    rig.call(0, "pe_mask")
    rig.inject(LOW)
    rig.inject(CRITICAL)
    assert rig.kicked == set()
    assert rig.look(0) is None
    rig.call(0, "pe_unmask")
    assert running(rig) == [CRITICAL]


@pytest.mark.parametrize("complete", ["event_complete", "event_complete_and_resume"])
def test_on_complete(rig: Rig, complete: str) -> None:
    for event in (LOW, HIGH):
        rig.inject(event)
    rig.settle()
    assert running(rig) == [LOW]
    rig.call(0, complete, 0x4008_0280)
    assert running(rig) == [HIGH]


def test_on_a_signal_to_oneself(rig: Rig) -> None:
    """The call returns first: what the handler interrupts is the code after it, with its result in x0."""
    rig.set_registers(0, pc=0x7000)
    rig.call(0, "event_signal", 0, 0)
    assert running(rig) == [0]
    assert rig.cpus[0].registers["x2"] == 0x7000
    rig.call(0, "event_complete", 0)
    registers = rig.cpus[0].registers
    assert ([registers[f"x{i}"] for i in range(4)], registers["pc"]) == ([SUCCESS, 0, 0, 0], 0x7000)


def test_on_any_call(rig: Rig) -> None:
    """A PE that was kicked may be in a call before it stops: it takes the event there."""
    rig.inject(LOW)
    assert rig.call(0, "version") == LOW
    assert running(rig) == [LOW]


def test_on_an_interrupt(rig: Rig) -> None:
    assert rig.interrupt(20, 0)
    assert rig.interrupt(40)
    assert not rig.interrupt(20, 1)  # not registered there
    assert not rig.interrupt(99)
    assert rig.look(0) == LOW


@pytest.mark.parametrize("call", ["event_disable", "event_unregister"])
@pytest.mark.parametrize("event", [LOW, SHARED])
def test_not_any_more_when_the_guest_is_faster(rig: Rig, call: str, event: int) -> None:
    """The PE was kicked, and before it stops it disables or unregisters the event."""
    rig.inject(event)
    rig.call(0, call, event)
    assert running(rig) == []
    assert rig.look(0) is None
    rig.call(0, "event_register", event, ENTRY, 0, 0, 0)
    rig.call(0, "event_enable", event)
    assert running(rig) == ([event] if call == "event_disable" else [])


# -- in which order


def test_the_lowest_number_first(rig: Rig) -> None:
    for event in (SHARED, HIGH, LOW, 0):
        rig.inject(event)
    order = [rig.look(0)]
    while running(rig):
        rig.call(0, "event_complete", 0)
        order += running(rig)
    assert order == [0, LOW, HIGH, SHARED]


def test_critical_before_normal(rig: Rig) -> None:
    for event in (LOW, CRITICAL_HIGH, CRITICAL):
        rig.inject(event)
    order = [rig.look(0)]
    while running(rig):
        rig.call(0, "event_complete", 0)
        order += running(rig)
    assert order == [CRITICAL, CRITICAL_HIGH, LOW]


def test_nesting(rig: Rig) -> None:
    """A critical handler interrupts a normal one; each sees what it interrupted itself."""
    rig.set_registers(0, pc=0x7000, x7=7)
    rig.inject(LOW)
    rig.look(0)
    rig.set_registers(0, pc=0x8000, x7=8)
    rig.inject(CRITICAL)
    assert rig.look(0) == CRITICAL
    assert running(rig) == [LOW, CRITICAL]
    assert rig.call(0, "event_context", 7) == 8
    rig.call(0, "event_complete", 0)
    assert rig.cpus[0].registers["pc"] == 0x8000
    assert rig.call(0, "event_context", 7) == 7
    rig.call(0, "event_complete", 0)
    assert rig.cpus[0].registers["pc"] == 0x7000


@pytest.mark.parametrize("outer", [LOW, CRITICAL])
@pytest.mark.parametrize("inner", [0, LOW, HIGH, CRITICAL_HIGH, SHARED])
def test_only_critical_on_normal_nests(rig: Rig, outer: int, inner: int) -> None:
    rig.inject(outer)
    rig.look(0)
    rig.call(1, "pe_mask")
    rig.inject(inner)
    if (outer, inner) == (LOW, CRITICAL_HIGH):
        assert rig.look(0) == inner
    else:
        assert rig.look(0) is None
        rig.call(0, "event_complete", 0)
        assert running(rig) == [inner]


def test_no_third_level(rig: Rig) -> None:
    for event in (LOW, CRITICAL):
        rig.inject(event)
        rig.look(0)
    for event in (HIGH, CRITICAL_HIGH):
        rig.inject(event)
        assert rig.look(0) is None
    rig.call(0, "event_complete", 0)
    assert running(rig) == [LOW, CRITICAL_HIGH]
    rig.call(0, "event_complete", 0)
    assert running(rig) == [LOW]
    rig.call(0, "event_complete", 0)
    assert running(rig) == [HIGH]


def test_masking_inside_a_handler(rig: Rig) -> None:
    rig.inject(LOW)
    rig.look(0)
    assert rig.call(0, "pe_mask") == 1
    rig.inject(CRITICAL)
    assert rig.look(0) is None
    rig.call(0, "event_complete", 0)
    assert running(rig) == []
    rig.call(0, "pe_unmask")
    assert running(rig) == [CRITICAL]


# -- how often


def test_signals_before_the_handler_runs_are_one(rig: Rig) -> None:
    for _ in range(5):
        rig.inject(LOW)
    rig.settle()
    rig.call(0, "event_complete", 0)
    assert running(rig) == []
    handler = rig.oracle.handler(LOW, 0)
    assert (handler.injected, handler.coalesced, handler.delivered) == (5, 4, 1)


def test_a_signal_while_the_handler_runs_is_another(rig: Rig) -> None:
    rig.inject(LOW)
    rig.look(0)
    rig.inject(LOW)
    rig.inject(LOW)
    rig.call(0, "event_complete", 0)
    assert running(rig) == [LOW]
    rig.call(0, "event_complete", 0)
    assert running(rig) == []


def test_looking_twice_delivers_once(rig: Rig) -> None:
    rig.inject(LOW)
    assert [rig.look(0), rig.look(0)] == [LOW, None]


# -- what the host is told


def test_injection_says_what_the_event_waits_for() -> None:
    rig = Rig(1, EVENTS)
    inject = rig.fw.sdei.inject
    for event in (LOW, HIGH, CRITICAL):
        rig.call(0, "event_register", event, ENTRY, 0, 0, 0)
    first, second = inject(LOW), inject(LOW)
    assert (first.event, first.vcpu, first.waits, first.coalesced) == (LOW, 0, "disabled", False)
    assert second.coalesced
    rig.fw.sdei.cancel(LOW)
    rig = Rig(1, EVENTS)
    inject = rig.fw.sdei.inject
    for event in (LOW, HIGH, CRITICAL):
        rig.call(0, "event_register", event, ENTRY, 0, 0, 0)
        rig.call(0, "event_enable", event)
    rig.inject(LOW)
    assert inject(LOW).waits == "masked"
    rig.oracle.inject(LOW, 0)
    rig.call(0, "pe_unmask")
    assert running(rig) == [LOW]
    assert inject(LOW).waits == "running"
    assert inject(HIGH).waits == "busy"
    assert inject(CRITICAL).waits == ""


def test_injection_into_a_shared_event_says_where_it_can_go() -> None:
    rig = Rig(2, EVENTS)
    rig.call(0, "event_register", SHARED, ENTRY, 0, 0, 0)
    rig.call(0, "event_enable", SHARED)
    inject = rig.fw.sdei.inject
    assert (inject(SHARED).waits, inject(SHARED).vcpu) == ("masked", None)
    for pe in range(2):
        rig.fw.sdei.pe_off(rig.fw.pes[pe])
    assert inject(SHARED).waits == "offline"
    rig.fw.sdei.pe_on(rig.fw.pes[1])
    assert inject(SHARED).waits == "masked"


def test_what_cannot_be_injected(rig: Rig) -> None:
    sdei = rig.fw.sdei
    with pytest.raises(UnknownEventError):
        sdei.inject(99)
    with pytest.raises(UnknownVcpuError):
        sdei.inject(LOW, 2)
    with pytest.raises(UnknownVcpuError):
        sdei.inject(LOW, -1)
    with pytest.raises(NotRegisteredError):
        sdei.inject(LOW, 1)
    with pytest.raises(UsageError):
        sdei.inject(SHARED, 0)
    with pytest.raises(UnknownVcpuError):
        sdei.pe_of_affinity(0x7F)
    assert sdei.pe_of_affinity(0x8000_0001).index == 1


def test_nothing_is_raised_while_unregister_pending(rig: Rig) -> None:
    rig.inject(LOW)
    rig.look(0)
    rig.inject(LOW)
    rig.call(0, "event_unregister", LOW)
    assert rig.inject(LOW) == "not registered"
    assert not rig.interrupt(20, 0)
    rig.call(0, "event_complete", 0)
    assert running(rig) == []
    handler = rig.oracle.handler(LOW, 0)
    assert (handler.injected, handler.delivered, handler.dropped) == (2, 1, 1)


def test_cancel(rig: Rig) -> None:
    assert rig.cancel(LOW) == "not pending"
    rig.inject(LOW)
    assert rig.cancel(LOW) == "cancelled"
    assert rig.look(0) is None
    assert rig.cancel(LOW, 1) == "not registered"
    assert rig.cancel(99) == "unknown"


def test_cancel_of_a_running_event(rig: Rig) -> None:
    rig.inject(LOW)
    rig.look(0)
    with pytest.raises(EventRunningError):
        rig.fw.sdei.cancel(LOW)
    # A further signal can still be taken back.
    rig.inject(LOW)
    assert rig.cancel(LOW) == "cancelled"


def test_the_observer_hears_of_everything_once(rig: Rig) -> None:
    rig.log.raised.clear()
    rig.log.ended.clear()
    rig.inject(LOW)
    rig.inject(LOW)
    rig.settle()
    rig.call(0, "event_complete", 1)
    rig.inject(CRITICAL)
    rig.settle()
    rig.call(0, "event_complete_and_resume", 0)
    assert rig.log.raised == [LOW, CRITICAL]
    assert rig.log.ended == [(0, LOW, True), (0, CRITICAL, False)]
