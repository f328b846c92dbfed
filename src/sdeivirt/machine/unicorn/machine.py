# SPDX-License-Identifier: Apache-2.0
"""The embedded machine: memory, vCPUs and the thread that runs them."""

from __future__ import annotations

import mmap
import threading
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path

from ...cpu import M64, CpuFeatures
from ...errors import StateError, UsageError
from ...migration.sections import Section
from ...sdei.model import bits
from ...smccc.psci import Power
from ...tables.devicetree import build as build_devicetree
from ..base import RAM_BASE, UART_BASE, ExitReason, MachineConfig
from ..demand import Demand, PageSource
from ..dirty import DirtyLog
from ..images import GuestImage, read_image
from ..pl011 import Pl011
from ..report import FaultReport
from ..stage2 import Kind
from ..threaded import ThreadedMachine
from . import gic, moving, stub
from .binding import Engine, EngineError
from .errands import Errands
from .schedulers import DeterministicScheduler, FastScheduler, Scheduler
from .stage2 import NORESERVE, Translation
from .state import BootRecord
from .sysregs import RegisterWriter
from .turns import Turns
from .vcpu import UnicornVcpu, VcpuState

__all__ = ["UnicornMachine"]


class UnicornMachine(ThreadedMachine):
    """N vCPUs, each a Unicorn engine, taking turns on one thread."""

    kind = "unicorn"
    ram_base = RAM_BASE
    uart_base = UART_BASE

    def __init__(self, config: MachineConfig) -> None:
        if config.engine is not None:
            raise UsageError("machine unicorn has no options of its own", "they belong to another machine")
        self.ram_size = config.memory
        try:
            # Reserved, not touched: memory costs what the guest uses.
            self.ram = mmap.mmap(-1, config.memory, flags=NORESERVE)
        except OSError as error:
            raise UsageError(
                f"this host has no {config.memory >> 20} MiB to give", "choose a smaller --memory"
            ) from error
        self._memory = memoryview(self.ram)
        self.translation = Translation(RAM_BASE, config.memory, (UART_BASE,))
        for start, size in ((gic.GICD_BASE, gic.GICD_SIZE), *gic.regions(config.vcpus)):
            self.translation.stage2.map(start, start + size, Kind.DEVICE)
        self.dirty = DirtyLog(self.translation.stage2, RAM_BASE, config.memory)
        self.demand: Demand = Demand(self.translation.stage2, self.dirty.lock, self._memory, RAM_BASE, self._arrived)
        self.register_writer = RegisterWriter()
        self.uart = Pl011(lambda data: self.console(data))
        if config.error_sources:
            raise UsageError("machine unicorn has no sources of errors", "add --machine qemu --firmware acpi")
        super().__init__(config, _probe_features())
        self._scheduler: Scheduler
        if config.seed is None and stub.available()[0]:
            self._scheduler = FastScheduler()
        else:
            self._scheduler = DeterministicScheduler(config.seed)
        self.gic = gic.Gic(self)
        self.vcpus = [UnicornVcpu(self, pe) for pe in self.firmware.pes]
        self.on_slice: Callable[[int, int], None] | None = None  # (vCPU, PC) before each slice
        self._image: GuestImage | None = None
        self._boot_record: BootRecord | None = None  # the image as it is sent, made when it is needed
        self._kicked: deque[int] = deque()  # bitmaps; appended by any thread
        self._supplied: deque[int] = deque()  # the same, of those whose pages have come
        self.turns = Turns()
        self.counter_offset = 0  # CNTVOFF_EL2
        self._counter: int | None = None  # what the guest's counter goes on from when vCPUs run again
        self._wake = threading.Event()
        self._command = threading.Condition()
        self._errands = Errands(self._command, self._interrupt)
        self._running: UnicornVcpu | None = None  # the one whose slice has begun
        self._incoming = False
        self._pause = False
        self._reset = False
        self._stuck: tuple[int, str] | None = None

    # -- the contract

    @property
    def state(self) -> str:
        state = super().state
        if self._incoming and state == "created":
            return "incoming"
        # Whoever has had it resumed need not wait until its thread has seen that.
        return "running" if state == "paused" and not self._pause and self._ending is None else state

    @property
    def scheduler(self) -> str:
        return self._scheduler.name

    def load(self, path: Path | str) -> None:
        self._may_load()
        self._image = read_image(Path(path), RAM_BASE, self.ram_size)
        self._place()

    def start(self) -> None:
        if self._image is not None and self._thread is None:
            self._boot()
        self._begin(self._image is not None)

    def _may_load(self) -> None:
        super()._may_load()
        if self._incoming:
            raise StateError("another guest is on its way into this machine", "start one machine for each")

    def _begin(self, loaded: bool) -> None:
        if loaded and self._thread is None:
            self._errands.open()
        self._start_thread(loaded)

    def pause(self) -> None:
        with self._command:
            self._pause = True
            self._interrupt()
            self._command.wait_for(lambda: self._paused or self._finished.is_set() or self._thread is None)

    def resume(self) -> None:
        with self._command:
            self._pause = False
            self._command.notify_all()
        self._wake.set()

    @property
    def waited_for(self) -> bool:
        """Whether somebody waits for this machine's thread, to pause say; one that holds it up must let go."""
        return self._pause or self._ending is not None or bool(self._errands)

    def choose_slices(self, lengths: Sequence[int]) -> None:
        """Have the seeded scheduler choose from these lengths, in instructions. Raises UsageError without a seed."""
        if not isinstance(self._scheduler, DeterministicScheduler):
            raise UsageError("this machine's schedule is not its own", "give it a seed")
        self._scheduler.SLICES = tuple(lengths)

    def type_in(self, data: bytes) -> int:
        return self.uart.type_in(data)

    def faults(self) -> list[FaultReport]:
        return [vcpu.fault for vcpu in self.vcpus if vcpu.fault is not None]

    def kick(self, bitmap: int) -> None:
        self._kicked.append(bitmap)
        self._interrupt()

    def signalled(self, bitmap: int) -> None:
        """The interrupt controller signals to vCPUs, on the machine's thread: have them looked at."""
        self._kicked.append(bitmap)
        if self._running is not None:
            self._scheduler.request_stop()

    def signal_gone(self, index: int) -> None:
        """It signals nothing to that vCPU any more, which need not be looked at soon, if it was to be."""
        if self._running is self.vcpus[index]:
            self._scheduler.lift_limit()

    @property
    def kicked(self) -> bool:
        """Whether some vCPU is to be looked at, once the one that runs has stopped."""
        return bool(self._kicked)

    def pulse(self, vcpu: int, intid: int) -> None:
        self._alive()
        if not 0 <= intid < gic.PRIVATE:
            raise UsageError(f"{intid} is not a private interrupt", "those have the INTIDs 0 to 31")
        self.gic.pulse(self.firmware.sdei.pe(vcpu).index, intid)
        self.kick(1 << vcpu)

    def _interrupt(self) -> None:
        self._scheduler.request_stop()
        if not self._wake.is_set():  # who clears it looks again
            self._wake.set()

    def _ending_set(self) -> None:
        with self._command:
            self._command.notify_all()
        self._interrupt()

    # -- memory

    def memory(self) -> memoryview:
        return self._memory

    def in_ram(self, address: int) -> bool:
        """Whether a guest physical address is RAM."""
        return RAM_BASE <= address < RAM_BASE + self.ram_size

    def _entry_ok(self, address: int) -> bool:
        return self.in_ram(address)

    def read_guest(self, engine: Engine, address: int, size: int) -> bytes | None:
        """Read code as the vCPU does, through its translation where it has one on; None where nothing is mapped."""
        address &= M64
        if engine.sysreg("SCTLR_EL1") & 1:
            first, last = engine.translate(address), engine.translate(address + size - 1 & M64)
            if first is None or last != first + size - 1:
                return None
            address = first
        offset = address - RAM_BASE
        return self.ram[offset : offset + size] if 0 <= offset <= self.ram_size - size else None

    def _place(self) -> None:
        """Write the guest and the device tree into RAM."""
        image = self._image
        assert image is not None
        for address, content in image.segments:
            self.ram[address - RAM_BASE : address - RAM_BASE + len(content)] = content
        tree = self.devicetree()
        at = image.place(len(tree), RAM_BASE, RAM_BASE + self.ram_size)
        self.ram[at - RAM_BASE : at - RAM_BASE + len(tree)] = tree
        self._devicetree = at

    def devicetree(self) -> bytes:
        """What tells the guest of this machine."""
        return build_devicetree(self.config, [pe.affinity for pe in self.firmware.pes])

    def _clear_ram(self) -> None:
        # MADV_DONTNEED gives private anonymous memory back; it reads as zeroes again.
        self.ram.madvise(mmap.MADV_DONTNEED)

    def _boot(self) -> None:
        image = self._image
        assert image is not None
        with self.lock:
            self.firmware.psci.power[0] = Power.ON_PENDING
        self.vcpus[0].start(image.entry, self._devicetree)
        self.turns.append(self.vcpus[0])

    # -- what PSCI decides; called with the lock held, from a vCPU's hook

    def _power_control(self) -> UnicornMachine:
        return self

    def cpu_on(self, index: int, entry: int, context_id: int) -> None:
        vcpu = self.vcpus[index]
        vcpu.start(entry, context_id)
        self.turns.append(vcpu)
        self._scheduler.limit_slice()

    def cpu_off(self, index: int) -> None:
        self.firmware.sdei.pe_off(self.firmware.pes[index])
        self.vcpus[index].state = VcpuState.OFF

    def cpu_standby(self, index: int) -> None:
        if self.firmware.sdei.delivery.next(self.firmware.pes[index]) is None and not self.gic.signals >> index & 1:
            self.vcpus[index].state = VcpuState.WAITING

    def cpu_powerdown(self, index: int, entry: int, context_id: int) -> bool:
        if self.gic.signals >> index & 1 or not self.firmware.sdei.pe_suspend(self.firmware.pes[index]):
            return False
        vcpu = self.vcpus[index]
        vcpu.start(entry, context_id)
        vcpu.state = VcpuState.SUSPENDED
        return True

    def system_off(self) -> None:
        self._ending = self._ending or ExitReason.POWER_OFF
        self._stop_all()

    def system_reset(self) -> None:
        if self.config.restart:
            self._reset = True
        else:
            self._ending = self._ending or ExitReason.RESET
        self._stop_all()

    def _stop_all(self) -> None:
        """Every vCPU is off from here on; the one that called stops in its hook."""
        for vcpu in self.vcpus:
            if vcpu.state is not VcpuState.FAULTED:
                vcpu.state = VcpuState.OFF

    # -- what vCPUs tell; on the machine's thread

    def prepare(self, engine: Engine) -> None:
        self._scheduler.prepare(engine)

    def vcpu_started(self, vcpu: UnicornVcpu) -> None:
        with self.lock:
            pe = vcpu.pe
            if pe.suspended:
                self.firmware.sdei.pe_resume(pe)
            else:
                self.firmware.sdei.pe_on(pe)
            self.firmware.psci.started(pe.index)
            kicks = self.firmware.take_kicks()
        if kicks:
            self.kick(kicks)

    def vcpu_faulted(self, vcpu: UnicornVcpu) -> None:
        self._ending = self._ending or ExitReason.FAULT

    def stuck(self, index: int, event: int, limit: float) -> None:
        """The watchdog's verdict, from its own thread: the vCPU is faulted between two slices."""
        self._stuck = (index, f"the handler of event {event:#x} has run for more than {limit:g} s")
        self._interrupt()

    def hold(self, vcpu: UnicornVcpu, seconds: float) -> None:
        """The vCPU that runs is not to go on for that long, math.inf until it is told to."""
        self.turns.hold(vcpu, seconds)

    # -- moving

    @property
    def schedule(self) -> Scheduler:
        """What chooses the vCPU that runs next."""
        return self._scheduler

    @property
    def boot(self) -> BootRecord | None:
        """The guest's image as it is sent, if the guest can start again."""
        if self._boot_record is None and self._image is not None and self.config.restart:
            self._boot_record = BootRecord.of(self._image)
        return self._boot_record

    def prepare_save(self, apart: bool = False) -> list[Section]:
        _ = self.boot
        return []

    def start_dirty_log(self) -> None:
        def start() -> None:
            self._all_here()
            self.dirty.start()
            self._forget_rights()

        self._errands.make(start)

    def collect_dirty(self) -> bytearray:
        def collect() -> bytearray:
            dirty = self.dirty.collect()
            self._forget_rights()
            return dirty

        return self._errands.make(collect)

    def _forget_rights(self) -> None:
        # Each engine flushes its TLB before it runs again; none runs now, so pages can be read at once.
        for vcpu in self.vcpus:
            vcpu.forget_rights()
        self._none_walks()

    def _none_walks(self) -> None:
        """No engine is on its way through the tables."""
        with self.dirty.lock:
            self.translation.stage2.flushed(self.translation.stage2.released)

    def stop_dirty_log(self) -> None:
        def stop() -> None:
            self.dirty.stop()
            self._none_walks()
            self.turns.let_go(all_of_them=True)

        self._errands.make(stop)

    def limit_dirtying(self, pages_per_second: int | None) -> None:
        def limit() -> None:
            self.dirty.limit(pages_per_second)
            self.turns.let_go(all_of_them=True)

        self._errands.make(limit)

    def evict_pages(self, pages: Sequence[int], source: PageSource) -> dict[int, bytes]:
        def flush() -> bool:
            self._forget_rights()
            return True

        def evict() -> dict[int, bytes]:
            self._unlogged(self.dirty.on)
            return self.demand.evict(pages, source, flush)

        return self._errands.make(evict)

    def _go_on(self, vcpus: int) -> None:
        self._supplied.append(vcpus)
        self._interrupt()

    def _written(self, address: int, size: int) -> None:
        if self.dirty.on:
            self.dirty.mark(address, size)

    def _save_engine(self) -> list[Section]:
        """As the contract says. Raises StateError also where a vCPU executes AArch32 code."""
        return self._errands.make(lambda: moving.save(self))

    def start_incoming(self) -> None:
        self._may_load()
        if self._image is not None:
            raise StateError("a guest has been loaded already", "start one machine for each")
        for vcpu in self.vcpus[:_PREPARED]:
            vcpu.prepare()
        self._incoming = True

    def _load_engine(self, sections: Sequence[Section]) -> None:
        moving.load(self, sections)
        self._pause = self._paused = True
        self._incoming = False
        self._begin(True)

    def remember(self, image: GuestImage, record: BootRecord) -> None:
        """The guest that has come starts again with this image."""
        self._image, self._boot_record = image, record

    def come_from(self, counter: int, kicked: int) -> None:
        """The guest has come with a counter, and with kicks that its vCPUs have not seen; others follow from events."""
        self._counter = counter
        self._kicked.append(kicked | self.firmware.take_kicks())

    # -- the thread

    def _work(self) -> None:
        try:
            self._loop()
        finally:
            self.uart.flush()
            self._errands.close()

    def _loop(self) -> None:
        scheduler = self._scheduler
        turns = self.turns
        queue = turns.queue
        while True:
            # Order matters: a request made after this line stops the next slice at its first block.
            scheduler.clear_stop()
            if self._ending is not None:
                return
            if self._reset:
                self._restart()
            if self._errands:
                self._errands.run()
            if self._pause:
                self._park()
                continue
            if self._stuck is not None:
                self.vcpus[self._stuck[0]].stop_faulted(self._stuck[1])
                continue
            if self._kicked:
                self._serve_kicks()
            if self._supplied:
                self._serve_supplied()
            if turns.held:
                turns.let_go()
            if not queue:
                if all(vcpu.state is VcpuState.OFF for vcpu in self.vcpus):
                    self._ending = ExitReason.ALL_OFF
                    return
                self.uart.flush()
                self._wake.clear()
                if not (self._kicked or self._supplied or self._pause or self._ending or self._stuck or self._errands):
                    self._wake.wait(turns.next_due())
                continue
            vcpu = scheduler.pick(queue)
            turns.begin(vcpu)
            if vcpu.state is VcpuState.RUNNABLE:
                if self.on_slice is not None:
                    self.on_slice(vcpu.pe.index, vcpu.pc)
                # A vCPU that does not take the interrupt which is signalled to it soon is looked at again.
                limit = vcpu.interrupt() if self.gic.signals & vcpu.pe.bit else 0
                self._running = vcpu
                scheduler.run(vcpu, rivals=len(queue) + len(turns.held) - 1, limit=limit)
                self._running = None
            turns.end(vcpu)

    def pending_kicks(self) -> int:
        """Which vCPUs have been kicked, and have not looked yet; they still will."""
        kicks = 0
        for bitmap in tuple(self._kicked):
            kicks |= bitmap
        return kicks

    def _serve_kicks(self) -> None:
        self.gic.take_pulses()
        kicks = 0
        while self._kicked:
            kicks |= self._kicked.popleft()
        for index in bits(kicks):
            vcpu = self.vcpus[index]
            if vcpu.state is VcpuState.RUNNABLE:
                vcpu.deliver()
                self.turns.hurry(vcpu)
            elif vcpu.state is VcpuState.WAITING:
                vcpu.deliver()
                vcpu.state = VcpuState.RUNNABLE
                self.turns.woken(vcpu)
            elif vcpu.state is VcpuState.SUSPENDED:
                vcpu.state = VcpuState.RUNNABLE  # begins at the address it gave to CPU_SUSPEND
                self.turns.woken(vcpu)

    def _serve_supplied(self) -> None:
        while self._supplied:
            for index in bits(self._supplied.popleft()):
                self.turns.release(self.vcpus[index])

    def _park(self) -> None:
        self.uart.flush()
        with self._command:
            if self._counter is None:
                self._counter = self.any_engine().sysreg("CNTVCT_EL0")
            self._paused = True
            self._command.notify_all()
            while self._pause and self._ending is None:
                self._errands.run()
                self._command.wait_for(lambda: not self._pause or self._ending is not None or bool(self._errands))
            self._paused = self._ending is not None  # one that ends does not run before
        self._go_on_counting()

    # -- the guest's clock stands still while the machine is paused, and while the guest is on its way

    @property
    def counter(self) -> int:
        """What CNTVCT_EL0 goes on from. The machine is paused; raises StateError where it has ended meanwhile."""
        if self._counter is None:
            raise StateError("the machine has ended", "there is nothing left of it")
        return self._counter

    def _go_on_counting(self) -> None:
        self.counter_offset = self.any_engine().sysreg("CNTPCT_EL0") - self.counter & M64
        self._counter = None
        for vcpu in self.vcpus:
            vcpu.follow_counter()

    def any_engine(self) -> Engine:
        """An engine, to ask for what they have in common."""
        return next((vcpu for vcpu in self.vcpus if vcpu.started), self.vcpus[0]).engine

    def _restart(self) -> None:
        """PSCI SYSTEM_RESET: the guest is loaded again and everything starts over."""
        self._reset = False
        self.turns.clear()
        self._kicked.clear()
        self.gic.reset()
        self.demand.forget()
        with self.lock:
            self.firmware.sdei.reset()
            self.firmware.psci.reset()
        self._clear_ram()
        self._place()
        self.dirty.mark(RAM_BASE, self.ram_size)
        for vcpu in self.vcpus:
            vcpu.forget_code()
        self._boot()

    def _final_reports(self) -> list[FaultReport]:
        faults = self.faults()
        if self._ending is ExitReason.TIME_LIMIT:
            faults += [
                vcpu.report(f"still {_DOING[vcpu.state]} when the time was up")
                for vcpu in self.vcpus
                if vcpu.state in _DOING and vcpu.started
            ]
        return faults


_PREPARED = 8  # how many engines are made before a guest comes: each takes some 6 ms
_DOING = {
    VcpuState.RUNNABLE: "running",
    VcpuState.WAITING: "waiting for an event (WFI)",
}


def _probe_features() -> CpuFeatures:
    """What the engine's CPU model has, from its ID registers."""
    global _features
    if _features is None:
        try:
            engine = Engine()
        except Exception as error:
            raise EngineError(f"Unicorn does not start: {error}") from error
        engine.set_sysreg("SCR_EL3", 0x501)
        _features = CpuFeatures.from_id_registers(
            engine.sysreg("ID_AA64PFR0_EL1"),
            engine.sysreg("ID_AA64PFR1_EL1"),
            engine.sysreg("ID_AA64MMFR1_EL1"),
            engine.sysreg("ID_AA64MMFR2_EL1"),
        )
    return _features


_features: CpuFeatures | None = None
