# SPDX-License-Identifier: Apache-2.0
"""For tests of registers: services that take random steps, ways to copy their state, and what every state keeps to."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import msgspec
from hypothesis import strategies as st

from sdeivirt.errors import SdeivirtError
from sdeivirt.firmware import Firmware
from sdeivirt.migration.sections import Section
from sdeivirt.registers import Registers
from sdeivirt.registers.sections import SdeiState, from_sections, to_sections
from sdeivirt.registers.text import from_json, to_json
from sdeivirt.sdei.events import EventDefinition, Priority
from sdeivirt.sdei.model import Handler
from sdeivirt.sdei.policy import POLICIES
from sdeivirt.sdei.service import Sdei

from .fake_view import EL1H_UNMASKED, FUNCTION, FakePe, NoPower

AFFINITIES = [0x0, 0x1, 0x0100, 0x02_0000_0100]
PES = range(len(AFFINITIES))
PPI, SPI = 20, 40

# 0 and 1 are in KVM's registers, 2 is not since it is shared, and 3 does not exist.
EVENTS = (
    EventDefinition(1, priority=Priority.CRITICAL),
    EventDefinition(2, shared=True, priority=Priority.CRITICAL, interrupt=SPI),
    EventDefinition(5, interrupt=PPI),
    EventDefinition(9, priority=Priority.CRITICAL),
    EventDefinition(0x20, shared=True),
    EventDefinition(0x22, shared=True),
    EventDefinition(0x4000_0001, signalable=True),
)
NUMBERS = [0, *(event.number for event in EVENTS)]
DYNAMIC = [0x4000_1000, 0x4000_1001, 0x4000_2000, 0x4000_2001]


class Service:
    """A firmware with PEs that never execute anything; steps are what guests, hosts and machines do to it."""

    def __init__(self, policy: str = "kvm", events: tuple[EventDefinition, ...] = EVENTS) -> None:
        chosen = replace(POLICIES[policy], private_slots=2, shared_slots=2)
        self.fw = Firmware(AFFINITIES, NoPower(), events=events, policy=chosen)
        self.fw.freeze()
        self.cpus = [FakePe() for _ in AFFINITIES]
        for index, cpu in enumerate(self.cpus):
            cpu.registers.update({name: 0x1000 * (index + 1) + i for i, name in enumerate(cpu.registers)})
            cpu.registers.update(pstate=EL1H_UNMASKED, vbar=0x4008_0000, sctlr=0)

    @property
    def sdei(self) -> Sdei:
        return self.fw.sdei

    def up(self, pe: int) -> bool:
        return self.fw.pes[pe].online and not self.fw.pes[pe].suspended

    def call(self, pe: int, name: str, *arguments: int) -> int:
        """A hypercall; x0 afterwards."""
        cpu = self.cpus[pe]
        words = (FUNCTION[name], *arguments)
        cpu.registers.update({f"x{i}": word & (1 << 64) - 1 for i, word in enumerate(words)})
        cpu.stop(valid=6)
        self.fw.hypercall(self.fw.pes[pe], cpu)
        return cpu.registers["x0"]

    def look(self, pe: int) -> None:
        self.cpus[pe].stop(valid=0)
        self.fw.deliver(self.fw.pes[pe], self.cpus[pe])

    def guest_starts(self, pe: int, numbers: list[int]) -> None:
        """Everything is registered and enabled, and the PE unmasked."""
        for number in numbers:
            self.call(pe, "event_register", number, 0x4010_0000 + number * 4, number * 3, 0, 0)
            self.call(pe, "event_enable", number)
        self.call(pe, "pe_unmask")

    def take(self, step: tuple[Any, ...]) -> Any:
        """One of :data:`steps`; what came of it."""
        what, pe, *rest = step
        sdei, real = self.sdei, self.fw.pes[pe]
        if what == "start":
            sdei.pe_on(real)
            self.guest_starts(pe, rest[0])
        elif what == "power":
            return self._power(pe, rest[0])
        elif what in ("inject", "cancel"):
            try:
                number = rest[0]
                event = sdei.event(number)
                return getattr(sdei, what)(number, None if event.shared else pe)
            except SdeivirtError as error:
                return type(error).__name__
        elif what == "interrupt":
            return sdei.interrupt(rest[0], pe)
        elif what == "deliver":
            found = self.take(("inject", pe, rest[0]))
            for other in PES:
                self.take(("look", other))
            return found
        elif self.up(pe):
            if what == "look":
                return self.look(pe)
            if what == "pstate":
                self.cpus[pe].registers["pstate"] = rest[0]
                return None
            if what == "in handler":
                return self.call(pe, rest[0], real.frame.handler.event.number) if real.frame else None
            return self.call(pe, what, *rest)
        return None

    def _power(self, pe: int, what: str) -> Any:
        sdei, real = self.sdei, self.fw.pes[pe]
        if what == "off":
            sdei.pe_off(real)
        elif what == "suspend" and self.up(pe):
            return sdei.pe_suspend(real)
        elif what == "resume" and real.suspended:
            sdei.pe_resume(real)
        elif what == "reset":
            sdei.reset()
        return None

    def after(self) -> Any:
        """All that can be seen from outside: the PEs' registers, whom the service kicks, and every register of ours."""
        return [dict(cpu.registers) for cpu in self.cpus], self.fw.take_kicks(), Registers(self.sdei).dump()


# -- steps

words = st.integers(0, (1 << 64) - 1)
pes = st.sampled_from(PES)
events = st.sampled_from([*NUMBERS, *NUMBERS, *DYNAMIC, 99])
affinities = st.sampled_from([*AFFINITIES, 7])
addresses = st.sampled_from([0x4010_0000, 0x4010_0400, 0xFFFF_0000_0000_0000, 0x4010_0002, 0])
pstates = st.sampled_from([0x0, 0x5, 0x3C5, 0x6000_03C5, 0xF1F0_1C05, 0x0000_0010, 0x8120_0010, 0xF_F3F0_3FC5])

defined = st.sampled_from(NUMBERS)
steps = st.one_of(
    st.tuples(st.just("deliver"), pes, st.sampled_from([0, 5, 0x20, 0x22, 0x4000_0001])),
    st.tuples(st.just("deliver"), pes, st.sampled_from([1, 2, 9])),
    st.tuples(st.just("deliver"), pes, defined),
    st.tuples(st.just("inject"), pes, defined),
    st.tuples(st.just("in handler"), pes, st.sampled_from(["event_disable", "event_unregister", "event_status"])),
    st.tuples(st.just("event_disable"), pes, defined),
    st.tuples(st.just("start"), pes, st.sampled_from([NUMBERS, NUMBERS[:3], [*NUMBERS, *DYNAMIC]])),
    st.tuples(st.just("power"), pes, st.sampled_from(["off", "suspend", "suspend", "resume", "resume", "reset"])),
    st.tuples(st.sampled_from(["inject", "inject", "inject", "cancel"]), pes, events),
    st.tuples(st.just("interrupt"), pes, st.sampled_from([PPI, SPI, 21, 22, 41, 42])),
    st.tuples(st.just("look"), pes),
    st.tuples(st.just("pstate"), pes, pstates),
    st.tuples(st.just("event_register"), pes, events, addresses, words, st.integers(0, 3), affinities),
    st.tuples(st.sampled_from(["event_enable", "event_disable", "event_unregister", "event_status"]), pes, events),
    st.tuples(st.just("event_complete"), pes, st.integers(0, 1)),
    st.tuples(st.just("event_complete"), pes, st.integers(0, 1)),
    st.tuples(st.just("event_complete_and_resume"), pes, addresses),
    st.tuples(st.just("event_context"), pes, st.integers(0, 18)),
    st.tuples(st.just("event_routing_set"), pes, events, st.integers(0, 2), affinities),
    st.tuples(st.just("event_get_info"), pes, events, st.integers(0, 5)),
    st.tuples(st.just("event_signal"), pes, st.sampled_from([0, 0x4000_0001, 5]), affinities),
    st.tuples(st.just("interrupt_bind"), pes, st.sampled_from([PPI, SPI, 21, 22, 23, 41, 42])),
    st.tuples(st.just("interrupt_release"), pes, st.sampled_from(DYNAMIC)),
    st.tuples(st.sampled_from(["pe_mask", "pe_unmask", "pe_unmask", "private_reset", "shared_reset"]), pes),
)
# Random steps alone would take long to get anywhere: some PEs have started, and some slots are bound.
beginnings: st.SearchStrategy[list[tuple[Any, ...]]] = st.builds(
    lambda bind, started: [
        *(("start", 0, []), ("interrupt_bind", 0, 21), ("interrupt_bind", 0, 41))[: 3 * bind],
        *(("start", pe, [*NUMBERS, *DYNAMIC]) for pe in started),
    ],
    st.booleans(),
    st.sampled_from([[], [0], [3], [0, 1], [1, 2, 3], [0, 1, 2, 3], [0, 1, 2, 3]]),
)
lives = st.builds(lambda first, then: first + then, beginnings, st.lists(steps, min_size=2, max_size=40))


def lived(policy: str, life: list[tuple[Any, ...]]) -> Service:
    """A service after these steps; kicks have been taken."""
    service = Service(policy)
    for step in life:
        service.take(step)
    service.fw.take_kicks()
    return service


# -- copies


def by_dump(source: Sdei, target: Sdei, _random: random.Random) -> None:
    Registers(target).load(Registers(source).dump())


def by_json(source: Sdei, target: Sdei, _random: random.Random) -> None:
    registers = Registers(source)
    document = json.loads(json.dumps(to_json(registers, registers.dump())))
    there = Registers(target)
    there.load(from_json(there, document))


def by_sets(source: Sdei, target: Sdei, random: random.Random) -> None:
    """Every register that is listed, in any order, in one transaction."""
    registers = Registers(source)
    values = [(info.id, registers.get(info.id, info.vcpu), info.vcpu) for info in registers.list()]
    random.shuffle(values)
    present = [(pe.index, (pe.normal, pe.critical)) for pe in source.pes]
    with Registers(target).transaction() as transaction:
        for value in values:
            transaction.set(*value)
    # Of a frame that is not there a context reads 0, and setting that has made none.
    for index, frames in present:
        assert [frame is None for frame in (target.pes[index].normal, target.pes[index].critical)] == [
            frame is None for frame in frames
        ]


def by_sections(source: Sdei, target: Sdei, _random: random.Random) -> None:
    from_sections(target, [Section(s.name, s.instance, s.version, bytes(s.data)) for s in to_sections(source)])


ROUTES: dict[str, Callable[[Sdei, Sdei, random.Random], None]] = {
    "dump": by_dump,
    "json": by_json,
    "sets": by_sets,
    "sections": by_sections,
}


def copied(service: Service, policy: str, route: str, random: random.Random) -> Service:
    """Another service in the same state, with PEs that hold the same; kicks have not been taken."""
    copy = Service(policy)
    ROUTES[route](service.sdei, copy.sdei, random)
    for old, new in zip(service.cpus, copy.cpus, strict=True):
        new.registers.update(old.registers)
    return copy


def damaged_section(section: Section, change: Callable[[dict[int, Any]], object]) -> Section:
    """A section of registers, with its map changed."""
    registers = dict(msgspec.msgpack.decode(section.data, type=SdeiState).registers)
    change(registers)
    return Section(section.name, section.instance, section.version, msgspec.msgpack.encode(SdeiState(registers)))


# -- what holds in every state, written down a second time


@dataclass
class _Seen:
    """Handlers that run, by (PE, whether critical)."""

    running: dict[tuple[int, bool], Handler]


def check_invariants(sdei: Sdei, kicks: int) -> None:
    """Everything that the service itself keeps to, from its records alone. `kicks` are what it has asked for."""
    bound = {event.interrupt: event for event in sdei.events if event.dynamic and event.interrupt is not None}
    assert sdei.bindings.bound == bound
    for interrupt, event in bound.items():
        assert 32 <= interrupt <= 1019 if event.shared else 16 <= interrupt <= 31
        assert sdei.bindings.known[event.number] is event
        assert interrupt not in (PPI, SPI)
    known = [event.number for event in sdei.events if not event.dynamic or event.interrupt is not None]
    if not sdei.policy.unbound_known:
        assert sorted(sdei.bindings.known) == known

    seen = _Seen({})
    handlers = [handler for pe in sdei.pes for handler in pe.handlers.values()]
    handlers += [event.handler for event in sdei.events if event.shared]
    for handler in handlers:
        _check_handler(sdei, handler, seen)
    for event in sdei.events:
        mine = [handler for handler in handlers if handler.event is event and handler.state]
        assert event.registrations == len(mine)
    delivery = sdei.delivery
    ready = [handler for handler in handlers if handler.pending and handler.state == 3]
    assert delivery.shared_ready == sum(h.event.bit for h in ready if h.target is None)
    assert delivery.shared_registered == sum(e.bit for e in sdei.events if e.shared and e.handler.state)
    for pe in sdei.pes:
        assert pe.ready == sum(handler.event.bit for handler in ready if handler.target is pe)
        assert pe.registered == sum(h.event.bit for h in pe.handlers.values() if h.state)
        for frame, critical in ((pe.normal, False), (pe.critical, True)):
            assert (frame and frame.handler) is seen.running.get((pe.index, critical))
            if frame is not None:
                pstate = memoryview(frame.saved).cast("Q")[19]
                assert len(frame.saved) == 160
                assert pstate & 0x1F in (0b00000, 0b00100, 0b00101, 0b10000)
                assert pstate >> (32 if pstate & 0x10 else 36) == 0
        assert pe.online or (pe.masked and not pe.suspended)
        assert pe.masked or not pe.suspended
        assert pe.suspended or not pe.wakeable
        for index, handler in pe.handlers.items():
            assert handler.event is sdei.events[index]
            assert not handler.event.shared
            assert handler.target is pe
    assert -1 <= delivery.last_offered < len(sdei.pes)
    _check_liveness(sdei, ready, kicks)


def _check_handler(sdei: Sdei, handler: Handler, seen: _Seen) -> None:
    event = handler.event
    assert handler.state in (0, 1, 3, 4, 5, 7)
    assert handler.state & 1 or not handler.pending
    assert (handler.running_on is not None) == bool(handler.state & 4)
    assert not handler.entry & 3
    assert sdei.policy.relative_mode or not handler.relative
    parts = (handler.coalesced, handler.dropped, handler.delivered, handler.completed, handler.failed)
    assert min(parts) >= 0
    assert handler.injected == handler.delivered + handler.coalesced + handler.dropped + handler.pending
    assert handler.delivered == handler.completed + bool(handler.state & 4)
    assert handler.failed <= handler.completed
    if handler.state:
        assert handler.entry or handler.relative
        assert not event.dynamic or event.interrupt is not None
        assert event.shared or (handler.target is not None and handler.target.online)
    elif event.shared:
        assert handler.target is None
    if handler.running_on is not None:
        assert handler.target in (None, handler.running_on)
        assert handler.running_on.online
        where = handler.running_on.index, bool(event.priority)
        assert where not in seen.running
        seen.running[where] = handler


def _check_liveness(sdei: Sdei, ready: list[Handler], kicks: int) -> None:
    """While an event is ready and somebody can take it, one of those has been kicked."""
    free = {False: 0, True: 0}
    for pe in sdei.pes:
        awake = pe.online and not pe.masked and pe.critical is None
        free[True] |= pe.bit if awake else 0
        free[False] |= pe.bit if awake and pe.normal is None else 0
    assert sdei.delivery._takers_critical == free[True]
    assert sdei.delivery._takers_normal == free[False]
    for handler in ready:
        takers = free[bool(handler.event.priority)]
        if handler.target is not None:
            takers &= handler.target.bit
            takers |= handler.target.bit if handler.target.wakeable else 0
        assert not takers or takers & kicks, f"event {handler.event.number:#x} waits, and nobody looks"
