# SPDX-License-Identifier: Apache-2.0
"""Power state coordination for machines whose engine has none, Arm DEN0022 1.1.

The service keeps each PE's power state; what the states mean for an engine
(start here, stop, wake) goes through :class:`PowerControl`.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping
from typing import Protocol

from ..cpu import AFFINITY_MASK, RegisterView
from .ids import M32, NOT_SUPPORTED, Owner, argument
from .router import Caller, Disposition, Result, Service

__all__ = ["Psci", "Power", "PowerControl", "PsciResult"]

PSCI_VERSION = 0x8400_0000
CPU_SUSPEND = 0x8400_0001
CPU_OFF = 0x8400_0002
CPU_ON = 0x8400_0003
AFFINITY_INFO = 0x8400_0004
MIGRATE_INFO_TYPE = 0x8400_0006
SYSTEM_OFF = 0x8400_0008
SYSTEM_RESET = 0x8400_0009
PSCI_FEATURES = 0x8400_000A
SMC64 = 0x4000_0000

VERSION_1_1 = 0x0001_0001
SMCCC_VERSION = 0x8000_0000

POWER_STATE_POWERDOWN = 1 << 16
# Original format: state id 15:0, type 16, power level 25:24; the rest must be zero.
POWER_STATE_RESERVED = 0xFCFE_0000


class PsciResult(enum.IntEnum):
    """DEN0022 5.2.2."""

    SUCCESS = 0
    NOT_SUPPORTED = -1
    INVALID_PARAMETERS = -2
    DENIED = -3
    ALREADY_ON = -4
    ON_PENDING = -5
    INVALID_ADDRESS = -9


class Power(enum.IntEnum):
    """A PE's state; the numbers are AFFINITY_INFO's answers, DEN0022 5.7."""

    ON = 0
    OFF = 1
    ON_PENDING = 2


class PowerControl(Protocol):
    """What the service asks of the machine. All take the PE's index."""

    def cpu_on(self, index: int, entry: int, context_id: int) -> None:
        """Start a PE at `entry` (EL1h, everything masked, MMU off) with x0 = `context_id`."""

    def cpu_off(self, index: int) -> None:
        """Stop the calling PE."""

    def cpu_standby(self, index: int) -> None:
        """Let the calling PE wait as WFI does."""

    def cpu_powerdown(self, index: int, entry: int, context_id: int) -> bool:
        """Stop the calling PE until an event is pending for it, then start it as `cpu_on` does.

        False, and no power-down, when a wake-up is pending already.
        """

    def system_off(self) -> None: ...

    def system_reset(self) -> None: ...


class Psci:
    """The service and its state. `affinities[i]` is the affinity of PE i; `power[i]` its state."""

    def __init__(self, affinities: list[int], control: PowerControl, entry_ok: Callable[[int], bool]) -> None:
        self._index = {affinity: i for i, affinity in enumerate(affinities)}
        self._affinities = affinities
        self._control = control
        self._entry_ok = entry_ok
        self.power = [Power.OFF] * len(affinities)

    def reset(self) -> None:
        """As after power-up: every PE off."""
        self.power = [Power.OFF] * len(self.power)

    def started(self, index: int) -> None:
        """The machine tells that a PE runs: ON_PENDING becomes ON."""
        self.power[index] = Power.ON

    def service(self) -> Service:
        functions: Mapping[int, Callable[[Caller, RegisterView], Result]] = {
            PSCI_VERSION: self._version,
            CPU_SUSPEND: self._cpu_suspend,
            CPU_SUSPEND | SMC64: self._cpu_suspend,
            CPU_OFF: self._cpu_off,
            CPU_ON: self._cpu_on,
            CPU_ON | SMC64: self._cpu_on,
            AFFINITY_INFO: self._affinity_info,
            AFFINITY_INFO | SMC64: self._affinity_info,
            MIGRATE_INFO_TYPE: self._migrate_info_type,
            SYSTEM_OFF: self._system_off,
            SYSTEM_RESET: self._system_reset,
            PSCI_FEATURES: self._features,
        }
        self._functions = functions
        return Service(name="psci", owner=Owner.STANDARD, ranges=(range(0x20),), functions=functions)

    def _version(self, _caller: Caller, _view: RegisterView) -> Result:
        return VERSION_1_1

    def _features(self, _caller: Caller, view: RegisterView) -> Result:
        fid = view.x[1] & M32
        return 0 if fid in self._functions or fid == SMCCC_VERSION else NOT_SUPPORTED

    def _migrate_info_type(self, _caller: Caller, _view: RegisterView) -> Result:
        return 2  # no Trusted OS that would mind, DEN0022 5.9

    def _cpu_on(self, _caller: Caller, view: RegisterView) -> Result:
        x = view.x
        target = argument(x, 1)
        entry = argument(x, 2)
        index = self._index.get(target)
        if index is None:
            # Unlike SDEI's clients, PSCI's pass an exact affinity: reserved bits are an error.
            return PsciResult.INVALID_PARAMETERS
        if entry & 3 or not self._entry_ok(entry):
            return PsciResult.INVALID_ADDRESS
        if self.power[index] is Power.ON:
            return PsciResult.ALREADY_ON
        if self.power[index] is Power.ON_PENDING:
            return PsciResult.ON_PENDING
        self.power[index] = Power.ON_PENDING
        self._control.cpu_on(index, entry, argument(x, 3))
        return PsciResult.SUCCESS

    def _cpu_off(self, caller: Caller, _view: RegisterView) -> Result:
        self.power[caller.index] = Power.OFF
        self._control.cpu_off(caller.index)
        return Disposition.STOPPED

    def _cpu_suspend(self, caller: Caller, view: RegisterView) -> Result:
        x = view.x
        state = x[1] & M32
        if state & POWER_STATE_RESERVED:
            return PsciResult.INVALID_PARAMETERS
        if not state & POWER_STATE_POWERDOWN:
            self._control.cpu_standby(caller.index)
            return PsciResult.SUCCESS
        entry = argument(x, 2)
        if entry & 3 or not self._entry_ok(entry):
            return PsciResult.INVALID_ADDRESS
        if self._control.cpu_powerdown(caller.index, entry, argument(x, 3)):
            return Disposition.STOPPED
        return PsciResult.SUCCESS

    def _affinity_info(self, _caller: Caller, view: RegisterView) -> Result:
        x = view.x
        target = argument(x, 1)
        level = x[2] & M32
        if level > 3 or target & ~AFFINITY_MASK:
            return PsciResult.INVALID_PARAMETERS
        # A level above 0 asks for everything that shares the higher affinity fields.
        shift = (0, 8, 16, 32)[level]
        states = [
            power
            for affinity, power in zip(self._affinities, self.power, strict=True)
            if affinity >> shift == target >> shift
        ]
        if not states:
            return PsciResult.INVALID_PARAMETERS
        if Power.ON in states:
            return Power.ON
        return Power.ON_PENDING if Power.ON_PENDING in states else Power.OFF

    def _system_off(self, _caller: Caller, _view: RegisterView) -> Result:
        self._control.system_off()
        return Disposition.STOPPED

    def _system_reset(self, _caller: Caller, _view: RegisterView) -> Result:
        self._control.system_reset()
        return Disposition.STOPPED
