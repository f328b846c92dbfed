# SPDX-License-Identifier: Apache-2.0
"""The serial port of QEMU's virt board: an Arm PL011 (Arm DDI0183), as far as polling drivers go."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from ..errors import StreamError
from ..migration.sections import Record, Section, unpack

__all__ = ["Pl011", "Pl011Record"]

DR, FR, IBRD, FBRD, LCRH, CR, IFLS, IMSC, RIS, MIS, ICR = (
    0x00,
    0x18,
    0x24,
    0x28,
    0x2C,
    0x30,
    0x34,
    0x38,
    0x3C,
    0x40,
    0x44,
)
FR_TXFE = 1 << 7
FR_RXFE = 1 << 4
RIS_RX = 1 << 4
RIS_TX = 1 << 5
_WRITABLE = (IBRD, FBRD, LCRH, CR, IFLS, IMSC)
_ID = {0xFE0: 0x11, 0xFE4: 0x10, 0xFE8: 0x14, 0xFEC: 0x00, 0xFF0: 0x0D, 0xFF4: 0xF0, 0xFF8: 0x05, 0xFFC: 0xB1}

_CHUNK = 256
_INPUT_LIMIT = 1 << 16


class Pl011Record(Record, frozen=True):
    """The port as it moves with a guest: the registers that it can write, and the input it has not read yet."""

    ibrd: int
    fbrd: int
    lcrh: int
    cr: int
    ifls: int
    imsc: int
    received: bytes


class Pl011:
    """Output goes to `sink` by lines or chunks; input waits in a FIFO until the guest reads it.

    The engine's thread calls `read` and `write`; `type_in` may come from any
    thread, since a deque's ends are safe to use from two.
    """

    def __init__(self, sink: Callable[[bytes], None]) -> None:
        self._sink = sink
        self._out = bytearray()
        self._in: deque[int] = deque()
        self._registers = {CR: 0x300, IFLS: 0x12}

    def read(self, offset: int, _size: int) -> int:
        if offset == DR:
            return self._in.popleft() if self._in else 0
        if offset == FR:
            return FR_TXFE | (0 if self._in else FR_RXFE)
        if offset == RIS:
            return RIS_TX | (RIS_RX if self._in else 0)
        if offset == MIS:
            return self.read(RIS, 4) & self._registers.get(IMSC, 0)
        return _ID.get(offset, self._registers.get(offset, 0))

    def write(self, offset: int, _size: int, value: int) -> None:
        if offset == DR:
            self._out.append(value & 0xFF)
            if value & 0xFF == 10 or len(self._out) >= _CHUNK:
                self.flush()
        elif offset in _WRITABLE:
            self._registers[offset] = value & 0xFFFF

    def flush(self) -> None:
        """Hand over what is there, a prompt without a line end say."""
        if self._out:
            data = bytes(self._out)
            self._out.clear()
            self._sink(data)

    def type_in(self, data: bytes) -> int:
        """Input for the guest; how much of it there was room for."""
        taken = data[: max(_INPUT_LIMIT - len(self._in), 0)]
        self._in.extend(taken)
        return len(taken)

    def save(self) -> Pl011Record:
        """For a move. Output has been flushed, and no guest runs."""
        ibrd, fbrd, lcrh, cr, ifls, imsc = (self._registers.get(offset, 0) for offset in _WRITABLE)
        return Pl011Record(ibrd, fbrd, lcrh, cr, ifls, imsc, received=bytes(self._in))

    def load(self, section: Section) -> None:
        """What :meth:`save` gave, of a guest that comes. Raises StreamError."""
        record = unpack(section, Pl011Record)
        values = (record.ibrd, record.fbrd, record.lcrh, record.cr, record.ifls, record.imsc)
        if not all(0 <= value <= 0xFFFF for value in values) or len(record.received) > _INPUT_LIMIT:
            raise StreamError(f"section {section} has a serial port that cannot be")
        self._registers = dict(zip(_WRITABLE, values, strict=True))
        self._in.clear()
        self._in.extend(record.received)
