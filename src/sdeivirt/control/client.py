# SPDX-License-Identifier: Apache-2.0
"""The other end of the control socket, for programs that do without asyncio.

    with VmClient("vm") as vm:
        vm.inject(0, vcpu=1)
        print(vm.status().vcpus[1].running)

What the VM refuses is raised here as the same error that the machine raised
there. The protocol is spoken by the QMP client of the QEMU project. The
machine's own modules are loaded only for the records that they define: who
merely injects does not wait for them.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import logging
import os
import tempfile
import time
import weakref
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import fields
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar, cast

from qemu.qmp import ConnectError, EventListener, ExecInterruptedError, ExecuteError, QMPClient, QMPError, Runstate

from .. import errors
from ..errors import EnvironmentUnavailableError, SdeivirtError, StateError, TimeLimitError, UnknownVmError, UsageError
from ..ras.outcome import check_limit
from .framing import MAX_MESSAGE
from .runtime import RunningVm, find_vm

if TYPE_CHECKING:
    from ..machine.report import VmStatus
    from ..migration.status import MigrationStatus
    from ..ras.outcome import Outcome as ErrorOutcome
    from ..ras.status_block import Encodable
    from ..ras.victims import Victim
    from ..sdei.service import Injection

__all__ = ["VmClient", "status_from_json"]

# Every failure reaches the caller as an exception; the library's own log would say it twice.
_log = logging.getLogger(__name__).getChild("qmp")
_log.setLevel(logging.CRITICAL)

_RETRY = 0.02
_LAST_WORD = 2.0  # patience with a VM to which nothing else is to be said
_MAX_ARGUMENT = 32 << 10  # what is longer is handed over in a file
_HEADROOM = 256  # for the rest of a message
_MAX_REPLY = 256 << 20  # the status of 512 vCPUs with a thousand events each

T = TypeVar("T")


def _record(kind: Callable[..., T], data: Mapping[str, Any], **replaced: Any) -> T:
    """A record from the members of a JSON object; a newer VM may send some that we do not know."""
    names = {field.name for field in fields(kind)}  # type: ignore[arg-type]
    return kind(**{name: value for name, value in data.items() if name in names} | replaced)


def status_from_json(data: Mapping[str, Any]) -> VmStatus:
    """The record that `query-vm` wrote down."""
    from ..machine.report import (
        AsyncPfStatus,
        ErrorSourceStatus,
        EventStatus,
        FaultReport,
        HandlerReport,
        PeStatus,
        VmStatus,
    )

    return _record(
        VmStatus,
        data,
        vcpus=[_record(PeStatus, vcpu) for vcpu in data["vcpus"]],
        events=[
            _record(EventStatus, event, handlers=[_record(HandlerReport, handler) for handler in event["handlers"]])
            for event in data["events"]
        ],
        faults=[_record(FaultReport, fault) for fault in data["faults"]],
        async_pf=[_record(AsyncPfStatus, each) for each in data.get("async_pf", [])],
        error_sources=[_record(ErrorSourceStatus, each) for each in data.get("error_sources", [])],
    )


def _error(data: Mapping[str, Any]) -> SdeivirtError:
    """The error that the VM raised."""
    name = data.get("type", "SdeivirtError")
    kind = getattr(errors, name) if name in errors.__all__ else SdeivirtError
    hint = data.get("hint", "")
    error: SdeivirtError = kind(data["desc"].removesuffix(f" ({hint})"), hint)
    error.exit_code = data.get("exit-code", kind.exit_code)
    return error


def _disconnect(runner: asyncio.Runner, qmp: QMPClient) -> None:
    async def disconnect() -> None:
        try:
            await qmp.disconnect()
        except Exception:
            _log.debug("the connection ended in an error", exc_info=True)

    with runner:
        runner.run(disconnect())


class VmClient:
    """A connection to a running VM. A context manager; not to be shared between threads.

    `patience` is how many seconds the VM may take to listen and to answer.
    Every method raises UnknownVmError where the VM has ended, and
    EnvironmentUnavailableError where it does not answer.
    """

    def __init__(self, name: str, patience: float = 10.0) -> None:
        self.vm: RunningVm = find_vm(name)
        self.withdrawn: bool | None = None
        self._patience = patience
        self._runner = asyncio.Runner()
        self._qmp: QMPClient
        self._events = EventListener()
        self._woken = asyncio.Event()
        try:
            self._runner.run(self._connect())
        except BaseException:
            self._runner.close()
            raise
        # Also for those who forget to close: at the latest when the interpreter ends.
        self._finish = weakref.finalize(self, _disconnect, self._runner, self._qmp)

    async def _connect(self) -> None:
        deadline = time.monotonic() + self._patience
        while True:
            self._qmp = QMPClient(readbuflen=_MAX_REPLY)
            self._qmp.logger = _log
            self._qmp.register_listener(self._events)
            try:
                return await asyncio.wait_for(self._qmp.connect(str(self.vm.control_socket)), self._patience)
            except (ConnectError, TimeoutError, AssertionError) as error:
                # AssertionError: the library takes for granted that who has let it in does not leave at once.
                with contextlib.suppress(Exception):
                    await self._qmp.disconnect()
                # It holds its lock, so it lives: it has just started, or is about to end.
                self.vm = find_vm(self.vm.name)
                if address := self.vm.waiting_at:
                    raise StateError(
                        f"the guest of VM {self.vm.name!r} has not come yet",
                        f"`sdeivirt migrate VM {address}` sends one",
                    ) from error
                if time.monotonic() > deadline:
                    raise self._silent() from error
            await asyncio.sleep(_RETRY)

    def _silent(self) -> EnvironmentUnavailableError:
        pid = f" (pid {self.vm.pid})" if self.vm.pid else ""
        return EnvironmentUnavailableError(f"the VM {self.vm.name!r}{pid} does not answer", "is its process stopped?")

    def _run(self, work: Coroutine[Any, Any, T], patience: float | None = None) -> T:
        try:
            return self._runner.run(asyncio.wait_for(work, self._patience if patience is None else patience))
        except ExecuteError as error:
            raise _error(cast("Mapping[str, Any]", error.received["error"])) from None
        except TimeoutError as error:
            raise self._silent() from error
        except (ExecInterruptedError, QMPError, OSError, EOFError) as error:
            raise UnknownVmError(f"the VM {self.vm.name!r} ended before it answered") from error

    def execute(self, command: str, **arguments: object) -> Any:
        """Run any command of the control socket; its return value. Arguments that are None are left out."""
        return self._execute(command, arguments, None)

    def _execute(self, command: str, arguments: Mapping[str, object], patience: float | None) -> Any:
        given = {name: value for name, value in arguments.items() if value is not None}
        if len(json.dumps(given)) > MAX_MESSAGE - _HEADROOM:
            raise UsageError(
                f"the arguments of {command} are longer than the {MAX_MESSAGE >> 10} KiB that a message may have",
                "give them in parts, or in a file where the command takes one",
            )
        return self._run(self._qmp.execute(command, given), patience)

    def inject(self, event: int, vcpu: int | None = None, affinity: int | None = None) -> Injection:
        """As :meth:`Machine.inject`, with the same errors."""
        from ..sdei.service import Injection

        return _record(Injection, self.execute("inject-event", event=event, vcpu=vcpu, affinity=affinity))

    def cancel(self, event: int, vcpu: int | None = None, affinity: int | None = None) -> bool:
        """As :meth:`Machine.cancel`, with the same errors."""
        return bool(self.execute("cancel-event", event=event, vcpu=vcpu, affinity=affinity)["cancelled"])

    def inject_error(
        self,
        block: bytes | Encodable,
        source: int = 0,
        vcpu: int | None = None,
        *,
        when_busy: str = "wait",
        limit: float = 10.0,
    ) -> ErrorOutcome:
        """As :meth:`Machine.inject_error`, with the same errors."""
        from ..ras.outcome import Outcome as ErrorOutcome
        from ..ras.status_block import block_bytes

        data = base64.b64encode(block_bytes(block)).decode()
        done = self.report_error(limit, block=data, source=source, vcpu=vcpu, when_busy=when_busy)
        return _record(ErrorOutcome, done)

    def report_error(self, limit: float = 10.0, **arguments: object) -> dict[str, Any]:
        """The command `inject-error` with its arguments, underscores for dashes: `kind`, `severity`, ...; its return.

        The VM may take `limit` seconds longer to answer than for other commands. Whoever
        interrupts this, or waits in vain, calls the report off, if the guest has not been told;
        `withdrawn` says then whether it has not, and is None where the VM does not say.
        """
        self.withdrawn = None
        check_limit(limit)
        given = {name.replace("_", "-"): value for name, value in arguments.items()}
        given["time-limit"] = max(1, round(limit * 1000))
        given["tag"] = tag = f"{os.getpid()}-{time.monotonic_ns()}"
        try:
            return cast("dict[str, Any]", self._execute("inject-error", given, limit + self._patience))
        except (KeyboardInterrupt, EnvironmentUnavailableError):
            # By a connection of its own: ours waits for its answer.
            with contextlib.suppress(SdeivirtError), VmClient(self.vm.name, _LAST_WORD) as other:
                self.withdrawn = bool(other.execute("withdraw-error", tag=tag)["withdrawn"])
            raise

    def find_victims(self, pattern: str = "*") -> list[Victim]:
        """Processes in the guest that watch a page for errors, by pid or by name as a shell would match it."""
        from ..ras.victims import Victim

        return [_record(Victim, each) for each in self.execute("find-victims", pattern=pattern)]

    def status(self) -> VmStatus:
        """As :meth:`Machine.status`."""
        return status_from_json(self.execute("query-vm"))

    def pause(self) -> None:
        """Stop all vCPUs; returns when they have stopped."""
        self.execute("stop")

    def resume(self) -> None:
        """Go on after :meth:`pause`."""
        self.execute("cont")

    def list_registers(self, vcpu: int | None = None) -> list[dict[str, Any]]:
        """All registers, or those of a vCPU: `id`, `name`, `size` in bits, `vcpu`, `value` and `text` of each."""
        return cast("list[dict[str, Any]]", self.execute("list-registers", vcpu=vcpu))

    def get_register(self, register: str, vcpu: int | None = None) -> list[dict[str, Any]]:
        """The same of one register, by name or id; of all vCPUs that have it where none is named."""
        return cast("list[dict[str, Any]]", self.execute("get-register", register=register, vcpu=vcpu))

    def set_registers(self, assignments: Sequence[Mapping[str, object]]) -> None:
        """Set `register` to `value`, of a `vcpu` or the VM; all of them or none. Raises RegisterError, StateError."""
        self._hand_over("set-registers", "registers", list(assignments))

    def dump_registers(self) -> dict[str, Any]:
        """All of the SDEI service's state, values by name."""
        return cast("dict[str, Any]", self.execute("dump-registers"))

    def load_registers(self, dump: Mapping[str, Any]) -> None:
        """Have the paused VM take over a dump. Raises RegisterError, StateError."""
        self._hand_over("load-registers", "dump", dump)

    def _hand_over(self, command: str, argument: str, value: object) -> None:
        """Run a command whose argument may be too long for a message."""
        text = json.dumps(value)
        if len(text) <= _MAX_ARGUMENT:
            self.execute(command, **{argument: value})
            return
        # In the VM's own directory, which is closed to others and goes with the VM.
        with tempfile.NamedTemporaryFile("w", dir=self.vm.path, prefix="registers-", suffix=".json") as file:
            file.write(text)
            file.flush()
            self.execute(command, file=file.name)

    def quit(self) -> None:
        """End the VM."""
        self.execute("quit")

    def wait_event(self, name: str, limit: float) -> dict[str, Any]:
        """The data of the next event of that name, such as SHUTDOWN. Raises TimeLimitError after `limit` seconds."""

        async def wait() -> dict[str, Any]:
            async with asyncio.timeout(limit):
                while True:
                    message = await self._events.get()
                    if message["event"] == name:
                        return cast("dict[str, Any]", message["data"])

        try:
            return self._runner.run(wait())
        except TimeoutError as error:
            raise TimeLimitError(f"no {name} within {limit} seconds") from error

    def wait_migration(self) -> MigrationStatus:
        """What is next to be told of a migration, for as long as it takes.

        Raises UnknownVmError where the VM ends, InterruptedError after :meth:`wake`.
        """
        from ..migration.status import MigrationStatus

        async def wait() -> MigrationStatus:
            while True:
                if self._events.empty():
                    waiting = asyncio.ensure_future(self._events.get())
                    others: list[asyncio.Future[Any]] = [
                        asyncio.ensure_future(self._qmp.runstate_changed()),
                        asyncio.ensure_future(self._woken.wait()),
                    ]
                    try:
                        if self._qmp.runstate is Runstate.RUNNING:
                            await asyncio.wait((waiting, *others), return_when=asyncio.FIRST_COMPLETED)
                        if not waiting.done():
                            if self._woken.is_set():
                                self._woken.clear()
                                raise InterruptedError
                            raise UnknownVmError(f"the VM {self.vm.name!r} ended before its guest had moved")
                        message = waiting.result()
                    finally:  # else it would take an event that somebody waits for later
                        for each in (waiting, *others):
                            each.cancel()
                else:
                    message = await self._events.get()
                if message["event"] == "MIGRATION_PROGRESS":
                    return _record(MigrationStatus, cast("dict[str, Any]", message["data"]))

        return self._runner.run(wait())

    def wake(self) -> None:
        """Have :meth:`wait_migration` raise InterruptedError, now or the next time. For signal handlers, too."""
        with contextlib.suppress(RuntimeError):  # it has been closed
            self._runner.get_loop().call_soon_threadsafe(self._woken.set)

    def close(self) -> None:
        """Disconnect. Can be called twice."""
        self._finish()

    def __enter__(self) -> VmClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
