# SPDX-License-Identifier: Apache-2.0
"""Which RAM the interrupt controller reads by itself: the tables of LPIs and of the ITS. Arm IHI 0069, 5.1 and 12.

QEMU's does so past stage 2, so it cannot wait for a page: these have to be there
before the guest goes on. The guest has told the controller where they are.
"""

from __future__ import annotations

from collections.abc import Iterator

from ..base import RAM_BASE
from .gic import GICR_STRIDE
from .qtest import Qtest

__all__ = ["controller_ranges", "has_its"]

_GITS = 0x0808_0000  # of QEMU's virt
_GITS_CBASER = 0x80
_GITS_BASER = 0x100
_BASERS = 8
_GITS_PIDR2 = 0xFFE8
_ARCHITECTURE = 0xF0  # in PIDR2
_GICV3 = 0x30
_GICR_PROPBASER = 0x70
_GICR_PENDBASER = 0x78

_VALID = 1 << 63
_INDIRECT = 1 << 62
_ADDRESS = 0x0000_FFFF_FFFF_F000
_SIZE = 0xFF  # in pages, less one
_PAGE_SHIFTS = (12, 14, 16, 16)
_COMMAND_PAGE = 4096
_ID_BITS = 0x1F
_MAX_ID_BITS = 24
_FIRST_LPI = 8192


def has_its(qtest: Qtest) -> bool:
    """Whether this QEMU has an ITS. On the event loop's thread."""
    return [word & _ARCHITECTURE for word in qtest.ask(b"readl %#x\n" % (_GITS + _GITS_PIDR2))] == [_GICV3]


def controller_ranges(qtest: Qtest, redistributor: int, vcpus: int, ram: memoryview) -> list[tuple[int, int]]:
    """Offsets [start, end) into RAM, not in order. On the event loop's thread; the guest is stopped."""
    lines = [f"readq {_GITS + offset:#x}" for offset in (_GITS_CBASER, *range(_GITS_BASER, _GITS_BASER + 64, 8))]
    for vcpu in range(vcpus):
        base = redistributor + vcpu * GICR_STRIDE
        lines += [f"readq {base + _GICR_PROPBASER:#x}", f"readq {base + _GICR_PENDBASER:#x}"]
    read = qtest.ask("".join(f"{line}\n" for line in lines).encode())
    if len(read) != len(lines):
        return []  # QEMU has ended
    commands, basers, lpis = read[0], read[1 : 1 + _BASERS], read[1 + _BASERS :]
    found: list[tuple[int, int]] = []
    if commands & _VALID:
        found.append((commands & _ADDRESS, ((commands & _SIZE) + 1) * _COMMAND_PAGE))
    for baser in basers:
        if baser & _VALID:
            found += _table(baser, ram)
    for properties, pending in zip(lpis[::2], lpis[1::2], strict=True):
        if properties & _ADDRESS:
            ids = 1 << min((properties & _ID_BITS) + 1, _MAX_ID_BITS)
            found.append((properties & _ADDRESS, max(ids - _FIRST_LPI, 0)))
            found.append((pending & _ADDRESS, ids // 8))
    return [
        (start, end)
        for address, size in found
        if 0 <= (start := max(address - RAM_BASE, 0)) < (end := min(address + size - RAM_BASE, len(ram)))
    ]


def _table(baser: int, ram: memoryview) -> Iterator[tuple[int, int]]:
    """A table of the ITS: address and size of it, and of those that it points to."""
    shift = _PAGE_SHIFTS[baser >> 8 & 3]
    address, size = baser & _ADDRESS, ((baser & _SIZE) + 1) << shift
    yield address, size
    start = address - RAM_BASE
    if baser & _INDIRECT and 0 <= start <= start + size <= len(ram):
        for entry in ram[start : start + size].cast("Q"):
            if entry & _VALID:
                yield entry & _ADDRESS, 1 << shift
