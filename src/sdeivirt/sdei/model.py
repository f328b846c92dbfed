# SPDX-License-Identifier: Apache-2.0
"""The state of the service: PEs, events, handlers and frames. Plain records; the rules are elsewhere.

Sets of events and of PEs are Python integers used as bitmaps: bit i is the
event or PE of index i. Events are indexed in order of their numbers, so the
lowest set bit is the lowest number, and a call costs the same with one event
as with a thousand.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ..cpu import CpuFeatures
from .events import Priority

if TYPE_CHECKING:
    from ..asyncpf.state import PeFaults

__all__ = ["Event", "Handler", "Frame", "Pe", "bits"]


def bits(bitmap: int) -> Iterator[int]:
    """The indices of the bits that are set, lowest first."""
    while bitmap:
        low = bitmap & -bitmap
        yield low.bit_length() - 1
        bitmap ^= low


@dataclass(slots=True, eq=False)
class Event:
    """An event of the platform, or a slot for a dynamic one.

    `interrupt` is the bound INTID; None in a dynamic event means that the slot
    is free. `handler` is a shared event's handler; a private event has one
    handler for each PE (:attr:`Pe.handlers`), and `handler` is the blank one
    that stands for all PEs which never registered.
    """

    number: int
    index: int
    shared: bool
    priority: Priority
    signalable: bool
    dynamic: bool
    interrupt: int | None
    registrations: int = 0  # handlers in any state but unregistered
    bit: int = field(init=False)
    handler: Handler = field(init=False)

    def __post_init__(self) -> None:
        self.bit = 1 << self.index
        self.handler = Handler(self, None)


@dataclass(slots=True, eq=False)
class Handler:
    """What a guest registered: on one PE for a private event, once for a shared one.

    `target` is the PE that takes the event: always the own PE for a private
    event; for a shared one the PE of RM_PE, or None for RM_ANY. `state` is
    one of :mod:`.states`. `pending` is one bit: signals that arrive while it
    is set collapse into one delivery (DEN0054C 5.1.16).
    """

    event: Event
    target: Pe | None
    state: int = 0
    pending: bool = False
    entry: int = 0
    argument: int = 0
    relative: bool = False
    running_on: Pe | None = None
    # Counts since the machine started. injected = delivered + coalesced + dropped + pending.
    injected: int = 0
    coalesced: int = 0  # met an event that was pending already
    dropped: int = 0  # cancelled, or pending when the handler was unregistered
    delivered: int = 0
    completed: int = 0
    failed: int = 0  # completed with a status other than 0


@dataclass(slots=True, eq=False)
class Frame:
    """A handler that runs on a PE, with what it interrupted: x0..x17, PC, PSTATE, 64 bits each in host order."""

    handler: Handler
    saved: bytes


@dataclass(slots=True, eq=False)
class Pe:
    """One PE: its mask, the two frames that can nest, its private handlers."""

    index: int
    affinity: int
    features: CpuFeatures = field(default_factory=CpuFeatures)
    online: bool = False
    masked: bool = True  # after reset, DEN0054C 6.3
    suspended: bool = False  # powered down in CPU_SUSPEND
    wakeable: bool = False  # ... and woken by an event, since it was not masked then
    normal: Frame | None = None
    critical: Frame | None = None
    ready: int = 0  # events that this PE alone may take: pending and enabled
    registered: int = 0  # private events with a handler in any state but unregistered
    handlers: dict[int, Handler] = field(default_factory=dict)  # by event index
    async_pf: PeFaults | None = None  # its asynchronous page faults, where the platform has them
    bit: int = field(init=False)

    def __post_init__(self) -> None:
        self.bit = 1 << self.index

    def handler_of(self, event: Event) -> Handler:
        """The handler that this PE means by an event; a blank one where it never registered any."""
        return event.handler if event.shared else self.handlers.get(event.index, event.handler)

    @property
    def frame(self) -> Frame | None:
        """The innermost handler, which CONTEXT and COMPLETE refer to."""
        return self.critical or self.normal
