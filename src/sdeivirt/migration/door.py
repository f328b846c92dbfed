# SPDX-License-Identifier: Apache-2.0
"""Who comes to a place after a guest has been let in: its own source, once more, or somebody with another guest.

A source that has lost its connection makes another and asks how far its guest has got. It is told at once,
whatever else goes on here, and what it says then is read by whoever takes that connection from here. Anybody
else is told at once that this place is taken, and does not have to find out by waiting.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable

from .. import __version__
from ..errors import MigrationError, SdeivirtError
from .channel import Channel, Listener
from .identity import Identity
from .messages import Failure, Hello, Kind, Stage
from .wire import Wire

__all__ = ["Door"]

_log = logging.getLogger(__name__)

_HELLO_STALL = 5.0  # seconds for who comes to say who it is


class Door:
    """Answers a listener, on a thread of its own, until that is closed."""

    def __init__(
        self, listener: Listener, migration: bytes, stage: Callable[[], Stage], lost: Callable[[], None]
    ) -> None:
        """For the guest of one migration. `stage` says how far it has got here; `lost` is called when its source
        has come again: it knows better than we do that the connection before is dead."""
        self._listener = listener
        self._migration = migration
        self._stage = stage
        self._lost = lost
        self._changed = threading.Condition()
        self._inside: deque[Wire] = deque()
        self._guest: Channel | None = None  # who is being heard
        self._shut = False
        self._thread = threading.Thread(target=self._run, name="migration-door", daemon=True)
        self._thread.start()

    def next(self, limit: float) -> Wire | None:
        """The guest's source, which has come again and been told how far it has got; None if not in so many seconds.

        Raises MigrationError once the listener is closed.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._inside or self._shut, limit)
            if self._inside:
                return self._inside.popleft()
            if self._shut:
                raise MigrationError("nobody can come any more")
            return None

    def close(self) -> None:
        """Close the listener, and whatever waits or is heard. Not on the door's own thread; can be called twice."""
        self._listener.close()
        with self._changed:
            self._shut = True
            if self._guest is not None:
                self._guest.abort()
        self._thread.join()

    def _run(self) -> None:
        try:
            while True:
                self._meet(self._listener.accept())
        except (SdeivirtError, OSError) as error:
            _log.debug("nobody can come any more: %s", error)
        finally:
            with self._changed:
                self._shut = True
                for wire in self._inside:
                    wire.channel.abort()
                    wire.channel.close()
                self._inside.clear()
                self._changed.notify_all()

    def _meet(self, channel: Channel) -> None:
        channel.stall = _HELLO_STALL
        with self._changed:
            self._guest = channel
            if self._shut:
                channel.abort()
        wire = Wire(channel, "the source")
        try:
            hello = wire.expect(Kind.HELLO, Hello)
            ours = hello.asks and hello.migration == self._migration
            stage = self._stage()
            said = stage if ours else Stage.NEW
            wire.say(Kind.HELLO, Hello(hello.migration, f"sdeivirt {__version__}", Identity.ours(), stage=said))
            if not ours:
                here = stage in (Stage.RUNNING, Stage.SETTLED)
                raise MigrationError("another guest has come here" if here else "another guest is on its way here")
        except (SdeivirtError, OSError) as error:
            _log.warning("%s was sent away: %s", channel.peer, error)
            wire.give_up(Failure(error.message if isinstance(error, SdeivirtError) else str(error)))
            channel.close()
            return
        with self._changed:
            self._lost()  # before, so that it cannot be this one
            self._inside.append(wire)
            self._changed.notify_all()
