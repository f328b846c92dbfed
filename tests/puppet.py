# SPDX-License-Identifier: Apache-2.0
"""A guest on strings: real AArch64 code that makes any call the host asks for, also inside of handlers.

`puppet_guest.S` is the guest. Each PE has three contexts (outside of handlers, in a normal one, in
a critical one), each with a mailbox in RAM. The host writes a request there: x0..x17 and PSTATE for
the call, and by which conduit. The guest makes the call and writes down what it sees afterwards, or
what it sees at the entry of the handler that the call led into, and holds on to it: while it spins
it compares all registers and PSTATE with what it wrote down, and runs into an undefined instruction
if one differs.

:class:`Puppet` starts the machine and keeps a log of what the service does, in order, beside the
guest's own records; :mod:`.puppet_shadow` replays the log into the oracle.
"""

from __future__ import annotations

import functools
import threading
import time
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from elftools.elf.elffile import ELFFile

from sdeivirt.cpu import CpuFeatures
from sdeivirt.errors import EventRunningError, NotRegisteredError, UnknownEventError
from sdeivirt.machine import MachineConfig, open_machine
from sdeivirt.machine.base import RAM_BASE
from sdeivirt.machine.unicorn import UnicornMachine
from sdeivirt.machine.unicorn.schedulers import DeterministicScheduler
from sdeivirt.sdei import EventDefinition
from sdeivirt.sdei.model import Handler, Pe
from sdeivirt.sdei.observer import Observer
from sdeivirt.sdei.policy import POLICIES

from .asm import assemble

__all__ = ["Code", "Mailbox", "Puppet", "Request", "pattern"]

M64 = 2**64 - 1

# The guest's memory.
MAILBOXES = 0x4020_0000  # 4 KiB a PE
STACKS = 0x4030_0000  # 16 KiB a PE
CONTEXT = 0x400
RESUME = 3 * CONTEXT
SP_EL0_VALUE = 0x5E10_0000
VBAR_VALUE = 0x5000_0000  # no memory there: nothing but handlers relative to it
ELR_VALUE = 0xE17E_17E1_7E17_E170
SPSR_VALUE = 0x8000_0305

# A mailbox, or the record of COMPLETE_AND_RESUME: offsets of 64-bit cells.
CELLS = {
    "SEQ": 0x00, "DONE": 0x08, "KIND": 0x10, "ENTRIES": 0x18, "IN_PSTATE": 0x20, "OUT_PSTATE": 0x28,
    "ENTRY_PC": 0x30, "ENTRY_SP": 0x38, "SP0": 0x40, "SP1": 0x48, "ENTRY_ELR": 0x50, "ENTRY_SPSR": 0x58,
    "IN": 0x80, "OUT": 0x120,
}  # fmt: skip

BY_SMC, LEAVE, WFI = 1, 2, 4  # bits of KIND

MEMORY = 4 << 20
DEADLINE = 10.0  # seconds; nothing takes this long
ENOUGH_SLICES = 3000
SHORT_SLICES = (1, 3, 7, 11, 20, 30)
SLICES = (1, 7, 30, 100, 300, 1000)  # instructions; once around a waiting context takes some 150


def pattern(noise: int, count: int = 18) -> list[int]:
    """Registers full of different values."""
    return [(noise * 0x9E37_79B9_7F4A_7C15 + (i + 1) * 0xD1B5_4A32_D192_ED03) & M64 for i in range(count)]


@dataclass(eq=False)
class Request:
    """What a context is asked to do. A request to wait (`WFI`) makes no call."""

    pe: int
    context: int
    kind: int
    x: list[int]
    pstate: int
    seq: int = 0
    called: bool = False


class Code:
    """The guest's image, and what a PC in it means."""

    def __init__(self, features: CpuFeatures) -> None:
        constants = CELLS | {
            "MAILBOXES": MAILBOXES, "STACKS": STACKS, "CONTEXT": CONTEXT, "RESUME": RESUME,
            "SP_EL0_VALUE": SP_EL0_VALUE, "VBAR_VALUE": VBAR_VALUE, "ELR_VALUE": ELR_VALUE, "SPSR_VALUE": SPSR_VALUE,
            "HAVE_PAN": int(features.pan), "HAVE_UAO": int(features.uao), "HAVE_DIT": int(features.dit),
            "HAVE_SSBS": int(features.ssbs),
        }  # fmt: skip
        source = "".join(f"    .equ {name}, {value:#x}\n" for name, value in constants.items())
        self.path = assemble(source + (Path(__file__).parent / "puppet_guest.S").read_text())
        with self.path.open("rb") as file:
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
            for call in ("hvc", "smc", "wfi", *(("leave_hvc", "leave_smc") if c else ())):
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

    def after_call(self, request: Request) -> int:
        """Where the call of a request comes back to."""
        names = {0: "hvc", BY_SMC: "smc", LEAVE: "leave_hvc", LEAVE | BY_SMC: "leave_smc", WFI: "wfi"}
        return self.at[f"{names[request.kind]}_{request.context}"] + 4

    def handler(self, slot: int, critical: bool) -> int:
        """The entry point of a handler, with others 0x1800 bytes around it."""
        return self.at["critical_entries" if critical else "normal_entries"] + 0x1800 + 16 * slot

    def resume_address(self, slot: int) -> int:
        return self.at["resume_entries"] + 16 * slot

    @staticmethod
    def vbar(pe: int) -> int:
        return VBAR_VALUE + 0x800 * pe


@functools.cache
def code(features: CpuFeatures) -> Code:
    return Code(features)


class Mailbox:
    """A context's mailbox, or the record of its COMPLETE_AND_RESUME, in the guest's memory."""

    def __init__(self, words: memoryview, pe: int, offset: int) -> None:
        self._words = words
        self._base = (MAILBOXES - RAM_BASE + 0x1000 * pe + offset) // 8

    def __getitem__(self, name: str) -> int:
        value: int = self._words[self._base + CELLS[name] // 8]
        return value

    @property
    def out(self) -> list[int]:
        """x0..x17 as the guest saw them last."""
        at = self._base + CELLS["OUT"] // 8
        return self._words[at : at + 18].tolist()

    def write(self, request: Request) -> None:
        """Hand a request over; its number comes last."""
        words, base = self._words, self._base
        for i, value in enumerate(request.x):
            words[base + CELLS["IN"] // 8 + i] = value
        words[base + CELLS["IN_PSTATE"] // 8] = request.pstate
        words[base + CELLS["KIND"] // 8] = request.kind
        request.seq = self["SEQ"] + 1
        words[base + CELLS["SEQ"] // 8] = request.seq


class Gate:
    """Lets the machine's thread run a few slices at a time, so that all that happens depends on the seed alone."""

    def __init__(self, machine: UnicornMachine) -> None:
        self._machine = machine
        self._condition = threading.Condition()
        self._credit = 0
        self._waits = False
        self.next = 0  # the vCPU whose slice begins when the gate opens
        self._open = False
        machine.on_slice = self._slice

    def _slice(self, vcpu: int, _pc: int) -> None:
        machine = self._machine
        with self._condition:
            self.next = vcpu
            self._waits = True
            self._condition.notify_all()
            # A pause goes through, or it would wait for us for ever.
            while not (self._credit or self._open or machine._pause or machine._ending):
                self._condition.wait(0.001)
            self._waits = False
            self._credit = max(self._credit - 1, 0)

    def grant(self, slices: int) -> None:
        """Run some slices; returns when they have ended, or the machine has."""
        with self._condition:
            self._credit = slices
            self._waits = False
            self._condition.notify_all()
            end = time.monotonic() + DEADLINE
            while not (self._waits and not self._credit) and self._machine.state != "stopped":
                assert time.monotonic() < end, "no vCPU runs"
                self._condition.wait(0.05)

    def open(self) -> None:
        with self._condition:
            self._open = True
            self._condition.notify_all()


Entry = tuple[Any, ...]


class _Deliveries(Observer):
    def __init__(self, log: deque[Entry]) -> None:
        self._log = log

    def delivered(self, pe: Pe, handler: Handler) -> None:
        assert pe.frame is not None
        self._log.append(("delivered", pe.index, handler.event.number, memoryview(pe.frame.saved).cast("Q").tolist()))


class Puppet:
    """The machine with the guest on it. Without a `seed` it runs freely, beside the host."""

    def __init__(
        self,
        pes: int,
        events: Iterable[EventDefinition],
        policy: str,
        slots: tuple[int, int],
        seed: int | None,
    ) -> None:
        config = MachineConfig(
            vcpus=pes,
            memory=MEMORY,
            policy=replace(POLICIES[policy], private_slots=slots[0], shared_slots=slots[1]),
            events=tuple(events),
            seed=seed,
        )
        machine = open_machine("unicorn", config)
        assert isinstance(machine, UnicornMachine)
        self.machine = machine
        self.features = machine.firmware.pes[0].features
        self.code = code(self.features)
        self.log: deque[Entry] = deque()  # appended with the machine's lock held, so its order is the order of things
        self._listen()
        self.gate = Gate(machine) if seed is not None else None
        if isinstance(machine._scheduler, DeterministicScheduler):
            machine._scheduler.SLICES = SLICES
        words = memoryview(machine.ram).cast("Q")
        self.boxes = [[Mailbox(words, pe, CONTEXT * c) for c in range(3)] for pe in range(pes)]
        self.resumes = [Mailbox(words, pe, RESUME) for pe in range(pes)]
        machine.load(self.code.path)
        machine.start()

    def _listen(self) -> None:
        """Have what the machine tells the firmware, and when, written to the log."""
        firmware, log = self.machine.firmware, self.log
        firmware.sdei.observe(_Deliveries(log))

        def hypercall(pe: Pe, view: Any) -> bool:
            log.append(("call", pe.index, view.x[:6].tolist()))
            goes_on = self._hypercall(pe, view)
            log.append(("looked", pe.index))
            return goes_on

        def deliver(pe: Pe, view: Any) -> bool:
            log.append(("look", pe.index))
            entered = self._deliver(pe, view)
            log.append(("looked", pe.index))
            return entered

        self._hypercall: Callable[[Pe, Any], bool] = firmware.hypercall
        self._deliver: Callable[[Pe, Any], bool] = firmware.deliver
        firmware.__dict__.update(hypercall=hypercall, deliver=deliver)

        def told(name: str) -> Callable[..., Any]:
            function = getattr(firmware.sdei, name)

            def logged(*arguments: Any) -> Any:
                plain = [argument.index if isinstance(argument, Pe) else argument for argument in arguments]
                try:
                    result = function(*arguments)
                except (UnknownEventError, NotRegisteredError, EventRunningError) as error:
                    log.append((name, *plain, type(error)))
                    raise
                log.append((name, *plain, result))
                return result

            return logged

        names = ("pe_on", "pe_off", "pe_suspend", "pe_resume", "reset", "inject", "cancel", "interrupt")
        firmware.sdei.__dict__.update({name: told(name) for name in names})

    def post(self, request: Request) -> None:
        """Have a context make a call."""
        self.boxes[request.pe][request.context].write(request)

    def interrupt(self, intid: int, pe: int) -> bool:
        """A device raises an interrupt."""
        machine = self.machine
        with machine.lock:
            taken = machine.firmware.sdei.interrupt(intid, pe)
            kicks = machine.firmware.take_kicks()
        machine.kick(kicks)
        return taken

    def run(self, slices: int) -> None:
        """Let the guest go on for a little."""
        if self.gate is not None:
            self.gate.grant(slices)

    def catch(self, pe: int, what: str, goes_on: bool = False) -> None:
        """Stop the PE in the midst of something (see :meth:`Code.place`), if it comes by.

        Kicks are served after the next slice; `goes_on` says whether that is to be the PE's own.
        """
        gate, scheduler = self.gate, self.machine._scheduler
        if gate is None or not isinstance(scheduler, DeterministicScheduler):
            return
        scheduler.SLICES = SHORT_SLICES
        for _ in range(200):
            if self.machine.state != "running":
                break
            if (gate.next == pe) == goes_on and self.code.place(self.machine.vcpus[pe].pc).startswith(what):
                break
            gate.grant(1)
        scheduler.SLICES = SLICES

    def until(self, unrest: Callable[[], str], prod: Callable[[], None]) -> None:
        """Run until `unrest` has nothing more to say. `prod` is called now and then."""
        end = time.monotonic() + DEADLINE
        slices = 0
        moment = threading.Event()
        while reason := unrest():
            if self.machine.state == "stopped":
                raise AssertionError(f"the guest stopped: {reason}\n{self.last_words()}")
            assert slices < ENOUGH_SLICES, f"nothing happens: {reason}"
            assert time.monotonic() < end, f"nothing happens: {reason}"
            prod()
            if self.gate is not None:
                self.gate.grant(4)
                slices += 4
            else:
                moment.wait(0.0002)

    @contextmanager
    def still(self) -> Iterator[None]:
        """No vCPU runs while this lasts."""
        if self.gate is not None:
            yield
            return
        self.machine.pause()
        try:
            yield
        finally:
            self.machine.resume()

    def last_words(self) -> str:
        """Why the guest stopped: which registers are not what they were."""
        outcome = self.machine.wait(DEADLINE)
        lines = []
        for fault in outcome.faults:
            lines.append(f"{fault.render()}\nin {self.code.place(fault.pc)}")
            for c, box in enumerate(self.boxes[fault.vcpu]):
                wrong = {
                    f"x{i}": (hex(fault.registers[f"x{i}"]), hex(value))
                    for i, value in enumerate(box.out)
                    if fault.registers[f"x{i}"] != value
                }
                if fault.pc == self.code.at[f"bad_{c}"]:
                    lines.append(f"registers of context {c} (found, wanted): {wrong}")
                    lines.append(f"pstate found {fault.registers['pstate']:#x}, wanted {box['OUT_PSTATE']:#x}")
        return "\n".join(lines) or outcome.reason.value

    def close(self) -> None:
        if self.gate is not None:
            self.gate.open()
        self.machine.close()
