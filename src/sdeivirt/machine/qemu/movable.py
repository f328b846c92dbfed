# SPDX-License-Identifier: Apache-2.0
"""The machine's contract for moving: what other threads ask for, handed to dirtying.py and moving.py on the loop."""

from __future__ import annotations

import threading
import time
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from typing import Any

from ...cpu import CpuFeatures
from ...errors import StateError
from ...migration.sections import Section, unpack
from ..base import PAGE_SIZE, RAM_BASE, MachineConfig
from ..demand import Demand, PageSource
from .dirtying import Dirtying
from .looped import LoopedMachine
from .moving import Moving
from .state import DevicesState

__all__ = ["MovableMachine"]


class MovableMachine(LoopedMachine):
    """It remains to be said what a QEMU is. Each reset brings another one; a log that is wanted goes on there."""

    takes_early = True

    def __init__(self, config: MachineConfig, features: CpuFeatures | None = None) -> None:
        super().__init__(config, features)
        self.dirtying: Dirtying | None = None  # of the present QEMU, if it has stage 2
        self._moving: Moving | None = None
        self._incoming = False
        self._logging = False
        self._taking = threading.Lock()  # held while a log begins, and while pages are taken: never both
        self._limit: int | None = None
        self._stood = 0.0  # when the guest was stopped last, by time.monotonic()
        self._stands: Future[None] = Future()  # a QEMU that waits for a state
        self._lacking: tuple[bytearray, PageSource] | None = None

    @abstractmethod
    def _launch(self, loaded: bool) -> None:
        """Start the thread, and return when a QEMU is there."""

    @property
    def state(self) -> str:
        state = super().state
        return "incoming" if self._incoming and state == "paused" else state

    # -- out

    def start_dirty_log(self) -> None:
        """As the contract says. Raises StateError where there is no stage 2."""
        with self._taking:
            self._all_here()
            dirtying = self._dirtying()
            self._logging = True
            dirtying.start()

    def collect_dirty(self) -> bytearray:
        return self._dirtying().collect() if self._logging else bytearray(self.config.memory // PAGE_SIZE)

    def stop_dirty_log(self) -> None:
        self._logging, self._limit = False, None
        if self.dirtying is not None:
            self._unless_over(self.dirtying.stop())

    def limit_dirtying(self, pages_per_second: int | None) -> None:
        self._limit = pages_per_second
        if self.dirtying is not None:
            self._unless_over(self.dirtying.limit(pages_per_second))

    def _dirtying(self) -> Dirtying:
        if self.dirtying is None:
            raise StateError("without stage 2 nobody sees what a guest writes", "pause it before it is moved")
        return self.dirtying

    def prepare_save(self, apart: bool = False) -> list[Section]:
        """As the contract says. Raises MigrationError, QemuDiedError, and StateError where the machine has ended."""
        return self._call(self._prepare_save(apart))

    @abstractmethod
    async def _prepare_save(self, apart: bool) -> list[Section]:
        """Have the QEMU on which the guest runs give what it can."""

    def pause_to_save(self) -> float:
        """As the contract says. Raises MigrationError, QemuDiedError."""
        began = time.monotonic()
        self._unless_over(self._stop_to_save())
        return max(began, min(self._stood, time.monotonic()))

    def stands_since(self, stop: Mapping[str, Any]) -> None:
        """QEMU has told of a STOP: when that was."""
        told: Any = stop["timestamp"]
        self._stood = time.monotonic() - (time.time() - told["seconds"] - told["microseconds"] / 1e6)

    @abstractmethod
    async def _stop_to_save(self) -> None:
        """Have the guest stopped by the QEMU that gives its state."""

    def _save_engine(self) -> list[Section]:
        assert self._moving is not None
        return self._call(self._moving.save())

    def keep_state(self) -> None:
        super().keep_state()
        if self._moving is not None:
            self._unless_over(self._moving.keep())

    # -- pages that are not here yet

    def evict_pages(self, pages: Sequence[int], source: PageSource) -> dict[int, bytes]:
        with self._taking:
            dirtying = self._dirtying()
            self._unlogged(self._logging or dirtying.log.on)
            return self._needs_demand().evict(pages, source, dirtying.flush)

    @abstractmethod
    def _all_can_wait(self) -> None:
        """Raises StateError where something accesses RAM past stage 2, where no page can be waited for."""

    def _lack(self, absent: bytearray, source: PageSource) -> None:
        self._all_can_wait()
        self._lacking = absent, source  # there are no tables before the state has come

    def _has_come(self, offset: int, size: int) -> bool:
        if self._lacking is None:
            return True
        absent, source = self._lacking
        lacking = [page for page in range(offset // PAGE_SIZE, -(-(offset + size) // PAGE_SIZE)) if absent[page]]
        for page in lacking:
            source.want(page)
        return not lacking

    def _attach_demand(self) -> None:
        """A QEMU with its tables is there."""
        before, demand = self.demand, None
        if self.dirtying is not None:
            demand = Demand(self.dirtying.stage2, self.dirtying.log.lock, self.memory(), RAM_BASE, self._arrived)
            if self._lacking is not None:
                demand.lack(*self._lacking)
        self.demand, self._lacking = demand, None  # at once: pages may be coming
        if before is not None:
            before.close()

    def pages_of_devices(self) -> list[int]:
        ranges = self._call(self._device_ranges())
        return sorted({page for start, end in ranges for page in range(start // PAGE_SIZE, -(-end // PAGE_SIZE))})

    @abstractmethod
    async def _device_ranges(self) -> list[tuple[int, int]]:
        """Where in RAM devices read and write by themselves: offsets."""

    def _written(self, address: int, size: int) -> None:
        if self.dirtying is not None:
            self.dirtying.log.mark(address, size)

    # -- in

    def start_incoming(self) -> None:
        """As the contract says. Where load() has been called as well, a guest that resets itself later starts again."""
        self._may_load()
        self._incoming = self._paused = True
        self._launch(True)

    def standing(self) -> Future[None]:
        return self._stands

    def load_early(self, section: Section) -> None:
        assert self._moving is not None
        if section.name == "qemu-monitor":
            self._moving.load_monitor(section)
            return
        self._stands.result()
        self._call(self._moving.load_early(section))

    def _offer_engine(self, sections: Sequence[Section]) -> None:
        self._stands.result()
        assert self._moving is not None
        for section in sections:
            if section.name == "qemu-devices":
                self._moving.offer(unpack(section, DevicesState).stream)

    def _load_engine(self, sections: Sequence[Section]) -> None:
        self._stands.result()
        assert self._moving is not None
        self._call(self._moving.load(sections))
        self._incoming = False
