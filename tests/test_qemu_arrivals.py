# SPDX-License-Identifier: Apache-2.0
"""What a stream can say of a machine qemu, and what becomes of a guest whose kick was lost on the way."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from sdeivirt.errors import StreamError
from sdeivirt.machine import MachineConfig, open_machine
from sdeivirt.machine.base import Machine
from sdeivirt.machine.qemu import QemuMachine, QemuOptions, layout
from sdeivirt.machine.qemu.layout import Global
from sdeivirt.machine.qemu.state import (
    MAX_INPUT,
    ConsoleState,
    DevicesState,
    GicState,
    MailboxState,
    MonitorState,
    read_monitor,
    read_state,
    this_machine,
)
from sdeivirt.migration.detour import HeldInjections
from sdeivirt.migration.sections import Record, Section, pack

from .machine_support import NEEDS_QEMU, Console, Until, boot

HERE = this_machine("7.2.22", MachineConfig(vcpus=2), QemuOptions())
MONITOR = MonitorState(
    b"\0" * layout.GLOBAL_PAGE, [0, 0, 256 << 30, 0, 0, 0, 0, 0, 0x800_0000, 0x80A_0000], 0x1000_0000
)
GIC = GicState([1 << 15, 0xFFFF_FFFF], [(1, 1)], [(20, 1, 0xA0), (32, 0, 0)], [(20, 1, -1), (32, 0, 1)], [(1019, 0)])


def sections(**changes: Record) -> list[Section]:
    """Those of a machine with two vCPUs."""
    parts: dict[str, Record] = {
        "qemu": HERE,
        "monitor": MONITOR,
        "gic": GIC,
        "serial": ConsoleState(b""),
        "devices": DevicesState(b"QEVM"),
        "vcpu0": MailboxState(bytes(layout.MAILBOX_SIZE)),
        "vcpu1": MailboxState(bytes(layout.MAILBOX_SIZE)),
    }
    packed = []
    for name, part in (parts | changes).items():
        kind, digit = (name[:-1], int(name[-1])) if name.startswith("vcpu") else (name, 0)
        packed.append(pack("qemu" if kind == "qemu" else f"qemu-{kind}", part, digit))
    return packed


def refused(why: str, **changes: Record) -> None:
    with pytest.raises(StreamError, match=why) as caught:
        read_state(sections(**changes), HERE)
    assert caught.value.message.isprintable()


def test_a_sound_state_is_read_as_it_is() -> None:
    state = read_state(sections(), HERE)
    assert (state.monitor, state.gic, state.devices.stream) == (MONITOR, GIC, b"QEVM")
    assert state.mailboxes == [bytes(layout.MAILBOX_SIZE)] * 2


@pytest.mark.parametrize("size", [0, 1, 8, layout.MAILBOX_SIZE - 8, layout.MAILBOX_SIZE + 8, 2 * layout.MAILBOX_SIZE])
@pytest.mark.parametrize("vcpu", [0, 1])
def test_a_mailbox_is_a_page(vcpu: int, size: int) -> None:
    """It is copied to where another vCPU's follows."""
    refused(f"the mailbox of vCPU {vcpu} has {size} bytes", **{f"vcpu{vcpu}": MailboxState(bytes(size))})


def words(**named: int) -> list[int]:
    changed = list(MONITOR.words)
    for name, value in named.items():
        changed[getattr(Global, name)] = value
    return changed


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"monitor": bytes(layout.GLOBAL_PAGE + 1)}, "the monitor has 61441 bytes"),
        ({"words": MONITOR.words[:-1]}, "the monitor knows 9 words"),
        ({"words": [*MONITOR.words, 0]}, "the monitor knows 11 words"),
        ({"words": words(FLAGS=-1)}, "more than 64 bits"),
        ({"bell": 0x4000_0000}, "no device at 0x40000000"),
        ({"bell": -1}, "there is no device at -0x1000"),
        ({"words": words(GICD=0x4000_0000)}, "no device at 0x40000000"),
        ({"words": words(GICR=0x80A_0001)}, "no device begins at 0x80a0001"),
        ({"words": words(BELL_CONFIG=0x4000_0000)}, "there is no PCI at 0x40000000"),
        ({"words": words(BELL_CONFIG=1 << 40)}, "there is no PCI at"),
        ({"words": words(BELL_CONFIG=8)}, "no PCI function begins at 0x8"),
    ],
)
def test_the_monitor_talks_to_devices_and_not_to_ram(change: dict[str, Any], why: str) -> None:
    monitor = msgspec.structs.replace(MONITOR, **change)
    refused(why, monitor=monitor)
    with pytest.raises(StreamError, match=why):
        read_monitor(pack("qemu-monitor", monitor))


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"private": [0]}, "it is of 1 vCPUs"),
        ({"private": [0] * 3}, "it is of 3 vCPUs"),
        ({"private": [0, 1 << 32]}, "are not 32 interrupts"),
        ({"private": [0, -1]}, "are not 32 interrupts"),
        ({"shared": [(1, 1 << 32)]}, "are not 32 interrupts"),
        ({"shared": [(0, 1)]}, "no shared interrupts from 0 on"),
        ({"shared": [(32, 1)]}, "no shared interrupts from 1024 on"),
        ({"shared": [(-1, 1)]}, "no shared interrupts from -32 on"),
        ({"priorities": [(1020, 0, 0)]}, "there is no interrupt 1020"),
        ({"priorities": [(-1, 0, 0)]}, "there is no interrupt -1"),
        ({"priorities": [(20, 2, 0)]}, "there is no vCPU 2"),
        ({"priorities": [(20, -1, 0)]}, "there is no vCPU -1"),
        ({"priorities": [(40, 1, 0)]}, "interrupt 40 is not one of vCPU 1"),
        ({"priorities": [(20, 1, 256)]}, "there is no priority 256"),
        ({"enabled": [(20, 1, 2)]}, "there is no vCPU 2"),
        ({"enabled": [(20, 1, -2)]}, "there is no vCPU -2"),
        ({"enabled": [(1 << 62, 1, 0)]}, "there is no interrupt"),
        ({"levels": [(20, 2)]}, "there is no vCPU 2"),
    ],
)
def test_interrupts_are_those_that_there_are(change: dict[str, Any], why: str) -> None:
    """They become addresses of registers."""
    refused(why, gic=msgspec.structs.replace(GIC, **change))


def test_input_is_what_a_machine_gives() -> None:
    refused("no room for", serial=ConsoleState(bytes(MAX_INPUT + 1)))
    assert len(read_state(sections(serial=ConsoleState(bytes(MAX_INPUT))), HERE).console.input) == MAX_INPUT


@pytest.mark.parametrize("change", [list[Section].pop, lambda found: found.append(found[0])])
def test_each_section_comes_once(change: Callable[[list[Section]], object]) -> None:
    found = sections()
    change(found)
    with pytest.raises(StreamError, match=r"is missing|comes twice"):
        read_state(found, HERE)


def test_what_another_machine_is_can_be_shown() -> None:
    refused(r"comes from QEMU 9\.\?\[2J", qemu=msgspec.structs.replace(HERE, version="9.\x1b[2J"))


# -- with QEMU

TAKES_EVENTS = """
    take_event handler
    say 'R'
    say 10
    wfi
    b .-4
handler:
    say 'H'
    say 10
    mov x1, #0
    call SDEI_COMPLETE
    b .
"""


def arrived(there: Machine, found: list[Section], ram: memoryview) -> None:
    there.start_incoming()
    there.standing().result()
    there.memory()[:] = ram
    there.load_state(found)


@pytest.mark.machine
@pytest.mark.qemu
@NEEDS_QEMU
def test_a_guest_takes_its_event_there_though_the_kick_for_it_was_lost() -> None:
    """Whoever has a guest looks once for what waits for each PE, so that nothing depends on what was on its way."""
    with boot("qemu", TAKES_EVENTS, memory=16 << 20) as here:
        assert isinstance(here, QemuMachine)
        console = Console(here)
        here.start()
        console.shows("R\n")
        here.pause()
        with here.lock:  # the injection of a host whose kick does not get to the interrupt controller
            here.firmware.sdei.inject(0, 0)
            assert here.firmware.take_kicks() == 1
        with open_machine("qemu", here.config) as there:
            output, until = Console(there), Until(there)
            arrived(there, here.save_state(HeldInjections()), here.memory())
            there.resume()
            until.reaches(1)
            output.shows("H\n")


@pytest.mark.machine
@pytest.mark.qemu
@NEEDS_QEMU
@pytest.mark.parametrize(("name", "data"), [("qemu-devices", b"no stream of QEMU's"), ("qemu-devices", b"")])
def test_a_stream_that_qemu_refuses_is_refused_in_its_words(name: str, data: bytes) -> None:
    with boot("qemu", TAKES_EVENTS, memory=16 << 20) as here:
        console = Console(here)
        here.start()
        console.shows("R\n")
        here.pause()
        found = here.save_state(HeldInjections())
        found = [pack(name, DevicesState(data)) if each.name == name else each for each in found]
        with open_machine("qemu", here.config) as there, pytest.raises(StreamError, match="does not take the state"):
            arrived(there, found, here.memory())
        here.keep_state()
        here.resume()
        here.inject(0, 0)
        console.shows("H\n")
