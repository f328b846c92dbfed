# SPDX-License-Identifier: Apache-2.0
"""`sdeivirt inject-error`."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from ..control.client import VmClient
from ..errors import SdeivirtError, UsageError
from ..ras.outcome import check_limit
from ..ras.status_block import BLOCK_SIZE, is_fatal
from .binary import Input, read_binary
from .options import Json, Number, Seconds, VmName
from .reports import Series, say_interrupted, terminated_like_interrupted

if TYPE_CHECKING:
    from cyclopts.completion import CompletionContext

__all__ = ["inject_error"]

_PATIENCE = 2.0  # of who completes a word


def _complete_aer(_context: object) -> list[str]:
    from ..ras.cper import AER_ERRORS

    return list(AER_ERRORS)


def _complete_sources(context: CompletionContext) -> list[tuple[str, str]]:
    try:
        with VmClient(str(context["vm"].raw), _PATIENCE) as client:
            return [(str(one.number), f"event {one.event:#x}") for one in client.status().error_sources]
    except SdeivirtError:
        return []


def _complete_processes(context: CompletionContext) -> list[str]:
    try:
        with VmClient(str(context["vm"].raw), _PATIENCE) as client:
            found = client.find_victims()
    except SdeivirtError:
        return []
    names = [each.name for each in found]
    return [*(name for name in names if names.count(name) == 1), *(str(each.pid) for each in found)]


def inject_error(
    vm: VmName,
    kind: Literal["memory", "processor", "pcie"] | None = None,
    /,
    *,
    severity: Literal["corrected", "recoverable", "fatal", "informational"] | None = None,
    address: Number | None = None,
    process: Annotated[str | None, Parameter(completer=_complete_processes)] = None,
    device: str | None = None,
    threshold_exceeded: bool = False,
    aer: Annotated[str | None, Parameter(completer=_complete_aer)] = None,
    record: Input | None = None,
    source: Annotated[Number, Parameter(completer=_complete_sources)] = 0,
    vcpu: Number | None = None,
    when_busy: Literal["wait", "fail", "queue"] = "wait",
    wait_ready: bool = False,
    timeout: Seconds = 10.0,
    count: Number = 1,
    interval: Number = 0,
    list_sources: bool = False,
    json_: Json = False,
) -> int:
    """Report a hardware error to the guest of a running VM, as firmware does: by ACPI's GHES and an SDEI event.

    The error is described in memory that the guest knows from its HEST, the source's event is injected, and the
    guest says when it has read it. The VM has to boot by ACPI: run --machine qemu --firmware acpi.
    Exit codes: 0 the guest has acknowledged it, or it is queued, or the kernel has panicked at a fatal one;
    1 it could not be delivered, or the guest has panicked or ended; 124 not acknowledged in time.

    Parameters
    ----------
    vm
        The VM's name.
    kind
        What is broken: memory, processor or pcie.
    severity
        How bad it is. Linux goes on after a corrected error, may lose a page or a process by a recoverable
        one, and panics at a fatal one.
    address
        The guest physical address of the error.
    process
        Have the error in the page of a process that watches one: its pid, or its name with * and ?.
        In the Linux guest the program `victim` is such a process.
    device
        Have the error of pcie in this device, by bus, device and function, such as 01:00.0: Linux tries to recover it.
        By default it is in one that is not there.
    threshold_exceeded
        Say that there were too many corrected errors: Linux takes the page out of use.
    aer
        Which error of pcie it is, by a name such as bad-tlp, completion-timeout or malformed-tlp.
    record
        A file with a generic error status block to report as it is, instead of kind and severity;
        - is standard input.
    source
        The source that reports it, by number.
    vcpu
        The vCPU that is told, where the source's event is private; 0 by default.
    when_busy
        What to do while the guest has not acknowledged the report before: wait for it, fail, or
        queue this one and wait for nothing.
    wait_ready
        Wait also for a guest that has not registered the source's event yet, because it boots or reboots.
    timeout
        Seconds to wait for the source to be free and for the acknowledgement.
    count
        Report it so many times, each after the one before.
    interval
        The least milliseconds from one report to the next.
    list_sources
        Show the VM's sources of errors and their state instead.
    """
    if list_sources:
        if (kind, severity, address, process, device, aer, record) != (None,) * 7 or threshold_exceeded or count != 1:
            raise UsageError("--list-sources reports no error", "leave it out, or all that describes an error")
        return _list(vm, json_)
    arguments = _arguments(kind, severity, address, process, device, aer, threshold_exceeded, record)
    check_limit(timeout)
    if count < 1:
        raise UsageError("nothing is to be reported", "give a --count of 1 or more")
    _check_numbers(source=source, vcpu=vcpu, interval=interval)
    if wait_ready and when_busy == "fail":
        raise UsageError("--wait-ready and --when-busy fail do not go together", "leave out one of them")
    arguments |= {"source": source, "vcpu": vcpu, "when_busy": when_busy, "wait_ready": wait_ready or None}
    fatal = _is_fatal(arguments, severity)
    with terminated_like_interrupted() as ended, VmClient(vm) as client:
        series = Series(count, source)
        try:
            if count == 1:
                outcome = client.report_error(timeout, **arguments)
                print(json.dumps(outcome) if json_ else _describe(outcome))
                return 0 if outcome["outcome"] != "panicked" or fatal else 1
            try:
                series.run(client, timeout, interval / 1000, arguments)
            finally:
                series.show(json_)
        except KeyboardInterrupt:
            say_interrupted(client.withdrawn, under_way=count == 1)
            if not ended:
                raise
            return 128 + ended[0]
    if series.failure is not None:
        raise series.failure
    return 1 if series.refused or (series.panicked and not fatal) else 0


def _arguments(
    kind: str | None,
    severity: str | None,
    address: int | None,
    process: str | None,
    device: str | None,
    aer: str | None,
    threshold_exceeded: bool,
    record: Path | None,
) -> dict[str, object]:
    """What is to be reported, for the VM. Raises UsageError."""
    if record is not None:
        if kind or severity or address is not None or process or device or aer or threshold_exceeded:
            raise UsageError("a record says itself what is broken", "give --record, or a kind and --severity")
        block = read_binary(record, BLOCK_SIZE, UsageError, "give a generic error status block", "it has 4 KiB at most")
        _warn_of(block)
        import base64

        return {"block": base64.b64encode(block).decode()}
    if kind is None:
        raise UsageError("nothing is said of the error", "name memory, processor or pcie; or --record FILE")
    if severity is None:
        raise UsageError(
            "nothing is said of how bad it is", "--severity corrected, recoverable, fatal or informational"
        )
    if address is not None and process is not None:
        raise UsageError("an address and a process were both named", "the process's page is the address")
    if (device is not None or aer is not None) and kind != "pcie":
        raise UsageError(f"an error of {kind} is not in a PCIe device", "leave --device and --aer out")
    _check_numbers(address=address)
    given: dict[str, object] = {"kind": kind, "severity": severity, "address": address, "process": process}
    given |= {"device": device, "aer": aer}
    return given | ({"threshold_exceeded": True} if threshold_exceeded else {})


def _check_numbers(**numbers: int | None) -> None:
    """Raises UsageError for those of more than 64 bits: there are none such."""
    for name, number in numbers.items():
        if number is not None and number >= 1 << (32 if name == "interval" else 64):
            raise UsageError(f"there is no {name} {hex(number)[:40]}", "give a smaller number")


def _warn_of(block: bytes) -> None:
    """Whoever sends what nobody can read may mean it."""
    from ..ras.cper import CperError
    from ..ras.cper.block import block_size, decode_block

    try:
        decode_block(block)
    except CperError as error:
        print(
            f"warning: this is no valid error status block: {error.message}. Linux may acknowledge it unread",
            file=sys.stderr,
        )
    else:
        if (used := block_size(block)) < len(block):
            print(f"warning: nobody reads the {len(block) - used} bytes behind the error status block", file=sys.stderr)


def _is_fatal(arguments: Mapping[str, object], severity: str | None) -> bool:
    block = arguments.get("block")
    if not isinstance(block, str):
        return severity == "fatal"
    import base64

    return is_fatal(base64.b64decode(block))


# -- one


def _describe(outcome: Mapping[str, Any]) -> str:
    """For people, from the members of :class:`sdeivirt.ras.outcome.Outcome`."""
    where = ""
    if (victim := outcome.get("process")) is not None:
        where = f" at {victim['address']:#x}, the page of process {victim['pid']} ({victim['name']})"
    elif outcome.get("address") is not None:
        where = f" at {outcome['address']:#x}"
    head = f"source {outcome['source']} (event {outcome['event']:#x}): the error{where} "
    on = "" if outcome["vcpu"] is None else f" on vCPU {outcome['vcpu']}"
    if outcome["outcome"] == "queued":
        return head + "is queued: it is reported when the guest has read those before it"
    if outcome["outcome"] == "panicked":
        return head + f"was reported, and the guest's kernel has panicked{on}"
    took = "" if outcome["seconds"] is None else f", handled{on} in {outcome['seconds'] * 1e3:.1f} ms"
    return head + "was reported and acknowledged" + took


# -- which there are


def _list(vm: str, as_json: bool) -> int:
    with VmClient(vm) as client:
        report = client.status()
    if as_json:
        from .sources import sources_json

        print(json.dumps(sources_json(report.error_sources, report.events), indent=2))
    elif report.error_sources:
        from .output import show
        from .sources import sources_table

        show(sources_table("", report.error_sources, report.events))
    else:
        print(f"VM {vm} has no sources of errors: it has to boot by ACPI, run --machine qemu --firmware acpi")
    return 0
