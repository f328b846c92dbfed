# SPDX-License-Identifier: Apache-2.0
"""What devices write into the guest's RAM by themselves, past stage 2: found by comparing digests.

QEMU's `virt` has no SMMU, and its disks and network cards write where the guest
says. So for a machine that has any, each look takes a digest of every page
(xxh3, 64 bits): of 2 MiB at once first, and of pages only where that has changed.
A machine without such devices needs none of this.
"""

from __future__ import annotations

from array import array

import xxhash

from ..base import PAGE_SIZE

__all__ = ["DeviceWrites"]

_WINDOW = 2 << 20
_digest = xxhash.xxh3_64_intdigest


class DeviceWrites:
    """The digests of `ram`, as they were at the last look."""

    def __init__(self, ram: memoryview) -> None:
        self._ram = ram
        self._windows = array("Q", bytes(8 * -(-len(ram) // _WINDOW)))
        self._pages = array("Q", bytes(8 * (len(ram) // PAGE_SIZE)))
        self.add_changed(bytearray(len(ram) // PAGE_SIZE))

    def add_changed(self, dirty: bytearray) -> None:
        """Set in `dirty`, a byte a page, what is not as it was at the last look."""
        ram, windows, pages = self._ram, self._windows, self._pages
        for window, first in enumerate(range(0, len(ram), _WINDOW)):
            now = _digest(ram[first : first + _WINDOW])
            if now == windows[window]:
                continue
            windows[window] = now
            for start in range(first, min(first + _WINDOW, len(ram)), PAGE_SIZE):
                page, now = start // PAGE_SIZE, _digest(ram[start : start + PAGE_SIZE])
                if now != pages[page]:
                    pages[page] = now
                    dirty[page] = 1
