# SPDX-License-Identifier: Apache-2.0
"""Steps that guests on a machine and their host take, one by one or many at once.

A step that cannot be taken is left out: a PE that is busy makes no call. So any steps in any order
are a walk, and a walk with some left out is one as well. Besides the steps of :mod:`.plan`

    ["call", pe, x0, ..., x5, noise, pstate, smc]
                    a call with x6..x17 full of noise, from that PSTATE, by SMC or HVC
    ["inject", event, pe]   ["cancel", event, pe]   ["interrupt", intid, pe]

machines take

    ["sleep", pe, "wfi" | "standby" | "powerdown" | "off", noise, pstate, smc]
    ["power on", pe, context id]    another PE calls CPU_ON
    ["wake", pe]    one that is suspended is kicked; one that is off is powered on
    ["reset", pe]   the PE calls SYSTEM_RESET
    ["edges", pe]   the PE makes edges of all interrupts, where there is a controller; by themselves they are levels
    ["go", slices]  ["catch", pe, stretch, whether it goes on]    where time is ours: run on, perhaps until the PE is
                    in the midst of a "take", "tell", "arrive" or "resume" (see :mod:`.puppet_code`)
    ["settle"]      wait until nothing moves, and compare everything
    ["tidy"]        all are unmasked and all handlers come to their ends, which takes some calls and settles
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable

from ..errors import StateError, UnknownEventError, UsageError
from .judge import SVE_HINT
from .oracle import CALLS, M64, low32
from .plan import Step, World
from .psci_oracle import CPU_OFF, CPU_ON, CPU_SUSPEND, POWERDOWN, SYSTEM_RESET
from .puppet import Mismatch
from .shadow import Shadow

__all__ = ["FIRM", "FUNCTION", "LOOSE", "Walk", "check_step", "pattern"]

FUNCTION = {name: number for number, name in CALLS.items()}
COMPLETE, COMPLETE_AND_RESUME = FUNCTION["event_complete"], FUNCTION["event_complete_and_resume"]
UNMASK, VERSION = FUNCTION["pe_unmask"], FUNCTION["version"]
FIRM, LOOSE = 0x3C5, 0x6000_0305  # two values of PSTATE
MANY = 100  # handlers to end

# The interrupt controller of QEMU's virt board, where a guest makes its own interrupts pending.
GICD_ISPENDR = 0x0800_0000 + 0x200
GICR_ISPENDR0 = 0x080A_0000 + 0x1_0000 + 0x200
GICR_ICFGR1 = 0x080A_0000 + 0x1_0000 + 0xC04
GICR_STRIDE = 0x2_0000
GICD_ICFGRS = (0x0800_0000 + 0xC08, 0x0800_0000 + 0xC0C)  # of interrupts 32 to 63
FIRST_SPI = 32


def pattern(noise: int, count: int = 18) -> list[int]:
    """Registers full of different values."""
    return [(noise * 0x9E37_79B9_7F4A_7C15 + (i + 1) * 0xD1B5_4A32_D192_ED03) & M64 for i in range(count)]


def registers(x: Iterable[int], noise: int) -> list[int]:
    """x0..x17: the first as given."""
    given = [value & M64 for value in x]
    return given + pattern(noise)[len(given) :]


# The arguments of each step: a "pe", a "word" of 64 bits, or one of some words.
STEPS: dict[str, tuple[str, ...]] = {
    "call": ("pe", *["word"] * 9),
    "inject": ("word", "pe"),
    "cancel": ("word", "pe"),
    "interrupt": ("word", "pe"),
    "sleep": ("pe", "wfi standby powerdown off", "word", "word", "word"),
    "power on": ("pe", "word"),
    "wake": ("pe",),
    "reset": ("pe",),
    "edges": ("pe",),
    "go": ("word",),
    "catch": ("pe", "take tell arrive resume", "word"),
    "settle": (),
    "tidy": (),
}


def check_step(step: Step, vcpus: int) -> None:
    """Raises UsageError for what is no step of a machine with so many vCPUs."""
    kinds = STEPS.get(step[0]) if step and isinstance(step[0], str) else None
    if kinds is None or len(kinds) != len(step) - 1:
        raise UsageError(f"{step!r} is no step that a machine takes", "see `pydoc sdeivirt.fuzz.walk`")
    for kind, value in zip(kinds, step[1:], strict=True):
        if kind in ("pe", "word"):
            fits = isinstance(value, int) and 0 <= value <= (vcpus - 1 if kind == "pe" else M64)
        else:
            fits = value in kind.split()
        if not fits:
            raise UsageError(f"{step!r} is no step that a machine takes: {value!r} is wrong there", f"vCPUs: {vcpus}")


class Walk:
    """A machine with the puppet on it that takes steps. `seed` is the schedule's; without, time passes by itself.

    Raises what opening a machine raises, and Mismatch from every step.
    """

    def __init__(self, world: World, seed: int | None, contexts: bool = True) -> None:
        self.world = world
        self.pes = range(world.vcpus)
        self.shadow = Shadow(world.machine, self.pes, world.events, world.policy, world.slots, seed, contexts)
        self.oracle = self.shadow.oracle
        dynamic = [event.number for event in (*self.oracle.private_slots, *self.oracle.shared_slots)]
        self.numbers = [0, *(event.number for event in world.events)]
        self.places = {number: slot for slot, number in enumerate([*self.numbers, *dynamic])}

    def close(self) -> None:
        self.shadow.close()

    def do(self, step: Step) -> None:
        """Take a step, one that :func:`check_step` finds no fault with."""
        name, *arguments = step
        getattr(self, f"_do_{name.replace(' ', '_')}")(*arguments)

    # -- addresses that calls need

    def entry(self, pe: int, event: int, place: int, relative: bool) -> int:
        """A handler for the event, as EVENT_REGISTER wants it: one of several, `place` 1, 2, ...; or 0, a bad one."""
        number = low32(event)
        slot = self.places.get(number, len(self.places))
        found = self.shadow.code.handler(slot, number in self.oracle.critical)
        found += (place - 1) * 0x100 if place else 2
        return (found - self.shadow.code.vbar(pe)) & M64 if relative else found

    def resume(self, place: int) -> int:
        """Where to resume to; 0 is a bad address."""
        return self.shadow.code.resume_address(place * 3) if place else self.shadow.code.at["_start"] + 2

    # -- what guests do

    def _do_call(self, pe: int, *arguments: int) -> None:
        *x, noise, pstate, smc = arguments
        shadow = self.shadow
        shadow.drain()
        if not shadow.ready(pe):
            return
        function = low32(x[0]) & ~SVE_HINT
        if function == COMPLETE_AND_RESUME and shadow.needs_elr(pe):
            x[0] = function = COMPLETE
            x[1] = 0
        leave = function in (COMPLETE, COMPLETE_AND_RESUME)
        shadow.post(pe, registers(x, noise), pstate, leave=leave, smc=bool(smc))

    def _do_sleep(self, pe: int, how: str, noise: int, pstate: int, smc: int) -> None:
        """The PE waits for an event, or goes off. One stays awake, or nothing would ever happen."""
        shadow = self.shadow
        shadow.drain()
        if not shadow.ready(pe) or not any(other != pe and shadow.stays_up(other) for other in self.pes):
            return
        if how == "wfi":
            shadow.post_wfi(pe, registers((), noise), pstate)
        elif how == "standby":
            shadow.post(pe, registers((CPU_SUSPEND, 0), noise), pstate, smc=bool(smc))
        elif how == "off":
            shadow.post(pe, registers((CPU_OFF,), noise), pstate, smc=bool(smc))
        elif not shadow.needs_elr(pe):
            x = (CPU_SUSPEND, POWERDOWN, shadow.code.at[f"warm_{shadow.context(pe)}"])
            shadow.post(pe, registers(x, noise), pstate, smc=bool(smc))

    def _do_power_on(self, target: int, context_id: int) -> None:
        """Any answer will do that PSCI allows."""
        shadow = self.shadow
        shadow.drain()
        callers = [pe for pe in self.pes if shadow.ready(pe)]
        if callers:
            x = (CPU_ON, target, shadow.code.at["_start"], context_id)
            shadow.post(callers[-1], registers(x, 3), FIRM)

    def _do_reset(self, pe: int) -> None:
        self.shadow.drain()
        if self.shadow.ready(pe):
            self.shadow.post(pe, registers((SYSTEM_RESET,), 9), LOOSE)

    # -- what hosts do; the shadow knows from the log what should have come of it

    def _do_inject(self, event: int, pe: int) -> None:
        with contextlib.suppress(UnknownEventError, StateError):
            self.shadow.puppet.machine.inject(event, None if event in self.oracle.shared else pe)

    def _do_cancel(self, event: int, pe: int) -> None:
        with contextlib.suppress(UnknownEventError, StateError):
            self.shadow.puppet.machine.cancel(event, None if event in self.oracle.shared else pe)

    def _do_interrupt(self, intid: int, pe: int) -> None:
        """A device raises an interrupt; where there is an interrupt controller, the guest plays the device."""
        shadow = self.shadow
        if self.world.machine != "qemu":
            shadow.puppet.interrupt(intid, pe)
            return
        shadow.drain()
        if shadow.ready(pe):
            private = intid < FIRST_SPI
            bank = GICR_ISPENDR0 + GICR_STRIDE * pe if private else GICD_ISPENDR + intid // 32 * 4
            raises = (intid, pe if private else 0)
            shadow.post_store(pe, bank, 1 << intid % 32, registers((), intid), FIRM, raises)

    def _do_edges(self, pe: int) -> None:
        """All interrupts are edges from now on. Before any is an event's, or the service does not know."""
        shadow = self.shadow
        shadow.settle()
        if self.world.machine != "qemu" or not shadow.ready(pe) or any(h.status for h in self.oracle.handlers.values()):
            return
        for bank in (*(GICR_ICFGR1 + GICR_STRIDE * other for other in self.pes), *GICD_ICFGRS):
            shadow.post_store(pe, bank, 0xAAAA_AAAA, registers((), 1), FIRM)
            shadow.settle()
        shadow.edges = True

    def _do_wake(self, pe: int) -> None:
        shadow = self.shadow
        shadow.drain()
        if self.oracle.pes[pe].asleep:
            shadow.expect_up(pe)
            shadow.puppet.machine.kick(1 << pe)
        elif not shadow.up(pe):
            self._do_power_on(pe, 0x1D00 + pe)

    # -- time

    def _do_go(self, slices: int) -> None:
        self.shadow.puppet.run(slices)

    def _do_catch(self, pe: int, stretch: str, goes_on: int) -> None:
        self.shadow.puppet.catch(pe, stretch, bool(goes_on))

    def _do_settle(self) -> None:
        self.shadow.settle()

    def _do_tidy(self) -> None:
        self.shadow.settle()
        for pe in self.pes:
            self._do_call(pe, UNMASK, 0, 0, 0, 0, 0, 1, FIRM, 0)
        self.shadow.settle()
        for _ in range(MANY):
            busy = [pe for pe in self.pes if self.shadow.up(pe) and self.shadow.context(pe)]
            if not busy:
                break
            for pe in busy:
                self._do_call(pe, COMPLETE, 0, 0, 0, 0, 0, 11, LOOSE, 1)
            self.shadow.settle()
        else:
            raise Mismatch("liveness", "handlers without end")
        # Once more, so that each guest has looked at its registers after it came back.
        for pe in self.pes:
            self._do_call(pe, VERSION, 0, 0, 0, 0, 0, 1, FIRM, 0)
        self.shadow.settle()
