# SPDX-License-Identifier: Apache-2.0
"""A campaign: jobs from one seed, given to whatever executes them, until the calls or the minutes are used up.

An executor is what `concurrent.futures` calls so, as far as :class:`Executor`
says; :mod:`.executors` has three. Jobs are small, so that all workers end at
about the same time, and their outcomes are sums and sets: the order in which
they come back does not matter.
"""

from __future__ import annotations

import itertools
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass, field
from random import Random
from typing import Any, Protocol

from ..errors import EnvironmentUnavailableError
from .coverage import missing, reached
from .plan import Coverage, Failure, Job, Outcome, World

__all__ = ["Campaign", "Executor", "Summary", "WorkerDied", "run_job"]

# Calls in a job, at most: some seconds' worth. Short campaigns have smaller ones, so that all workers have some.
JOB_CALLS = {"core": 500_000, "unicorn": 600, "qemu": 3_000}
FEWEST_JOBS = 8
SMALLEST_JOB = 500  # calls


class WorkerDied(EnvironmentUnavailableError):
    """A process that worked on a job has gone. `summary` is what was done until then."""

    summary: Summary | None = None


class Executor(Protocol):
    """What runs jobs. `workers` is how many at a time, `ahead` how many more wait while all are busy."""

    workers: int
    ahead: int

    def submit(self, function: Callable[..., Any], /, *arguments: Any) -> Future[Any]:
        """Run a function elsewhere."""

    def withdraw(self, future: Future[Any]) -> bool:
        """Take back a job that has not begun; False if it has, or may have."""

    def explain(self, error: Exception) -> Exception:
        """What submit() or a future raised, in our words: WorkerDied where nobody knows what became of a job."""

    def stop(self) -> None:
        """End, and do not wait for what is under way."""


def run_job(job: Job) -> Outcome:
    """Carry out a job, on whatever machine it is for."""
    if job.world.machine == "core":
        from .run import run_core

        return run_core(job)
    from .machines import run_machine

    return run_machine(job)


@dataclass(slots=True)
class Summary:
    """What a campaign did. `coverage` is by policy; `ended` says why it ended: done, failed, interrupted."""

    seed: int
    machine: str
    workers: int
    ended: str = "done"
    jobs: int = 0
    calls: int = 0
    steps: int = 0
    succeeded: int = 0
    delivered: int = 0
    seconds: float = 0.0
    busy: float = 0.0  # seconds of all workers together
    cpu: float = 0.0  # seconds of CPU time, where jobs tell
    digest: int = 0  # of all results; the same for the same seed and calls
    coverage: dict[str, Coverage] = field(default_factory=dict)
    failures: list[Failure] = field(default_factory=list)

    def add(self, index: int, outcome: Outcome) -> None:
        """Count the outcome of job `index` in."""
        self.jobs += 1
        self.calls += outcome.calls
        self.steps += outcome.steps
        self.succeeded += outcome.succeeded
        self.delivered += outcome.delivered
        self.busy += outcome.seconds
        self.cpu += outcome.notes.get("cpu", 0.0)
        self.digest = self.digest + zlib.crc32(f"{index} {outcome.digest}".encode()) & 0xFFFF_FFFF
        self.coverage[outcome.job.world.policy].add(outcome.coverage)
        if outcome.failure is not None:
            self.failures.append(outcome.failure)

    @property
    def rate(self) -> float:
        """Calls a second."""
        return self.calls / self.seconds if self.seconds else 0.0

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        coverage = {}
        for policy, part in self.coverage.items():
            cells, all_cells, codes, all_codes = reached(part, self.machine)
            coverage[policy] = {
                "cells": cells,
                "all_cells": all_cells,
                "results": codes,
                "all_results": all_codes,
                "missing": missing(part, self.machine),
            }
        names = ("seed", "machine", "workers", "ended", "jobs", "calls", "steps", "succeeded", "delivered", "digest")
        return {
            **{name: getattr(self, name) for name in names},
            "seconds": round(self.seconds, 3),
            "calls_per_second": round(self.rate),
            "calls_per_second_and_worker": round(self.calls / self.busy) if self.busy else 0,
            "calls_per_cpu_second": round(self.calls / self.cpu) if self.cpu else None,
            "coverage": coverage,
            "failures": [{"kind": f.kind, "message": f.message, "steps": len(f.steps)} for f in self.failures],
        }


Progress = Callable[[Summary], None]


class Campaign:
    """So many `calls`, or `seconds`, or both limits, in worlds of these policies in turn."""

    def __init__(
        self,
        seed: int,
        *,
        machine: str = "core",
        policies: Sequence[str] = ("kvm", "tf-a"),
        vcpus: int = 4,
        calls: int | None = None,
        seconds: float | None = None,
        job_calls: int | None = None,
    ) -> None:
        self.seed = seed
        self._worlds = [World(policy=policy, vcpus=vcpus, machine=machine) for policy in policies]
        self._machine = machine
        self._calls = calls
        self._seconds = seconds
        self._job_calls = job_calls or JOB_CALLS[machine]
        if calls is not None and not job_calls:
            self._job_calls = min(self._job_calls, max(calls // FEWEST_JOBS, SMALLEST_JOB))

    def jobs(self) -> Iterator[Job]:
        """The jobs, endless where only the time ends them; they follow from the seed."""
        random = Random(self.seed)
        left = self._calls
        for world in itertools.cycle(self._worlds):
            calls = self._job_calls if left is None else min(self._job_calls, left)
            if not calls:
                return
            yield Job(random.getrandbits(64), calls, world)
            left = None if left is None else left - calls

    def run(self, executor: Executor, progress: Progress = lambda _summary: None, every: float = 1.0) -> Summary:
        """Feed jobs to the executor until a limit, the first failure, or a KeyboardInterrupt, which ends it in order.

        `progress` is called about every so many seconds. Raises WorkerDied, with the summary so far as its
        `summary`, and what a job raises.
        """
        summary = Summary(self.seed, self._machine, executor.workers)
        summary.coverage = {world.policy: Coverage() for world in self._worlds}
        state = _State(executor, summary, enumerate(self.jobs()))
        begin = time.monotonic()
        try:
            while True:
                summary.seconds = time.monotonic() - begin
                if summary.failures or (self._seconds is not None and summary.seconds >= self._seconds):
                    state.withdraw()
                else:
                    state.feed()
                if not state.under_way:
                    break
                state.wait(every)
                summary.seconds = time.monotonic() - begin
                progress(summary)
        except KeyboardInterrupt:
            summary.ended = "interrupted"
            state.collect()
        except WorkerDied as error:
            summary.ended = "worker died"
            state.collect()
            error.summary = summary
            raise
        finally:
            summary.seconds = time.monotonic() - begin
            executor.stop()
        if summary.failures:
            summary.ended = "failed"
        return summary


class _State:
    """A campaign under way."""

    def __init__(self, executor: Executor, summary: Summary, jobs: Iterator[tuple[int, Job]]) -> None:
        self._executor = executor
        self._summary = summary
        self._jobs = jobs
        self.under_way: dict[Future[Outcome], int] = {}

    def feed(self) -> None:
        """See to it that no worker has to wait for a job."""
        while len(self.under_way) < self._executor.workers + self._executor.ahead:
            index, job = next(self._jobs, (0, None))
            if job is None:
                return
            try:
                self.under_way[self._executor.submit(run_job, job)] = index
            except Exception as error:
                raise self._executor.explain(error) from error

    def wait(self, seconds: float) -> None:
        """Wait so long for a job to end, and count it in."""
        done, _ = wait(self.under_way, timeout=seconds, return_when=FIRST_COMPLETED)
        for future in sorted(done, key=self.under_way.__getitem__):
            index = self.under_way.pop(future)
            try:
                outcome = future.result()
            except Exception as error:
                raise self._executor.explain(error) from error
            self._summary.add(index, outcome)

    def withdraw(self) -> None:
        """Take back what has not begun."""
        for future in [future for future in self.under_way if self._executor.withdraw(future)]:
            del self.under_way[future]

    def collect(self) -> None:
        """Count in what is finished already, and forget the rest."""
        for future, index in self.under_way.items():
            if future.done() and not future.cancelled() and future.exception() is None:
                self._summary.add(index, future.result())
        self.under_way.clear()
