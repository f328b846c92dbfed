# SPDX-License-Identifier: Apache-2.0
"""For tests of records of errors: all there can be in one, and layouts written down by hand."""

from __future__ import annotations

from uuid import UUID

from hypothesis import strategies as st

from sdeivirt.ras.cper import (
    AerCapability,
    BlockStatus,
    ContextInfo,
    CperRecord,
    DataEntry,
    ErrorDetails,
    ErrorInfo,
    MemorySection,
    PcieDevice,
    PcieSection,
    ProcessorSection,
    RecordSection,
    Section,
    Severity,
    StatusBlock,
    Timestamp,
    UnknownSection,
)

__all__ = ["Bytes", "blocks", "details", "everything", "records"]

UNKNOWN = UUID("12345678-1234-5678-9abc-def012345678")


class Bytes:
    """Bytes that are put where they belong, one field after the other."""

    def __init__(self, size: int) -> None:
        self.data = bytearray(size)

    def put(self, offset: int, size: int, value: int) -> Bytes:
        assert not any(self.data[offset : offset + size])
        self.data[offset : offset + size] = value.to_bytes(size, "little")
        return self

    def text(self, offset: int, text: str) -> Bytes:
        """Bytes in hexadecimal."""
        data = bytes.fromhex(text)
        assert offset + len(data) <= len(self.data)
        self.data[offset : offset + len(data)] = data
        return self

    def __bytes__(self) -> bytes:
        return bytes(self.data)


def _number(bits: int) -> st.SearchStrategy[int]:
    return st.integers(0, (1 << bits) - 1)


def _maybe(bits: int) -> st.SearchStrategy[int | None]:
    return st.none() | _number(bits)


SMALL = st.binary(max_size=40)
TEXTS = st.text(st.characters(min_codepoint=1, max_codepoint=255), max_size=20)
TIMESTAMPS = st.builds(Timestamp, st.binary(min_size=8, max_size=8))
SEVERITIES = st.sampled_from(Severity)


@st.composite
def memory_sections(draw: st.DrawFn) -> MemorySection:
    size = draw(st.sampled_from((64, 73, 80)))
    whole = size == 80
    bank, group, address = draw(_number(16)), draw(st.booleans()), draw(st.booleans())
    named = draw(st.booleans())
    later: dict[str, int | None] = {}
    if size > 64:
        later["target_id"], later["error_type"] = draw(_maybe(64)), draw(_maybe(8))
    if whole:
        later["row_extension"], later["chip_id"] = draw(_maybe(2)), draw(_maybe(3))
        later |= {name: draw(_maybe(16)) for name in ("rank", "card_handle", "module_handle")}
    wide = ("error_status", "physical_address", "physical_address_mask", "requestor_id", "responder_id")
    narrow = ("node", "card", "module", "device", "row", "column", "bit_position")
    return MemorySection(
        **{name: draw(_maybe(64)) for name in wide},
        **{name: draw(_maybe(16)) for name in narrow},
        bank=bank if named else None,
        bank_group=bank >> 8 if group else None,
        bank_address=bank & 0xFF if address else None,
        **later,
        size=size,
        more=draw(SMALL) if whole else b"",
    )


INFOS = st.builds(
    ErrorInfo,
    type=_number(8),
    multiple_error=_maybe(16),
    flags=_maybe(8),
    error_info=_maybe(64),
    virtual_address=_maybe(64),
    physical_address=_maybe(64),
    version=_number(8),
)
CONTEXTS = st.builds(ContextInfo, type=_number(16), registers=SMALL, version=_number(16))


def details() -> st.SearchStrategy[ErrorDetails]:
    bits = {"transaction_type": 2, "operation": 4, "level": 3, "context_corrupt": 1, "corrected": 1, "precise_pc": 1}
    bits |= {"restartable_pc": 1, "participation": 2, "time_out": 1, "address_space": 2, "memory_attributes": 9}
    bits |= {"access_mode": 1}
    return st.builds(ErrorDetails, **{name: _maybe(width) for name, width in bits.items()})


@st.composite
def processor_sections(draw: st.DrawFn) -> ProcessorSection:
    state = draw(st.none() | st.tuples(_number(32), _number(32)))
    return ProcessorSection(
        midr=draw(_number(64)),
        mpidr=draw(_maybe(64)),
        affinity_level=draw(_maybe(8)),
        running_state=state and state[0],
        psci_state=state and state[1],
        errors=tuple(draw(st.lists(INFOS, max_size=3))),
        contexts=tuple(draw(st.lists(CONTEXTS, max_size=3))),
        vendor=draw(SMALL),
        more=draw(SMALL),
    )


DEVICES = st.builds(
    PcieDevice,
    vendor_id=_number(16),
    device_id=_number(16),
    class_code=_number(24),
    function=_number(8),
    device=_number(8),
    segment=_number(16),
    bus=_number(8),
    secondary_bus=_number(8),
    slot=_number(13),
)
AERS = st.builds(
    AerCapability,
    header=_number(32),
    uncorrectable_status=_number(32),
    uncorrectable_mask=_number(32),
    uncorrectable_severity=_number(32),
    correctable_status=_number(32),
    correctable_mask=_number(32),
    control=_number(32),
    header_log=st.tuples(*[_number(32)] * 4),
    root_command=_number(32),
    root_status=_number(32),
    correctable_source=_number(16),
    uncorrectable_source=_number(16),
    rest=st.binary(min_size=40, max_size=40),
)


@st.composite
def pcie_sections(draw: st.DrawFn) -> PcieSection:
    command = draw(st.none() | st.tuples(_number(16), _number(16)))
    bridge = draw(st.none() | st.tuples(_number(16), _number(16)))
    return PcieSection(
        port_type=draw(_maybe(32)),
        version=draw(st.none() | st.tuples(_number(8), _number(8))),
        command=command and command[0],
        status=command and command[1],
        device=draw(st.none() | DEVICES),
        serial_number=draw(_maybe(64)),
        secondary_status=bridge and bridge[0],
        control=bridge and bridge[1],
        capability=draw(st.none() | st.binary(min_size=60, max_size=60)),
        aer=draw(st.none() | AERS),
        more=draw(SMALL),
    )


SECTIONS: st.SearchStrategy[Section] = st.one_of(
    memory_sections(), processor_sections(), pcie_sections(), st.builds(UnknownSection, st.just(UNKNOWN), SMALL)
)


@st.composite
def entries(draw: st.DrawFn) -> DataEntry:
    revision = draw(st.sampled_from((0x201, 0x300, 0x301)))
    return DataEntry(
        section=draw(SECTIONS),
        severity=draw(SEVERITIES),
        flags=draw(_number(8)),
        fru_id=draw(st.none() | st.uuids()),
        fru_text=draw(st.none() | TEXTS),
        timestamp=draw(st.none() | TIMESTAMPS) if revision >= 0x300 else None,
        revision=revision,
    )


def blocks() -> st.SearchStrategy[StatusBlock]:
    return st.builds(
        StatusBlock,
        severity=SEVERITIES,
        entries=st.lists(entries(), max_size=3).map(tuple),
        status=st.integers(0, 15).map(BlockStatus),
        raw=SMALL,
    )


def records() -> st.SearchStrategy[CperRecord]:
    sections = st.builds(
        RecordSection,
        section=SECTIONS,
        severity=SEVERITIES,
        flags=_number(32),
        fru_id=st.none() | st.uuids(),
        fru_text=st.none() | TEXTS,
        revision=_number(16),
    )
    return st.builds(
        CperRecord,
        severity=SEVERITIES,
        sections=st.lists(sections, max_size=3).map(tuple),
        timestamp=st.none() | TIMESTAMPS,
        platform_id=st.none() | st.uuids(),
        partition_id=st.none() | st.uuids(),
        creator_id=st.uuids(),
        notification=st.uuids(),
        record_id=_number(64),
        flags=_number(32),
        persistence=_number(64),
        revision=_number(16),
    )


def everything(severity: Severity, *, odd_contexts: bool = True) -> StatusBlock:
    """A block with all that Linux has words for, and some it has none for.

    `odd_contexts` are for kernels that know of the padding behind registers.
    """
    memory = MemorySection(
        error_status=26 << 8 | 1 << 18,
        physical_address=0x12_3400_0000,
        physical_address_mask=0xFFFF_FFFF_FFFF_0000,
        node=1,
        card=2,
        module=3,
        bank=0x102,
        bank_group=1,
        bank_address=2,
        device=4,
        row=5,
        row_extension=2,
        column=6,
        bit_position=7,
        requestor_id=8,
        responder_id=9,
        target_id=10,
        error_type=15,
        chip_id=5,
        rank=11,
        card_handle=12,
        module_handle=0x1300,
    )
    every = ErrorDetails(
        transaction_type=0,
        operation=3,
        level=7,
        context_corrupt=1,
        corrected=0,
        precise_pc=0,
        restartable_pc=1,
        participation=2,
        time_out=1,
        address_space=3,
        memory_attributes=0x1FF,
        access_mode=0,
    ).encode()
    registers = ContextInfo(type=4, registers=bytes(range(40)))
    odd = ContextInfo(type=6, registers=b"abcde")
    processor = ProcessorSection(
        midr=0x12,
        mpidr=0x100,
        affinity_level=1,
        running_state=0,
        psci_state=0xFFFF_FFFF,
        errors=(
            ErrorInfo(type=0x08, multiple_error=5, flags=15, error_info=every, virtual_address=1, physical_address=2),
            ErrorInfo(type=0x0E, error_info=every),  # a bus's details are told of nothing but a bus
            ErrorInfo(type=0x10, error_info=0xFFFF),
            ErrorInfo(type=0xE1, error_info=0xFFF),
            ErrorInfo(type=0x04, error_info=ErrorDetails(operation=8, transaction_type=3).encode()),
            ErrorInfo(type=0x02, error_info=ErrorDetails(operation=11, transaction_type=2).encode()),
            ErrorInfo(type=0x02, error_info=ErrorDetails(operation=9, level=0).encode()),
            ErrorInfo(type=0x08, error_info=ErrorDetails(operation=0, access_mode=1, address_space=2).encode()),
        ),
        contexts=(registers, odd) if odd_contexts else (registers,),
        vendor=b"vendor says \x01\xff things",
    )
    device = PcieDevice(
        vendor_id=0x8086,
        device_id=0x1234,
        class_code=0x02_0301,
        function=7,
        device=31,
        segment=0x1234,
        bus=0xFF,
        secondary_bus=0xFE,
        slot=8191,
    )
    pcie = PcieSection(
        port_type=3,
        version=(1, 1),
        command=0x1234,
        status=0xABCD,
        device=device,
        serial_number=0x1122_3344_5566_7788,
        secondary_status=1,
        control=2,
        capability=bytes(60),
    )
    aer = AerCapability(
        uncorrectable_status=2,
        uncorrectable_mask=3,
        uncorrectable_severity=4,
        correctable_status=1,
        correctable_mask=5,
        header_log=(1, 2, 3, 4),
    )
    sections = [
        DataEntry(
            section=memory,
            severity=severity,
            fru_id=UNKNOWN,
            fru_text="twenty characters !!",
            timestamp=Timestamp(bytes.fromhex("0302010129112620")),
        ),
        DataEntry(
            section=MemorySection(error_type=200, error_status=2 << 8, row_extension=1),
            severity=Severity.CORRECTED,
            fru_text="",
            timestamp=Timestamp(bytes.fromhex("5958230028019919")),
        ),
        DataEntry(section=MemorySection(error_type=1, size=73), severity=severity, timestamp=Timestamp(b"\xff" * 8)),
        DataEntry(section=MemorySection(physical_address=1, size=64), severity=severity, revision=0x201),
        DataEntry(section=processor, severity=severity, fru_text="back\\slash"),
        DataEntry(section=pcie, severity=severity),
        DataEntry(section=PcieSection(port_type=11, aer=aer), severity=severity),
        DataEntry(section=UnknownSection(UNKNOWN, b"some data that is odd\x01"), severity=severity),
        DataEntry(section=UnknownSection(UNKNOWN, b""), severity=severity),
    ]
    return StatusBlock(severity=severity, entries=tuple(sections), status=BlockStatus(15), raw=b"raw")
