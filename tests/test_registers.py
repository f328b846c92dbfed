# SPDX-License-Identifier: Apache-2.0
"""Ids, values, what is refused, and that nothing has changed then."""

from __future__ import annotations

import random
import re
import struct
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sdeivirt.errors import RegisterError, UnknownVcpuError
from sdeivirt.registers import Dump, RegisterInfo, Registers
from sdeivirt.registers.ids import KINDS
from sdeivirt.registers.text import from_json, parse_value, to_json
from sdeivirt.sdei import POLICIES, EventDefinition, Priority, Sdei

from .register_support import DYNAMIC, NUMBERS, ROUTES, Service, check_invariants, copied

ENTRY = 0x4010_0000

# Linux, KVM/arm64 SDEI series v7, patches 18 and 20; asm/kvm.h of arm64 for the sizes.
KVM_IDS = {
    "SDEI_EVENT_HANDLER_0": (0x6040_0000_0014_0004, 128),
    "SDEI_EVENT_HANDLER_1": (0x6040_0000_0014_0005, 128),
    "SDEI_EVENT_HANDLER_2": (0x6040_0000_0014_0006, 128),
    "SDEI_EVENT_HANDLER_3": (0x6040_0000_0014_0007, 128),
    "SDEI_EVENT_REGISTERED": (0x6030_0000_0014_0008, 64),
    "SDEI_EVENT_ENABLED": (0x6030_0000_0014_0009, 64),
    "SDEI_EVENT_RUNNING": (0x6030_0000_0014_000A, 64),
    "SDEI_EVENT_PENDING": (0x6030_0000_0014_000B, 64),
    "SDEI_EVENT_CONTEXT": (0x6080_0000_0014_000C, 2048),
    "SDEI_PE_STATE": (0x6030_0000_0014_000D, 64),
}


def id_of(name: str) -> int:
    return Registers(Service().sdei).find(name)


def assign(registers: Registers, values: list[tuple[str, int | None, int]]) -> None:
    """Set registers, named, in one transaction."""
    with registers.transaction() as transaction:
        for name, vcpu, value in values:
            transaction.set(registers.find(name), value, vcpu)


@pytest.fixture
def service() -> Service:
    """PE 0 runs the normal event 0 and the critical event 1 in it, and has 0 pending; PE 1 is off; PE 2 sleeps.

    Shared event 0x20 runs on PE 3, which it is routed to; 0x22 is enabled.
    """
    service = Service()
    for pe in (0, 2, 3):
        service.sdei.pe_on(service.fw.pes[pe])
    service.guest_starts(0, NUMBERS)
    service.guest_starts(2, [0])
    service.guest_starts(3, [0, 5])
    service.call(0, "event_disable", 0x20)
    service.call(0, "event_routing_set", 0x20, 1, service.fw.pes[3].affinity)
    service.call(0, "event_enable", 0x20)
    service.sdei.inject(0x20)
    service.look(3)
    for event in (0, 1):
        service.sdei.inject(event, 0)
        service.look(0)
    service.sdei.inject(0, 0)
    assert service.sdei.pe_suspend(service.fw.pes[2])
    service.fw.take_kicks()
    return service


# -- ids and values


def test_the_ids_are_those_of_kvm() -> None:
    kinds = {kind.name: (kind.id, kind.size) for kind in KINDS}
    assert {name: kinds[name] for name in KVM_IDS} == KVM_IDS
    assert all((kind.id >> 16 & 0xFFF == 0x14) == (kind.name in KVM_IDS) for kind in KINDS)


def test_ids_are_made_as_kvm_makes_them() -> None:
    for kind in KINDS:
        assert kind.id >> 56 == 0x60
        assert 8 << (kind.id >> 52 & 0xF) == kind.size
        assert kind.id >> 28 & 0xFF_FFFF == 0
        assert kind.id >> 16 & 0xFFF in (0x14, *range(0x5D0, 0x5E0))
    assert len({kind.id for kind in KINDS}) == len({kind.name for kind in KINDS}) == len(KINDS)


def test_the_page_has_them_all() -> None:
    page = (Path(__file__).parents[1] / "docs" / "registers.md").read_text("utf-8")
    for kind in KINDS:
        row = next((line for line in page.split("\n") if line.startswith(f"| `{kind.name}")), "")
        assert f"`{kind.id:#x}`" in row, kind.name
        assert f"| {kind.size} |" in row, kind.name


def test_what_kvms_registers_hold(service: Service) -> None:
    registers = Registers(service.sdei)

    def get(name: str, vcpu: int = 0) -> int:
        return registers.get(KVM_IDS[name][0], vcpu)

    assert get("SDEI_EVENT_HANDLER_0") == ENTRY
    assert get("SDEI_EVENT_HANDLER_1") == ENTRY + 4 | 3 << 64
    assert get("SDEI_EVENT_HANDLER_2") == get("SDEI_EVENT_HANDLER_3") == 0  # shared, and not defined
    assert get("SDEI_EVENT_REGISTERED") == get("SDEI_EVENT_ENABLED") == get("SDEI_EVENT_RUNNING") == 0b11
    assert get("SDEI_EVENT_PENDING") == 0b01
    assert (get("SDEI_PE_STATE", 0), get("SDEI_PE_STATE", 1), get("SDEI_PE_STATE", 2)) == (0, 1, 1)
    normal = service.fw.pes[0].normal
    assert normal is not None
    saved = struct.unpack("=20Q", normal.saved)
    context = get("SDEI_EVENT_CONTEXT").to_bytes(256, "little")
    assert struct.unpack("<20Q", context[:160]) == (saved[18], saved[19], *saved[:18])  # PC, PSTATE, x0 to x17
    assert not any(context[160:])


def test_what_ours_hold(service: Service) -> None:
    registers = Registers(service.sdei)

    def get(name: str, vcpu: int | None = None) -> int:
        return registers.get(registers.find(name), vcpu)

    assert get("SDEI_HANDLER.0x20") == ENTRY + 0x80 | 0x60 << 64
    assert get("SDEI_STATE.0x20") == 0b10_0111 | 3 << 16 | 3 << 32
    assert get("SDEI_STATE.0x22") == 0b11
    assert get("SDEI_STATE.0x5", 3) == 0b11
    assert get("SDEI_STATE.0x5", 1) == 0  # never registered there
    assert [get("SDEI_POWER", vcpu) for vcpu in range(4)] == [1, 0, 0b111, 1]
    assert [get("SDEI_AFFINITY", vcpu) for vcpu in range(4)] == [0x0, 0x1, 0x100, 0x02_0000_0100]
    assert get("SDEI_LAYOUT") == 0x1_0001
    assert get("SDEI_VERSION") == 0x0001_0001_004B_564D
    assert get("SDEI_POLICY") == 0b100_0011
    assert get("SDEI_VCPUS") == 4
    assert get("SDEI_EVENTS") == 8 + 4
    assert get("SDEI_DEFINITION.0x2") == 2 | 0b011 << 32 | 40 << 48
    assert get("SDEI_DEFINITION.0x0") == 0b100 << 32
    assert get("SDEI_DEFINITION.0x40002000") == 0x4000_2000 | 0b1001 << 32
    assert get("SDEI_ASYNC_PF_CONTROL", 0) == get("SDEI_ASYNC_PF_INTERRUPT", 0) == 0
    service.call(0, "event_complete", 1)
    assert get("SDEI_COUNTS.0x1", 0) == 1 << 128 | 1 << 192  # completed, and failed
    service.sdei.inject(0, 0)
    service.call(0, "event_unregister", 0)
    assert get("SDEI_COUNTS.0x0", 0) == 1 | 1 << 64  # coalesced, then dropped
    assert service.call(0, "interrupt_bind", 41) == DYNAMIC[2]
    assert get("SDEI_BINDING.0x40002000") == 41
    critical = service.fw.pes[0].critical
    assert critical is None
    assert get("SDEI_CRITICAL_CONTEXT", 0) == 0


def test_counts_go_along(service: Service) -> None:
    service.sdei.inject(0, 0)
    copy = copied(service, "kvm", "dump", random.Random(0))
    for number, vcpu in ((0, 0), (1, 0), (0x20, None)):
        old, new = service.sdei.handler(number, vcpu), copy.sdei.handler(number, vcpu)
        for count in ("injected", "coalesced", "dropped", "delivered", "completed", "failed"):
            assert getattr(new, count) == getattr(old, count), (number, count)
    assert copy.sdei.handler(0, 0).injected == 3


def test_a_list_has_what_exists(service: Service) -> None:
    registers = Registers(service.sdei)
    infos = registers.list()
    assert len({(info.id, info.vcpu) for info in infos}) == len(infos)
    of_vcpu_1 = [info.name for info in infos if info.vcpu == 1]
    assert of_vcpu_1[:10] == list(KVM_IDS)
    assert not any("." in name for name in of_vcpu_1)  # nothing is registered there
    assert RegisterInfo(id_of("SDEI_STATE.0x5"), "SDEI_STATE.0x5", 64, 3) in infos
    assert [info.name for info in registers.list(1)] == of_vcpu_1
    of_slots = [info.name for info in infos if info.name.endswith(f".{DYNAMIC[2]:#x}")]
    assert of_slots == [f"SDEI_DEFINITION.{DYNAMIC[2]:#x}", f"SDEI_BINDING.{DYNAMIC[2]:#x}"]  # it is free
    service.call(0, "interrupt_bind", 41)
    assert f"SDEI_HANDLER.{DYNAMIC[2]:#x}" in [info.name for info in registers.list()]
    assert all(registers.find(info.name) == registers.find(hex(info.id)) == info.id for info in infos)


@pytest.mark.parametrize("word", ["x", "", "SDEI_STATE", "SDEI_STATE.", "SDEI_STATE.0x99", "SDEI_PE_STATE.0x0", "-1"])
def test_names_of_nothing(word: str) -> None:
    with pytest.raises(RegisterError, match="there is no register"):
        Registers(Service().sdei).find(word)


def test_names_of_events_that_are_not_there() -> None:
    with pytest.raises(RegisterError, match=r"no register 'SDEI_STATE.0x99': no event 0x99 is defined"):
        Registers(Service().sdei).find("SDEI_STATE.0x99")


@pytest.mark.parametrize(
    ("id", "reason"),
    [
        (0x6030_0000_0014_000E, "no such register"),
        (0x6030_0000_0014_0004, "no such register"),  # of another size
        (0x6030_0000_05D0_00FF, "no such register"),
        (0x6030_0000_05D4_0000 | 12, "there are 12 events"),
        (0x6030_0000_05D2_0000, "event 0x0 is not dynamic"),
        (0x6040_0000_05D3_0000, "is in SDEI_EVENT_HANDLER_0"),
        (-1, "no such register"),
        (1 << 64, "no such register"),
    ],
)
def test_ids_of_nothing(id: int, reason: str) -> None:
    registers = Registers(Service().sdei)
    with pytest.raises(RegisterError, match=reason):
        registers.get(id, 0)
    with pytest.raises(RegisterError, match=reason):
        registers.set(id, 0, 0)
    with pytest.raises(RegisterError, match=f"{reason}|there is no register '-0x1'"):
        registers.find(hex(id))


def test_whose_register_it_is() -> None:
    registers = Registers(Service().sdei)
    with pytest.raises(RegisterError, match=r"SDEI_PE_STATE .* is one of each vCPU"):
        registers.get(id_of("SDEI_PE_STATE"))
    with pytest.raises(RegisterError, match=r"SDEI_STATE.0x20 .* is one of the VM"):
        registers.set(id_of("SDEI_STATE.0x20"), 0, 0)
    with pytest.raises(RegisterError, match=r"SDEI_STATE.0x5 .* is one of each vCPU"):
        registers.set(id_of("SDEI_STATE.0x5"), 0)
    for vcpu in (4, -1):
        with pytest.raises(UnknownVcpuError):
            registers.get(id_of("SDEI_PE_STATE"), vcpu)
        with pytest.raises(UnknownVcpuError):
            registers.list(vcpu)


# -- what is refused


PSTATE_EL2H = 0b01001
Case = tuple[str, dict[tuple[str, int | None], int | Callable[[int], int]], str, str]


def pstate(value: int) -> Callable[[int], int]:
    """A context with another PSTATE."""
    return lambda context: context & ~((1 << 64) - 1 << 64) | value << 64


REFUSED: list[Case] = [
    # bits that are not there
    ("bitmap bits", {("SDEI_EVENT_PENDING", 0): 0x10}, "SDEI_EVENT_PENDING", "it has no bits 0x10"),
    ("bitmap high bits", {("SDEI_EVENT_ENABLED", 0): 1 << 63}, "SDEI_EVENT_ENABLED", "it has no bits"),
    ("bit of a shared event", {("SDEI_EVENT_REGISTERED", 0): 0b111}, "SDEI_EVENT_REGISTERED", "no private event 0x2"),
    ("bit of no event", {("SDEI_EVENT_REGISTERED", 0): 0b1011}, "SDEI_EVENT_REGISTERED", "no private event 0x3"),
    ("handler of no event", {("SDEI_EVENT_HANDLER_3", 0): 4}, "SDEI_EVENT_HANDLER_3", "no private event 0x3"),
    ("PE_STATE", {("SDEI_PE_STATE", 0): 2}, "SDEI_PE_STATE", "it has no bits 0x2"),
    ("POWER", {("SDEI_POWER", 0): 9}, "SDEI_POWER", "it has no bits 0x8"),
    ("state", {("SDEI_STATE.0x5", 0): 0x43}, "SDEI_STATE.0x5", "it has no bits 0x40"),
    ("routing of a private event", {("SDEI_STATE.0x5", 0): 0x23}, "SDEI_STATE.0x5", "it has no bits 0x20"),
    ("state of a standard event", {("SDEI_STATE.0x0", 0): 1}, "SDEI_STATE.0x0", "it has no bits 0x1"),
    ("shared state", {("SDEI_STATE.0x22", None): 3 | 1 << 48}, "SDEI_STATE.0x22", "it has no bits"),
    ("context's rest", {("SDEI_EVENT_CONTEXT", 0): lambda c: c | 1 << 1280}, "SDEI_EVENT_CONTEXT", "160 of its 256"),
    ("async page faults", {("SDEI_ASYNC_PF_CONTROL", 0): 1}, "SDEI_ASYNC_PF_CONTROL", "it must be 0"),
    ("their interrupt", {("SDEI_ASYNC_PF_INTERRUPT", 2): 17}, "SDEI_ASYNC_PF_INTERRUPT", "it must be 0"),
    # handlers
    ("enabled, not registered", {("SDEI_EVENT_REGISTERED", 3): 0, ("SDEI_EVENT_PENDING", 3): 0},
     "SDEI_EVENT_ENABLED", "event 0x0 is enabled, but not registered"),
    ("the same, ours", {("SDEI_STATE.0x5", 3): 2}, "SDEI_STATE.0x5", "event 0x5 is enabled, but not registered"),
    ("pending, not registered", {("SDEI_EVENT_PENDING", 3): 2}, "SDEI_EVENT_PENDING", "0x1 is pending, but not reg"),
    ("the same, ours", {("SDEI_STATE.0x9", 3): 8}, "SDEI_STATE.0x9", "event 0x9 is pending, but not registered"),
    ("unaligned entry", {("SDEI_EVENT_HANDLER_0", 0): 0x4010_0002}, "SDEI_EVENT_HANDLER_0", "no instruction"),
    ("the same, ours", {("SDEI_HANDLER.0x22", None): 1}, "SDEI_HANDLER.0x22", "no instruction can be at"),
    ("no entry", {("SDEI_EVENT_HANDLER_0", 3): 7 << 64}, "SDEI_EVENT_REGISTERED", "0x0 .* has no entry point"),
    ("no entry, running", {("SDEI_EVENT_HANDLER_0", 0): 0, ("SDEI_EVENT_REGISTERED", 0): 2,
                           ("SDEI_EVENT_ENABLED", 0): 2, ("SDEI_EVENT_PENDING", 0): 0},
     "SDEI_EVENT_RUNNING", "has no entry point"),
    ("on a vCPU that is off", {("SDEI_EVENT_HANDLER_0", 1): ENTRY, ("SDEI_EVENT_REGISTERED", 1): 1},
     "SDEI_EVENT_REGISTERED", "event 0x0 is registered, but the vCPU is off"),
    ("slot without binding", {("SDEI_HANDLER.0x40001000", 0): ENTRY, ("SDEI_STATE.0x40001000", 0): 1},
     "SDEI_STATE.0x40001000", "no interrupt is bound to it"),
    ("shared slot without binding", {("SDEI_HANDLER.0x40002000", None): ENTRY, ("SDEI_STATE.0x40002000", None): 1},
     "SDEI_STATE.0x40002000", "no interrupt is bound to it"),
    # frames
    ("runs without a frame", {("SDEI_EVENT_RUNNING", 3): 2, ("SDEI_EVENT_HANDLER_1", 3): 4,
                              ("SDEI_EVENT_REGISTERED", 3): 3},
     "SDEI_EVENT_RUNNING", "SDEI_CRITICAL_CONTEXT does not say"),
    ("a frame without an event", {("SDEI_EVENT_RUNNING", 0): 2}, "SDEI_EVENT_CONTEXT", "no normal event runs"),
    ("the critical one", {("SDEI_EVENT_RUNNING", 0): 1}, "SDEI_CRITICAL_CONTEXT", "no critical event runs"),
    ("two normal frames", {("SDEI_STATE.0x5", 0): 7}, "SDEI_STATE.0x5", "event 0x5 runs on vCPU 0, and so does event"),
    ("two critical frames", {("SDEI_STATE.0x9", 0): 7}, "SDEI_STATE.0x9", "and so does event 0x1 of the same priority"),
    ("one of them shared", {("SDEI_EVENT_RUNNING", 3): 1}, "SDEI_", "runs on vCPU 3, and so does event"),
    ("a shared event where another runs", {("SDEI_STATE.0x20", None): 7, ("SDEI_EVENT_CONTEXT", 3): 0},
     "SDEI_EVENT_RUNNING", "event 0x0 runs on vCPU 0, and so does event 0x20"),
    ("runs on another than its target", {("SDEI_STATE.0x20", None): 0x27 | 3 << 16 | 2 << 32,
                                         ("SDEI_EVENT_CONTEXT", 3): 0, ("SDEI_EVENT_CONTEXT", 2): 0},
     "SDEI_STATE.0x20", "runs on vCPU 2, but is routed to another"),
    ("runs on a vCPU that is off", {("SDEI_STATE.0x20", None): 7 | 1 << 32, ("SDEI_EVENT_CONTEXT", 3): 0,
                                    ("SDEI_EVENT_CONTEXT", 1): 0},
     "SDEI_STATE.0x20", "runs on vCPU 1, which is off"),
    ("runs on no vCPU", {("SDEI_STATE.0x20", None): 7 | 4 << 32}, "SDEI_STATE.0x20", "there is no vCPU 4"),
    ("context of EL2", {("SDEI_EVENT_CONTEXT", 0): pstate(PSTATE_EL2H)}, "SDEI_EVENT_CONTEXT", "no exception level"),
    ("context of EL2t", {("SDEI_EVENT_CONTEXT", 0): pstate(0b01000)}, "SDEI_EVENT_CONTEXT", "no exception level"),
    ("context of EL3", {("SDEI_CRITICAL_CONTEXT", 0): pstate(0b01101)}, "SDEI_CRITICAL_CONTEXT", "no exception level"),
    ("context of mode 1", {("SDEI_EVENT_CONTEXT", 0): pstate(0b00001)}, "SDEI_EVENT_CONTEXT", "no exception level"),
    ("context of AArch32 System", {("SDEI_EVENT_CONTEXT", 0): pstate(0b11111)}, "SDEI_EVENT_CONTEXT", "no exception"),
    ("context of AArch32 Hyp", {("SDEI_EVENT_CONTEXT", 0): pstate(0b11010)}, "SDEI_EVENT_CONTEXT", "no exception"),
    ("PSTATE's bits", {("SDEI_EVENT_CONTEXT", 0): pstate(1 << 26 | 5)}, "SDEI_EVENT_CONTEXT", "unknown bits 0x4000000"),
    ("PSTATE's high bits", {("SDEI_EVENT_CONTEXT", 0): pstate(1 << 36 | 5)}, "SDEI_EVENT_CONTEXT", "unknown bits"),
    ("and in AArch32", {("SDEI_EVENT_CONTEXT", 0): pstate(1 << 32 | 0x10)}, "SDEI_EVENT_CONTEXT", "unknown bits"),
    # routing
    ("target that is not there", {("SDEI_STATE.0x22", None): 0x23 | 4 << 16}, "SDEI_STATE.0x22", "there is no vCPU 4"),
    ("target without RM_PE", {("SDEI_STATE.0x22", None): 3 | 1 << 16}, "SDEI_STATE.0x22", "bit 0x20 is not set"),
    ("place without running", {("SDEI_STATE.0x22", None): 3 | 1 << 32}, "SDEI_STATE.0x22", "bit 0x4 is not set"),
    ("routed, not registered", {("SDEI_STATE.0x22", None): 0x20}, "SDEI_STATE.0x22", "is routed to a vCPU, but not"),
    ("offered to nobody", {("SDEI_LAST_OFFERED", None): 5}, "SDEI_LAST_OFFERED", "there is no vCPU 4"),
    # bindings
    ("bound twice", {("SDEI_BINDING.0x40002000", None): 41, ("SDEI_BINDING.0x40002001", None): 41},
     "SDEI_BINDING.0x4000200", "interrupt 41 is bound to event 0x4000200"),
    ("bound by definition", {("SDEI_BINDING.0x40002000", None): 40}, "SDEI_BINDING.0x40002000", "bound to event 0x2,"),
    ("a PPI in a shared slot", {("SDEI_BINDING.0x40002000", None): 20}, "SDEI_BINDING.0x40002000", "takes an SPI"),
    ("an SPI in a private slot", {("SDEI_BINDING.0x40001000", None): 41}, "SDEI_BINDING.0x40001000", "takes a PPI"),
    ("an SGI", {("SDEI_BINDING.0x40001000", None): 15}, "SDEI_BINDING.0x40001000", "takes a PPI, 16 to 31"),
    ("no interrupt", {("SDEI_BINDING.0x40002001", None): 1020}, "SDEI_BINDING.0x40002001", "does not fit"),
    # power
    ("off and suspended", {("SDEI_POWER", 1): 2}, "SDEI_POWER", "a vCPU that is off is not suspended"),
    ("waits without sleeping", {("SDEI_POWER", 3): 5}, "SDEI_POWER", "only a vCPU that is suspended waits"),
    ("off and unmasked", {("SDEI_PE_STATE", 1): 0}, "SDEI_PE_STATE", "a vCPU that is off is masked"),
    ("suspended and unmasked", {("SDEI_PE_STATE", 2): 0}, "SDEI_PE_STATE", "a vCPU that is suspended is masked"),
    # counts
    ("failed, not completed", {("SDEI_COUNTS.0x0", 0): 2 << 192 | 1 << 128}, "SDEI_COUNTS.0x0", "2 handlers have fail"),
    ("too many", {("SDEI_COUNTS.0x0", 0): 1 << 62}, "SDEI_COUNTS.0x0", "more than the 62 bits"),
    # what the service is made of
    ("affinity", {("SDEI_AFFINITY", 1): 2}, "SDEI_AFFINITY", "it is 0x1 here, and cannot be 0x2"),
    ("layout", {("SDEI_LAYOUT", None): 0x2_0000}, "SDEI_LAYOUT", "are of layout 2.0, and this sdeivirt knows 1.0"),
    ("newer layout", {("SDEI_LAYOUT", None): 0x1_0002}, "SDEI_LAYOUT", "are of layout 1.2"),
    ("version", {("SDEI_VERSION", None): 0x0001_0000_004B_564D}, "SDEI_VERSION", "cannot be"),
    ("policy", {("SDEI_POLICY", None): 0}, "SDEI_POLICY", "it is 0x43 here"),
    ("vCPUs", {("SDEI_VCPUS", None): 5}, "SDEI_VCPUS", "it is 0x4 here, and cannot be 0x5"),
    ("events", {("SDEI_EVENTS", None): 11}, "SDEI_EVENTS", "it is 0xc here"),
    ("definition", {("SDEI_DEFINITION.0x5", None): 0x5}, "SDEI_EVENTS", "event 0x5 of the state is private, normal,"),
    ("event of another number", {("SDEI_DEFINITION.0x5", None): 0x6}, "SDEI_EVENTS", "event 0x6 .* is not defined"),
]  # fmt: skip


@pytest.mark.parametrize(("values", "register", "reason"), [pytest.param(*case[1:], id=case[0]) for case in REFUSED])
def test_refused(
    service: Service, values: dict[tuple[str, int | None], int | Callable[[int], int]], register: str, reason: str
) -> None:
    registers = Registers(service.sdei)
    before = registers.dump()
    chosen = [
        (name, vcpu, value(registers.get(registers.find(name), vcpu)) if callable(value) else value)
        for (name, vcpu), value in values.items()
    ]
    for order in (1, -1):
        with pytest.raises(RegisterError) as caught:
            assign(registers, chosen[::order])
        assert re.search(rf"^register {re.escape(register)}\S* \(0x6\d\d0[0-9a-f]{{12}}\)", caught.value.message)
        assert re.search(reason, caught.value.message), caught.value.message
        assert registers.dump() == before
        assert service.fw.take_kicks() == 0
        check_invariants(service.sdei, 0)


@pytest.mark.parametrize(("name", "vcpu", "bits"), [("SDEI_EVENT_HANDLER_0", 0, 128), ("SDEI_EVENT_CONTEXT", 0, 2048)])
def test_a_value_has_the_size_of_its_register(service: Service, name: str, vcpu: int, bits: int) -> None:
    registers = Registers(service.sdei)
    for value in (1 << bits, -1):
        with pytest.raises(RegisterError, match=f"it has {bits} bits, and the value does not fit"):
            registers.set(registers.find(name), value, vcpu)


def test_relative_where_there_is_no_such_mode() -> None:
    registers = Registers(Service("tf-a").sdei)
    with pytest.raises(RegisterError, match="event 0x5 is relative, which policy 'tf-a' has not"):
        registers.set(registers.find("SDEI_STATE.0x5"), 0x10, 0)


def test_relative_handlers_may_start_at_zero(service: Service) -> None:
    registers = Registers(service.sdei)
    with registers.transaction() as transaction:
        transaction.set(registers.find("SDEI_EVENT_HANDLER_0"), 0, 3)
        transaction.set(registers.find("SDEI_STATE.0x0"), 0x10, 3)
    handler = service.fw.pes[3].handlers[0]
    assert (handler.entry, handler.relative, handler.state) == (0, True, 3)


@pytest.mark.parametrize("value", [0x0, 0x4, 0x5, 0x3C5, 0xF_F3F0_3FC5, 0x10, 0xFFFF_FFF0 & ~0xF])
def test_contexts_that_a_guest_can_have(service: Service, value: int) -> None:
    registers = Registers(service.sdei)
    context = registers.get(registers.find("SDEI_EVENT_CONTEXT"), 0)
    registers.set(registers.find("SDEI_EVENT_CONTEXT"), pstate(value)(context), 0)
    service.sdei.cancel(0, 0)
    service.call(0, "event_complete", 0)
    service.call(0, "event_complete", 0)
    assert service.cpus[0].registers["pstate"] == value


# -- setting


def test_a_pending_event_asks_for_a_kick(service: Service) -> None:
    registers = Registers(service.sdei)
    registers.set(registers.find("SDEI_STATE.0x5"), 0b1011, 0)
    assert service.fw.take_kicks() == 0  # PE 0 runs a critical handler
    service.call(3, "event_complete", 0)
    registers.set(registers.find("SDEI_EVENT_PENDING"), 1, 3)
    assert service.fw.take_kicks() == 0b1000
    service.look(3)
    handler = service.fw.pes[3].handlers[0]
    assert (handler.injected, handler.delivered, handler.pending, handler.state) == (1, 1, False, 7)


def test_unmasking_asks_for_a_kick(service: Service) -> None:
    service.call(3, "event_complete", 0)
    service.call(3, "pe_mask")
    service.sdei.inject(5, 3)
    assert service.fw.take_kicks() == 0
    registers = Registers(service.sdei)
    registers.set(registers.find("SDEI_PE_STATE"), 0, 3)
    assert service.fw.take_kicks() == 0b1000


def test_a_sleeper_is_woken(service: Service) -> None:
    registers = Registers(service.sdei)
    registers.set(registers.find("SDEI_EVENT_PENDING"), 1, 2)
    assert service.fw.take_kicks() == 0b0100


def test_an_event_for_any_goes_where_it_was_offered_before(service: Service) -> None:
    service.call(3, "event_complete", 0)
    service.call(0, "event_complete", 0)
    service.call(0, "event_complete", 0)
    service.call(0, "event_complete", 0)
    registers = Registers(service.sdei)
    for last, kicked in ((0, 0b0001), (1, 0b0001), (1, 0b0001), (2, 0b1000), (4, 0b1000), (4, 0b1000)):
        with registers.transaction() as transaction:
            transaction.set(registers.find("SDEI_LAST_OFFERED"), last)
            transaction.set(registers.find("SDEI_STATE.0x22"), 0b1011)
        assert service.fw.take_kicks() == kicked, last
        assert registers.get(registers.find("SDEI_LAST_OFFERED")) == last


def test_a_handler_ends_by_its_registers(service: Service) -> None:
    """Running bits and frames go together, in one transaction."""
    registers = Registers(service.sdei)
    with registers.transaction() as transaction:
        transaction.set(registers.find("SDEI_CRITICAL_CONTEXT"), 0, 0)
        transaction.set(registers.find("SDEI_EVENT_RUNNING"), 0b01, 0)
    frame = service.fw.pes[0].frame
    assert frame is not None
    assert frame.handler.event.number == 0
    check_invariants(service.sdei, service.fw.take_kicks())


def test_a_shared_event_moves_to_another_vcpu(service: Service) -> None:
    registers = Registers(service.sdei)
    context = registers.find("SDEI_EVENT_CONTEXT")
    with registers.transaction() as transaction:
        transaction.set(registers.find("SDEI_STATE.0x20"), 0x27 | 2 << 16 | 2 << 32)
        transaction.set(context, registers.get(context, 3), 2)
        transaction.set(context, 0, 3)
    assert service.fw.pes[3].normal is None
    service.sdei.pe_resume(service.fw.pes[2])
    service.fw.take_kicks()
    check_invariants(service.sdei, 0)
    service.call(2, "event_complete", 0)
    assert service.sdei.handler(0x20, None).completed == 1


def test_kvms_registers_alone_make_kvms_states() -> None:
    """As a VMM would set them that knows of nothing else, for a vCPU that is on."""
    service = Service()
    service.sdei.pe_on(service.fw.pes[0])
    registers = Registers(service.sdei)
    context = struct.pack("<2Q", 0x4008_0000, 0x6000_03C5) + bytes(range(144))
    with registers.transaction() as transaction:
        for name, value in {
            "SDEI_EVENT_CONTEXT": int.from_bytes(context, "little"),
            "SDEI_EVENT_RUNNING": 1,
            "SDEI_EVENT_PENDING": 1,
            "SDEI_EVENT_ENABLED": 1,
            "SDEI_EVENT_REGISTERED": 1,
            "SDEI_EVENT_HANDLER_0": ENTRY | 0x55 << 64,
            "SDEI_PE_STATE": 0,
        }.items():
            transaction.set(KVM_IDS[name][0], value, 0)
    assert service.call(0, "event_context", 3) == int.from_bytes(bytes(range(24, 32)), "little")
    service.call(0, "event_complete", 0)  # and the pending one is entered at once
    assert service.cpus[0].registers["x1"] == 0x55
    assert service.cpus[0].registers["pc"] == ENTRY
    assert service.cpus[0].registers["x2"] == 0x4008_0000


def test_a_frame_of_zeroes_is_a_frame(service: Service) -> None:
    registers = Registers(service.sdei)
    registers.set(registers.find("SDEI_EVENT_CONTEXT"), 0, 0)
    assert registers.dump().vcpus[0][registers.find("SDEI_EVENT_CONTEXT")] == 0
    copy = copied(service, "kvm", "sections", random.Random(0))
    assert copy.fw.pes[0].normal is not None
    assert copy.fw.pes[0].normal.saved == bytes(160)


def test_a_transaction_that_fails_in_the_middle_sets_nothing(service: Service) -> None:
    registers = Registers(service.sdei)
    before = registers.dump()
    with pytest.raises(UnknownVcpuError):
        assign(registers, [("SDEI_PE_STATE", 0, 1), ("SDEI_PE_STATE", 9, 1)])
    assert registers.dump() == before


def test_zeroes_make_no_handler(service: Service) -> None:
    registers = Registers(service.sdei)
    assign(registers, [("SDEI_EVENT_HANDLER_0", 1, 0), ("SDEI_STATE.0x5", 1, 0), ("SDEI_COUNTS.0x5", 1, 0)])
    assert not service.fw.pes[1].handlers  # status lists who has ever registered


def test_power_belongs_to_the_engine(service: Service) -> None:
    registers = Registers(service.sdei, fixed_power=True)
    with pytest.raises(RegisterError, match=r"SDEI_POWER .* of vCPU 1: it is 0x0, and cannot become 0x1"):
        registers.set(registers.find("SDEI_POWER"), 1, 1)
    registers.set(registers.find("SDEI_PE_STATE"), 1, 0)
    assert service.fw.pes[0].masked


def test_the_records_that_others_hold_stay(service: Service) -> None:
    pes, events, known = service.sdei.pes, service.sdei.events, service.sdei.bindings.known
    each = [*pes, *events]
    copy = copied(service, "kvm", "dump", random.Random(0))
    Registers(service.sdei).load(Registers(copy.sdei).dump())
    assert service.sdei.pes is pes
    assert service.sdei.events is events
    assert service.sdei.bindings.known is known
    assert all(old is new for old, new in zip(each, [*service.sdei.pes, *service.sdei.events], strict=True))
    assert service.call(0, "event_context", 0) == service.cpus[0].registers["x0"]


# -- every cell of the state table at once

CELLS = [0b0000, 0b0001, 0b1001, 0b0011, 0b1011, 0b0100, 0b0101, 0b1101, 0b0111, 0b1111]  # pending, R, E, G


@pytest.fixture(params=["private", "shared"])
def cells(request: pytest.FixtureRequest) -> Service:
    """An event in every state, pending and not, on four PEs: two with nested handlers, two masked."""
    shared = request.param == "shared"
    service = Service(events=tuple(EventDefinition(0x100 + n, shared, Priority(n % 2)) for n in range(len(CELLS))))
    for pe in service.fw.pes:
        service.sdei.pe_on(pe)
    values: list[tuple[str, int | None, int]] = [("SDEI_PE_STATE", 0, 0), ("SDEI_PE_STATE", 2, 0)]
    for n, cell in enumerate(CELLS):
        vcpu = n // 2 % 4
        if cell & 4:
            context = 0x4000_0000 + n * 4 | 0x3C5 << 64 | n << 128
            values.append(("SDEI_CRITICAL_CONTEXT" if n % 2 else "SDEI_EVENT_CONTEXT", vcpu, context))
            cell |= vcpu << 32 if shared else 0
        where = None if shared else vcpu
        values += [(f"SDEI_HANDLER.{0x100 + n:#x}", where, ENTRY), (f"SDEI_STATE.{0x100 + n:#x}", where, cell)]
    assign(Registers(service.sdei), values)
    return service


@pytest.mark.parametrize("route", ROUTES)
def test_every_cell_goes_along(cells: Service, route: str) -> None:
    check_invariants(cells.sdei, cells.fw.take_kicks())
    copy = Service(events=tuple(_definitions(cells)))
    ROUTES[route](cells.sdei, copy.sdei, random.Random(1))
    for old, new in zip(cells.cpus, copy.cpus, strict=True):
        new.registers.update(old.registers)
    check_invariants(copy.sdei, copy.fw.take_kicks())
    assert copy.after() == cells.after()
    found = set()
    for pe in range(4):
        for event in cells.sdei.events:
            status = cells.call(pe, "event_status", event.number)
            found.add(status)
            assert copy.call(pe, "event_status", event.number) == status
    assert found == {0b000, 0b001, 0b011, 0b100, 0b101, 0b111} | {(1 << 64) - 2}  # slots do not exist
    ended = 0
    for pe in range(4):
        while cells.fw.pes[pe].frame is not None and ended < 99:
            ended += 1
            for service in (cells, copy):
                service.call(pe, "event_complete", 0)
            assert copy.after() == cells.after()
    assert ended >= 5


def _definitions(service: Service) -> Iterator[EventDefinition]:
    for event in service.sdei.events:
        if event.number and not event.dynamic:
            yield EventDefinition(event.number, event.shared, event.priority, event.signalable, event.interrupt)


# -- dumps


def test_a_new_service_is_as_after_reset() -> None:
    dump = Registers(Service().sdei).dump()
    assert all(list(vcpu) == [id_of("SDEI_AFFINITY")] for vcpu in dump.vcpus)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda dump: dump.vm.pop(id_of("SDEI_LAYOUT")), "SDEI_LAYOUT .* nothing says how"),
        (lambda dump: dump.vm.pop(id_of("SDEI_EVENTS")), "SDEI_EVENTS .* it is missing"),
        (lambda dump: dump.vm.pop(id_of("SDEI_POLICY")), "SDEI_POLICY .* it is missing"),
        (lambda dump: dump.vm.pop(id_of("SDEI_DEFINITION.0x9")), "event 0x9 is defined here, and not in the state"),
        (lambda dump: dump.vcpus[2].pop(id_of("SDEI_AFFINITY")), "SDEI_AFFINITY .* of vCPU 2: it is missing"),
        (lambda dump: dump.vcpus.pop(), "the state is of 3 vCPUs, and there are 4"),
        (lambda dump: dump.vcpus.append({}), "the state is of 5 vCPUs"),
        (lambda dump: dump.vm.update({id_of("SDEI_PE_STATE"): 0}), "it is a register of each vCPU"),
        (lambda dump: dump.vcpus[0].update({id_of("SDEI_STATE.0x20"): 0}), "it is a register of the VM"),
        (lambda dump: dump.vm.update({0x1234: 0}), "register 0x1234: there is no such register"),
    ],
)
def test_dumps_that_are_refused(service: Service, change: Callable[[Dump], object], reason: str) -> None:
    registers = Registers(service.sdei)
    before, dump = registers.dump(), registers.dump()
    change(dump)
    with pytest.raises(RegisterError, match=reason):
        registers.load(dump)
    assert registers.dump() == before


def test_a_service_that_is_made_of_something_else(service: Service) -> None:
    dump = Registers(service.sdei).dump()
    kvm = replace(POLICIES["kvm"], private_slots=2, shared_slots=2)
    affinities = [pe.affinity for pe in service.fw.pes]
    definitions = list(_definitions(service))
    for made, reason in (
        (Sdei(affinities[:3], definitions, kvm), "the state is of 4 vCPUs, and there are 3"),
        (Sdei([0, 1, 2, 3], definitions, kvm), "of vCPU 2: it is 0x2 here, and cannot be 0x100"),
        (Sdei(affinities, definitions[1:], kvm), "event 0x1 of the state is not defined here"),
        (Sdei(affinities, [*definitions, EventDefinition(0x999)], kvm), "event 0x999 is defined here, and not in the"),
        (Sdei(affinities, [EventDefinition(1), *definitions[1:]], kvm), "private, normal here, and not private, crit"),
        (Sdei(affinities, definitions, replace(kvm, shared_slots=3)), "event 0x40002002 is defined here, and not in"),
        (Sdei(affinities, definitions, replace(kvm, private_slots=1)), "event 0x40001001 of the state is not defined"),
        (Sdei(affinities, definitions, replace(kvm, version=(1, 0))), "SDEI_VERSION"),
        (Sdei(affinities, definitions, replace(kvm, signal_pends=False)), "SDEI_POLICY"),
    ):
        before = Registers(made).dump()
        with pytest.raises(RegisterError, match=reason):
            Registers(made).load(dump)
        assert Registers(made).dump() == before


def test_more_events_than_ids() -> None:
    events = [EventDefinition(n) for n in range(1, (1 << 16) - 7)]
    with pytest.raises(RegisterError, match="65538 events are more than registers can name"):
        Registers(Sdei(1, [*events, EventDefinition(0x1_0000)]))


# -- JSON


@pytest.mark.parametrize(
    ("document", "reason"),
    [
        (None, "this is no dump"),
        ([], "this is no dump"),
        ({"vm": {}}, "this is no dump"),
        ({"vm": {}, "vcpus": {}}, "this is no dump"),
        ({"vm": {}, "vcpus": [], "more": 1}, "this is no dump"),
        ({"vm": [], "vcpus": []}, "this is no dump"),
        ({"vm": {}, "vcpus": []}, "SDEI_LAYOUT .* it is missing"),
        ({"vm": {"SDEI_LAYOUT": "0x10002", "SDEI_NEW": 0}, "vcpus": []}, "are of layout 1.2"),
        ({"vm": {"SDEI_LAYOUT": "0x10000", "SDEI_NEW": 0}, "vcpus": []}, "there is no register 'SDEI_NEW'"),
        ({"vm": {"SDEI_LAYOUT": "0x10000"}, "vcpus": [7]}, "this is no dump"),
        ({"vm": {"SDEI_LAYOUT": "0x10000"}, "vcpus": [{"SDEI_PE_STATE": "x"}]}, "'x' is no register's value"),
        ({"vm": {"SDEI_LAYOUT": "0x10000", "0x6030000005d00000": 0}, "vcpus": []}, "stands twice"),
    ],
)
def test_json_that_is_no_dump(document: Any, reason: str) -> None:
    with pytest.raises(RegisterError, match=reason):
        from_json(Registers(Service().sdei), document)


def test_json_by_ids_and_numbers(service: Service) -> None:
    registers = Registers(service.sdei)
    dump = registers.dump()
    document = {
        "vm": {hex(id): value for id, value in dump.vm.items()},
        "vcpus": [{str(id): hex(value).upper().replace("X", "x") for id, value in vcpu.items()} for vcpu in dump.vcpus],
    }
    assert from_json(registers, document) == dump == from_json(registers, to_json(registers, dump))


@pytest.mark.parametrize(
    "value", [-1, 1.0, True, None, [], "", "-1", "0x", "1_0", "0x" + "f" * 513, "9" * 21, "\u0663"]
)
def test_no_values(value: object) -> None:
    with pytest.raises(RegisterError, match="is no register's value"):
        parse_value(value)
