# SPDX-License-Identifier: Apache-2.0
"""For tests with Linux: a Debian kernel on machine qemu whose shell we talk to, and what it counts."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from typing import Any

import pytest
from guests.linux.debian import FetchError, find_mirrors
from guests.linux.fetch import DEFAULT_OUT, LinuxAssets, fetch

from sdeivirt.benchmarks.shell import Shell
from sdeivirt.machine import MachineConfig, open_machine
from sdeivirt.machine.base import Outcome
from sdeivirt.machine.qemu import QemuOptions
from sdeivirt.sdei import EventDefinition

from .machine_support import NEEDS_QEMU

__all__ = ["CLIENT_EVENT", "KERNELS", "Linux", "linux_marks"]

BOOT_SECONDS = 120.0
COMMAND_SECONDS = 60.0
CLIENT_EVENT = 0x4000_0010
KERNELS = ("bookworm", "newest")


def _unavailable() -> str:
    """Why there can be no kernel on this machine: it is not one of Debian's. Everything else is a failure."""
    try:
        find_mirrors()
    except FetchError as error:
        return str(error)
    return ""


_WHY_NOT = _unavailable()
linux_marks = [
    pytest.mark.machine,
    pytest.mark.qemu,
    NEEDS_QEMU,
    pytest.mark.skipif(bool(_WHY_NOT) and not (DEFAULT_OUT / KERNELS[0] / "Image").exists(), reason=_WHY_NOT),
]

_COUNT = re.compile(r"event (0x[0-9a-f]+) cpu (\d+) total (\d+) user (\d+) kernel (\d+) masked (\d+)")


class Linux:
    """A VM with a Debian kernel in serve mode, the client loaded for event 0 and CLIENT_EVENT. A context manager.

    `append` are further words of the command line; `options` of :class:`QemuOptions`, `config` of
    :class:`MachineConfig`.
    """

    def __init__(
        self,
        kernel: str = "bookworm",
        *,
        append: str = "",
        run: str = "serve",
        events: tuple[EventDefinition, ...] = (EventDefinition(CLIENT_EVENT),),
        client: str = f"0,{CLIENT_EVENT:#x}",
        options: dict[str, Any] | None = None,
        **config: Any,
    ) -> None:
        assets: LinuxAssets = fetch(kernel)
        self.release = assets.release
        words = f"console=ttyAMA0 run={run} {f'client.events={client} client.quiet=1 ' if client else ''}{append}"
        self.machine = open_machine(
            "qemu",
            MachineConfig(
                **{
                    "name": f"linux-{kernel}",
                    "vcpus": 2,
                    "memory": 512 << 20,
                    "events": events,
                    "bootargs": words.strip(),
                    "restart": False,
                    "engine": QemuOptions(initrd=assets.initrd, **(options or {})),
                    **config,
                }
            ),
        )
        self.shell = Shell(self.machine.type_in, lambda: self.machine.state == "stopped")
        self.machine.console = self.shell.feed
        self.machine.load(assets.image)

    def __enter__(self) -> Linux:
        self.machine.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self.machine.close()

    @property
    def text(self) -> str:
        """All that the guest has printed."""
        return self.shell.text

    def booted(self, count: int = 1) -> Linux:
        """Wait for the shell; for that of the count-th boot."""
        self.shell.wait_ready(BOOT_SECONDS, count)
        return self

    def sh(self, command: str, seconds: float = COMMAND_SECONDS) -> str:
        """Run a command in the guest; what it prints. Fails where its exit code is not 0."""
        return self.shell.run(command, seconds)

    def try_sh(self, command: str, seconds: float = COMMAND_SECONDS) -> tuple[int, str]:
        """The same; the exit code as well."""
        self.shell.begin(command)
        return self.shell.end(seconds)

    def start_sh(self, command: str) -> None:
        """Type a command; :meth:`end_sh` waits for its end."""
        self.shell.begin(command)

    def end_sh(self, seconds: float = COMMAND_SECONDS) -> tuple[int, str]:
        """The exit code of the command that was typed, and what it printed."""
        return self.shell.end(seconds)

    def wait_for(self, text: str, seconds: float = BOOT_SECONDS) -> None:
        """Wait until the console has shown a text."""
        self.shell.wait_for(text, seconds)

    def counts(self) -> dict[tuple[int, int], dict[str, int]]:
        """What the client has counted: (event, CPU) -> total, user, kernel, masked."""
        found = {}
        for event, cpu, *numbers in _COUNT.findall(self.sh("cat /proc/sdei_client/counts")):
            found[int(event, 16), int(cpu)] = dict(
                zip(("total", "user", "kernel", "masked"), map(int, numbers), strict=True)
            )
        return found

    def completed(self, event: int) -> list[int]:
        """How many handlers of a private event have completed, by vCPU, as the service counts."""
        (found,) = (one for one in self.machine.status().events if one.number == event)
        numbers = [0] * self.machine.config.vcpus
        for handler in found.handlers:
            if handler.vcpu is not None:
                numbers[handler.vcpu] = handler.completed
        return numbers

    def wait_until(self, condition: Callable[[], object], what: str, seconds: float = COMMAND_SECONDS) -> None:
        """Wait for a condition on the host's side."""
        until = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < until, (what, self.machine.status().events, self.text[-2000:])
            time.sleep(0.005)

    def ends(self, seconds: float = COMMAND_SECONDS) -> Outcome:
        """Wait for the end of the run."""
        return self.machine.wait(seconds)
