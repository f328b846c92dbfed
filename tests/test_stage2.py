# SPDX-License-Identifier: Apache-2.0
"""Stage-2 tables, read back by a walker of its own."""

from __future__ import annotations

from array import array

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdeivirt.errors import UsageError
from sdeivirt.machine.stage2 import Kind, Stage2, table_bytes

from .stage2_walk import BLOCK, GIB, PAGE, walk

BASE = 0x7000_0000


def tables(count: int) -> tuple[memoryview, Stage2]:
    words = memoryview(array("Q", bytes(8 * 512 * count)))
    return words, Stage2(words, BASE)


REGION = st.tuples(st.integers(0, 3000), st.integers(1, 1500), st.sampled_from(list(Kind)), st.booleans())


@given(st.lists(REGION, min_size=1, max_size=6), st.integers(0, 1022))
def test_it_maps_what_it_was_told(regions: list[tuple[int, int, Kind, bool]], gib: int) -> None:
    words, stage2 = tables(64)
    origin = gib * GIB
    expected: dict[int, int] = {}
    for first, count, kind, unmap in regions:
        # Around a boundary of 2 MiB blocks, so that blocks are made and broken up.
        start, end = origin + first * PAGE, origin + (first + count) * PAGE
        if unmap:
            stage2.unmap(start, end)
        else:
            stage2.map(start, end, kind)
        for page in range(start, end, PAGE):
            if unmap:
                expected.pop(page, None)
            else:
                expected[page] = page | kind
    for page in range(origin, origin + 4600 * PAGE, PAGE):
        assert walk(words, BASE, page) == expected.get(page), hex(page)


def test_it_uses_the_largest_blocks_and_can_map_elsewhere() -> None:
    words, stage2 = tables(16)
    stage2.map(0, 3 * GIB + BLOCK, Kind.RAM)
    assert [words[i] & 3 for i in range(5)] == [1, 1, 1, 3, 0]
    stage2.map(0x1000, 0x2000, Kind.READ_ONLY, target=0x5000)
    assert walk(words, BASE, 0x1000) == 0x5000 | Kind.READ_ONLY
    assert walk(words, BASE, 0x2000) == 0x2000 | Kind.RAM
    with pytest.raises(UsageError, match="too many pieces"):
        stage2.map(512 * GIB + PAGE, 512 * GIB + 16 * BLOCK + PAGE, Kind.RAM, target=0)


def test_taking_whole_blocks_away_needs_no_tables() -> None:
    words, stage2 = tables(4)
    stage2.map(GIB, 2 * GIB, Kind.RAM)
    stage2.unmap(GIB, 2 * GIB - PAGE)
    assert walk(words, BASE, GIB) is None
    assert walk(words, BASE, 2 * GIB - 2 * PAGE) is None
    assert walk(words, BASE, 2 * GIB - PAGE) == 2 * GIB - PAGE | Kind.RAM


def test_a_page_is_found_by_its_word() -> None:
    words, stage2 = tables(8)
    stage2.map(GIB, 2 * GIB, Kind.RAM)
    address = GIB + 5 * BLOCK + 7 * PAGE
    word = stage2.page(address)
    assert words[word] == address | Kind.RAM | 3
    words[word] = address | Kind.WATCHED | 3
    assert walk(words, BASE, address) == address | Kind.WATCHED
    assert walk(words, BASE, address + PAGE) == address + PAGE | Kind.RAM


def test_tables_that_a_block_replaces_are_used_again() -> None:
    words, stage2 = tables(2 + 1 + 3)
    for _ in range(50):
        stage2.map(GIB, 2 * GIB, Kind.RAM)
        for block in range(3):
            stage2.page(GIB + block * BLOCK)
            assert walk(words, BASE, GIB + block * BLOCK + 511 * PAGE) == GIB + block * BLOCK + 511 * PAGE | Kind.RAM
        stage2.flushed(stage2.released)
    stage2.unmap(3 * BLOCK + GIB - 2 * PAGE, 3 * BLOCK + GIB)
    stage2.map(GIB, 2 * GIB, Kind.RAM)
    stage2.unmap(700 * GIB, 700 * GIB + PAGE)  # a table that has been used before holds nothing of that
    assert walk(words, BASE, 700 * GIB + PAGE) is None
    assert walk(words, BASE, GIB) == GIB | Kind.RAM


def test_a_table_that_a_cpu_may_be_in_is_left_as_it_is_until_tlbs_are_flushed() -> None:
    """A CPU that is on its way through it finds what was there, and not pieces of another block."""
    words, stage2 = tables(16)
    stage2.map(GIB, 2 * GIB, Kind.RAM)
    for block in range(4):
        stage2.page(GIB + block * BLOCK)
    before = bytes(words)
    stage2.map(GIB, 2 * GIB, Kind.WATCHED)
    assert stage2.resting
    early = stage2.released
    level1 = 2 * 512 * 8
    assert bytes(words)[level1:] == before[level1:], "what was let go is as it was"
    for block in range(4):
        stage2.page(GIB + (8 + block) * BLOCK)
    assert bytes(words)[level1 : level1 + 5 * 4096] == before[level1 : level1 + 5 * 4096]
    stage2.map(GIB, 2 * GIB, Kind.RAM)  # later than the flush that is told of now
    stage2.flushed(early)
    assert stage2.resting
    stage2.flushed(early)
    again = [stage2.page(GIB + block * BLOCK) // 512 for block in range(4)]
    assert set(again) <= {2, 3, 4, 5, 6}, "those that have rested"
    stage2.flushed(stage2.released)
    assert not stage2.resting


def test_where_nobody_flushes_a_table_is_used_again_rather_than_none() -> None:
    words, stage2 = tables(2 + 1 + 1)
    for turn in range(5):
        stage2.map(GIB, 2 * GIB, Kind.RAM)
        address = GIB + turn * BLOCK
        words[stage2.page(address)] = address | Kind.WATCHED | 3
        assert walk(words, BASE, address) == address | Kind.WATCHED
        assert walk(words, BASE, address + PAGE) == address + PAGE | Kind.RAM


@pytest.mark.parametrize("mebibytes", [2, 3, 64, 1023, 1025, 4097])
def test_there_is_room_for_all_of_ram_in_single_pages(mebibytes: int) -> None:
    base, size = GIB, mebibytes << 20
    words = memoryview(bytearray(table_bytes(size))).cast("Q")
    stage2 = Stage2(words, BASE)
    stage2.map(base, base + size, Kind.RAM)
    for block in range(base, base + size, BLOCK):
        stage2.page(block)
    for device in range(0, GIB, 64 << 20):
        stage2.map(device, device + PAGE, Kind.DEVICE)
    assert walk(words, BASE, base + size - PAGE) == base + size - PAGE | Kind.RAM
    assert table_bytes(64 << 30) < 130 << 20
