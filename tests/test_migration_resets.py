# SPDX-License-Identifier: Apache-2.0
"""A guest that resets itself while it is being moved, or paused, or both: what arrives is what it is after that."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from sdeivirt.machine import Machine
from sdeivirt.machine.base import PAGE_SIZE
from sdeivirt.machine.qemu import QemuMachine
from sdeivirt.migration.channel import parse_uri
from sdeivirt.migration.messages import Failure, Kind, Ready
from sdeivirt.migration.ram import PageDecoder
from sdeivirt.migration.source import Outgoing, SourceOptions
from sdeivirt.migration.status import Progress
from sdeivirt.migration.wire import RefusedError, Wire

from .control_support import wait_until
from .machine_support import KINDS, NEEDS_QEMU, Console, boot
from .source_support import moved

pytestmark = pytest.mark.machine

ON_QEMU = [NEEDS_QEMU, pytest.mark.qemu]
MEMORY = 16 << 20
NOISE = 8 << 20  # where there is something that a reset takes away; more than any socket has room for
RESETS_ITSELF = """
    take_event handler
    say 'U'
    say 10
    b .
handler:
    call SYSTEM_RESET
"""


@contextmanager
def guest(kind: str) -> Iterator[tuple[Machine, Callable[[], None]]]:
    """A guest that resets itself for event 0, and writes nothing; what has it do so and waits until it is up again."""
    with boot(kind, RESETS_ITSELF, memory=MEMORY) as machine:
        console = Console(machine)
        machine.start()
        console.shows("U\n")
        ups = 1

        def reset() -> None:
            nonlocal ups
            ups += 1
            machine.inject(0, 0)
            console.shows("U\n" * ups)

        yield machine, reset


@pytest.mark.parametrize("kind", KINDS)
def test_ram_that_arrives_is_that_after_the_reset(kind: str, tmp_path: Path) -> None:
    """The reset falls in the midst of the first pass, as nobody reads what is sent."""
    with guest(kind) as (machine, reset):
        machine.memory()[NOISE:] = os.urandom(MEMORY - NOISE)
        there = bytearray(MEMORY)

        def receive(wire: Wire) -> None:
            wire.say(Kind.READY, Ready())
            decoder = PageDecoder(memoryview(there), fresh=True)
            passes = 0
            while (frame := wire.next()).kind != b"END ":
                if frame.kind in (b"PAGE", b"ZERO"):
                    decoder.apply(frame)
                    if frame.kind == b"PAGE" and not passes and decoder.stats.plain and ups.count(1) == 0:
                        ups.append(1)
                        reset()
                passes += frame.kind == b"PASS"
            assert passes > 1
            assert ups
            wire.say(Kind.FAILURE, Failure("enough"))

        ups: list[int] = []
        status = moved(machine, receive, tmp_path)
        assert status.status == "failed"
        assert "enough" in status.error
        now = machine.memory()
        pages = range(0, MEMORY, PAGE_SIZE)
        assert not [page for page in pages if there[page : page + PAGE_SIZE] != now[page : page + PAGE_SIZE]]
        assert not any(now[NOISE:]), "it was no reset"
        reset()


@pytest.mark.parametrize("kind", [pytest.param("qemu", marks=ON_QEMU)])
def test_state_that_was_sent_early_is_not_that_of_another_qemu(kind: str, tmp_path: Path) -> None:
    """A reset after that ends the migration, and the guest goes on here."""
    with guest(kind) as (machine, reset):

        def receive(wire: Wire) -> None:
            wire.say(Kind.READY, Ready(stands=False))
            while True:
                frame = wire.next()
                if frame.kind == Kind.EARLY and not len(frame.payload):
                    break
            reset()
            wire.say(Kind.READY, Ready())
            with pytest.raises(RefusedError, match="was reset after some of its state had been sent"):
                read_all(wire)

        assert moved(machine, receive, tmp_path).status == "failed"
        assert machine.state == "running"
        reset()

        def take_all(wire: Wire) -> None:
            wire.say(Kind.READY, Ready(stands=False))
            ready = False
            while (frame := wire.next()).kind != b"END ":
                if frame.kind == Kind.EARLY and not len(frame.payload):
                    wire.say(Kind.READY, Ready())
                    ready = True
            assert ready
            wire.say(Kind.FAILURE, Failure("enough"))

        assert "enough" in moved(machine, take_all, tmp_path).error


def read_all(wire: Wire) -> None:
    """Up to the end of the state."""
    while wire.next().kind != b"END ":
        pass


def pid(machine: Machine) -> int:
    return int(machine.details()["pid"])


@pytest.mark.parametrize("when", ["at once", "when the old QEMU is no more"])
@pytest.mark.parametrize("kind", [pytest.param("qemu", marks=ON_QEMU)])
def test_a_machine_that_is_paused_during_a_reset_stands_after_it(kind: str, when: str) -> None:
    with guest(kind) as (machine, _):
        assert isinstance(machine, QemuMachine)
        console = Console(machine)
        for turn in range(1, 4):
            before = pid(machine)
            machine.reset()
            if when != "at once":
                wait_until(lambda: not Path(f"/proc/{before}").exists(), "QEMU does not end")  # noqa: B023
            machine.pause()
            assert machine.state == "paused"
            assert pid(machine) != before
            machine.resume()
            console.shows("U\n" * turn)
            assert machine.state == "running"
        reset_by_itself = console.text.count("U")
        machine.inject(0, 0)
        console.shows("U\n" * (reset_by_itself + 1))


@pytest.mark.parametrize("kind", [pytest.param("qemu", marks=ON_QEMU)])
def test_a_machine_is_saved_although_it_is_being_reset(kind: str, tmp_path: Path) -> None:
    with guest(kind) as (machine, _):
        assert isinstance(machine, QemuMachine)
        console = Console(machine)
        machine.reset()
        progress = Progress()
        options = SourceOptions(stop_first=True, stay=True)
        Outgoing(machine, parse_uri(f"file:{tmp_path}/saved"), options, progress).run()
        assert (progress.now.status, progress.now.error) == ("completed", "")
        assert machine.state == "running"
        console.shows("U\n")


@pytest.mark.parametrize("kind", KINDS)
def test_a_guest_can_be_reset_and_moved_again_and_again(kind: str, tmp_path: Path) -> None:
    """The log that is on when the guest resets itself notes everything once, and nothing after that."""
    with guest(kind) as (machine, reset):
        machine.start_dirty_log()
        for _ in range(2):
            machine.collect_dirty()
            reset()
            assert machine.collect_dirty().count(1) == MEMORY // PAGE_SIZE
            machine.collect_dirty()  # what was collected before it ran counts once more
            assert not machine.collect_dirty().count(1)
        machine.stop_dirty_log()
