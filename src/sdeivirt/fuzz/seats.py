# SPDX-License-Identifier: Apache-2.0
"""PEs without an engine: an array of words that the firmware sees through its window, and one with what is right."""

from __future__ import annotations

from array import array
from collections.abc import Callable
from dataclasses import dataclass

from ..cpu import CONTEXT_REGISTERS
from ..sdei.model import Pe as RealPe
from .judge import CALLS, SVE_HINT, low32
from .psci_oracle import THERE, is_psci
from .records import Pe
from .registers import ELR, NAMES, SPSR, VBAR

__all__ = ["STOPPED", "Answer", "Lane", "Result", "Seat", "View", "function_of", "name_of"]


class Stopped:
    """What a call answers from which the PE does not return."""


STOPPED = Stopped()
Result = int | Stopped | None
Answer = Callable[[Pe], Result]


class View:
    """A window that is the registers: nothing to fetch or to flush."""

    def __init__(self) -> None:
        self.words = array("Q", [0] * len(NAMES))
        self.x = memoryview(self.words)
        self.context = self.x.cast("B")[: 8 * CONTEXT_REGISTERS]

    def fetch_all(self) -> None: ...

    def fetch_rest(self) -> None: ...

    def flush_result(self) -> None: ...

    def flush_context(self) -> None: ...

    def vbar_el1(self) -> int:
        return self.words[VBAR]

    def set_exception_return(self, elr: int, spsr: int) -> None:
        self.words[ELR], self.words[SPSR] = elr, spsr


@dataclass(slots=True, eq=False)
class Seat:
    """A PE on both sides: the firmware's, with its window, and the oracle's."""

    real: RealPe
    view: View
    model: Pe

    @property
    def up(self) -> bool:
        """Whether it runs guest code."""
        return self.model.online and not self.model.asleep


# What a call needs of a seat, at hand: the model PE and its words, the firmware's PE, its view and its words.
Lane = tuple[Seat, Pe, "array[int]", RealPe, View, "array[int]"]


def name_of(x0: str | int) -> str:
    """The name of a call for messages, by its x0."""
    if isinstance(x0, str):
        return x0
    function = low32(x0) & ~SVE_HINT
    if function in CALLS:
        return CALLS[function].upper()
    return "a PSCI call" if is_psci(function) else "another call"


def function_of(x0: int) -> int:
    """The function id as coverage counts it: 0 for ids that are not there."""
    function = low32(x0) & ~SVE_HINT
    return function if function in CALLS or function in THERE else 0
