# SPDX-License-Identifier: Apache-2.0
"""`sdeivirt bench`: how fast it is, against what is possible."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import App, Parameter

from ..errors import UsageError
from .options import OptionalSize

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
def postcopy(
    machine: Annotated[
        Literal["unicorn", "qemu", "linux"], Parameter(help="Which guest is measured: the small one, or Linux.")
    ] = "unicorn",
    /,
    *,
    latency: Annotated[
        list[float] | None, Parameter(help="Milliseconds for which a page is waited; 3.", consume_multiple=True)
    ] = None,
    threads: Annotated[
        list[int] | None,
        Parameter(help="How many threads walk over memory, beside one that computes.", consume_multiple=True),
    ] = None,
    rounds: Annotated[int, Parameter(help="How often each pair is measured.")] = 5,
    bandwidth: Annotated[OptionalSize, Parameter(help="The most that is sent in a second.")] = None,
    prefetch: Annotated[int, Parameter(help="How many pages are asked for where one is needed.")] = 1,
    background: Annotated[bool, Parameter(help="Send what nobody has asked for, too.", negative="")] = False,
    sweep: Annotated[bool, Parameter(help="Latencies of 0.1 to 10 ms, 1 to 16 threads.", negative="")] = False,
    quick: Annotated[bool, Parameter(help="Few pages: a look, not a figure.", negative="")] = False,
    check: Annotated[bool, Parameter(help="Exit with 1 if a target is missed.", negative="")] = False,
    kernel: Annotated[Path | None, Parameter(help="For linux: the Image that guests/linux/fetch.py makes.")] = None,
    initrd: Annotated[Path | None, Parameter(help="For linux: its initrd.cpio.gz.")] = None,
    plot: Annotated[Path | None, Parameter(help="Draw it: FILE.svg or FILE.png (needs the extra plot).")] = None,
    json_: Annotated[Path | None, Parameter(name="--json", help="Write everything to this file; - prints it.")] = None,
) -> int:
    """Measure what asynchronous page faults are worth to a guest that works where it has gone to before its pages.

    Each run is a post-copy between two processes, each figure is measured with them and without in turn.
    Five rounds take some minutes, and --quick --rounds 1 half of one; --sweep takes many times as long.
    Figures for 3 ms are held against targets, but for those of --quick.
    """
    from ..benchmarks.postcopy import SWEEP_LATENCIES, SWEEP_THREADS, PostcopyPlan, kit_for, measure
    from .session import signals_end_us

    files = _linux_files("qemu" if machine == "linux" else machine, rounds, kernel, initrd)
    if (files is not None) != (machine == "linux"):
        raise UsageError("Linux needs its files, and nothing else does", "guests/linux/fetch.py; --kernel, --initrd")
    if plot is not None:
        from ..benchmarks.plot import check_plot, plot_postcopy

        check_plot(plot)
    _check_writable(json_)
    _check_numbers(latency or [], threads or [], prefetch)
    plan = PostcopyPlan(
        latencies=tuple(each / 1e3 for each in latency or []) or (SWEEP_LATENCIES if sweep else (0.003,)),
        threads=tuple(threads or (SWEEP_THREADS if sweep else ())),
        rounds=rounds,
        bandwidth=bandwidth,
        rest=background,
        prefetch=prefetch,
        waiting=0.2 if quick else 0.5 if sweep else 0.8 if machine == "linux" else 1.6,
        most=128 if quick else 512 if sweep else 1024,
        targets=not quick,
    )
    with signals_end_us():
        found = measure(kit_for(machine, files), plan, lambda what: print(what, file=sys.stderr, flush=True))
    if plot is not None:
        plot_postcopy(found.points, plot)
    _write_all(found.rows, found.points, json_)
    return 1 if check and any(row.met is False for row in found.rows) else 0


def _check_numbers(latencies: Sequence[float], threads: Sequence[int], prefetch: int) -> None:
    """Raises UsageError for what cannot be measured."""
    if not all(0 <= each <= 1000 for each in latencies):
        raise UsageError("a latency is 0 to 1000 ms", "such as --latency 1 --latency 3")
    if not all(1 <= each <= 32 for each in threads):
        raise UsageError("1 to 32 threads walk over memory", "such as --threads 1 --threads 4")
    if not 1 <= prefetch <= 512:
        raise UsageError(f"{prefetch} pages cannot be fetched at once", "1 to 512 can")


def _check_writable(file: Path | None) -> None:
    """Whether there can be such a file, before minutes are spent. Raises UsageError."""
    if file is None or str(file) == "-":
        return
    try:
        new = not file.exists()
        if new or file.is_file() or file.is_dir():  # a pipe's reader would be told that this was all
            with file.open("a"):
                pass
        if new:
            file.unlink()
    except OSError as error:
        hint = "name another file, or - to print it"
        raise UsageError(f"{file} cannot be written: {error.strerror}", hint) from error


def _write_all(rows: Sequence[Row], points: Sequence[dict[str, Any]], json_: Path | None) -> None:
    from ..benchmarks.report import render

    if json_ is not None:
        shown = [{**dataclasses.asdict(row), "met": row.met} for row in rows]
        text = json.dumps({"rows": shown, "points": list(points)}, indent=2)
        if str(json_) == "-":
            print(text)
            return
        json_.write_text(text + "\n")
    print(render(rows))


@app.command
def ras(
    *,
    kernel: Annotated[Path | None, Parameter(help="The Image that guests/linux/fetch.py makes.")] = None,
    initrd: Annotated[Path | None, Parameter(help="Its initrd.cpio.gz.")] = None,
    uefi: Annotated[Path | None, Parameter(help="The UEFI firmware; that of qemu-efi-aarch64 if there is.")] = None,
    rounds: Annotated[int, Parameter(help="How often each boot is measured; reports by the hundred.")] = 5,
    quick: Annotated[bool, Parameter(help="Fewer reports: a look, not a figure.", negative="")] = False,
    json_: Annotated[bool, Parameter(name="--json", help="Print JSON.", negative="")] = False,
) -> int:
    """Measure how long a report of a hardware error takes to reach Linux, and what it costs to boot by ACPI.

    A report is measured from its injection until the handler that has read it completes, on an idle guest and
    on a loaded one, against an event to a client. Boots are by device tree, ACPI and UEFI, in turn.
    """
    from ..benchmarks.ras import measure

    files = _linux_files("qemu", rounds, kernel, initrd)
    if files is None:
        raise UsageError(
            "errors are reported to Linux, which needs its files", "guests/linux/fetch.py; --kernel, --initrd"
        )
    rows = measure(rounds, quick, files, uefi, lambda what: print(what, file=sys.stderr, flush=True))
    return _report(rows, json_, False)


@app.command(name="lazy-restore")
def lazy_restore(
    machine: Annotated[Literal["unicorn", "qemu"], Parameter(help="Which machine is measured.")] = "unicorn",
    /,
    *,
    size: Annotated[list[int] | None, Parameter(help="MiB of memory; 64, 256 and 1024.", consume_multiple=True)] = None,
    rounds: Annotated[int, Parameter(help="How often each is measured.")] = 5,
    quick: Annotated[bool, Parameter(help="Less memory: a look, not a figure.", negative="")] = False,
    json_: Annotated[bool, Parameter(name="--json", help="Print JSON.", negative="")] = False,
) -> int:
    """Measure how soon a guest that was saved goes on, and is done with some work: lazily, and after all was read."""
    from ..benchmarks.lazy_restore import SIZES, measure
    from .session import signals_end_us

    _linux_files(machine, rounds, None, None)
    sizes = tuple(size or ((16, 64) if quick else SIZES))
    if not all(4 <= each <= 4096 for each in sizes):
        raise UsageError("4 to 4096 MiB of memory can be restored", "such as --size 64 --size 256")
    with signals_end_us():
        rows = list(measure(machine, rounds, sizes, lambda what: print(what, file=sys.stderr, flush=True)))
    return _report(rows, json_, False)


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
