# SPDX-License-Identifier: Apache-2.0
"""The tables by which the engines translate, and where they are: Python is EL2.

They live in a physical region that they do not map themselves, so the guest
cannot reach them whatever it does. All engines of a machine share one set.
"""

from __future__ import annotations

import mmap
import sys

from ..base import PAGE_SIZE
from ..stage2 import Kind, Stage2, table_bytes
from .binding import Engine
from .traps import HCR

__all__ = ["NORESERVE", "TABLE_BASE", "Translation"]

TABLE_BASE = 0x1000_0000

# 40 bits from level 1 on, inner and outer write-back, inner shareable, 4 KiB, 40-bit PA, RES1
_VTCR = 24 | 1 << 6 | 1 << 8 | 1 << 10 | 3 << 12 | 2 << 16 | 1 << 31

# Anonymous memory that is reserved but not there: it costs what is used of it.
NORESERVE: int = (
    mmap.MAP_PRIVATE
    | mmap.MAP_ANONYMOUS
    | int(getattr(mmap, "MAP_NORESERVE", 0x4000 if sys.platform == "linux" else 0))
)


class Translation:
    """Maps `ram_size` bytes of RAM at `ram_base` and a page for each device, all one to one."""

    def __init__(self, ram_base: int, ram_size: int, devices: tuple[int, ...] = ()) -> None:
        self._memory = mmap.mmap(-1, -(-table_bytes(ram_size) // 0x10000) * 0x10000, flags=NORESERVE)
        self.stage2 = Stage2(memoryview(self._memory).cast("Q"), TABLE_BASE)
        self.stage2.map(ram_base, ram_base + ram_size, Kind.RAM)
        for device in devices:
            self.stage2.map(device, device + PAGE_SIZE, Kind.DEVICE)

    def enable(self, engine: Engine) -> None:
        """Have an engine translate by these tables."""
        engine.map_host_memory(TABLE_BASE, self._memory)
        engine.set_sysreg("VTTBR_EL2", TABLE_BASE)
        engine.set_sysreg("VTCR_EL2", _VTCR)
        engine.set_sysreg("HCR_EL2", HCR)
