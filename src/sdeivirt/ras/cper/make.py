# SPDX-License-Identifier: Apache-2.0
"""Reports as firmware would make them, for errors that have not happened."""

from __future__ import annotations

from typing import Literal, get_args

from .block import BlockStatus, DataEntry, StatusBlock
from .details import ErrorDetails
from .memory import MemorySection
from .pcie import CORRECTABLE, UNCORRECTABLE, AerCapability, PcieDevice, PcieSection
from .processor import ErrorFlags, ErrorInfo, ErrorType, ProcessorSection
from .reader import CperError
from .section import Section
from .severity import SectionFlags, Severity
from .timestamp import Timestamp

__all__ = ["KINDS", "Kind", "Part", "make_block"]

Kind = Literal["memory", "processor", "pcie"]
Part = Literal["cache", "tlb", "bus"]
KINDS: tuple[Kind, ...] = get_args(Kind)

_PAGE_MASK = (1 << 64) - 0x1000
_STATUS = {
    Severity.RECOVERABLE: BlockStatus.UNCORRECTABLE,
    Severity.FATAL: BlockStatus.UNCORRECTABLE,
    Severity.CORRECTED: BlockStatus.CORRECTABLE,
    Severity.INFORMATIONAL: BlockStatus(0),
}

_DRAM = 4 << 8  # the status of a memory error: storage error in DRAM
_SINGLE_BIT, _MULTI_BIT, _SPARING = 2, 3, 12
_MEMORY_TYPES = {Severity.CORRECTED: _SINGLE_BIT, Severity.INFORMATIONAL: _SPARING}

_CORTEX_A72 = 0x410F_D083
_MPIDR = 0x8000_0000
_RUNNING = 1
_DATA_ACCESS, _DATA_READ = 1, 3
_LOCAL_REQUEST, _EXTERNAL_MEMORY, _NORMAL = 0, 0, 1

_ROOT_PORT = 4
_QEMU_ROOT_PORT = PcieDevice(
    vendor_id=0x1B36, device_id=0x000C, class_code=0x06_0400, device=0x1F, secondary_bus=1, slot=1
)  # where there is none unless somebody puts it there: Linux recovers the device that is named
_PCIE_CAPABILITY = 0x0142_0010  # a root port's, version 2
_AER_HEADER = 0x0002_0001  # capability 1, version 2
_FATAL_ERRORS = 1 << UNCORRECTABLE["malformed-tlp"]  # where nobody says otherwise
_AER = {Severity.RECOVERABLE: "completion-timeout", Severity.FATAL: "malformed-tlp", Severity.CORRECTED: "bad-tlp"}
_READ_64, _ONE_DWORD = 1 << 29, 0x0000_000F


def make_block(
    kind: Kind,
    severity: Severity,
    *,
    address: int | None = None,
    threshold_exceeded: bool = False,
    mpidr: int | None = None,
    midr: int | None = None,
    part: Part = "cache",
    device: PcieDevice = _QEMU_ROOT_PORT,
    at: str | None = None,
    aer: str | None = None,
    fru_text: str | None = None,
    timestamp: Timestamp | None = None,
) -> StatusBlock:
    """A report of one error.

    `address` is the physical address of the memory, of the fault, or of what the packet was to read; without one, none
    is said. `threshold_exceeded` says that there have been too many of the kind. `mpidr` and `midr` name the PE, by
    default the first, a Cortex-A72; `part` what of it has failed: "cache", "tlb" or "bus". `device` is the PCIe
    device, by default a root port at 00:1f.0; `at` says where it is instead, as "00:02.0"; `aer` is one of
    AER_ERRORS, by default one that suits the severity.
    Raises CperError for what cannot be.
    """
    section: Section
    if address is not None and not 0 <= address < 1 << 64:
        raise CperError(f"there is no physical address {address:#x}", "it has 64 bits")
    if kind == "memory":
        section = _memory(severity, address)
    elif kind == "processor":
        mpidr, midr = _MPIDR if mpidr is None else mpidr, _CORTEX_A72 if midr is None else midr
        section = _processor(severity, address, mpidr, midr, part)
    elif kind == "pcie":
        section = _pcie(severity, address, device if at is None else device.at(at), aer)
    else:
        raise CperError(f"there are no errors of {kind!r}", f"there are {', '.join(KINDS)}")
    flags = SectionFlags.PRIMARY | (SectionFlags.THRESHOLD_EXCEEDED if threshold_exceeded else 0)
    entry = DataEntry(section=section, severity=severity, flags=int(flags), fru_text=fru_text, timestamp=timestamp)
    return StatusBlock(severity=severity, entries=(entry,), status=_STATUS[severity])


def _memory(severity: Severity, address: int | None) -> MemorySection:
    """An error of a page in DRAM: of one bit where it could be corrected, else of several."""
    return MemorySection(
        error_status=_DRAM,
        physical_address=address,
        physical_address_mask=None if address is None else _PAGE_MASK,
        node=0,
        card=0,
        module=0,
        rank=0,
        bank=0,
        error_type=_MEMORY_TYPES.get(severity, _MULTI_BIT),
    )


def _processor(severity: Severity, address: int | None, mpidr: int, midr: int, part: Part) -> ProcessorSection:
    """A read that has gone wrong in a cache, a TLB, or on the way to memory."""
    bus = part == "bus"
    details = ErrorDetails(
        transaction_type=_DATA_ACCESS,
        operation=_DATA_READ,
        level=1,
        context_corrupt=int(severity == Severity.FATAL),
        corrected=int(severity in (Severity.CORRECTED, Severity.INFORMATIONAL)),
        precise_pc=int(severity != Severity.FATAL),
        restartable_pc=int(severity != Severity.FATAL),
        participation=_LOCAL_REQUEST if bus else None,
        time_out=0 if bus else None,
        address_space=_EXTERNAL_MEMORY if bus else None,
        access_mode=_NORMAL if bus else None,
    )
    try:
        kind = ErrorType[part.upper()]
    except KeyError:
        raise CperError(f"a PE has no part {part!r} that fails", f"there are {', '.join(get_args(Part))}") from None
    error = ErrorInfo(
        type=kind,
        multiple_error=0,
        flags=ErrorFlags.FIRST | ErrorFlags.LAST,
        error_info=details.encode(),
        physical_address=address,
    )
    return ProcessorSection(
        midr=midr, mpidr=mpidr, affinity_level=0, running_state=_RUNNING, psci_state=0, errors=(error,)
    )


def _pcie(severity: Severity, address: int | None, device: PcieDevice, aer: str | None) -> PcieSection:
    """A packet that was damaged, or that nobody has answered; with an address, a read of it."""
    bad = severity in (Severity.RECOVERABLE, Severity.FATAL)
    bits = UNCORRECTABLE if bad else CORRECTABLE
    name = aer or _AER.get(severity)
    if name is not None and name not in bits:
        which = "uncorrectable" if bad else "correctable"
        raise CperError(f"no {which} error of PCIe is called {name[:40]!r}", f"there are {', '.join(bits)}")
    error = 0 if name is None else 1 << bits[name]
    uncorrectable, correctable = (error, 0) if bad else (0, error)
    worst = _FATAL_ERRORS | (uncorrectable if severity == Severity.FATAL else 0)
    log = (0, 0, 0, 0) if address is None else (_READ_64 | 1, _ONE_DWORD, address >> 32, address & 0xFFFF_FFFC)
    return PcieSection(
        port_type=_ROOT_PORT,
        version=(3, 0),
        command=0x0106,
        status=0x0010,
        device=device,
        serial_number=0,
        secondary_status=0,
        control=0,
        capability=_PCIE_CAPABILITY.to_bytes(4, "little") + bytes(56),
        aer=AerCapability(
            header=_AER_HEADER,
            uncorrectable_status=uncorrectable,
            uncorrectable_severity=worst if severity == Severity.FATAL else worst & ~uncorrectable,
            correctable_status=correctable,
            control=uncorrectable.bit_length() - 1 if uncorrectable else 0,
            header_log=log,
        ),
    )
