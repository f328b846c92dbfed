# SPDX-License-Identifier: Apache-2.0
"""What the puppet ought to see: its log replayed into the oracle, step by step.

The log says in which order things happened: that PE 2 called, that it was put into a handler
before the call returned, that the host injected. Whether each step was right, and what registers
the guest must find, the oracle says; what it did find, it has written into its memory.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from sdeivirt.errors import EventRunningError, NotRegisteredError, UnknownEventError
from sdeivirt.sdei import EventDefinition

from .oracle import CONTEXT, M64, Handler, Oracle
from .puppet import (
    BY_SMC,
    ELR_VALUE,
    LEAVE,
    MEMORY,
    SP_EL0_VALUE,
    SPSR_VALUE,
    STACKS,
    WFI,
    Mailbox,
    Puppet,
    Request,
)  # fmt: skip

__all__ = ["CPU_OFF", "CPU_ON", "CPU_SUSPEND", "AFFINITY_INFO", "SYSTEM_RESET", "Shadow"]

CPU_SUSPEND, CPU_OFF, CPU_ON, AFFINITY_INFO = 0xC400_0001, 0x8400_0002, 0xC400_0003, 0xC400_0004
SYSTEM_RESET = 0x8400_0009
POWERDOWN = 1 << 16
RAM = range(0x4000_0000, 0x4000_0000 + MEMORY)
REGISTERS = [f"x{i}" for i in range(18)]

PSTATE_BITS = {"pan": 1 << 22, "uao": 1 << 23, "dit": 1 << 24, "ssbs": 1 << 12}

OUTCOMES = {
    UnknownEventError: "unknown",
    NotRegisteredError: "not registered",
    EventRunningError: "running",
    True: "cancelled",
    False: "not pending",
}


class Shadow:
    """The oracle beside a puppet, and the requests that are under way."""

    def __init__(
        self, pes: range, events: Iterable[EventDefinition], policy: str, slots: tuple[int, int], seed: int | None
    ) -> None:
        events = list(events)
        self.puppet = Puppet(len(pes), events, policy, slots, seed)
        self.code = self.puppet.code
        features = [name for name in ("pan", "uao", "dit", "ssbs") if getattr(self.puppet.features, name)]
        self.oracle = Oracle(list(pes), events, policy, slots, features)
        self.pes = pes
        self._pstate_bits = 0xF000_03C5 | sum(PSTATE_BITS[name] for name in features)
        self._forget()
        self._step: dict[int, str] = {}  # PEs in the middle of a call or a look, and whether they have entered
        self.entered: list[tuple[int, int]] = []
        self.sound = True  # nothing was wrong so far
        try:
            self.settle()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        self.puppet.close()

    def _forget(self) -> None:
        """As a machine that was just reset."""
        self._power = {pe: "off" if pe else "on-pending" for pe in self.pes}
        self._requests: dict[tuple[int, int], Request] = {}
        self._entries = {(pe, c): 0 for pe in self.pes for c in range(3)}
        self._records: dict[tuple[int, int], tuple[int, list[tuple[int, int]], str]] = {}
        self._waking: set[int] = set()
        self._resumed = dict.fromkeys(self.pes, 0)
        self._resume_records: dict[int, dict[str, int]] = {}
        # PEs that were powered up: x0 is known (but for PE 0's, the device tree), the others may be anything.
        self._context_ids: dict[int, int | None] = {0: None}

    # -- where a PE is

    def up(self, pe: int) -> bool:
        """Whether it runs guest code."""
        state = self.oracle.pes[pe]
        return self._power[pe] == "on" and state.online and not state.asleep

    def stays_up(self, pe: int) -> bool:
        """Whether nothing that the PE was asked to do puts it to sleep, perhaps only when a handler has ended."""
        requests = (request for request in self._requests.values() if request.pe == pe)
        return self.up(pe) and not any(r.kind & WFI or r.x[0] in (CPU_OFF, CPU_SUSPEND) for r in requests)

    def context(self, pe: int) -> int:
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
        places = [self.code.place(frame.saved["pc"]) for frame in self.oracle.pes[pe].frames]
        if "resume" in places:
            places.append(self.code.place(self.oracle.registers[pe]["elr"]))
        return place in places

    def needs_elr(self, pe: int) -> bool:
        """Whether something waits that a second COMPLETE_AND_RESUME, or a power-down, would lead astray."""
        return self._is_under(pe, "resume")

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

    # -- what the host does

    def post(self, pe: int, x: list[int], pstate: int, *, leave: bool = False, smc: bool = False) -> None:
        """Have the PE make a call; `leave` where it ends a handler if it succeeds."""
        assert self.ready(pe)
        c = self.context(pe)
        leave = leave and c > 0
        if leave:
            pstate |= 1  # what a handler has to give back is on the stack, which is SP_EL1's
        self._put(Request(pe, c, LEAVE * leave | BY_SMC * smc, x, pstate & self._pstate_bits))

    def post_wfi(self, pe: int, x: list[int], pstate: int) -> None:
        """Have the PE wait for an event."""
        assert self.ready(pe)
        self._put(Request(pe, self.context(pe), WFI, x, pstate & self._pstate_bits))

    def _put(self, request: Request) -> None:
        self._requests[request.pe, request.context] = request
        self.puppet.post(request)

    def settle(self) -> None:
        """Let the guest run until there is nothing to do, and compare."""
        self.sound = False
        while not self.sound:
            self.puppet.until(self._unrest, self._prod)
            with self.puppet.still():
                # A kick that proved needless may have come between, and woken a PE.
                if not self._unrest():
                    self.compare()
                    self.sound = True

    def expect_up(self, pe: int) -> None:
        """The PE has been suspended and is to run again, masked."""
        self._waking.add(pe)

    def _unrest(self) -> str:
        """What is still to happen, or nothing."""
        self.drain()
        waiting = self.oracle.deliverable()
        if waiting:
            handler, takers = waiting[0]
            return f"event {handler.event:#x} is ready, PEs {sorted(takers)} could take it"
        for pe in self.pes:
            if self.oracle.wakes(pe):
                return f"PE {pe} sleeps through an event"
            if self._power[pe] == "on-pending" or pe in self._waking:
                return f"PE {pe} does not start"
            if not self.up(pe):
                continue
            c = self.context(pe)
            box = self.puppet.boxes[pe][c]
            if box["ENTRIES"] != self._entries[pe, c]:
                return f"PE {pe} does not arrive in context {c}"
            if self.puppet.resumes[pe]["ENTRIES"] != self._resumed[pe] and not self.needs_elr(pe):
                return f"PE {pe} does not resume"
            request = self._requests.get((pe, c))
            if request is not None:
                if box["DONE"] != request.seq or not (request.called or request.kind & WFI):
                    return (
                        f"PE {pe} has not done its request in context {c}: {'called' if request.called else 'posted'}"
                    )
                if not request.called:
                    self._waited(request)
                del self._requests[pe, c]
        return ""

    def _prod(self) -> None:
        """PEs wait for an event that nobody raised: any kick ends that. Not while one is due: that has to do so."""
        if not self.oracle.deliverable():
            for request in list(self._requests.values()):
                waits = request.kind & WFI or (request.called and request.x[0] == CPU_SUSPEND)
                if waits and self.context(request.pe) == request.context and self.up(request.pe):
                    self.puppet.machine.kick(1 << request.pe)

    def drain(self) -> None:
        """Replay what has happened since."""
        log = self.puppet.log
        while log:
            name, *arguments = log.popleft()
            getattr(self, f"_on_{name}")(*arguments)

    # -- the log, entry by entry

    def _on_call(self, pe: int, window: list[int]) -> None:
        if self._resuming(pe):
            self._go_back(pe)
        c = self.context(pe)
        request = self._requests.get((pe, c))
        assert request is not None, f"PE {pe} makes a call in context {c} that nobody asked for"
        assert not request.called, f"PE {pe} makes a call in context {c} for the second time"
        assert not request.kind & WFI
        assert window == request.x[:6], f"PE {pe} calls with other registers than it was given"
        request.called = True
        registers = self.oracle.registers[pe]
        registers.update(zip(REGISTERS, request.x, strict=True))
        registers.update(pstate=request.pstate, pc=self.code.after_call(request))
        self._step[pe] = "call"
        frames = len(self.oracle.pes[pe].frames)
        if request.x[0] & 0xBFFF_FFE0 == 0x8400_0000:
            result = self._psci(pe, request.x)
            if result is not None:
                registers.update(x0=result & M64, x1=0, x2=0, x3=0)
        else:
            self.oracle.call(pe)
        if len(self.oracle.pes[pe].frames) < frames:
            del self._requests[pe, c]
            if self._resuming(pe) and request.x[0] & 0xFFFF_FFFF == 0xC400_0026:
                self._resumed[pe] += 1
                self._resume_records[pe] = dict(registers)
                record = self._records.get((pe, self.context(pe)))
                if record and self.code.place(registers["elr"]).startswith("arrive"):
                    record[1].append((registers["elr"], registers["spsr"]))  # perhaps not read yet, or not both

    def _on_look(self, pe: int) -> None:
        self._step[pe] = "look"

    def _on_looked(self, pe: int) -> None:
        step = self._step.pop(pe)
        if step != "entered":
            allowed, must = self.oracle.allowed(pe)
            assert not must, f"PE {pe} did not enter any of {allowed} at a {step}"

    def _on_delivered(self, pe: int, event: int, saved: list[int]) -> None:
        step = self._step[pe]
        assert step != "entered", f"PE {pe} entered two handlers at once"
        self._step[pe] = "entered"
        if step == "look":
            self._interrupted(pe, saved)
        registers = self.oracle.registers[pe]
        wanted = [registers[name] for name in CONTEXT]
        wrong = {n: (hex(f), hex(w)) for n, f, w in zip(CONTEXT, saved, wanted, strict=True) if f != w}
        assert not wrong, f"event {event:#x} interrupts PE {pe} with other registers (found, wanted): {wrong}"
        allowed, _ = self.oracle.allowed(pe)
        assert event in allowed, f"PE {pe} entered event {event:#x}, allowed were {allowed}"
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
        if place == "resume":
            assert self._resuming(pe), f"PE {pe} is in the resume stub for no reason"
        elif self._resuming(pe):
            self._go_back(pe)
        c = self.context(pe)
        request = self._requests.get((pe, c))
        if place == f"take {c}":
            # Each register has still its old value or already that of the request; so has each bit of PSTATE.
            assert request is not None, f"PE {pe} makes a call in context {c} that nobody asked for"
            assert not request.called
            for name, found, new in zip(REGISTERS, saved, request.x, strict=False):
                assert found in (registers[name], new), f"{name} of PE {pe} is {found:#x}"
            pstate = saved[19]
            assert not (pstate ^ registers["pstate"]) & (pstate ^ request.pstate), f"PE {pe} has PSTATE {pstate:#x}"
            registers.update(zip(CONTEXT, saved, strict=True))
        else:
            assert place in (f"arrive {c}", f"rest {c}", f"tell {c}", "resume"), (
                f"PE {pe} was interrupted at {pc:#x} ({place}) in context {c}"
            )
            if request is not None and request.kind & WFI and not request.called and self._beyond_wfi(request, pc):
                self._waited(request)
        registers["pc"] = pc

    def _beyond_wfi(self, request: Request, pc: int) -> bool:
        c = request.context
        done = self.puppet.boxes[request.pe][c]["DONE"] == request.seq
        return (
            done or pc == self.code.after_call(request) or self.code.at[f"store_{c}"] <= pc < self.code.at[f"bad_{c}"]
        )

    def _waited(self, request: Request) -> None:
        """A WFI is over: it changed nothing."""
        request.called = True
        registers = self.oracle.registers[request.pe]
        registers.update(zip(REGISTERS, request.x, strict=True))
        registers.update(pstate=request.pstate, pc=self.code.after_call(request))

    def _on_inject(self, event: int, pe: int | None, result: Any) -> None:
        wanted = self.oracle.inject(event, pe or 0)
        assert OUTCOMES.get(result, "raised") == wanted if isinstance(result, type) else wanted == "raised"

    def _on_cancel(self, event: int, pe: int | None, result: Any) -> None:
        assert OUTCOMES[result] == self.oracle.cancel(event, pe or 0)

    def _on_interrupt(self, intid: int, pe: int, result: bool) -> None:
        assert result == self.oracle.interrupt(intid, pe)

    # -- power

    def _psci(self, pe: int, x: list[int]) -> int | None:
        function, a, b, _context_id = x[:4]
        if function == CPU_ON:
            if a not in self.pes:
                return -2
            if b % 4 or b not in RAM:
                return -9
            state = self._power[a]
            if state == "off":
                self._power[a] = "on-pending"
                self._context_ids[a] = _context_id
            return {"off": 0, "on-pending": -5, "on": -4}[state]
        if function == AFFINITY_INFO:
            return {"on": 0, "off": 1, "on-pending": 2}[self._power[a]]
        if function == CPU_SUSPEND:
            if not a & POWERDOWN:
                return 0
            self._context_ids[pe] = _context_id
            return None  # _on_pe_suspend knows whether it returns
        assert function in (CPU_OFF, SYSTEM_RESET)
        return None

    def _on_pe_off(self, pe: int, _result: None) -> None:
        self._power[pe] = "off"
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
        assert self._power[pe] == "on-pending"
        self._power[pe] = "on"
        self.oracle.pe_on(pe)
        self._started(pe)

    def _on_pe_suspend(self, pe: int, went: bool) -> None:
        assert went == self.oracle.pe_suspend(pe)
        if went:
            del self._requests[pe, self.context(pe)]
        else:
            self.oracle.registers[pe].update(x0=0, x1=0, x2=0, x3=0)
            del self._context_ids[pe]

    def _on_pe_resume(self, pe: int, _result: None) -> None:
        assert self.oracle.pes[pe].asleep, f"PE {pe} wakes up twice"
        self.oracle.pe_resume(pe)
        self._waking.discard(pe)
        self._started(pe)

    def _started(self, pe: int) -> None:
        """The guest's first instructions; masked, so nothing can come between."""
        registers = self.oracle.registers[pe]
        c = self.context(pe)
        self._entries[pe, c] += 1
        self._records.pop((pe, c), None)
        registers.update(elr=ELR_VALUE, spsr=SPSR_VALUE, vbar=self.code.vbar(pe), sctlr=(pe & 1) << 23, pstate=0x3C5)
        registers["pc"] = self.code.at["_start"]

    def _on_reset(self, _result: None) -> None:
        self.oracle.reset()
        self._forget()

    # -- comparing, when nothing moves

    def compare(self) -> None:
        """What the guest wrote down, and what the machine tells, against the oracle."""
        for pe in self.pes:
            if self.up(pe):
                self._compare_guest(pe)
        self.compare_status()

    def _compare_guest(self, pe: int) -> None:
        c = self.context(pe)
        box = self.puppet.boxes[pe][c]
        registers = self.oracle.registers[pe]
        found = box.out
        self._learn(pe, box)
        pstate = registers["spsr"] if self._resuming(pe) else registers["pstate"]
        wanted = [*(registers[name] for name in REGISTERS), pstate]
        rows = zip((*REGISTERS, "pstate"), (*found, box["OUT_PSTATE"]), wanted, strict=True)
        wrong = {name: (hex(f), hex(w)) for name, f, w in rows if f != w}
        assert not wrong, f"PE {pe} in context {c} sees (found, wanted): {wrong}"
        for context in range(3):
            if not self._is_under(pe, f"arrive {context}"):
                self._compare_entry(pe, context)
        if pe in self._resume_records and not self.needs_elr(pe):
            record, resumed = self.puppet.resumes[pe], self._resume_records[pe]
            assert record["ENTRY_PC"] == resumed["pc"]
            assert record.out == [resumed[name] for name in REGISTERS]
            wanted = [resumed[name] for name in ("pstate", "elr", "spsr")]
            assert [record[name] for name in ("OUT_PSTATE", "ENTRY_ELR", "ENTRY_SPSR")] == wanted
            assert record["ENTRY_SP"] in self._stack(pe)

    def _compare_entry(self, pe: int, context: int) -> None:
        """How the last handler of a context was entered; and none was without our knowing."""
        box = self.puppet.boxes[pe][context]
        assert box["ENTRIES"] == self._entries[pe, context], f"context {context} of PE {pe} was entered behind our back"
        if (pe, context) in self._records:
            pc, returns, place = self._records[pe, context]
            assert box["ENTRY_PC"] == pc, f"PE {pe} entered context {context} elsewhere"
            assert box["ENTRY_ELR"] in [elr for elr, _ in returns]
            assert box["ENTRY_SPSR"] in [spsr for _, spsr in returns]
            assert box["SP0"] == SP_EL0_VALUE + 0x10 * pe
            assert box["ENTRY_SP"] in self._stack(pe), f"SP was {box['ENTRY_SP']:#x} when PE {pe} entered {place}"

    @staticmethod
    def _stack(pe: int) -> range:
        return range(STACKS + 0x4000 * pe + 0x10, STACKS + 0x4000 * (pe + 1) + 1, 16)

    def compare_status(self) -> None:
        """Masks, frames, states and counts of all handlers as the machine tells them."""
        status = self.puppet.machine.status()
        for pe, report in zip(self.pes, status.vcpus, strict=True):
            state = self.oracle.pes[pe]
            running = [frame.handler.event for frame in state.frames]
            found = (report.masked, report.running, report.nesting)
            assert found == (state.masked, running, len(running)), f"PE {pe}"
            assert sum(event in self.oracle.critical for event in running) <= 1
            assert sum(event not in self.oracle.critical for event in running) <= 1
            power = "suspended" if state.asleep else self._power[pe]
            assert report.power == power, f"PE {pe} is {report.power}, not {power}"
        reports = {(event.number, report.vcpu): report for event in status.events for report in event.handlers}
        shown = {event.number for event in status.events}
        for handler in self.oracle.handlers.values():
            if handler.event in shown:
                self._compare_handler(handler, reports.get((handler.event, handler.pe)))

    @staticmethod
    def _compare_handler(handler: Handler, report: Any) -> None:
        names = ["registered", "enabled", "running", "pending"]
        names += ["injected", "coalesced", "dropped", "delivered", "completed", "failed"]
        wanted = {name: getattr(handler, name) for name in names}
        if report is None:
            assert not any(wanted.values()), f"event {handler.event:#x} of PE {handler.pe} is not in the report"
            return
        assert {name: getattr(report, name) for name in names} == wanted, f"event {handler.event:#x} of PE {handler.pe}"
        assert report.runs_on == handler.running_on
        if handler.pe is None and handler.registered:
            assert report.routed_to == handler.routed_to
        assert report.injected == report.delivered + report.coalesced + report.dropped + report.pending
