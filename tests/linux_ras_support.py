# SPDX-License-Identifier: Apache-2.0
"""For tests of hardware errors in Linux: a kernel that boots by ACPI, sources of each kind, what it makes of them."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import pytest

from sdeivirt.errors import SdeivirtError
from sdeivirt.machine.base import PAGE_SIZE, RAM_BASE
from sdeivirt.machine.qemu.uefi import find_firmware
from sdeivirt.ras.cper import Severity, make_block
from sdeivirt.ras.desk import Outcome
from sdeivirt.ras.sources import STANDARD_EVENTS, STANDARD_SOURCES, ErrorSource
from sdeivirt.ras.victims import Victim, find_victims
from sdeivirt.sdei import EventDefinition, Priority

from .linux_support import Linux

__all__ = ["EVENTS", "NEEDS_UEFI", "PRIVATE", "OUTSIDE", "SOURCES", "RasLinux", "memory_error"]

# Normal and critical, shared and private, versions 2 and 1 of GHES. Each has a number by which tests name it.
EVENTS = (
    *STANDARD_EVENTS,
    EventDefinition(806),
    EventDefinition(807, shared=True),
    EventDefinition(808, priority=Priority.CRITICAL),
    EventDefinition(809, shared=True, priority=Priority.CRITICAL),
)
SOURCES = (
    *STANDARD_SOURCES,
    ErrorSource(2, 806),
    ErrorSource(3, 807, ghes=1),
    ErrorSource(4, 808, ghes=1),
    ErrorSource(5, 809, ghes=1),
)
PRIVATE = (2, 4)
OUTSIDE = 0x40_0000_0000  # an address where there is no memory


def _without_uefi() -> str:
    """Why nothing can boot by UEFI here."""
    try:
        find_firmware(None)
    except SdeivirtError as error:
        return str(error)
    return ""


NEEDS_UEFI = pytest.mark.skipif(bool(_without_uefi()), reason=_without_uefi())

_GAP = 1 << 20
_HWPOISON = 1 << 19  # in /proc/kpageflags: include/uapi/linux/kernel-page-flags.h in Linux


def memory_error(severity: Severity, address: int, *, threshold: bool = False) -> bytes:
    """A block that reports an error in memory."""
    return make_block("memory", severity, address=address, threshold_exceeded=threshold).encode()


class RasLinux(Linux):
    """A kernel with all SOURCES, and a shell that keeps the kernel's messages off the console. A context manager."""

    def __init__(self, kernel: str = "bookworm", vcpus: int = 1, firmware: str = "acpi", **config: Any) -> None:
        words = config.pop("append", "")
        super().__init__(
            kernel,
            client="",
            append=f"log_buf_len=8M {words}".strip(),
            vcpus=vcpus,
            options={"firmware": firmware},
            **{"events": EVENTS, "error_sources": SOURCES, **config},
        )
        self._names = 0

    def __enter__(self) -> RasLinux:
        super().__enter__()
        return self

    def report(self, block: bytes, source: int = 0, vcpu: int | None = None) -> Outcome:
        """Report an error and wait until the guest has acknowledged it; its block is empty then."""
        if source in PRIVATE and vcpu is None:
            vcpu = 0
        outcome = self.machine.errors.submit(block, source, vcpu, limit=30).result(60)
        assert outcome.outcome == "acknowledged"
        (status,) = (each for each in self.machine.status().error_sources if each.number == source)
        assert (status.block_status, status.acknowledged) == (0, status.reported)
        return outcome

    # -- what the kernel has made of it

    def corrupted(self) -> int:
        """How many kB of memory the kernel has given up."""
        found = re.search(r"HardwareCorrupted: +(\d+) kB", self.sh("cat /proc/meminfo"))
        assert found
        return int(found[1])

    def gives_up(self, kb: int) -> None:
        """Wait until it has given up so much in all, which it does some time after the acknowledgement."""
        found = f"grep -q 'HardwareCorrupted: *{kb} kB' /proc/meminfo"
        self.sh(f"for i in $(seq 200); do {found} && break; sleep 0.02; done")
        assert self.corrupted() == kb

    def poisoned(self, address: int) -> bool:
        """Whether the kernel has marked a page, by physical address, as one that must not be used."""
        frame = address // PAGE_SIZE
        command = f"dd if=/proc/kpageflags bs=8 skip={frame} count=1 2>/dev/null | od -An -tx8"
        return bool(int(self.sh(command), 16) & _HWPOISON)

    def log_begins(self) -> None:
        """Forget what the kernel has said so far."""
        self.sh("dmesg -c >/dev/null")

    def says(self, pattern: str) -> str:
        """Wait until the kernel has said something; all that it has said since :meth:`log_begins`."""
        self.sh(f"for i in $(seq 100); do dmesg | grep -qE '{pattern}' && break; sleep 0.02; done; true")
        log = self.sh("dmesg")
        assert re.search(pattern, log), log
        return log

    # -- where errors can be

    def free_pages(self, chance: random.Random) -> Iterator[int]:
        """Addresses of pages that nobody has ever used, each once."""
        taken: set[int] = set()
        while True:
            ranges = self.machine.data_ranges()
            between = [(end, begin) for (_, end), (begin, _) in pairwise(ranges)]
            # The small ones may be parts of what firmware keeps.
            gaps = [(start, end) for start, end in between if end - start >= _GAP]
            start, end = chance.choices(gaps, [end - start for start, end in gaps])[0]
            address = RAM_BASE + chance.randrange(start, end, PAGE_SIZE)
            if address not in taken:
                taken.add(address)
                yield address

    def kernel_text(self) -> int:
        """The address of a page of the kernel's code."""
        found = re.search(r"([0-9a-f]+)-[0-9a-f]+ : Kernel code", self.sh("cat /proc/iomem"))
        assert found
        return (int(found[1], 16) & -PAGE_SIZE) + 0x10_0000

    def victim(self, kind: str = "late") -> Victim:
        """Start a process and find its page."""
        self._names += 1
        name = f"v{self._names}"
        command = f"victim {kind} name={name} >/tmp/{name}; echo code $? >>/tmp/{name}"
        self.sh(f"({command}) & until [ -s /tmp/{name} ]; do :; done")
        (found,) = self.living(name)
        assert self.sh(f"cat /tmp/{name}") == f"{name}[{found.pid}]: page {found.virtual:#x}, {kind}\n"
        return found

    def living(self, pattern: str) -> list[Victim]:
        """The victims that are alive."""
        return find_victims(self.machine, pattern, 5.0)

    def verdict(self, victim: Victim) -> str:
        """Wait for the end of a process; what it has said of its SIGBUS."""
        name = victim.name
        self.sh(f"for i in $(seq 250); do grep -q '^code ' /tmp/{name} && break; sleep 0.02; done")
        output = self.sh(f"cat /tmp/{name}")
        assert output.endswith("code 135\n"), output
        return output
