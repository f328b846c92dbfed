# SPDX-License-Identifier: Apache-2.0
"""What becomes of a report of an error, in words that need no machine: for the desk, and for those who ask it."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import UsageError

__all__ = ["REASONS", "WAYS", "Outcome", "check_limit"]

_MAX_LIMIT = 10_000_000  # seconds, and a client may wait somewhat longer

# What to do where the report before has not been acknowledged.
WAYS = ("wait", "fail", "queue")

# Why a report has not been acknowledged, for people; `status` has the words.
REASONS = {
    "": "the guest is about to take it",
    "unregistered": "the guest has not registered its event",
    "disabled": "the guest has its event disabled",
    "running": "the handler of its event runs",
    "masked": "the PE that is to take its event has masked events",
    "offline": "the PE that is to take its event is off",
    "busy": "the PE that is to take its event runs another handler",
    "paused": "the VM is paused",
    "moving": "the guest is being moved",
    "delivered": "its handler runs",
    "unread": "its handler has ended without reading it",
    "dropped": "its event was taken back",
    "absent": "the memory of its block is not here yet",
    "panicked": "the guest's kernel has panicked",
}


def check_limit(seconds: float) -> None:
    """Whether a client's report can wait so long. Raises UsageError."""
    if not 0 < seconds <= _MAX_LIMIT:
        raise UsageError(
            f"a report cannot wait for {seconds:g} seconds", f"it can for more than 0, up to {_MAX_LIMIT:,}"
        )


@dataclass(frozen=True, slots=True)
class Outcome:
    """What has become of a report.

    `outcome` is "acknowledged", "panicked" (the guest's kernel, on reading it) or "queued". `vcpu` is the
    PE whose handler read it; `seconds` the time from injection to the end of the handler. None where there is none.
    """

    source: int
    event: int
    outcome: str
    vcpu: int | None = None
    seconds: float | None = None
