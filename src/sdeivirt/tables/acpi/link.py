# SPDX-License-Identifier: Apache-2.0
"""All tables at their addresses, and what leads to them: XSDT and RSDP. ACPI 6.3, 5.2.5 and 5.2.8."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass, field

from ...ras.sources import ErrorSource
from ...ras.window import Window
from ...smccc.ids import Conduit
from ..devicetree import GICD, GICR, UART_BASE, UART_SIZE
from .dsdt import dsdt, source
from .hest import hest
from .platform import fadt, gtdt, madt, sdei_table, spcr
from .table import OEM_ID, checksum, make_table

__all__ = ["AcpiTables", "asl", "make_tables"]

_ALIGN = 16
_UART = (UART_BASE, UART_SIZE, 33)

# Signature, checksum of the first 20 bytes, OEM id, revision, RSDT, length, XSDT, checksum of all.
_RSDP = struct.Struct("<8sB6sBIIQB3x")
_RSDP_OLD_SIZE = 20
_RSDP_CHECKSUM, _RSDP_LONG_CHECKSUM = 8, 32


@dataclass(slots=True)
class AcpiTables:
    """Tables in memory from `base` on: the RSDP stands there, `placed` is what stands where, by address."""

    base: int
    placed: dict[int, bytes] = field(default_factory=dict)

    @property
    def by_signature(self) -> dict[str, bytes]:
        """The tables by name, in order of address; the RSDP is called RSDP."""
        return {"RSDP" if at == self.base else data[:4].decode(): data for at, data in sorted(self.placed.items())}

    @property
    def size(self) -> int:
        """How many bytes from `base` on they take."""
        return max(at + len(data) for at, data in self.placed.items()) - self.base


def _rsdp(xsdt: int) -> bytes:
    pointer = bytearray(_RSDP.pack(b"RSD PTR ", 0, OEM_ID, 2, 0, _RSDP.size, xsdt, 0))
    pointer[_RSDP_CHECKSUM] = checksum(pointer[:_RSDP_OLD_SIZE])
    pointer[_RSDP_LONG_CHECKSUM] = checksum(pointer)
    return bytes(pointer)


def make_tables(
    base: int,
    affinities: Sequence[int],
    *,
    conduit: Conduit = Conduit.HVC,
    sources: Sequence[ErrorSource] = (),
    windows: Sequence[Window] = (),
    gic: tuple[int, int] = (GICD[0], GICR),
    sdei: bool = True,
) -> AcpiTables:
    """The tables of a machine whose PEs have these affinities, to stand at `base` (a multiple of 16).

    `gic` is where the distributor and the first redistributor are. Without `sdei` there is
    neither the SDEI table, nor sources of errors, which are told of by SDEI.
    """
    tables = AcpiTables(base)
    at = base + -(-_RSDP.size // _ALIGN) * _ALIGN

    def place(table: bytes) -> int:
        nonlocal at
        where = at
        tables.placed[where] = table
        at = -(-(at + len(table)) // _ALIGN) * _ALIGN
        return where

    described = place(dsdt(len(affinities), *_UART))
    roots = [fadt(described, conduit), madt(affinities, *gic), gtdt(), spcr(UART_BASE, _UART[2])]
    if sdei:
        roots.append(sdei_table())
        if sources:
            roots.append(hest(sources, windows))
    places = [place(table) for table in roots]
    tables.placed[base] = _rsdp(place(make_table(b"XSDT", 1, struct.pack(f"<{len(places)}Q", *places))))
    return tables


def asl(cpus: int) -> str:
    """The DSDT among the tables for that many processors, in ASL."""
    return source(cpus, *_UART)
