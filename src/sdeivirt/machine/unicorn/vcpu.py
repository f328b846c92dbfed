# SPDX-License-Identifier: Apache-2.0
"""One vCPU: an engine, the window on its registers, and what happens when it traps."""

from __future__ import annotations

import ctypes as C
import enum
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ...cpu import (
    CONTEXT_REGISTERS,
    ESR_IL,
    ESR_WNR,
    PC,
    PSTATE,
    PSTATE_DAIF,
    PSTATE_NZCV,
    SCTLR,
    SYNCHRONOUS_EXTERNAL_ABORT,
    MODE_EL1h,
    synchronous_vector,
)
from ...sdei.model import Pe
from ..disassembly import around
from ..report import FaultReport
from .binding import CpReg, Engine, X
from .binding import arm64_const as reg
from .exceptions import ExceptionNumber, SyndromeReader

if TYPE_CHECKING:
    from .machine import UnicornMachine

__all__ = ["UnicornView", "UnicornVcpu", "VcpuState"]

_LIVE_PSTATE = 21  # PSTATE as the engine has it, for banking SP
_CELLS = 22
# Flags and interrupt masks are all of PSTATE that the engine derives nothing from; but from D, whether it steps.
_PSTATE_D = 1 << 9
_DERIVED_FROM = ~(PSTATE_NZCV | PSTATE_DAIF) | _PSTATE_D

_UNDEFINED = int(ExceptionNumber.UNDEFINED)
_CALLS = (int(ExceptionNumber.HVC), int(ExceptionNumber.SMC))

EC_WFX = 0x01
EC_INSTRUCTION_ABORT = 0x20
SCTLR_M = 1


class VcpuState(enum.Enum):
    OFF = "off"
    RUNNABLE = "runnable"
    WAITING = "waiting"  # WFI or standby: until it is kicked
    SUSPENDED = "suspended"  # powered down in CPU_SUSPEND
    FAULTED = "faulted"


class UnicornView:
    """The :class:`~sdeivirt.cpu.RegisterView` of an engine."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._cells = (C.c_uint64 * _CELLS)()
        self.x = memoryview(self._cells).cast("B").cast("Q")
        self.context = memoryview(self._cells).cast("B")[: CONTEXT_REGISTERS * 8]
        cell = [C.addressof(self._cells) + 8 * i for i in range(_CELLS)]
        self._sctlr = CpReg.of("SCTLR_EL1")
        at_sctlr = C.addressof(self._sctlr)
        # The engine caches what it derives from PSTATE (EL, PAN, BTYPE, ...). Writing any
        # system register makes it derive that anew; TPIDR_EL2 is ours and means nothing.
        self._rederive = CpReg.of("TPIDR_EL2")
        pc, pstate, cp = reg.UC_ARM64_REG_PC, reg.UC_ARM64_REG_PSTATE, reg.UC_ARM64_REG_CP_REG
        self.fetch_call, _ = engine.batch([*X[:6], pstate], [*cell[:6], cell[_LIVE_PSTATE]])
        self._fetch_rest, _ = engine.batch([*X[4:18], pc, pstate, cp], [*cell[4:20], at_sctlr])
        self._fetch_all, _ = engine.batch([*X[:18], pc, pstate, cp], [*cell[:20], at_sctlr])
        _, self.flush_result = engine.batch(X[:4], cell[:4])
        _, self._flush = engine.batch([*X[:18], pc, pstate], cell[:20])
        _, self._flush_rederive = engine.batch([*X[:18], pc, pstate, cp], [*cell[:20], C.addressof(self._rederive)])

    def fetch_all(self) -> None:
        self._fetch_all()
        x = self.x
        x[SCTLR] = self._sctlr.val
        x[_LIVE_PSTATE] = x[PSTATE]

    def fetch_rest(self) -> None:
        self._fetch_rest()
        x = self.x
        x[SCTLR] = self._sctlr.val
        x[_LIVE_PSTATE] = x[PSTATE]

    def flush_context(self) -> None:
        x = self.x
        pstate = x[PSTATE]
        changed = pstate ^ x[_LIVE_PSTATE]
        if changed & _DERIVED_FROM:
            self._flush_rederive()
            if changed & 1:
                self._bank_sp(bool(pstate & 1))
        else:
            self._flush()
        x[_LIVE_PSTATE] = pstate

    def _bank_sp(self, to_sp_el1: bool) -> None:
        """SP changes between SP_EL0 and SP_EL1; the engine does that only for its own instructions."""
        engine = self._engine
        old, new = reg.UC_ARM64_REG_SP_EL0, reg.UC_ARM64_REG_SP_EL1
        if not to_sp_el1:
            old, new = new, old
        engine.set(old, engine.get(reg.UC_ARM64_REG_SP))
        engine.set(reg.UC_ARM64_REG_SP, engine.get(new))

    def vbar_el1(self) -> int:
        return self._engine.sysreg("VBAR_EL1")

    def set_exception_return(self, elr: int, spsr: int) -> None:
        self._engine.set_sysreg("ELR_EL1", elr)
        self._engine.set_sysreg("SPSR_EL1", spsr)


class UnicornVcpu:
    """A vCPU of a :class:`~.machine.UnicornMachine`. All but `start` runs on the machine's thread."""

    def __init__(self, machine: UnicornMachine, pe: Pe) -> None:
        self.machine = machine
        self.pe = pe
        self.state = VcpuState.OFF
        self.fault: FaultReport | None = None
        self._start: tuple[int, int] | None = None
        self._engine: Engine | None = None
        self._last_vector = -1

    # -- power

    def start(self, entry: int, x0: int) -> None:
        """Have the vCPU begin at `entry`, when its turn comes: EL1h, masked, MMU off, x0 as given."""
        self._start = (entry, x0)
        self.state = VcpuState.RUNNABLE

    @property
    def started(self) -> bool:
        """Whether it has ever run."""
        return self._engine is not None

    @property
    def pc(self) -> int:
        """Where it goes on."""
        return self._start[0] if self._start is not None else self.engine.get(reg.UC_ARM64_REG_PC)

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
        # Non-secure, HVC enabled, EL2 is AArch64: without this Unicorn takes EL1 for AArch32.
        engine.set_sysreg("SCR_EL3", 0x501)
        engine.map_host_memory(machine.ram_base, machine.ram)
        engine.map_device(
            machine.uart_base, 0x1000, self._guarded(machine.uart.read), self._guarded(machine.uart.write)
        )
        machine.stage2.enable(engine)
        engine.set_sysreg("VMPIDR_EL2", 1 << 31 | self.pe.affinity)
        self.view = UnicornView(engine)
        self._syndrome = SyndromeReader(engine)
        self._pristine = engine.save()
        machine.prepare(engine)
        engine.on_interrupt(self._hook())
        return engine

    def _power_up(self, entry: int, x0: int) -> None:
        engine = self.engine
        engine.restore(self._pristine)
        engine.flush_tlb()
        engine.set(reg.UC_ARM64_REG_PSTATE, PSTATE_DAIF | MODE_EL1h)
        engine.set(reg.UC_ARM64_REG_X0, x0)
        engine.set(reg.UC_ARM64_REG_PC, entry)
        engine.set_sysreg("TPIDR_EL2", 0)
        self._last_vector = -1

    # -- running

    def run(self, count: int = 0) -> None:
        """Run until something stops the engine; never raises for what the guest does."""
        machine = self.machine
        if self._start is not None:
            self._power_up(*self._start)
            self._start = None
            machine.vcpu_started(self)
        engine = self.engine
        error = engine.run(engine.get(reg.UC_ARM64_REG_PC), count)
        if error and self.state is not VcpuState.FAULTED:
            self.stop_faulted(f"the engine gave up with Unicorn error {error}")

    def deliver(self) -> None:
        """The vCPU was kicked: let it take an event, if there is one for it."""
        machine = self.machine
        if self._start is not None:
            return  # it looks when it has begun; until then it is masked anyway
        with machine.lock:
            machine.firmware.deliver(self.pe, self.view)
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
        ec = syndrome.esr >> 26
        if number == _UNDEFINED and syndrome.target_el == 2 and ec == EC_WFX:
            # WFI traps (HCR_EL2.TWI) with PC on it. Nothing but an event can wake this vCPU.
            engine = self.engine
            engine.set(reg.UC_ARM64_REG_PC, engine.get(reg.UC_ARM64_REG_PC) + 4)
            self.state = VcpuState.WAITING
            engine.stop()
            return
        esr = syndrome.esr
        if syndrome.target_el == 2:
            # A stage-2 fault: there is nothing at that address. The bus would say so.
            esr = (ec << 26) | ESR_IL | (esr & ESR_WNR) | SYNCHRONOUS_EXTERNAL_ABORT
        self._take(number, esr, syndrome.address)

    def _take(self, number: int, esr: int, address: int) -> None:
        """Take an exception to EL1, as the architecture does. Arm ARM AArch64.TakeException."""
        view = self.view
        view.fetch_all()
        x = view.x
        pc, pstate = x[PC], x[PSTATE]
        name = ExceptionNumber(number).name.lower().replace("_", " ") if number in _NUMBERS else f"exception {number}"
        where = f"{name} at pc {pc:#x}"
        abort = (esr >> 26) & ~5 == EC_INSTRUCTION_ABORT
        if abort:
            where += f", address {address:#x}"
        if number not in _NUMBERS:
            self.stop_faulted(where)
            return
        if pc == self._last_vector:
            self.stop_faulted(f"{where}: the first instruction of the exception vector faults, for ever")
            return
        from_el1 = bool(pstate & 0xC)
        if abort and from_el1:
            esr |= 1 << 26  # from the same exception level
        vbar = view.vbar_el1()
        vector = vbar + synchronous_vector(pstate)
        if not x[SCTLR] & SCTLR_M and not self.machine.in_ram(vector):
            self.stop_faulted(f"{where}, and the guest has set up no exception vectors (VBAR_EL1 is {vbar:#x})")
            return
        self._last_vector = vector
        engine = self.engine
        engine.set_sysreg("ESR_EL1", esr)
        if abort:
            engine.set_sysreg("FAR_EL1", address)
        view.set_exception_return(pc, pstate)
        x[PSTATE] = self.pe.features.exception_entry(pstate, x[SCTLR])
        x[PC] = vector
        view.flush_context()

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
