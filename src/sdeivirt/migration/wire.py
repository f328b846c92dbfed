# SPDX-License-Identifier: Apache-2.0
"""Frames over a channel: messages out, messages in."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import TypeVar

import msgspec

from ..errors import MigrationError, SdeivirtError, StreamError
from .channel import Channel, ChannelCutError
from .messages import Failure, Kind
from .sections import Record
from .stream import Frame, FrameReader, FrameWriter

__all__ = ["RefusedError", "Wire"]

R = TypeVar("R", bound=Record)

_LAST_WORDS = 2.0  # seconds


class RefusedError(MigrationError):
    """The other side has said why it does not go on."""


class Wire:
    """A channel that has been opened, and both streams on it. `other` names the other side in errors."""

    def __init__(self, channel: Channel, other: str) -> None:
        self.channel = channel
        self.other = other
        self._writer = FrameWriter()
        self._reader = FrameReader(channel.recv_into)
        self._greeted = False
        self._begun = False

    def send(self, kind: bytes, *buffers: bytes | memoryview, instance: int = 0, version: int = 0) -> None:
        """One frame; before the first, what stream this is."""
        begin = () if self._begun else (self._writer.header(),)
        self._begun = True
        self.channel.send((*begin, *self._writer.frame(kind, *buffers, instance=instance, version=version)))

    def send_frames(self, buffers: Sequence[bytes | memoryview]) -> None:
        """Frames that the writer has made, after the first of :meth:`send`."""
        self.channel.send(buffers)

    @property
    def writer(self) -> FrameWriter:
        return self._writer

    def say(self, kind: bytes, record: Record) -> None:
        """One message."""
        self.send(kind, msgspec.msgpack.encode(record))

    def next(self) -> Frame:
        """The next frame. Raises StreamError, RefusedError where the other side gives up, MigrationError at the end."""
        if not self._greeted:
            self._reader.start()
            self._greeted = True
        frame = self._reader.next()
        if frame is None:
            raise self._gone()
        if frame.kind == Kind.FAILURE:
            failure = self.read(frame, Failure)
            raise RefusedError(f"{self.other} says: {failure.message[:1000]}", failure.hint[:1000])
        return frame

    def _gone(self) -> MigrationError:
        if self.channel.peer.startswith("file:"):
            return self._reader.cut_short()
        return ChannelCutError(f"{self.other} has closed the connection", "look at what it printed")

    def give_up(self, failure: Failure) -> None:
        """Tell the other side why not, if it still listens."""
        self.channel.stall = _LAST_WORDS
        with contextlib.suppress(SdeivirtError, OSError):
            self.say(Kind.FAILURE, failure)
            self.channel.finish()

    def read(self, frame: Frame, kind: type[R]) -> R:
        """The message in a frame. Raises StreamError."""
        try:
            return msgspec.msgpack.decode(frame.payload, type=kind)
        except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
            raise StreamError(f"frame {frame.kind.decode()} at offset {frame.offset:#x} is damaged: {error}") from None

    def expect(self, name: bytes, kind: type[R]) -> R:
        """The next frame, which has to be this message. Errors as :meth:`next`."""
        frame = self.next()
        if frame.kind != name:
            raise StreamError(
                f"{self.other} sent {frame.kind.decode('ascii', 'replace')} at offset {frame.offset:#x} "
                f"where {name.decode()} has its place"
            )
        return self.read(frame, kind)
