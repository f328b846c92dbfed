# SPDX-License-Identifier: Apache-2.0
"""The 64 bits that tell of an error of a cache, a TLB or a bus. UEFI 2.10, N.2.4.4.1."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import NamedTuple

from .layout import check_fits

__all__ = ["ErrorDetails"]


class _Place(NamedTuple):
    valid: int
    shift: int
    bits: int


_PLACES = {
    "transaction_type": _Place(0, 16, 2),
    "operation": _Place(1, 18, 4),
    "level": _Place(2, 22, 3),
    "context_corrupt": _Place(3, 25, 1),
    "corrected": _Place(4, 26, 1),
    "precise_pc": _Place(5, 27, 1),
    "restartable_pc": _Place(6, 28, 1),
    "participation": _Place(7, 29, 2),
    "time_out": _Place(8, 31, 1),
    "address_space": _Place(9, 32, 2),
    "memory_attributes": _Place(10, 34, 9),
    "access_mode": _Place(11, 43, 1),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ErrorDetails:
    """What is known of an error; None is what is not said. From `participation` on it is of buses alone."""

    transaction_type: int | None = None
    operation: int | None = None
    level: int | None = None
    context_corrupt: int | None = None
    corrected: int | None = None
    precise_pc: int | None = None
    restartable_pc: int | None = None
    participation: int | None = None
    time_out: int | None = None
    address_space: int | None = None
    memory_attributes: int | None = None
    access_mode: int | None = None

    def encode(self) -> int:
        """The 64 bits. Raises CperError for values that do not fit."""
        number = 0
        for field in fields(self):
            value, place = getattr(self, field.name), _PLACES[field.name]
            if value is not None:
                check_fits(field.name, value, place.bits)
                number |= 1 << place.valid | value << place.shift
        return number

    @classmethod
    def decode(cls, number: int) -> ErrorDetails:
        """What 64 bits say; those that are reserved are left out."""
        return cls(
            **{
                name: number >> place.shift & (1 << place.bits) - 1
                for name, place in _PLACES.items()
                if number >> place.valid & 1
            }
        )
