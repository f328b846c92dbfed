# SPDX-License-Identifier: Apache-2.0
"""Blocks and records as plain values, ready for JSON."""

from __future__ import annotations

from dataclasses import fields, is_dataclass
from enum import IntFlag
from typing import Any
from uuid import UUID

from . import guids
from .block import DataEntry, StatusBlock
from .details import ErrorDetails
from .memory import MEMORY_TYPES, MemorySection
from .pcie import PcieSection
from .processor import ErrorInfo, ErrorType, ProcessorSection
from .record import CperRecord, RecordSection
from .section import UnknownSection
from .severity import SectionFlags, Severity
from .timestamp import Timestamp

__all__ = ["describe"]

_SECTIONS = (MemorySection, ProcessorSection, PcieSection, UnknownSection)


def describe(decoded: StatusBlock | CperRecord) -> dict[str, Any]:
    """All fields by their names: numbers as they are, bytes in hexadecimal, severities by name; null is not said."""
    kind = "block" if isinstance(decoded, StatusBlock) else "record"
    return {"kind": kind, **_fields(decoded)}


def _fields(record: Any) -> dict[str, Any]:
    """Beside a number of flags, or of a kind, there is what it means: `flags_names`, `error_type_name`."""
    plain: dict[str, Any] = {}
    for field in fields(record):
        value = getattr(record, field.name)
        plain[field.name] = _plain(value)
        if field.name == "flags" and isinstance(record, DataEntry | RecordSection):
            value = SectionFlags(value)
        if isinstance(value, IntFlag):
            plain[f"{field.name}_names"] = [each.name.lower() for each in type(value) if each & value and each.name]
        if field.name == "error_type" and isinstance(record, MemorySection) and value is not None:
            plain["error_type_name"] = MEMORY_TYPES[value] if value < len(MEMORY_TYPES) else "unknown"
    return plain


def _plain(value: Any) -> Any:
    if isinstance(value, Severity):
        return value.name.lower()
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, UUID):
        return str(value)
    if isinstance(value, tuple):
        return [_plain(each) for each in value]
    if isinstance(value, Timestamp):
        return {"time": str(value), "precise": value.precise}
    if isinstance(value, _SECTIONS):
        return {"kind": guids.NAMES.get(value.guid, "unknown"), **_fields(value), "guid": str(value.guid)}
    if isinstance(value, ErrorInfo):
        return {**_fields(value), "details": _details(value)}
    return _fields(value) if is_dataclass(value) else value


def _details(error: ErrorInfo) -> dict[str, Any] | None:
    """What the error's 64 bits say, where they are no matter of the vendor's."""
    if error.error_info is None or error.type & ErrorType.MICRO_ARCHITECTURAL:
        return None
    return _fields(ErrorDetails.decode(error.error_info))
