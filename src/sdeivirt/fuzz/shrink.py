# SPDX-License-Identifier: Apache-2.0
"""A failure written down step by step, and made shorter: fewer steps, then simpler ones, that fail in the same way.

What counts is the *kind* of failure. A step that cannot be taken any more
when others are left out (a PE that is off makes no call) does nothing.
"""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import replace

from .compare import compare
from .disagreement import Disagreement
from .plan import Failure, Job, Step
from .run import Run
from .sides import Sides

__all__ = ["kind_of", "message_of", "replay_core", "shorten", "write_down"]

SECONDS = 60.0  # shortening ends then with what it has
SUFFIXES = (100, 1_000, 10_000, 100_000)

Replay = Callable[[Failure], Failure | None]


def kind_of(error: Exception) -> str:
    """What sort of failure an exception is: a disagreement's own word, or what was raised where."""
    if isinstance(error, Disagreement):
        return error.kind
    frames = traceback.extract_tb(error.__traceback__)
    return f"{type(error).__name__} in {frames[-1].name}" if frames else type(error).__name__


def message_of(error: Exception) -> str:
    if isinstance(error, Disagreement):
        return error.message
    return "".join(traceback.format_exception(error)).rstrip()


def replay_core(failure: Failure, watch: Callable[[Step, Sides], None] | None = None) -> Failure | None:
    """Take the steps again, comparing everything after each; the failure there is now, or None.

    `watch` is called after each step that went well.
    """
    steps = failure.steps
    done = 0
    try:
        sides = Sides(failure.world)
        compare(sides)
        for step in steps:
            done += 1
            sides.do(step)
            compare(sides)
            if watch is not None:
                watch(step, sides)
    except Exception as error:
        return replace(failure, kind=kind_of(error), message=message_of(error), steps=steps[:done], at=done)
    return None


def write_down(job: Job, error: Exception) -> Failure:
    """The failure of a job's run as steps from a new world, shortened: the last steps if they fail too, else all.

    Everything is compared after each of them, so what fails may be seen earlier than in the run, and be of
    another kind.
    """
    trail: list[Step] = []
    run = Run(job, trail)
    try:
        run.play(job.calls)
    except Exception as again:
        error = again
    steps = len(trail)
    whole = Failure(job.world, job.seed, kind_of(error), message_of(error), trail, at=steps)
    for length in (*(suffix for suffix in SUFFIXES if suffix < steps), steps):
        found = replay_core(replace(whole, steps=trail[steps - length :]))
        if found is not None:
            return replace(shorten(found, replay_core), at=steps)
    return whole  # steps of their own do not show it: the seed and all steps are what we have


def shorten(failure: Failure, again: Replay, seconds: float = SECONDS, *, numbers: bool = True) -> Failure:
    """A failure of the same kind with as few and as simple steps as can be found in this time.

    `again` replays a failure, and gives back the one that there is now, with the steps up to it. Without `numbers`
    the steps that stay are left as they are: a real guest that is sent to other addresses fails for other reasons.
    """
    until = time.monotonic() + seconds

    def better(steps: list[Step]) -> Failure | None:
        found = again(replace(failure, steps=steps))
        return found if found is not None and found.kind == failure.kind else None

    best = failure
    while time.monotonic() < until:
        smaller = _fewer(best, better, until)
        if numbers:
            smaller = _simpler(smaller, better, until)
        if smaller.steps == best.steps:
            break
        best = smaller
    return best


def _fewer(best: Failure, better: Callable[[list[Step]], Failure | None], until: float) -> Failure:
    """Leave out chunks of steps, large ones first; single ones until nothing more can go."""
    size = max(len(best.steps) // 2, 1)
    while True:
        start = len(best.steps) - size
        gone = False
        while start > -size and time.monotonic() < until:
            first = max(start, 0)
            found = better(best.steps[:first] + best.steps[start + size :])
            if found is not None:
                best, gone = found, True
            start = min(start, len(best.steps)) - size
        if time.monotonic() >= until or (size == 1 and not gone):
            return best
        size = max(size // 2, 1)


def _simpler(best: Failure, better: Callable[[list[Step]], Failure | None], until: float) -> Failure:
    """Have a PE look instead of making a call, where that will do; bring the numbers in the steps nearer to zero."""
    at = 0
    while at < len(best.steps):
        if best.steps[at][0] == "call":
            look: Step = ["look", best.steps[at][1]]
            best = better([*best.steps[:at], look, *best.steps[at + 1 :]]) or best
        step = best.steps[at]
        for place in range(1, len(step)):
            for value in _simpler_values(best.steps[at][place]):
                if time.monotonic() >= until:
                    return best
                changed = [*best.steps[at][:place], value, *best.steps[at][place + 1 :]]
                found = better([*best.steps[:at], changed, *best.steps[at + 1 :]])
                if found is not None:
                    best = found
                    break
            if at >= len(best.steps):
                return best
        at += 1
    return best


def _simpler_values(value: int | str) -> Iterator[int]:
    """0, then the value without its high word, without one of its bytes, without its lowest bit."""
    if isinstance(value, str) or value == 0:
        return
    tried: set[int] = {value}
    for mask in (0, 0xFFFF_FFFF, *(~(0xFF << shift) for shift in range(56, -8, -8)), ~1):
        if value & mask not in tried:
            tried.add(value & mask)
            yield value & mask
