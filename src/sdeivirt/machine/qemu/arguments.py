# SPDX-License-Identifier: Apache-2.0
"""Which arguments of the user's QEMU is not given."""

from __future__ import annotations

from collections.abc import Sequence

from ...errors import UsageError

__all__ = ["check_arguments"]

# What QEMU is told by us, and how to tell us.
_OURS = {
    "smp": "--vcpus",
    "m": "--memory",
    "cpu": "--cpu",
    "kernel": "--kernel",
    "initrd": "--initrd",
    "append": "--append",
    "gdb": "--gdb",
    "s": "--gdb",
    "S": "",
    "incoming": "",
    "dtb": "",
    "bios": "--uefi",
    "no-acpi": "--firmware dt",
    "accel": "",
    "enable-kvm": "",
    "daemonize": "",
    "nographic": "",
}
_OUR_MACHINE = dict.fromkeys(
    ("gic-version", "virtualization", "secure", "memory-backend", "accel", "dumpdtb", "type", "virt-"),
    "its machine is virt with a GICv3 and EL2",
) | {
    "acpi": "say --firmware dt, acpi or uefi instead",
    "ras": "errors are reported by sdeivirt: --error-source defines who reports them",
}


def check_arguments(arguments: Sequence[str]) -> Sequence[str]:
    """The user's own arguments again. Raises UsageError for those that would contradict ours."""
    for i, word in enumerate(arguments):
        name = word.lstrip("-")
        if not word.startswith("-"):
            continue
        if name in _OURS:
            how = f"say {_OURS[name]} instead" if _OURS[name] else "leave it out: sdeivirt decides that"
            raise UsageError(f"QEMU cannot be given {word}", how)
        if name in ("machine", "M") and i + 1 < len(arguments):
            for part in arguments[i + 1].split(","):
                for start, why in _OUR_MACHINE.items():
                    if part.startswith(start):
                        raise UsageError(f"QEMU cannot be given {word} {part}", why)
    return arguments
