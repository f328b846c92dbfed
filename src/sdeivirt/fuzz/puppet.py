# SPDX-License-Identifier: Apache-2.0
"""A guest on strings: real AArch64 code that makes any call the host asks for, also inside of handlers.

`guests/puppet.S` is the guest. Each PE has three contexts (outside of handlers, in a normal one, in
a critical one), each with a mailbox in RAM. The host writes a request there: x0..x17 and PSTATE for
the call, and by which conduit. The guest makes the call and writes down what it sees afterwards, or
what it sees at the entry of the handler that the call led into, and holds on to it: while it spins
it compares all registers and PSTATE with what it wrote down, and runs into an undefined instruction
if one differs.

:class:`Puppet` starts a machine of any kind with it and keeps a log of what the service does, in order, beside
the guest's own records; :mod:`.shadow` replays the log into the oracle.
"""

from __future__ import annotations

import struct
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from ..asyncpf import OFF
from ..errors import EventRunningError, NotRegisteredError, SdeivirtError, UnknownEventError, UsageError
from ..machine import MachineConfig, open_machine
from ..machine.base import RAM_BASE, EngineOptions, Machine
from ..machine.unicorn import UnicornMachine
from ..sdei import EventDefinition
from ..sdei.model import Handler, Pe
from ..sdei.observer import Observer
from ..sdei.policy import POLICIES
from .gate import Gate
from .puppet_code import puppet_code

__all__ = ["Mismatch", "Mailbox", "Puppet", "Request"]

MEMORY = 8 << 20
DEADLINE = 20.0  # seconds of a machine that runs freely; nothing takes this long
ENOUGH_SLICES = 3000  # of one that does not
PAUSE = 0.0002  # seconds between two looks at a machine that runs freely

_WORD = struct.Struct("Q")
_REGISTERS = struct.Struct("18Q")
_ALL = struct.Struct("54Q")
_CELLS = (
    "SEQ", "DONE", "KIND", "ENTRIES", "IN_PSTATE", "OUT_PSTATE", "FEATURES", "IN", "OUT",
    "CRASHED", "CRASH_ESR", "CRASH_ELR", "CRASH_SPSR", "CRASH_FAR", "CRASH_SP0", "CRASH_SP1", "CRASH_X",
)  # fmt: skip


class Mismatch(Exception):
    """The machine did something else than it ought to have done. `kind` names the sort."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


@dataclass(eq=False, slots=True)
class Request:
    """What a context is asked to do. Those to wait (WFI) and to store a word (POKE) make no call.

    `raises` is the interrupt that a store makes pending: its number, and the PE of a private one or 0.
    """

    pe: int
    context: int
    kind: int
    x: list[int]
    pstate: int
    seq: int = 0
    called: bool = False
    raises: tuple[int, int] | None = None


class Mailbox:
    """A context's mailbox, or another record of a PE, in the guest's memory. Cells have the guest's names."""

    def __init__(self, machine: Machine, pe: int, offset: int) -> None:
        self._memory = machine.memory
        at = puppet_code().at
        base = at["mailboxes"] - RAM_BASE + at["MAILBOX_SIZE"] * pe + offset
        self._at = {name: base + at[name] for name in _CELLS}
        self._base = base

    def __getitem__(self, name: str) -> int:
        value: int = _WORD.unpack_from(self._memory(), self._at[name])[0]
        return value

    def _set(self, name: str, value: int) -> None:
        # One store: struct would write zeroes first, and the guest looks on.
        self._memory().cast("Q")[self._at[name] >> 3] = value

    @property
    def out(self) -> tuple[int, ...]:
        """x0..x17 as the guest saw them last."""
        return _REGISTERS.unpack_from(self._memory(), self._at["OUT"])

    def words(self, name: str, count: int) -> tuple[int, ...]:
        """Some cells in a row."""
        return struct.unpack_from(f"{count}Q", self._memory(), self._at[name])

    def all(self) -> tuple[int, ...]:
        """All cells of a context's mailbox: that at an offset of n bytes stands at n / 8."""
        return _ALL.unpack_from(self._memory(), self._base)

    def write(self, request: Request) -> None:
        """Hand a request over; its number comes last."""
        _REGISTERS.pack_into(self._memory(), self._at["IN"], *request.x)
        self._set("IN_PSTATE", request.pstate)
        self._set("KIND", request.kind)
        request.seq = self["SEQ"] + 1
        self._set("SEQ", request.seq)


Entry = tuple[Any, ...]


class _Deliveries(Observer):
    def __init__(self, log: deque[Entry]) -> None:
        self._log = log

    def delivered(self, pe: Pe, handler: Handler) -> None:
        assert pe.frame is not None
        self._log.append(("delivered", pe.index, handler.event.number, memoryview(pe.frame.saved).cast("Q").tolist()))


def _engine(kind: str, contexts: bool) -> EngineOptions | None:
    """Options with which the machine's PEs have PAN, UAO and SSBS, as far as it has options."""
    if kind != "qemu":
        return None
    from ..machine.qemu.options import QemuOptions

    return QemuOptions(cpu="neoverse-n1", contexts=contexts)


class Puppet:
    """A machine with the guest on it. With a `seed` it moves only when it is told to, else freely, beside the host.

    `contexts` is machine qemu's option: whether its monitor answers EVENT_CONTEXT. Raises what opening a machine
    raises, and UsageError for too many PEs.
    """

    def __init__(
        self,
        kind: str,
        pes: int,
        events: Iterable[EventDefinition],
        policy: str,
        slots: tuple[int, int],
        seed: int | None,
        contexts: bool = True,
    ) -> None:
        self.code = code = puppet_code()
        if pes > code.at["MAX_PES"]:
            raise UsageError(f"the fuzzer's guest cannot have {pes} vCPUs", f"it can have 1 to {code.at['MAX_PES']}")
        config = MachineConfig(
            name="fuzz",
            vcpus=pes,
            memory=MEMORY,
            policy=replace(POLICIES[policy], private_slots=slots[0], shared_slots=slots[1]),
            events=tuple(events),
            seed=seed,
            engine=_engine(kind, contexts),
            async_pf=OFF,  # neither the oracle nor its rules know them
        )
        self.kind = kind
        self.machine = machine = open_machine(kind, config)
        self.answers_contexts = kind == "qemu" and contexts
        # Appended to with the machine's lock held, so its order is the order of things.
        self.log: deque[Entry] = deque()
        self._listen()
        self.gate: Gate | None = None
        if seed is not None:
            assert isinstance(machine, UnicornMachine)
            self.gate = Gate(machine)
        step = code.at["CONTEXT"]
        self.boxes = [[Mailbox(machine, pe, step * c) for c in range(3)] for pe in range(pes)]
        self.resumes = [Mailbox(machine, pe, code.at["RESUME"]) for pe in range(pes)]
        self._crashes = [Mailbox(machine, pe, code.at["CRASH"]) for pe in range(pes)]
        try:
            machine.load(code.path)
            machine.start()
            self.until(lambda: "" if self.boxes[0][0]["FEATURES"] else "the guest does not begin")
        except BaseException:
            self.close()
            raise

    @property
    def features(self) -> list[str]:
        """The optional bits of PSTATE that the guest says it has."""
        found = self.boxes[0][0]["FEATURES"]
        return [name for name in ("pan", "uao", "dit", "ssbs") if found >> self.code.at[f"HAS_{name.upper()}"] & 1]

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
        vars(firmware).update(hypercall=hypercall, deliver=deliver)

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
        vars(firmware.sdei).update({name: told(name) for name in names})

    # -- what the host does

    def post(self, request: Request) -> None:
        """Have a context do what it is asked for."""
        self.boxes[request.pe][request.context].write(request)

    def interrupt(self, intid: int, pe: int) -> bool:
        """A device raises an interrupt, where the machine has no interrupt controller: the service is told directly."""
        machine = self.machine
        with machine.lock:
            taken = machine.firmware.sdei.interrupt(intid, pe)
            kicks = machine.firmware.take_kicks()
        machine.kick(kicks)
        return taken

    def run(self, slices: int) -> None:
        """Let a machine with a seed go on for a little."""
        if self.gate is not None and not self.gate.grant(slices):
            raise Mismatch("liveness", "no vCPU runs")

    def catch(self, pe: int, what: str, goes_on: bool = False) -> None:
        """Stop the PE in the midst of something (see :meth:`Code.place`), if it comes by; with a seed only."""
        gate = self.gate
        if gate is not None and not gate.catch(pe, lambda pc: self.code.place(pc).startswith(what), goes_on):
            raise Mismatch("liveness", "no vCPU runs")

    def until(self, unrest: Callable[[], str], prod: Callable[[], None] = lambda: None) -> None:
        """Run until `unrest` has nothing more to say. `prod` is called now and then. Raises Mismatch."""
        end = time.monotonic() + DEADLINE
        slices = 0
        moment = threading.Event()
        while reason := unrest():
            self.look_after()
            # What follows from a seed must not depend on how busy the host is.
            if slices > ENOUGH_SLICES if self.gate is not None else time.monotonic() > end:
                raise Mismatch("liveness", f"nothing happens: {reason}")
            prod()
            if self.gate is not None:
                self.run(4)
                slices += 4
            else:
                moment.wait(PAUSE)

    @contextmanager
    def still(self) -> Iterator[None]:
        """No vCPU of the embedded machine runs while this lasts; on others, none has anything to do."""
        if self.gate is not None or self.kind != "unicorn":
            yield
            return
        self.machine.pause()
        try:
            yield
        finally:
            self.machine.resume()

    # -- ends that nobody wanted

    def look_after(self) -> None:
        """Raises Mismatch where the machine has stopped, or a PE has taken an exception."""
        if self.machine.state == "stopped":
            raise Mismatch("stopped", self._last_words())
        for pe, record in enumerate(self._crashes):
            if self.machine.state != "created" and record["CRASHED"]:
                raise Mismatch("guest", self._exception(pe, record))

    def _last_words(self) -> str:
        """Why the machine stopped. A defect of ours that ended it is raised as it is."""
        try:
            outcome = self.machine.wait(DEADLINE)
        except SdeivirtError as error:  # QEMU has died
            return str(error)
        faults = [f"{fault.render()}\nin {self.code.place(fault.pc)}" for fault in outcome.faults]
        return "\n".join(["the machine stopped: " + outcome.reason.value, *faults])

    def _exception(self, pe: int, record: Mailbox) -> str:
        """What a PE found that it ran into an undefined instruction for, or why else it took an exception."""
        elr, x = record["CRASH_ELR"], record.words("CRASH_X", 31)
        for c, box in enumerate(self.boxes[pe]):
            if elr == self.code.at[f"bad_{c}"]:
                wrong = [
                    f"x{i} is {found:#x} instead of {wanted:#x}"
                    for i, (found, wanted) in enumerate(zip(x, box.out, strict=False))
                    if found != wanted
                ]
                if (found := record["CRASH_SPSR"]) != (wanted := box["OUT_PSTATE"]):
                    wrong.append(f"pstate is {found:#x} instead of {wanted:#x}")
                wrong += [
                    f"x{i} is {x[i]:#x}" for i in range(23, 31) if x[i] != (0xC000 + int(str(i), 16)) << 48 ^ x[18]
                ]
                wrong.append(f"sp_el0 is {record['CRASH_SP0']:#x}, sp_el1 {record['CRASH_SP1']:#x}")
                return f"registers of PE {pe} changed behind the back of its context {c}: {', '.join(wrong)}"
        esr, far = record["CRASH_ESR"], record["CRASH_FAR"]
        return f"PE {pe} took an exception at {elr:#x} ({self.code.place(elr)}), ESR_EL1 {esr:#x}, FAR_EL1 {far:#x}"

    def close(self) -> None:
        if self.gate is not None:
            self.gate.open()
        self.machine.close()
