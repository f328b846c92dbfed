# SPDX-License-Identifier: Apache-2.0
"""A link that is slower than the one there is, for experiments: when an answer may go."""

from __future__ import annotations

import time
from collections.abc import Callable

from ..errors import UsageError

__all__ = ["SlowLink"]


class SlowLink:
    """Adds `delay` seconds to each request, which overlap, and carries `bandwidth` bytes a second, None: any number."""

    def __init__(
        self, delay: float = 0.0, bandwidth: float | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """`clock` gives seconds. Raises UsageError for a delay below 0, and for a bandwidth that is not above."""
        if delay < 0 or (bandwidth is not None and not bandwidth > 0):
            raise UsageError("no link has such a delay or bandwidth", "give a delay from 0 on, and a bandwidth above 0")
        self._delay = delay
        self._bandwidth = bandwidth
        self._clock = clock
        self._free = clock()  # when all that was sent has got through

    def due(self) -> float:
        """When the answer to a request that comes now has to go."""
        return self._clock() + self._delay

    def busy(self) -> float:
        """For how many seconds nothing can be sent; 0: now it can."""
        return max(0.0, self._free - self._clock())

    def sent(self, size: int) -> None:
        """So many bytes go now."""
        if self._bandwidth is not None:
            self._free = max(self._free, self._clock()) + size / self._bandwidth
