# SPDX-License-Identifier: Apache-2.0
"""`sdeivirt tables`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from cyclopts import App

from ..errors import EventFileError, UsageError
from .binary import STANDARD, Output, write_binary
from .options import Number, Size

if TYPE_CHECKING:
    from ..machine import MachineConfig
    from ..tables.acpi import AcpiTables

__all__ = ["app"]

app = App(name="tables", help="Write the tables that announce SDEI to a guest.")


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
        write_binary(sdei_node(config.conduit).to_dts(tabsize=8).encode("ascii"), output or STANDARD, "table")
    else:
        write_binary(build(config, [affinity_of_index(i) for i in range(vcpus)]), output, "table")


@app.command
def acpi(
    *,
    vcpus: Number = 2,
    memory: Size = 1 << 30,
    conduit: Literal["hvc", "smc"] = "hvc",
    event: list[str] | None = None,
    events: Path | None = None,
    error_source: list[str] | None = None,
    only: str | None = None,
    asl: bool = False,
    output: Output = None,
) -> None:
    """Write the ACPI tables that a machine hands to its guest (run --machine qemu --firmware acpi).

    Each becomes a file in the directory: rsdp.bin, and xsdt.aml and so on for iasl.

    Parameters
    ----------
    vcpus
        How many vCPUs, 1 to 64.
    memory
        How much RAM, such as 64M: the tables stand at its end.
    conduit
        The instruction that the guest is to call with.
    event
        Define an event, as for run; any number of times.
    events
        Define the events and the sources of errors of a TOML file.
    error_source
        Define a source of hardware errors by its event, as for run; any number of times. By default
        there are those that run has.
    only
        One table alone, such as SDEI, into a file.
    asl
        The source of the DSDT as text, into a file.
    output
        The directory, or the file for --only and --asl; - is standard output.
    """
    if only is not None and asl:
        raise UsageError("--only and --asl do not go together", "give one of them")
    config = _acpi_config(vcpus, memory, conduit, events, event or (), error_source or ())
    if asl:
        from ..tables.acpi import asl as source

        write_binary(source(vcpus).encode("ascii"), output or STANDARD, "table")
        return
    tables = _machine_tables(config)
    if only is not None:
        table = tables.by_signature.get(only.upper())
        if table is None:
            raise UsageError(f"there is no table {only!r}", f"there are {', '.join(tables.by_signature)}")
        write_binary(table, output, "table")
    else:
        _write_all(tables, output)


def _acpi_config(
    vcpus: int, memory: int, conduit: str, file: Path | None, events: Sequence[str], sources: Sequence[str]
) -> MachineConfig:
    """What such a machine is made of. Raises UsageError for one that cannot be."""
    from ..asyncpf.events import with_event
    from ..asyncpf.settings import AsyncPfSettings
    from ..machine import MachineConfig
    from ..machine.qemu.layout import MAX_VCPUS
    from ..ras.definitions import load_definitions, parse_error_source, settle, standard
    from ..sdei.events import check_events, parse_event
    from ..smccc.ids import Conduit

    if vcpus > MAX_VCPUS:
        raise UsageError(f"machine qemu cannot have {vcpus} vCPUs", f"it can have 1 to {MAX_VCPUS}")
    from_file, sources_from_file = load_definitions(file) if file is not None else ([], [])
    defined = (*from_file, *map(parse_event, events))
    given = [*sources_from_file, *map(parse_error_source, sources)]
    known, error_sources = settle(defined, given) if given else standard(defined)
    check_events(known)
    try:
        with_event(known, AsyncPfSettings.of("both"))  # as run has them unless it is told otherwise
    except EventFileError as error:
        raise EventFileError(error.message, "use another") from error
    return MachineConfig(
        vcpus=vcpus, memory=memory, conduit=Conduit(conduit), events=known, error_sources=error_sources
    )


def _machine_tables(config: MachineConfig) -> AcpiTables:
    from ..cpu import affinity_of_index
    from ..machine.qemu.acpi import AcpiPlaces, error_windows
    from ..tables.acpi import make_tables

    return make_tables(
        AcpiPlaces.of(config).tables,
        [affinity_of_index(i) for i in range(config.vcpus)],
        conduit=config.conduit,
        sources=config.error_sources,
        windows=error_windows(config),
    )


def _write_all(tables: AcpiTables, output: Path | None) -> None:
    """Each table to a file of its name, and to standard output where it stands in memory."""
    names = ", ".join(tables.by_signature)
    if output is None or output == STANDARD:
        raise UsageError(f"these are several tables: {names}", "name a directory with -o DIR, or one with --only NAME")
    try:
        output.mkdir(exist_ok=True)
    except OSError as error:
        raise UsageError(f"cannot make the directory {output}: {error.strerror}", "choose another") from error
    for at, data in sorted(tables.placed.items()):
        name = "rsdp.bin" if at == tables.base else f"{data[:4].decode().lower()}.aml"
        write_binary(data, output / name, "table")
        print(f"{at:#x}  {len(data):5} bytes  {output / name}")
