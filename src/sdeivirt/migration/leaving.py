# SPDX-License-Identifier: Apache-2.0
"""A guest that is leaving: how, where to, and whether it stands still for that."""

from __future__ import annotations

import os
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from .. import __version__
from ..errors import MigrationError, UsageError
from ..machine.base import Machine
from .channel import Interrupt, TlsCredentials, Uri, connect
from .description import CONFIGURATION, Configuration
from .detour import HeldInjections
from .identity import Identity
from .messages import Hello, Kind
from .sections import pack
from .slow import SlowLink
from .status import Progress
from .wire import Wire

__all__ = ["Leaving", "SourceOptions"]

_STOPPED_STALL = 10.0  # seconds without progress while the guest is stopped


@dataclass(frozen=True, slots=True)
class SourceOptions:
    """How to move a guest.

    `downtime` is how long it may be stopped, in seconds; `bandwidth` the most bytes a
    second; `compress` a zstd level, 0 for none; `tls` a directory of credentials, and `tls_hostname` whom the
    destination's certificate has to name, in place of the URI's host;
    `insecure` allows plain TCP to other hosts. `stop_first` stops the guest
    before the first pass, `stay` lets it go on here afterwards: both for files.
    `overwrite` lets a file take the place of one that is there. After `stall`
    seconds in which nothing moves it is given up; while the guest is stopped, after 10 at most.
    `postcopy` lets the guest go on at the destination after so many passes, 0 for at once, and sends what is left then;
    for experiments over a slower `link`, and without `rest` only what is asked for.
    Raises UsageError for a name without credentials.
    """

    downtime: float = 0.3
    bandwidth: int | None = None
    compress: int = 0
    tls: Path | None = None
    tls_hostname: str = ""
    insecure: bool = False
    stop_first: bool = False
    stay: bool = False
    overwrite: bool = False
    stall: float = 30.0
    postcopy: int | None = None
    link: SlowLink | None = None
    rest: bool = True

    def __post_init__(self) -> None:
        if self.bandwidth is not None and self.bandwidth <= 0:
            raise UsageError(
                f"{self.bandwidth} bytes a second would take for ever", "leave the limit out, or give more than 0"
            )
        if self.tls_hostname and self.tls is None:
            raise UsageError("a name for the destination's certificate is of no use without TLS", "add --tls-creds DIR")

    def credentials(self) -> TlsCredentials | None:
        """Those of TLS, if it is to be used. Raises UsageError."""
        return None if self.tls is None else TlsCredentials.load(self.tls, server=False, hostname=self.tls_hostname)


class Leaving:
    """What all steps of one attempt to move a guest have in common. `uri` and `options` may change on the way.

    `migration` names the attempt, `destination` is the process that the guest goes to, which may have everything
    once `whole` is set.
    Who pauses the machine or lets it go on holds `run_state`, and leaves it alone while `held` is set.
    """

    def __init__(self, machine: Machine, uri: Uri, options: SourceOptions, progress: Progress) -> None:
        self.machine = machine
        self.uri = uri
        self.options = options
        self.progress = progress
        self.migration = os.urandom(16)
        self.detour = HeldInjections()
        self.destination: Identity | None = None
        self.run_state = threading.Lock()
        self.held = False
        self.was_paused = False
        self.stopped_at = 0.0
        self.whole = False

    def describe(self, wire: Wire) -> None:
        """What the machine is made of."""
        configuration = pack(CONFIGURATION, Configuration.of(self.machine.kind, self.machine.config))
        wire.send(Kind.CONFIGURATION, configuration.data, version=configuration.version)

    def stop(self) -> None:
        """Let it stand still. Raises MigrationError where it has ended."""
        with self.run_state:
            self.held = True
            self.stopped_at = time.monotonic()
            self.was_paused = self.was_paused or self.machine.state == "paused"
            self.stopped_at = self.machine.pause_to_save()
        if self.machine.state != "paused":
            raise MigrationError("the guest has ended meanwhile", "")
        self.progress.update(status="device")

    def go_on(self) -> None:
        """It stays: let it go on, if it did when it was stopped, and take what was injected meanwhile."""
        machine = self.machine
        machine.limit_dirtying(None)
        machine.stop_dirty_log()
        stood = 0.0
        with self.run_state:
            if self.held:
                self.held = False
                machine.keep_state()
                if not self.was_paused:
                    machine.resume()
                stood = time.monotonic() - self.stopped_at
        if stood:
            self.progress.update(downtime=stood)
        self.detour.stay(machine)

    def connect_again(self, limit: float, attempt: Interrupt | None = None) -> Wire:
        """Another connection to the destination, which is asked how far it has got. Raises ChannelError.

        `attempt` ends it, as long as that is what the channel hears.
        """
        options = self.options
        channel = connect(self.uri, options.credentials(), options.insecure, limit, attempt)
        channel.stall = self.stopped_stall
        wire = Wire(channel, "the destination")
        channel.hearing = attempt
        try:
            wire.say(Kind.HELLO, Hello(self.migration, f"sdeivirt {__version__}", Identity.ours(), asks=True))
        except BaseException:
            channel.close()
            raise
        return wire

    @property
    def stopped_stall(self) -> float:
        """Seconds in which nothing moves, after which it is given up while the guest stands still."""
        return min(_STOPPED_STALL, self.options.stall)
