# SPDX-License-Identifier: Apache-2.0
"""`sdeivirt status`."""

from __future__ import annotations

import json
from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import asdict, replace
from typing import Any, TypeVar

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from ..control.client import VmClient
from ..control.runtime import RunningVm, find_vm, running_vms
from ..errors import SdeivirtError
from ..machine.report import AsyncPfStatus, EventStatus, HandlerReport, PeStatus, VmStatus
from .options import Json, VmName
from .output import flags, ranges, show, table
from .sources import sources_json, sources_table

__all__ = ["status"]

_LIST_PATIENCE = 2.0

T = TypeVar("T")


def status(vm: VmName | None = None, /, *, all_: bool = False, json_: Json = False) -> None:
    """Show all running VMs, or everything about one.

    Places that wait for a guest are among them; of a guest that moves it is
    said where to. vCPUs of which the same is to be said share a line.

    Parameters
    ----------
    vm
        The VM's name; without one, all are listed.
    all_
        Give every vCPU a line of its own.
    """
    if vm is None:
        _list(json_)
        return
    found = find_vm(vm)
    if found.waiting_at:
        row = _summary(found)
        print(json.dumps(row, indent=2) if json_ else f"VM {vm}: {_state(row)}")
        return
    with VmClient(vm) as client:
        report = client.status()
        now = client.execute("query-migrate")
    if json_:
        sources = sources_json(report.error_sources, report.events)
        print(json.dumps(asdict(report) | {"error_sources": sources}, indent=2))
    else:
        _show(report, not all_, now)


# -- all VMs


def _summary(vm: RunningVm) -> dict[str, object]:
    row: dict[str, object] = {"name": vm.name, "pid": vm.pid}
    if vm.waiting_at:
        return row | {"machine": None, "vcpus": None, "state": "waiting", "migration": f"at {vm.waiting_at}"}
    try:
        with VmClient(vm.name, _LIST_PATIENCE) as client:
            report = client.status()
            moving = _moving(client.execute("query-migrate"))
    except SdeivirtError:
        return row | {"machine": None, "vcpus": None, "state": "does not answer", "migration": ""}
    return row | {"machine": report.machine, "vcpus": len(report.vcpus), "state": report.state, "migration": moving}


def _state(row: Mapping[str, object]) -> str:
    """Its state, and what becomes of its guest."""
    state, migration = row["state"], row["migration"]
    return f"{state}{' ' if state == 'waiting' else ', '}{migration}" if migration else str(state)


def _is_lost(now: Mapping[str, Any]) -> bool:
    """Whether the guest came before its pages, and they will never come: its VM would have ended else."""
    return bool(now["role"] == "destination" and now["status"] == "failed")


def _moving(now: Mapping[str, Any]) -> str:
    """What a migration that is under way does, in a few words; "" where there is none."""
    status, uri = now["status"], now["uri"]
    source = now["role"] == "source"
    file = uri.removeprefix("file:")
    if status in ("setup", "active", "device"):
        if file != uri:
            return f"being saved in {file}" if source else f"being restored from {file}"
        return f"moving to {uri}" if source else f"coming to {uri}"
    if status in ("undecided", "postcopy-active", "postcopy-recover", "postcopy-paused"):
        return {
            "undecided": f"nobody knows whether it runs at {uri}",
            "postcopy-active": f"its pages move to {uri}" if source else "its pages are on their way",
            "postcopy-recover": "connecting again for its pages",
            "postcopy-paused": f"pages for {uri} are here" if source else "its pages are out of reach",
        }[status]
    return "lost: some of its pages are gone" if _is_lost(now) else ""


def _list(as_json: bool) -> None:
    rows = [_summary(vm) for vm in running_vms()]
    if as_json:
        print(json.dumps(rows, indent=2))
    elif rows:
        made = table("", "VM", "pid", "machine", "vCPUs", "state")
        for row in rows:
            cells = ("-" if row[name] is None else str(row[name]) for name in ("name", "pid", "machine", "vcpus"))
            made.add_row(*map(Text, cells), Text(_state(row)))
        show(made)
    else:
        print("no VM is running")


# -- one VM


def _grouped(items: Iterable[T], key: Callable[[T], Hashable]) -> list[list[T]]:
    groups: dict[Hashable, list[T]] = {}
    for item in items:
        groups.setdefault(key(item), []).append(item)
    return list(groups.values())


def _show(report: VmStatus, fold: bool, now: Mapping[str, Any] | None = None) -> None:
    moving = _moving(now) if now is not None else ""
    doing = f"{report.state}, {moving}" if moving else report.state
    head = (
        f"VM {report.name}: {doing}, machine {report.machine}, scheduler {report.scheduler}, "
        f"{len(report.vcpus)} vCPU{'s' * (len(report.vcpus) > 1)}, {report.memory >> 20} MiB, policy {report.policy}"
    )
    parts: list[RenderableType] = [Text(head)]
    if now is not None and _is_lost(now):
        parts.append(Text(f"{now['error']}: {now['hint']}"))
    if report.engine:
        parts.append(Text(", ".join(f"{name.replace('-', ' ')} {value}" for name, value in report.engine.items())))
    parts += ["", _pes(report.vcpus, fold), "", _events(report.events)]
    if any(event.handlers for event in report.events):
        parts += ["", _handlers(report.events, fold)]
    if report.async_pf:
        parts += ["", _async_pf(report.async_pf, fold)]
    if report.error_sources:
        parts += ["", sources_table("Error sources", report.error_sources, report.events)]
    for fault in report.faults:
        parts += ["", Text(fault.render(), overflow="ignore", no_wrap=True)]
    show(*parts)


def _pes(vcpus: list[PeStatus], fold: bool) -> Table:
    made = table("PEs", "vCPU", "affinity", "power", "masked", "running", "nesting")
    for group in _grouped(vcpus, lambda pe: (pe.power, pe.masked, tuple(pe.running), *(() if fold else (pe.vcpu,)))):
        pe = group[0]
        affinities = f"{pe.affinity:#x}" + (f" to {group[-1].affinity:#x}" if len(group) > 1 else "")
        made.add_row(
            ranges(pe.vcpu for pe in group),
            affinities,
            Text(pe.power, "bold red" if pe.power == "faulted" else ""),
            "yes" if pe.masked else "no",
            " > ".join(f"{event:#x}" for event in pe.running) or "-",
            str(pe.nesting),
        )
    return made


def _async_pf(vcpus: list[AsyncPfStatus], fold: bool) -> Table:
    made = table(
        "Asynchronous page faults", "vCPU", "told by", "told", "answered", "refused", "outstanding", "ready", "waits"
    )
    for group in _grouped(vcpus, lambda one: replace(one, vcpu=0) if fold else one):
        one = group[0]
        counts = (one.told, one.answered, one.refused, one.outstanding, one.ready, one.waits)
        by = {"sdei": "event", "ppi": "PPI"}.get(one.transport, "-")
        made.add_row(ranges(each.vcpu for each in group), by, *map(str, counts))
    return made


_COUNTS = ("injected", "delivered", "completed")
_RARE_COUNTS = ("failed", "coalesced", "dropped")


def _flags(handler: HandlerReport) -> str:
    return flags([(name, getattr(handler, name)) for name in ("registered", "enabled", "running", "pending")])


def _events(events: list[EventStatus]) -> Table:
    made = table("Events", "event", "type", "priority", "raised by", "handlers")
    for event in events:
        interrupt = "" if event.interrupt is None else f"INTID {event.interrupt}"
        source = interrupt or ("signal, host" if event.signalable else "host")
        registered = sum(handler.registered for handler in event.handlers)
        made.add_row(
            f"{event.number:#x}",
            event.type,
            event.priority,
            source + (" (bound)" if event.dynamic else ""),
            str(registered) if registered else "none registered",
        )
    return made


def _handlers(events: list[EventStatus], fold: bool) -> Table:
    made = table("Handlers", "event", "vCPU", "state", *_COUNTS, "of these")
    for event in events:
        for group in _grouped(event.handlers, lambda one: replace(one, vcpu=None) if fold else one):
            handler = group[0]
            rare = [f"{getattr(handler, name)} {name}" for name in _RARE_COUNTS if getattr(handler, name)]
            counts = (str(getattr(handler, name)) for name in _COUNTS)
            made.add_row(f"{event.number:#x}", _where(group), _flags(handler), *counts, ", ".join(rare))
    return made


def _where(group: list[HandlerReport]) -> str:
    handler = group[0]
    if handler.vcpu is not None:
        return ranges(handler.vcpu for handler in group if handler.vcpu is not None)
    routed = "any" if handler.routed_to is None else f"{handler.routed_to}"
    return routed if handler.runs_on is None else f"{routed}, runs on {handler.runs_on}"
