# SPDX-License-Identifier: Apache-2.0
"""The call and its sub-functions: what a guest says and asks. All arguments are 32 bits."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..cpu import RegisterView
from ..sdei.model import Pe
from ..smccc.ids import argument
from ..smccc.router import Result
from . import abi
from .abi import CallResult, Control, Feature, SubFunction
from .state import PeFaults

if TYPE_CHECKING:
    from .service import AsyncPf

__all__ = ["Calls"]

_NOT_SUPPORTED = int(CallResult.NOT_SUPPORTED)
_INVALID = int(CallResult.INVALID_PARAMETER)
_SUCCESS = int(CallResult.SUCCESS)


class Calls:
    """The call over one :class:`AsyncPf`."""

    def __init__(self, service: AsyncPf) -> None:
        self._service = service
        settings = service.settings
        self._answers: dict[int, int] = {
            SubFunction.VERSION: abi.VERSION,
            SubFunction.SLOTS: abi.SLOTS,
            SubFunction.IRQ: settings.intid,
            SubFunction.FEATURES: int(Feature.REFUSE | Feature.RING),
        }
        if settings.sdei:
            self._answers[SubFunction.SDEI] = settings.event

    def call(self, pe: Pe, view: RegisterView) -> Result:
        """The function of the call."""
        x = view.x
        state, function = pe.async_pf, argument(x, 1)
        if state is None:
            return _NOT_SUPPORTED
        if function == SubFunction.ENABLE:
            return self._enable(pe, state, argument(x, 3) << 32 | argument(x, 2))
        if function == SubFunction.IRQ_ACK:
            self._service.acknowledge(pe, state)
            return _SUCCESS
        answer = self._answers.get(function)
        return _NOT_SUPPORTED if answer is None else (_SUCCESS, answer, 0, 0)

    def _enable(self, pe: Pe, state: PeFaults, control: int) -> int:
        """Take a new control word; one that does not enable is the same as 0."""
        if control & abi.CONTROL_FLAGS & ~abi.CONTROL_KNOWN:
            return _INVALID
        if not control & Control.ENABLED:
            control = 0
        if control == state.control:
            return int(CallResult.NOT_REQUIRED)
        if not control:
            self._service.pe_off(pe)
            return _SUCCESS
        settings = self._service.settings
        sdei = settings.sdei and self._service.registered(pe)
        if not fits(control, sdei) or not (sdei or settings.ppi):
            return _INVALID
        if not self._service.covers(control & ~abi.CONTROL_FLAGS, abi.block_size(control)):
            return _INVALID
        self._service.enable(pe, state, control, sdei)
        return _SUCCESS


def fits(control: int, sdei: bool) -> bool:
    """Whether a control word that enables can be, with that transport: wherever RAM is."""
    if control & Control.SEND_ALWAYS and not sdei:
        return False  # a PPI cannot interrupt a kernel that has masked it
    within = (control & ~abi.CONTROL_FLAGS) % abi.PAGE
    return within + abi.block_size(control) <= abi.PAGE
