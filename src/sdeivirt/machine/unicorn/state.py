# SPDX-License-Identifier: Apache-2.0
"""What moves with a guest of the embedded machine, besides RAM and firmware.

    unicorn-machine   the vCPUs' turns, the seeded schedule, the counter, what the CPU is
    unicorn-vcpu      one vCPU each: what it does, its registers
    unicorn-boot      the guest's image, for PSCI SYSTEM_RESET
    unicorn-boot-part the rest of one that is too large for a section, in order of instance
    pl011             the serial port
    unicorn-gic       the interrupt controller, if the guest has made use of it

Not moved: an exclusive monitor (it is clear after a move, which guests have
to expect at any time), translations, and what a guest cannot tell apart.
There is no place for a register of EL2 or EL3.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import zstandard

from ...cpu import (
    M64,
    PSTATE_BTYPE,
    PSTATE_DAIF,
    PSTATE_DIT,
    PSTATE_IL,
    PSTATE_MODE,
    PSTATE_NZCV,
    PSTATE_PAN,
    PSTATE_SS,
    PSTATE_SSBS,
    PSTATE_UAO,
    CpuFeatures,
    MODE_EL0t,
    MODE_EL1h,
    MODE_EL1t,
)
from ...errors import StreamError
from ...migration.sections import Record, Section, pack, unpack
from ..images import GuestImage
from .sysregs import REGISTERS

__all__ = [
    "BOOT",
    "BOOT_PART",
    "GIC",
    "MACHINE",
    "PL011",
    "VCPU",
    "BootRecord",
    "GicCpuRecord",
    "GicRecord",
    "MachineRecord",
    "Places",
    "Registers",
    "VcpuRecord",
    "boot_sections",
]

MACHINE, VCPU, BOOT, PL011, GIC = "unicorn-machine", "unicorn-vcpu", "unicorn-boot", "pl011", "unicorn-gic"
BOOT_PART = "unicorn-boot-part"

Q_BYTES = 32 * 16
_MODES = (MODE_EL0t, MODE_EL1t, MODE_EL1h)
_MAX_SEGMENTS = 1024
_ZSTD_LEVEL = 3
_PART = 32 << 20  # bytes of a packed image in one section, which may have 64 MiB


class Registers(Record, frozen=True):
    """x0..x30, both stack pointers, PC, PSTATE as in SPSR_EL1, Q0..Q31 (16 bytes each), system registers by name."""

    x: list[int]
    sp_el0: int
    sp_el1: int
    pc: int
    pstate: int
    q: bytes
    system: dict[str, int]

    def check(self, section: Section, features: CpuFeatures) -> None:
        """Raises StreamError for what no guest at EL1 or EL0 can have."""
        if len(self.x) != 31 or len(self.q) != Q_BYTES:
            raise StreamError(f"section {section} has {len(self.x)} registers x0-x30, {len(self.q)} bytes of Q0-Q31")
        for name in self.system:
            if name not in REGISTERS:
                raise StreamError(f"section {section} has a system register {name[:40]!r}, which is not known here")
        words = {f"x{i}": value for i, value in enumerate(self.x)}
        words |= {"SP_EL0": self.sp_el0, "SP_EL1": self.sp_el1, "PC": self.pc, **self.system}
        for name, value in words.items():
            if not 0 <= value <= M64:
                raise StreamError(f"section {section} has {value} for {name}, which has 64 bits")
        for name in REGISTERS:
            if name not in self.system:
                raise StreamError(f"section {section} lacks the system register {name}")
        known = PSTATE_NZCV | PSTATE_SS | PSTATE_IL | PSTATE_BTYPE | PSTATE_DAIF | PSTATE_MODE
        known |= PSTATE_DIT * features.dit | PSTATE_UAO * features.uao
        known |= PSTATE_PAN * features.pan | PSTATE_SSBS * features.ssbs
        if self.pstate & ~known or self.pstate & PSTATE_MODE not in _MODES:
            raise StreamError(f"section {section} has PSTATE {self.pstate:#x}, which no guest of this machine can have")


class VcpuRecord(Record, frozen=True):
    """A vCPU.

    `state` is off, runnable, waiting (WFI, standby) or suspended (powered down).
    One that is to begin when its turn comes, and one that is suspended, has `entry` and `argument` (x0) instead of
    registers; one that is off has nothing. `last_vector` is the exception vector that it was sent to last.
    """

    state: str
    entry: int | None = None
    argument: int = 0
    registers: Registers | None = None
    last_vector: int | None = None


class MachineRecord(Record, frozen=True):
    """The machine; vCPUs are named by index.

    `queue` has those that can run, in turn; `early` those of them that stand there before their turn;
    `in_turn` tells whether the last slice went to another. `kicked` have to look for events.
    `counter` is what CNTVCT_EL0 goes on from. `schedule` is the state of the seeded scheduler, empty without
    a seed. `cpu` has the identification registers that the guest sees.
    """

    queue: list[int]
    early: list[int]
    in_turn: bool
    kicked: list[int]
    counter: int
    schedule: list[int]
    cpu: dict[str, int]


class GicCpuRecord(Record, frozen=True):
    """A PE's redistributor and CPU interface, by registers; `priorities` has a byte a private interrupt."""

    group: int
    enabled: int
    pending: int
    active: int
    priorities: bytes
    config: int
    waker: int
    pmr: int
    bpr: int
    eoi_mode: int
    group1: int
    active_priorities: int


class GicRecord(Record, frozen=True):
    """The interrupt controller: GICD_CTLR, and what each PE has."""

    control: int
    cpus: list[GicCpuRecord]


class Segment(Record, frozen=True):
    """How many bytes go to an address."""

    address: int
    size: int


class BootRecord(Record, frozen=True):
    """A guest's image. `content` is that of all segments in order, packed by zstd."""

    kind: str
    entry: int
    start: int
    end: int
    segments: list[Segment]
    content: bytes

    @classmethod
    def of(cls, image: GuestImage) -> BootRecord:
        segments = [Segment(address, len(content)) for address, content in image.segments]
        content = b"".join(content for _, content in image.segments)
        packed = zstandard.ZstdCompressor(level=_ZSTD_LEVEL).compress(content)
        return cls(image.kind, image.entry, image.start, image.end, segments, packed)

    def image(self, section: Section, ram_base: int, ram_end: int) -> GuestImage:
        """The image. Raises StreamError for what is damaged, or does not fit into RAM."""
        size = sum(segment.size for segment in self.segments)
        if (
            len(self.segments) > _MAX_SEGMENTS
            or not ram_base <= self.start <= self.entry < self.end <= ram_end
            or self.entry & 3
            or not all(part.size >= 0 and self.start <= part.address <= self.end - part.size for part in self.segments)
            or size > ram_end - ram_base
        ):
            raise StreamError(f"section {section} has an image that does not fit into this machine's RAM")
        try:
            # The header's word is what would be allocated.
            if zstandard.frame_content_size(self.content) != size:
                raise StreamError(f"section {section} has an image that is not as long as its segments")
            content = zstandard.ZstdDecompressor().decompress(self.content)
        except zstandard.ZstdError as error:
            raise StreamError(f"section {section} is damaged: {error}") from None
        segments, at = [], 0
        for part in self.segments:
            segments.append((part.address, content[at : at + part.size]))
            at += part.size
        return GuestImage(self.kind, segments, self.entry, self.start, self.end)


class BootPart(Record, frozen=True):
    """What comes after the `content` of a :class:`BootRecord`, or of the part before."""

    content: bytes


def boot_sections(record: BootRecord) -> list[Section]:
    """An image as sections, each of a size that a section may have."""
    first, *rest = [record.content[at : at + _PART] for at in range(0, len(record.content), _PART)] or [b""]
    parts = [pack(BOOT_PART, BootPart(content), index) for index, content in enumerate(rest)]
    return [pack(BOOT, msgspec.structs.replace(record, content=first)), *parts]


class Places:
    """Sections by name and instance. Raises StreamError for one without a place, twice, or missing."""

    def __init__(self, sections: Sequence[Section], vcpus: int, boot: bool) -> None:
        places = {(MACHINE, 0), (PL011, 0), (GIC, 0), *((VCPU, index) for index in range(vcpus))}
        if boot:
            places.add((BOOT, 0))
            places |= {(BOOT_PART, index) for index in range(sum(each.name == BOOT_PART for each in sections))}
        self._found: dict[tuple[str, int], Section] = {}
        for section in sections:
            place = (section.name, section.instance)
            if place not in places:
                raise StreamError(f"section {section} has no place in machine unicorn with {vcpus} vCPUs")
            if place in self._found:
                raise StreamError(f"section {section} is there twice")
            self._found[place] = section
        for name, instance in sorted(places - self._found.keys() - {(GIC, 0)}):
            raise StreamError(f"section {name!r} of instance {instance} is missing")

    def boot(self) -> BootRecord:
        """The image, from all of its parts. Raises StreamError."""
        record = unpack(self[BOOT], BootRecord)
        parts = sorted(section.instance for section in self._found.values() if section.name == BOOT_PART)
        content = [unpack(self[BOOT_PART, index], BootPart).content for index in parts]
        return msgspec.structs.replace(record, content=b"".join([record.content, *content]))

    def __contains__(self, name: str) -> bool:
        return (name, 0) in self._found

    def __getitem__(self, place: str | tuple[str, int]) -> Section:
        return self._found[place if isinstance(place, tuple) else (place, 0)]
