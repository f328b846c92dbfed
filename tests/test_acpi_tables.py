# SPDX-License-Identifier: Apache-2.0
"""The ACPI tables, read back by a reader of our own, by `iasl`, and held against their bytes in tests/data/acpi."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdeivirt.cpu import affinity_of_index
from sdeivirt.machine import MachineConfig
from sdeivirt.machine.qemu.acpi import AcpiPlaces, error_windows, hand_over
from sdeivirt.ras.sources import MAX_SOURCES, STANDARD_EVENTS, STANDARD_SOURCES, ErrorSource
from sdeivirt.ras.status_block import MAX_SECTIONS
from sdeivirt.sdei import EventDefinition
from sdeivirt.smccc.ids import Conduit
from sdeivirt.tables.acpi import AcpiTables, aml, asl, make_tables

from .acpi_reader import Hardware, read_aml, read_root, u

GOLDENS = Path(__file__).parent / "data" / "acpi"
NEEDS_IASL = pytest.mark.skipif(shutil.which("iasl") is None, reason="needs iasl")
BASE = 0x4_8000_0000


def machine(vcpus: int = 2, **config: object) -> MachineConfig:
    standard = {"memory": 1 << 30, "events": STANDARD_EVENTS, "error_sources": STANDARD_SOURCES}
    return MachineConfig(vcpus=vcpus, **{**standard, **config})  # type: ignore[arg-type]


def affinities(config: MachineConfig) -> list[int]:
    return [affinity_of_index(i) for i in range(config.vcpus)]


def tables_of(config: MachineConfig, base: int | None = None) -> AcpiTables:
    return make_tables(
        AcpiPlaces.of(config).tables if base is None else base,
        affinities(config),
        conduit=config.conduit,
        sources=config.error_sources,
        windows=error_windows(config),
    )


def read(tables: AcpiTables) -> dict[str, bytes]:
    return {name: data for name, (_, data) in read_root(Hardware(tables.placed), tables.base).items()}


# -- what leads to what


def test_the_rsdp_leads_to_every_table() -> None:
    tables = tables_of(machine())
    found = read_root(Hardware(tables.placed), tables.base)
    assert set(found) == {"XSDT", "FACP", "DSDT", "APIC", "GTDT", "SPCR", "SDEI", "HEST"}
    assert {at for at, _ in found.values()} | {tables.base} == set(tables.placed)
    assert all(at % 16 == 0 for at in tables.placed)
    assert tables.by_signature == {
        "RSDP": tables.placed[tables.base],
        **{name: data for name, (_, data) in found.items()},
    }
    for at, data in found.values():
        assert tables.base < at
        assert at + len(data) <= tables.base + tables.size


@given(st.integers(1, 64), st.sampled_from(Conduit), st.integers(0, 8), st.integers(0, (1 << 48) // 16), st.booleans())
def test_any_machine_has_tables_that_can_be_read(
    vcpus: int, conduit: Conduit, sources: int, base: int, sdei: bool
) -> None:
    events = tuple(EventDefinition(900 + i, shared=True) for i in range(sources))
    given_sources = tuple(ErrorSource(i, 900 + i, 1 + i % 2) for i in range(sources))
    config = machine(vcpus, conduit=conduit, events=events, error_sources=given_sources)
    tables = make_tables(
        16 * base,
        affinities(config),
        conduit=conduit,
        sources=given_sources,
        windows=error_windows(config),
        sdei=sdei,
    )
    found = read(tables)
    assert ("SDEI" in found) == sdei
    assert ("HEST" in found) == (sdei and sources > 0)
    assert len(read_aml(found["DSDT"]).devices["_SB_"].devices) == 1 + vcpus
    assert len(found["APIC"]) == 44 + 24 + 80 * vcpus + 16


def test_a_machine_with_as_much_as_there_can_be_has_room_for_its_tables() -> None:
    """64 vCPUs and all sources, in the least RAM: hand_over() raises where they have none."""
    events = tuple(EventDefinition(900 + i, shared=True) for i in range(MAX_SOURCES))
    sources = tuple(ErrorSource(i, 900 + i) for i in range(MAX_SOURCES))
    config = machine(64, memory=8 << 20, events=events, error_sources=sources)
    places = AcpiPlaces.of(config)
    _, content = hand_over(config, affinities(config), (0x0800_0000, 0x080A_0000), None)
    tables = tables_of(config)
    assert places.tables + tables.size <= places.efi
    assert tables.size < 0x4000
    assert len(read(tables)["HEST"]) == 40 + 92 * MAX_SOURCES
    Hardware(content)  # which lets nothing reach into anything else


@pytest.mark.parametrize("vcpus", [1, 4])
def test_a_machine_finds_just_these_tables_in_its_memory(vcpus: int) -> None:
    config = machine(vcpus, conduit=Conduit.SMC)
    _, content = hand_over(config, affinities(config), (0x0800_0000, 0x080A_0000), None)
    tables = tables_of(config)
    assert {at: content[at] for at in tables.placed} == tables.placed


# -- what is in them


def test_every_header_says_whose_table_it_is() -> None:
    revisions = {"XSDT": 1, "FACP": 6, "DSDT": 2, "APIC": 5, "GTDT": 3, "SPCR": 2, "SDEI": 0, "HEST": 1}
    for name, data in read(tables_of(machine())).items():
        assert data[8] == revisions[name], name
        # As a kernel prints it: SDEIVT SDEIVIRT 00000001 SDVT 00000001
        assert data[10:36] == b"SDEIVTSDEIVIRT\1\0\0\0SDVT\1\0\0\0"


@pytest.mark.parametrize(("conduit", "boot"), [(Conduit.HVC, 3), (Conduit.SMC, 1)])
def test_fadt(conduit: Conduit, boot: int) -> None:
    fadt = read(tables_of(machine(conduit=conduit)))["FACP"]
    assert len(fadt) == 276
    assert (fadt[8], fadt[131] & 0xF) == (6, 3)  # ACPI 6.3
    assert u(fadt, 112, 4) >> 20 & 1  # hardware-reduced
    assert u(fadt, 129, 2) == boot  # PSCI, and by HVC
    assert u(fadt, 40, 4) == 0  # the DSDT is named in 64 bits alone
    assert fadt[268:276] == b"SDEIVIRT"


def test_madt_has_one_processor_interface_for_each_processor() -> None:
    madt = read(tables_of(machine(18)))["APIC"]
    entries: list[bytes] = []
    at = 44
    while at < len(madt):
        assert madt[at + 1] >= 2
        entries.append(madt[at : at + madt[at + 1]])
        at += madt[at + 1]
    assert at == len(madt)
    assert [(entry[0], len(entry)) for entry in entries] == [(0xC, 24), *[(0xB, 80)] * 18, (0xE, 16)]
    distributor, *interfaces, redistributors = entries
    assert (u(distributor, 8, 8), distributor[20]) == (0x0800_0000, 3)
    assert (u(redistributors, 4, 8), u(redistributors, 12, 4)) == (0x080A_0000, 0x00F6_0000)
    for i, entry in enumerate(interfaces):
        assert u(entry, 8, 4) == i  # the _UID of its device in the DSDT
        assert u(entry, 12, 4) == 1  # enabled
        assert u(entry, 20, 4) == 23  # of the performance monitors
        assert u(entry, 60, 8) == 0  # its redistributor is found by walking over them
        assert u(entry, 68, 8) == affinity_of_index(i)
    assert u(interfaces[17], 68, 8) == 0x101


def test_gtdt() -> None:
    gtdt = read(tables_of(machine()))["GTDT"]
    assert len(gtdt) == 104
    assert u(gtdt, 36, 8) == u(gtdt, 80, 8) == (1 << 64) - 1  # no counter in memory
    timers = [(u(gtdt, at, 4), u(gtdt, at + 4, 4)) for at in (48, 56, 64, 72)]
    assert timers == [(29, 4), (30, 4), (27, 4), (26, 4)]
    assert gtdt[88:] == bytes(16)  # no platform timers, no virtual timer at EL2


def test_spcr() -> None:
    spcr = read(tables_of(machine()))["SPCR"]
    assert len(spcr) == 80
    assert spcr[36] == 3  # a PL011
    assert (spcr[40], spcr[41], spcr[42], spcr[43], u(spcr, 44, 8)) == (0, 32, 0, 3, 0x0900_0000)
    assert (spcr[52], u(spcr, 54, 4)) == (8, 33)  # by the GIC
    assert (u(spcr, 64, 2), u(spcr, 66, 2)) == (0xFFFF, 0xFFFF)  # no PCI device


def test_sdei_is_a_bare_header() -> None:
    assert len(read(tables_of(machine()))["SDEI"]) == 36


def test_hest_names_each_source_its_window_and_its_event() -> None:
    events = (*STANDARD_EVENTS, EventDefinition(0x4000_0020))
    sources = (*STANDARD_SOURCES, ErrorSource(9, 0x4000_0020, ghes=1))
    config = machine(events=events, error_sources=sources)
    hest = read(tables_of(config))["HEST"]
    assert u(hest, 36, 4) == 3
    at = 40
    for source, window in zip(sources, error_windows(config), strict=True):
        size = 92 if source.ghes == 2 else 64
        entry = hest[at : at + size]
        assert u(entry, 0, 2) == (10 if source.ghes == 2 else 9)
        assert u(entry, 2, 2) == source.number
        assert u(entry, 4, 2) == 0xFFFF  # related to none
        assert entry[7] == 1  # enabled
        assert u(entry, 8, 4) >= 1
        assert u(entry, 12, 4) == MAX_SECTIONS
        assert (entry[20], entry[21], entry[22], entry[23], u(entry, 24, 8)) == (0, 64, 0, 4, window.pointer)
        assert (entry[32], entry[33]) == (11, 28)  # notified by SDEI
        assert u(entry, 40, 4) == source.event
        assert u(entry, 60, 4) == 4096
        if source.ghes == 2:
            assert (entry[64], entry[65], entry[66], entry[67], u(entry, 68, 8)) == (0, 64, 0, 4, window.acknowledge)
            assert (u(entry, 76, 8), u(entry, 84, 8)) == ((1 << 64) - 2, 1)
        at += size
    assert at == len(hest)


def test_dsdt_declares_the_serial_port_and_the_processors() -> None:
    bus = read_aml(read(tables_of(machine(64)))["DSDT"]).devices["_SB_"]
    assert bus.methods == {"_OSC": (4, b"\xa4\x6b")}  # Return (Arg3)
    port = bus.devices.pop("COM0").names
    assert (port["_HID"], port["_UID"]) == ("ARMH0011", 0)
    resources = port["_CRS"]
    assert (resources[0], u(resources, 1, 2), resources[3]) == (0x86, 9, 1)  # 32-bit fixed memory, to read and write
    assert (u(resources, 4, 4), u(resources, 8, 4)) == (0x0900_0000, 0x1000)
    assert (resources[12], u(resources, 13, 2), resources[15], resources[16]) == (0x89, 6, 1, 1)
    assert u(resources, 17, 4) == 33
    assert resources[21:] == b"\x79\x00"
    assert [device.names for device in bus.devices.values()] == [{"_HID": "ACPI0007", "_UID": i} for i in range(64)]


@pytest.mark.parametrize("size", [0, 1, 57, 58, 59, 60, 200, 4084, 4085, 4086, 4087, 4088, 5000, 0x1_0000])
def test_a_length_counts_its_own_bytes(size: int) -> None:
    """Around the sizes from which on a length needs another byte."""
    content = bytes(i & 0xFF for i in range(size))
    code = bytes(36) + aml.device("DEV0", aml.name("BUF0", aml.buffer(content)), aml.name("_UID", aml.integer(7)))
    assert read_aml(code).devices["DEV0"].names == {"BUF0": content, "_UID": 7}


@pytest.mark.parametrize("value", [0, 1, 2, 255, 256, 0xFFFF, 0x1_0000, 0xFFFF_FFFF, 1 << 32, (1 << 64) - 1])
def test_integers(value: int) -> None:
    assert read_aml(bytes(36) + aml.name("_UID", aml.integer(value))).names == {"_UID": value}


# -- byte for byte


def golden(vcpus: int) -> dict[str, tuple[int, bytes]]:
    found: dict[str, tuple[int, bytes]] = {}
    name, at, data = "", 0, b""
    for line in (GOLDENS / f"vcpus-{vcpus}.hex").read_text().splitlines():
        if line.startswith("#"):
            continue
        if " " in line:
            name, where = line.split()
            at, data = int(where, 16), b""
        else:
            data += bytes.fromhex(line)
        found[name] = at, data
    return found


@pytest.mark.parametrize("vcpus", [1, 4])
def test_tables_are_what_they_were(vcpus: int) -> None:
    """A change of theirs is a change of the platform that guests see, and is to be seen in these files."""
    tables = tables_of(machine(vcpus))
    ours = {
        "rsdp.bin" if at == tables.base else f"{data[:4].decode().lower()}.aml": (at, data)
        for at, data in tables.placed.items()
    }
    assert ours == golden(vcpus)


# -- iasl


COMPLAINT = re.compile(
    r"warning|incorrect|invalid|unknown|terminates|too short|dump table|remark|error\b", re.IGNORECASE
)
CLEAN = re.compile(r"Compilation successful\. 0 Errors, 0 Warnings, 0 Remarks(, 0 Optimizations)?$", re.MULTILINE)
# The checksum, and who has compiled it.
OTHERS = {9, *range(28, 36)}


def run_iasl(directory: Path, *words: str) -> str:
    done = subprocess.run(["iasl", *words], cwd=directory, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def disassemble(directory: Path, name: str, table: bytes) -> list[str]:
    """`name`.dsl of a table; the lines with which iasl complains."""
    (directory / f"{name}.aml").write_bytes(table)
    said = run_iasl(directory, "-d", f"{name}.aml")
    source = (directory / f"{name}.dsl").read_text()
    # Fields have names such as "Error Block Length": it is comments and lines without a field that complain.
    doubts = [line for line in source.splitlines() if COMPLAINT.search(line) and " : " not in line]
    return [line for line in said.splitlines() if COMPLAINT.search(line)] + doubts


def assert_compiles_to(directory: Path, source: str, table: bytes) -> None:
    said = run_iasl(directory, "-p", "again", source)
    assert CLEAN.search(said), said
    again = (directory / "again.aml").read_bytes()
    assert len(again) == len(table)
    assert {i for i, (a, b) in enumerate(zip(again, table, strict=True)) if a != b} <= OTHERS
    assert sum(again) % 256 == 0


@NEEDS_IASL
@pytest.mark.process
@pytest.mark.parametrize("vcpus", [1, 4, 64])
def test_iasl_reads_every_table_and_writes_it_again(vcpus: int, tmp_path: Path) -> None:
    events = (*STANDARD_EVENTS, EventDefinition(900))
    config = machine(vcpus, events=events, error_sources=(*STANDARD_SOURCES, ErrorSource(2, 900, ghes=1)))
    for name, table in read(tables_of(config)).items():
        assert disassemble(tmp_path, name, table) == [], name
        assert f'"{name}"' in (tmp_path / f"{name}.dsl").read_text()
        assert_compiles_to(tmp_path, f"{name}.dsl", table)


@NEEDS_IASL
@pytest.mark.process
@pytest.mark.parametrize("vcpus", [1, 4, 64])
def test_iasl_makes_the_dsdt_of_its_source(vcpus: int, tmp_path: Path) -> None:
    (tmp_path / "dsdt.asl").write_text(asl(vcpus))
    assert_compiles_to(tmp_path, "dsdt.asl", read(tables_of(machine(vcpus)))["DSDT"])


@NEEDS_IASL
@pytest.mark.process
def test_iasl_makes_the_rsdp_with_its_two_checksums(tmp_path: Path) -> None:
    """It does not read one, but writes it."""
    tables = tables_of(machine(), BASE)
    (xsdt,) = (at for at, data in tables.placed.items() if data[:4] == b"XSDT")
    lines: Sequence[tuple[str, str]] = (
        ("Signature", '"RSD PTR "'), ("Checksum", "00"), ("Oem ID", '"SDEIVT"'), ("Revision", "02"),
        ("RSDT Address", "00000000"), ("Length", "00000024"), ("XSDT Address", f"{xsdt:016X}"),
        ("Extended Checksum", "00"), ("Reserved", "000000"),
    )  # fmt: skip
    (tmp_path / "rsdp.asl").write_text("".join(f"{name} : {value}\n" for name, value in lines))
    assert CLEAN.search(run_iasl(tmp_path, "-p", "rsdp", "rsdp.asl"))
    assert (tmp_path / "rsdp.aml").read_bytes() == tables.placed[BASE]


@NEEDS_IASL
@pytest.mark.process
@pytest.mark.parametrize(("offset", "value"), [(9, 0xFF), (69, 0x4D), (69, 0), (44, 0x77)])
def test_a_wrong_table_would_be_complained_of(offset: int, value: int, tmp_path: Path) -> None:
    """A checksum, a length too short or zero, a type that there is not."""
    madt = bytearray(read(tables_of(machine()))["APIC"])
    madt[offset] = value
    assert disassemble(tmp_path, "wrong", bytes(madt))
