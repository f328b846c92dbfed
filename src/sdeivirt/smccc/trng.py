# SPDX-License-Identifier: Apache-2.0
"""True random numbers for the guest, Arm DEN0098 1.0."""

from __future__ import annotations

from collections.abc import Callable

from ..cpu import RegisterView
from .ids import M32, NOT_SUPPORTED, Owner, argument
from .router import Caller, Result, Service

__all__ = ["trng_service"]

TRNG_VERSION = 0x8400_0050
TRNG_FEATURES = 0x8400_0051
TRNG_GET_UUID = 0x8400_0052
TRNG_RND32 = 0x8400_0053
TRNG_RND64 = 0xC400_0053

INVALID_PARAMETERS = -2
VERSION_1_0 = 0x0001_0000
# 7ab8b8a1-3cc8-4c5c-8f8e-9f2d6a1c5e30: this back end's own, as DEN0098 3.3 wants one each.
UUID = (0xA1B8_B87A, 0x5C4C_C83C, 0x2D9F_8E8F, 0x305E_1C6A)


def trng_service(entropy: Callable[[int], bytes]) -> Service:
    """The service behind bit 0 of the standard bitmap. `entropy(n)` gives n random bytes."""

    def version(_caller: Caller, _view: RegisterView) -> Result:
        return VERSION_1_0

    def features(_caller: Caller, view: RegisterView) -> Result:
        return 0 if view.x[1] & M32 in functions else NOT_SUPPORTED

    def uuid(_caller: Caller, _view: RegisterView) -> Result:
        return UUID

    def rnd(width: int) -> Callable[[Caller, RegisterView], Result]:
        def call(_caller: Caller, view: RegisterView) -> Result:
            bits = argument(view.x, 1)
            if not 1 <= bits <= 3 * width:
                return INVALID_PARAMETERS, 0, 0, 0
            value = int.from_bytes(entropy((bits + 7) // 8), "little") & ((1 << bits) - 1)
            mask = (1 << width) - 1
            # The lowest bits go into the highest register, DEN0098 3.4.
            return 0, value >> (2 * width) & mask, value >> width & mask, value & mask

        return call

    functions = {
        TRNG_VERSION: version,
        TRNG_FEATURES: features,
        TRNG_GET_UUID: uuid,
        TRNG_RND32: rnd(32),
        TRNG_RND64: rnd(64),
    }
    return Service(name="std-trng", owner=Owner.STANDARD, ranges=(range(0x50, 0x54),), functions=functions, bit=0)
