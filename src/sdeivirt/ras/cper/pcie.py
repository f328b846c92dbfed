# SPDX-License-Identifier: Apache-2.0
"""Errors of PCI Express. UEFI 2.10, N.2.7; the AER capability: PCI Express Base Specification, 7.8.4."""

from __future__ import annotations

import re
import struct
from dataclasses import astuple, dataclass, replace
from typing import Self
from uuid import UUID

from . import guids
from .layout import Field, Layout, check_fits
from .reader import CperError, Reader

__all__ = ["AER_ERRORS", "PORT_TYPES", "AerCapability", "PcieDevice", "PcieSection"]

_LAYOUT = Layout(
    "the PCIe error section",
    Field("validation", "Q"),
    Field("port_type", "I", 0),
    Field("minor", "B", 1),
    Field("major", "B", 1),
    Field("", "2x"),
    Field("command", "H", 2),
    Field("status", "H", 2),
    Field("", "4x"),
    Field("device", "16s", 3),
    Field("serial_number", "Q", 4),
    Field("secondary_status", "H", 5),
    Field("control", "H", 5),
    Field("capability", "60s", 6),
    Field("aer", "96s", 7),
)
# Vendor, device, class code, function, device, segment, bus, secondary bus, slot, reserved.
_DEVICE = struct.Struct("<HH3sBBHBBHx")
_DEVICE_BITS = (16, 16, 24, 8, 8, 16, 8, 8, 13)
_SLOT_SHIFT = 3
_ADDRESS = re.compile(r"(?:([0-9a-f]{1,4}):)?([0-9a-f]{1,2}):([01]?[0-9a-f])\.([0-7])", re.IGNORECASE)
# Header; status, mask, severity of uncorrectable errors; status and mask of correctable ones; control; the header
# of the packet; root command and status, and who sent what the root has seen first. Then prefixes of packets.
_AER = struct.Struct("<7I16s2I2H40s")

# Bits of the status registers: of correctable errors, and of uncorrectable ones. PCIe, 7.8.4.2 and 7.8.4.5.
CORRECTABLE = {
    "receiver": 0,
    "bad-tlp": 6,
    "bad-dllp": 7,
    "replay-rollover": 8,
    "replay-timeout": 12,
    "advisory-non-fatal": 13,
    "corrected-internal": 14,
    "header-log-overflow": 15,
}
UNCORRECTABLE = {
    "data-link-protocol": 4,
    "surprise-down": 5,
    "poisoned-tlp": 12,
    "flow-control": 13,
    "completion-timeout": 14,
    "completer-abort": 15,
    "unexpected-completion": 16,
    "receiver-overflow": 17,
    "malformed-tlp": 18,
    "ecrc": 19,
    "unsupported-request": 20,
    "acs-violation": 21,
    "uncorrectable-internal": 22,
}
AER_ERRORS = (*CORRECTABLE, *UNCORRECTABLE)

PORT_TYPES = {
    0: "PCIe end point",
    1: "legacy PCI end point",
    4: "root port",
    5: "upstream switch port",
    6: "downstream switch port",
    7: "PCIe to PCI/PCI-X bridge",
    8: "PCI/PCI-X to PCIe bridge",
    9: "root complex integrated endpoint device",
    10: "root complex event collector",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class PcieDevice:
    """Which device."""

    vendor_id: int
    device_id: int
    class_code: int = 0
    function: int = 0
    device: int = 0
    segment: int = 0
    bus: int = 0
    secondary_bus: int = 0
    slot: int = 0

    def at(self, address: str) -> Self:
        """The same at another address, such as 00:02.0 or 0000:00:02.0. Raises CperError."""
        match = _ADDRESS.fullmatch(address)
        if match is None:
            raise CperError(f"no PCIe device is at {address[:40]!r}", "write bus, device, function: 00:02.0")
        segment, bus, device, function = (int(part or "0", 16) for part in match.groups())
        return replace(self, segment=segment, bus=bus, device=device, function=function)

    def encode(self) -> bytes:
        """16 bytes. Raises CperError for values that do not fit."""
        for (name, value), bits in zip(self._named(), _DEVICE_BITS, strict=True):
            check_fits(f"{name} of the PCIe device", value, bits)
        class_code = self.class_code.to_bytes(3, "little")
        rest = (self.function, self.device, self.segment, self.bus, self.secondary_bus, self.slot << _SLOT_SHIFT)
        return _DEVICE.pack(self.vendor_id, self.device_id, class_code, *rest)

    def _named(self) -> list[tuple[str, int]]:
        return list(zip(self.__dataclass_fields__, astuple(self), strict=True))

    @classmethod
    def decode(cls, data: bytes) -> PcieDevice:
        """What 16 bytes say."""
        vendor_id, device_id, class_code, function, device, segment, bus, secondary_bus, slot = _DEVICE.unpack(data)
        return cls(
            vendor_id=vendor_id,
            device_id=device_id,
            class_code=int.from_bytes(class_code, "little"),
            function=function,
            device=device,
            segment=segment,
            bus=bus,
            secondary_bus=secondary_bus,
            slot=slot >> _SLOT_SHIFT,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class AerCapability:
    """The registers of Advanced Error Reporting, as they were. `rest` is what follows: prefixes of packets."""

    header: int = 0
    uncorrectable_status: int = 0
    uncorrectable_mask: int = 0
    uncorrectable_severity: int = 0
    correctable_status: int = 0
    correctable_mask: int = 0
    control: int = 0
    header_log: tuple[int, int, int, int] = (0, 0, 0, 0)
    root_command: int = 0
    root_status: int = 0
    correctable_source: int = 0
    uncorrectable_source: int = 0
    rest: bytes = bytes(40)

    def encode(self) -> bytes:
        """96 bytes. Raises CperError for values that do not fit."""
        values = astuple(self)
        for name, value in zip(self.__dataclass_fields__, values, strict=True):
            for word in value if isinstance(value, tuple) else (value,):
                if not isinstance(word, bytes):
                    check_fits(f"{name} of the AER capability", word, 16 if name.endswith("_source") else 32)
        if len(self.rest) != 40 or len(self.header_log) != 4:
            raise CperError("an AER capability holds 4 words of header and 40 bytes of rest", "fill them up with zeros")
        return _AER.pack(*values[:7], struct.pack("<4I", *self.header_log), *values[8:])

    @classmethod
    def decode(cls, data: bytes) -> AerCapability:
        """What 96 bytes say."""
        values = list(_AER.unpack(data))
        values[7] = struct.unpack("<4I", values[7])
        return cls(**dict(zip(cls.__dataclass_fields__, values, strict=True)))


@dataclass(frozen=True, slots=True, kw_only=True)
class PcieSection:
    """An error of PCI Express; None is what is not said.

    `port_type` is one of PORT_TYPES. `version` is (major, minor). `command` and `status` are the device's registers,
    `secondary_status` and `control` the bridge's; `capability` is its PCI Express capability, 60 bytes.
    `more` is what follows the structure.
    """

    port_type: int | None = None
    version: tuple[int, int] | None = None
    command: int | None = None
    status: int | None = None
    device: PcieDevice | None = None
    serial_number: int | None = None
    secondary_status: int | None = None
    control: int | None = None
    capability: bytes | None = None
    aer: AerCapability | None = None
    more: bytes = b""

    @property
    def guid(self) -> UUID:
        return guids.PCIE

    def encode(self) -> bytes:
        """The section. Raises CperError for values that do not fit."""
        if self.capability is not None and len(self.capability) != 60:
            raise CperError(f"a PCIe capability of {len(self.capability)} bytes cannot be", "fill it up to 60")
        major, minor = self.version or (None, None)
        pieces = {"major": major, "minor": minor}
        device, aer = self.device and self.device.encode(), self.aer and self.aer.encode()
        return _LAYOUT.pack({**_LAYOUT.values(self), **pieces, "device": device, "aer": aer}) + self.more

    @classmethod
    def decode(cls, reader: Reader) -> PcieSection:
        """The section that a reader holds. Raises CperError."""
        values, _valid = _LAYOUT.unpack(reader)
        major, minor = values.pop("major"), values.pop("minor")
        if (device := values.pop("device")) is not None:
            device = PcieDevice.decode(device)
        if (aer := values.pop("aer")) is not None:
            aer = AerCapability.decode(aer)
        return cls(
            **values,
            version=None if major is None else (major, minor),
            device=device,
            aer=aer,
            more=reader.take(reader.left, "what follows"),
        )
