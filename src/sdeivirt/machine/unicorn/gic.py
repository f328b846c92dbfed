# SPDX-License-Identifier: Apache-2.0
"""The interrupt controller: a GICv3 with the private interrupts of each PE. Arm IHI 0069.

One security state (GICD_CTLR.DS), affinity routing, no LPIs. What makes
interrupts pending is the guest (SGIs, ISPENDR) and the host (:meth:`Gic.pulse`);
all of them are edges. Group 1 comes as IRQ; group 0 would be a FIQ, and is not
signalled. Of shared interrupts only those exist that raise SDEI events: their
registers read as zero, and a write that makes one pending raises its event.

QEMU virt's map: the distributor, and redistributors side by side, those beyond
the first 123 in a second region above RAM.

A PE's state is used on the machine's thread alone. `signals` has a bit for each
PE to which the controller signals an interrupt; that is all the machine looks at.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

from ...errors import StreamError
from ...migration.sections import Section, unpack
from ...sdei.events import is_spi
from ...sdei.model import bits
from .state import GicCpuRecord, GicRecord

if TYPE_CHECKING:
    from .machine import UnicornMachine

__all__ = [
    "EOI_MODE",
    "GICD_BASE",
    "GICD_SIZE",
    "GICR_BASE",
    "PRIVATE",
    "REDISTRIBUTORS",
    "SPURIOUS",
    "Gic",
    "PrivateInterrupts",
    "regions",
]

GICD_BASE, GICD_SIZE = 0x0800_0000, 0x1_0000
GICR_BASE, GICR_STRIDE = 0x080A_0000, 0x2_0000
GICR_HIGH = 0x40_0000_0000
REDISTRIBUTORS = 123  # in the first region: there the serial port begins
PRIVATE = 32  # SGIs 0..15, PPIs 16..31
SPURIOUS = 1023
IDLE = 0x100  # the running priority where no interrupt is active: below all others

_M32 = 0xFFFF_FFFF
_PRIORITY = 0xF8  # five bits of priority
_LOWEST_BPR, _HIGHEST_BPR = 3, 7  # with the lowest, all of it counts for preemption
EOI_MODE = 1 << 1  # of ICC_CTLR_EL1
_SPI_WORDS = 8  # 256 shared interrupts
_ARM = 0x43B  # the implementer

# Registers of the distributor, Arm IHI 0069 12.9
_CTLR = 0x0000
_GROUP1 = 1 << 1
_ARE_DS = 1 << 4 | 1 << 6
_CTLR_WRITABLE = 3
_ARCH_REV_3 = 0x3B
_A3V, _ID_BITS = 1 << 24, 15 << 19
_ISPENDR, _ICPENDR = 0x0200, 0x0280
# and of a redistributor, 12.11; those of the interrupts stand in its second frame
_PRIORITIES = range(0x1_0400, 0x1_0400 + PRIVATE)
_LAST = 1 << 4
_SLEEP, _ASLEEP = 1 << 1, 1 << 2
_EDGES = 0xAAAA_AAAA


def regions(vcpus: int) -> list[tuple[int, int]]:
    """Where the redistributors are: address and size of each region."""
    low = min(vcpus, REDISTRIBUTORS)
    high = [(GICR_HIGH, (vcpus - low) * GICR_STRIDE)] if vcpus > low else []
    return [(GICR_BASE, low * GICR_STRIDE), *high]


class PrivateInterrupts:
    """A PE's redistributor and CPU interface. Words have a bit for each of the 32 interrupts."""

    def __init__(self, index: int, typer: int) -> None:
        self.index = index
        self.bit = 1 << index
        self.typer = typer
        self.reset()

    def reset(self) -> None:
        """As after power-up of the machine."""
        self.group = self.enabled = self.pending = self.active = 0
        self.priorities = bytearray(PRIVATE)
        self.config = 0  # GICR_ICFGR1: remembered, and without effect
        self.waker = _SLEEP | _ASLEEP
        self.reset_interface()

    def reset_interface(self) -> None:
        """The PE is turned on: its CPU interface is, the redistributor stays as it was."""
        self.pmr = self.eoi_mode = self.group1 = 0
        self.bpr = _LOWEST_BPR
        self.active_priorities = 0  # ICC_AP1R0_EL1: a bit for each of 32 priorities

    @property
    def touched(self) -> bool:
        """Whether it is not as after reset any more."""
        return self.save() != PrivateInterrupts(self.index, self.typer).save()

    def save(self) -> GicCpuRecord:
        """All that moves."""
        fields = {name: getattr(self, name) for name in GicCpuRecord.__struct_fields__}
        return GicCpuRecord(**{**fields, "priorities": bytes(self.priorities)})

    def load(self, section: Section, record: GicCpuRecord) -> None:
        """What :meth:`save` gave. Raises StreamError for what no PE can have."""
        words = (record.group, record.enabled, record.pending, record.active, record.active_priorities)
        if (
            not all(0 <= word <= _M32 for word in words)
            or len(record.priorities) != PRIVATE
            or any(priority & ~_PRIORITY for priority in (*record.priorities, record.pmr))
            or record.config & ~_EDGES
            or record.waker not in (0, _SLEEP | _ASLEEP)
            or not _LOWEST_BPR <= record.bpr <= _HIGHEST_BPR
            or record.eoi_mode not in (0, EOI_MODE)
            or record.group1 not in (0, 1)
        ):
            raise StreamError(f"section {section} has interrupts of vCPU {self.index} that cannot be")
        for name in GicCpuRecord.__struct_fields__:
            setattr(self, name, getattr(record, name))
        self.priorities = bytearray(record.priorities)

    def highest(self) -> int:
        """The INTID that is most urgent of those that are pending, enabled and in group 1, or SPURIOUS."""
        candidates = self.pending & self.enabled & self.group & ~self.active
        if not candidates & candidates - 1:  # one at most
            return candidates.bit_length() - 1 if candidates else SPURIOUS
        return min(bits(candidates), key=lambda intid: (self.priorities[intid], intid))

    @property
    def running(self) -> int:
        """The priority of what runs, as ICC_RPR_EL1 has it; IDLE where nothing does."""
        active = self.active_priorities
        return ((active & -active).bit_length() - 1) << 3 if active else IDLE

    def group_priority(self, intid: int) -> int:
        """The part of an interrupt's priority that counts for preemption."""
        return self.priorities[intid] & (0xFF << self.bpr) & 0xFF

    def may_signal(self, intid: int) -> bool:
        """Whether an interrupt is urgent enough for the PE."""
        return intid != SPURIOUS and self.priorities[intid] < self.pmr and self.group_priority(intid) < self.running


class Gic:
    """All of the controller. `machine` is asked for SDEI's interrupts and told whom to stop."""

    def __init__(self, machine: UnicornMachine) -> None:
        self._machine = machine
        self._sdei = machine.firmware.sdei
        pes = machine.firmware.pes
        last = {min(len(pes), REDISTRIBUTORS) - 1, len(pes) - 1}
        self.cpus = [
            PrivateInterrupts(pe.index, pe.affinity << 32 | pe.index << 8 | (_LAST if pe.index in last else 0))
            for pe in pes
        ]
        self.by_affinity = {pe.affinity: self.cpus[pe.index] for pe in pes}
        self.control = 0  # GICD_CTLR: groups that are on
        self.signals = 0
        self._pulses: deque[tuple[int, int]] = deque()  # (vCPU, INTID), appended by any thread

    def reset(self) -> None:
        """PSCI SYSTEM_RESET."""
        self.control = self.signals = 0
        self._pulses.clear()
        for cpu in self.cpus:
            cpu.reset()

    @property
    def touched(self) -> bool:
        """Whether anything is not as after reset."""
        return bool(self.control) or any(cpu.touched for cpu in self.cpus)

    def save(self) -> GicRecord:
        """All that moves; what came by :meth:`pulse` has been taken."""
        return GicRecord(self.control, [cpu.save() for cpu in self.cpus])

    def load(self, section: Section) -> None:
        """What :meth:`save` gave, of a guest that comes. Raises StreamError."""
        record = unpack(section, GicRecord)
        if len(record.cpus) != len(self.cpus) or record.control & ~_CTLR_WRITABLE:
            raise StreamError(f"section {section} has an interrupt controller that cannot be")
        self.control = record.control
        for cpu, saved in zip(self.cpus, record.cpus, strict=True):
            cpu.load(section, saved)
            self.changed(cpu)

    @property
    def group1(self) -> bool:
        """Whether the distributor forwards group 1."""
        return bool(self.control & _GROUP1)

    # -- what becomes pending

    def pulse(self, vcpu: int, intid: int) -> None:
        """An edge of a private interrupt. From any thread; then the vCPU is to be kicked."""
        self._pulses.append((vcpu, intid))

    def take_pulses(self) -> None:
        """Have what came by :meth:`pulse` pending. No vCPU runs."""
        while self._pulses:
            vcpu, intid = self._pulses.popleft()
            self.pend(self.cpus[vcpu], 1 << intid)

    def pend(self, cpu: PrivateInterrupts, intids: int) -> None:
        """Have private interrupts of a PE pending: those that raise SDEI events do that instead."""
        if self._sdei.bindings.any:
            for intid in bits(intids):
                if self._event(intid, cpu.index):
                    intids &= ~(1 << intid)
        cpu.pending |= intids
        self.changed(cpu)

    def _event(self, intid: int, vcpu: int) -> bool:
        """Raise the event of an interrupt that is SDEI's; False if it is not."""
        machine = self._machine
        with machine.lock:
            taken = self._sdei.interrupt(intid, vcpu)
            kicks = machine.firmware.take_kicks()
        if kicks:
            machine.kick(kicks)
        return taken

    def changed(self, cpu: PrivateInterrupts) -> None:
        """Anything about a PE's interrupts is different: signal one to it, or none."""
        if not (cpu.group1 and self.group1 and cpu.may_signal(cpu.highest())):
            if self.signals & cpu.bit:
                self.signals &= ~cpu.bit
                self._machine.signal_gone(cpu.index)
        elif not self.signals & cpu.bit:
            self.signals |= cpu.bit
            self._machine.signalled(cpu.bit)

    def power_up(self, index: int) -> None:
        """A PE begins to run."""
        self.cpus[index].reset_interface()
        self.changed(self.cpus[index])

    # -- memory-mapped registers: accesses come as bytes or words, larger ones in words

    def distributor(self) -> tuple[Callable[[int, int], int], Callable[[int, int, int], None]]:
        """How a PE reads and writes the distributor."""
        return self._read_distributor, self._write_distributor

    def redistributors(self, first: int) -> tuple[Callable[[int, int], int], Callable[[int, int, int], None]]:
        """The same for the region of redistributors that begins with PE `first`'s."""

        def read(offset: int, size: int) -> int:
            frame, register = offset % GICR_STRIDE, offset & 3
            word = self._read_frame(self.cpus[first + offset // GICR_STRIDE], frame & ~3)
            return word >> 8 * register & (1 << 8 * size) - 1

        def write(offset: int, size: int, value: int) -> None:
            self._write_frame(self.cpus[first + offset // GICR_STRIDE], offset % GICR_STRIDE, size, value)

        return read, write

    def _read_distributor(self, offset: int, size: int) -> int:
        word = 0
        match offset & ~3:
            case 0x0000:  # GICD_CTLR
                word = self.control | _ARE_DS
            case 0x0004:  # GICD_TYPER
                word = _A3V | _ID_BITS | _SPI_WORDS
            case 0x0008:  # GICD_IIDR
                word = _ARM
            case 0xFFE8:  # GICD_PIDR2
                word = _ARCH_REV_3
        return word >> 8 * (offset & 3) & (1 << 8 * size) - 1

    def _write_distributor(self, offset: int, size: int, value: int) -> None:
        if size != 4 or offset & 3:
            return
        if offset == _CTLR:
            self.control = value & _CTLR_WRITABLE
            for cpu in self.cpus:
                self.changed(cpu)
        elif _ISPENDR < offset < _ICPENDR and self._sdei.bindings.any:
            first = (offset - _ISPENDR) * 8
            for bit in bits(value):
                if is_spi(first + bit):
                    self._event(first + bit, 0)

    def _read_frame(self, cpu: PrivateInterrupts, offset: int) -> int:
        """A word of a redistributor, Arm IHI 0069 12.11."""
        if offset in _PRIORITIES:
            return int.from_bytes(cpu.priorities[offset & 0x1F : (offset & 0x1F) + 4], "little")
        match offset:
            case 0x0004:  # GICR_IIDR
                return _ARM
            case 0x0008:  # GICR_TYPER
                return cpu.typer & _M32
            case 0x000C:
                return cpu.typer >> 32
            case 0x0014:  # GICR_WAKER
                return cpu.waker
            case 0xFFE8:  # GICR_PIDR2
                return _ARCH_REV_3
            case 0x10080:  # GICR_IGROUPR0
                return cpu.group
            case 0x10100 | 0x10180:  # GICR_ISENABLER0, GICR_ICENABLER0
                return cpu.enabled
            case 0x10200 | 0x10280:  # GICR_ISPENDR0, GICR_ICPENDR0
                return cpu.pending
            case 0x10300 | 0x10380:  # GICR_ISACTIVER0, GICR_ICACTIVER0
                return cpu.active
            case 0x10C00:  # GICR_ICFGR0: SGIs are edges
                return _EDGES
            case 0x10C04:  # GICR_ICFGR1
                return cpu.config
        return 0

    def _write_frame(self, cpu: PrivateInterrupts, offset: int, size: int, value: int) -> None:
        """A write to a redistributor. What is not a word, only priorities take."""
        if offset in _PRIORITIES:
            for i in range(size):
                cpu.priorities[(offset + i) % PRIVATE] = value >> 8 * i & _PRIORITY
        elif size != 4:
            return
        else:
            match offset:
                case 0x0014:  # GICR_WAKER
                    cpu.waker = _SLEEP | _ASLEEP if value & _SLEEP else 0
                case 0x10080:  # GICR_IGROUPR0
                    cpu.group = value
                case 0x10100:  # GICR_ISENABLER0, and so on
                    cpu.enabled |= value
                case 0x10180:
                    cpu.enabled &= ~value
                case 0x10200:
                    self.pend(cpu, value)
                case 0x10280:
                    cpu.pending &= ~value
                case 0x10300:
                    cpu.active |= value
                case 0x10380:
                    cpu.active &= ~value
                case 0x10C04:  # GICR_ICFGR1
                    cpu.config = value & _EDGES
        self.changed(cpu)
