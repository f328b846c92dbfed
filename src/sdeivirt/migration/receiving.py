# SPDX-License-Identifier: Apache-2.0
"""A guest comes in, over a network or out of a file: RAM and state, to the last byte."""

from __future__ import annotations

from ..machine.base import PAGE_SIZE, Machine
from ..registers.sections import rehearse
from .collector import read_section
from .frames import damaged
from .lacking import read_map
from .messages import Kind, Ready
from .ram import PageDecoder
from .status import Progress
from .stream import Frame, Sections
from .wants import Wants
from .wire import Wire

__all__ = ["STALL", "Receiving"]

STALL = 60.0  # seconds without anything from the source: it may be held up by a bandwidth limit


class Receiving:
    """Fills a machine. `wants` are the pages that come after the guest; `stays` says that it is to stay paused."""

    def __init__(self, machine: Machine, wire: Wire, progress: Progress, prefetch: int, alive: bool) -> None:
        """`alive`: a source is at the other end, and no file."""
        self._machine = machine
        self._wire = wire
        self._progress = progress
        self._prefetch = prefetch
        self._alive = alive
        self.wants: Wants | None = None
        self.stays = False

    def run(self) -> None:
        """RAM and state, to the last byte; the machine is paused then and could go on."""
        machine, wire, progress = self._machine, self._wire, self._progress
        wire.channel.stall = STALL
        standing = machine.standing()
        stands = not machine.takes_early
        if self._alive:
            wire.say(Kind.READY, Ready(stands))
            with machine.lock:
                rehearse(machine.firmware)
        progress.update(status="active")
        decoder = PageDecoder(machine.memory(), fresh=True)
        sections = Sections(ram=machine.config.memory)
        while not sections.complete:
            frame = wire.next()
            if standing.done():
                standing.result()
            if frame.kind in (b"PAGE", b"ZERO"):
                decoder.apply(frame)
            elif frame.kind == Kind.LACK and self._alive and self.wants is None:
                self._lack(frame)
            elif frame.kind == b"PASS":
                progress.update(passes=progress.now.passes + 1)
            elif frame.kind == Kind.EARLY and not stands and self._alive:
                stands = self._take_early(frame)
            elif frame.kind == Kind.STAY and self._alive:
                self.stays = True
            else:
                sections.feed(frame)
            stats = decoder.stats
            progress.update(
                plain=stats.plain, zero=stats.zero, duplicate=stats.duplicate, bytes=wire.channel.received, remaining=0
            )
        assert sections.end is not None
        if sections.end.pages != decoder.stats.pages:
            raise damaged(frame, f"it tells of {sections.end.pages} pages, and {decoder.stats.pages} came")
        if not self._alive:
            wire.check_end()
        progress.update(status="device")
        machine.load_state(sections.sections())

    def _lack(self, frame: Frame) -> None:
        """These pages come after the guest."""
        self._machine.standing().result()
        lacking = read_map(frame, self._machine.config.memory // PAGE_SIZE)
        self.wants = Wants(lacking, self._prefetch)
        self._machine.lack_pages(lacking[:], self.wants)

    def _take_early(self, frame: Frame) -> bool:
        """A section that comes early, or the end of these: whether it was."""
        if frame.payload:
            self._machine.load_early(read_section(frame))
            return False
        self._machine.standing().result()
        self._wire.say(Kind.READY, Ready())
        return True
