# SPDX-License-Identifier: Apache-2.0
"""The fuzzer on machines: it finds nothing where nothing is wrong, and everything that is planted."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sdeivirt.cli import main
from sdeivirt.errors import StateError, UsageError
from sdeivirt.fuzz.machines import replay, run_machine
from sdeivirt.fuzz.plan import Failure, Job, Outcome, World
from sdeivirt.fuzz.puppet import Mismatch
from sdeivirt.fuzz.replay import load, save
from sdeivirt.fuzz.walk import FIRM, Walk
from sdeivirt.machine import ExitReason
from sdeivirt.machine.qemu.gic import Gic
from sdeivirt.machine.qemu.layout import Mailbox, Reason
from sdeivirt.machine.qemu.vcpu import QemuVcpu
from sdeivirt.machine.qemu.view import MailboxView
from sdeivirt.machine.unicorn.binding import X
from sdeivirt.machine.unicorn.vcpu import UnicornVcpu
from sdeivirt.machine.unicorn.view import UnicornView
from sdeivirt.sdei.delivery import Delivery
from sdeivirt.sdei.model import Handler
from sdeivirt.smccc.psci import Psci

from .machine_support import KINDS, NEEDS_QEMU, boot

pytestmark = pytest.mark.machine

SHARED = 0x10_0000  # offset in RAM
# Waits for a number, and writes the next one down.
SUMS = f"""
    ldr x1, =0x40000000 + {SHARED}
1:  ldr x2, [x1]
    cbz x2, 1b
    add x2, x2, #1
    str x2, [x1, #8]
    off
"""
UNICORN = World(machine="unicorn", vcpus=3)
QEMU = World(machine="qemu", vcpus=2)
ENOUGH = 3000  # calls; each planted defect shows long before


def run(world: World, seed: int, calls: int) -> Outcome:
    print(f"seed {seed}")
    return run_machine(Job(seed, calls, world))


def runs_well(world: World, seed: int, calls: int) -> Outcome:
    outcome = run(world, seed, calls)
    assert outcome.failure is None, outcome.failure
    assert outcome.calls >= calls
    assert outcome.steps > calls
    assert outcome.calls // 3 < outcome.succeeded < outcome.calls
    assert outcome.delivered > calls // 20
    assert outcome.seconds > 0
    # Every operation was tried on handlers in some states, and errors of several kinds came back.
    assert {op for _, op in outcome.coverage.cells} == set(range(9))
    assert {code for _, code in outcome.coverage.codes} >= {0, -2, -3}
    return outcome


# -- nothing wrong


@pytest.mark.parametrize("policy", ["kvm", "tf-a"])
def test_unicorn(policy: str) -> None:
    runs_well(replace(UNICORN, policy=policy), 1, 1500)


@NEEDS_QEMU
@pytest.mark.qemu
@pytest.mark.parametrize("policy", ["kvm", "tf-a"])
def test_qemu(policy: str) -> None:
    runs_well(replace(QEMU, policy=policy), 2, 600)


def test_one_vcpu_and_many() -> None:
    for vcpus in (1, 8):
        outcome = run(replace(UNICORN, vcpus=vcpus), 3, 300)
        assert outcome.failure is None, outcome.failure
        assert outcome.calls >= 300


def test_job_decides_all() -> None:
    """On machine unicorn, schedule included: every result is the same, in the same order."""
    first, second, other = (run(UNICORN, seed, 700) for seed in (4, 4, 5))

    def summary(outcome: Outcome) -> tuple[int, ...]:
        return (outcome.digest, outcome.calls, outcome.steps, outcome.succeeded, outcome.delivered)

    assert summary(first) == summary(second)
    assert first.coverage == second.coverage
    assert first.digest != other.digest


# -- what is planted is found


def corrupt(view: type[Any], name: str, change: Callable[[Any], None], monkeypatch: pytest.MonkeyPatch) -> None:
    """Have something done to a PE after a method of its view or vCPU."""
    method = getattr(view, name)

    def wrong(self: Any, *arguments: Any) -> Any:
        result = method(self, *arguments)
        change(self)
        return result

    monkeypatch.setattr(view, name, wrong)


def found(world: World, *kinds: str) -> Failure:
    outcome = run(world, 6, ENOUGH)
    failure = outcome.failure
    assert failure is not None
    assert failure.kind in kinds, failure
    assert outcome.calls < ENOUGH
    assert failure.steps
    assert "the end of the log:" in failure.message
    return failure


def again(failure: Failure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It happens again from a file, exactly; and no more once the defect is gone."""
    save(failure, tmp_path / "failure.json")
    read = load(tmp_path / "failure.json")
    repeated = replay(read)
    assert repeated is not None
    assert (repeated.kind, repeated.message, repeated.steps) == (failure.kind, failure.message, failure.steps)
    monkeypatch.undo()
    assert replay(read) is None


def lose_x11(view: UnicornView) -> None:
    view.x[11] = 0xBAD
    view._flush()


def test_register_lost_on_the_way_to_a_unicorn_guest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The service is right, and the guest sees something else in x11."""
    corrupt(UnicornView, "flush_context", lose_x11, monkeypatch)
    failure = found(UNICORN, "registers")
    assert "x11 is 0xbad" in failure.message
    assert len(failure.steps) < 15 < failure.at
    again(failure, tmp_path, monkeypatch)


def test_register_changed_while_a_unicorn_guest_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody but the guest itself can notice."""
    corrupt(UnicornVcpu, "deliver", lambda vcpu: vcpu.engine.set(X[5], 0xBAD), monkeypatch)
    failure = found(UNICORN, "guest", "registers")
    assert "x5 is 0xbad" in failure.message
    again(failure, tmp_path, monkeypatch)


def test_kick_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A shared event is ready, and no PE is told."""
    monkeypatch.setattr(Delivery, "_kick_one", lambda *_arguments, **_more: None)
    failure = found(UNICORN, "liveness")
    assert "is ready" in failure.message
    again(failure, tmp_path, monkeypatch)


def test_count_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drop = Delivery.drop

    def forgetful(self: Delivery, handler: Handler) -> bool:
        dropped = drop(self, handler)
        handler.dropped -= dropped
        return dropped

    monkeypatch.setattr(Delivery, "drop", forgetful)
    failure = found(UNICORN, "status")
    assert "dropped is 0 instead of 1" in failure.message
    again(failure, tmp_path, monkeypatch)


def test_exception_in_the_service(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is a failure like any other, with the place where it came from."""

    def broken(self: Psci, caller: Any, view: Any) -> int:
        raise KeyError("planted")

    monkeypatch.setattr(Psci, "_affinity_info", broken)
    failure = found(UNICORN, "KeyError")
    assert "in broken" in failure.message
    assert 0xC400_0004 in failure.steps[-2]
    again(failure, tmp_path, monkeypatch)


@NEEDS_QEMU
@pytest.mark.qemu
def test_register_lost_on_the_way_to_a_qemu_guest(monkeypatch: pytest.MonkeyPatch) -> None:
    def change(view: MailboxView) -> None:
        view.x[11] = 0xBAD

    corrupt(MailboxView, "flush_context", change, monkeypatch)
    failure = found(QEMU, "registers")
    assert "x11 is 0xbad" in failure.message
    # Steps are not left out where time is its own. But this one fails whenever.
    repeated = replay(failure)
    assert repeated is not None
    assert repeated.kind == "registers"
    monkeypatch.undo()
    assert replay(failure) is None


@NEEDS_QEMU
@pytest.mark.qemu
def test_register_changed_while_a_qemu_guest_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    serve = QemuVcpu.serve

    def wrong(self: QemuVcpu) -> None:
        words = self.words
        if words[Mailbox.REQUEST] != self.served and words[Mailbox.REASON] == Reason.KICK:
            words[5] = 0xBAD
        serve(self)

    monkeypatch.setattr(QemuVcpu, "serve", wrong)
    failure = found(QEMU, "guest", "registers")
    assert "x5 is 0xbad" in failure.message


@NEEDS_QEMU
@pytest.mark.qemu
def test_bound_interrupt_never_enabled(monkeypatch: pytest.MonkeyPatch) -> None:
    """The guest makes one pending, and nothing comes of it."""
    enable = Gic.enable

    def lazy(self: Gic, intid: int, vcpu: int, on: bool) -> None:
        if not on:
            enable(self, intid, vcpu, on)

    monkeypatch.setattr(Gic, "enable", lazy)
    monkeypatch.setattr("sdeivirt.fuzz.puppet.DEADLINE", 3.0)
    failure = found(QEMU, "liveness")
    assert "does not become event" in failure.message


@NEEDS_QEMU
@pytest.mark.qemu
def test_qemu_dies() -> None:
    """The steps that it died of are not lost."""
    walk = Walk(QEMU, None)
    try:
        walk.do(["settle"])
        pid = walk.shadow.puppet.machine.details()["pid"]
        assert isinstance(pid, int)
        os.kill(pid, signal.SIGKILL)
        walk.do(["call", 0, 0xC400_0020, 0, 0, 0, 0, 0, 1, FIRM, 0])
        with pytest.raises(Mismatch, match="was killed by signal 9") as raised:
            walk.do(["settle"])
        assert raised.value.kind == "stopped"
    finally:
        walk.close()


# -- on the command line


def test_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    options = ("fuzz", "--machine", "unicorn", "--calls", "900", "--jobs", "1", "--vcpus", "2", "--seed", "8")
    assert main([*options, "--output", str(tmp_path)]) == 0
    assert "PASSED" in capsys.readouterr().out
    corrupt(UnicornView, "flush_context", lose_x11, monkeypatch)
    assert main([*options, "--output", str(tmp_path)]) == 1
    (written,) = tmp_path.iterdir()
    assert f"--replay {written}" in capsys.readouterr().out
    assert main(["fuzz", "--replay", str(written)]) == 1
    assert "x11 is 0xbad" in capsys.readouterr().out
    monkeypatch.undo()
    assert main(["fuzz", "--replay", str(written)]) == 0


# -- the guest's memory


@pytest.mark.parametrize("kind", KINDS)
def test_memory_is_shared_with_the_guest(kind: str) -> None:
    """What the host writes, the guest reads, and the other way round."""
    with boot(kind, SUMS, memory=8 << 20) as machine:
        if kind == "qemu":
            with pytest.raises(StateError, match="has no memory"):
                machine.memory()
        machine.start()
        words = machine.memory().cast("Q")
        assert len(machine.memory()) == 8 << 20
        words[SHARED // 8] = 41
        assert machine.wait(30).reason is ExitReason.POWER_OFF
        assert machine.memory().cast("Q")[SHARED // 8 + 1] == 42


# -- what cannot be


def test_mistakes() -> None:
    with pytest.raises(UsageError, match="no machine 'core' to fuzz"):
        run_machine(Job(1, 1, World()))
    with pytest.raises(UsageError, match="cannot have 9 vCPUs"):
        run_machine(Job(1, 1, replace(UNICORN, vcpus=9)))
    failure = Failure(UNICORN, 1, "registers", "", [["settle"], ["tidy"]])
    assert replay(failure) is None
    for step in ([], [7], ["jump", 1], ["settle", 1], ["wake", 3], ["wake", -1], ["sleep", 1, "long", 1, 2, 3]):
        with pytest.raises(UsageError, match="is no step that a machine takes"):
            replay(replace(failure, steps=[["settle"], step]))
    with pytest.raises(UsageError, match="no machine 'core' to fuzz"):
        replay(replace(failure, world=World()))
