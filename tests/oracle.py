# SPDX-License-Identifier: Apache-2.0
"""A second SDEI service, to hold the first one against.

Written from the specification's rules (DEN0054C) and from what KVM's v7 series,
TF-A and Linux do, not from `sdeivirt.sdei`. It is slow and plain on purpose:
dictionaries, sets, one flag a fact, every question answered by looking at
everything. It shares no table, constant or code with the package, only the
`EventDefinition` record that both are configured with.

The oracle holds the registers that each PE ought to have. A test puts the same
values into a fake PE, lets both sides act, and compares all of them:

    oracle.registers[pe].update(x0=0xC4000021, x1=0, ...)
    oracle.call(pe)                  # the registers are now what the guest must see
    oracle.allowed(pe)               # the events that may be entered now on this PE
    oracle.enter(pe, event)          # ... and what the guest then sees

Which PE takes an event that any PE may take is the implementation's choice.
The oracle follows it, and says whether it was one of the right ones.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from sdeivirt.sdei.events import EventDefinition

M64 = 2**64 - 1

SUCCESS, NOT_SUPPORTED, INVALID, DENIED, PENDING, OUT_OF_RESOURCE = 0, -1, -2, -3, -5, -10

CALLS = {
    0xC4000020: "version",
    0xC4000021: "event_register",
    0xC4000022: "event_enable",
    0xC4000023: "event_disable",
    0xC4000024: "event_context",
    0xC4000025: "event_complete",
    0xC4000026: "event_complete_and_resume",
    0xC4000027: "event_unregister",
    0xC4000028: "event_status",
    0xC4000029: "event_get_info",
    0xC400002A: "event_routing_set",
    0xC400002B: "pe_mask",
    0xC400002C: "pe_unmask",
    0xC400002D: "interrupt_bind",
    0xC400002E: "interrupt_release",
    0xC400002F: "event_signal",
    0xC4000030: "features",
    0xC4000031: "private_reset",
    0xC4000032: "shared_reset",
}

# What a handler's frame keeps, and everything else that a test can see of a PE.
CONTEXT = (*(f"x{i}" for i in range(18)), "pc", "pstate")
SYSTEM = ("sctlr", "vbar", "elr", "spsr")

Registers = dict[str, int]


def low32(value: int) -> int:
    return value % 2**32


def affinity_bits(mpidr: int) -> int:
    """Aff3 (39:32), Aff2, Aff1, Aff0 (23:0); a raw MPIDR_EL1 has more bits set."""
    return mpidr & 0x000000FF_00FFFFFF


def bit(value: int, position: int) -> int:
    return value >> position & 1


def take_exception(pstate: int, sctlr: int, features: set[str]) -> int:
    """PSTATE after an exception to EL1 using SP_EL1, as the Arm ARM's AArch64.TakeException has it.

    `pstate` is in the layout of SPSR_EL1: from AArch64 state (M[4] = 0) or from AArch32 (M[4] = 1).
    """
    from_aarch32 = bit(pstate, 4)
    new = dict.fromkeys(("N", "Z", "C", "V", "TCO", "DIT", "UAO", "PAN", "SS", "IL", "ALLINT", "SSBS"), 0)
    for flag, position in (("N", 31), ("Z", 30), ("C", 29), ("V", 28)):
        new[flag] = bit(pstate, position)
    if "dit" in features:
        new["DIT"] = bit(pstate, 21 if from_aarch32 else 24)
    if "pan" in features:
        span = bit(sctlr, 23)
        new["PAN"] = bit(pstate, 22) if span else 1
    if "ssbs" in features:
        new["SSBS"] = bit(sctlr, 44)  # DSSBS
    if "mte" in features:
        new["TCO"] = 1
    if "nmi" in features:
        new["ALLINT"] = 1 - bit(sctlr, 62)  # SPINTMASK
    positions = {
        "N": 31, "Z": 30, "C": 29, "V": 28, "TCO": 25, "DIT": 24, "UAO": 23, "PAN": 22,
        "SS": 21, "IL": 20, "ALLINT": 13, "SSBS": 12,
    }  # fmt: skip
    flags = sum(new[name] << position for name, position in positions.items())
    d_a_i_f = 1 << 9 | 1 << 8 | 1 << 7 | 1 << 6
    el1h = 0b0101
    return flags | d_a_i_f | el1h


@dataclass
class Handler:
    """What is known of one event on one PE (private), or of one event everywhere (shared: `pe` is None)."""

    event: int
    pe: int | None
    registered: bool = False
    enabled: bool = False
    pending: bool = False
    running_on: int | None = None
    entry: int = 0
    argument: int = 0
    relative: bool = False
    routed_to: int | None = None  # the only PE that may take it; None: any
    injected: int = 0
    coalesced: int = 0
    dropped: int = 0
    delivered: int = 0
    completed: int = 0
    failed: int = 0

    @property
    def running(self) -> bool:
        return self.running_on is not None

    @property
    def unregistered(self) -> bool:
        """Neither registered nor waiting for its last run to end."""
        return not self.registered and not self.running

    def raise_event(self) -> None:
        self.injected += 1
        if self.pending:
            self.coalesced += 1
        self.pending = True

    def drop_pending(self) -> None:
        if self.pending:
            self.dropped += 1
        self.pending = False

    def unregister(self) -> None:
        self.registered = self.enabled = False
        self.drop_pending()


@dataclass
class Frame:
    handler: Handler
    saved: Registers


@dataclass
class Pe:
    affinity: int
    online: bool = False
    masked: bool = True
    asleep: bool = False  # powered down by CPU_SUSPEND
    wakeable: bool = False  # ... and was not masked then
    frames: list[Frame] = field(default_factory=list)  # outermost first


class Oracle:
    """The state of the whole service. `policy` is "kvm" or "tf-a"; `slots` are (private, shared)."""

    def __init__(
        self,
        affinities: list[int],
        events: Iterable[EventDefinition] = (),
        policy: str = "kvm",
        slots: tuple[int, int] = (4, 4),
        features: Iterable[str] = ("pan", "uao", "dit", "ssbs"),
        dynamic_numbers: tuple[int, int] = (0x40001000, 0x40002000),
    ) -> None:
        assert policy in ("kvm", "tf-a")
        self.policy = policy
        self.cpu_features = set(features)
        self.slots = slots
        self.shared: set[int] = set()
        self.critical: set[int] = set()
        self.signalable: set[int] = {0}
        self.known: set[int] = {0}
        self.interrupts: dict[int, int] = {}  # interrupt -> event, static and dynamic
        for event in events:
            self.known.add(event.number)
            if event.shared:
                self.shared.add(event.number)
            if int(event.priority) == 1:
                self.critical.add(event.number)
            if event.signalable:
                self.signalable.add(event.number)
            if event.interrupt is not None:
                self.interrupts[event.interrupt] = event.number
        self.private_slots = [dynamic_numbers[0] + i for i in range(slots[0])]
        self.shared_slots = [dynamic_numbers[1] + i for i in range(slots[1])]
        self.dynamic = {*self.private_slots, *self.shared_slots}
        self.shared |= set(self.shared_slots)
        if policy == "tf-a":
            self.known |= self.dynamic
        self.bound: dict[int, int] = {}  # dynamic event -> interrupt
        self.pes = {i: Pe(affinity) for i, affinity in enumerate(affinities)}
        self.handlers: dict[tuple[int, int | None], Handler] = {}
        self.registers: dict[int, Registers] = {i: dict.fromkeys((*CONTEXT, *SYSTEM), 0) for i in self.pes}

    # -- looking things up ---------------------------------------------------------------------------

    def handler(self, event: int, pe: int | None) -> Handler:
        """The handler that `pe` means when it says `event`."""
        owner = None if event in self.shared else pe
        return self.handlers.setdefault((event, owner), Handler(event, owner, routed_to=owner))

    def handlers_of(self, event: int) -> list[Handler]:
        return [handler for (number, _), handler in self.handlers.items() if number == event]

    def pe_of(self, mpidr: int) -> int | None:
        for index, pe in self.pes.items():
            if pe.affinity == affinity_bits(mpidr):
                return index
        return None

    def top(self, pe: int) -> Frame | None:
        return self.pes[pe].frames[-1] if self.pes[pe].frames else None

    def has_room(self, pe: int, event: int) -> bool:
        """Whether a handler of this priority may start on top of what runs: normal below critical, one of each."""
        running = [frame.handler.event in self.critical for frame in self.pes[pe].frames]
        return True not in running if event in self.critical else not running

    def may_take(self, pe: int, handler: Handler) -> bool:
        """Whether `pe` could enter the handler at once, were it pending."""
        state = self.pes[pe]
        return (
            state.online
            and not state.asleep
            and not state.masked
            and handler.registered
            and handler.enabled
            and not handler.running
            and handler.routed_to in (None, pe)
            and self.has_room(pe, handler.event)
        )

    def deliverable(self) -> list[tuple[Handler, set[int]]]:
        """Every event that waits for nothing but a PE to look, with the PEs that may take it."""
        found = []
        for handler in self.handlers.values():
            takers = {pe for pe in self.pes if handler.pending and self.may_take(pe, handler)}
            if takers:
                found.append((handler, takers))
        return found

    def order(self, event: int) -> tuple[int, int]:
        return (0 if event in self.critical else 1, event)

    def allowed(self, pe: int) -> tuple[set[int], bool]:
        """The events that `pe` may enter when it looks now, and whether it must enter one.

        Critical before normal, then the lowest number. Of the events that this PE alone can take, the
        first has to be entered, unless one that any PE can take comes before it and is entered instead.
        """
        own: list[int] = []
        anyones: list[int] = []
        for handler, takers in self.deliverable():
            if pe in takers:
                (own if handler.routed_to == pe else anyones).append(handler.event)
        first_own = min(own, key=self.order, default=None)
        first = min(own + anyones, key=self.order, default=None)
        return {event for event in (first_own, first) if event is not None}, first_own is not None

    def wakes(self, pe: int) -> bool:
        """Whether a suspended PE has to wake up: for an event of its own that it would take, were it unmasked."""
        state = self.pes[pe]
        return (
            state.asleep
            and state.wakeable
            and any(
                h.pending and h.enabled and not h.running and h.routed_to == pe and self.has_room(pe, h.event)
                for h in self.handlers.values()
            )
        )

    # -- the guest's side ----------------------------------------------------------------------------

    def call(self, pe: int) -> None:
        """The PE makes the call that stands in its registers."""
        registers = self.registers[pe]
        name = CALLS.get(low32(registers["x0"]))
        if name is None:
            result: int | None = NOT_SUPPORTED
        else:
            method: Callable[[int, Registers], int | None] = getattr(self, name)
            result = method(pe, registers)
        if result is not None:
            registers.update(x0=result & M64, x1=0, x2=0, x3=0)

    def enter(self, pe: int, event: int) -> None:
        """The PE takes the event: what it was doing goes into a frame, and its handler starts."""
        registers = self.registers[pe]
        handler = self.handler(event, pe)
        assert handler.pending, "entered an event that nobody raised"
        assert self.may_take(pe, handler), "entered a handler that must not start now"
        saved = {name: registers[name] for name in CONTEXT}
        self.pes[pe].frames.append(Frame(handler, saved))
        handler.pending = False
        handler.running_on = pe
        handler.delivered += 1
        if self.policy == "kvm":
            registers.update({f"x{i}": 0 for i in range(4, 18)})
        registers.update(x0=event, x1=handler.argument, x2=saved["pc"], x3=saved["pstate"])
        base = registers["vbar"] if handler.relative else 0
        registers["pc"] = (base + handler.entry) & M64
        registers["pstate"] = take_exception(saved["pstate"], registers["sctlr"], self.cpu_features)

    def version(self, pe: int, r: Registers) -> int:
        return (1 << 48 | 1 << 32 | 0x4B564D) if self.policy == "kvm" else 1 << 48

    def features(self, pe: int, r: Registers) -> int:
        feature = low32(r["x1"])
        if feature == 0:
            return self.slots[1] << 16 | self.slots[0]
        if feature == 1 and self.policy == "kvm":
            return 1
        return INVALID

    def event_register(self, pe: int, r: Registers) -> int:
        event, entry, argument, flags, affinity = low32(r["x1"]), r["x2"], r["x3"], r["x4"], r["x5"]
        one_pe, relative = bool(bit(flags, 0)), bool(bit(flags, 1))
        if flags not in ((0, 1, 2, 3) if self.policy == "kvm" else (0, 1)):
            return INVALID
        if entry % 4 or (entry == 0 and not relative):
            return INVALID
        if event not in self.known:
            return INVALID
        if one_pe and self.pe_of(affinity) is None and (event in self.shared or self.policy == "tf-a"):
            return INVALID
        handler = self.handler(event, pe)
        if not handler.unregistered:
            return DENIED
        if event in self.dynamic and event not in self.bound:
            return DENIED
        handler.registered = True
        handler.entry, handler.argument, handler.relative = entry, argument, relative
        if event in self.shared:
            handler.routed_to = self.pe_of(affinity) if one_pe else None
        return SUCCESS

    def event_enable(self, pe: int, r: Registers) -> int:
        return self._switch(pe, low32(r["x1"]), True)

    def event_disable(self, pe: int, r: Registers) -> int:
        return self._switch(pe, low32(r["x1"]), False)

    def _switch(self, pe: int, event: int, on: bool) -> int:
        if event not in self.known:
            return INVALID
        handler = self.handler(event, pe)
        if not handler.registered:
            return DENIED
        handler.enabled = on
        return SUCCESS

    def event_context(self, pe: int, r: Registers) -> int:
        index, frame = low32(r["x1"]), self.top(pe)
        problems = []
        if frame is None:
            problems.append(DENIED)
        if index > 17:
            problems.append(INVALID)
        if problems:
            return problems[0] if self.policy == "kvm" else problems[-1]
        assert frame is not None
        return frame.saved[f"x{index}"]

    def event_complete(self, pe: int, r: Registers) -> int | None:
        status = low32(r["x1"])
        return self._finish(pe, failed=status != 0)

    def event_complete_and_resume(self, pe: int, r: Registers) -> int | None:
        address, frame = r["x1"], self.top(pe)
        if frame is None or address % 4:
            return DENIED
        self._finish(pe, failed=False)
        r["elr"], r["spsr"] = frame.saved["pc"], frame.saved["pstate"]
        r["pc"] = address
        r["pstate"] = take_exception(frame.saved["pstate"], r["sctlr"], self.cpu_features)
        return None

    def _finish(self, pe: int, failed: bool) -> int | None:
        if not self.pes[pe].frames:
            return DENIED
        frame = self.pes[pe].frames.pop()
        self._end(frame.handler, failed)
        self.registers[pe].update(frame.saved)
        return None

    def _end(self, handler: Handler, failed: bool) -> None:
        handler.running_on = None
        handler.completed += 1
        handler.failed += failed

    def event_unregister(self, pe: int, r: Registers) -> int:
        event = low32(r["x1"])
        if event not in self.known:
            return INVALID
        handler = self.handler(event, pe)
        if handler.unregistered:
            return DENIED
        handler.unregister()
        return PENDING if handler.running else SUCCESS

    def event_status(self, pe: int, r: Registers) -> int:
        event = low32(r["x1"])
        if event not in self.known:
            return INVALID
        handler = self.handler(event, pe)
        return 1 * handler.registered + 2 * handler.enabled + 4 * handler.running

    def event_get_info(self, pe: int, r: Registers) -> int:
        event, info = low32(r["x1"]), low32(r["x2"])
        if event not in self.known or info > 4:
            return INVALID
        if info == 0:
            return int(event in self.shared)
        if info == 1:
            return int((event in self.signalable) == (self.policy == "kvm"))
        if info == 2:
            return int(event in self.critical)
        if event not in self.shared:
            return INVALID
        handler = self.handler(event, pe)
        if not handler.registered:
            return DENIED
        if info == 3:
            return int(handler.routed_to is not None)
        if handler.routed_to is None:
            return INVALID
        return self.pes[handler.routed_to].affinity

    def event_routing_set(self, pe: int, r: Registers) -> int:
        event, mode, affinity = low32(r["x1"]), r["x2"], r["x3"]
        if mode not in (0, 1) or (mode == 1 and self.pe_of(affinity) is None):
            return INVALID
        if event not in self.known or event not in self.shared:
            return INVALID
        if event in self.dynamic and event not in self.bound:
            return INVALID
        handler = self.handler(event, pe)
        if not handler.registered or handler.enabled or handler.running:
            return DENIED
        handler.routed_to = self.pe_of(affinity) if mode == 1 else None
        return SUCCESS

    def pe_mask(self, pe: int, r: Registers) -> int:
        changed = not self.pes[pe].masked
        self.pes[pe].masked = True
        return int(changed)

    def pe_unmask(self, pe: int, r: Registers) -> int:
        self.pes[pe].masked = False
        return SUCCESS

    def interrupt_bind(self, pe: int, r: Registers) -> int:
        interrupt = low32(r["x1"])
        if interrupt in self.interrupts:
            event = self.interrupts[interrupt]
            return event if event in self.bound else INVALID
        if 16 <= interrupt < 32:
            slots = self.private_slots
        elif 32 <= interrupt < 1020:
            slots = self.shared_slots
        else:
            return INVALID
        free = [event for event in slots if event not in self.bound]
        if not free:
            return OUT_OF_RESOURCE
        self._bind(free[0], interrupt)
        return free[0]

    def _bind(self, event: int, interrupt: int) -> None:
        self.bound[event] = interrupt
        self.interrupts[interrupt] = event
        self.known.add(event)

    def _unbind(self, event: int) -> int:
        if any(not handler.unregistered for handler in self.handlers_of(event)):
            return DENIED
        del self.interrupts[self.bound.pop(event)]
        if self.policy == "kvm":
            self.known.remove(event)
        return SUCCESS

    def interrupt_release(self, pe: int, r: Registers) -> int:
        event = low32(r["x1"])
        return self._unbind(event) if event in self.bound else INVALID

    def event_signal(self, pe: int, r: Registers) -> int:
        event, target = low32(r["x1"]), self.pe_of(r["x2"])
        if event not in self.known or event not in self.signalable or target is None:
            return INVALID
        handler = self.handler(event, target)
        if not handler.registered:
            return INVALID
        if self.policy == "tf-a" and (self.pes[target].masked or not handler.enabled):
            return INVALID
        handler.raise_event()
        return SUCCESS

    def private_reset(self, pe: int, r: Registers) -> int:
        return self._reset(h for h in self.handlers.values() if h.pe == pe)

    def shared_reset(self, pe: int, r: Registers) -> int:
        if self._reset(h for h in self.handlers.values() if h.pe is None) == DENIED:
            return DENIED
        results = [self._unbind(event) for event in list(self.bound)]
        return DENIED if DENIED in results else SUCCESS

    def _reset(self, handlers: Iterable[Handler]) -> int:
        result = SUCCESS
        for handler in handlers:
            handler.unregister()
            if handler.running:
                result = DENIED
        return result

    # -- the host's side -----------------------------------------------------------------------------

    def inject(self, event: int, pe: int | None) -> str:
        """The host raises an event: "raised", "unknown", or "not registered"."""
        if event not in self.known:
            return "unknown"
        handler = self.handler(event, pe)
        if not handler.registered:
            return "not registered"
        handler.raise_event()
        return "raised"

    def cancel(self, event: int, pe: int | None) -> str:
        """The host takes an event back: "cancelled", "not pending", or the reason against it.

        A pending event can be taken back even while its handler still runs for the time before.
        """
        if event not in self.known:
            return "unknown"
        handler = self.handler(event, pe)
        if not handler.registered:
            return "not registered"
        if not handler.pending:
            return "running" if handler.running else "not pending"
        handler.drop_pending()
        return "cancelled"

    def interrupt(self, interrupt: int, pe: int | None) -> bool:
        """A device raises an interrupt; whether it is SDEI's, because a registered event is bound to it."""
        event = self.interrupts.get(interrupt)
        if event is None or not self.handler(event, pe).registered:
            return False
        self.handler(event, pe).raise_event()
        return True

    def pe_on(self, pe: int) -> None:
        self.pe_off(pe)
        self.pes[pe].online = True

    def pe_off(self, pe: int) -> None:
        """The PE loses its private handlers; whatever ran on it ends there, as failed."""
        state = self.pes[pe]
        while state.frames:
            self._end(state.frames.pop().handler, failed=True)
        for handler in self.handlers.values():
            if handler.pe == pe:
                handler.unregister()
        state.online, state.masked, state.asleep, state.wakeable = False, True, False, False

    def pe_suspend(self, pe: int) -> bool:
        """The PE goes to a power state that loses its registers; not while an event would wake it at once."""
        if any(pe in takers for _, takers in self.deliverable()):
            return False
        state = self.pes[pe]
        state.wakeable = not state.masked
        state.asleep = state.masked = True
        return True

    def pe_resume(self, pe: int) -> None:
        """The PE is up again, masked until it says otherwise."""
        self.pes[pe].asleep = self.pes[pe].wakeable = False

    def reset(self) -> None:
        """The whole machine starts again: nothing is registered or bound, every PE is off."""
        for pe in self.pes:
            self.pe_off(pe)
        for handler in self.handlers.values():
            handler.unregister()
        for event in list(self.bound):
            self._unbind(event)
