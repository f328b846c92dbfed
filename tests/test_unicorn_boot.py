# SPDX-License-Identifier: Apache-2.0
"""A guest's image moves with it for its resets, also one that is larger than a section of a stream may be."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from sdeivirt.errors import StreamError
from sdeivirt.machine import MachineConfig
from sdeivirt.machine.unicorn import UnicornMachine, state
from sdeivirt.migration.frames import KINDS
from sdeivirt.migration.sections import Section
from sdeivirt.migration.stream import FrameWriter

from .asm import assemble
from .control_support import wait_until
from .unicorn_moves import arrive, saved

pytestmark = pytest.mark.machine

# It starts again and again, and wipes out what it was made of.
RESETS = """
    say 'A'
    say 10
    adr x0, wiped
    str xzr, [x0]
    mov x0, #0x1000000
1:  subs x0, x0, #1
    b.ne 1b
    call SYSTEM_RESET
    .balign 8
wiped:
    .quad 1
"""


@pytest.fixture
def pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Images are sent in pieces of 20 bytes."""
    monkeypatch.setattr(state, "_PART", 20)


def sections_of(guest: Path) -> tuple[MachineConfig, list[Section], bytes]:
    """A guest that is running, written down."""
    config = MachineConfig(vcpus=1, memory=2 << 20)
    with UnicornMachine(config) as machine:
        printed = bytearray()
        machine.console = printed.extend
        machine.load(guest)
        machine.start()
        wait_until(lambda: printed)
        return config, saved(machine), bytes(machine.memory())


def test_an_image_in_parts_starts_again(pieces: None) -> None:
    config, sections, ram = sections_of(assemble(RESETS))
    assert sum(section.name == state.BOOT_PART for section in sections) >= 2
    with UnicornMachine(config) as there:
        printed = bytearray()
        there.console = printed.extend
        arrive(there, sections, memoryview(ram))
        there.resume()
        wait_until(lambda: printed.count(b"A") >= 2)
        again = saved(there)
    assert [each.data for each in again if "boot" in each.name] == [
        each.data for each in sections if "boot" in each.name
    ]


@pytest.mark.parametrize("instance", [0, 1])
def test_a_part_that_is_missing_is_noticed(pieces: None, instance: int) -> None:
    config, sections, ram = sections_of(assemble(RESETS))
    left = [each for each in sections if (each.name, each.instance) != (state.BOOT_PART, instance)]
    assert len(left) == len(sections) - 1
    with UnicornMachine(config) as there, pytest.raises(StreamError, match="unicorn-boot"):
        arrive(there, left, memoryview(ram))


def test_no_part_is_too_large_for_a_frame() -> None:
    content = os.urandom(KINDS[b"SECT"].longest + 1)
    parts = state.boot_sections(state.BootRecord("ELF", 0, 0, 0, [], content))
    writer = FrameWriter()
    for part in parts:
        writer.section(part)  # raises for one that is
    assert len(state.boot_sections(state.BootRecord("ELF", 0, 0, 0, [], content[:1000]))) == 1
    places = [*parts, Section(state.MACHINE, 0, 1, b""), Section(state.PL011, 0, 1, b"")]
    assert state.Places(places, vcpus=0, boot=True).boot().content == content
