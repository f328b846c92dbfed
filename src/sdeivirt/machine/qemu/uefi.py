# SPDX-License-Identifier: Apache-2.0
"""A guest that boots by UEFI: EDK2 at EL1, under the monitor.

EDK2 runs from QEMU's flash, finds QEMU's device tree at the start of RAM, and starts the kernel that fw_cfg gives
it, by the kernel's EFI stub. It tells the kernel of all memory that the tree has: so the tree's memory ends before the
windows of the sources of errors.
"""

from __future__ import annotations

import os
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from ...cpu import ESR_WNR, PC
from ...errors import EnvironmentUnavailableError, ImageError, UsageError
from ...files import read_regular
from ...ras.window import windows_size
from ...tables.acpi.loader import TableFiles
from ..base import PAGE_SIZE, RAM_BASE, MachineConfig
from ..demand import Fault
from ..images import read_image
from .acpi import with_ours
from .fwcfg import FW_CFG, FwCfg
from .its import has_its
from .layout import Action, Mailbox
from .options import QemuOptions

if TYPE_CHECKING:
    from .machine import QemuMachine
    from .qtest import Qtest
    from .vcpu import QemuVcpu

__all__ = [
    "FirmwareAccess",
    "blank_files",
    "check_uefi",
    "find_firmware",
    "firmware_preview",
    "memory_for_uefi",
    "read_firmware",
    "read_program",
]

# Of Debian and Ubuntu, of Fedora, of Arch.
_PLACES = (
    "/usr/share/qemu-efi-aarch64/QEMU_EFI.fd",
    "/usr/share/edk2/aarch64/QEMU_EFI.fd",
    "/usr/share/edk2/aarch64/QEMU_CODE.fd",
)
_INSTALL = "install it with `apt-get install qemu-efi-aarch64`, or name an EDK2 for QEMU's virt board with --uefi"
_FLASH_SIZE = 64 << 20
_LEAST_MEMORY = 128 << 20  # what EDK2 asserts
_GZIP = b"\x1f\x8b"
_MZ = b"MZ"
_PE_HEADER = 0x3C  # where it says where the header is: signature, machine
_PE_AARCH64 = b"PE\0\0\x64\xaa"
_BLANK = bytes(0x1000)
_ESR_ISV = 1 << 24  # the syndrome tells size and register
_PAGE_SHIFT = 12


def check_uefi(config: MachineConfig, options: QemuOptions) -> None:
    """Raises UsageError for a machine on which UEFI could not run."""
    if options.firmware != "uefi":
        return
    if not options.stage2:
        raise UsageError("without stage 2 there is no UEFI", "boot by a device tree or by ACPI")
    if memory_for_uefi(config) < _LEAST_MEMORY:
        raise UsageError(f"UEFI needs more than {config.memory >> 20} MiB", "give it --memory 256M")


def memory_for_uefi(config: MachineConfig) -> int:
    """How much of the RAM UEFI is told of: the windows at its end are no memory of the kernel's."""
    return config.memory - windows_size(config.error_sources)


def find_firmware(wanted: Path | None = None) -> Path:
    """The firmware to use. Raises EnvironmentUnavailableError where there is none."""
    places = [wanted] if wanted is not None else [Path(place) for place in _PLACES]
    for place in places:
        if os.path.isfile(place):  # unlike Path.is_file(), it takes any name, and directories that are closed to us
            return place
    what = f"{wanted} is no file" if wanted is not None else f"there is no {_PLACES[0]}"
    raise EnvironmentUnavailableError(f"booting by UEFI needs EDK2, and {what}", _INSTALL)


def read_firmware(wanted: Path | None = None) -> bytes:
    """The firmware itself. Raises EnvironmentUnavailableError, UsageError."""
    return read_regular(find_firmware(wanted), _FLASH_SIZE, UsageError, _INSTALL, "the board's flash has 64 MiB")


def read_program(path: Path, limit: int) -> bytes:
    """What UEFI is to start: an Image with an EFI stub, packed by gzip or not, or any other EFI program for AArch64.

    Raises ImageError.
    """
    hint = "give it an arm64 Image with an EFI stub, as Linux's is, or another EFI program for AArch64"
    content = read_regular(path, limit, ImageError, hint, "give it more --memory")
    if content.startswith(_GZIP):
        content = read_image(path, RAM_BASE, limit).segments[0][1]
    header = int.from_bytes(content[_PE_HEADER : _PE_HEADER + 4], "little")
    if not content.startswith(_MZ) or content[header : header + len(_PE_AARCH64)] != _PE_AARCH64:
        raise ImageError(f"UEFI cannot start {path}", hint)
    return content


def blank_files(options: QemuOptions) -> dict[str, bytes]:
    """What a QEMU gets to which a guest comes: its flash comes with it."""
    return {"bios": _BLANK} if options.firmware == "uefi" else {}


def firmware_preview(options: QemuOptions, *, kernel: bool) -> dict[str, bytes]:
    """For each file that QEMU gets, by the name of its option, nothing. Raises EnvironmentUnavailableError."""
    if options.firmware != "uefi":
        return {}
    find_firmware(options.uefi)
    initrd = ("initrd",) if options.initrd is not None else ()
    return dict.fromkeys(("bios", *(("kernel", *initrd) if kernel else ())), b"")


class _Ram:
    """The guest's RAM, as fw_cfg's DMA sees it."""

    def __init__(self, machine: QemuMachine) -> None:
        self._machine = machine

    @property
    def stays(self) -> AbstractContextManager[object]:
        demand = self._machine.demand
        return nullcontext() if demand is None else demand.lock

    def covers(self, address: int, size: int) -> bool:
        return RAM_BASE <= address <= address + size <= RAM_BASE + self._machine.config.memory

    def here(self, address: int, size: int) -> bool:
        demand = self._machine.demand
        return demand is None or demand.reach(address, size)

    def read(self, address: int, size: int) -> bytes | None:
        return self._machine.read_physical(address, size)

    def write(self, address: int, data: bytes) -> bool:
        return self._machine.write_physical(address, data)

    def written(self, address: int, size: int) -> None:
        if self._machine.dirtying is not None:
            self._machine.dirtying.log.mark(address, size)


class FirmwareAccess:
    """What the guest's writes to fw_cfg come to."""

    def __init__(self, machine: QemuMachine, qtest: Qtest) -> None:
        self._machine = machine
        block = machine.block

        def extended(files: TableFiles) -> TableFiles:
            return with_ours(files, machine.config, block.io, its=has_its(qtest))

        self._fw_cfg = FwCfg(qtest, block.fw_cfg_page, block.fw_cfg_address, _Ram(machine), extended)

    def trapped(self, vcpu: QemuVcpu) -> bool:
        """Whether a permission fault was a write to fw_cfg, which has been done; or the vCPU waits for a page."""
        words = vcpu.words
        esr, address = words[Mailbox.ESR], words[Mailbox.HPFAR] >> 4 << _PAGE_SHIFT
        if address != FW_CFG or esr & (_ESR_ISV | ESR_WNR) != _ESR_ISV | ESR_WNR:
            return False
        size, register = 1 << (esr >> 22 & 3), esr >> 16 & 31
        value = 0 if register == 31 else words[register if register < 18 else Mailbox.X18 + register - 18]
        lacking = self._fw_cfg.write(words[Mailbox.FAR] & PAGE_SIZE - 1, size, value & (1 << 8 * size) - 1)
        if lacking is None:
            words[PC] += 4
        elif self._machine.demand is not None:
            start, length = lacking
            for page in range(start & -PAGE_SIZE, start + length, PAGE_SIZE):
                if self._machine.demand.fault(page, vcpu.pe.index, lambda: None) is Fault.WAIT:
                    vcpu.act(Action.WAIT)
                    break
        return True
