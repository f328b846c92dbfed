# SPDX-License-Identifier: Apache-2.0
"""The machine's contract for pages that are not here yet, on top of demand.py; engines say what is their own."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

from ..errors import StateError
from ..migration.sections import Section
from ..sdei.model import bits
from .base import PAGE_SIZE, RAM_BASE, Machine
from .demand import Demand, DemandFigures, PageSource

__all__ = ["PagedMachine"]


class PagedMachine(Machine):
    """It remains to be said how vCPUs wait and are woken, and how TLBs are flushed."""

    demand: Demand | None = None  # of the present RAM, if it has stage 2

    @abstractmethod
    def _go_on(self, vcpus: int) -> None:
        """Have vCPUs that wait for pages try again. From any thread."""

    def check_post_copy(self) -> None:
        self._needs_demand()

    def lack_pages(self, absent: bytearray, source: PageSource) -> None:
        if self.state != "incoming":
            raise StateError(f"a machine that is {self.state} has all its pages", "call start_incoming() first")
        if len(absent) != self.config.memory // PAGE_SIZE:
            raise StateError(f"a map of {len(absent)} pages is not one of this machine's RAM")
        self._lack(absent, source)

    def _lack(self, absent: bytearray, source: PageSource) -> None:
        self._needs_demand().lack(absent, source)

    def supply_pages(self, first: int, content: bytes | bytearray | memoryview) -> int:
        view = memoryview(content).cast("B")
        if len(view) % PAGE_SIZE:
            raise StateError(f"{len(view)} bytes are no whole pages")
        return self._supply(first, view, len(view) // PAGE_SIZE)

    def supply_zeroes(self, first: int, count: int) -> int:
        return self._supply(first, None, count)

    def _supply(self, first: int, content: memoryview | None, count: int) -> int:
        taken = self._needs_demand().supply(first, content, count)
        if taken and self.firmware.asyncpf.blocked:  # it may have been the page with a control block
            with self.lock:
                self.firmware.asyncpf.retry()
            self.tell_interrupts()
        return taken

    def absent(self) -> bytearray:
        return self.demand.absent() if self.demand is not None else super().absent()

    @property
    def absent_count(self) -> int:
        return self.demand.count if self.demand is not None else 0

    def demand_figures(self) -> DemandFigures:
        return self._needs_demand().figures()

    def stood(self, vcpu: int) -> float:
        """For how many seconds a vCPU has stood still, since pages were absent."""
        return self.demand.stood(vcpu) if self.demand is not None else 0.0

    def vcpu_goes_on(self, vcpu: int) -> None:
        """A vCPU has begun something else, an event's handler, although a page that it stood still for is absent."""
        if self.demand is not None:
            self.demand.goes_on(vcpu)

    def load_state(self, sections: Sequence[Section]) -> None:
        super().load_state(sections)
        self.tell_interrupts()  # those that wait for pages are woken; the interrupt controller is there by now

    def _needs_demand(self) -> Demand:
        if self.demand is None:
            raise StateError("without stage 2 nobody sees which pages a guest needs", "leave --no-stage2 out")
        return self.demand

    def _all_here(self) -> None:
        """Raises StateError where pages are absent."""
        if self.absent_count:
            raise StateError(
                f"{self.absent_count} pages of the guest are not here yet", "wait until the last one has come"
            )

    def _unlogged(self, logging: bool) -> None:
        """Raises StateError where the guest's writes are watched: a page that comes back would not be."""
        if logging:
            raise StateError("no page can be taken from a guest that is being moved", "wait for the end of that")

    def _arrived(self, vcpus: int, tokens: Sequence[tuple[int, int]]) -> None:
        """Pages have come: those who stood still can go on, and those who were told are told again."""
        if vcpus:
            self._go_on(vcpus)
        if not tokens:
            return
        firmware = self.firmware
        asyncpf, pes = firmware.asyncpf, firmware.pes
        with self.lock:
            for vcpu, token in tokens:
                asyncpf.ready(pes[vcpu], token)
            wanted = asyncpf.take_interrupts()
        self._raise_interrupts(wanted)

    def tell_interrupts(self) -> None:
        """Raise the interrupts that asynchronous page faults have asked for. The lock is not held."""
        if not self.firmware.asyncpf.interrupts:
            return
        with self.lock:
            wanted = self.firmware.asyncpf.take_interrupts()
        self._raise_interrupts(wanted)

    def _raise_interrupts(self, wanted: int) -> None:
        for vcpu in bits(wanted):
            self.pulse(vcpu, self.firmware.asyncpf.settings.intid)

    # -- what the services read and write in RAM, as the guest's own CPUs would

    def read_physical(self, address: int, size: int) -> bytes | None:
        """The guest's RAM by physical address; None where there is none, or not yet."""
        if self.demand is not None:
            return self.demand.read(address, size)
        if not RAM_BASE <= address <= address + size <= RAM_BASE + self.config.memory:
            return None
        at = address - RAM_BASE
        return bytes(self.memory()[at : at + size]) if self._has_come(at, size) else None

    def write_physical(self, address: int, data: bytes) -> bool:
        """Write there; False where there is nothing, or not yet. A dirty log sees it."""
        size = len(data)
        if self.demand is not None:
            if not self.demand.write(address, data):
                return False
        else:
            at = address - RAM_BASE
            if not 0 <= at <= at + size <= self.config.memory or not self._has_come(at, size):
                return False
            self.memory()[at : at + size] = data
        self._written(address, size)
        return True

    def _has_come(self, _offset: int, _size: int) -> bool:
        """Whether that part of RAM is here, where there is no :attr:`demand` that would know."""
        return True

    @abstractmethod
    def _written(self, address: int, size: int) -> None:
        """The host has written to RAM: a dirty log is to know."""
