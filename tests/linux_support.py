# SPDX-License-Identifier: Apache-2.0
"""For tests with Linux: a Debian kernel on machine qemu whose shell we talk to, and what it counts."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from guests.linux.fetch import LinuxAssets, fetch

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

linux_marks = [pytest.mark.machine, pytest.mark.qemu, NEEDS_QEMU]

_EXIT = re.compile(r"<<<EXIT (\d+)>>>\n")
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
        self._changed = threading.Condition()
        self.text = ""
        self._seen = 0
        self.machine.console = self._more
        self.machine.load(assets.image)

    def _more(self, data: bytes) -> None:
        with self._changed:
            self.text += data.decode("utf-8", "replace")
            self._changed.notify_all()

    def __enter__(self) -> Linux:
        self.machine.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self.machine.close()

    def wait_for(self, text: str, seconds: float = BOOT_SECONDS) -> None:
        """Wait until the console has shown a text."""
        with self._changed:
            assert self._changed.wait_for(lambda: text in self.text or self._over(), seconds), self.text[-3000:]
            assert text in self.text, self.text[-3000:]

    def _over(self) -> bool:
        return self.machine.state == "stopped"

    def booted(self) -> Linux:
        """Wait for the shell."""
        self.wait_for("SERVE-READY\n")
        self._seen = len(self.text)
        return self

    def sh(self, command: str, seconds: float = COMMAND_SECONDS) -> str:
        """Run a command in the guest; what it prints. Fails where its exit code is not 0."""
        code, output = self.try_sh(command, seconds)
        assert code == 0, (command, code, output)
        return output

    def try_sh(self, command: str, seconds: float = COMMAND_SECONDS) -> tuple[int, str]:
        """The same; the exit code as well."""
        self.start_sh(command)
        return self.end_sh(seconds)

    def start_sh(self, command: str) -> None:
        """Type a command; :meth:`end_sh` waits for its end."""
        data = command.encode() + b"\n"
        until = time.monotonic() + COMMAND_SECONDS
        while data := data[self.machine.type_in(data) :]:
            assert time.monotonic() < until, "the guest takes no input"

    def end_sh(self, seconds: float = COMMAND_SECONDS) -> tuple[int, str]:
        with self._changed:
            found = self._changed.wait_for(lambda: _EXIT.search(self.text, self._seen) or self._over(), seconds)
            assert isinstance(found, re.Match), self.text[-3000:]
            output = self.text[self._seen : found.start()]
            self._seen = found.end()
        return int(found.group(1)), output

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
