# SPDX-License-Identifier: Apache-2.0
"""The guests that come with the package, as AArch64 ELF files.

    selftest     every call on every vCPU, as the KVM series' selftest does
    hypercalls   what each service bit switches
    listen       waits for injected events and prints each
    bench        what `sdeivirt bench` measures
    interrupts   interrupts of the machine as events; machine qemu only
    reach        what a guest can reach of its hypervisor; machine qemu only
    hostile      attacks of many kinds on its hypervisor: docs/hostile.md
    mover        checks its memory, registers and events while it is moved
    writer       writes memory at a given pace
    ghes         takes hardware errors, and does with them what it is told; boots by ACPI
    tasks        a small kernel with tasks at EL0, which page faults need not hold up

Their sources are in guests/ of the repository; the package's build compiles them.
"""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from ..errors import EnvironmentUnavailableError, UsageError

__all__ = ["GUESTS", "guest_path", "program_path"]

GUESTS = (
    "selftest",
    "hypercalls",
    "listen",
    "bench",
    "interrupts",
    "reach",
    "hostile",
    "mover",
    "writer",
    "tasks",
    "ghes",
)


def guest_path(name: str) -> Path:
    """The ELF file of a guest.

    Raises UsageError for a name that is none of GUESTS, and
    EnvironmentUnavailableError where the guest has not been built.
    """
    if name not in GUESTS:
        raise UsageError(f"there is no built-in guest {name!r}", f"guests are {', '.join(GUESTS)}")
    return program_path(name)


def program_path(name: str) -> Path:
    """The ELF file of a guest, or of the monitor. Raises EnvironmentUnavailableError where it has not been built."""
    path = Path(str(files(__package__) / "bin" / f"{name}.elf"))
    if not path.is_file():
        raise EnvironmentUnavailableError(f"{name}.elf is not built", "in a source tree run `python guests/build.py`")
    return path
