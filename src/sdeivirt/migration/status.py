# SPDX-License-Identifier: Apache-2.0
"""How far a migration has got: one record, for people, for JSON and for QMP."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

__all__ = ["MigrationStatus", "Progress"]

_INTERVAL = 0.1  # seconds between two reports within one phase


@dataclass(frozen=True, slots=True)
class MigrationStatus:
    """A migration, from one side.

    `status` has QEMU's names where QEMU has one (qapi/migration.json,
    MigrationStatus): none, setup, active (the guest runs), device (it is
    stopped), completed, failed, cancelled; postcopy-active (it runs at the destination, and its pages
    follow), postcopy-paused (they cannot, for the connection is broken), postcopy-recover (another is
    being made); and of our own: undecided (nobody may run the guest before the other side has been heard).
    `role` is source or destination. Pages are of 4 KiB: `total` of the guest's RAM, `remaining`
    of the present pass; `plain`, `zero` and `duplicate` were sent as such, all passes together.
    `bytes` went through the channel; `rate` in bytes a second; times in seconds.
    `expected_downtime` is what stopping the guest now would cost, `downtime_limit` what it may cost, `limit` how
    many new pages a second its vCPUs may begin to write, None if they may as they please.
    Of post-copy: `remaining` counts pages that are still to come, `unneeded` those that never came since the guest
    has ended at the destination or was reset there, `requests` what the destination asked for,
    `faults` accesses to pages that were not there; `fault_median` and `fault_slowest` (the 99th percentile)
    say how long the last 10,000 of these took, in seconds.
    """

    status: str = "none"
    role: str = "source"
    uri: str = ""
    passes: int = 0
    total: int = 0
    remaining: int = 0
    dirty: int = 0
    plain: int = 0
    zero: int = 0
    duplicate: int = 0
    bytes: int = 0
    rate: float = 0.0
    elapsed: float = 0.0
    downtime: float = 0.0
    expected_downtime: float = 0.0
    downtime_limit: float | None = None
    limit: int | None = None
    unneeded: int = 0
    requests: int = 0
    faults: int = 0
    fault_median: float = 0.0
    fault_slowest: float = 0.0
    error: str = ""
    hint: str = ""

    @property
    def active(self) -> bool:
        """Whether it is under way."""
        return self.status in ("setup", "active", "device", "undecided", "postcopy-active", "postcopy-recover")


@dataclass(slots=True)
class Progress:
    """Keeps the record up to date, and tells of it now and then. `tell` is called from the migration's thread."""

    tell: Callable[[MigrationStatus], None] = lambda _status: None
    now: MigrationStatus = field(default_factory=MigrationStatus)
    sent: Callable[[], int] | None = None  # how many bytes went through the channel, if that is known better
    _began: float = field(default_factory=time.monotonic)
    _told: float = 0.0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def fresh(self) -> MigrationStatus:
        """The record as of now, though nothing may have changed for a while but the time and the bytes."""
        with self._lock:
            status, sent = self.now, self.sent
            if not status.active:
                return status
            elapsed = time.monotonic() - self._began
            count = status.bytes if sent is None else max(sent(), status.bytes)
            known = count == status.bytes and not status.status.startswith("postcopy")
            rate = status.rate if known or not elapsed else count / elapsed
            return replace(status, elapsed=elapsed, bytes=count, rate=rate)

    def update(self, **changes: Any) -> None:
        """Change members; told at once where the status or the pass is another, else when it is time."""
        now = time.monotonic()
        with self._lock:
            old = self.now
            elapsed = now - self._began if self.now.active or changes.get("status") else old.elapsed
            self.now = replace(old, elapsed=elapsed, **changes)
            if elapsed and "rate" not in changes and ("bytes" in changes or old.status.startswith("postcopy")):
                self.now = replace(self.now, rate=self.now.bytes / elapsed)  # of all of it
            due = now - self._told >= _INTERVAL or (old.status, old.passes) != (self.now.status, self.now.passes)
            if due:
                self._told = now
            status = self.now
        if due:
            self.tell(status)
