# SPDX-License-Identifier: Apache-2.0
"""Bytes that are no report of an error, though they may look like one: a sentence and the offset, and nothing else."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdeivirt.errors import UsageError
from sdeivirt.ras.cper import (
    MAX_SIZE,
    ContextInfo,
    CperError,
    CperRecord,
    DataEntry,
    ErrorInfo,
    MemorySection,
    PcieSection,
    ProcessorSection,
    RecordSection,
    Section,
    Severity,
    StatusBlock,
    UnknownSection,
    decode,
    decoded_size,
    describe,
    render,
    salvage,
)

from .cper_support import UNKNOWN, blocks, everything, records

_OFFSET = re.compile(r"look at offset 0x[0-9a-f]+, in ")


def refused(data: bytes) -> CperError:
    """The error; a sentence, and where to look."""
    with pytest.raises(CperError) as caught:
        decode(data)
    assert _OFFSET.match(caught.value.hint), caught.value
    assert "\n" not in str(caught.value)
    return caught.value


def block(section: Section) -> bytearray:
    """20 bytes of block, 72 of entry, the section at 92."""
    entry = DataEntry(section=section, severity=Severity.CORRECTED)
    return bytearray(StatusBlock(severity=Severity.CORRECTED, entries=(entry,)).encode())


def record(*sections: Section) -> bytearray:
    """128 bytes of header, 72 of each descriptor, the sections behind them."""
    made = tuple(RecordSection(section=section, severity=Severity.CORRECTED) for section in sections)
    return bytearray(CperRecord(severity=Severity.CORRECTED, sections=made).encode())


PROCESSOR = ProcessorSection(
    midr=0, errors=(ErrorInfo(type=2),), contexts=(ContextInfo(type=4, registers=bytes(8)),), vendor=b"x"
)


def put(offset: int, size: int, value: int) -> Callable[[bytearray], None]:
    def change(data: bytearray) -> None:
        data[offset : offset + size] = value.to_bytes(size, "little")

    return change


@pytest.mark.parametrize(
    ("data", "change", "said", "offset"),
    [
        (block(MemorySection()), put(0, 4, 0), "says that it has 0 entries, and it has 1", 0),
        (block(MemorySection()), put(0, 4, 2 << 4), "says that it has 2 entries", 0),
        (block(MemorySection()), put(12, 4, 153), "153 bytes are to come, and 152 are left", 20),
        (block(MemorySection()), put(12, 4, 0xFFFF_FFFF), "4294967295 bytes are to come", 20),
        (block(MemorySection()), put(12, 4, 151), "80 bytes are to come, and 79 are left", 92),
        (block(MemorySection()), put(12, 4, 63), "an entry: 64 bytes are to come, and 63 are left", 20),
        (block(MemorySection()), put(12, 4, 71), "timestamp of an entry: 8 bytes are to come, and 7 are left", 84),
        (block(MemorySection()), put(16, 4, 4), "the block has severity 0x4", 16),
        (block(MemorySection()), put(36, 4, 0xFFFF_FFFF), "an entry has severity 0xffffffff", 36),
        (block(MemorySection()), put(44, 4, 81), "81 bytes are to come, and 80 are left", 92),
        (block(MemorySection()), put(4, 8, 1 << 32), "raw data of 1 bytes cannot be at 0x0", 4),
        (block(MemorySection()), put(4, 8, 1 << 32 | 172), "raw data of 1 bytes cannot be at 0xac of 172", 4),
        (block(MemorySection()), put(4, 8, 1 << 32 | 171), "raw data of 1 bytes cannot be at 0xab of 172", 4),
        (block(MemorySection(size=73)), put(92, 8, 1 << 15), "rank is said to be valid", 92),
        (block(MemorySection(size=73)), put(92, 8, 1 << 21), "extended is said to be valid", 92),
        (block(MemorySection(size=64)), put(92, 8, 1 << 14), "error_type is said to be valid", 92),
        (block(UnknownSection(UNKNOWN, bytes(79))), put(20, 16, 0xB1837CED833E63B84EDE6F64A5BC1114), "79 bytes", 92),
        (block(PROCESSOR), put(100, 4, 96), "says that it has 96 bytes and 1 errors, and there are 89", 92),
        (block(PROCESSOR), put(96, 2, 3), "says that it has 89 bytes and 3 errors, and there are 89", 92),
        (block(PROCESSOR), put(96, 2, 0xFFFF), "65535 errors", 92),
        (block(PROCESSOR), put(98, 2, 3), "context: 8 bytes are to come, and 1 are left", 180),
        (block(PROCESSOR), put(100, 4, 90), "says that it has 90 bytes", 92),
        (block(PROCESSOR), put(100, 4, 71), "says that it has 71 bytes", 92),
        (block(PROCESSOR), put(133, 1, 31), "says that it has 31 bytes, and it has 32", 132),
        (block(PROCESSOR), put(168, 4, 10), "registers of a context: 10 bytes are to come, and 9 are left", 172),
        (block(PROCESSOR), put(168, 4, 9), "padding of a context", 181),
        (block(PROCESSOR), put(168, 4, 0xFFFF_FFFF), "registers of a context", 172),
        (record(MemorySection()), put(6, 4, 0), "its signature is not there", 0),
        (record(MemorySection()), put(10, 2, 0xFFFF), "65535 sections", 20),
        (record(MemorySection()), put(10, 2, 3), "3 sections", 20),
        (record(MemorySection()), put(20, 4, 281), "says that it has 281 bytes and 1 sections, of 280 bytes", 20),
        (record(MemorySection()), put(12, 4, 9), "the record has severity 0x9", 12),
        (record(MemorySection()), put(176, 4, 4), "a section has severity 0x4", 176),
        (record(MemorySection()), put(128, 4, 201), "a section of 80 bytes cannot be at 0xc9", 128),
        (record(MemorySection()), put(132, 4, 0xFFFF_FFFF), "4294967295 bytes cannot be", 128),
    ],
)
def test_what_is_wrong_and_where(data: bytearray, change: Callable[[bytearray], None], said: str, offset: int) -> None:
    data = bytearray(data)
    decode(bytes(data))
    change(data)
    error = refused(bytes(data))
    assert said in error.message, error
    assert error.hint.startswith(f"look at offset {offset:#x}, in "), error
    assert isinstance(error, UsageError)


def test_pcie_sections_are_whole() -> None:
    data = block(PcieSection())
    del data[-1]
    data[12:16] = (72 + 207).to_bytes(4, "little")
    data[44:48] = (207).to_bytes(4, "little")
    assert "208 bytes are to come, and 207 are left" in refused(bytes(data)).message


def test_every_shorter_block_and_record_is_refused() -> None:
    whole = everything(Severity.CORRECTED)
    assert whole.raw
    record = CperRecord(
        severity=Severity.CORRECTED,
        sections=tuple(RecordSection(section=entry.section, severity=entry.severity) for entry in whole.entries),
    )
    for data in (whole.encode(), record.encode()):
        for size in range(len(data)):
            refused(data[:size])


def test_sections_that_lie_upon_each_other_are_not_read_again_and_again() -> None:
    """Else a record could be read into more memory than anybody has."""
    data = record(*(UnknownSection(UNKNOWN, bytes(1000)) for _ in range(10)))
    for i in range(10):  # all of them have the same 3000 bytes
        put(128 + 72 * i, 8, 3000 << 32 | 848)(data)
    assert "the sections have more than the 10848 bytes of the record" in refused(bytes(data)).message


def test_there_is_a_most() -> None:
    whole = StatusBlock(severity=Severity.CORRECTED, raw=bytes(MAX_SIZE - 20))
    assert decode(whole.encode()) == whole
    with pytest.raises(CperError, match="are no block and no record"):
        decode(whole.encode() + b"\0")


def read(data: bytes) -> None:
    """Bytes are refused with an error, or are a report that is printed, and read again as it was."""
    try:
        decoded = decode(data)
    except CperError:
        refused(data)
        assert all(line.isascii() and line.isprintable() for line in salvage(data))
        return
    assert decode(data[: decoded_size(data)]) == decoded
    assert all(line.isascii() and line.isprintable() for line in render(decoded))
    describe(decoded)
    assert decode(decoded.encode()) == decoded


@given(st.binary(max_size=400), st.sampled_from((b"", b"CPER\1\1\xff\xff\xff\xff")))
def test_any_bytes(data: bytes, start: bytes) -> None:
    read(start + data)


@given(st.one_of(blocks(), records()), st.data())
def test_reports_with_some_bytes_changed(whole: StatusBlock | CperRecord, data: st.DataObject) -> None:
    encoded = bytearray(whole.encode())
    for _ in range(data.draw(st.integers(1, 4))):
        encoded[data.draw(st.integers(0, len(encoded) - 1))] = data.draw(st.integers(0, 255))
    read(bytes(encoded))
