# SPDX-License-Identifier: Apache-2.0
"""`sdeivirt conform`."""

from __future__ import annotations

import json
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from types import FrameType, TracebackType
from typing import Annotated

from cyclopts import Parameter

from ..conformance import Progress, Report, read_catalogue, report_of_log, run_suite
from ..conformance.export import export
from ..conformance.reports import to_json, to_junit, to_tap
from ..conformance.selection import check_ids, selected, words_for
from ..conformance.table import catalogue_table, render
from ..errors import TimeLimitError, UsageError
from ..machine import MachineConfig
from ..smccc.ids import Conduit
from . import INTERRUPTED
from .options import Json, Seconds, SuiteOptions, policy_named
from .output import show

__all__ = ["conform"]

QUIET_SECONDS = 10.0


def _complete_ids(_context: object) -> list[str]:
    return words_for(record.id for record in read_catalogue())


def conform(
    *ids: Annotated[str, Parameter(completer=_complete_ids)],
    options: SuiteOptions = SuiteOptions(),  # noqa: B008 (frozen)
    timeout: Seconds = 60.0,
    verbose: bool = False,
    json_: Json = False,
    junit: Path | None = None,
    tap: Path | None = None,
    list_: bool = False,
    from_log: Annotated[Path | None, Parameter(allow_leading_hyphen=True)] = None,
    export_: Annotated[Path | None, Parameter(name="--export")] = None,
) -> int:
    """Hold an SDEI implementation to the specification: one test for each rule.

    Exit codes: 0 every test passed, was skipped, or deviates as is known of
    the policy; 1 a test failed, or the guest did not come to its end; 124 it
    did not begin in time; 128 + n after signal n, with what was done so far.

    Parameters
    ----------
    ids
        Tests to run, by id, group, or the beginning of ids: state,
        state.private. or bind.release; all if none is given.
    timeout
        Seconds that one test may take. One that takes longer has failed, and
        the guest starts again behind it.
    verbose
        Give every test a line, with the rule that it is about.
    junit
        A file for the report as JUnit XML.
    tap
        A file for the report in TAP 14.
    list_
        List the tests instead of running them.
    from_log
        Report on a log of the guest's serial port, taken elsewhere, instead
        of running a machine; - reads standard input.
    export_
        Write the guest as an arm64 Image, with a README, into a directory,
        to be run under another hypervisor or firmware.
    """
    if sum((list_, from_log is not None, export_ is not None)) > 1:
        raise UsageError("--list, --from-log and --export exclude each other", "give one of them")
    if export_ is not None:
        if ids:
            raise UsageError("the exported guest has all tests", "choose some with only=ID in its boot arguments")
        for path in export(export_):
            print(path)
        return 0
    if list_:
        _list(ids, json_)
        return 0
    for path in filter(None, (junit, tap)):
        if not path.parent.is_dir() or path.is_dir():
            raise UsageError(f"cannot write {path}", "give the path of a file in a directory that exists")
    ended: list[int] = []
    if from_log is not None:
        report = _of_log(from_log, options.policy, ids)
    else:
        with _signals_interrupt(ended):
            report = _of_machine(options, ids, timeout)
    if json_:
        print(json.dumps(to_json(report), indent=2))
    else:
        show(*render(report, verbose=verbose))
    sys.stdout.flush()
    _write(junit, to_junit, report)
    _write(tap, to_tap, report)
    if report.error is not None:
        raise report.error
    if report.interrupted:
        return 128 + ended[0] if ended else INTERRUPTED
    if report.timed_out:
        raise TimeLimitError(
            f"the guest did not begin a test within {timeout:g} s", "allow more with --timeout SECONDS"
        )
    return 0 if report.ok else 1


@contextmanager
def _signals_interrupt(seen: list[int]) -> Iterator[None]:
    """SIGTERM and SIGHUP do what Ctrl-C does: what was done so far is reported. `seen` gets their numbers."""

    def interrupt(number: int, _frame: FrameType | None) -> None:
        seen.append(number)
        raise KeyboardInterrupt

    saved = {number: signal.signal(number, interrupt) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in saved.items():
            signal.signal(number, handler)


def _list(ids: tuple[str, ...], as_json: bool) -> None:
    records = read_catalogue()
    words = check_ids(ids, [record.id for record in records])
    records = [record for record in records if selected(record.id, words)]
    if as_json:
        kept = ("id", "rule", "title")
        print(json.dumps([{key: asdict(record)[key] for key in kept} for record in records], indent=2))
    else:
        show(catalogue_table(records))


def _of_log(path: Path, policy: str, ids: tuple[str, ...]) -> Report:
    if policy:
        policy_named(policy)
    if str(path) == "-":
        return report_of_log(sys.stdin.buffer.read(), "standard input", policy, ids)
    try:
        return report_of_log(path.read_bytes(), str(path), policy, ids)
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}", "give the log of a serial port") from error


def _of_machine(options: SuiteOptions, ids: tuple[str, ...], timeout: float) -> Report:
    config = MachineConfig(
        vcpus=options.vcpus,
        policy=policy_named(options.policy or "kvm"),
        seed=options.seed,
        engine=options.engine(),
    )
    words = check_ids(ids, [record.id for record in read_catalogue()]) if ids else []
    conduits = [conduit for conduit in Conduit if options.conduit in ("both", conduit.value)]
    with _LiveLine() as live:
        return run_suite(options.kind, config, conduits=conduits, only=words, limit=timeout, progress=live.show)


def _write(path: Path | None, form: Callable[[Report], str], report: Report) -> None:
    if path is None:
        return
    try:
        path.write_text(form(report), encoding="utf-8")
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror}", "choose another file") from error


class _LiveLine:
    """Counts and the test that runs, on one line of the terminal; a line now and then where standard error is none."""

    def __init__(self) -> None:
        self._on = sys.stderr.isatty()
        self._next = time.monotonic() + QUIET_SECONDS

    def show(self, progress: Progress) -> None:
        if not self._on and time.monotonic() < self._next:
            return
        done = progress.passed + progress.failed + progress.skipped
        text = f"{progress.conduit} {done}/{progress.tests}: {progress.passed} passed, {progress.failed} failed, "
        text += f"{progress.skipped} skipped  {progress.running}"
        if not self._on:
            self._next = time.monotonic() + QUIET_SECONDS
            print(text, file=sys.stderr, flush=True)
            return
        sys.stderr.write(f"\r\x1b[K{text[: shutil.get_terminal_size().columns - 1]}")
        sys.stderr.flush()

    def __enter__(self) -> _LiveLine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._on:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()
