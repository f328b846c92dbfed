# SPDX-License-Identifier: Apache-2.0
"""The machine `qemu`: stock QEMU with our EL2 monitor in it, and the services on an event loop.

A vCPU that traps puts its registers into its mailbox and rings; the loop,
on a thread of the machine's own, answers. See docs/qemu.md.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import platform
import shlex
import threading
import time
from collections.abc import Callable, Coroutine, Mapping
from concurrent.futures import InvalidStateError
from pathlib import Path
from typing import Any, TypeVar

from ...cpu import CpuFeatures
from ...errors import EnvironmentUnavailableError, MigrationError, SdeivirtError, StateError, UsageError
from ...migration.sections import Section
from ...smccc.psci import Power
from ..base import RAM_BASE, ExitReason, MachineConfig
from ..report import FaultReport
from . import layout
from .acpi import error_windows
from .arguments import check_arguments
from .block import Block, block_address, total_memory
from .boot import Payload, lay_out
from .bound import BoundInterrupts
from .console import Console
from .dirtying import Dirtying
from .flush import Flusher
from .gic import Gic
from .its import controller_ranges
from .kicks import Kicker
from .layout import Global, Mailbox
from .movable import MovableMachine
from .moving import Moving
from .options import QemuOptions
from .power import QemuPower
from .process import GDB_SOCKET, QMP_SOCKET, QemuProcess, find_qemu
from .qtest import Qtest
from .requests import Requests
from .uefi import FirmwareAccess, blank_files, check_uefi, firmware_preview, read_firmware
from .vcpu import QemuVcpu

__all__ = ["QemuMachine", "show_command"]

T = TypeVar("T")

_log = logging.getLogger(__name__)

_MIN_MEMORY = 8 << 20
_HOLD_SECONDS = 1.0
_BOOT_SECONDS = 15.0
_WORD_SECONDS = 10.0  # for whoever waits for a guest, to say why it cannot come
_MAX_WARNINGS = 20
_WEAKLY_ORDERED = platform.machine() not in ("x86_64", "AMD64")


def _make_process(
    config: MachineConfig, options: QemuOptions, files: Mapping[str, bytes], *, incoming: bool = False
) -> QemuProcess:
    memory = total_memory(config.memory)
    return QemuProcess(config, options, memory, entry=block_address(config.memory), files=files, incoming=incoming)


def show_command(config: MachineConfig, *, kernel: bool = True) -> str:
    """QEMU's command line for a machine, for a shell to read; without `kernel`, one that boots from a disk.

    Raises EnvironmentUnavailableError, UsageError.
    """
    options = QemuMachine(config).options
    process = _make_process(config, options, firmware_preview(options, kernel=kernel))
    try:
        return shlex.join(process.command)
    finally:
        process.abandon()


class QemuMachine(MovableMachine):
    """N vCPUs in a QEMU process of their own."""

    kind = "qemu"

    def __init__(self, config: MachineConfig) -> None:
        options = config.engine if config.engine is not None else QemuOptions()
        if not isinstance(options, QemuOptions):
            raise UsageError("these are no options of machine qemu", "give a QemuOptions as engine")
        if config.vcpus > layout.MAX_VCPUS:
            raise UsageError(f"machine qemu cannot have {config.vcpus} vCPUs", f"it can have 1 to {layout.MAX_VCPUS}")
        if config.seed is not None:
            raise UsageError("machine qemu cannot repeat a schedule", "leave --seed out, or use machine unicorn")
        if config.memory < _MIN_MEMORY:
            raise UsageError(f"machine qemu needs more than {config.memory >> 20} MiB", "give it 8M or more")
        self.options = options
        find_qemu(options.qemu)
        check_arguments(options.arguments)
        if config.error_sources and options.firmware == "dt":
            raise UsageError("a device tree tells of no sources of errors", "boot by ACPI: --firmware acpi")
        check_uefi(config, options)
        super().__init__(config)
        self.errors.open(error_windows(config))
        self.calling: QemuVcpu | None = None  # whose request is being answered
        self.holding = False  # vCPUs that stop are not to go on
        # Of the present QEMU, from the moment when it is known what runs on it.
        self.vcpus: list[QemuVcpu] = []
        self.block: Block
        self.gic: Gic
        self.bound: BoundInterrupts
        self.kicker: Kicker
        self.requests: Requests
        self.firmware_access: FirmwareAccess | None = None  # of a guest that boots by UEFI
        self._payload: Payload | None = None
        self._process: QemuProcess | None = None
        self._line: Console | None = None
        self._resetting = False
        self._started = threading.Event()
        self._order = threading.Lock()
        self._takes_commands: asyncio.Event  # a QEMU does that: the guest has power, and is not being reset
        self._told_early: Moving | None = None  # who has given state before the guest stood
        self._warned: set[str] = set()

    # -- the contract

    def load(self, path: Path | str) -> None:
        self._may_load()
        what = Path(path), self.options.initrd, RAM_BASE + self.config.memory
        if self.options.firmware == "uefi":
            self._payload = Payload.read_for_uefi(*what, read_firmware(self.options.uefi))
        else:
            self._payload = Payload.read(*what)

    def start(self) -> None:
        """As the contract says; raises EnvironmentUnavailableError where QEMU does not start.

        UEFI for which nothing has been loaded boots from a disk.
        """
        if self._payload is None and self.options.firmware == "uefi":
            self._payload = Payload.on_disks(self.config, self.options)
        self._launch(self._payload is not None)

    def _launch(self, loaded: bool) -> None:
        self._start_thread(loaded)
        self._started.wait()
        if self._finished.is_set() and self._error is not None:
            raise self._error

    def pause(self) -> None:
        self._unless_over(self._execute("stop"))

    def resume(self) -> None:
        if self.state == "incoming":
            raise StateError("there is no guest that could go on yet", "wait for it to come")
        self._unless_over(self._execute("cont"))

    def type_in(self, data: bytes) -> int:
        return self._line.type_in(data) if self._line is not None else 0

    def faults(self) -> list[FaultReport]:
        return [vcpu.fault for vcpu in self.vcpus if vcpu.fault is not None]

    def kick(self, bitmap: int) -> None:
        if self.vcpus:
            self.kicker.kick(bitmap)

    def _go_on(self, vcpus: int) -> None:
        self.kick(vcpus)

    def pulse(self, vcpu: int, intid: int) -> None:
        if self.vcpus:
            self.gic.pulse(intid, vcpu)

    def check_post_copy(self) -> None:
        super().check_post_copy()
        self._all_can_wait()

    def _all_can_wait(self) -> None:
        if self.has_devices:
            raise StateError(
                "devices and debuggers that were given to QEMU access RAM by themselves, and cannot wait for a page",
                "move the guest without --postcopy, or restore it without --lazy",
            )

    async def _device_ranges(self) -> list[tuple[int, int]]:
        qtest, redistributor = self.requests.qtest, self.block.globals[Global.GICR]
        return controller_ranges(qtest, redistributor, self.config.vcpus, self.memory())

    def online(self) -> int:
        """The PEs that a kick can stop, as a bitmap."""
        return sum(vcpu.pe.bit for vcpu in self.vcpus if vcpu.pe.online and vcpu.fault is None)

    def stuck(self, index: int, event: int, limit: float) -> None:
        reason = f"the handler of event {event:#x} has run for more than {limit:g} s"
        self._post(lambda: asyncio.ensure_future(self._stop_stuck(index, reason)))

    def hints(self) -> list[str]:
        directory = self.config.directory
        if directory is None:
            return []
        lines = [f"QEMU's own QMP: {directory / QMP_SOCKET}"]
        if self.options.gdb:
            lines.append(f"gdb: `gdb-multiarch vmlinux -ex 'target remote {directory / GDB_SOCKET}'`")
            lines.append(f"drgn: `drgn --qemu {directory / QMP_SOCKET} -s vmlinux`")
        return lines

    def details(self) -> dict[str, int | str]:
        process = self._process
        if process is None or process.pid is None:
            return {}
        return {
            "qemu": process.version,
            "pid": process.pid,
            "cpu": self.options.cpu,
            "requests": sum(vcpu.served for vcpu in self.vcpus),
            "contexts-read": sum(vcpu.words[Mailbox.CONTEXTS_READ] for vcpu in self.vcpus),
            "kicks-repaired": self.kicker.repairs if self.vcpus else 0,
        }

    def _power_control(self) -> QemuPower:
        return QemuPower(self)

    def _entry_ok(self, address: int) -> bool:
        return RAM_BASE <= address < RAM_BASE + self.config.memory

    @property
    def has_devices(self) -> bool:
        """Whether there are any that may write RAM."""
        return bool(self.options.arguments) or self.options.gdb

    # -- ends

    def _ending_set(self) -> None:
        super()._ending_set()
        if self._finished.is_set():
            self._started.set()  # or never will be
            with contextlib.suppress(InvalidStateError):
                self._stands.set_exception(self._error or self._over())

    def reset(self) -> None:
        """The guest, or somebody through QMP, resets the machine. From any thread."""
        if self.config.restart and self._payload is not None:
            self._resetting = True
            self._post(self._wake.set)
        else:
            self.end(ExitReason.RESET)

    @property
    def goes_on(self) -> bool:
        """Whether this QEMU is to run on: nobody has asked for the end or for a reset."""
        return self._ending is None and not self._resetting

    @property
    def panicked(self) -> bool:
        return self._line is not None and self._line.panic.panicked

    # -- what vCPUs tell

    def vcpu_faulted(self) -> None:
        self.end(ExitReason.FAULT)

    def learn_features(self) -> None:
        """The monitor has written down what the CPU can do."""
        words = self.block.globals
        features = CpuFeatures.from_id_registers(
            words[Global.ID_PFR0], words[Global.ID_PFR1], words[Global.ID_MMFR1], words[Global.ID_MMFR2]
        )
        for pe in self.firmware.pes:
            pe.features = features

    def warn_once(self, text: str) -> None:
        """Tell of something that the guest should not do; it may do it all the time."""
        if text not in self._warned and len(self._warned) < _MAX_WARNINGS:
            self._warned.add(text)
            _log.warning("%s", text)

    def fence(self) -> None:
        """Order what was written to a mailbox before its response, where the processor does not do that by itself."""
        if _WEAKLY_ORDERED:
            with self._order:  # acquired after the machine's lock was released: neither order can change
                pass

    def memory(self) -> memoryview:
        process = self._process
        return super().memory() if process is None else memoryview(process.ram)[: self.config.memory]

    def data_ranges(self) -> list[tuple[int, int]]:
        process = self._process
        return [] if process is None else process.data_ranges(self.config.memory)

    def read_ram(self, address: int, size: int) -> bytes | None:
        """The guest's RAM by physical address; None where there is none."""
        process, offset = self._process, address - RAM_BASE
        if process is None or not 0 <= offset <= self.config.memory - size:
            return None
        return process.ram[offset : offset + size]

    # -- the loop

    async def _execute(self, command: str) -> None:
        """A command that stops the guest or lets it go on, with all that it leads to."""

        async def execute(process: QemuProcess, moving: Moving) -> None:
            async with moving.run_state:
                if command == "cont":
                    moving.thaw()
                await process.execute(command)

        await self._on_qemu(execute)

    async def _on_qemu(self, work: Callable[[QemuProcess, Moving], Coroutine[Any, Any, T]]) -> T | None:
        """Do something with the QEMU that the guest runs on; with the next one, if it is reset before that is done.

        None where there is no QEMU, or the run ends.
        """
        while (present := await self._present()) is not None:
            process, moving = present
            try:
                result = await work(process, moving)
                await self._followed(process)
            except Exception:
                await self._followed(process)
                if self._process is process and self.goes_on:  # else it was to end
                    raise
            else:
                if self._process is process and not self._resetting:
                    return result
        return None

    async def _present(self) -> tuple[QemuProcess, Moving] | None:
        """The QEMU that takes commands; while the machine is reset, the next one."""
        while self._process is not None and self._moving is not None and self._ending is None:
            if not self._takes_commands.is_set():
                await self._takes_commands.wait()
            elif self._resetting:
                await asyncio.sleep(0)  # _one_power_cycle()'s turn, which is about to end
            else:
                return self._process, self._moving
        return None

    async def _followed(self, process: QemuProcess) -> None:
        """What QEMU has told so far has had its effects."""
        while not process.events.empty() and self._process is process and self.goes_on:
            await asyncio.sleep(0)  # _follow()'s turn

    async def _stop_to_save(self) -> None:
        async def stop(_: QemuProcess, moving: Moving) -> None:
            if self._told_early not in (None, moving):
                raise MigrationError("the guest was reset after some of its state had been sent", "move it again")
            await moving.stop()

        await self._on_qemu(stop)

    async def _prepare_save(self, apart: bool) -> list[Section]:
        async def prepare(_: QemuProcess, moving: Moving) -> list[Section]:
            self._told_early = moving if apart else None
            return await moving.prepare(apart)

        return await self._on_qemu(prepare) or []

    async def _main(self) -> None:
        self._takes_commands = asyncio.Event()
        await self._one_power_cycle(incoming=self._incoming)
        while self._resetting and self._ending is None:
            self._resetting = False
            with self.lock:
                self.errors.reset()
                self.firmware.sdei.reset()
                self.firmware.psci.reset()
            await self._one_power_cycle()
        if self.panicked and self._ending is ExitReason.RESET:
            self._ending = ExitReason.PANIC

    async def _one_power_cycle(self, *, incoming: bool = False) -> None:
        """From power-up, or from the moment when a guest can come, to the end of the run or to a reset.

        A reset gets a new QEMU: this one has translated code that would be loaded over.
        """
        payload = self._payload
        files = payload.files if payload is not None and not incoming else blank_files(self.options)
        process = _make_process(self.config, self.options, files, incoming=incoming)
        line = Console(process.serial, lambda data: self.console(data), self._panic_is_over, self.crash)
        tasks: list[asyncio.Task[None]] = []
        try:
            if incoming:
                await self._expect(process, line)
            else:
                await process.launch()
                self._process, self._line, self._paused = process, line, False
                self._moving = Moving(self, process, line)
                assert payload is not None
                self.attach(process, lay_out(process, self.config, self.options, payload))
                self.firmware.psci.power[0] = Power.ON_PENDING
            line.start()
            tasks = [asyncio.create_task(work(process)) for work in (self._follow, self._outlive)]
            if not incoming:
                await process.execute("cont")
            self._takes_commands.set()
            self._started.set()
            if not incoming:
                await self._comes_up()
            while self.goes_on:
                await self._wake.wait()
                self._wake.clear()
            if self._ending is ExitReason.TIME_LIMIT:
                await self._hold(range(self.config.vcpus))
        finally:
            self._takes_commands.clear()
            for task in tasks:
                task.cancel()
            self._detach()
            try:
                await process.end()
                await asyncio.to_thread(line.finish)
            finally:
                process.abandon()

    async def _expect(self, process: QemuProcess, line: Console) -> None:
        """A guest is to come. Its RAM can be filled while QEMU starts; who does that gets to know if it does not."""
        self._process, self._moving = process, Moving(self, process, line)
        self._started.set()
        try:
            await process.launch()
            self._line = line
            self._takes_commands.set()
            await self._moving.expect()
        except SdeivirtError as error:
            self._stands.set_exception(error)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_WORD_SECONDS):  # until somebody has been told, and abandons us
                    while self._ending is None:
                        await self._wake.wait()
                        self._wake.clear()
            raise
        self._stands.set_result(None)

    def attach(self, process: QemuProcess, block: Block) -> None:
        """Get to know what runs on a QEMU, and look after it."""
        qtest = Qtest(process.qtest)
        affinities = [pe.affinity for pe in self.firmware.pes]
        self.block = block
        self.gic = Gic(qtest, block.globals[Global.GICD], block.globals[Global.GICR], affinities)
        self.kicker = Kicker(self.gic, self._post, self._kick_matters)
        self.bound = BoundInterrupts(self.firmware.sdei, self.gic)
        self.vcpus = [QemuVcpu(self, *pair) for pair in zip(self.firmware.pes, block.mailboxes, strict=True)]
        self.requests = Requests(self.vcpus, process, qtest, self.crash)
        self.requests.listen((lambda: self._process is process and self.goes_on) if self.options.poll else None)
        if block.stage2 is not None:
            self.dirtying = Dirtying(
                block.stage2, self.memory(), self._call, self.kicker.kick, self.online, devices=self.has_devices
            )
            if self._logging:
                self.dirtying.start_anew(self._limit)
        self._attach_demand()
        self.firmware_access = FirmwareAccess(self, qtest) if self.options.firmware == "uefi" else None

    def _detach(self) -> None:
        if self.vcpus:
            self.requests.ignore()
        if self.dirtying is not None:
            self.dirtying.close()
        if self._moving is not None:
            self._moving.close()

    async def _comes_up(self) -> None:
        """Wait for the monitor's first request: not every CPU model can run it."""
        until = time.monotonic() + _BOOT_SECONDS
        while not self.vcpus[0].served and self.goes_on:
            if time.monotonic() > until and not self._paused:
                raise EnvironmentUnavailableError(
                    f"the CPU model {self.options.cpu!r} does not start",
                    "choose a 64-bit one with EL2, such as cortex-a72",
                )
            await asyncio.sleep(0.01)

    def _final_reports(self) -> list[FaultReport]:
        faults = self.faults()
        if self._ending is ExitReason.TIME_LIMIT:
            faults += [vcpu.report("still running when the time was up") for vcpu in self.vcpus if vcpu.held]
        return faults

    # -- kicks, and vCPUs that are to stop for a look

    @property
    def flusher(self) -> Flusher | None:
        """What flushes TLBs, if there is stage 2."""
        return self.dirtying.flusher if self.dirtying is not None else None

    def _kick_matters(self, index: int) -> bool:
        return self.firmware.pes[index].online and not self._paused

    async def _hold(self, indices: range) -> None:
        """Have vCPUs stop for a report, as far as they do so in time."""
        self.holding = True
        wanted = [self.vcpus[i] for i in indices if self.firmware.pes[i].online]
        for vcpu in wanted:
            vcpu.words[Mailbox.PROBE] = 1
            self.kicker.arrived(vcpu.pe.bit)
            self.kicker.kick(vcpu.pe.bit)
        until = time.monotonic() + _HOLD_SECONDS
        while time.monotonic() < until and not all(vcpu.held for vcpu in wanted):
            await asyncio.sleep(0.005)

    async def _stop_stuck(self, index: int, reason: str) -> None:
        await self._hold(range(index, index + 1))
        self.vcpus[index].stop_faulted(reason)

    def _panic_is_over(self) -> None:
        """The last words of a panic. Linux masks PEs before it says them; with none masked somebody quotes it."""
        if any(pe.online and pe.masked for pe in self.firmware.pes):
            self.end(ExitReason.PANIC)

    # -- QEMU

    async def _follow(self, process: QemuProcess) -> None:
        """What QEMU tells of, be it our doing or that of whoever talks to its own QMP socket."""
        async for message in process.events:
            name = message["event"]
            if self._moving is not None and self._moving.overlooks(str(name)):
                continue
            if name in ("STOP", "RESUME"):
                self._paused = name == "STOP"
                if self._paused:
                    self.stands_since(message)
                await self._stopped_or_not(process)
            elif name == "GUEST_PANICKED":
                self.end(ExitReason.PANIC)
            elif name == "SHUTDOWN":
                data: Any = message["data"]
                if data.get("reason") in ("host-qmp-system-reset", "guest-reset"):
                    self.reset()
                else:
                    self.end(ExitReason.STOPPED)

    async def _stopped_or_not(self, process: QemuProcess) -> None:
        if self.dirtying is not None:
            (self.dirtying.stopped if self._paused else self.dirtying.goes_on)()
        if not self._paused and self._moving is not None and self._moving.frozen:
            _log.warning("somebody let the guest go on by QEMU's own QMP while it was being moved: it is stopped again")
            await process.execute("stop")

    async def _outlive(self, process: QemuProcess) -> None:
        """QEMU's end is ours."""
        assert process.process is not None
        await process.process.wait()
        if self.goes_on:
            # A QEMU that was asked to end has said so on its way out.
            await asyncio.sleep(0.2)
            if self.goes_on:
                self.crash(await process.death())
