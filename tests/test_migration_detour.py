# SPDX-License-Identifier: Apache-2.0
"""Injections that wait for the end of a hand-over: each is carried out once, and each that waits gets an answer."""

from __future__ import annotations

from concurrent.futures import Future
from typing import Any

import pytest

from sdeivirt.errors import MigrationError, MovedError, SdeivirtError, StreamError, UnknownVcpuError
from sdeivirt.guests import guest_path
from sdeivirt.machine import Machine, MachineConfig, open_machine
from sdeivirt.migration.detour import Answer, Held, HeldInjections, carry_out
from sdeivirt.sdei.service import Injection

from .machine_support import Console, Until

DONE = {"event": 0, "vcpu": 1, "waits": "", "coalesced": False}


def waiting(count: int) -> tuple[HeldInjections, list[Future[Injection]]]:
    """A guest that has gone, and what was injected before that was known."""
    detour = HeldInjections()
    futures = [detour.inject(0, 0, None) for _ in range(count)]
    assert len(detour.leave("there")) == count
    return detour, futures


@pytest.fixture
def listening() -> Machine:
    machine = open_machine("unicorn", MachineConfig(vcpus=2, memory=16 << 20, bootargs="idle=spin"))
    console = Console(machine)
    machine.load(guest_path("listen"))
    machine.start()
    console.shows("listening: CPU#0")
    console.shows("listening: CPU#1")
    return machine


@pytest.mark.machine
def test_who_gives_up_waiting_does_not_take_the_others_with_him(listening: Machine) -> None:
    """What was held is carried out all the same, and cannot be called off any more."""
    with listening as machine:
        until = Until(machine)
        detour = HeldInjections()
        machine.pause()
        machine.save_state(detour)
        futures = [machine.inject_later(0, vcpu) for vcpu in (0, 1)]
        assert not futures[0].cancel()
        assert not any(future.done() for future in futures)
        machine.resume()
        detour.stay(machine)
        assert [future.result(0).vcpu for future in futures] == [0, 1]
        until.reaches(2)
        assert sorted(until.entered) == [(0, 0), (1, 0)]


def test_each_gets_its_own_answer() -> None:
    detour, (first, second) = waiting(2)
    detour.answered([Answer(DONE), Answer(error="UnknownVcpuError", message="no \x1b[2Jsuch", hint="a\nb")])
    assert first.result(0) == Injection(**DONE)  # type: ignore[arg-type]
    error = second.exception(0)
    assert isinstance(error, UnknownVcpuError)
    assert (error.message, error.hint) == ("no ?[2Jsuch", "a b")
    with pytest.raises(MovedError):
        detour.inject(0, 0, None).result(0)
    cancelled = HeldInjections()
    future = cancelled.cancel(0, 0, None)
    cancelled.leave("there")
    cancelled.answered([Answer({"cancelled": True})])
    assert future.result(0) is True


@pytest.mark.parametrize(
    "result",
    [
        {},
        {"x": 1},
        {"event": 1},
        {**DONE, "event": "0"},
        {**DONE, "waits": None},
        {**DONE, "vcpu": [1]},
        {"cancelled": "yes"},
        {"cancelled": None},
    ],
)
def test_an_answer_that_makes_no_sense_is_one_that_was_lost(result: dict[str, Any]) -> None:
    """... for whoever asked for that; the others have theirs."""
    detour, (first, second) = waiting(2)
    detour.answered([Answer(result), Answer(DONE)])
    assert isinstance(first.exception(0), MigrationError)
    assert second.result(0).vcpu == 1


@pytest.mark.parametrize("name", ["OSError", "Exception", "__all__", "os", "é"])
def test_an_error_that_is_none_of_ours_is_an_error(name: str) -> None:
    detour, (future,) = waiting(1)
    detour.answered([Answer(error=name, message="because")])
    error = future.exception(0)
    assert type(error) is SdeivirtError
    assert error.message == "because"


@pytest.mark.parametrize("count", [0, 1, 3])
def test_another_number_of_answers_is_refused_and_all_wait_on(count: int) -> None:
    detour, futures = waiting(2)
    with pytest.raises(StreamError, match=f"sent {count} answers, and 2 are due"):
        detour.answered([Answer(DONE)] * count)
    assert not any(future.done() for future in futures)
    detour.lost(MigrationError("nobody knows"))
    assert [str(future.exception(0)) for future in futures] == ["nobody knows"] * 2


@pytest.mark.machine
def test_what_is_carried_out_there_is_answered_here(listening: Machine) -> None:
    with listening as machine:
        until = Until(machine)
        detour, (good,) = waiting(1)
        detour.answered([carry_out(machine, Held(0, 1))])
        assert good.result(0) == Injection(0, 1, "", coalesced=False)
        until.reaches(1)
        detour, (bad,) = waiting(1)
        detour.answered([carry_out(machine, Held(0, 7))])
        assert isinstance(bad.exception(0), UnknownVcpuError)
