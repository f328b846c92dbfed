# SPDX-License-Identifier: Apache-2.0
"""SMCCC function identifiers, Arm DEN0028 2.5.

    31     30     29..24   23..17       16         15..0
    fast   SMC64  owner    must be 0    SVE hint   function number

The id is the low word of x0; the high word is ignored.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from typing import NamedTuple

__all__ = ["FunctionId", "Owner", "Conduit", "argument", "NOT_SUPPORTED", "M32", "hint"]

M32 = 0xFFFF_FFFF
NOT_SUPPORTED = -1

_FAST = 1 << 31
_SMC64 = 1 << 30
_SVE_HINT = 1 << 16


class Conduit(enum.Enum):
    """The instruction that a guest calls with."""

    HVC = "hvc"
    SMC = "smc"


class Owner(enum.IntEnum):
    """Owning entity, DEN0028 table 6-2. Services register under one of these."""

    ARCH = 0
    CPU = 1
    SIP = 2
    OEM = 3
    STANDARD = 4
    STANDARD_HYP = 5
    VENDOR_HYP = 6
    TRUSTED_APP = 48
    TRUSTED_OS = 50


class FunctionId(NamedTuple):
    """A function id taken apart.

    `owner` is a plain number, since 64 owners exist and only some have a name;
    `reserved` holds bits 23..17, which must be zero for a fast call.
    """

    fast: bool
    smc64: bool
    owner: int
    number: int
    reserved: int
    sve_hint: bool

    @classmethod
    def decode(cls, value: int) -> FunctionId:
        """Take `value` (the low word of x0) apart. Every 32-bit number decodes."""
        return cls(
            fast=bool(value & _FAST),
            smc64=bool(value & _SMC64),
            owner=(value >> 24) & 0x3F,
            number=value & 0xFFFF,
            reserved=(value >> 17) & 0x7F,
            sve_hint=bool(value & _SVE_HINT),
        )

    def encode(self) -> int:
        """The 32-bit id again."""
        return (
            (_FAST if self.fast else 0)
            | (_SMC64 if self.smc64 else 0)
            | (self.owner & 0x3F) << 24
            | (self.reserved & 0x7F) << 17
            | (_SVE_HINT if self.sve_hint else 0)
            | (self.number & 0xFFFF)
        )


def argument(x: Sequence[int], index: int) -> int:
    """Argument `index` (1..17) of the call in the window `x`, as wide as the call's convention says.

    SMC32 passes 32-bit arguments in W registers: whatever stands in the high
    word is noise (DEN0028 3.1). Raises IndexError beyond x17.
    """
    if not 0 <= index <= 17:
        raise IndexError(f"SMCCC passes arguments in x1 to x17, not x{index}")
    return x[index] if x[0] & _SMC64 else x[index] & M32


def hint(value: int) -> int:
    """The id with the SVE hint bit removed: it does not take part in routing (DEN0028 2.5)."""
    return value & ~_SVE_HINT & M32
