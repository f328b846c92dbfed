# SPDX-License-Identifier: Apache-2.0
"""What a machine `qemu` is made of, beyond what all machines have."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, Self, cast, get_args

from ...errors import MigrationError, UsageError
from ...migration.foreign import printable
from ..base import EngineOptions
from .frontends import front_ends

__all__ = ["FirmwareKind", "QemuOptions"]

FirmwareKind = Literal["dt", "acpi", "uefi"]
FIRMWARES: tuple[str, ...] = get_args(FirmwareKind)
_CPU = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.,=+-]{0,511}")


@dataclass(frozen=True, slots=True)
class QemuOptions(EngineOptions):
    """Options of the machine `qemu`.

    `qemu` is the binary (SDEIVIRT_QEMU or the one on the path where None) and
    `cpu` its model. `initrd` is a file for /chosen. `arguments` are given to
    QEMU as they are. `qmp` and `gdb` are paths of Unix sockets for a QMP
    client and for gdb. `poll` looks for requests all the time instead of
    waiting for a doorbell: quicker, at the price of a core. `firmware` is what
    tells the guest of its machine: a device tree, ACPI tables, or UEFI with such tables, which
    is `uefi` (EDK2 of the distribution where None). Two switches are
    for measurements only: without `stage2` the guest can reach the monitor,
    without `contexts` the monitor asks us for every EVENT_CONTEXT.
    """

    qemu: Path | None = None
    cpu: str = "cortex-a72"
    initrd: Path | None = None
    arguments: tuple[str, ...] = ()
    gdb: bool = False
    poll: bool = False
    firmware: FirmwareKind = "dt"
    uefi: Path | None = None
    stage2: bool = True
    contexts: bool = True

    def travelling(self) -> dict[str, str | bool]:
        """The CPU, and the arguments as far as a guest sees what they make."""
        return {
            "cpu": self.cpu,
            "arguments": shlex.join(front_ends(self.arguments)),
            "any-arguments": bool(self.arguments),
            "firmware": self.firmware,
        }

    def arrived(self, travelled: Mapping[str, str | bool]) -> Self:
        """The guest's CPU; its devices have to be these. Raises MigrationError where they are not."""
        cpu = travelled.get("cpu", self.cpu)
        if not isinstance(cpu, str) or not _CPU.fullmatch(cpu):
            raise UsageError(f"there is no CPU {printable(str(cpu), 40)!r}")
        firmware = travelled.get("firmware", "dt")
        if firmware not in FIRMWARES:
            raise UsageError(f"there is no firmware {printable(str(firmware), 40)!r}")
        arrived = replace(self, cpu=cpu, firmware=cast(FirmwareKind, firmware))
        ours, theirs = shlex.join(front_ends(self.arguments)), travelled.get("arguments")
        if theirs is None:  # of a version that did not tell
            return arrived
        if theirs != ours:
            raise MigrationError(
                f"the guest's QEMU was given {_shown(str(theirs))} after --, and the one here {_shown(ours)}",
                "start the destination with the same devices; the files and ports behind them may be others",
            )
        if travelled.get("any-arguments", False) != bool(self.arguments):
            one, other = ("this", "the guest's") if self.arguments else ("the guest's", "this")
            raise MigrationError(
                f"{one} QEMU was given arguments after --, and {other} none: it has another interrupt controller",
                "start the destination with the same arguments",
            )
        return arrived


def _shown(arguments: str) -> str:
    return f"`{printable(arguments, 200)}`" if arguments else "no devices"
