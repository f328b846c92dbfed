# SPDX-License-Identifier: Apache-2.0
"""Sources of hardware errors, as the HEST tells a guest of them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from ..errors import EventFileError
from ..sdei.events import MAX_EVENT, EventDefinition, Priority

__all__ = ["MAX_SOURCES", "STANDARD_EVENTS", "STANDARD_SOURCES", "ErrorSource", "check_sources"]

MAX_SOURCES = 64
GHES_VERSIONS = (1, 2)


@dataclass(frozen=True, slots=True)
class ErrorSource:
    """A generic hardware error source that is announced by an SDEI event. Raises EventFileError for what cannot be.

    `number` is its id in the HEST. `ghes` is the version: of 2, the guest acknowledges each report
    in a register of its own; of 1, by clearing the block.
    """

    number: int
    event: int
    ghes: int = 2

    def __post_init__(self) -> None:
        if not 0 <= self.number < MAX_SOURCES:
            raise EventFileError(f"there can be no error source {self.number}", f"they are 0 to {MAX_SOURCES - 1}")
        if self.event > MAX_EVENT:
            raise EventFileError(
                f"error source {self.number} cannot be announced by event {self.event:#x}",
                f"events are numbered up to {MAX_EVENT:#x}",
            )
        if self.event <= 0:
            raise EventFileError(
                f"error source {self.number} cannot be announced by event {self.event:#x}",
                "choose another than event 0, which is everybody's",
            )
        if self.ghes not in GHES_VERSIONS:
            raise EventFileError(f"there is no version {self.ghes} of GHES", "it is 1 or 2")


def check_sources(sources: Iterable[ErrorSource], events: Iterable[EventDefinition]) -> None:
    """Raises EventFileError for two of one number or event, and for an event that is not among `events`."""
    defined = {event.number for event in events}
    numbers: set[int] = set()
    taken: dict[int, int] = {}
    for source in sources:
        if source.number in numbers:
            raise EventFileError(f"error source {source.number} is defined twice", "give one of them another number")
        if source.event not in defined:
            raise EventFileError(
                f"error source {source.number} is announced by event {source.event:#x}, which is not defined",
                f"define it: --event {source.event:#x}:shared, or [[event]] in the event file",
            )
        if source.event in taken:
            raise EventFileError(
                f"error sources {taken[source.event]} and {source.number} are announced by one event",
                "Linux registers an event once: give each source one of its own",
            )
        numbers.add(source.number)
        taken[source.event] = source.number


# What a machine that boots by ACPI has where nobody says otherwise.
STANDARD_EVENTS = (
    EventDefinition(804, shared=True),
    EventDefinition(805, shared=True, priority=Priority.CRITICAL),
)
STANDARD_SOURCES = (ErrorSource(0, 804), ErrorSource(1, 805))
