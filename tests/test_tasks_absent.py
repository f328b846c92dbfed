# SPDX-License-Identifier: Apache-2.0
"""The guest `tasks` whose pages are taken away: tasks wait for them, others run meanwhile, and results are the same."""

from __future__ import annotations

import random
import struct

import pytest

from sdeivirt.machine.base import PAGE_SIZE, Machine

from .machine_support import KINDS
from .pages_support import Store
from .test_tasks import ASYNC, Tasks, checksums

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
