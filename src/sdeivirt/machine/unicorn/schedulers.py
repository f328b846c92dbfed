# SPDX-License-Identifier: Apache-2.0
"""Who runs next, and for how long.

Engines share memory but must never run at the same time: their atomics are
atomic within one engine only. So vCPUs take turns on one thread.

    FastScheduler           blocks of native code, stopped from outside through the stub
    DeterministicScheduler  counted instructions from a seed: same seed, same trace
"""

from __future__ import annotations

import ctypes as C
import random
from collections.abc import Sequence
from typing import Protocol

from . import stub
from .binding import Engine
from .vcpu import UnicornVcpu

__all__ = ["DeterministicScheduler", "FastScheduler", "Scheduler"]


# random.Random's state: a version, the words of a Mersenne twister, and an index.
_VERSION = 3
_TWISTER = 624


class Scheduler(Protocol):
    name: str

    def prepare(self, engine: Engine) -> None:
        """An engine was made."""

    def clear_stop(self) -> None:
        """Requests are about to be looked at: a stop asked for from now on must count."""

    def request_stop(self) -> None:
        """Have the engine that runs stop soon; from any thread."""

    def limit_slice(self) -> None:
        """Another vCPU can run now: the present slice must end some time. On the machine's thread."""

    def lift_limit(self) -> None:
        """The present slice need not be as short as :meth:`run` was told. On the machine's thread."""

    def pick(self, runnable: Sequence[UnicornVcpu]) -> UnicornVcpu:
        """The next one to run; `runnable` is not empty, those just kicked stand first."""

    def run(self, vcpu: UnicornVcpu, rivals: int, limit: int = 0) -> None:
        """Run it for its slice; `rivals` others could run. `limit` blocks or instructions at most, if not 0."""

    def unhindered(self) -> None:
        """Nothing but its end is to stop what an engine runs next. On the machine's thread, between two slices."""

    def state(self) -> list[int]:
        """What its choices to come depend on, for :meth:`restore`; empty where that is nothing."""

    def restore(self, state: list[int]) -> None:
        """Go on as the one that gave this state. Raises ValueError, with what is wrong about it."""


class FastScheduler:
    """Round robin with slices of translated blocks, counted by the stub that also takes stops."""

    name = "fast"

    # Some 0.1 ms of guest code for a round of all vCPUs: short enough for vCPUs that
    # spin on each other; no slice so short that switching (some 5 us) is all there is.
    ROUND = 20_000
    SHORTEST = 500
    FOREVER = 0x7FFF_FFFF

    def __init__(self) -> None:
        self._control = stub.Control(0, 1)
        self._slice = self.FOREVER  # the present one's length, if it is not limited

    def prepare(self, engine: Engine) -> None:
        engine.on_block(stub.address(), C.addressof(self._control))

    def clear_stop(self) -> None:
        self._control.flag = 0

    def request_stop(self) -> None:
        self._control.flag = 1

    def limit_slice(self) -> None:
        self._slice = min(self._slice, self.ROUND)
        self._control.budget = min(self._control.budget, self.ROUND)

    def lift_limit(self) -> None:
        self._control.budget = self._slice

    def pick(self, runnable: Sequence[UnicornVcpu]) -> UnicornVcpu:
        return runnable[0]

    def run(self, vcpu: UnicornVcpu, rivals: int, limit: int = 0) -> None:
        self._slice = budget = max(self.ROUND // rivals, self.SHORTEST) if rivals else self.FOREVER
        self._control.budget = min(budget, limit + 1) if limit else budget  # the stub stops before the last one
        vcpu.run()

    def unhindered(self) -> None:
        self._control.budget = self.FOREVER
        self._control.flag = 0

    def state(self) -> list[int]:
        return []

    def restore(self, state: list[int]) -> None:
        if state:
            raise ValueError("has a seeded schedule, and this machine has no seed")


class DeterministicScheduler:
    """Chooses the vCPU and the number of instructions of its slice from a seed.

    The trace depends on the seed and on when the host injects; the guest must
    not read the host's clock (CNTVCT_EL0). Also the fall-back for hosts
    without a stub.
    """

    SLICES: tuple[int, ...] = (1, 7, 53, 400, 3000, 20_000)
    LONG = 200_000

    def __init__(self, seed: int | None) -> None:
        self._random = random.Random(seed) if seed is not None else None
        self.name = f"deterministic, seed {seed}" if seed is not None else "counted slices"

    def prepare(self, engine: Engine) -> None:
        """Nothing: slices are counted by the engine."""

    def clear_stop(self) -> None:
        """Nothing: requests are looked at after each slice."""

    def request_stop(self) -> None:
        """Nothing: a slice is short."""

    def limit_slice(self) -> None:
        """Nothing: a slice is short."""

    def lift_limit(self) -> None:
        """Nothing: a slice is short."""

    def pick(self, runnable: Sequence[UnicornVcpu]) -> UnicornVcpu:
        return self._random.choice(runnable) if self._random else runnable[0]

    def run(self, vcpu: UnicornVcpu, rivals: int, limit: int = 0) -> None:
        if self._random is None:
            count = self.SLICES[-1] if rivals else self.LONG
            vcpu.run(min(count, limit) if limit else count)
        else:
            vcpu.run(self._random.choice(self.SLICES))

    def unhindered(self) -> None:
        """Nothing: slices are counted by the engine."""

    def state(self) -> list[int]:
        if self._random is None:
            return []
        version, words, _gauss = self._random.getstate()
        return [version, *words]

    def restore(self, state: list[int]) -> None:
        if self._random is None or not state:
            if state or self._random is not None:
                raise ValueError("is of a machine with a seed, and this one has none, or the other way round")
            return
        version, *words = state
        if (
            version != _VERSION
            or len(words) != _TWISTER + 1
            or not all(0 <= word < 1 << 32 for word in words)
            or words[-1] > _TWISTER
        ):
            raise ValueError("has a seeded schedule that cannot be")
        self._random.setstate((version, tuple(words), None))
