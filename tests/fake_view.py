# SPDX-License-Identifier: Apache-2.0
"""Fake PEs, and a rig that runs the real firmware on them side by side with the oracle.

A :class:`FakePe` keeps its registers apart from the window that the firmware
sees. Registers move only when the firmware fetches or flushes, and what it
did not fetch is poison in the window: a forgotten fetch or flush shows as a
wrong register.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from dataclasses import replace

from sdeivirt.cpu import CpuFeatures, affinity_of_index
from sdeivirt.errors import EventRunningError, NotRegisteredError, UnknownEventError
from sdeivirt.firmware import Firmware
from sdeivirt.fuzz.oracle import CALLS, CONTEXT, M64, SYSTEM, Handler, Oracle, Registers
from sdeivirt.sdei.events import EventDefinition
from sdeivirt.sdei.model import Handler as RealHandler
from sdeivirt.sdei.model import Pe
from sdeivirt.sdei.observer import Observer
from sdeivirt.sdei.policy import POLICIES

WINDOW = (*CONTEXT, "sctlr")  # the window's items, in order
POISON = 0xBAD0_BAD0_BAD0_0000

FUNCTION = {name: number for number, name in CALLS.items()}

EL1H_UNMASKED = 0x0000_0005
CPU_FEATURES = ("pan", "uao", "dit", "ssbs")


class FakePe:
    """A stopped PE: `registers` are the engine's, the window is what the firmware was given."""

    def __init__(self) -> None:
        self.registers: Registers = dict.fromkeys((*CONTEXT, *SYSTEM), 0)
        self._items = array("Q", [0] * len(WINDOW))
        self._x = memoryview(self._items)

    def stop(self, valid: int) -> None:
        """Poison the window, then show the first `valid` registers in it: 6 at a call, none at a kick."""
        for i, name in enumerate(WINDOW):
            self._items[i] = self.registers[name] if i < valid else POISON + i

    def _fetch(self, first: int) -> None:
        for i, name in enumerate(WINDOW[first:], first):
            self._items[i] = self.registers[name]

    def _flush(self, count: int) -> None:
        for i, name in enumerate(WINDOW[:count]):
            self.registers[name] = self._items[i]

    # The RegisterView that the firmware knows.

    @property
    def x(self) -> memoryview:
        return self._x

    @property
    def context(self) -> memoryview:
        return self._x.cast("B")[: 8 * len(CONTEXT)]

    def fetch_all(self) -> None:
        self._fetch(0)

    def fetch_rest(self) -> None:
        self._fetch(4)

    def flush_result(self) -> None:
        self._flush(4)

    def flush_context(self) -> None:
        self._flush(len(CONTEXT))

    def vbar_el1(self) -> int:
        return self.registers["vbar"]

    def set_exception_return(self, elr: int, spsr: int) -> None:
        self.registers.update(elr=elr, spsr=spsr)


class NoPower:
    """A PowerControl for tests without PSCI."""

    def cpu_on(self, index: int, entry: int, context_id: int) -> None:
        raise AssertionError("CPU_ON was not expected")

    def cpu_off(self, index: int) -> None:
        raise AssertionError("CPU_OFF was not expected")

    def cpu_standby(self, index: int) -> None:
        raise AssertionError("CPU_SUSPEND was not expected")

    def cpu_powerdown(self, index: int, entry: int, context_id: int) -> bool:
        raise AssertionError("CPU_SUSPEND was not expected")

    def system_off(self) -> None:
        raise AssertionError("SYSTEM_OFF was not expected")

    def system_reset(self) -> None:
        raise AssertionError("SYSTEM_RESET was not expected")


class Log(Observer):
    """What the service says it did since the test last looked."""

    def __init__(self) -> None:
        self.entered: list[tuple[int, int]] = []  # (PE, event)
        self.ended: list[tuple[int, int, bool]] = []
        self.raised: list[int] = []

    def posted(self, handler: RealHandler) -> None:
        self.raised.append(handler.event.number)

    def delivered(self, pe: Pe, handler: RealHandler) -> None:
        self.entered.append((pe.index, handler.event.number))

    def completed(self, pe: Pe, handler: RealHandler, failed: bool) -> None:
        self.ended.append((pe.index, handler.event.number, failed))


def signed(value: int) -> int:
    """A result register as the number that C reads in it."""
    return value - (1 << 64) if value >> 63 else value


def hypercall(firmware: Firmware, *words: int, pe: int = 0) -> list[int] | None:
    """A call with `words` in x0 and on, everything else noise: x0..x3 after it, None where the PE was stopped."""
    cpu = FakePe()
    cpu.registers.update({name: POISON + 0x100 + i for i, name in enumerate(WINDOW)})
    cpu.registers.update({f"x{i}": word & M64 for i, word in enumerate(words)})
    before = dict(cpu.registers)
    cpu.stop(valid=6)
    goes_on = firmware.hypercall(firmware.pes[pe], cpu)
    changed = {name for name, value in cpu.registers.items() if value != before[name]}
    assert changed <= {"x0", "x1", "x2", "x3"}, f"the call changed {changed}"
    return [signed(cpu.registers[f"x{i}"]) for i in range(4)] if goes_on else None


class Rig:
    """The firmware and the oracle, both driven with the same steps and compared after each.

    `kicked` holds the PEs that the firmware wants to look and that did not yet; a test decides when
    each does (:meth:`look`).
    """

    def __init__(
        self,
        pes: int | Sequence[int] = 1,
        events: Iterable[EventDefinition] = (),
        policy: str = "kvm",
        *,
        slots: tuple[int, int] | None = None,
        features: Iterable[str] = CPU_FEATURES,
        unmasked: bool = False,
    ) -> None:
        events, features = list(events), set(features)
        affinities = [affinity_of_index(i) for i in range(pes)] if isinstance(pes, int) else list(pes)
        if slots is None:
            slots = (4, 4) if policy == "kvm" else (3, 3)
        real_policy = replace(POLICIES[policy], private_slots=slots[0], shared_slots=slots[1])
        cpu_features = CpuFeatures(**{name: name in features for name in ("pan", "uao", "dit", "ssbs", "mte", "nmi")})
        self.policy = policy
        self.fw = Firmware(affinities, NoPower(), events=events, policy=real_policy, features=cpu_features)
        self.fw.freeze()
        self.oracle = Oracle(affinities, events, policy, slots, features)
        self.cpus = [FakePe() for _ in affinities]
        self.log = Log()
        self.fw.sdei.observe(self.log)
        self.kicked: set[int] = set()
        self.running_pes = range(len(affinities))
        for pe in self.running_pes:
            self.set_registers(pe, **{name: 0x1000 * (pe + 1) + i for i, name in enumerate(CONTEXT)})
            self.set_registers(pe, pstate=EL1H_UNMASKED, vbar=0x4008_0000, sctlr=0)
            self.pe_on(pe)
            if unmasked:
                self.call(pe, "pe_unmask")

    # -- the guest's steps

    def set_registers(self, pe: int, **values: int) -> None:
        """The guest's own instructions changed registers."""
        self.cpus[pe].registers.update(values)
        self.oracle.registers[pe].update(values)

    def call(self, pe: int, name: str, *arguments: int) -> int:
        """The PE makes a call; arguments go to x1 and on. What x0 holds afterwards, signed."""
        return self.call_id(pe, FUNCTION[name], *arguments)

    def call_id(self, pe: int, function_id: int, *arguments: int) -> int:
        """As :meth:`call`, with the id itself (and noise in its high word, if a test likes)."""
        self.set_registers(pe, x0=function_id, **{f"x{i}": value & M64 for i, value in enumerate(arguments, 1)})
        self.cpus[pe].stop(valid=6)
        goes_on = self.fw.hypercall(self.fw.pes[pe], self.cpus[pe])
        assert goes_on, "the PE was stopped by an SDEI call"
        self.oracle.call(pe)
        self._follow_entry(pe)
        return signed(self.cpus[pe].registers["x0"])

    def look(self, pe: int) -> int | None:
        """The PE stops because of a kick (or for no reason) and looks; the event that it entered.

        A PE that is suspended wakes up by the kick, and starts again, masked.
        """
        self.kicked.discard(pe)
        if self.oracle.pes[pe].asleep:
            self.fw.sdei.pe_resume(self.fw.pes[pe])
            self.oracle.pe_resume(pe)
        self.cpus[pe].stop(valid=0)
        entered = self.fw.deliver(self.fw.pes[pe], self.cpus[pe])
        event = self._follow_entry(pe)
        assert entered == (event is not None)
        return event

    def settle(self) -> list[tuple[int, int]]:
        """Let every kicked PE look, lowest first, until none is kicked; what they entered."""
        entered = []
        while self.kicked:
            pe = min(self.kicked)
            event = self.look(pe)
            if event is not None:
                entered.append((pe, event))
        return entered

    def _follow_entry(self, pe: int) -> int | None:
        """Let the oracle enter what the firmware entered, if it was right to."""
        allowed, has_to = self.oracle.allowed(pe)
        entered, self.log.entered = self.log.entered, []
        if entered:
            assert len(entered) == 1, f"more than one entry at a time: {entered}"
            assert entered[0][0] == pe, f"PE {pe} looked, but PE {entered[0][0]} was entered"
            event = entered[0][1]
            assert event in allowed, f"PE {pe} entered event {event:#x}, allowed were {allowed}"
            self.oracle.enter(pe, event)
        else:
            event = None
            assert not has_to, f"PE {pe} did not enter any of {allowed}"
        self.check(pe)
        return event

    # -- the host's steps

    def inject(self, event: int, pe: int | None = None) -> str:
        """Inject, and what came of it in the oracle's words."""
        expected = self.oracle.inject(event, 0 if pe is None else pe)
        try:
            self.fw.sdei.inject(event, pe)
        except UnknownEventError:
            found = "unknown"
        except NotRegisteredError:
            found = "not registered"
        else:
            found = "raised"
        assert found == expected
        self.check()
        return found

    def cancel(self, event: int, pe: int | None = None) -> str:
        expected = self.oracle.cancel(event, 0 if pe is None else pe)
        try:
            found = "cancelled" if self.fw.sdei.cancel(event, pe) else "not pending"
        except UnknownEventError:
            found = "unknown"
        except NotRegisteredError:
            found = "not registered"
        except EventRunningError:
            found = "running"
        assert found == expected
        self.check()
        return found

    def interrupt(self, intid: int, pe: int = 0) -> bool:
        taken = self.fw.sdei.interrupt(intid, pe)
        assert taken == self.oracle.interrupt(intid, pe)
        self.check()
        return taken

    def pe_on(self, pe: int) -> None:
        self.fw.sdei.pe_on(self.fw.pes[pe])
        self.oracle.pe_on(pe)
        self.check()

    def pe_off(self, pe: int) -> None:
        self.fw.sdei.pe_off(self.fw.pes[pe])
        self.oracle.pe_off(pe)
        self.kicked.discard(pe)
        self.check()

    def pe_suspend(self, pe: int) -> bool:
        went = self.fw.sdei.pe_suspend(self.fw.pes[pe])
        assert went == self.oracle.pe_suspend(pe)
        self.check()
        return went

    def pe_resume(self, pe: int) -> None:
        self.fw.sdei.pe_resume(self.fw.pes[pe])
        self.oracle.pe_resume(pe)
        self.check()

    def reset(self) -> None:
        self.fw.sdei.reset()
        self.oracle.reset()
        self.kicked.clear()
        self.check()

    # -- looking at both

    def real_handler(self, handler: Handler) -> RealHandler:
        """The firmware's record of a handler of the oracle's."""
        event = next(event for event in self.fw.sdei.events if event.number == handler.event)
        if handler.pe is None:
            return event.handler
        return self.fw.pes[handler.pe].handlers.get(event.index, event.handler)

    def check(self, pe: int | None = None) -> None:
        """Registers of the PE, states and counts of all handlers, masks, and liveness."""
        kicks = self.fw.take_kicks()
        self.kicked |= {index for index in self.running_pes if kicks >> index & 1}
        if pe is not None:
            found, wanted = self.cpus[pe].registers, self.oracle.registers[pe]
            wrong = {name: (hex(found[name]), hex(wanted[name])) for name in wanted if found[name] != wanted[name]}
            assert not wrong, f"registers of PE {pe} (found, wanted): {wrong}"
        for handler in self.oracle.handlers.values():
            self._check_handler(handler)
        for index, state in self.oracle.pes.items():
            real = self.fw.pes[index]
            found_power = (real.online, real.masked, real.suspended, real.wakeable)
            assert found_power == (state.online, state.masked, state.asleep, state.wakeable), f"PE {index}"
            running = [frame.handler.event.number for frame in (real.normal, real.critical) if frame]
            assert running == [frame.handler.event for frame in state.frames], f"frames of PE {index}"
            assert (real.frame and real.frame.handler.event.number) == (running[-1] if running else None)
        self._check_liveness()

    def _check_handler(self, handler: Handler) -> None:
        real = self.real_handler(handler)
        where = f"event {handler.event:#x} of PE {handler.pe}"
        state = 1 * handler.registered + 2 * handler.enabled + 4 * handler.running
        assert (int(real.state), real.pending) == (state, handler.pending), where
        assert (real.running_on and real.running_on.index) == handler.running_on, where
        counts = ("injected", "coalesced", "dropped", "delivered", "completed", "failed")
        found = {name: getattr(real, name) for name in counts}
        assert found == {name: getattr(handler, name) for name in counts}, where
        assert real.injected == real.delivered + real.coalesced + real.dropped + real.pending, where

    def _check_liveness(self) -> None:
        for handler, takers in self.oracle.deliverable():
            assert takers & self.kicked, f"event {handler.event:#x} is ready, none of PEs {takers} was told to look"
        for index in self.running_pes:
            assert not self.oracle.wakes(index) or index in self.kicked, f"PE {index} sleeps through an event"
