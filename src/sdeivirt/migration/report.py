# SPDX-License-Identifier: Apache-2.0
"""What an analysis of a stream found, as text for people. Nothing of the stream gets to a terminal unquoted."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .analysis import Analysis, SectionFound
    from .shown import Field

__all__ = ["render"]

_MOST_REGIONS = 40
_MOST_WIDE = 100  # characters of a value
_MOST_ROWS = 256  # of a map or a list
_IN_A_ROW = 4  # numbers
_DEEPEST = 4  # maps in maps
_PLAIN = re.compile(r"[A-Za-z0-9_.-]{1,64}", re.ASCII)
_BAR = 24


def render(analysis: Analysis) -> str:
    """All of it, on many lines."""
    lines = [f"{analysis.path}: stream of version {analysis.version}, {analysis.size:,} bytes"]
    if analysis.complete:
        lines.append("whole: it holds all of a guest's state")
    else:
        lines.append(f"NOT WHOLE: sound up to offset {analysis.sound:#x}")
        lines.append(f"  {analysis.error}" + (f" ({analysis.hint})" if analysis.hint else ""))
    lines += _configuration(analysis.configuration)
    lines += _frames(analysis)
    lines += _passes(analysis)
    lines += _regions(analysis)
    for section in analysis.sections:
        lines += _section(section)
    return "\n".join(lines)


def _configuration(configuration: dict[str, Any]) -> Iterator[str]:
    if configuration:
        yield ""
        yield "machine"
        rows = [row for name, value in configuration.items() for row in _rows(name, value, 1)]
        yield from _columns(rows)


def _frames(analysis: Analysis) -> Iterator[str]:
    yield ""
    rows = [(f"  {kind}", f"{each.frames:,}", f"{each.bytes:,}") for kind, each in analysis.frames.items()]
    yield from _columns([("frames", "number", "bytes"), *rows], range(1, 3))


def _passes(analysis: Analysis) -> Iterator[str]:
    if not analysis.passes:
        return
    yield ""
    rows: list[Sequence[str]] = [("passes over RAM", "plain", "zero", "duplicate", "bytes", "")]
    for each in analysis.passes:
        notes = [] if each.ended else ["not ended"]
        if each.compressed:
            notes.append(f"{each.compressed:,} of {each.frames:,} frames compressed")
        numbers = (f"{number:,}" for number in (each.plain, each.zero, each.duplicate, each.bytes))
        rows.append((f"  {each.number}", *numbers, ", ".join(notes)))
    yield from _columns(rows, range(1, 5))


def _regions(analysis: Analysis) -> Iterator[str]:
    if not analysis.regions:
        return
    yield ""
    rows: list[Sequence[str]] = [
        ("RAM", "MiB", "plain", "zero", "duplicate", "pages with content for each page there is")
    ]
    for each in analysis.regions[:_MOST_REGIONS]:
        content = (each.plain + each.duplicate) / (each.size >> 12)
        bar = "#" * min(round(content * _BAR / 2), _BAR) if content else ""
        numbers = (f"{number:,}" for number in (each.size >> 20, each.plain, each.zero, each.duplicate))
        rows.append((f"  {each.address:#x}", *numbers, f"{content:5.2f} {bar}"))
    yield from _columns(rows, range(1, 5))
    if len(analysis.regions) > _MOST_REGIONS:
        yield f"  ... and {len(analysis.regions) - _MOST_REGIONS:,} more; --json has all"


def _section(section: SectionFound) -> Iterator[str]:
    yield ""
    where = "missing" if section.offset is None else f"at offset {section.offset:#x}"
    instance = f" of instance {section.instance}" if section.instance else ""
    yield f"section {section.name}{instance}, version {section.version}, {section.length:,} bytes, {where}"
    if section.note:
        yield f"  {section.note}"
    rows: list[Sequence[str]] = []
    for name, field in section.fields.items():
        registers = _registers(field)
        if registers is None:
            first, *more = _rows(name, field.value, 1)
            text = first[1] if field.value is not None or field.type == "nil" else _length(field, section)
            rows += [(first[0], field.type, text), *((below, "", text) for below, text in more)]
        else:
            rows.append((f"  {_name(name)}", field.type, f"{len(registers)} registers"))
            yield from _columns(rows)
            rows = []
            yield from _columns(registers)
    yield from _columns(rows)


def _length(field: Field, section: SectionFound) -> str:
    """What is said of a field without a value."""
    return "" if section.offset is None else f"({field.length:,} bytes)"


def _rows(name: str, value: Any, depth: int) -> Iterator[tuple[str, str]]:
    """A field and its value, with a row for each member of a map, and for every few numbers of a list."""
    begin = f"{'  ' * depth}{_name(name)}"
    if isinstance(value, dict) and value and value.keys() != {"bytes", "hex"} and depth < _DEEPEST:
        yield begin, ""
        members = list(value.items())
        for below, each in members[:_MOST_ROWS]:
            yield from _rows(below, each, depth + 1)
        if len(members) > _MOST_ROWS:
            yield f"{'  ' * depth}  ...", f"{len(members) - _MOST_ROWS:,} more"
    elif isinstance(value, list) and len(value) > _IN_A_ROW and all(type(each) is int for each in value):
        shown = [f"{each:#x}" for each in value[: _MOST_ROWS * _IN_A_ROW]]
        for at in range(0, len(shown), _IN_A_ROW):
            yield "" if at else begin, " ".join(shown[at : at + _IN_A_ROW])
        if len(value) > len(shown):
            yield "", f"... {len(value) - len(shown):,} more"
    else:
        yield begin, _short(value)


def _registers(field: Field) -> list[Sequence[str]] | None:
    """Rows for a map of SDEI registers; None if it is none."""
    value = field.value
    if not isinstance(value, dict) or not any(isinstance(each, dict) and "says" in each for each in value.values()):
        return None
    return [
        (f"    {name}", each["id"], _cut(each["value"]), _cut(each["says"]))
        if isinstance(each, dict) and "says" in each
        else (f"    {_name(name)}", "", _short(each), "not known")
        for name, each in value.items()
    ]


def _short(value: Any) -> str:
    """A value on one line."""
    if isinstance(value, dict) and value.keys() == {"bytes", "hex"}:
        return _cut(value["hex"] or "-") + f"  ({value['bytes']:,} bytes)"
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "none"}[value]
    if isinstance(value, int):
        return str(value) if -10 < value < 10 else f"{value} = {value:#x}"
    if isinstance(value, dict):
        return _cut(", ".join(f"{_name(name)}: {_short(each)}" for name, each in value.items()) or "-")
    if isinstance(value, list):
        return _cut(" ".join(f"{each:#x}" if type(each) is int else _short(each) for each in value) or "-")
    return _cut(repr(value))


def _cut(text: str) -> str:
    return text if len(text) <= _MOST_WIDE else text[: _MOST_WIDE - 3] + "..."


def _name(name: str) -> str:
    return name if _PLAIN.fullmatch(name) else _cut(repr(name))


def _columns(rows: Sequence[Sequence[str]], numbers: range = range(0)) -> Iterator[str]:
    """Rows with their columns in line; those with numbers to the right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))] if rows else []
    for row in rows:
        cells = (
            cell.rjust(width) if column in numbers else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        yield "  ".join(cells).rstrip()
