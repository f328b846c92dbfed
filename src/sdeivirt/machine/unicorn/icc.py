# SPDX-License-Identifier: Apache-2.0
"""The interrupt controller's system registers, which the engine does not have: EL1's ICC_*. Arm IHI 0069 12.2.

MRS and MSR of them are undefined to the engine, so they come as exceptions. What
is told of the PE's interrupts here is in gic.py. Registers of group 0 are there,
and empty.
"""

from __future__ import annotations

import functools

from .gic import EOI_MODE, PRIVATE, SPURIOUS, Gic, PrivateInterrupts
from .sysregs import Encoding

__all__ = ["Instruction", "InterfaceRegisters", "decode"]

_M32 = 0xFFFF_FFFF
_IDLE_PRIORITY = 0xFF
_PRIORITY = 0xF8
_SRE = 7  # system registers and nothing else, IRQ and FIQ not bypassed
_PRIORITY_BITS = 4 << 8  # less one
_ID_BITS_16 = 0 << 11
_A3V = 1 << 15
_LOWEST_BPR, _HIGHEST_BPR = 3, 7

_NAMES = {
    Encoding(3, 0, 4, 6, 0): "pmr",
    Encoding(3, 0, 12, 8, 0): "iar0",
    Encoding(3, 0, 12, 8, 1): "none",  # EOIR0
    Encoding(3, 0, 12, 8, 2): "iar0",  # HPPIR0
    Encoding(3, 0, 12, 8, 3): "none",  # BPR0
    Encoding(3, 0, 12, 8, 4): "none",  # AP0R0
    Encoding(3, 0, 12, 9, 0): "ap1r0",
    Encoding(3, 0, 12, 11, 1): "dir",
    Encoding(3, 0, 12, 11, 3): "rpr",
    Encoding(3, 0, 12, 11, 5): "sgi1r",
    Encoding(3, 0, 12, 11, 6): "none",  # ASGI1R: for the other security state
    Encoding(3, 0, 12, 11, 7): "none",  # SGI0R
    Encoding(3, 0, 12, 12, 0): "iar1",
    Encoding(3, 0, 12, 12, 1): "eoir1",
    Encoding(3, 0, 12, 12, 2): "hppir1",
    Encoding(3, 0, 12, 12, 3): "bpr1",
    Encoding(3, 0, 12, 12, 4): "ctlr",
    Encoding(3, 0, 12, 12, 5): "sre",
    Encoding(3, 0, 12, 12, 6): "none",  # IGRPEN0
    Encoding(3, 0, 12, 12, 7): "igrpen1",
}

Instruction = tuple[str, int, bool]  # the register's name here, Rt, and whether it is read


@functools.lru_cache(maxsize=1024)
def decode(word: int) -> Instruction | None:
    """What an instruction is, if it is MRS or MSR of one of these registers."""
    if word & 0xFFD0_0000 != 0xD510_0000:
        return None
    encoding = Encoding(word >> 19 & 3, word >> 16 & 7, word >> 12 & 15, word >> 8 & 15, word >> 5 & 7)
    name = _NAMES.get(encoding)
    return None if name is None else (name, word & 31, bool(word >> 21 & 1))


class InterfaceRegisters:
    """One PE's."""

    def __init__(self, gic: Gic, cpu: PrivateInterrupts) -> None:
        self._gic = gic
        self._cpu = cpu

    def read(self, name: str) -> int | None:
        """None where the register cannot be read."""
        cpu = self._cpu
        match name:
            case "iar1":
                return self._acknowledge()
            case "hppir1":
                return cpu.highest() if self._gic.group1 else SPURIOUS
            case "rpr":
                return min(cpu.running, _IDLE_PRIORITY)
            case "pmr":
                return cpu.pmr
            case "bpr1":
                return cpu.bpr
            case "ctlr":
                return _A3V | _ID_BITS_16 | _PRIORITY_BITS | cpu.eoi_mode
            case "sre":
                return _SRE
            case "igrpen1":
                return cpu.group1
            case "ap1r0":
                return cpu.active_priorities
            case "iar0":
                return SPURIOUS
            case "none":
                return 0
        return None

    def write(self, name: str, value: int) -> bool:
        """False where the register cannot be written."""
        cpu = self._cpu
        match name:
            case "eoir1":
                if value & 0xFFFFFF < PRIVATE:
                    cpu.active_priorities &= cpu.active_priorities - 1  # what ran was the most urgent
                    if not cpu.eoi_mode:
                        cpu.active &= ~(1 << (value & 0x1F))
            case "dir":
                if value & 0xFFFFFF < PRIVATE and cpu.eoi_mode:
                    cpu.active &= ~(1 << (value & 0x1F))
            case "sgi1r":
                self._generate(value)
            case "pmr":
                cpu.pmr = value & _PRIORITY
            case "bpr1":
                cpu.bpr = min(max(value & 7, _LOWEST_BPR), _HIGHEST_BPR)
            case "ctlr":
                cpu.eoi_mode = value & EOI_MODE
            case "igrpen1":
                cpu.group1 = value & 1
            case "ap1r0":
                cpu.active_priorities = value & _M32
            case "sre" | "none":
                pass
            case _:
                return False
        self._gic.changed(cpu)
        return True

    def _acknowledge(self) -> int:
        """The interrupt that is signalled becomes active, and what runs has its priority."""
        cpu = self._cpu
        intid = cpu.highest()
        if not (cpu.group1 and self._gic.group1 and cpu.may_signal(intid)):
            return SPURIOUS
        cpu.pending &= ~(1 << intid)
        cpu.active |= 1 << intid
        cpu.active_priorities |= 1 << (cpu.group_priority(intid) >> 3)
        self._gic.changed(cpu)
        return intid

    def _generate(self, value: int) -> None:
        """ICC_SGI1R_EL1: an SGI for PEs of one cluster, or for all others."""
        intid = value >> 24 & 15
        if value >> 40 & 1:
            targets = [cpu for cpu in self._gic.cpus if cpu is not self._cpu]
        else:
            cluster = (value >> 48 & 0xFF) << 32 | (value >> 32 & 0xFF) << 16 | (value >> 16 & 0xFF) << 8
            first = cluster | (value >> 44 & 15) << 4
            found = (self._gic.by_affinity.get(first + i) for i in range(16) if value >> i & 1)
            targets = [cpu for cpu in found if cpu is not None]
        for cpu in targets:
            if cpu.group >> intid & 1:
                self._gic.pend(cpu, 1 << intid)
