# SPDX-License-Identifier: Apache-2.0
"""Machine qemu knows which of its RAM anybody has touched: the rest is not read, which would give it memory."""

from __future__ import annotations

import pytest

from sdeivirt.benchmarks.migrate_guests import idle, running
from sdeivirt.machine.base import PAGE_SIZE

from .machine_support import NEEDS_QEMU

pytestmark = [pytest.mark.machine, pytest.mark.qemu, NEEDS_QEMU]

MIB = 1 << 20


def test_what_a_guest_has_written_is_in_the_ranges_and_what_nobody_has_is_not() -> None:
    with running("qemu", idle(256 * MIB)) as machine:
        ram = machine.memory()
        ram[200 * MIB + 5] = 1
        ranges = machine.data_ranges()
        assert all(start % PAGE_SIZE == end % PAGE_SIZE == 0 for start, end in ranges)
        assert ranges == sorted(ranges)
        assert all(0 <= start < end <= 256 * MIB for start, end in ranges)
        assert sum(end - start for start, end in ranges) < 16 * MIB
        assert (200 * MIB, 200 * MIB + PAGE_SIZE) in ranges
        # The writer's arena; and whatever is not named is zeroes.
        assert any(start <= 8 * MIB and end >= 9 * MIB for start, end in ranges)
        rest = bytearray(ram)
        for start, end in ranges:
            rest[start:end] = bytes(end - start)
        assert not any(rest)
        del ram
    assert machine.data_ranges() == []
