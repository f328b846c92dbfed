# SPDX-License-Identifier: Apache-2.0
"""A guest that boots by ACPI, without firmware: what it finds in its memory, and where.

At the end of its RAM, each on a boundary of 64 KiB, the largest page of a guest:

    tables     RSDP, XSDT and the rest
    EFI        system table, memory map
    tree       of /chosen alone, whose address is in x0
    windows    of the sources of errors: see ras/window.py

The kernel gets by /chosen to the EFI tables, from there to the RSDP, and takes memory as the map says.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

from ...errors import ImageError
from ...ras.window import Window, make_windows, windows_size
from ...tables.acpi import AcpiTables, make_tables, sdei_table
from ...tables.acpi.hest import hest
from ...tables.acpi.loader import TableFiles
from ...tables.acpi.qemu import agreeing, extend
from ...tables.bootargs import check_bootargs
from ...tables.devicetree import fdt, stub
from ...tables.efi import DESCRIPTOR_SIZE, DESCRIPTOR_VERSION, EfiMemory, Region, memory_map, system_table
from ..base import RAM_BASE, MachineConfig

__all__ = ["AcpiPlaces", "error_windows", "hand_over", "with_ours"]

_ROOM = 0x1_0000
_TABLES_ROOM = 4 * _ROOM
# Linux panics without a word where it is not told whether UEFI was secure (arch/arm64/kernel/setup.c): it was not.
_NOT_SECURE = 2


def error_windows(config: MachineConfig) -> list[Window]:
    """The windows of the sources of errors, at the end of RAM."""
    return make_windows(config.error_sources, RAM_BASE + config.memory - windows_size(config.error_sources))


def with_ours(files: TableFiles, config: MachineConfig, io: tuple[int, int], *, its: bool) -> TableFiles:
    """QEMU's tables, with SDEI and the sources of errors among them. `io` are the ports of PCI that the guest has."""
    ours = [sdei_table(), agreeing()]
    if config.error_sources:
        ours.append(hest(config.error_sources, error_windows(config)))
    return extend(files, ours, config.conduit, io, its=its)


@dataclass(frozen=True, slots=True)
class AcpiPlaces:
    """Where what stands."""

    tables: int
    efi: int
    tree: int
    windows: int
    end: int

    @classmethod
    def of(cls, config: MachineConfig) -> AcpiPlaces:
        """The places in the RAM of a machine."""
        end = RAM_BASE + config.memory
        windows = end - windows_size(config.error_sources)
        tree = (windows & -_ROOM) - _ROOM
        return cls(tables=tree - _ROOM - _TABLES_ROOM, efi=tree - _ROOM, tree=tree, windows=windows, end=end)

    def memory_map(self) -> bytes:
        """Of all RAM. Windows are memory that firmware keeps."""
        return memory_map(
            [
                Region(EfiMemory.CONVENTIONAL, RAM_BASE, self.tables),
                Region(EfiMemory.ACPI_RECLAIM, self.tables, self.tree),
                Region(EfiMemory.LOADER_DATA, self.tree, self.windows),
                Region(EfiMemory.ACPI_NVS, self.windows, self.end),
            ]
        )


def _wide(name: str, value: int) -> fdt.PropWords:
    return fdt.PropWords(name, value >> 32, value & 0xFFFF_FFFF)


def _random(name: str, size: int) -> fdt.PropWords:
    words = [int.from_bytes(os.urandom(4)) for _ in range(size // 4)]
    return fdt.PropWords(name, *words)


def _chosen(places: AcpiPlaces, map_size: int, bootargs: str, initrd: tuple[int, int] | None) -> bytes:
    chosen = [
        _wide("linux,uefi-system-table", places.efi),
        _wide("linux,uefi-mmap-start", places.efi + _ROOM // 2),
        fdt.PropWords("linux,uefi-mmap-size", map_size),
        fdt.PropWords("linux,uefi-mmap-desc-size", DESCRIPTOR_SIZE),
        fdt.PropWords("linux,uefi-mmap-desc-ver", DESCRIPTOR_VERSION),
        fdt.PropWords("linux,uefi-secure-boot", _NOT_SECURE),
        _random("kaslr-seed", 8),
        _random("rng-seed", 32),
    ]
    if bootargs:
        chosen.append(fdt.PropStrings("bootargs", check_bootargs(bootargs)))
    if initrd is not None:
        chosen += [_wide("linux,initrd-start", initrd[0]), _wide("linux,initrd-end", initrd[1])]
    return stub(chosen)


def hand_over(
    config: MachineConfig,
    affinities: Sequence[int],
    gic: tuple[int, int],
    initrd: tuple[int, int] | None,
    tables: AcpiTables | None = None,
) -> tuple[int, dict[int, bytes]]:
    """What x0 is to be, and what to write where. `tables` are those of somebody else, which stand at their place.

    Raises ImageError where they have no room.
    """
    places = AcpiPlaces.of(config)
    windows = error_windows(config)
    if tables is None:
        tables = make_tables(
            places.tables,
            affinities,
            conduit=config.conduit,
            sources=config.error_sources,
            windows=windows,
            gic=gic,
        )
    if tables.size > _TABLES_ROOM:
        raise ImageError(f"the machine's ACPI tables have {tables.size} bytes", "give the machine fewer devices")
    efi_map = places.memory_map()
    content = dict(tables.placed)
    content[places.efi] = system_table(places.efi, tables.base)
    content[places.efi + _ROOM // 2] = efi_map
    content[places.tree] = _chosen(places, len(efi_map), config.bootargs, initrd)
    content |= {window.address: window.blank() for window in windows}
    return places.tree, content
