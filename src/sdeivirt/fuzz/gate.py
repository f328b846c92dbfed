# SPDX-License-Identifier: Apache-2.0
"""Lets the embedded machine run a few slices at a time, so that all that happens depends on the seed alone."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from ..machine.unicorn import UnicornMachine

__all__ = ["Gate"]

DEADLINE = 60.0  # seconds; nothing takes this long but a machine whose vCPUs are all asleep
CATCHING = 200  # slices
SHORT_SLICES = (1, 3, 7, 11, 20, 30)
SLICES = (1, 7, 30, 100, 300, 1000)  # instructions; once around a waiting context takes some 180


class Gate:
    """Stands before every slice of a machine that has a seed, and has not been started."""

    def __init__(self, machine: UnicornMachine) -> None:
        self._machine = machine
        self._condition = threading.Condition()
        self._credit = 0
        self._waits = False
        self._open = False
        self._caught: Callable[[int], bool] | None = None
        self.next = 0  # the vCPU whose slice begins when the gate opens
        machine.choose_slices(SLICES)
        machine.on_slice = self._slice

    def _slice(self, vcpu: int, _pc: int) -> None:
        machine = self._machine
        with self._condition:
            self.next = vcpu
            if self._caught is not None and self._caught(vcpu):
                self._credit = 0
            if self._credit:
                self._credit -= 1
                return
            self._waits = True
            self._condition.notify_all()
            # A pause goes through, or it would wait for us for ever.
            while not (self._credit or self._open or machine.waited_for):
                self._condition.wait(0.001)
            self._waits = False
            self._credit = max(self._credit - 1, 0)

    def grant(self, slices: int, caught: Callable[[int], bool] | None = None) -> bool:
        """Run some slices; returns when they have ended, or the machine has. False: no vCPU runs.

        `caught(vcpu)`, with the vCPU that is next, ends that early. It is called on the machine's thread.
        """
        with self._condition:
            self._credit = slices
            self._caught = caught
            self._waits = False
            self._condition.notify_all()
            end = time.monotonic() + DEADLINE
            while not (self._waits and not self._credit) and self._machine.state != "stopped":
                if time.monotonic() > end:
                    return False
                self._condition.wait(0.05)
            self._caught = None
        return True

    def catch(self, vcpu: int, there: Callable[[int], bool], goes_on: bool) -> bool:
        """Run until the vCPU is `there` (told by PC), or for some slices. False: no vCPU runs.

        Kicks are served after the next slice; `goes_on` says whether that is to be the vCPU's own.
        """
        machine = self._machine
        if machine.state != "running":
            return True

        def caught(following: int) -> bool:
            return (following == vcpu) == goes_on and there(machine.vcpus[vcpu].pc)

        machine.choose_slices(SHORT_SLICES)
        runs = caught(self.next) or self.grant(CATCHING, caught)
        machine.choose_slices(SLICES)
        return runs

    def open(self) -> None:
        """Run freely from now on."""
        with self._condition:
            self._open = True
            self._condition.notify_all()
