# SPDX-License-Identifier: Apache-2.0
"""When an error was: eight bytes of decimal digits. UEFI 2.10, N.2.1, "Timestamp"."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from .reader import CperError

__all__ = ["Timestamp"]

_PRECISE = 1


def _to_bcd(value: int) -> int:
    return value // 10 << 4 | value % 10


def _from_bcd(value: int) -> int:
    return (value >> 4) * 10 + (value & 0xF)


@dataclass(frozen=True, slots=True)
class Timestamp:
    """The bytes as they are, since firmware may put anything there: second, minute, hour, flags, day, month, year,
    century; BCD. Raises CperError unless there are eight.
    """

    raw: bytes

    def __post_init__(self) -> None:
        if len(self.raw) != 8:
            raise CperError(f"a timestamp of {len(self.raw)} bytes cannot be", "it takes 8")

    @classmethod
    def of(cls, when: datetime, precise: bool = True) -> Timestamp:
        """That of a time. `precise` says that the error was then, and not just found then."""
        time = [_to_bcd(when.second), _to_bcd(when.minute), _to_bcd(when.hour), _PRECISE if precise else 0]
        date = [_to_bcd(when.day), _to_bcd(when.month), _to_bcd(when.year % 100), _to_bcd(when.year // 100)]
        return cls(bytes(time + date))

    @property
    def precise(self) -> bool:
        return bool(self.raw[3] & _PRECISE)

    def __str__(self) -> str:
        second, minute, hour, _flags, day, month, year, century = map(_from_bcd, self.raw)
        return f"{century:02}{year:02}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02}"
