# SPDX-License-Identifier: Apache-2.0
"""Exceptions that the engine leaves to its host: what happened, and how EL1 takes it.

Unicorn stops at every exception and does not enter the guest's vectors. The
syndrome, the faulting address and the target exception level have no
interface; they stand in the blob of `uc_context_save`, at a place that
differs between builds and is found at start-up with a known exception.
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
    """ESR layout, the address for aborts, the level that takes the exception."""

    esr: int
    address: int
    target_el: int


_LAYOUT = struct.Struct("<IIQI")  # syndrome, fsr, vaddress, target_el in QEMU's CPUARMState.exception
_SVC_IMMEDIATE = 0x2C5D
_SCRATCH = 0x8000_0000


def calibrate() -> int:
    """The offset of the exception record in a context blob. Raises RuntimeError if it is not found.

    An SVC with a rare immediate is executed; its syndrome is looked for in
    the blob, before and after.
    """
    engine = Engine()
    engine.set_sysreg("SCR_EL3", 0x501)
    engine.set_sysreg("HCR_EL2", 1 << 31)
    engine.uc.mem_map(_SCRATCH, 0x1000)
    engine.uc.mem_write(_SCRATCH, struct.pack("<I", 0xD400_0001 | _SVC_IMMEDIATE << 5))
    engine.set(reg.UC_ARM64_REG_PSTATE, 0x3C5)
    save, address, size = engine.context_probe()
    found: list[int] = []
    wanted = struct.pack("<I", 0x15 << 26 | 1 << 25 | _SVC_IMMEDIATE)

    def hook(_uc: int, _number: int, _user: int) -> None:
        save()
        blob = C.string_at(address, size)
        at = blob.find(wanted)
        while at >= 0:
            if at % 8 == 0 and at + _LAYOUT.size <= size and _LAYOUT.unpack_from(blob, at)[3] == 1:
                found.append(at)
            at = blob.find(wanted, at + 1)
        engine.stop()

    engine.on_interrupt(hook)
    engine.run(_SCRATCH)
    if len(found) != 1:
        raise RuntimeError(f"this build of Unicorn keeps its exception record where we cannot find it ({found})")
    return found[0]


class SyndromeReader:
    """Reads the last exception of one engine."""

    _offset: int | None = None

    def __init__(self, engine: Engine) -> None:
        if SyndromeReader._offset is None:
            SyndromeReader._offset = calibrate()
        self._save, address, _size = engine.context_probe()
        self._at = address + SyndromeReader._offset

    def read(self) -> Syndrome:
        self._save()
        esr, _fsr, address, target_el = _LAYOUT.unpack(C.string_at(self._at, _LAYOUT.size))
        return Syndrome(esr, address, target_el)
