# SPDX-License-Identifier: Apache-2.0
"""Random walks of three vCPUs through the whole service, with real guest code making every call.

The same walk as in `test_sdei_stateful`, but each step is taken by AArch64 instructions on a
machine, and what a guest sees is written down by the guest (see :mod:`sdeivirt.fuzz.puppet`). In a stepped walk
the machine runs from a seed, a few slices at a time, and events arrive between any two instructions:
the printed example with its seed is the whole story. In a free walk host and guest race each other;
what is printed then is what was done, not when.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import pytest
from hypothesis import Phase, note, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test

from sdeivirt.fuzz.oracle import M64
from sdeivirt.fuzz.plan import World
from sdeivirt.fuzz.psci_oracle import AFFINITY_INFO
from sdeivirt.fuzz.walk import FIRM, FUNCTION, LOOSE, Walk

from .machine_support import NEEDS_QEMU
from .test_sdei_stateful import ARGUMENTS, DYNAMIC, EVENTS, NUMBERS, PPI, SPI, events, words

pytestmark = pytest.mark.machine

PES = range(3)
SLOTS = (2, 2)
SHARED = [event.number for event in EVENTS if event.shared]
RELATIVE = 2

pes = st.sampled_from(PES)
affinities = st.sampled_from([0, 1, 2, 2 | 1 << 31, 1 | 1 << 24, 7, 1 << 32])
# Which handler, or which resume stub; 0 is an address that has to be refused.
addresses = st.integers(0, 3)
# What of PSTATE a guest can choose at EL1: NZCV, DIT, UAO, PAN, SSBS, DAIF, SPSel.
pstates = st.sampled_from([FIRM, LOOSE, 0xF040_0005, 0x90C0_10C5, 0x0180_03C4, 0xA1C0_1244])
# x0..x17 beyond the arguments, PSTATE, and whether by SMC.
ways = st.tuples(st.integers(0, 255), pstates, st.booleans())

Way = tuple[int, int, bool]
Call = tuple[str, tuple[int, ...]]

FUNCTIONS = FUNCTION | {"affinity_info": AFFINITY_INFO}
STRATEGIES = ARGUMENTS | {
    "affinity_info": (pes, st.just(0)),
    "event_register": (events, addresses, words, st.sampled_from([0, 0, 1, 1, 2, 3, 4, 1 << 32]), affinities),
    "event_complete_and_resume": (addresses,),
    "event_routing_set": (events, st.sampled_from([0, 1, 1, 2, 1 << 32]), affinities),
    "event_signal": (ARGUMENTS["event_signal"][0], affinities),
}
any_call = st.one_of([st.tuples(st.just(name), st.tuples(*STRATEGIES[name])) for name in sorted(STRATEGIES)])
ends = st.one_of(
    st.tuples(st.just("event_complete"), st.tuples(st.integers(0, 2))),
    st.tuples(st.just("event_complete_and_resume"), st.tuples(addresses)),
)
common_calls = st.one_of(
    ends,
    st.tuples(st.sampled_from(["pe_mask", "pe_unmask"]), st.just(())),
    st.tuples(st.sampled_from(["event_enable", "event_disable"]), st.tuples(st.sampled_from(NUMBERS))),
    st.tuples(st.just("event_signal"), st.tuples(st.sampled_from([0, 0, 0x4000_0001]), pes)),
)
setups = st.sampled_from(["plain", "plain", "bound", "bare"])
numbers = st.sampled_from([*NUMBERS, *NUMBERS, *DYNAMIC, 99])
stretches = st.sampled_from(["take", "take", "tell", "arrive", "resume"])
# What can be done at once, before anybody looks: each a name and its arguments.
actions = st.one_of(
    st.tuples(st.just("call"), pes, st.one_of(common_calls, common_calls, any_call), ways),
    st.tuples(st.just("call"), pes, common_calls, ways),
    st.tuples(st.just("inject"), numbers, pes),
    st.tuples(st.just("inject"), numbers, pes),
    st.tuples(st.just("cancel"), numbers, pes),
    st.tuples(st.just("go"), st.integers(1, 6)),
    st.tuples(st.just("catch"), pes, stretches, st.booleans()),
    st.tuples(st.just("sleep"), pes, st.sampled_from(["wfi", "standby", "powerdown", "off"]), ways),
    st.tuples(st.just("power_on"), pes, st.integers(0, M64)),
)


class MachineWalk(RuleBasedStateMachine):
    """One machine with three vCPUs. Every rule is one thing that guests or the host do, or several at once."""

    kind: ClassVar[str] = "unicorn"
    policy: ClassVar[str]
    stepped: ClassVar[bool]

    @initialize(seed=st.integers(0, 2**32 - 1), how=setups)
    def boot(self, seed: int, how: str) -> None:
        """Start the machine and its vCPUs."""
        self.finished = False
        world = World(self.policy, len(PES), tuple(EVENTS), SLOTS, self.kind)
        self.walk = Walk(world, seed if self.stepped else None, contexts=bool(seed & 1))
        self.shadow = self.walk.shadow
        note(f"scheduler: {self.shadow.puppet.machine.scheduler}")
        self.start_all(how)
        self.finished = True

    def start_all(self, how: str) -> None:
        for pe in PES[1:]:
            self.power_on(pe, 0x5EED + pe)
            self.settle()
        self.prepare(PES, how)

    def prepare(self, pes: Sequence[int], how: str) -> None:
        """What a guest does when it starts, so that walks need not find it by chance."""
        if how == "bare":
            return
        oracle = self.shadow.oracle
        known = list(NUMBERS)
        if how == "bound":
            for intid in (21, 41):
                self.each(pes[:1], ("interrupt_bind", (intid,)))
            known += [event for event in DYNAMIC if event in oracle.bound]
        for number in known:
            takers = pes[:1] if number in oracle.shared else pes
            blank = [pe for pe in takers if oracle.handler(number, pe).status == 0]
            flags = RELATIVE if number % 2 and self.policy == "kvm" else 0
            self.each(blank, ("event_register", (number, 1, number, flags, 0)))
            self.each([pe for pe in takers if not oracle.handler(number, pe).enabled], ("event_enable", (number,)))
        self.each([pe for pe in pes if oracle.pes[pe].masked], ("pe_unmask", ()))

    def each(self, pes: Sequence[int], call: Call) -> None:
        for pe in pes:
            self.post(pe, call, (1, FIRM, False))
        if pes:
            self.settle()

    # -- from what was drawn to steps

    def post(self, pe: int, call: Call, way: Way) -> None:
        """Have the PE make the call if it can; it may have been made when this returns."""
        name, arguments = call
        if name == "event_register":
            event, address, argument, flags, affinity = arguments
            arguments = (event, self.walk.entry(pe, event, address, bool(flags & RELATIVE)), argument, flags, affinity)
        elif name == "event_complete_and_resume":
            arguments = (self.walk.resume(arguments[0]),)
        x = [*arguments, 0, 0, 0, 0, 0][:5]
        self.walk.do(["call", pe, FUNCTIONS[name], *x, *way])

    def inject(self, event: int, pe: int) -> None:
        self.walk.do(["inject", event, pe])

    def cancel(self, event: int, pe: int) -> None:
        self.walk.do(["cancel", event, pe])

    def sleep(self, pe: int, how: str, way: Way) -> None:
        self.walk.do(["sleep", pe, how, *way])

    def power_on(self, target: int, context_id: int) -> None:
        self.walk.do(["power on", target, context_id])

    def go(self, slices: int) -> None:
        self.walk.do(["go", slices])

    def catch(self, pe: int, stretch: str, goes_on: bool) -> None:
        self.walk.do(["catch", pe, stretch, goes_on])

    def busy(self, pe: int) -> int:
        """This PE or a later one that runs a handler, if there is one."""
        return next((p for p in [*PES[pe:], *PES[:pe]] if self.shadow.ready(p) and self.shadow.context(p)), pe)

    def settle(self) -> None:
        self.walk.do(["settle"])

    # -- the guest

    @rule(pe=pes, call=any_call, way=ways)
    def call(self, pe: int, call: Call, way: Way) -> None:
        """Any call with any arguments."""
        self.post(pe, call, way)
        self.settle()

    @rule(pe=pes, end=ends, way=ways)
    def finish(self, pe: int, end: Call, way: Way) -> None:
        """The end of a handler."""
        self.shadow.drain()
        self.post(self.busy(pe), end, way)
        self.settle()

    @rule(pe=pes, index=st.integers(0, 18), way=ways)
    def context(self, pe: int, index: int, way: Way) -> None:
        """What a handler has interrupted."""
        self.shadow.drain()
        self.post(self.busy(pe), ("event_context", (index,)), way)
        self.settle()

    @rule(pe=pes, call=common_calls, way=ways)
    def common(self, pe: int, call: Call, way: Way) -> None:
        self.post(pe, call, way)
        self.settle()

    @rule(pe=pes, event=st.sampled_from(NUMBERS), flags=st.integers(0, 3), address=st.integers(1, 3), where=pes)
    def register(self, pe: int, event: int, flags: int, address: int, where: int) -> None:
        """Another handler for an event, and the event."""
        for call in (
            ("event_unregister", (event,)),
            ("event_register", (event, address, event * 3, flags, where)),
            ("event_enable", (event,)),
        ):
            self.post(pe, call, (event, LOOSE, False))
            self.settle()
        self.inject(event, pe)
        self.settle()

    # -- the host and the machine

    @rule(event=numbers, pe=pes, times=st.integers(1, 2))
    def raise_event(self, event: int, pe: int, times: int) -> None:
        for _ in range(times):
            self.inject(event, pe)
        self.settle()

    @rule(event=numbers, pe=pes)
    def take_back(self, event: int, pe: int) -> None:
        self.cancel(event, pe)
        self.settle()

    @rule(intid=st.sampled_from([PPI, SPI, 21, 22, 41, 42, 50]), pe=pes)
    def interrupt(self, intid: int, pe: int) -> None:
        self.walk.do(["interrupt", intid, pe])
        self.settle()

    @rule(steps=st.lists(actions, min_size=2, max_size=8))
    def at_once(self, steps: list[tuple[Any, ...]]) -> None:
        """Several things, and nobody waits for the one before."""
        for name, *arguments in steps:
            if name == "call":
                self.post(*arguments)
            else:
                getattr(self, name)(*arguments)
        self.settle()

    @rule(
        pe=pes,
        call=st.one_of(common_calls, ends),
        way=ways,
        at=st.tuples(stretches, st.booleans()),
        event=numbers,
        where=pes,
    )
    def interrupt_call(self, pe: int, call: Call, way: Way, at: tuple[str, bool], event: int, where: int) -> None:
        """An event comes while the guest makes a call, enters a handler, or comes back from one."""
        self.post(pe, call, way)
        self.catch(pe, *at)
        self.inject(event, where)
        self.catch(where, "arrive", False)
        self.inject(9, where)
        self.settle()

    @rule(pe=pes, event=st.sampled_from(SHARED), how=st.sampled_from(["own", "mask", "off"]), way=ways)
    def pass_on(self, pe: int, event: int, how: str, way: Way) -> None:
        """A PE that an event was offered to does something else first: another has to take it."""
        for _ in PES:  # they are asked in turn
            self.walk.do(["tidy"])
            self.prepare([pe for pe in PES if self.shadow.ready(pe)], "plain")
            if how == "own":
                self.inject(event, pe)
                for other in PES:
                    if other != pe:
                        self.inject(9, other)
            else:
                if how == "mask":
                    self.post(pe, ("pe_mask", ()), way)
                else:
                    self.sleep(pe, "off", way)
                self.catch(pe, "take", True)
                self.inject(event, pe)
            self.settle()

    @rule(inner=st.lists(st.tuples(st.sampled_from(["inject"] * 4 + ["cancel"]), numbers, pes), max_size=8))
    def pause(self, inner: list[tuple[str, int, int]]) -> None:
        """While the machine is paused, the guest does nothing, whatever the host does."""
        machine = self.shadow.puppet.machine
        machine.pause()
        self.shadow.drain()
        before = len(self.shadow.entered)
        for name, event, pe in inner:
            getattr(self, name)(event, pe)
        self.shadow.drain()
        self.shadow.compare_status()
        assert len(self.shadow.entered) == before
        machine.resume()
        self.settle()

    @rule(pe=pes, how=st.sampled_from(["wfi", "standby", "powerdown", "off"]), way=ways, event=numbers)
    def nap(self, pe: int, how: str, way: Way, event: int) -> None:
        """A PE waits, and perhaps an event comes for it."""
        self.sleep(pe, how, way)
        self.go(9)
        self.inject(event, pe)
        self.settle()

    @rule(pe=pes, unmask=st.booleans())
    def wake(self, pe: int, unmask: bool) -> None:
        """The host starts a PE that is suspended; one that is off, another PE."""
        self.walk.do(["wake", pe])
        self.settle()
        if unmask:
            self.each([pe], ("pe_unmask", ()))

    @rule(pe=pes, how=setups, reset=st.sampled_from([False] * 7 + [True]))
    def start_over(self, pe: int, how: str, reset: bool) -> None:
        """A PE registers everything again; now and then it resets the system before that."""
        if reset and self.shadow.ready(pe):
            self.walk.do(["reset", pe])
            self.settle()
            self.start_all(how)
        else:
            self.prepare([pe], how)

    def teardown(self) -> None:
        """Nothing stays behind: once all are unmasked and complete, no event that can be delivered waits."""
        if not hasattr(self, "walk"):
            return
        try:
            if self.finished and self.shadow.sound:
                self.walk.do(["tidy"])
        finally:
            self.walk.close()


class SteppedKvm(MachineWalk):
    policy, stepped = "kvm", True


class SteppedTfa(MachineWalk):
    policy, stepped = "tf-a", True


class FreeKvm(MachineWalk):
    policy, stepped = "kvm", False


class FreeTfa(MachineWalk):
    policy, stepped = "tf-a", False


class QemuKvm(MachineWalk):
    kind, policy, stepped = "qemu", "kvm", False


class QemuTfa(MachineWalk):
    kind, policy, stepped = "qemu", "tf-a", False


WALKS: list[type[MachineWalk]] = [SteppedKvm, SteppedTfa, FreeKvm, FreeTfa]
QEMU_WALKS: list[type[MachineWalk]] = [QemuKvm, QemuTfa]


def walk(kind: type[MachineWalk], examples: int, steps: int) -> None:
    # What depends on time cannot be made shorter by trying again.
    phases = tuple(Phase) if kind.stepped else (Phase.explicit, Phase.generate)
    run_state_machine_as_test(
        kind,
        settings=settings(
            max_examples=examples, stateful_step_count=steps, phases=phases, database=None, report_multiple_bugs=False
        ),
    )


@pytest.mark.parametrize("kind", WALKS, ids=lambda kind: kind.__name__)
def test_walk(kind: type[MachineWalk]) -> None:
    walk(kind, examples=20, steps=30)


@pytest.mark.campaign
@pytest.mark.parametrize("kind", WALKS, ids=lambda kind: kind.__name__)
def test_long_walk(kind: type[MachineWalk]) -> None:
    walk(kind, examples=50, steps=50)


@NEEDS_QEMU
@pytest.mark.qemu
@pytest.mark.parametrize("kind", QEMU_WALKS, ids=lambda kind: kind.__name__)
def test_walk_on_qemu(kind: type[MachineWalk]) -> None:
    walk(kind, examples=6, steps=30)
