# SPDX-License-Identifier: Apache-2.0
"""QEMU's own migration: the same guest, from one QEMU to another without any of ours, over a Unix socket.

What it takes is what QEMU says of it (query-migrate). Its downtime ends
when the source has sent everything, so the time from the source's STOP event to the
destination's RESUME event is given as well.
"""

from __future__ import annotations

import asyncio
import socket
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qemu.qmp import EventListener, QMPClient

from .plain_qemu import PlainQemu

__all__ = ["PlainGuest", "PlainMigration", "migrate"]

_UNLIMITED = 1 << 40  # bytes a second
_PATIENCE = 120.0
_SAMPLE = 0.05
_TICK = 0.005


@dataclass(frozen=True, slots=True)
class PlainGuest:
    """What runs. `ready` is the text that tells that it is up, `counter` the address of a counter of its work."""

    kernel: Path
    append: str
    memory: int
    ready: str
    initrd: Path | None = None
    vcpus: int = 1
    counter: int | None = None


@dataclass(frozen=True, slots=True)
class PlainMigration:
    """Times in seconds, `stopped` from STOP here to RESUME there; `before` and `during`: what it counted a second."""

    total: float
    downtime: float
    stopped: float
    bytes: int
    passes: int
    before: float = 0.0
    during: float = 0.0


def migrate(
    guest: PlainGuest, downtime: float = 0.3, bandwidth: int | None = None, watch: float = 0.0
) -> PlainMigration:
    """Boot the guest, and move it. `watch` is for how many seconds its counter is looked at before."""
    with tempfile.TemporaryDirectory(prefix="sdeivirt-") as directory, ExitStack() as stack:
        here = stack.enter_context(_Monitored(guest))
        there = stack.enter_context(_Monitored(guest, ("-incoming", "defer")))
        here.qemu.shell.wait_for(guest.ready, _PATIENCE)
        return asyncio.run(_migrate(here, there, guest, Path(directory) / "there", downtime, bandwidth, watch))


class _Monitored(ExitStack):
    """A plain QEMU with a QMP socket of ours. A context manager."""

    def __init__(self, guest: PlainGuest, arguments: Sequence[str] = ()) -> None:
        super().__init__()
        self.socket, theirs = socket.socketpair()
        self.enter_context(self.socket)
        chardev = ("-chardev", f"socket,id=monitor,fd={theirs.fileno()}", "-qmp", "chardev:monitor")
        self.qemu = PlainQemu(
            guest.kernel,
            guest.initrd,
            guest.append,
            guest.memory,
            guest.vcpus,
            (*chardev, *arguments),
            (theirs.fileno(),),
        )
        theirs.close()
        self.enter_context(self.qemu)


class _Qmp:
    """Commands, and the events that are waited for."""

    def __init__(self, name: str) -> None:
        self.client = QMPClient(name)
        self._events = EventListener(("MIGRATION", "STOP", "RESUME"))
        self.client.register_listener(self._events)

    async def connect(self, monitored: _Monitored) -> None:
        await self.client.connect(monitored.socket)
        await self.do("migrate-set-capabilities", capabilities=[{"capability": "events", "state": True}])

    async def do(self, command: str, **arguments: object) -> Any:
        return await self.client.execute(command, {key.replace("_", "-"): value for key, value in arguments.items()})

    async def event(self, name: str, *statuses: str) -> float:
        """Wait for an event, or for one that tells of one of these states; QEMU's time of it, in seconds."""
        while True:
            event: Any = await self._events.get()
            if event["event"] == name and (not statuses or event["data"]["status"] in statuses):
                if statuses and event["data"]["status"] == "failed":
                    raise RuntimeError("QEMU's own migration failed")
                return float(event["timestamp"]["seconds"]) + float(event["timestamp"]["microseconds"]) / 1e6


async def _migrate(
    here: _Monitored,
    there: _Monitored,
    guest: PlainGuest,
    path: Path,
    downtime: float,
    bandwidth: int | None,
    watch: float,
) -> PlainMigration:
    source, target = _Qmp("here"), _Qmp("there")
    async with asyncio.timeout(_PATIENCE):
        await source.connect(here)
        await target.connect(there)
        await target.do("migrate-incoming", uri=f"unix:{path}")
        await source.do(
            "migrate-set-parameters", max_bandwidth=bandwidth or _UNLIMITED, downtime_limit=int(downtime * 1000)
        )
        before = await _rate_for(source, guest.counter, watch)
        await source.do("migrate", uri=f"unix:{path}")
        await source.event("MIGRATION", "active", "failed")
        watching = asyncio.ensure_future(_rate_for(source, guest.counter, None))
        stop = await source.event("STOP")
        watching.cancel()
        during = (await asyncio.gather(watching, return_exceptions=True))[0]
        await source.event("MIGRATION", "completed", "failed")
        resume = await target.event("RESUME")
        while not (found := await source.do("query-migrate")).get("total-time"):
            await asyncio.sleep(_TICK)  # the event comes before the figures
        for each in (source, target):
            await each.client.disconnect()
    return PlainMigration(
        found["total-time"] / 1000,
        found["downtime"] / 1000,
        resume - stop,
        found["ram"]["transferred"],
        found["ram"]["dirty-sync-count"],
        before,
        during if isinstance(during, float) else 0.0,
    )


async def _rate_for(qmp: _Qmp, counter: int | None, seconds: float | None) -> float:
    """What the guest counts a second: over so many seconds, or (None) until this is cancelled."""
    if counter is None or seconds == 0:
        return 0.0
    loop = asyncio.get_running_loop()
    start, first = loop.time(), await _read(qmp, counter)
    now, count = start, first
    try:
        while seconds is None or now < start + seconds:
            await asyncio.sleep(_SAMPLE)
            count, now = await _read(qmp, counter), loop.time()
    except asyncio.CancelledError:
        pass
    return (count - first) / (now - start) if now > start else 0.0


async def _read(qmp: _Qmp, address: int) -> int:
    """A 64-bit word of the guest's memory, by physical address."""
    answer: str = await qmp.do("human-monitor-command", command_line=f"xp /1gx {address:#x}")
    return int(answer.split(":")[1], 16)
