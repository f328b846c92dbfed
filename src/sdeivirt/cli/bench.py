# SPDX-License-Identifier: Apache-2.0
"""`sdeivirt bench`: how fast it is, against what is possible."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import App, Parameter

from ..errors import UsageError

if TYPE_CHECKING:
    from ..benchmarks.qemu import LinuxFiles
    from ..benchmarks.report import Row

app = App(name="bench", help="Measure the service and the machines against baselines of the same run.")


@app.default
def bench(
    machine: Annotated[Literal["unicorn", "qemu"], Parameter(help="Which machine is measured.")] = "unicorn",
    /,
    *,
    rounds: Annotated[int, Parameter(help="How often each pair is measured.")] = 7,
    quick: Annotated[bool, Parameter(help="Fewer turns: a look, not a figure.", negative="")] = False,
    check: Annotated[bool, Parameter(help="Exit with 1 if a target is missed.", negative="")] = False,
    kernel: Annotated[Path | None, Parameter(help="For qemu: the Image that guests/linux/fetch.py makes.")] = None,
    initrd: Annotated[Path | None, Parameter(help="For qemu: its initrd.cpio.gz.")] = None,
    json_: Annotated[bool, Parameter(name="--json", help="Print JSON.", negative="")] = False,
) -> int:
    """Measure the service and a machine; every figure stands beside its baseline of the same run."""
    files = _linux_files(machine, rounds, kernel, initrd)
    rows: list[Row]
    if machine == "unicorn":
        from ..benchmarks import run_all

        print("measuring, a few seconds a round ...", file=sys.stderr)
        rows = run_all(rounds, quick)
    else:
        from ..benchmarks.qemu import measure

        rows = measure(rounds, quick, files, lambda what: print(what, file=sys.stderr, flush=True))
    return _report(rows, json_, check)


def _linux_files(machine: str, rounds: int, kernel: Path | None, initrd: Path | None) -> LinuxFiles | None:
    """The kernel to measure with, if there is one. Raises UsageError for what cannot be measured."""
    from ..benchmarks.qemu import LinuxFiles

    if not 1 <= rounds <= 1000:
        raise UsageError(f"{rounds} rounds cannot be measured", "1 to 1000 can; 7 is a good number")
    if (kernel is None) != (initrd is None) or (kernel is not None and machine != "qemu"):
        raise UsageError("a kernel and an initial RAM disk go together, for machine qemu", "give both, or none")
    return LinuxFiles(kernel, initrd) if kernel is not None and initrd is not None else None


def _report(rows: Sequence[Row], json_: bool, check: bool) -> int:
    from ..benchmarks.report import render

    if json_:
        print(json.dumps([{**dataclasses.asdict(row), "met": row.met} for row in rows], indent=2))
    else:
        print(render(rows))
    return 1 if check and any(row.met is False for row in rows) else 0


@app.command
def migrate(
    machine: Annotated[Literal["unicorn", "qemu"], Parameter(help="Which machine is measured.")] = "unicorn",
    /,
    *,
    rounds: Annotated[int, Parameter(help="How often each pair is measured.")] = 5,
    quick: Annotated[bool, Parameter(help="Less memory: a look, not a figure.", negative="")] = False,
    check: Annotated[bool, Parameter(help="Exit with 1 if a target is missed.", negative="")] = False,
    kernel: Annotated[Path | None, Parameter(help="For qemu: the Image that guests/linux/fetch.py makes.")] = None,
    initrd: Annotated[Path | None, Parameter(help="For qemu: its initrd.cpio.gz.")] = None,
    json_: Annotated[bool, Parameter(name="--json", help="Print JSON.", negative="")] = False,
) -> int:
    """Measure the migration of running guests: against a raw copy, against QEMU's own, and what the guest loses."""
    from ..benchmarks.migrate import measure

    files = _linux_files(machine, rounds, kernel, initrd)
    rows = list(measure(machine, rounds, quick, files, lambda what: print(what, file=sys.stderr, flush=True)))
    return _report(rows, json_, check)


@app.command
def pager(
    *,
    rounds: Annotated[int, Parameter(help="How often each pair is measured.")] = 5,
    quick: Annotated[bool, Parameter(help="Fewer pages: a look, not a figure.", negative="")] = False,
    check: Annotated[bool, Parameter(help="Exit with 1 if a target is missed.", negative="")] = False,
    json_: Annotated[bool, Parameter(name="--json", help="Print JSON.", negative="")] = False,
) -> int:
    """Measure the fetching of pages that come after their guest: against a bare socket, and how long a fault waits."""
    from ..benchmarks.pager import measure

    if not 1 <= rounds <= 1000:
        raise UsageError(f"{rounds} rounds cannot be measured", "1 to 1000 can; 5 is a good number")
    return _report(list(measure(rounds, quick, lambda what: print(what, file=sys.stderr, flush=True))), json_, check)


@app.command
def memory(
    machine: Annotated[
        Literal["core", "unicorn", "qemu"] | None, Parameter(help="What is measured; core and unicorn by default.")
    ] = None,
    /,
    *,
    events: Annotated[int, Parameter(help="How many events are delivered and completed on each.")] = 10_000_000,
    check: Annotated[bool, Parameter(help="Exit with 1 if memory grows.", negative="")] = False,
    json_: Annotated[bool, Parameter(name="--json", help="Print JSON.", negative="")] = False,
) -> int:
    """Measure whether memory grows with the number of events: some minutes for ten million.

    The resident set of this process, and of QEMU's, is taken at each tenth;
    after the first fifth it must not grow by more than 1 MiB.
    """
    from ..benchmarks.memory import SAMPLES, measure, render_samples
    from ..benchmarks.report import render

    if not SAMPLES <= events <= 10_000_000_000:
        raise UsageError(f"{events} events cannot be measured", f"{SAMPLES} to ten thousand million can")
    rows: list[Row] = []
    samples = {}
    for name in ("core", "unicorn") if machine is None else (machine,):
        found, growths = measure(name, events, lambda line: print(line, file=sys.stderr, flush=True))
        samples[name] = found
        rows += growths
    if json_:
        print(
            json.dumps(
                {
                    "samples": {name: [dataclasses.asdict(one) for one in found] for name, found in samples.items()},
                    "growth": [{**dataclasses.asdict(row), "met": row.met} for row in rows],
                },
                indent=2,
            )
        )
    else:
        print("\n".join(render_samples(name, found) for name, found in samples.items()))
        print()
        print(render(rows))
    return 1 if check and any(row.met is False for row in rows) else 0
