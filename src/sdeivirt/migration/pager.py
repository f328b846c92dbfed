# SPDX-License-Identifier: Apache-2.0
"""The side that lacks pages: asks for those that the guest needs, and gives all that come to the machine."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from ..machine.base import PAGE_SIZE, Machine
from .channel import ChannelCancelledError, ChannelStalledError
from .frames import Frame, damaged
from .lacking import Got, pack_map, read_gift
from .messages import Failure, Kind
from .mouth import Mouth
from .pages import PLAIN, SAME, SKIPPED, ZERO, read_pages, read_zeroes
from .status import Progress
from .wants import Wants
from .wire import Wire

__all__ = ["Pager", "figures", "tell_figures"]

_GOT_BYTES = 32 << 10  # that are taken before the other side is told, at most; pageserver.py counts on it
_GOT_SECONDS = 0.1
_TELL = 0.1
_FAREWELL = 3.0  # seconds for the other side's, once nothing else is to come; then another connection is waited for
_BURST = 16  # frames that are taken before what they make wanted is asked for


class Pager:
    """Gets the pages that `wants` lacks, for a machine that has been told to lack them."""

    def __init__(
        self,
        machine: Machine,
        wants: Wants,
        tell: Callable[[], None] = lambda: None,
        complete: Callable[[], None] = lambda: None,
    ) -> None:
        """`tell` is called now and then while pages come, `complete` once all are here."""
        self._machine = machine
        self._memory = machine.config.memory
        self._wants = wants
        self._tell = tell
        self._complete = complete
        self._got = Got(0)
        # What has come, over all connections; which is the present one, and how much had come through it before.
        self._plain = self._zero = self._same = self._received = 0
        self._wire: Wire | None = None
        self._before = 0
        self._lock = threading.Lock()  # of the next two
        self._mouth: Mouth | None = None  # on a connection on which it is known what is lacking
        self._enough = False  # nobody needs what is still to come
        self._crash: Failure | None = None  # the guest is lost, therefore

    def run(self, wire: Wire) -> None:
        """Until no page is lacking, or needed (enough() was called, the guest was reset), and the other side knows.

        Raises MigrationError where the connection breaks.
        """
        wants = self._wants
        wants.again()
        self._wire, self._before = wire, wire.channel.received
        wire.read_ahead()
        self._got = Got(0)
        wire.send(Kind.LACK, pack_map(wants.map()))
        mouth, taker = Mouth(wire, wants), threading.get_ident()
        with self._lock:
            self._mouth = mouth
            if self._enough:
                mouth.have(self._crash)

        def hurry() -> None:
            if threading.get_ident() != taker:  # who takes pages asks for all of that at once, a little later
                mouth.speak()

        wants.hurry = hurry
        try:
            mouth.speak()
            heard = self._take(wire, mouth)
            if not wants.left:
                self._complete()
            if not heard:
                self._farewell(wire, mouth)
        except BaseException as error:
            wire.channel.abort()
            if isinstance(error, ChannelCancelledError) and mouth.error is not None:
                raise mouth.error from error
            raise
        finally:
            self._received, self._wire = self.received, None
            wants.hurry = lambda: None
            wants.stop()
            with self._lock:
                self._mouth = None
            mouth.close()

    @property
    def received(self) -> int:
        """How many bytes came through the connections that :meth:`run` had, since it had them."""
        wire = self._wire
        return self._received + (wire.channel.received - self._before if wire is not None else 0)

    @property
    def pages(self) -> tuple[int, int, int]:
        """How many pages have come as their bytes, as zeroes, and as the same as another."""
        return self._plain, self._zero, self._same

    def enough(self, crash: Failure | None = None) -> None:
        """Nobody needs the pages any more that are still to come: have :meth:`run` say so. From another thread.

        `crash`: the guest is lost, and why.
        """
        with self._lock:
            self._enough, self._crash = True, crash
            if self._mouth is not None:
                self._mouth.have(crash)

    def _farewell(self, wire: Wire, mouth: Mouth) -> None:
        wire.channel.stall = _FAREWELL
        mouth.have()
        while (frame := wire.next()).kind != Kind.HAVE:
            self._supply(frame)  # it was on its way, and is not needed

    def _take(self, wire: Wire, mouth: Mouth) -> bool:
        """Take pages as they come, while some are lacking; whether the other side has said that no more will come."""
        taken = told = 0
        heard = shown = time.monotonic()
        while self._wants.left:
            before, begun = wire.channel.received, wire.has_more
            try:
                frame = wire.next()
            except ChannelStalledError:
                if begun or wire.channel.received != before or self._wants.waited_for:
                    raise
                continue  # who sends little need not be dead
            if frame.kind == Kind.HAVE and (self._enough or self._wants.forgotten):
                return True
            taken += len(frame.payload)
            now = time.monotonic()
            if taken - told >= _GOT_BYTES or now - heard >= _GOT_SECONDS:
                told, heard = taken, now
                if now - shown >= _TELL:
                    shown = now
                    self._got = figures(self._machine)
                    self._tell()
                mouth.got(self._got._replace(taken=taken))
            # Last, for a vCPU that goes on needs this interpreter more than we do.
            self._supply(frame)
            if self._wants.queued and (not wire.has_more or frame.number % _BURST == 0):
                mouth.speak()
        self._tell()
        return False

    def _supply(self, frame: Frame) -> None:
        """The pages of a frame. Raises StreamError for any other.

        They have come before the machine has them: who touches one now waits there, and need not ask.
        """
        machine, came = self._machine, self._wants.came
        if frame.kind == b"ZERO":
            first, count = read_zeroes(frame, self._memory)
            self._zero += count
            came(first // PAGE_SIZE, count)
            machine.supply_zeroes(first // PAGE_SIZE, count)
            return
        if frame.kind == Kind.GIVE:
            runs, data = read_gift(frame, self._memory // PAGE_SIZE)
            at = 0
            for first, count in runs:
                self._plain += count
                came(first, count)
                machine.supply_pages(first, data[at : at + count * PAGE_SIZE])
                at += count * PAGE_SIZE
            return
        if frame.kind != b"PAGE":
            raise damaged(frame, "it has no place among pages")
        pages = read_pages(frame, self._memory)
        first = pages.first // PAGE_SIZE
        if pages.entries is None:
            self._plain += pages.pages
            came(first, pages.pages)
            machine.supply_pages(first, pages.data)
            return
        data, taken = pages.data, 0
        sources: dict[int, int] = {}
        for index, entry in enumerate(pages.entries):
            page = first + index
            if entry != SKIPPED:
                came(page, 1)
            if entry == PLAIN:
                self._plain += 1
                sources[index] = taken
                machine.supply_pages(page, data[taken : taken + PAGE_SIZE])
                taken += PAGE_SIZE
            elif entry == ZERO:
                self._zero += 1
                machine.supply_zeroes(page, 1)
            elif entry >= SAME:
                self._same += 1
                source = sources[entry - SAME]
                machine.supply_pages(page, data[source : source + PAGE_SIZE])


def figures(machine: Machine) -> Got:
    """How many faults there were, and how long pages took to come, as the guest saw it."""
    known = machine.demand_figures()
    waits = sorted(known.waits)
    if not waits:
        return Got(0, known.faults)
    median, slowest = waits[len(waits) // 2], waits[min(len(waits) * 99 // 100, len(waits) - 1)]
    return Got(0, known.faults, int(median * 1e6), int(slowest * 1e6))


def tell_figures(machine: Machine, wants: Wants, progress: Progress, **more: int) -> None:
    """The same, how many pages are left, and `more` of the record, for people."""
    got = figures(machine)
    progress.update(
        remaining=wants.left, faults=got.faults, fault_median=got.median / 1e6, fault_slowest=got.slowest / 1e6, **more
    )
