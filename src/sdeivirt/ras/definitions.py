# SPDX-License-Identifier: Apache-2.0
"""Sources of errors as users define them: by flags (`0x324:shared,critical,ghes=1`), or in the file of events.

[[error-source]]
event = 0x324              # which announces its errors; not 0
ghes = 2                   # or 1: the guest acknowledges by clearing the block
number = 0                 # its id in the HEST; by default the lowest that is free
type = "shared"            # defines the event on the spot; "shared" and "normal" where
priority = "critical"      # it is defined nowhere
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import EventFileError
from ..sdei.events import EventDefinition, Priority, events_in, read_event_file
from .sources import MAX_SOURCES, STANDARD_EVENTS, STANDARD_SOURCES, ErrorSource

__all__ = ["SourceDefinition", "load_definitions", "parse_error_source", "settle", "standard"]

_KEYS = {"event": int, "ghes": int, "number": int, "type": str, "priority": str}
_WORDS = {"private": "type", "shared": "type", "normal": "priority", "critical": "priority"}
_EXAMPLE = "an error source is written as [[error-source]], event = 0x324"


@dataclass(frozen=True, slots=True)
class SourceDefinition:
    """A source as it was defined. `number` None is the lowest that is free; `defines` is its event, if it says so."""

    event: int
    ghes: int = 2
    number: int | None = None
    defines: EventDefinition | None = None


def _from_table(table: dict[str, Any], where: str) -> SourceDefinition:
    for key, value in table.items():
        if key not in _KEYS:
            raise EventFileError(f"{where}: unknown key {key[:40]!r}", f"keys are {', '.join(_KEYS)}")
        if type(value) is not _KEYS[key]:
            raise EventFileError(f"{where}: {key} must be of type {_KEYS[key].__name__}", _EXAMPLE)
    if "event" not in table:
        raise EventFileError(f"{where}: no event", "every error source needs one of its own")
    for key in ("type", "priority"):
        if _WORDS.get(table.get(key, "shared" if key == "type" else "normal")) != key:
            known = " or ".join(word for word, kind in _WORDS.items() if kind == key)
            raise EventFileError(f"{where}: {key} {table[key][:40]!r}", f"it is {known}")
    event, number, ghes = table["event"], table.get("number"), table.get("ghes", 2)
    try:
        ErrorSource(0 if number is None else number, event, ghes)  # says what is wrong with them
        defines = _event(event, table.get("type", "shared"), table.get("priority", "normal"))
    except EventFileError as error:
        raise EventFileError(f"{where}: {error.message}", error.hint) from error
    return SourceDefinition(event, ghes, number, defines if {"type", "priority"} & set(table) else None)


def _event(number: int, kind: str, priority: str) -> EventDefinition:
    return EventDefinition(
        number, shared=kind == "shared", priority=Priority.CRITICAL if priority == "critical" else Priority.NORMAL
    )


def load_definitions(path: Path) -> tuple[list[EventDefinition], list[SourceDefinition]]:
    """A TOML file of `[[event]]` and `[[error-source]]` tables. Raises EventFileError with file and table named."""
    tables = read_event_file(path, ("event", "error-source"))
    sources = [
        _from_table(table, f"{path}, error source {position}")
        for position, table in enumerate(tables["error-source"], 1)
    ]
    return events_in(tables["event"], path), sources


def parse_error_source(text: str) -> SourceDefinition:
    """Read a flag such as `0x324`, `0x324:critical,ghes=1` or `7:private,number=3`. Raises EventFileError."""
    event, _, rest = text.partition(":")
    where = f"error source {text[:40]!r}"
    table: dict[str, Any] = {}
    try:
        table["event"] = int(event, 0)
        for word in filter(None, rest.split(",")):
            key, equals, value = word.partition("=")
            what = key if equals and key in ("ghes", "number") else None if equals else _WORDS.get(key)
            if what is None:
                raise EventFileError(
                    f"{where}: {word[:40]!r} says nothing of a source",
                    "use private, shared, normal, critical, ghes=N, number=N",
                )
            if what in table:
                raise EventFileError(f"{where} gives the {what} twice", "say it once")
            table[what] = int(value, 0) if equals else key
    except ValueError as error:
        raise EventFileError(f"{where} is no definition", "for example 0x324:shared,critical,ghes=1") from error
    return _from_table(table, where)


def settle(
    events: Iterable[EventDefinition], definitions: Sequence[SourceDefinition]
) -> tuple[tuple[EventDefinition, ...], tuple[ErrorSource, ...]]:
    """All events, with those that sources define, and the sources with their numbers. Raises EventFileError."""
    known = list(events)
    numbers = {event.number for event in known}
    taken = {each.number for each in definitions if each.number is not None}
    free = (number for number in range(MAX_SOURCES) if number not in taken)
    sources = []
    for each in definitions:
        if each.event not in numbers:
            known.append(each.defines or _event(each.event, "shared", "normal"))
            numbers.add(each.event)
        elif each.defines is not None:
            raise EventFileError(
                f"event {each.event:#x} is defined, and an error source defines it again",
                "leave type and priority out where the source is defined",
            )
        number = each.number if each.number is not None else next(free, MAX_SOURCES)
        sources.append(ErrorSource(number, each.event, each.ghes))
    return tuple(known), tuple(sources)


def standard(events: Sequence[EventDefinition]) -> tuple[tuple[EventDefinition, ...], tuple[ErrorSource, ...]]:
    """The same where nobody has defined a source: two, whose events may have been defined otherwise."""
    numbers = {event.number for event in events}
    return (*events, *(event for event in STANDARD_EVENTS if event.number not in numbers)), STANDARD_SOURCES
