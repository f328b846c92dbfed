# SPDX-License-Identifier: Apache-2.0
"""Generic error status blocks: what a firmware-first source reports. ACPI 6.3, 18.3.2.7.1."""

from __future__ import annotations

import contextlib
import struct
from dataclasses import dataclass
from enum import IntFlag
from uuid import UUID

from .layout import check_fits
from .reader import CperError, Reader
from .section import Section, decode_section, pack_text, unpack_text
from .severity import Severity, read_severity
from .timestamp import Timestamp

__all__ = ["BlockStatus", "DataEntry", "StatusBlock", "block_size", "decode_block", "first_entries"]

# Status, where raw data is, its length, length of the entries, severity.
_BLOCK = struct.Struct("<5I")
_COUNT_SHIFT, _COUNT_BITS = 4, 10
# Section type, severity, revision, validation bits, flags, length, FRU id, FRU text; from revision 3.0 on, a timestamp.
_ENTRY = struct.Struct("<16sIHBBI16s20s")
_TIMESTAMP_SIZE = 8
_REVISION = 0x300
_FRU_ID, _FRU_TEXT, _TIMESTAMP = 1, 2, 4


class BlockStatus(IntFlag):
    """What a block holds."""

    UNCORRECTABLE = 1
    CORRECTABLE = 2
    MULTIPLE_UNCORRECTABLE = 4
    MULTIPLE_CORRECTABLE = 8


_NOTHING = BlockStatus(0)


@dataclass(frozen=True, slots=True, kw_only=True)
class DataEntry:
    """A section, and what is said of it; `flags` are :class:`SectionFlags`. None is what is not said."""

    section: Section
    severity: Severity
    flags: int = 0
    fru_id: UUID | None = None
    fru_text: str | None = None
    timestamp: Timestamp | None = None
    revision: int = _REVISION

    def encode(self) -> bytes:
        """The entry. Raises CperError for values that do not fit."""
        data = self.section.encode()
        check_fits("flags of the entry", self.flags, 8)
        check_fits("revision of the entry", self.revision, 16)
        valid = (
            (_FRU_ID if self.fru_id is not None else 0)
            | (_FRU_TEXT if self.fru_text is not None else 0)
            | (_TIMESTAMP if self.timestamp is not None else 0)
        )
        head = _ENTRY.pack(
            self.section.guid.bytes_le,
            self.severity,
            self.revision,
            valid,
            self.flags,
            len(data),
            self.fru_id.bytes_le if self.fru_id else bytes(16),
            pack_text(self.fru_text or ""),
        )
        if _has_timestamp(self.revision):
            head += self.timestamp.raw if self.timestamp else bytes(_TIMESTAMP_SIZE)
        elif self.timestamp:
            raise CperError(f"an entry of revision {self.revision:#x} has no timestamp", f"make it {_REVISION:#x}")
        return head + data

    @classmethod
    def decode(cls, reader: Reader) -> DataEntry:
        """The entry that comes next. Raises CperError."""
        start = reader.offset
        guid, severity, revision, valid, flags, size, fru_id, fru_text = reader.unpack(_ENTRY, "an entry")
        known = read_severity(severity, reader, start + 16, "an entry")
        timestamp = None
        if _has_timestamp(revision):
            raw = reader.take(_TIMESTAMP_SIZE, "the timestamp of an entry")
            timestamp = Timestamp(raw) if valid & _TIMESTAMP else None
        return cls(
            section=decode_section(UUID(bytes_le=guid), reader.part(size, "the section of an entry")),
            severity=known,
            flags=flags,
            fru_id=UUID(bytes_le=fru_id) if valid & _FRU_ID else None,
            fru_text=unpack_text(fru_text) if valid & _FRU_TEXT else None,
            timestamp=timestamp,
            revision=revision,
        )


def _has_timestamp(revision: int) -> bool:
    return revision >> 8 >= 3


@dataclass(frozen=True, slots=True, kw_only=True)
class StatusBlock:
    """What a source reports: a severity, and sections that describe it. `raw` are bytes for whom they concern."""

    severity: Severity
    entries: tuple[DataEntry, ...] = ()
    status: BlockStatus = _NOTHING
    raw: bytes = b""

    def encode(self) -> bytes:
        """The block, as it is to be in memory. Raises CperError for values that do not fit."""
        check_fits("the number of entries", len(self.entries), _COUNT_BITS)
        check_fits("status of the block", self.status, _COUNT_SHIFT)
        entries = b"".join(entry.encode() for entry in self.entries)
        status = self.status | len(self.entries) << _COUNT_SHIFT
        where = _BLOCK.size + len(entries) if self.raw else 0
        return _BLOCK.pack(status, where, len(self.raw), len(entries), self.severity) + entries + self.raw


def block_size(data: bytes) -> int:
    """How long the block at the start of `data` is, which can be decoded."""
    _status, raw_offset, raw_length, length, _severity = _BLOCK.unpack_from(data)
    return int(max(_BLOCK.size + length, raw_offset + raw_length if raw_length else 0))


def first_entries(data: bytes) -> StatusBlock | None:
    """As many entries as can be read of a block that is damaged; None where not even its head can."""
    reader = Reader(data, "the error status block")
    entries: list[DataEntry] = []
    try:
        _status, _raw_offset, _raw_length, _length, number = reader.unpack(_BLOCK, "an error status block")
        severity = read_severity(number, reader, 16, "the block")
    except CperError:
        return None
    with contextlib.suppress(CperError):
        while reader.left and len(entries) < 1 << _COUNT_BITS:
            entries.append(DataEntry.decode(reader))
    return StatusBlock(severity=severity, entries=tuple(entries))


def decode_block(data: bytes) -> StatusBlock:
    """The block at the start of `data`; nobody looks at what follows it. Raises CperError."""
    reader = Reader(data, "the error status block")
    status, raw_offset, raw_length, length, severity = reader.unpack(_BLOCK, "an error status block")
    if raw_length and not _BLOCK.size + length <= raw_offset <= len(data) - raw_length:
        raise reader.wrong(f"raw data of {raw_length} bytes cannot be at {raw_offset:#x} of {len(data)}", 4)
    body = reader.part(length, "the entries of the block")
    entries = []
    while body.left:
        entries.append(DataEntry.decode(body))
    count = status >> _COUNT_SHIFT & (1 << _COUNT_BITS) - 1
    if count != len(entries):
        raise reader.wrong(f"the block says that it has {count} entries, and it has {len(entries)}", 0)
    return StatusBlock(
        severity=read_severity(severity, reader, 16, "the block"),
        entries=tuple(entries),
        status=BlockStatus(status & (1 << _COUNT_SHIFT) - 1),
        raw=data[raw_offset : raw_offset + raw_length] if raw_length else b"",
    )
