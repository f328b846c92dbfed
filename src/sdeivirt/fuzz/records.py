# SPDX-License-Identifier: Apache-2.0
"""What the oracle keeps in mind: PEs, events, handlers and frames. Plain records; see :mod:`.model` for the rules."""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field

from .registers import NAMES, NamedRegisters

__all__ = ["ENABLED", "Event", "Frame", "Handler", "IDLE", "M64", "OPERATIONS", "Pe", "REGISTERED", "RUNNING"]

M64 = 2**64 - 1

# What can happen to a handler.
OPERATIONS = (
    "register",
    "enable",
    "disable",
    "unregister",
    "routing_set",
    "release",
    "dispatch",
    "complete",
    "context",
)

# The bits of EVENT_STATUS's answer.
REGISTERED, ENABLED, RUNNING = 1, 2, 4
IDLE = REGISTERED | ENABLED


@dataclass(slots=True, eq=False)
class Handler:
    """What is known of one event on one PE (private), or of one event everywhere (shared: `pe` is None)."""

    event: int
    pe: int | None
    needs: int  # room: 1 critical, 2 normal
    status: int = 0  # REGISTERED, ENABLED, RUNNING
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
    def registered(self) -> bool:
        return bool(self.status & REGISTERED)

    @property
    def enabled(self) -> bool:
        return bool(self.status & ENABLED)

    @property
    def running(self) -> bool:
        return bool(self.status & RUNNING)


@dataclass(slots=True, eq=False)
class Event:
    """An event, or a slot for one. `handlers[pe]` is what PE `pe` means by it; of a shared event, all are one."""

    number: int
    shared: bool
    critical: bool
    signalable: bool
    dynamic: bool
    known: bool  # whether calls may name it
    interrupt: int | None
    handlers: list[Handler] = field(default_factory=list)


@dataclass(slots=True, eq=False)
class Frame:
    """A handler that runs, and the registers that it interrupted."""

    handler: Handler
    words: array[int]

    @property
    def saved(self) -> NamedRegisters:
        return NamedRegisters(self.words)


@dataclass(slots=True, eq=False)
class Pe:
    index: int
    affinity: int
    online: bool = False
    masked: bool = True
    asleep: bool = False  # powered down by CPU_SUSPEND
    wakeable: bool = False  # ... and was not masked then
    frames: list[Frame] = field(default_factory=list)  # outermost first
    room: int = 0
    wakes_for: int = 0  # the room it would have, were it woken and unmasked
    ripe: dict[Handler, None] = field(default_factory=dict)  # its own
    bit: int = field(init=False)
    words: array[int] = field(default_factory=lambda: array("Q", [0] * len(NAMES)))

    def __post_init__(self) -> None:
        self.bit = 1 << self.index
