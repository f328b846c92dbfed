# SPDX-License-Identifier: Apache-2.0
"""Exceptions that the engine leaves to its host: what happened, and how EL1 takes it.

Unicorn stops at every exception and does not enter the guest's vectors. The
syndrome, the faulting address and the target exception level have no
interface; they stand in the blob of `uc_context_save`, at a place that
differs between builds and is found at start-up with a known exception. So
does the word that tells AArch64 from AArch32.
"""

from __future__ import annotations

import ctypes as C
import enum
import struct
from typing import NamedTuple

from .binding import Engine
from .binding import arm64_const as reg

__all__ = ["ExceptionNumber", "Syndrome", "SyndromeReader", "calibrate"]


class ExceptionNumber(enum.IntEnum):
    """QEMU's numbers, as the interrupt hook gives them."""

    UNDEFINED = 1
    SVC = 2
    PREFETCH_ABORT = 3
    DATA_ABORT = 4
    BREAKPOINT = 7
    HVC = 11
    SMC = 13


class Syndrome(NamedTuple):
    """ESR layout, the address for aborts, the level that takes the exception, and whether it came from AArch32."""

    esr: int
    address: int
    target_el: int
    aarch32: bool


_LAYOUT = struct.Struct("<IIQI")  # syndrome, fsr, vaddress, target_el in QEMU's CPUARMState.exception
_STATE = struct.Struct("<QII")  # pc, pstate, aarch64 in CPUARMState
_SVC_IMMEDIATE = 0x2C5D
_SCRATCH = 0x8000_0000
_PSTATE = 0x3C5
_PSTATE_KEPT = 0x1F  # of PSTATE, what stands there whatever else is kept apart


def calibrate() -> tuple[int, int]:
    """The offsets of exception record and execution state in a context blob. Raises RuntimeError if not found.

    An SVC with a rare immediate is executed; its syndrome is looked for in
    the blob, before and after.
    """
    engine = Engine()
    engine.set_sysreg("SCR_EL3", 0x501)
    engine.set_sysreg("HCR_EL2", 1 << 31)
    engine.uc.mem_map(_SCRATCH, 0x1000)
    engine.uc.mem_write(_SCRATCH, struct.pack("<I", 0xD400_0001 | _SVC_IMMEDIATE << 5))
    engine.set(reg.UC_ARM64_REG_PSTATE, _PSTATE)
    save, address, size = engine.context_probe()
    exceptions: list[int] = []
    states: list[int] = []

    def is_exception(blob: bytes, at: int) -> bool:
        return bool(_LAYOUT.unpack_from(blob, at)[3] == 1)

    def is_state(blob: bytes, at: int) -> bool:
        _pc, pstate, aarch64 = _STATE.unpack_from(blob, at)
        return bool(pstate & _PSTATE_KEPT == _PSTATE & _PSTATE_KEPT and aarch64 == 1)

    def hook(_uc: int, _number: int, _user: int) -> None:
        save()
        blob = C.string_at(address, size)
        syndrome = struct.pack("<I", 0x15 << 26 | 1 << 25 | _SVC_IMMEDIATE)
        exceptions.extend(at for at in _all(blob, syndrome, _LAYOUT.size) if is_exception(blob, at))
        states.extend(at for at in _all(blob, struct.pack("<Q", _SCRATCH + 4), _STATE.size) if is_state(blob, at))
        engine.stop()

    engine.on_interrupt(hook)
    engine.run(_SCRATCH)
    if len(exceptions) != 1 or len(states) != 1:
        raise RuntimeError(
            f"this build of Unicorn keeps its exception record where we cannot find it ({exceptions}, {states})"
        )
    return exceptions[0], states[0]


def _all(blob: bytes, wanted: bytes, room: int) -> list[int]:
    """Where something stands in a blob, aligned and with room behind it."""
    return [at for at in range(0, len(blob) - room + 1, 8) if blob.startswith(wanted, at)]


class SyndromeReader:
    """Reads the last exception of one engine, and in which state it executes."""

    _offsets: tuple[int, int] | None = None

    def __init__(self, engine: Engine) -> None:
        if SyndromeReader._offsets is None:
            SyndromeReader._offsets = calibrate()
        self._exception, self._state = SyndromeReader._offsets
        size = max(self._exception + _LAYOUT.size, self._state + _STATE.size)
        self._save, address, _ = engine.context_probe(size)
        self._blob = memoryview((C.c_char * size).from_address(address)).cast("B")

    def read(self) -> Syndrome:
        self._save()
        esr, _fsr, address, target_el = _LAYOUT.unpack_from(self._blob, self._exception)
        return Syndrome(esr, address, target_el, self._aarch32())

    def aarch32(self) -> bool:
        """Whether the engine executes AArch32: its registers have no interface then."""
        self._save()
        return self._aarch32()

    def _aarch32(self) -> bool:
        return not _STATE.unpack_from(self._blob, self._state)[2]
