# SPDX-License-Identifier: Apache-2.0
"""What the guest reads of its CPU, where EL2 has a say: the identification registers, and the physical counter.

The engine has some things that this machine cannot give to a guest, and so must not announce:

- SVE. There is no interface to Z and P registers, so they could not move with
  the guest. CPTR_EL2.TZ makes their use undefined.
- AArch32 at EL0. Its registers have no interface either, so exceptions from
  there cannot be taken; a guest that goes there all the same has faulted.

Reads of ID registers trap (HCR_EL2.TID3), and are answered here. So do those of
CNTPCT_EL0 (CNTHCTL_EL2.EL1PCTEN): a guest that came from another host goes on
with the count it had, and the physical counter is to agree with the virtual one.
"""

from __future__ import annotations

from typing import NamedTuple

from .binding import Engine, X
from .sysregs import Encoding

__all__ = ["CNTHCTL", "CPTR", "HCR", "SCR", "Access", "identification", "identify", "read_trapped"]

_HCR_VM = 1 << 0  # stage 2
_HCR_TWI = 1 << 13  # WFI traps: the one way to know that a vCPU waits
_HCR_TID3 = 1 << 18
_HCR_RW = 1 << 31  # EL1 is AArch64
_HCR_APK_API = 3 << 40  # pointer authentication is the guest's: keys and instructions
HCR = _HCR_VM | _HCR_TWI | _HCR_TID3 | _HCR_RW | _HCR_APK_API
CPTR = 1 << 8  # TZ: SVE traps
CNTHCTL = 1 << 1  # EL1PCEN, not EL1PCTEN: the physical timer is the guest's, the physical counter traps
# Non-secure, HVC enabled, EL2 is AArch64 (else Unicorn takes EL1 for AArch32), pointer authentication does not trap.
SCR = 0x501 | 3 << 16

_PFR0 = Encoding(3, 0, 0, 4, 0)
_ZFR0 = Encoding(3, 0, 0, 4, 4)
_CNTPCT = Encoding(3, 3, 14, 0, 1)
_PFR0_EL0 = 0xF
_PFR0_EL0_AARCH64 = 1
_PFR0_SVE = 0xF << 32
_PFR0_GIC = 0xF << 24
_PFR0_GIC_REGISTERS = 1 << 24  # those of a GICv3, see icc.py

# What software chooses its code by. Those of TID3's group are seen through `identify`.
_IDENTITY = {
    "MIDR_EL1": Encoding(3, 0, 0, 0, 0),
    "ID_AA64PFR0_EL1": _PFR0,
    "ID_AA64PFR1_EL1": Encoding(3, 0, 0, 4, 1),
    "ID_AA64DFR0_EL1": Encoding(3, 0, 0, 5, 0),
    "ID_AA64ISAR0_EL1": Encoding(3, 0, 0, 6, 0),
    "ID_AA64ISAR1_EL1": Encoding(3, 0, 0, 6, 1),
    "ID_AA64MMFR0_EL1": Encoding(3, 0, 0, 7, 0),
    "ID_AA64MMFR1_EL1": Encoding(3, 0, 0, 7, 1),
    "ID_AA64MMFR2_EL1": Encoding(3, 0, 0, 7, 2),
    "CTR_EL0": Encoding(3, 3, 0, 0, 1),
    "DCZID_EL0": Encoding(3, 3, 0, 0, 7),
    "CNTFRQ_EL0": Encoding(3, 3, 14, 0, 0),
}


class Access(NamedTuple):
    """A trapped MRS or MSR: the syndrome of EC 0x18, Arm ARM D24.2.40."""

    register: Encoding
    rt: int
    reads: bool

    @classmethod
    def of(cls, esr: int) -> Access:
        encoding = Encoding(esr >> 20 & 3, esr >> 14 & 7, esr >> 10 & 15, esr >> 1 & 15, esr >> 17 & 7)
        return cls(encoding, esr >> 5 & 31, bool(esr & 1))


def identify(engine: Engine, register: Encoding) -> int:
    """What the guest reads from an ID register; those that are not allocated read as zero."""
    value = engine.peek(register)
    if register == _PFR0:
        return value & ~(_PFR0_EL0 | _PFR0_SVE | _PFR0_GIC) | _PFR0_EL0_AARCH64 | _PFR0_GIC_REGISTERS
    return 0 if register == _ZFR0 else value


def identification(engine: Engine) -> dict[str, int]:
    """What tells one CPU from another, by name: a guest can move only between two that agree."""
    found = {name: identify(engine, register) for name, register in _IDENTITY.items()}
    found["ID_AA64PFR0_EL1"] &= ~_PFR0_GIC  # ours, not the engine's; and guests come that had none
    return found


def read_trapped(engine: Engine, access: Access) -> bool:
    """Carry out a trapped access; False if the guest is to take it for undefined."""
    if not access.reads:
        return False
    op0, op1, crn, crm, _op2 = access.register
    if (op0, op1, crn) == (3, 0, 0) and 1 <= crm <= 7:
        value = identify(engine, access.register)
    elif access.register == _CNTPCT:
        value = engine.sysreg("CNTVCT_EL0")
    else:
        return False
    if access.rt < len(X):
        engine.set(X[access.rt], value)
    return True
