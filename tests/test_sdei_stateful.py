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

from sdeivirt.fuzz.oracle import CONTEXT, M64
from sdeivirt.sdei.events import EventDefinition, Priority

from .fake_view import FUNCTION, Rig

PES = range(4)
AFFINITIES = [0x0, 0x1, 0x0100, 0x02_0000_0100]
PPI, SPI = 20, 40
HIGH_AND_LOW = 0x1_0000_0001  # times a number: it stands in both words of a register

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

    def busy(self) -> list[int]:
        """The PEs that run a handler and can end it."""
        return [pe for pe in PES if self.up(pe) and self.rig.oracle.pes[pe].frames]

    def registered(self) -> list[tuple[int, int | None]]:
        """(event, PE) that an injection can name now; a normal and a critical handler may nest."""
        handlers = self.rig.oracle.handlers.values()
        return sorted(((h.event, h.pe) for h in handlers if h.registered), key=str)

    def guest_starts(self, pe: int, numbers: list[int]) -> None:
        """Everything is registered and enabled, the PE unmasked: random steps alone would take long to get there."""
        for number in numbers:
            self.rig.call(pe, "event_register", number, 0x4010_0000 + number * 4, number * HIGH_AND_LOW, 0, 0)
            self.rig.call(pe, "event_enable", number)
        self.rig.call(pe, "pe_unmask")

    @initialize(started=st.sampled_from([0, 1, 2, 4, 4, 4]), bind=st.booleans())
    def boot(self, started: int, bind: bool) -> None:
        """Some PEs have started already."""
        numbers = list(NUMBERS)
        if bind:
            numbers += [self.rig.call(0, "interrupt_bind", interrupt) for interrupt in (21, 41)]
        for pe in PES[:started]:
            self.guest_starts(pe, numbers)

    # -- the guest

    @rule(pe=pes, data=st.data())
    def call(self, pe: int, data: st.DataObject) -> None:
        """Any call with any arguments."""
        name = data.draw(st.sampled_from(sorted(ARGUMENTS)))
        arguments = [data.draw(strategy) for strategy in ARGUMENTS[name]]
        if self.up(pe):
            self.rig.call(pe, name, *arguments)

    @precondition(lambda self: self.busy())
    @rule(data=st.data(), times=st.integers(1, 4), resume=st.booleans(), status=st.integers(0, 2))
    def finish(self, data: st.DataObject, times: int, resume: bool, status: int) -> None:
        """Handlers end."""
        for _ in range(times):
            if not self.busy():
                return
            pe = data.draw(st.sampled_from(self.busy()))
            if resume:
                self.rig.call(pe, "event_complete_and_resume", 0x4008_0280)
            else:
                self.rig.call(pe, "event_complete", status)

    @rule(pe=pes, mask=st.sampled_from([False, False, False, True]))
    def mask(self, pe: int, mask: bool) -> None:
        if self.up(pe):
            self.rig.call(pe, "pe_mask" if mask else "pe_unmask")

    @rule(pe=pes, event=st.sampled_from(NUMBERS), name=st.sampled_from(["event_enable"] * 2 + ["event_disable"]))
    def switch(self, pe: int, event: int, name: str) -> None:
        if self.up(pe):
            self.rig.call(pe, name, event)

    @rule(pe=pes, event=st.sampled_from(NUMBERS), flags=st.sampled_from([0, 1, 1, 2, 3]), where=pes)
    def register(self, pe: int, event: int, flags: int, where: int) -> None:
        if self.up(pe):
            entry, argument = 0x4010_0000 + event * 4, event * HIGH_AND_LOW
            self.rig.call(pe, "event_register", event, entry, argument, flags, AFFINITIES[where])
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
    @rule(data=st.data(), times=st.integers(1, 3))
    def look(self, data: st.DataObject, times: int) -> None:
        """PEs that were kicked stop, in any order."""
        for _ in range(times):
            if self.rig.kicked:
                self.rig.look(data.draw(st.sampled_from(sorted(self.rig.kicked))))

    @rule(pe=pes)
    def look_for_no_reason(self, pe: int) -> None:
        """Engines stop for reasons of their own."""
        if self.up(pe):
            self.rig.look(pe)

    @rule(event=st.sampled_from([*NUMBERS, *DYNAMIC, 99]), pe=pes)
    def inject_anything(self, event: int, pe: int) -> None:
        self.rig.inject(event, None if event in self.rig.oracle.shared else pe)

    @precondition(lambda self: self.registered())
    @rule(data=st.data(), times=st.integers(1, 4), settle=st.booleans())
    def inject(self, data: st.DataObject, times: int, settle: bool) -> None:
        """What is registered is raised; perhaps everybody looks at once."""
        for _ in range(times):
            event, pe = data.draw(st.sampled_from(self.registered()))
            self.rig.inject(event, pe)
        if settle:
            self.rig.settle()

    @rule(event=st.sampled_from([*NUMBERS, *DYNAMIC, 99]), pe=pes)
    def cancel(self, event: int, pe: int) -> None:
        self.rig.cancel(event, None if event in self.rig.oracle.shared else pe)

    @rule(interrupt=st.sampled_from([PPI, SPI, 21, 22, 41, 42, 50]), pe=pes)
    def interrupt(self, interrupt: int, pe: int) -> None:
        self.rig.interrupt(interrupt, pe)

    @rule(
        pe=pes,
        what=st.sampled_from(["off and on", "off", "on", "suspend", "resume", "reset"]),
        rarely=st.integers(0, 2),
    )
    def power(self, pe: int, what: str, rarely: int) -> None:
        """A machine turns PEs off and on; an interrupt, or nothing at all, wakes a suspended one. Not too often."""
        if rarely:
            return
        state = self.rig.oracle.pes[pe]
        if what.startswith("off"):
            self.rig.pe_off(pe)
        if what == "reset" or (what.endswith("on") and not state.online):
            self.rig.pe_on(pe)
        if what == "suspend" and self.up(pe):
            self.rig.pe_suspend(pe)
        if what == "resume" and state.asleep:
            self.rig.pe_resume(pe)

    @rule(pe=pes, really=st.integers(0, 9))
    def start_again(self, pe: int, really: int) -> None:
        """A PE that was turned on does what a guest does then; once in a while everything is reset first."""
        if really == 9:
            self.rig.reset()
            for other in PES:
                self.rig.pe_on(other)
        if self.up(pe):
            self.guest_starts(pe, NUMBERS)

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
            if not self.busy():
                break
            self.rig.call(self.busy()[0], "event_complete", 0)
        assert not self.rig.oracle.deliverable()


class TfaWalk(Walk):
    policy = "tf-a"


WALKS = {"kvm": Walk, "tf-a": TfaWalk}


@pytest.mark.parametrize("policy", WALKS)
def test_walk(policy: str) -> None:
    run_state_machine_as_test(WALKS[policy], settings=settings(max_examples=50, stateful_step_count=150))


@pytest.mark.campaign
@pytest.mark.parametrize("policy", WALKS)
def test_long_walk(policy: str) -> None:
    run_state_machine_as_test(WALKS[policy], settings=settings(max_examples=250, stateful_step_count=300))
