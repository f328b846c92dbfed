# SPDX-License-Identifier: Apache-2.0
"""One vCPU: an engine, and what happens when it traps."""

from __future__ import annotations

import ctypes as C
import enum
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ...cpu import (
    ESR_IL,
    ESR_WNR,
    M64,
    PC,
    PSTATE,
    PSTATE_DAIF,
    PSTATE_I,
    SCTLR,
    SYNCHRONOUS_EXTERNAL_ABORT,
    MODE_EL1h,
    synchronous_vector,
)
from ...errors import StateError
from ...sdei.model import Pe
from ..demand import Fault
from ..disassembly import around
from ..report import FaultReport
from . import gic, traps
from .binding import CpReg, Engine, Q, X
from .binding import arm64_const as reg
from .exceptions import ExceptionNumber, Syndrome, SyndromeReader
from .icc import InterfaceRegisters, decode
from .state import Q_BYTES, Registers
from .sysregs import RegisterReader
from .view import UnicornView

if TYPE_CHECKING:
    from .machine import UnicornMachine

__all__ = ["UnicornVcpu", "VcpuState"]

_UNDEFINED = int(ExceptionNumber.UNDEFINED)
_SVC = int(ExceptionNumber.SVC)
_DATA_ABORT = int(ExceptionNumber.DATA_ABORT)
_ABORTS = (int(ExceptionNumber.PREFETCH_ABORT), _DATA_ABORT)
_CALLS = (int(ExceptionNumber.HVC), int(ExceptionNumber.SMC))

EC_UNKNOWN = 0x00
EC_WFX = 0x01
EC_SYSTEM_REGISTER = 0x18
EC_INSTRUCTION_ABORT = 0x20
_FSC_CLASS = 0x3C
_TRANSLATION = 0x04  # a fault; of which level is in the bits below
_PERMISSION = 0x0C
_AARCH32 = "it executes AArch32 code, which machine unicorn cannot do"
SCTLR_M = 1
PSTATE_SP = 1
PSTATE_EL = 0xF  # which exception level, and which stack: 0 at EL0
PAGE_SHIFT = 12
INSTRUCTION = 4  # bytes
IRQ_VECTOR = 0x80  # behind that for synchronous exceptions

# How many blocks a vCPU gets before it is looked at again, while an interrupt is signalled to it. The guest may have
# interrupts on for a block or two only, again and again: so the lengths must not fit a loop's.
_SOON = (1, 4, 12, 2, 23, 1, 7, 3, 1, 5, 2, 1, 1)
_LATER = (1, 97, 2, 251, 5, 499, 1, 1009, 3, 151)
_MANY = 1000  # looks, after which it seems to want no interrupts
_ANSWERED = 20_000  # it has entered its handler


class VcpuState(enum.Enum):
    OFF = "off"
    RUNNABLE = "runnable"
    WAITING = "waiting"  # WFI or standby: until it is kicked
    SUSPENDED = "suspended"  # powered down in CPU_SUSPEND
    FAULTED = "faulted"


class UnicornVcpu:
    """A vCPU of a :class:`~.machine.UnicornMachine`. All but `start` runs on the machine's thread."""

    def __init__(self, machine: UnicornMachine, pe: Pe) -> None:
        self.machine = machine
        self.pe = pe
        self.state = VcpuState.OFF
        self.fault: FaultReport | None = None
        self.pending: tuple[int, int] | None = None  # where it begins when its turn comes, and x0
        self.last_vector = -1  # where the last exception was taken to
        self._engine: Engine | None = None
        self._looks = 0  # at an interrupt that is masked
        self._interface = InterfaceRegisters(machine.gic, machine.gic.cpus[pe.index])
        self._stale = False  # stage 2 has taken rights away since the engine last ran
        self._moving = False  # what runs is ours, not the guest's

    # -- power

    def start(self, entry: int, x0: int) -> None:
        """Have the vCPU begin at `entry`, when its turn comes: EL1h, masked, MMU off, x0 as given."""
        self.pending = (entry, x0)
        self.state = VcpuState.RUNNABLE

    @property
    def started(self) -> bool:
        """Whether it has begun to run."""
        return self._engine is not None and self.pending is None

    @property
    def pc(self) -> int:
        """Where it goes on."""
        return self.pending[0] if self.pending is not None else self.engine.get(reg.UC_ARM64_REG_PC)

    def forget_code(self) -> None:
        """The host has rewritten memory: translations are void."""
        if self._engine is not None:
            self._engine.flush_code()

    @property
    def engine(self) -> Engine:
        """The engine, made on first use: 512 vCPUs that stay off cost nothing."""
        if self._engine is None:
            self._engine = self._make()
        return self._engine

    def _make(self) -> Engine:
        machine = self.machine
        engine = Engine()
        engine.set_sysreg("SCR_EL3", traps.SCR)
        engine.set_sysreg("CPTR_EL2", traps.CPTR)
        engine.set_sysreg("CNTHCTL_EL2", traps.CNTHCTL)
        engine.map_host_memory(machine.ram_base, machine.ram)
        engine.map_device(
            machine.uart_base, 0x1000, self._guarded(machine.uart.read), self._guarded(machine.uart.write)
        )
        for base, size, access in (
            (gic.GICD_BASE, gic.GICD_SIZE, machine.gic.distributor()),
            *(
                (base, size, machine.gic.redistributors(n * gic.REDISTRIBUTORS))
                for n, (base, size) in enumerate(gic.regions(len(machine.firmware.pes)))
            ),
        ):
            engine.map_device(base, size, self._guarded(access[0]), self._guarded(access[1]))
        machine.translation.enable(engine)
        engine.set_sysreg("VMPIDR_EL2", 1 << 31 | self.pe.affinity)
        self.view = UnicornView(engine)
        self._syndrome = SyndromeReader(engine)
        self._hpfar = CpReg.of("HPFAR_EL2")
        self._fetch_hpfar, _ = engine.batch([reg.UC_ARM64_REG_CP_REG], [C.addressof(self._hpfar)])
        self._q = (C.c_char * Q_BYTES)()
        at = C.addressof(self._q)
        self._fetch_q, self._flush_q = engine.batch(Q, [at + 16 * i for i in range(len(Q))])
        self._system = RegisterReader(engine)
        machine.register_writer.enable(engine)
        self._pristine = engine.save()
        machine.prepare(engine)
        engine.on_interrupt(self._hook())
        return engine

    def _reset(self) -> Engine:
        engine = self.engine
        engine.restore(self._pristine)
        engine.flush_tlb()
        engine.set_sysreg("CNTVOFF_EL2", self.machine.counter_offset)
        self.last_vector = -1
        return engine

    def _power_up(self, entry: int, x0: int) -> None:
        engine = self._reset()
        self.machine.gic.power_up(self.pe.index)
        engine.set(reg.UC_ARM64_REG_PSTATE, PSTATE_DAIF | MODE_EL1h)
        engine.set(reg.UC_ARM64_REG_X0, x0)
        engine.set(reg.UC_ARM64_REG_PC, entry)
        engine.derive()

    def forget_rights(self) -> None:
        """Stage 2 has taken rights away: what the engine remembers of it is void. Between two slices."""
        self._stale = self._engine is not None

    # -- running

    def run(self, count: int = 0) -> None:
        """Run until something stops the engine; never raises for what the guest does."""
        machine = self.machine
        if self.pending is not None:
            self._power_up(*self.pending)
            self.pending = None
            machine.vcpu_started(self)
        engine = self.engine
        if self._stale:
            engine.flush_tlb()
            self._stale = False
        error = engine.run(self.view.fetch_pc(), count)
        if error and self.state is not VcpuState.FAULTED:
            self.stop_faulted(f"the engine gave up with Unicorn error {error}")

    def deliver(self) -> None:
        """The vCPU was kicked: let it take an event, if there is one for it."""
        machine, pe = self.machine, self.pe
        if self.pending is not None:
            return  # it looks when it has begun; until then it is masked anyway
        if not pe.ready and not machine.firmware.sdei.delivery.shared_ready:
            return  # it was an interrupt, which is looked at before it runs
        if self._syndrome.aarch32():
            self.stop_faulted(f"an event is to be delivered, and {_AARCH32}")
            return
        with machine.lock:
            machine.firmware.deliver(pe, self.view)
            kicks = machine.firmware.take_kicks()
        if kicks:  # what this vCPU did not take may be for another
            machine.kick(kicks)

    # -- traps

    def _hook(self) -> Callable[[int, int, int], None]:
        """The callback for every exception, with the way of a hypercall laid out flat."""
        machine = self.machine
        pe = self.pe
        view = self.view
        fetch_call = view.fetch_call
        hypercall = machine.firmware.hypercall
        delivery = machine.firmware.sdei.delivery
        asyncpf = machine.firmware.asyncpf
        lock = machine.lock
        runnable = VcpuState.RUNNABLE

        def on_exception(_engine: int, number: int, _user: int) -> None:
            try:
                if number in _CALLS:
                    fetch_call()
                    with lock:
                        hypercall(pe, view)
                        kicks = delivery.kicks
                        if kicks:
                            delivery.kicks = 0
                    if kicks & ~pe.bit:
                        machine.kick(kicks & ~pe.bit)
                    if asyncpf.interrupts:
                        machine.tell_interrupts()
                    if self.state is not runnable:
                        self.engine.stop()
                else:
                    self._exception(number)
            except BaseException as error:
                machine.crash(error)
                self.engine.stop()

        return on_exception

    def _guarded(self, access: Callable[..., Any]) -> Callable[..., Any]:
        """A device's callback whose host errors (a console that is gone) end the run instead of getting lost."""

        def call(*arguments: int) -> Any:
            try:
                return access(*arguments)
            except BaseException as error:
                self.machine.crash(error)
                self.engine.stop()
                return 0

        return call

    def _exception(self, number: int) -> None:
        syndrome = self._syndrome.read()
        if self._moving:
            self.engine.stop()
        elif syndrome.aarch32:
            self.stop_faulted(f"exception {number}, and {_AARCH32}")
        elif number == _UNDEFINED and syndrome.esr >> 26 == EC_UNKNOWN and self._interrupt_register():
            pass
        elif number == _SVC and self.machine.kicked:
            # What it was kicked for comes first: there it may take an interrupt that the kernel has masked.
            self.view.skip(-INSTRUCTION)
            self.engine.stop()
        elif syndrome.target_el == 1:
            self._take(number, syndrome.esr, syndrome.address)
        elif number == _UNDEFINED:
            self._trap(syndrome.esr)
        elif number not in _ABORTS or not (self._absent(syndrome) or self._written(syndrome)):
            # A stage-2 fault: there is nothing at that address. The bus would say so.
            ec = syndrome.esr >> 26
            esr = (ec << 26) | ESR_IL | (syndrome.esr & ESR_WNR) | SYNCHRONOUS_EXTERNAL_ABORT
            self._take(number, esr, syndrome.address)

    def _trap(self, esr: int) -> None:
        """An instruction that is EL2's to carry out: PC is on it."""
        engine = self.engine
        ec = esr >> 26
        if ec == EC_WFX:
            # WFI (HCR_EL2.TWI). Nothing but an event or an interrupt can wake this vCPU.
            if not self.machine.gic.signals & self.pe.bit:
                self.state = VcpuState.WAITING
            engine.stop()
        elif ec != EC_SYSTEM_REGISTER or not traps.read_trapped(engine, traps.Access.of(esr)):
            self._take(_UNDEFINED, EC_UNKNOWN << 26 | ESR_IL, 0)
            return
        self.view.skip(INSTRUCTION)

    def _interrupt_register(self) -> bool:
        """Carry out an access to the interrupt controller's system registers; whether it was one. PC is on it."""
        engine, machine, view = self.engine, self.machine, self.view
        view.fetch_all()
        x = view.x
        at = engine.translate(x[PC])
        if at is None or not machine.in_ram(at):
            return False
        at -= machine.ram_base
        instruction = decode(int.from_bytes(machine.ram[at : at + 4], "little"))
        if instruction is None or not x[PSTATE] & PSTATE_EL:
            return False
        name, rt, reads = instruction
        if reads:
            value = self._interface.read(name)
            if value is None:
                return False
            if rt < PC:
                x[rt] = value
            elif rt < len(X):
                engine.set(X[rt], value)
        elif not self._interface.write(name, x[rt] if rt < PC else engine.get(X[rt]) if rt < len(X) else 0):
            return False
        x[PC] += 4
        view.flush_context()
        return True

    def _absent(self, syndrome: Syndrome) -> bool:
        """Whether an abort is an access to a page that is not here yet, and the vCPU tries it again some time."""
        if syndrome.esr & _FSC_CLASS != _TRANSLATION:
            return False
        machine, pe, view = self.machine, self.pe, self.view
        firmware, demand = machine.firmware, machine.demand
        address = self._faulted_page()
        view.fetch_all()
        user = not view.x[PSTATE] & PSTATE_EL
        with machine.lock:
            fault = demand.touch(address, pe.index, lambda: firmware.asyncpf.not_present(pe, user=user))
            if fault is Fault.TOLD:
                firmware.deliver(pe, view)
            kicks = firmware.take_kicks() & ~pe.bit
        if kicks:
            machine.kick(kicks)
        if fault is Fault.WAIT:
            machine.hold(self, math.inf)
            self.engine.stop()
            demand.ask(address)
        elif fault is Fault.TOLD:
            demand.ask(address)
            machine.tell_interrupts()
            machine.gic.take_pulses()
            if machine.gic.signals & pe.bit:
                self.interrupt()  # that is how it is told: before the access is tried again
        return fault is not Fault.ELSEWHERE

    def _faulted_page(self) -> int:
        """Where the page is that a stage-2 fault is about."""
        self._fetch_hpfar()
        return int(self._hpfar.val) >> 4 << PAGE_SHIFT

    def _written(self, syndrome: Syndrome) -> bool:
        """Whether a data abort is a write that the dirty log waits for; the vCPU tries it again, now or later."""
        if not syndrome.esr & ESR_WNR or syndrome.esr & _FSC_CLASS != _PERMISSION:
            return False
        machine = self.machine
        wait = machine.dirty.delay(self.pe.index)
        if wait:
            machine.hold(self, wait)
            self.engine.stop()
            return True
        return machine.dirty.written(self._faulted_page())

    def interrupt(self) -> int:
        """An interrupt is signalled: take it, unless it is masked. How soon to look again, in blocks."""
        if self.pending is not None or self._syndrome.aarch32():
            return 0
        view = self.view
        view.fetch_all()
        x = view.x
        pstate = x[PSTATE]
        if pstate & PSTATE_I:
            self._looks += 1
            return _SOON[self._looks % len(_SOON)] if self._looks < _MANY else _LATER[self._looks % len(_LATER)]
        self._looks = 0
        view.set_exception_return(x[PC], pstate)
        x[PC] = view.vbar_el1() + synchronous_vector(pstate) + IRQ_VECTOR & M64
        x[PSTATE] = self.pe.features.exception_entry(pstate, x[SCTLR])
        view.flush_context()
        return _ANSWERED

    def _take(self, number: int, esr: int, address: int) -> None:
        """Take an exception to EL1, as the architecture does. Arm ARM AArch64.TakeException."""
        view = self.view
        view.fetch_all()
        x = view.x
        pc, pstate = x[PC], x[PSTATE]
        abort = (esr >> 26) & ~5 == EC_INSTRUCTION_ABORT
        vbar = view.vbar_el1()
        vector = vbar + synchronous_vector(pstate) & M64
        unset = not x[SCTLR] & SCTLR_M and not self.machine.in_ram(vector)
        if number not in _NUMBERS or pc == self.last_vector or unset:
            self._cannot_take(number, pc, address if abort else None, vbar)
            return
        if abort and pstate & PSTATE_EL:
            esr |= 1 << 26  # from the same exception level
        self.last_vector = vector
        view.set_syndrome(esr, address if abort else None)
        view.set_exception_return(pc, pstate)
        x[PSTATE] = self.pe.features.exception_entry(pstate, x[SCTLR])
        x[PC] = vector
        view.flush_context()

    def _cannot_take(self, number: int, pc: int, address: int | None, vbar: int) -> None:
        """An exception that leads nowhere. `address` is that of an abort."""
        name = ExceptionNumber(number).name.lower().replace("_", " ") if number in _NUMBERS else f"exception {number}"
        where = f"{name} at pc {pc:#x}"
        if address is not None:
            where += f", address {address:#x}"
        if number not in _NUMBERS:
            self.stop_faulted(where)
        elif pc == self.last_vector:
            self.stop_faulted(f"{where}: the first instruction of the exception vector faults, for ever")
        else:
            self.stop_faulted(f"{where}, and the guest has set up no exception vectors (VBAR_EL1 is {vbar:#x})")

    # -- moving; between two slices

    def prepare(self) -> None:
        """Registers will be set soon: do what takes long."""
        self.set_registers(self.registers())

    def follow_counter(self) -> None:
        """The guest's counter has another offset."""
        if self._engine is not None:
            self._engine.set_sysreg("CNTVOFF_EL2", self.machine.counter_offset)

    def registers(self) -> Registers:
        """All that EL1 and EL0 have. Raises StateError where they execute AArch32 code."""
        engine = self.engine
        if self._syndrome.aarch32():
            raise StateError(f"vCPU {self.pe.index} cannot be written down: {_AARCH32}")
        pstate = engine.get(reg.UC_ARM64_REG_PSTATE)
        stacks = [engine.get(reg.UC_ARM64_REG_SP_EL0), engine.get(reg.UC_ARM64_REG_SP_EL1)]
        stacks[pstate & PSTATE_SP] = engine.get(reg.UC_ARM64_REG_SP)
        self._fetch_q()
        return Registers(
            x=[engine.get(x) for x in X],
            sp_el0=stacks[0],
            sp_el1=stacks[1],
            pc=engine.get(reg.UC_ARM64_REG_PC),
            pstate=pstate,
            q=bytes(self._q),
            system=self._system.read(),
        )

    def set_registers(self, registers: Registers) -> None:
        """Go on with these, which have been checked."""
        engine = self._reset()
        self._moving = True
        try:
            self.machine.register_writer.write(engine, self.machine.schedule.unhindered, registers.system)
        finally:
            self._moving = False
        C.memmove(self._q, registers.q, Q_BYTES)
        self._flush_q()
        for x, value in zip(X, registers.x, strict=True):
            engine.set(x, value)
        engine.set(reg.UC_ARM64_REG_PSTATE, registers.pstate)
        engine.set(reg.UC_ARM64_REG_SP_EL0, registers.sp_el0)
        engine.set(reg.UC_ARM64_REG_SP_EL1, registers.sp_el1)
        at_el1h = registers.pstate & PSTATE_SP
        engine.set(reg.UC_ARM64_REG_SP, registers.sp_el1 if at_el1h else registers.sp_el0)
        engine.set(reg.UC_ARM64_REG_PC, registers.pc)
        engine.derive()
        engine.flush_tlb()

    # -- reports

    def stop_faulted(self, reason: str) -> None:
        """This vCPU cannot go on."""
        self.fault = self.report(reason)
        self.state = VcpuState.FAULTED
        self.machine.vcpu_faulted(self)
        self.engine.stop()

    def report(self, reason: str) -> FaultReport:
        """A picture of the vCPU; it does not run, or its hook is on the stack."""
        engine = self.engine
        pc = engine.get(reg.UC_ARM64_REG_PC)
        registers = {f"x{i}": engine.get(X[i]) for i in range(31)}
        registers |= {
            "sp": engine.get(reg.UC_ARM64_REG_SP),
            "pc": pc,
            "pstate": engine.get(reg.UC_ARM64_REG_PSTATE),
        }
        registers |= {
            name.lower(): engine.sysreg(name)
            for name in ("ELR_EL1", "SPSR_EL1", "ESR_EL1", "FAR_EL1", "VBAR_EL1", "SCTLR_EL1")
        }
        code = around(pc, lambda address, size: self.machine.read_guest(engine, address, size))
        return FaultReport(self.pe.index, reason, pc, registers, code)


_NUMBERS = frozenset(ExceptionNumber) - {ExceptionNumber.HVC, ExceptionNumber.SMC}
