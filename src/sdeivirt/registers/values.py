# SPDX-License-Identifier: Apache-2.0
"""What stands in the registers: their bits, and the structures that they hold.

    context      160 of 256 bytes: PC, PSTATE, x0..x17, 64 bits each, as in v7 of KVM's series
    handler      entry point 63:0, argument 127:64, as in v7
    state        below, STATE_*
    counts       coalesced 63:0, dropped 127:64, completed 191:128, failed 255:192
    definition   below, DEFINITION_*: what an event is, not to be changed
    policy       a bit for each choice of the policy that a guest can notice

What follows from the rest has no register. Of a handler's counts, delivered is
completed, plus one while it runs; injected is delivered, coalesced and dropped,
plus one while it is pending.
"""

from __future__ import annotations

import struct
import sys

from ..cpu import (
    PSTATE_ALLINT,
    PSTATE_BTYPE,
    PSTATE_DAIF,
    PSTATE_DIT,
    PSTATE_IL,
    PSTATE_MODE,
    PSTATE_NZCV,
    PSTATE_PAN,
    PSTATE_SS,
    PSTATE_SSBS,
    PSTATE_TCO,
    PSTATE_UAO,
    MODE_EL0t,
    MODE_EL1h,
    MODE_EL1t,
)
from ..sdei.model import Event, Handler, Pe
from ..sdei.policy import Policy

__all__ = [
    "CONTEXT_BYTES",
    "context_of_frame",
    "counts",
    "definition",
    "frame_of_context",
    "policy_word",
    "power",
    "pstate_fault",
    "pstate_of_context",
    "set_counts",
]

M64 = (1 << 64) - 1

# SDEI_STATE. The three of EVENT_STATUS, DEN0054C 5.1.8, and:
STATE_REGISTERED = 1 << 0
STATE_ENABLED = 1 << 1
STATE_RUNNING = 1 << 2
STATE_STATUS = STATE_REGISTERED | STATE_ENABLED | STATE_RUNNING
STATE_PENDING = 1 << 3
STATE_RELATIVE = 1 << 4  # the entry point is relative to VBAR_EL1
STATE_RM_PE = 1 << 5  # shared events: one vCPU takes it, else any
STATE_TARGET_SHIFT = 16  # 31:16, with RM_PE: that vCPU
STATE_RUNS_ON_SHIFT = 32  # 47:32, shared events that run: where
STATE_VCPU = 0xFFFF
STATE_PRIVATE = STATE_STATUS | STATE_PENDING | STATE_RELATIVE
STATE_SHARED = STATE_PRIVATE | STATE_RM_PE | STATE_VCPU << STATE_TARGET_SHIFT | STATE_VCPU << STATE_RUNS_ON_SHIFT
STATE_STANDARD = STATE_RELATIVE  # the rest of a standard event is in KVM's registers

# SDEI_POWER.
POWER_ONLINE = 1 << 0
POWER_SUSPENDED = 1 << 1  # powered down in CPU_SUSPEND
POWER_WAKEABLE = 1 << 2  # ... and woken by an event
POWER_ALL = POWER_ONLINE | POWER_SUSPENDED | POWER_WAKEABLE

# SDEI_DEFINITION.
DEFINITION_NUMBER = 0x7FFF_FFFF
DEFINITION_SHARED = 1 << 32
DEFINITION_CRITICAL = 1 << 33
DEFINITION_SIGNALABLE = 1 << 34
DEFINITION_DYNAMIC = 1 << 35
DEFINITION_INTERRUPT_SHIFT = 48  # 63:48, the interrupt that it has by definition, or 0

POLICY_BITS = (
    "relative_mode",
    "signal_pends",
    "signaled_inverted",
    "private_affinity_checked",
    "context_index_first",
    "unbound_known",
    "clear_registers",
)

MAX_COUNT = (1 << 62) - 1  # so that their sum has 64 bits

CONTEXT_BYTES = 256
CONTEXT_USED = 160 * 8  # bits
_WORDS = struct.Struct("<20Q")
_COUNTS = struct.Struct("<4Q")

# SPSR_EL1 for an exception from AArch64, Arm ARM C5.2.19: PACM, EXLOCK, PPEND and PM are 35:32.
_PSTATE_64 = (
    0xF << 32
    | PSTATE_NZCV
    | PSTATE_TCO
    | PSTATE_DIT
    | PSTATE_UAO
    | PSTATE_PAN
    | PSTATE_SS
    | PSTATE_IL
    | PSTATE_ALLINT
    | PSTATE_SSBS
    | PSTATE_BTYPE
    | PSTATE_DAIF
    | PSTATE_MODE
)
_MODES_64 = (MODE_EL0t, MODE_EL1t, MODE_EL1h)
# From AArch32 every bit of 31:0 has a meaning in some version. EL1 is AArch64, so only User mode can be.
_PSTATE_32 = 0xFFFF_FFFF
_MODE_USER = 0b10000


def definition(event: Event) -> int:
    """SDEI_DEFINITION of an event."""
    word = event.number
    word |= DEFINITION_SHARED if event.shared else 0
    word |= DEFINITION_CRITICAL if event.priority else 0
    word |= DEFINITION_SIGNALABLE if event.signalable else 0
    if event.dynamic:
        return word | DEFINITION_DYNAMIC
    return word | (event.interrupt or 0) << DEFINITION_INTERRUPT_SHIFT


def policy_word(policy: Policy) -> int:
    """SDEI_POLICY."""
    return sum(1 << bit for bit, name in enumerate(POLICY_BITS) if getattr(policy, name))


def power(pe: Pe) -> int:
    """SDEI_POWER."""
    return POWER_ONLINE * pe.online | POWER_SUSPENDED * pe.suspended | POWER_WAKEABLE * pe.wakeable


def counts(handler: Handler) -> int:
    """SDEI_COUNTS of a handler."""
    if not handler.injected:  # the others are parts of it
        return 0
    packed = _COUNTS.pack(handler.coalesced, handler.dropped, handler.completed, handler.failed)
    return int.from_bytes(packed, "little")


def set_counts(handler: Handler, value: int) -> None:
    """Take over SDEI_COUNTS, and what follows from it once the handler's state is final."""
    handler.coalesced, handler.dropped, handler.completed, handler.failed = _COUNTS.unpack(value.to_bytes(32, "little"))
    handler.delivered = handler.completed + bool(handler.state & STATE_RUNNING)
    handler.injected = handler.delivered + handler.coalesced + handler.dropped + handler.pending


def _swap(words: bytes) -> bytes:
    """Between host order and little endian."""
    return words if sys.byteorder == "little" else struct.pack("=20Q", *_WORDS.unpack(words))


def context_of_frame(saved: bytes) -> int:
    """A context register from what a frame saved: x0..x17, PC, PSTATE in host order."""
    words = _swap(saved)
    return int.from_bytes(words[144:] + words[:144], "little")


def frame_of_context(value: int) -> bytes:
    """What a frame saves, from a context register."""
    words = value.to_bytes(CONTEXT_BYTES, "little")
    return _swap(words[16:160] + words[:16])


def pstate_of_context(value: int) -> int:
    """PSTATE in a context register."""
    return value >> 64 & M64


def pstate_fault(pstate: int) -> str:
    """What is wrong with a PSTATE that a handler's end would give to the guest; "" for one of EL0 or EL1."""
    if pstate & PSTATE_MODE == _MODE_USER:
        unknown = pstate & ~_PSTATE_32
    elif pstate & PSTATE_MODE in _MODES_64:
        unknown = pstate & ~_PSTATE_64
    else:
        return f"PSTATE {pstate:#x} is of no exception level of the guest's"
    return f"PSTATE {pstate:#x} has unknown bits {unknown:#x}" if unknown else ""
