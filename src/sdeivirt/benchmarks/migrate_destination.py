# SPDX-License-Identifier: Apache-2.0
"""Where the guests of a measurement go: `sdeivirt run --incoming` in a process of its own, and the way there."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from ..machine import Machine
from ..migration.channel import parse_uri
from ..migration.source import Outgoing, SourceOptions
from ..migration.status import MigrationStatus, Progress

__all__ = ["Moved", "destination", "move"]

_WAITS = "waiting for a guest at "
_ENDS = 10.0  # seconds for a destination to end by itself


class _Destination:
    """The process; `uri` is where it waits."""

    def __init__(self, directory: Path, scheme: str) -> None:
        runtime = directory / "run"
        runtime.mkdir(mode=0o700)
        uri = f"unix:{directory / 'there'}" if scheme == "unix" else "tcp:127.0.0.1:0"
        self.process = subprocess.Popen(
            [sys.executable, "-m", "sdeivirt", "run", "--incoming", uri, "--name", "there"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"XDG_RUNTIME_DIR": str(runtime)},
        )
        self._said: list[str] = []
        self._listening = threading.Event()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self._listening.wait()
        if not self.uri:
            self.end()
            raise RuntimeError(f"no destination: {self.said}")

    @property
    def uri(self) -> str:
        lines = [line for line in self._said if _WAITS in line]
        return lines[0].partition(_WAITS)[2].partition(";")[0] if lines else ""

    @property
    def said(self) -> str:
        return "".join(self._said)

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self._said.append(line)
            if _WAITS in line:
                self._listening.set()
        self._listening.set()

    def end(self) -> None:
        self.process.terminate()
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(_ENDS)
        self.process.kill()
        self.process.wait()
        self._reader.join()
        if self.process.stderr is not None:
            self.process.stderr.close()


@contextmanager
def destination(scheme: str = "unix") -> Iterator[_Destination]:
    """A process that waits for a guest, and ends with the block."""
    with tempfile.TemporaryDirectory(prefix="sdeivirt-") as directory:
        there = _Destination(Path(directory), scheme)
        try:
            yield there
        finally:
            there.end()


@dataclass(frozen=True, slots=True)
class Moved:
    """A migration that came to its end, in seconds.

    `sending` is from the first page to the end; `running` from there until the guest was stopped, and `counted` what
    the guest counted of its work meanwhile.
    """

    status: MigrationStatus
    total: float
    sending: float
    running: float
    counted: int = 0

    @property
    def downtime(self) -> float:
        return self.status.downtime


def move(
    machine: Machine,
    uri: str,
    options: SourceOptions = SourceOptions(),  # noqa: B008 (frozen)
    count: Callable[[], int] = lambda: 0,
) -> Moved:
    """Move the guest of a machine of this process. Raises RuntimeError where it stays."""
    reached: dict[str, tuple[float, int]] = {}

    def tell(status: MigrationStatus) -> None:
        if status.status not in reached:
            reached[status.status] = time.perf_counter(), count() if status.active else 0

    progress = Progress(tell)
    begin = time.perf_counter()
    Outgoing(machine, parse_uri(uri), options, progress).run()
    status = progress.now
    if status.status != "completed":
        raise RuntimeError(f"the guest was not moved: {status.error or status.status}")
    (end, _), (active, before), (stopped, after) = (reached[each] for each in ("completed", "active", "device"))
    return Moved(status, end - begin, end - active, stopped - active, after - before)
