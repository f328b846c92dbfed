# SPDX-License-Identifier: Apache-2.0
"""The registers' commands: what stands in their arguments, and files that are too long for a message."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..errors import RegisterError, StateError, UsageError
from ..files import read_regular
from ..machine import Machine
from ..registers import running
from .framing import decode

__all__ = ["RegisterCommands"]

_MAX_FILE = 256 << 20


class RegisterCommands:
    """The commands over one machine. They may wait for its lock; those that set something want it paused."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine

    def _present(self) -> Machine:
        """The machine, if a guest is in it. Raises StateError."""
        if self._machine.state == "incoming":
            raise StateError("the guest has not come yet", "its registers come with it")
        return self._machine

    def list_registers(self, vcpu: int | None = None) -> list[dict[str, Any]]:
        return running.list_registers(self._present(), vcpu)

    def get_register(self, register: str, vcpu: int | None = None) -> list[dict[str, Any]]:
        return running.get_register(self._present(), register, vcpu)

    def set_registers(self, registers: list[object] | None = None, file: str | None = None) -> dict[str, Any]:
        """From the message itself, or from a file, which must be named by an absolute path."""
        given = _one("registers are set from a list or from a file", registers, file)
        if not isinstance(given, list):
            raise RegisterError(f"{file} holds no list of registers' new values")
        running.set_registers(self._present(), given)
        return {"set": len(given)}

    def dump_registers(self) -> dict[str, Any]:
        return running.dump_registers(self._present())

    def load_registers(self, dump: dict[str, Any] | None = None, file: str | None = None) -> dict[str, Any]:
        """From the message itself, or from a file, which must be named by an absolute path."""
        running.load_registers(self._present(), _one("registers are loaded from a dump or from a file", dump, file))
        return {}


def _one(sentence: str, given: object, file: str | None) -> object:
    """What was given, or what the file holds. Raises UsageError where it is not one of the two."""
    if (given is None) == (file is None):
        raise UsageError(sentence, "give one of the two")
    return given if file is None else _read(file)


def _read(file: str) -> object:
    path = Path(file)
    if not path.is_absolute():
        raise UsageError(f"{file[:100]!r} is no absolute path", "the VM's process may be in another directory")
    content = read_regular(path, _MAX_FILE, RegisterError, "give the path of a dump", "no dump is that long")
    try:
        return decode(content)
    except (ValueError, RecursionError) as error:
        raise RegisterError(f"{path} holds no JSON: {str(error)[:100]}", "give it what a command would") from error
