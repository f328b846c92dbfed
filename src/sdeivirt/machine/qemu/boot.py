# SPDX-License-Identifier: Apache-2.0
"""What stands in the guest's memory before the first instruction.

    RAM base   the guest, its device tree, the initial RAM disk
    RAM end    up to 2 MiB that nobody uses, then the block shared with the monitor: see block.py

and what the guest can reach: its RAM and all devices but the PCI function that
is the doorbell. The function's configuration space reads as an
empty slot, its I/O ports lie on a page that is not mapped. A guest that boots by ACPI
finds at the end of its RAM what acpi.py puts there: tables of our own, or where QEMU was given devices, QEMU's
with ours among them. One that boots by UEFI finds nothing but the tree: see uefi.py.
"""

from __future__ import annotations

import mmap
from dataclasses import dataclass, field
from pathlib import Path

from ...cpu import affinity_of_index
from ...errors import ImageError, UsageError
from ...files import read_regular
from ...tables.acpi import AcpiTables
from ...tables.acpi.qemu import link
from ..base import RAM_BASE, MachineConfig
from ..images import GuestImage, read_image
from .acpi import AcpiPlaces, error_windows, hand_over, with_ours
from .block import BELL_PORT, Block, block_address, block_size
from .devicetree import MachineTree
from .fwcfg import read_tables
from .its import has_its
from .layout import Global
from .options import QemuOptions
from .process import BELL_SLOT, QemuProcess
from .qtest import Qtest
from .uefi import memory_for_uefi, read_firmware, read_program

__all__ = ["Payload", "lay_out"]

_PAGE = 0x1000
_TREE_ROOM = 0x1_0000
_QEMU_TREE_ROOM = 0x10_0000
_INITRD_ALIGN = 0x1_0000
_FLASH = 0  # where it is, and where UEFI begins


@dataclass(frozen=True, slots=True)
class Payload:
    """A guest: its image, its initial RAM disk if it has one, and what QEMU gets for UEFI, by option."""

    image: GuestImage | None
    initrd: bytes = b""
    files: dict[str, bytes] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path, initrd: Path | None, end: int) -> Payload:
        """From files, for RAM that ends at `end`. Raises ImageError."""
        return cls(read_image(path, RAM_BASE, end - RAM_BASE), _read_initrd(initrd, end))

    @classmethod
    def read_for_uefi(cls, path: Path, initrd: Path | None, end: int, firmware: bytes) -> Payload:
        """A guest that is started by that firmware. Raises ImageError."""
        files = {"bios": firmware, "kernel": read_program(path, end - RAM_BASE)}
        disk = _read_initrd(initrd, end)
        return cls(None, files=files | {"initrd": disk} if disk else files)

    @classmethod
    def on_disks(cls, config: MachineConfig, options: QemuOptions) -> Payload:
        """UEFI alone, which looks for something to boot. Raises UsageError, and what :func:`read_firmware` does."""
        if config.bootargs or options.initrd is not None:
            raise UsageError("boot arguments and an initial RAM disk go with a kernel", "add --kernel")
        return cls(None, files={"bios": read_firmware(options.uefi)})


def _read_initrd(path: Path | None, end: int) -> bytes:
    if path is None:
        return b""
    hint = "give the path of an initial RAM disk"
    return read_regular(path, end - RAM_BASE, ImageError, hint, "give it more --memory")


def lay_out(process: QemuProcess, config: MachineConfig, options: QemuOptions, payload: Payload) -> Block:
    """Fill the RAM of a QEMU that has left its device tree in it.

    Raises ImageError where not everything fits.
    """
    ram = process.ram
    tree = MachineTree(ram[:_QEMU_TREE_ROOM])
    bridge = tree.pci
    distributor, redistributor = tree.gic
    if options.stage2:
        tree.shrink_io(bridge.io_size - _PAGE)
    else:
        tree.remove_pci()
    ram[:_QEMU_TREE_ROOM] = bytes(_QEMU_TREE_ROOM)

    block = Block(ram, config, bridge.io + BELL_PORT, bridge.function(BELL_SLOT), poll=options.poll)
    block.globals[Global.GICD] = distributor
    block.globals[Global.GICR] = redistributor
    image = payload.image
    if image is None:
        _place_for_uefi(ram, config, tree)
        block.write_monitor(_FLASH, RAM_BASE)
    else:
        tables = None
        if options.firmware == "acpi" and options.arguments and options.stage2:
            qtest = Qtest(process.qtest)
            files = with_ours(read_tables(qtest), config, block.io, its=has_its(qtest))
            tables = link(files, AcpiPlaces.of(config).tables)
        at = _place(ram, config, options, image, payload.initrd, tree, tables)
        block.write_monitor(image.entry, at)
    if options.stage2:
        block.protect(uefi=options.firmware == "uefi")
    return block


def _write(ram: mmap.mmap, address: int, content: bytes) -> None:
    ram[address - RAM_BASE : address - RAM_BASE + len(content)] = content


def _place_for_uefi(ram: mmap.mmap, config: MachineConfig, tree: MachineTree) -> None:
    """The tree, which UEFI looks for at the start of RAM; it gets the guest itself from fw_cfg."""
    memory = RAM_BASE, memory_for_uefi(config)
    reserved = block_address(config.memory), block_size(config.memory)
    _write(ram, RAM_BASE, tree.finish(conduit=config.conduit, bootargs="", memory=memory, reserved=reserved))
    for window in error_windows(config):
        _write(ram, window.address, window.blank())


def _place(
    ram: mmap.mmap,
    config: MachineConfig,
    options: QemuOptions,
    image: GuestImage,
    disk: bytes,
    tree: MachineTree,
    tables: AcpiTables | None,
) -> int:
    """The guest, its initial RAM disk and what tells it of its machine; the address that goes into x0."""
    end = RAM_BASE + config.memory
    for address, content in image.segments:
        _write(ram, address, content)
    if options.firmware == "acpi":
        end = AcpiPlaces.of(config).tables
        if image.end > end:
            raise ImageError("the guest leaves no room for ACPI tables", "give it more --memory")
        initrd = _initrd(disk, image.end, end)
        affinities = [affinity_of_index(i) for i in range(config.vcpus)]
        at, found = hand_over(config, affinities, tree.gic, initrd, tables)
        for address, content in found.items():
            _write(ram, address, content)
    else:
        at = image.place(_TREE_ROOM, RAM_BASE, end)
        initrd = _initrd(disk, max(image.end, at + _TREE_ROOM), end)
        blob = tree.finish(
            conduit=config.conduit,
            bootargs=config.bootargs,
            memory=(RAM_BASE, config.memory),
            reserved=(block_address(config.memory), block_size(config.memory)),
            initrd=initrd,
        )
        if len(blob) > _TREE_ROOM:
            raise ImageError(f"the machine's device tree has {len(blob)} bytes", "give the machine fewer devices")
        _write(ram, at, blob)
    if initrd is not None:
        _write(ram, initrd[0], disk)
    return at


def _initrd(disk: bytes, behind: int, end: int) -> tuple[int, int] | None:
    """Where the initial RAM disk goes, if there is one: [start, end). Raises ImageError."""
    if not disk:
        return None
    first = -(-behind // _INITRD_ALIGN) * _INITRD_ALIGN
    last = first + len(disk)
    if last > end:
        raise ImageError("the guest leaves no room for the initial RAM disk", "give it more --memory")
    return first, last
