# SPDX-License-Identifier: Apache-2.0
"""Asynchronous page faults, any sequence of steps: every token that was told is answered once, or void.

The guest here is a careful one that does what docs/async-page-faults.md asks of it, at any time and in any order,
and now and then a hostile one. What it may hear is worked out from the tokens alone, not from how the service queues
them: a token is *waiting* for its page, then *due*, or *covered* where a wake-all answers it; then answered, or void.
"""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from sdeivirt.asyncpf import AsyncPfSettings
from sdeivirt.firmware import Firmware
from sdeivirt.registers import Registers
from sdeivirt.registers.sections import firmware_sections, load_firmware_sections
from sdeivirt.smccc.psci import Power

from .asyncpf_support import (
    ENABLED,
    EVENT,
    INVALID,
    NOT_PRESENT,
    NOT_REQUIRED,
    PAGE,
    RAM,
    RAM_SIZE,
    READY,
    REFUSED,
    SEND_ALWAYS,
    SUCCESS,
    WAKE_ALL,
    WITH_RING,
    Scene,
)
from .fake_view import NoPower

PES = range(2)
pes = st.sampled_from([0, 0, 0, 1])
# Three places for a control block of PE n: two that are good, and one too near to the end of its page for a ring.
PLACES = (0x0000, 0x2040, 0x4E00)


class Guest:
    """What is so on a PE, as the guest and an onlooker know it."""

    def __init__(self) -> None:
        self.on = True
        self.control = 0
        self.by_event = False
        self.masked = True
        self.registered = self.event_on = False
        self.handlers: list[int] = []  # that run
        self.waiting: list[int] = []  # tokens in the order in which they were told
        self.due: list[int] = []  # in the order in which pages came
        self.covered: set[int] = set()
        self.wake_all = False  # is to come
        self.told: list[int] = []  # of the due ones, and wake-alls, those that came before that and are not read yet
        self.lying: int | None = None  # the token in the mailbox, not read yet
        self.unheard = False  # ... and its event was cancelled
        self.refused: int | None = None  # the token that was refused last, whose page has not come
        self.may_wait = False  # the next fault may be taken for the one that was refused
        self.interrupt = False
        self.unacknowledged = False
        self.wild = False  # it has written what it must not

    def void(self) -> None:
        self.waiting, self.due, self.covered, self.told = [], [], set(), []
        self.wake_all = self.unacknowledged = self.unheard = self.wild = self.may_wait = False
        self.lying = self.refused = None
        self.control = 0


class AsyncPfMachine(RuleBasedStateMachine):
    scene: Scene

    @initialize(choice=st.sampled_from(["both", "sdei", "ppi"]), hostile=st.sampled_from([False, False, False, True]))
    def begin(self, choice: str, hostile: bool) -> None:
        self.choice = choice
        self.hostile = hostile
        self.scene = Scene(choice, len(PES), on=False)
        self.guests = [Guest() for _ in PES]
        self.places = self.scene.places
        self.ever: set[int] = set()  # tokens that can be heard no more
        self.writes: list[tuple[int, bytes, bytes]] = []
        self._watch()
        for pe in PES:
            self.scene.start(pe)
            assert self.scene.sdei("event_register", 0, RAM + 0x9000, 0, 0, 0, pe=pe) == SUCCESS
            assert self.scene.sdei("event_enable", 0, pe=pe) == SUCCESS

    def _watch(self) -> None:
        """What the host writes into mailboxes, with what stood there."""
        memory, write = self.scene.memory, type(self.scene.memory).write
        blocks = {RAM + place + pe * PAGE for place in PLACES for pe in PES}

        def watched(address: int, data: bytes) -> bool:
            before = bytes(memory.ram[address - RAM & ~7 : (address - RAM & ~7) + 8])
            done = write(memory, address, data)
            if done and address & -8 in blocks:
                self.writes.append((address, before, data))
            return done

        memory.write = watched  # type: ignore[method-assign]

    # -- the guest says what it wants

    @rule(pe=pes, what=st.sampled_from(["register", "enable", "enable", "disable", "unregister"]))
    def event(self, pe: int, what: str) -> None:
        guest = self.guests[pe]
        if not guest.on or self.choice == "ppi":
            return
        arguments = (EVENT, RAM + 0x8000, 0, 0, 0) if what == "register" else (EVENT,)
        if self.scene.sdei(f"event_{what}", *arguments, pe=pe) == SUCCESS:
            guest.registered = what != "unregister"
            guest.event_on = what == "enable" or (guest.event_on and what == "register")
        elif what == "unregister" and EVENT in guest.handlers:
            guest.registered = guest.event_on = False  # pending until the handler ends
        self._follow(pe)

    @rule(pe=pes, masked=st.sampled_from([False, False, True]))
    def mask(self, pe: int, masked: bool) -> None:
        if self.guests[pe].on:
            self.scene.sdei("pe_mask" if masked else "pe_unmask", pe=pe)
            self.guests[pe].masked = masked
            self._follow(pe)

    def _make_ready(self, pe: int, flags: int, by_event: bool) -> None:
        """All that the guest does at boot, so that what follows is not in vain."""
        if not self.guests[pe].on:
            self.power(pe, True)
        if by_event:
            for what in ("register", "enable"):
                self.event(pe, what)
        self.mask(pe, False)
        self.enable(pe, flags, PLACES[0], False)

    @rule(
        pe=pes,
        count=st.integers(1, 12),
        answer=st.sampled_from(["take", "take", "refuse", "leave"]),
        flags=st.sampled_from([1, 1, 3, 5, 5, 7]),
        by_event=st.booleans(),
        listens=st.booleans(),
    )
    def work(self, pe: int, count: int, answer: str, flags: int, by_event: bool, listens: bool) -> None:
        """Tasks that touch pages one after the other; the last one's message is answered in another way, perhaps."""
        if not self.guests[pe].control:
            self._make_ready(pe, flags, by_event)
        for n in range(count):
            guest = self.guests[pe]
            if guest.interrupt and (listens or not guest.by_event):
                self._interrupt(pe, False, True)
            self.fault(pe, True, False)
            while guest.handlers:
                self._handle(pe, answer if n == count - 1 else "take")

    @rule(
        pe=pes,
        flags=st.sampled_from([1, 1, 1, 3, 5, 5, 7, 0, 4, 8 | 1, 32 | 1]),
        place=st.sampled_from([*PLACES, RAM_SIZE - 64, RAM_SIZE, 1 << 40]),
        drain_first=st.booleans(),
    )
    def enable(self, pe: int, flags: int, place: int, drain_first: bool) -> None:
        guest, scene = self.guests[pe], self.scene
        if not guest.on:
            return
        at = RAM + (place + pe * PAGE if place < RAM_SIZE - PAGE else place - 64 * pe if place < RAM_SIZE else place)
        old = self.places[pe]
        scene.memory.absent.discard(old & -PAGE)
        if drain_first and guest.control:
            self._drain(pe)
        same = guest.control == at | flags
        if flags & 1 and at < RAM + RAM_SIZE and not guest.control:
            self._blank(at)
        by_event = self.choice != "ppi" and guest.registered
        size = 64 + 4 * 128 if flags & WITH_RING else 8
        if flags & ~(ENABLED | SEND_ALWAYS | WITH_RING):
            expected = INVALID
        elif not flags & ENABLED:
            expected = SUCCESS if guest.control else NOT_REQUIRED
        elif same:
            expected = NOT_REQUIRED
        elif (
            (not by_event and (self.choice == "sdei" or flags & SEND_ALWAYS))
            or at + size > RAM + RAM_SIZE
            or at % PAGE + size > PAGE
        ):
            expected = INVALID
        else:
            expected = SUCCESS
        if expected == SUCCESS and flags & ENABLED and guest.control and at != old:
            self._blank(at)
        elif expected == SUCCESS and flags & ENABLED and guest.control:
            # The ring begins anew in the same block: what is in it is read before.
            self._drain(pe, mailbox=False)
            scene.put(8, 0, 0, pe=pe)
        told = self._unheard(pe) if guest.control else []
        assert scene.enable(flags, pe=pe, at=at) == expected
        if expected == SUCCESS and not flags & ENABLED:
            guest.void()
        elif expected == SUCCESS:
            moved = bool(guest.control) and at != old
            if not by_event:
                self._cover(guest, told)
            guest.by_event, guest.unacknowledged, guest.refused = by_event, False, None
            self._collect()
            if moved:
                self._drain(pe)  # what is left in the old block
                guest.lying = None
            guest.control, self.places[pe] = at | flags, at
        self._follow(pe)

    def _blank(self, at: int) -> None:
        self.scene.memory.absent.discard(at & -PAGE)
        self.scene.memory.ram[at - RAM : at - RAM + 64] = bytes(64)

    def _unheard(self, pe: int) -> list[int]:
        """The ready tokens that stand in the block."""
        reason, token = self.scene.mailbox(pe)
        return [*([token] if reason == READY else []), *self._in_ring(pe)]

    def _cover(self, guest: Guest, told: list[int]) -> None:
        """A wake-all is to come, for all that the guest has read and that it has not been told to be ready."""
        guest.told = told
        keep = {guest.lying, *guest.told}
        guest.covered |= {token for token in (*guest.waiting, *guest.due) if token not in keep}
        guest.waiting = [token for token in guest.waiting if token in keep]
        guest.due = [token for token in guest.due if token in keep]
        guest.wake_all = True

    # -- the host

    @rule(pe=pes, user=st.sampled_from([True, True, True, False]), cancel=st.sampled_from([False] * 7 + [True]))
    def fault(self, pe: int, user: bool, cancel: bool) -> None:
        guest, scene = self.guests[pe], self.scene
        must_wait = (
            not guest.control
            or not (user or guest.control & SEND_ALWAYS)
            or bool(guest.handlers)
            or (guest.by_event and (guest.masked or not guest.event_on or not guest.registered))
            or len(guest.waiting) + len(guest.due) + guest.wake_all - len(self._unheard(pe)) >= 64
            or self.places[pe] & -PAGE in scene.memory.absent
            or scene.word(0, pe) not in (0, REFUSED)
            or (scene.word(0, pe) == 0 and scene.word(4, pe) != 0)
            or (scene.word(0, pe) == REFUSED and guest.refused is not None)
        )
        may_wait = must_wait or guest.may_wait or guest.wild
        token = scene.apf.not_present(scene.fw.pes[pe], user=user)
        if token is not None or not must_wait or scene.word(0, pe) != REFUSED:
            guest.refused, guest.may_wait = None, guest.may_wait and token is None and must_wait
        if token is None:
            assert may_wait
        else:
            assert not must_wait
            assert token not in self._alive()
            assert (token & 0xFFF, token >> 28, bool(token >> 12)) == (pe, 0, True)
            assert scene.mailbox(pe) == (NOT_PRESENT, token)
            self.ever.discard(token)
            guest.waiting.append(token)
            guest.lying = token
            guest.unheard = False
            if guest.by_event and cancel:
                assert scene.fw.sdei.cancel(EVENT, pe)
                guest.unheard = True
        entered = scene.look(pe)
        assert entered == (token is not None and guest.by_event and not guest.unheard)
        self._follow(pe)

    @precondition(lambda self: any(guest.waiting for guest in self.guests))
    @rule(data=st.data(), count=st.integers(1, 8))
    def pages(self, data: st.DataObject, count: int) -> None:
        pe = data.draw(st.sampled_from([pe for pe in PES if self.guests[pe].waiting]))
        for token in data.draw(st.permutations(self.guests[pe].waiting))[:count]:
            self._page(pe, token)

    def _page(self, pe: int, token: int) -> None:
        guest = self.guests[pe]
        guest.waiting.remove(token)
        here = self.places[pe] & -PAGE not in self.scene.memory.absent
        if token == guest.lying and guest.unheard and here and not guest.wild:
            guest.lying = None  # it is taken back
        else:
            guest.due.append(token)
        self.scene.ready(token, pe)
        self._follow(pe)

    @rule(pe=pes)
    def page_of_a_refused_token(self, pe: int) -> None:
        if self.guests[pe].refused is not None:
            self.scene.ready(self.guests[pe].refused or 0, pe)
            self.guests[pe].refused = None
            self._follow(pe)

    @rule(pe=pes, number=st.integers(0, 1 << 32))
    def page_of_no_token(self, pe: int, number: int) -> None:
        """A token that is void, or was never told, is ignored."""
        if number not in (*self.guests[pe].waiting, self.guests[pe].refused):
            before = bytes(self.scene.memory.ram)
            self.scene.ready(number, pe)
            assert self.scene.memory.ram == before

    @rule(pe=pes)
    def other_event(self, pe: int) -> None:
        if self.guests[pe].on:
            self.scene.fw.sdei.inject(0, pe)
            self.scene.look(pe)
            self._follow(pe)

    @rule(pe=pes, place=st.sampled_from(PLACES))
    def evict(self, pe: int, place: int) -> None:
        self.scene.memory.absent.add(RAM + place + pe * PAGE & -PAGE)

    @rule()
    def pages_come(self) -> None:
        self.scene.memory.absent.clear()
        if self.scene.apf.blocked:
            self.scene.apf.retry()
        for pe in PES:
            self._follow(pe)

    @rule(pe=pes, really=st.sampled_from([False, False, True]))
    def power(self, pe: int, really: bool) -> None:
        guest, scene = self.guests[pe], self.scene
        if guest.on and not really:
            return  # it is not turned off that often
        if guest.on:
            scene.fw.sdei.pe_off(scene.fw.pes[pe])
            guest.void()
            guest.handlers, guest.interrupt, guest.masked = [], False, True
            guest.registered = guest.event_on = guest.on = False
        else:
            scene.start(pe)
            guest.on = True
            scene.sdei("event_register", 0, RAM + 0x9000, 0, 0, 0, pe=pe)
            scene.sdei("event_enable", 0, pe=pe)
            self._follow(pe)

    @rule()
    def registers(self) -> None:
        """All registers are read, and set to what they are."""
        registers = Registers(self.scene.fw.sdei)
        dump = registers.dump()
        registers.load(dump)
        assert registers.dump() == dump
        for guest in self.guests:
            guest.wild |= guest.unheard  # whether the event was ever delivered is not in them

    @rule()
    def move(self) -> None:
        """The guest goes elsewhere, with all its pages."""
        old = self.scene.fw
        self.scene.memory.absent.clear()
        old.psci.power = [Power.ON if pe.online else Power.OFF for pe in old.pes]
        new = Firmware(len(PES), NoPower(), async_pf=AsyncPfSettings.of(self.choice), memory=self.scene.memory)
        for guest in self.guests:
            if guest.control:
                guest.refused = None
                guest.due += guest.waiting
                guest.waiting = []
                if not guest.by_event:
                    self._cover(guest, self._unheard(self.guests.index(guest)))
                guest.wild |= guest.unheard
        load_firmware_sections(new, firmware_sections(old))
        self.scene.fw, self.scene.apf = new, new.asyncpf
        for pe in PES:
            self._follow(pe)

    # -- the guest is told

    @precondition(lambda self: any(guest.handlers for guest in self.guests))
    @rule(data=st.data(), answer=st.sampled_from(["take", "take", "refuse", "leave"]))
    def handle(self, data: st.DataObject, answer: str) -> None:
        pe = data.draw(st.sampled_from([pe for pe in PES if self.guests[pe].handlers]))
        self._handle(pe, answer)

    def _handle(self, pe: int, answer: str) -> None:
        guest, scene = self.guests[pe], self.scene
        if guest.handlers[-1] == EVENT and answer != "leave":
            reason, token = scene.mailbox(pe)
            if reason == NOT_PRESENT:
                assert guest.wild or token == guest.lying
                if answer == "refuse" and token == guest.lying:
                    self._refuse(pe, token)
                else:
                    scene.put(0, 0, 0, pe=pe)
                    guest.lying = None
        assert scene.sdei("event_complete", 0, pe=pe) != -1
        self._follow(pe)

    def _refuse(self, pe: int, token: int) -> None:
        guest, scene = self.guests[pe], self.scene
        scene.put(0, REFUSED, pe=pe)
        guest.lying = None
        guest.refused = token if token in guest.waiting else None
        guest.may_wait = True
        if guest.refused is not None:
            guest.waiting.remove(token)
        elif token in guest.due and token not in self._in_ring(pe):
            guest.due.remove(token)

    def _in_ring(self, pe: int) -> list[int]:
        if not self.guests[pe].control & WITH_RING:
            return []
        head, tail = self.scene.word(8, pe), self.scene.word(12, pe)
        return [self.scene.word(64 + 4 * (n % 128), pe) for n in range(tail, head)] if head - tail <= 128 else []

    @precondition(lambda self: any(guest.interrupt for guest in self.guests))
    @rule(data=st.data(), refuse=st.booleans(), acknowledge=st.sampled_from([True, True, True, False]))
    def interrupt(self, data: st.DataObject, refuse: bool, acknowledge: bool) -> None:
        pe = data.draw(st.sampled_from([pe for pe in PES if self.guests[pe].interrupt]))
        self._interrupt(pe, refuse, acknowledge)

    def _interrupt(self, pe: int, refuse: bool, acknowledge: bool) -> None:
        guest = self.guests[pe]
        guest.interrupt = False
        if not guest.on or not guest.control:
            return
        self._drain(pe, refuse=refuse)
        if acknowledge:
            self.scene.acknowledge(pe)
            guest.unacknowledged = False
        self._follow(pe)

    @rule(pe=pes)
    def acknowledge(self, pe: int) -> None:
        if self.guests[pe].on:
            self.scene.acknowledge(pe)
            self._follow(pe)

    def _drain(self, pe: int, *, mailbox: bool = True, refuse: bool = False) -> None:
        """Take what is in the mailbox, unless that is for the event's handler, and in the ring."""
        guest, scene = self.guests[pe], self.scene
        reason, token = scene.mailbox(pe)
        if mailbox and reason == NOT_PRESENT and EVENT not in guest.handlers and not guest.unheard:
            if refuse and token == guest.lying:
                self._refuse(pe, token)
            else:
                scene.put(0, 0, 0, pe=pe)
                guest.lying = None
        elif mailbox and reason == READY:
            scene.put(0, 0, 0, pe=pe)
            self._hear(pe, token)
        if guest.control & WITH_RING:
            for token in self._in_ring(pe):
                self._hear(pe, token)
            if scene.word(8, pe) - scene.word(12, pe) <= 128:
                scene.put(12, scene.word(8, pe), pe=pe)

    def _hear(self, pe: int, token: int) -> None:
        """The guest learns that a page is there."""
        guest = self.guests[pe]
        if guest.wild:
            for tokens in (guest.due, guest.waiting):
                if token in tokens:
                    tokens.remove(token)
            return
        if guest.told:
            assert guest.told.pop(0) == token
            if token != WAKE_ALL:
                guest.due.remove(token)
            return
        if token == WAKE_ALL:
            assert guest.wake_all
            guest.wake_all = False
            guest.covered.clear()
            return
        assert not guest.wake_all, "a wake-all comes before what came later"
        assert guest.due, f"{token:#x} is not due"
        assert guest.due.pop(0) == token
        self.ever.add(token)

    # -- a guest that does what it must not

    @precondition(lambda self: self.hostile)
    @rule(pe=pes, offset=st.sampled_from([0, 4, 12]), value=st.sampled_from([0, 1, 2, 3, 4, 0x7FFF_FFFF, 0xFFFF_FFFF]))
    def scribble(self, pe: int, offset: int, value: int) -> None:
        if self.guests[pe].control:
            self.guests[pe].wild = True
            self.scene.put(offset, value, pe=pe)

    # -- what is always so

    def _alive(self) -> set[int]:
        return {token for guest in self.guests for token in (*guest.waiting, *guest.due)}

    def _collect(self) -> None:
        wanted = self.scene.interrupts()
        for pe in PES:
            self.guests[pe].interrupt |= bool(wanted >> pe & 1)

    def _follow(self, pe: int) -> None:
        """What the last step led to: handlers, interrupts."""
        self.guests[pe].handlers = self.scene.running(pe)
        self._collect()

    @invariant()
    def nothing_unread_is_overwritten(self) -> None:
        for address, before, data in self.writes:
            reason = before[:4]
            emptied = not any(data) and reason != bytes(4)
            assert emptied or reason == bytes(4), (address, before, data)
        self.writes.clear()

    @invariant()
    def slots_are_bounded(self) -> None:
        for pe in self.scene.fw.pes if hasattr(self, "scene") else ():
            assert pe.async_pf is not None
            assert pe.async_pf.pending <= 64

    def teardown(self) -> None:
        """All pages come, and the guest takes all that it is told: nobody waits then."""
        if not hasattr(self, "scene"):
            return
        self.pages_come()
        for pe in PES:
            guest = self.guests[pe]
            if not guest.on or not guest.control or guest.wild:
                continue
            while guest.handlers:
                self._handle(pe, "take")
            if guest.masked:
                self.mask(pe, False)
            while guest.handlers:
                self._handle(pe, "take")
            for token in list(guest.waiting):
                self._page(pe, token)
            if scene_box := self.scene.mailbox(pe)[0] == NOT_PRESENT:
                # Its event was left unread by a handler that has ended; the guest looks by itself.
                assert scene_box
                self.scene.put(0, 0, 0, pe=pe)
                self.guests[pe].lying = None
                self.scene.acknowledge(pe)
                self._follow(pe)
            self.acknowledge(pe)
            while guest.interrupt:
                self._interrupt(pe, False, True)
            assert not guest.due, f"PE {pe} waits for {[hex(token) for token in guest.due]}"
            assert not guest.wake_all
            assert not guest.covered


AsyncPfMachine.TestCase.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
TestAsyncPf = AsyncPfMachine.TestCase
