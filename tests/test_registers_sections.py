# SPDX-License-Identifier: Apache-2.0
"""The firmware's state as sections: taken over whole, or refused with section and register, and nothing changed."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sdeivirt.errors import RegisterError, StreamError
from sdeivirt.migration.sections import Section, pack
from sdeivirt.registers import Dump, Registers
from sdeivirt.registers.sections import (
    FIRMWARE_SECTIONS,
    PsciState,
    ServicesState,
    firmware_sections,
    from_sections,
    load_firmware_sections,
    to_sections,
)
from sdeivirt.registers.text import from_json, to_json
from sdeivirt.smccc.ids import Owner
from sdeivirt.smccc.psci import Power

from .fake_view import hypercall
from .register_support import DYNAMIC, NUMBERS, Service, check_invariants, copied, damaged_section, lived, lives

LAYOUT, EVENTS_COUNT, ASYNC_PF = 0x6030_0000_05D0_0000, 0x6030_0000_05D0_0004, 0x6030_0000_05D8_0003
CONTEXT, ENABLED, PE_STATE = 0x6080_0000_0014_000C, 0x6030_0000_0014_0009, 0x6030_0000_0014_000D
STD_BITMAP = 0x6030_0000_0016_0000


@pytest.fixture
def service() -> Service:
    """PE 0 runs event 0 and has 5 pending, PE 1 sleeps, PE 2 is about to start, PE 3 is off. An SPI is bound."""
    service = Service()
    for pe in (0, 1):
        service.sdei.pe_on(service.fw.pes[pe])
        service.guest_starts(pe, NUMBERS)
        service.fw.psci.started(pe)
    service.call(0, "interrupt_bind", 41)
    service.guest_starts(0, [DYNAMIC[2]])
    service.sdei.inject(0, 0)
    service.look(0)
    service.sdei.inject(5, 0)
    assert service.sdei.pe_suspend(service.fw.pes[1])
    service.fw.psci.power[2] = Power.ON_PENDING
    service.fw.take_kicks()
    return service


def everything(service: Service) -> Any:
    """All that the sections are about."""
    bitmaps = {owner: bitmap.value for owner, bitmap in service.fw.router.bitmaps.items()}
    return Registers(service.sdei).dump(), list(service.fw.psci.power), bitmaps, dict(service.fw.router.functions)


# -- the whole firmware


def test_the_firmware_goes_along(service: Service) -> None:
    service.fw.router.bitmaps[Owner.STANDARD].value &= ~1  # TRNG, before the first run
    service.fw.freeze()
    sections = firmware_sections(service.fw)
    assert {section.name for section in sections} == set(FIRMWARE_SECTIONS)
    copy = Service()
    load_firmware_sections(copy.fw, sections)
    assert everything(copy)[:3] == everything(service)[:3]
    assert copy.fw.psci.power == [Power.ON, Power.ON, Power.ON_PENDING, Power.OFF]
    assert not copy.fw.router.implements(0x8400_0050)
    assert copy.fw.router.implements(0xC400_0020)
    # AFFINITY_INFO of the PE that is about to start.
    assert hypercall(copy.fw, 0xC400_0004, service.fw.pes[2].affinity, 0) == [2, 0, 0, 0]
    check_invariants(copy.sdei, copy.fw.take_kicks())


def test_afterwards_the_kicks_name_those_who_have_work(service: Service) -> None:
    service.call(0, "event_complete", 0)  # which enters event 5
    service.sdei.inject(9, 0)
    service.sdei.inject(0, 1)
    copy = Service()
    load_firmware_sections(copy.fw, firmware_sections(service.fw))
    assert copy.fw.take_kicks() == 0b0011


def change_psci(sections: list[Section], power: list[int]) -> list[Section]:
    return [pack("psci", PsciState(power)) if section.name == "psci" else section for section in sections]


def change_services(sections: list[Section], change: Callable[[dict[int, int]], object]) -> list[Section]:
    changed = []
    for section in sections:
        if section.name == "services":
            bitmaps = dict(msgspec.msgpack.decode(section.data, type=ServicesState).bitmaps)
            change(bitmaps)
            section = pack("services", ServicesState(bitmaps))
        changed.append(section)
    return changed


def change_registers(
    sections: list[Section], name: str, instance: int, change: Callable[[dict[int, Any]], object]
) -> list[Section]:
    return [
        damaged_section(section, change) if (section.name, section.instance) == (name, instance) else section
        for section in sections
    ]


def newer(sections: list[Section], name: str) -> list[Section]:
    return [
        Section(section.name, section.instance, section.version + (section.name == name), section.data)
        for section in sections
    ]


def without(sections: list[Section], name: str, instance: int = 0) -> list[Section]:
    return [section for section in sections if (section.name, section.instance) != (name, instance)]


Change = Callable[[list[Section]], list[Section]]
REFUSED: list[tuple[str, Change, str]] = [
    ("no VM", lambda s: without(s, "sdei"), "there must be one section 'sdei'"),
    ("two VMs", lambda s: [*s, s[0]], "there must be one section 'sdei'"),
    ("a vCPU is missing", lambda s: without(s, "sdei-pe", 1), "'sdei-pe' are not one for each vCPU, in order"),
    ("the last one", lambda s: without(s, "sdei-pe", 3), "the state is of 3 vCPUs, and there are 4"),
    ("a vCPU twice", lambda s: [*s, s[2]], "'sdei-pe' are not one for each vCPU, in order"),
    ("one vCPU more", lambda s: [*s, Section("sdei-pe", 4, 1, s[4].data)], "the state is of 5 vCPUs"),
    ("another order", lambda s: [s[0], s[2], s[1], *s[3:]], "'sdei-pe' are not one for each vCPU, in order"),
    ("no PSCI", lambda s: without(s, "psci"), "there must be one section 'psci'"),
    ("no services", lambda s: without(s, "services"), "there must be one section 'services'"),
    ("newer VM", lambda s: newer(s, "sdei"), "section 'sdei' has version 2"),
    ("newer vCPUs", lambda s: newer(s, "sdei-pe"), "section 'sdei-pe' has version 2"),
    ("newer PSCI", lambda s: newer(s, "psci"), "section 'psci' has version 2"),
    ("newer services", lambda s: newer(s, "services"), "section 'services' has version 2"),
    ("no MessagePack", lambda s: [Section("sdei", 0, 1, b"\xc1"), *s[1:]], "section 'sdei' is damaged"),
    ("another record", lambda s: [Section("sdei", 0, 1, s[-1].data), *s[1:]], "section 'sdei' is damaged"),
    ("fewer power states", lambda s: change_psci(s, [0, 0, 2]), "section 'psci' is of 3 vCPUs, and there are 4"),
    ("unknown power state", lambda s: change_psci(s, [0, 0, 3, 1]), "section 'psci': vCPU 2 has no power state 3"),
    ("on, and off for SDEI", lambda s: change_psci(s, [0, 0, 0, 1]), "vCPU 2 is on, and for SDEI it is off"),
    ("off, and on for SDEI", lambda s: change_psci(s, [1, 0, 2, 1]), "vCPU 0 is off, and for SDEI it is on"),
    ("pending, and on for SDEI", lambda s: change_psci(s, [2, 0, 2, 1]), "vCPU 0 is on pending, and for SDEI it is on"),
    ("unknown service", lambda s: change_services(s, lambda b: b.update({STD_BITMAP: 7})), "has no bits 0x4"),
    ("negative bitmap", lambda s: change_services(s, lambda b: b.update({STD_BITMAP: -1})), "has no bits"),
    ("unknown bitmap", lambda s: change_services(s, lambda b: b.update({STD_BITMAP + 9: 0})), "160009 is unknown"),
    ("missing bitmap", lambda s: change_services(s, lambda b: b.pop(STD_BITMAP)), "160000 is missing"),
    ("unknown register", lambda s: change_registers(s, "sdei-pe", 1, lambda r: r.update({0x77: 0})),
     "section 'sdei-pe' of instance 1: register 0x77: there is no such register"),
    ("an integer for bytes", lambda s: change_registers(s, "sdei-pe", 0, lambda r: r.update({CONTEXT: 0})),
     "section 'sdei-pe': register SDEI_EVENT_CONTEXT (0x608000000014000c): it has 2048 bits"),
    ("too few bytes", lambda s: change_registers(s, "sdei-pe", 0, lambda r: r.update({CONTEXT: r[CONTEXT][:-1]})),
     "it has 2048 bits, and the value has another size"),
    ("bytes for an integer", lambda s: change_registers(s, "sdei-pe", 0, lambda r: r.update({PE_STATE: bytes(8)})),
     "it has 64 bits, and the value has another size"),
    ("negative", lambda s: change_registers(s, "sdei-pe", 0, lambda r: r.update({PE_STATE: -1})),
     "SDEI_PE_STATE (0x603000000014000d): it has 64 bits, and the value does not fit"),
    ("impossible", lambda s: change_registers(s, "sdei-pe", 1, lambda r: r.update({ENABLED: 3, ENABLED - 1: 1})),
     "section 'sdei-pe' of instance 1: register SDEI_EVENT_ENABLED (0x6030000000140009): event 0x1 is enabled, but"),
    ("async page faults", lambda s: change_registers(s, "sdei-pe", 0, lambda r: r.update({ASYNC_PF: 0x4100_0001})),
     "register SDEI_ASYNC_PF_CONTROL (0x6030000005d80003): it must be 0, since there are no asynchronous page faults"),
    ("EL2", lambda s: change_registers(s, "sdei-pe", 0, lambda r: r.update({CONTEXT: bytes(8) + b"\x09" + bytes(247)})),
     "register SDEI_EVENT_CONTEXT (0x608000000014000c): PSTATE 0x9 is of no exception level of the guest's"),
    ("newer layout", lambda s: change_registers(s, "sdei", 0, lambda r: r.update({LAYOUT: 0x1_0002, 0x77: 0})),
     "section 'sdei': register SDEI_LAYOUT (0x6030000005d00000): the registers are of layout 1.2"),
    ("newer layout, unknown register of a vCPU", lambda s: change_registers(
        change_registers(s, "sdei", 0, lambda r: r.update({LAYOUT: 0x1_0002})),
        "sdei-pe", 0, lambda r: r.update({7: 7})),
     "the registers are of layout 1.2"),
    ("layout as bytes", lambda s: change_registers(s, "sdei", 0, lambda r: r.update({LAYOUT: bytes(8)})),
     "register SDEI_LAYOUT (0x6030000005d00000): it is missing"),
    ("other events", lambda s: change_registers(s, "sdei", 0, lambda r: r.update({EVENTS_COUNT: 2})),
     "register SDEI_EVENTS (0x6030000005d00004): it is 0xc here, and cannot be 0x2"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "reason"), [pytest.param(*case[1:], id=case[0]) for case in REFUSED])
def test_refused(service: Service, change: Change, reason: str) -> None:
    sections = change(firmware_sections(service.fw))
    copy = Service()
    copy.sdei.pe_on(copy.fw.pes[3])
    before = everything(copy)
    with pytest.raises(StreamError) as caught:
        load_firmware_sections(copy.fw, sections)
    assert reason in caught.value.message
    assert everything(copy) == before
    assert copy.fw.take_kicks() == 0


def test_a_stream_for_other_events(service: Service) -> None:
    other = Service(events=())
    with pytest.raises(StreamError, match=r"section 'sdei': register SDEI_EVENTS .*: event 0x1 of the state is not"):
        from_sections(other.sdei, to_sections(service.sdei))


# -- damage


def refused_or_sound(target: Service, load: Callable[[], None]) -> bool:
    """A damaged state is refused and nothing has changed, or is one that can be. Whether it was taken."""
    before = Registers(target.sdei).dump()
    try:
        load()
    except (RegisterError, StreamError):
        assert Registers(target.sdei).dump() == before
        assert target.fw.take_kicks() == 0
        return False
    check_invariants(target.sdei, target.fw.take_kicks())
    return True


@settings(max_examples=150, deadline=None)
@given(life=lives, data=st.data())
def test_damaged_dumps(life: list[Any], data: st.DataObject) -> None:
    """One to three bits of values are wrong."""
    service, target = lived("kvm", life), Service()
    dump = Registers(service.sdei).dump()
    catalog = Registers(service.sdei).catalog
    for _ in range(data.draw(st.integers(1, 3))):
        values = dump.of(data.draw(st.sampled_from([None, 0, 1, 2, 3])))
        id = data.draw(st.sampled_from(sorted(values)))
        values[id] ^= 1 << data.draw(st.integers(0, catalog.find(id).kind.size - 1))
    if refused_or_sound(target, lambda: Registers(target.sdei).load(dump)):
        dump.vm[LAYOUT] = Registers(target.sdei).dump().vm[LAYOUT]  # an older one is read, and written anew
        assert Registers(target.sdei).dump() == Dump(
            {id: value for id, value in dump.vm.items() if id in Registers(target.sdei).dump().vm},
            [
                {id: value for id, value in vcpu.items() if id in now}
                for vcpu, now in zip(dump.vcpus, Registers(target.sdei).dump().vcpus, strict=True)
            ],
        )


@settings(max_examples=200, deadline=None)
@given(life=lives, seed=st.integers(0, 1 << 32), kind=st.sampled_from(["bit", "byte", "cut", "splice"]))
def test_damaged_sections(life: list[Any], seed: int, kind: str) -> None:
    chance = random.Random(seed)
    service, target = lived("kvm", life), Service()
    sections = to_sections(service.sdei)
    chosen = chance.randrange(len(sections))
    data = bytearray(sections[chosen].data)
    at = chance.randrange(len(data))
    if kind == "bit":
        data[at] ^= 1 << chance.randrange(8)
    elif kind == "byte":
        data[at] = chance.randrange(256)
    elif kind == "cut":
        del data[at : at + chance.randrange(1, 9)]
    else:
        other = sections[chance.randrange(len(sections))].data
        data[at:] = other[chance.randrange(len(other)) :]
    section = sections[chosen]
    sections[chosen] = Section(section.name, section.instance, section.version, bytes(data))
    refused_or_sound(target, lambda: from_sections(target.sdei, sections))


@settings(max_examples=80, deadline=None)
@given(life=lives, seed=st.integers(0, 1 << 32))
def test_damaged_json(life: list[Any], seed: int) -> None:
    chance = random.Random(seed)
    service, target = lived("kvm", life), Service()
    registers = Registers(service.sdei)
    text = list(json.dumps(to_json(registers, registers.dump())))
    for _ in range(chance.randrange(1, 4)):
        text[chance.randrange(len(text))] = chance.choice('0123456789abcdefSDEI_."{}[],: ')
    try:
        document = json.loads("".join(text))
    except ValueError:
        return
    there = Registers(target.sdei)
    refused_or_sound(target, lambda: there.load(from_json(there, document)))


@pytest.mark.campaign
@pytest.mark.parametrize("seed", range(2))
def test_every_bit_of_a_state(service: Service, seed: int) -> None:
    """Each bit of each section of a busy service, and 20,000 states with several wrong bits."""
    print(f"seed {seed}")
    chance = random.Random(seed)
    sections = to_sections(service.sdei)
    taken = count = 0

    def attack(flips: list[tuple[int, int]]) -> bool:
        damaged = [bytearray(section.data) for section in sections]
        for which, bit in flips:
            damaged[which][bit >> 3] ^= 1 << (bit & 7)
        made = [
            Section(section.name, section.instance, section.version, bytes(data))
            for section, data in zip(sections, damaged, strict=True)
        ]
        return refused_or_sound(target, lambda: from_sections(target.sdei, made))

    target = Service()
    places = [(which, bit) for which, section in enumerate(sections) for bit in range(8 * len(section.data))]
    for place in places if seed == 0 else ():
        taken += attack([place])
        count += 1
    for _ in range(20_000):
        taken += attack(chance.sample(places, chance.randrange(2, 5)))
        count += 1
    assert count > 20_000 - 1
    assert 0 < taken < count
    assert copied(service, "kvm", "sections", chance).after() == service.after()
