# SPDX-License-Identifier: Apache-2.0
"""The fuzzer on the core: it finds defects that are planted, shortens them, and runs the same way twice."""

from __future__ import annotations

import time
from array import array
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sdeivirt.cpu import PSTATE_PAN, CpuFeatures
from sdeivirt.firmware import Firmware
from sdeivirt.fuzz.coverage import missing
from sdeivirt.fuzz.plan import EVENTS, Coverage, Failure, Job, World
from sdeivirt.fuzz.replay import load, save
from sdeivirt.fuzz.run import Run, run_core
from sdeivirt.fuzz.shrink import replay_core, shorten
from sdeivirt.fuzz.sides import Sides
from sdeivirt.sdei import calls as real_calls
from sdeivirt.sdei.bindings import Bindings
from sdeivirt.sdei.calls import Calls
from sdeivirt.sdei.delivery import Delivery
from sdeivirt.sdei.states import CELLS, Cell, Op, State
from sdeivirt.smccc.psci import Psci

POLICIES = ("kvm", "tf-a")
VERSION = 0xC400_0020

# -- defects, each of which somebody might make


def another_cell(patch: pytest.MonkeyPatch) -> None:
    """One cell of the table: DISABLE of a handler that runs leaves it enabled."""
    cells = list(CELLS[Op.DISABLE])
    cells[State.ENABLED_RUNNING] = Cell(State.ENABLED_RUNNING, 0)
    patch.setattr(real_calls, "_DISABLE", tuple(cells))


def mask_answers_zero(patch: pytest.MonkeyPatch) -> None:
    real = Calls.pe_mask
    patch.setattr(Calls, "pe_mask", lambda *arguments: real(*arguments) and 0)


def no_kick(patch: pytest.MonkeyPatch) -> None:
    """A PE that could take an event which is for any PE is not told."""
    patch.setattr(Delivery, "_kick_one", lambda *_arguments, **_more: None)


def pending_stays(patch: pytest.MonkeyPatch) -> None:
    """UNREGISTER forgets the pending event (v7, defect 4)."""
    patch.setattr(Delivery, "drop", lambda *_arguments: False)


def no_redelivery(patch: pytest.MonkeyPatch) -> None:
    """An event that came while its handler ran is not ready when that ends (v7, defect 2)."""
    real = Delivery.change

    def change(self: Delivery, handler: Any, state: int) -> None:
        was_running = handler.state & 4
        real(self, handler, state)
        if was_running and handler.pending and state == State.ENABLED:
            self._clear_ready(handler)

    patch.setattr(Delivery, "change", change)


def signal_to_the_caller(patch: pytest.MonkeyPatch) -> None:
    """EVENT_SIGNAL does not look at its target (v7, defect 6)."""
    real = Calls.event_signal

    def signal(self: Calls, pe: Any, view: Any) -> Any:
        view.x[2] = pe.affinity
        return real(self, pe, view)

    def bound(self: Calls, *arguments: Any) -> None:
        init(self, *arguments)
        self.table = {**self.table, 0xC400_002F: signal.__get__(self)}

    init = Calls.__init__
    patch.setattr(Calls, "__init__", bound)


def pan_is_inherited(patch: pytest.MonkeyPatch) -> None:
    """The handler's PSTATE has the interrupted PAN, whatever SCTLR_EL1.SPAN says (v7, defect 11)."""
    real = CpuFeatures.exception_entry
    patch.setattr(
        CpuFeatures, "exception_entry", lambda *a: real(*a) & ~PSTATE_PAN | (a[1] & PSTATE_PAN if not a[1] & 16 else 0)
    )


def a_register_is_lost(patch: pytest.MonkeyPatch) -> None:
    real = Firmware.hypercall

    def hypercall(self: Firmware, pe: Any, view: Any) -> bool:
        goes_on = real(self, pe, view)
        if view.x[0] == 0 and pe.critical is not None:
            view.x[9] = 0
        return goes_on

    patch.setattr(Firmware, "hypercall", hypercall)


def masked_and_entered(patch: pytest.MonkeyPatch) -> None:
    """An event is delivered to a PE that has masked them."""
    real = Delivery.next

    def following(self: Delivery, pe: Any) -> Any:
        masked, pe.masked = pe.masked, False
        try:
            return real(self, pe)
        finally:
            pe.masked = masked

    patch.setattr(Delivery, "next", following)


def release_raises(patch: pytest.MonkeyPatch) -> None:
    """The guest makes the host fail."""
    real = Bindings.release

    def release(self: Bindings, event: Any) -> int:
        return int("?") if event.registrations and event.dynamic else real(self, event)

    patch.setattr(Bindings, "release", release)


def counted_twice(patch: pytest.MonkeyPatch) -> None:
    """The books are wrong, and nothing else."""
    real = Delivery.leave

    def leave(self: Delivery, pe: Any, failed: bool = False) -> bytes:
        pe.frame.handler.coalesced += failed
        return real(self, pe, failed)

    patch.setattr(Delivery, "leave", leave)


def power_of_the_wrong_pe(patch: pytest.MonkeyPatch) -> None:
    """CPU_ON of a PE that is on says so only once in a while."""
    patch.setattr(Psci, "started", lambda self, index: self.power.__setitem__(0, self.power[0]))


DEFECTS = [
    another_cell,
    mask_answers_zero,
    no_kick,
    pending_stays,
    no_redelivery,
    signal_to_the_caller,
    pan_is_inherited,
    a_register_is_lost,
    masked_and_entered,
    release_raises,
    counted_twice,
    power_of_the_wrong_pe,
]


@pytest.mark.parametrize("defect", DEFECTS, ids=lambda defect: defect.__name__)
def test_planted_defect(
    defect: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Found, shortened to a handful of steps, written, failing when replayed, and gone when the defect is."""
    with monkeypatch.context() as patch:
        defect(patch)
        outcome = run_core(Job(seed=0x5DE1, calls=60_000))
        failure = outcome.failure
        assert failure is not None, f"not found in {outcome.calls} calls"
        assert len(failure.steps) <= 10, failure.steps
        save(failure, tmp_path / "failure.json")
        loaded = load(tmp_path / "failure.json")
        assert loaded == failure
        again = replay_core(loaded)
        assert again is not None
        assert (again.kind, again.message.splitlines()[-1]) == (failure.kind, failure.message.splitlines()[-1])
        for place in range(len(failure.steps)):
            shorter = replay_core(replace(failure, steps=failure.steps[:place] + failure.steps[place + 1 :]))
            assert shorter is None or shorter.kind != failure.kind, f"step {place} is needless"
    assert replay_core(loaded) is None


def test_shortening_keeps_the_kind() -> None:
    """What is left fails in the same way; numbers become as simple as they can."""

    def again(failure: Failure) -> Failure | None:
        """Fails as "a" when 7 follows on 3, and as "b" when there is a 9."""
        values = [step[1] for step in failure.steps]
        for place, value in enumerate(values, 1):
            if value == 9:
                return replace(failure, kind="b", steps=failure.steps[:place])
            if value & 7 == 7 and 3 in values[:place]:
                return replace(failure, kind="a", steps=failure.steps[:place])
        return None

    others = [value for value in range(20, 300) if value & 7 != 7]
    steps = [["step", value] for value in (*others[:100], 3, *others[100:], 0xFF07, 9)]
    shortened = shorten(Failure(World(), 0, "a", "", steps), again)
    assert (shortened.kind, shortened.steps) == ("a", [["step", 3], ["step", 7]])


# -- what a run does


@pytest.mark.parametrize("policy", POLICIES)
def test_same_seed_same_run(policy: str) -> None:
    """Every result is the same the second time, and when the steps are taken one by one; another seed's is not."""
    job = Job(seed=7, calls=6_000, world=World(policy=policy))
    first, second = run_core(job), run_core(job)
    assert first.failure is None
    assert first.digest == second.digest
    assert first.coverage == second.coverage
    assert (first.calls, first.steps, first.delivered) == (second.calls, second.steps, second.delivered)
    trail: list[list[Any]] = []
    again = Run(job, trail)
    again.play(job.calls)
    assert len(trail) == again.made + again.others == first.steps
    sides = Sides(job.world)
    for step in trail:
        sides.do(step)
    assert [seat.view.words for seat in sides.seats] == [seat.view.words for seat in again.sides.seats]
    assert run_core(replace(job, seed=8)).digest != first.digest


@pytest.mark.parametrize("policy", POLICIES)
def test_a_run_gets_somewhere(policy: str) -> None:
    """Half of the calls succeed, and every tenth brings an event about: the mix is no idle one."""
    outcome = run_core(Job(seed=3, calls=50_000, world=World(policy=policy)))
    assert outcome.failure is None
    assert outcome.calls >= 50_000
    assert outcome.steps > 1.08 * outcome.calls
    assert outcome.succeeded > 0.45 * outcome.calls
    assert outcome.delivered > 0.07 * outcome.calls
    assert len(outcome.coverage.cells) > 45


@pytest.mark.parametrize("vcpus", [1, 2, 8])
def test_other_worlds(vcpus: int) -> None:
    """One PE alone, many, and a world with few events and no slots."""
    world = World(vcpus=vcpus, events=EVENTS[:3], slots=(0, 1))
    outcome = run_core(Job(seed=vcpus, calls=10_000, world=world))
    assert outcome.failure is None
    assert outcome.delivered > 300


@pytest.mark.campaign
@pytest.mark.parametrize("policy", POLICIES)
def test_everything_is_reached(policy: str) -> None:
    """Every cell of the state table, and every result of every call."""
    coverage = Coverage()
    for seed in range(8):
        outcome = run_core(Job(seed=seed, calls=250_000, world=World(policy=policy)))
        assert outcome.failure is None
        coverage.add(outcome.coverage)
    assert missing(coverage, "core") == []


@pytest.mark.campaign
def test_rate() -> None:
    """A call with all that is compared costs no more than so many calls of VERSION, which do next to nothing."""
    ratios = []
    for seed in range(5):
        run = Run(Job(seed=seed, calls=0))
        version = time_of_version(20_000)
        begin = time.process_time()
        run.play(40_000)
        ratios.append((time.process_time() - begin) / run.made / version)
    print("a call of the fuzzer in calls of VERSION:", *(f"{ratio:.1f}" for ratio in ratios))
    assert min(ratios) < 18


def time_of_version(calls: int) -> float:
    """Seconds of CPU time for a call that does nothing."""
    sides = Sides(World())
    seat, hypercall = sides.seats[0], sides.firmware.hypercall
    words = memoryview(array("Q", [VERSION, 0, 0, 0, 0, 0]))
    x = seat.view.x
    begin = time.process_time()
    for _ in range(calls):
        x[:6] = words
        hypercall(seat.real, seat.view)
    return (time.process_time() - begin) / calls
