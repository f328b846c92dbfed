# SPDX-License-Identifier: Apache-2.0
"""Eleven defects in the code of KVM's SDEI series, version 7 (May 2022), one regression test each.

The series was never merged, so no released kernel has them; whoever starts from its code inherits them.
"""

from __future__ import annotations

import pytest

from sdeivirt.fuzz.oracle import DENIED, INVALID, PENDING, SUCCESS
from sdeivirt.sdei.events import EventDefinition

from .fake_view import Rig

FIRST, SECOND = 5, 6
EVENTS = [EventDefinition(FIRST), EventDefinition(SECOND)]
ENTRY = 0x4010_0000


@pytest.fixture
def rig() -> Rig:
    """Two unmasked PEs under the default policy."""
    return Rig(2, EVENTS, "kvm", unmasked=True)


def register(rig: Rig, event: int, pe: int = 0, *, enable: bool = True) -> None:
    assert rig.call(pe, "event_register", event, ENTRY, 0, 0, 0) == SUCCESS
    if enable:
        assert rig.call(pe, "event_enable", event) == SUCCESS


def test_a9_01_endless_loop_in_deliver() -> None:
    """The lowest pending event is disabled: v7 searched it again and again. A higher one must come through."""
    rig = Rig(1, EVENTS, "kvm")
    register(rig, 0, enable=False)
    register(rig, SECOND)
    assert rig.call(0, "event_signal", 0, 0) == SUCCESS
    rig.inject(SECOND)
    rig.call(0, "pe_unmask")
    assert rig.log.raised == [0, SECOND]
    assert [frame.handler.event for frame in rig.oracle.pes[0].frames] == [SECOND]
    rig.call(0, "event_complete", 0)
    assert rig.look(0) is None
    rig.call(0, "event_enable", 0)
    assert [frame.handler.event for frame in rig.oracle.pes[0].frames] == [0]


def test_a9_02_no_redelivery_after_complete(rig: Rig) -> None:
    """What became pending while a handler ran is delivered when it completes, by either call."""
    for event in (FIRST, SECOND):
        register(rig, event)
    for event in (FIRST, SECOND):
        rig.inject(event)
    assert rig.settle() == [(0, FIRST)]
    rig.call(0, "event_complete", 0)
    assert rig.call(0, "event_status", SECOND) == 7
    rig.inject(FIRST)
    rig.call(0, "event_complete_and_resume", 0x4008_0280)
    assert rig.call(0, "event_status", FIRST) == 7


@pytest.mark.parametrize("number", [0x8000_0000, 0xFFFF_FFFF, 0xFFFF_FFFF_FFFF_FFFF, 0xFFFF_FFFF_8000_0000])
@pytest.mark.parametrize("call", ["event_enable", "event_disable"])
def test_a9_03_negative_event_number(rig: Rig, call: str, number: int) -> None:
    """Event numbers with bit 31 set passed v7's signed range check."""
    assert rig.call(0, call, number) == INVALID


@pytest.mark.parametrize("call", ["event_unregister", "private_reset"])
def test_a9_04_stale_pending_event_after_unregister(rig: Rig, call: str) -> None:
    """UNREGISTER and PRIVATE_RESET take the pending event with them."""
    register(rig, FIRST, enable=False)
    rig.inject(FIRST)
    assert rig.call(0, call, FIRST) == SUCCESS
    register(rig, FIRST)
    assert rig.look(0) is None
    assert rig.oracle.handler(FIRST, 0).dropped == 1


def test_a9_05_private_reset_while_a_handler_runs(rig: Rig) -> None:
    """It answers DENIED; the handler is unregister-pending, and UNREGISTER of it PENDING, until it completes."""
    register(rig, FIRST)
    rig.inject(FIRST)
    rig.look(0)
    assert rig.call(0, "private_reset") == DENIED
    assert rig.call(0, "event_status", FIRST) == 4
    assert rig.call(0, "event_unregister", FIRST) == PENDING
    rig.call(0, "event_complete", 0)
    assert rig.call(0, "event_status", FIRST) == 0


def test_a9_06_signal_ignores_its_target(rig: Rig) -> None:
    """EVENT_SIGNAL of another PE interrupts that PE, not the caller; an unknown target is an error."""
    for pe in (0, 1):
        register(rig, 0, pe)
    other = rig.fw.pes[1].affinity
    assert rig.call(0, "event_signal", 0, other) == SUCCESS
    assert rig.settle() == [(1, 0)]
    assert rig.call(0, "event_signal", 0, 0x7F) == INVALID


@pytest.mark.parametrize("event", [0, FIRST, 0x20, 0x4000_0001])
def test_a9_07_signalable_by_get_info_but_not_by_signal(event: int) -> None:
    """GET_INFO(SIGNALED) and EVENT_SIGNAL say the same of every event."""
    events = [*EVENTS, EventDefinition(0x20, shared=True), EventDefinition(0x4000_0001, signalable=True)]
    rig = Rig(1, events, "kvm", unmasked=True)
    register(rig, event, enable=False)
    accepted = rig.call(0, "event_signal", event, 0) == SUCCESS
    assert accepted == bool(rig.call(0, "event_get_info", event, 1))


def test_a9_08_mask_does_not_tell_whether_it_changed_anything(rig: Rig) -> None:
    """PE_MASK answers 1 when the PE was unmasked, 0 when it was masked already; PE_UNMASK always 0."""
    assert [rig.call(0, "pe_mask") for _ in range(3)] == [1, 0, 0]
    assert [rig.call(0, "pe_unmask") for _ in range(2)] == [0, 0]
    assert rig.call(0, "pe_mask") == 1


@pytest.mark.parametrize("call", ["event_complete", "event_complete_and_resume"])
def test_a9_09_complete_outside_of_a_handler_returns_nothing(rig: Rig, call: str) -> None:
    """It answers DENIED in x0; v7 left the registers as they were."""
    assert rig.call(0, call, 0) == DENIED
    registers = rig.cpus[0].registers
    assert [registers[f"x{i}"] for i in range(1, 4)] == [0, 0, 0]


@pytest.mark.parametrize("how", ["off and on", "reset and on", "on"])
def test_a9_10_reset_neither_masks_nor_unregisters(rig: Rig, how: str) -> None:
    """A PE that starts again is masked, has no private handlers, and runs none."""
    register(rig, FIRST)
    register(rig, SECOND)
    register(rig, FIRST, pe=1)
    rig.inject(FIRST)
    rig.inject(SECOND)
    rig.look(0)
    if how == "off and on":
        rig.pe_off(0)
    elif how == "reset and on":
        rig.reset()
        rig.pe_on(1)
    rig.pe_on(0)
    assert [rig.call(0, "event_status", event) for event in (FIRST, SECOND)] == [0, 0]
    assert rig.call(0, "event_context", 0) == DENIED
    assert rig.call(0, "pe_mask") == 0
    assert rig.call(1, "event_status", FIRST) == (0 if how == "reset and on" else 3)


def test_a9_11_entry_pstate_inherits_what_an_exception_clears() -> None:
    """BTYPE, IL, SS, SSBS, PAN, UAO and TCO are as after an exception, not as interrupted."""
    btype, ssbs, il, ss, pan, uao, tco = 3 << 10, 1 << 12, 1 << 20, 1 << 21, 1 << 22, 1 << 23, 1 << 25
    rig = Rig(1, EVENTS, "kvm", features=("pan", "uao", "dit", "ssbs", "mte"), unmasked=True)
    register(rig, FIRST)
    rig.set_registers(0, pstate=0x8000_0005 | btype | ssbs | il | ss | uao)
    rig.inject(FIRST)
    rig.look(0)
    assert rig.cpus[0].registers["pstate"] == 0x8000_03C5 | pan | tco
    # The handler is told what it interrupted as it was, and COMPLETE brings all of it back.
    assert rig.cpus[0].registers["x3"] == 0x8000_0005 | btype | ssbs | il | ss | uao
    rig.call(0, "event_complete", 0)
    assert rig.cpus[0].registers["pstate"] == 0x8000_0005 | btype | ssbs | il | ss | uao
