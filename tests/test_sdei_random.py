# SPDX-License-Identifier: Apache-2.0
"""Random calls by the million, straight into the firmware: no exception, no broken invariant, no growth.

A run is a function of its seed, and a failure names the seed and the call:
`play(seed, calls)` plays it again. There is no oracle here; what is checked now and then is cheap.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import secrets
from array import array
from collections.abc import Callable

import pytest

from sdeivirt.firmware import Firmware
from sdeivirt.sdei.events import EventDefinition, Priority
from sdeivirt.sdei.model import Handler, Pe
from sdeivirt.sdei.policy import POLICIES

PES = 5
EVENTS = [
    EventDefinition(5, interrupt=20),
    EventDefinition(6, priority=Priority.CRITICAL),
    EventDefinition(0x20, shared=True, interrupt=40),
    EventDefinition(0x21, shared=True, priority=Priority.CRITICAL),
    EventDefinition(0x22, shared=True),
    EventDefinition(0x4000_0001, signalable=True),
]
NUMBERS = [0, *(event.number for event in EVENTS), 0x4000_1000, 0x4000_1001, 0x4000_2000, 0x4000_2001]
INTERRUPTS = [20, 21, 22, 40, 41, 42]
SHARED = {0x20, 0x21, 0x22, 0x4000_2000, 0x4000_2001}

POOL = 1 << 14  # different calls in a run
STRETCH = 2_000  # calls between two checks

BOUNDARIES = [0, 1, 2, 3, 4, 17, 18, 0x7FFF_FFFF, 0x8000_0000, 0xFFFF_FFFF, 1 << 32, 1 << 63, (1 << 64) - 1]

PSCI, CPU_SUSPEND, CPU_ON, SYSTEM_RESET = 0x8400_0000, 0xC400_0001, 0xC400_0003, 0x8400_0009
SDEI = 0xC400_0020
EVENT_REGISTER, EVENT_ENABLE, PE_UNMASK = SDEI + 1, SDEI + 2, SDEI + 12
COMPLETE, COMPLETE_AND_RESUME, EVENT_SIGNAL = SDEI + 5, SDEI + 6, SDEI + 15
# How often each kind of Game.kinds is chosen: what builds up, anything, and what tears down.
USUAL = [*[EVENT_REGISTER] * 4, *[EVENT_ENABLE] * 4, EVENT_SIGNAL, PE_UNMASK, COMPLETE, COMPLETE_AND_RESUME]
WEIGHTS = [60, 36, 3, 0.9, 0.1]


class View:
    """A window that is the registers: nothing to fetch or to flush."""

    def __init__(self) -> None:
        self.x = memoryview(array("Q", [0] * 21))
        self.context = self.x.cast("B")[: 8 * 20]

    def fetch_all(self) -> None: ...

    def fetch_rest(self) -> None: ...

    def flush_result(self) -> None: ...

    def flush_context(self) -> None: ...

    def vbar_el1(self) -> int:
        return 0xFFFF_8000_0001_0800

    def set_exception_return(self, elr: int, spsr: int) -> None: ...


class Game:
    """A firmware, its PEs, and a random source that plays guests, host and machine. Also the PowerControl."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        policy = POLICIES[self.random.choice(sorted(POLICIES))]
        self.fw = Firmware(PES, self, events=EVENTS, policy=policy, entropy=self.random.randbytes)
        self.fw.freeze()
        self.views = [View() for _ in range(PES)]
        self.up: list[int] = []  # the PEs that run
        self.kicked = 0
        choose, below, bits = self.random.choice, self.random.randrange, self.random.getrandbits
        self.kinds: list[Callable[[], int]] = [
            lambda: choose(USUAL),
            lambda: SDEI + below(0x11),
            lambda: choose([SDEI + below(0x20), PSCI + 0x20 + below(0x20), bits(32), bits(64)]),
            lambda: choose([CPU_SUSPEND, CPU_ON, CPU_ON, 0x8000_0001, 0x8600_FF01, 0xC400_0053]),
            lambda: choose([PSCI + below(8), PSCI + below(8), SYSTEM_RESET]),
        ]
        self.calls = [memoryview(array("Q", self.words())) for _ in range(POOL)]
        self.start(0)

    # -- what may be called

    def words(self) -> list[int]:
        """x0..x5 of one call: often plausible, now and then at a boundary or anything."""
        fid = self.random.choices([chosen() for chosen in self.kinds], WEIGHTS)[0]
        if self.random.random() < 0.05:
            fid |= self.random.getrandbits(32) << 32
        words = [fid, *(self.argument(i) for i in range(1, 6))]
        if fid & 0xFFFF_FFFF == EVENT_REGISTER and self.random.random() < 0.8:
            words[2] = self.random.choice([0x4010_0000, 0xFFFF_8000_0001_0000])
            words[4] = self.random.choice([0, 1])
        return words

    def argument(self, index: int) -> int:
        choose, bits = self.random.choice, self.random.getrandbits
        kind = self.random.random()
        if kind < 0.05:
            return bits(64)
        if kind < 0.10:
            return choose(BOUNDARIES)
        if kind < 0.14:
            return choose(NUMBERS) | bits(32) << 32
        if index == 1:
            return choose([*NUMBERS, *NUMBERS, *INTERRUPTS, 1, 2])
        if index == 2:
            return choose([0x4010_0000, 0, 1, 2, 3, 4, 0x8000_0001])
        return choose([0, 0, 1, 2, 3, 4, 0x8000_0002])

    # -- the machine

    def start(self, index: int) -> None:
        """A PE starts, or starts again after it was suspended."""
        pe = self.fw.pes[index]
        if pe.suspended:
            self.fw.sdei.pe_resume(pe)
        else:
            self.fw.sdei.pe_on(pe)
        self.fw.psci.started(index)
        if index not in self.up:
            self.up.append(index)

    def cpu_on(self, index: int, entry: int, context_id: int) -> None:
        self.start(index)

    def cpu_off(self, index: int) -> None:
        self.fw.sdei.pe_off(self.fw.pes[index])
        self.up.remove(index)

    def cpu_standby(self, index: int) -> None: ...

    def cpu_powerdown(self, index: int, entry: int, context_id: int) -> bool:
        went = self.fw.sdei.pe_suspend(self.fw.pes[index])
        if went:
            self.up.remove(index)
        return went

    def system_off(self) -> None:
        self.system_reset()

    def system_reset(self) -> None:
        self.fw.sdei.reset()
        self.fw.psci.reset()
        self.up.clear()

    # -- the game

    def stretch(self, calls: int) -> None:
        """So many calls by the PEs that run, with something of the host's now and then."""
        draw, hypercall, pool, up = self.random.random, self.fw.hypercall, self.calls, self.up
        pes, views = self.fw.pes, self.views
        for _ in range(calls):
            index = up[int(draw() * len(up))]
            view = views[index]
            view.x[:6] = pool[int(draw() * POOL)]
            hypercall(pes[index], view)
            if draw() < 0.1 or not up:
                self.host()

    def host(self) -> None:
        """One step from outside of the guest."""
        index = self.random.randrange(PES)
        number = self.random.choice(NUMBERS)
        where = None if number in SHARED else index
        step = self.random.random()
        if step < 0.25 or not self.up:
            self.settle()
        elif step < 0.65:
            handler = self.handler(number, index)
            if handler is not None and handler.state & 1:
                self.fw.sdei.inject(number, where)
        elif step < 0.70:
            handler = self.handler(number, index)
            if handler is not None and handler.state & 1 and handler.pending:
                self.fw.sdei.cancel(number, where)
        elif step < 0.85:
            self.fw.sdei.interrupt(self.random.choice(INTERRUPTS), index)
        elif step < 1.00 and index not in self.up:
            self.start(index)

    def handler(self, number: int, index: int) -> Handler | None:
        """Where an injection would go, if the event exists."""
        event = self.fw.sdei.bindings.known.get(number)
        if event is None:
            return None
        return event.handler if event.shared else self.fw.pes[index].handlers.get(event.index)

    def settle(self) -> None:
        """Every kicked PE looks until none is kicked; one that was suspended wakes. One PE at least runs."""
        if not self.up:
            self.start(self.random.randrange(PES))
        while kicks := self.fw.take_kicks():
            for index in range(PES):
                if kicks >> index & 1:
                    if self.fw.pes[index].suspended:
                        self.start(index)
                    self.fw.deliver(self.fw.pes[index], self.views[index])

    # -- what must hold

    def check(self) -> None:
        self.settle()
        for pe in self.fw.pes:
            assert self.fw.sdei.delivery.next(pe) is None, f"PE {pe.index} was not told of an event"
            assert pe.online == (pe.index in self.up or pe.suspended)
            assert len(pe.handlers) <= len(self.fw.sdei.events)
            self.check_frames(pe)
            for handler in pe.handlers.values():
                assert handler.target is pe
                self.check_handler(handler)
        for event in self.fw.sdei.events:
            if event.shared:
                self.check_handler(event.handler)
            else:
                assert (event.handler.state, event.handler.injected) == (0, 0)
            handlers = [event.handler, *(pe.handlers[event.index] for pe in self.fw.pes if event.index in pe.handlers)]
            assert event.registrations == sum(handler.state != 0 for handler in handlers)

    def check_frames(self, pe: Pe) -> None:
        for frame, priority in ((pe.normal, Priority.NORMAL), (pe.critical, Priority.CRITICAL)):
            if frame is not None:
                assert pe.online
                assert frame.handler.event.priority is priority
                assert frame.handler.running_on is pe
                assert len(frame.saved) == 20 * 8

    def check_handler(self, handler: Handler) -> None:
        assert handler.state in (0, 1, 3, 4, 5, 7)
        assert (handler.running_on is not None) == bool(handler.state & 4)
        assert not handler.pending or handler.state & 1
        assert handler.injected == handler.delivered + handler.coalesced + handler.dropped + handler.pending
        assert handler.delivered == handler.completed + (handler.running_on is not None)
        assert handler.failed <= handler.completed


def play(seed: int, calls: int) -> int:
    """A whole run; how many events were delivered."""
    game = Game(seed)
    done = 0
    try:
        while done < calls:
            game.stretch(STRETCH)
            done += STRETCH
            game.check()
    except Exception as error:
        raise AssertionError(f"play({seed:#x}, {calls}) failed near call {done}: {error!r}") from error
    handlers = [handler for pe in game.fw.pes for handler in pe.handlers.values()]
    handlers += [event.handler for event in game.fw.sdei.events if event.shared]
    return sum(handler.delivered for handler in handlers)


@pytest.mark.parametrize("seed", range(4))
def test_random_calls(seed: int) -> None:
    delivered = play(seed, 50_000)
    assert delivered > 500, "the game must get somewhere"


@pytest.mark.campaign
def test_ten_million_random_calls() -> None:
    """Over all processors, with new seeds each time."""
    parts = 20
    seeds = [secrets.randbits(32) for _ in range(parts)]
    print("seeds:", " ".join(f"{seed:#x}" for seed in seeds))
    with multiprocessing.get_context("spawn").Pool(os.cpu_count()) as pool:
        delivered = pool.starmap(play, [(seed, 10_000_000 // parts) for seed in seeds])
    assert all(delivered)
