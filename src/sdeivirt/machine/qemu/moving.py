# SPDX-License-Identifier: Apache-2.0
"""The state of a machine on its way, out or in: in which order what has to come to rest, and to life.

Out, the guest being stopped: the requests of all vCPUs are answered, so that what they asked
for is done; then nothing is answered any more, the interrupt
controller has done all that it was told, and QEMU gives its state.

In: the monitor and the mailboxes first, then what QEMU has given; then we know of its
interrupt controller what the other side knew. All PEs that are on are kicked, because a kick or an event
that was on its way may have been lost, and one too many does no harm.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ...errors import MigrationError
from ...migration.sections import Section, pack
from .block import Block
from .console import Console
from .layout import Global
from .process import QemuProcess
from .state import (
    ConsoleState,
    DevicesState,
    GicState,
    MailboxState,
    MonitorState,
    QemuState,
    read_state,
    this_machine,
)
from .transfer import Incoming, Outgoing

if TYPE_CHECKING:
    from .machine import QemuMachine

__all__ = ["Moving"]

_MAX_INPUT = 1 << 18


class Moving:
    """Out of, or into, one QEMU. On the event loop."""

    def __init__(self, machine: QemuMachine, process: QemuProcess, line: Console) -> None:
        self._machine = machine
        self._process = process
        self._line = line
        self._outgoing: Outgoing | None = None
        self._ahead = b""
        self._incoming: Incoming | None = None

    # -- out

    async def prepare(self) -> None:
        """Have QEMU give what it can while the guest runs. Raises MigrationError, QemuDiedError."""
        await self.keep()
        self._outgoing = Outgoing(self._process)
        self._ahead = await self._outgoing.ahead()

    async def save(self) -> list[Section]:
        """The state of a guest that is stopped. Raises MigrationError, QemuDiedError."""
        machine = self._machine
        if self._outgoing is None:
            await self.prepare()
            assert self._outgoing is not None
        devices = self._ahead + await self._outgoing.rest(self._settle)
        if not machine.goes_on:
            raise MigrationError("the guest has ended meanwhile")
        group0, group0_spi, priorities = machine.gic.ours
        told, levels = machine.bound.told
        gic = GicState(
            private=group0,
            shared=list(group0_spi.items()),
            priorities=[(*key, priority) for key, priority in priorities.items()],
            enabled=[(*key, -1 if where is None else where) for key, where in told.items()],
            levels=list(levels),
        )
        block = machine.block
        return [
            pack("qemu", this_machine(self._process.version, machine.config, machine.options)),
            pack("qemu-monitor", MonitorState(block.monitor(), block.globals.tolist(), block.bell)),
            *(pack("qemu-vcpu", MailboxState(bytes(page)), i) for i, page in enumerate(block.mailboxes)),
            pack("qemu-gic", gic),
            pack("qemu-serial", ConsoleState(self._process.unread_input(_MAX_INPUT))),
            pack("qemu-devices", DevicesState(devices)),
        ]

    def _settle(self) -> None:
        """Nothing changes any more when this returns."""
        machine = self._machine
        machine.requests.serve()
        machine.requests.frozen = True
        self._line.hold()
        unread = None
        while unread != (unread := len(self._process.unread_input(_MAX_INPUT))):
            # The serial port takes what there is room for, a bit with each turn of QEMU's main loop.
            machine.gic.settle()

    async def keep(self) -> None:
        """The guest stays, and can go on."""
        outgoing, self._outgoing, self._ahead = self._outgoing, None, b""
        if outgoing is not None:
            await outgoing.cancel()
        self.thaw()

    def close(self) -> None:
        """QEMU is about to end."""
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

    async def load(self, sections: Sequence[Section]) -> None:
        """Take over what :meth:`save` gave. Raises StreamError."""
        machine, process = self._machine, self._process
        state = read_state(sections, this_machine(process.version, machine.config, machine.options))
        machine.attach(process, self._block(state))
        machine.requests.frozen = True
        assert self._incoming is not None
        await self._incoming.feed(state.devices.stream)
        await self._incoming.finish()
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

    def _block(self, state: QemuState) -> Block:
        machine = self._machine
        words = state.monitor.words
        poll = machine.options.poll
        block = Block(self._process.ram, machine.config, state.monitor.bell, words[Global.BELL_CONFIG], poll=poll)
        for i in (Global.GICD, Global.GICR, Global.ID_PFR0, Global.ID_PFR1, Global.ID_MMFR1, Global.ID_MMFR2):
            block.globals[i] = words[i]
        block.take_monitor(state.monitor.monitor)
        for mailbox, page in zip(block.mailboxes, state.mailboxes, strict=True):
            mailbox[:] = memoryview(page).cast("Q")
        if machine.options.stage2:
            block.protect()
        return block
