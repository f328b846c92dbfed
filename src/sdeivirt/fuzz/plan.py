# SPDX-License-Identifier: Apache-2.0
"""What a campaign is made of: worlds, steps, jobs and their outcomes. Plain records, all of which pickle.

A *world* is what is attacked: a policy, PEs and events. A *job* is so many
calls in a world from a seed; everything in it follows from the seed. A *step*
is a short list, so that a run can be written as JSON:

    ["call", pe, x0, x1, x2, x3, x4, x5]    a guest's call
    ["set", pe, x6..x17, pc, pstate, sctlr, vbar]    a guest computes
    ["inject", event, pe]                   the host raises an event
    ["cancel", event, pe]                   ... and takes it back
    ["interrupt", intid, pe]                a device does
    ["look", pe]                            a PE stops and looks for an event; one that sleeps wakes
    ["power", pe, "on" | "off"]             a machine turns a PE on or off
    ["reset"]                               everything starts again

`pe` is an index; the event of an "inject" or "cancel" that is shared is everybody's.
Machines have steps of their own besides; each machine describes them where it takes them.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from ..sdei.events import EventDefinition, Priority

__all__ = ["Step", "World", "Job", "Outcome", "Failure", "Coverage", "EVENTS"]

Step = list[Any]

# One event of each kind; bound statically, dynamically (in the policy's slots) and not at all.
EVENTS = (
    EventDefinition(5, interrupt=20),
    EventDefinition(6, priority=Priority.CRITICAL),
    EventDefinition(0x20, shared=True, interrupt=40),
    EventDefinition(0x21, shared=True, priority=Priority.CRITICAL),
    EventDefinition(0x22, shared=True),
    EventDefinition(0x4000_0001, signalable=True),
)


@dataclass(frozen=True, slots=True)
class World:
    """What is attacked. `slots` are dynamic events (private, shared)."""

    policy: str = "kvm"
    vcpus: int = 4
    events: tuple[EventDefinition, ...] = EVENTS
    slots: tuple[int, int] = (2, 2)
    machine: str = "core"


@dataclass(frozen=True, slots=True)
class Job:
    """So many calls in a world. The run is a function of the job."""

    seed: int
    calls: int
    world: World = field(default_factory=World)


@dataclass(slots=True)
class Coverage:
    """What was reached: cells of the state table, and results of calls.

    `cells` holds (state, operation), the numbers of :mod:`..sdei.states`;
    `codes` holds (function id, result), a negative code or 0 for any success.
    """

    cells: set[tuple[int, int]] = field(default_factory=set)
    codes: set[tuple[int, int]] = field(default_factory=set)

    def add(self, other: Coverage) -> None:
        """Take over what the other reached."""
        self.cells |= other.cells
        self.codes |= other.codes


@dataclass(slots=True)
class Failure:
    """A disagreement, with the steps that lead to it.

    `kind` names the sort of failure: while a failure is shortened, `kind`
    stays the same and `message` may change. `at` is the number of the step
    that failed, in the run as it was before it was shortened.
    """

    world: World
    seed: int
    kind: str
    message: str
    steps: list[Step]
    at: int = 0


@dataclass(slots=True)
class Outcome:
    """What came of a job: counts of what was done, what was reached, and the failure, if any.

    `digest` is a number that depends on every result: two runs of one job on
    the core have the same. `succeeded` are calls without an error code. `notes`
    may hold "cpu", seconds of CPU time.
    """

    job: Job
    calls: int = 0
    steps: int = 0
    succeeded: int = 0
    delivered: int = 0
    seconds: float = 0.0
    digest: int = 0
    coverage: Coverage = field(default_factory=Coverage)
    failure: Failure | None = None
    notes: dict[str, Any] = field(default_factory=dict)

    def add(self, others: Iterable[Outcome]) -> None:
        """Sum up other outcomes; of failures, the first."""
        for other in others:
            self.calls += other.calls
            self.steps += other.steps
            self.succeeded += other.succeeded
            self.delivered += other.delivered
            self.seconds += other.seconds
            self.coverage.add(other.coverage)
            self.failure = self.failure or other.failure
