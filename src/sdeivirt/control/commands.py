# SPDX-License-Identifier: Apache-2.0
"""The commands of the control socket, without the socket.

    query-version                             as QEMU
    query-commands                            as QEMU
    query-status                              as QEMU: running, status
    query-vm                                  every member of VmStatus
    inject-event    event, [vcpu | affinity]  what became of it: the members of Injection
    cancel-event    event, [vcpu | affinity]  cancelled: whether it was pending
    inject-error    kind, severity, [address | process, device, aer, threshold-exceeded] | block (base64),
                    [source, vcpu, when-busy (wait, fail, queue), time-limit (ms), wait-ready, tag]
                                              what became of the report: the members of ras.outcome.Outcome
    withdraw-error  tag                       withdrawn: whether that report still waited for its turn
    find-victims    [pattern]                 a list of pid, name, address, virtual: guest processes that watch a page
    stop, cont                                as QEMU: pause and go on
    migrate         uri, [downtime-limit (ms), max-bandwidth (bytes/s), compress (level), tls-creds,
                    tls-hostname, insecure, stall-limit (ms), stop-first, stay, overwrite, postcopy (passes before it)]
                                              begin to move the guest, or to save it; MIGRATION events tell the rest
    query-migrate                             every member of MigrationStatus
    migrate-cancel                            the guest stays
    migrate-recover [uri, tls-creds, tls-hostname, insecure]
                                              post-copy: connect again, and send the pages that are still here
    migrate-take-back                         it stays although nobody knows whether it runs at the destination
    list-registers  [vcpu]                    a list of id, name, size (bits), vcpu, value, text
    get-register    register, [vcpu]          the same, of one register: of that vCPU, or of all that have it
    set-registers   registers | file          a list of register, value, [vcpu]: all are set, or none; the VM is paused
    dump-registers                            vm, vcpus: all state, values by name
    load-registers  dump | file               have the paused VM take over what dump-registers gave
    quit                                      end the VM

A command is called by name with arguments by name; a number may also be a
string such as "0x40000010", for clients whose users type.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from .. import __version__
from ..errors import SdeivirtError, StateError, UsageError
from ..machine import Machine
from ..migration.source import SourceOptions
from .hardware_errors import ErrorCommands
from .migration import Migrations
from .registers import RegisterCommands

__all__ = ["FOR_CALLER", "CommandError", "Commands", "Request", "error_object", "parse_request", "version_object"]

_log = logging.getLogger(__name__)

# What is called off when the client that has asked for it goes before it is answered.
FOR_CALLER = frozenset({"inject-error"})

_NUMERAL = re.compile(r"0[xX][0-9a-fA-F]{1,16}|[0-9]{1,20}")
_MAX_NUMBER = (1 << 64) - 1

# QEMU's names (qapi/run-state.json, RunState) for the states of a machine.
_RUN_STATES = {
    "created": "prelaunch",
    "incoming": "inmigrate",
    "running": "running",
    "paused": "paused",
    "stopped": "shutdown",
}


class CommandError(Exception):
    """A request that cannot be served: QMP's error class, and a description."""

    def __init__(self, description: str, error_class: str = "GenericError") -> None:
        super().__init__(description)
        self.error_class = error_class


def version_object() -> dict[str, Any]:
    """The version as QMP tells it. QMP clients look for the numbers under "qemu"; "package" says whose they are."""
    major, minor, micro = (int(part) for part in __version__.split(".")[:3])
    return {"qemu": {"major": major, "minor": minor, "micro": micro}, "package": f"sdeivirt {__version__}"}


def error_object(error: BaseException) -> dict[str, Any]:
    """QMP's error object. For errors of ours "type", "hint" and "exit-code" tell our client the rest."""
    if isinstance(error, CommandError):
        return {"class": error.error_class, "desc": str(error)}
    if isinstance(error, SdeivirtError):
        return {
            "class": "GenericError",
            "desc": str(error),
            "type": type(error).__name__,
            "hint": error.hint,
            "exit-code": error.exit_code,
        }
    _log.error("a command failed", exc_info=error)
    return {"class": "GenericError", "desc": f"internal error: {error!r}"}


@dataclass(frozen=True, slots=True)
class Request:
    """A command as it was asked for."""

    name: str
    arguments: Mapping[str, Any]


def parse_request(message: object) -> Request:
    """Read a request. Raises CommandError in QEMU's words."""
    if not isinstance(message, dict):
        raise CommandError("QMP input must be a JSON object")
    for member in message:
        if member not in ("execute", "arguments", "id"):
            raise CommandError(f"QMP input member {member[:40]!r} is unexpected")
    if "execute" not in message:
        raise CommandError("QMP input lacks member 'execute'")
    name, arguments = message["execute"], message.get("arguments", {})
    if not isinstance(name, str):
        raise CommandError("QMP input member 'execute' must be a string")
    if not isinstance(arguments, dict):
        raise CommandError("QMP input member 'arguments' must be an object")
    return Request(name, arguments)


def _number(name: str, value: object) -> int:
    if isinstance(value, str) and _NUMERAL.fullmatch(value):
        value = int(value, 16 if value[:2] in ("0x", "0X") else 10)
    if not isinstance(value, int) or isinstance(value, bool):
        raise CommandError(f"argument {name!r} must be a number")
    if not 0 <= value <= _MAX_NUMBER:
        raise CommandError(f"argument {name!r} must be 0 to {_MAX_NUMBER:#x}")
    return value


def _text(name: str, value: object) -> str:
    if not isinstance(value, str):
        raise CommandError(f"argument {name!r} must be a string")
    return value


def _array(name: str, value: object) -> list[object]:
    if not isinstance(value, list):
        raise CommandError(f"argument {name!r} must be an array")
    return value


def _object(name: str, value: object) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise CommandError(f"argument {name!r} must be an object")
    return value


def _register(name: str, value: object) -> str:
    """A register's name, or its id."""
    return value if isinstance(value, str) else str(_number(name, value))


def _flag(name: str, value: object) -> bool:
    if not isinstance(value, bool):
        raise CommandError(f"argument {name!r} must be true or false")
    return value


_Reader = Callable[[str, object], object]


@dataclass(frozen=True, slots=True)
class _Command:
    """What a command runs, and the arguments it takes, each with what reads it."""

    run: Callable[..., Awaitable[object]]
    required: Mapping[str, _Reader] = field(default_factory=dict)
    optional: Mapping[str, _Reader] = field(default_factory=dict)

    def bind(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """The arguments, checked. Raises CommandError that names the first wrong one."""
        for name in self.required:
            if name not in arguments:
                raise CommandError(f"argument {name!r} is missing")
        readers = {**self.required, **self.optional}
        for name in arguments:
            if name not in readers:
                raise CommandError(f"argument {name[:40]!r} is unexpected")
        return {name.replace("-", "_"): readers[name](name, value) for name, value in arguments.items()}


class Commands:
    """The commands over one machine. `emit(event, data)` tells all clients; `quit` asks the host to end the VM."""

    def __init__(
        self,
        machine: Machine,
        migrations: Migrations,
        emit: Callable[[str, dict[str, Any]], None],
        quit: Callable[[], None],
    ) -> None:
        self._machine = machine
        self._migrations = migrations
        self._emit = emit
        self._quit = quit
        self._run_state = asyncio.Lock()  # one stop or cont at a time
        registers = RegisterCommands(machine)
        errors = ErrorCommands(machine)
        error: dict[str, _Reader] = dict.fromkeys(("address", "source", "vcpu", "time-limit"), _number)
        error |= dict.fromkeys(("kind", "severity", "process", "device", "aer", "block", "when-busy", "tag"), _text)
        error |= {"threshold-exceeded": _flag, "wait-ready": _flag}
        event, target = {"event": _number}, {"vcpu": _number, "affinity": _number}
        how = {"downtime-limit": _number, "max-bandwidth": _number, "compress": _number, "tls-creds": _text}
        how |= {"tls-hostname": _text, "stall-limit": _number, "postcopy": _number}
        where = {"uri": _text, "tls-creds": _text, "tls-hostname": _text, "insecure": _flag, "max-bandwidth": _number}
        how |= dict.fromkeys(("insecure", "stop-first", "stay", "overwrite"), _flag)
        self._table: dict[str, _Command] = {
            "query-version": _Command(self._query_version),
            "query-commands": _Command(self._query_commands),
            "query-status": _Command(self._query_status),
            "query-vm": _Command(self._query_vm),
            "inject-event": _Command(self._inject_event, event, target),
            "cancel-event": _Command(self._cancel_event, event, target),
            "inject-error": _Command(errors.inject_error, {}, error),
            "withdraw-error": _Command(errors.withdraw_error, {"tag": _text}),
            "find-victims": _Command(errors.find_victims, {}, {"pattern": _text}),
            "stop": _Command(self._stop),
            "cont": _Command(self._cont),
            "migrate": _Command(self._migrate, {"uri": _text}, how),
            "query-migrate": _Command(self._query_migrate),
            "migrate-cancel": _Command(self._migrate_cancel),
            "migrate-recover": _Command(self._migrate_recover, {}, where),
            "migrate-take-back": _Command(self._migrate_take_back),
            "list-registers": _Command(self._reading(registers.list_registers), {}, {"vcpu": _number}),
            "get-register": _Command(self._reading(registers.get_register), {"register": _register}, {"vcpu": _number}),
            "dump-registers": _Command(self._reading(registers.dump_registers)),
            "set-registers": _Command(self._setting(registers.set_registers), {}, {"registers": _array, "file": _text}),
            "load-registers": _Command(self._setting(registers.load_registers), {}, {"dump": _object, "file": _text}),
            "quit": _Command(self._end),
        }

    async def execute(self, request: Request) -> object:
        """Run a command; its return value. Raises CommandError, SdeivirtError."""
        command = self._table.get(request.name)
        if command is None:
            raise CommandError(f"The command {request.name[:40]} has not been found", "CommandNotFound")
        return await command.run(**command.bind(request.arguments))

    async def _query_version(self) -> object:
        return version_object()

    async def _query_commands(self) -> object:
        return [{"name": name} for name in ("qmp_capabilities", *self._table)]

    async def _query_status(self) -> object:
        state = self._machine.state
        return {"running": state == "running", "status": _RUN_STATES[state]}

    async def _query_vm(self) -> object:
        return asdict(self._machine.status())

    async def _inject_event(self, event: int, vcpu: int | None = None, affinity: int | None = None) -> object:
        _check_target(vcpu, affinity)
        injection = await asyncio.wrap_future(self._machine.inject_later(event, vcpu, affinity))
        return asdict(injection)

    async def _cancel_event(self, event: int, vcpu: int | None = None, affinity: int | None = None) -> object:
        _check_target(vcpu, affinity)
        return {"cancelled": await asyncio.wrap_future(self._machine.cancel_later(event, vcpu, affinity))}

    async def _stop(self) -> object:
        async with self._run_state:
            if self._state_of_living() == "running":
                await asyncio.to_thread(self._migrations.pause)
                self._emit("STOP", {})
        return {}

    async def _cont(self) -> object:
        async with self._run_state:
            if self._state_of_living() == "paused":
                await asyncio.to_thread(self._migrations.resume)
                self._emit("RESUME", {})
        return {}

    async def _migrate(
        self,
        uri: str,
        downtime_limit: int = 300,
        max_bandwidth: int | None = None,
        compress: int = 0,
        tls_creds: str | None = None,
        tls_hostname: str = "",
        stall_limit: int = 30_000,
        postcopy: int | None = None,
        **flags: Any,
    ) -> object:
        options = SourceOptions(
            downtime=downtime_limit / 1000,
            bandwidth=max_bandwidth,
            compress=compress,
            tls=Path(tls_creds) if tls_creds is not None else None,
            tls_hostname=tls_hostname,
            stall=stall_limit / 1000,
            postcopy=postcopy,
            **flags,
        )
        self._migrations.start(uri, options)
        return {}

    async def _query_migrate(self) -> object:
        return asdict(self._migrations.status)

    async def _migrate_cancel(self) -> object:
        self._migrations.cancel()
        return {}

    async def _migrate_recover(
        self,
        uri: str | None = None,
        tls_creds: str | None = None,
        tls_hostname: str = "",
        insecure: bool = False,
        max_bandwidth: int | None = None,
    ) -> object:
        tls = Path(tls_creds) if tls_creds is not None else None
        options = SourceOptions(bandwidth=max_bandwidth, tls=tls, tls_hostname=tls_hostname, insecure=insecure)
        self._migrations.recover(uri, options)
        return {}

    async def _migrate_take_back(self) -> object:
        self._migrations.take_back()
        return {}

    def _reading(self, work: Callable[..., object]) -> Callable[..., Awaitable[object]]:
        """A command that looks at registers, of which there may be many."""

        async def run(**arguments: Any) -> object:
            return await asyncio.to_thread(work, **arguments)

        return run

    def _setting(self, work: Callable[..., object]) -> Callable[..., Awaitable[object]]:
        """A command that sets registers; the VM does not go on meanwhile."""

        async def run(**arguments: Any) -> object:
            async with self._run_state:
                return await asyncio.to_thread(work, **arguments)

        return run

    async def _end(self) -> object:
        self._quit()
        return {}

    def _state_of_living(self) -> str:
        state = self._machine.state
        if state == "stopped":
            raise StateError("the VM has ended")
        return state


def _check_target(vcpu: int | None, affinity: int | None) -> None:
    if vcpu is not None and affinity is not None:
        raise UsageError("a vCPU and an affinity were both named", "name the vCPU by one of them")
