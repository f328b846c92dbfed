# SPDX-License-Identifier: Apache-2.0
"""Random walks of three vCPUs through the whole service, with real guest code making every call.

The same walk as in `test_sdei_stateful`, but each step is taken by AArch64 instructions on the
machine, and what a guest sees is written down by the guest (see :mod:`.puppet`). In a stepped walk
the machine runs from a seed, a few slices at a time, and events arrive between any two instructions:
the printed example with its seed is the whole story. In a free walk host and guest race each other;
what is printed then is what was done, not when.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar

import pytest
from hypothesis import Phase, note, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test

from sdeivirt.errors import StateError, UnknownEventError

from .fake_view import FUNCTION
from .oracle import M64, low32
from .puppet import pattern
from .puppet_shadow import AFFINITY_INFO, CPU_OFF, CPU_ON, CPU_SUSPEND, POWERDOWN, SYSTEM_RESET, Shadow
from .test_sdei_stateful import ARGUMENTS, DYNAMIC, EVENTS, NUMBERS, PPI, SPI, events, words

pytestmark = pytest.mark.machine

PES = range(3)
SLOTS = (2, 2)
PLACES = {number: slot for slot, number in enumerate([*NUMBERS, *DYNAMIC])}  # of handlers in the guest's tables
ELSEWHERE = 60
SHARED = [event.number for event in EVENTS if event.shared]
RELATIVE = 2
FIRM, LOOSE = 0x3C5, 0x6000_0305  # two values of PSTATE

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


class Walk(RuleBasedStateMachine):
    """One machine with three vCPUs. Every rule is one thing that guests or the host do, or several at once."""

    policy: ClassVar[str]
    stepped: ClassVar[bool]

    @initialize(seed=st.integers(0, 2**32 - 1), how=setups)
    def boot(self, seed: int, how: str) -> None:
        """Start the machine and its vCPUs."""
        self.finished = False
        self.shadow = Shadow(PES, EVENTS, self.policy, SLOTS, seed if self.stepped else None)
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
            blank = [pe for pe in takers if not oracle.handler(number, pe).registered]
            flags = RELATIVE if number % 2 and self.policy == "kvm" else 0
            self.each(blank, ("event_register", (number, 1, number, flags, 0)))
            self.each([pe for pe in takers if not oracle.handler(number, pe).enabled], ("event_enable", (number,)))
        self.each([pe for pe in pes if oracle.pes[pe].masked], ("pe_unmask", ()))

    def each(self, pes: Sequence[int], call: Call) -> None:
        for pe in pes:
            self.post(pe, call, (1, FIRM, False))
        if pes:
            self.settle()

    # -- from what was drawn to what is done

    @staticmethod
    def registers(x: Iterable[int], noise: int) -> list[int]:
        given = [value & M64 for value in x]
        return given + pattern(noise)[len(given) :]

    def entry(self, pe: int, event: int, address: int, flags: int) -> int:
        """A handler for the event, as EVENT_REGISTER wants it."""
        number = low32(event)
        found = self.shadow.code.handler(PLACES.get(number, ELSEWHERE), number in self.shadow.oracle.critical)
        found += (address - 1) * 0x100 if address else 2
        return found - self.shadow.code.vbar(pe) if flags & RELATIVE else found

    def post(self, pe: int, call: Call, way: Way) -> bool:
        """Have the PE make the call if it can; it may have been made when this returns."""
        shadow = self.shadow
        shadow.drain()
        if not shadow.ready(pe):
            return False
        name, arguments = call
        if name == "event_complete_and_resume" and shadow.needs_elr(pe):
            name, arguments = "event_complete", (0,)
        if name == "event_register":
            event, address, argument, flags, affinity = arguments
            arguments = (event, self.entry(pe, event, address, flags), argument, flags, affinity)
        elif name == "event_complete_and_resume":
            arguments = (shadow.code.resume_address(arguments[0] * 3) if arguments[0] else 0x4008_0002,)
        noise, pstate, smc = way
        leave = name in ("event_complete", "event_complete_and_resume")
        shadow.post(pe, self.registers((FUNCTIONS[name], *arguments), noise), pstate, leave=leave, smc=smc)
        return True

    def inject(self, event: int, pe: int) -> None:
        """The shadow knows from the log what should have come of it."""
        with contextlib.suppress(UnknownEventError, StateError):
            self.shadow.puppet.machine.inject(event, None if event in self.shadow.oracle.shared else pe)

    def cancel(self, event: int, pe: int) -> None:
        with contextlib.suppress(UnknownEventError, StateError):
            self.shadow.puppet.machine.cancel(event, None if event in self.shadow.oracle.shared else pe)

    def sleep(self, pe: int, how: str, way: Way) -> None:
        """The PE waits for an event, or goes off. One stays awake, or nothing would ever happen."""
        shadow = self.shadow
        shadow.drain()
        if not shadow.ready(pe) or not any(other != pe and shadow.stays_up(other) for other in PES):
            return
        noise, pstate, smc = way
        if how == "wfi":
            shadow.post_wfi(pe, self.registers((), noise), pstate)
        elif how == "standby":
            shadow.post(pe, self.registers((CPU_SUSPEND, 0), noise), pstate, smc=smc)
        elif how == "off":
            shadow.post(pe, self.registers((CPU_OFF,), noise), pstate, smc=smc)
        elif not shadow.needs_elr(pe):
            x = (CPU_SUSPEND, POWERDOWN, shadow.code.at[f"warm_{shadow.context(pe)}"])
            shadow.post(pe, self.registers(x, noise), pstate, smc=smc)

    def power_on(self, target: int, context_id: int) -> None:
        """Some PE calls CPU_ON; any answer will do that PSCI allows."""
        shadow = self.shadow
        shadow.drain()
        callers = [pe for pe in PES if shadow.ready(pe)]
        if callers:
            shadow.post(callers[-1], self.registers((CPU_ON, target, shadow.code.at["_start"], context_id), 3), FIRM)

    def go(self, slices: int) -> None:
        self.shadow.puppet.run(slices)

    def catch(self, pe: int, stretch: str, goes_on: bool) -> None:
        self.shadow.puppet.catch(pe, stretch, goes_on)

    def busy(self, pe: int) -> int:
        """This PE or a later one that runs a handler, if there is one."""
        return next((p for p in [*PES[pe:], *PES[:pe]] if self.shadow.ready(p) and self.shadow.context(p)), pe)

    def settle(self) -> None:
        self.shadow.settle()

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
        self.shadow.puppet.interrupt(intid, pe)
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
            self.tidy()
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
        if self.shadow.oracle.pes[pe].asleep:
            self.shadow.puppet.machine.kick(1 << pe)
            self.shadow.expect_up(pe)
        elif not self.shadow.up(pe):
            self.power_on(pe, 0x1D00 + pe)
        self.settle()
        if unmask and self.post(pe, ("pe_unmask", ()), (5, FIRM, False)):
            self.settle()

    @rule(pe=pes, how=setups, reset=st.sampled_from([False] * 7 + [True]))
    def start_over(self, pe: int, how: str, reset: bool) -> None:
        """A PE registers everything again; now and then it resets the system before that."""
        if reset and self.shadow.ready(pe):
            self.shadow.post(pe, self.registers((SYSTEM_RESET,), 9), LOOSE)
            self.settle()
            self.start_all(how)
        else:
            self.prepare([pe], how)

    def teardown(self) -> None:
        """Nothing stays behind: once all are unmasked and complete, no event that can be delivered waits."""
        if not hasattr(self, "shadow"):
            return
        try:
            if self.finished and self.shadow.sound:
                self.tidy()
                # Once more, so that each guest has looked at its registers after it came back.
                self.each(PES, ("version", ()))
        finally:
            self.shadow.close()

    def tidy(self) -> None:
        """All are unmasked, all handlers come to their ends."""
        self.each(PES, ("pe_unmask", ()))
        for _ in range(100):
            busy = [pe for pe in PES if self.shadow.up(pe) and self.shadow.context(pe)]
            if not busy:
                return
            for pe in busy:
                self.post(pe, ("event_complete", (0,)), (11, LOOSE, True))
            self.settle()
        raise AssertionError("handlers without end")


class SteppedKvm(Walk):
    policy, stepped = "kvm", True


class SteppedTfa(Walk):
    policy, stepped = "tf-a", True


class FreeKvm(Walk):
    policy, stepped = "kvm", False


class FreeTfa(Walk):
    policy, stepped = "tf-a", False


WALKS: list[type[Walk]] = [SteppedKvm, SteppedTfa, FreeKvm, FreeTfa]


def walk(kind: type[Walk], examples: int, steps: int) -> None:
    # What depends on time cannot be made shorter by trying again.
    phases = tuple(Phase) if kind.stepped else (Phase.explicit, Phase.generate)
    run_state_machine_as_test(
        kind,
        settings=settings(
            max_examples=examples, stateful_step_count=steps, phases=phases, database=None, report_multiple_bugs=False
        ),
    )


@pytest.mark.parametrize("kind", WALKS, ids=lambda kind: kind.__name__)
def test_walk(kind: type[Walk]) -> None:
    walk(kind, examples=20, steps=30)


@pytest.mark.campaign
@pytest.mark.parametrize("kind", WALKS, ids=lambda kind: kind.__name__)
def test_long_walk(kind: type[Walk]) -> None:
    walk(kind, examples=50, steps=50)
