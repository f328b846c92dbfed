# SPDX-License-Identifier: Apache-2.0
"""Blocks and records as plain values, ready for JSON."""

from __future__ import annotations

from dataclasses import fields, is_dataclass
from typing import Any
from uuid import UUID

from . import guids
from .block import StatusBlock
from .details import ErrorDetails
from .memory import MemorySection
from .pcie import PcieSection
from .processor import ErrorInfo, ErrorType, ProcessorSection
from .record import CperRecord
from .section import UnknownSection
from .severity import Severity
from .timestamp import Timestamp

__all__ = ["describe"]

_SECTIONS = (MemorySection, ProcessorSection, PcieSection, UnknownSection)


def describe(decoded: StatusBlock | CperRecord) -> dict[str, Any]:
    """All fields by their names: numbers as they are, bytes in hexadecimal, severities by name; null is not said."""
    kind = "block" if isinstance(decoded, StatusBlock) else "record"
    return {"kind": kind, **_fields(decoded)}


def _fields(record: Any) -> dict[str, Any]:
    return {field.name: _plain(getattr(record, field.name)) for field in fields(record)}


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
