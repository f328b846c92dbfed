# SPDX-License-Identifier: Apache-2.0
"""The guest `tasks` where all pages are here: scheduling, interrupts between PEs, EL0, and results that are fixed."""

from __future__ import annotations

import re
from io import BytesIO
from pathlib import Path

import pytest
from elftools.elf.elffile import ELFFile
from elftools.elf.sections import SymbolTableSection

from sdeivirt.errors import UsageError
from sdeivirt.guests import guest_path
from sdeivirt.machine import ExitReason, MachineConfig, open_machine
from sdeivirt.machine.base import RAM_BASE, Machine
from sdeivirt.machine.unicorn import UnicornMachine

from .machine_support import DEADLINE, KINDS, Console, engine

pytestmark = pytest.mark.machine

WORK = "mem=3 comp=2 pages=40 passes=3 spin=20 cspin=200000"
WALKS = ("walk=seq", "walk=random", "walk=rw-mix write=40")
ASYNC = ("async=off", "async=sdei ring=0", "async=sdei ring=1", "async=ppi ring=0", "async=ppi ring=1 refuse=0")


class Lines(Console):
    """Waits for whole lines."""

    def shows_line(self, start: str) -> None:
        def there() -> bool:
            return "\n" in self.text.partition(start)[2]

        with self._condition:
            assert self._condition.wait_for(there, DEADLINE), self.text


class Tasks:
    """The guest on a machine."""

    def __init__(self, kind: str, bootargs: str, vcpus: int = 2, seed: int | None = None) -> None:
        config = MachineConfig(bootargs=bootargs, vcpus=vcpus, memory=32 << 20, engine=engine(kind), seed=seed)
        self.machine: Machine = open_machine(kind, config)
        self.console = Lines(self.machine)
        self.machine.load(guest_path("tasks"))
        self.machine.start()
        self.runs = 0

    def run(self) -> tuple[list[dict[str, str]], dict[str, str]]:
        """The work once: what it says of each thread, and the summary."""
        self.console.shows("ready\n")
        self.machine.type_in(b"g")
        self.runs += 1
        summary = f"summary run={self.runs} "
        self.console.shows_line(summary)
        lines = self.console.text.splitlines()
        at = next(i for i, line in enumerate(lines) if line.startswith(summary))
        threads: list[dict[str, str]] = []
        while lines[at - 1 - len(threads)].startswith("thread="):
            threads.append(words(lines[at - 1 - len(threads)]))
        return threads[::-1], words(lines[at])

    def end(self) -> None:
        self.machine.type_in(b"q")
        outcome = self.machine.wait(20)
        assert (outcome.reason, outcome.faults) == (ExitReason.POWER_OFF, [])
        assert "Result: OK" in self.console.text

    def __enter__(self) -> Tasks:
        return self

    def __exit__(self, *_error: object) -> None:
        self.machine.close()


def words(line: str) -> dict[str, str]:
    return dict(re.findall(r"([\w-]+)=(\S+)", line))


def checksums(kind: str, bootargs: str, vcpus: int = 2, seed: int | None = None) -> list[str]:
    with Tasks(kind, bootargs, vcpus, seed) as guest:
        threads, _ = guest.run()
        guest.end()
        return [thread["checksum"] for thread in threads]


@pytest.fixture(scope="module")
def expected() -> dict[str, list[str]]:
    """The results of each walk, on the embedded machine and one CPU."""
    return {walk: checksums("unicorn", f"{WORK} {walk} async=off", vcpus=1) for walk in WALKS}


def test_each_walk_and_each_thread_has_a_result_of_its_own(expected: dict[str, list[str]]) -> None:
    memory = [sum_ for sums in expected.values() for sum_ in sums[:3]]
    assert len(set(memory)) == 9
    assert len({tuple(sums[3:]) for sums in expected.values()}) == 1, "computing does not depend on the walk"
    assert len(set(expected["walk=seq"])) == 5


@pytest.mark.parametrize("walk", WALKS)
@pytest.mark.parametrize("kind", KINDS)
def test_results_depend_on_nothing_but_the_work(kind: str, walk: str, expected: dict[str, list[str]]) -> None:
    assert checksums(kind, f"{WORK} {walk} async=off yield=5", vcpus=3) == expected[walk]


@pytest.mark.parametrize("mode", ASYNC)
@pytest.mark.parametrize("kind", KINDS)
def test_results_are_the_same_with_asynchronous_faults(kind: str, mode: str, expected: dict[str, list[str]]) -> None:
    with Tasks(kind, f"{WORK} walk=random {mode}") as guest:
        threads, summary = guest.run()
        guest.end()
    assert [thread["checksum"] for thread in threads] == expected["walk=random"]
    assert mode.startswith(f"async={summary['async']}")
    assert [summary[name] for name in ("told", "blocked", "early", "woken", "refused", "unknown")] == ["0"] * 6


@pytest.mark.parametrize("kind", KINDS)
def test_a_summary_and_a_line_for_each_thread(kind: str) -> None:
    with Tasks(kind, "mem=2 comp=1 pages=8 passes=2 yield=2 cspin=200000 async=off", vcpus=2) as guest:
        first, summary = guest.run()
        again, second = guest.run()
        guest.end()
    assert [(t["thread"], t["kind"], t["cpu"]) for t in first] == [
        ("0", "mem", "0"),
        ("1", "mem", "1"),
        ("2", "comp", "0"),
    ]
    assert [t["checksum"] for t in first] == [t["checksum"] for t in again], "what only reads finds the same again"
    assert all(0 < int(t["ticks"]) <= int(summary["ticks"]) for t in first)
    # 2 tasks with 16 pages, an SVC every 2; 200000 iterations, one every 65536.
    assert (summary["yields"], second["yields"]) == (str(8 + 8 + 4), str(8 + 8 + 4))
    assert int(summary["freq"]) > 1_000_000


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_written_stays(kind: str) -> None:
    with Tasks(kind, "mem=1 comp=0 pages=16 passes=4 walk=rw-mix write=50 async=off", vcpus=1) as guest:
        first, _ = guest.run()
        again, _ = guest.run()
        guest.end()
    assert first[0]["checksum"] != again[0]["checksum"]


@pytest.mark.parametrize("kind", KINDS)
def test_more_cpus_than_tasks_wait_for_each_other_by_interrupts(kind: str) -> None:
    with Tasks(kind, "mem=1 comp=0 pages=4 async=off", vcpus=4) as guest:
        for _ in range(5):
            threads, _ = guest.run()
        guest.end()
    assert len(threads) == 1


@pytest.mark.parametrize("seed", [1, 2])
def test_a_seeded_run_has_the_same_results(seed: int, expected: dict[str, list[str]]) -> None:
    assert checksums("unicorn", f"{WORK} walk=seq async=off", vcpus=2, seed=seed) == expected["walk=seq"]


@pytest.mark.parametrize(
    ("bootargs", "reason"),
    [
        ("mem=0 comp=0", "ask for none"),
        ("mem=60 comp=5", "more than 64 tasks"),
        ("pages=0", "out of range"),
        ("pages=200000", "not enough memory"),
        ("mem=x", "bootargs"),
    ],
)
def test_what_cannot_be_is_said(bootargs: str, reason: str) -> None:
    with Tasks("unicorn", bootargs, vcpus=1) as guest:
        assert guest.machine.wait(20).reason is ExitReason.POWER_OFF
        assert "Result: FAILED" in guest.console.text
        assert reason in guest.console.text


def test_a_fault_at_el0_ends_the_run_with_a_report(tmp_path: Path) -> None:
    # The first instruction of a task's program becomes one that is undefined.
    elf = bytearray(guest_path("tasks").read_bytes())
    with UnicornMachine(MachineConfig(bootargs="mem=1 comp=0 async=off", vcpus=1, memory=32 << 20)) as machine:
        console = Console(machine)
        broken = tmp_path / "broken.elf"
        broken.write_bytes(spoil(elf))
        machine.load(broken)
        machine.start()
        console.shows("ready\n")
        machine.type_in(b"g")
        assert machine.wait(20).reason is ExitReason.POWER_OFF
    assert re.search(r"CPU#0: task 0 at EL0: fault, ESR 0x0*2000000 PC 0x40000\w+", console.text), console.text
    assert "Result: FAILED (task 0)" in console.text


def spoil(elf: bytearray) -> bytes:
    """The guest with `udf #0` in place of EL0's first instruction."""
    parsed = ELFFile(BytesIO(bytes(elf)))
    symbols = parsed.get_section_by_name(".symtab")
    assert isinstance(symbols, SymbolTableSection)
    address = next(each["st_value"] for each in symbols.iter_symbols() if each.name == "user_memory")
    at = next(parsed.address_offsets(address))
    elf[at : at + 4] = bytes(4)
    assert address >= RAM_BASE
    return bytes(elf)


def test_pulses_of_nothing_do_no_harm() -> None:
    """An interrupt that means something to the guest, again and again, while nothing has happened."""
    with Tasks("unicorn", f"{WORK} async=ppi") as guest:
        guest.console.shows("ready\n")
        for vcpu in range(2):
            for _ in range(200):
                guest.machine.pulse(vcpu, 17)
        threads, _ = guest.run()
        guest.end()
        assert len(threads) == 5


def test_pulse_refuses_what_is_no_private_interrupt() -> None:
    with Tasks("unicorn", "async=off") as guest:
        for intid in (-1, 32, 1020):
            with pytest.raises(UsageError, match="not a private interrupt"):
                guest.machine.pulse(0, intid)
        guest.end()
