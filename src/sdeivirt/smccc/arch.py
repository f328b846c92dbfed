# SPDX-License-Identifier: Apache-2.0
"""Arm architecture calls, DEN0028 7: the version, and which other calls exist."""

from __future__ import annotations

from ..cpu import RegisterView
from .ids import M32, NOT_SUPPORTED, Owner
from .router import Caller, Result, Router, Service

__all__ = ["arch_service", "SMCCC_VERSION", "SMCCC_ARCH_FEATURES"]

SMCCC_VERSION = 0x8000_0000
SMCCC_ARCH_FEATURES = 0x8000_0001
VERSION_1_1 = 0x0001_0001


def arch_service(router: Router) -> Service:
    """The service; it asks `router` what is implemented."""

    def version(_caller: Caller, _view: RegisterView) -> Result:
        return VERSION_1_1

    def features(_caller: Caller, view: RegisterView) -> Result:
        # DEN0028 7.3: 0 for a call that exists and has no further options. Only fast
        # calls of the arch and vendor-hyp owners are to be asked for here; PSCI, TRNG
        # and SDEI have features calls of their own.
        fid = view.x[1] & M32
        owner = (fid >> 24) & 0x3F
        if owner in (Owner.ARCH, Owner.STANDARD_HYP, Owner.VENDOR_HYP) and router.implements(fid):
            return 0
        return NOT_SUPPORTED

    return Service(
        name="arch",
        owner=Owner.ARCH,
        ranges=(range(0x10000),),
        functions={SMCCC_VERSION: version, SMCCC_ARCH_FEATURES: features},
    )
