# SPDX-License-Identifier: Apache-2.0
"""Which parts of RAM were sent: pages by MiB."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

from ..machine.base import PAGE_SIZE, RAM_BASE

__all__ = ["Histogram", "Region"]

_REGION_PAGES = (1 << 20) // PAGE_SIZE


@dataclass(slots=True)
class Region:
    """A MiB of RAM, or several on end: how many pages were sent of each sort, all passes together."""

    address: int
    size: int
    plain: int
    zero: int
    duplicate: int


class Histogram:
    """Pages by MiB of RAM. A run of pages costs the same however long it is."""

    PLAIN, ZERO, DUPLICATE = 0, 1, 3  # as in a PAGE frame

    def __init__(self) -> None:
        # How many more pages of a sort a MiB has than the one before it.
        self._steps: dict[int, dict[int, int]] = {}

    def run(self, first: int, count: int, sort: int) -> None:
        """So many pages of a sort, from that page of RAM on."""
        begin, end = divmod(first, _REGION_PAGES), divmod(first + count, _REGION_PAGES)
        if begin[0] == end[0]:
            self._step(begin[0], sort, count)
            self._step(begin[0] + 1, sort, -count)
            return
        self._step(begin[0], sort, _REGION_PAGES - begin[1])
        self._step(begin[0] + 1, sort, begin[1])
        self._step(end[0], sort, end[1] - _REGION_PAGES)
        self._step(end[0] + 1, sort, -end[1])

    def _step(self, region: int, sort: int, pages: int) -> None:
        steps = self._steps.setdefault(region, {})
        steps[sort] = steps.get(sort, 0) + pages

    def regions(self) -> list[Region]:
        """Those that have pages, in order; MiBs with the same numbers are put together."""
        found: list[Region] = []
        now = {self.PLAIN: 0, self.ZERO: 0, self.DUPLICATE: 0}
        for region, following in pairwise(sorted(self._steps)):  # behind the last one there is nothing
            for sort, pages in self._steps[region].items():
                now[sort] += pages
            if any(now.values()):
                count = following - region
                address, size = RAM_BASE + (region << 20), count << 20
                numbers = [now[sort] * count for sort in (self.PLAIN, self.ZERO, self.DUPLICATE)]
                found.append(Region(address, size, *numbers))
        return _joined(found)


def _joined(regions: list[Region]) -> list[Region]:
    """Regions on end with the same numbers for each MiB, put together."""
    joined: list[Region] = []
    for each in regions:
        last = joined[-1] if joined else None
        if last is not None and last.address + last.size == each.address and _rate(last) == _rate(each):
            last.size += each.size
            last.plain += each.plain
            last.zero += each.zero
            last.duplicate += each.duplicate
        else:
            joined.append(each)
    return joined


def _rate(region: Region) -> tuple[int, int, int]:
    size = region.size >> 20
    return region.plain // size, region.zero // size, region.duplicate // size
