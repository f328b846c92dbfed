# SPDX-License-Identifier: Apache-2.0
"""The registers' ids, sizes and names, and where each of them lives.

An id is made as KVM makes those of KVM_GET_ONE_REG (Linux, asm/kvm.h of arm64):

    63:56  0x60, AArch64         27:16  coprocessor
    55:52  log2 of the bytes     15:0   index

Coprocessor 0x0014 is KVM's firmware. What the v7 series defines there has its
ids, sizes and meaning (patch 20, "Documentation: Add document for SDEI");
what it lacks stands in coprocessors 0x05d0 to 0x05df, which KVM does not use.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..sdei.model import Event

if TYPE_CHECKING:
    from ..sdei.service import Sdei

__all__ = ["KINDS", "LAYOUT_VERSION", "MAX_EVENTS", "Catalog", "Impossible", "Kind", "Register", "Scope", "standard"]

# Major and minor. A register more is a minor; a register that means something else is a major.
LAYOUT_VERSION = (1, 1)  # 1.1 has those of asynchronous page faults
MAX_EVENTS = 1 << 16

_ARM64 = 0x6000_0000_0000_0000
_KVM_FIRMWARE = 0x0014


class Scope(enum.Enum):
    """Whose register it is: the VM's, each vCPU's, or each event's, of the VM if shared and of each vCPU if private."""

    VM = "VM"
    VCPU = "vCPU"
    EVENT = "event"


@dataclass(frozen=True, slots=True, eq=False)
class Kind:
    """A register, or a row of them with one for each event, whose index in order of number is added to `id`.

    `size` in bits. `reset` is what it reads after reset, where that is always the same.
    """

    name: str
    id: int
    size: int
    scope: Scope
    indexed: bool = False
    reset: int = 0


def _make(
    name: str,
    size: int,
    coprocessor: int,
    index: int,
    scope: Scope = Scope.VCPU,
    indexed: bool = False,
    reset: int = 0,
) -> Kind:
    number = _ARM64 | ((size // 8).bit_length() - 1) << 52 | coprocessor << 16 | index
    return Kind(name, number, size, scope, indexed, reset)


# KVM's, v7.
EVENT_HANDLER = tuple(_make(f"SDEI_EVENT_HANDLER_{n}", 128, _KVM_FIRMWARE, 4 + n) for n in range(4))
EVENT_REGISTERED = _make("SDEI_EVENT_REGISTERED", 64, _KVM_FIRMWARE, 8)
EVENT_ENABLED = _make("SDEI_EVENT_ENABLED", 64, _KVM_FIRMWARE, 9)
EVENT_RUNNING = _make("SDEI_EVENT_RUNNING", 64, _KVM_FIRMWARE, 0xA)
EVENT_PENDING = _make("SDEI_EVENT_PENDING", 64, _KVM_FIRMWARE, 0xB)
EVENT_CONTEXT = _make("SDEI_EVENT_CONTEXT", 2048, _KVM_FIRMWARE, 0xC)
PE_STATE = _make("SDEI_PE_STATE", 64, _KVM_FIRMWARE, 0xD, reset=1)

# Ours, of the VM.
LAYOUT = _make("SDEI_LAYOUT", 64, 0x5D0, 0, Scope.VM)
VERSION = _make("SDEI_VERSION", 64, 0x5D0, 1, Scope.VM)
POLICY = _make("SDEI_POLICY", 64, 0x5D0, 2, Scope.VM)
VCPUS = _make("SDEI_VCPUS", 64, 0x5D0, 3, Scope.VM)
EVENTS = _make("SDEI_EVENTS", 64, 0x5D0, 4, Scope.VM)
LAST_OFFERED = _make("SDEI_LAST_OFFERED", 64, 0x5D0, 5, Scope.VM)
DEFINITION = _make("SDEI_DEFINITION", 64, 0x5D1, 0, Scope.VM, indexed=True)
BINDING = _make("SDEI_BINDING", 64, 0x5D2, 0, Scope.VM, indexed=True)

# Ours, of a handler.
HANDLER = _make("SDEI_HANDLER", 128, 0x5D3, 0, Scope.EVENT, indexed=True)
STATE = _make("SDEI_STATE", 64, 0x5D4, 0, Scope.EVENT, indexed=True)
COUNTS = _make("SDEI_COUNTS", 256, 0x5D5, 0, Scope.EVENT, indexed=True)

# Ours, of a vCPU.
AFFINITY = _make("SDEI_AFFINITY", 64, 0x5D8, 0)
POWER = _make("SDEI_POWER", 64, 0x5D8, 1)
CRITICAL_CONTEXT = _make("SDEI_CRITICAL_CONTEXT", 2048, 0x5D8, 2)
ASYNC_PF_CONTROL = _make("SDEI_ASYNC_PF_CONTROL", 64, 0x5D8, 3)
ASYNC_PF_INTERRUPT = _make("SDEI_ASYNC_PF_INTERRUPT", 64, 0x5D8, 4)
ASYNC_PF_STATE = _make("SDEI_ASYNC_PF_STATE", 64, 0x5D8, 5)
ASYNC_PF_RING = _make("SDEI_ASYNC_PF_RING", 64, 0x5D8, 6)
ASYNC_PF_TOKENS = _make("SDEI_ASYNC_PF_TOKENS", 2048, 0x5D8, 7)
ASYNC_PF_READY = _make("SDEI_ASYNC_PF_READY", 2048, 0x5D8, 8)
ASYNC_PF_COUNTS = _make("SDEI_ASYNC_PF_COUNTS", 256, 0x5D8, 9)
ASYNC_PF = (
    ASYNC_PF_CONTROL,
    ASYNC_PF_INTERRUPT,
    ASYNC_PF_STATE,
    ASYNC_PF_RING,
    ASYNC_PF_TOKENS,
    ASYNC_PF_READY,
    ASYNC_PF_COUNTS,
)

KINDS = (
    *EVENT_HANDLER,
    EVENT_REGISTERED,
    EVENT_ENABLED,
    EVENT_RUNNING,
    EVENT_PENDING,
    EVENT_CONTEXT,
    PE_STATE,
    LAYOUT,
    VERSION,
    POLICY,
    VCPUS,
    EVENTS,
    LAST_OFFERED,
    DEFINITION,
    BINDING,
    HANDLER,
    STATE,
    COUNTS,
    AFFINITY,
    POWER,
    CRITICAL_CONTEXT,
    *ASYNC_PF,
)
_ROWS = {kind.id >> 16: kind for kind in KINDS if kind.indexed}
_SINGLE = {kind.id: kind for kind in KINDS if not kind.indexed}
_BY_NAME = {kind.name: kind for kind in KINDS}


class Impossible(Exception):
    """A value that a register cannot have, alone or beside others; told on as an error that says where it came from."""

    def __init__(self, id: int, vcpu: int | None, reason: str, hint: str = "") -> None:
        super().__init__(reason)
        self.id = id
        self.vcpu = vcpu
        self.reason = reason
        self.hint = hint


@dataclass(frozen=True, slots=True)
class Register:
    """A register of a service. `of_vcpu`: each vCPU has it; `event` is the one that a row's register is of."""

    id: int
    name: str
    kind: Kind
    of_vcpu: bool
    event: Event | None


def standard(event: Event) -> bool:
    """Whether KVM's registers hold the event's handler and state: a private event of number 0 to 3."""
    return event.number < len(EVENT_HANDLER) and not event.shared


class Catalog:
    """The registers that a service has."""

    def __init__(self, sdei: Sdei) -> None:
        self._events = sdei.events
        self._by_number = {event.number: event for event in sdei.events}
        self.standard = {event.number: event for event in sdei.events[: len(EVENT_HANDLER)] if standard(event)}

    def find(self, id: int, vcpu: int | None = None) -> Register:
        """The register of an id. Raises Impossible, with `vcpu` in it, where there is none."""
        kind = _SINGLE.get(id)
        if kind is not None:
            return Register(id, kind.name, kind, kind.scope is Scope.VCPU, None)
        kind, index = _ROWS.get(id >> 16), id & 0xFFFF
        if kind is None:
            raise Impossible(id, vcpu, "there is no such register")
        if index >= len(self._events):
            raise Impossible(id, vcpu, f"there are {len(self._events)} events, and this is number {index} of the table")
        event = self._events[index]
        if kind is BINDING and not event.dynamic:
            raise Impossible(id, vcpu, f"event {event.number:#x} is not dynamic: nothing is bound to it")
        if kind is HANDLER and standard(event):
            raise Impossible(
                id, vcpu, f"the handler of event {event.number:#x} is in {EVENT_HANDLER[event.number].name}"
            )
        of_vcpu = kind.scope is Scope.EVENT and not event.shared
        return Register(id, f"{kind.name}.{event.number:#x}", kind, of_vcpu, event)

    def name(self, id: int) -> str:
        """The register's name, and its id; the id alone for one that does not exist."""
        try:
            return f"{self.find(id).name} ({id:#x})"
        except Impossible:
            return f"{id:#x}"

    def parse(self, text: str) -> int | None:
        """The id of a name, SDEI_PE_STATE or SDEI_STATE.0x40000010, or of digits; None if it is neither."""
        number = _number(text)
        if number is not None:
            return number
        name, dot, event = text.upper().partition(".")
        kind = _BY_NAME.get(name)
        if kind is None or kind.indexed != bool(dot):
            return None
        if not kind.indexed:
            return kind.id
        found = self._by_number.get(-1 if (number := _number(event)) is None else number)
        return None if found is None else kind.id | found.index


def _number(text: str) -> int | None:
    """A number in hexadecimal with 0x, or in decimal."""
    if len(text) > 20 or not text.isascii():
        return None
    try:
        return int(text, 16 if text[:2] in ("0x", "0X") else 10) if text[:1].isdigit() and "_" not in text else None
    except ValueError:
        return None
