# SPDX-License-Identifier: Apache-2.0
"""Arguments that several verbs take, and how they are read."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from ..errors import UsageError

if TYPE_CHECKING:
    from ..machine import Machine
    from ..machine.base import EngineOptions
    from ..sdei import Policy

__all__ = [
    "EngineChoice",
    "Json",
    "MachineOptions",
    "Number",
    "Seconds",
    "Size",
    "SuiteOptions",
    "VmName",
    "disable_services",
    "policy_named",
]

_NUMBER = re.compile(r"0[xX][0-9a-fA-F]+|[0-9]+")
_SIZE = re.compile(rf"({_NUMBER.pattern})([KMG]?)(?:i?B)?", re.IGNORECASE)
_UNITS = {"": 0, "K": 10, "M": 20, "G": 30}


def _integer(text: str) -> int:
    return int(text, 16 if text[:2] in ("0x", "0X") else 10)


def _number(_type: Any, tokens: Sequence[Any]) -> int:
    text: str = tokens[0].value
    if not _NUMBER.fullmatch(text) or len(text) > 100:
        raise ValueError(f"{text[:40]!r} is no number from 0 on; write it in decimal, or in hexadecimal with 0x")
    return _integer(text)


def _size(_type: Any, tokens: Sequence[Any]) -> int:
    text: str = tokens[0].value
    match = _SIZE.fullmatch(text)
    if not match or len(text) > 100:
        raise ValueError(f"{text[:40]!r} is no size; write bytes, or 64K, 64M, 1G")
    return _integer(match.group(1)) << _UNITS[match.group(2).upper()]


def _seconds(_type: Any, tokens: Sequence[Any]) -> float:
    text: str = tokens[0].value
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise ValueError(f"{text[:40]!r} is no time; write seconds, more than 0")
    return value


def _show_size(value: int) -> str:
    return f"{value >> 20}M"


Number = Annotated[int, Parameter(converter=_number)]
Size = Annotated[int, Parameter(converter=_size, show_default=_show_size)]
OptionalSize = Annotated[int | None, Parameter(converter=_size, show_default=False)]
Seconds = Annotated[float, Parameter(converter=_seconds)]


def _complete_vms(_context: object) -> list[str]:
    from ..control.runtime import running_vms

    return [vm.name for vm in running_vms()]


def _complete_machines(_context: object) -> list[str]:
    from ..machine import MACHINES

    return list(MACHINES)


def _complete_policies(_context: object) -> list[str]:
    from ..sdei.policy import POLICIES

    return list(POLICIES)


VmName = Annotated[str, Parameter(completer=_complete_vms)]
Json = Annotated[bool, Parameter(name="--json", help="Print one JSON document instead.")]


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class EngineChoice:
    """Which machine, and whose firmware.

    Parameters
    ----------
    machine
        Which engine runs the guest.
    policy
        Whose firmware to be like: kvm or tf-a.
    seed
        Schedule deterministically: the same seed gives the same run (machine unicorn).
    qemu
        The QEMU to run (machine qemu); SDEIVIRT_QEMU or the one on the path by default.
    cpu
        QEMU's CPU model, such as cortex-a72, neoverse-n1 or max,pauth-impdef=on (machine qemu).
    poll
        Look for the guest's calls all the time: quicker, at the price of a core (machine qemu).
    """

    machine: Annotated[str, Parameter(completer=_complete_machines)] = "unicorn"
    policy: Annotated[str, Parameter(completer=_complete_policies)] = "kvm"
    seed: Number | None = None
    qemu: Path | None = None
    cpu: str | None = None
    poll: bool = False

    def engine(self, **more: Any) -> EngineOptions | None:
        """The options of the chosen machine; `more` are further ones of the machine qemu.

        Raises UsageError where another machine is given options that are set.
        """
        given = {name: value for name, value in {"qemu": self.qemu, "cpu": self.cpu, **more}.items() if value}
        if self.poll:
            given["poll"] = True
        if self.machine != "qemu":
            if given:
                what = "arguments for QEMU" if "arguments" in given else f"--{next(iter(given))}"
                raise UsageError(f"machine {self.machine} takes no {what}", "add --machine qemu")
            return None
        from ..machine.qemu.options import QemuOptions

        return replace(QemuOptions(), **given)


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class MachineOptions(EngineChoice):
    """What the machine is made of.

    Parameters
    ----------
    vcpus
        How many vCPUs, 1 to 512; 1 to 64 on machine qemu.
    conduit
        The instruction that the device tree tells the guest to call with; both work.
    """

    vcpus: Number = 2
    conduit: Literal["hvc", "smc"] = "hvc"


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class SuiteOptions(EngineChoice):
    """What the machine is made of that the conformance suite runs on.

    Parameters
    ----------
    policy
        Whose firmware to be like: kvm (if nothing is said) or tf-a. With
        --from-log: whose deviations are known; none if nothing is said.
    vcpus
        How many vCPUs; the suite uses up to 8, and needs 3 for all tests.
    conduit
        The instruction that the guest calls with; both are tested in turn.
    """

    policy: Annotated[str, Parameter(completer=_complete_policies, show_default=False)] = ""
    vcpus: Number = 4
    conduit: Literal["hvc", "smc", "both"] = "both"


def policy_named(name: str) -> Policy:
    """The preset of that name. Raises UsageError."""
    from ..sdei.policy import POLICIES

    if name not in POLICIES:
        raise UsageError(f"there is no policy {name!r}", f"policies are {', '.join(POLICIES)}")
    return POLICIES[name]


def disable_services(machine: Machine, names: Sequence[str]) -> None:
    """Clear the bits of services, such as std-sdei. Raises UsageError for one that is not there."""
    bitmaps = machine.firmware.router.bitmaps.values()
    places = {name: (bitmap, bit) for bitmap in bitmaps for bit, name in bitmap.names.items()}
    for name in ",".join(names).split(",") if names else ():
        if name not in places:
            raise UsageError(f"there is no service {name!r} to disable", f"services are {', '.join(places)}")
        bitmap, bit = places[name]
        bitmap.set(bitmap.value & ~(1 << bit))
