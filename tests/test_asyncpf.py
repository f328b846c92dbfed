# SPDX-License-Identifier: Apache-2.0
"""Asynchronous page faults: the way of a token by the SDEI event, and when a PE has to wait instead.

The PPI alone, the ring, moving and registers are in test_asyncpf_more.py; any sequence of steps is in
test_asyncpf_stateful.py.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from sdeivirt.asyncpf import OFF, AsyncPfSettings
from sdeivirt.errors import EventFileError, UsageError
from sdeivirt.firmware import Firmware
from sdeivirt.sdei.events import EventDefinition
from sdeivirt.smccc.ids import Owner

from .asyncpf_support import (
    CALL,
    ENABLE,
    ENABLED,
    ENTRY,
    EVENT,
    FEATURES,
    INTID,
    INVALID,
    IRQ,
    IRQ_ACK,
    NOT_PRESENT,
    NOT_REQUIRED,
    NOT_SUPPORTED,
    PAGE,
    RAM,
    RAM_SIZE,
    READY,
    REFUSED,
    SDEI,
    SEND_ALWAYS,
    SLOTS,
    SUCCESS,
    VERSION,
    WITH_RING,
    Scene,
)
from .fake_view import NoPower


@pytest.fixture
def scene() -> Scene:
    """Two PEs at EL0; the first is told by the event."""
    scene = Scene(pes=2)
    scene.register()
    assert scene.enable(ENABLED) == SUCCESS
    return scene


# -- the call


@pytest.mark.parametrize(
    ("choice", "function", "answer"),
    [
        ("both", VERSION, [SUCCESS, 0x01_0000]),
        ("both", SLOTS, [SUCCESS, 64]),
        ("both", SDEI, [SUCCESS, EVENT]),
        ("sdei", SDEI, [SUCCESS, EVENT]),
        ("ppi", SDEI, [NOT_SUPPORTED, 0]),
        ("both", IRQ, [SUCCESS, INTID]),
        ("sdei", IRQ, [SUCCESS, INTID]),
        ("both", IRQ_ACK, [SUCCESS, 0]),
        ("both", FEATURES, [SUCCESS, 0b11]),
        ("both", 7, [NOT_SUPPORTED, 0]),
        ("both", 0xFFFF_FFFF, [NOT_SUPPORTED, 0]),
        ("off", VERSION, [NOT_SUPPORTED, 0]),
    ],
)
def test_what_there_is(choice: str, function: int, answer: list[int]) -> None:
    assert Scene(choice).apf_call(function) == answer


def test_arguments_have_32_bits() -> None:
    scene = Scene()
    noise = 0xABCD_0000_0000
    assert scene.apf_call(noise | SLOTS) == [SUCCESS, 64]
    assert scene.apf_call(ENABLE, noise | RAM | ENABLED, noise << 16) == [SUCCESS, 0]
    assert scene.fw.pes[0].async_pf is not None
    assert scene.fw.pes[0].async_pf.control == RAM | ENABLED


def test_it_is_a_service_with_a_bit_of_its_own() -> None:
    fw = Firmware(1, NoPower(), async_pf=AsyncPfSettings())
    bitmap = fw.router.bitmaps[Owner.VENDOR_HYP]
    assert (bitmap.supported, bitmap.names[2]) == (0b101, "async-pf")
    assert Firmware(1, NoPower()).router.bitmaps[Owner.VENDOR_HYP].supported == 0b001


def test_the_bit_shows_in_the_features_and_switches_the_call() -> None:
    scene = Scene()
    assert scene.call_id(0, 0x8600_0000) == [0b101, 0, 0, 0]
    assert scene.call_id(0, 0x8000_0001, CALL)[0] == SUCCESS  # ARCH_FEATURES
    scene.fw.router.bitmaps[Owner.VENDOR_HYP].frozen = False
    scene.fw.router.bitmaps[Owner.VENDOR_HYP].set(0b001)
    scene.fw.freeze()
    assert scene.call_id(0, 0x8600_0000) == [0b001, 0, 0, 0]
    assert scene.call_id(0, 0x8000_0001, CALL)[0] == NOT_SUPPORTED
    assert scene.call_id(0, CALL, SLOTS) == [NOT_SUPPORTED, 0, 0, 0]


# -- what a platform offers


def test_the_event_is_one_of_the_platform() -> None:
    events = {event.number: event for event in Firmware(1, NoPower(), async_pf=AsyncPfSettings()).sdei.events}
    event = events[EVENT]
    assert (event.shared, int(event.priority), event.signalable, event.interrupt) == (False, 1, False, None)
    for settings in (OFF, AsyncPfSettings.of("ppi")):
        assert EVENT not in {event.number for event in Firmware(1, NoPower(), async_pf=settings).sdei.events}


def test_the_platforms_own_definition_of_the_event_counts() -> None:
    fw = Firmware(1, NoPower(), events=[EventDefinition(EVENT, signalable=True)], async_pf=AsyncPfSettings())
    assert fw.sdei.event(EVENT).signalable


@pytest.mark.parametrize(
    ("event", "message"),
    [
        (EventDefinition(EVENT, shared=True), "event 0x40400001 is that of asynchronous page faults"),
        (EventDefinition(EVENT, interrupt=20), "event 0x40400001 is that of asynchronous page faults"),
        (EventDefinition(9, interrupt=17), "interrupt 17 of event 0x9 is that of asynchronous page faults"),
    ],
)
def test_events_that_are_in_the_way(event: EventDefinition, message: str) -> None:
    with pytest.raises(EventFileError, match=message) as caught:
        Firmware(1, NoPower(), events=[event], async_pf=AsyncPfSettings())
    assert "--async-pf off" in caught.value.hint
    Firmware(1, NoPower(), events=[event], async_pf=OFF)


@pytest.mark.parametrize(
    "make",
    [
        lambda: AsyncPfSettings.of("all"),
        lambda: AsyncPfSettings(("ppi", "sdei")),
        lambda: AsyncPfSettings(("smoke",)),
        lambda: AsyncPfSettings(event=0),
        lambda: AsyncPfSettings(event=1 << 31),
        lambda: AsyncPfSettings(intid=15),
        lambda: AsyncPfSettings(intid=32),
    ],
)
def test_settings_that_cannot_be(make: Callable[[], AsyncPfSettings]) -> None:
    with pytest.raises(UsageError):
        make()


# -- ENABLE


@pytest.mark.parametrize(
    ("at", "flags", "expected"),
    [
        (RAM, ENABLED, SUCCESS),
        (RAM + PAGE - 64, ENABLED, SUCCESS),
        (RAM + RAM_SIZE - 64, ENABLED, SUCCESS),
        (RAM, ENABLED | SEND_ALWAYS | WITH_RING, SUCCESS),
        (RAM + PAGE - 576, ENABLED | WITH_RING, SUCCESS),
        (RAM + PAGE - 512, ENABLED | WITH_RING, INVALID),  # the ring would go on in the next page
        (RAM, ENABLED | 8, INVALID),
        (RAM, ENABLED | 16, INVALID),
        (RAM, ENABLED | 32, INVALID),
        (RAM, 8, INVALID),
        (RAM - 64, ENABLED, INVALID),
        (RAM + RAM_SIZE, ENABLED, INVALID),
        (0, ENABLED, INVALID),
        ((1 << 64) - 64, ENABLED, INVALID),
        (RAM, 0, NOT_REQUIRED),  # it is not enabled
        (0, 0, NOT_REQUIRED),
    ],
)
def test_control_words(at: int, flags: int, expected: int) -> None:
    scene = Scene()
    scene.register()
    assert scene.enable(flags, at=at) == expected
    assert scene.enable(flags, at=at) == (NOT_REQUIRED if expected == SUCCESS else expected)


def test_what_is_refused_changes_nothing(scene: Scene) -> None:
    assert scene.enable(ENABLED | 8) == INVALID
    assert scene.enable(ENABLED, at=0) == INVALID
    assert scene.fault() is not None


def test_a_block_may_be_in_a_page_that_has_not_come(scene: Scene) -> None:
    scene.memory.absent.add(RAM + PAGE)
    assert scene.enable(ENABLED, at=RAM + PAGE) == SUCCESS
    assert scene.fault() is None
    scene.memory.absent.clear()
    assert scene.fault() is not None


def test_the_event_alone_needs_a_handler() -> None:
    scene = Scene("sdei")
    assert scene.enable() == INVALID
    assert scene.sdei("event_register", EVENT, ENTRY, 0, 0, 0) == SUCCESS
    assert scene.enable() == SUCCESS  # registered is enough


@pytest.mark.parametrize("registered", [False, True])
def test_the_transport_is_chosen_at_enable(registered: bool) -> None:
    scene = Scene("both")
    if registered:
        scene.register()
    scene.enable()
    scene.interrupts()
    scene.take()
    scene.acknowledge()
    if not registered:
        scene.register()  # too late
    assert scene.fault() is not None
    assert (scene.running(), scene.interrupts()) == (([EVENT], 0) if registered else ([], 1))


# -- the way of a token


def test_the_way_of_a_token(scene: Scene) -> None:
    token = scene.fault()
    assert token == 0x1000
    assert scene.mailbox() == (NOT_PRESENT, 0x1000)
    assert scene.running() == [EVENT]
    assert scene.handle() == token
    assert scene.interrupts() == 0
    scene.ready(token)
    assert scene.mailbox() == (READY, token)
    assert scene.hear() == [token]
    assert scene.mailbox() == (0, 0)


def test_tokens_name_the_vcpu_and_differ() -> None:
    scene = Scene(pes=3)
    tokens = []
    for pe in (2, 0, 2, 2):
        if scene.fw.pes[pe].masked:
            scene.register(pe)
            scene.enable(pe=pe)
        token = scene.fault(pe)
        assert token is not None
        tokens.append(token)
        scene.handle(pe)
    assert tokens == [0x1002, 0x1000, 0x2002, 0x3002]


def test_numbers_begin_anew_and_skip_those_in_use(scene: Scene) -> None:
    state = scene.fw.pes[0].async_pf
    assert state is not None
    assert scene.fault() == 0x1000
    scene.handle()
    state.last_id = 0xFFFF
    assert scene.fault() == 0x2000  # neither 0 nor the one that is waited for


def test_ready_before_the_guest_has_read_the_other(scene: Scene) -> None:
    """The mailbox holds one message: the page of the first comes while the second is being told."""
    first = scene.fault()
    assert first is not None
    scene.handle()
    second = scene.fault()
    assert second is not None
    scene.ready(first)
    assert scene.mailbox() == (NOT_PRESENT, second)
    assert scene.interrupts() == 0
    scene.handle()
    assert scene.mailbox() == (READY, first)  # at the end of the handler
    assert scene.hear() == [first]
    scene.ready(second)
    assert scene.hear() == [second]


def test_a_page_that_comes_while_its_handler_runs(scene: Scene) -> None:
    token = scene.fault()
    assert token is not None
    scene.ready(token)
    assert scene.mailbox() == (NOT_PRESENT, token)
    scene.handle()
    assert scene.hear() == [token]


def test_one_ready_for_each_acknowledgement(scene: Scene) -> None:
    tokens = []
    for _ in range(3):
        token = scene.fault()
        assert token is not None
        scene.handle()
        tokens.append(token)
    for token in reversed(tokens):
        scene.ready(token)
    assert scene.interrupts() == 1
    assert scene.take() == (READY, tokens[2])
    assert scene.interrupts() == 0
    assert scene.mailbox() == (0, 0)  # nothing more before IRQ_ACK
    scene.acknowledge()
    assert scene.interrupts() == 1
    assert scene.take() == (READY, tokens[1])
    scene.acknowledge()
    assert scene.hear() == [tokens[0]]


def test_not_present_does_not_wait_for_an_acknowledgement(scene: Scene) -> None:
    first = scene.fault()
    assert first is not None
    scene.handle()
    scene.ready(first)
    assert scene.fault() is None  # the mailbox is not empty
    assert scene.take() == (READY, first)
    second = scene.fault()
    assert second is not None
    scene.acknowledge()
    assert scene.handle() == second


def test_a_token_is_answered_once(scene: Scene) -> None:
    token = scene.fault()
    assert token is not None
    scene.handle()
    scene.ready(token)
    scene.ready(token)
    assert scene.hear() == [token]
    scene.ready(token)
    scene.ready(0x7000)
    scene.ready(token, pe=1)
    assert scene.hear() == []
    assert scene.mailbox() == (0, 0)


# -- when the PE waits


def masked(scene: Scene) -> None:
    scene.sdei("pe_mask")


def disabled(scene: Scene) -> None:
    scene.sdei("event_disable", EVENT)


def unregistered(scene: Scene) -> None:
    scene.sdei("event_unregister", EVENT)


def in_another_handler(scene: Scene) -> None:
    scene.sdei("event_register", 0, ENTRY, 0, 0, 0)
    scene.sdei("event_enable", 0)
    scene.fw.sdei.inject(0)
    scene.look()
    assert scene.running() == [0]


def about_to_enter_another(scene: Scene) -> None:
    scene.sdei("event_register", 0, ENTRY, 0, 0, 0)
    scene.sdei("event_enable", 0)
    scene.fw.sdei.inject(0)


def injected_by_hand(scene: Scene) -> None:
    scene.fw.sdei.inject(EVENT)


def not_consumed(scene: Scene) -> None:
    assert scene.fault() is not None
    scene.sdei("event_complete", 0)


def half_consumed(scene: Scene) -> None:
    assert scene.fault() is not None
    scene.put(0, 0)
    scene.sdei("event_complete", 0)


def token_word_alone(scene: Scene) -> None:
    scene.put(4, 5)


def nonsense_in_the_mailbox(scene: Scene) -> None:
    scene.put(0, 0xFFFF_FFFF)


def absent_block(scene: Scene) -> None:
    scene.memory.absent.add(RAM)


def disabled_service(scene: Scene) -> None:
    assert scene.disable() == SUCCESS


def turned_off(scene: Scene) -> None:
    scene.fw.sdei.pe_off(scene.fw.pes[0])


@pytest.mark.parametrize(
    "reason",
    [
        masked,
        disabled,
        unregistered,
        in_another_handler,
        about_to_enter_another,
        injected_by_hand,
        not_consumed,
        half_consumed,
        token_word_alone,
        nonsense_in_the_mailbox,
        absent_block,
        disabled_service,
        turned_off,
    ],
)
def test_the_pe_waits(scene: Scene, reason: Callable[[Scene], None]) -> None:
    reason(scene)
    before = bytes(scene.memory.ram)
    state = scene.fw.pes[0].async_pf
    assert state is not None
    told, waits = state.told, state.waits
    assert scene.apf.not_present(scene.fw.pes[0], user=True) is None
    assert scene.memory.ram == before
    assert (state.told, state.waits) == (told, waits + 1)
    assert scene.interrupts() == 0


def test_a_kernel_is_told_only_if_it_likes(scene: Scene) -> None:
    assert scene.fault(user=False) is None
    assert scene.enable(ENABLED | SEND_ALWAYS) == SUCCESS
    assert scene.fault(user=False) is not None


def test_a_guest_that_never_enabled_it() -> None:
    scene = Scene()
    scene.register()
    assert scene.fault() is None
    assert scene.fault(user=False) is None


def test_without_the_service() -> None:
    scene = Scene("off")
    assert scene.fault() is None
    scene.ready(0x1000)
    assert scene.interrupts() == 0


def test_there_are_64_slots(scene: Scene) -> None:
    tokens = []
    for _ in range(64):
        token = scene.fault()
        assert token is not None
        tokens.append(token)
        scene.handle()
    assert scene.fault() is None
    scene.ready(tokens[10])
    assert scene.fault() is None  # its slot is free once the guest has been told
    assert scene.hear() == [tokens[10]]
    assert scene.fault() is not None


def test_a_guest_that_never_acknowledges(scene: Scene) -> None:
    """It harms nobody but itself: tokens queue, up to the slots."""
    told = 0
    for _ in range(100):
        token = scene.fault()
        if token is None:
            break
        told += 1
        scene.handle()
        scene.ready(token)
        scene.put(0, 0, 0)
    assert told == 65  # the first is told as ready, 64 wait for that
    scene.acknowledge()
    assert scene.mailbox()[0] == READY


# -- REFUSED


def test_a_refusal(scene: Scene) -> None:
    token = scene.fault()
    assert token is not None
    scene.handle(refuse=True)
    assert scene.fault() is None  # the access that was refused is tried again, and waits
    assert scene.mailbox() == (0, 0)
    scene.ready(token)  # the page has come
    assert scene.hear() == []
    assert scene.fault() is not None
    state = scene.fw.pes[0].async_pf
    assert state is not None
    assert (state.told, state.refusals, state.waits) == (2, 1, 1)


def test_a_refusal_of_a_page_that_has_come(scene: Scene) -> None:
    token = scene.fault()
    assert token is not None
    scene.put(0, REFUSED)
    scene.ready(token)
    scene.sdei("event_complete", 0)
    assert scene.mailbox() == (0, 0)
    assert scene.hear() == []
    assert scene.fault() is not None  # another one: nothing is to be tried again


def test_a_refusal_after_the_page_has_come(scene: Scene) -> None:
    token = scene.fault()
    assert token is not None
    scene.ready(token)
    scene.handle(refuse=True)
    assert scene.hear() == []
    assert scene.mailbox() == (0, 0)
    assert scene.fault() is not None


def test_a_refusal_of_what_stands_in_the_ring_already_is_none(scene: Scene) -> None:
    """The guest finds a ready token that it has refused, and each token is counted once."""
    assert scene.disable() == SUCCESS
    assert scene.enable(ENABLED | WITH_RING) == SUCCESS
    token = scene.fault()
    assert token is not None
    scene.ready(token)
    scene.handle(refuse=True)
    assert scene.fault() is not None  # the access was tried again, and its page was there: this is another
    assert (scene.word(8), scene.word(64)) == (1, token)
    state = scene.fw.pes[0].async_pf
    assert state is not None
    assert (state.told, state.answered, state.refusals) == (2, 1, 0)


def test_a_refusal_is_seen_when_another_token_is_due(scene: Scene) -> None:
    first = scene.fault()
    assert first is not None
    scene.handle()
    second = scene.fault()
    assert second is not None
    scene.ready(first)
    scene.handle(refuse=True)
    assert scene.mailbox() == (READY, first)  # instead of the refusal
    assert scene.fault() is None
    assert scene.hear() == [first]
    scene.ready(second)
    assert scene.hear() == []


# -- an event that goes before it has been told


@pytest.mark.parametrize("how", ["cancelled", "unregistered"])
def test_a_token_that_nobody_was_told_of_is_taken_back(scene: Scene, how: str) -> None:
    token = scene.apf.not_present(scene.fw.pes[0], user=True)
    assert token is not None
    if how == "cancelled":
        assert scene.fw.sdei.cancel(EVENT, 0)
    else:
        scene.sdei("pe_mask")
        assert scene.sdei("event_unregister", EVENT) == SUCCESS
    assert scene.running() == []
    assert scene.fault() is None
    scene.ready(token)
    assert scene.mailbox() == (0, 0)
    assert scene.hear() == []


def test_one_that_a_handler_has_left_unread_is_not(scene: Scene) -> None:
    token = scene.fault()
    assert token is not None
    scene.sdei("event_complete", 0)
    scene.ready(token)
    assert scene.mailbox() == (NOT_PRESENT, token)
    scene.put(0, 0, 0)
    scene.acknowledge()
    assert scene.hear() == [token]
