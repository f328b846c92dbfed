# SPDX-License-Identifier: Apache-2.0
"""What PSCI decides, carried out: the monitor of the calling vCPU acts before its guest goes on."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...smccc.psci import Power
from ..base import ExitReason
from .layout import Action, Mailbox

if TYPE_CHECKING:
    from .machine import QemuMachine

__all__ = ["QemuPower"]


class QemuPower:
    """The :class:`~sdeivirt.smccc.psci.PowerControl` of a machine; called with its lock held, inside of a request."""

    def __init__(self, machine: QemuMachine) -> None:
        self._machine = machine

    def _act(self, action: Action, argument: int = 0) -> None:
        calling = self._machine.calling
        assert calling is not None
        calling.act(action, argument)

    def cpu_on(self, index: int, entry: int, context_id: int) -> None:
        words = self._machine.vcpus[index].words
        words[Mailbox.BOOT_PC] = entry
        words[Mailbox.BOOT_X0] = context_id
        self._act(Action.CPU_ON, self._machine.firmware.pes[index].affinity)

    def cpu_off(self, index: int) -> None:
        machine = self._machine
        pe = machine.firmware.pes[index]
        machine.firmware.sdei.pe_off(pe)
        machine.kicker.arrived(pe.bit)
        if machine.flusher is not None:
            machine.flusher.gone()
        self._act(Action.CPU_OFF)
        if all(power is Power.OFF for power in machine.firmware.psci.power):
            machine.end(ExitReason.ALL_OFF)

    def cpu_standby(self, index: int) -> None:
        firmware = self._machine.firmware
        if firmware.sdei.delivery.next(firmware.pes[index]) is None:
            self._act(Action.STANDBY)

    def cpu_powerdown(self, index: int, entry: int, context_id: int) -> bool:
        """A standby instead, which PSCI allows: QEMU has no power-down that wakes again. DEN0022 5.4."""
        self.cpu_standby(index)
        return False

    def system_off(self) -> None:
        self._act(Action.PARK)
        self._machine.end(ExitReason.POWER_OFF)

    def system_reset(self) -> None:
        self._act(Action.PARK)
        self._machine.reset()
