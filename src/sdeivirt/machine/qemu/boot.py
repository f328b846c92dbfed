# SPDX-License-Identifier: Apache-2.0
"""What stands in the guest's memory before the first instruction.

    RAM base   the guest, its device tree, the initial RAM disk
    RAM end    up to 2 MiB that nobody uses, then the block shared with the monitor: see layout.py

and what the guest can reach: its RAM and all devices but the PCI function that
is the doorbell. The function's configuration space reads as an
empty slot, its I/O ports lie on a page that is not mapped. Booting by other
tables than a device tree would begin here as well.
"""

from __future__ import annotations

import mmap
from dataclasses import dataclass
from pathlib import Path

from ...errors import ImageError
from ...files import read_regular
from ...guests import program_path
from ..base import RAM_BASE, MachineConfig
from ..images import GuestImage, read_image
from . import layout
from .devicetree import MachineTree, PciBridge
from .layout import Global, Mailbox
from .options import QemuOptions
from .process import BELL_SLOT
from .stage2 import Kind, Stage2

__all__ = ["Boot", "Payload", "block_address", "lay_out", "total_memory"]

_PAGE = 0x1000
_TREE_ROOM = 0x1_0000
_QEMU_TREE_ROOM = 0x10_0000
_INITRD_ALIGN = 0x1_0000
_BELL_PORT = 0xFFF8  # eight I/O ports, the last that the bridge has
_PCI_IO_BAR = 1
_DEVICES = (0, RAM_BASE)
_HIGH_DEVICES = (256 << 30, 1024 << 30)


def block_address(memory: int) -> int:
    """Where the shared block is: on the first 2 MiB boundary behind the guest's RAM.

    Not in it: whole GiB of RAM can be mapped by one stage-2 entry each, which
    makes what a guest loses by stage 2 a third less.
    """
    return -(-(RAM_BASE + memory) // layout.BLOCK_SIZE) * layout.BLOCK_SIZE


def total_memory(memory: int) -> int:
    """How much RAM QEMU has to have for that."""
    return block_address(memory) + layout.BLOCK_SIZE - RAM_BASE


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


@dataclass(frozen=True, slots=True)
class Boot:
    """What a running machine needs of the layout: memoryviews of format "Q", and the GIC's addresses."""

    globals: memoryview
    mailboxes: list[memoryview]
    distributor: int
    redistributor: int


def lay_out(ram: mmap.mmap, config: MachineConfig, options: QemuOptions, payload: Payload) -> Boot:
    """Fill `ram`, in which QEMU has left its device tree.

    Raises ImageError where not everything fits.
    """
    block = block_address(config.memory)
    tree = MachineTree(ram[:_QEMU_TREE_ROOM])
    bridge = tree.pci
    distributor, redistributor = tree.gic
    if options.stage2:
        tree.shrink_io(bridge.io_size - _PAGE)
    else:
        tree.remove_pci()
    ram[:_QEMU_TREE_ROOM] = bytes(_QEMU_TREE_ROOM)
    at = _place(ram, config, payload, tree)

    words = memoryview(ram).cast("Q")[(block - RAM_BASE) >> 3 :]
    monitor = read_image(program_path("monitor"), 0, layout.GLOBAL_PAGE)
    for address, content in monitor.segments:
        ram[block - RAM_BASE + address : block - RAM_BASE + address + len(content)] = content
    mailboxes = []
    for i in range(config.vcpus):
        first = (layout.MAILBOXES + i * layout.MAILBOX_SIZE) >> 3
        mailboxes.append(words[first : first + (layout.MAILBOX_SIZE >> 3)])
    mailboxes[0][Mailbox.BOOT_PC] = payload.image.entry
    mailboxes[0][Mailbox.BOOT_X0] = at
    shared = words[layout.GLOBAL_PAGE >> 3 : (layout.GLOBAL_PAGE + _PAGE) >> 3]
    shared[Global.GICD] = distributor
    shared[Global.GICR] = redistributor
    if not options.poll:
        shared[Global.BELL] = bridge.io + _BELL_PORT
        shared[Global.BELL_CONFIG] = bridge.function(BELL_SLOT)
        shared[Global.BELL_BAR] = _BELL_PORT | _PCI_IO_BAR
    if options.stage2:
        shared[Global.FLAGS] = layout.FLAG_STAGE2
        _write_stage2(words, RAM_BASE + config.memory, block, bridge)
    return Boot(shared, mailboxes, distributor, redistributor)


def _place(ram: mmap.mmap, config: MachineConfig, payload: Payload, tree: MachineTree) -> int:
    """The guest, its initial RAM disk and its device tree; the address of the last."""

    def write(address: int, content: bytes) -> None:
        ram[address - RAM_BASE : address - RAM_BASE + len(content)] = content

    image, end = payload.image, RAM_BASE + config.memory
    for address, content in image.segments:
        write(address, content)
    at = image.place(_TREE_ROOM, RAM_BASE, end)
    initrd = None
    if payload.initrd:
        first = -(-max(image.end, at + _TREE_ROOM) // _INITRD_ALIGN) * _INITRD_ALIGN
        initrd = (first, first + len(payload.initrd))
        if initrd[1] > end:
            raise ImageError("the guest leaves no room for the initial RAM disk", "give it more --memory")
        write(first, payload.initrd)
    blob = tree.finish(
        conduit=config.conduit,
        bootargs=config.bootargs,
        memory=(RAM_BASE, config.memory),
        reserved=(block_address(config.memory), layout.BLOCK_SIZE),
        initrd=initrd,
    )
    if len(blob) > _TREE_ROOM:
        raise ImageError(f"the machine's device tree has {len(blob)} bytes", "give the machine fewer devices")
    write(at, blob)
    return at


def _write_stage2(words: memoryview, ram_end: int, block: int, bridge: PciBridge) -> None:
    tables = words[layout.STAGE2_TABLES >> 3 : layout.BLOCK_SIZE >> 3]
    stage2 = Stage2(tables, block + layout.STAGE2_TABLES)
    stage2.map(*_DEVICES, Kind.DEVICE)
    stage2.map(*_HIGH_DEVICES, Kind.DEVICE)
    stage2.map(RAM_BASE, ram_end, Kind.RAM)
    port = bridge.io + _BELL_PORT & ~(_PAGE - 1)
    stage2.unmap(port, port + _PAGE)
    function = bridge.function(BELL_SLOT)
    blank = layout.BLANK_PAGE >> 3
    for i in range(blank, blank + (_PAGE >> 3)):
        words[i] = (1 << 64) - 1
    stage2.map(function, function + _PAGE, Kind.READ_ONLY, target=block + layout.BLANK_PAGE)
