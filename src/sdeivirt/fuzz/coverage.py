# SPDX-License-Identifier: Apache-2.0
"""What a campaign is to reach: every cell of the state table, and every result of every call."""

from __future__ import annotations

from ..sdei.states import TABLE, Op, State
from .judge import CALLS, DENIED, INVALID, NOT_SUPPORTED, OUT_OF_RESOURCE, PENDING, SUCCESS
from .plan import Coverage

__all__ = ["CELLS", "CODES", "OTHER", "SDEI_CODES", "missing", "reached"]

CELLS = frozenset((int(state), int(op)) for state, op in TABLE)

OTHER = 0  # stands for all function ids of other services, and those that nobody has

# The results of each call, the same under both policies. SUCCESS stands for any result that is no error.
_OK_OR_INVALID = (SUCCESS, INVALID)
_ANY_OF_THREE = (SUCCESS, INVALID, DENIED)
_RESULTS = {
    "version": (SUCCESS,),
    "event_register": _ANY_OF_THREE,
    "event_enable": _ANY_OF_THREE,
    "event_disable": _ANY_OF_THREE,
    "event_context": _ANY_OF_THREE,
    "event_complete": (SUCCESS, DENIED),
    "event_complete_and_resume": (SUCCESS, DENIED),
    "event_unregister": (*_ANY_OF_THREE, PENDING),
    "event_status": _OK_OR_INVALID,
    "event_get_info": _ANY_OF_THREE,
    "event_routing_set": _ANY_OF_THREE,
    "pe_mask": (SUCCESS,),
    "pe_unmask": (SUCCESS,),
    "interrupt_bind": (*_OK_OR_INVALID, OUT_OF_RESOURCE),
    "interrupt_release": _ANY_OF_THREE,
    "event_signal": _OK_OR_INVALID,
    "features": _OK_OR_INVALID,
    "private_reset": (SUCCESS, DENIED),
    "shared_reset": (SUCCESS, DENIED),
}
SDEI_CODES = frozenset((function, code) for function, name in CALLS.items() for code in _RESULTS[name])

# PSCI's: INVALID_PARAMETERS, ALREADY_ON, ON_PENDING, INVALID_ADDRESS.
_SUSPEND, _ON, _AFFINITY_INFO = (0, -2, -9), (0, -2, -4, -5, -9), (0, -2)
_POWER = {
    0x8400_0000: (SUCCESS,),
    0x8400_0001: _SUSPEND,
    0xC400_0001: _SUSPEND,
    0x8400_0002: (SUCCESS,),
    0x8400_0003: _ON,
    0xC400_0003: _ON,
    0x8400_0004: _AFFINITY_INFO,
    0xC400_0004: _AFFINITY_INFO,
    0x8400_0006: (SUCCESS,),
    0x8400_0008: (SUCCESS,),
    0x8400_0009: (SUCCESS,),
    0x8400_000A: (SUCCESS, NOT_SUPPORTED),
    OTHER: (SUCCESS, NOT_SUPPORTED, INVALID),
}
# All that a campaign on the core can reach.
CODES = SDEI_CODES | {(function, code) for function, codes in _POWER.items() for code in codes}

_CODE_NAMES = {0: "SUCCESS", -1: "NOT_SUPPORTED", -2: "INVALID_PARAMETERS", -3: "DENIED", -5: "PENDING"}
_CODE_NAMES[-10] = "OUT_OF_RESOURCE"


def wanted(machine: str) -> frozenset[tuple[int, int]]:
    """The results that a campaign on a machine is to reach."""
    return CODES if machine == "core" else SDEI_CODES


def reached(coverage: Coverage, machine: str) -> tuple[int, int, int, int]:
    """Cells reached and all cells; results reached and all results."""
    codes = wanted(machine)
    return len(coverage.cells & CELLS), len(CELLS), len(coverage.codes & codes), len(codes)


def missing(coverage: Coverage, machine: str) -> list[str]:
    """What was not reached, by name."""
    cells = sorted(CELLS - coverage.cells)
    codes = sorted(wanted(machine) - coverage.codes)
    return [f"{Op(op).name} of a handler that is {_state(state)}" for state, op in cells] + [
        f"{_code(function, code)} of {CALLS[function].upper() if function in CALLS else f'function {function:#x}'}"
        for function, code in codes
    ]


def _state(state: int) -> str:
    return State(state).name.lower().replace("_", " ")


def _code(function: int, code: int) -> str:
    """A code's name; PSCI has other names for some."""
    return _CODE_NAMES.get(code, str(code)) if function in CALLS else str(code)
