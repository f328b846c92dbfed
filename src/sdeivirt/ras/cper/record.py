# SPDX-License-Identifier: Apache-2.0
"""Error records, as they are stored (ERST, pstore): a header, descriptors, sections. UEFI 2.10, N.2.1 and N.2.2."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from uuid import UUID

from .layout import check_fits
from .reader import Reader
from .section import Section, decode_section, pack_text, unpack_text
from .severity import Severity, read_severity
from .timestamp import Timestamp

__all__ = ["SIGNATURE", "CperRecord", "RecordSection", "decode_record"]

SIGNATURE = b"CPER"
# Signature, revision, end of signature, sections, severity, validation bits, length, timestamp, platform, partition,
# creator, notification, record id, flags, persistence information, reserved.
_HEADER = struct.Struct("<4sHIHIII8s16s16s16s16sQIQ12x")
_SIGNATURE_END = 0xFFFF_FFFF
_REVISION = 0x0101
_PLATFORM, _TIMESTAMP, _PARTITION = 1, 2, 4
# Offset, length, revision, validation bits, reserved, flags, type, FRU id, severity, FRU text.
_DESCRIPTOR = struct.Struct("<IIHBxI16s16sI20s")
_SECTION_REVISION = 0x0100
_FRU_ID, _FRU_TEXT = 1, 2
_NOBODY = UUID(int=0)


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordSection:
    """A section, and what its descriptor says; `flags` are :class:`SectionFlags`. None is what is not said."""

    section: Section
    severity: Severity
    flags: int = 0
    fru_id: UUID | None = None
    fru_text: str | None = None
    revision: int = _SECTION_REVISION

    def descriptor(self, offset: int, length: int) -> bytes:
        """The descriptor of the section, which is at that offset. Raises CperError for values that do not fit."""
        check_fits("flags of the section", self.flags, 32)
        check_fits("revision of the section", self.revision, 16)
        return _DESCRIPTOR.pack(
            offset,
            length,
            self.revision,
            (_FRU_ID if self.fru_id is not None else 0) | (_FRU_TEXT if self.fru_text is not None else 0),
            self.flags,
            self.section.guid.bytes_le,
            self.fru_id.bytes_le if self.fru_id else bytes(16),
            self.severity,
            pack_text(self.fru_text or ""),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class CperRecord:
    """A record; None is what is not said. `notification` says how the error was noticed, by GUID."""

    severity: Severity
    sections: tuple[RecordSection, ...] = ()
    timestamp: Timestamp | None = None
    platform_id: UUID | None = None
    partition_id: UUID | None = None
    creator_id: UUID = _NOBODY
    notification: UUID = _NOBODY
    record_id: int = 0
    flags: int = 0
    persistence: int = 0
    revision: int = _REVISION

    def encode(self) -> bytes:
        """The record. Raises CperError for values that do not fit."""
        for name, bits in (("record_id", 64), ("flags", 32), ("persistence", 64), ("revision", 16)):
            check_fits(f"{name} of the record", getattr(self, name), bits)
        check_fits("the number of sections", len(self.sections), 16)
        descriptors, bodies, end = [], [], _HEADER.size + len(self.sections) * _DESCRIPTOR.size
        for section in self.sections:
            body = section.section.encode()
            descriptors.append(section.descriptor(end, len(body)))
            bodies.append(body)
            end += len(body)
        valid = (
            (_PLATFORM if self.platform_id is not None else 0)
            | (_TIMESTAMP if self.timestamp is not None else 0)
            | (_PARTITION if self.partition_id is not None else 0)
        )
        header = _HEADER.pack(
            SIGNATURE,
            self.revision,
            _SIGNATURE_END,
            len(self.sections),
            self.severity,
            valid,
            end,
            self.timestamp.raw if self.timestamp else bytes(8),
            (self.platform_id or _NOBODY).bytes_le,
            (self.partition_id or _NOBODY).bytes_le,
            self.creator_id.bytes_le,
            self.notification.bytes_le,
            self.record_id,
            self.flags,
            self.persistence,
        )
        return b"".join((header, *descriptors, *bodies))


def decode_record(data: bytes) -> CperRecord:
    """The record at the start of `data`; nobody looks at what follows it. Raises CperError."""
    reader = Reader(data, "the header of the record")
    values = reader.unpack(_HEADER, "the header of a record")
    signature, revision, end, count, severity, valid, length, timestamp, platform, partition, creator, notification = (
        values[:12]
    )
    if signature != SIGNATURE or end != _SIGNATURE_END:
        raise reader.wrong("this is no error record: its signature is not there", 0)
    if not _HEADER.size + count * _DESCRIPTOR.size <= length <= len(data):
        raise reader.wrong(f"the record says that it has {length} bytes and {count} sections, of {len(data)} bytes", 20)
    reader = Reader(data, "the descriptors of the sections", _HEADER.size, length)
    sections = []
    room = length  # sections that lie upon each other could make much of little
    for _ in range(count):
        section, size = _read_section(reader, length)
        room -= size
        if room < 0:
            raise reader.wrong(f"the sections have more than the {length} bytes of the record")
        sections.append(section)
    return CperRecord(
        severity=read_severity(severity, reader, 12, "the record"),
        sections=tuple(sections),
        timestamp=Timestamp(timestamp) if valid & _TIMESTAMP else None,
        platform_id=UUID(bytes_le=platform) if valid & _PLATFORM else None,
        partition_id=UUID(bytes_le=partition) if valid & _PARTITION else None,
        creator_id=UUID(bytes_le=creator),
        notification=UUID(bytes_le=notification),
        record_id=values[12],
        flags=values[13],
        persistence=values[14],
        revision=revision,
    )


def _read_section(reader: Reader, end: int) -> tuple[RecordSection, int]:
    """The section of the next descriptor, and its size. Raises CperError."""
    start = reader.offset
    offset, size, revision, valid, flags, guid, fru_id, severity, fru_text = reader.unpack(_DESCRIPTOR, "a descriptor")
    if offset + size > end:
        raise reader.wrong(f"a section of {size} bytes cannot be at {offset:#x} of {end} bytes", start)
    section = RecordSection(
        section=decode_section(UUID(bytes_le=guid), Reader(reader.data, "a section", offset, offset + size)),
        severity=read_severity(severity, reader, start + 48, "a section"),
        flags=flags,
        fru_id=UUID(bytes_le=fru_id) if valid & _FRU_ID else None,
        fru_text=unpack_text(fru_text) if valid & _FRU_TEXT else None,
        revision=revision,
    )
    return section, size
