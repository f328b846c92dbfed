# SPDX-License-Identifier: Apache-2.0
"""What a machine `qemu` is made of, beyond what all machines have."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..base import EngineOptions

__all__ = ["QemuOptions"]


@dataclass(frozen=True, slots=True)
class QemuOptions(EngineOptions):
    """Options of the machine `qemu`.

    `qemu` is the binary (SDEIVIRT_QEMU or the one on the path where None) and
    `cpu` its model. `initrd` is a file for /chosen. `arguments` are given to
    QEMU as they are. `qmp` and `gdb` are paths of Unix sockets for a QMP
    client and for gdb. `poll` looks for requests all the time instead of
    waiting for a doorbell: quicker, at the price of a core. Two switches are
    for measurements only: without `stage2` the guest can reach the monitor,
    without `contexts` the monitor asks us for every EVENT_CONTEXT.
    """

    qemu: Path | None = None
    cpu: str = "cortex-a72"
    initrd: Path | None = None
    arguments: tuple[str, ...] = ()
    gdb: bool = False
    poll: bool = False
    stage2: bool = True
    contexts: bool = True
