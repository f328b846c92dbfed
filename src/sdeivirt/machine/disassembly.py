# SPDX-License-Identifier: Apache-2.0
"""The code around the place where a vCPU stopped, for fault reports."""

from __future__ import annotations

from collections.abc import Callable

import capstone

__all__ = ["around"]


def around(pc: int, read: Callable[[int, int], bytes | None]) -> list[str]:
    """Five instructions with the one at `pc` marked; `read(address, size)` gives None where nothing is mapped."""
    lines = []
    disassembler = capstone.Cs(capstone.CS_ARCH_ARM64, capstone.CS_MODE_ARM)
    for address in range(pc - 8, pc + 12, 4):
        code = read(address, 4)
        mark = "=>" if address == pc else "  "
        if code is None:
            text = "(no memory that could be read)"
        else:
            found = list(disassembler.disasm(code, address, 1))
            text = f"{code[::-1].hex()}  " + (f"{found[0].mnemonic} {found[0].op_str}" if found else "(undefined)")
        lines.append(f"{mark} {address & (1 << 64) - 1:#x}: {text}")
    return lines
