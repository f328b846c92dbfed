# SPDX-License-Identifier: Apache-2.0
"""A machine in the foreground: its runtime directory, control socket, FIFOs and terminal.

The event loop has the main thread, the machine a thread of its own. The run
ends when the guest powers off or cannot go on, when a client says `quit`, at
Ctrl-] on the terminal, at a signal, or when the time is over; whichever it
is, nothing stays behind in the file system.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import resource
import signal
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from ..errors import EnvironmentUnavailableError, SdeivirtError
from ..machine import ExitReason, FaultReport, Machine, Outcome
from ..migration.destination import Incoming
from .fifos import InjectionFifos
from .notices import Notices
from .runtime import VmDirectory
from .server import ControlServer
from .terminal import Terminal

__all__ = ["RunResult", "run_vm"]

_log = logging.getLogger(__name__)

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_FAULT_INTERVAL = 0.1
_FILES = 4096  # for 512 FIFOs and 256 clients, and as many as come at once
_EXHAUSTED = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)

# QEMU's names (qapi/run-state.json, ShutdownCause) for what ends a run.
_CAUSES = {
    ExitReason.POWER_OFF: "guest-shutdown",
    ExitReason.ALL_OFF: "guest-shutdown",
    ExitReason.RESET: "guest-reset",
    ExitReason.PANIC: "guest-panic",
    ExitReason.FAULT: "guest-panic",
    ExitReason.TIME_LIMIT: "host-error",
}


@dataclass(frozen=True, slots=True)
class RunResult:
    """How a run ended. `cause` is QEMU's name for it; `signal` the signal that ended it, if one did.

    `moved_to` is the URI that the guest has gone to, if it has.
    """

    outcome: Outcome
    cause: str
    signal: signal.Signals | None = None
    moved_to: str = ""


def run_vm(
    machine: Machine,
    directory: VmDirectory,
    terminal: Terminal,
    limit: float | None = None,
    ready: Callable[[], None] = lambda: None,
    incoming: Incoming | None = None,
) -> RunResult:
    """Run a loaded machine, or one whose guest is `incoming`, to its end, and release the directory.

    `limit` is in seconds; `ready` is called when the control socket and the
    FIFOs are there, just before the first instruction. Call it on the main
    thread, since it handles signals. Raises EnvironmentUnavailableError
    where sockets or FIFOs cannot be made, and what the machine raises.
    """
    try:
        return asyncio.run(_Host(machine, directory, terminal, limit, ready, incoming).main())
    finally:
        directory.release()


class _Host:
    def __init__(
        self,
        machine: Machine,
        directory: VmDirectory,
        terminal: Terminal,
        limit: float | None,
        ready: Callable[[], None],
        incoming: Incoming | None,
    ) -> None:
        self._incoming = incoming
        self._machine = machine
        self._directory = directory
        self._terminal = terminal
        self._limit = limit
        self._ready = ready
        self._server = ControlServer(machine, directory.control_socket, lambda: self._end("host-qmp-quit"))
        self._server.migrations.say = terminal.say
        self._fifos = InjectionFifos(
            machine.config.vcpus, directory.fifo, lambda event, vcpu: machine.inject_later(event, vcpu)
        )
        self._cause = ""
        self._signal: signal.Signals | None = None
        self._stopping: asyncio.Task[None] | None = None
        self._reported: set[int] = set()
        self._warn = Notices(_log, "this host's resources")

    async def main(self) -> RunResult:
        loop = asyncio.get_running_loop()
        machine, terminal = self._machine, self._terminal
        for number in _SIGNALS:
            loop.add_signal_handler(number, self._signalled, number)
        loop.add_signal_handler(signal.SIGCONT, terminal.continued)
        loop.set_exception_handler(self._went_wrong)
        watch: asyncio.Task[None] | None = None
        try:
            await self._open()
            machine.console = terminal.write
            self._ready()
            if self._incoming is None:
                machine.start()
            else:
                self._server.migrations.arrive(self._incoming)
            terminal.attach(machine.type_in, lambda: self._end("host-ui"), lambda: self._end("host-ui"))
            watch = asyncio.create_task(self._watch())
            outcome = await asyncio.to_thread(machine.wait, self._limit)
            if outcome.reason is ExitReason.STOPPED:  # perhaps while the guest was being handed over
                await asyncio.to_thread(self._server.migrations.finish)
                if self._server.migrations.moved:
                    outcome = replace(outcome, reason=ExitReason.MOVED)
            cause = _CAUSES.get(outcome.reason) or self._cause or "none"
            self._report(outcome.faults if outcome.reason is not ExitReason.TIME_LIMIT else [])
            guest = cause.startswith("guest-")
            self._server.emit("SHUTDOWN", {"guest": guest, "reason": cause, "outcome": outcome.reason.value})
            if (lost := self._server.migrations.lost) is not None:
                raise lost
            return RunResult(
                outcome,
                cause,
                self._signal if outcome.reason is ExitReason.STOPPED else None,
                self._server.migrations.status.uri if outcome.reason is ExitReason.MOVED else "",
            )
        except SdeivirtError as error:
            if self._incoming is not None:
                self._incoming.crash = error
            raise
        finally:
            terminal.detach()
            for task in filter(None, (watch, self._stopping)):
                task.cancel()
            await asyncio.to_thread(self._server.migrations.finish)
            await asyncio.to_thread(self._machine.errors.finish)
            if self._incoming is not None:
                await asyncio.to_thread(self._incoming.close)
            self._fifos.close()
            await self._server.close()
            self._directory.release()  # while signals are still ours to handle

    async def _open(self) -> None:
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        if soft != resource.RLIM_INFINITY and soft < _FILES:
            wanted = _FILES if hard == resource.RLIM_INFINITY else min(_FILES, hard)
            with contextlib.suppress(OSError, ValueError):
                resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        try:
            self._fifos.open()
            await self._server.open()
        except OSError as error:
            hint = "raise the limit with `ulimit -n`" if error.errno == errno.EMFILE else ""
            raise EnvironmentUnavailableError(
                f"cannot make sockets and FIFOs in {self._directory.path}: {error.strerror}", hint
            ) from error

    def _went_wrong(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        if isinstance(error, OSError) and error.errno in _EXHAUSTED:
            self._warn(f"{context['message']}: {error.strerror}")  # and asyncio tries again
        else:
            loop.default_exception_handler(context)

    def _signalled(self, number: signal.Signals) -> None:
        if self._signal is not None or (self._stopping is not None and self._server.migrations.sends_pages):
            # Asked twice: do not wait for a machine that does not stop.
            self._terminal.restore()
            self._directory.release()
            os._exit(128 + number)
        self._signal = signal.Signals(number)
        self._end("host-signal")

    def _end(self, cause: str) -> None:
        self._cause = self._cause or cause
        self._terminal.detach()
        if self._server.migrations.sends_pages:
            self._terminal.restore()  # Ctrl-C is a signal again: who does not want to wait for the pages can say so
        if self._stopping is None:
            self._stopping = asyncio.create_task(asyncio.to_thread(self._machine.stop))

    # -- faults

    async def _watch(self) -> None:
        """Tell of vCPUs that fault while others go on, and notice when the shell gives us the terminal."""
        while True:
            self._report(self._machine.faults())
            self._terminal.take_if_ours()
            await asyncio.sleep(_FAULT_INTERVAL)

    def _report(self, faults: list[FaultReport]) -> None:
        for fault in faults:
            if fault.vcpu not in self._reported:
                self._reported.add(fault.vcpu)
                self._terminal.say(fault.render())
                self._server.emit("VCPU_FAULT", {"vcpu": fault.vcpu, "reason": fault.reason, "pc": fault.pc})
