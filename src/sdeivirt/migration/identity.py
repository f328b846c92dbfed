# SPDX-License-Identifier: Apache-2.0
"""Which process the other side is, and whether it is certain that it has ended.

A process is known by its number and its start time, in its pid namespace, of
one boot of one host. From elsewhere nothing can be known of it: a connection
that breaks proves nothing, and a guest that could run twice must not.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from pathlib import Path

from .sections import Record

__all__ = ["Identity", "dies", "is_dead"]

_PROC = Path("/proc")
_GRACE, _TICK = 1.0, 0.025  # seconds for a process that is being killed
_MAX_PID = 1 << 22  # PID_MAX_LIMIT of Linux
# /proc/PID/stat: what follows the name, counted from 0: proc(5) has state as field 3, starttime as field 22.
_STATE, _START_TIME = 0, 19


class Identity(Record, frozen=True):
    """A process. What its system does not tell is empty, or 0; then nothing can be known of it either.

    `started` is in clock ticks since the host's boot, as the time namespace sees it.
    """

    boot: str = ""
    pid_namespace: str = ""
    time_namespace: str = ""
    pid: int = 0
    started: int = 0
    host: str = ""

    @classmethod
    def ours(cls) -> Identity:
        """This process."""
        pid = os.getpid()
        boot, pid_namespace, time_namespace = _surroundings()
        with contextlib.suppress(OSError, ValueError):
            # Another namespace's /proc may be mounted here.
            if boot and os.readlink(_PROC / "self") == str(pid):
                started = int(_stat(pid)[_START_TIME])
                return cls(boot, pid_namespace, time_namespace, pid, started, socket.gethostname())
        return cls(pid=pid, host=socket.gethostname())

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"


def is_dead(identity: Identity) -> bool | None:
    """Whether that process has ended: True if that is certain, False if it lives, None if it cannot be known.

    A zombie has ended. A host that was cloned with its memory while it ran
    passes for the same one.
    """
    ours = Identity.ours()
    known = (identity.boot, identity.pid_namespace, identity.time_namespace)
    if not ours.started or not identity.started or known != (ours.boot, ours.pid_namespace, ours.time_namespace):
        return None
    if not 0 < identity.pid <= _MAX_PID:
        return None
    try:
        os.kill(identity.pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:  # it exists
        pass
    try:
        stat = _stat(identity.pid)
        if int(stat[_START_TIME]) != identity.started:
            return True
        return _has_ended(stat) and all(_has_ended(_stat(identity.pid, task)) for task in _tasks(identity.pid))
    except (OSError, ValueError, IndexError):
        return _gone(identity.pid)


def dies(identity: Identity) -> bool:
    """Whether that process has certainly ended, or does within a moment: a connection can be told of it first."""
    deadline = time.monotonic() + _GRACE
    while (dead := is_dead(identity)) is False and time.monotonic() < deadline:
        threading.Event().wait(_TICK)
    return bool(dead)


def _surroundings() -> tuple[str, str, str]:
    """Boot id, pid namespace, time namespace; empty where there are none."""
    try:
        boot = (_PROC / "sys/kernel/random/boot_id").read_text().strip()
        pid_namespace = os.readlink(_PROC / "self/ns/pid")
    except OSError:
        return "", "", ""
    try:
        return boot, pid_namespace, os.readlink(_PROC / "self/ns/time")
    except OSError:  # before Linux 5.6
        return boot, pid_namespace, ""


def _stat(pid: int, task: int | None = None) -> list[str]:
    path = _PROC / str(pid) / "stat" if task is None else _PROC / str(pid) / "task" / str(task) / "stat"
    # The name, in parentheses, can hold anything, parentheses too.
    return path.read_text(errors="replace").rpartition(")")[2].split()


def _tasks(pid: int) -> list[int]:
    # The first thread may have ended while others go on.
    return [int(name) for name in os.listdir(_PROC / str(pid) / "task")]


def _has_ended(stat: list[str]) -> bool:
    return stat[_STATE] in ("Z", "X")


def _gone(pid: int) -> bool | None:
    """/proc does not show it: has it ended this moment, or is it hidden from us?"""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        pass
    return None
