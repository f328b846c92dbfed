# SPDX-License-Identifier: Apache-2.0
"""`sdeivirt fuzz`: random attacks on the service, every step compared with an oracle."""

from __future__ import annotations

import json
import os
import secrets
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from ..errors import EnvironmentUnavailableError, UsageError
from .options import Json, Number, policy_named

if TYPE_CHECKING:
    from ..fuzz.campaign import Executor, Summary
    from ..fuzz.plan import Failure

__all__ = ["fuzz"]

INTERRUPTED = 128 + 2
CALLS = {"core": 1_000_000, "unicorn": 20_000, "qemu": 6_000}
MOST_VCPUS = {"core": 8, "unicorn": 8, "qemu": 8}


def _minutes(_type: Any, tokens: Sequence[Any]) -> float:
    text: str = tokens[0].value
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 1e6:
        raise ValueError(f"{text[:40]!r} are no minutes; write a number, more than 0")
    return value


Minutes = Annotated[float | None, Parameter(converter=_minutes)]


def fuzz(
    *,
    machine: Literal["core", "unicorn", "qemu"] = "core",
    calls: Number | None = None,
    minutes: Minutes = None,
    seed: Number | None = None,
    jobs: Number | None = None,
    policy: str | None = None,
    vcpus: Number = 4,
    output: Path = Path(),
    replay: Path | None = None,
    executor: Literal["process", "ray"] = "process",
    json_: Json = False,
) -> int:
    """Attack the service with random calls, and compare every step with an independent oracle.

    Parameters
    ----------
    machine
        What is attacked: the service alone (core), or all of a machine by a guest that runs on it.
    calls
        How many calls; by default a million on the core, and what takes about as long on a machine.
    minutes
        Stop after so many minutes; without --calls, that is the only limit.
    seed
        What the run follows from; a new one by default.
    jobs
        How many processes work; all cores by default. 1: no process but this one.
    policy
        Only kvm, or only tf-a; both in turn by default.
    vcpus
        How many PEs call.
    output
        Where a failure is written: a file, or a directory.
    replay
        Take the steps of a failure again, and say what each does.
    executor
        What the jobs run on: processes here, or a Ray cluster (RAY_ADDRESS, or one that is started).
    """
    if replay is not None:
        return _replay(replay, json_)
    from ..fuzz.campaign import Campaign, WorkerDied
    from ..fuzz.progress import Progress, render
    from ..fuzz.replay import text_of

    _check(machine, calls, jobs, vcpus)
    policies = ("kvm", "tf-a") if policy is None else (policy_named(policy).name,)
    _check_output(output)
    if calls is None and minutes is None:
        calls = CALLS[machine]
    seed = secrets.randbits(32) if seed is None else seed
    seconds = None if minutes is None else minutes * 60
    campaign = Campaign(seed, machine=machine, policies=policies, vcpus=vcpus, calls=calls, seconds=seconds)
    runs_on = _executor(executor, jobs)
    print(f"seed {seed:#x}, {runs_on.workers} at a time", file=sys.stderr)
    with Progress(calls, seconds) as progress:
        try:
            summary = campaign.run(runs_on, progress)
        except WorkerDied as error:
            progress.close()
            if error.summary is not None:
                _print(error.summary, render, [], json_)
            raise
    try:
        places = [_write(failure, output) for failure in summary.failures[:1]]
    except EnvironmentUnavailableError as error:
        # It has been found all the same, and must not be lost.
        _print(summary, render, [], json_)
        print(f"error: {error.message}; here it is\n{text_of(summary.failures[0])}", file=sys.stderr)
        return 1
    _print(summary, render, places, json_)
    if summary.failures:
        return 1
    return INTERRUPTED if summary.ended == "interrupted" else 0


def _check(machine: str, calls: int | None, jobs: int | None, vcpus: int) -> None:
    if calls == 0 or jobs == 0:
        raise UsageError(f"--{'calls' if calls == 0 else 'jobs'} 0 does nothing", "give 1 or more")
    if jobs is not None and jobs > 1024:
        raise UsageError(f"{jobs} jobs at a time are too many", "as many as there are cores is a good number")
    most = MOST_VCPUS[machine]
    if not 1 <= vcpus <= most:
        raise UsageError(f"the fuzzer cannot have {vcpus} vCPUs", f"1 to {most} can be; 4 is a good number")


def _check_output(output: Path) -> None:
    """Refuse at once what could not be written at the end. Raises UsageError."""
    hint = "give a directory, or the name of a new file, with --output"
    if not os.path.isdir(output) and os.path.lexists(output):
        raise UsageError(f"{output} exists already", hint)
    folder = output if os.path.isdir(output) else output.parent
    if not os.path.isdir(folder):
        raise UsageError(f"there is no directory {folder}", hint)
    if not os.access(folder, os.W_OK | os.X_OK):
        raise UsageError(f"cannot write into {folder}", hint)


def _executor(kind: str, jobs: int | None) -> Executor:
    from ..fuzz.executors import InProcess, Processes, Ray

    if kind == "ray":
        return Ray(workers=jobs)
    return InProcess() if jobs == 1 else Processes(jobs)


def _print(summary: Summary, render: Any, places: list[str], as_json: bool) -> None:
    if as_json:
        print(json.dumps({**summary.as_dict(), "written": places}, indent=2))
    else:
        print(render(summary))
        for place in places:
            print(f"written to {place}; take it again with: sdeivirt fuzz --replay {place}")
    sys.stdout.flush()


def _write(failure: Failure, output: Path) -> str:
    """Write the failure where the user wants it; an existing file is not overwritten by a name of our own."""
    from ..fuzz.replay import save

    path = output
    if os.path.isdir(output):
        for number in range(1_000_000):
            path = output / f"fuzz-{failure.seed:x}{f'-{number}' if number else ''}.json"
            if not path.exists():
                break
    save(failure, path)
    return os.path.relpath(path) if not path.is_absolute() else str(path)


def _replay(path: Path, as_json: bool) -> int:
    """Take the steps of a failure again; 1 if it still fails."""
    from ..fuzz.describe import describe, replay_aloud
    from ..fuzz.replay import load

    failure = load(path)
    said: list[str] = []

    def say(line: str) -> None:
        said.append(line)
        if not as_json:
            print(line, flush=True)

    if failure.world.machine == "core":
        found = replay_aloud(failure, say)
    else:
        from ..fuzz.machines import replay

        for place, step in enumerate(failure.steps, 1):
            say(f"{place:5} {describe(step)}")
        found = replay(failure)
    if as_json:
        result = None if found is None else {"kind": found.kind, "message": found.message, "at": found.at}
        print(json.dumps({"failure": result, "was": {"kind": failure.kind, "message": failure.message}, "steps": said}))
    elif found is None:
        print(f"it does not fail any more; it was: {failure.kind}: {failure.message}")
    else:
        print(f"FAILED: {found.kind}: {found.message}")
    return 0 if found is None else 1
