# SPDX-License-Identifier: Apache-2.0
"""Records of errors: layouts written down by hand from the specifications, round trips, and what cannot be written."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdeivirt.ras.cper import (
    KINDS,
    AerCapability,
    BlockStatus,
    ContextInfo,
    CperError,
    CperRecord,
    DataEntry,
    ErrorDetails,
    ErrorFlags,
    ErrorInfo,
    ErrorType,
    MemorySection,
    PcieDevice,
    PcieSection,
    ProcessorSection,
    RecordSection,
    SectionFlags,
    Severity,
    StatusBlock,
    Timestamp,
    UnknownSection,
    decode,
    describe,
    make_block,
    render,
)
from sdeivirt.ras.status_block import BLOCK_SIZE, MAX_SECTIONS, is_fatal

from .cper_support import UNKNOWN, Bytes, blocks, details, everything, records

DATA = Path(__file__).parent / "data"

# GUIDs as they are in memory: the first three groups little-endian.
MEMORY = "1411bca5 646f de4e b863 3e83ed7c83b1"
PROCESSOR = "163d9ee1 11bc e411 9caa c2051d5d46b0"
PCIE = "54e995d9 c1bb 0f43 ad91 b44dcb3c6f35"


def block_of(guid: str, section: bytes, severity: int, status: int) -> bytes:
    """ACPI 6.3, 18.3.2.7.1: a block with one entry."""
    entry = Bytes(72 + len(section)).text(0, guid).put(16, 4, severity).put(20, 2, 0x300).put(24, 4, len(section))
    entry.data[72:] = section
    head = Bytes(20).put(0, 4, 1 << 4 | status).put(12, 4, len(entry.data)).put(16, 4, severity)
    return bytes(head) + bytes(entry)


def one(section: Any, severity: Severity, status: BlockStatus) -> StatusBlock:
    return StatusBlock(severity=severity, entries=(DataEntry(section=section, severity=severity),), status=status)


# -- layouts


def test_a_memory_error_byte_for_byte() -> None:
    """UEFI 2.10, N.2.5."""
    section = Bytes(80)
    section.put(0, 8, (1 << 22) - 1)
    for offset, size, value in (
        (8, 8, 0x400),
        (16, 8, 0x4800_0000),
        (24, 8, 0xFFFF_FFFF_FFFF_F000),
        *((offset, 2, 0x1000 + offset) for offset in (32, 34, 36)),
        (38, 2, 0x0A0B),
        *((offset, 2, 0x1000 + offset) for offset in (40, 42, 44, 46)),
        *((offset, 8, 0x1122_3344_5566_0000 + offset) for offset in (48, 56, 64)),
        (72, 1, 2),
        (73, 1, 5 << 5 | 3),
        *((offset, 2, 0x2000 + offset) for offset in (74, 76, 78)),
    ):
        section.put(offset, size, value)
    expected = MemorySection(
        error_status=0x400,
        physical_address=0x4800_0000,
        physical_address_mask=0xFFFF_FFFF_FFFF_F000,
        node=0x1020,
        card=0x1022,
        module=0x1024,
        bank=0x0A0B,
        bank_group=0x0A,
        bank_address=0x0B,
        device=0x1028,
        row=0x102A,
        column=0x102C,
        bit_position=0x102E,
        requestor_id=0x1122_3344_5566_0030,
        responder_id=0x1122_3344_5566_0038,
        target_id=0x1122_3344_5566_0040,
        error_type=2,
        row_extension=3,
        chip_id=5,
        rank=0x204A,
        card_handle=0x204C,
        module_handle=0x204E,
    )
    data = block_of(MEMORY, bytes(section), 2, 2)
    block = one(expected, Severity.CORRECTED, BlockStatus.CORRECTABLE)
    assert decode(data) == block
    assert block.encode() == data


@pytest.mark.parametrize(
    ("bit", "name", "offset", "size"),
    [
        (0, "error_status", 8, 8),
        (1, "physical_address", 16, 8),
        (2, "physical_address_mask", 24, 8),
        (3, "node", 32, 2),
        (4, "card", 34, 2),
        (5, "module", 36, 2),
        (6, "bank", 38, 2),
        (7, "device", 40, 2),
        (8, "row", 42, 2),
        (9, "column", 44, 2),
        (10, "bit_position", 46, 2),
        (11, "requestor_id", 48, 8),
        (12, "responder_id", 56, 8),
        (13, "target_id", 64, 8),
        (14, "error_type", 72, 1),
        (15, "rank", 74, 2),
        (16, "card_handle", 76, 2),
        (17, "module_handle", 78, 2),
    ],
)
def test_each_bit_is_that_of_its_field(bit: int, name: str, offset: int, size: int) -> None:
    values: dict[str, Any] = {name: 0x5A}
    data = bytes(Bytes(80).put(0, 8, 1 << bit).put(offset, size, 0x5A))
    assert MemorySection(**values).encode() == data
    assert decode(block_of(MEMORY, data, 0, 1)) == one(
        MemorySection(**values), Severity.RECOVERABLE, BlockStatus.UNCORRECTABLE
    )


def test_fields_that_are_not_valid_are_not_believed() -> None:
    section = Bytes(80)
    section.data[8:] = b"\xff" * 72
    decoded = decode(block_of(MEMORY, bytes(section), 0, 1))
    assert decoded == one(MemorySection(), Severity.RECOVERABLE, BlockStatus.UNCORRECTABLE)


def test_the_parts_of_the_bank_and_of_the_row() -> None:
    for section, bits, field in (
        (MemorySection(bank_group=3), 1 << 19, (38, 2, 0x0300)),
        (MemorySection(bank_address=4), 1 << 20, (38, 2, 0x0004)),
        (MemorySection(bank_group=3, bank_address=4), 3 << 19, (38, 2, 0x0304)),
        (MemorySection(row_extension=2), 1 << 18, (73, 1, 0x02)),
        (MemorySection(chip_id=7), 1 << 21, (73, 1, 0xE0)),
    ):
        assert section.encode() == bytes(Bytes(80).put(0, 8, bits).put(*field)), section


def test_a_processor_error_byte_for_byte() -> None:
    """UEFI 2.10, N.2.4.4."""
    info = Bytes(32).put(1, 1, 32).put(2, 2, 0x1F).put(4, 1, 0x02).put(5, 2, 3).put(7, 1, 0x0B)
    info.put(8, 8, 0x1C4D_007F).put(16, 8, 0xFFFF_8000_1234_5678).put(24, 8, 0x4800_1000)
    bare = Bytes(32).put(0, 1, 1).put(1, 1, 32).put(4, 1, 0x10)
    context = Bytes(32).put(2, 2, 4).put(4, 4, 16).put(8, 8, 0x0101).put(16, 8, 0x0202)
    padded = Bytes(16).put(0, 2, 9).put(2, 2, 8).put(4, 4, 3).put(8, 3, 0x030201)
    pieces = bytes(info) + bytes(bare) + bytes(context) + bytes(padded) + b"vendor"
    head = Bytes(40).put(0, 4, 0xF).put(4, 2, 2).put(6, 2, 2).put(8, 4, 40 + len(pieces)).put(12, 1, 1)
    head.put(16, 8, 0x8000_0003).put(24, 8, 0x410F_D083).put(32, 4, 1).put(36, 4, 7)
    expected = ProcessorSection(
        midr=0x410F_D083,
        mpidr=0x8000_0003,
        affinity_level=1,
        running_state=1,
        psci_state=7,
        errors=(
            ErrorInfo(
                type=ErrorType.CACHE,
                multiple_error=3,
                flags=0x0B,
                error_info=0x1C4D_007F,
                virtual_address=0xFFFF_8000_1234_5678,
                physical_address=0x4800_1000,
            ),
            ErrorInfo(type=ErrorType.MICRO_ARCHITECTURAL, version=1),
        ),
        contexts=(
            ContextInfo(type=4, registers=bytes.fromhex("0101 000000000000 0202 000000000000")),
            ContextInfo(type=8, registers=b"\1\2\3", version=9),
        ),
        vendor=b"vendor",
    )
    data = block_of(PROCESSOR, bytes(head) + pieces, 1, 1)
    block = one(expected, Severity.FATAL, BlockStatus.UNCORRECTABLE)
    assert decode(data) == block
    assert block.encode() == data


@pytest.mark.parametrize(
    ("valid", "shift", "width", "name"),
    [
        (0, 16, 2, "transaction_type"),
        (1, 18, 4, "operation"),
        (2, 22, 3, "level"),
        (3, 25, 1, "context_corrupt"),
        (4, 26, 1, "corrected"),
        (5, 27, 1, "precise_pc"),
        (6, 28, 1, "restartable_pc"),
        (7, 29, 2, "participation"),
        (8, 31, 1, "time_out"),
        (9, 32, 2, "address_space"),
        (10, 34, 9, "memory_attributes"),
        (11, 43, 1, "access_mode"),
    ],
)
def test_the_details_of_an_error(valid: int, shift: int, width: int, name: str) -> None:
    """UEFI 2.10, N.2.4.4.1."""
    most = (1 << width) - 1
    values: dict[str, Any] = {name: most}
    assert ErrorDetails(**values).encode() == 1 << valid | most << shift
    assert ErrorDetails.decode((1 << 64) - 1 ^ 0xFFF | 1 << valid) == ErrorDetails(**values)
    values[name] = most + 1
    with pytest.raises(CperError, match=name):
        ErrorDetails(**values).encode()


def test_a_pcie_error_byte_for_byte() -> None:
    """UEFI 2.10, N.2.7; PCI Express Base Specification, AER Extended Capability."""
    section = Bytes(208).put(0, 8, 0xFF).put(8, 4, 4).put(12, 1, 0x01).put(13, 1, 0x03)
    section.put(16, 2, 0x0106).put(18, 2, 0x4010)
    section.put(24, 2, 0x1B36).put(26, 2, 0x000C).put(28, 3, 0x06_0400).put(31, 1, 5).put(32, 1, 0x1F)
    section.put(33, 2, 0x1234).put(35, 1, 0x20).put(36, 1, 0x21).put(37, 2, 9 << 3)
    section.put(40, 8, 0x1122_3344_5566_7788).put(48, 2, 0x2000).put(50, 2, 0x0002)
    section.text(52, "10 00 42 01").put(111, 1, 0x99)
    for i in range(7):
        section.put(112 + 4 * i, 4, 0x0A0B_0C00 + i)
    for i in range(4):
        section.put(140 + 4 * i, 4, 0x1000_0000 + i)
    section.put(156, 4, 7).put(160, 4, 0x7F).put(164, 2, 0x0100).put(166, 2, 0x0208).put(207, 1, 0xEE)
    expected = PcieSection(
        port_type=4,
        version=(3, 1),
        command=0x0106,
        status=0x4010,
        device=PcieDevice(
            vendor_id=0x1B36,
            device_id=0x000C,
            class_code=0x06_0400,
            function=5,
            device=0x1F,
            segment=0x1234,
            bus=0x20,
            secondary_bus=0x21,
            slot=9,
        ),
        serial_number=0x1122_3344_5566_7788,
        secondary_status=0x2000,
        control=2,
        capability=bytes.fromhex("10004201") + bytes(55) + b"\x99",
        aer=AerCapability(
            header=0x0A0B_0C00,
            uncorrectable_status=0x0A0B_0C01,
            uncorrectable_mask=0x0A0B_0C02,
            uncorrectable_severity=0x0A0B_0C03,
            correctable_status=0x0A0B_0C04,
            correctable_mask=0x0A0B_0C05,
            control=0x0A0B_0C06,
            header_log=(0x1000_0000, 0x1000_0001, 0x1000_0002, 0x1000_0003),
            root_command=7,
            root_status=0x7F,
            correctable_source=0x0100,
            uncorrectable_source=0x0208,
            rest=bytes(39) + b"\xee",
        ),
    )
    data = block_of(PCIE, bytes(section), 3, 0)
    block = one(expected, Severity.INFORMATIONAL, BlockStatus(0))
    assert decode(data) == block
    assert block.encode() == data


def test_a_block_byte_for_byte() -> None:
    """Two entries, one of them of the revision without a timestamp, and raw data."""
    new = Bytes(72 + 3).put(16, 4, 2).put(20, 2, 0x300).put(22, 1, 7).put(23, 1, 0x29).put(24, 4, 3)
    new.text(0, "78563412 3412 7856 9abc def012345678").text(28, "04030201 0605 0807 090a 0b0c0d0e0f10")
    new.text(44, b"DIMM 0".hex()).text(64, "5958 2301 2911 2620").text(72, b"abc".hex())
    old = Bytes(64).put(16, 4, 0).put(20, 2, 0x201).text(0, "78563412 3412 7856 9abc def012345678")
    length = len(new.data) + len(old.data)
    head = Bytes(20).put(0, 4, 2 << 4 | 0xA).put(4, 4, 20 + length).put(8, 4, 5).put(12, 4, length).put(16, 4, 0)
    data = bytes(head) + bytes(new) + bytes(old) + b"raw!!"
    section = UnknownSection(UNKNOWN, b"abc")
    entry = DataEntry(
        section=section,
        severity=Severity.CORRECTED,
        flags=SectionFlags.PRIMARY | SectionFlags.THRESHOLD_EXCEEDED | SectionFlags.LATENT,
        fru_id=UUID("01020304-0506-0708-090a-0b0c0d0e0f10"),
        fru_text="DIMM 0",
        timestamp=Timestamp.of(datetime(2026, 11, 29, 23, 58, 59)),
    )
    bare = DataEntry(section=UnknownSection(UNKNOWN, b""), severity=Severity.RECOVERABLE, revision=0x201)
    block = StatusBlock(
        severity=Severity.RECOVERABLE,
        entries=(entry, bare),
        status=BlockStatus.CORRECTABLE | BlockStatus.MULTIPLE_CORRECTABLE,
        raw=b"raw!!",
    )
    assert decode(data) == block
    assert block.encode() == data
    # Nobody looks at what follows: a window is larger than its block.
    assert decode(data + b"\xff" * 100) == block


def test_an_empty_block_says_nothing() -> None:
    assert decode(bytes(4096)) == StatusBlock(severity=Severity.RECOVERABLE)


def test_a_record_byte_for_byte() -> None:
    """UEFI 2.10, N.2.1 and N.2.2."""
    section = bytes(Bytes(80).put(0, 8, 2).put(16, 8, 0x1000))
    unknown = b"\1\2\3"
    first = Bytes(72).put(0, 4, 272).put(4, 4, 80).put(8, 2, 0x100).put(10, 1, 3).put(12, 4, 0x109).text(16, MEMORY)
    first.text(32, "04030201 0605 0807 090a 0b0c0d0e0f10").put(48, 4, 1).text(52, b"DIMM 0".hex())
    second = Bytes(72).put(0, 4, 352).put(4, 4, 3).put(8, 2, 0x300).put(48, 4, 3)
    second.text(16, "78563412 3412 7856 9abc def012345678")
    head = Bytes(128).text(0, b"CPER".hex()).put(4, 2, 0x101).put(6, 4, 0xFFFF_FFFF).put(10, 2, 2).put(12, 4, 1)
    head.put(16, 4, 7).put(20, 4, 355).text(24, "5958 2300 2911 2620")
    head.put(32, 1, 1).put(48, 1, 2).put(64, 1, 3).put(80, 1, 4).put(96, 8, 0x1122_3344).put(104, 4, 5).put(108, 8, 6)
    data = bytes(head) + bytes(first) + bytes(second) + section + unknown
    record = CperRecord(
        severity=Severity.FATAL,
        sections=(
            RecordSection(
                section=MemorySection(physical_address=0x1000),
                severity=Severity.FATAL,
                flags=0x109,
                fru_id=UUID("01020304-0506-0708-090a-0b0c0d0e0f10"),
                fru_text="DIMM 0",
            ),
            RecordSection(section=UnknownSection(UNKNOWN, unknown), severity=Severity.INFORMATIONAL, revision=0x300),
        ),
        timestamp=Timestamp.of(datetime(2026, 11, 29, 23, 58, 59), precise=False),
        platform_id=UUID(bytes_le=b"\1" + bytes(15)),
        partition_id=UUID(bytes_le=b"\2" + bytes(15)),
        creator_id=UUID(bytes_le=b"\3" + bytes(15)),
        notification=UUID(bytes_le=b"\4" + bytes(15)),
        record_id=0x1122_3344,
        flags=5,
        persistence=6,
    )
    assert decode(data) == record
    assert record.encode() == data
    assert decode(data + bytes(10)) == record


# -- round trips


@given(blocks())
def test_blocks_come_back(block: StatusBlock) -> None:
    data = block.encode()
    assert decode(data) == block
    assert render(block) == render(decode(data))


@given(records())
def test_records_come_back(record: CperRecord) -> None:
    assert decode(record.encode()) == record


@given(details())
def test_details_come_back(detail: ErrorDetails) -> None:
    assert ErrorDetails.decode(detail.encode()) == detail


@given(st.datetimes(min_value=datetime(1, 1, 1)), st.booleans())
def test_timestamps_are_decimal_digits(when: datetime, precise: bool) -> None:
    timestamp = Timestamp.of(when, precise)
    assert str(timestamp) == f"{when:%Y}".zfill(4) + f"{when:-%m-%d %H:%M:%S}"
    assert timestamp.precise == precise
    seconds, minutes, hours, _flags, day, month, year, century = timestamp.raw.hex(" ").split()
    assert f"{century}{year}-{month}-{day} {hours}:{minutes}:{seconds}" == str(timestamp)


# -- reports as firmware makes them


@pytest.mark.parametrize("severity", Severity)
@pytest.mark.parametrize("kind", KINDS)
def test_reports_fit_and_say_how_bad_it_is(kind: Any, severity: Severity) -> None:
    block = make_block(kind, severity, address=0x4800_0000)
    data = block.encode()
    assert len(data) <= BLOCK_SIZE
    assert decode(data) == block
    # What is seen by who looks no further than at the words at the start: a block must not be 0 there.
    assert int.from_bytes(data[:4], "little") == 1 << 4 | {0: 1, 1: 1, 2: 2, 3: 0}[severity]
    assert int.from_bytes(data[16:20], "little") == severity
    assert int.from_bytes(data[36:40], "little") == severity
    assert block.entries[0].flags == SectionFlags.PRIMARY


def test_a_report_says_where() -> None:
    address = 0x1_2345_6780
    memory = make_block("memory", Severity.RECOVERABLE, address=address).entries[0].section
    assert isinstance(memory, MemorySection)
    assert (memory.physical_address, memory.physical_address_mask) == (address, 0xFFFF_FFFF_FFFF_F000)
    processor = make_block("processor", Severity.RECOVERABLE, address=address).entries[0].section
    assert isinstance(processor, ProcessorSection)
    assert [error.physical_address for error in processor.errors] == [address]
    pcie = make_block("pcie", Severity.RECOVERABLE, address=address).entries[0].section
    assert isinstance(pcie, PcieSection)
    assert pcie.aer is not None
    assert pcie.aer.header_log[2:] == (1, 0x2345_6780)


def test_a_report_without_an_address_says_none() -> None:
    memory = make_block("memory", Severity.CORRECTED).entries[0].section
    assert isinstance(memory, MemorySection)
    assert memory.physical_address is None
    assert memory.physical_address_mask is None
    processor = make_block("processor", Severity.CORRECTED).entries[0].section
    assert isinstance(processor, ProcessorSection)
    assert processor.errors[0].physical_address is None


def test_what_a_report_can_be_told() -> None:
    block = make_block("memory", Severity.CORRECTED, threshold_exceeded=True, fru_text="DIMM 7")
    assert block.entries[0].flags & SectionFlags.THRESHOLD_EXCEEDED
    assert block.entries[0].fru_text == "DIMM 7"
    section = make_block("processor", Severity.FATAL, mpidr=0x8000_0101, midr=0, part="bus").entries[0].section
    assert isinstance(section, ProcessorSection)
    assert (section.mpidr, section.midr) == (0x8000_0101, 0)
    assert section.errors[0].type == ErrorType.BUS
    device = PcieDevice(vendor_id=1, device_id=2)
    section_of = make_block("pcie", Severity.FATAL, device=device).entries[0].section
    assert isinstance(section_of, PcieSection)
    assert section_of.device == device


def test_a_pcie_device_is_named_by_its_address() -> None:
    device = PcieDevice(vendor_id=1, device_id=2)
    assert device.at("00:1f.3") == replace(device, device=0x1F, function=3)
    assert device.at("0A0b:c0:02.0") == replace(device, segment=0x0A0B, bus=0xC0, device=2)
    made = make_block("pcie", Severity.CORRECTED, device=device, at="03:00.0").entries[0].section
    assert isinstance(made, PcieSection)
    assert made.device == replace(device, bus=3)
    for wrong in ("", "1", "00:20.0", "00:01.8", "00:01", "g0:01.0", "00:01.0 ", "10000:00:01.0"):
        with pytest.raises(CperError, match="no PCIe device"):
            device.at(wrong)


def test_what_a_processor_error_says() -> None:
    assert render(make_block("processor", Severity.RECOVERABLE, address=0, part="bus")) == [
        "event severity: recoverable",
        " Error 0, type: recoverable",
        "  section_type: ARM processor error",
        "  MIDR: 0x00000000410fd083",
        "  Multiprocessor Affinity Register (MPIDR): 0x0000000080000000",
        "  error affinity level: 0",
        "  running state: 0x1",
        "  Power State Coordination Interface state: 0",
        "  Error info structure 0:",
        "  num errors: 1",
        "   first error captured",
        "   last error captured",
        "   error_type: 0x08: bus error",
        "   error_info: 0x00000800184d0bff",
        "    transaction type: Data Access",
        "    bus error, operation type: Data read",
        "    affinity level at which the bus error occurred: 1",
        "    processor context not corrupted",
        "    the error has not been corrected",
        "    PC is precise",
        "    Program execution can be restarted reliably at the PC associated with the error.",
        "    participation type: Local processor originated request",
        "    address space: External Memory Access",
        "    access mode: normal",
        "   physical fault address: 0x0000000000000000",
    ]


def test_what_a_pcie_error_says() -> None:
    assert render(make_block("pcie", Severity.CORRECTED)) == [
        "It has been corrected by h/w and requires no further action",
        "event severity: corrected",
        " Error 0, type: corrected",
        "  section_type: PCIe error",
        "  port_type: 4, root port",
        "  version: 3.0",
        "  command: 0x0106, status: 0x0010",
        "  device_id: 0000:00:1f.0",
        "  slot: 1",
        "  secondary_bus: 0x01",
        "  vendor_id: 0x1b36, device_id: 0x000c",
        "  class_code: 060400",
        "  serial number: 0x0000, 0x0000",
        "  bridge: secondary_status: 0x0000, control: 0x0000",
        "  aer_cor_status: 0x00000040, aer_cor_mask: 0x00000000",
        "  aer_uncor_status: 0x00000000, aer_uncor_mask: 0x00000000",
        "  aer_uncor_severity: 0x00040000",
        "  TLP Header: 00000000 00000000 00000000 00000000",
    ]


def test_flags_are_bits() -> None:
    for flags, count in ((SectionFlags, 8), (BlockStatus, 4), (ErrorFlags, 4)):
        assert [int(flag) for flag in flags] == [1 << bit for bit in range(count)]
    assert [int(kind) for kind in ErrorType] == [1 << bit for bit in (1, 2, 3, 4)]


def test_what_is_not_said_of_a_device_is_zero() -> None:
    assert PcieDevice(vendor_id=1, device_id=2).encode() == bytes(Bytes(16).put(0, 2, 1).put(2, 2, 2))
    assert AerCapability().encode() == bytes(96)


def test_severities_have_names() -> None:
    assert [Severity.parse(name) for name in ("recoverable", "Fatal", "CORRECTED", "informational")] == list(Severity)
    for name in ("", "bad", "_member_map_", "fatal "):
        with pytest.raises(CperError, match="no severity") as caught:
            Severity.parse(name)
        assert "informational" in caught.value.hint


# -- what cannot be written


@pytest.mark.parametrize(
    ("section", "said"),
    [
        (MemorySection(node=1 << 16), "node of the memory error section cannot be 0x10000"),
        (MemorySection(node=-1), "node"),
        (MemorySection(physical_address=1 << 64), "physical_address"),
        (MemorySection(row_extension=4), "row_extension"),
        (MemorySection(chip_id=8), "chip_id"),
        (MemorySection(bank=0x102, bank_group=2), "bank 0x102 is not group 2"),
        (MemorySection(bank_address=256), "bank"),
        (MemorySection(bank_group=256), "bank"),
        (MemorySection(size=79), "of 79 bytes"),
        (MemorySection(size=73, more=b"x"), "of 73 bytes"),
        (MemorySection(size=73, rank=0), "rank is not in 73 bytes"),
        (MemorySection(size=73, chip_id=0), "extended is not in 73 bytes"),
        (MemorySection(size=64, error_type=0), "error_type is not in 64 bytes"),
        (MemorySection(size=64, target_id=0), "target_id is not in 64 bytes"),
        (ProcessorSection(midr=1 << 64), "midr"),
        (ProcessorSection(midr=0, running_state=1), "running_state and psci_state"),
        (ProcessorSection(midr=0, errors=(ErrorInfo(type=256),)), "type of the error information"),
        (ProcessorSection(midr=0, contexts=(ContextInfo(type=1 << 16),)), "type of the context"),
        (PcieSection(command=1), "command and status"),
        (PcieSection(version=(256, 0)), "major"),
        (PcieSection(capability=b"x"), "capability of 1 bytes"),
        (PcieSection(device=PcieDevice(vendor_id=0, device_id=0, slot=1 << 13)), "slot"),
        (PcieSection(aer=AerCapability(correctable_source=1 << 16)), "correctable_source"),
        (PcieSection(aer=AerCapability(header_log=(0, 0, 0, 1 << 32))), "header_log"),
        (PcieSection(aer=AerCapability(rest=b"")), "40 bytes of rest"),
    ],
)
def test_values_that_do_not_fit(section: Any, said: str) -> None:
    with pytest.raises(CperError, match=said) as caught:
        one(section, Severity.FATAL, BlockStatus(0)).encode()
    assert caught.value.hint


def test_entries_that_cannot_be() -> None:
    entry = DataEntry(section=MemorySection(), severity=Severity.FATAL)
    changes: list[tuple[dict[str, Any], str]] = [
        ({"flags": 0x100}, "flags"),
        ({"revision": 0x1_0000}, "revision"),
        ({"fru_text": "x" * 21}, "fru_text"),
        ({"fru_text": "a\0b"}, "fru_text"),
        ({"fru_text": "\u20ac"}, "fru_text"),
        ({"revision": 0x201, "timestamp": Timestamp(bytes(8))}, "no timestamp"),
    ]
    for change, said in changes:
        with pytest.raises(CperError, match=said):
            replace(entry, **change).encode()
    with pytest.raises(CperError, match="timestamp of 7 bytes"):
        Timestamp(bytes(7))
    with pytest.raises(CperError, match="number of entries"):
        StatusBlock(severity=Severity.FATAL, entries=(entry,) * 1024).encode()
    with pytest.raises(CperError, match="persistence"):
        CperRecord(severity=Severity.FATAL, persistence=1 << 64).encode()
    with pytest.raises(CperError, match="no errors of 'disk'"):
        make_block("disk", Severity.FATAL)  # type: ignore[arg-type]
    with pytest.raises(CperError, match="no part 'fan'"):
        make_block("processor", Severity.FATAL, part="fan")  # type: ignore[arg-type]
    with pytest.raises(CperError, match="no physical address"):
        make_block("memory", Severity.FATAL, address=1 << 64)


# -- what is printed


@pytest.mark.parametrize(("version", "old"), [("6.1", True), ("7.3", False)])
def test_the_lines_are_those_of_linux(version: str, old: bool) -> None:
    """Held against what kernels have printed; test_linux_cper.py has them do so again."""
    expected = (DATA / f"cper-linux-{version}.txt").read_text().split("\n")[:-1]
    assert render(everything(Severity.CORRECTED, odd_contexts=not old), old_aer=old) == expected


def test_a_fatal_error_has_its_aer_registers_told_by_all() -> None:
    block = make_block("pcie", Severity.FATAL)
    old, new = render(block, old_aer=True), render(block)
    assert [line for line in new if line not in old] == ["  aer_cor_status: 0x00000000, aer_cor_mask: 0x00000000"]
    assert "  aer_uncor_status: 0x00040000, aer_uncor_mask: 0x00000000" in old


def test_a_type_of_context_that_linux_does_not_know_ends_the_section() -> None:
    contexts = (ContextInfo(type=9, registers=bytes(8)), ContextInfo(type=0))
    lines = render(one(ProcessorSection(midr=0, contexts=contexts, vendor=b"x"), Severity.FATAL, BlockStatus(0)))
    assert lines[-2:] == ["  Context info structure 0:", "   Invalid context type: 9 (max: 8)"]


def test_a_record_is_printed_as_a_block() -> None:
    block = make_block("processor", Severity.CORRECTED)
    section = RecordSection(section=block.entries[0].section, severity=Severity.CORRECTED)
    assert render(CperRecord(severity=Severity.CORRECTED, sections=(section,))) == render(block)


@given(blocks())
def test_what_is_printed_is_nothing_but_printable(block: StatusBlock) -> None:
    """A report comes from anywhere, and goes to a terminal."""
    assert all(line.isascii() and line.isprintable() for line in render(block))


def test_plain_values() -> None:
    block = make_block("processor", Severity.CORRECTED, address=0x1000, fru_text="CPU 0")
    plain = describe(block)
    assert (plain["kind"], plain["severity"], plain["status"]) == ("block", "corrected", 2)
    (entry,) = plain["entries"]
    assert (entry["fru_text"], entry["fru_id"], entry["flags"]) == ("CPU 0", None, 1)
    section = entry["section"]
    assert (section["kind"], section["midr"], section["vendor"]) == ("processor", 0x410F_D083, "")
    assert section["errors"][0]["physical_address"] == 0x1000
    assert section["errors"][0]["details"]["operation"] == 3
    record = CperRecord(
        severity=Severity.FATAL,
        sections=(RecordSection(section=UnknownSection(UNKNOWN, b"\xff"), severity=Severity.FATAL),),
        timestamp=Timestamp.of(datetime(2026, 1, 2)),
    )
    plain = describe(record)
    assert plain["timestamp"] == {"time": "2026-01-02 00:00:00", "precise": True}
    assert plain["sections"][0]["section"] == {"kind": "unknown", "guid": str(UNKNOWN), "data": "ff"}


def test_a_block_has_room_for_so_many_sections() -> None:
    empty = DataEntry(section=UnknownSection(UNKNOWN, b""), severity=Severity.CORRECTED, revision=0x201)
    assert len(StatusBlock(severity=Severity.CORRECTED, entries=(empty,) * MAX_SECTIONS).encode()) <= BLOCK_SIZE
    assert len(StatusBlock(severity=Severity.CORRECTED, entries=(empty,) * (MAX_SECTIONS + 1)).encode()) > BLOCK_SIZE


@pytest.mark.parametrize("severity", Severity)
def test_a_fatal_block_is_known_without_taking_it_apart(severity: Severity) -> None:
    assert is_fatal(make_block("memory", severity).encode()) == (severity is Severity.FATAL)
