# SPDX-License-Identifier: Apache-2.0
"""`sdeivirt cper`."""

from __future__ import annotations

import json
import sys
from typing import Annotated, Literal

from cyclopts import App, Parameter

from ..errors import UsageError
from .binary import Input, Output, read_binary, write_binary
from .options import Json, Number

__all__ = ["app"]

app = App(name="cper", help="Read and write reports of hardware errors (UEFI's CPER, ACPI's error status blocks).")


def _complete_aer(_context: object) -> list[str]:
    from ..ras.cper import AER_ERRORS

    return list(AER_ERRORS)


@app.command
def decode(file: Input, /, *, json_: Json = False) -> None:
    """Show what a report says, as Linux prints it (7.3): its lines, from what follows "[Hardware Error]:".

    Of one that is damaged, what can be read before the damage.

    Parameters
    ----------
    file
        A generic error status block (ACPI), as a source reports it; or an error record with
        the signature CPER (UEFI), as ERST stores it. - is standard input.
    """
    from ..ras.cper import MAX_SIZE, CperError, CperRecord, decode, decoded_size, describe, render, salvage

    hint = "name a file with a report: an error status block, or an error record"
    data = read_binary(file, MAX_SIZE, CperError, hint, "a report is some KiB")
    try:
        decoded = decode(data)
    except CperError:
        if not json_ and (readable := salvage(data)):
            print("\n".join(readable), flush=True)
        raise
    if (used := decoded_size(data)) < len(data):
        print(f"warning: {len(data) - used} bytes follow, which nobody reads", file=sys.stderr)
    if json_:
        print(json.dumps(describe(decoded), indent=2))
        return
    if isinstance(decoded, CperRecord):
        print(f"record {decoded.record_id:#x}, creator {decoded.creator_id}, notification {decoded.notification}")
    print("\n".join(render(decoded)))


@app.command
def encode(
    kind: Literal["memory", "processor", "pcie"],
    /,
    *,
    severity: Literal["corrected", "recoverable", "fatal", "informational"],
    address: Number | None = None,
    threshold_exceeded: bool = False,
    part: Literal["cache", "tlb", "bus"] = "cache",
    mpidr: Number | None = None,
    midr: Number | None = None,
    device: str | None = None,
    aer: Annotated[str | None, Parameter(completer=_complete_aer)] = None,
    fru_text: str | None = None,
    output: Output = None,
) -> None:
    """Write a report as firmware would make it: a generic error status block, for inject-error --record.

    Parameters
    ----------
    kind
        What is broken: memory, processor or pcie.
    severity
        How bad it is.
    address
        The physical address: of the memory, of the fault, or of what the PCIe packet was to read.
    threshold_exceeded
        Say that there were too many errors of the kind.
    part
        What of the processor is broken.
    mpidr
        Which processor it is.
    midr
        Of which make it is.
    device
        Which PCIe device it is: bus, device and function, such as 00:02.0.
    aer
        Which PCIe error it is, by a name such as bad-tlp, completion-timeout or malformed-tlp.
    fru_text
        The name of the part that can be replaced, up to 20 characters.
    """
    from ..ras.cper import Severity, make_block

    if kind != "processor" and (mpidr is not None or midr is not None or part != "cache"):
        raise UsageError(f"an error of {kind} has no --part, --mpidr and --midr", "they are for processor")
    if kind != "pcie" and (device is not None or aer is not None):
        raise UsageError(f"an error of {kind} is not in a PCIe device", "--device and --aer are for pcie")
    block = make_block(
        kind,
        Severity.parse(severity),
        address=address,
        threshold_exceeded=threshold_exceeded,
        mpidr=mpidr,
        midr=midr,
        part=part,
        at=device,
        aer=aer,
        fru_text=fru_text,
    )
    write_binary(block.encode(), output, "report")
