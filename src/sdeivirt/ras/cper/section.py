# SPDX-License-Identifier: Apache-2.0
"""A section of any kind, and what blocks and records say of it alike."""

from __future__ import annotations

from dataclasses import dataclass
from uuid import UUID

from . import guids
from .memory import MemorySection
from .pcie import PcieSection
from .processor import ProcessorSection
from .reader import CperError, Reader

__all__ = ["Section", "UnknownSection", "decode_section", "pack_text", "unpack_text"]

_TEXT_SIZE = 20


@dataclass(frozen=True, slots=True)
class UnknownSection:
    """A section of a kind that is not read any further."""

    guid: UUID
    data: bytes

    def encode(self) -> bytes:
        return self.data


Section = MemorySection | ProcessorSection | PcieSection | UnknownSection


def decode_section(guid: UUID, reader: Reader) -> Section:
    """The section of that kind that a reader holds. Raises CperError."""
    if guid == guids.PLATFORM_MEMORY:
        return MemorySection.decode(reader)
    if guid == guids.ARM_PROCESSOR:
        return ProcessorSection.decode(reader)
    if guid == guids.PCIE:
        return PcieSection.decode(reader)
    return UnknownSection(guid, reader.take(reader.left, "a section"))


def pack_text(text: str) -> bytes:
    """The text that names a field-replaceable unit. Raises CperError."""
    try:
        data = text.encode("latin-1")
    except UnicodeEncodeError:
        raise CperError(f"{text!r} has characters that cannot be in fru_text", "it is ASCII") from None
    if len(data) > _TEXT_SIZE or b"\0" in data:
        raise CperError(f"fru_text {text[:40]!r} cannot be", f"it has up to {_TEXT_SIZE} characters, none of them NUL")
    return data


def unpack_text(data: bytes) -> str:
    """The text up to its end; bytes that are not ASCII stay what they are."""
    return data.split(b"\0")[0].decode("latin-1")
