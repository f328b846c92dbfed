# SPDX-License-Identifier: Apache-2.0
"""What a platform offers of asynchronous page faults."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import UsageError
from ..sdei.events import MAX_EVENT, is_ppi

__all__ = ["ASYNC_PF_EVENT", "AsyncPfSettings", "OFF"]

ASYNC_PF_EVENT = 0x4040_0001  # v1 to v4 of the series of 2021: vendor-defined, private, critical
ASYNC_PF_INTID = 17

_SDEI, _PPI = "sdei", "ppi"
_CHOICES = {"both": (_SDEI, _PPI), _SDEI: (_SDEI,), _PPI: (_PPI,), "off": ()}


@dataclass(frozen=True, slots=True)
class AsyncPfSettings:
    """How a guest can be told that a page is not present: "sdei", "ppi", both, or not at all.

    "sdei" is the SDEI event `event`; that a page is ready is told by the PPI `intid` in any case.
    Raises UsageError for what cannot be.
    """

    transports: tuple[str, ...] = (_SDEI, _PPI)
    event: int = ASYNC_PF_EVENT
    intid: int = ASYNC_PF_INTID

    def __post_init__(self) -> None:
        if self.transports not in _CHOICES.values():
            raise UsageError(
                f"asynchronous page faults cannot be told by {str(self.transports)[:60]}",
                'transports are ("sdei", "ppi"), one of them, or none',
            )
        if not 0 < self.event <= MAX_EVENT:
            raise UsageError(f"{self.event} is no event number for asynchronous page faults", "0x40400001 is one")
        if not is_ppi(self.intid):
            raise UsageError(f"interrupt {self.intid} is no PPI", "PPIs are 16 to 31")

    @classmethod
    def of(cls, choice: str) -> AsyncPfSettings:
        """From a word: sdei, ppi, both or off. Raises UsageError."""
        if choice not in _CHOICES:
            raise UsageError(f"{choice[:40]!r} says nothing of asynchronous page faults", "sdei, ppi, both, off do")
        return cls(_CHOICES[choice])

    @property
    def on(self) -> bool:
        """Whether there are any."""
        return bool(self.transports)

    @property
    def sdei(self) -> bool:
        """Whether not-present can be told by the event."""
        return _SDEI in self.transports

    @property
    def ppi(self) -> bool:
        """Whether not-present can be told by the PPI."""
        return _PPI in self.transports


OFF = AsyncPfSettings(())
