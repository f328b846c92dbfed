# SPDX-License-Identifier: Apache-2.0
"""From a machine that stands still to sections, and back: see state.py for what they hold."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ...cpu import M64
from ...errors import ImageError, StateError, StreamError
from ...migration.foreign import printable
from ...migration.sections import Section, pack, unpack
from ...sdei.model import bits
from ...smccc.psci import Power
from ..base import RAM_BASE
from ..images import GuestImage
from . import state
from .state import BootRecord, MachineRecord, Places, VcpuRecord
from .traps import identification
from .vcpu import UnicornVcpu, VcpuState

if TYPE_CHECKING:
    from .machine import UnicornMachine

__all__ = ["load", "save"]


def save(machine: UnicornMachine) -> list[Section]:
    """All sections of a machine. Raises StateError where it does not stand still, or cannot be written down."""
    if machine.state != "paused":
        raise StateError(f"the state of a machine that is {machine.state} cannot be saved", "pause it first")
    machine.gic.take_pulses()
    sections = [pack(state.MACHINE, _save_machine(machine)), pack(state.PL011, machine.uart.save())]
    sections += [pack(state.VCPU, _save_vcpu(vcpu), vcpu.pe.index) for vcpu in machine.vcpus]
    if machine.gic.touched:
        sections.append(pack(state.GIC, machine.gic.save()))
    if machine.boot is not None:
        sections += state.boot_sections(machine.boot)
    return sections


def _save_machine(machine: UnicornMachine) -> MachineRecord:
    turns = machine.turns
    return MachineRecord(
        queue=[vcpu.pe.index for vcpu in (*turns.queue, *turns.held)],
        early=list(bits(turns.early)),
        in_turn=turns.in_turn,
        kicked=list(bits(machine.pending_kicks())),
        counter=machine.counter,
        schedule=machine.schedule.state(),
        cpu=identification(machine.any_engine()),
    )


def _save_vcpu(vcpu: UnicornVcpu) -> VcpuRecord:
    doing = vcpu.state.value
    if vcpu.state is VcpuState.OFF:
        return VcpuRecord(doing)
    if vcpu.pending is not None:
        entry, argument = vcpu.pending
        return VcpuRecord(doing, entry, argument)
    last = vcpu.last_vector if vcpu.last_vector >= 0 else None
    return VcpuRecord(doing, registers=vcpu.registers(), last_vector=last)


def load(machine: UnicornMachine, sections: Sequence[Section]) -> None:
    """Make a machine that has not run what the sections say; its firmware has been loaded. Raises StreamError."""
    places = Places(sections, len(machine.vcpus), boot=machine.config.restart)
    whole = unpack(places[state.MACHINE], MachineRecord)
    vcpus = []
    for vcpu in machine.vcpus:
        section = places[state.VCPU, vcpu.pe.index]
        record = unpack(section, VcpuRecord)
        _check_vcpu(machine, vcpu, section, record)
        vcpus.append(record)
    _check_machine(machine, places[state.MACHINE], whole, vcpus)
    if machine.config.restart:
        machine.remember(*_boot(machine, places))
    machine.uart.load(places[state.PL011])
    if state.GIC in places:
        machine.gic.load(places[state.GIC])
    try:
        machine.schedule.restore(whole.schedule)
    except ValueError as error:
        raise StreamError(f"section {places[state.MACHINE]} {error}") from None
    for vcpu, record in zip(machine.vcpus, vcpus, strict=True):
        _load_vcpu(vcpu, record)
    turns = machine.turns
    turns.queue.extend(machine.vcpus[index] for index in whole.queue)
    turns.early = sum(1 << index for index in whole.early)
    turns.in_turn = whole.in_turn
    machine.come_from(whole.counter, sum(1 << index for index in whole.kicked))


def _boot(machine: UnicornMachine, places: Places) -> tuple[GuestImage, BootRecord]:
    section, record = places[state.BOOT], places.boot()
    image = record.image(section, RAM_BASE, RAM_BASE + machine.ram_size)
    try:
        image.place(len(machine.devicetree()), RAM_BASE, RAM_BASE + machine.ram_size)
    except ImageError as error:
        raise StreamError(f"section {section} has an image that cannot start: {error.message}") from None
    return image, record


def _check_machine(machine: UnicornMachine, section: Section, whole: MachineRecord, vcpus: list[VcpuRecord]) -> None:
    runnable = [index for index, record in enumerate(vcpus) if record.state == VcpuState.RUNNABLE.value]
    if sorted(whole.queue) != runnable:
        raise StreamError(f"section {section} has a queue of {whole.queue[:8]}, where {runnable[:8]} can run")
    early, kicked = set(whole.early), set(whole.kicked)
    if len(early) < len(whole.early) or len(kicked) < len(whole.kicked):  # as bits, two would be another's
        raise StreamError(f"section {section} has a turn or a kick of a vCPU twice")
    if not early <= set(runnable) or not kicked <= set(range(len(vcpus))):
        raise StreamError(f"section {section} has a turn or a kick of vCPUs that there are not")
    if not 0 <= whole.counter <= M64:
        raise StreamError(f"section {section} has a counter of {whole.counter}, which has 64 bits")
    ours = identification(machine.any_engine())
    for name in sorted(ours.keys() | whole.cpu.keys()):
        if ours.get(name) != whole.cpu.get(name):
            raise StreamError(
                f"the guest's CPU has {whole.cpu.get(name, 0):#x} in {printable(name, 40)}, "
                f"and this one {ours.get(name, 0):#x}",
                "use the same version of Unicorn on both sides",
            )


def _check_vcpu(machine: UnicornMachine, vcpu: UnicornVcpu, section: Section, record: VcpuRecord) -> None:
    """What a vCPU does, what there is of it, and what the firmware says of its power have to agree."""
    power = machine.firmware.psci.power[vcpu.pe.index]
    begins, runs = record.entry is not None, record.registers is not None
    suspended = vcpu.pe.suspended
    possible = {
        VcpuState.OFF.value: not begins and not runs and power is Power.OFF,
        VcpuState.RUNNABLE.value: begins != runs
        and power is (Power.ON_PENDING if begins and not suspended else Power.ON),
        VcpuState.WAITING.value: runs and not begins and power is Power.ON,
        VcpuState.SUSPENDED.value: begins and not runs and power is Power.ON and suspended,
    }
    if not possible.get(record.state, False):
        raise StreamError(
            f"section {section} has a vCPU that is {record.state[:20]!r}, "
            f"{'with' if runs else 'without'} registers, {'with' if begins else 'without'} an entry point, "
            f"and PSCI has it {power.name.lower()}"
        )
    if record.entry is not None and (record.entry & 3 or not machine.in_ram(record.entry)):
        raise StreamError(f"section {section} has a vCPU that begins at {record.entry:#x}, where no guest can begin")
    if not 0 <= record.argument <= M64 or not (record.last_vector is None or 0 <= record.last_vector <= M64):
        raise StreamError(f"section {section} has an argument or a vector of more than 64 bits")
    if record.registers is not None:
        record.registers.check(section, vcpu.pe.features)


def _load_vcpu(vcpu: UnicornVcpu, record: VcpuRecord) -> None:
    if record.entry is not None:
        vcpu.start(record.entry, record.argument)
    if record.registers is not None:
        vcpu.set_registers(record.registers)
        vcpu.last_vector = record.last_vector if record.last_vector is not None else -1
    vcpu.state = VcpuState(record.state)
