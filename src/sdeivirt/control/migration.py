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

from ..errors import MigrationError, StateError
from ..machine import Machine
from ..migration.channel import parse_uri
from ..migration.destination import Incoming
from ..migration.source import Outgoing, SourceOptions
from ..migration.status import MigrationStatus, Progress

__all__ = ["Migrations"]

_TICK = 1.0  # seconds after which a migration of which nothing is heard is told of nevertheless
_ENDED = ("completed", "failed", "cancelled")
_LAST_WORDS = 15.0  # seconds for a hand-over to come to its end when the VM is ended


class Migrations:
    """What commands do about moving. On the loop's thread; `emit(event, data)` tells all clients."""

    def __init__(self, machine: Machine, emit: Callable[[str, dict[str, Any]], None]) -> None:
        self._machine = machine
        self._emit = emit
        self._progress = Progress()
        self._outgoing: Outgoing | None = None
        self._incoming: Incoming | None = None
        self._thread: threading.Thread | None = None
        self._run_state = threading.Lock()
        self._told = MigrationStatus()
        self._told_at = 0.0
        self._stay = self._left = False  # the guest is to stay; it has gone, before its pages
        self.say: Callable[[str], None] = lambda _text: None  # for those who watch the VM itself

    @property
    def status(self) -> MigrationStatus:
        return self._progress.fresh

    def start(self, uri: str, options: SourceOptions) -> None:
        """Begin to move the guest. Raises UsageError, and StateError where that cannot be now."""
        if self._thread is not None and self._thread.is_alive():
            if self.moved:
                raise StateError(
                    f"the guest has gone to {self.status.uri}, and the last of its pages are sent there",
                    "see `sdeivirt migrate VM --status`",
                )
            raise StateError(
                f"the guest is on its way to {self.status.uri} already", "`sdeivirt migrate VM --cancel` ends that"
            )
        target = parse_uri(uri)
        if self._machine.state == "incoming":
            raise StateError("the guest has not come yet", "see `sdeivirt migrate VM --status`")
        if self._machine.state not in ("running", "paused"):
            raise StateError(f"a VM that is {self._machine.state} has no guest to move")
        if (lost := self.lost) is not None:
            raise StateError(lost.message, lost.hint)
        if self._machine.absent_count:
            raise StateError(
                f"{self._machine.absent_count} pages of the guest have not come yet",
                "see `sdeivirt migrate VM --status`",
            )
        if self._incoming is not None:
            self._incoming.check_settled()
        self._stay, self._left = options.stay, False
        self._begin()
        self._outgoing = Outgoing(self._machine, target, options, self._progress)
        self._thread = threading.Thread(
            target=self._outgoing.run, name=f"{self._machine.config.name}-migration", daemon=True
        )
        self._thread.start()

    def arrive(self, incoming: Incoming) -> None:
        """A guest comes. Raises what its machine raises."""
        self._begin()
        self._incoming = incoming
        incoming.start(self._machine, self._progress)

    def cancel(self) -> None:
        """The guest stays; or nobody connects again. Raises StateError where none is leaving, or it is too late."""
        self._leaving().cancel()

    def take_back(self) -> None:
        """The guest stays, though nobody knows whether it runs elsewhere. Raises StateError."""
        self._leaving().take_back()

    def recover(self, uri: str | None, options: SourceOptions) -> None:
        """Connect again, to send the rest of a guest's pages. Raises UsageError, StateError."""
        target = parse_uri(uri) if uri is not None else None
        self._leaving().recover(target, options)

    def _leaving(self) -> Outgoing:
        if self._machine.state == "incoming":
            raise StateError("the guest has not come yet", "whether it comes is for its source to say, and to cancel")
        if self._outgoing is None or self._thread is None or not self._thread.is_alive():
            status = self.status
            if status.role == "destination" and status.status.startswith("postcopy"):
                if self._incoming is not None and self._incoming.has_source:
                    raise StateError("the guest has come here, and its pages follow", "that is for its source's VM")
                raise StateError(f"no migration is under way: the guest's pages come from {status.uri}")
            raise StateError("no migration is under way", "`sdeivirt migrate VM URI` begins one")
        return self._outgoing

    @property
    def lost(self) -> MigrationError | None:
        """Why the guest can go on nowhere, if it is so: it lived in two processes, and one of them has ended."""
        status = self.status
        if status.status != "failed":
            return None
        came = self._incoming is not None and self._incoming.standstill is not None
        here = status.role == "destination" and came and self._machine.absent_count
        if not here and not (status.role == "source" and self.moved):
            return None
        known = status.error if "is lost" in status.error else f"the guest is lost: {status.error}"
        return MigrationError(known, status.hint)

    @property
    def sends_pages(self) -> bool:
        """Whether the guest has gone, and its last pages are on their way."""
        going = self.status.role == "source" and self.status.status in ("postcopy-active", "postcopy-recover")
        return going and self._thread is not None and self._thread.is_alive()

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
        standstill = self._incoming.standstill if self._incoming is not None else None
        with contextlib.ExitStack() as locks:
            for holder in (outgoing, standstill):
                if holder is not None:
                    locks.enter_context(holder.run_state)
            locks.enter_context(self._run_state)
            if outgoing is not None and outgoing.held:
                raise StateError("the guest is being handed over", "see `sdeivirt migrate VM --status`")
            if (lost := self.lost) is not None:
                raise StateError(lost.message, lost.hint)
            if standstill is not None and standstill.held:
                raise StateError("pages of the guest are out of reach", "see `sdeivirt migrate VM --status`")
            if self.status.role == "destination" and self.status.active and standstill is None:
                raise StateError("the guest has not come yet", "see `sdeivirt migrate VM --status`")
            yield

    # -- telling

    def _begin(self) -> None:
        self._progress = Progress(self._teller())
        self._tick(self._progress)

    def _teller(self) -> Callable[[MigrationStatus], None]:
        loop = asyncio.get_running_loop()

        def tell(status: MigrationStatus) -> None:
            with contextlib.suppress(RuntimeError):  # the loop has ended
                loop.call_soon_threadsafe(self._tell, status)

        return tell

    def _tick(self, progress: Progress) -> None:
        """A window of pages can take minutes on a slow link: whoever watches is to see that something moves."""
        status = progress.fresh
        if progress is not self._progress or status.status in _ENDED:
            return
        loop = asyncio.get_running_loop()
        if status.active and loop.time() - self._told_at >= _TICK:
            self._tell(status)
        loop.call_later(_TICK, self._tick, progress)

    def _tell(self, status: MigrationStatus) -> None:
        self._told_at = asyncio.get_running_loop().time()
        old, self._told = self._told, status
        if status.status != old.status:
            self._emit("MIGRATION", {"status": status.status})
            if sentence := self._sentence(status):
                self.say(sentence)
        if status.passes != old.passes:
            self._emit("MIGRATION_PASS", {"pass": status.passes})
        self._emit("MIGRATION_PROGRESS", asdict(status))

    def _sentence(self, status: MigrationStatus) -> str:
        """What the VM's own terminal is told: a guest that is gone, or one that comes, is told of elsewhere."""
        if status.role != "source":
            return ""
        if status.unneeded:
            return f"the guest has ended at {status.uri}, or was reset, and needs no more of its pages"
        if self._machine.state == "stopped":
            return ""
        first = not self._left
        self._left = self._left or status.status.startswith("postcopy")
        if self._left:
            if status.status == "postcopy-paused":
                return f"the guest of {status.uri} stands still, for its pages are here: {status.error}; {status.hint}"
            if status.status == "postcopy-active" and first:
                return (
                    f"the guest runs at {status.uri} now, and takes no more input here; its pages follow, and this VM "
                    "ends when it has all of them"
                )
            return ""
        file = status.uri.removeprefix("file:")
        if file == status.uri:
            what, whither = "has not moved", f"to {status.uri}"
        else:
            what, whither = "was not saved", f"in {file}"
        if status.status in ("failed", "cancelled"):
            return f"the guest {what} {whither}: {status.error}; it stays here"
        if status.status == "undecided":
            return f"the guest stands still: {status.error}; {status.uri} is asked whether it runs there"
        if status.status == "completed" and self._stay:
            return f"the guest was saved in {file}, and stays here"
        return ""

    @property
    def moved(self) -> bool:
        """Whether the guest has left."""
        return self._outgoing is not None and self._outgoing.moved

    def finish(self) -> None:
        """The VM ends: wait for what is under way to end, too."""
        thread, outgoing = self._thread, self._outgoing
        if thread is None or outgoing is None:
            return
        if thread.is_alive() and not outgoing.moved:
            with contextlib.suppress(StateError):
                outgoing.cancel("its VM was ended")
        if self.sends_pages:
            self.say("the guest's last pages are being sent: Ctrl-C, or a signal, would end that, and the guest")
            thread.join()  # it ends when it is done, or nothing moves
        thread.join(_LAST_WORDS)
