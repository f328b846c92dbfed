# SPDX-License-Identifier: Apache-2.0
"""Vendor-specific hypervisor calls: who the hypervisor is and which of its calls exist.

Linux guests recognise KVM by the UID and read the features word after it
(Linux v5.12, commit 6e085e0ac9cf ("arm/arm64: Probe for the presence of KVM hypervisor")).
"""

from __future__ import annotations

from ..cpu import RegisterView
from .ids import Owner
from .router import Caller, Result, Router, Service

__all__ = ["vendor_hyp_service", "KVM_UID", "VENDOR_HYP_FEATURES", "VENDOR_HYP_UID"]

VENDOR_HYP_FEATURES = 0x8600_0000
VENDOR_HYP_UID = 0x8600_FF01

# 28b46fb6-2ec5-11e9-a9ca-4b564d003a74 in four words, x0 first.
KVM_UID = (0xB66F_B428, 0xE911_C52E, 0x564B_CAA9, 0x743A_004D)


def vendor_hyp_service(router: Router) -> Service:
    """The service behind bit 0 of the vendor-hyp bitmap. Its features are the bits that are set in the bitmap.

    Bit 0 is the features call itself, bit 2 asynchronous page faults, as KVM has them (bit 1 would be its PTP clock).
    """

    def uid(_caller: Caller, _view: RegisterView) -> Result:
        return KVM_UID

    def features(_caller: Caller, _view: RegisterView) -> Result:
        return router.bitmaps[Owner.VENDOR_HYP].value, 0, 0, 0

    return Service(
        name="vendor-hyp",
        owner=Owner.VENDOR_HYP,
        ranges=(range(0x0002), range(0xFF01, 0xFF02)),
        functions={VENDOR_HYP_UID: uid, VENDOR_HYP_FEATURES: features},
        bit=0,
    )
