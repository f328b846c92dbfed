# SPDX-License-Identifier: Apache-2.0
"""For tests of machines: one boot for every kind, what it prints, which events it handled."""

from __future__ import annotations

import shutil
import threading
from typing import Any

import pytest

from sdeivirt.machine import ExitReason, MachineConfig, open_machine
from sdeivirt.machine.base import EngineOptions, Machine
from sdeivirt.machine.qemu.options import QemuOptions
from sdeivirt.sdei.model import Handler, Pe
from sdeivirt.sdei.observer import Observer

from .asm import assemble

__all__ = ["DEADLINE", "KINDS", "NEEDS_QEMU", "Console", "Until", "boot", "engine", "takes_every_event"]

DEADLINE = 30

NEEDS_QEMU = pytest.mark.skipif(
    shutil.which("qemu-system-aarch64") is None, reason="qemu-system-aarch64 is not installed"
)
KINDS = [pytest.param("unicorn"), pytest.param("qemu", marks=[NEEDS_QEMU, pytest.mark.qemu])]


def engine(kind: str) -> EngineOptions | None:
    """Options with which a machine has the features that test guests use: Armv8.1's atomics and PAN."""
    return QemuOptions(cpu="neoverse-n1") if kind == "qemu" else None


def boot(kind: str, body: str, **config: Any) -> Machine:
    """A machine of that kind with a guest from text, not started yet. One vCPU unless told otherwise."""
    machine = open_machine(kind, MachineConfig(**{"vcpus": 1, "engine": engine(kind), **config}))
    machine.load(assemble(body))
    return machine


class Until:
    """Waits for a number of completions of handlers."""

    def __init__(self, machine: Machine) -> None:
        self._condition = threading.Condition()
        self.completed = 0
        self.entered: list[tuple[int, int]] = []
        until = self

        class Watch(Observer):
            def delivered(self, pe: Pe, handler: Handler) -> None:
                until.entered.append((pe.index, handler.event.number))

            def completed(self, pe: Pe, handler: Handler, failed: bool) -> None:
                with until._condition:
                    until.completed += 1
                    until._condition.notify_all()

        machine.firmware.sdei.observe(Watch())

    def reaches(self, count: int) -> None:
        with self._condition:
            assert self._condition.wait_for(lambda: self.completed >= count, DEADLINE), f"{self.completed} of {count}"


class Console:
    """Collects output and waits for text."""

    def __init__(self, machine: Machine) -> None:
        self._condition = threading.Condition()
        self.text = ""
        machine.console = self._more

    def _more(self, data: bytes) -> None:
        with self._condition:
            self.text += data.decode()
            self._condition.notify_all()

    def shows(self, text: str) -> None:
        with self._condition:
            assert self._condition.wait_for(lambda: text in self.text, DEADLINE), self.text


def takes_every_event(machine: Machine, count: int) -> None:
    """Injects events one by one into the guest COUNTING, which notices what is done twice or not at all."""
    until, console = Until(machine), Console(machine)
    machine.start()
    console.shows("R\n")
    for i in range(count):
        machine.inject(0, 0)
        until.reaches(i + 1)
    machine.stop()
    outcome = machine.wait(10)
    assert outcome.reason is ExitReason.STOPPED
    assert not outcome.faults
    report = machine.status().events[0].handlers[0]
    assert (report.injected, report.delivered, report.completed) == (count, count, count)
