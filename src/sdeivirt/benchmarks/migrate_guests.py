# SPDX-License-Identifier: Apache-2.0
"""The guests that a measurement moves: booted, their memory filled, their work counted."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from elftools.elf.elffile import ELFFile
from elftools.elf.sections import SymbolTableSection

from ..guests import guest_path
from ..machine import MachineConfig, open_machine
from ..machine.base import RAM_BASE, Machine
from ..machine.qemu import QemuOptions
from .shell import READY, Shell

__all__ = ["Guest", "computer", "counter", "fill", "idle", "linux", "paced", "running", "writer"]

_RATE = 20_000  # pages a second
_PATIENCE = 120.0
_TICK = 0.005
_TILE = 16 << 20
_GUEST_ROOM = 8 << 20  # programs, stacks and device tree are below


@dataclass(frozen=True, slots=True)
class Guest:
    """A guest: `ready` is printed when it is up, `counts` the symbol of a 64-bit counter of its work, if it has one."""

    name: str
    image: Path
    bootargs: str
    memory: int
    ready: str
    vcpus: int = 1
    initrd: Path | None = None
    counts: str = ""

    @property
    def counter(self) -> int | None:
        """The counter's address."""
        return _address(self.image, self.counts) if self.counts else None


def writer(name: str, bootargs: str, memory: int) -> Guest:
    """One that needs nothing of ours, and so runs on plain QEMU, too."""
    return Guest(name, guest_path("writer"), bootargs, memory, " on\n", counts="writer_pages")


def computer() -> Guest:
    """One that writes to a single page."""
    return Guest(
        "computes", guest_path("listen"), "quiet=1 idle=spin", 128 << 20, "listening: CPU#0", counts="listen_spins"
    )


def idle(memory: int = 1 << 30) -> Guest:
    """One that sleeps, of whose memory a MiB is used."""
    return writer(f"idle, {memory >> 20} MiB of which 1 MiB is used", "mib=1 idle=1", memory)


def paced() -> Guest:
    """One that writes memory all the time."""
    return writer(f"writes {_RATE:,} pages/s in 256 MiB", f"mib=256 rate={_RATE}", 512 << 20)


def linux(kernel: Path, initrd: Path) -> Guest:
    """Linux that has booted and does nothing, on two CPUs."""
    return Guest(
        "Linux, idle, 2 vCPUs, 1 GiB", kernel, "console=ttyAMA0 quiet run=serve", 1 << 30, READY, vcpus=2, initrd=initrd
    )


@contextmanager
def running(kind: str, guest: Guest) -> Iterator[Machine]:
    """The guest on a machine of this process, up and at its work."""
    engine = QemuOptions(initrd=guest.initrd) if kind == "qemu" else None
    config = MachineConfig(vcpus=guest.vcpus, memory=guest.memory, bootargs=guest.bootargs, engine=engine)
    with open_machine(kind, config) as machine:
        shell = Shell(machine.type_in, lambda: machine.state == "stopped")
        machine.console = shell.feed
        machine.load(guest.image)
        machine.start()
        shell.wait_for(guest.ready, _PATIENCE)
        yield machine


def fill(machine: Machine, size: int, *, digits: bool = False) -> None:
    """Fill the last `size` bytes of RAM, but for the room of the guest itself; no page is as another one near it.

    With noise that no compression makes smaller, or with hexadecimal digits, half of which are noise.
    """
    noise = os.urandom(_TILE)
    if digits:
        noise = noise.hex().encode()
    ram = machine.memory()
    for at in range(max(_GUEST_ROOM, len(ram) - size), len(ram), len(noise)):
        piece = noise[: len(ram) - at]
        ram[at : at + len(piece)] = piece


def counter(machine: Machine, guest: Guest) -> Callable[[], int]:
    """Reads what a guest has counted; it has begun to. Raises RuntimeError where it does not."""
    assert guest.counter is not None
    at = guest.counter - RAM_BASE

    def read() -> int:
        return int.from_bytes(machine.memory()[at : at + 8], "little")

    until = time.monotonic() + _PATIENCE
    while not read():
        if time.monotonic() > until:
            raise RuntimeError("the guest does not begin its work")
        time.sleep(_TICK)
    return read


def _address(program: Path, symbol: str) -> int:
    with program.open("rb") as file:
        for section in ELFFile(file).iter_sections():
            if isinstance(section, SymbolTableSection) and (found := section.get_symbol_by_name(symbol)):
                return int(found[0]["st_value"])
    raise RuntimeError(f"{program} has no symbol {symbol}")
