# SPDX-License-Identifier: Apache-2.0
"""Where a puppet's PEs are, by the oracle: their power, the contexts they are in, the requests under way."""

from __future__ import annotations

from collections.abc import Iterable

from ..sdei import EventDefinition
from .oracle import Oracle, low32
from .psci_oracle import CPU_OFF, CPU_SUSPENDS, PsciOracle
from .puppet import Puppet, Request
from .puppet_code import WFI

__all__ = ["Places", "Record"]

# How a context was entered: PC; ELR_EL1 and SPSR_EL1, or several that it may have found; what was interrupted.
Record = tuple[int, list[tuple[int, int]], str]


class Places:
    """The oracle beside a puppet, and the requests that are under way."""

    def __init__(
        self, puppet: Puppet, pes: range, events: Iterable[EventDefinition], policy: str, slots: tuple[int, int]
    ) -> None:
        self.puppet = puppet
        self.code = puppet.code
        self.pes = pes
        self.oracle = Oracle(list(pes), events, policy, slots, puppet.features)
        self.psci = PsciOracle(pes, powerdown=puppet.kind != "qemu")  # which takes one for a standby
        self._forget()

    def _forget(self) -> None:
        """As a machine that was just reset."""
        self.psci.reset()
        self._requests: dict[tuple[int, int], Request] = {}
        # How often each context was entered, and how it was the last time.
        self._entries = {(pe, c): 0 for pe in self.pes for c in range(3)}
        self._records: dict[tuple[int, int], Record] = {}
        self._waking: set[int] = set()
        self._resumed = dict.fromkeys(self.pes, 0)
        self._resume_records: dict[int, dict[str, int]] = {}
        self.edges = False  # whether all interrupts of the machine are edges
        self._raised: set[tuple[int, int]] = set()  # interrupts that wait in the machine, as far as they are known
        # PEs that were powered up: x0 is known (but for PE 0's, the device tree), the others may be anything.
        self._context_ids: dict[int, int | None] = {0: None}

    def up(self, pe: int) -> bool:
        """Whether it runs guest code."""
        state = self.oracle.pes[pe]
        return self.psci.power[pe] == "on" and state.online and not state.asleep

    def stays_up(self, pe: int) -> bool:
        """Whether nothing that the PE was asked to do puts it to sleep, perhaps only when a handler has ended."""
        requests = (request for request in self._requests.values() if request.pe == pe)
        return self.up(pe) and not any(
            r.kind & WFI or low32(r.x[0]) == CPU_OFF or low32(r.x[0]) in CPU_SUSPENDS for r in requests
        )

    def context(self, pe: int) -> int:
        """In which context it is: 0, or that of the handler that runs."""
        frame = self.oracle.top(pe)
        return 0 if frame is None else 2 if frame.handler.event in self.oracle.critical else 1

    def _resuming(self, pe: int) -> bool:
        """Whether the resume stub has still to go back; the oracle's PC stays there until we hear of more."""
        return self.code.place(self.oracle.registers[pe]["pc"]) == "resume"

    def _go_back(self, pe: int) -> None:
        """The resume stub's ERET."""
        registers = self.oracle.registers[pe]
        registers.update(pc=registers["elr"], pstate=registers["spsr"])

    def _is_under(self, pe: int, place: str) -> bool:
        """Whether a handler that runs has interrupted this code, or the resume stub on its way back to it."""
        frames = self.oracle.pes[pe].frames
        if not frames:
            return False
        places = [self.code.place(frame.saved["pc"]) for frame in frames]
        if "resume" in places:
            places.append(self.code.place(self.oracle.registers[pe]["elr"]))
        return place in places

    def needs_elr(self, pe: int) -> bool:
        """Whether something waits that a second COMPLETE_AND_RESUME, or a power-down, would lead astray."""
        return self._is_under(pe, "resume")
