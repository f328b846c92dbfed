# SPDX-License-Identifier: Apache-2.0
"""The guest's physical memory, by the architecture's own stage-2 translation. Arm ARM D8.

The host writes the tables, the engines walk them: Python is EL2. Guest
physical addresses are 39 bits (T0SZ = 25), translated from level 1 on with
4 KiB granules. The tables live in a physical region which no stage-2 entry
maps, so the guest cannot reach them whatever it does. All engines of a
machine share one set.
"""

from __future__ import annotations

import mmap
import struct

from .binding import Engine

__all__ = ["Stage2", "TABLE_BASE"]

TABLE_BASE = 0x1000_0000
_TABLE_BYTES = 4096
_BLOCK = 2 << 20
_PAGE = 4096

_VALID = 1
_TABLE = 3
_PAGE_ENTRY = 3
_AF = 1 << 10
_INNER_SHAREABLE = 3 << 8
_S2AP_READ = 1 << 6
_S2AP_WRITE = 2 << 6
_NORMAL = 0xF << 2  # MemAttr: write-back
_DEVICE = 0x1 << 2  # MemAttr: Device-nGnRE
_XN = 1 << 54

# T0SZ=25, SL0=1 (start at level 1), inner and outer write-back, inner shareable, 4 KiB, 40-bit PA, RES1
VTCR = 25 | 1 << 6 | 1 << 8 | 1 << 10 | 3 << 12 | 2 << 16 | 1 << 31
HCR_RW = 1 << 31
HCR_VM = 1 << 0
HCR_TWI = 1 << 13  # WFI traps: the one way to know that a vCPU waits


class Stage2:
    """Tables that map `ram_size` bytes of RAM at `ram_base` one to one, in 2 MiB blocks, and device pages."""

    def __init__(self, ram_base: int, ram_size: int, devices: tuple[int, ...] = ()) -> None:
        gigabytes = ((ram_base + ram_size - 1) >> 30) + 1
        # level 1, one level-2 table a GiB, and level-3 tables for the tail of RAM and each device
        tables = 1 + gigabytes + 1 + len(devices)
        self._memory = mmap.mmap(-1, -(-tables * _TABLE_BYTES // 0x10000) * 0x10000)
        self._next = _TABLE_BYTES
        for base in range(ram_base, ram_base + ram_size, _BLOCK):
            left = ram_base + ram_size - base
            if left >= _BLOCK:
                self._put(
                    self._level2(base), base | _AF | _INNER_SHAREABLE | _S2AP_READ | _S2AP_WRITE | _NORMAL | _VALID
                )
            else:
                for page in range(base, base + left, _PAGE):
                    self.map_page(page)
        for device in devices:
            self._put(self._level3(device), device | _AF | _S2AP_READ | _S2AP_WRITE | _DEVICE | _XN | _PAGE_ENTRY)

    def map_page(self, ipa: int) -> None:
        """Give the guest one page of RAM, to read, write and execute."""
        entry = ipa | _AF | _INNER_SHAREABLE | _S2AP_READ | _S2AP_WRITE | _NORMAL | _PAGE_ENTRY
        self._put(self._level3(ipa), entry)

    def enable(self, engine: Engine) -> None:
        """Have an engine translate by these tables."""
        engine.map_host_memory(TABLE_BASE, self._memory)
        engine.set_sysreg("VTTBR_EL2", TABLE_BASE)
        engine.set_sysreg("VTCR_EL2", VTCR)
        engine.set_sysreg("HCR_EL2", HCR_RW | HCR_VM | HCR_TWI)

    # Offsets into the memory; an entry is 8 bytes, little endian.

    def _get(self, offset: int) -> int:
        value: int = struct.unpack_from("<Q", self._memory, offset)[0]
        return value

    def _put(self, offset: int, entry: int) -> None:
        struct.pack_into("<Q", self._memory, offset, entry)

    def _descend(self, offset: int) -> int:
        """The table that an entry points to, made if need be."""
        entry = self._get(offset)
        if entry & 3 != _TABLE:
            entry = (TABLE_BASE + self._next) | _TABLE
            self._next += _TABLE_BYTES
            self._put(offset, entry)
        return (entry & 0xFF_FFFF_F000) - TABLE_BASE

    def _level2(self, ipa: int) -> int:
        return self._descend((ipa >> 30) * 8) + (ipa >> 21 & 511) * 8

    def _level3(self, ipa: int) -> int:
        return self._descend(self._level2(ipa)) + (ipa >> 12 & 511) * 8
