# SPDX-License-Identifier: Apache-2.0
"""The guest `mover` where it stays: what it checks, that it notices, and that the host's books and its own agree.

Its moves are in other tests; these say that a failure there is one of the move.
"""

from __future__ import annotations

import itertools
import random
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from elftools.elf.elffile import ELFFile

from sdeivirt.guests import guest_path
from sdeivirt.machine import ExitReason, MachineConfig, open_machine
from sdeivirt.machine.base import RAM_BASE
from sdeivirt.machine.report import VmStatus
from sdeivirt.machine.unicorn import UnicornMachine
from sdeivirt.machine.unicorn.binding import arm64_const
from sdeivirt.sdei.model import Frame, Handler
from sdeivirt.sdei.service import Sdei
from sdeivirt.sdei.states import State

from .control_support import wait_until
from .machine_support import KINDS, Console
from .mover_support import (
    EVENTS,
    LOAD_EVENTS,
    SCENES,
    Beat,
    Injector,
    Mover,
    Row,
    asked_for,
    check_counts,
    check_scene,
    parse_scenes,
)

pytestmark = [pytest.mark.machine]

INJECTIONS = 1500
SHARED_NORMAL = 0x4000_0020
PAGE = 4096
PAGES = 256  # of a CPU's arena
WINDOW = range(0x40_0020_0000, 0x40_0030_0000)  # guests/mover/mover.h


# -- scenes


@pytest.fixture(scope="module")
def scenes() -> dict[str, list[Row]]:
    with open_machine("unicorn", MachineConfig(bootargs="case=list")) as machine:
        console = Console(machine)
        machine.load(guest_path("mover"))
        machine.start()
        assert machine.wait(30).reason is ExitReason.POWER_OFF
        return parse_scenes(console.text)


def test_scenes_show_every_cell(scenes: dict[str, list[Row]]) -> None:
    assert list(scenes) == [f"cells.{n}" for n in range(1, SCENES + 1)]
    rows = list(itertools.chain.from_iterable(scenes.values()))
    # What is unregistered, or about to be, cannot be pending.
    cells = {"reg", "reG", "reGp", "rEG", "rEGp", "REG", "REGp", "ReG", "ReGp", "Reg"}
    for kind in ("private-normal", "private-critical", "shared-normal", "shared-critical"):
        assert {row.cell for row in rows if row.kind == kind} == cells, kind
    assert {row.cell for row in rows if row.kind == "bound-private"} >= {
        "reg",
        "reG",
        "reGp",
        "rEG",
        "rEGp",
        "REGp",
        "Reg",
    }
    assert {row.cell for row in rows if row.kind == "bound-shared"} >= {"rEGp", "ReGp"}
    assert {row.where for row in rows} == {
        *("idle", "masked", "regs", "user", "off", "asleep", "asleep-masked", "waiting")
    }
    nested = {
        (outer.kind, outer.state, inner.kind, inner.state)
        for scene in scenes.values()
        for outer, inner in itertools.permutations(scene, 2)
        if outer.pe == inner.pe
        and outer.state.startswith("R")
        and inner.state.startswith("R")
        and inner.kind.endswith("critical")
    }
    assert len(nested) >= 12
    assert ("private-normal", "REG", "shared-critical", "REG") in nested
    assert ("shared-normal", "REG", "private-critical", "REG") in nested


@pytest.mark.process
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("number", range(1, SCENES + 1))
def test_scene(runtime: Path, scenes: dict[str, list[Row]], kind: str, number: int) -> None:
    name = f"cells.{number}"
    with Mover(runtime, kind, f"case={name}") as mover:
        mover.until("MOVER holds")
        with mover.client() as client:
            check_scene(scenes[name], client.status())
            # Nothing moves as long as it holds: every event is where it will be looked for.
            assert client.status().events == client.status().events
        mover.type_in("g")
        mover.ended()


# -- the load


@pytest.mark.process
@pytest.mark.parametrize("kind", KINDS)
def test_load_counts_what_was_injected(runtime: Path, kind: str) -> None:
    with Mover(runtime, kind, "case=load mib=1 rate=64 signals=1") as mover:
        mover.until("MOVER runs")
        with Injector(lambda: mover.name, random.randrange(1 << 32)) as injector:
            injector.reaches(INJECTIONS // 2)
            before = mover.beat()
            injector.reaches(INJECTIONS)
        status, beat = mover.settle()
        beat.goes_on_from(before)
        expect_exact(status, beat, injector.injected)
        assert {number for number, _ in LOAD_EVENTS} == set(beat.events[0])
        assert min(cpu["signals"] for cpu in beat.cpus) > 0
        assert beat.cpus[3]["el0"] > 0
        # The host's coalesced ones, and those that CPUs have raised on top of each other.
        coalesced = sum(h.coalesced for event in status.events for h in event.handlers)
        assert injector.coalesced <= coalesced
        mover.quit()


def expect_exact(status: VmStatus, beat: Beat, injected: Counter[tuple[int, int | None]]) -> None:
    """Were any one of the counts different by one, it would have been found."""
    check_counts(status, beat, injected)
    for e, event in enumerate(status.events):
        for h, handler in enumerate(event.handlers):
            for count in ("injected", "coalesced", "dropped", "delivered", "completed") if handler.registered else ():
                wrong = replace(handler, **{count: getattr(handler, count) + 1})
                handlers = [*event.handlers[:h], wrong, *event.handlers[h + 1 :]]
                events = [*status.events[:e], replace(event, handlers=handlers), *status.events[e + 1 :]]
                with pytest.raises(AssertionError):
                    check_counts(replace(status, events=events), beat, injected)
    for key in injected:
        with pytest.raises(AssertionError):
            check_counts(status, beat, injected + Counter([key]))
    for cpu, number in itertools.product(range(len(beat.events)), beat.events[0]):
        counts = [dict(events) for events in beat.events]
        counts[cpu][number] += 1
        with pytest.raises(AssertionError):
            check_counts(status, replace(beat, events=counts), injected)


def test_beats_go_on() -> None:
    cpu = "written=1 passes=1 rounds=2a el0=0 signals=0"
    line = f"MOVER beat 2 cpu=0 {cpu} 0=5 40000011=b cpu=1 {cpu} 0=0 40000011=0"
    beat = Beat.parse(line)
    assert (beat.number, beat.events, beat.cpus[1]["rounds"]) == (
        *(2, [{0: 5, 0x4000_0011: 11}, {0: 0, 0x4000_0011: 0}], 42),
    )
    earlier = line.replace("beat 2", "beat 1").replace("2a", "29")
    beat.goes_on_from(Beat.parse(earlier))
    for wrong in (earlier.replace("0=5", "0=6"), earlier.replace("29", "2a"), line.replace("2a", "29")):
        with pytest.raises(AssertionError):
            beat.goes_on_from(Beat.parse(wrong))


# -- what would be a move's fault is noticed


@pytest.fixture
def guest() -> Iterator[tuple[UnicornMachine, Console]]:
    """A load on two vCPUs, whose slices are counted, so that :func:`between_slices` can look at any place."""
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    config = MachineConfig(vcpus=2, memory=16 << 20, bootargs="mib=1", events=EVENTS, seed=seed)
    with open_machine("unicorn", config) as machine:
        assert isinstance(machine, UnicornMachine)
        console = Console(machine)
        machine.load(guest_path("mover"))
        machine.start()
        console.shows("MOVER runs")
        yield machine, console


def between_slices(machine: UnicornMachine, action: Callable[[int, int], bool]) -> None:
    """Call the action with vCPU and PC, on the machine's thread while nothing runs, until it says that it is done."""

    def on_slice(vcpu: int, pc: int) -> None:
        if action(vcpu, pc):
            machine.on_slice = None

    machine.on_slice = on_slice


def arena_pages(ram: memoryview) -> list[int]:
    """Offsets of the arenas' pages: each begins with the address it is used by, the window's in the last arena."""
    found = []
    for offset in range(0, len(ram), PAGE):
        address = int.from_bytes(ram[offset : offset + 8], "little")
        generation = int.from_bytes(ram[offset + 8 : offset + 16], "little")
        if generation and (address == RAM_BASE + offset or address in WINDOW):
            found.append(offset)
    return found


def flip(ram: memoryview, page: int, _other: int, choice: random.Random) -> None:
    ram[page + choice.randrange(16, PAGE)] ^= 1 << choice.randrange(8)


def clear(ram: memoryview, page: int, _other: int, _choice: random.Random) -> None:
    ram[page : page + PAGE] = bytes(PAGE)


def half(ram: memoryview, page: int, other: int, _choice: random.Random) -> None:
    """One half of it is of another page: as if the guest had written while it was copied."""
    ram[page + PAGE // 2 : page + PAGE] = ram[other + PAGE // 2 : other + PAGE]


def misplace(ram: memoryview, page: int, other: int, _choice: random.Random) -> None:
    ram[page : page + PAGE] = ram[other : other + PAGE]


@pytest.mark.parametrize(
    ("damage", "says"),
    [(flip, "it is torn"), (clear, "it is all zeroes"), (half, "it is torn"), (misplace, "it is another page")],
)
def test_damaged_memory_is_noticed(
    guest: tuple[UnicornMachine, Console],
    damage: Callable[[memoryview, int, int, random.Random], None],
    says: str,
) -> None:
    machine, console = guest
    choice = random.Random(machine.config.seed)

    def act(_vcpu: int, _pc: int) -> bool:
        pages = arena_pages(machine.memory())
        # One that a CPU is writing now would be whole again.
        if len(pages) != 2 * PAGES:
            return False
        page, other = choice.sample(pages, 2)
        damage(machine.memory(), page, other, choice)
        return True

    between_slices(machine, act)
    console.shows("Result: FAILED")
    assert "MOVER FAILED CPU#" in console.text
    assert says in console.text


def test_a_page_of_another_time_is_noticed(guest: tuple[UnicornMachine, Console]) -> None:
    """What a migration makes of a page when it misses that the guest wrote to it."""
    machine, console = guest
    ram = machine.memory()
    machine.pause()
    page = arena_pages(ram)[PAGES // 2]
    old = bytes(ram[page : page + PAGE])
    machine.resume()

    def act(_vcpu: int, _pc: int) -> bool:
        if ram[page : page + PAGE] == old:
            return False
        ram[page : page + PAGE] = old
        return True

    between_slices(machine, act)
    console.shows("Result: FAILED")
    # Or half of that time, if the page was being written.
    assert "it is of another time" in console.text or "it is torn" in console.text


@pytest.mark.parametrize(
    ("register", "says"),
    [
        *((f"X{n}", f"register x{n} ") for n in (0, 2, 3, 17, 18, 27, 28, 30)),
        *((f"Q{n}", f"register Q{n} ") for n in (0, 31)),
        *((name, f"register {name} ") for name in ("FPCR", "NZCV")),
        *((name, f"register {name.lower()} ") for name in ("TPIDR_EL0", "TPIDRRO_EL0")),
    ],
)
def test_a_changed_register_is_noticed(guest: tuple[UnicornMachine, Console], register: str, says: str) -> None:
    machine, console = guest
    # In the part of the rounds in which it is kept.
    part = "el1_high" if register in ("X0", "X2") else "el1_low"
    begin, end = symbol(part), symbol(f"{part}_end")
    number = getattr(arm64_const, f"UC_ARM64_REG_{register}")

    def act(vcpu: int, pc: int) -> bool:
        if vcpu or not begin <= pc < end:
            return False
        engine = machine.vcpus[0].engine
        engine.set(number, engine.get(number) ^ (1 << 31 if register == "NZCV" else 1 << 22))
        return False  # again: the other part may need that register before anybody has looked

    between_slices(machine, act)
    console.shows("Result: FAILED")
    assert f"MOVER FAILED CPU#0: {says}" in console.text


def symbol(name: str) -> int:
    with guest_path("mover").open("rb") as file:
        table: Any = ELFFile(file).get_section_by_name(".symtab")
        (found,) = table.get_symbol_by_name(name)
        return int(found["st_value"])


def frame(sdei: Sdei, vcpu: int) -> Frame:
    found = sdei.pes[vcpu].frame
    assert found is not None
    return found


def pending(sdei: Sdei, number: int, vcpu: int) -> Handler:
    return sdei.pes[vcpu].handlers[sdei.event(number).index]


def lose_event(sdei: Sdei) -> None:
    sdei.delivery.drop(pending(sdei, 4 + 0x4000_0010, 0))


def double_event(sdei: Sdei) -> None:
    sdei.delivery.post(pending(sdei, 3 + 0x4000_0010, 0))


def lose_registration(sdei: Sdei) -> None:
    sdei.delivery.change(pending(sdei, 1 + 0x4000_0010, 0), State.UNREGISTERED)


def enable(sdei: Sdei) -> None:
    sdei.delivery.change(pending(sdei, 1 + 0x4000_0010, 0), State.ENABLED)


def unmask(sdei: Sdei) -> None:
    sdei.pes[0].masked = False
    sdei.delivery.refresh(sdei.pes[0])


def change_argument(sdei: Sdei) -> None:
    pending(sdei, 4 + 0x4000_0010, 0).argument ^= 0x1000_0000


def lose_relative(sdei: Sdei) -> None:
    pending(sdei, 4 + 0x4000_0010, 3).relative = False


def change_context(sdei: Sdei) -> None:
    saved = bytearray(frame(sdei, 1).saved)
    saved[5 * 8] ^= 1  # x5
    frame(sdei, 1).saved = bytes(saved)


def change_outer_context(sdei: Sdei) -> None:
    outer = sdei.pes[3].normal
    assert outer is not None
    saved = bytearray(outer.saved)
    saved[17 * 8 + 7] ^= 0x80  # x17
    outer.saved = bytes(saved)


def route_elsewhere(sdei: Sdei) -> None:
    sdei.event(SHARED_NORMAL + 2).handler.target = sdei.pes[2]


def bind_elsewhere(sdei: Sdei) -> None:
    event = sdei.bindings.bound.pop(20)
    event.interrupt = 25
    sdei.bindings.bound[25] = event


@pytest.mark.parametrize(
    ("number", "change"),
    [
        *((1, change) for change in (lose_event, double_event, lose_registration, enable, unmask, change_argument)),
        *((1, change) for change in (change_context, change_outer_context)),
        *((2, lose_relative), (5, route_elsewhere), (8, bind_elsewhere)),
    ],
)
def test_a_changed_state_is_noticed(number: int, change: Callable[[Sdei], None]) -> None:
    """Of the SDEI service, while a scene holds."""
    config = MachineConfig(vcpus=4, memory=16 << 20, bootargs=f"case=cells.{number} patience=1", events=EVENTS)
    with open_machine("unicorn", config) as machine:
        console = Console(machine)
        machine.load(guest_path("mover"))
        machine.start()
        answered = 0

        def holds() -> bool:
            nonlocal answered
            for event, vcpu in asked_for(console.text)[answered:]:
                machine.inject(event, vcpu)
                answered += 1
                machine.type_in(b"y")
            return "MOVER holds" in console.text

        wait_until(holds, console.text)
        machine.pause()
        with machine.lock:
            change(machine.firmware.sdei)
        machine.resume()
        machine.kick(machine.firmware.take_kicks())
        machine.type_in(b"g")
        console.shows("Result: FAILED")
        assert "MOVER FAILED" in console.text
