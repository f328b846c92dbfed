# SPDX-License-Identifier: Apache-2.0
"""For tests of hardware errors: the guest `ghes`, which does with reports what it is told, and blocks to report."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import Any

from sdeivirt.guests import guest_path
from sdeivirt.machine import ExitReason, MachineConfig, open_machine
from sdeivirt.machine.qemu.options import QemuOptions
from sdeivirt.machine.report import ErrorSourceStatus
from sdeivirt.ras.cper import Severity, make_block
from sdeivirt.ras.sources import STANDARD_EVENTS, STANDARD_SOURCES
from sdeivirt.sdei import EventDefinition, Priority

from .control_support import wait_until
from .machine_support import Console

__all__ = ["ADDRESS", "CORRECTED", "FATAL", "PRIVATE_EVENT", "Ghes", "block"]

ADDRESS = 0x4800_1000
PRIVATE_EVENT = EventDefinition(0x330, priority=Priority.CRITICAL)


def block(address: int = ADDRESS, severity: Severity = Severity.CORRECTED) -> bytes:
    """A memory error."""
    return make_block("memory", severity, address=address).encode()


CORRECTED = block()
FATAL = block(severity=Severity.FATAL)


class Ghes:
    """A VM that runs the guest `ghes`, which has registered its events. A context manager."""

    def __init__(self, **config: Any) -> None:
        self.machine = open_machine(
            "qemu",
            MachineConfig(
                **{
                    "vcpus": 1,
                    "events": STANDARD_EVENTS,
                    "error_sources": STANDARD_SOURCES,
                    "engine": QemuOptions(firmware="acpi"),
                    **config,
                }
            ),
        )
        self.console = Console(self.machine)

    def __enter__(self) -> Ghes:
        self.machine.load(guest_path("ghes"))
        self.machine.start()
        self.ready()
        return self

    def ready(self, count: int = 1) -> None:
        """Wait until all events have been registered, for the count-th time."""
        wanted = [f"ready: CPU#{vcpu}" for vcpu in range(self.machine.config.vcpus)]
        wait_until(lambda: all(self.console.text.count(each) >= count for each in wanted), self.console.text)

    def key(self, key: str) -> None:
        """Have the guest do something, and wait until it has."""
        answers = self.console.text.count(f"key: {key}\n")
        assert self.machine.type_in(key.encode()) == 1
        wait_until(lambda: self.console.text.count(f"key: {key}\n") > answers, f"key {key} in {self.console.text}")

    def press(self, key: str) -> None:
        """The same for a guest that has something else to do than to answer."""
        assert self.machine.type_in(key.encode()) == 1

    def taken(self, count: int = 0) -> list[str]:
        """The reports that the guest has printed, as soon as there are that many."""

        def lines() -> list[str]:
            text = self.console.text
            return [line for line in text[: text.rfind("\n") + 1].splitlines() if line.startswith("GHES ")]

        wait_until(lambda: len(lines()) >= count, self.console.text)
        return lines()

    def source(self, number: int = 0) -> ErrorSourceStatus:
        (found,) = (each for each in self.machine.status().error_sources if each.number == number)
        return found

    def comes_to(self, state: str, number: int = 0) -> None:
        """Wait until a source is in a state."""
        wait_until(lambda: self.source(number).state == state, f"{state}: {self.source(number)}")

    def when(self, condition: Callable[[], object]) -> None:
        wait_until(condition, self.console.text)

    def ends_well(self) -> None:
        """The guest finds nothing wrong in its own affairs."""
        self.press("q")
        assert self.machine.wait(10).reason is ExitReason.POWER_OFF
        assert "Result: OK" in self.console.text

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.machine.close()
