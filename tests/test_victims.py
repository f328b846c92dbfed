# SPDX-License-Identifier: Apache-2.0
"""Processes that wait for an error, found in a guest's memory: who lives, who is meant, what only looks like one."""

from __future__ import annotations

import struct
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pytest

from sdeivirt.machine.base import PAGE_SIZE, RAM_BASE
from sdeivirt.ras import victims
from sdeivirt.ras.victims import MAX_MARKS, Search, Victim, find_victims, marks, search_victims

PAGES = 4096


class Ram:
    """Memory in which processes can live."""

    def __init__(self, ranges: Sequence[tuple[int, int]] = ((0, PAGES * PAGE_SIZE),)) -> None:
        self.content = bytearray(PAGES * PAGE_SIZE)
        self._ranges = ranges

    def memory(self) -> memoryview:
        return memoryview(self.content)

    def data_ranges(self) -> Sequence[tuple[int, int]]:
        return self._ranges

    def mark(self, page: int, pid: int, name: bytes = b"victim", virtual: int = 0x7000, beats: int = 0) -> Victim:
        mark = struct.pack("<Q8sQQ32s", beats, b"SDEI-RAS", pid, virtual, name)
        self.content[page * PAGE_SIZE : page * PAGE_SIZE + len(mark)] = mark
        return Victim(pid, name.decode("latin-1"), RAM_BASE + page * PAGE_SIZE, virtual)

    @contextmanager
    def beating(self, *pages: int) -> Iterator[None]:
        """The hearts of these pages beat."""
        over = threading.Event()

        def beat() -> None:
            while not over.wait(0.001):
                for page in pages:
                    (count,) = struct.unpack_from("<Q", self.content, page * PAGE_SIZE)
                    struct.pack_into("<Q", self.content, page * PAGE_SIZE, count + 1)

        heart = threading.Thread(target=beat)
        heart.start()
        try:
            yield
        finally:
            over.set()
            heart.join()


def test_those_that_live_are_found_by_pid() -> None:
    ram = Ram()
    late, early = ram.mark(9, 300), ram.mark(4000, 20, b"other", 0x9000)
    ram.mark(17, 300)  # where the page was before it was moved
    with ram.beating(9, 4000):
        assert find_victims(ram) == [early, late]


@pytest.mark.parametrize(
    ("pattern", "pids"),
    [("*", [7, 8, 70]), ("7", [7]), ("70", [70]), ("db", [7]), ("db*", [7, 8]), ("d?2", [8]), ("7*", []), ("", [])],
)
def test_a_pattern_is_a_pid_or_names(pattern: str, pids: list[int]) -> None:
    ram = Ram()
    ram.mark(1, 7, b"db")
    ram.mark(2, 8, b"db2")
    ram.mark(3, 70, b"web")
    with ram.beating(1, 2, 3):
        assert [victim.pid for victim in find_victims(ram, pattern)] == pids


def test_there_are_none_where_no_heart_beats() -> None:
    ram = Ram()
    ram.mark(1, 7)
    assert len(list(marks(ram.memory(), ram.data_ranges()))) == 1
    assert find_victims(ram, seconds=0.05) == []


def test_a_page_that_becomes_anothers_is_nobodys() -> None:
    ram = Ram()
    ram.mark(1, 7)
    over = threading.Event()

    def change() -> None:
        pid = 8
        while not over.wait(0.001):
            ram.mark(1, pid := pid + 1, beats=pid)

    other = threading.Thread(target=change)
    other.start()
    try:
        assert find_victims(ram) == []
    finally:
        over.set()
        other.join()


def test_only_memory_that_holds_something_is_read() -> None:
    page = PAGE_SIZE
    ram = Ram([(2 * page, 4 * page), (8 * page, 9 * page)])
    found = [ram.mark(number, number + 1) for number in range(12)]
    assert list(marks(ram.memory(), ram.data_ranges())) == [found[2], found[3], found[8]]


def test_what_a_guest_writes_is_taken_as_it_is_or_left() -> None:
    ram = Ram()
    ram.mark(1, 1 << 32)  # no pid
    ram.mark(2, 7, virtual=0x7008)  # no page
    ram.mark(3, 7, b"\xff\xfe")
    ram.mark(4, 7, b"\x1b[2J")
    whole = ram.mark(5, 7, b"x" * 32)  # no zero behind it
    nameless = ram.mark(6, 0xFFFF_FFFF, b"")
    struct.pack_into("<8s", ram.content, 7 * PAGE_SIZE, b"SDEI-RAS")  # at another place
    assert list(marks(ram.memory(), ram.data_ranges())) == [whole, nameless]


def test_memory_is_read_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(victims, "_PIECE", 3 * PAGE_SIZE)
    ram = Ram([(PAGE_SIZE, 9 * PAGE_SIZE), (11 * PAGE_SIZE, 12 * PAGE_SIZE)])
    found = [ram.mark(number, number + 1) for number in range(12)]
    assert list(marks(ram.memory(), ram.data_ranges())) == [*found[1:9], found[11]]


def test_a_guest_that_marks_all_of_its_memory_hides_nobody_and_is_not_watched_for_ever() -> None:
    ram = Ram()
    for page in range(PAGES):
        ram.mark(page, page)
    last = ram.mark(PAGES - 1, 7, b"last")
    with ram.beating(*range(0, PAGES, 512), PAGES - 1):
        assert find_victims(ram, "last") == [last]
        assert [victim.pid for victim in find_victims(ram, "v*")] == [
            pid for pid in range(0, PAGES, 512) if pid < MAX_MARKS
        ]


def test_others_are_named_where_nobody_is_meant() -> None:
    ram = Ram()
    one, other = ram.mark(1, 7, b"db"), ram.mark(2, 8, b"web")
    with ram.beating(1, 2):
        assert search_victims(ram, "web") == Search([other])
        assert search_victims(ram, "init") == Search([], [], [one, other])


def test_one_that_stands_still_is_told_apart_from_none() -> None:
    ram = Ram()
    stopped, other = ram.mark(1, 7, b"db"), ram.mark(2, 8, b"web")
    with ram.beating(2):
        assert search_victims(ram, "db", 0.1) == Search([], [stopped], [other])


def test_a_number_without_end_is_nobodys_pid() -> None:
    ram = Ram()
    ram.mark(1, 7)
    with ram.beating(1):
        assert find_victims(ram, "9" * 5000) == []
