# SPDX-License-Identifier: Apache-2.0
"""KVM's firmware feature bitmaps as registers of a VM: which services its guest finds.

They are of the firmware and not of SDEI's state, so no dump has them; in a stream they are the section "services".
"""

from __future__ import annotations

from ..errors import RegisterError
from ..smccc.ids import Owner
from ..smccc.router import BITMAP_REGISTERS, Bitmap, Router

__all__ = ["Bitmaps"]

# As KVM's, without KVM_REG_ARM_.
_NAMES = {
    Owner.STANDARD: "STD_BMAP",
    Owner.STANDARD_HYP: "STD_HYP_BMAP",
    Owner.VENDOR_HYP: "VENDOR_HYP_BMAP",
}


class Bitmaps:
    """Those of a router. All registers have 64 bits and are the VM's; with the lock of the machine."""

    def __init__(self, router: Router) -> None:
        self._by_id = {BITMAP_REGISTERS[owner]: bitmap for owner, bitmap in router.bitmaps.items()}

    def parse(self, register: str) -> int | None:
        """The id of a register by name or number; None if it is none of these."""
        for id in self._by_id:
            if register.upper() == self.name(id):
                return id
        try:
            id = int(register, 16 if register[:2] in ("0x", "0X") else 10)
        except ValueError:
            return None
        return id if id in self._by_id else None

    def name(self, id: int) -> str:
        return _NAMES[self._by_id[id].owner]

    def read(self) -> dict[int, int]:
        """The values by id."""
        return {id: bitmap.value for id, bitmap in self._by_id.items()}

    def describe(self, id: int, value: int) -> str:
        """The services whose bits are set."""
        names = self._by_id[id].names
        return ", ".join(name for bit, name in sorted(names.items()) if value >> bit & 1) or "none"

    def check(self, id: int, value: int, vcpu: int | None) -> Bitmap:
        """The bitmap, which can be set to the value. Raises RegisterError."""
        bitmap = self._by_id[id]
        what = f"register {self.name(id)} ({id:#x})"
        if vcpu is not None:
            raise RegisterError(f"{what} is one of the VM", "name no vCPU")
        if unknown := value & ~bitmap.supported:
            raise RegisterError(f"{what}: it has no bits {unknown:#x}", f"it has {bitmap.supported:#x}")
        if bitmap.frozen and value != bitmap.value:
            raise RegisterError(
                f"{what}: it is {bitmap.value:#x}, and cannot change after a vCPU has run",
                "`sdeivirt run --disable` switches services off",
            )
        return bitmap
