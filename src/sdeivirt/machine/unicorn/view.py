# SPDX-License-Identifier: Apache-2.0
"""The window on an engine's registers that the services work on: memory, and batches that fill it and write it back."""

from __future__ import annotations

import ctypes as C

from ...cpu import CONTEXT_REGISTERS, PSTATE, PSTATE_DAIF, PSTATE_NZCV, SCTLR
from .binding import CpReg, Engine, X
from .binding import arm64_const as reg

__all__ = ["UnicornView"]

_LIVE_PSTATE = 21  # PSTATE as the engine has it, for banking SP
_CELLS = 22
# Flags and interrupt masks are all of PSTATE that the engine derives nothing from; but from D, whether it steps.
_PSTATE_D = 1 << 9
_DERIVED_FROM = ~(PSTATE_NZCV | PSTATE_DAIF) | _PSTATE_D


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
        self._rederive = CpReg.of("TPIDR_EL2")  # see Engine.derive
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
