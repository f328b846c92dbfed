# SPDX-License-Identifier: Apache-2.0
"""Whoever gives up hears no more and can still say so: on a channel, and on the wire above it."""

from __future__ import annotations

import threading
from contextlib import closing
from pathlib import Path

import pytest

from sdeivirt.migration.channel import ChannelCancelledError, Interrupt, TlsCredentials
from sdeivirt.migration.messages import Failure, Kind, Ready
from sdeivirt.migration.wire import RefusedError, Wire

from .channel_support import background, joined, pair, read_exactly, socket_pair
from .control_support import LIMIT
from .tls_support import Authority, needs_openssl


@pytest.mark.parametrize("tls", [False, pytest.param(True, marks=needs_openssl)])
def test_what_waits_to_hear_is_ended_and_what_is_said_arrives(tmp_path: Path, tls: bool) -> None:
    server = client = None
    if tls:
        directory = Authority(tmp_path / "ca").credentials(tmp_path / "both")
        server, client = (TlsCredentials.load(directory, server=role) for role in (True, False))
    with joined("tcp:127.0.0.1:0", server, client) as (channel, other), closing(Interrupt("all of it")) as quit:
        channel.stall, channel.hearing = None, quit
        started = threading.Event()

        def hear() -> int:
            started.set()
            return channel.recv_into(bytearray(8))

        heard = background(hear)
        started.wait(LIMIT)
        quit.set()
        with pytest.raises(ChannelCancelledError, match="all of it was cancelled"):
            heard.result(LIMIT)
        other.send([b"more"])
        with pytest.raises(ChannelCancelledError):
            channel.recv_into(bytearray(8))
        channel.send([b"never mind"])
        assert read_exactly(other, 10) == b"never mind"
        channel.hearing = None
        buffer = bytearray(8)
        assert buffer[: channel.recv_into(buffer)] == b"more"


def test_a_frame_that_is_being_sent_is_finished_and_the_reason_follows_it() -> None:
    with pair() as (channel, other), closing(Interrupt("it")) as quit:
        wire, theirs = Wire(channel, "the other side", quit), Wire(other, "this side")
        wire.say(Kind.READY, Ready())
        payload = bytes(2 << 20)  # more than the socket holds
        sending = background(lambda: wire.send(b"PAGE", payload))
        theirs.expect(Kind.READY, Ready)
        quit.set()
        frame = theirs.next()
        assert frame.kind == b"PAGE"
        sending.result(LIMIT)
        for call in (wire.check, wire.next, lambda: wire.send(b"PASS", b"0000"), lambda: wire.send_frames([b""])):
            with pytest.raises(ChannelCancelledError, match="it was cancelled"):
                call()
        giving_up = background(lambda: wire.give_up(Failure("there is a reason", "and a hint")))
        with pytest.raises(RefusedError, match="this side gave up: there is a reason") as caught:
            theirs.next()
        assert caught.value.hint == "at this side: and a hint"
        other.close()
        assert giving_up.result(LIMIT) is True


def test_what_cannot_be_said_is_told() -> None:
    channel, other = socket_pair()
    with channel:
        other.close()
        wire = Wire(channel, "the other side")
        said = [wire.give_up(Failure("why")) for _ in range(2)]
        assert said[-1] is False
