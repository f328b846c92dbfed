# SPDX-License-Identifier: Apache-2.0
"""Machines: engines that run a guest, behind one contract.

base.py       the contract, and all that machines share
threaded.py   the life of a machine with a thread of its own
watchdog.py   a limit on how long a handler may run
report.py     status and fault records
disassembly.py  the code around a fault
images.py     ELF and arm64 Image files
unicorn/      the embedded machine
qemu/         stock QEMU under our EL2 monitor
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from ..errors import EnvironmentUnavailableError, UsageError
from .base import ExitReason, Machine, MachineConfig, Outcome
from .report import FaultReport, VmStatus

if TYPE_CHECKING:
    from .qemu import QemuMachine
    from .unicorn import UnicornMachine

__all__ = [
    "MACHINES",
    "ExitReason",
    "FaultReport",
    "Machine",
    "MachineConfig",
    "Outcome",
    "VmStatus",
    "open_machine",
]


def _unicorn() -> type[UnicornMachine]:
    try:
        from .unicorn import UnicornMachine
    except ImportError as error:
        raise EnvironmentUnavailableError(
            f"machine unicorn is not available: {error}", "install it with `pip install unicorn`"
        ) from error
    return UnicornMachine


def _qemu() -> type[QemuMachine]:
    from .qemu import QemuMachine  # needs nothing but the program, which it looks for itself

    return QemuMachine


# Loaded when asked for, so that a missing engine troubles nobody else.
MACHINES: dict[str, Callable[[], Callable[[MachineConfig], Machine]]] = {"unicorn": _unicorn, "qemu": _qemu}


def open_machine(kind: str, config: MachineConfig) -> Machine:
    """A machine of the given kind, ready to load a guest.

    Raises UsageError for an unknown kind, EnvironmentUnavailableError where
    the engine is missing.
    """
    if kind not in MACHINES:
        raise UsageError(f"there is no machine {kind!r}", f"machines are {', '.join(MACHINES)}")
    return MACHINES[kind]()(config)
