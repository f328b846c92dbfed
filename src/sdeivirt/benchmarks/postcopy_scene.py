# SPDX-License-Identifier: Apache-2.0
"""One guest that leaves for another process and works there, its pages still being here.

It is restored from a snapshot in this process, moves with post-copy at once,
and when it runs at the destination its work begins. Nothing but what it asks
for is sent, over a link that is as slow as wanted.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from ..machine import open_machine
from ..machine.base import Machine
from ..migration.channel import open_file, parse_uri
from ..migration.destination import Incoming
from ..migration.slow import SlowLink
from ..migration.source import Outgoing, SourceOptions
from ..migration.status import MigrationStatus, Progress
from .shell import Shell
from .workload import Done, Kit, Work

__all__ = ["Link", "Place", "Run", "restored", "run_behind", "run_here"]

_PATIENCE = 120.0
_ENDS = 20.0
_WORK_SECONDS = 600.0


@dataclass(frozen=True, slots=True)
class Link:
    """How pages come: `latency` seconds are added to each request, which overlap.

    `bandwidth` limits all that is sent, None: nothing does. With `rest` what nobody has asked
    for is sent, too. Where a page is needed, `prefetch` are asked for.
    """

    latency: float
    bandwidth: float | None = None
    prefetch: int = 1
    rest: bool = False


class _LateLink(SlowLink):
    """Adds its latency only from the time on when the work begins: how the guest gets to that is not measured."""

    begun = False

    def due(self) -> float:
        return super().due() if self.begun else time.monotonic()


@dataclass(frozen=True, slots=True)
class Run:
    """What the guest says of its work, seconds of it on the host's clock, and how the migration went."""

    done: Done
    host: float
    status: MigrationStatus


class Place:
    """`sdeivirt` with a verb that runs a guest, in a process of its own. A context manager.

    `said` is what it has told on standard error; its terminal is that of the guest: `shell`. It ends
    when the thread dies that has made it, be it killed.
    """

    def __init__(self, words: Sequence[str]) -> None:
        self._directory = tempfile.TemporaryDirectory(prefix="sdeivirt-")
        self.path = Path(self._directory.name)
        self.began = time.perf_counter()
        killer = shutil.which("setpriv")
        tie = [killer, "--pdeathsig", "TERM", "--"] if killer is not None else []
        self._process = subprocess.Popen(
            [*tie, sys.executable, "-m", "sdeivirt", *(word.replace("{}", str(self.path)) for word in words)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=os.environ | {"XDG_RUNTIME_DIR": str(self.path)},
            start_new_session=True,  # Ctrl-C is ours
        )
        self._changed = threading.Condition()
        self.said = ""
        self.shell = Shell(self._type, lambda: self._process.poll() is not None)
        self._readers = [
            threading.Thread(target=self._read_errors, daemon=True),
            threading.Thread(target=self._read_output, daemon=True),
        ]
        for reader in self._readers:
            reader.start()

    def _type(self, data: bytes) -> int:
        assert self._process.stdin is not None
        self._process.stdin.write(data)
        self._process.stdin.flush()
        return len(data)

    def _read_errors(self) -> None:
        assert self._process.stderr is not None
        for line in self._process.stderr:
            with self._changed:
                self.said += line.decode("utf-8", "replace")
                self._changed.notify_all()
        with self._changed:
            self._changed.notify_all()

    def _read_output(self) -> None:
        assert self._process.stdout is not None
        while data := self._process.stdout.read1(4096):  # type: ignore[attr-defined]
            self.shell.feed(data)

    def wait_for(self, text: str, seconds: float = _PATIENCE) -> float:
        """Wait until it has said that; seconds since it was started. Raises RuntimeError."""
        with self._changed:
            self._changed.wait_for(lambda: text in self.said or self._process.poll() is not None, seconds)
            found = time.perf_counter() - self.began
            if text not in self.said:
                raise RuntimeError(f"no {text!r} from the other process: {self.said}")
        return found

    def end(self) -> None:
        """Have it end as a user would."""
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(_ENDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        for reader in self._readers:
            reader.join()
        for pipe in (self._process.stdin, self._process.stdout, self._process.stderr):
            assert pipe is not None
            with suppress(BrokenPipeError):
                pipe.close()
        self._directory.cleanup()

    def __enter__(self) -> Place:
        return self

    def __exit__(self, *_error: object) -> None:
        self.end()


@contextmanager
def restored(kit: Kit, snapshot: Path) -> Iterator[Machine]:
    """A machine of this process on which the guest of a snapshot has gone on."""
    incoming = Incoming(None, open_file(parse_uri(f"file:{snapshot}")))
    with closing(incoming):
        configuration = incoming.configuration()
        arrived = threading.Event()
        incoming.arrived = arrived.set
        with open_machine(kit.kind, configuration.config("bench", None, kit.engine())) as machine:
            incoming.start(machine, Progress())
            if not arrived.wait(_PATIENCE):
                raise RuntimeError(f"the snapshot was not restored: {incoming.progress.now.error}")
            yield machine


def run_here(kit: Kit, snapshot: Path, work: Work) -> Done:
    """The work where all pages are."""
    with restored(kit, snapshot) as machine:
        shell = Shell(machine.type_in, lambda: machine.state == "stopped")
        machine.console = shell.feed
        kit.warm(shell, work)
        kit.go(shell)
        return kit.finish(shell, _WORK_SECONDS)


def run_behind(kit: Kit, snapshot: Path, work: Work, link: Link) -> Run:
    """The work at a place to which the guest has gone before its pages."""
    progress = Progress()
    slow = _LateLink(link.latency, link.bandwidth)
    options = SourceOptions(postcopy=0, link=slow, rest=link.rest)
    words = ["run", "--incoming", "unix:{}/there", "--name", "there", "--prefetch", str(link.prefetch)]
    with Place(words) as there, restored(kit, snapshot) as machine:
        there.wait_for("waiting for a guest at ")
        outgoing = Outgoing(machine, parse_uri(f"unix:{there.path}/there"), options, progress)
        thread = threading.Thread(target=outgoing.run, name="bench-source", daemon=True)
        thread.start()
        try:
            there.wait_for(" goes on here")
            kit.warm(there.shell, work)
            slow.begun = True
            begin = time.perf_counter()
            kit.go(there.shell)
            done = kit.finish(there.shell, _WORK_SECONDS)
            host = time.perf_counter() - begin
            status = progress.now
        finally:
            there.end()
            machine.stop()
            thread.join()
    return Run(done, host, status)
