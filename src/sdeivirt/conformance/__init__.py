# SPDX-License-Identifier: Apache-2.0
"""The conformance suite: what a guest found out about the SDEI implementation that it runs on.

The tests are a guest (guests/conform/), which needs no more than a PL011, PSCI
and an SDEI conduit, and prints a TAP 14 stream. Here is the host's side:

    events.py     the events that our machines have for the suite
    tap.py        the stream, read as it comes and with suspicion
    model.py      verdicts, and what is counted of them
    host.py       answers for tests that need the host to inject
    boot.py       one boot, read and answered
    runner.py     boots the guest, as often as it takes
    logs.py       the same from a log taken elsewhere
    selection.py  ids and prefixes of ids
    known.py      deviations that are on purpose
    reports.py    JSON, JUnit XML, TAP
    table.py      the table for people
    export.py     the guest as an arm64 Image for other machines
"""

from __future__ import annotations

from .events import SUITE_EVENTS
from .logs import report_of_log
from .model import Record, Report, SuiteRun, Verdict
from .runner import Progress, read_catalogue, run_suite

__all__ = ["SUITE_EVENTS", "Progress", "Record", "Report", "SuiteRun", "Verdict", "read_catalogue", "report_of_log",
           "run_suite"]  # fmt: skip
