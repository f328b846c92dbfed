# SPDX-License-Identifier: Apache-2.0
"""QEMU's fw_cfg, by which firmware gets kernel and ACPI tables: its files, and what stands between it and a guest.

An item is chosen by its key and read byte by byte, or by DMA. DMA goes wherever the guest says, past stage 2 and
into the monitor, so a guest is not let near it: firmware finds the page of fw_cfg readable, and each write comes
to us. A transfer that lies within the guest's RAM is handed to QEMU, as a copy of its description on a page that
only we and QEMU see; and where it has read one of QEMU's ACPI tables, the tables with ours among them are put
in their place. QEMU docs/specs/fw_cfg.rst.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Protocol

from ...errors import EnvironmentUnavailableError
from ...tables.acpi.loader import LOADER, RSDP, TABLES, TableFiles, used_size
from .qtest import Qtest

__all__ = ["FW_CFG", "FwCfg", "GuestMemory", "read_tables", "table_keys"]

FW_CFG = 0x0902_0000  # of QEMU's virt
_DATA, _SELECTOR, _DMA = 0x0, 0x8, 0x10
_DMA_LOW = _DMA + 4
_DIRECTORY = 0x19
_COUNT = struct.Struct(">I")
_FILE = struct.Struct(">IHH56s")
_MAX_FILES = 1024
_MAX_SIZE = 4 << 20  # of the files that we read
_READ = 8  # bytes that one access to the data register gives
_LINES = 256  # that are asked at once, so that neither side waits for the other with its hands full

# What a transfer is described by: control, length, address.
_TRANSFER = struct.Struct(">IIQ")
_CONTROL = struct.Struct(">I")
_ERROR, _DMA_READ, _SKIP, _SELECT, _DMA_WRITE = 1, 2, 4, 8, 16
_KEY_SHIFT = 16


def _select(key: int) -> bytes:
    return b"writew %#x %#x\n" % (FW_CFG + _SELECTOR, int.from_bytes(key.to_bytes(2, "big"), "little"))


def _read_item(qtest: Qtest, size: int) -> bytes:
    """The next bytes of what is selected, at least so many. Blocks, as all here does that asks QEMU."""
    data = bytearray()
    while len(data) < size:
        lines = min(-(-(size - len(data)) // _READ), _LINES)
        words = qtest.ask(b"readq %#x\n" % (FW_CFG + _DATA) * lines)
        if len(words) != lines:
            raise EnvironmentUnavailableError("QEMU does not give what its fw_cfg has", "start the VM again")
        data += b"".join(word.to_bytes(_READ, "little") for word in words)
    return bytes(data)


def _directory(qtest: Qtest) -> dict[str, tuple[int, int]]:
    """The files by name: key and size."""
    qtest.ask(_select(_DIRECTORY))
    # The count is half an access, so the first entry is in two of them.
    data = _read_item(qtest, _COUNT.size)
    count = min(_COUNT.unpack_from(data)[0], _MAX_FILES)
    data += _read_item(qtest, _COUNT.size + count * _FILE.size - len(data))
    files = {}
    for i in range(count):
        size, key, _, name = _FILE.unpack_from(data, _COUNT.size + i * _FILE.size)
        files[name.split(b"\0")[0].decode("latin-1")] = key, size
    return files


def table_keys(qtest: Qtest) -> dict[str, tuple[int, int]] | None:
    """Key and size of the files that ACPI is made of; None where this QEMU has none."""
    directory = _directory(qtest)
    found = {name: directory[name] for name in (RSDP, TABLES, LOADER) if name in directory}
    return found if len(found) == len((RSDP, TABLES, LOADER)) else None


def read_tables(qtest: Qtest, files: dict[str, tuple[int, int]] | None = None) -> TableFiles:
    """QEMU's own ACPI tables. Raises EnvironmentUnavailableError where it has none."""
    files = files or table_keys(qtest)
    if files is None:
        raise EnvironmentUnavailableError("this QEMU has no ACPI tables", "leave acpi=off out, or use a device tree")

    def read(name: str, used: int | None = None) -> bytes:
        key, size = files[name]
        if size > _MAX_SIZE:
            raise EnvironmentUnavailableError(f"QEMU's {name} has {size} bytes", "give it fewer devices")
        qtest.ask(_select(key))
        return _read_item(qtest, size if used is None else min(used, size))[:size].ljust(size, b"\0")

    loader = read(LOADER)
    return TableFiles(read(RSDP), read(TABLES, used_size(loader)), loader)


class GuestMemory(Protocol):
    """The guest's RAM, for a device. With the machine's lock held."""

    @property
    def stays(self) -> AbstractContextManager[object]:
        """As long as one is in it, what is here stays here."""

    def covers(self, address: int, size: int) -> bool: ...

    def here(self, address: int, size: int) -> bool:
        """Whether no page of it has still to come."""

    def read(self, address: int, size: int) -> bytes | None: ...

    def write(self, address: int, data: bytes) -> bool: ...

    def written(self, address: int, size: int) -> None:
        """Somebody else has written there."""


class FwCfg:
    """Between a guest's writes and QEMU's fw_cfg. On the event loop.

    `page` is a page that only we and QEMU see, at `page_address`. `extend` gives the tables that the guest is to find;
    it is asked when the guest first wants them, since QEMU makes them anew when PCI has been set up.
    None of this moves with a guest: firmware that has read half of a table then reads QEMU's own from there on.
    """

    def __init__(
        self,
        qtest: Qtest,
        page: memoryview,
        page_address: int,
        memory: GuestMemory,
        extend: Callable[[TableFiles], TableFiles],
    ) -> None:
        self._qtest = qtest
        self._page = page
        self._page_address = page_address
        self._memory = memory
        self._extend = extend
        self._keys: dict[str, tuple[int, int]] | None = None
        self._ours: dict[int, bytes] = {}  # what the guest finds instead, by key
        self._key, self._offset = 0, 0  # as far as we have seen: what the data register gives is not counted
        self._high = 0  # half an address

    def write(self, offset: int, size: int, value: int) -> tuple[int, int] | None:
        """The guest has written `value` to a register. Memory (address, size) without which it has to try again."""
        big = int.from_bytes(value.to_bytes(size, "little"), "big")
        lacking = None
        if (offset, size) == (_SELECTOR, 2):
            self._choose(big)
            self._qtest.ask(_select(big))
        elif (offset, size) == (_DMA, 4):
            self._high = big
        elif (offset, size) == (_DMA_LOW, 4):
            lacking = self._transfer(self._high << 32 | big)
            if lacking is None:
                self._high = 0
        elif (offset, size) == (_DMA, 8):
            lacking = self._transfer(big)
        return lacking

    def _choose(self, key: int) -> None:
        self._key, self._offset = key, 0
        if self._keys is None:
            self._keys = table_keys(self._qtest) or {}
        if not self._ours and any(key == known for known, _ in self._keys.values()):
            files = self._extend(read_tables(self._qtest, self._keys)).by_name()
            self._ours = {self._keys[name][0]: content for name, content in files.items()}

    def _transfer(self, address: int) -> tuple[int, int] | None:
        """Have QEMU do what is described there. What lies outside of the guest's RAM is an error of the guest's."""
        memory = self._memory
        if not memory.covers(address, _TRANSFER.size):
            return None
        with memory.stays:
            described = memory.read(address, _TRANSFER.size)
            if described is None:
                return address, _TRANSFER.size
            control, length, where = _TRANSFER.unpack(described)
            moves = bool(control & (_DMA_READ | _DMA_WRITE)) and length > 0
            if moves and not memory.covers(where, length):
                memory.write(address, _CONTROL.pack(_ERROR))
                return None
            if moves and not memory.here(where, length):
                return where, length
            if control & _SELECT:
                self._choose(control >> _KEY_SHIFT)
            _TRANSFER.pack_into(self._page, 0, control, length, where)
            at = int.from_bytes(self._page_address.to_bytes(8, "big"), "little")
            self._qtest.ask(b"writeq %#x %#x\n" % (FW_CFG + _DMA, at))
            if moves and control & _DMA_READ:
                memory.written(where, length)
                if ours := self._ours.get(self._key, b"")[self._offset : self._offset + length]:
                    memory.write(where, ours)
            if control & (_DMA_READ | _DMA_WRITE | _SKIP):
                self._offset += length
            memory.write(address, bytes(self._page[: _CONTROL.size]))
        return None
