# SPDX-License-Identifier: Apache-2.0
"""The native stop stub: both instruction sets, executed."""

from __future__ import annotations

import ctypes as C
import struct

import pytest

from sdeivirt.machine.unicorn import stub
from sdeivirt.machine.unicorn.binding import Engine, X
from sdeivirt.machine.unicorn.binding import arm64_const as reg

CODE, CELL, STOP = 0x1000, 0x8000, 0x4000


def run_aarch64(flag: int, budget: int) -> tuple[bool, int, int]:
    """Execute the arm64 stub as a guest: (did it reach uc_emu_stop, flag, budget after)."""
    engine = Engine()
    engine.uc.mem_map(0, 0x10000)
    engine.uc.mem_write(CODE, stub.code_aarch64(STOP))
    engine.uc.mem_write(STOP, struct.pack("<I", 0xD2800CE9) + struct.pack("<I", 0xD503207F))  # mov x9, #0x67; wfi
    engine.uc.mem_write(0x100, struct.pack("<I", 0xD503207F))  # where the stub returns to: wfi
    engine.uc.mem_write(CELL, struct.pack("<II", flag, budget))
    engine.set(reg.UC_ARM64_REG_PSTATE, 0x3C5)
    engine.set(X[0], 0x1234)
    engine.set(X[3], CELL)
    engine.set(X[30], 0x100)
    engine.run(CODE)
    assert engine.get(X[0]) == 0x1234  # the engine's handle is still the first argument
    after = struct.unpack("<II", engine.uc.mem_read(CELL, 8))
    return engine.get(X[9]) == 0x67, after[0], after[1]


def test_the_arm64_stub_stops_on_the_flag_and_at_the_end_of_the_budget() -> None:
    assert run_aarch64(0, 5) == (False, 0, 4)
    assert run_aarch64(0, 1) == (True, 0, 0)
    assert run_aarch64(1, 5) == (True, 1, 5)
    assert run_aarch64(0, 0xFFFFFFFF) == (False, 0, 0xFFFFFFFE)


@pytest.mark.skipif(not stub.available()[0], reason=stub.available()[1])
def test_the_budget_counts_blocks_exactly() -> None:
    engine = Engine()
    engine.uc.mem_map(0, 0x10000)
    engine.uc.mem_write(CODE, struct.pack("<II", 0x91000421, 0x17FFFFFF))  # add x1, x1, #1; b back
    engine.set(reg.UC_ARM64_REG_PSTATE, 0x3C5)
    control = stub.Control(0, 1000)
    engine.on_block(stub.address(), C.addressof(control))
    engine.run(CODE)
    assert (control.flag, control.budget) == (0, 0)
    assert engine.get(X[1]) == 999
    assert engine.get(reg.UC_ARM64_REG_PC) == CODE
    control.flag, control.budget = 1, 1000
    engine.run(CODE)
    assert engine.get(X[1]) == 999
    assert control.budget == 1000
