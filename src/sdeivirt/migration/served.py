# SPDX-License-Identifier: Apache-2.0
"""Serves the pages of a guest that was saved, to all who want to go on with it: lazy.py has the other side."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace

from .. import __version__
from ..errors import MigrationError, SdeivirtError
from ..machine.base import PAGE_SIZE
from .channel import Channel, ChannelCancelledError, ChannelCutError, Listener, Pace
from .identity import Identity
from .index import FileIndex
from .lacking import pack_map, read_map
from .messages import Failure, Hello, Kind, Ready, Stage
from .pageserver import PageServer, ServerOptions
from .slow import SlowLink
from .wire import RefusedError, Wire

__all__ = ["FileServer"]

_HELLO_STALL = 5.0
_READY_STALL = 60.0  # a machine is made there meanwhile
_MOST_FAILED = 100


class FileServer:
    """One file, one listener, any number of guests that begin with what is in it, each on a thread of its own."""

    def __init__(
        self,
        index: FileIndex,
        listener: Listener,
        options: ServerOptions,
        link: Callable[[], SlowLink] = SlowLink,
        tell: Callable[[str], None] = lambda _: None,
    ) -> None:
        """`link` makes the link of one guest, `options` says the rest; `tell` is told who comes and goes.

        It is called on any thread. Whoever is sent away comes again twice a second: that is told once,
        until it ends otherwise.
        """
        self._index = index
        self._listener = listener
        self._options = options
        self._link = link
        self._tell = tell
        self._failed: dict[str, str] = {}  # who was sent away last, and why
        self._lock = threading.Lock()
        self._serving: dict[threading.Thread, Channel] = {}

    def run(self) -> None:
        """Until :meth:`close`."""
        try:
            while True:
                channel = self._listener.accept()
                thread = threading.Thread(target=self._serve, args=(channel,), name="serve", daemon=True)
                with self._lock:
                    self._serving[thread] = channel
                thread.start()
        except ChannelCancelledError:
            pass

    def close(self) -> None:
        """End everything. From any thread; can be called twice."""
        self._listener.close()
        with self._lock:
            serving = dict(self._serving)
        for channel in serving.values():
            channel.abort()
        for thread in serving:
            thread.join()

    def _serve(self, channel: Channel) -> None:
        wire = Wire(channel, "the guest's VM")
        try:
            self._talk(wire)
        except (ChannelCutError, RefusedError):
            self._say(channel, "has left before it had all pages")
        except ChannelCancelledError:
            pass  # it is us who end
        except (SdeivirtError, OSError) as error:
            message = error.message if isinstance(error, SdeivirtError) else str(error)
            wire.give_up(Failure(message, error.hint if isinstance(error, SdeivirtError) else ""))
            self._say(channel, f"was sent away: {message}", failed=True)
        finally:
            channel.close()
            with self._lock:
                del self._serving[threading.current_thread()]

    def _say(self, channel: Channel, text: str, *, failed: bool = False) -> None:
        """A line about who is there; not again what has been said of a failure."""
        who = channel.peer
        key = who.rpartition(":")[0] if who.startswith("tcp:") else who  # each connection has a port of its own
        with self._lock:
            if failed and self._failed.get(key) == text:
                return
            if failed:
                if len(self._failed) >= _MOST_FAILED:
                    self._failed.clear()
                self._failed[key] = text
            else:
                self._failed.pop(key, None)
        self._tell(f"{who} {text}")

    def _talk(self, wire: Wire) -> None:
        channel, index = wire.channel, self._index
        channel.stall = _HELLO_STALL
        hello = wire.expect(Kind.HELLO, Hello)
        known = hello.asks and hello.migration == index.migration
        wire.say(
            Kind.HELLO,
            Hello(
                index.migration,
                f"sdeivirt {__version__}",
                Identity.ours(),
                stage=Stage.RUNNING if known else Stage.NEW,
                serves=True,
            ),
        )
        if hello.asks and not known:
            raise MigrationError("the state of another guest was asked for", "serve the same file as before")
        channel.stall = _READY_STALL
        if not hello.asks:
            self._begin(wire)
        frame = wire.next()
        if frame.kind != Kind.LACK:
            raise MigrationError(f"there came {frame} where the pages that are lacking were to be told")
        lacking = read_map(frame, index.configuration.memory // PAGE_SIZE)
        if not hello.asks or not self._failed:
            again = " again" if hello.asks else ""
            self._tell(f"{channel.peer} is here{again}, and lacks {lacking.count(1):,} pages")
        options = self._options
        if options.pace is not None:
            options = replace(options, pace=Pace(options.pace.bytes_per_second))
        PageServer(wire, index, lacking, replace(options, link=self._link())).run()
        self._say(channel, "needs no more pages")

    def _begin(self, wire: Wire) -> None:
        """All but the pages."""
        index = self._index
        wire.send(Kind.CONFIGURATION, index.description.data, version=index.description.version)
        wire.expect(Kind.READY, Ready)
        wire.send(Kind.LACK, pack_map(index.lacking))
        frames = wire.writer.describe(index.sections)
        for section in index.sections:
            frames += wire.writer.section(section)
        wire.send_frames(frames + wire.writer.end(0))
