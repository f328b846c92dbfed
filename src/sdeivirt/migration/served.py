# SPDX-License-Identifier: Apache-2.0
"""Serves the pages of a guest that was saved, to all who want to go on with it: lazy.py has the other side."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import replace

from .. import __version__
from ..errors import MigrationError, SdeivirtError
from ..machine.base import PAGE_SIZE
from .channel import Channel, ChannelCancelledError, Listener, Pace
from .identity import Identity
from .index import FileIndex
from .lacking import pack_map, read_map
from .messages import Failure, Hello, Kind, Ready, Stage
from .pageserver import PageServer, ServerOptions
from .slow import SlowLink
from .wire import RefusedError, Wire

__all__ = ["FileServer"]

_log = logging.getLogger(__name__)

_HELLO_STALL = 5.0
_READY_STALL = 60.0  # a machine is made there meanwhile


class FileServer:
    """One file, one listener, any number of guests that begin with what is in it, each on a thread of its own."""

    def __init__(
        self, index: FileIndex, listener: Listener, options: ServerOptions, link: Callable[[], SlowLink] = SlowLink
    ) -> None:
        """`link` makes the link of one guest, `options` says the rest."""
        self._index = index
        self._listener = listener
        self._options = options
        self._link = link
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
        except (SdeivirtError, OSError) as error:
            if not isinstance(error, RefusedError | ChannelCancelledError):
                wire.give_up(Failure(error.message if isinstance(error, SdeivirtError) else str(error)))
            _log.warning("%s: %s", channel.peer, error)
        finally:
            channel.close()
            with self._lock:
                del self._serving[threading.current_thread()]

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
        _log.info("%s lacks %d pages", channel.peer, lacking.count(1))
        options = self._options
        if options.pace is not None:
            options = replace(options, pace=Pace(options.pace.bytes_per_second))
        PageServer(wire, index, lacking, replace(options, link=self._link())).run()
        _log.info("%s has all pages", channel.peer)

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
