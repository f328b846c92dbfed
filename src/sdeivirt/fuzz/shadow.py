# SPDX-License-Identifier: Apache-2.0
"""What a puppet ought to see: requests for it, and everything compared with the oracle once nothing moves."""

from __future__ import annotations

from collections.abc import Iterable
from operator import attrgetter
from typing import Any

from ..sdei import EventDefinition
from .follower import REGISTERS, Follower, differences
from .oracle import Handler
from .psci_oracle import CPU_SUSPENDS
from .puppet import Mailbox, Mismatch, Puppet, Request
from .puppet_code import BY_SMC, LEAVE, POKE, WFI

__all__ = ["Shadow"]

_PSTATE = 0xF000_03C5
_PSTATE_OPTIONS = {"pan": 1 << 22, "uao": 1 << 23, "dit": 1 << 24, "ssbs": 1 << 12}
_CELLS = ("ENTRIES", "OUT_PSTATE", "ENTRY_PC", "ENTRY_SP", "SP0", "ENTRY_ELR", "ENTRY_SPSR", "OUT")
_HANDLER = (
    "registered", "enabled", "running", "pending",
    "injected", "coalesced", "dropped", "delivered", "completed", "failed",
)  # fmt: skip
_of_handler = attrgetter(*_HANDLER)
_of_record = attrgetter("state", *_HANDLER[3:])
_of_oracle = attrgetter("status", *_HANDLER[3:])
REPORTS = 8  # comparisons for each of a report


class Shadow(Follower):
    """A puppet with the oracle beside it. Raises what opening a machine raises, and Mismatch from nearly everything."""

    def __init__(
        self,
        kind: str,
        pes: range,
        events: Iterable[EventDefinition],
        policy: str,
        slots: tuple[int, int],
        seed: int | None,
        contexts: bool = True,
    ) -> None:
        events = list(events)
        puppet = Puppet(kind, len(pes), events, policy, slots, seed, contexts)
        try:
            super().__init__(puppet, pes, events, policy, slots)
            self._compared = 0
            self.sound = True  # nothing was wrong so far
            self._cell = {name: puppet.code.at[name] >> 3 for name in _CELLS}
            self._pstate_bits = _PSTATE | sum(_PSTATE_OPTIONS[name] for name in puppet.features)
            self.settle()
        except BaseException:
            puppet.close()
            raise

    def close(self) -> None:
        self.puppet.close()

    # -- requests

    def ready(self, pe: int) -> bool:
        """Whether the PE's context waits for a request."""
        if not self.up(pe):
            return False
        c = self.context(pe)
        box = self.puppet.boxes[pe][c]
        if (pe, c) in self._requests or box["ENTRIES"] != self._entries[pe, c]:
            return False
        self._learn(pe, box)
        return True

    def _learn(self, pe: int, box: Mailbox) -> None:
        """What a PE that was powered up found in its registers."""
        if pe in self._context_ids:
            context_id = self._context_ids.pop(pe)
            registers = self.oracle.registers[pe]
            registers.update(zip(REGISTERS, box.out, strict=True))
            if context_id is not None:
                registers["x0"] = context_id

    def post(self, pe: int, x: list[int], pstate: int, *, leave: bool = False, smc: bool = False) -> None:
        """Have a ready PE make a call; `leave` where it ends a handler if it succeeds."""
        c = self.context(pe)
        leave = leave and c > 0
        if leave:
            pstate |= 1  # what a handler has to give back is on the stack, which is SP_EL1's
        self._put(Request(pe, c, LEAVE * leave | BY_SMC * smc, x, pstate & self._pstate_bits))

    def post_wfi(self, pe: int, x: list[int], pstate: int) -> None:
        """Have a ready PE wait for an event."""
        self._put(Request(pe, self.context(pe), WFI, x, pstate & self._pstate_bits))

    def post_store(
        self, pe: int, address: int, value: int, x: list[int], pstate: int, raises: tuple[int, int] | None = None
    ) -> None:
        """Have a ready PE store 32 bits; x0 and x1 say where and what. See :class:`Request` for `raises`."""
        x = [address, value, *x[2:]]
        self._put(Request(pe, self.context(pe), POKE, x, pstate & self._pstate_bits, raises=raises))

    def _put(self, request: Request) -> None:
        self._requests[request.pe, request.context] = request
        self.puppet.post(request)

    def expect_up(self, pe: int) -> None:
        """The PE has been suspended and is to run again, masked."""
        self._waking.add(pe)

    # -- until nothing moves

    def settle(self) -> None:
        """Let the guest run until there is nothing to do, and compare."""
        self.sound = False
        while True:
            self.puppet.until(self._unrest, self._prod)
            with self.puppet.still():
                # A kick that proved needless may have come between, and woken a PE.
                if self._unrest():
                    continue
                try:
                    self.compare()
                except Mismatch:
                    # Something may have come between even now, on a machine that nobody holds.
                    if self.puppet.log:
                        continue
                    raise
                self.sound = True
                return

    def _unrest(self) -> str:
        """What is still to happen, or nothing."""
        self.drain()
        waiting = self.oracle.deliverable()
        if waiting:
            handler, takers = waiting[0]
            return f"event {handler.event:#x} is ready, PEs {sorted(takers)} could take it"
        if late := self.overdue():
            return late
        for pe in self.pes:
            if self.oracle.wakes(pe):
                return f"PE {pe} sleeps through an event"
            if self.psci.power[pe] == "on-pending" or pe in self._waking:
                return f"PE {pe} does not start"
            if self.up(pe) and (reason := self._unrest_of(pe)):
                return reason
        return ""

    def _unrest_of(self, pe: int) -> str:
        c = self.context(pe)
        request = self._requests.get((pe, c))
        silent = request is not None and self.may_be_silent(request)
        if request is not None and not (request.called or silent):
            return f"PE {pe} has not done its request in context {c}: posted"
        box = self.puppet.boxes[pe][c]
        if box["ENTRIES"] != self._entries[pe, c]:
            return f"PE {pe} does not arrive in context {c}"
        if self.puppet.resumes[pe]["ENTRIES"] != self._resumed[pe] and not self.needs_elr(pe):
            return f"PE {pe} does not resume"
        if request is None:
            return ""
        if box["DONE"] != request.seq:
            return f"PE {pe} has not done its request in context {c}: {'called' if request.called else 'posted'}"
        # What came after it was done is in the log by now, but it may have been drained before that.
        if silent and not request.called:
            if self.puppet.log:
                return f"PE {pe} is busy"
            self.finish_silently(request)
        del self._requests[pe, c]
        return ""

    def _prod(self) -> None:
        """PEs wait for an event that nobody raised: any kick ends that. Not while one is due: that has to do so."""
        if not self.oracle.deliverable():
            for request in list(self._requests.values()):
                waits = request.kind & WFI or (request.called and request.x[0] % 2**32 in CPU_SUSPENDS)
                if waits and self.context(request.pe) == request.context and self.up(request.pe):
                    self.puppet.machine.kick(1 << request.pe)

    # -- comparing, when nothing moves

    def compare(self) -> None:
        """What the guest wrote down, and what the machine tells, against the oracle."""
        for pe in self.pes:
            if self.up(pe):
                self._compare_guest(pe)
        # A report costs more than a call, so the records that it is made from are looked at first.
        self._compared += 1
        differs = self._records_differ()
        if differs or self._compared % REPORTS == 0:
            self.compare_status()
        if differs:
            raise Mismatch("status", f"{differs}, and the machine's report does not show it")

    def _compare_guest(self, pe: int) -> None:
        c = self.context(pe)
        box = self.puppet.boxes[pe][c]
        registers = self.oracle.registers[pe]
        found = box.out
        self._learn(pe, box)
        pstate = registers["spsr"] if self._resuming(pe) else registers["pstate"]
        wanted = [*(registers[name] for name in REGISTERS), pstate]
        wrong = differences((*REGISTERS, "pstate"), (*found, box["OUT_PSTATE"]), wanted)
        if wrong:
            raise Mismatch("registers", f"PE {pe} in context {c} sees: {wrong}")
        for context in range(3):
            if not self._is_under(pe, f"arrive {context}"):
                self._compare_entry(pe, context)
        if pe in self._resume_records and not self.needs_elr(pe):
            cell = self._cell
            words, resumed = self.puppet.resumes[pe].all(), self._resume_records[pe]
            names = ("pc", "pstate", "elr", "spsr")
            cells = (words[cell[name]] for name in ("ENTRY_PC", "OUT_PSTATE", "ENTRY_ELR", "ENTRY_SPSR"))
            wrong = differences(names, cells, [resumed[name] for name in names])
            wrong += differences(REGISTERS, words[cell["OUT"] :], [resumed[name] for name in REGISTERS])
            if not wrong and words[cell["ENTRY_SP"]] not in self._stack(pe):
                wrong = f"sp is {words[cell['ENTRY_SP']]:#x}"
            if wrong:
                raise Mismatch("resume", f"PE {pe} resumed wrongly: {wrong}")

    def _compare_entry(self, pe: int, context: int) -> None:
        """How the last handler of a context was entered; and none was without our knowing."""
        words, cell = self.puppet.boxes[pe][context].all(), self._cell
        if words[cell["ENTRIES"]] != self._entries[pe, context]:
            raise Mismatch("entry", f"context {context} of PE {pe} was entered behind our back")
        if (pe, context) not in self._records:
            return
        pc, returns, place = self._records[pe, context]
        wrong = differences(("pc", "sp_el0"), (words[cell["ENTRY_PC"]], words[cell["SP0"]]), (pc, self._sp_el0(pe)))
        elr, spsr, sp = words[cell["ENTRY_ELR"]], words[cell["ENTRY_SPSR"]], words[cell["ENTRY_SP"]]
        if not any(elr == e for e, _ in returns) or not any(spsr == s for _, s in returns):
            wrong += f" elr_el1 is {elr:#x}, spsr_el1 {spsr:#x}, neither is to have changed"
        if sp not in self._stack(pe):
            wrong += f" sp is {sp:#x}, interrupted was {place}"
        if wrong:
            raise Mismatch("entry", f"PE {pe} entered context {context} wrongly: {wrong}")

    def _sp_el0(self, pe: int) -> int:
        return self.code.at["SP_EL0_VALUE"] + 0x10 * pe

    def _stack(self, pe: int) -> range:
        base, size = self.code.at["stacks"], self.code.at["STACK_SIZE"]
        return range(base + size * pe + 0x10, base + size * (pe + 1) + 1, 16)

    def _records_differ(self) -> str:
        """What of the service's own records is not as the oracle has it, roughly; empty if nothing."""
        sdei = self.puppet.machine.firmware.sdei
        events = self.oracle.events
        with self.puppet.machine.lock:
            for pe, wanted in zip(sdei.pes, self.oracle.all_pes, strict=True):
                running = [frame.handler.event.number for frame in (pe.normal, pe.critical) if frame is not None]
                if pe.masked != wanted.masked or running != [frame.handler.event for frame in wanted.frames]:
                    return f"the mask or the handlers of PE {pe.index} differ"
                for index, handler in pe.handlers.items():
                    if _of_record(handler) != _of_oracle(events[sdei.events[index].number].handlers[pe.index]):
                        return f"{_name(events[sdei.events[index].number].handlers[pe.index])} differs"
            for event in sdei.events:
                if event.shared and _of_record(event.handler) != _of_oracle(events[event.number].handlers[0]):
                    return f"{_name(events[event.number].handlers[0])} differs"
        return ""

    def compare_status(self) -> None:
        """Masks, frames, states and counts of all handlers as the machine tells them."""
        status = self.puppet.machine.status()
        for pe, report in zip(self.pes, status.vcpus, strict=True):
            state = self.oracle.pes[pe]
            running = [frame.handler.event for frame in state.frames]
            power = "suspended" if state.asleep else self.psci.power[pe]
            found = (report.masked, report.running, report.nesting, report.power)
            wanted = (state.masked, running, len(running), power)
            if found != wanted:
                raise Mismatch("status", f"PE {pe} is (masked, running, nesting, power) {found}, not {wanted}")
            critical = [event in self.oracle.critical for event in running]
            if critical not in ([], [False], [True], [False, True]):
                raise Mismatch("status", f"PE {pe} runs {running} at a time")
        reports = {(event.number, report.vcpu): report for event in status.events for report in event.handlers}
        shown = {event.number for event in status.events}
        for handler in self.oracle.handlers.values():
            if handler.event in shown:
                self._compare_handler(handler, reports.get((handler.event, handler.pe)))

    @staticmethod
    def _compare_handler(handler: Handler, report: Any) -> None:
        wanted = _of_handler(handler)
        found = (False,) * 4 + (0,) * 6 if report is None else _of_handler(report)
        if found != wanted:
            rows = zip(_HANDLER, found, wanted, strict=True)
            wrong = ", ".join(f"{name} is {f} instead of {w}" for name, f, w in rows if f != w)
            raise Mismatch("status", f"{_name(handler)}: {wrong}")
        if report is None:
            return
        if report.runs_on != handler.running_on:
            raise Mismatch("status", f"{_name(handler)} runs on PE {report.runs_on}, not {handler.running_on}")
        if handler.pe is None and handler.registered and report.routed_to != handler.routed_to:
            raise Mismatch("status", f"{_name(handler)} is routed to PE {report.routed_to}, not {handler.routed_to}")
        if report.injected != report.delivered + report.coalesced + report.dropped + report.pending:
            raise Mismatch("status", f"the books of {_name(handler)} do not balance: {report}")


def _name(handler: Handler) -> str:
    return f"event {handler.event:#x}" + ("" if handler.pe is None else f" of PE {handler.pe}")
