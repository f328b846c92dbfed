# SPDX-License-Identifier: Apache-2.0
"""The guest `tasks` whose pages are taken away: tasks wait for them, others run meanwhile, and results are the same."""

from __future__ import annotations

import random
import struct

import pytest

from sdeivirt.machine import open_machine
from sdeivirt.machine.base import PAGE_SIZE, RAM_BASE, Machine
from sdeivirt.migration.detour import HeldInjections

from .asyncpf_support import WAKE_ALL
from .control_support import wait_until
from .machine_support import KINDS
from .pages_support import Store
from .test_tasks import ASYNC, Lines, Tasks, checksums

pytestmark = pytest.mark.machine

WORK = "mem=4 comp=1 pages=24 passes=2 spin=200 cspin=3000000 walk=random"
_M64 = 1 << 64
_STEP = 0x9E37_79B9_7F4A_7C15  # what the guest adds from word to word when it fills a page


def working_set(machine: Machine) -> list[int]:
    """The pages that tasks walk over."""
    ram = machine.memory()
    pairs = ((page, *struct.unpack_from("<QQ", ram, page * PAGE_SIZE)) for page in range(len(ram) // PAGE_SIZE))
    return [page for page, first, second in pairs if (second - first) % _M64 == _STEP]


@pytest.fixture(scope="module")
def expected() -> list[str]:
    return checksums("unicorn", f"{WORK} async=off", vcpus=1)


def takes_all(guest: Tasks, delay: float) -> tuple[list[str], dict[str, str]]:
    """One run that finds no page of its working set: the checksums, and the summary."""
    guest.console.shows("ready\n")
    pages = working_set(guest.machine)
    assert len(pages) == 96
    with Store(guest.machine, delay) as store:
        assert store.take(pages) == 96
        threads, summary = guest.run()
    assert guest.machine.absent_count == 0
    assert guest.machine.demand_figures().faults > 64  # a random walk does not come to each
    return [thread["checksum"] for thread in threads], summary


@pytest.mark.parametrize("vcpus", [1, 2])
@pytest.mark.parametrize("mode", ASYNC)
@pytest.mark.parametrize("kind", KINDS)
def test_results_are_those_with_all_pages(kind: str, mode: str, vcpus: int, expected: list[str]) -> None:
    with Tasks(kind, f"{WORK} {mode}", vcpus=vcpus) as guest:
        sums, summary = takes_all(guest, 0.002)
        assert sums == expected
        told = int(summary["told"])
        if mode == "async=off":
            assert told == 0
        else:
            assert told > 24
            assert told >= int(summary["blocked"]) > 0
            assert guest.machine.demand_figures().told == told
            assert int(summary["woken"]) + int(summary["early"]) <= told + int(summary["wake-all"])
        # Void for the guest, not for the host: by a wake-all seen with the first fault, or refused as its page came.
        assert int(summary["unknown"]) <= int(summary["wake-all"]) + int(summary["refused"])
        assert all(pe.async_pf is None or not pe.async_pf.outstanding for pe in guest.machine.firmware.pes)
        guest.end()


@pytest.mark.parametrize("mode", ["async=sdei ring=1 refuse=1", "async=ppi ring=0 refuse=1"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_guest_with_nothing_else_to_run_refuses(kind: str, mode: str) -> None:
    work = "mem=1 comp=0 pages=24 passes=1 spin=100"
    with Tasks(kind, f"{work} {mode}", vcpus=1) as guest:
        guest.console.shows("ready\n")
        with Store(guest.machine, 0.002) as store:
            store.take(working_set(guest.machine))
            _, summary = guest.run()
        assert int(summary["refused"]) >= 20
        assert summary["blocked"] == "0"
        guest.end()


@pytest.mark.parametrize("mode", ASYNC[1:])
@pytest.mark.parametrize("kind", KINDS)
def test_pages_that_go_again_and_again(kind: str, mode: str, expected: list[str]) -> None:
    """Anything may be taken: code, stacks and control blocks of the kernel as well."""
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    with Tasks(kind, f"{WORK} {mode}", vcpus=2) as guest:
        guest.console.shows("ready\n")
        ram = guest.machine.memory()
        used = [page for page in range(len(ram) // PAGE_SIZE) if any(ram[page * PAGE_SIZE : (page + 1) * PAGE_SIZE])]
        with Store(guest.machine, 0.0002) as store:
            store.take(used)
            guest.machine.type_in(b"g")
            for _ in range(60):
                store.take_some(used, chance, 16)
            guest.console.shows("summary run=1 ")
        assert [line for line in expected if line not in guest.console.text] == []
        guest.runs = 1
        guest.end()


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_guest_is_told_on_its_arrival_is_not_lost(kind: str, expected: list[str]) -> None:
    """No page is there when its state comes, not even those with the control blocks."""
    with Tasks(kind, f"{WORK} async=ppi ring=1 refuse=0", vcpus=2) as guest:
        guest.console.shows("ready\n")
        here = guest.machine
        here.pause()
        sections, ram = here.save_state(HeldInjections()), bytes(here.memory())
        with open_machine(kind, here.config) as there:
            console = Lines(there)
            there.start_incoming()
            there.standing().result()
            with Store(there, 0.002) as store:
                pages = {page: ram[page * PAGE_SIZE : (page + 1) * PAGE_SIZE] for page in range(len(ram) // PAGE_SIZE)}
                store.gets(pages)
                store.held = set(pages)
                there.lack_pages(bytearray(b"\1" * len(pages)), store)
                there.load_state(sections)
                store.release()
                # The pages with the control blocks are wanted by the host itself.
                wait_until(lambda: not any(pe.async_pf and pe.async_pf.ready for pe in there.firmware.pes))
                there.resume()
                there.type_in(b"g")
                console.shows_line("summary run=1 ")
            assert [line for line in expected if line not in console.text] == []
            for pe in there.firmware.pes:
                state = pe.async_pf
                assert state is not None
                block = state.address - RAM_BASE
                assert 2 <= state.head < 128  # with those of the first ENABLE and of the move, and it did not go round
                ring = struct.unpack_from(f"<{state.head}I", there.memory(), block + 64)
                assert WAKE_ALL == ring[0] == ring[1]
                assert all(ring)


def test_a_seeded_machine_is_told_at_the_same_instruction() -> None:
    """Which page comes when is the host's doing, so all are held until nothing can run any more."""
    traces = []
    for _ in range(2):
        with Tasks("unicorn", f"{WORK} async=sdei ring=1 refuse=0 comp=0", vcpus=1, seed=7) as guest:
            guest.console.shows("ready\n")
            pages = working_set(guest.machine)
            with Store(guest.machine) as store:
                store.held = set(pages)
                store.take(pages)
                guest.machine.type_in(b"g")
                store.waits_for(4)
                traces.append(sorted(store.wanted))
                store.release()
                guest.console.shows_line("summary run=1 ")
            guest.runs = 1
            guest.end()
    assert traces[0] == traces[1]
