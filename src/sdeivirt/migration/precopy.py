# SPDX-License-Identifier: Apache-2.0
"""All of a guest on its way: RAM while it runs, what it writes meanwhile, and with the guest stopped the rest."""

from __future__ import annotations

import math
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from ..machine.base import PAGE_SIZE
from ..machine.dirty import union
from .convergence import Convergence
from .lacking import pack_map
from .leaving import Leaving
from .messages import Kind, Ready
from .passes import Passes
from .sections import Section
from .wire import Wire

__all__ = ["PreCopy"]

_SMALL = 64 << 20  # bytes of RAM that are sent before an engine is done with what it has to prepare
_HOPELESS = "the limit of {:g} ms cannot be met: raise --downtime-limit or --max-bandwidth"


class PreCopy:
    """Sends a guest. `apart`: some of the state can come early, and the destination says when it stands."""

    def __init__(self, leaving: Leaving, apart: bool) -> None:
        self._leaving = leaving
        self._apart = apart
        self._stands = False

    def run(self, wire: Wire) -> None:
        """RAM and state up to END; the guest is stopped when this returns."""
        machine, options = self._leaving.machine, self._leaving.options
        passes = Passes(machine, wire, options.compress, self._leaving.progress)
        self._leaving.progress.update(status="active")
        self._leaving.was_paused = machine.state == "paused"
        if options.stop_first or self._leaving.was_paused or options.postcopy == 0:
            self._send_early(wire, machine.prepare_save(self._apart))
            self._stop(wire)
            self._rest(passes, wire, None)
        else:
            with ThreadPoolExecutor(1) as beside:
                dirty = self._converge(passes, wire, beside)
            self._stop(wire)
            self._rest(passes, wire, union(dirty, machine.collect_dirty()))
        sections = machine.save_state(self._leaving.detour)
        if self._leaving.was_paused and self._leaving.uri.scheme != "file":
            wire.send(Kind.STAY)
        frames = wire.writer.describe(sections)
        for section in sections:
            frames += wire.writer.section(section)
        wire.send_frames(frames)
        self._leaving.whole = True
        passes.end()

    def _rest(self, passes: Passes, wire: Wire, dirty: bytearray | None) -> None:
        """The last pages, with the guest stopped; or which they are, if they are to come after it."""
        if self._leaving.options.postcopy is None:
            passes.run(dirty)
            return
        if dirty is None:
            dirty = bytearray(self._leaving.machine.config.memory // PAGE_SIZE)
            for start, end in self._leaving.machine.data_ranges():
                dirty[start // PAGE_SIZE : end // PAGE_SIZE] = b"\1" * ((end - start) // PAGE_SIZE)
        wire.send(Kind.LACK, pack_map(dirty))

    def _converge(self, passes: Passes, wire: Wire, beside: ThreadPoolExecutor) -> bytearray:
        """Passes while the guest runs, until it can be stopped; the pages that it has written since the last one."""
        machine = self._leaving.machine
        convergence = Convergence(self._leaving.options.downtime)
        most = math.inf if self._leaving.options.postcopy is None else self._leaving.options.postcopy
        dirty: bytearray | None = None
        early: Future[list[Section]] | None = None
        if self._apart and self._leaving.options.bandwidth is None and _bytes(machine.data_ranges()) <= _SMALL:
            early = beside.submit(machine.prepare_save, True)
        machine.start_dirty_log()
        while True:
            seconds, pages = passes.run(dirty)
            convergence.sent(pages, seconds)
            if early is not None and not self._stands:
                self._send_early(wire, early.result())
            dirty = machine.collect_dirty()
            step = convergence.next(dirty.count(1))
            self._leaving.progress.update(
                dirty=dirty.count(1),
                expected_downtime=step.expected_downtime,
                limit=step.limit,
                hint=_HOPELESS.format(self._leaving.options.downtime * 1000) if step.hopeless else "",
            )
            if not (step.stop or passes.number >= most):
                machine.limit_dirtying(step.limit)
            elif self._stands:
                return dirty
            elif self._apart:  # one pass more, meanwhile
                early = beside.submit(machine.prepare_save, True)
            else:
                machine.prepare_save()
                return dirty

    def _send_early(self, wire: Wire, early: list[Section]) -> None:
        """What of the state there is already, if the destination takes it; it has, and stands, when this returns."""
        if self._apart:
            for section in early:
                wire.send_frames(wire.writer.section(section, Kind.EARLY))
            wire.send(Kind.EARLY)
            self._stands = wire.expect(Kind.READY, Ready).stands

    def _stop(self, wire: Wire) -> None:
        self._leaving.stop()
        wire.channel.stall = self._leaving.stopped_stall


def _bytes(ranges: Sequence[tuple[int, int]]) -> int:
    return sum(end - start for start, end in ranges)
