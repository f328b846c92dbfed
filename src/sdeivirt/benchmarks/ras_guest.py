# SPDX-License-Identifier: Apache-2.0
"""The Linux that errors are reported to: how it boots, and what keeps it busy."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import cast

from ..machine import MachineConfig, open_machine
from ..machine.base import Machine
from ..machine.qemu import QemuOptions
from ..machine.qemu.options import FirmwareKind
from ..ras.sources import STANDARD_EVENTS, STANDARD_SOURCES
from .qemu import LinuxFiles
from .shell import Shell

__all__ = ["Booted", "booted", "load"]

MEMORY = 512 << 20
BOOT_SECONDS = 240.0
_APPEND = "console=ttyAMA0 quiet run=serve"
_LOAD_SECONDS = 100_000  # longer than anybody measures


class Booted:
    """A Linux with a shell, and the seconds from its machine's start until /init took commands."""

    def __init__(self, machine: Machine, shell: Shell, seconds: float) -> None:
        self.machine = machine
        self.shell = shell
        self.seconds = seconds


@contextmanager
def booted(
    files: LinuxFiles, vcpus: int, firmware: str, append: str = "", uefi: Path | None = None
) -> Iterator[Booted]:
    """A guest that boots by a device tree ("dt"), "acpi" or "uefi"; the last two with the standard sources of errors.

    `uefi` is the UEFI firmware, if not that of the distribution.
    Raises EnvironmentUnavailableError where there is no UEFI firmware, and RuntimeError where it boots otherwise.
    """
    reports = firmware != "dt"
    config = MachineConfig(
        vcpus=vcpus,
        memory=MEMORY,
        bootargs=f"{_APPEND} {append}".strip(),
        events=STANDARD_EVENTS,
        error_sources=STANDARD_SOURCES if reports else (),
        engine=QemuOptions(initrd=files.initrd, firmware=cast(FirmwareKind, firmware), uefi=uefi),
    )
    with open_machine("qemu", config) as machine:
        shell = Shell(machine.type_in, lambda: machine.state == "stopped")
        machine.console = shell.feed
        machine.load(files.kernel)
        begin = time.perf_counter()
        machine.start()
        shell.wait_ready(BOOT_SECONDS)
        guest = Booted(machine, shell, time.perf_counter() - begin)
        _check(guest, firmware)
        yield guest


def _check(guest: Booted, firmware: str) -> None:
    """Whose EFI tables the kernel has found: none, ours, or those of a UEFI firmware. Raises RuntimeError."""
    vendor = guest.shell.run(r"dmesg | sed -n 's/.*efi: EFI v[0-9.]* by //p'").strip()
    found = {"": "dt", "sdeivirt": "acpi"}.get(vendor, "uefi")
    if found != firmware:
        raise RuntimeError(f"the guest was to boot by {firmware}, and has by {found}")


def load(guest: Booted) -> None:
    """Keep all vCPUs busy from now on: fork and exec, and two programs that watch their registers, on each."""
    last = guest.machine.config.vcpus - 1
    each = (
        f"taskset $m regcheck {_LOAD_SECONDS} & taskset $m regcheck {_LOAD_SECONDS} syscall & "
        f"taskset $m forkbench for {_LOAD_SECONDS} &"
    )
    guest.shell.run(f"for c in $(seq 0 {last}); do m=$(printf %x $((1<<c))); {each} done >/dev/null 2>&1; sleep 1")
    running = guest.shell.run("pidof regcheck forkbench").split()
    if len(running) < 3 * guest.machine.config.vcpus:
        raise RuntimeError(f"the guest's load does not run: {len(running)} programs do")
