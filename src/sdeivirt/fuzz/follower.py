# SPDX-License-Identifier: Apache-2.0
"""A puppet's log replayed into the oracle, step by step.

The log says in which order things happened: that PE 2 called, that it was put into a handler
before the call returned, that the host injected. Whether each step was right, and what registers
the guest must find, the oracle says.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from typing import Any

from ..errors import EventRunningError, NotRegisteredError, UnknownEventError
from ..sdei import EventDefinition
from .coverage import OTHER
from .judge import SVE_HINT
from .oracle import CALLS, CONTEXT, M64, low32
from .places import Places, Record
from .plan import Coverage
from .psci_oracle import CPU_SUSPENDS, THERE, is_psci
from .puppet import Mismatch, Puppet, Request
from .puppet_code import POKE, WFI
from .records import IDLE, OPERATIONS, REGISTERED

__all__ = ["REGISTERS", "Follower"]

REGISTERS = [f"x{i}" for i in range(18)]
FIRST_SPI = 32
REMEMBERED = 100
SILENT = WFI | POKE
EVENT_CONTEXT, COMPLETE_AND_RESUME = 0xC400_0024, 0xC400_0026

OUTCOMES = {
    UnknownEventError: "unknown",
    NotRegisteredError: "not registered",
    EventRunningError: "running",
    True: "cancelled",
    False: "not pending",
}


class Follower(Places):
    """Replays the log of a puppet. What is wrong is raised as Mismatch."""

    def __init__(
        self, puppet: Puppet, pes: range, events: Iterable[EventDefinition], policy: str, slots: tuple[int, int]
    ) -> None:
        super().__init__(puppet, pes, events, policy, slots)
        self._step: dict[int, str] = {}  # PEs in the middle of a call or a look, and whether they have entered
        self.entered: list[tuple[int, int]] = []
        self.calls = 0
        self.succeeded = 0
        self.codes: set[tuple[int, int]] = set()
        self.digest = 0  # of all results
        self.history: deque[tuple[Any, ...]] = deque(maxlen=REMEMBERED)  # the end of the log

    @property
    def coverage(self) -> Coverage:
        """What was reached so far."""
        tried = self.oracle.tried
        cells = {(state, op) for op, name in enumerate(OPERATIONS) for state in range(8) if tried[name][state]}
        return Coverage(cells, set(self.codes))

    # -- the log, entry by entry

    def drain(self) -> None:
        """Replay what has happened since."""
        log = self.puppet.log
        while log:
            entry = log.popleft()
            self.history.append(entry)
            name, *arguments = entry
            getattr(self, f"_on_{name}")(*arguments)

    def _on_call(self, pe: int, window: list[int]) -> None:
        if self._resuming(pe):
            self._go_back(pe)
        c = self.context(pe)
        request = self._requests.get((pe, c))
        if request is None or request.kind & SILENT:
            raise Mismatch("call", f"PE {pe} makes a call in context {c} that nobody asked for: {hexes(window)}")
        if request.called:
            raise Mismatch("call", f"PE {pe} makes a call in context {c} for the second time: {hexes(window)}")
        if window != request.x[:6]:
            raise Mismatch("call", f"PE {pe} calls with {hexes(window)}, given were {hexes(request.x[:6])}")
        self._step[pe] = "call"
        frames = len(self.oracle.pes[pe].frames)
        self._call(request)
        if len(self.oracle.pes[pe].frames) < frames:
            del self._requests[pe, c]
            if self._resuming(pe) and low32(request.x[0]) & ~SVE_HINT == COMPLETE_AND_RESUME:
                registers = self.oracle.registers[pe]
                self._resumed[pe] += 1
                self._resume_records[pe] = dict(registers)
                record = self._records.get((pe, self.context(pe)))
                if record and self.code.place(registers["elr"]).startswith("arrive"):
                    self._may_find(record, pe)

    def _may_find(self, record: Record, pe: int) -> None:
        """A handler that was interrupted on its arrival has perhaps not read ELR_EL1 and SPSR_EL1 yet, or not both."""
        registers = self.oracle.registers[pe]
        record[1].append((registers["elr"], registers["spsr"]))

    def _call(self, request: Request) -> None:
        """What the call ought to do."""
        pe, function = request.pe, low32(request.x[0])
        request.called = True
        self.calls += 1
        registers = self.oracle.registers[pe]
        registers.update(zip(REGISTERS, request.x, strict=True))
        registers.update(pstate=request.pstate, pc=self.code.after_call(request.kind, request.context))
        if is_psci(function):
            result = self.psci.call(pe, request.x)
            if result is None:
                if function in CPU_SUSPENDS:
                    self._context_ids[pe] = self.psci.context_id
                return  # what becomes of it, the log says
            if self.psci.started is not None:
                self._context_ids[self.psci.started] = self.psci.context_id
            registers.update(x0=result & M64, x1=0, x2=0, x3=0)
        else:
            owned = self._owned() if self.edges else set()
            self.oracle.call(pe)
            if self.edges:
                self._forget_edges(owned ^ self._owned())
        self.digest = (self.digest * 31 + registers["x0"]) & M64
        code = registers["x0"] - (1 << 64)
        error = -16 < code < 0
        self.succeeded += not error
        named = function & ~SVE_HINT
        self.codes.add((named if named in CALLS or function in THERE else OTHER, code if error else 0))

    def _on_look(self, pe: int) -> None:
        self._step[pe] = "look"

    def _on_looked(self, pe: int) -> None:
        step = self._step.pop(pe)
        if step != "entered":
            allowed, must = self.oracle.allowed(pe)
            if must:
                raise Mismatch("entry", f"PE {pe} did not enter any of {hexes(allowed)} at a {step}")

    def _on_delivered(self, pe: int, event: int, saved: list[int]) -> None:
        step = self._step[pe]
        if step == "entered":
            raise Mismatch("entry", f"PE {pe} entered two handlers at once")
        self._step[pe] = "entered"
        if step == "look":
            self._interrupted(pe, saved)
        registers = self.oracle.registers[pe]
        wrong = differences(CONTEXT, saved, [registers[name] for name in CONTEXT])
        if wrong:
            raise Mismatch("registers", f"event {event:#x} interrupts PE {pe} with other registers: {wrong}")
        allowed, _ = self.oracle.allowed(pe)
        if event not in allowed:
            raise Mismatch("entry", f"PE {pe} entered event {event:#x}, allowed were {hexes(allowed)}")
        self.oracle.enter(pe, event)
        c = self.context(pe)
        self._entries[pe, c] += 1
        self._records[pe, c] = (registers["pc"], [(registers["elr"], registers["spsr"])], self.code.place(saved[18]))
        self.entered.append((pe, event))

    def _interrupted(self, pe: int, saved: list[int]) -> None:
        """A PE that ran is about to enter a handler: let the oracle's PC, and what is being loaded, follow it."""
        registers = self.oracle.registers[pe]
        pc = saved[18]
        place = self.code.place(pc)
        if place != "resume" and self._resuming(pe):
            self._go_back(pe)
        c = self.context(pe)
        request = self._requests.get((pe, c))
        if place == f"take {c}" and request is not None and not request.called:
            self._loading(pe, request, saved)
        elif place in (f"arrive {c}", f"rest {c}", f"tell {c}") or (place == "resume" and self._resuming(pe)):
            if request is not None and not request.called and self._beyond(request, pc):
                self.finish_silently(request)
        else:
            raise Mismatch("registers", f"PE {pe} was interrupted at {pc:#x} ({place}) in context {c}")
        registers["pc"] = pc

    def _loading(self, pe: int, request: Request, saved: list[int]) -> None:
        """Each register has still its old value or already that of the request; so has each bit of PSTATE."""
        registers = self.oracle.registers[pe]
        for name, found, new in zip(REGISTERS, saved, request.x, strict=False):
            if found not in (registers[name], new):
                raise Mismatch("registers", f"{name} of PE {pe} is {found:#x}, neither the old value nor the new")
        pstate = saved[19]
        if (pstate ^ registers["pstate"]) & (pstate ^ request.pstate):
            raise Mismatch("registers", f"PSTATE of PE {pe} is {pstate:#x}, neither the old value nor the new")
        registers.update(zip(CONTEXT, saved, strict=True))

    # -- what the guest does without our hearing of it

    def may_be_silent(self, request: Request) -> bool:
        """Whether a request may be done without a call of the firmware."""
        return bool(request.kind & SILENT) or (
            self.puppet.answers_contexts
            and low32(request.x[0]) == EVENT_CONTEXT
            and low32(request.x[1]) < 18
            and request.context > 0
        )

    def _beyond(self, request: Request, pc: int) -> bool:
        """Whether a silent request is over, where the PE has not got to telling so."""
        if not self.may_be_silent(request):
            return False
        c = request.context
        done = self.puppet.boxes[request.pe][c]["DONE"] == request.seq
        after = pc == self.code.after_call(request.kind, c)
        return done or after or self.code.at[f"store_{c}"] <= pc < self.code.at[f"bad_{c}"]

    def finish_silently(self, request: Request) -> None:
        """A WFI or a store is over: it changed no register. Or the monitor has answered a call."""
        if request.kind & SILENT:
            request.called = True
            registers = self.oracle.registers[request.pe]
            registers.update(zip(REGISTERS, request.x, strict=True))
            registers.update(pstate=request.pstate, pc=self.code.after_call(request.kind, request.context))
            if request.raises is not None and self.edges:
                self._raised.add(request.raises)
        else:
            self._call(request)

    def _owned(self) -> set[tuple[int, int]]:
        """The interrupts that are the service's, as they are while their event is registered."""
        handlers = [(intid, h) for intid, event in self.oracle.interrupts.items() for h in event.handlers]
        return {(intid, h.pe or 0) for intid, h in handlers if h.status & REGISTERED}

    def _forget_edges(self, moved: set[tuple[int, int]]) -> None:
        """An edge does not survive a change of owners; of one that is just being made nobody can tell."""
        self._raised -= moved
        for request in self._requests.values():
            if request.raises in moved:
                request.raises = None

    def overdue(self) -> str:
        """An interrupt of the machine that ought to have become an event, if there is one."""
        for intid, where in self._raised:
            event = self.oracle.interrupts.get(intid)
            if event is None:
                continue
            handler = event.handlers[where]
            takers = (pe for pe in self.oracle.all_pes if handler.routed_to in (None, pe.index))
            fits = any(pe.room >= handler.needs for pe in takers)
            if fits and handler.status == IDLE and not handler.pending:
                return f"interrupt {intid} does not become event {event.number:#x}, which could be taken"
        return ""

    # -- the host

    def _on_inject(self, event: int, pe: int | None, result: Any) -> None:
        wanted = self.oracle.inject(event, pe or 0)
        found = OUTCOMES[result] if isinstance(result, type) else "raised"
        if found != wanted:
            raise Mismatch("host", f"injecting event {event:#x}: {found}, not {wanted}")

    def _on_cancel(self, event: int, pe: int | None, result: Any) -> None:
        wanted = self.oracle.cancel(event, pe or 0)
        if OUTCOMES[result] != wanted:
            raise Mismatch("host", f"cancelling event {event:#x}: {OUTCOMES[result]}, not {wanted}")

    def _on_interrupt(self, intid: int, pe: int, result: bool) -> None:
        fired = (intid, pe if intid < FIRST_SPI else 0)
        self._raised.discard(fired)
        for request in self._requests.values():
            if request.raises == fired:
                request.raises = None  # that was it, though we have not heard of its end
        wanted = self.oracle.interrupt(intid, pe)
        if result != wanted:
            raise Mismatch("host", f"interrupt {intid} is {'' if result else 'not '}taken for an event's")

    # -- power

    def _on_pe_off(self, pe: int, _result: None) -> None:
        self.psci.power[pe] = "off"
        self._raised = {(intid, where) for intid, where in self._raised if intid >= FIRST_SPI or where != pe}
        for key in [key for key in self._requests if key[0] == pe]:
            del self._requests[key]
        # What handlers had interrupted before it was noted down stays so.
        for c in (1, 2):
            if self._is_under(pe, f"arrive {c}"):
                self._entries[pe, c] = self.puppet.boxes[pe][c]["ENTRIES"]
                self._records.pop((pe, c), None)
        if self._is_under(pe, "resume"):
            self._resumed[pe] = self.puppet.resumes[pe]["ENTRIES"]
            del self._resume_records[pe]
        self.oracle.pe_off(pe)

    def _on_pe_on(self, pe: int, _result: None) -> None:
        if self.psci.power[pe] != "on-pending":
            raise Mismatch("power", f"PE {pe} starts though it is {self.psci.power[pe]}")
        self.psci.power[pe] = "on"
        self.oracle.pe_on(pe)
        self._started(pe)

    def _on_pe_suspend(self, pe: int, went: bool) -> None:
        if went != self.oracle.pe_suspend(pe):
            raise Mismatch("power", f"PE {pe} goes to sleep though an event waits, or does not for no reason")
        if went:
            del self._requests[pe, self.context(pe)]
        else:
            self.oracle.registers[pe].update(x0=0, x1=0, x2=0, x3=0)
            del self._context_ids[pe]

    def _on_pe_resume(self, pe: int, _result: None) -> None:
        if not self.oracle.pes[pe].asleep:
            raise Mismatch("power", f"PE {pe} wakes up twice")
        self.oracle.pe_resume(pe)
        self._waking.discard(pe)
        self._started(pe)
        for c in (1, 2):
            if (pe, c) in self._records and self._is_under(pe, f"arrive {c}"):
                self._may_find(self._records[pe, c], pe)

    def _started(self, pe: int) -> None:
        """The guest's first instructions; masked, so nothing can come between."""
        registers = self.oracle.registers[pe]
        c = self.context(pe)
        self._entries[pe, c] += 1
        self._records.pop((pe, c), None)
        at = self.code.at
        registers.update(elr=at["ELR_VALUE"], spsr=at["SPSR_VALUE"], vbar=self.code.vbar(pe), sctlr=(pe & 1) << 23)
        registers.update(pc=at["_start"], pstate=0x3C5)

    def _on_reset(self, _result: None) -> None:
        self.oracle.reset()
        self._forget()


def hexes(values: Iterable[int]) -> str:
    return ", ".join(f"{value:#x}" for value in values) or "none"


def differences(names: Sequence[str], found: Iterable[int], wanted: Sequence[int]) -> str:
    """What is not as it should be, in words; empty if all is. Of what is found, as many count as there are names."""
    found = tuple(found)[: len(names)]
    if found == tuple(wanted):
        return ""
    rows = zip(names, found, wanted, strict=True)
    return ", ".join(f"{name} is {f:#x} instead of {w:#x}" for name, f, w in rows if f != w)
