# SPDX-License-Identifier: Apache-2.0
"""The migrations of one VM: at most one at a time, each on a thread, told of on the event loop.

Events, as QEMU has them (qapi/migration.json) and one more:

    MIGRATION           status                        it has become another
    MIGRATION_PASS      pass                          a pass over RAM begins
    MIGRATION_PROGRESS  all of MigrationStatus        now and then, and whenever one of the others
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from ..errors import StateError
from ..machine import Machine
from ..migration.channel import parse_uri
from ..migration.destination import Incoming
from ..migration.source import Outgoing, SourceOptions
from ..migration.status import MigrationStatus, Progress

__all__ = ["Migrations"]

_LAST_WORDS = 15.0  # seconds for a hand-over to come to its end when the VM is ended


class Migrations:
    """What commands do about moving. On the loop's thread; `emit(event, data)` tells all clients."""

    def __init__(self, machine: Machine, emit: Callable[[str, dict[str, Any]], None]) -> None:
        self._machine = machine
        self._emit = emit
        self._progress = Progress()
        self._outgoing: Outgoing | None = None
        self._thread: threading.Thread | None = None
        self._run_state = threading.Lock()
        self._told = MigrationStatus()

    @property
    def status(self) -> MigrationStatus:
        return self._progress.now

    def start(self, uri: str, options: SourceOptions) -> None:
        """Begin to move the guest. Raises UsageError, and StateError where that cannot be now."""
        if self._thread is not None and self._thread.is_alive():
            raise StateError(
                f"the guest is on its way to {self.status.uri} already", "`sdeivirt migrate VM --cancel` ends that"
            )
        target = parse_uri(uri)
        if self._machine.state not in ("running", "paused"):
            raise StateError(f"a VM that is {self._machine.state} has no guest to move")
        self._progress = Progress(self._teller())
        self._outgoing = Outgoing(self._machine, target, options, self._progress)
        self._thread = threading.Thread(
            target=self._outgoing.run, name=f"{self._machine.config.name}-migration", daemon=True
        )
        self._thread.start()

    def arrive(self, incoming: Incoming) -> None:
        """A guest comes. Raises what its machine raises."""
        self._progress = Progress(self._teller())
        incoming.start(self._machine, self._progress)

    def cancel(self) -> None:
        """The guest stays. Raises StateError where none is leaving, or has been handed over."""
        self._leaving().cancel()

    def take_back(self) -> None:
        """The guest stays, though nobody knows whether it runs elsewhere. Raises StateError."""
        self._leaving().take_back()

    def _leaving(self) -> Outgoing:
        if self._outgoing is None or self._thread is None or not self._thread.is_alive():
            raise StateError("no migration is under way", "`sdeivirt migrate VM URI` begins one")
        return self._outgoing

    # -- who else pauses the machine and lets it go on

    def pause(self) -> None:
        """As the machine's. Waits while the guest is being handed over, or raises StateError."""
        with self._guard():
            self._machine.pause()

    def resume(self) -> None:
        """As :meth:`pause`."""
        with self._guard():
            self._machine.resume()

    @contextlib.contextmanager
    def _guard(self) -> Any:
        outgoing = self._outgoing
        with outgoing.run_state if outgoing is not None else self._run_state:
            if outgoing is not None and outgoing.held:
                raise StateError("the guest is being handed over", "see `sdeivirt migrate VM --status`")
            if self.status.role == "destination" and self.status.active:
                raise StateError("the guest has not come yet", "see `sdeivirt migrate VM --status`")
            yield

    # -- telling

    def _teller(self) -> Callable[[MigrationStatus], None]:
        loop = asyncio.get_running_loop()

        def tell(status: MigrationStatus) -> None:
            with contextlib.suppress(RuntimeError):  # the loop has ended
                loop.call_soon_threadsafe(self._tell, status)

        return tell

    def _tell(self, status: MigrationStatus) -> None:
        old, self._told = self._told, status
        if status.status != old.status:
            self._emit("MIGRATION", {"status": status.status})
        if status.passes != old.passes:
            self._emit("MIGRATION_PASS", {"pass": status.passes})
        self._emit("MIGRATION_PROGRESS", asdict(status))

    def finish(self) -> None:
        """The VM ends: wait for what is under way to end, too."""
        thread, outgoing = self._thread, self._outgoing
        if thread is None or outgoing is None:
            return
        if thread.is_alive():
            with contextlib.suppress(StateError):
                outgoing.cancel()
        thread.join(_LAST_WORDS)
