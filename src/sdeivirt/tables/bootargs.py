# SPDX-License-Identifier: Apache-2.0
"""Which boot arguments a device tree can hold."""

from __future__ import annotations

from ..errors import UsageError

__all__ = ["check_bootargs"]

_MAX_BOOTARGS = 2048  # COMMAND_LINE_SIZE of arm64 Linux


def check_bootargs(bootargs: str) -> str:
    """The boot arguments again. Raises UsageError where no tree can hold them."""
    if len(bootargs) >= _MAX_BOOTARGS or not all(" " <= c <= "~" or c == "\t" for c in bootargs):
        raise UsageError(
            "the boot arguments cannot stand in a device tree",
            f"use printable ASCII, fewer than {_MAX_BOOTARGS} characters",
        )
    return bootargs
