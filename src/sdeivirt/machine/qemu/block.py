# SPDX-License-Identifier: Apache-2.0
"""The block behind the guest's RAM that we share with the monitor: where it is, what goes into it, what of it moves.

layout.py says what is where in it. Its last part is stage-2 tables with room for every
page of RAM to have an entry of its own, which is what a dirty log may need; the
host gives that memory when it is used.
"""

from __future__ import annotations

import mmap

from ...guests import program_path
from ..base import PAGE_SIZE, RAM_BASE, MachineConfig
from ..images import read_image
from ..stage2 import Kind, Stage2, table_bytes
from . import layout
from .fwcfg import FW_CFG
from .layout import Global, Mailbox

__all__ = ["BELL_BAR", "BELL_PORT", "Block", "block_address", "block_size", "total_memory"]

_ALIGN = 2 << 20
BELL_PORT = 0xFFF8  # eight I/O ports, the last that the bridge has
_PCI_IO_BAR = 1
BELL_BAR = BELL_PORT | _PCI_IO_BAR
_DEVICES = (0, RAM_BASE)
_FLASH = (0, 0x0800_0000)  # of QEMU's virt
_HIGH_DEVICES = (256 << 30, 1024 << 30)


def block_address(memory: int) -> int:
    """Where the shared block is: on the first 2 MiB boundary behind the guest's RAM.

    Not in it: whole GiB of RAM can be mapped by one stage-2 entry each, which
    makes what a guest loses by stage 2 a third less.
    """
    return -(-(RAM_BASE + memory) // _ALIGN) * _ALIGN


def block_size(memory: int) -> int:
    """How large the block of a machine with so much RAM is."""
    return -(-(layout.STAGE2_TABLES + table_bytes(memory)) // _ALIGN) * _ALIGN


def total_memory(memory: int) -> int:
    """How much RAM QEMU has to have for both."""
    return block_address(memory) + block_size(memory) - RAM_BASE


class Block:
    """The block in `ram`, all zeroes at first.

    `globals` and `mailboxes` are memoryviews of format "Q". `bell` is where the
    monitor rings, unless we poll; `function` is the configuration space of
    the PCI function that is the bell. `stage2` is None where the guest may reach everything.
    """

    def __init__(self, ram: mmap.mmap, config: MachineConfig, bell: int, function: int, *, poll: bool) -> None:
        self._bytes = memoryview(ram)[block_address(config.memory) - RAM_BASE :]
        self._memory = config.memory
        self.bell = bell
        self.function = function
        self.stage2: Stage2 | None = None
        words = self._bytes.cast("Q")
        self.globals = words[layout.GLOBAL_PAGE >> 3 : (layout.GLOBAL_PAGE >> 3) + Global.COUNT]
        firsts = [(layout.MAILBOXES + i * layout.MAILBOX_SIZE) >> 3 for i in range(config.vcpus)]
        self.mailboxes = [words[first : first + (layout.MAILBOX_SIZE >> 3)] for first in firsts]
        self.globals[Global.BELL] = 0 if poll else bell
        self.globals[Global.BELL_CONFIG] = function
        self.globals[Global.BELL_BAR] = BELL_BAR

    @property
    def io(self) -> tuple[int, int]:
        """Where the PCI bridge's I/O ports begin, and how many of them are the guest's."""
        return self.bell - BELL_PORT, BELL_PORT & -PAGE_SIZE

    @property
    def fw_cfg_address(self) -> int:
        """Where the page is that fw_cfg's DMA is described on."""
        return block_address(self._memory) + layout.FW_CFG_PAGE

    @property
    def fw_cfg_page(self) -> memoryview:
        return self._bytes[layout.FW_CFG_PAGE : layout.FW_CFG_PAGE + PAGE_SIZE]

    def protect(self, *, uefi: bool = False) -> None:
        """Have stage 2 hide from the guest what is not its own. `uefi`: it runs from flash, and asks fw_cfg."""
        self.globals[Global.FLAGS] = layout.FLAG_STAGE2
        base = block_address(self._memory)
        tables = self._bytes[layout.STAGE2_TABLES :].cast("Q")
        self.stage2 = stage2 = Stage2(tables, base + layout.STAGE2_TABLES)
        stage2.map(*_DEVICES, Kind.DEVICE)
        stage2.map(*_HIGH_DEVICES, Kind.DEVICE)
        if uefi:
            stage2.map(*_FLASH, Kind.RAM)
            stage2.map(FW_CFG, FW_CFG + PAGE_SIZE, Kind.DEVICE_READ_ONLY)
        stage2.map(RAM_BASE, RAM_BASE + self._memory, Kind.RAM)
        port = self.bell & ~(PAGE_SIZE - 1)
        stage2.unmap(port, port + PAGE_SIZE)
        self._bytes[layout.BLANK_PAGE : layout.BLANK_PAGE + PAGE_SIZE] = b"\xff" * PAGE_SIZE
        stage2.map(self.function, self.function + PAGE_SIZE, Kind.READ_ONLY, target=base + layout.BLANK_PAGE)

    def write_monitor(self, entry: int, x0: int) -> None:
        """Put our own monitor in; vCPU 0 begins at `entry` with `x0`."""
        for address, content in read_image(program_path("monitor"), 0, layout.GLOBAL_PAGE).segments:
            self._bytes[address : address + len(content)] = content
        self.mailboxes[0][Mailbox.BOOT_PC] = entry
        self.mailboxes[0][Mailbox.BOOT_X0] = x0

    def monitor(self) -> bytes:
        """The monitor that runs here."""
        return bytes(self._bytes[: layout.GLOBAL_PAGE]).rstrip(b"\0")

    def take_monitor(self, monitor: bytes) -> None:
        """Another machine's, in which its vCPUs stand; not longer than GLOBAL_PAGE."""
        self._bytes[: len(monitor)] = monitor
