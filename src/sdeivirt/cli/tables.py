# SPDX-License-Identifier: Apache-2.0
"""`sdeivirt tables`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import App, Parameter

from ..errors import UsageError
from .options import Number, Size

__all__ = ["app"]

app = App(name="tables", help="Write the tables that announce SDEI to a guest.")

Output = Annotated[
    Path | None, Parameter(alias="-o", allow_leading_hyphen=True, help="The file to write; - is standard output.")
]


def _write(data: bytes, output: Path | None) -> None:
    if output is None and sys.stdout.isatty():
        raise UsageError("a binary table is nothing for a terminal", "name a file with -o FILE, or insist with -o -")
    if output is None or str(output) == "-":
        sys.stdout.buffer.write(data)
        return
    try:
        output.write_bytes(data)
    except OSError as error:
        raise UsageError(f"cannot write {output}: {error.strerror}", "choose another file") from error


@app.command
def dt(
    *,
    vcpus: Number = 2,
    memory: Size = 64 << 20,
    conduit: Literal["hvc", "smc"] = "hvc",
    append: str = "",
    node: bool = False,
    output: Output = None,
) -> None:
    """Write the device tree (DTB) that a machine hands to its guest.

    Parameters
    ----------
    vcpus
        How many vCPUs, 1 to 512.
    memory
        How much RAM, such as 64M.
    conduit
        The instruction that the guest is to call with.
    append
        The boot arguments.
    node
        Only the node of SDEI, as source text, for a tree of your own.
    """
    from ..cpu import affinity_of_index
    from ..machine import MachineConfig
    from ..smccc.ids import Conduit
    from ..tables.devicetree import build, sdei_node

    config = MachineConfig(vcpus=vcpus, memory=memory, conduit=Conduit(conduit), bootargs=append)
    if node:
        _write(sdei_node(config.conduit).to_dts(tabsize=8).encode("ascii"), output or Path("-"))
    else:
        _write(build(config, [affinity_of_index(i) for i in range(vcpus)]), output)


@app.command
def acpi(*, output: Output = None) -> None:
    """Write the SDEI table of ACPI, 36 bytes."""
    from ..tables.acpi import sdei_table

    _write(sdei_table(), output)
