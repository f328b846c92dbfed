# SPDX-License-Identifier: Apache-2.0
"""A VM's sources of hardware errors, for people: `status` and `inject-error --list-sources`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from ..ras.outcome import REASONS
from .output import table

if TYPE_CHECKING:
    from rich.table import Table

    from ..machine.report import ErrorSourceStatus, EventStatus

__all__ = ["sources_json", "sources_table"]


def _state(one: ErrorSourceStatus, event: EventStatus) -> str:
    """In a word: whether it is free, and if not, why."""
    return one.state or ("free" if any(handler.registered for handler in event.handlers) else "unregistered")


def sources_json(sources: Sequence[ErrorSourceStatus], events: Sequence[EventStatus]) -> list[dict[str, Any]]:
    """Of each source, all that the table has."""
    by_number = {event.number: event for event in events}
    return [
        asdict(one)
        | {
            "type": by_number[one.event].type,
            "priority": by_number[one.event].priority,
            "state": _state(one, by_number[one.event]),
        }
        for one in sources
    ]


def sources_table(title: str, sources: Sequence[ErrorSourceStatus], events: Sequence[EventStatus]) -> Table:
    """A line for each, with the state in words: whether it is free, and if not, why."""
    made = table(
        title, "source", "event", "type", "priority", "GHES", "reported", "acknowledged", "lost", "queued", "state"
    )
    by_number = {event.number: event for event in events}
    for one in sources:
        event = by_number[one.event]
        state = _state(one, event)
        made.add_row(
            str(one.number),
            f"{one.event:#x}",
            event.type,
            event.priority,
            f"version {one.ghes}",
            *map(str, (one.reported, one.acknowledged, one.lost, one.queued)),
            REASONS.get(state, state),
        )
    return made
