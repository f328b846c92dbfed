# SPDX-License-Identifier: Apache-2.0
"""Event definitions: what the platform tells of its events, DEN0054C 4.1.

An event number is 31 bits: bit 31 is zero, bit 30 marks a vendor-defined
number. Event 0 is the standard one: software-signalled, private, normal.

Definitions come from code, from flags (`7:shared,critical,interrupt=40`) or
from a TOML file:

    [[event]]
    number = 0x40000010
    type = "shared"            # or "private" (default)
    priority = "critical"      # or "normal" (default)
    signalable = false         # may EVENT_SIGNAL raise it; private events only
    interrupt = 40             # bound interrupt: PPI 16-31 (private), SPI 32-1019 (shared)

Sources of hardware errors, which events announce, are defined in the same file: see ras/definitions.py.
"""

from __future__ import annotations

import enum
import tomllib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from reprlib import Repr
from typing import Any

from ..errors import EventFileError
from ..files import read_regular

__all__ = [
    "EventDefinition",
    "Priority",
    "EVENT_0",
    "DYNAMIC_PRIVATE",
    "DYNAMIC_SHARED",
    "load_events",
    "events_in",
    "parse_event",
    "read_event_file",
    "check_events",
    "is_ppi",
    "is_spi",
]

# Dynamic events get these numbers plus their slot: vendor-defined, and clear of KVM's 0x4040_0000 block.
DYNAMIC_PRIVATE = 0x4000_1000
DYNAMIC_SHARED = 0x4000_2000
_DYNAMIC = range(DYNAMIC_PRIVATE, DYNAMIC_SHARED + 0x1000)

MAX_EVENT = 0x7FFF_FFFF

MAX_FILE = 1 << 20
# Of a dotted key with n parts, tomllib makes n * n / 2 keys; an event file needs none at all.
_MAX_DOTS = 32


class Priority(enum.IntEnum):
    """EVENT_GET_INFO's values."""

    NORMAL = 0
    CRITICAL = 1


def is_ppi(interrupt: int) -> bool:
    """Whether a GIC INTID is a private peripheral interrupt."""
    return 16 <= interrupt <= 31


def is_spi(interrupt: int) -> bool:
    """Whether a GIC INTID is a shared peripheral interrupt."""
    return 32 <= interrupt <= 1019


def _hex(number: int) -> str:
    """A number for an error message; it may be one of a million digits."""
    return f"{number:#x}" if number.bit_length() <= 128 else f"of {number.bit_length()} bits"


class _Short(Repr):
    """`repr` of any value of a TOML document: not the whole of it, and not its depths."""

    def __init__(self) -> None:
        super().__init__()
        self.maxstring = self.maxother = 40

    def repr_int(self, x: int, level: int) -> str:
        return str(x) if x.bit_length() <= 64 else _hex(x)


_show = _Short().repr


@dataclass(frozen=True, slots=True)
class EventDefinition:
    """One event of the platform. Raises EventFileError where the parts do not fit together."""

    number: int
    shared: bool = False
    priority: Priority = Priority.NORMAL
    signalable: bool = False
    interrupt: int | None = None

    def __post_init__(self) -> None:
        name = f"event {_hex(self.number)}"
        if not 0 <= self.number <= MAX_EVENT:
            raise EventFileError(f"{name} is no event number", "numbers are 0 to 0x7fffffff")
        if self.number in _DYNAMIC:
            raise EventFileError(
                f"{name} is taken by the dynamic events",
                f"choose a number outside of {_DYNAMIC.start:#x} to {_DYNAMIC.stop - 1:#x}",
            )
        if self.signalable and self.shared:
            raise EventFileError(f"{name} is shared and signalable", "EVENT_SIGNAL names a PE: make it private")
        if self.number == 0 and (self.shared or self.priority or not self.signalable or self.interrupt is not None):
            raise EventFileError("event 0 is private, normal, signalable and bound to nothing", "define another number")
        if self.interrupt is not None:
            fits = is_spi(self.interrupt) if self.shared else is_ppi(self.interrupt)
            if not fits:
                raise EventFileError(
                    f"interrupt {_show(self.interrupt)} does not fit {name}",
                    "private events take a PPI (16 to 31), shared events an SPI (32 to 1019)",
                )


EVENT_0 = EventDefinition(0, signalable=True)

_EXAMPLE = 'an event is written as [[event]], number = 0x40000010, type = "shared"'
_KEYS = {"number", "type", "priority", "signalable", "interrupt"}


def _from_table(table: dict[str, Any], where: str) -> EventDefinition:
    unknown = sorted(set(table) - _KEYS)
    if unknown:
        raise EventFileError(f"{where}: unknown key {_show(unknown[0])}", f"keys are {', '.join(sorted(_KEYS))}")
    if "number" not in table:
        raise EventFileError(f"{where}: no number", "every event needs one")
    for key, kind in (("number", int), ("interrupt", int), ("signalable", bool), ("type", str), ("priority", str)):
        if key in table and type(table[key]) is not kind:
            raise EventFileError(f"{where}: {key} must be of type {kind.__name__}, not {_show(table[key])}", _EXAMPLE)
    if table.get("type", "private") not in ("private", "shared"):
        raise EventFileError(f"{where}: type {_show(table['type'])}", "it is private or shared")
    if table.get("priority", "normal") not in ("normal", "critical"):
        raise EventFileError(f"{where}: priority {_show(table['priority'])}", "it is normal or critical")
    number = table["number"]
    return EventDefinition(
        number=number,
        shared=table.get("type") == "shared",
        priority=Priority.CRITICAL if table.get("priority") == "critical" else Priority.NORMAL,
        signalable=table.get("signalable", number == 0),
        interrupt=table.get("interrupt"),
    )


def read_event_file(path: Path, tables: Sequence[str] = ("event",)) -> dict[str, list[dict[str, Any]]]:
    """The `[[...]]` tables of a TOML file, by the names that it may have. Raises EventFileError with the file named."""
    text = read_regular(path, MAX_FILE, EventFileError, "give the path of a TOML file", _EXAMPLE)
    for number, line in enumerate(text.split(b"\n"), 1):
        if line.count(b".") > _MAX_DOTS and not line.lstrip().startswith(b"#"):
            raise EventFileError(f"{path} has more than {_MAX_DOTS} dots in line {number}", _EXAMPLE)
    try:
        document = tomllib.loads(text.decode("utf-8"))
    except RecursionError as error:
        raise EventFileError(f"{path} is nested too deep", _EXAMPLE) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise EventFileError(f"{path} is no TOML file: {str(error)[:100]}", _EXAMPLE) from error
    except ValueError as error:  # int() refuses thousands of digits
        raise EventFileError(f"{path} holds a number that is too long", _EXAMPLE) from error
    found: dict[str, list[dict[str, Any]]] = {}
    for name in tables:
        content = document.get(name, [])
        if not isinstance(content, list) or not all(isinstance(table, dict) for table in content):
            raise EventFileError(f"{path}: {name} is no list of tables", f"write [[{name}]]")
        found[name] = content
    named = " or ".join(f"[[{name}]]" for name in tables)
    if not any(name in document for name in tables):
        raise EventFileError(f"{path} holds no {named} tables", _EXAMPLE)
    if other := [key for key in document if key not in tables]:
        raise EventFileError(f"{path} holds {_show(other[0])} beside its {named} tables", "remove it")
    return found


def events_in(tables: Iterable[dict[str, Any]], path: Path) -> list[EventDefinition]:
    """The events of `[[event]]` tables. Raises EventFileError with the file and the event named."""
    return [_from_table(table, f"{path}, event {position}") for position, table in enumerate(tables, 1)]


def load_events(path: Path) -> list[EventDefinition]:
    """Read a TOML file of `[[event]]` tables. Raises EventFileError with the file and the event named."""
    return events_in(read_event_file(path)["event"], path)


_WORDS = {
    "private": "type",
    "shared": "type",
    "normal": "priority",
    "critical": "priority",
    "signalable": "signalable",
}


def parse_event(text: str) -> EventDefinition:
    """Read a flag such as `0x40000010`, `7:critical` or `8:shared,interrupt=40`."""
    number, _, rest = text.partition(":")
    table: dict[str, Any] = {}
    try:
        table["number"] = int(number, 0)
        for word in filter(None, rest.split(",")):
            key, equals, value = word.partition("=")
            what = _WORDS.get(key) if not equals else "interrupt" if key == "interrupt" else None
            if what is None:
                raise EventFileError(
                    f"{_show(word)} says nothing of an event",
                    "use private, shared, normal, critical, signalable, interrupt=N",
                )
            if what in table:
                raise EventFileError(f"{_show(text)} gives the {what} twice", "say it once")
            table[what] = int(value, 0) if equals else True if what == "signalable" else key
    except ValueError as error:
        raise EventFileError(
            f"{_show(text)} is no event definition", "for example 0x40000010:shared,critical"
        ) from error
    return _from_table(table, f"event {number[:40]}")


def check_events(events: Iterable[EventDefinition]) -> Sequence[EventDefinition]:
    """The events with event 0 among them, in order of number. Raises EventFileError for a double."""
    found: dict[int, EventDefinition] = {0: EVENT_0}
    interrupts: dict[int, int] = {}
    for event in events:
        if event.number in found and event.number != 0:
            raise EventFileError(f"event {event.number:#x} is defined twice", "give one of them another number")
        if event.interrupt is not None:
            if event.interrupt in interrupts:
                raise EventFileError(
                    f"interrupt {event.interrupt} is bound to events {interrupts[event.interrupt]:#x} "
                    f"and {event.number:#x}",
                    "an interrupt raises one event",
                )
            interrupts[event.interrupt] = event.number
        found[event.number] = replace(event)
    return [found[number] for number in sorted(found)]
