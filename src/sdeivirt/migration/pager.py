# SPDX-License-Identifier: Apache-2.0
"""The side that lacks pages: asks for those that the guest needs, and gives all that come to the machine."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from ..errors import SdeivirtError
from ..machine.base import PAGE_SIZE, Machine
from .channel import ChannelStalledError
from .frames import Frame, damaged
from .lacking import Got, pack_map, pack_wants, read_gift
from .messages import Kind
from .pages import PLAIN, SAME, ZERO, read_pages, read_zeroes
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
        self._sending = threading.Lock()
        self._got = Got(0)
        self._taker = 0  # the thread that takes pages
        self._wire: Wire | None = None  # on which it is known what is lacking
        self._enough = False  # nobody needs what is still to come

    def run(self, wire: Wire) -> None:
        """Until no page is lacking, or enough() was called, and the other side knows.

        Raises MigrationError where the connection breaks.
        """
        wants = self._wants
        wants.again()
        wire.read_ahead()
        self._got = Got(0)
        with self._sending:
            wire.send(Kind.LACK, pack_map(wants.map()))
            self._wire = wire
            if self._enough:
                wire.send(Kind.HAVE)
        mouth = threading.Thread(target=self._ask, args=(wire,), name="pager", daemon=True)
        mouth.start()
        self._taker = threading.get_ident()
        wants.hurry = self._hurry
        try:
            self._ask_now(wire)
            if self._take(wire):
                self._complete()
                self._farewell(wire)
        except BaseException:
            wire.channel.abort()
            raise
        finally:
            wants.hurry = lambda: False
            wants.stop()
            mouth.join()

    def enough(self) -> None:
        """Nobody needs the pages any more that are still to come: have :meth:`run` say so. From another thread.

        Raises ChannelError.
        """
        with self._sending:
            if not self._enough:
                self._enough = True
                if self._wire is not None and self._wants.left:
                    self._wire.send(Kind.HAVE)

    def _farewell(self, wire: Wire) -> None:
        wire.channel.stall = _FAREWELL
        with self._sending:
            if not self._enough:
                wire.send(Kind.HAVE)
        while (frame := wire.next()).kind != Kind.HAVE:
            self._supply(frame)  # it was on its way, and is not needed

    def _hurry(self) -> bool:
        """Ask for what is wanted, on the thread of who wants it: it has not to wait for another to wake up."""
        if threading.get_ident() == self._taker:
            return True  # it asks for all of that at once, a little later
        if self._wire is None or not self._sending.acquire(blocking=False):
            return False
        try:
            if runs := self._wants.take(wait=False):
                self._wire.send(Kind.WANT, pack_wants(runs))
        except (SdeivirtError, OSError):  # who receives will find out
            self._wire.channel.abort()
        finally:
            self._sending.release()
        return True

    def _ask_now(self, wire: Wire) -> None:
        with self._sending:
            if runs := self._wants.take(wait=False):
                wire.send(Kind.WANT, pack_wants(runs))

    def _ask(self, wire: Wire) -> None:
        """The thread that asks where nobody else can."""
        try:
            while runs := self._wants.take():
                with self._sending:
                    wire.send(Kind.WANT, pack_wants(runs))
        except (SdeivirtError, OSError):  # who receives will find out
            wire.channel.abort()

    def _take(self, wire: Wire) -> bool:
        """Take pages as they come; False where no more are needed."""
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
            if self._enough and frame.kind == Kind.HAVE:
                return False
            self._supply(frame)
            taken += len(frame.payload)
            if not wire.has_more or frame.number % _BURST == 0:
                self._ask_now(wire)
            now = time.monotonic()
            if taken - told >= _GOT_BYTES or now - heard >= _GOT_SECONDS:
                told, heard = taken, now
                if now - shown >= _TELL:
                    shown = now
                    self._got = figures(self._machine)
                    self._tell()
                with self._sending:
                    wire.send(Kind.GOT, self._got._replace(taken=taken).pack())
        self._tell()
        return True

    def _supply(self, frame: Frame) -> None:
        """The pages of a frame. Raises StreamError for any other."""
        machine, came = self._machine, self._wants.came
        if frame.kind == b"ZERO":
            first, count = read_zeroes(frame, self._memory)
            machine.supply_zeroes(first // PAGE_SIZE, count)
            came(first // PAGE_SIZE, count)
            return
        if frame.kind == Kind.GIVE:
            runs, data = read_gift(frame, self._memory // PAGE_SIZE)
            at = 0
            for first, count in runs:
                machine.supply_pages(first, data[at : at + count * PAGE_SIZE])
                at += count * PAGE_SIZE
                came(first, count)
            return
        if frame.kind != b"PAGE":
            raise damaged(frame, "it has no place among pages")
        pages = read_pages(frame, self._memory)
        first = pages.first // PAGE_SIZE
        if pages.entries is None:
            machine.supply_pages(first, pages.data)
            came(first, pages.pages)
            return
        data, taken = pages.data, 0
        sources: dict[int, int] = {}
        for index, entry in enumerate(pages.entries):
            page = first + index
            if entry == PLAIN:
                sources[index] = taken
                machine.supply_pages(page, data[taken : taken + PAGE_SIZE])
                taken += PAGE_SIZE
            elif entry == ZERO:
                machine.supply_zeroes(page, 1)
            elif entry >= SAME:
                source = sources[entry - SAME]
                machine.supply_pages(page, data[source : source + PAGE_SIZE])
            else:
                continue
            came(page, 1)


def figures(machine: Machine) -> Got:
    """How many faults there were, and how long pages took to come, as the guest saw it."""
    known = machine.demand_figures()
    waits = sorted(known.waits)
    if not waits:
        return Got(0, known.faults)
    median, slowest = waits[len(waits) // 2], waits[min(len(waits) * 99 // 100, len(waits) - 1)]
    return Got(0, known.faults, int(median * 1e6), int(slowest * 1e6))


def tell_figures(machine: Machine, wants: Wants, progress: Progress) -> None:
    """The same, and how many pages are left, for people."""
    got = figures(machine)
    progress.update(
        remaining=wants.left, faults=got.faults, fault_median=got.median / 1e6, fault_slowest=got.slowest / 1e6
    )
