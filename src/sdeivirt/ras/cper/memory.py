# SPDX-License-Identifier: Apache-2.0
"""Errors of memory. UEFI 2.10, N.2.5."""

from __future__ import annotations

from dataclasses import dataclass
from uuid import UUID

from . import guids
from .layout import Field, Layout, check_fits
from .reader import CperError, Reader

__all__ = ["MEMORY_STATUS", "MEMORY_TYPES", "MemorySection"]

# The structure has grown: of UEFI 2.1 it ended after the error type, and some firmware leaves out even that.
_SIZES = (64, 73, 80)
_KNOWN_SIZES = "it has 64, 73 or 80"
_LAYOUT = Layout(
    "the memory error section",
    Field("validation", "Q"),
    Field("error_status", "Q", 0),
    Field("physical_address", "Q", 1),
    Field("physical_address_mask", "Q", 2),
    Field("node", "H", 3),
    Field("card", "H", 4),
    Field("module", "H", 5),
    Field("bank", "H", parts=(6, 19, 20)),
    Field("device", "H", 7),
    Field("row", "H", 8),
    Field("column", "H", 9),
    Field("bit_position", "H", 10),
    Field("requestor_id", "Q", 11),
    Field("responder_id", "Q", 12),
    Field("target_id", "Q", 13),
    Field("error_type", "B", 14),
    Field("extended", "B", parts=(18, 21)),
    Field("rank", "H", 15),
    Field("card_handle", "H", 16),
    Field("module_handle", "H", 17),
)
# Two fields are made of parts, each with a validation bit: the bank's number is also a group, and an address in it.
_PARTS = {"bank": 1 << 6, "row_extension": 1 << 18, "bank_group": 1 << 19, "bank_address": 1 << 20, "chip_id": 1 << 21}
_CHIP_SHIFT = 5

# Bits 8 to 15 of the error status: UEFI 2.10, appendix N, "Error Status".
MEMORY_STATUS = {
    1: "Error detected internal to the component",
    4: "Storage error in DRAM memory",
    5: "Storage error in TLB",
    6: "Storage error in cache",
    7: "Error in one or more functional units",
    8: "Component failed self test",
    9: "Overflow or undervalue of internal queue",
    16: "Error detected in the bus",
    17: "Virtual address not found on IO-TLB or IO-PDIR",
    18: "Improper access error",
    19: "Access to a memory address which is not mapped to any component",
    20: "Loss of Lockstep",
    21: "Response not associated with a request",
    22: "Bus parity error - must also set the A, C, or D Bits",
    23: "Detection of a protocol error",
    24: "Detection of a PATH_ERROR",
    25: "Bus operation timeout",
    26: "A read was issued to data that has been poisoned",
}
MEMORY_TYPES = (
    "unknown",
    "no error",
    "single-bit ECC",
    "multi-bit ECC",
    "single-symbol chipkill ECC",
    "multi-symbol chipkill ECC",
    "master abort",
    "target abort",
    "parity error",
    "watchdog timeout",
    "invalid address",
    "mirror Broken",
    "memory sparing",
    "scrub corrected error",
    "scrub uncorrected error",
    "physical memory map-out event",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class MemorySection:
    """An error of memory; None is what is not said.

    `error_status` has the kind of the error in bits 8 to 15 (MEMORY_STATUS), `error_type` is an index of MEMORY_TYPES.
    `row_extension` are bits 16 and 17 of the row. `bank` and (`bank_group`, `bank_address`) are two views
    of one field. `size` is that of the structure: 64, 73 or 80 bytes; `more` what follows it.
    """

    error_status: int | None = None
    physical_address: int | None = None
    physical_address_mask: int | None = None
    node: int | None = None
    card: int | None = None
    module: int | None = None
    bank: int | None = None
    bank_group: int | None = None
    bank_address: int | None = None
    device: int | None = None
    row: int | None = None
    row_extension: int | None = None
    column: int | None = None
    bit_position: int | None = None
    requestor_id: int | None = None
    responder_id: int | None = None
    target_id: int | None = None
    error_type: int | None = None
    chip_id: int | None = None
    rank: int | None = None
    card_handle: int | None = None
    module_handle: int | None = None
    size: int = 80
    more: bytes = b""

    @property
    def guid(self) -> UUID:
        return guids.PLATFORM_MEMORY

    def encode(self) -> bytes:
        """The section. Raises CperError for values that do not fit."""
        if self.size not in _SIZES or (self.more and self.size != _LAYOUT.size):
            raise CperError(f"there is no memory error section of {self.size} bytes", _KNOWN_SIZES)
        group, address = self.bank_group, self.bank_address
        bank = (group or 0) << 8 | (address or 0) if self.bank is None else self.bank
        if (group is not None and bank >> 8 != group) or (address is not None and bank & 0xFF != address):
            raise CperError(f"bank {bank:#x} is not group {group} and address {address}", "give one or the other")
        check_fits("row_extension", self.row_extension or 0, 2)
        check_fits("chip_id", self.chip_id or 0, 3)
        extended = (self.row_extension or 0) | (self.chip_id or 0) << _CHIP_SHIFT
        valid = sum(bit for name, bit in _PARTS.items() if getattr(self, name) is not None)
        values = {**_LAYOUT.values(self), "bank": bank, "extended": extended}
        return _LAYOUT.pack(values, valid, self.size) + self.more

    @classmethod
    def decode(cls, reader: Reader) -> MemorySection:
        """The section that a reader holds. Raises CperError."""
        size = min(reader.left, _LAYOUT.size)
        if size not in _SIZES:
            raise reader.wrong(f"there is no memory error section of {size} bytes ({_KNOWN_SIZES})")
        values, valid = _LAYOUT.unpack(reader, size)
        bank, extended = values.pop("bank"), values.pop("extended")
        parts = {
            "bank": bank,
            "bank_group": bank >> 8,
            "bank_address": bank & 0xFF,
            "row_extension": extended & 3,
            "chip_id": extended >> _CHIP_SHIFT,
        }
        present = {name: value for name, value in parts.items() if valid & _PARTS[name]}
        return cls(**values, **present, size=size, more=reader.take(reader.left, "what follows"))
