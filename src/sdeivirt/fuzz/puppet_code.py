# SPDX-License-Identifier: Apache-2.0
"""The puppet, a guest on strings (guests/puppet.S): its addresses, and what a PC in it means.

The guest's symbol table is the only description of its memory that there is.
"""

from __future__ import annotations

import functools
from bisect import bisect_right
from pathlib import Path
from typing import Any

from elftools.elf.elffile import ELFFile

from ..guests import program_path

__all__ = ["BY_SMC", "LEAVE", "POKE", "WFI", "Code", "puppet_code"]

# Bits of a request's kind.
BY_SMC, LEAVE, WFI, POKE = 1, 2, 4, 8

# Where the call of a request is made, by its kind.
_CALLS = {0: "hvc", BY_SMC: "smc", LEAVE: "leave_hvc", LEAVE | BY_SMC: "leave_smc", WFI: "wfi", POKE: "poke"}

ENTRY_ROOM = 0x3C00  # of entries on either side of those that are used: more than the PEs' vectors lie apart


class Code:
    """The guest's image. `at` has all its symbols, labels and constants alike."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with path.open("rb") as file:
            table: Any = ELFFile(file).get_section_by_name(".symtab")
            self.at: dict[str, int] = {
                symbol.name: symbol["st_value"] for symbol in table.iter_symbols() if symbol.name
            }
        at = self.at
        # Where stretches of code begin that mean the same to an interruption.
        borders: list[tuple[int, str]] = [(at["_start"], "begin")]
        for c in range(3):
            changed = at[f"back_{c}" if c else f"store_{c}"]
            borders += [(at[f"enter_{c}" if c else "arrive_0"], f"arrive {c}"), (at[f"spin_{c}"], f"rest {c}")]
            borders += [(at[f"take_{c}"], f"take {c}")]
            borders += [(changed, f"tell {c}"), (at[f"bad_{c}"], "bad")]
            for kind, call in _CALLS.items():
                if c or not kind & LEAVE:
                    borders += [(at[f"{call}_{c}"] + 4, f"tell {c}"), (at[f"{call}_{c}"] + 8, f"take {c}")]
        borders += [(at["resume"], "resume"), (at["resume_end"], "bad"), (at["normal_entries"], "arrive 1")]
        borders += [(at["critical_entries"], "arrive 2"), (at["resume_entries"], "resume"), (at["entries_end"], "bad")]
        # Where two begin at one address, the later one in this list holds; but a call is over when it is over.
        self._names: dict[int, str] = {}
        for address, name in borders:
            if not (name.startswith("take") and self._names.get(address, "").startswith("tell")):
                self._names[address] = name
        self._starts = sorted(self._names)

    def place(self, pc: int) -> str:
        """What the code at `pc` does, and in which context, such as "take 1".

        "arrive" in a handler, "rest", "take" a request, "tell" what came of the call, "resume" after
        COMPLETE_AND_RESUME. Only "take" changes x0..x17 and PSTATE.
        """
        i = bisect_right(self._starts, pc)
        return self._names[self._starts[i - 1]] if i else "bad"

    def after_call(self, kind: int, context: int) -> int:
        """Where the call of a request comes back to."""
        return self.at[f"{_CALLS[kind]}_{context}"] + 4

    def handler(self, slot: int, critical: bool) -> int:
        """The entry point of a handler, with others ENTRY_ROOM bytes around it."""
        return self.at["critical_entries" if critical else "normal_entries"] + ENTRY_ROOM + 16 * slot

    def resume_address(self, slot: int) -> int:
        """An address for COMPLETE_AND_RESUME; there are 128."""
        return self.at["resume_entries"] + 16 * slot

    def vbar(self, pe: int) -> int:
        """VBAR_EL1 of a PE."""
        return self.at["vectors"] + 0x800 * pe


@functools.cache
def puppet_code() -> Code:
    """The guest of the package. Raises EnvironmentUnavailableError where it has not been built."""
    return Code(program_path("puppet"))
