# SPDX-License-Identifier: Apache-2.0
"""A guest that was saved goes on before its pages have been read: out of a file here, or from who serves one elsewhere.

    restore --lazy                                serve FILE URI
    HELO  who I am                           -->
                                             <--  HELO  which state this is
                                             <--  CONF  what the machine is made of
    REDY                                     -->
                                             <--  LACK, DESC, SECT ..., END
    LACK, WANT, GOT                          -->         it runs here from now on
                                             <--  GIVE, PAGE, ZERO ...
    HAVE                                     -->
                                             <--  HAVE

Nobody hands a guest over: the file stays as it is. Whoever fetches connects again when the connection breaks,
says HELO with `asks` and the same migration, and goes on with LACK.
"""

from __future__ import annotations

import logging
import threading
import time
from pathlib import Path

from .. import __version__
from ..errors import MigrationError, SdeivirtError, StateError, StreamError
from ..machine.base import PAGE_SIZE
from .arriving import PagesAhead, Standstill
from .channel import ChannelError, TlsCredentials, Uri, connect
from .description import CONFIGURATION, Configuration, read_configuration
from .destination import Incoming
from .identity import Identity
from .index import FileIndex
from .lacking import read_map
from .messages import Hello, Kind, Ready, Stage
from .pager import tell_figures
from .sections import Section
from .stream import Sections
from .wants import PREFETCH, Wants
from .wire import Wire

__all__ = ["FetchedGuest", "LazyFile"]

_log = logging.getLogger(__name__)

_PIECE = 64  # pages that are read at once where nobody waits for them
_CONNECT = 10.0
_STALL = 60.0
_RETRY = 0.5
_TELL = 0.1


def _check_devices(configuration: Configuration) -> None:
    """Raises StateError for a guest with devices: before it is asked for the same ones, which would not help."""
    if configuration.engine.get("any-arguments") or configuration.engine.get("arguments"):
        raise StateError(
            "this guest has devices of QEMU's, which access RAM by themselves and cannot wait for a page",
            "restore it without --lazy",
        )


class LazyFile(Incoming):
    """A guest in a file: those of its pages that are needed are read first, the others when nothing else is to do."""

    def __init__(self, path: Path, prefetch: int = PREFETCH) -> None:
        """Goes through the file. Raises UsageError, StreamError."""
        super().__init__(None)
        self._index = FileIndex(path)
        try:
            _check_devices(self._index.configuration)
        except BaseException:
            self._index.close()
            raise
        self._lacking = Wants(self._index.lacking, prefetch)

    def configuration(self) -> Configuration:
        return self._index.configuration

    def _origin(self) -> str:
        return f"file:{self._index.path}"

    def refuse(self, error: SdeivirtError) -> None:
        self.close()

    def close(self) -> None:
        self._lacking.stop()
        if self._thread is not None:
            self._thread.join()
        self._index.close()

    def _run(self) -> None:
        machine, progress, wants = self._machine, self._progress, self._lacking
        try:
            machine.standing().result()
            machine.lack_pages(wants.map(), wants)
            machine.load_state(self._index.sections)
        except BaseException as error:
            self._fail(error)
            return
        self.standstill = Standstill(machine)
        progress.update(status="postcopy-active", remaining=wants.left)
        machine.resume()
        self.arrived()
        try:
            self._read()
        except (SdeivirtError, OSError) as error:
            self.standstill.begin()
            message = error.message if isinstance(error, SdeivirtError) else str(error)
            progress.update(status="failed", error=message, hint="the guest stays paused, and cannot go on")
            _log.warning("the guest stands still, for its pages cannot be read: %s", message)

    def _read(self) -> None:
        wants, at, read = self._lacking, 0, 0
        told = time.monotonic()

        def tell() -> None:
            tell_figures(self._machine, wants, self._progress, plain=read, bytes=read * PAGE_SIZE)

        while wants.left and not wants.stopped:
            runs = wants.take() or [wants.rest(at, _PIECE)]
            for first, count in runs:
                for begin in range(first, first + count, _PIECE):
                    many = min(_PIECE, first + count - begin)
                    self._machine.supply_pages(begin, self._index.read(begin, many))
                    wants.came(begin, many)
                    read += many
                at = first + count
            if time.monotonic() - told >= _TELL:
                told = time.monotonic()
                tell()
        if not wants.left:
            tell()
            self._progress.update(status="completed")


class FetchedGuest(Incoming):
    """A guest whose state comes from a page server."""

    def __init__(
        self, uri: Uri, tls: TlsCredentials | None = None, insecure: bool = False, prefetch: int = PREFETCH
    ) -> None:
        super().__init__(None, None, prefetch)
        self._uri = uri
        self._tls = tls
        self._insecure = insecure
        self._closing = threading.Event()
        self._said = ""  # why there was no other connection, last

    def configuration(self) -> Configuration:
        """Connect, and hear what the guest's machine is made of. Raises MigrationError, UsageError."""
        wire, hello = self._connect(bytes(16), asks=False)
        try:
            frame = wire.next()
            if frame.kind != Kind.CONFIGURATION:
                raise StreamError(f"the stream has no description of a machine at offset {frame.offset:#x}")
            configuration = read_configuration(Section(CONFIGURATION, 0, frame.version, bytes(frame.payload)))
            _check_devices(configuration)
        except BaseException:
            wire.channel.close()
            raise
        self._wire, self._hello = wire, hello
        return configuration

    def _connect(self, migration: bytes, *, asks: bool) -> tuple[Wire, Hello]:
        try:
            channel = connect(self._uri, self._tls, self._insecure, _CONNECT)
        except ChannelError as error:
            raise type(error)(error.message, f"start it: `sdeivirt serve FILE {self._uri}`") from error
        channel.stall = _CONNECT
        wire = Wire(channel, "the page server")
        try:
            wire.say(Kind.HELLO, Hello(migration, f"sdeivirt {__version__}", Identity.ours(), asks=asks))
            hello = wire.expect(Kind.HELLO, Hello)
            if not hello.serves:
                raise MigrationError(f"at {self._uri} is no page server", "start one: `sdeivirt serve FILE URI`")
            if asks and (hello.migration != migration or hello.stage is Stage.NEW):
                raise MigrationError(f"at {self._uri} is the state of another guest", "serve the same file again")
        except BaseException:
            channel.close()
            raise
        return wire, hello

    def _origin(self) -> str:
        return str(self._uri)

    def refuse(self, error: SdeivirtError) -> None:
        self.close()

    def close(self) -> None:
        self._closing.set()
        super().close()

    def _run(self) -> None:
        try:
            self._fetch()
        except BaseException as error:
            self._fail(error)
            return
        assert self._wants is not None
        self.standstill = Standstill(self._machine)
        hint = f"serve the same file again: `sdeivirt serve FILE {self._uri}`; the guest goes on by itself then"
        self.ahead = PagesAhead(
            self._machine, self._progress, self._wants, None, self._again, self._closing.set, self.standstill, hint
        )
        self._machine.resume()
        self.arrived()
        self.ahead.run(self._wire, lambda wire: setattr(wire.channel, "stall", _STALL))

    def _fetch(self) -> None:
        """All but the pages."""
        machine, wire = self._machine, self._wire
        machine.standing().result()
        wire.say(Kind.READY, Ready())
        sections = Sections(ram=machine.config.memory)
        while not sections.complete:
            frame = wire.next()
            if frame.kind == Kind.LACK and self._wants is None:
                lacking = read_map(frame, machine.config.memory // PAGE_SIZE)
                self._wants = Wants(lacking, self._prefetch)
                machine.lack_pages(lacking[:], self._wants)
            else:
                sections.feed(frame)
        if self._wants is None:
            raise StreamError("the page server did not tell which pages it has")
        machine.load_state(sections.sections())

    def _again(self, limit: float) -> Wire | None:
        """Connect again where the connection is broken."""
        if self.ahead is None or not self.ahead.broken:
            self._closing.wait(limit)
            if self._closing.is_set():
                raise MigrationError("the VM has ended")
            return None
        try:
            wire, _ = self._connect(self._hello.migration, asks=True)
        except SdeivirtError as error:
            self._say(error)
            self._closing.wait(_RETRY)
            return None
        self._said = ""
        return wire

    def _say(self, error: SdeivirtError) -> None:
        """Why the guest still stands still: once, until that is another reason."""
        if error.message != self._said:
            self._said = error.message
            if self._progress.now.status == "postcopy-paused":
                self._progress.update(error=error.message)
            _log.warning("the guest still stands still: %s", error)
