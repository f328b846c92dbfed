# SPDX-License-Identifier: Apache-2.0
"""What firmwares differ in, as a record, with the two presets that users know."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import UsageError

__all__ = ["Policy", "POLICIES", "KVM", "TF_A"]

MAX_SLOTS = 512


@dataclass(frozen=True, slots=True)
class Policy:
    """The choices that DEN0054C leaves open, or that implementations make differently.

    Versions
        `version` (major, minor) and the 32-bit `vendor` number.
    Slots
        `private_slots` and `shared_slots`: how many PPIs and SPIs can be bound at a time.
    Calls
        `relative_mode`: handlers may be registered relative to VBAR_EL1.
        `signal_pends`: EVENT_SIGNAL to a target that is masked, or whose handler is
        not enabled, succeeds and stays pending; otherwise it is INVALID_PARAMETERS.
        `signaled_inverted`: EVENT_GET_INFO(SIGNALED) answers 0 for a signalable event.
        `private_affinity_checked`: EVENT_REGISTER of a private event with RM_PE refuses an
        unknown affinity; otherwise routing is ignored for private events.
        `context_index_first`: EVENT_CONTEXT looks at its index before the handler state.
        `unbound_known`: the numbers of dynamic slots are known events, merely
        not usable, while nothing is bound to them; otherwise they do not exist.
    Entry
        `clear_registers`: x4..x17 are zero when a handler is entered, else as interrupted.
    """

    name: str
    version: tuple[int, int] = (1, 1)
    vendor: int = 0x4B564D
    private_slots: int = 4
    shared_slots: int = 4
    relative_mode: bool = True
    signal_pends: bool = True
    signaled_inverted: bool = False
    private_affinity_checked: bool = False
    context_index_first: bool = False
    unbound_known: bool = False
    clear_registers: bool = True

    def __post_init__(self) -> None:
        for what in ("private_slots", "shared_slots"):
            slots = getattr(self, what)
            if not 0 <= slots <= MAX_SLOTS:
                raise UsageError(f"there cannot be {slots} {what.replace('_', ' ')}", f"0 to {MAX_SLOTS} can be")


# KVM, vendor "KVM": the log in the v7 cover letter, and v7's order of checks.
KVM = Policy(name="kvm")

# Trusted Firmware-A v2.15: services/std_svc/sdei.
TF_A = Policy(
    name="tf-a",
    version=(1, 0),
    vendor=0,
    private_slots=3,
    shared_slots=3,
    relative_mode=False,
    signal_pends=False,
    signaled_inverted=True,
    private_affinity_checked=True,
    context_index_first=True,
    unbound_known=True,
    clear_registers=False,
)

POLICIES = {policy.name: policy for policy in (KVM, TF_A)}
