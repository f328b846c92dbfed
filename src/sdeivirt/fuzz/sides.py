# SPDX-License-Identifier: Apache-2.0
"""The firmware and the oracle side by side: one takes a step, then the other, and all that can be seen is compared.

This module also plays the machine: it turns PEs on when PSCI says so, and has
those look which were kicked.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import replace

from ..errors import EventRunningError, NotRegisteredError, UnknownEventError
from ..firmware import Firmware
from ..sdei.model import Handler as RealHandler
from ..sdei.model import Pe as RealPe
from ..sdei.observer import Observer
from ..sdei.policy import POLICIES
from .disagreement import Disagreement
from .judge import CALLS, SVE_HINT, Judge, low32
from .plan import Step, World
from .psci_oracle import CPU_OFF, CPU_SUSPENDS, RAM, SMC64, PsciOracle, is_psci
from .records import M64, Pe
from .registers import NAMES, PC, PSTATE
from .seats import STOPPED, Answer, Lane, Result, Seat, View, name_of
from .services import answer, entropy

__all__ = ["Sides"]

FEATURES = ("pan", "uao", "dit", "ssbs")  # a PE's, by default
BOOT_PSTATE = 0x3C5


class _Entries(Observer):
    """Which PE was put into which handler since somebody looked."""

    def __init__(self) -> None:
        self.entered: list[tuple[int, int]] = []

    def delivered(self, pe: RealPe, handler: RealHandler) -> None:
        self.entered.append((pe.index, handler.event.number))


class Sides:
    """A world, on both sides. Every PE is on to begin with, masked.

    `kicked` is a bitmap of the PEs that the firmware wants to look and that did not yet; `up` are the seats
    of those that run. Also the PowerControl of the firmware.
    """

    def __init__(self, world: World) -> None:
        self.world = world
        pes = world.vcpus
        policy = replace(POLICIES[world.policy], private_slots=world.slots[0], shared_slots=world.slots[1])
        self.firmware = Firmware(
            pes, self, events=world.events, policy=policy, entry_ok=RAM.__contains__, entropy=entropy
        )
        self.firmware.freeze()
        self.rules = Judge(list(range(pes)), world.events, world.policy, world.slots, FEATURES)
        self.psci = PsciOracle(range(pes), powerdown=True)
        self.seats = [Seat(real, View(), pe) for real, pe in zip(self.firmware.pes, self.rules.all_pes, strict=True)]
        self._entries = _Entries()
        self.firmware.sdei.observe(self._entries)
        self.entered = self._entries.entered
        self.kicked = 0
        self.up: list[Lane] = []
        self.started: list[Seat] = []  # since somebody cleared it
        self._real_starts = [(0, 0)] * pes  # entry and context id, as the firmware gave them
        self._starts = [(0, 0)] * pes  # ... as the oracle has them
        for index in range(pes):
            self.power(index, "on")

    # -- PowerControl: what the firmware decides

    def cpu_on(self, index: int, entry: int, context_id: int) -> None:
        self._real_starts[index] = entry, context_id

    def cpu_off(self, index: int) -> None:
        self.firmware.sdei.pe_off(self.firmware.pes[index])

    def cpu_standby(self, index: int) -> None: ...

    def cpu_powerdown(self, index: int, entry: int, context_id: int) -> bool:
        went = self.firmware.sdei.pe_suspend(self.firmware.pes[index])
        if went:
            self._real_starts[index] = entry, context_id
        return went

    def system_off(self) -> None:
        self.system_reset()

    def system_reset(self) -> None:
        self.firmware.sdei.reset()
        self.firmware.psci.reset()

    # -- what the oracle decides

    def judge(self, words: Sequence[int]) -> Answer:
        """What a call has to answer: see :meth:`.judge.Judge.judge`. The result may also be :data:`STOPPED`."""
        function = low32(words[0]) & ~SVE_HINT
        if function in CALLS:
            return self.rules.judge(words)
        if is_psci(function):
            x = [function, *words[1:4]]
            return lambda me: self._psci(me, x)
        x0, *others = answer(words)
        if not any(others):
            return lambda _me: x0
        result = array("Q", [x0 & M64, *others])

        def fixed(me: Pe) -> None:
            me.words[0:4] = result

        return fixed

    def _psci(self, me: Pe, x: list[int]) -> Result:
        result = self.psci.call(me.index, x)
        function = x[0]
        start = x[2] if function & SMC64 else low32(x[2]), self.psci.context_id
        if self.psci.started is not None:
            self._starts[self.psci.started] = start
        if result is not None:
            return result
        if function in CPU_SUSPENDS:
            if not self.rules.pe_suspend(me.index):
                return 0
            self._starts[me.index] = start
        elif function == CPU_OFF:
            self.rules.pe_off(me.index)
            self.psci.power[me.index] = "off"
        else:
            self.rules.reset()
            self.psci.power = dict.fromkeys(self.psci.power, "off")
        return STOPPED

    # -- steps

    def do(self, step: Step) -> None:
        """Take a step, if it can be taken now. Raises Disagreement."""
        verb, *arguments = step
        if verb == "call":
            seat = self.seats[arguments[0]]
            if seat.up:
                words = array("Q", arguments[1:])
                self.call(seat, words, self.judge(words))
        elif verb == "set":
            seat = self.seats[arguments[0]]
            seat.model.words[6:22] = seat.view.words[6:22] = array("Q", arguments[1:])
        elif verb == "look":
            self.look(self.seats[arguments[0]])
        elif verb == "inject":
            self.inject(*arguments)
        elif verb == "cancel":
            self.cancel(*arguments)
        elif verb == "interrupt":
            self.interrupt(*arguments)
        elif verb == "power":
            self.power(*arguments)
        elif verb == "reset":
            self.reset()
        else:
            raise ValueError(f"there is no step {verb!r}")

    def call(self, seat: Seat, words: array[int], judged: Answer) -> Result:
        """The PE makes a call; what it answered."""
        theirs, mine, me = seat.view.words, seat.model.words, seat.model
        theirs[0:6] = mine[0:6] = words
        goes_on = self.firmware.hypercall(seat.real, seat.view)
        result = judged(me)
        if result.__class__ is int:
            mine[0] = result & M64
            mine[1] = mine[2] = mine[3] = 0
        if goes_on is (result is STOPPED):
            raise self.goes_on(seat, words[0], goes_on)
        if result is STOPPED:
            self.power_changed()
        self.follow(seat, words[0])
        return result

    def follow(self, seat: Seat, what: str | int) -> None:
        """A PE has done `what`, and looked: let the oracle enter what was entered, and compare.

        `what` is a name, or the x0 of a call.
        """
        if self.entered:
            self._enter(seat, what)
        elif self.rules.due & seat.model.bit:
            raise self.no_entry(seat, what)
        if seat.view.words != seat.model.words:
            raise self.differ(seat, what)
        self.told(what)

    def told(self, what: str | int) -> None:
        """Take the kicks. While an event that is ready has a taker, a taker of it is told to look."""
        self.kicked |= self.firmware.take_kicks()
        rules = self.rules
        missed = rules.due & ~self.kicked
        for handler in rules.ripe:
            takers = rules.takers(handler)
            if takers and not takers & self.kicked:
                missed |= takers
        if missed:
            what = name_of(what)
            raise Disagreement(
                f"no kick after {what}", f"after {what}: PEs {missed:#b} could take an event, none was told"
            )

    def no_entry(self, seat: Seat, what: str | int) -> Disagreement:
        """A PE looked, and did not enter what it had to."""
        what, me = name_of(what), seat.model
        events = " or ".join(f"{handler.event:#x}" for handler in self.rules.choices(me))
        return Disagreement(f"no entry after {what}", f"PE {me.index} had to enter event {events} after {what}")

    def goes_on(self, seat: Seat, x0: int, does: bool) -> Disagreement:
        """One side has the PE go on after its call, the other has not."""
        does_what = "goes on" if does else "stops"
        return Disagreement(f"{name_of(x0)} goes on", f"PE {seat.model.index} {does_what} after {name_of(x0)}")

    def _enter(self, seat: Seat, what: str | int) -> None:
        me, entered = seat.model, self.entered
        pe, event = entered[0]
        if len(entered) == 1 and pe == me.index:
            entered.clear()
            for handler in self.rules.choices(me):
                if handler.event == event:
                    self.rules.take(me, handler)
                    return
            entered.append((pe, event))
        what = name_of(what)
        text = " and ".join(f"event {event:#x} on PE {pe}" for pe, event in entered)
        names = " or ".join(f"{handler.event:#x}" for handler in self.rules.choices(me)) or "none"
        raise Disagreement(f"wrong entry after {what}", f"after {what} of PE {me.index}: {text}; allowed was {names}")

    def differ(self, seat: Seat, what: str | int) -> Disagreement:
        """A PE has other registers than it should have."""
        what = name_of(what)
        rows = zip(NAMES, seat.view.words, seat.model.words, strict=True)
        wrong = [(name, found, wanted) for name, found, wanted in rows if found != wanted]
        text = ", ".join(f"{name} is {found:#x}, not {wanted:#x}" for name, found, wanted in wrong)
        kind = "x0" if wrong[0][0] == "x0" else "registers"
        return Disagreement(f"{kind} after {what}", f"after {what} of PE {seat.model.index}: {text}")

    def look(self, seat: Seat) -> None:
        """A PE stops because it was kicked, or for no reason, and looks. One that is suspended wakes up."""
        me = seat.model
        self.kicked &= ~(1 << me.index)
        if not me.online:
            return
        if me.asleep:
            self.firmware.sdei.pe_resume(seat.real)
            self.rules.pe_resume(me.index)
            self._start(seat)
        entered = self.firmware.deliver(seat.real, seat.view)
        if entered != bool(self.entered):
            raise Disagreement(
                "deliver's answer", f"PE {me.index} entered {self.entered}, but deliver() said {entered}"
            )
        self.follow(seat, "a look")

    def inject(self, event: int, pe: int) -> None:
        wanted = self.rules.inject(event, pe)
        try:
            self.firmware.sdei.inject(event, self._whose(event, pe))
            found = "raised"
        except UnknownEventError:
            found = "unknown"
        except NotRegisteredError:
            found = "not registered"
        self._compare_outcome("injection", found, wanted, event, pe)

    def cancel(self, event: int, pe: int) -> None:
        wanted = self.rules.cancel(event, pe)
        try:
            found = "cancelled" if self.firmware.sdei.cancel(event, self._whose(event, pe)) else "not pending"
        except UnknownEventError:
            found = "unknown"
        except NotRegisteredError:
            found = "not registered"
        except EventRunningError:
            found = "running"
        self._compare_outcome("cancellation", found, wanted, event, pe)

    def interrupt(self, intid: int, pe: int) -> None:
        wanted = self.rules.interrupt(intid, pe)
        found = self.firmware.sdei.interrupt(intid, pe)
        self._compare_outcome("interrupt", str(found), str(wanted), intid, pe)

    def _whose(self, event: int, pe: int) -> int | None:
        known = self.rules.events.get(event)
        return None if known is not None and known.shared else pe

    def _compare_outcome(self, what: str, found: str, wanted: str, number: int, pe: int) -> None:
        if found != wanted:
            raise Disagreement(f"outcome of {what}", f"{what} of {number:#x} on PE {pe}: {found}, not {wanted}")
        self.told(f"the {what}")

    def power(self, index: int, what: str) -> None:
        """The machine turns a PE on, because PSCI said so or by itself; or resets one that is on."""
        seat = self.seats[index]
        if (what == "on") == seat.model.online:
            return
        if self.psci.power[index] != "on-pending":
            self._starts[index] = self._real_starts[index] = RAM.start, 0
        self.firmware.sdei.pe_on(seat.real)
        self.firmware.psci.started(index)
        self.rules.pe_on(index)
        self.psci.power[index] = "on"
        self._start(seat)
        self.told("power-up")

    def _start(self, seat: Seat) -> None:
        """A PE starts, as its CPU_ON or CPU_SUSPEND had it."""
        index = seat.model.index
        sides = ((seat.view.words, self._real_starts), (seat.model.words, self._starts))
        for words, starts in sides:
            words[PC], words[0] = starts[index]
            words[PSTATE] = BOOT_PSTATE
        self.started.append(seat)
        self.power_changed()

    def reset(self) -> None:
        """The machine is reset, and starts its first PE."""
        self.system_reset()
        self.rules.reset()
        self.psci.power = dict.fromkeys(self.psci.power, "off")
        self.power_changed()
        self.power(0, "on")

    def power_changed(self) -> None:
        """Somebody was turned on or off, or has fallen asleep."""
        up = [seat for seat in self.seats if seat.up]
        self.up[:] = [(seat, seat.model, seat.model.words, seat.real, seat.view, seat.view.words) for seat in up]
