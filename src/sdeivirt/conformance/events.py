# SPDX-License-Identifier: Apache-2.0
"""The events of a machine that runs the suite: two of each kind that DEN0054C knows, besides event 0."""

from __future__ import annotations

from ..sdei import EventDefinition, Priority

__all__ = ["FIRST_NUMBER", "SUITE_EVENTS"]

FIRST_NUMBER = 0x4000_0100  # vendor-defined, and below the dynamic events

# (shared, priority) of each pair. Only private events can be signalled: EVENT_SIGNAL names a PE.
_PAIRS = (
    (False, Priority.NORMAL),
    (False, Priority.CRITICAL),
    (True, Priority.NORMAL),
    (True, Priority.CRITICAL),
)

SUITE_EVENTS = tuple(
    EventDefinition(FIRST_NUMBER + i, shared=shared, priority=priority, signalable=not shared)
    for i, (shared, priority) in enumerate(pair for pair in _PAIRS for _ in range(2))
)
