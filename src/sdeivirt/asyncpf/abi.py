# SPDX-License-Identifier: Apache-2.0
"""Numbers of the interface: the call, the control word, the control block.

The call is that of two series for KVM: "Support Asynchronous Page Fault" for
arm64 (v4 of 2021, which tells by an SDEI event), and the one of 2026 that
tells by a PPI alone. FEATURES, REFUSED and the ring are ours.
"""

from __future__ import annotations

import enum

__all__ = [
    "ASYNC_PF_CALL",
    "SERVICE_BIT",
    "CallResult",
    "Control",
    "Feature",
    "Reason",
    "SubFunction",
    "block_size",
]

ASYNC_PF_CALL = 0x8600_0002  # SMC32, vendor-hyp
SERVICE_BIT = 2  # of the vendor-hyp bitmap, and of what the FEATURES call there answers

VERSION = 0x01_0000
SLOTS = 64  # not-present notifications of a vCPU that have not been answered yet

WAKE_ALL = 0xFFFF_FFFF  # a ready token: every task that waits on this vCPU

# A token: a running number in 27:12, never 0, and the vCPU's index in 11:0.
TOKEN_ID_SHIFT = 12
TOKEN_IDS = 0xFFFF
TOKEN_VCPU = 0xFFF


class SubFunction(enum.IntEnum):
    """x1 of the call; x2 and x3 are arguments, 32 bits each. Answers: x0 a result, x1 a value."""

    VERSION = 0
    SLOTS = 1
    SDEI = 2  # the event that tells "not present"
    IRQ = 3  # the INTID that tells "ready", and without SDEI "not present", too
    ENABLE = 4  # x2 bits 31:0 of the control word, x3 bits 63:32
    IRQ_ACK = 5
    FEATURES = 6  # ours


class CallResult(enum.IntEnum):
    """SMCCC's results, DEN0028 2.5 and 7."""

    SUCCESS = 0
    NOT_SUPPORTED = -1
    NOT_REQUIRED = -2
    INVALID_PARAMETER = -3


class Feature(enum.IntFlag):
    """FEATURES' answer."""

    REFUSE = 1  # a not-present may be answered with REFUSED
    RING = 2  # Control.RING is understood


class Control(enum.IntFlag):
    """Bits 5:0 of the control word; the others are the guest physical address of the block."""

    ENABLED = 1
    SEND_ALWAYS = 2  # tell of faults at EL1, too; with SDEI only
    RING = 4  # ready tokens go into the ring


CONTROL_FLAGS = 0x3F
CONTROL_KNOWN = int(Control.ENABLED | Control.SEND_ALWAYS | Control.RING)


class Reason(enum.IntEnum):
    """The first word of the mailbox; 0 while it is empty."""

    EMPTY = 0
    NOT_PRESENT = 1
    READY = 2
    REFUSED = 3  # written by the guest, over NOT_PRESENT


# The control block, 32-bit words in little endian.
REASON, TOKEN = 0, 4  # the mailbox: the host writes, the guest zeroes both once it has read them
HEAD, TAIL = 8, 12  # how many tokens the host has put into the ring, and the guest taken out, modulo 2**32
RING = 64
RING_ENTRIES = 128
PAGE = 4096


def block_size(control: int) -> int:
    """How many bytes of the block are in use under a control word."""
    return RING + 4 * RING_ENTRIES if control & Control.RING else TOKEN + 4
