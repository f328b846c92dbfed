# SPDX-License-Identifier: Apache-2.0
"""One vCPU: its mailbox, and what is done for each reason for which its guest was left."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from ...cpu import (
    ESR_IL,
    ESR_WNR,
    PC,
    PSTATE,
    SCTLR,
    SYNCHRONOUS_EXTERNAL_ABORT,
    synchronous_vector,
)
from ...sdei.model import Frame, Pe
from ..base import RAM_BASE
from ..demand import Fault
from ..disassembly import around
from ..report import FaultReport
from .layout import Action, Mailbox, Reason
from .view import MailboxView

if TYPE_CHECKING:
    from .machine import QemuMachine

__all__ = ["QemuVcpu"]

_log = logging.getLogger(__name__)

_CALLS = (int(Reason.HVC), int(Reason.SMC))
_KICK, _INTERRUPT = int(Reason.KICK), int(Reason.INTERRUPT)
_REQUEST, _RESPONSE, _REASON = Mailbox.REQUEST, Mailbox.RESPONSE, Mailbox.REASON
_CONTEXT_WORDS = 18
_CONTEXT = slice(Mailbox.CONTEXT, Mailbox.CONTEXT + _CONTEXT_WORDS)

EC_SHIFT = 26
EC_SAME_LEVEL = 1  # added to either, for an abort at EL1 itself
FAULT_KIND = 0x3C  # of the fault status code, without the level
TRANSLATION_FAULT = 0x04
PERMISSION_FAULT = 0x0C
PSTATE_EL = 0xF  # which exception level, and which stack: 0 at EL0
PAGE_SHIFT = 12
PAR_FAILED = 1
PAR_ADDRESS = 0x000F_FFFF_FFFF_F000


class QemuVcpu:
    """The hypervisor's side of a vCPU. `words` is its mailbox, a memoryview of format "Q"."""

    def __init__(self, machine: QemuMachine, pe: Pe, words: memoryview) -> None:
        self.machine = machine
        self.pe = pe
        self.words = words
        self.view = MailboxView(words)
        self.served: int = words[_RESPONSE]
        self.held = False  # stopped for a look, and not to go on
        self.fault: FaultReport | None = None
        self._frame: Frame | None = None
        self._interrupted = False  # an interrupt tells the guest of a page that is not here
        self._lacks: int | None = None  # where the page is that is to be asked for, once the guest goes on

    # -- requests

    def serve(self) -> None:
        """Answer the monitor's request, if there is a new one."""
        words = self.words
        request = words[_REQUEST]
        if request == self.served:
            return
        self.served = request
        machine = self.machine
        if machine.holding or self.fault is not None:
            self.held = True
            return
        pe, firmware = self.pe, machine.firmware
        reason = words[_REASON]
        with machine.lock:
            machine.calling = self
            if reason in _CALLS:
                firmware.hypercall(pe, self.view)
            elif reason == _KICK:
                machine.kicker.arrived(pe.bit)
                firmware.deliver(pe, self.view)
            elif reason == _INTERRUPT:
                intid = words[Mailbox.INTID]
                if machine.bound.fired(intid, pe.index):
                    firmware.sdei.interrupt(intid, pe.index)
                firmware.deliver(pe, self.view)
            else:
                self._rare(reason)
            machine.bound.update()
            kicks = firmware.take_kicks() & ~pe.bit
            frame = pe.frame
            if frame is not self._frame:
                self._publish(frame)
        if self.fault is not None:
            self.held = True
            return
        flusher = machine.flusher
        if flusher is not None and flusher.wanted and not words[Mailbox.ACTION]:
            self.act(Action.FLUSH)
            flusher.offer(pe.index)
        if firmware.asyncpf.interrupts:
            machine.tell_interrupts()
            if self._interrupted:
                # The interrupt has to be there before the access is tried again.
                self._interrupted = False
                machine.gic.settle()
        machine.fence()
        words[_RESPONSE] = request
        if kicks:
            machine.kick(kicks)
        if self._lacks is not None:
            self._ask(self._lacks)

    def take_over(self) -> None:
        """The mailbox has come from another machine, and so has the PE's state."""
        self._publish(self.pe.frame)

    def _publish(self, frame: Frame | None) -> None:
        """Lay out what EVENT_CONTEXT answers, for the monitor."""
        self._frame = frame
        words = self.words
        if frame is None or not self.machine.options.contexts:
            words[Mailbox.CONTEXT_VALID] = 0
        else:
            words[_CONTEXT] = memoryview(frame.saved).cast("Q")[:_CONTEXT_WORDS]
            words[Mailbox.CONTEXT_VALID] = 1

    def _rare(self, reason: int) -> None:
        if reason == Reason.BOOT:
            self._boot()
        elif reason == Reason.ABORT:
            self._abort()
        elif reason == Reason.TRAP:
            self._undefined()
        elif reason == Reason.FLUSHED:
            if self.machine.flusher is not None:
                self.machine.flusher.flushed(self.pe.index)
        else:
            esr = self.words[Mailbox.ESR]
            self.stop_faulted(f"the EL2 monitor failed, ESR_EL2 {esr:#x}, FAR_EL2 {self.words[Mailbox.FAR]:#x}")

    def _boot(self) -> None:
        machine, pe = self.machine, self.pe
        if pe.index == 0:
            machine.learn_features()
        machine.kicker.arrived(pe.bit)  # one that waited for the PE that this was went with it
        machine.firmware.sdei.pe_on(pe)
        machine.firmware.psci.started(pe.index)

    def act(self, action: Action, argument: int = 0) -> None:
        """Have the monitor do something before the guest goes on."""
        self.words[Mailbox.ACTION] = action
        self.words[Mailbox.ARGUMENT] = argument

    # -- exceptions that EL1 takes instead

    def _abort(self) -> None:
        """Stage 2 does not let it through.

        A write that is to be noted is tried again, at once or when its time comes, and so is an
        access to a page that is not here yet. All else is what the bus would say if
        there were nothing at that address.
        """
        words = self.words
        esr = words[Mailbox.ESR]
        if esr & FAULT_KIND == PERMISSION_FAULT:
            access = self.machine.firmware_access
            if self._watched() or (access is not None and access.trapped(self)):
                return
        if esr & FAULT_KIND == TRANSLATION_FAULT and self._absent():
            return
        kind = esr >> EC_SHIFT
        if words[PSTATE] & 0xC:
            kind |= EC_SAME_LEVEL
        words[Mailbox.FAR1] = words[Mailbox.FAR]
        self._take(kind << EC_SHIFT | ESR_IL | esr & ESR_WNR | SYNCHRONOUS_EXTERNAL_ABORT)

    def _absent(self) -> bool:
        """Whether it is a page of RAM that is not here yet; the vCPU waits for it, or the guest is told."""
        machine, pe, words = self.machine, self.pe, self.words
        if machine.demand is None:
            return False
        firmware = machine.firmware
        user = not words[PSTATE] & PSTATE_EL
        address = words[Mailbox.HPFAR] >> 4 << PAGE_SHIFT
        fault = machine.demand.touch(address, pe.index, lambda: firmware.asyncpf.not_present(pe, user=user))
        if fault in (Fault.WAIT, Fault.TOLD):
            self._lacks = address
        if fault is Fault.WAIT:
            self.act(Action.WAIT)
        elif fault is Fault.TOLD and not firmware.deliver(pe, self.view):
            self._interrupted = True  # that is how it is told
        return fault is not Fault.ELSEWHERE

    def _ask(self, address: int) -> None:
        """Ask for a page; the guest runs meanwhile, where it was told of that."""
        self._lacks = None
        demand = self.machine.demand
        if demand is not None:
            demand.ask(address)

    def _watched(self) -> bool:
        """Note a write to RAM, also that of a stage-1 walk: QEMU gives the address of either. False: it was none."""
        dirtying = self.machine.dirtying
        address = self.words[Mailbox.HPFAR] >> 4 << PAGE_SHIFT
        if dirtying is None or not 0 <= address - RAM_BASE < self.machine.config.memory:
            return False
        if dirtying.holds_up(self.pe.index):
            self.act(Action.WAIT)
            return True
        return dirtying.log.written(address)

    def _undefined(self) -> None:
        """An instruction that nobody thought of: for the guest it does not exist."""
        words = self.words
        self.machine.warn_once(
            f"vCPU {self.pe.index}: an instruction at {words[PC]:#x} trapped to EL2 (ESR_EL2 {words[Mailbox.ESR]:#x}); "
            "the guest takes it as undefined"
        )
        self._take(ESR_IL)

    def _take(self, esr: int) -> None:
        """Take an exception to EL1. Arm ARM AArch64.TakeException."""
        words = self.words
        pc, pstate = words[PC], words[PSTATE]
        words[Mailbox.ESR1] = esr
        self.view.set_exception_return(pc, pstate)
        words[PC] = (words[Mailbox.VBAR] + synchronous_vector(pstate)) & (1 << 64) - 1
        words[PSTATE] = self.pe.features.exception_entry(pstate, words[SCTLR])

    # -- reports

    def stop_faulted(self, reason: str) -> None:
        """This vCPU cannot go on."""
        self.fault = self.report(reason)
        self.machine.vcpu_faulted()

    def report(self, reason: str) -> FaultReport:
        """A picture of the vCPU, which the monitor holds."""
        words = self.words
        pc = words[PC]
        registers = {f"x{i}": words[i if i < 18 else Mailbox.X18 + i - 18] for i in range(31)}
        registers |= {
            "sp": words[Mailbox.SP_EL1 if words[PSTATE] & 1 else Mailbox.SP_EL0],
            "pc": pc,
            "pstate": words[PSTATE],
            "elr_el1": words[Mailbox.ELR1],
            "spsr_el1": words[Mailbox.SPSR1],
            "esr_el1": words[Mailbox.ESR1],
            "far_el1": words[Mailbox.FAR1],
            "vbar_el1": words[Mailbox.VBAR],
            "sctlr_el1": words[SCTLR],
        }
        return FaultReport(self.pe.index, reason, pc, registers, around(pc, self._read_near_pc))

    def _read_near_pc(self, address: int, size: int) -> bytes | None:
        """Guest memory on the page of PC, whose physical address the monitor has looked up."""
        pc, par = self.words[PC], self.words[Mailbox.PAR]
        if par & PAR_FAILED or (address ^ pc) >> 12:
            return None
        return self.machine.read_ram((par & PAR_ADDRESS) | address & 0xFFF, size)
