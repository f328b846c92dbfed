# SPDX-License-Identifier: Apache-2.0
"""Random walks of four PEs through the whole service, each step compared with the oracle.

Hypothesis chooses calls, injections, interrupts, power changes, and which kicked PE looks when.
The rig compares every register and the state and counts of every handler after each step, and
asserts liveness: a ready event with an eligible PE has one that was told to look. When a walk
fails, Hypothesis shortens it and prints it as a program that can be pasted into a test.
"""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from sdeivirt.sdei.events import EventDefinition, Priority

from .fake_view import FUNCTION, Rig
from .oracle import CONTEXT, M64

PES = range(4)
AFFINITIES = [0x0, 0x1, 0x0100, 0x02_0000_0100]
PPI, SPI = 20, 40

EVENTS = [
    EventDefinition(5, interrupt=PPI),
    EventDefinition(9, priority=Priority.CRITICAL),
    EventDefinition(0x20, shared=True),
    EventDefinition(0x21, shared=True, priority=Priority.CRITICAL, interrupt=SPI),
    EventDefinition(0x22, shared=True),
    EventDefinition(0x4000_0001, signalable=True),
]
NUMBERS = [0, *(event.number for event in EVENTS)]
DYNAMIC = [0x4000_1000, 0x4000_1001, 0x4000_2000, 0x4000_2001]

words = st.integers(0, M64)
pes = st.sampled_from(PES)
noise = st.sampled_from([0, 0, 0, 0, 1 << 32, 0xFFFF_FFFF << 32])


def low_word(values: st.SearchStrategy[int]) -> st.SearchStrategy[int]:
    """A 32-bit parameter: now and then the high word holds something, and must not count."""
    return st.builds(lambda value, high: value | high, values, noise)


events = low_word(st.sampled_from([*NUMBERS, *NUMBERS, *DYNAMIC, 99, 0x8000_0000, 0xFFFF_FFFF]))
affinities = st.sampled_from([*AFFINITIES, *(a | 0x8000_0000 for a in AFFINITIES), 0x7, 0x01_0000_0000])
modes = st.sampled_from([0, 0, 1, 1, 1, 2, 1 << 32])
addresses = st.sampled_from([0x4010_0000, 0x4010_0400, 0xFFFF_0000_0000_0000, 0x4010_0002, 0])

ARGUMENTS: dict[str, tuple[st.SearchStrategy[int], ...]] = {
    "version": (),
    "event_register": (events, addresses, words, st.sampled_from([0, 0, 1, 1, 2, 3, 4, 1 << 32]), affinities),
    "event_enable": (events,),
    "event_disable": (events,),
    "event_context": (low_word(st.sampled_from([0, 1, 17, 18, 0xFFFF_FFFF])),),
    "event_complete": (low_word(st.sampled_from([0, 0, 1, 2])),),
    "event_complete_and_resume": (addresses,),
    "event_unregister": (events,),
    "event_status": (events,),
    "event_get_info": (events, low_word(st.integers(0, 5))),
    "event_routing_set": (events, modes, affinities),
    "pe_mask": (),
    "pe_unmask": (),
    "interrupt_bind": (low_word(st.sampled_from([PPI, SPI, 21, 22, 23, 41, 42, 15, 1020])),),
    "interrupt_release": (events,),
    "event_signal": (low_word(st.sampled_from([0, 0, 0, 0x4000_0001, 5, 0x20])), affinities),
    "features": (low_word(st.integers(0, 2)),),
    "private_reset": (),
    "shared_reset": (),
}
assert set(ARGUMENTS) == set(FUNCTION)

pstates = st.sampled_from([0x0, 0x5, 0x3C5, 0x6000_03C5, 0xF1F0_1C05, 0x0000_0010, 0x8120_0010])


class Walk(RuleBasedStateMachine):
    """One service with four PEs. Every rule is one step of a guest, of the host, or of a machine."""

    policy = "kvm"

    def __init__(self) -> None:
        super().__init__()
        self.rig = Rig(AFFINITIES, EVENTS, self.policy, slots=(2, 2))

    def up(self, pe: int) -> bool:
        """Whether the PE runs guest code."""
        state = self.rig.oracle.pes[pe]
        return state.online and not state.asleep

    @initialize(unmask=st.booleans(), register=st.booleans(), bind=st.booleans())
    def boot(self, unmask: bool, register: bool, bind: bool) -> None:
        """What a guest does when it starts, so that walks need not find it by chance."""
        numbers = list(NUMBERS)
        if bind:
            numbers += [self.rig.call(0, "interrupt_bind", interrupt) for interrupt in (21, 41)]
        for pe in PES:
            if unmask:
                self.rig.call(pe, "pe_unmask")
            for number in numbers if register else ():
                self.rig.call(pe, "event_register", number, 0x4010_0000 + number * 4, number, 0, 0)
                self.rig.call(pe, "event_enable", number)

    # -- the guest

    @rule(pe=pes, data=st.data())
    def call(self, pe: int, data: st.DataObject) -> None:
        """Any call with any arguments."""
        name = data.draw(st.sampled_from(sorted(ARGUMENTS)))
        arguments = [data.draw(strategy) for strategy in ARGUMENTS[name]]
        if self.up(pe):
            self.rig.call(pe, name, *arguments)

    @rule(pe=pes, resume=st.booleans(), status=st.integers(0, 2))
    def finish(self, pe: int, resume: bool, status: int) -> None:
        """The end of a handler."""
        if not self.up(pe):
            return
        if resume:
            self.rig.call(pe, "event_complete_and_resume", 0x4008_0280)
        else:
            self.rig.call(pe, "event_complete", status)

    @rule(pe=pes, mask=st.booleans())
    def mask(self, pe: int, mask: bool) -> None:
        if self.up(pe):
            self.rig.call(pe, "pe_mask" if mask else "pe_unmask")

    @rule(pe=pes, event=st.sampled_from(NUMBERS), name=st.sampled_from(["event_enable", "event_disable"]))
    def switch(self, pe: int, event: int, name: str) -> None:
        if self.up(pe):
            self.rig.call(pe, name, event)

    @rule(pe=pes, event=st.sampled_from(NUMBERS), one_pe=st.booleans(), where=pes)
    def register(self, pe: int, event: int, one_pe: bool, where: int) -> None:
        if self.up(pe):
            self.rig.call(pe, "event_register", event, 0x4010_0000 + event * 4, event, one_pe, AFFINITIES[where])
            self.rig.call(pe, "event_enable", event)

    @rule(pe=pes, where=pes, event=st.sampled_from([0, 0, 0x4000_0001]))
    def signal(self, pe: int, where: int, event: int) -> None:
        if self.up(pe):
            self.rig.call(pe, "event_signal", event, AFFINITIES[where] | 0x8000_0000)

    @rule(pe=pes, values=st.dictionaries(st.sampled_from(CONTEXT), words), pstate=pstates, sctlr=words)
    def compute(self, pe: int, values: dict[str, int], pstate: int, sctlr: int) -> None:
        """Guest code runs: registers are different afterwards."""
        self.rig.set_registers(pe, **(values | {"pstate": pstate, "sctlr": sctlr}))

    # -- the host and the machine

    @precondition(lambda self: self.rig.kicked)
    @rule(data=st.data())
    def look(self, data: st.DataObject) -> None:
        """A PE that was kicked stops: the schedule is any order."""
        self.rig.look(data.draw(st.sampled_from(sorted(self.rig.kicked))))

    @rule(pe=pes)
    def look_for_no_reason(self, pe: int) -> None:
        """Engines stop for reasons of their own."""
        if self.up(pe):
            self.rig.look(pe)

    @rule(event=st.sampled_from([*NUMBERS, *NUMBERS, *DYNAMIC, 99]), pe=pes, times=st.integers(1, 2))
    def inject(self, event: int, pe: int, times: int) -> None:
        shared = event in self.rig.oracle.shared
        for _ in range(times):
            self.rig.inject(event, None if shared else pe)

    @rule(event=st.sampled_from([*NUMBERS, *DYNAMIC, 99]), pe=pes)
    def cancel(self, event: int, pe: int) -> None:
        self.rig.cancel(event, None if event in self.rig.oracle.shared else pe)

    @rule(interrupt=st.sampled_from([PPI, SPI, 21, 22, 41, 42, 50]), pe=pes)
    def interrupt(self, interrupt: int, pe: int) -> None:
        self.rig.interrupt(interrupt, pe)

    @rule(pe=pes, on_again=st.booleans())
    def power_off(self, pe: int, on_again: bool) -> None:
        self.rig.pe_off(pe)
        if on_again:
            self.rig.pe_on(pe)

    @rule(pe=pes, unmask=st.booleans())
    def power_on(self, pe: int, unmask: bool) -> None:
        if not self.rig.oracle.pes[pe].online:
            self.rig.pe_on(pe)
            if unmask:
                self.rig.call(pe, "pe_unmask")

    @rule(pe=pes)
    def suspend(self, pe: int) -> None:
        if self.up(pe):
            self.rig.pe_suspend(pe)

    @rule(pe=pes)
    def resume(self, pe: int) -> None:
        """An interrupt, an event or nothing at all wakes a suspended PE."""
        if self.rig.oracle.pes[pe].asleep:
            self.rig.pe_resume(pe)

    @rule()
    def system_reset(self) -> None:
        self.rig.reset()
        for pe in PES:
            self.rig.pe_on(pe)

    # -- what holds after each step, beyond what the rig compares

    @invariant()
    def nesting(self) -> None:
        """A PE runs at most one normal and one critical handler, and each handler runs on one PE."""
        running = []
        for pe in self.rig.fw.pes:
            for frame, critical in ((pe.normal, False), (pe.critical, True)):
                if frame is not None:
                    assert bool(frame.handler.event.priority) is critical
                    assert frame.handler.running_on is pe
                    assert pe.online
                    running.append(id(frame.handler))
        assert len(set(running)) == len(running)

    def teardown(self) -> None:
        """Nothing stays behind: once everybody looks and completes, no event that can be delivered waits."""
        for pe in PES:
            if self.up(pe):
                self.rig.call(pe, "pe_unmask")
        for _ in range(100):
            self.rig.settle()
            busy = [pe for pe in PES if self.up(pe) and self.rig.oracle.pes[pe].frames]
            if not busy:
                break
            self.rig.call(busy[0], "event_complete", 0)
        assert not self.rig.oracle.deliverable()


class TfaWalk(Walk):
    policy = "tf-a"


WALKS = {"kvm": Walk, "tf-a": TfaWalk}


@pytest.mark.parametrize("policy", WALKS)
def test_walk(policy: str) -> None:
    run_state_machine_as_test(WALKS[policy], settings=settings(max_examples=60, stateful_step_count=40))


@pytest.mark.campaign
@pytest.mark.parametrize("policy", WALKS)
def test_long_walk(policy: str) -> None:
    run_state_machine_as_test(WALKS[policy], settings=settings(max_examples=1000, stateful_step_count=80))
