# SPDX-License-Identifier: Apache-2.0
"""The hypervisor side of Arm SDEI (DEN0054C), serving real AArch64 guests.

    from sdeivirt import MachineConfig, open_machine

    with open_machine("unicorn", MachineConfig(vcpus=2)) as machine:
        machine.load(guest_path("listen"))
        machine.start()
        machine.inject(0, vcpu=1)

What is named here is loaded when it is first used, so that `import sdeivirt` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .asyncpf import AsyncPfSettings
    from .control.client import VmClient
    from .errors import SdeivirtError
    from .guests import guest_path
    from .machine import ExitReason, FaultReport, Machine, MachineConfig, Outcome, VmStatus, open_machine
    from .machine.qemu.options import QemuOptions
    from .sdei import POLICIES, EventDefinition, Policy, Priority, Sdei
    from .sdei.service import Injection
    from .smccc.ids import Conduit

__version__ = "0.1.0"

__all__ = [
    "open_machine",
    "Machine",
    "MachineConfig",
    "QemuOptions",
    "AsyncPfSettings",
    "Outcome",
    "ExitReason",
    "FaultReport",
    "VmStatus",
    "Injection",
    "EventDefinition",
    "Priority",
    "Policy",
    "POLICIES",
    "Conduit",
    "Sdei",
    "VmClient",
    "SdeivirtError",
    "guest_path",
    "__version__",
]

_MODULES = {
    "asyncpf": ("AsyncPfSettings",),
    "machine": ("open_machine", "Machine", "MachineConfig", "Outcome", "ExitReason", "FaultReport", "VmStatus"),
    "machine.qemu.options": ("QemuOptions",),
    "sdei": ("EventDefinition", "Priority", "Policy", "POLICIES", "Sdei"),
    "sdei.service": ("Injection",),
    "control.client": ("VmClient",),
    "errors": ("SdeivirtError",),
    "smccc.ids": ("Conduit",),
    "guests": ("guest_path",),
}
_HOME = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{_HOME[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})
