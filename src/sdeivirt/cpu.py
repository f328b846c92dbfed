# SPDX-License-Identifier: Apache-2.0
"""What the services see of a stopped PE: a window on its registers, and PSTATE.

An engine (Unicorn, the EL2 monitor, KVM) implements :class:`RegisterView`; the
services read and write it. Nothing here knows an engine.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

__all__ = [
    "RegisterView",
    "CpuFeatures",
    "PC",
    "PSTATE",
    "SCTLR",
    "CONTEXT_REGISTERS",
    "WINDOW_SIZE",
    "AFFINITY_MASK",
    "M64",
    "affinity_of_index",
    "synchronous_vector",
]

M64 = (1 << 64) - 1

# The window: x0..x17 at 0..17, then these.
PC = 18
PSTATE = 19
SCTLR = 20  # SCTLR_EL1, read only
CONTEXT_REGISTERS = 20  # x0-x17, PC, PSTATE: what SDEI saves, DEN0054C 4.3
WINDOW_SIZE = 21

# MPIDR_EL1: Aff3 in bits 39:32, Aff2..Aff0 in 23:0. Clients pass the raw
# register now and then, so only these bits ever count.
AFFINITY_MASK = 0xFF_00FF_FFFF


def affinity_of_index(index: int) -> int:
    """Affinity of the vCPU `index`, numbered as QEMU's virt board does with a GICv3: 16 in a cluster."""
    return (index & 0xF) | ((index >> 4) & 0xFF) << 8 | ((index >> 12) & 0xFF) << 16


class RegisterView(Protocol):
    """A stopped PE's registers, as a window that is filled and written back on request.

    `x` is a memoryview of format "Q" with WINDOW_SIZE items or more: x0..x17,
    PC, PSTATE (in the layout of SPSR_EL1), SCTLR_EL1. On entry to a hypercall
    the engine has put x0..x5 there; the rest is fetched only when needed,
    because a register access costs more than most calls.
    """

    @property
    def x(self) -> memoryview: ...

    @property
    def context(self) -> memoryview:
        """The first CONTEXT_REGISTERS of `x` as bytes (format "B"): what SDEI saves and restores whole."""

    def fetch_all(self) -> None:
        """Fill the whole window."""

    def fetch_rest(self) -> None:
        """Fill x4..x17, PC, PSTATE and SCTLR_EL1; x0..x3 stay as the service left them."""

    def flush_result(self) -> None:
        """Write x0..x3 back to the PE."""

    def flush_context(self) -> None:
        """Write x0..x17, PC and PSTATE back; the engine banks SP when the exception level or SPSel changes."""

    def vbar_el1(self) -> int:
        """VBAR_EL1, for handlers registered relative to it."""

    def set_exception_return(self, elr: int, spsr: int) -> None:
        """Write ELR_EL1 and SPSR_EL1."""


# PSTATE in the layout of SPSR_EL1, Arm ARM C5.2.19.
PSTATE_NZCV = 0xF000_0000
PSTATE_TCO = 1 << 25
PSTATE_DIT = 1 << 24
PSTATE_UAO = 1 << 23
PSTATE_PAN = 1 << 22
PSTATE_SS = 1 << 21
PSTATE_IL = 1 << 20
PSTATE_ALLINT = 1 << 13
PSTATE_SSBS = 1 << 12
PSTATE_BTYPE = 3 << 10
PSTATE_DAIF = 0x3C0
PSTATE_I = 1 << 7
PSTATE_nRW = 1 << 4
PSTATE_MODE = 0x1F
MODE_EL0t = 0b00000
MODE_EL1t = 0b00100
MODE_EL1h = 0b00101
AARCH32_DIT = 1 << 21  # where an AArch32 SPSR keeps DIT


# Syndromes of exceptions, ESR_ELx, Arm ARM D24.2.40.
ESR_IL = 1 << 25
ESR_WNR = 1 << 6
SYNCHRONOUS_EXTERNAL_ABORT = 0x10  # as fault status code


def synchronous_vector(pstate: int) -> int:
    """Where EL1's vectors have the entry for a synchronous exception from this PSTATE, Arm ARM D1.3.1.5."""
    if pstate & PSTATE_nRW:
        return 0x600
    if not pstate & 0xC:
        return 0x400
    return 0x200 if pstate & 1 else 0


SCTLR_SPINTMASK = 1 << 62
SCTLR_DSSBS = 1 << 44
SCTLR_SPAN = 1 << 23
_SCTLR_ENTRY = SCTLR_SPINTMASK | SCTLR_DSSBS | SCTLR_SPAN


@dataclass(frozen=True, slots=True)
class CpuFeatures:
    """The optional PSTATE bits that a PE has; an engine reads them from the ID registers."""

    pan: bool = True
    uao: bool = True
    dit: bool = True
    ssbs: bool = True
    mte: bool = False
    nmi: bool = False
    _entry: dict[int, tuple[int, int]] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        # SCTLR_EL1 has three bits that matter, so entry is a table of what stays and what is set.
        table = {}
        for span in (0, SCTLR_SPAN):
            for dssbs in (0, SCTLR_DSSBS):
                for spintmask in (0, SCTLR_SPINTMASK):
                    table[span | dssbs | spintmask] = self._masks(bool(span), bool(dssbs), bool(spintmask))
        object.__setattr__(self, "_entry", table)

    def _masks(self, span: bool, dssbs: bool, spintmask: bool) -> tuple[int, int]:
        """The bits of PSTATE that stay as they were, and those that are set."""
        keep = PSTATE_NZCV
        fixed = PSTATE_DAIF | MODE_EL1h
        if self.dit:
            keep |= PSTATE_DIT
        if self.pan and span:
            keep |= PSTATE_PAN
        if self.pan and not span:
            fixed |= PSTATE_PAN
        if self.ssbs and dssbs:
            fixed |= PSTATE_SSBS
        if self.mte:
            fixed |= PSTATE_TCO
        if self.nmi and not spintmask:
            fixed |= PSTATE_ALLINT
        return keep, fixed

    @classmethod
    def from_id_registers(cls, pfr0: int, pfr1: int, mmfr1: int, mmfr2: int) -> CpuFeatures:
        """From ID_AA64PFR0/PFR1/MMFR1/MMFR2_EL1, Arm ARM D19.2."""
        return cls(
            pan=(mmfr1 >> 20) & 0xF != 0,
            uao=(mmfr2 >> 4) & 0xF != 0,
            dit=(pfr0 >> 48) & 0xF != 0,
            ssbs=(pfr1 >> 4) & 0xF != 0,
            mte=(pfr1 >> 8) & 0xF >= 2,
            nmi=(pfr1 >> 36) & 0xF != 0,
        )

    def exception_entry(self, pstate: int, sctlr: int) -> int:
        """PSTATE after an exception is taken to EL1h, Arm ARM AArch64.TakeException.

        DAIF set; IL, SS, UAO and BTYPE clear; PAN set unless SCTLR_EL1.SPAN;
        SSBS from SCTLR_EL1.DSSBS; TCO set; ALLINT from SCTLR_EL1.SPINTMASK;
        NZCV and DIT as they were. BTYPE needs no feature test: it is zero either way.
        """
        keep, fixed = self._entry[sctlr & _SCTLR_ENTRY]
        if pstate & PSTATE_nRW:  # DIT stands elsewhere in an AArch32 PSTATE, and something else there
            pstate = pstate & ~PSTATE_DIT | (PSTATE_DIT if pstate & AARCH32_DIT else 0)
        return pstate & keep | fixed
