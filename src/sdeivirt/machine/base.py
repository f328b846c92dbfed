# SPDX-License-Identifier: Apache-2.0
"""The contract of a machine, and what all machines share.

A machine has QEMU virt's map: RAM from 0x4000_0000, a PL011 at 0x0900_0000,
the device tree's address in x0, PSCI, HVC and SMC conduits. Its life:

    created --load()--> created --start()--> running <--pause(), resume()--> paused
       |                                        |                               ^
       |                            power-off, fault, stop()                    |
       |                                        v                               |
       |                                     stopped --close()                  |
       +--start_incoming()--> incoming --load_state()---------------------------+

Everything public may be called from any thread; one lock guards the services.
"""

from __future__ import annotations

import enum
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, ClassVar, Protocol, Self, TypeVar

from ..asyncpf import AsyncPfSettings
from ..cpu import CpuFeatures
from ..errors import StateError, StreamError, UsageError
from ..firmware import Firmware
from ..migration.sections import Section
from ..ras.desk import ErrorDesk
from ..ras.outcome import Outcome as ErrorOutcome
from ..ras.sources import ErrorSource, check_sources
from ..ras.status_block import Encodable
from ..registers.sections import FIRMWARE_SECTIONS, firmware_sections, load_firmware_sections
from ..sdei import EventDefinition, Policy
from ..sdei.policy import KVM
from ..sdei.service import Injection
from ..smccc.ids import Conduit, Owner
from ..smccc.psci import PowerControl
from ..tables.bootargs import check_bootargs
from .report import FaultReport, VmStatus, async_pf_status, firmware_status

if TYPE_CHECKING:
    from .demand import DemandFigures, PageSource

__all__ = [
    "MAX_VCPUS",
    "RAM_BASE",
    "PAGE_SIZE",
    "UART_BASE",
    "Detour",
    "EngineOptions",
    "ExitReason",
    "Machine",
    "MachineConfig",
    "Outcome",
]

RAM_BASE = 0x4000_0000
UART_BASE = 0x0900_0000
MAX_VCPUS = 512
PAGE_SIZE = 4096
MIN_MEMORY = 2 << 20
MAX_MEMORY = 64 << 30
MAX_WATCHDOG = 365 * 24 * 3600


class EngineOptions:
    """What only one kind of machine has; each kind defines a record of its own."""

    __slots__ = ()

    def travelling(self) -> dict[str, str | bool]:
        """Those that a guest can tell apart: they go with it when it moves."""
        return {}

    def arrived(self, travelled: Mapping[str, str | bool]) -> Self:
        """These options with the ones that came with a guest. Raises UsageError for what cannot be."""
        if travelled:
            raise UsageError(f"there is no option {next(iter(travelled))[:40]!r}")
        return self


@dataclass(frozen=True, slots=True)
class MachineConfig:
    """What a machine is made of. Raises UsageError for what cannot be.

    `memory` in bytes. `bitmaps` overrides service bitmaps by owner. `seed`
    chooses the deterministic scheduler: same seed, same trace. `bootargs`
    goes to /chosen in the device tree. `async_pf` is how the guest may be told
    of pages that are not here yet. `watchdog` is the time in seconds that
    one SDEI handler may run before its vCPU is reported as stuck; None waits
    for ever. `restart` says whether PSCI SYSTEM_RESET starts the guest again or
    ends the run. `directory` is a private one for sockets of the engine's own,
    if it has any. `engine` holds options of one kind of machine. `error_sources` report hardware
    errors to a guest that boots by ACPI; each is announced by one of `events`.
    """

    name: str = "vm"
    vcpus: int = 2
    memory: int = 64 << 20
    policy: Policy = KVM
    events: tuple[EventDefinition, ...] = ()
    conduit: Conduit = Conduit.HVC
    bootargs: str = ""
    bitmaps: Mapping[Owner, int] = field(default_factory=dict)
    seed: int | None = None
    watchdog: float | None = None
    restart: bool = True
    directory: Path | None = None
    engine: EngineOptions | None = None
    async_pf: AsyncPfSettings = AsyncPfSettings()  # noqa: RUF009 (frozen)
    error_sources: tuple[ErrorSource, ...] = ()

    def __post_init__(self) -> None:
        for name, kinds in _TYPES.items():
            value = getattr(self, name)
            if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
                expected = " or ".join("None" if kind is type(None) else kind.__name__ for kind in kinds)
                raise UsageError(f"{name} must be {expected}, not {value!r}", _TYPE_HINTS.get(name, ""))
        if not 1 <= self.vcpus <= MAX_VCPUS:
            raise UsageError(f"a machine cannot have {self.vcpus} vCPUs", f"it can have 1 to {MAX_VCPUS}")
        check_bootargs(self.bootargs)
        if self.watchdog is not None and not 0 < self.watchdog <= MAX_WATCHDOG:
            raise UsageError(
                f"a watchdog cannot wait for {self.watchdog!r} seconds", "it can wait for more than 0, up to a year"
            )
        check_sources(self.error_sources, self.events)
        if not MIN_MEMORY <= self.memory <= MAX_MEMORY or self.memory % (1 << 20):
            raise UsageError(
                f"a machine cannot have {self.memory:#x} bytes of memory",
                "it can have whole MiB from 2 MiB to 64 GiB, such as 64M",
            )


_TYPES: dict[str, tuple[type, ...]] = {
    "name": (str,),
    "vcpus": (int,),
    "memory": (int,),
    "policy": (Policy,),
    "events": (tuple, list),
    "conduit": (Conduit,),
    "bootargs": (str,),
    "bitmaps": (Mapping,),
    "seed": (int, type(None)),
    "watchdog": (int, float, type(None)),
    "restart": (bool,),
    "directory": (Path, type(None)),
    "engine": (EngineOptions, type(None)),
    "async_pf": (AsyncPfSettings,),
    "error_sources": (tuple, list),
}
_TYPE_HINTS = {
    "policy": "the presets are in sdeivirt.POLICIES, by name",
    "conduit": "sdeivirt.Conduit.HVC or .SMC",
    "async_pf": 'such as sdeivirt.AsyncPfSettings.of("off")',
}


class ExitReason(enum.Enum):
    """Why a machine stopped."""

    POWER_OFF = "power-off"  # PSCI SYSTEM_OFF
    RESET = "reset"  # PSCI SYSTEM_RESET, where the guest is not to be restarted
    PANIC = "panic"  # the guest's kernel has panicked
    FAULT = "fault"  # every vCPU that could go on has faulted
    STOPPED = "stopped"  # stop()
    TIME_LIMIT = "time-limit"  # wait(limit) ran out
    MOVED = "moved"  # the guest runs somewhere else now, or its state is in a file
    ALL_OFF = "all-off"  # every vCPU called CPU_OFF: nothing can ever run again


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a run ended. `faults` reports vCPUs that could not go on, and after a time limit every vCPU."""

    reason: ExitReason
    faults: list[FaultReport]


class Detour(Protocol):
    """Where injections go once the state has been written down, which would not hold them any more.

    Called with the machine's lock held; the futures get what the machine's
    own methods return or raise, or MovedError.
    """

    def inject(self, event: int, vcpu: int | None, affinity: int | None) -> Future[Injection]: ...

    def cancel(self, event: int, vcpu: int | None, affinity: int | None) -> Future[bool]: ...


class _PhysicalMemory:
    """What the services see of the guest's RAM."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine

    def covers(self, address: int, size: int) -> bool:
        return RAM_BASE <= address <= address + size <= RAM_BASE + self._machine.config.memory

    def read(self, address: int, size: int) -> bytes | None:
        return self._machine.read_physical(address, size)

    def write(self, address: int, data: bytes) -> bool:
        return self._machine.write_physical(address, data)


class Machine(ABC):
    """A machine. Use as a context manager, or call :meth:`close`."""

    kind: ClassVar[str]
    takes_early: ClassVar[bool] = False  # prepare_save() gives sections, and load_early() takes them

    def __init__(self, config: MachineConfig, features: CpuFeatures | None = None) -> None:
        self.config = config
        self.console: Callable[[bytes], None] = lambda _data: None
        self.lock = threading.Lock()
        self._detour: Detour | None = None
        memory = _PhysicalMemory(self)
        self.firmware = Firmware(
            config.vcpus,
            self._power_control(),
            events=config.events,
            policy=config.policy,
            features=features,
            entry_ok=self._entry_ok,
            async_pf=config.async_pf,
            memory=memory,
        )
        self.physical = memory
        self.errors = ErrorDesk(self)
        for owner, value in config.bitmaps.items():
            self.firmware.router.bitmaps[owner].set(value)

    # -- for each engine to say

    @property
    @abstractmethod
    def state(self) -> str:
        """created, incoming, running, paused or stopped."""

    @abstractmethod
    def load(self, path: Path | str) -> None:
        """Load an ELF file or an arm64 Image. Raises ImageError."""

    @abstractmethod
    def start(self) -> None:
        """Run, on a thread of the machine's own."""

    @abstractmethod
    def pause(self) -> None:
        """Stop all vCPUs between two instructions; returns when they have stopped."""

    @abstractmethod
    def resume(self) -> None:
        """Go on after :meth:`pause`."""

    @abstractmethod
    def stop(self) -> None:
        """End the run; :meth:`wait` returns STOPPED."""

    @abstractmethod
    def wait(self, limit: float | None = None) -> Outcome:
        """Wait for the end of the run; after `limit` seconds end it with TIME_LIMIT.

        A host error inside of the machine's thread is raised here.
        """

    @abstractmethod
    def close(self) -> None:
        """Stop if need be and free everything. Can be called twice."""

    @abstractmethod
    def type_in(self, data: bytes) -> int:
        """Give the guest input on its serial port; how many bytes there was room for (64 KiB wait at most)."""

    @abstractmethod
    def faults(self) -> list[FaultReport]:
        """The vCPUs that cannot go on."""

    @abstractmethod
    def kick(self, bitmap: int) -> None:
        """Have the PEs of `bitmap` stop and look for events. From any thread."""

    @abstractmethod
    def _power_control(self) -> PowerControl:
        """What carries out PSCI's decisions."""

    @abstractmethod
    def _entry_ok(self, address: int) -> bool:
        """Whether a PE may be started at an address."""

    @abstractmethod
    def stuck(self, index: int, event: int, limit: float) -> None:
        """The watchdog's verdict, from its own thread: the handler of an event has run for too long on a vCPU."""

    # -- moving: a guest that leaves. An engine that has these says so by overriding them all.

    def prepare_save(self, apart: bool = False) -> list[Section]:
        """The guest is about to be paused and saved: do what can be done while it runs.

        With `apart`, what of the engine's state is there already: for :meth:`load_early` at the
        destination, and :meth:`save_state` need not say it again.
        """
        return []  # most engines have nothing to prepare

    def pause_to_save(self) -> float:
        """As :meth:`pause`, after :meth:`prepare_save`; since when the vCPUs stand, by time.monotonic()."""
        began = time.monotonic()
        self.pause()
        return began

    def start_dirty_log(self) -> None:
        """Note from now on which pages of RAM the guest writes."""
        raise self._cannot_move()

    def collect_dirty(self) -> bytearray:
        """Which pages were written since the log was started, or last collected; they are watched anew.

        A byte a page from RAM_BASE on, 1 or 0. What is read of a page after
        this call is what it held when the call returned, or newer and then noted again.
        Works on a machine that is paused, too.
        """
        raise self._cannot_move()

    def stop_dirty_log(self) -> None:
        """Let the guest write unwatched and unlimited again. Can be called twice."""
        raise self._cannot_move()

    def limit_dirtying(self, pages_per_second: int | None) -> None:
        """Hold vCPUs up that begin to write more pages than that, so that a migration can catch up; None: do not."""
        raise self._cannot_move()

    def _save_engine(self) -> list[Section]:
        """All of a paused machine but RAM and firmware: vCPUs and devices. The lock is not held."""
        raise self._cannot_move()

    def depart(self) -> None:
        """The guest has left: as :meth:`stop`, but :meth:`wait` returns MOVED."""
        raise self._cannot_move()

    # -- and one that comes

    def start_incoming(self) -> None:
        """Instead of load() and start(): be ready, with RAM that is all zeroes. The state is "incoming".

        RAM is there when this returns; the rest of the machine when :meth:`standing` is done.
        """
        raise self._cannot_move()

    def standing(self) -> Future[None]:
        """Done when a state can be taken over, or with the error where it never can be. Who loads one waits for it."""
        stands: Future[None] = Future()
        stands.set_result(None)
        return stands

    def load_early(self, section: Section) -> None:
        """Take over one of those that :meth:`prepare_save` gave, before load_state(). Raises StreamError."""
        raise StreamError(f"section {section} of machine {self.kind} has come early")

    def _offer_engine(self, sections: Sequence[Section]) -> None:
        """What :meth:`_load_engine` is about to get: an engine that works by itself can begin."""
        return

    def _load_engine(self, sections: Sequence[Section]) -> None:
        """Take over what :meth:`_save_engine` gave, RAM and firmware being there; paused afterwards.

        Raises StreamError. The engine offers each PE a look for events when it goes on.
        """
        raise self._cannot_move()

    # -- pages that are not here yet, see demand.py

    def check_post_copy(self) -> None:
        """Raises StateError where the guest cannot run before all of its RAM has come."""
        raise self._cannot_move()

    def pages_of_devices(self) -> list[int]:
        """Pages that devices access by themselves, past stage 2: they have to come first. The machine is paused."""
        return []

    def lack_pages(self, absent: bytearray, source: PageSource) -> None:
        """These pages, a byte a page from RAM_BASE on and 1 for each, come later: whoever touches one waits for it.

        Before :meth:`load_state`; `source` is asked for what is needed at once. Raises StateError
        where the machine is not incoming, or has no stage 2.
        """
        raise self._cannot_move()

    def supply_pages(self, first: int, content: bytes | bytearray | memoryview) -> int:
        """Whole pages have come, from that one on; how many of them were still absent. Others are left alone."""
        raise self._cannot_move()

    def supply_zeroes(self, first: int, count: int) -> int:
        """The same for pages that hold nothing but zeroes."""
        raise self._cannot_move()

    def evict_pages(self, pages: Sequence[int], source: PageSource) -> dict[int, bytes]:
        """Take pages away from a guest that runs; what they held. They are absent then, and `source` is asked for them.

        One that the guest touches meanwhile stays. Raises StateError where the guest does not run.
        """
        raise self._cannot_move()

    def absent(self) -> bytearray:
        """Which pages are absent, a byte a page."""
        return bytearray(self.config.memory // PAGE_SIZE)

    @property
    def absent_count(self) -> int:
        """How many pages are absent."""
        return 0

    def demand_figures(self) -> DemandFigures:
        """What has become of accesses to absent pages."""
        raise self._cannot_move()

    def read_physical(self, address: int, size: int) -> bytes | None:
        """The guest's RAM by physical address; None where there is none, or not yet. With the lock held."""
        return None

    def write_physical(self, address: int, data: bytes) -> bool:
        """Write there; False where there is nothing, or not yet. With the lock held."""
        return False

    def pulse(self, vcpu: int, intid: int) -> None:
        """Make a private interrupt of a PE pending, as an edge on its line would. From any thread."""
        raise UsageError(f"machine {self.kind} has no interrupts", "machines unicorn and qemu have")

    def abandon(self, error: BaseException) -> None:
        """The guest does not come after all: end the run, and raise that in :meth:`wait`."""
        raise self._cannot_move()

    def _cannot_move(self) -> StateError:
        return StateError(f"machine {self.kind} cannot move its guest", "machines unicorn and qemu can")

    # -- the same everywhere

    def save_state(self, detour: Detour) -> list[Section]:
        """All of a paused machine but RAM. From here on injections are the detour's, until :meth:`keep_state`.

        Raises StateError where the machine is not paused.
        """
        with self.lock:
            if self.state != "paused":
                raise StateError(f"the state of a machine that is {self.state} cannot be saved", "pause it first")
            if self.absent_count:
                raise StateError(f"{self.absent_count} pages of the guest are not here yet", "wait for the last one")
            self._detour = detour
        engine = self._save_engine()
        with self.lock:
            return firmware_sections(self.firmware) + engine

    @property
    def leaving(self) -> bool:
        """Whether the state has been written down for somewhere else, so that nothing may change here any more."""
        return self._detour is not None

    def keep_state(self) -> None:
        """The guest stays after all: injections are taken again."""
        with self.lock:
            self._detour = None

    def load_state(self, sections: Sequence[Section]) -> None:
        """Take over what :meth:`save_state` gave, on a machine that is incoming; paused afterwards.

        Raises StreamError, and StateError where the machine is not incoming.
        """
        if self.state != "incoming":
            raise StateError(f"a machine that is {self.state} cannot take over a state", "call start_incoming() first")
        self._offer_engine([each for each in sections if each.name not in FIRMWARE_SECTIONS])
        with self.lock:
            load_firmware_sections(self.firmware, [each for each in sections if each.name in FIRMWARE_SECTIONS])
        self._load_engine([each for each in sections if each.name not in FIRMWARE_SECTIONS])
        with self.lock:
            self.errors.arrived()

    @property
    def scheduler(self) -> str:
        """How vCPUs share the host, in a word."""
        return "native"

    def hints(self) -> list[str]:
        """How else to talk to the machine, a line each, for people."""
        return []

    def memory(self) -> memoryview:
        """The guest's RAM from RAM_BASE on, as bytes to read and to write, also while the guest runs.

        A reset may bring other memory: ask again. Raises StateError where there is none (yet).
        """
        raise StateError("the machine has no memory", "call start() first")

    def data_ranges(self) -> list[tuple[int, int]]:
        """Where :meth:`memory` can hold anything but zeroes: offsets [start, end) in order, whole pages."""
        return [(0, self.config.memory)]

    def details(self) -> dict[str, int | str]:
        """What there is to know of the engine, by name."""
        return {}

    def inject(self, event: int, vcpu: int | None = None, affinity: int | None = None) -> Injection:
        """Inject an SDEI event, into a vCPU named by index or affinity if it is private.

        Raises UnknownEventError, UnknownVcpuError, NotRegisteredError, UsageError,
        and StateError where the machine has stopped. While the guest is being
        handed over it waits for the end of that, and can raise MovedError.
        """
        answer = self._inject(event, vcpu, affinity)
        return answer.result() if isinstance(answer, Future) else answer

    def inject_later(self, event: int, vcpu: int | None = None, affinity: int | None = None) -> Future[Injection]:
        """:meth:`inject` for those who cannot wait: done at once, unless the guest is being handed over."""
        return _future(lambda: self._inject(event, vcpu, affinity))

    def _inject(self, event: int, vcpu: int | None, affinity: int | None) -> Injection | Future[Injection]:
        state = self._alive()
        with self.lock:
            if self._detour is not None:
                return self._detour.inject(event, vcpu, affinity)
            sdei = self.firmware.sdei
            if affinity is not None:
                vcpu = sdei.pe_of_affinity(affinity).index
            injection = sdei.inject(event, vcpu)
            kicks = self.firmware.take_kicks()
        if kicks:
            self.kick(kicks)
        return replace(injection, waits="paused") if state == "paused" and not injection.waits else injection

    def cancel(self, event: int, vcpu: int | None = None, affinity: int | None = None) -> bool:
        """Take back a pending event; False if none was pending. Errors as :meth:`inject`, and EventRunningError."""
        answer = self._cancel(event, vcpu, affinity)
        return answer.result() if isinstance(answer, Future) else answer

    def cancel_later(self, event: int, vcpu: int | None = None, affinity: int | None = None) -> Future[bool]:
        """:meth:`cancel` for those who cannot wait."""
        return _future(lambda: self._cancel(event, vcpu, affinity))

    def _cancel(self, event: int, vcpu: int | None, affinity: int | None) -> bool | Future[bool]:
        self._alive()
        with self.lock:
            if self._detour is not None:
                return self._detour.cancel(event, vcpu, affinity)
            sdei = self.firmware.sdei
            if affinity is not None:
                vcpu = sdei.pe_of_affinity(affinity).index
            return sdei.cancel(event, vcpu)

    def inject_error(
        self,
        block: bytes | Encodable,
        source: int = 0,
        vcpu: int | None = None,
        *,
        when_busy: str = "wait",
        limit: float = 10.0,
    ) -> ErrorOutcome:
        """Report a hardware error to the guest by one of its sources, and wait for what becomes of that.

        `block` is a generic error status block, such as :func:`sdeivirt.ras.cper.make_block` makes. Where the
        guest has not acknowledged the report before, `when_busy` says whether to "wait" for that, to "fail"
        with BusyError, or to "queue" the report and wait for nothing. `vcpu` is for sources with a private event.
        Raises UsageError, UnknownVcpuError, NotRegisteredError, StateError where the machine has stopped or
        the guest is reset meanwhile, MovedError, and TimeLimitError after `limit` seconds.
        """
        return self.errors.submit(block, source, vcpu, when_busy=when_busy, limit=limit).result()

    def inject_error_later(
        self,
        block: bytes | Encodable,
        source: int = 0,
        vcpu: int | None = None,
        *,
        when_busy: str = "wait",
        limit: float = 10.0,
    ) -> Future[ErrorOutcome]:
        """:meth:`inject_error` for those who cannot wait."""
        return _future(lambda: self.errors.submit(block, source, vcpu, when_busy=when_busy, limit=limit))

    def _alive(self) -> str:
        """The state, which is one with a guest."""
        state = self.state
        if state == "stopped":
            raise StateError("the machine has stopped", "nothing can be injected any more: start another")
        if state == "incoming":
            raise StateError("the guest has not come yet", "inject the event where it is now, or wait for it")
        return state

    def status(self) -> VmStatus:
        """Everything there is to know, in one consistent record."""
        with self.lock:
            vcpus, events = firmware_status(self.firmware)
            async_pf = async_pf_status(self.firmware)
            errors = self.errors.status()
        faults = self.faults()
        for fault in faults:
            vcpus[fault.vcpu] = replace(vcpus[fault.vcpu], power="faulted")
        return VmStatus(
            name=self.config.name,
            machine=self.kind,
            state=self.state,
            policy=self.config.policy.name,
            memory=self.config.memory,
            scheduler=self.scheduler,
            vcpus=vcpus,
            events=events,
            faults=faults,
            engine=self.details(),
            async_pf=async_pf,
            error_sources=errors,
        )

    @property
    def panicked(self) -> bool:
        """Whether the guest's kernel has said that it panics."""
        return False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


T = TypeVar("T")


def _future(call: Callable[[], T | Future[T]]) -> Future[T]:
    """What a call returns or raises, as a future."""
    future: Future[T] = Future()
    try:
        answer = call()
    except Exception as error:
        future.set_exception(error)
        return future
    if isinstance(answer, Future):
        return answer
    future.set_result(answer)
    return future
