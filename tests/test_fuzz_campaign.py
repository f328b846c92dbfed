# SPDX-License-Identifier: Apache-2.0
"""Campaigns: the same results wherever the jobs run, and an orderly end, whatever ends them."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any

import pytest

from sdeivirt.cli import main
from sdeivirt.errors import EnvironmentUnavailableError
from sdeivirt.fuzz import campaign as campaign_module
from sdeivirt.fuzz.campaign import Campaign, Executor, Summary, WorkerDied, run_job
from sdeivirt.fuzz.executors import InProcess, Processes, Ray
from sdeivirt.fuzz.plan import Failure, Job, Outcome, World

HAS_RAY = importlib.util.find_spec("ray") is not None
NEEDS_RAY = pytest.mark.skipif(not HAS_RAY, reason="Ray is not installed: pip install 'sdeivirt[ray]'")
ELSEWHERE = [
    pytest.param("processes", marks=pytest.mark.process),
    pytest.param("ray", marks=[NEEDS_RAY, pytest.mark.ray, pytest.mark.process, pytest.mark.xdist_group("ray")]),
]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Ray]:
    """A local Ray cluster of two workers, which executors made later share; it takes some seconds to start."""
    first = Ray(workers=2)
    yield first
    first.stop()
    assert not first._ray.is_initialized()


@pytest.fixture
def elsewhere(request: pytest.FixtureRequest) -> Executor:
    """Two workers that are not this process."""
    if request.param == "processes":
        return Processes(2)
    request.getfixturevalue("cluster")
    return Ray(workers=2)


def a_campaign(seed: int = 1) -> Campaign:
    """Four jobs."""
    return Campaign(seed, calls=12_000, job_calls=3_000)


class Counting(InProcess):
    """Runs jobs here, and keeps a list of them; `before` is called with the job's number first."""

    def __init__(self, before: Callable[[int], None] = lambda _number: None) -> None:
        self.jobs: list[Job] = []
        self.stopped = False
        self._before = before

    def submit(self, function: Callable[..., Any], /, *arguments: Any) -> Future[Any]:
        self._before(len(self.jobs))
        self.jobs.append(arguments[0])
        return super().submit(function, *arguments)

    def stop(self) -> None:
        self.stopped = True


def a_failure(job: Job) -> Failure:
    return Failure(job.world, job.seed, "kind", "message", [["reset"]])


@contextmanager
def jobs_that(patch: pytest.MonkeyPatch, run: Callable[[Job], Outcome]) -> Iterator[None]:
    with patch.context() as inner:
        inner.setattr(campaign_module, "run_job", run)
        yield


# -- what is done


def test_jobs_follow_from_the_seed() -> None:
    """Policies take turns, the last job is as big as what is left, and another seed has other jobs."""
    campaign = Campaign(5, calls=10_000, job_calls=3_000, vcpus=3)
    jobs = list(campaign.jobs())
    assert [job.calls for job in jobs] == [3_000, 3_000, 3_000, 1_000]
    assert [job.world.policy for job in jobs] == ["kvm", "tf-a", "kvm", "tf-a"]
    assert {job.world.vcpus for job in jobs} == {3}
    assert len({job.seed for job in jobs}) == 4
    assert jobs == list(Campaign(5, calls=10_000, job_calls=3_000, vcpus=3).jobs())
    assert jobs[0].seed != next(Campaign(6).jobs()).seed


def test_sums() -> None:
    """A summary is the sum of its jobs, and one after the other they are what they are alone."""
    executor = Counting()
    seen: list[int] = []
    summary = a_campaign().run(executor, lambda summary: seen.append(summary.jobs), every=0)
    alone = [run_job(job) for job in executor.jobs]
    assert (summary.ended, summary.jobs, executor.stopped) == ("done", 4, True)
    for name in ("calls", "steps", "succeeded", "delivered"):
        assert getattr(summary, name) == sum(getattr(outcome, name) for outcome in alone) > 0
    for policy, coverage in summary.coverage.items():
        cells = [outcome.coverage.cells for outcome in alone if outcome.job.world.policy == policy]
        assert coverage.cells == set().union(*cells)
    assert seen
    assert summary.seconds > 0
    assert summary.rate == summary.calls / summary.seconds


@pytest.mark.parametrize("elsewhere", ELSEWHERE, indirect=True)
def test_same_results_elsewhere(elsewhere: Executor) -> None:
    """Other processes come to the same results, in whatever order."""
    here = a_campaign(0x5EED).run(InProcess())
    there = a_campaign(0x5EED).run(elsewhere)
    assert there.workers == 2
    assert (there.digest, there.calls, there.delivered) == (here.digest, here.calls, here.delivered)
    assert there.coverage == here.coverage


@pytest.mark.parametrize("elsewhere", ELSEWHERE, indirect=True)
def test_jobs_run_elsewhere_side_by_side(elsewhere: Executor) -> None:
    """Two workers, neither of them this process."""
    executor = elsewhere
    try:
        pids: set[int] = set()
        deadline = time.monotonic() + 60
        while len(pids) < 2 and time.monotonic() < deadline:
            pids |= {future.result() for future in [executor.submit(os.getpid) for _ in range(8)]}
    finally:
        executor.stop()
    assert len(pids) >= 2
    assert os.getpid() not in pids


# -- how it ends


def test_first_failure_ends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """No further job begins, what was under way counts, and the failure is there."""
    executor = Counting()

    def run(job: Job) -> Outcome:
        failed = len(executor.jobs) == 3
        return Outcome(job, calls=job.calls, failure=a_failure(job) if failed else None)

    with jobs_that(monkeypatch, run):
        summary = Campaign(1, calls=1_000_000, job_calls=1_000).run(executor)
    assert summary.ended == "failed"
    assert [failure.seed for failure in summary.failures] == [executor.jobs[2].seed]
    assert len(executor.jobs) == 3
    assert summary.calls == 3_000


def test_time_ends_it() -> None:
    """Without a number of calls, the time is the only limit."""
    begin = time.monotonic()
    summary = Campaign(1, seconds=0.3, job_calls=500).run(InProcess())
    assert summary.ended == "done"
    assert summary.calls >= 500
    assert 0.3 <= time.monotonic() - begin < 30


def test_interrupt_ends_it_with_what_was_done() -> None:
    def interrupt(number: int) -> None:
        if number == 2:
            raise KeyboardInterrupt

    executor = Counting(interrupt)
    summary = Campaign(1, calls=1_000_000, job_calls=1_000).run(executor)
    assert (summary.ended, summary.jobs, executor.stopped) == ("interrupted", 2, True)
    assert summary.calls >= 2_000


def test_a_mistake_of_a_job_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that is not there is no failure of the service."""

    def run(job: Job) -> Outcome:
        raise EnvironmentUnavailableError("there is no QEMU", "install it")

    executor = Counting()
    with jobs_that(monkeypatch, run), pytest.raises(EnvironmentUnavailableError, match="there is no QEMU"):
        Campaign(1).run(executor)
    assert executor.stopped


def die(_job: Job) -> Outcome:
    """Ends the worker without a word."""
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("still here")


@pytest.mark.parametrize("elsewhere", ELSEWHERE, indirect=True)
def test_a_worker_dies(elsewhere: Executor, monkeypatch: pytest.MonkeyPatch) -> None:
    """One sentence, with the summary of what was done; and nothing of the executor stays behind."""
    executor = elsewhere
    pid = executor.submit(os.getpid).result()
    with jobs_that(monkeypatch, die), pytest.raises(WorkerDied, match=r"worker.* died") as caught:
        Campaign(1).run(executor)
    assert caught.value.exit_code == 3
    summary = caught.value.summary
    assert isinstance(summary, Summary)
    assert (summary.ended, summary.calls) == ("worker died", 0)
    if isinstance(executor, Processes):
        with pytest.raises(ProcessLookupError):
            wait_for_end(pid)


def wait_for_end(pid: int) -> None:
    """Until the process is gone, which raises ProcessLookupError."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        os.kill(pid, 0)
        os.sched_yield()


@pytest.mark.process
def test_errors_come_back_from_processes() -> None:
    """With their hint."""
    executor = Processes(1)
    try:
        with pytest.raises(EnvironmentUnavailableError) as caught:
            executor.submit(raise_error).result()
    finally:
        executor.stop()
    assert (caught.value.message, caught.value.hint) == ("nothing here", "look elsewhere")


@NEEDS_RAY
@pytest.mark.ray
@pytest.mark.process
def test_errors_come_back_from_ray(cluster: Ray) -> None:
    executor = Ray(workers=1)
    try:
        with pytest.raises(Exception, match="nothing here") as caught:
            executor.submit(raise_error).result()
        error = executor.explain(caught.value)
    finally:
        executor.stop()
    assert isinstance(error, EnvironmentUnavailableError)
    assert error.hint == "look elsewhere"


@NEEDS_RAY
@pytest.mark.ray
@pytest.mark.process
@pytest.mark.xdist_group("ray")
def test_ray_from_the_command_line(cluster: Ray, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fuzz", "--executor", "ray", "--seed", "5", "--calls", "4000", "--json"]) == 0
    there = json.loads(capsys.readouterr().out)
    assert main(["fuzz", "--jobs", "1", "--seed", "5", "--calls", "4000", "--json"]) == 0
    here = json.loads(capsys.readouterr().out)
    assert there["workers"] == 2
    assert there["digest"] == here["digest"]


def raise_error() -> None:
    raise EnvironmentUnavailableError("nothing here", "look elsewhere")


def test_without_ray(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def find(_name: str) -> None:
        raise ImportError("No module named 'ray'")

    monkeypatch.setattr("sdeivirt.fuzz.executors.importlib.import_module", find)
    assert main(["fuzz", "--executor", "ray"]) == 3
    err = capsys.readouterr().err
    assert err == "error: Ray is not installed\nhint: pip install 'sdeivirt[ray]'\n"


@pytest.mark.parametrize("address", ["127.0.0.1:1", "ray://127.0.0.1:1", "127.0.0.1:99999"])
def test_no_such_cluster(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Said at once: Ray itself would wait for minutes."""

    class NotStarted:
        is_initialized = staticmethod(lambda: False)

    monkeypatch.setattr("sdeivirt.fuzz.executors.importlib.import_module", lambda _name: NotStarted)
    with pytest.raises(EnvironmentUnavailableError, match=f"cannot reach the Ray cluster at {address}: "):
        Ray(address)


# -- the long one


@pytest.mark.campaign
@pytest.mark.process
def test_ten_million_calls() -> None:
    """Over all processors, with another seed each time: no disagreement, and everything is reached."""
    seed = int.from_bytes(os.urandom(4), "little")
    print(f"seed {seed:#x}")
    summary = Campaign(seed, calls=10_000_000).run(Processes())
    assert summary.failures == []
    assert summary.calls >= 10_000_000
    assert {policy: part["missing"] for policy, part in summary.as_dict()["coverage"].items()} == {
        "kvm": [],
        "tf-a": [],
    }


def test_worlds_differ_in_machine_only_where_asked() -> None:
    assert next(Campaign(1, machine="unicorn", policies=["tf-a"]).jobs()).world == World("tf-a", machine="unicorn")
