# SPDX-License-Identifier: Apache-2.0
"""The events of a machine that runs the suite: two of each kind that DEN0054C knows, besides event 0."""

from __future__ import annotations

from dataclasses import replace

from ..sdei import EventDefinition, Policy, Priority

__all__ = ["FIRST_NUMBER", "SUITE_EVENTS", "suite_events"]

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


def suite_events(policy: Policy) -> tuple[EventDefinition, ...]:
    """The events for a machine of this policy: where SIGNALED is answered the other way round, as by TF-A, they
    can not be signalled, which is how it is there."""
    if policy.signaled_inverted:
        return tuple(replace(event, signalable=False) for event in SUITE_EVENTS)
    return SUITE_EVENTS
