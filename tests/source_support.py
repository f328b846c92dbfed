# SPDX-License-Identifier: Apache-2.0
"""For tests of the source: a destination that a test plays by itself, frame by frame."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from sdeivirt.machine import Machine
from sdeivirt.migration.channel import Listener, parse_uri
from sdeivirt.migration.identity import Identity
from sdeivirt.migration.messages import Hello, Kind
from sdeivirt.migration.source import Outgoing, SourceOptions
from sdeivirt.migration.status import MigrationStatus, Progress
from sdeivirt.migration.wire import Wire

from .channel_support import background
from .control_support import LIMIT

__all__ = ["moved"]


def moved(machine: Machine, talk: Callable[[Wire], None], directory: Path) -> MigrationStatus:
    """What the source says of a migration to a place that does this after HELO and CONF."""
    with Listener(parse_uri(f"unix:{directory}/there")) as listener:

        def destination() -> None:
            channel = listener.accept(LIMIT)
            assert channel is not None
            wire = Wire(channel, "the source")
            hello = wire.expect(Kind.HELLO, Hello)
            wire.say(Kind.HELLO, Hello(hello.migration, "test", Identity.ours()))
            assert wire.next().kind == Kind.CONFIGURATION
            talk(wire)
            channel.close()

        talking = background(destination)
        progress = Progress()
        Outgoing(machine, listener.uri, SourceOptions(stall=LIMIT), progress).run()
        talking.result(LIMIT)
    return progress.now
