# SPDX-License-Identifier: Apache-2.0
"""SMC calling convention (Arm DEN0028): ids, routing by owner and range, and the small services.

ids.py       function ids taken apart, owners, result codes
router.py    services in a table; feature bitmaps; one call in, one result out
arch.py      SMCCC_VERSION and ARCH_FEATURES
vendor.py    the vendor-hyp UID and features calls
trng.py      true random numbers (Arm DEN0098)
psci.py      power state coordination (Arm DEN0022)
"""

from .ids import NOT_SUPPORTED, Conduit, FunctionId, Owner
from .router import Bitmap, Disposition, Router, Service

__all__ = [
    "Router",
    "Service",
    "Bitmap",
    "Disposition",
    "FunctionId",
    "Owner",
    "Conduit",
    "NOT_SUPPORTED",
]
