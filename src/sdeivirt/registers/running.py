# SPDX-License-Identifier: Apache-2.0
"""The registers of a machine, in plain types: for the control socket, and for programs that have the machine at hand.

Reading is possible at any time, and consistent. Setting is for a machine that
is paused: nothing that a guest is in the middle of changes under its hands.
The power states of vCPUs cannot be set, since the engine knows what they are.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from ..errors import RegisterError, StateError
from . import text
from .access import Registers
from .bitmaps import Bitmaps

if TYPE_CHECKING:
    from ..machine import Machine

__all__ = ["dump_registers", "get_register", "list_registers", "load_registers", "set_registers"]

_MEMBERS = {"register", "value", "vcpu"}


def list_registers(machine: Machine, vcpu: int | None = None) -> list[dict[str, Any]]:
    """The registers of a vCPU, or all: `id`, `name`, `size` in bits, `vcpu`, `value`, and what it says as `text`.

    Raises UnknownVcpuError.
    """
    with machine.lock:
        registers = Registers(machine.firmware.sdei)
        every = [None, *range(len(machine.firmware.pes))] if vcpu is None else [vcpu]
        found = [_tell(registers, id, each, value) for each in every for id, value in registers.read(each).items()]
        bitmaps = Bitmaps(machine.firmware.router)
        return ([_tell_bitmap(bitmaps, id) for id in bitmaps.read()] if vcpu is None else []) + found


def get_register(machine: Machine, register: str, vcpu: int | None = None) -> list[dict[str, Any]]:
    """One register as :func:`list_registers` tells it; one that each vCPU has, of all where none is named.

    Raises RegisterError, UnknownVcpuError.
    """
    with machine.lock:
        registers, bitmaps = Registers(machine.firmware.sdei), Bitmaps(machine.firmware.router)
        bitmap = bitmaps.parse(register)
        if bitmap is not None:
            return [_tell_bitmap(bitmaps, bitmap)]
        id = registers.find(register)
        if vcpu is not None or not registers.is_of_vcpu(id):
            every: Sequence[int | None] = [vcpu if registers.is_of_vcpu(id) else None]
        else:
            every = range(len(machine.firmware.pes))
        return [_tell(registers, id, each, registers.get(id, each)) for each in every]


def set_registers(machine: Machine, assignments: Sequence[object]) -> None:
    """Set registers of a paused machine, all or none: objects with `register`, `value` and perhaps `vcpu`.

    Raises RegisterError, UnknownVcpuError, StateError.
    """
    bitmaps = Bitmaps(machine.firmware.router)
    switches = []
    with _changing(machine) as registers:
        with registers.transaction() as transaction:
            for register, value, vcpu in map(_assignment, assignments):
                bitmap = bitmaps.parse(register)
                if bitmap is not None:
                    switches.append((bitmaps.check(bitmap, value, vcpu), value))
                else:
                    transaction.set(registers.find(register), value, vcpu)
        for switch, value in switches:
            switch.set(value)


def _assignment(each: object) -> tuple[str, int, int | None]:
    """Register, value and vCPU of an assignment. Raises RegisterError."""
    if not isinstance(each, dict) or not {"register", "value"} <= each.keys() <= _MEMBERS:
        raise RegisterError(
            "this is no register's new value",
            'one is {"register": "SDEI_PE_STATE", "value": "0x1", "vcpu": 0}',
        )
    vcpu = each.get("vcpu")
    if vcpu is not None and (not isinstance(vcpu, int) or isinstance(vcpu, bool)):
        raise RegisterError("a vCPU's index is a number", "leave it out for a register of the VM")
    return str(each["register"]), text.parse_value(each["value"]), vcpu


def dump_registers(machine: Machine) -> dict[str, Any]:
    """All state, as :mod:`.text` writes it."""
    with machine.lock:
        registers = Registers(machine.firmware.sdei)
        return text.to_json(registers, registers.dump())


def load_registers(machine: Machine, document: object) -> None:
    """Have a paused machine take over what :func:`dump_registers` gave. Raises RegisterError, StateError."""
    with _changing(machine) as registers:
        registers.load(text.from_json(registers, document))


def _tell_bitmap(bitmaps: Bitmaps, id: int) -> dict[str, Any]:
    value = bitmaps.read()[id]
    return {
        "id": f"{id:#x}",
        "name": bitmaps.name(id),
        "size": 64,
        "vcpu": None,
        "value": f"{value:#x}",
        "text": bitmaps.describe(id, value),
    }


def _tell(registers: Registers, id: int, vcpu: int | None, value: int) -> dict[str, Any]:
    register = registers.catalog.find(id)
    return {
        "id": f"{id:#x}",
        "name": register.name,
        "size": register.kind.size,
        "vcpu": vcpu,
        "value": f"{value:#x}",
        "text": text.describe(register, value),
    }


@contextmanager
def _changing(machine: Machine) -> Iterator[Registers]:
    """The registers of a paused machine, with its lock held; PEs look at what is new when they go on."""
    with machine.lock:
        if machine.leaving:
            raise StateError("the guest is being handed over", "set registers before or after, and where it then is")
        if machine.state != "paused":
            raise StateError(
                f"registers of a VM that is {machine.state} cannot be set", "pause it first: `--pause`, or QMP `stop`"
            )
        yield Registers(machine.firmware.sdei, fixed_power=True)
        kicks = machine.firmware.take_kicks()
        for pe in machine.firmware.pes:
            if pe.online and not pe.suspended:
                kicks |= pe.bit  # an engine may remember what has changed
    if kicks:
        machine.kick(kicks)
