# SPDX-License-Identifier: Apache-2.0
"""Exception entry, written down a second time, from the Arm ARM."""

from __future__ import annotations

from collections.abc import Set

__all__ = ["take_exception"]


def bit(value: int, position: int) -> int:
    return value >> position & 1


def take_exception(pstate: int, sctlr: int, features: Set[str]) -> int:
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
