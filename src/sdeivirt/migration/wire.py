# SPDX-License-Identifier: Apache-2.0
"""Frames over a channel: messages out, messages in."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from typing import TypeVar

import msgspec

from ..errors import MigrationError, SdeivirtError, StreamError
from .channel import Channel, ChannelCutError, Interrupt
from .foreign import printable
from .frames import check_end
from .messages import Failure, Kind
from .sections import Record
from .stream import Frame, FrameReader, FrameWriter

__all__ = ["RefusedError", "Wire"]

R = TypeVar("R", bound=Record)

_LAST_WORDS = 2.0  # seconds
_AHEAD = 64 << 10  # bytes that are read at once, where that is wanted


class RefusedError(MigrationError):
    """The other side has said why it does not go on."""


class Wire:
    """A channel that has been opened, and both streams on it. `other` names the other side in errors.

    Once `quit` is set, the next frame to be sent and what is waited for raise
    ChannelCancelledError. A frame that is being sent is finished, so :meth:`give_up` can still say why.
    """

    def __init__(self, channel: Channel, other: str, quit: Interrupt | None = None) -> None:
        self.channel = channel
        self.other = other
        self._quit = channel.hearing = quit
        self._writer = FrameWriter()
        self._reader = FrameReader(self._receive)
        self._ahead: memoryview | None = None
        self._ready = memoryview(b"")  # what has been read ahead
        self._greeted = False
        self._begun = False
        self._handed = 0  # frames that the channel was given; more may have been made

    def send(self, kind: bytes, *buffers: bytes | memoryview, instance: int = 0, version: int = 0) -> None:
        """One frame; before the first, what stream this is."""
        self.check()
        begin = () if self._begun else (self._writer.header(),)
        self._begun = True
        self.channel.send((*begin, *self._writer.frame(kind, *buffers, instance=instance, version=version)))
        self._handed = self._writer.frames

    def begin(self, kind: bytes, *buffers: bytes | memoryview) -> bool:
        """One frame after the first, as much of it as can be sent without waiting; whether that was all.

        :meth:`finish` sends the rest.
        """
        self.check()
        whole = self.channel.begin(self._writer.frame(kind, *buffers))
        self._handed = self._writer.frames
        return whole

    def finish(self) -> None:
        """Send what :meth:`begin` has left."""
        self.channel.send(())

    def send_frames(self, buffers: Sequence[bytes | memoryview]) -> None:
        """Frames that the writer has made, after the first of :meth:`send`."""
        self.check()
        self.channel.send(buffers)
        self._handed = self._writer.frames

    def read_ahead(self) -> None:
        """From now on several small frames are read at once."""
        if self._ahead is None:
            self._ahead = memoryview(bytearray(_AHEAD))

    @property
    def has_more(self) -> bool:
        """Whether something has been read already that follows the last frame."""
        return bool(self._ready)

    def _receive(self, view: memoryview) -> int:
        if self._ready:
            count = min(len(view), len(self._ready))
            view[:count] = self._ready[:count]
            self._ready = self._ready[count:]
            return count
        if self._ahead is None or len(view) >= len(self._ahead):
            return self.channel.recv_into(view)
        self._ready = self._ahead[: self.channel.recv_into(self._ahead)]
        return self._receive(view) if self._ready else 0

    def check(self) -> None:
        """Raise ChannelCancelledError if somebody wants to give up: for work that takes its time between frames."""
        if self._quit is not None:
            self._quit.check()

    @property
    def writer(self) -> FrameWriter:
        return self._writer

    def say(self, kind: bytes, record: Record) -> None:
        """One message."""
        self.send(kind, msgspec.msgpack.encode(record))

    def next(self) -> Frame:
        """The next frame. Raises StreamError, RefusedError where the other side gives up, MigrationError at the end."""
        if not self._greeted:
            self._greet()
            self._greeted = True
        frame = self._reader.next()
        if frame is None:
            raise self._gone()
        if frame.kind == Kind.FAILURE:
            failure = self.read(frame, Failure)
            hint = printable(failure.hint)
            if hint and self.other not in hint:
                hint = f"at {self.other}: {hint}"  # it was written for who sits there
            raise RefusedError(f"{self.other} gave up: {printable(failure.message)}", hint)
        return frame

    def _greet(self) -> None:
        try:
            self._reader.start()
        except StreamError:
            if self.channel.received or self.channel.peer.startswith("file:"):
                raise
            raise ChannelCutError(f"{self.other} has hung up at once", "look at what it printed") from None

    def check_end(self) -> None:
        """The state has ended: nothing may follow it in a file. Raises StreamError."""
        check_end(os.fstat(self.channel.fileno).st_size, self._reader.offset)

    def _gone(self) -> MigrationError:
        if self.channel.peer.startswith("file:"):
            return self._reader.cut_short()
        return ChannelCutError(f"{self.other} has closed the connection", "look at what it printed")

    def give_up(self, failure: Failure) -> bool:
        """Tell the other side why not, if it still listens; whether it has taken that, and ended."""
        self._quit = self.channel.hearing = None
        self._writer.frames = self._handed  # what was made and not sent does not count
        self.channel.stall = _LAST_WORDS
        with contextlib.suppress(SdeivirtError, OSError):
            self.say(Kind.FAILURE, failure)
            return self.channel.finish()
        return False

    def read(self, frame: Frame, kind: type[R]) -> R:
        """The message in a frame. Raises StreamError."""
        try:
            return msgspec.msgpack.decode(frame.payload, type=kind)
        except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
            raise StreamError(
                f"frame {frame.kind.decode()} at offset {frame.offset:#x} is damaged: {printable(str(error))}"
            ) from None

    def expect(self, name: bytes, kind: type[R]) -> R:
        """The next frame, which has to be this message. Errors as :meth:`next`."""
        frame = self.next()
        if frame.kind != name:
            raise StreamError(
                f"{self.other} sent {frame.kind.decode('ascii', 'replace')} at offset {frame.offset:#x} "
                f"where {name.decode()} has its place"
            )
        return self.read(frame, kind)
