# SPDX-License-Identifier: Apache-2.0
"""The marks that the bench guest sets, on the host's clock (guests/bench.h)."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from ..cpu import RegisterView
from ..machine.base import Machine
from ..smccc.ids import Owner
from ..smccc.router import Caller, Result, Service

__all__ = ["marked"]

BENCH_START = 0xC600_B000
BENCH_STOP = 0xC600_B001


@contextmanager
def marked(machine: Machine) -> Iterator[list[float]]:
    """The times of the guest's marks, in seconds, as they come. The machine has not started."""
    marks: list[float] = []

    def mark(_caller: Caller, _view: RegisterView) -> Result:
        marks.append(time.perf_counter())
        return 0

    machine.firmware.router.register(
        Service("bench", Owner.VENDOR_HYP, (range(0xB000, 0xB002),), {BENCH_START: mark, BENCH_STOP: mark})
    )
    yield marks
