# SPDX-License-Identifier: Apache-2.0
"""What moves of this machine beyond RAM and the services: the records of its sections, and what they must be like.

    qemu            what both sides have to agree on: QEMU's version, the CPU model
    qemu-monitor    the EL2 monitor's code and what it knows of the machine
    qemu-vcpu       one a vCPU: its mailbox, with the EL2 stack
    qemu-gic        which interrupts are ours, and what they were before
    qemu-serial     input that the guest's serial port has not taken yet
    qemu-devices    QEMU's own stream, of its CPUs and devices

vCPUs may stand in the middle of the monitor, so it moves as it is. Whoever sends a
stream decides what the guest's EL2 does, and that is the guest's own affair:
what we take from there ourselves is checked here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ...errors import StreamError
from ...migration.foreign import printable
from ...migration.sections import Record, Section, pack, unpack
from ..base import PAGE_SIZE, RAM_BASE, MachineConfig
from . import layout
from .gic import FIRST_SPI, LAST_INTID
from .layout import Global
from .options import QemuOptions

__all__ = [
    "ConsoleState",
    "DevicesState",
    "GicState",
    "MachineState",
    "MailboxState",
    "MonitorState",
    "QemuState",
    "read_machine",
    "read_monitor",
    "read_state",
    "rehearse",
    "this_machine",
]

MAX_INPUT = 1 << 18  # bytes that wait for the guest's serial port


class MachineState(Record, frozen=True):
    """`version` is QEMU's, such as 7.2.22; `layout` that of the memory shared with the monitor."""

    version: str
    cpu: str
    vcpus: int
    memory: int
    stage2: bool
    layout: int


class MonitorState(Record, frozen=True):
    """`monitor` is its code, `words` its global page, `bell` the address of the doorbell's port."""

    monitor: bytes
    words: list[int]
    bell: int


class MailboxState(Record, frozen=True):
    """A page: the mailbox of a vCPU, with its stack at EL2."""

    page: bytes


class GicState(Record, frozen=True):
    """Interrupts that are ours.

    `private` has a bit for each of the 32 private interrupts of each vCPU, `shared` (word, bits) for the others,
    `priorities` (INTID, vCPU, what the guest had given it), `enabled` (INTID, vCPU, where it is enabled or -1) and
    `levels` (INTID, vCPU) those that are no edges.
    """

    private: list[int]
    shared: list[tuple[int, int]]
    priorities: list[tuple[int, int, int]]
    enabled: list[tuple[int, int, int]]
    levels: list[tuple[int, int]]


class ConsoleState(Record, frozen=True):
    """Input for the serial port."""

    input: bytes


class DevicesState(Record, frozen=True):
    """QEMU's own stream."""

    stream: bytes


@dataclass(frozen=True, slots=True)
class QemuState:
    """All of it, read and checked."""

    monitor: MonitorState
    mailboxes: list[bytes]
    gic: GicState
    console: ConsoleState
    devices: DevicesState


def this_machine(version: str, config: MachineConfig, options: QemuOptions) -> MachineState:
    """What a machine is, for the other side to compare."""
    return MachineState(version, options.cpu, config.vcpus, config.memory, options.stage2, layout.LAYOUT_VERSION)


def read_state(sections: Sequence[Section], here: MachineState) -> QemuState:
    """The sections of a machine as this one can take them over.

    Raises StreamError for what is missing, doubled, out of bounds or of another machine.
    """
    found = _once_each(sections, here.vcpus)
    read_machine(found["qemu", 0], here)
    monitor = read_monitor(found["qemu-monitor", 0])
    mailboxes = [unpack(found["qemu-vcpu", i], MailboxState).page for i in range(here.vcpus)]
    for i, page in enumerate(mailboxes):
        _check("qemu-vcpu", len(page) == layout.MAILBOX_SIZE, f"the mailbox of vCPU {i} has {len(page)} bytes")
    gic = unpack(found["qemu-gic", 0], GicState)
    _check_gic(gic, here.vcpus)
    console = unpack(found["qemu-serial", 0], ConsoleState)
    _check("qemu-serial", len(console.input) <= MAX_INPUT, f"there is no room for {len(console.input)} bytes of input")
    return QemuState(monitor, mailboxes, gic, console, unpack(found["qemu-devices", 0], DevicesState))


def read_machine(section: Section, here: MachineState) -> None:
    """Section `qemu`, of a machine like this one. Raises StreamError."""
    _check_same(unpack(section, MachineState), here)


def read_monitor(section: Section) -> MonitorState:
    """Section `qemu-monitor`. Raises StreamError."""
    monitor = unpack(section, MonitorState)
    _check_monitor(monitor)
    return monitor


def rehearse() -> None:
    """Read records of each kind. The first time takes as long as many others, and no guest waits for it now."""
    for record in (MailboxState(b""), GicState([], [(0, 0)], [(0, 0, 0)], [], []), ConsoleState(b"")):
        unpack(pack("qemu", record), type(record))


def _once_each(sections: Sequence[Section], vcpus: int) -> dict[tuple[str, int], Section]:
    wanted = [(name, 0) for name in ("qemu", "qemu-monitor", "qemu-gic", "qemu-serial", "qemu-devices")]
    wanted += [("qemu-vcpu", i) for i in range(vcpus)]
    found: dict[tuple[str, int], Section] = {}
    for section in sections:
        key = section.name, section.instance
        if key in found:
            raise StreamError(f"section {section} comes twice")
        found[key] = section
    if ("qemu", 0) in found and unpack(found["qemu", 0], MachineState).vcpus != vcpus:
        theirs = unpack(found["qemu", 0], MachineState).vcpus  # says more than that sections are missing
        raise StreamError(f"the guest has {theirs} vCPUs, and this machine {vcpus}", f"start it with --vcpus {theirs}")
    for key in wanted:
        if key not in found:
            raise StreamError(f"section {key[0]!r} of instance {key[1]} is missing", "was it another kind of machine?")
    for key in found.keys() - set(wanted):
        raise StreamError(f"section {found[key]} is none of machine qemu's", "load it with a newer sdeivirt")
    return found


def _check(section: str, condition: bool, what: str) -> None:
    if not condition:
        raise StreamError(f"section {section!r} cannot be: {what}")


def _check_same(there: MachineState, here: MachineState) -> None:
    """QEMU itself refuses what differs, but not with a sentence, and by its end."""
    if _minor(there.version) != _minor(here.version):
        raise StreamError(
            f"the guest comes from QEMU {printable(there.version, 40)}, and this is QEMU {here.version}",
            "both sides need the same version: machine virt is another one in each, up to the second number",
        )
    if there.layout != here.layout:
        raise StreamError(
            f"the guest's EL2 monitor has version {there.layout} of its layout, and this sdeivirt {here.layout}",
            "use the same version of sdeivirt on both sides",
        )
    if there.cpu != here.cpu:
        raise StreamError(f"the guest has the CPU {there.cpu!r}, and this machine {here.cpu!r}", "use the same --cpu")
    if there.memory != here.memory:
        raise StreamError(
            f"the guest has {there.memory >> 20} MiB of RAM, and this machine {here.memory >> 20}",
            f"start it with --memory {there.memory >> 20}M",
        )
    if there.stage2 != here.stage2:
        raise StreamError("only one of the two machines has stage 2", "use it on both sides")


def _minor(version: str) -> list[str]:
    return version.split(".")[:2]


def _check_monitor(state: MonitorState) -> None:
    section = "qemu-monitor"
    _check(section, len(state.monitor) <= layout.GLOBAL_PAGE, f"the monitor has {len(state.monitor)} bytes")
    _check(section, len(state.words) == Global.COUNT, f"the monitor knows {len(state.words)} words")
    _check(section, all(0 <= word < 1 << 64 for word in state.words), "a word has more than 64 bits")
    function = state.words[Global.BELL_CONFIG]
    devices = [state.bell & -PAGE_SIZE, state.words[Global.GICD], state.words[Global.GICR]]
    for address in devices:
        _check(section, 0 <= address < RAM_BASE, f"there is no device at {address:#x}")
        _check(section, not address % PAGE_SIZE, f"no device begins at {address:#x}")
    _check(section, not function % PAGE_SIZE, f"no PCI function begins at {function:#x}")
    _check(section, function < RAM_BASE or 256 << 30 <= function < 1 << 40, f"there is no PCI at {function:#x}")


def _check_gic(state: GicState, vcpus: int) -> None:
    section = "qemu-gic"
    _check(section, len(state.private) == vcpus, f"it is of {len(state.private)} vCPUs")
    for bits in [*state.private, *(bits for _, bits in state.shared)]:
        _check(section, 0 <= bits < 1 << 32, f"{bits:#x} are not 32 interrupts")
    for word, _ in state.shared:
        _check(section, 1 <= word <= LAST_INTID // 32, f"there are no shared interrupts from {word * 32} on")
    for key in [*state.priorities, *state.enabled, *state.levels]:
        intid, vcpu = key[0], key[1]
        _check(section, 0 <= intid <= LAST_INTID, f"there is no interrupt {intid}")
        _check(section, 0 <= vcpu < vcpus, f"there is no vCPU {vcpu}")
        _check(section, intid < FIRST_SPI or not vcpu, f"interrupt {intid} is not one of vCPU {vcpu}")
    for *_, priority in state.priorities:
        _check(section, 0 <= priority < 256, f"there is no priority {priority}")
    for *_, where in state.enabled:
        _check(section, -1 <= where < vcpus, f"there is no vCPU {where}")
