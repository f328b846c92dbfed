# SPDX-License-Identifier: Apache-2.0
"""The far end of the guest's host link: requests that it prints, and the line that is typed in as the answer.

    inject EVENT PE       "any" as PE for a shared event        ok
    cancel EVENT PE                                             ok 1, or ok 0: nothing was pending
    interrupt INTID PE    as if a device had raised it          ok 1, or ok 0: no event came of it
    status EVENT PE       1 registered, 2 enabled, 4 running, 8 pending    ok SUM
    masked PE                                                   ok 1, ok 0
    power PE                                                    ok on, off, on-pending, suspended, faulted

A host mistake is answered with its name: `error NotRegisteredError`. Numbers are decimal, or hexadecimal after 0x.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from ..errors import SdeivirtError, UsageError
from ..machine import Machine
from ..machine.report import PeStatus

__all__ = ["HostLink"]

_NUMBER = re.compile(r"0[xX][0-9a-fA-F]{1,16}|[0-9]{1,19}")
_BITS = (("registered", 1), ("enabled", 2), ("running", 4), ("pending", 8))


class HostLink:
    """Answers for one machine. Whatever the guest asks, the answer is a line and never an exception."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._commands: dict[str, tuple[Callable[..., str], int]] = {
            "inject": (self._inject, 2),
            "cancel": (self._cancel, 2),
            "interrupt": (self._interrupt, 2),
            "status": (self._status, 2),
            "masked": (self._masked, 1),
            "power": (self._power, 1),
        }

    def answer(self, request: str) -> bytes:
        """The line to be typed in."""
        try:
            value = self._obey(request)
        except SdeivirtError as error:
            return f"error {type(error).__name__}\n".encode()
        return f"ok {value}\n".encode() if value else b"ok\n"

    def _obey(self, request: str) -> str:
        name, *words = request.split()[:8] or [""]
        if name not in self._commands:
            raise UsageError(f"there is no request {name[:40]!r}")
        command, count = self._commands[name]
        if len(words) != count:
            raise UsageError(f"{name} takes {count} arguments")
        return command(*map(_number, words))

    def _inject(self, event: int, vcpu: int | None) -> str:
        self._machine.inject(event, vcpu)
        return ""

    def _cancel(self, event: int, vcpu: int | None) -> str:
        return str(int(self._machine.cancel(event, vcpu)))

    def _interrupt(self, intid: int, vcpu: int | None) -> str:
        machine = self._machine
        index = 0 if vcpu is None else vcpu
        with machine.lock:
            machine.firmware.sdei.pe(index)
            raised = machine.firmware.sdei.interrupt(intid, index)
            kicks = machine.firmware.take_kicks()
        if kicks:
            machine.kick(kicks)
        return str(int(raised))

    def _status(self, event: int, vcpu: int | None) -> str:
        machine = self._machine
        with machine.lock:
            shared = machine.firmware.sdei.event(event).shared
            if vcpu is not None:
                machine.firmware.sdei.pe(vcpu)
        wanted = None if shared else vcpu or 0
        for status in machine.status().events:
            if status.number == event:
                for handler in status.handlers:
                    if handler.vcpu == wanted:
                        return str(sum(bit for name, bit in _BITS if getattr(handler, name)))
        return "0"  # nobody has ever registered it

    def _pe(self, vcpu: int | None) -> PeStatus:
        if vcpu is None:
            raise UsageError("this request names a PE")
        machine = self._machine
        with machine.lock:
            machine.firmware.sdei.pe(vcpu)
        return machine.status().vcpus[vcpu]

    def _masked(self, vcpu: int | None) -> str:
        return str(int(self._pe(vcpu).masked))

    def _power(self, vcpu: int | None) -> str:
        return self._pe(vcpu).power


def _number(word: str) -> int | None:
    if word == "any":
        return None
    if not _NUMBER.fullmatch(word):
        raise UsageError(f"{word[:40]!r} is no number")
    return int(word, 16 if word[:2] in ("0x", "0X") else 10)
