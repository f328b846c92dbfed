# SPDX-License-Identifier: Apache-2.0
"""The calls about handlers and the PE, each with every result of its specification row, DEN0054C 5.1.

Bindings, routing and resets are in test_sdei_calls_shared.py. `NOISE` is what a guest may leave in
the high word of a 32-bit parameter; it must not count.
"""

from __future__ import annotations

import pytest

from sdeivirt.fuzz.oracle import CALLS, DENIED, INVALID, M64, NOT_SUPPORTED, PENDING, SUCCESS
from sdeivirt.sdei.events import EventDefinition, Priority

from .fake_view import FUNCTION, Rig

PRIVATE, CRITICAL, SHARED, VENDOR = 5, 6, 0x20, 0x4000_0001
EVENTS = [
    EventDefinition(PRIVATE),
    EventDefinition(CRITICAL, priority=Priority.CRITICAL),
    EventDefinition(SHARED, shared=True),
    EventDefinition(VENDOR, signalable=True),
]
AFFINITIES = [0x0, 0x1, 0x02_0000_0100]
ENTRY = 0x4010_0000
NOISE = 0xDEAD_BEEF << 32
UNKNOWN = [1, 4, 7, 0x21, 0x4000_0000, 0x7FFF_FFFF, 0x8000_0000, 0x8000_0005, 0xFFFF_FFFF]

ONE_EVENT = ["event_enable", "event_disable", "event_unregister", "event_status", "interrupt_release"]


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
    rig.inject(event, None if event == SHARED else pe)
    assert rig.look(pe) == event


# -- the id


def test_ids() -> None:
    assert sorted(CALLS) == list(range(0xC400_0020, 0xC400_0033))


@pytest.mark.parametrize("number", range(0x33, 0x40))
def test_unallocated_ids_of_the_range(rig: Rig, number: int) -> None:
    assert rig.call_id(0, 0xC400_0000 | number, 1, 2, 3) == NOT_SUPPORTED


@pytest.mark.parametrize("number", range(0x20, 0x33))
def test_smc32_forms_do_not_exist(rig: Rig, number: int) -> None:
    assert rig.call_id(0, 0x8400_0000 | number) == NOT_SUPPORTED


@pytest.mark.parametrize("name", FUNCTION)
def test_the_id_is_the_low_word_of_x0(rig: Rig, name: str) -> None:
    twin = Rig(AFFINITIES, EVENTS, rig.policy, unmasked=True)
    assert rig.call_id(0, FUNCTION[name] | NOISE, 0, 0) == twin.call(0, name, 0, 0)


# -- VERSION, FEATURES


def test_version() -> None:
    # Bit 63 clear, major 62:48, minor 47:32, vendor 31:0.
    assert Rig(policy="kvm").call(0, "version") == 0x0001_0001_004B_564D
    assert Rig(policy="tf-a").call(0, "version") == 0x0001_0000_0000_0000


@pytest.mark.parametrize("slots", [(0, 0), (1, 0), (0, 2), (4, 4), (512, 512)])
@pytest.mark.parametrize("policy", ["kvm", "tf-a"])
def test_features_bind_slots(policy: str, slots: tuple[int, int]) -> None:
    rig = Rig(policy=policy, slots=slots)
    assert rig.call(0, "features", 0) == slots[0] | slots[1] << 16
    assert rig.call(0, "features", NOISE) == slots[0] | slots[1] << 16


def test_features_default_slots() -> None:
    assert Rig(policy="kvm").call(0, "features", 0) == 0x0004_0004


def test_features_relative_mode() -> None:
    assert Rig(policy="kvm").call(0, "features", 1 | NOISE) == 1
    assert Rig(policy="tf-a").call(0, "features", 1 | NOISE) == INVALID


@pytest.mark.parametrize("feature", [2, 3, 31, 0x8000_0000, 0xFFFF_FFFF])
def test_features_unknown(rig: Rig, feature: int) -> None:
    assert rig.call(0, "features", feature) == INVALID


# -- EVENT_REGISTER


def test_register_stores_entry_and_argument(rig: Rig) -> None:
    assert rig.call(0, "event_register", PRIVATE | NOISE, ENTRY, M64, 0, 0) == SUCCESS
    rig.call(0, "event_enable", PRIVATE)
    rig.inject(PRIVATE)
    rig.look(0)
    registers = rig.cpus[0].registers
    assert (registers["pc"], registers["x0"], registers["x1"]) == (ENTRY, PRIVATE, M64)


@pytest.mark.parametrize("event", UNKNOWN)
def test_register_unknown_event(rig: Rig, event: int) -> None:
    assert rig.call(0, "event_register", event, ENTRY, 0, 0, 0) == INVALID


@pytest.mark.parametrize("entry", [0, 1, 2, 3, ENTRY + 1, ENTRY + 2, M64])
def test_register_bad_entry(rig: Rig, entry: int) -> None:
    assert rig.call(0, "event_register", PRIVATE, entry, 0, 0, 0) == INVALID


@pytest.mark.parametrize("position", range(2, 64))
@pytest.mark.parametrize("low", [0, 1, 3])
def test_register_reserved_flags(rig: Rig, position: int, low: int) -> None:
    assert rig.call(0, "event_register", PRIVATE, ENTRY, 0, low | 1 << position, 0) == INVALID


@pytest.mark.parametrize("offset", [0, 0x780, M64 & ~3])
def test_register_relative(offset: int) -> None:
    """The entry is VBAR_EL1 plus the offset, with VBAR_EL1 as it is when the event is taken."""
    rig = Rig(1, EVENTS, "kvm", unmasked=True)
    assert rig.call(0, "event_register", PRIVATE, offset, 0, 2, 0) == SUCCESS
    rig.call(0, "event_enable", PRIVATE)
    rig.set_registers(0, vbar=0xFFFF_8000_0001_0800)
    rig.inject(PRIVATE)
    rig.look(0)
    assert rig.cpus[0].registers["pc"] == (0xFFFF_8000_0001_0800 + offset) & M64


def test_register_relative_unaligned() -> None:
    assert Rig(1, EVENTS, "kvm").call(0, "event_register", PRIVATE, 2, 0, 2, 0) == INVALID


@pytest.mark.parametrize("flags", [2, 3])
def test_register_relative_is_refused_by_tf_a(flags: int) -> None:
    assert Rig(1, EVENTS, "tf-a").call(0, "event_register", PRIVATE, ENTRY, 0, flags, 0) == INVALID


@pytest.mark.parametrize("affinity", AFFINITIES)
def test_register_routing_of_a_private_event_stays_home(rig: Rig, affinity: int) -> None:
    assert rig.call(1, "event_register", PRIVATE, ENTRY, 0, 1, affinity) == SUCCESS
    assert [rig.call(pe, "event_status", PRIVATE) for pe in range(3)] == [0, 1, 0]


@pytest.mark.parametrize("affinity", [0x2, 0x100, 0x1_0000_0001, 0x8000_0002])
def test_register_unknown_affinity(rig: Rig, affinity: int) -> None:
    assert rig.call(0, "event_register", SHARED, ENTRY, 0, 1, affinity) == INVALID
    # A private event's routing is ignored by KVM, and validated by TF-A.
    expected = SUCCESS if rig.policy == "kvm" else INVALID
    assert rig.call(0, "event_register", PRIVATE, ENTRY, 0, 1, affinity) == expected
    # RM_ANY needs no affinity.
    assert rig.call(0, "event_register", SHARED, ENTRY, 0, 0, affinity) == SUCCESS


def test_register_looks_at_parameters_before_the_state(rig: Rig) -> None:
    register(rig, PRIVATE)
    assert rig.call(0, "event_register", PRIVATE, ENTRY, 0, 0, 0) == DENIED
    assert rig.call(0, "event_register", PRIVATE, ENTRY, 0, 4, 0) == INVALID
    assert rig.call(0, "event_register", PRIVATE, ENTRY + 2, 0, 0, 0) == INVALID


# -- calls with an event number alone


@pytest.mark.parametrize("event", UNKNOWN)
@pytest.mark.parametrize("name", ONE_EVENT)
def test_unknown_event(rig: Rig, name: str, event: int) -> None:
    assert rig.call(0, name, event) == INVALID
    assert rig.call(0, name, event | NOISE) == INVALID


def test_event_numbers_are_32_bits(rig: Rig) -> None:
    register(rig, PRIVATE)
    assert rig.call(0, "event_enable", PRIVATE | NOISE) == SUCCESS
    assert rig.call(0, "event_status", PRIVATE | NOISE) == 3
    assert rig.call(0, "event_disable", PRIVATE | NOISE) == SUCCESS
    assert rig.call(0, "event_unregister", PRIVATE | NOISE) == SUCCESS
    assert rig.call(0, "event_status", PRIVATE | NOISE) == 0


@pytest.mark.parametrize("name", ["event_enable", "event_disable", "event_unregister"])
def test_unregistered(rig: Rig, name: str) -> None:
    assert rig.call(0, name, PRIVATE) == DENIED


def test_unregister_pending(rig: Rig) -> None:
    run(rig, PRIVATE)
    assert rig.call(0, "event_unregister", PRIVATE) == PENDING
    assert rig.call(0, "event_unregister", PRIVATE) == PENDING
    for name in ("event_enable", "event_disable"):
        assert rig.call(0, name, PRIVATE) == DENIED
    rig.call(0, "event_complete", 0)
    assert rig.call(0, "event_unregister", PRIVATE) == DENIED
    register(rig, PRIVATE)


# -- EVENT_CONTEXT, EVENT_COMPLETE, EVENT_COMPLETE_AND_RESUME


@pytest.mark.parametrize("index", range(18))
def test_context(rig: Rig, index: int) -> None:
    rig.set_registers(0, **{f"x{i}": 0x100 + i for i in range(18)})
    register(rig, PRIVATE, enable=True)
    rig.set_registers(0, **{f"x{i}": 0x100 + i for i in range(18)})
    rig.inject(PRIVATE)
    rig.look(0)
    assert rig.call(0, "event_context", index | NOISE) == 0x100 + index


@pytest.mark.parametrize("index", [18, 19, 31, 0x8000_0000, 0xFFFF_FFFF])
def test_context_bad_index(rig: Rig, index: int) -> None:
    # Outside of a handler both are wrong: KVM tells of the state, TF-A of the index.
    assert rig.call(0, "event_context", index) == (DENIED if rig.policy == "kvm" else INVALID)
    run(rig, PRIVATE)
    assert rig.call(0, "event_context", index) == INVALID


def test_context_outside_of_a_handler(rig: Rig) -> None:
    assert rig.call(0, "event_context", 17) == DENIED
    run(rig, PRIVATE, pe=1)
    assert rig.call(0, "event_context", 17) == DENIED


def test_context_is_the_innermost(rig: Rig) -> None:
    run(rig, PRIVATE)
    register(rig, CRITICAL, enable=True)
    rig.set_registers(0, x9=0x99)
    rig.inject(CRITICAL)
    rig.look(0)
    assert rig.call(0, "event_context", 9) == 0x99


@pytest.mark.parametrize("status", [0, 1, 2, 0xFFFF_FFFF, NOISE, NOISE | 1])
def test_complete_accepts_any_status(rig: Rig, status: int) -> None:
    run(rig, PRIVATE)
    rig.call(0, "event_complete", status)
    handler = rig.oracle.handler(PRIVATE, 0)
    assert (handler.completed, handler.failed) == (1, int(status & 0xFFFF_FFFF != 0))


@pytest.mark.parametrize("name", ["event_complete", "event_complete_and_resume"])
def test_complete_outside_of_a_handler(rig: Rig, name: str) -> None:
    assert rig.call(0, name, 0) == DENIED
    run(rig, PRIVATE, pe=1)
    assert rig.call(0, name, 0) == DENIED


@pytest.mark.parametrize("address", [1, 2, 3, ENTRY + 2, M64])
def test_resume_at_an_unaligned_address(rig: Rig, address: int) -> None:
    run(rig, PRIVATE)
    assert rig.call(0, "event_complete_and_resume", address) == DENIED
    assert rig.call(0, "event_status", PRIVATE) == 7


@pytest.mark.parametrize("address", [0, 0x4008_0280, 0xFFFF_8000_0001_0A80])
def test_resume(rig: Rig, address: int) -> None:
    register(rig, PRIVATE, enable=True)
    rig.set_registers(0, pc=0x4444, pstate=0x6000_0005, x0=0xAA, x17=0xBB)
    rig.inject(PRIVATE)
    rig.look(0)
    rig.call(0, "event_complete_and_resume", address)
    registers = rig.cpus[0].registers
    assert (registers["pc"], registers["elr"], registers["spsr"]) == (address, 0x4444, 0x6000_0005)
    assert (registers["x0"], registers["x17"]) == (0xAA, 0xBB)
    assert registers["pstate"] == 0x6000_0005 | 0x3C0 | 1 << 22  # N Z C V kept, masked, PAN


# -- EVENT_GET_INFO, PE_MASK, PE_UNMASK


def test_get_info(rig: Rig) -> None:
    signalable, not_signalable = (1, 0) if rig.policy == "kvm" else (0, 1)
    rows = {
        0: [0, signalable, 0],
        PRIVATE: [0, not_signalable, 0],
        CRITICAL: [0, not_signalable, 1],
        SHARED: [1, not_signalable, 0],
        VENDOR: [0, signalable, 0],
    }
    for event, row in rows.items():
        assert [rig.call(0, "event_get_info", event | NOISE, info | NOISE) for info in range(3)] == row


@pytest.mark.parametrize("info", [5, 6, 0x8000_0000, 0xFFFF_FFFF])
def test_get_info_unknown(rig: Rig, info: int) -> None:
    assert rig.call(0, "event_get_info", 0, info) == INVALID
    assert [rig.call(0, "event_get_info", event, 0) for event in UNKNOWN] == [INVALID] * len(UNKNOWN)


def test_get_info_routing_is_for_shared_events(rig: Rig) -> None:
    register(rig, PRIVATE)
    assert [rig.call(0, "event_get_info", PRIVATE, info) for info in (3, 4)] == [INVALID, INVALID]


def test_mask_says_whether_it_changed_anything(rig: Rig) -> None:
    assert [rig.call(0, name) for name in ("pe_mask", "pe_mask")] == [1, 0]
    assert [rig.call(0, name) for name in ("pe_unmask", "pe_unmask", "pe_mask")] == [0, 0, 1]
    assert rig.call(1, "pe_mask") == 1
