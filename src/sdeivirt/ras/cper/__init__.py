# SPDX-License-Identifier: Apache-2.0
"""Common Platform Error Records: what hardware and firmware say of an error. UEFI 2.10, appendix N. No I/O in here.

block.py      generic error status blocks, which a source reports (ACPI)
record.py     error records, which are stored
section.py    sections of both; memory.py, processor.py (details.py), pcie.py
make.py       reports as firmware would make them
render.py     what Linux prints of them; render_processor.py, text.py
describe.py   all of it as plain values
salvage.py    what is left of a damaged one
reader.py     reading what may be anything; layout.py: structures with validation bits

`decode` and `encode` are each other's inverse, but for what nobody is to look at: reserved bits, and fields whose
validation bit is clear.
"""

from __future__ import annotations

from .block import BlockStatus, DataEntry, StatusBlock, decode_block
from .describe import describe
from .details import ErrorDetails
from .make import KINDS, Kind, Part, make_block
from .memory import MemorySection
from .pcie import AER_ERRORS, AerCapability, PcieDevice, PcieSection
from .processor import ContextInfo, ErrorFlags, ErrorInfo, ErrorType, ProcessorSection
from .reader import MAX_SIZE, CperError
from .record import SIGNATURE, CperRecord, RecordSection, decode_record
from .render import render
from .salvage import decoded_size, salvage
from .section import Section, UnknownSection
from .severity import SectionFlags, Severity
from .timestamp import Timestamp

__all__ = [
    "make_block",
    "decode",
    "decoded_size",
    "salvage",
    "render",
    "describe",
    "StatusBlock",
    "CperRecord",
    "Severity",
    "MemorySection",
    "ProcessorSection",
    "PcieSection",
    "UnknownSection",
    "Section",
    "DataEntry",
    "RecordSection",
    "BlockStatus",
    "SectionFlags",
    "ErrorInfo",
    "ErrorType",
    "ErrorFlags",
    "ErrorDetails",
    "ContextInfo",
    "PcieDevice",
    "AerCapability",
    "Timestamp",
    "CperError",
    "KINDS",
    "AER_ERRORS",
    "Kind",
    "Part",
    "MAX_SIZE",
]


def decode(data: bytes) -> StatusBlock | CperRecord:
    """What is at the start of `data`: a record, which has a signature, or else a block. Raises CperError."""
    if len(data) > MAX_SIZE:
        raise CperError(f"{len(data)} bytes are no block and no record", f"{MAX_SIZE} are the most")
    return decode_record(data) if data.startswith(SIGNATURE) else decode_block(data)
