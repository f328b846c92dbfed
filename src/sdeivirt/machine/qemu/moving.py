# SPDX-License-Identifier: Apache-2.0
"""The state of a machine on its way, out or in: in which order what has to come to rest, and to life.

Out: QEMU gives what it can while the guest runs, and stops it then. The requests of all vCPUs are answered,
so that what they asked for is done; then nothing is answered any more, the interrupt
controller has done all that it was told, and QEMU gives the rest of its state.

In: the monitor and the mailboxes while QEMU takes what the other has given; then we know of its
interrupt controller what the other side knew. All PEs that are on are kicked, because a kick or an event
that was on its way may have been lost, and one too many does no harm.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from qemu.qmp import QMPError

from ...errors import MigrationError, StreamError
from ...migration.sections import Section, pack, unpack
from ...sdei.model import bits
from .block import Block
from .console import Console
from .layout import Global
from .process import QemuProcess
from .state import (
    MAX_INPUT,
    ConsoleState,
    DevicesState,
    GicState,
    MailboxState,
    MonitorState,
    read_machine,
    read_monitor,
    read_state,
    rehearse,
    this_machine,
)
from .transfer import Incoming, Outgoing

if TYPE_CHECKING:
    from .machine import QemuMachine

__all__ = ["Moving"]


class Moving:
    """Out of, or into, one QEMU. On the event loop."""

    def __init__(self, machine: QemuMachine, process: QemuProcess, line: Console) -> None:
        self._machine = machine
        self._process = process
        self._line = line
        self._outgoing: Outgoing | None = None
        self._ahead = b""  # what goes with the rest
        self._saving: asyncio.Task[list[Section]] | None = None
        self._incoming: Incoming | None = None
        self._early: tuple[MonitorState, Block] | None = None
        self._ours_alone: list[str] = []  # what QEMU is about to tell of that is nobody else's concern
        self.run_state = asyncio.Lock()  # of who has QEMU stop the guest or let it go on

    # -- out

    async def prepare(self, apart: bool) -> list[Section]:
        """Have QEMU give what it can while the guest runs; if `apart`, that. Raises MigrationError, QemuDiedError."""
        await self.keep()
        if self._machine.state == "paused":
            await self._wake()
        self._outgoing = Outgoing(self._process)
        ahead = await self._outgoing.ahead()
        if not apart:
            self._ahead = ahead
            return []
        return [self._monitor(), self._us(), pack("qemu-devices", DevicesState(ahead))]

    async def _wake(self) -> None:
        """QEMU gives no state that it has given before, if the guest has not gone on since: have it do so.

        It comes no further than to the monitor: each vCPU is kicked before, and nobody is answered.
        """
        machine, process = self._machine, self._process
        async with self.run_state:
            status: Any = await process.execute("query-status")
            if status["status"] != "postmigrate":
                return
            self._settle()
            try:
                for vcpu in bits(machine.online()):
                    await machine.gic.repair(vcpu)
                machine.gic.settle()
                self._ours_alone = ["RESUME", "STOP"]
                await process.execute("cont")
                await process.execute("stop")
            except QMPError as error:
                self._ours_alone.clear()
                raise MigrationError(f"QEMU cannot give its devices' state again: {error}") from error
            finally:
                self.thaw()

    def overlooks(self, event: str) -> bool:
        """Whether QEMU tells of what :meth:`_wake` does, and nothing has become of the guest."""
        if not self._ours_alone or self._ours_alone[0] != event:
            return False
        del self._ours_alone[0]
        return True

    async def stop(self) -> None:
        """Have QEMU stop the guest, and begin at once to write down its state. Raises MigrationError, QemuDiedError."""
        if self._outgoing is None:
            await self.prepare(False)
            assert self._outgoing is not None
        if self._saving is None:
            await self._outgoing.stop(self._machine.has_devices)
            self._saving = asyncio.ensure_future(self._save(self._outgoing))

    async def save(self) -> list[Section]:
        """The state of a guest that is stopped. Raises MigrationError, QemuDiedError."""
        await self.stop()
        assert self._saving is not None
        return await asyncio.shield(self._saving)

    async def _save(self, outgoing: Outgoing) -> list[Section]:
        self._settle()
        sections: list[Section] = []
        devices = await outgoing.rest(lambda: sections.extend(self._ours()))
        if not self._machine.goes_on:
            raise MigrationError("the guest has ended meanwhile")
        return [*sections, pack("qemu-devices", DevicesState(self._ahead + devices))]

    def _ours(self) -> list[Section]:
        """All sections but QEMU's own; nothing changes any more."""
        machine = self._machine
        group0, group0_spi, priorities = machine.gic.ours
        told, levels = machine.bound.told
        gic = GicState(
            private=group0,
            shared=list(group0_spi.items()),
            priorities=[(*key, priority) for key, priority in priorities.items()],
            enabled=[(*key, -1 if where is None else where) for key, where in told.items()],
            levels=list(levels),
        )
        return [
            self._us(),
            self._monitor(),
            *(pack("qemu-vcpu", MailboxState(bytes(page)), i) for i, page in enumerate(machine.block.mailboxes)),
            pack("qemu-gic", gic),
            pack("qemu-serial", ConsoleState(self._process.unread_input(MAX_INPUT) + self._line.waiting)),
        ]

    def _us(self) -> Section:
        machine = self._machine
        return pack("qemu", this_machine(self._process.version, machine.config, machine.options))

    def _monitor(self) -> Section:
        block = self._machine.block
        return pack("qemu-monitor", MonitorState(block.monitor(), block.globals.tolist(), block.bell))

    def _settle(self) -> None:
        """Nothing changes any more when this returns."""
        machine = self._machine
        machine.requests.serve()
        machine.requests.frozen = True
        self._line.hold()
        unread = None
        while unread != (unread := len(self._process.unread_input(MAX_INPUT))):
            # The serial port takes what there is room for, a bit with each turn of QEMU's main loop.
            machine.gic.settle()

    async def keep(self) -> None:
        """The guest stays, and can go on. One that QEMU has stopped by itself does so here."""
        outgoing, self._outgoing, self._ahead = self._outgoing, None, b""
        saving, self._saving = self._saving, None
        if saving is not None:
            # QEMU that is cancelled between its STOP and its pre-switchover hangs (migration_maybe_pause(), QEMU 7.2).
            await asyncio.gather(saving, return_exceptions=True)
        self.thaw()
        if outgoing is not None:
            await outgoing.cancel()

    def close(self) -> None:
        """QEMU is about to end."""
        self._line.give_up()
        if self._saving is not None:
            self._saving.cancel()
        for migration in (self._outgoing, self._incoming):
            if migration is not None:
                migration.close()

    def thaw(self) -> None:
        """Answer requests again."""
        machine = self._machine
        if machine.state != "incoming" and self.frozen:
            machine.requests.frozen = False
            machine.requests.serve()
            self._line.release()

    @property
    def frozen(self) -> bool:
        """Whether the guest is to do nothing now."""
        return bool(self._machine.vcpus) and self._machine.requests.frozen

    # -- in

    async def expect(self) -> None:
        """A guest is to come: have everything ready that can be."""
        self._line.hold()
        self._incoming = Incoming(self._process)
        await self._incoming.begin()

    def load_monitor(self, section: Section) -> None:
        """The monitor can come before QEMU is there. From any thread. Raises StreamError."""
        monitor = read_monitor(section)
        self._early = monitor, self._block(monitor)
        rehearse()

    async def load_early(self, section: Section) -> None:
        """Take over another one that :meth:`prepare` gave. Raises StreamError."""
        machine = self._machine
        if section.name == "qemu":
            read_machine(section, this_machine(self._process.version, machine.config, machine.options))
        elif section.name == "qemu-devices":
            assert self._incoming is not None
            await self._incoming.feed(unpack(section, DevicesState).stream)
        else:
            raise StreamError(f"section {section} has come early")

    def offer(self, stream: bytes) -> None:
        """QEMU's state, which :meth:`load` is about to be given. From any thread."""
        assert self._incoming is not None
        self._incoming.offer(stream)

    async def load(self, sections: Sequence[Section]) -> None:
        """Take over what :meth:`save` gave. Raises StreamError."""
        machine, process = self._machine, self._process
        state = read_state(sections, this_machine(process.version, machine.config, machine.options))
        assert self._incoming is not None
        block = self._early[1] if self._early and self._early[0] == state.monitor else self._block(state.monitor)
        for mailbox, page in zip(block.mailboxes, state.mailboxes, strict=True):
            mailbox[:] = memoryview(page).cast("Q")
        machine.attach(process, block)
        machine.requests.frozen = True
        await self._incoming.take(state.devices.stream)
        gic = state.gic
        machine.gic.take_over(
            gic.private, dict(gic.shared), {(intid, vcpu): priority for intid, vcpu, priority in gic.priorities}
        )
        machine.bound.take_over(
            {(intid, vcpu): None if where < 0 else where for intid, vcpu, where in gic.enabled}, set(gic.levels)
        )
        with machine.lock:
            machine.learn_features()
            for vcpu in machine.vcpus:
                vcpu.take_over()
        machine.requests.frozen = False
        machine.requests.serve()
        self._line.release(state.console.input)
        machine.kick(machine.online())

    def _block(self, state: MonitorState) -> Block:
        machine = self._machine
        words = state.words
        poll = machine.options.poll
        block = Block(self._process.ram, machine.config, state.bell, words[Global.BELL_CONFIG], poll=poll)
        for i in (Global.GICD, Global.GICR, Global.ID_PFR0, Global.ID_PFR1, Global.ID_MMFR1, Global.ID_MMFR2):
            block.globals[i] = words[i]
        block.take_monitor(state.monitor)
        if machine.options.stage2:
            block.protect(uefi=machine.options.firmware == "uefi")
        return block
