# SPDX-License-Identifier: Apache-2.0
"""What a service is made of: only one that is made of the same can take its state over.

Registers of rows are counted by the events in order of number, so with another
table of events the same id would mean something else; and a guest that has
asked for the version, or learnt from an answer what the policy is, goes on
with what it knows.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from . import ids, values
from .capture import Dump, read_constants
from .ids import LAYOUT_VERSION, Impossible

if TYPE_CHECKING:
    from ..sdei.service import Sdei

__all__ = ["check_affinities", "check_layout", "check_origin"]

_HINT = "a state can be taken over by a VM that is made of the same"


def check_origin(sdei: Sdei, vm: Mapping[int, int], vcpus: int) -> None:
    """Raises Impossible where the VM's registers are of another service, or do not say of which."""
    check_layout(vm)
    if vcpus != len(sdei.pes):
        raise Impossible(ids.VCPUS.id, None, f"the state is of {vcpus} vCPUs, and there are {len(sdei.pes)}", _HINT)
    constants = read_constants(sdei)
    there, here = _definitions(vm), _definitions(constants)
    if there != here:
        raise Impossible(ids.EVENTS.id, None, _other_events(there, here), _HINT)
    for id, value in constants.items():
        if id != ids.LAYOUT.id:  # what an older one lacks is as after reset
            _compare(id, None, vm.get(id), value)


def check_affinities(sdei: Sdei, dump: Dump) -> None:
    """The same for what a vCPU's registers say of it."""
    for pe, registers in zip(sdei.pes, dump.vcpus, strict=True):
        _compare(ids.AFFINITY.id, pe.index, registers.get(ids.AFFINITY.id), pe.affinity)


def check_layout(vm: Mapping[int, int]) -> None:
    """The first thing to look at, since everything else depends on it. Raises Impossible."""
    layout = vm.get(ids.LAYOUT.id)
    major, minor = LAYOUT_VERSION
    if layout is None:
        raise Impossible(ids.LAYOUT.id, None, "it is missing: nothing says how the registers are to be read")
    found = f"{layout >> 16}.{layout & 0xFFFF}"
    if layout >> 16 != major or layout & 0xFFFF > minor:
        reason = f"the registers are of layout {found}, and this sdeivirt knows {major}.0 to {major}.{minor}"
        raise Impossible(ids.LAYOUT.id, None, reason, "use the sdeivirt that they come from, or a newer one")


def _compare(id: int, vcpu: int | None, found: int | None, here: int) -> None:
    if found is None:
        raise Impossible(id, vcpu, "it is missing: the state does not say what it was made of", _HINT)
    if found != here:
        raise Impossible(id, vcpu, f"it is {here:#x} here, and cannot be {found:#x}", _HINT)


def _definitions(registers: Mapping[int, int]) -> dict[int, int]:
    row = ids.DEFINITION.id >> 16
    return {id: value for id, value in registers.items() if id >> 16 == row}


def _other_events(theirs: dict[int, int], ours: dict[int, int]) -> str:
    """How two tables of events differ."""
    there, here = set(theirs.values()), set(ours.values())
    if extra := sorted(there - here, key=_number):
        number = _number(extra[0])
        same = [word for word in here if _number(word) == number]
        so = f"is {_describe(same[0])} here, and not {_describe(extra[0])}" if same else "is not defined here"
        return f"event {number:#x} of the state {so}"
    if lacking := sorted(here - there, key=_number):
        return f"event {_number(lacking[0]):#x} is defined here, and not in the state"
    return "the table of events is not in order"


def _number(word: int) -> int:
    return word & values.DEFINITION_NUMBER


def _describe(word: int) -> str:
    """A definition in words."""
    interrupt = word >> values.DEFINITION_INTERRUPT_SHIFT
    words = [
        "shared" if word & values.DEFINITION_SHARED else "private",
        "critical" if word & values.DEFINITION_CRITICAL else "normal",
        "signalable" if word & values.DEFINITION_SIGNALABLE else "",
        "dynamic" if word & values.DEFINITION_DYNAMIC else "",
        f"of interrupt {interrupt}" if interrupt else "",
    ]
    return ", ".join(filter(None, words))
