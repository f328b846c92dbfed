# SPDX-License-Identifier: Apache-2.0
"""What stands in the guest's memory before the first instruction.

    RAM base   the guest, its device tree, the initial RAM disk
    RAM end    up to 2 MiB that nobody uses, then the block shared with the monitor: see block.py

and what the guest can reach: its RAM and all devices but the PCI function that
is the doorbell. The function's configuration space reads as an
empty slot, its I/O ports lie on a page that is not mapped. A guest that boots by ACPI
finds at the end of its RAM what acpi.py puts there.
"""

from __future__ import annotations

import mmap
from dataclasses import dataclass
from pathlib import Path

from ...cpu import affinity_of_index
from ...errors import ImageError
from ...files import read_regular
from ..base import RAM_BASE, MachineConfig
from ..images import GuestImage, read_image
from .acpi import AcpiPlaces, hand_over
from .block import BELL_PORT, Block, block_address, block_size
from .devicetree import MachineTree
from .layout import Global
from .options import QemuOptions
from .process import BELL_SLOT

__all__ = ["Payload", "lay_out"]

_PAGE = 0x1000
_TREE_ROOM = 0x1_0000
_QEMU_TREE_ROOM = 0x10_0000
_INITRD_ALIGN = 0x1_0000


@dataclass(frozen=True, slots=True)
class Payload:
    """A guest: its image, and its initial RAM disk if it has one."""

    image: GuestImage
    initrd: bytes = b""

    @classmethod
    def read(cls, path: Path, initrd: Path | None, end: int) -> Payload:
        """From files, for RAM that ends at `end`. Raises ImageError."""
        image = read_image(path, RAM_BASE, end - RAM_BASE)
        if initrd is None:
            return cls(image)
        hint = "give the path of an initial RAM disk"
        return cls(image, read_regular(initrd, end - RAM_BASE, ImageError, hint, "give it more --memory"))


def lay_out(ram: mmap.mmap, config: MachineConfig, options: QemuOptions, payload: Payload) -> Block:
    """Fill `ram`, in which QEMU has left its device tree.

    Raises ImageError where not everything fits.
    """
    tree = MachineTree(ram[:_QEMU_TREE_ROOM])
    bridge = tree.pci
    distributor, redistributor = tree.gic
    if options.stage2:
        tree.shrink_io(bridge.io_size - _PAGE)
    else:
        tree.remove_pci()
    ram[:_QEMU_TREE_ROOM] = bytes(_QEMU_TREE_ROOM)
    at = _place(ram, config, options, payload, tree)

    block = Block(ram, config, bridge.io + BELL_PORT, bridge.function(BELL_SLOT), poll=options.poll)
    block.globals[Global.GICD] = distributor
    block.globals[Global.GICR] = redistributor
    block.write_monitor(payload.image.entry, at)
    if options.stage2:
        block.protect()
    return block


def _place(ram: mmap.mmap, config: MachineConfig, options: QemuOptions, payload: Payload, tree: MachineTree) -> int:
    """The guest, its initial RAM disk and what tells it of its machine; the address that goes into x0."""

    def write(address: int, content: bytes) -> None:
        ram[address - RAM_BASE : address - RAM_BASE + len(content)] = content

    image, end = payload.image, RAM_BASE + config.memory
    for address, content in image.segments:
        write(address, content)
    if options.firmware == "acpi":
        end = AcpiPlaces.of(config).tables
        if image.end > end:
            raise ImageError("the guest leaves no room for ACPI tables", "give it more --memory")
        initrd = _initrd(payload, image.end, end)
        at, tables = hand_over(config, [affinity_of_index(i) for i in range(config.vcpus)], tree.gic, initrd)
        for address, content in tables.items():
            write(address, content)
    else:
        at = image.place(_TREE_ROOM, RAM_BASE, end)
        initrd = _initrd(payload, max(image.end, at + _TREE_ROOM), end)
        blob = tree.finish(
            conduit=config.conduit,
            bootargs=config.bootargs,
            memory=(RAM_BASE, config.memory),
            reserved=(block_address(config.memory), block_size(config.memory)),
            initrd=initrd,
        )
        if len(blob) > _TREE_ROOM:
            raise ImageError(f"the machine's device tree has {len(blob)} bytes", "give the machine fewer devices")
        write(at, blob)
    if initrd is not None:
        write(initrd[0], payload.initrd)
    return at


def _initrd(payload: Payload, behind: int, end: int) -> tuple[int, int] | None:
    """Where the initial RAM disk goes, if there is one: [start, end). Raises ImageError."""
    if not payload.initrd:
        return None
    first = -(-behind // _INITRD_ALIGN) * _INITRD_ALIGN
    last = first + len(payload.initrd)
    if last > end:
        raise ImageError("the guest leaves no room for the initial RAM disk", "give it more --memory")
    return first, last
