# SPDX-License-Identifier: Apache-2.0
"""The window on an engine's registers that the services work on: memory, and batches that fill it and write it back."""

from __future__ import annotations

import ctypes as C

from ...cpu import CONTEXT_REGISTERS, M64, PC, PSTATE, PSTATE_DAIF, PSTATE_NZCV, SCTLR
from .binding import CpReg, Engine, X
from .binding import arm64_const as reg

__all__ = ["UnicornView"]

_LIVE_PSTATE = 21  # PSTATE as the engine has it, for banking SP
_SP, _SP_EL0, _SP_EL1 = range(22, 25)  # as the engine has them
_CELLS = 25
# Flags and interrupt masks are all of PSTATE that the engine derives nothing from; but from D, whether it steps.
_PSTATE_D = 1 << 9
_DERIVED_FROM = ~(PSTATE_NZCV | PSTATE_DAIF) | _PSTATE_D


class UnicornView:
    """The :class:`~sdeivirt.cpu.RegisterView` of an engine."""

    def __init__(self, engine: Engine) -> None:
        self._cells = (C.c_uint64 * _CELLS)()
        self.x = memoryview(self._cells).cast("B").cast("Q")
        self.context = memoryview(self._cells).cast("B")[: CONTEXT_REGISTERS * 8]
        cell = [C.addressof(self._cells) + 8 * i for i in range(_CELLS)]
        sp, sp_el0, sp_el1 = at_sps = cell[_SP:]
        self._sctlr, self._vbar = CpReg.of("SCTLR_EL1"), CpReg.of("VBAR_EL1")
        self._esr, self._far = CpReg.of("ESR_EL1"), CpReg.of("FAR_EL1")
        self._elr, self._spsr = CpReg.of("ELR_EL1"), CpReg.of("SPSR_EL1")
        self._rederive = CpReg.of("TPIDR_EL2")  # see Engine.derive
        pc, pstate = reg.UC_ARM64_REG_PC, reg.UC_ARM64_REG_PSTATE
        sps = [reg.UC_ARM64_REG_SP, reg.UC_ARM64_REG_SP_EL0, reg.UC_ARM64_REG_SP_EL1]

        def system(*registers: CpReg) -> tuple[list[int], list[int]]:
            return [reg.UC_ARM64_REG_CP_REG] * len(registers), [C.addressof(each) for each in registers]

        cps, at_cps = system(self._sctlr, self._vbar)
        self.fetch_call, _ = engine.batch([*X[:6], pstate, *sps], [*cell[:6], cell[_LIVE_PSTATE], *at_sps])
        self._fetch_rest, _ = engine.batch([*X[4:18], pc, pstate, *cps], [*cell[4:20], *at_cps])
        self._fetch_all, _ = engine.batch([*X[:18], pc, pstate, *sps, *cps], [*cell[:20], *at_sps, *at_cps])
        _, self.flush_result = engine.batch(X[:4], cell[:4])
        _, self._flush = engine.batch([*X[:18], pc, pstate], cell[:20])
        # The engine banks SP for its own instructions alone.
        cps, at_cps = system(self._rederive)
        _, self._flush_rederive = engine.batch([*X[:18], pc, pstate, *cps], [*cell[:20], *at_cps])
        _, self._flush_to_sp_el1 = engine.batch(
            [*X[:18], pc, pstate, sps[1], sps[0], *cps], [*cell[:20], sp, sp_el1, *at_cps]
        )
        _, self._flush_to_sp_el0 = engine.batch(
            [*X[:18], pc, pstate, sps[2], sps[0], *cps], [*cell[:20], sp, sp_el0, *at_cps]
        )
        self._fetch_pc, self._flush_pc = engine.batch([pc], [cell[PC]])
        _, self._set_return = engine.batch(*system(self._elr, self._spsr))
        _, self._set_syndrome = engine.batch(*system(self._esr))
        _, self._set_abort = engine.batch(*system(self._esr, self._far))

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
        if not changed & _DERIVED_FROM:
            self._flush()
        elif not changed & 1:
            self._flush_rederive()
        elif pstate & 1:
            self._flush_to_sp_el1()
            x[_SP_EL0], x[_SP] = x[_SP], x[_SP_EL1]
        else:
            self._flush_to_sp_el0()
            x[_SP_EL1], x[_SP] = x[_SP], x[_SP_EL0]
        x[_LIVE_PSTATE] = pstate

    def fetch_pc(self) -> int:
        """Where it goes on; PC alone is valid then."""
        self._fetch_pc()
        return self.x[PC]

    def skip(self, distance: int) -> None:
        """Go on so many bytes behind PC."""
        self.x[PC] = self.fetch_pc() + distance & M64
        self._flush_pc()

    def vbar_el1(self) -> int:
        """As :meth:`fetch_all` or :meth:`fetch_rest` has found it."""
        return int(self._vbar.val)

    def set_exception_return(self, elr: int, spsr: int) -> None:
        self._elr.val, self._spsr.val = elr, spsr
        self._set_return()

    def set_syndrome(self, esr: int, address: int | None = None) -> None:
        """ESR_EL1 and, where there is an address, FAR_EL1."""
        self._esr.val = esr
        if address is None:
            self._set_syndrome()
        else:
            self._far.val = address
            self._set_abort()
