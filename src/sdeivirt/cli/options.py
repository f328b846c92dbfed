# SPDX-License-Identifier: Apache-2.0
"""Arguments that several verbs take, and how they are read."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from ..errors import UsageError

if TYPE_CHECKING:
    from cyclopts.completion import CompletionContext

    from ..machine import Machine
    from ..machine.base import EngineOptions
    from ..sdei import Policy

__all__ = [
    "EngineChoice",
    "Json",
    "MachineOptions",
    "Number",
    "OptionalSize",
    "PlaceOptions",
    "Seconds",
    "Size",
    "SuiteOptions",
    "VmName",
    "complete_files",
    "complete_uris",
    "disable_services",
    "policy_named",
]

_NUMBER = re.compile(r"0[xX][0-9a-fA-F]+|[0-9]+")
_SIZE = re.compile(rf"({_NUMBER.pattern})([KMG]?)(?:i?B)?", re.IGNORECASE)
_MACHINE = "unicorn"  # where nobody says which
_VCPUS = 2  # where nobody says how many
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


def _show_machine(value: str) -> str:
    return value or _MACHINE


def _show_vcpus(_value: object) -> str:
    return str(_VCPUS)


Number = Annotated[int, Parameter(converter=_number)]
Size = Annotated[int, Parameter(converter=_size, show_default=_show_size, metavar="SIZE")]
OptionalSize = Annotated[int | None, Parameter(converter=_size, show_default=False, metavar="SIZE")]
Seconds = Annotated[float, Parameter(converter=_seconds, metavar="SECONDS")]


def _complete_vms(_context: object) -> list[str]:
    from ..control.runtime import running_vms

    return [vm.name for vm in running_vms()]


def complete_files(start: str) -> list[str]:
    """The names of files that begin so; a directory ends in a slash."""
    directory, name = os.path.split(start)
    try:
        with os.scandir(directory or ".") as entries:
            return sorted(
                os.path.join(directory, entry.name) + "/" * entry.is_dir()
                for entry in entries
                if entry.name.startswith(name) and (name or not entry.name.startswith("."))
            )
    except OSError:
        return []


def complete_uris(context: CompletionContext) -> list[str]:
    """unix: and file: with the paths there are."""
    scheme, colon, path = context.incomplete.partition(":")
    if not colon:
        return ["tcp:", "unix:", "file:"]
    return [f"{scheme}:{each}" for each in complete_files(path)] if scheme in ("unix", "file") else []


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

    machine: Annotated[str, Parameter(completer=_complete_machines, show_default=_show_machine)] = ""
    policy: Annotated[str, Parameter(completer=_complete_policies)] = "kvm"
    seed: Number | None = None
    qemu: Path | None = None
    cpu: str | None = None
    poll: bool = False

    @property
    def kind(self) -> str:
        """The machine to build; `machine` is what was asked for, "" for no matter which."""
        return self.machine or _MACHINE

    def engine(self, **more: Any) -> EngineOptions | None:
        """The options of the chosen machine; `more` are further ones of the machine qemu.

        Raises UsageError where another machine is given options that are set.
        """
        given = {name: value for name, value in {"qemu": self.qemu, "cpu": self.cpu, **more}.items() if value}
        if self.poll:
            given["poll"] = True
        if self.kind != "qemu":
            if given:
                raise UsageError(f"machine {self.kind} takes no {_name_option(given)}", "add --machine qemu")
            return None
        from ..machine.qemu.options import QemuOptions

        return replace(QemuOptions(), **given)


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class PlaceOptions:
    """What a place says for itself into which a guest comes: all else comes with the guest.

    Parameters
    ----------
    machine
        Take a guest of this machine alone: unicorn or qemu.
    qemu
        The QEMU to run (machine qemu); SDEIVIRT_QEMU or the one on the path by default.
    poll
        Look for the guest's calls all the time: quicker, at the price of a core (machine qemu).
    """

    machine: Annotated[str, Parameter(completer=_complete_machines, show_default=False)] = ""
    qemu: Path | None = None
    poll: bool = False

    def check(self, **more: Any) -> None:
        """What can be found wrong before there is a guest. `more` as for :meth:`engine`. Raises SdeivirtError."""
        from ..machine import MACHINES

        if self.machine and self.machine not in MACHINES:
            raise UsageError(f"there is no machine {self.machine!r}", f"machines are {', '.join(MACHINES)}")
        given = self._given(more)
        if given and self.machine == "unicorn":
            option = _name_option(given)
            raise UsageError(f"machine unicorn takes no {option}", f"leave {option} out, or --machine unicorn")
        if self.machine == "qemu" or "qemu" in given:
            from ..machine.qemu.process import find_qemu

            find_qemu(self.qemu)

    def engine(self, machine: str, **more: Any) -> EngineOptions | None:
        """The options for a guest of that machine; `more` are further ones of machine qemu. Raises UsageError."""
        given = self._given(more)
        if self.machine not in ("", machine):
            raise UsageError(
                f"the guest is one of machine {machine}, and this is a place for machine {self.machine}",
                f"start the place without --machine, or with --machine {machine}",
            )
        if machine != "qemu":
            if given:
                option = _name_option(given)
                raise UsageError(f"this guest is one of machine {machine}: it takes no {option}", f"leave {option} out")
            return None
        from ..machine.qemu.options import QemuOptions

        return replace(QemuOptions(), **given)

    def _given(self, more: dict[str, Any]) -> dict[str, Any]:
        return {name: value for name, value in {"qemu": self.qemu, "poll": self.poll, **more}.items() if value}


def _name_option(given: dict[str, Any]) -> str:
    """One of the options that a machine does not take."""
    return "arguments for QEMU" if "arguments" in given else f"--{next(iter(given))}"


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

    vcpus: Annotated[int | None, Parameter(converter=_number, show_default=_show_vcpus)] = None
    conduit: Literal["hvc", "smc"] = "hvc"

    @property
    def vcpu_count(self) -> int:
        """How many to make; `vcpus` is what was asked for, None where nothing was."""
        return _VCPUS if self.vcpus is None else self.vcpus


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
