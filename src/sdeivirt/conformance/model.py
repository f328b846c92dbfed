# SPDX-License-Identifier: Apache-2.0
"""Verdicts of tests, put together: a record for each test, a run for each conduit, a report for all."""

from __future__ import annotations

import enum
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from ..errors import SdeivirtError

__all__ = ["Record", "Report", "SuiteRun", "Verdict"]


class Verdict(enum.Enum):
    """What is known of a test. One that was not run is skipped, never passed."""

    PASS = "PASS"
    FAIL = "FAIL"
    SKIP = "SKIP"


@dataclass(slots=True)
class Record:
    """One test.

    `rule` cites the specification. `message` is the reason of FAIL and SKIP,
    `at` the place in the guest's source, `detail` what the host saw (a report of
    a fault). `notes` are remarks where the rule leaves something open. `verdict` is None as
    long as there is none. `seconds` counts from the test's first line to its
    verdict. `known` is the reason why the policy deviates, if that is on purpose.
    """

    id: str
    rule: str = ""
    title: str = ""
    verdict: Verdict | None = None
    message: str = ""
    at: str = ""
    notes: list[str] = field(default_factory=list)
    detail: str = ""
    seconds: float | None = None
    known: str = ""

    @property
    def group(self) -> str:
        """The first part of the id."""
        return self.id.partition(".")[0]

    @property
    def explained(self) -> bool:
        """A failure that is on purpose."""
        return self.verdict is Verdict.FAIL and bool(self.known)

    @property
    def surprising(self) -> bool:
        """A pass of what is held to deviate."""
        return self.verdict is Verdict.PASS and bool(self.known)

    def fail(self, message: str, detail: str = "") -> None:
        """Record a failure; the first message stays."""
        if self.verdict is not Verdict.FAIL:
            self.verdict, self.message, self.detail = Verdict.FAIL, message, detail


@dataclass(slots=True)
class SuiteRun:
    """All tests by one conduit.

    `platform` is what the guest said of it. `problems` are sentences about the
    run as a whole: with one of them it is not a success, whatever the verdicts.
    `boots` counts how often the guest was started.
    """

    conduit: str
    records: list[Record] = field(default_factory=list)
    platform: dict[str, str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    boots: int = 0
    seconds: float = 0.0

    def settle(self, why: str) -> None:
        """Tests without a verdict have not been run."""
        for record in self.records:
            if record.verdict is None:
                record.verdict, record.message = Verdict.SKIP, f"not run: {why}"

    def mark_known(self, known: Mapping[str, str]) -> None:
        """Mark what deviates on purpose; `known` gives a reason for a test's id."""
        for record in self.records:
            record.known = known.get(record.id, "")

    def counts(self) -> Counter[Verdict | None]:
        """How many tests have which verdict."""
        return Counter(record.verdict for record in self.records)

    def groups(self) -> dict[str, list[Record]]:
        """The records by group, in the order of the suite."""
        found: dict[str, list[Record]] = {}
        for record in self.records:
            found.setdefault(record.group, []).append(record)
        return found

    @property
    def ok(self) -> bool:
        """Whether every failure is known, and the run came to its end."""
        return not self.problems and all(r.explained or r.verdict is not Verdict.FAIL for r in self.records)


@dataclass(slots=True)
class Report:
    """Everything, for whoever prints it.

    `machine` is the kind, or what a log was taken from; `policy` "" and `vcpus` 0 where nothing is known of them.
    `error` is a mistake of the host's, or something missing there, that ended the run early.
    """

    machine: str
    policy: str = ""
    vcpus: int = 0
    version: str = ""
    engine: str = ""
    runs: list[SuiteRun] = field(default_factory=list)
    interrupted: bool = False
    timed_out: bool = False
    error: SdeivirtError | None = None

    @property
    def ok(self) -> bool:
        """Whether the implementation conforms, but for known deviations, as far as it was tested."""
        return bool(self.runs) and all(run.ok for run in self.runs) and not self.interrupted and self.error is None

    def records(self) -> Iterable[Record]:
        """Of all runs."""
        return (record for run in self.runs for record in run.records)

    def totals(self) -> dict[str, int]:
        """Counts of all runs, for people and for JSON."""
        records = list(self.records())
        counts = Counter(record.verdict for record in records)
        return {
            "tests": len(records),
            "passed": counts[Verdict.PASS],
            "failed": counts[Verdict.FAIL],
            "skipped": counts[Verdict.SKIP],
            "known": sum(record.explained for record in records),
            "unexpectedly_passed": sum(record.surprising for record in records),
        }
