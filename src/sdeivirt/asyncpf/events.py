# SPDX-License-Identifier: Apache-2.0
"""The SDEI event by which not-present is told, among those that the platform has."""

from __future__ import annotations

from collections.abc import Iterable

from ..errors import EventFileError
from ..sdei.events import EventDefinition, Priority
from .settings import AsyncPfSettings

__all__ = ["with_event"]


def with_event(events: Iterable[EventDefinition], settings: AsyncPfSettings) -> list[EventDefinition]:
    """The events and that one, which may be among them. Raises EventFileError for one that cannot be it."""
    found = list(events)
    if not settings.on:
        return found
    other = "use another, or `--async-pf off`"
    for event in found:
        if event.interrupt == settings.intid:
            raise EventFileError(
                f"interrupt {settings.intid} of event {event.number:#x} is that of asynchronous page faults", other
            )
        if settings.sdei and event.number == settings.event and (event.shared or event.interrupt is not None):
            raise EventFileError(
                f"event {event.number:#x} is that of asynchronous page faults: private, and of no interrupt", other
            )
    if settings.sdei and all(event.number != settings.event for event in found):
        found.append(EventDefinition(settings.event, priority=Priority.CRITICAL))
    return found
