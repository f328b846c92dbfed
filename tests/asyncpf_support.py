# SPDX-License-Identifier: Apache-2.0
"""A firmware with asynchronous page faults on fake PEs: the guest's half by hand, RAM of which pages may be absent."""

from __future__ import annotations

import struct
from collections.abc import Iterable

from sdeivirt.asyncpf import AsyncPfSettings
from sdeivirt.asyncpf.block import ControlMemory
from sdeivirt.cpu import M64
from sdeivirt.firmware import Firmware
from sdeivirt.fuzz.oracle import CONTEXT
from sdeivirt.sdei.events import EventDefinition

from .fake_view import FUNCTION, FakePe, NoPower

CALL = 0x8600_0002
VERSION, SLOTS, SDEI, IRQ, ENABLE, IRQ_ACK, FEATURES = range(7)
SUCCESS, NOT_SUPPORTED, NOT_REQUIRED, INVALID = 0, -1, -2, -3
ENABLED, SEND_ALWAYS, WITH_RING = 1, 2, 4
NOT_PRESENT, READY, REFUSED = 1, 2, 3
WAKE_ALL = 0xFFFF_FFFF
EVENT, INTID = 0x4040_0001, 17

RAM, RAM_SIZE, PAGE = 0x4000_0000, 64 << 10, 4096
ENTRY = 0x4000_8000


class Memory(ControlMemory):
    """RAM of a few pages; `absent` holds the addresses of those that are not here."""

    def __init__(self) -> None:
        self.ram = bytearray(RAM_SIZE)
        self.absent: set[int] = set()

    def covers(self, address: int, size: int) -> bool:
        return RAM <= address <= address + size <= RAM + RAM_SIZE

    def _here(self, address: int, size: int) -> bool:
        pages = {address & -PAGE, address + size - 1 & -PAGE}
        return self.covers(address, size) and not pages & self.absent

    def read(self, address: int, size: int) -> bytes | None:
        return bytes(self.ram[address - RAM : address - RAM + size]) if self._here(address, size) else None

    def write(self, address: int, data: bytes) -> bool:
        if not self._here(address, len(data)):
            return False
        self.ram[address - RAM : address - RAM + len(data)] = data
        return True


def signed(value: int) -> int:
    return value - (1 << 64) if value >> 63 else value


class Scene:
    """Some PEs that run, unmasked where SDEI is used, each with a control block of its own at :meth:`block`."""

    def __init__(
        self, choice: str = "both", pes: int = 1, events: Iterable[EventDefinition] = (), *, on: bool = True
    ) -> None:
        self.settings = AsyncPfSettings.of(choice)
        self.memory = Memory()
        self.fw = Firmware(pes, NoPower(), events=events, async_pf=self.settings, memory=self.memory)
        self.fw.freeze()
        self.cpus = [FakePe() for _ in range(pes)]
        self.places = [RAM + pe * PAGE for pe in range(pes)]  # where the guest looks for its control blocks
        self.apf = self.fw.asyncpf
        for pe in range(pes if on else 0):
            self.start(pe)

    # -- the machine

    def start(self, pe: int) -> None:
        """The PE begins to run; a machine says so."""
        self.fw.sdei.pe_on(self.fw.pes[pe])
        self.cpus[pe].registers.update(dict.fromkeys(CONTEXT, 0), pstate=0, sctlr=0, vbar=0)

    def fault(self, pe: int = 0, *, user: bool = True) -> int | None:
        """A page is not here; if the PE is told by the event, it enters the handler at once."""
        token = self.apf.not_present(self.fw.pes[pe], user=user)
        self.look(pe)
        return token

    def look(self, pe: int = 0) -> bool:
        """The PE stops and looks for an event."""
        self.cpus[pe].stop(valid=0)
        return self.fw.deliver(self.fw.pes[pe], self.cpus[pe])

    def ready(self, token: int, pe: int = 0) -> None:
        self.apf.ready(self.fw.pes[pe], token)

    def interrupts(self) -> int:
        return self.apf.take_interrupts()

    # -- the guest

    def call_id(self, pe: int, function: int, *arguments: int) -> list[int]:
        """x0 to x3 after a call; x0 signed."""
        registers = self.cpus[pe].registers
        registers["x0"] = function
        registers.update({f"x{i}": value & M64 for i, value in enumerate(arguments, 1)})
        self.cpus[pe].stop(valid=6)
        self.fw.hypercall(self.fw.pes[pe], self.cpus[pe])
        found = [registers[f"x{i}"] for i in range(4)]
        return [signed(found[0]), *found[1:]]

    def apf_call(self, *arguments: int, pe: int = 0) -> list[int]:
        return self.call_id(pe, CALL, *arguments)[:2]

    def sdei(self, name: str, *arguments: int, pe: int = 0) -> int:
        return self.call_id(pe, FUNCTION[name], *arguments)[0]

    def register(self, pe: int = 0) -> None:
        """Register and enable the event, and unmask the PE."""
        assert self.sdei("event_register", EVENT, ENTRY, 0, 0, 0, pe=pe) == SUCCESS
        assert self.sdei("event_enable", EVENT, pe=pe) == SUCCESS
        self.sdei("pe_unmask", pe=pe)

    def block(self, pe: int = 0) -> int:
        return self.places[pe]

    def enable(self, flags: int = ENABLED, pe: int = 0, at: int | None = None) -> int:
        word = (self.block(pe) if at is None else at) | flags
        return self.apf_call(ENABLE, word & 0xFFFF_FFFF, word >> 32, pe=pe)[0]

    def disable(self, pe: int = 0) -> int:
        return self.apf_call(ENABLE, 0, 0, pe=pe)[0]

    def word(self, offset: int, pe: int = 0) -> int:
        """A word of the control block, past all absence."""
        found: int = struct.unpack_from("<I", self.memory.ram, self.block(pe) - RAM + offset)[0]
        return found

    def put(self, offset: int, *words: int, pe: int = 0) -> None:
        struct.pack_into(f"<{len(words)}I", self.memory.ram, self.block(pe) - RAM + offset, *words)

    def mailbox(self, pe: int = 0) -> tuple[int, int]:
        return self.word(0, pe), self.word(4, pe)

    def take(self, pe: int = 0) -> tuple[int, int]:
        """Read the mailbox, and empty it."""
        found = self.mailbox(pe)
        self.put(0, 0, 0, pe=pe)
        return found

    def handle(self, pe: int = 0, *, refuse: bool = False) -> int:
        """The event's handler, which the PE is in: take the token or refuse it, and complete."""
        reason, token = self.mailbox(pe)
        assert reason == NOT_PRESENT
        assert self.running(pe) == [EVENT]
        if refuse:
            self.put(0, REFUSED, pe=pe)
        else:
            self.put(0, 0, 0, pe=pe)
        self.sdei("event_complete", 0, pe=pe)
        return token

    def acknowledge(self, pe: int = 0) -> None:
        assert self.apf_call(IRQ_ACK, pe=pe) == [SUCCESS, 0]

    def hear(self, pe: int = 0) -> list[int]:
        """Take all ready tokens that come, as the interrupt's handler does: token after token from the mailbox."""
        found = []
        while self.interrupts() >> pe & 1:
            reason, token = self.take(pe)
            assert reason == READY
            found.append(token)
            self.acknowledge(pe)
        return found

    def ring(self, pe: int = 0) -> list[int]:
        """Take all that is in the ring."""
        head, tail = self.word(8, pe), self.word(12, pe)
        self.put(12, head, pe=pe)
        return [self.word(64 + 4 * (n % 128), pe) for n in range(tail, head)]

    def running(self, pe: int = 0) -> list[int]:
        record = self.fw.pes[pe]
        return [frame.handler.event.number for frame in (record.normal, record.critical) if frame]
