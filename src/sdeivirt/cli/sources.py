# SPDX-License-Identifier: Apache-2.0
"""A VM's sources of hardware errors, for people: `status` and `inject-error --list-sources`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..ras.outcome import REASONS
from .output import table

if TYPE_CHECKING:
    from rich.table import Table

    from ..machine.report import ErrorSourceStatus, EventStatus

__all__ = ["sources_table"]


def sources_table(title: str, sources: Sequence[ErrorSourceStatus], events: Sequence[EventStatus]) -> Table:
    """A line for each, with the state in words: whether it is free, and if not, why."""
    made = table(
        title, "source", "event", "type", "priority", "GHES", "reported", "acknowledged", "lost", "queued", "state"
    )
    by_number = {event.number: event for event in events}
    for one in sources:
        event = by_number[one.event]
        free = "free" if any(handler.registered for handler in event.handlers) else REASONS["unregistered"]
        made.add_row(
            str(one.number),
            f"{one.event:#x}",
            event.type,
            event.priority,
            f"version {one.ghes}",
            *map(str, (one.reported, one.acknowledged, one.lost, one.queued)),
            REASONS.get(one.state, one.state) if one.state else free,
        )
    return made
