# SPDX-License-Identifier: Apache-2.0
"""What a guest that boots by ACPI without firmware is handed, read as its kernel does: from x0 to the tables."""

from __future__ import annotations

import uuid
import zlib
from typing import Any

import pytest

from sdeivirt.cpu import affinity_of_index
from sdeivirt.machine import MachineConfig
from sdeivirt.machine.qemu.acpi import hand_over
from sdeivirt.ras.sources import STANDARD_EVENTS, STANDARD_SOURCES, ErrorSource
from sdeivirt.sdei import EventDefinition

from .acpi_reader import Hardware, read_root, u
from .control_support import read_tree

RAM = 0x4000_0000
PAGE = 0x1000
LARGEST_PAGE = 0x1_0000
ACPI_20 = uuid.UUID("8868e871-e4f1-11d3-bc22-0080c73c8881")
RT_PROPERTIES = uuid.UUID("eb66918a-7eef-402a-842e-931d21c38ae9")
MEMRESERVE = uuid.UUID("888eb0c6-8ede-4ff5-a8f0-9aee5cb977c2")
GIC = (0x0800_0000, 0x080A_0000)


class Guest:
    """Reads what it was handed, by the numbers of UEFI 2.8 and of Linux's Documentation/arch/arm/uefi.rst."""

    def __init__(self, initrd: tuple[int, int] | None = None, **config: object) -> None:
        standard = {"memory": 64 << 20, "events": STANDARD_EVENTS, "error_sources": STANDARD_SOURCES}
        self.config = MachineConfig(**{**standard, **config})  # type: ignore[arg-type]
        affinities = [affinity_of_index(i) for i in range(self.config.vcpus)]
        self.x0, self.content = hand_over(self.config, affinities, GIC, initrd)
        self.memory = Hardware(self.content)
        header = self.memory.read(self.x0, 8)
        self.tree = read_tree(self.memory.read(self.x0, int.from_bytes(header[4:8], "big")))

    def chosen(self, name: str) -> Any:
        return self.tree.get_property(name, "/chosen").data

    def wide(self, name: str) -> int:
        high, low = self.chosen(name)
        number: int = high << 32 | low
        return number

    @property
    def map(self) -> list[tuple[int, int, int, int]]:
        """Type, start, end and attributes of each region."""
        (size,) = self.chosen("linux,uefi-mmap-size")
        (step,) = self.chosen("linux,uefi-mmap-desc-size")
        data = self.memory.read(self.wide("linux,uefi-mmap-start"), size)
        assert len(data) % step == 0
        assert step % 8 == 0
        return [
            (u(data, at, 4), u(data, at + 8, 8), u(data, at + 8, 8) + PAGE * u(data, at + 24, 8), u(data, at + 32, 8))
            for at in range(0, len(data), step)
        ]

    def kind_of(self, address: int, size: int) -> int:
        """The type of the one region that holds all of it."""
        (kind,) = {kind for kind, start, end, _ in self.map if start <= address and address + size <= end}
        return kind

    @property
    def system_table(self) -> bytes:
        return self.memory.read(self.wide("linux,uefi-system-table"), 120)

    @property
    def configuration(self) -> dict[uuid.UUID, int]:
        table = self.system_table
        count, where = u(table, 104, 8), u(table, 112, 8)
        entries = self.memory.read(where, 24 * count)
        return {uuid.UUID(bytes_le=entries[at : at + 16]): u(entries, at + 16, 8) for at in range(0, len(entries), 24)}


def test_the_tree_has_nothing_but_chosen() -> None:
    """With more in it, Linux would not look for ACPI without being told to."""
    guest = Guest(bootargs="quiet run=serve")
    assert [node.name for node in guest.tree.root.nodes] == ["chosen"]
    assert guest.chosen("bootargs") == ["quiet run=serve"]
    assert guest.chosen("linux,uefi-secure-boot") == [2]
    assert guest.chosen("linux,uefi-mmap-desc-ver") == [1]
    assert len(guest.chosen("kaslr-seed")) == 2
    assert guest.x0 % 8 == 0


def test_an_initial_ram_disk_is_named_if_there_is_one() -> None:
    guest = Guest(initrd=(0x4120_0000, 0x4123_4567))
    assert guest.wide("linux,initrd-start") == 0x4120_0000
    assert guest.wide("linux,initrd-end") == 0x4123_4567
    none = Guest()
    assert not none.tree.exist_property("linux,initrd-start", "/chosen")
    assert not none.tree.exist_property("bootargs", "/chosen")


def test_seeds_are_of_each_boot() -> None:
    assert Guest().chosen("kaslr-seed") != Guest().chosen("kaslr-seed")


def test_the_system_table() -> None:
    table = Guest().system_table
    assert u(table, 0, 8) == int.from_bytes(b"IBI SYST", "little")
    assert u(table, 8, 4) >> 16 == 2
    assert u(table, 12, 4) == 120
    assert u(table, 16, 4) == zlib.crc32(table[:16] + bytes(4) + table[20:])
    assert u(table, 88, 8) == u(table, 96, 8) == 0  # neither runtime nor boot services


def test_the_vendor_has_a_name_in_utf_16() -> None:
    guest = Guest()
    name = guest.memory.read(u(guest.system_table, 24, 8), 18).decode("utf-16-le")
    assert name == "sdeivirt\0"


def test_the_configuration_leads_to_the_acpi_tables() -> None:
    guest = Guest(vcpus=4)
    assert set(guest.configuration) == {ACPI_20, RT_PROPERTIES, MEMRESERVE}
    found = read_root(guest.memory, guest.configuration[ACPI_20])
    assert {"SDEI", "HEST", "DSDT"} <= set(found)


def test_no_runtime_service_is_offered() -> None:
    guest = Guest()
    table = guest.memory.read(guest.configuration[RT_PROPERTIES], 8)
    assert (u(table, 0, 2), u(table, 2, 2), u(table, 4, 4)) == (1, 8, 0)


def test_nothing_is_reserved_by_a_kernel_before() -> None:
    guest = Guest()
    where = guest.configuration[MEMRESERVE]
    assert where % 8 == 0
    assert guest.memory.read(where, 16) == bytes(16)


@pytest.mark.parametrize("memory", [8 << 20, 64 << 20, 5 << 30])
@pytest.mark.parametrize("count", [0, 1, 9])
def test_the_map_covers_ram_once_in_pages_of_any_size(memory: int, count: int) -> None:
    events = tuple(EventDefinition(900 + i) for i in range(count))
    guest = Guest(memory=memory, events=events, error_sources=tuple(ErrorSource(i, 900 + i) for i in range(count)))
    at = RAM
    for kind, start, end, attributes in guest.map:
        assert start == at
        assert end > start
        assert attributes == 8  # write-back
        assert start % LARGEST_PAGE == end % LARGEST_PAGE == 0
        assert kind in (2, 7, 9, 10)
        at = end
    assert at == RAM + memory
    assert guest.map[0][0] == 7


def test_nothing_that_is_read_later_lies_in_free_memory() -> None:
    """Windows of errors are ACPI's for good (10): of free memory, Linux refuses them; tables may be reclaimed (9)."""
    guest = Guest()
    found = read_root(guest.memory, guest.configuration[ACPI_20])
    for at, data in found.values():
        assert guest.kind_of(at, len(data)) == 9
    for at in (guest.configuration[MEMRESERVE], guest.configuration[RT_PROPERTIES]):
        assert guest.kind_of(at, 16) == 9
    hest = found["HEST"][1]
    for source in range(u(hest, 36, 4)):
        entry = hest[40 + 92 * source : 40 + 92 * (source + 1)]
        pointer, acknowledge = u(entry, 24, 8), u(entry, 68, 8)
        block = u(guest.memory.read(pointer, 8), 0, 8)
        assert guest.kind_of(pointer, 8) == guest.kind_of(acknowledge, 8) == 10
        assert guest.kind_of(block, u(entry, 60, 4)) == 10
        assert u(guest.memory.read(block, 4), 0, 4) == 0  # no error yet
        assert u(guest.memory.read(acknowledge, 8), 0, 8) & 1  # and none to be read
