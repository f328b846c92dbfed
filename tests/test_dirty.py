# SPDX-License-Identifier: Apache-2.0
"""The dirty log against a model: a guest that writes through the tables, a host that collects."""

from __future__ import annotations

import threading
from array import array

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from sdeivirt.machine.dirty import DirtyLog
from sdeivirt.machine.stage2 import WRITE, Kind, Stage2, table_bytes

from .stage2_walk import GIB, PAGE, walk

TABLES = 0x1000_0000


class Machine:
    """Tables, a log, and a guest that tries to write."""

    def __init__(self, base: int = GIB, size: int = 8 << 20) -> None:
        self.base, self.size = base, size
        self.words = memoryview(array("Q", bytes(table_bytes(size)))).cast("B").cast("Q")
        self.stage2 = Stage2(self.words, TABLES)
        self.stage2.map(base, base + size, Kind.RAM)
        self.now = 0.0
        self.log = DirtyLog(self.stage2, base, size, lambda: self.now)

    def may_write(self, page: int) -> bool:
        entry = walk(self.words, TABLES, self.base + page * PAGE)
        assert entry is not None
        assert entry & ~WRITE == self.base + page * PAGE | Kind.WATCHED, "only that right ever changes"
        return bool(entry & WRITE)

    def write(self, page: int, offset: int = 0) -> bool:
        """Whether there was a fault."""
        if self.may_write(page):
            return False
        assert self.log.written(self.base + page * PAGE + offset)
        assert self.may_write(page)
        return True

    def collect(self) -> set[int]:
        collected = self.log.collect()
        assert len(collected) == self.size // PAGE
        assert set(collected) <= {0, 1}
        return {i for i, dirty in enumerate(collected) if dirty}


# Some in one block, some in others, and the last one.
PAGES = st.one_of(st.integers(0, 6), st.integers(508, 516), st.just(1500), st.just(2047), st.integers(0, 2047))


class Log(RuleBasedStateMachine):
    @initialize(base=st.sampled_from([GIB, 2 * GIB - (2 << 20), 512 * GIB]))
    def begin(self, base: int) -> None:
        self.machine = Machine(base)
        self.on = False
        self.noted: set[int] = set()  # to be collected
        self.open: set[int] = set()  # which the guest may write

    @rule()
    def start(self) -> None:
        self.machine.log.start()
        self.on = True
        self.noted, self.open = set(), set()

    @rule(page=PAGES, offset=st.integers(0, PAGE - 1))
    def guest_writes(self, page: int, offset: int) -> None:
        assert self.machine.write(page, offset) == (self.on and page not in self.open)
        if self.on:
            self.noted |= {page} - self.open
            self.open.add(page)

    @rule(page=PAGES)
    def fault_that_another_vcpu_was_first_to_have(self, page: int) -> None:
        if page in self.open or not self.on:
            assert self.machine.log.written(self.machine.base + page * PAGE)

    @rule(page=PAGES, offset=st.integers(0, PAGE - 1), size=st.integers(0, 3 * PAGE))
    def host_writes(self, page: int, offset: int, size: int) -> None:
        self.machine.log.mark(self.machine.base + page * PAGE + offset, size)
        if self.on and size:
            last = (page * PAGE + offset + size - 1) // PAGE
            self.noted |= set(range(page, min(last, 2047) + 1))

    @rule()
    def collect(self) -> None:
        assert self.machine.collect() == self.noted
        self.noted, self.open = set(), set()

    @rule()
    def stop(self) -> None:
        self.machine.log.stop()
        self.on = False
        self.noted, self.open = set(), set()

    @rule(address=st.sampled_from([-PAGE, -1, 8 << 20, (8 << 20) + PAGE]))
    def fault_elsewhere(self, address: int) -> None:
        assert not self.machine.log.written(self.machine.base + address)

    @invariant()
    def the_guest_writes_where_it_may(self) -> None:
        if hasattr(self, "machine"):
            for page in (*range(10), *range(505, 520), 1500, 2046, 2047):
                assert self.machine.may_write(page) == (not self.on or page in self.open), page
            assert self.machine.log.on == self.on


def test_log_against_the_model() -> None:
    run_state_machine_as_test(Log, settings=settings(max_examples=60, stateful_step_count=40, database=None))


def test_blocks_stay_whole_until_somebody_writes_there() -> None:
    machine = Machine(GIB, 3 * GIB + (4 << 20))
    words = machine.words
    machine.log.start()
    assert [words[i] & 3 for i in range(1, 5)] == [1, 1, 1, 3]
    machine.write(7)
    assert [words[i] & 3 for i in range(1, 5)] == [3, 1, 1, 3]
    level2 = (words[1] & 0xFF_FFFF_F000) - TABLES >> 3
    assert [words[level2 + i] & 3 for i in range(3)] == [3, 1, 1]
    assert machine.collect() == {7}
    machine.log.stop()
    assert [words[i] & 3 for i in range(1, 5)] == [1, 1, 1, 3]


def test_every_page_can_be_written_again_and_again() -> None:
    machine = Machine(GIB, 64 << 20)
    every = set(range(16384))
    for _ in range(3):
        machine.log.start()
        for _ in range(2):
            for page in every:
                machine.log.written(GIB + page * PAGE)
            assert machine.collect() == every
        machine.log.stop()
    assert all(machine.may_write(page) for page in range(0, 16384, 100))


class CountedWords:
    """Tables that count how often they are looked at and written."""

    def __init__(self, words: memoryview) -> None:
        self._words = words
        self.accesses = 0

    def __len__(self) -> int:
        return len(self._words)

    def __getitem__(self, index: int) -> int:
        self.accesses += 1
        entry: int = self._words[index]
        return entry

    def __setitem__(self, index: int, entry: int) -> None:
        self.accesses += 1
        self._words[index] = entry


def test_collecting_looks_at_the_pages_that_were_written_and_at_no_other() -> None:
    machine = Machine(GIB, 256 << 20)
    machine.log.start()
    for page in range(65536):
        machine.log.written(GIB + page * PAGE)
    machine.collect()
    words = CountedWords(machine.words)
    machine.stage2.words = words  # type: ignore[assignment]
    for count in (0, 1, 100, 65536, 0):
        for page in range(count):
            machine.log.written(GIB + page * PAGE)
        words.accesses = 0
        assert machine.collect() == set(range(count))
        assert words.accesses == 2 * count, "the entry, without a right"


def test_a_fault_is_in_this_collection_or_the_next_whichever_thread_is_first() -> None:
    machine = Machine()
    machine.log.start()
    found = 0
    noted = threading.Event()

    def fault() -> None:
        for i in range(20_000):
            machine.log.written(GIB + i % 2048 * PAGE)
        noted.set()

    thread = threading.Thread(target=fault)
    thread.start()
    while not noted.is_set():
        found += len(machine.collect())
    thread.join()
    found += len(machine.collect())
    assert found >= 2048
    assert not any(machine.may_write(page) for page in range(2048))
    assert not machine.collect()


# -- the limit


def test_without_a_limit_nobody_waits() -> None:
    machine = Machine()
    assert [machine.log.delay(vcpu) for vcpu in range(100)] == [0.0] * 100


@given(
    rate=st.integers(1, 100_000),
    vcpus=st.integers(1, 4),
    steps=st.lists(st.floats(0, 0.01), min_size=10, max_size=200),
)
def test_the_limit_holds_and_nobody_waits_longer_than_for_his_turn(rate: int, vcpus: int, steps: list[float]) -> None:
    machine = Machine()
    machine.now = 1000.0
    machine.log.limit(rate)
    waiting: dict[int, float] = {}
    begun = [0] * vcpus
    for step in steps:
        machine.now += step
        for vcpu in range(vcpus):
            if waiting.get(vcpu, 0.0) > machine.now:
                continue
            for _ in range(1000):  # each begins pages as fast as it may
                wait = machine.log.delay(vcpu)
                if wait:
                    assert wait <= vcpus / rate + 1e-9
                    waiting[vcpu] = machine.now + wait
                    break
                begun[vcpu] += 1
    passed = machine.now - 1000.0
    assert sum(begun) <= passed * rate + max(0.01 * rate, 1) + vcpus + 1


def test_one_that_waited_its_time_goes_on_and_another_does_not_take_it() -> None:
    machine = Machine()
    machine.now = 5.0
    machine.log.limit(10)
    assert machine.log.delay(0) == 0.0
    assert machine.log.delay(0) == pytest.approx(0.1)
    assert machine.log.delay(1) == pytest.approx(0.2)
    assert machine.log.delay(0) == pytest.approx(0.1), "asking again costs nothing"
    machine.now = 5.1001
    assert machine.log.delay(2) == pytest.approx(0.2, abs=0.001)
    assert machine.log.delay(0) == 0.0
    machine.now = 50.0
    assert machine.log.delay(1) == 0.0
    assert machine.log.delay(2) == 0.0
    machine.log.limit(None)
    assert machine.log.delay(0) == 0.0
    machine.log.limit(1)
    machine.log.delay(0)
    assert machine.log.delay(0) > 0.9
    machine.log.stop()
    assert machine.log.delay(0) == 0.0
