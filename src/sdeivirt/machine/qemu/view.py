# SPDX-License-Identifier: Apache-2.0
"""The registers of a stopped vCPU: its mailbox is the window, so that nothing is ever copied."""

from __future__ import annotations

from ...cpu import CONTEXT_REGISTERS, WINDOW_SIZE
from .layout import Mailbox

__all__ = ["MailboxView"]


class MailboxView:
    """The :class:`~sdeivirt.cpu.RegisterView` of a mailbox (a memoryview of format "Q")."""

    def __init__(self, words: memoryview) -> None:
        self._words = words
        self.x = words[:WINDOW_SIZE]
        self.context = words[:CONTEXT_REGISTERS].cast("B")

    def fetch_all(self) -> None:
        """Nothing: the monitor has saved everything."""

    def fetch_rest(self) -> None:
        """Nothing."""

    def flush_result(self) -> None:
        """Nothing: the monitor restores everything."""

    def flush_context(self) -> None:
        """Nothing; at EL2 both stack pointers are banked, so PSTATE.SPSel alone chooses."""

    def vbar_el1(self) -> int:
        vbar: int = self._words[Mailbox.VBAR]
        return vbar

    def set_exception_return(self, elr: int, spsr: int) -> None:
        self._words[Mailbox.ELR1] = elr
        self._words[Mailbox.SPSR1] = spsr
