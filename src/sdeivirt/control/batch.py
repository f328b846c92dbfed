# SPDX-License-Identifier: Apache-2.0
"""A guest run to its end, and what it printed: for selftests."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ..machine import ExitReason, FaultReport, Machine

__all__ = ["Transcript", "run_to_end", "sections"]

_RESULT = re.compile(r"\s*Result:\s+(OK|FAILED\b.*)")
_SECTION = re.compile(r"---\s+(\S+)")
_PAIR = re.compile(r"\s+([^:]+):\s+(\S.*)")


@dataclass(frozen=True, slots=True)
class Transcript:
    """A run that is over. `result` is the guest's verdict, "" where its last line is none."""

    reason: ExitReason
    faults: list[FaultReport]
    output: str
    result: str

    @property
    def ok(self) -> bool:
        """Whether the guest powered off after saying that all is well."""
        return self.reason is ExitReason.POWER_OFF and self.result == "OK"

    @property
    def timed_out(self) -> bool:
        return self.reason is ExitReason.TIME_LIMIT


def run_to_end(
    machine: Machine, guest: Path, limit: float | None = None, echo: Callable[[bytes], None] | None = None
) -> Transcript:
    """Load and run a guest; after `limit` seconds stop it.

    `echo` is given the output as it comes, on the machine's thread. Raises
    ImageError, and what the machine raises.
    """
    output = bytearray()

    def console(data: bytes) -> None:
        output.extend(data)
        if echo is not None:
            echo(data)

    machine.console = console
    machine.load(guest)
    machine.start()
    outcome = machine.wait(limit)
    text = output.decode("utf-8", "replace").replace("\r\n", "\n")
    lines = text.split("\n")
    while lines and not lines[-1].strip():
        lines.pop()
    verdict = _RESULT.fullmatch(lines[-1].rstrip()) if lines else None
    return Transcript(outcome.reason, outcome.faults, text, verdict.group(1) if verdict else "")


def sections(output: str) -> dict[str, dict[str, str]]:
    """The `--- NAME` parts of a selftest's output, each with its `Key: value` lines.

    A line without a key goes on with the value before it.
    """
    found: dict[str, dict[str, str]] = {}
    pairs: dict[str, str] | None = None
    key = ""
    for line in output.splitlines():
        if header := _SECTION.match(line.strip()):
            pairs, key = found.setdefault(header.group(1), {}), ""
        elif not line.strip():
            pairs = None
        elif pairs is not None:
            if pair := _PAIR.fullmatch(line):
                key = pair.group(1)
                pairs[key] = pair.group(2).rstrip()
            elif key:
                pairs[key] += " " + line.strip()
    return found
