# SPDX-License-Identifier: Apache-2.0
"""Random calls made by real guest code on real machines, each compared with the oracle.

A job is cut into *walks*, each on a machine of its own: some hundred calls by all PEs, with injections, resets,
power changes and, on machine unicorn, a schedule that follows from the walk's seed as all else does. There a walk
that went wrong can be repeated exactly, and made shorter. Machine qemu runs freely, its PEs truly side by side:
a failure has the steps and the end of the log; taking the steps again may or may not meet it again.
"""

from __future__ import annotations

import time
import traceback
from collections import deque
from collections.abc import Iterator
from dataclasses import replace
from random import Random
from typing import Any

from ..errors import SdeivirtError, UsageError
from .machine_steps import Chooser
from .oracle import M64
from .plan import Failure, Job, Outcome, Step, World
from .puppet import Mismatch
from .shrink import shorten
from .walk import Walk, check_step

__all__ = ["MACHINES", "replay", "run_machine"]

# Calls of a walk: few enough to be repeated often, or, where that is of no use, so many that the start costs nothing.
MACHINES = {"unicorn": 600, "qemu": 3000}
SHOWN = 24  # entries of the log
SHRINK_SECONDS = 90.0


def run_machine(job: Job) -> Outcome:
    """Carry out a job on a machine; it ends at the first failure, which is shortened where that is possible.

    Raises UsageError for a world without such a machine, and what opening a machine raises.
    """
    world = job.world
    _check(world)
    outcome = Outcome(job)
    random = Random(job.seed)
    begin = time.perf_counter()
    while outcome.calls < job.calls and outcome.failure is None:
        seed = random.getrandbits(32)
        outcome.failure = _walk(world, seed, min(job.calls - outcome.calls, MACHINES[world.machine]), outcome)
    outcome.seconds = time.perf_counter() - begin
    if outcome.failure is not None and world.machine == "unicorn":
        outcome.failure = _shorten(outcome.failure)
    return outcome


def replay(failure: Failure) -> Failure | None:
    """Take the steps of a failure again; what failed this time, or None. Raises as :func:`run_machine`.

    Exact on machine unicorn. On machine qemu time is its own: that it does not fail again proves nothing.
    """
    _check(failure.world)
    for step in failure.steps:
        check_step(step, failure.world.vcpus)
    done: list[Step] = []
    with _Attempt(failure.world, failure.seed, done) as attempt:
        attempt.begin()
        for step in failure.steps:
            attempt.take(step)
    return attempt.failure


def _check(world: World) -> None:
    if world.machine not in MACHINES:
        raise UsageError(f"there is no machine {world.machine!r} to fuzz", f"machines are {', '.join(MACHINES)}")


class _Attempt:
    """A machine that takes steps until one fails, as a context manager that keeps Mismatch and defects to itself."""

    def __init__(self, world: World, seed: int, done: list[Step]) -> None:
        self._world = world
        self._seed = seed
        self._done = done
        self.walk: Walk | None = None
        self.failure: Failure | None = None

    def __enter__(self) -> _Attempt:
        return self

    def begin(self) -> Walk:
        """Start the machine."""
        stepped = self._world.machine == "unicorn"
        # On machine qemu, who answers EVENT_CONTEXT is a matter of the seed as well.
        self.walk = Walk(self._world, self._seed if stepped else None, contexts=bool(self._seed & 1))
        return self.walk

    def take(self, step: Step) -> None:
        assert self.walk is not None
        self._done.append(step)
        self.walk.do(step)

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> bool:
        walk = self.walk
        if walk is not None:
            walk.close()
        if error is None or isinstance(error, SdeivirtError) or not isinstance(error, Exception):
            return False
        kind = error.kind if isinstance(error, Mismatch) else type(error).__name__
        message = str(error) if isinstance(error, Mismatch) else "".join(traceback.format_exception(error))
        if walk is not None:
            message += _end_of(walk.shadow.history)
        steps = [list(step) for step in self._done]
        self.failure = Failure(self._world, self._seed, kind, message, steps, max(len(steps) - 1, 0))
        return True


def _end_of(history: deque[tuple[Any, ...]]) -> str:
    """The last entries of the log, which say in which order things were done."""
    lines = [" ".join(_shown(part) for part in entry) for entry in list(history)[-SHOWN:]]
    return "\nthe end of the log:" + "".join(f"\n    {line}" for line in lines)


def _shown(part: Any) -> str:
    """A number, or registers: of a call x0 to x5, of what a handler has interrupted PC and PSTATE."""
    if isinstance(part, list):
        return " ".join(hex(value) for value in (part if len(part) <= 6 else part[-2:]))
    if isinstance(part, type):
        return part.__name__
    return hex(part) if isinstance(part, int) and not isinstance(part, bool) else str(part)


def _walk(world: World, seed: int, calls: int, outcome: Outcome) -> Failure | None:
    """So many calls from a seed, and a few more to an orderly end."""
    done: list[Step] = []
    with _Attempt(world, seed, done) as attempt:
        walk = attempt.begin()
        for step in _steps(Chooser(walk, Random(f"steps {seed}")), walk, calls):
            attempt.take(step)
    if attempt.walk is not None:
        shadow = attempt.walk.shadow
        outcome.calls += shadow.calls
        outcome.steps += len(done)
        outcome.succeeded += shadow.succeeded
        outcome.delivered += len(shadow.entered)
        outcome.digest = (outcome.digest * 31 + shadow.digest) & M64
        outcome.coverage.add(shadow.coverage)
    return attempt.failure


def _steps(chooser: Chooser, walk: Walk, calls: int) -> Iterator[Step]:
    yield from chooser.start()
    while walk.shadow.calls < calls:
        yield from chooser.turn()
    yield ["tidy"]


def _shorten(failure: Failure) -> Failure:
    """The failure as it is when its steps are taken again, with fewer of them."""
    again = replay(failure)
    if again is None or again.kind != failure.kind:
        return replace(failure, message=f"{failure.message}\n(it did not fail again when its steps were taken again)")
    return replace(shorten(again, replay, SHRINK_SECONDS, numbers=False), at=failure.at)
