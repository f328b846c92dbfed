# SPDX-License-Identifier: Apache-2.0
"""ACPI tables and AML as a guest reads them: by the offsets in ACPI 6.3, with nothing of what wrote them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

__all__ = ["Device", "Hardware", "read_aml", "read_root", "u"]


def u(data: bytes, offset: int, size: int) -> int:
    """A little-endian number."""
    assert offset + size <= len(data), (offset, size, len(data))
    return int.from_bytes(data[offset : offset + size], "little")


class Hardware:
    """Physical memory, of which a reader may see only what was written, piece by piece."""

    def __init__(self, pieces: Mapping[int, bytes]) -> None:
        self._pieces = sorted(pieces.items())
        for (at, data), (behind, _) in zip(self._pieces, self._pieces[1:], strict=False):
            assert at + len(data) <= behind, f"what is at {at:#x} reaches into {behind:#x}"

    def read(self, address: int, size: int) -> bytes:
        for at, data in self._pieces:
            if at <= address and address + size <= at + len(data):
                return data[address - at : address - at + size]
        raise AssertionError(f"nothing is at {address:#x}")


def _table(memory: Hardware, address: int) -> bytes:
    data = memory.read(address, u(memory.read(address, 8), 4, 4))
    assert sum(data) % 256 == 0, f"checksum of {data[:4]!r}"
    assert address % 8 == 0
    return data


def read_root(memory: Hardware, rsdp: int) -> dict[str, tuple[int, bytes]]:
    """By signature, where each table is and what it holds: all that the RSDP leads to, the DSDT as well."""
    pointer = memory.read(rsdp, 36)
    assert rsdp % 16 == 0
    assert pointer[:8] == b"RSD PTR "
    assert sum(pointer[:20]) % 256 == 0
    assert sum(pointer) % 256 == 0
    assert (pointer[15], u(pointer, 20, 4)) == (2, 36)
    assert u(pointer, 16, 4) == 0  # there is no RSDT
    where = u(pointer, 24, 8)
    xsdt = _table(memory, where)
    assert xsdt[:4] == b"XSDT"
    assert (len(xsdt) - 36) % 8 == 0
    found = {"XSDT": (where, xsdt)}
    for offset in range(36, len(xsdt), 8):
        table = _table(memory, u(xsdt, offset, 8))
        found[table[:4].decode()] = u(xsdt, offset, 8), table
    assert len(found) == 1 + (len(xsdt) - 36) // 8  # each once
    dsdt = u(found["FACP"][1], 140, 8)
    found["DSDT"] = dsdt, _table(memory, dsdt)
    return found


@dataclass
class Device:
    """A device or scope: its names with their values (numbers, strings, buffers), methods by name, what is in it."""

    names: dict[str, Any] = field(default_factory=dict)
    methods: dict[str, tuple[int, bytes]] = field(default_factory=dict)
    devices: dict[str, Device] = field(default_factory=dict)


class _Aml:
    """ACPI 6.3, 20.2, as far as a platform of a few devices goes."""

    def __init__(self, code: bytes) -> None:
        self.code = code
        self.at = 0

    def take(self, size: int) -> bytes:
        assert self.at + size <= len(self.code)
        self.at += size
        return self.code[self.at - size : self.at]

    def package(self) -> _Aml:
        """What a length, which counts its own bytes too, says is in a term."""
        begin = self.at
        lead = self.take(1)[0]
        more = lead >> 6
        if more:
            assert lead & 0x30 == 0
            length = lead & 0xF | int.from_bytes(self.take(more), "little") << 4
        else:
            length = lead & 0x3F
        assert length >= self.at - begin
        return _Aml(self.take(begin + length - self.at))

    def segment(self) -> str:
        if self.code[self.at] == 0x5C:
            self.take(1)
        name = self.take(4).decode("ascii")
        assert all(c.isupper() or c.isdigit() or c == "_" for c in name)
        assert not name[0].isdigit()
        return name

    def value(self) -> Any:
        op = self.take(1)[0]
        if op in (0, 1):
            return op
        if op in (0x0A, 0x0B, 0x0C, 0x0E):
            return int.from_bytes(self.take({0x0A: 1, 0x0B: 2, 0x0C: 4, 0x0E: 8}[op]), "little")
        if op == 0x0D:
            end = self.code.index(0, self.at)
            text = self.take(end - self.at).decode("ascii")
            self.take(1)
            return text
        assert op == 0x11, f"{op:#x} is no value"
        body = self.package()
        size = body.value()
        content = body.take(len(body.code) - body.at)
        assert len(content) == size
        return content

    def terms(self, into: Device) -> Device:
        while self.at < len(self.code):
            op = self.take(1)[0]
            if op == 0x08:
                name = self.segment()
                into.names[name] = self.value()
            elif op == 0x10 or (op == 0x5B and self.take(1)[0] == 0x82):
                body = self.package()
                name = body.segment()
                assert name not in into.devices
                into.devices[name] = body.terms(Device())
            else:
                assert op == 0x14, f"{op:#x} is no term"
                body = self.package()
                name = body.segment()
                flags = body.take(1)[0]
                into.methods[name] = flags & 7, body.code[body.at :]
        return into


def read_aml(table: bytes) -> Device:
    """What a DSDT declares."""
    return _Aml(table[36:]).terms(Device())
