# SPDX-License-Identifier: Apache-2.0
"""Hypercall routing: by owner, then by function-number range, then by function.

Series patches 01 and 02 gave KVM this shape: each service owns a range of
function numbers under an owner, and a bit in that owner's *feature bitmap*
(KVM_REG_ARM_STD_BMAP and its sisters) switches the service off, after which
its whole range answers NOT_SUPPORTED. A bitmap is frozen by the first run.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from ..cpu import M64, RegisterView
from ..errors import FrozenError, UsageError
from .ids import M32, NOT_SUPPORTED, FunctionId, Owner, hint

__all__ = ["Router", "Service", "Bitmap", "Caller", "Disposition", "Result", "Function", "BITMAP_REGISTERS"]


class Caller(Protocol):
    """The PE that called."""

    index: int
    affinity: int


class Disposition(enum.Enum):
    """What a call did when it has no result to give."""

    CONTEXT = "context"  # the whole window is new: write it back
    STOPPED = "stopped"  # the PE does not return from this call


Result = int | tuple[int, int, int, int] | Disposition
# A function gets the caller and the window; x0..x5 are valid, fetch what else it needs.
Function = Callable[..., Result]


@dataclass(frozen=True, slots=True)
class Service:
    """One service: where it lives, its switch, its functions.

    `functions` maps 32-bit ids to functions; an id of the range that is not
    there answers NOT_SUPPORTED. `bit` is the service's bit in its owner's
    bitmap, or None for a service that cannot be switched off.
    """

    name: str
    owner: Owner
    ranges: tuple[range, ...]
    functions: Mapping[int, Function]
    bit: int | None = None


# KVM's ids of the bitmaps, Linux v5.19, commit 428fd6788d4d ("KVM: arm64: Add vendor hypervisor firmware register")
BITMAP_REGISTERS = {
    Owner.STANDARD: 0x6030_0000_0016_0000,
    Owner.STANDARD_HYP: 0x6030_0000_0016_0001,
    Owner.VENDOR_HYP: 0x6030_0000_0016_0002,
}


@dataclass(slots=True)
class Bitmap:
    """An owner's feature bitmap: every bit with a service behind it is set to begin with."""

    owner: Owner
    names: dict[int, str] = field(default_factory=dict)
    value: int = 0
    frozen: bool = False

    @property
    def supported(self) -> int:
        """All bits that may be set."""
        return sum(1 << bit for bit in self.names)

    def set(self, value: int) -> None:
        """Choose the services.

        Raises FrozenError after the first run (KVM: EBUSY) and UsageError for
        a bit without a service (KVM: EINVAL). Writing the present value is
        always accepted.
        """
        if value & ~self.supported:
            raise UsageError(
                f"the {self.owner.name} bitmap has no bits {value & ~self.supported:#x}",
                f"it has {self.supported:#x}: "
                + ", ".join(f"bit {bit} {name}" for bit, name in sorted(self.names.items())),
            )
        if self.frozen and value != self.value:
            raise FrozenError(
                f"the {self.owner.name} bitmap cannot change after a vCPU has run",
                "set it before the machine starts",
            )
        self.value = value


class Router:
    """The table of services, and the way of a call through it."""

    def __init__(self) -> None:
        self._services: list[Service] = []
        self.functions: dict[int, Function] = {}  # all that can be called now, by id; laid out by freeze()
        self.bitmaps = {owner: Bitmap(owner) for owner in BITMAP_REGISTERS}

    @property
    def services(self) -> tuple[Service, ...]:
        return tuple(self._services)

    def register(self, service: Service) -> None:
        """Add a service. Raises UsageError where its range or bit is taken."""
        for other in self._services:
            if other.owner is not service.owner:
                continue
            for a in service.ranges:
                if any(a.start < b.stop and b.start < a.stop for b in other.ranges):
                    raise UsageError(f"service {service.name!r} overlaps {other.name!r} of owner {service.owner.name}")
        for fid in service.functions:
            decoded = FunctionId.decode(fid)
            if decoded.owner != service.owner or not any(decoded.number in r for r in service.ranges):
                raise UsageError(f"function {fid:#x} lies outside of service {service.name!r}")
        if service.bit is not None:
            bitmap = self.bitmaps[service.owner]
            if service.bit in bitmap.names:
                raise UsageError(f"bit {service.bit} of the {service.owner.name} bitmap is taken")
            bitmap.names[service.bit] = service.name
            bitmap.value |= 1 << service.bit
        self._services.append(service)

    def freeze(self) -> None:
        """Fix the bitmaps, as the first run of a vCPU does, and lay out the table of functions."""
        for bitmap in self.bitmaps.values():
            bitmap.frozen = True
        self.functions.clear()
        for service in self._services:
            if self.enabled(service):
                self.functions.update(service.functions)

    def enabled(self, service: Service) -> bool:
        """Whether the service's bit is set."""
        return service.bit is None or bool(self.bitmaps[service.owner].value >> service.bit & 1)

    def find(self, owner: int, number: int) -> Service | None:
        """The service that owns a function number, whether it is switched on or not."""
        for service in self._services:
            if service.owner == owner and any(number in r for r in service.ranges):
                return service
        return None

    def implements(self, fid: int) -> bool:
        """Whether a call of `fid` reaches a function."""
        return hint(fid) in self.functions

    def function(self, fid: int) -> Function:
        """The function that a call of `fid` reaches.

        The flat table holds exactly the functions of the services that are
        switched on, so one look-up is the whole of owner, range and bitmap.
        """
        return self.functions.get(hint(fid), _not_supported)

    def call(self, caller: Caller, view: RegisterView) -> Result:
        """Run the call whose id and first arguments stand in the window; nothing is written back."""
        return self.function(view.x[0] & M32)(caller, view)


def _not_supported(_caller: Caller, _view: RegisterView) -> Result:
    return NOT_SUPPORTED


def write_result(x: memoryview, result: int | tuple[int, int, int, int]) -> None:
    """Put a result into x0..x3: a single value clears x1..x3 (DEN0028 2.6)."""
    if isinstance(result, int):
        x[0] = result & M64
        x[1] = x[2] = x[3] = 0
    else:
        for i, value in enumerate(result):
            x[i] = value & M64
