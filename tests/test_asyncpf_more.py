# SPDX-License-Identifier: Apache-2.0
"""Asynchronous page faults: the PPI alone, the ring, blocks that move, power, registers, and guests that move."""

from __future__ import annotations

import struct
from collections.abc import Callable

import msgspec
import pytest

from sdeivirt.asyncpf import OFF, AsyncPfSettings
from sdeivirt.cli import main
from sdeivirt.errors import RegisterError, StreamError
from sdeivirt.firmware import Firmware
from sdeivirt.machine import MachineConfig, open_machine
from sdeivirt.machine.report import AsyncPfStatus, async_pf_status
from sdeivirt.migration.description import Configuration, read_configuration
from sdeivirt.migration.sections import Section, pack
from sdeivirt.registers import Registers
from sdeivirt.registers.ids import LAYOUT
from sdeivirt.registers.sections import firmware_sections, load_firmware_sections
from sdeivirt.registers.text import describe
from sdeivirt.smccc.psci import Power

from .asyncpf_support import (
    ENABLED,
    EVENT,
    INVALID,
    NOT_PRESENT,
    NOT_REQUIRED,
    PAGE,
    RAM,
    READY,
    SEND_ALWAYS,
    SUCCESS,
    WAKE_ALL,
    WITH_RING,
    Scene,
)
from .fake_view import NoPower


def by_ppi(flags: int = ENABLED) -> Scene:
    """One PE that knows nothing of SDEI, and has taken the wake-all of its ENABLE."""
    scene = Scene("ppi")
    assert scene.enable(flags) == SUCCESS
    assert (scene.ring() if flags & WITH_RING else [scene.take()[1]]) == [WAKE_ALL]
    scene.acknowledge()
    scene.interrupts()
    return scene


def by_event(flags: int = ENABLED) -> Scene:
    scene = Scene("both")
    scene.register()
    assert scene.enable(flags) == SUCCESS
    return scene


def tell(scene: Scene, count: int = 1) -> list[int]:
    """Tokens that the guest has taken."""
    tokens = []
    for _ in range(count):
        token = scene.fault()
        assert token is not None
        if scene.running():
            scene.handle()
        else:
            assert scene.interrupts() == 1
            assert scene.take() == (NOT_PRESENT, token)
            scene.acknowledge()
        tokens.append(token)
    return tokens


# -- the PPI alone


def test_enable_wakes_all_who_were_told_by_another_kernel() -> None:
    scene = Scene("ppi")
    assert scene.enable() == SUCCESS
    assert scene.interrupts() == 1
    assert scene.mailbox() == (READY, WAKE_ALL)


def test_both_reasons_come_by_the_ppi() -> None:
    scene = by_ppi()
    assert scene.fw.pes[0].masked  # that is about events
    token = scene.fault()
    assert token is not None
    assert (scene.interrupts(), scene.interrupts(), scene.take()) == (1, 0, (NOT_PRESENT, token))
    scene.acknowledge()
    scene.ready(token)
    assert scene.hear() == [token]


def test_a_kernel_that_has_masked_the_ppi_waits_at_the_second_try() -> None:
    scene = by_ppi()
    token = scene.fault()
    assert token is not None
    assert scene.fault() is None
    scene.ready(token)  # the access goes on, and the interrupt comes some time
    assert scene.take() == (NOT_PRESENT, token)
    scene.acknowledge()
    assert scene.hear() == [token]  # ready is told in any case: the guest may have put the task to sleep


def test_a_kernels_faults_cannot_be_told_by_ppi() -> None:
    scene = by_ppi()
    assert scene.enable(ENABLED | SEND_ALWAYS) == INVALID
    assert scene.fault(user=False) is None


# -- the ring


@pytest.mark.parametrize("make", [by_event, by_ppi])
def test_the_ring(make: Callable[[int], Scene]) -> None:
    scene = make(ENABLED | WITH_RING)
    scene.interrupts()
    tokens = tell(scene, 3)
    for token in tokens:
        scene.ready(token)
    assert scene.interrupts() == 1
    assert scene.ring() == tokens
    assert scene.mailbox() == (0, 0)  # which is for not-present alone
    assert scene.fault() is not None


def test_the_ring_goes_round_and_waits_when_it_is_full() -> None:
    scene = by_event(ENABLED | WITH_RING)
    first = []
    for _ in range(130):
        (token,) = tell(scene)
        scene.ready(token)
        first.append(token)
    assert scene.ring() == first[:128]
    assert scene.ring() == []
    scene.acknowledge()
    assert scene.ring() == first[128:]
    assert scene.word(8) == scene.word(12) == 130
    assert scene.word(64) == first[128]


@pytest.mark.parametrize("tail", [1, 0x7FFF_FFFF, 0xFFFF_FF7F])
def test_a_tail_that_cannot_be_makes_the_ring_look_full(tail: int) -> None:
    scene = by_event(ENABLED | WITH_RING)
    scene.put(12, tail)
    (token,) = tell(scene)
    before = bytes(scene.memory.ram)
    scene.ready(token)
    assert bytes(scene.memory.ram) == before
    assert scene.interrupts() == 0
    scene.put(12, 0)
    scene.acknowledge()
    assert scene.ring() == [token]


def test_head_goes_round_at_32_bits() -> None:
    scene = by_event(ENABLED | WITH_RING)
    state = scene.fw.pes[0].async_pf
    assert state is not None
    state.head = 0xFFFF_FFFF
    scene.put(12, 0xFFFF_FFFF)
    tokens = tell(scene, 2)
    for token in tokens:
        scene.ready(token)
    assert scene.word(8) == 1
    assert [scene.word(64 + 4 * 127), scene.word(64)] == tokens


# -- blocks that move, or are not there


def test_tokens_are_answered_in_the_new_block() -> None:
    scene = by_event()
    tokens = tell(scene, 2)
    scene.ready(tokens[0])
    assert scene.take() == (READY, tokens[0])
    assert scene.enable(at=RAM + PAGE) == SUCCESS
    scene.ready(tokens[1])
    assert scene.mailbox() == (0, 0)
    scene.places[0] = RAM + PAGE
    assert scene.hear()[-1] == tokens[1]


def test_one_wake_all_answers_all_where_the_ppi_tells() -> None:
    scene = by_ppi()
    tokens = tell(scene, 3)
    scene.ready(tokens[0])
    scene.interrupts()
    scene.take()
    assert scene.enable(at=RAM + PAGE) == SUCCESS
    scene.places[0] = RAM + PAGE
    assert scene.hear() == [WAKE_ALL]
    for token in tokens:
        scene.ready(token)
    assert scene.hear() == []


def test_a_wake_all_does_not_answer_what_the_guest_has_not_read() -> None:
    scene = by_ppi(ENABLED | WITH_RING)
    (first,) = tell(scene)
    second = scene.fault()
    assert second is not None
    assert scene.enable(ENABLED | WITH_RING, at=RAM + PAGE) == SUCCESS
    assert scene.take() == (NOT_PRESENT, second)  # only now the guest reads the old block
    scene.places[0] = RAM + PAGE
    assert scene.ring() == [WAKE_ALL]
    scene.ready(first)
    scene.ready(second)
    assert scene.ring() == [second]


@pytest.mark.parametrize("flags", [ENABLED, ENABLED | WITH_RING])
def test_a_block_whose_page_is_absent(flags: int) -> None:
    scene = by_event(flags)
    (token,) = tell(scene)
    scene.memory.absent.add(RAM)
    scene.ready(token)
    assert scene.apf.blocked
    assert scene.interrupts() == 0
    scene.memory.absent.clear()
    scene.apf.retry()
    assert not scene.apf.blocked
    assert scene.interrupts() == 1
    assert (scene.ring() if flags & WITH_RING else [scene.take()[1]]) == [token]


@pytest.mark.parametrize("flags", [ENABLED, ENABLED | WITH_RING])
def test_a_block_whose_page_comes_just_after_it_was_missed(flags: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever brings it may have looked before the service says that it waits for that."""
    scene = by_event(flags)
    token, _ = tell(scene, 2)
    scene.memory.absent.add(RAM)
    read = scene.memory.read

    def read_too_early(address: int, size: int) -> bytes | None:
        found = read(address, size)
        if found is None:
            scene.memory.absent.clear()
            assert not scene.apf.blocked  # so nobody tries again
        return found

    monkeypatch.setattr(scene.memory, "read", read_too_early)
    scene.ready(token)
    assert scene.interrupts() == 1
    assert (scene.ring() if flags & WITH_RING else [scene.take()[1]]) == [token]


@pytest.mark.parametrize("flags", [ENABLED, ENABLED | WITH_RING])
def test_a_block_whose_page_goes_between_a_look_and_a_write(flags: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of what is told stands there half, and it is told once the page has come back."""
    scene = by_event(flags)
    token, _ = tell(scene, 2)
    write = scene.memory.write

    def too_late(_address: int, _data: bytes) -> bool:
        return False

    monkeypatch.setattr(scene.memory, "write", too_late)
    scene.ready(token)
    assert scene.apf.blocked
    assert scene.interrupts() == 0
    monkeypatch.setattr(scene.memory, "write", write)
    scene.apf.retry()
    assert scene.interrupts() == 1
    assert (scene.ring() if flags & WITH_RING else [scene.take()[1]]) == [token]


def test_a_message_is_written_whole_or_not_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    scene = by_event(ENABLED)
    write, writes = scene.memory.write, []

    def once(address: int, data: bytes) -> bool:
        writes.append((address, data))
        return len(writes) == 1 and write(address, data)

    monkeypatch.setattr(scene.memory, "write", once)
    token = scene.fault()
    assert token is not None
    assert writes == [(RAM, struct.pack("<II", NOT_PRESENT, token))]


def test_a_wake_all_answers_what_the_guest_has_just_read() -> None:
    scene = by_ppi()
    token = scene.fault()
    assert token is not None
    assert scene.take() == (NOT_PRESENT, token)  # and IRQ_ACK has not come
    scene.interrupts()
    assert scene.enable(at=RAM + PAGE) == SUCCESS
    scene.places[0] = RAM + PAGE
    scene.ready(token)
    assert scene.hear() == [WAKE_ALL]


def test_disabling_makes_tokens_void() -> None:
    scene = by_event()
    tokens = tell(scene, 3)
    scene.ready(tokens[0])
    scene.ready(tokens[2])
    scene.take()
    assert scene.disable() == SUCCESS
    assert scene.disable() == NOT_REQUIRED
    assert scene.interrupts() == 0
    scene.ready(tokens[1])
    assert scene.fault() is None
    assert scene.enable() == SUCCESS
    assert scene.mailbox() == (0, 0)
    assert tell(scene)[0] not in tokens  # a page may still come for those
    assert scene.hear() == []


# -- power


@pytest.mark.parametrize("how", ["off", "on", "reset"])
def test_a_pe_that_is_turned_off_or_reset_has_it_not_enabled(how: str) -> None:
    scene = by_event()
    tokens = tell(scene, 2)
    scene.ready(tokens[0])
    pe = scene.fw.pes[0]
    if how == "reset":
        scene.fw.sdei.reset()
    else:
        (scene.fw.sdei.pe_off if how == "off" else scene.fw.sdei.pe_on)(pe)
    assert scene.interrupts() == 0
    scene.put(0, 0, 0)
    scene.ready(tokens[1])
    assert scene.mailbox() == (0, 0)
    assert scene.fault() is None
    scene.start(0)
    scene.register()
    assert scene.enable() == SUCCESS
    assert tell(scene)[0] not in tokens


def test_other_pes_stay_as_they_are() -> None:
    scene = Scene(pes=2)
    for pe in (0, 1):
        scene.register(pe)
        scene.enable(pe=pe)
    scene.fw.sdei.pe_off(scene.fw.pes[0])
    assert scene.fault(1) is not None


def test_a_pe_that_sleeps_keeps_it() -> None:
    scene = by_event()
    (token,) = tell(scene)
    pe = scene.fw.pes[0]
    assert scene.fw.sdei.pe_suspend(pe)
    scene.ready(token)
    scene.fw.sdei.pe_resume(pe)
    scene.sdei("pe_unmask")
    assert scene.hear() == [token]
    assert scene.fault() is not None


# -- status


def test_status() -> None:
    scene = Scene(pes=2)
    assert async_pf_status(scene.fw) == []
    scene.register(1)
    scene.enable(pe=1)
    first = scene.fault(1)
    assert first is not None
    scene.handle(1)
    scene.fault(1, user=False)
    second = scene.fault(1)
    assert second is not None
    scene.handle(1, refuse=True)
    scene.ready(first, pe=1)
    third = AsyncPfStatus(1, "sdei", told=2, answered=1, refused=1, waits=1, outstanding=0, ready=0)
    assert async_pf_status(scene.fw) == [third]
    scene.disable(1)
    assert async_pf_status(scene.fw)[0].transport == ""


# -- registers


def whole(flags: int = ENABLED, make: Callable[[int], Scene] = by_event) -> Scene:
    """A PE with something in every register."""
    scene = make(flags)
    tokens = tell(scene, 4)
    for token in tokens[:2]:
        scene.ready(token)
    last = scene.fault()
    assert (last is None) == (not flags & WITH_RING)  # the mailbox holds a ready token
    return scene


def test_registers() -> None:
    scene = whole()
    registers = Registers(scene.fw.sdei)

    def get(name: str) -> int:
        return registers.get(registers.find(f"SDEI_ASYNC_PF_{name}"), 0)

    assert get("CONTROL") == RAM | ENABLED
    assert get("INTERRUPT") == 17
    assert get("STATE") == 0b011 | 4 << 16
    assert get("TOKENS") == 0x3000 | 0x4000 << 32
    assert get("READY") == 0x2000
    assert get("COUNTS") == 4 | 1 << 64 | 1 << 192
    texts = {
        each.name: describe(registers.catalog.find(each.id), registers.get(each.id, 0)) for each in registers.list(0)
    }
    assert texts["SDEI_ASYNC_PF_CONTROL"] == "enabled, block at 0x40000000"
    assert texts["SDEI_ASYNC_PF_STATE"] == "told by the event, unacknowledged, last token 0x4"
    assert texts["SDEI_ASYNC_PF_TOKENS"] == "0x3000, 0x4000"
    assert texts["SDEI_ASYNC_PF_COUNTS"] == "4 told, 1 answered, 0 refused, 1 waits"


@pytest.mark.parametrize("flags", [ENABLED, ENABLED | WITH_RING])
@pytest.mark.parametrize("make", [by_event, by_ppi])
def test_the_service_goes_on_from_its_registers(flags: int, make: Callable[[int], Scene]) -> None:
    scene = whole(flags, make)
    registers = Registers(scene.fw.sdei)
    dump = registers.dump()
    registers.load(dump)
    assert registers.dump() == dump
    scene.ready(0x4000)
    if not flags & WITH_RING:
        assert scene.take() == (READY, 0x1000)
        scene.acknowledge()
        assert scene.hear() == [0x2000, 0x4000]
    else:
        assert scene.ring()[-1] == 0x4000


TOKENS = "TOKENS"
REFUSALS = [
    ("flags", {"CONTROL": RAM | 9}, "CONTROL", "it has no bits 0x8"),
    ("not enabled", {"CONTROL": RAM}, "CONTROL", "does not enable"),
    ("no ring fits", {"CONTROL": RAM + PAGE - 64 | 5}, "CONTROL", "no guest can have set it to"),
    ("EL1 by PPI", {"CONTROL": RAM | 3, "STATE": 0}, "CONTROL", "no guest can have set it to"),
    ("control 0", {"CONTROL": 0}, "STATE", "it is not all zero"),
    ("tokens without", {"CONTROL": 0, "STATE": 0}, "TOKENS", "it holds tokens"),
    ("another PPI", {"INTERRUPT": 18}, "INTERRUPT", "it is 17 here, and cannot be 18"),
    ("bits of the state", {"STATE": 1 << 3}, "STATE", "it has no bits 0x8"),
    ("a ring without", {"RING": 1}, "RING", "it cannot be 0x1"),
    ("a long head", {"CONTROL": RAM | 5, "RING": 1 << 32}, "RING", "it cannot be"),
    ("another vCPU's token", {TOKENS: 0x1001}, TOKENS, "vCPU 0 has no token 0x1001"),
    ("token 0", {TOKENS: 0x1000 << 32}, TOKENS, "vCPU 0 has no token 0x0"),
    ("a number too long", {TOKENS: 0x1000_0000}, TOKENS, "vCPU 0 has no token 0x10000000"),
    ("wake-all outstanding", {TOKENS: WAKE_ALL}, TOKENS, "has no token 0xffffffff"),
    ("twice", {TOKENS: 0x5000 | 0x5000 << 32}, TOKENS, "token 0x5000 stands twice"),
    ("twice, in both", {TOKENS: 0x2000}, "READY", "token 0x2000 stands twice"),
    ("too many", {TOKENS: sum((n + 0x100 << 12) << 32 * n for n in range(64))}, "READY", "65 tokens, and 64 slots"),
    ("counts", {"COUNTS": 1 << 63}, "COUNTS", "more than the 62 bits"),
]


@pytest.mark.parametrize(("values", "blamed", "message"), [case[1:] for case in REFUSALS], ids=[c[0] for c in REFUSALS])
def test_registers_that_cannot_be(values: dict[str, int], blamed: str, message: str) -> None:
    scene = whole()
    registers = Registers(scene.fw.sdei)
    before = registers.dump()
    transaction = registers.transaction()
    for name, value in values.items():
        transaction.set(registers.find(f"SDEI_ASYNC_PF_{name}"), value, 0)
    with pytest.raises(RegisterError, match=message) as caught, transaction:
        pass  # they are taken over at its end
    assert f"SDEI_ASYNC_PF_{blamed} " in str(caught.value)
    assert registers.dump() == before


def test_a_vcpu_that_is_off_has_it_not_enabled() -> None:
    scene = Scene("ppi", pes=2, on=False)
    registers = Registers(scene.fw.sdei)
    with pytest.raises(RegisterError, match="it enables, but the vCPU is off"):
        registers.set(registers.find("SDEI_ASYNC_PF_CONTROL"), RAM | ENABLED, 1)


def test_a_way_of_telling_that_is_not_offered() -> None:
    scene = Scene("sdei")
    registers = Registers(scene.fw.sdei)
    with pytest.raises(RegisterError, match="told by the PPI, which is not offered here"):
        registers.set(registers.find("SDEI_ASYNC_PF_CONTROL"), RAM | ENABLED, 0)


# -- moving


def moved(scene: Scene, settings: AsyncPfSettings | None = None) -> Scene:
    """The same guest elsewhere, with the same RAM."""
    scene.fw.psci.power = [Power.ON] * len(scene.fw.pes)
    sections = firmware_sections(scene.fw)
    scene.interrupts()
    scene.fw = Firmware(len(scene.fw.pes), NoPower(), async_pf=settings or scene.settings, memory=scene.memory)
    load_firmware_sections(scene.fw, sections)
    scene.apf = scene.fw.asyncpf
    return scene


def test_what_was_outstanding_is_answered_after_the_move() -> None:
    scene = moved(whole())
    # 0x1000 is in the mailbox, its interrupt may have been lost; 0x2000 had come; 0x3000 and 0x4000 had not.
    assert scene.hear() == [0x1000, 0x2000, 0x3000, 0x4000]
    assert tell(scene) == [0x5000]
    (status,) = async_pf_status(scene.fw)
    assert (status.transport, status.told, status.answered, status.waits) == ("sdei", 5, 4, 1)


def test_one_wake_all_after_the_move_where_the_ppi_tells() -> None:
    scene = moved(whole(ENABLED, by_ppi))
    assert scene.hear() == [0x1000, WAKE_ALL]
    scene.ready(0x3000)
    assert scene.hear() == []


def test_a_move_with_an_unread_not_present() -> None:
    scene = by_ppi()
    (first,) = tell(scene)
    second = scene.fault()
    assert (first, second) == (0x1000, 0x2000)
    moved(scene)
    assert scene.interrupts() == 1  # it may not have come before
    assert scene.take() == (NOT_PRESENT, second)
    scene.acknowledge()
    assert scene.hear() == [WAKE_ALL, second]


def test_a_move_with_the_event_pending() -> None:
    scene = by_event()
    token = scene.apf.not_present(scene.fw.pes[0], user=True)
    moved(scene)
    assert scene.look()
    assert scene.handle() == token
    assert scene.hear() == [token]


@pytest.mark.parametrize("make", [by_event, by_ppi])
def test_a_move_before_the_pages_have_come(make: Callable[[int], Scene]) -> None:
    """Post-copy: the block itself is absent at first."""
    scene = make(ENABLED)
    (token,) = tell(scene)
    scene.memory.absent.add(RAM)
    moved(scene)
    assert scene.apf.blocked
    scene.interrupts()
    scene.memory.absent.clear()
    scene.apf.retry()
    assert scene.hear() == [token if make is by_event else WAKE_ALL]


def test_the_ring_goes_on_after_the_move() -> None:
    scene = moved(whole(ENABLED | WITH_RING))
    assert scene.interrupts() == 1
    assert scene.ring() == [0x1000, 0x2000, 0x3000, 0x4000, 0x5000]
    assert scene.word(8) == 5


def test_a_state_from_before() -> None:
    """Version 1.0 of the registers: they had no asynchronous page faults, and such a guest has them off."""
    old = Firmware(1, NoPower())
    sections = firmware_sections(old)
    registers = sections[0].fields()["registers"]
    assert registers[LAYOUT.id] == 0x1_0001
    sections[0] = Section("sdei", 0, 1, msgspec.msgpack.encode({"registers": registers | {LAYOUT.id: 0x1_0000}}))
    new = Firmware(1, NoPower())
    load_firmware_sections(new, sections)
    assert Registers(new.sdei).dump() == Registers(old.sdei).dump()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (OFF, "event 0x40400001 of the state is not defined here"),
        (AsyncPfSettings.of("ppi"), "event 0x40400001 of the state is not defined here"),
        (AsyncPfSettings(intid=20), "it is 20 here, and cannot be 17"),
    ],
)
def test_a_destination_that_offers_something_else(settings: AsyncPfSettings, message: str) -> None:
    with pytest.raises(StreamError, match=message):
        moved(whole(), settings)


def test_what_the_machine_is_made_of_travels() -> None:
    settings = AsyncPfSettings(("ppi",), intid=20)
    section = pack("configuration", Configuration.of("unicorn", MachineConfig(async_pf=settings)))
    assert read_configuration(section).config("x", None, None).async_pf == settings


def test_a_machine_of_version_1_has_none() -> None:
    section = pack("configuration", Configuration.of("unicorn", MachineConfig()))
    fields = section.fields()
    del fields["async_pf"]
    old = Section("configuration", 0, 1, msgspec.msgpack.encode(fields))
    assert read_configuration(old).config("x", None, None).async_pf == OFF


# -- a real machine


def test_a_machine_offers_them() -> None:
    with open_machine("unicorn", MachineConfig(vcpus=1)) as machine:
        assert machine.firmware.asyncpf.settings == AsyncPfSettings()
        assert EVENT in {event.number for event in machine.status().events}
    with open_machine("unicorn", MachineConfig(vcpus=1, async_pf=OFF)) as machine:
        assert EVENT not in {event.number for event in machine.status().events}


def test_a_block_can_be_where_a_machine_has_ram() -> None:
    with open_machine("unicorn", MachineConfig(vcpus=1, memory=2 << 20)) as machine, machine.lock:
        memory = machine.firmware.asyncpf
        assert memory.covers(0x4000_0000, 8)
        assert memory.covers(0x4020_0000 - 8, 8)
        assert not memory.covers(0x4020_0000, 8)
        assert not memory.covers(0x3FFF_FFF8, 8)
        assert machine.write_physical(0x4000_0000, b"12345678")
        assert machine.read_physical(0x4000_0004, 4) == b"5678"
        assert machine.read_physical(0x4020_0000 - 4, 8) is None
        assert not machine.write_physical(0x3FFF_FFFC, bytes(8))


def test_the_option(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "--guest", "listen", "--async-pf", "smoke"]) == 2
    assert "smoke" in capsys.readouterr().err
    for choice in ("sdei", "ppi", "both", "off"):
        command = ["run", "--guest", "listen", "--name", f"apf-{choice}", "--timeout", "0.001", "--async-pf", choice]
        assert main(command) == 124
    assert main(["run", "--incoming", "unix:/nowhere/x", "--async-pf", "off"]) == 2
    assert "a guest that comes in brings its own --async-pf" in capsys.readouterr().err
