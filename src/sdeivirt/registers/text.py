# SPDX-License-Identifier: Apache-2.0
"""Registers for people, and as JSON.

    {"vm":    {"SDEI_LAYOUT": "0x10000", "SDEI_STATE.0x40000012": "0x3", ...},
     "vcpus": [{"SDEI_AFFINITY": "0x0", "SDEI_EVENT_REGISTERED": "0x1", ...}, ...]}

A register may also stand there by its id, and a value may be a number.
"""

from __future__ import annotations

import re
from typing import Any

from ..cpu import PSTATE_DAIF, PSTATE_MODE
from ..errors import RegisterError
from ..sdei.model import bits
from . import asyncpf, ids, values
from .access import Registers
from .capture import Dump
from .ids import Impossible, Kind, Register
from .origin import check_layout
from .values import M64

__all__ = ["describe", "from_json", "parse_value", "to_json"]

_VALUE = re.compile(r"0[xX][0-9a-fA-F]{1,512}|[0-9]{1,20}")
_SHAPE = 'a dump is {"vm": {REGISTER: VALUE, ...}, "vcpus": [{REGISTER: VALUE, ...}, ...]}'
_MODES = {0b00000: "EL0t", 0b00100: "EL1t", 0b00101: "EL1h", 0b10000: "EL0, AArch32"}
_BITMAPS = (ids.EVENT_REGISTERED, ids.EVENT_ENABLED, ids.EVENT_RUNNING, ids.EVENT_PENDING)
_STATUS = ("registered", "enabled", "running", "pending", "relative")
_POWER = ("online", "suspended", "wakeable")
_COUNTS = ("coalesced", "dropped", "completed", "failed")
_DEFINITION = ("shared", "critical", "signalable", "dynamic")  # bits 32 and on


def parse_value(value: object) -> int:
    """A value as it is written: a number from 0 on, or one in a string, hexadecimal with 0x. Raises RegisterError."""
    if isinstance(value, str) and _VALUE.fullmatch(value):
        return int(value, 16 if value[:2] in ("0x", "0X") else 10)
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    shown = (value if isinstance(value, str) else repr(value))[:40]
    hint = "write it in decimal, up to 20 digits, or in hexadecimal with 0x, up to 512"
    raise RegisterError(f"{shown!r} is no register's value", hint)


# -- JSON


def to_json(registers: Registers, dump: Dump) -> dict[str, Any]:
    """A dump as a JSON object."""

    def written(named: dict[int, int]) -> dict[str, str]:
        return {registers.catalog.find(id).name: f"{value:#x}" for id, value in named.items()}

    return {"vm": written(dump.vm), "vcpus": [written(vcpu) for vcpu in dump.vcpus]}


def from_json(registers: Registers, document: object) -> Dump:
    """The dump that a JSON object is. Raises RegisterError."""
    if not isinstance(document, dict) or document.keys() != {"vm", "vcpus"} or not isinstance(document["vcpus"], list):
        raise RegisterError("this is no dump of registers", _SHAPE)
    if isinstance(document["vm"], dict):
        _check_layout(document["vm"])

    def read(named: object) -> dict[int, int]:
        if not isinstance(named, dict):
            raise RegisterError("this is no dump of registers", _SHAPE)
        found: dict[int, int] = {}
        for name, value in named.items():
            id = registers.find(name)
            if id in found:
                raise RegisterError(f"register {registers.catalog.name(id)} stands twice in the dump")
            found[id] = parse_value(value)
        return found

    return Dump(read(document["vm"]), [read(vcpu) for vcpu in document["vcpus"]])


def _check_layout(named: dict[str, Any]) -> None:
    """A newer layout is told of before a register that only that one has."""
    layout = named.get(ids.LAYOUT.name, named.get(f"{ids.LAYOUT.id:#x}"))
    try:
        check_layout({} if layout is None else {ids.LAYOUT.id: parse_value(layout)})
    except Impossible as impossible:
        raise RegisterError(
            f"register {ids.LAYOUT.name} ({ids.LAYOUT.id:#x}): {impossible.reason}", impossible.hint
        ) from None


# -- for people


def describe(register: Register, value: int) -> str:
    """What a value says, in words."""
    kind = register.kind
    if kind in ids.EVENT_HANDLER or kind is ids.HANDLER:
        return f"entry {value & M64:#x}, argument {value >> 64:#x}" if value else "-"
    if kind in _BITMAPS:
        return ", ".join(f"event {number:#x}" for number in bits(value)) or "none"
    if kind is ids.EVENT_CONTEXT or kind is ids.CRITICAL_CONTEXT:
        return _context(value) if value else "-"
    if kind is ids.COUNTS:
        counts = (value >> 64 * i & M64 for i in range(4))
        return ", ".join(f"{count} {name}" for count, name in zip(counts, _COUNTS, strict=True))
    return asyncpf.describe(kind, value) if kind in ids.ASYNC_PF else _word(kind, value)


def _named(value: int, names: tuple[str, ...]) -> list[str]:
    return [name for bit, name in enumerate(names) if value >> bit & 1]


def _word(kind: Kind, value: int) -> str:
    if kind is ids.PE_STATE:
        return "masked" if value else "unmasked"
    if kind is ids.POWER:
        return ", ".join(_named(value, _POWER)) or "off"
    if kind is ids.STATE:
        words = _named(value, _STATUS)
        if value & values.STATE_RM_PE:
            words.append(f"routed to vCPU {value >> values.STATE_TARGET_SHIFT & values.STATE_VCPU}")
        # A private event's register is the vCPU's own, and need not say where it runs.
        if where := value >> values.STATE_RUNS_ON_SHIFT & values.STATE_VCPU:
            words.append(f"runs on vCPU {where}")
        return ", ".join(words) or "-"
    if kind is ids.DEFINITION:
        words = [f"event {value & values.DEFINITION_NUMBER:#x}", *_named(value >> 32, _DEFINITION)]
        interrupt = value >> values.DEFINITION_INTERRUPT_SHIFT
        return ", ".join([*words, f"interrupt {interrupt}"] if interrupt else words)
    if kind is ids.POLICY:
        return ", ".join(_named(value, values.POLICY_BITS)) or "none"
    if kind is ids.LAYOUT:
        return f"{value >> 16}.{value & 0xFFFF}"
    if kind is ids.VERSION:
        return f"{value >> 48 & 0x7FFF}.{value >> 32 & 0xFFFF}, vendor {value & 0xFFFF_FFFF:#x}"
    if kind is ids.BINDING:
        return f"interrupt {value}" if value else "free"
    if kind is ids.LAST_OFFERED:
        return f"vCPU {value - 1}" if value else "-"
    return f"{value:#x}" if kind is ids.AFFINITY else str(value)


def _context(value: int) -> str:
    pstate = values.pstate_of_context(value)
    mode = _MODES.get(pstate & PSTATE_MODE, "?")
    daif = "".join(letter for letter, bit in zip("DAIF", (9, 8, 7, 6), strict=True) if pstate & PSTATE_DAIF & 1 << bit)
    return f"PC {value & M64:#x}, PSTATE {pstate:#x} ({mode}{', ' + daif if daif else ''}), x0 {value >> 128 & M64:#x}"
