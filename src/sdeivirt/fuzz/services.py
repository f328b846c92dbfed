# SPDX-License-Identifier: Apache-2.0
"""What the calls beside SDEI have to answer, written down a second time: DEN0028, DEN0098, and PSCI by its own oracle.

Results are x0..x3; the numbers below are those of the documents. Random
numbers come from :func:`entropy`, which both sides know.
"""

from __future__ import annotations

from collections.abc import Sequence

from .judge import CALLS, INVALID, NOT_SUPPORTED, SVE_HINT, low32

__all__ = ["answer", "entropy"]

Result = tuple[int, int, int, int]

VERSION, ARCH_FEATURES = 0x8000_0000, 0x8000_0001
TRNG = {0x8400_0050: "version", 0x8400_0051: "features", 0x8400_0052: "uuid", 0x8400_0053: 32, 0xC400_0053: 64}
VENDOR = {
    0x8600_0000: (1, 0, 0, 0),  # the features call and no other
    0x8600_FF01: (0xB66F_B428, 0xE911_C52E, 0x564B_CAA9, 0x743A_004D),  # "KVM"
}
TRNG_UUID = "7ab8b8a1-3cc8-4c5c-8f8e-9f2d6a1c5e30"


def entropy(size: int) -> bytes:
    """As random as can be compared."""
    return bytes(0x5A + 37 * i & 0xFF for i in range(size))


def answer(x: Sequence[int]) -> Result:
    """x0..x3 after a call that is neither SDEI's nor PSCI's; negative numbers are signed."""
    function = low32(x[0]) & ~SVE_HINT
    assert function not in CALLS
    if function == VERSION:
        return 0x1_0001, 0, 0, 0
    if function == ARCH_FEATURES:
        # Asked of itself and of the vendor's calls; other owners have such calls of their own.
        there = low32(x[1]) & ~SVE_HINT in (VERSION, ARCH_FEATURES, *VENDOR)
        return 0 if there else NOT_SUPPORTED, 0, 0, 0
    if function in VENDOR:
        return VENDOR[function]
    match TRNG.get(function):
        case "version":
            return 1 << 16, 0, 0, 0
        case "features":
            return 0 if low32(x[1]) in TRNG else NOT_SUPPORTED, 0, 0, 0
        case "uuid":
            # DEN0098 2.4.3: w0 has the UUID's first four bytes, the first of them lowest, and so on.
            raw = bytes.fromhex(TRNG_UUID.replace("-", ""))
            words = [int.from_bytes(raw[i : i + 4], "little") for i in range(0, 16, 4)]
            return words[0], words[1], words[2], words[3]
        case int(width):
            return _random(x[1] if width == 64 else low32(x[1]), width)
    return NOT_SUPPORTED, 0, 0, 0


def _random(bits: int, width: int) -> Result:
    """So many bits, the lowest in x3, then x2, then x1."""
    if bits == 0 or bits > 3 * width:
        return INVALID, 0, 0, 0
    raw = int.from_bytes(entropy(-(-bits // 8)), "little") % 2**bits
    x3, x2, x1 = (raw >> width * i & 2**width - 1 for i in range(3))
    return 0, x1, x2, x3
