# SPDX-License-Identifier: Apache-2.0
"""The handler state machine, DEN0054C 6.1, as one literal table.

A state is three bits, those of EVENT_STATUS, and its name shows them in
capitals: Running, Enabled, reGistered.

    reg   unregistered                 reG   registered
    rEG   enabled                      REG   enabled, handler running
    ReG   handler running, disabled    Reg   unregister pending

Enabled without registered does not exist: UNREGISTER clears both at once.
"""

from __future__ import annotations

import enum
from typing import NamedTuple

from .abi import HandlerStatus, Status

__all__ = ["State", "Op", "Cell", "TABLE", "CELLS", "to_markdown"]

_G = int(HandlerStatus.REGISTERED)
_E = int(HandlerStatus.ENABLED)
_R = int(HandlerStatus.RUNNING)

reg = 0
reG = _G
rEG = _E | _G
ReG = _R | _G
REG = _R | _E | _G
Reg = _R


class State(enum.IntEnum):
    """The six states; values are EVENT_STATUS's bits."""

    UNREGISTERED = reg
    REGISTERED = reG
    ENABLED = rEG
    UNREGISTER_PENDING = Reg
    REGISTERED_RUNNING = ReG
    ENABLED_RUNNING = REG


class Op(enum.IntEnum):
    """What can happen to a handler."""

    REGISTER = 0
    ENABLE = 1
    DISABLE = 2
    UNREGISTER = 3
    ROUTING_SET = 4
    RELEASE = 5
    DISPATCH = 6  # the PE enters the handler
    COMPLETE = 7  # COMPLETE, COMPLETE_AND_RESUME, or the PE was turned off
    CONTEXT = 8


class Cell(NamedTuple):
    """The next state, and what the call answers."""

    state: int
    status: int


_OK = int(Status.SUCCESS)
_DENIED = int(Status.DENIED)
_PENDING = int(Status.PENDING)

# fmt: off
TABLE: dict[tuple[int, Op], Cell] = {
    # unregistered
    (reg, Op.REGISTER):    Cell(reG, _OK),
    (reg, Op.ENABLE):      Cell(reg, _DENIED),
    (reg, Op.DISABLE):     Cell(reg, _DENIED),
    (reg, Op.UNREGISTER):  Cell(reg, _DENIED),
    (reg, Op.ROUTING_SET): Cell(reg, _DENIED),
    (reg, Op.RELEASE):     Cell(reg, _OK),
    (reg, Op.DISPATCH):    Cell(reg, _DENIED),
    (reg, Op.COMPLETE):    Cell(reg, _DENIED),
    (reg, Op.CONTEXT):     Cell(reg, _DENIED),
    # registered
    (reG, Op.REGISTER):    Cell(reG, _DENIED),
    (reG, Op.ENABLE):      Cell(rEG, _OK),
    (reG, Op.DISABLE):     Cell(reG, _OK),
    (reG, Op.UNREGISTER):  Cell(reg, _OK),
    (reG, Op.ROUTING_SET): Cell(reG, _OK),
    (reG, Op.RELEASE):     Cell(reG, _DENIED),
    (reG, Op.DISPATCH):    Cell(reG, _DENIED),
    (reG, Op.COMPLETE):    Cell(reG, _DENIED),
    (reG, Op.CONTEXT):     Cell(reG, _DENIED),
    # enabled: the only state that a pending event leaves by itself
    (rEG, Op.REGISTER):    Cell(rEG, _DENIED),
    (rEG, Op.ENABLE):      Cell(rEG, _OK),
    (rEG, Op.DISABLE):     Cell(reG, _OK),
    (rEG, Op.UNREGISTER):  Cell(reg, _OK),
    (rEG, Op.ROUTING_SET): Cell(rEG, _DENIED),
    (rEG, Op.RELEASE):     Cell(rEG, _DENIED),
    (rEG, Op.DISPATCH):    Cell(REG, _OK),
    (rEG, Op.COMPLETE):    Cell(rEG, _DENIED),
    (rEG, Op.CONTEXT):     Cell(rEG, _DENIED),
    # enabled, running
    (REG, Op.REGISTER):    Cell(REG, _DENIED),
    (REG, Op.ENABLE):      Cell(REG, _OK),
    (REG, Op.DISABLE):     Cell(ReG, _OK),
    (REG, Op.UNREGISTER):  Cell(Reg, _PENDING),
    (REG, Op.ROUTING_SET): Cell(REG, _DENIED),
    (REG, Op.RELEASE):     Cell(REG, _DENIED),
    (REG, Op.DISPATCH):    Cell(REG, _DENIED),
    (REG, Op.COMPLETE):    Cell(rEG, _OK),
    (REG, Op.CONTEXT):     Cell(REG, _OK),
    # disabled while running
    (ReG, Op.REGISTER):    Cell(ReG, _DENIED),
    (ReG, Op.ENABLE):      Cell(REG, _OK),
    (ReG, Op.DISABLE):     Cell(ReG, _OK),
    (ReG, Op.UNREGISTER):  Cell(Reg, _PENDING),
    (ReG, Op.ROUTING_SET): Cell(ReG, _DENIED),
    (ReG, Op.RELEASE):     Cell(ReG, _DENIED),
    (ReG, Op.DISPATCH):    Cell(ReG, _DENIED),
    (ReG, Op.COMPLETE):    Cell(reG, _OK),
    (ReG, Op.CONTEXT):     Cell(ReG, _OK),
    # unregister pending: nothing but completion leads out
    (Reg, Op.REGISTER):    Cell(Reg, _DENIED),
    (Reg, Op.ENABLE):      Cell(Reg, _DENIED),
    (Reg, Op.DISABLE):     Cell(Reg, _DENIED),
    (Reg, Op.UNREGISTER):  Cell(Reg, _PENDING),
    (Reg, Op.ROUTING_SET): Cell(Reg, _DENIED),
    (Reg, Op.RELEASE):     Cell(Reg, _DENIED),
    (Reg, Op.DISPATCH):    Cell(Reg, _DENIED),
    (Reg, Op.COMPLETE):    Cell(reg, _OK),
    (Reg, Op.CONTEXT):     Cell(Reg, _OK),
}
# fmt: on

# The same, indexed CELLS[op][state], for the calls; the two states that do not exist are None.
CELLS: tuple[tuple[Cell, ...], ...] = tuple(
    tuple(TABLE.get((state, op), Cell(state, _DENIED)) for state in range(8)) for op in Op
)


def to_markdown() -> str:
    """The table for the documentation; a test compares it with docs/states.md."""
    names = {reg: "reg", reG: "reG", rEG: "rEG", REG: "REG", ReG: "ReG", Reg: "Reg"}
    lines = ["| state | " + " | ".join(op.name for op in Op) + " |", "|---" * (len(Op) + 1) + "|"]
    for state, name in names.items():
        cells = []
        for op in Op:
            cell = TABLE[state, op]
            arrow = f"→ `{names[cell.state]}`" if cell.state != state else ""
            code = Status(cell.status).name if cell.status != _OK or not arrow else ""
            cells.append(f"{arrow} {code}".strip().replace("SUCCESS", "="))
        lines.append(f"| `{name}` {State(state).name.lower().replace('_', ' ')} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"
