# SPDX-License-Identifier: Apache-2.0
"""How bad an error is, and what is said of the section that describes it. UEFI 2.10, N.2.1 and N.2.2."""

from __future__ import annotations

from enum import IntEnum, IntFlag

from .reader import CperError, Reader

__all__ = ["SectionFlags", "Severity", "read_severity"]


class Severity(IntEnum):
    """How bad an error is."""

    RECOVERABLE = 0
    FATAL = 1
    CORRECTED = 2
    INFORMATIONAL = 3

    @classmethod
    def parse(cls, name: str) -> Severity:
        """The severity of that name. Raises CperError."""
        try:
            return cls[name.upper()]
        except KeyError:
            known = ", ".join(each.name.lower() for each in cls)
            raise CperError(f"there is no severity {name[:40]!r}", f"severities are {known}") from None


class SectionFlags(IntFlag):
    """What is said of a section."""

    PRIMARY = 0x01
    CONTAINMENT_WARNING = 0x02
    RESET = 0x04
    THRESHOLD_EXCEEDED = 0x08
    NOT_ACCESSIBLE = 0x10
    LATENT = 0x20
    PROPAGATED = 0x40
    OVERFLOW = 0x80


def read_severity(number: int, reader: Reader, offset: int, what: str) -> Severity:
    """The severity of that number. Raises CperError."""
    try:
        return Severity(number)
    except ValueError:
        raise reader.wrong(f"{what} has severity {number:#x}, and there are 0 to {max(Severity)}", offset) from None
