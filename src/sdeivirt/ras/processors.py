# SPDX-License-Identifier: Apache-2.0
"""Which processor a report names: as the guest finds it in MPIDR_EL1 and MIDR_EL1."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..machine import Machine

__all__ = ["midr_of_model", "processor_of"]

_RES1 = 1 << 31
# What QEMU's models say of themselves (target/arm).
_MIDRS = {
    "a64fx": 0x461F_0010,
    "cortex-a35": 0x411F_D040,
    "cortex-a53": 0x410F_D034,
    "cortex-a55": 0x412F_D050,
    "cortex-a57": 0x411F_D070,
    "cortex-a72": 0x410F_D083,
    "cortex-a76": 0x414F_D0B1,
    "cortex-a710": 0x412F_D471,
    "max": 0x000F_0510,
    "neoverse-n1": 0x414F_D0C1,
    "neoverse-n2": 0x410F_D493,
    "neoverse-v1": 0x411F_D402,
}


def midr_of_model(model: str) -> int:
    """The MIDR of a CPU as `--cpu` names it, with its properties or without; 0 where we do not know it."""
    name, *_properties = model.split(",")
    return _MIDRS.get(name, 0)


def processor_of(machine: Machine, vcpu: int) -> tuple[int, int]:
    """MPIDR and MIDR of a vCPU. Raises UnknownVcpuError."""
    affinity = machine.firmware.sdei.pe(vcpu).affinity
    return _RES1 | affinity, midr_of_model(str(machine.details().get("cpu", "")))
