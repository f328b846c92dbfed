# SPDX-License-Identifier: Apache-2.0
"""Runs the suite on a machine: boots the guest, reads along, answers it, and boots again behind a test that killed it.

No test is run twice: each boot begins behind the last test that has begun, and
a guest that goes back is ended. So the number of boots is bounded by that of tests.
"""

from __future__ import annotations

import importlib.metadata
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ..errors import EnvironmentUnavailableError, SdeivirtError, TimeLimitError, UsageError
from ..guests import program_path
from ..machine import ExitReason, MachineConfig, open_machine
from ..smccc.ids import Conduit
from .boot import Boot
from .events import suite_events
from .known import known_deviations
from .model import Record, Report, SuiteRun, Verdict
from .tap import NO_VERDICT, Event, Kind, TapParser

__all__ = ["Progress", "read_catalogue", "run_suite", "suite_config"]

DEFAULT_LIMIT = 60.0
_MAX_BOOTARGS = 2000  # what guests/lib/boot.c has room for, and some reserve
_CATALOGUE_LIMIT = 30.0


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a run is, for a line on a terminal: told when a test begins, and when it ends."""

    conduit: str
    tests: int
    passed: int
    failed: int
    skipped: int
    running: str


def suite_config(config: MachineConfig) -> MachineConfig:
    """The configuration of a machine for the suite: its events, and no second start by the guest's own doing."""
    return replace(config, name="conform", events=suite_events(config.policy), restart=False)


def read_catalogue(guest: Path | None = None) -> list[Record]:
    """All tests of the suite, in its order; the guest lists them on the embedded machine.

    Raises EnvironmentUnavailableError where there is no guest, TimeLimitError
    and SdeivirtError where it does not answer as it should.
    """
    parser = TapParser()
    with open_machine("unicorn", suite_config(MachineConfig(vcpus=1, bootargs="list=1"))) as machine:
        machine.console = lambda data: _drop(parser.feed(data))
        machine.load(guest if guest is not None else program_path("conform"))
        machine.start()
        outcome = machine.wait(_CATALOGUE_LIMIT)
    stream = parser.stream
    if outcome.reason is ExitReason.TIME_LIMIT:
        raise TimeLimitError(f"the guest did not list its tests within {_CATALOGUE_LIMIT:g} s")
    if stream is None or not stream.done or len(stream.records) != stream.plan:
        raise EnvironmentUnavailableError(
            "the guest does not list its tests", "it may not be the one of this version: build the guests again"
        )
    return list(stream.records.values())


def run_suite(
    kind: str,
    config: MachineConfig,
    *,
    conduits: Sequence[Conduit] = (Conduit.HVC, Conduit.SMC),
    only: Sequence[str] = (),
    limit: float = DEFAULT_LIMIT,
    guest: Path | None = None,
    progress: Callable[[Progress], None] = lambda _progress: None,
) -> Report:
    """Run the suite on machines of a kind, by each conduit in turn.

    `only` are ids and prefixes, as :func:`~.selection.check_ids` gives them. `limit`
    is the time in seconds that a test may take, and the guest before its first.
    `guest` is another program that speaks the protocol.

    What happens to the guest is in the report; so is KeyboardInterrupt, and a
    SdeivirtError once there is something to report. Raises UsageError,
    EnvironmentUnavailableError and ImageError where not even the first boot comes about.
    """
    config = suite_config(config)
    report = Report(kind, config.policy.name, config.vcpus, engine=_engine(kind))
    image = guest if guest is not None else program_path("conform")
    for conduit in conduits:
        session = _Session(kind, replace(config, conduit=conduit), image, only, limit, progress)
        report.runs.append(session.run)
        began = time.monotonic()
        try:
            session.all_boots()
        except KeyboardInterrupt:
            report.interrupted = True
        except SdeivirtError as error:
            if not session.has_results and len(report.runs) == 1:
                raise
            report.error = error
            session.run.problems.append(str(error))
        finally:
            session.end("interrupted" if report.interrupted else "the guest left it out")
            session.run.seconds = time.monotonic() - began
            report.engine = session.engine or report.engine
            report.timed_out |= session.timed_out
        if report.interrupted or report.error is not None:
            break
    for run in report.runs:
        run.mark_known(known_deviations(config.policy.name))
        report.version = report.version or run.platform.get("version", "")
    return report


def _drop(_value: object) -> None:
    pass


def _engine(kind: str) -> str:
    return f"Unicorn {importlib.metadata.version('unicorn')}" if kind == "unicorn" else ""


class _Session:
    """One conduit."""

    def __init__(
        self,
        kind: str,
        config: MachineConfig,
        image: Path,
        only: Sequence[str],
        limit: float,
        progress: Callable[[Progress], None],
    ) -> None:
        self._kind = kind
        self._config = config
        self._image = image
        self._limit = limit
        self._progress = progress
        self.run = SuiteRun(config.conduit.value)
        self.engine = ""
        self.timed_out = False
        self._records: dict[str, Record] = {}
        self._ran: dict[str, None] = {}  # in all boots
        self._lost = False  # the guest does not begin where it is told to
        self._parser = TapParser()
        events = ",".join(f"{event.number:#x}" for event in config.events)
        self._bootargs = f"host=1 events={events}" + (f" only={','.join(only)}" if only else "")
        if len(self._bootargs) > _MAX_BOOTARGS:
            raise UsageError("these are too many ids for the guest's boot arguments", "select groups, or prefixes")

    # -- boots

    def all_boots(self) -> None:
        """Until every test has been run, or no further one can be."""
        first: str | None = None
        fruitless = 0
        while True:
            before = len(self._ran)
            complete = self._boot(first)
            left = self._left()
            if complete or not left or self._lost:
                return
            # Once more after an unlucky start, which is a problem of its own; but not if nothing has ever run.
            fruitless = fruitless + 1 if len(self._ran) == before else 0
            if fruitless > 1 or not self._ran:
                return
            first = left[0]

    def _left(self) -> list[str]:
        """The tests behind the last that began."""
        ids = list(self._records)
        last = max((ids.index(test) for test in self._ran), default=-1)
        return ids[last + 1 :]

    def _boot(self, first: str | None) -> bool:
        """Start the guest at a test. True: it came to the end of the suite."""
        self.run.boots += 1
        self._parser = TapParser()
        config = replace(self._config, bootargs=self._bootargs + (f" from={first}" if first else ""))
        with open_machine(self._kind, config) as machine:
            boot = Boot(self._parser, machine, self._limit, self._event)
            machine.load(self._image)
            why, detail = boot.to_the_end()
        self.engine = self.engine or boot.engine
        return self._take(why, detail, boot.timed_out)

    def _take(self, why: str, detail: str, timed_out: bool = False) -> bool:
        """What a boot has brought; True if it came to the end."""
        self._parser.finish(f"{NO_VERDICT}: {why}" if why else NO_VERDICT, detail)
        stream = self._parser.stream
        self._collect()
        if stream is not None and stream.done:
            if why:
                self.run.problems.append(f"after its last test {why}")
            if stream.nothing and not self._ran:
                self.run.problems.append(f"there was no test to run: {stream.nothing}")
            if stream.plan is not None and len(stream.records) < stream.plan:
                self.run.problems.append(f"the guest named {len(stream.records)} of {stream.plan} tests")
            return True
        reason = f"the guest bailed out: {stream.bail}" if stream is not None and stream.bail is not None else why
        if stream is None or not stream.ran:
            self.timed_out |= timed_out and not self._ran
            problem = f"no test was run after start number {self.run.boots}: {reason}"
            self.run.problems.append(f"{problem}\n{detail}" if detail else problem)
        elif not self._lost and stream.blameless:
            problem = f"after {stream.ran[-1]} had passed or was skipped, the guest did not go on: {reason}"
            self.run.problems.append(f"{problem}\n{detail}" if detail else problem)
        return False

    def _collect(self) -> None:
        stream = self._parser.stream
        if stream is None:
            return
        self.run.platform = self.run.platform or stream.platform
        for test, record in stream.records.items():
            mine = self._records.get(test)
            if mine is None or mine.verdict is None:
                self._records[test] = record
        self._ran.update(dict.fromkeys(stream.ran))

    @property
    def has_results(self) -> bool:
        """Whether any test has begun."""
        return bool(self._ran)

    def end(self, why: str) -> None:
        """Put the run together, whatever has happened. A test that we have interrupted has not been run."""
        self._collect()
        self.run.records = list(self._records.values())
        self.run.settle(self.run.problems[-1].partition("\n")[0] if self.run.problems else why)

    # -- what the guest says

    def _event(self, event: Event) -> str:
        """A line of the guest's; the answer is a reason to end it, or ""."""
        stream = self._parser.stream
        assert stream is not None
        if event.kind is Kind.RUN and (event.text in self._ran or stream.ran.count(event.text) > 1):
            self.run.problems.append(f"the guest began {event.text} again")
            stream.running = None  # what it was the first time counts
            self._lost = True
            return f"it began {event.text} again"
        if event.kind is Kind.START and len(self._parser.streams) > 1:
            self._parser.streams.pop()
            return "it began anew"
        if event.kind in (Kind.RUN, Kind.VERDICT):
            self._tell(event.text if event.kind is Kind.RUN else "")
        return ""

    def _tell(self, running: str) -> None:
        stream = self._parser.stream
        assert stream is not None
        verdicts = {test: record.verdict for test, record in (self._records | stream.records).items()}
        for test in self._ran:
            verdicts[test] = self._records[test].verdict
        found = list(verdicts.values())
        passed, failed, skipped = (found.count(verdict) for verdict in (Verdict.PASS, Verdict.FAIL, Verdict.SKIP))
        self._progress(Progress(self.run.conduit, len(found), passed, failed, skipped, running))
