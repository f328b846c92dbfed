# SPDX-License-Identifier: Apache-2.0
"""The policy of pre-copy, against guests that are simulated: it ends, and it does not hold up without need."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from sdeivirt.migration.convergence import Convergence

PAGES = 262_144  # a GiB


def migrate(downtime: float, link: float, dirtying: float, working_set: int) -> tuple[int, float, list[int | None]]:
    """A link and a guest that writes, both in pages a second: passes, the last expected downtime, limits."""
    policy = Convergence(downtime)
    left, passes, limits = PAGES, 0, []
    while True:
        seconds = left / link
        policy.sent(left, seconds)
        rate = dirtying if policy.limit is None else min(dirtying, policy.limit)
        left = min(int(rate * seconds), working_set)
        passes += 1
        step = policy.next(left)
        limits.append(step.limit)
        if step.stop:
            return passes, left / link, limits
        assert passes < 100


def test_an_idle_guest_is_stopped_after_one_pass() -> None:
    assert migrate(0.3, 100_000, 0, PAGES) == (1, 0.0, [None])


def test_a_guest_that_writes_slower_than_the_link_is_not_held_up() -> None:
    passes, downtime, limits = migrate(0.05, 100_000, 30_000, PAGES)
    assert passes > 1
    assert downtime <= 0.05
    assert set(limits) == {None}


def test_a_small_working_set_needs_no_limit() -> None:
    assert migrate(0.3, 100_000, 10_000_000, 20_000) == (2, 0.2, [None, None])


def test_downtime_that_is_allowed_is_not_used_up_where_passes_get_shorter() -> None:
    passes, downtime, limits = migrate(0.3, 100_000, 10_000, PAGES)
    assert passes == 3
    assert downtime < 0.01
    assert set(limits) == {None}


def test_a_guest_that_writes_faster_than_the_link_is_held_up_until_it_fits() -> None:
    _, downtime, limits = migrate(0.3, 100_000, 10_000_000, PAGES)
    assert downtime <= 0.3
    assert limits[0] is None
    assert limits[-1] is not None
    assert limits[-1] < 100_000


@given(
    downtime=st.floats(0.001, 10),
    link=st.floats(100, 1e7),
    dirtying=st.floats(0, 1e8),
    working_set=st.integers(0, PAGES),
)
def test_it_always_ends(downtime: float, link: float, dirtying: float, working_set: int) -> None:
    _, took, _ = migrate(downtime, link, dirtying, working_set)
    assert took <= downtime * 1.001


def test_no_downtime_at_all_is_reached_by_a_guest_that_rests() -> None:
    assert migrate(0.0, 1000, 0, PAGES)[0] == 1
