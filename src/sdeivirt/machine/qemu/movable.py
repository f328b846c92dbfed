# SPDX-License-Identifier: Apache-2.0
"""The machine's contract for moving: what other threads ask for, handed to dirtying.py and moving.py on the loop."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

from ...cpu import CpuFeatures
from ...errors import StateError
from ...migration.sections import Section
from ..base import PAGE_SIZE, MachineConfig
from .dirtying import Dirtying
from .looped import LoopedMachine
from .moving import Moving

__all__ = ["MovableMachine"]


class MovableMachine(LoopedMachine):
    """It remains to be said what a QEMU is. Each reset brings another one; a log that is wanted goes on there."""

    def __init__(self, config: MachineConfig, features: CpuFeatures | None = None) -> None:
        super().__init__(config, features)
        self.dirtying: Dirtying | None = None  # of the present QEMU, if it has stage 2
        self._moving: Moving | None = None
        self._incoming = False
        self._logging = False
        self._limit: int | None = None

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
        self._logging = True
        self._dirtying().start()

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

    def prepare_save(self) -> None:
        """As the contract says. Raises MigrationError, QemuDiedError, and StateError where the machine has ended."""
        if self._moving is not None:
            self._call(self._moving.prepare())

    def _save_engine(self) -> list[Section]:
        assert self._moving is not None
        return self._call(self._moving.save())

    def keep_state(self) -> None:
        super().keep_state()
        if self._moving is not None:
            self._unless_over(self._moving.keep())

    # -- in

    def start_incoming(self) -> None:
        """As the contract says. Where load() has been called as well, a guest that resets itself later starts again."""
        self._may_load()
        self._incoming = self._paused = True
        self._launch(True)

    def _load_engine(self, sections: Sequence[Section]) -> None:
        assert self._moving is not None
        self._call(self._moving.load(sections))
        self._incoming = False
