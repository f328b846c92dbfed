# SPDX-License-Identifier: Apache-2.0
"""What a stream can say of a guest of the embedded machine, and what moves of one that stands in an odd place."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import msgspec
import pytest
import zstandard

from sdeivirt.errors import StreamError
from sdeivirt.machine import ExitReason, MachineConfig
from sdeivirt.machine.base import RAM_BASE
from sdeivirt.machine.unicorn import UnicornMachine
from sdeivirt.machine.unicorn import state as parts
from sdeivirt.migration.sections import Record, Section, pack, unpack

from .asm import assemble
from .control_support import wait_until
from .machine_support import DEADLINE, Console
from .unicorn_moves import arrive, move, saved

pytestmark = pytest.mark.machine

# The MMU on, RAM one to one; then VBAR_EL1 is the end of the address space, so that every vector is behind it.
VECTORS_AT_THE_END = """
    ldr x0, =0x40100000
    ldr x1, =0x40000705
    str x1, [x0, #8]
    ldr x1, =0xff44
    msr mair_el1, x1
    ldr x1, =0x80803519
    movk x1, #2, lsl #32
    msr tcr_el1, x1
    msr ttbr0_el1, x0
    dsb sy
    isb
    mrs x0, sctlr_el1
    orr x0, x0, #1
    msr sctlr_el1, x0
    isb
    mov x0, #-32
    msr vbar_el1, x0
    isb
    svc #0
    b .
"""

WAITS = """
    say 'R'
    say 10
    wfi
    say 'W'
    say 10
    off
"""

# Writes a page after the other, and says so when it has written 64.
WRITES = """
    say 'R'
    say 10
    ldr x1, =0x40200000
    mov x2, #64
1:  str x2, [x1]
    add x1, x1, #0x1000
    subs x2, x2, #1
    b.ne 1b
    say 'W'
    say 10
    off
"""


@contextmanager
def running(body: str) -> Iterator[tuple[UnicornMachine, Console]]:
    with UnicornMachine(MachineConfig(vcpus=1, memory=8 << 20)) as machine:
        console = Console(machine)
        machine.load(assemble(body))
        yield machine, console


def changed(sections: list[Section], name: str, kind: type[Record], **fields: object) -> list[Section]:
    """The sections with one of them changed."""
    return [
        pack(name, msgspec.structs.replace(unpack(each, kind), **fields), each.instance) if each.name == name else each
        for each in sections
    ]


def test_vectors_at_the_end_of_the_address_space_are_behind_it() -> None:
    """64 bits, and no more: the guest takes an abort where the vector is, and that is its own affair."""
    with running(VECTORS_AT_THE_END) as (machine, _):
        machine.start()
        outcome = machine.wait(DEADLINE)
        assert outcome.reason is ExitReason.FAULT
        assert "pc 0x1e0" in outcome.faults[0].reason


def test_vectors_at_the_end_come_in_a_stream_too() -> None:
    with running("    say 'R'\n    say 10\n    b .\n") as (machine, console):
        machine.start()
        console.shows("R\n")
        sections = saved(machine)
        vcpu = unpack(next(each for each in sections if each.name == parts.VCPU), parts.VcpuRecord)
        assert vcpu.registers is not None
        system = {**vcpu.registers.system, "VBAR_EL1": (1 << 64) - 32, "SCTLR_EL1": 0x30D0_0801, "TCR_EL1": 0x80_0080}
        registers = msgspec.structs.replace(vcpu.registers, system=system)
        with UnicornMachine(machine.config) as there:
            arrive(there, changed(sections, parts.VCPU, parts.VcpuRecord, registers=registers), machine.memory())
            there.resume()
            outcome = there.wait(DEADLINE)
            assert outcome.reason is ExitReason.FAULT
            assert "pc 0x1e0" in outcome.faults[0].reason


@pytest.mark.parametrize("field", ["kicked", "early"])
def test_a_vcpu_that_is_named_twice_is_refused(field: str) -> None:
    """As bits of a number two would be the next vCPU, which may not even be there."""
    with running("    say 'R'\n    say 10\n    b .\n") as (machine, console):
        machine.start()
        console.shows("R\n")
        sections = saved(machine)
        with UnicornMachine(machine.config) as there, pytest.raises(StreamError, match="of a vCPU twice"):
            arrive(there, changed(sections, parts.MACHINE, parts.MachineRecord, **{field: [0, 0]}), machine.memory())
        with UnicornMachine(machine.config) as there:
            arrive(there, changed(sections, parts.MACHINE, parts.MachineRecord, **{field: [0]}), machine.memory())


def test_a_kick_that_nobody_has_looked_at_moves() -> None:
    """It wakes a vCPU that waits, whatever it was for."""
    with running(WAITS) as (machine, console):
        machine.start()
        console.shows("R\n")
        wait_until(lambda: machine.vcpus[0].state.value == "waiting", "it does not wait")
        machine.pause()
        with move(machine) as there:
            there.resume()
            there.pause()
            assert there.vcpus[0].state.value == "waiting", "nobody has kicked it"
        machine.kick(1)
        with move(machine) as there:
            arrived = Console(there)
            there.resume()
            assert there.wait(DEADLINE).reason is ExitReason.POWER_OFF
            assert arrived.text == "W\n"


def test_a_vcpu_that_is_held_up_moves_and_goes_on() -> None:
    """One that begins to write pages faster than it may is out of turn for a while; there is no limit there."""
    with running(WRITES) as (machine, console):
        machine.limit_dirtying(1)
        machine.start()
        machine.start_dirty_log()
        console.shows("R\n")
        wait_until(lambda: machine.turns.held, "it writes as fast as it likes")
        machine.pause()
        assert machine.turns.held
        with move(machine) as there:
            arrived = Console(there)
            there.resume()
            assert there.wait(DEADLINE).reason is ExitReason.POWER_OFF
            assert arrived.text == "W\n"


def image(content: bytes, sizes: list[int]) -> parts.BootRecord:
    """An image of so many bytes in segments one after the other, and what is said to be in them."""
    segments, at = [], RAM_BASE
    for size in sizes:
        segments.append(parts.Segment(at, size))
        at += size
    packed = zstandard.ZstdCompressor().compress(content)
    return parts.BootRecord("elf", RAM_BASE, RAM_BASE, RAM_BASE + 0x10000, segments, packed)


def test_an_image_that_is_longer_than_its_segments_is_refused_before_it_is_unpacked() -> None:
    section = Section(parts.BOOT, 0, 1, b"")
    end = RAM_BASE + (8 << 20)
    assert image(bytes(300), [100, 200]).image(section, RAM_BASE, end).segments == [
        (RAM_BASE, bytes(100)),
        (RAM_BASE + 100, bytes(200)),
    ]
    for content in (bytes(64 << 20), bytes(301), bytes(299), b""):
        with pytest.raises(StreamError, match="not as long as its segments"):
            image(content, [100, 200]).image(section, RAM_BASE, end)
