# SPDX-License-Identifier: Apache-2.0
"""The system registers that a guest can write, and the way to move them between engines.

The table is literal and complete: whatever EL1 and EL0 can write and the
engine remembers stands in it, or in `VIEWS` with the reason why not. A test
goes through all encodings and compares.

Reading takes the engine's fields as they are, so that it changes nothing where
the guest may go on. Writing does not: a number from a damaged stream would
become an index without the mask that every guest's write goes through, and
breakpoints would not break. So the registers of a guest that comes are
written by MSR, executed at EL2 on a page that no stage-2 entry maps.
"""

from __future__ import annotations

import ctypes as C
import mmap
import struct
from collections.abc import Callable, Mapping
from typing import NamedTuple

from .binding import CpReg, Engine, EngineError, X
from .binding import arm64_const as reg

__all__ = ["MOVER_BASE", "REGISTERS", "VIEWS", "Encoding", "RegisterReader", "RegisterWriter", "msr"]


class Encoding(NamedTuple):
    """op0, op1, CRn, CRm, op2 of MRS and MSR. Arm ARM C5.3."""

    op0: int
    op1: int
    crn: int
    crm: int
    op2: int


_BREAKPOINTS = 6
_WATCHPOINTS = 4
_EVENT_COUNTERS = 4

# In the order in which they are written: counters before they are let count. Arm ARM D19.
REGISTERS: dict[str, Encoding] = {
    # Address translation, control, exceptions
    "TTBR0_EL1": Encoding(3, 0, 2, 0, 0),
    "TTBR1_EL1": Encoding(3, 0, 2, 0, 1),
    "TCR_EL1": Encoding(3, 0, 2, 0, 2),
    "MAIR_EL1": Encoding(3, 0, 10, 2, 0),
    "CONTEXTIDR_EL1": Encoding(3, 0, 13, 0, 1),
    "SCTLR_EL1": Encoding(3, 0, 1, 0, 0),
    "CPACR_EL1": Encoding(3, 0, 1, 0, 2),
    "SPSR_EL1": Encoding(3, 0, 4, 0, 0),
    "ELR_EL1": Encoding(3, 0, 4, 0, 1),
    "ESR_EL1": Encoding(3, 0, 5, 2, 0),
    "FAR_EL1": Encoding(3, 0, 6, 0, 0),
    "PAR_EL1": Encoding(3, 0, 7, 4, 0),
    "VBAR_EL1": Encoding(3, 0, 12, 0, 0),
    "CSSELR_EL1": Encoding(3, 2, 0, 0, 0),
    # Words of the software's own
    "TPIDR_EL0": Encoding(3, 3, 13, 0, 2),
    "TPIDRRO_EL0": Encoding(3, 3, 13, 0, 3),
    "TPIDR_EL1": Encoding(3, 0, 13, 0, 4),
    # Pointer authentication, Arm ARM D8.9
    "APIAKeyLo_EL1": Encoding(3, 0, 2, 1, 0),
    "APIAKeyHi_EL1": Encoding(3, 0, 2, 1, 1),
    "APIBKeyLo_EL1": Encoding(3, 0, 2, 1, 2),
    "APIBKeyHi_EL1": Encoding(3, 0, 2, 1, 3),
    "APDAKeyLo_EL1": Encoding(3, 0, 2, 2, 0),
    "APDAKeyHi_EL1": Encoding(3, 0, 2, 2, 1),
    "APDBKeyLo_EL1": Encoding(3, 0, 2, 2, 2),
    "APDBKeyHi_EL1": Encoding(3, 0, 2, 2, 3),
    "APGAKeyLo_EL1": Encoding(3, 0, 2, 3, 0),
    "APGAKeyHi_EL1": Encoding(3, 0, 2, 3, 1),
    # Floating point
    "FPCR": Encoding(3, 3, 4, 4, 0),
    "FPSR": Encoding(3, 3, 4, 4, 1),
    # Timers. Unicorn has the comparators, and nothing that compares: CTL does not remember anything.
    "CNTKCTL_EL1": Encoding(3, 0, 14, 1, 0),
    "CNTP_CVAL_EL0": Encoding(3, 3, 14, 2, 2),
    "CNTV_CVAL_EL0": Encoding(3, 3, 14, 3, 2),
    # Debug
    "MDSCR_EL1": Encoding(2, 0, 0, 2, 2),
    **{f"DBGBVR{n}_EL1": Encoding(2, 0, 0, n, 4) for n in range(_BREAKPOINTS)},
    **{f"DBGBCR{n}_EL1": Encoding(2, 0, 0, n, 5) for n in range(_BREAKPOINTS)},
    **{f"DBGWVR{n}_EL1": Encoding(2, 0, 0, n, 6) for n in range(_WATCHPOINTS)},
    **{f"DBGWCR{n}_EL1": Encoding(2, 0, 0, n, 7) for n in range(_WATCHPOINTS)},
    "OSLSR_EL1": Encoding(2, 0, 1, 1, 4),
    # Performance monitors. In Unicorn a counter that counts tells what has passed since the guest last looked.
    "PMCCFILTR_EL0": Encoding(3, 3, 14, 15, 7),
    "PMCCNTR_EL0": Encoding(3, 3, 9, 13, 0),
    **{f"PMEVTYPER{n}_EL0": Encoding(3, 3, 14, 12, n) for n in range(_EVENT_COUNTERS)},
    **{f"PMEVCNTR{n}_EL0": Encoding(3, 3, 14, 8, n) for n in range(_EVENT_COUNTERS)},
    "PMSELR_EL0": Encoding(3, 3, 9, 12, 5),
    "PMUSERENR_EL0": Encoding(3, 3, 9, 14, 0),
    "PMOVSSET_EL0": Encoding(3, 3, 9, 14, 3),
    "PMINTENSET_EL1": Encoding(3, 0, 9, 14, 1),
    "PMCNTENSET_EL0": Encoding(3, 3, 9, 12, 1),
    "PMCR_EL0": Encoding(3, 3, 9, 12, 0),
}

# What a guest can write as well, and why it is not in the table.
VIEWS: dict[Encoding, str] = {
    Encoding(2, 0, 1, 0, 4): "OSLAR_EL1: the lock that OSLSR_EL1 shows",
    Encoding(3, 0, 4, 1, 0): "SP_EL0: moves with the stack pointers",
    Encoding(3, 0, 4, 2, 0): "SPSel: in PSTATE",
    Encoding(3, 0, 4, 2, 3): "PAN: in PSTATE",
    Encoding(3, 0, 4, 2, 4): "UAO: in PSTATE",
    Encoding(3, 3, 4, 2, 0): "NZCV: in PSTATE",
    Encoding(3, 3, 4, 2, 1): "DAIF: in PSTATE",
    Encoding(3, 3, 14, 2, 0): "CNTP_TVAL_EL0: CNTP_CVAL_EL0 less the counter",
    Encoding(3, 3, 14, 3, 0): "CNTV_TVAL_EL0: CNTV_CVAL_EL0 less the counter",
    Encoding(3, 3, 9, 13, 1): "PMXEVTYPER_EL0: that which PMSELR_EL0 selects",
    Encoding(3, 3, 9, 13, 2): "PMXEVCNTR_EL0: that which PMSELR_EL0 selects",
}

_OSLAR = Encoding(2, 0, 1, 0, 4)
_OSLK = 1 << 1
# Comparators keep what the host writes; the engine's MSR does nothing.
_RAW = ("CNTP_CVAL_EL0", "CNTV_CVAL_EL0")

MOVER_BASE = 0x0FF0_0000  # not RAM, no device, and not in stage 2
_PAGE = 0x1000
_CELLS = _PAGE

_LOAD = 0xF840_8420  # ldr x0, [x1], #8
_CLREX = 0xD503_3F5F
_END = 0xD503_207F  # wfi, which EL2 does not trap: the engine stops
_EL2H = 0x3C9
_TRIES = 1000


def msr(register: Encoding, rt: int) -> int:
    """The instruction that writes a register from x`rt`."""
    op0, op1, crn, crm, op2 = register
    return 0xD500_0000 | op0 << 19 | op1 << 16 | crn << 12 | crm << 8 | op2 << 5 | rt


class RegisterReader:
    """Reads all of the table from one engine, at once."""

    def __init__(self, engine: Engine) -> None:
        self._values = [
            CpReg(crn=register.crn, crm=register.crm, op0=register.op0, op1=register.op1, op2=register.op2)
            for register in REGISTERS.values()
        ]
        addresses = [C.addressof(value) for value in self._values]
        self._fetch, _ = engine.batch([reg.UC_ARM64_REG_CP_REG] * len(addresses), addresses)

    def read(self) -> dict[str, int]:
        """The registers by name."""
        self._fetch()
        return {name: value.val for name, value in zip(REGISTERS, self._values, strict=True)}


class RegisterWriter:
    """Code that writes all of the table, for the engines of one machine."""

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, 2 * _PAGE)
        self._cells = struct.Struct(f"<{len(REGISTERS)}Q")
        code = [_CLREX]
        for name, register in REGISTERS.items():
            code += [_LOAD, msr(_OSLAR if name == "OSLSR_EL1" else register, 0)]
        code.append(_END)
        struct.pack_into(f"<{len(code)}I", self._memory, 0, *code)
        self._end = MOVER_BASE + 4 * len(code)

    def enable(self, engine: Engine) -> None:
        """Let an engine execute that code. Once an engine."""
        engine.map_host_memory(MOVER_BASE, self._memory)

    def write(self, engine: Engine, unhindered: Callable[[], None], values: Mapping[str, int]) -> None:
        """Have an engine that is as after reset write them all. PC, PSTATE, x0 and x1 are anything afterwards.

        `unhindered` is called before the engine runs, and has to see to it that nothing stops it.
        """
        written = dict(values)
        written["OSLSR_EL1"] = int(bool(values["OSLSR_EL1"] & _OSLK))
        self._cells.pack_into(self._memory, _CELLS, *(written[name] for name in REGISTERS))
        engine.set(reg.UC_ARM64_REG_PSTATE, _EL2H)
        engine.derive()
        engine.set(X[1], MOVER_BASE + _CELLS)
        self._run(engine, unhindered)
        for name in _RAW:
            engine.uc.cpr_write(*REGISTERS[name], values[name])

    def _run(self, engine: Engine, unhindered: Callable[[], None]) -> None:
        pc = MOVER_BASE
        for _ in range(_TRIES):  # a stop that another thread asks for comes between two blocks
            unhindered()
            error = engine.run(pc)
            pc = engine.get(reg.UC_ARM64_REG_PC)
            if error or pc == self._end:
                break
        if pc != self._end:
            raise EngineError(f"the engine does not get past {pc:#x} (error {error}), where registers are written")
