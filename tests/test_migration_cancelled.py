# SPDX-License-Identifier: Apache-2.0
"""Somebody cancels in the worst moment: between two frames, between two lines of asyncio."""

from __future__ import annotations

import asyncio.runners
import json
import linecache
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from sdeivirt.cli import main
from sdeivirt.cli.progress import ProgressLine
from sdeivirt.control.client import VmClient
from sdeivirt.errors import MigrationError
from sdeivirt.guests import guest_path
from sdeivirt.machine import MachineConfig
from sdeivirt.machine.base import Detour
from sdeivirt.machine.unicorn import UnicornMachine
from sdeivirt.migration.channel import Interrupt, Listener, SocketChannel, parse_uri
from sdeivirt.migration.identity import Identity
from sdeivirt.migration.messages import Failure, Hello, Kind, Ready
from sdeivirt.migration.sections import Section
from sdeivirt.migration.source import Outgoing, SourceOptions
from sdeivirt.migration.status import MigrationStatus, Progress
from sdeivirt.migration.wire import RefusedError, Wire

from .channel_support import background
from .control_support import LIMIT, VmProcess

# -- between two frames


class Deciding(UnicornMachine):
    """Somebody thinks better of it while the state is being saved."""

    think: Callable[[], None] = staticmethod(lambda: None)

    def save_state(self, detour: Detour) -> list[Section]:
        sections = super().save_state(detour)
        self.think()
        return sections


def last_word(wire: Wire) -> str:
    """Why the other side gives up, in the end."""
    try:
        while True:
            wire.next()
    except RefusedError as refusal:
        return refusal.message


@pytest.mark.machine
@pytest.mark.parametrize("postcopy", [None, 0])
def test_who_cancels_before_the_state_is_sent_is_understood(postcopy: int | None, tmp_path: Path) -> None:
    """The frames that were made of it, and are not sent, must not count: FAIL would be taken for damage."""
    with (
        Deciding(MachineConfig(vcpus=1, memory=16 << 20)) as machine,
        Listener(parse_uri(f"unix:{tmp_path}/there")) as listener,
    ):
        machine.load(guest_path("listen"))
        machine.start()

        def destination() -> str:
            channel = listener.accept(LIMIT)
            assert channel is not None
            with channel:
                wire = Wire(channel, "the source")
                hello = wire.expect(Kind.HELLO, Hello)
                wire.say(Kind.HELLO, Hello(hello.migration, "test", Identity.ours()))
                assert wire.next().kind == Kind.CONFIGURATION
                wire.say(Kind.READY, Ready())
                return last_word(wire)

        said = background(destination)
        progress = Progress()
        outgoing = Outgoing(machine, listener.uri, SourceOptions(stall=LIMIT, postcopy=postcopy), progress)
        machine.think = outgoing.cancel
        outgoing.run()
        assert said.result(LIMIT) == "the source gave up: the migration was cancelled"
        assert progress.now.status == "cancelled"
        assert machine.state == "running"


def test_frames_that_were_made_and_not_sent_do_not_count() -> None:
    near, far = socket.socketpair()
    interrupt = Interrupt()
    with SocketChannel(near, "the far end") as channel, SocketChannel(far, "the near end") as other:
        wire = Wire(channel, "the destination", interrupt)
        wire.send(Kind.READY, b"\x80")
        assert wire.begin(Kind.READY, b"\x80")
        wire.send_frames(wire.writer.frame(Kind.READY, b"\x80"))
        frames = wire.writer.frame(Kind.READY, b"\x80") + wire.writer.frame(Kind.READY, b"\x80")
        interrupt.set()
        with pytest.raises(MigrationError, match="cancelled"):
            wire.send_frames(frames)
        told = background(lambda: wire.give_up(Failure("why not")))
        heard = Wire(other, "the source")
        for _ in range(3):
            assert heard.next().kind == Kind.READY
        with pytest.raises(RefusedError, match="why not"):
            heard.next()
        other.close()
        assert told.result(LIMIT)
    interrupt.close()


# -- between two lines of asyncio


@contextmanager
def struck(line: int) -> Iterator[list[int]]:
    """Ctrl-C when something has been told of a migration, and asyncio is in that line of what it does next.

    Gives a list, with the number of the line in it when that has been.
    """
    code, shown, struck = asyncio.runners.Runner.run.__code__, ProgressLine.show, list[int]()
    left = -1

    def within(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal left
        if event == "line" and left >= 0:
            left -= 1
            if left < 0:
                struck.append(frame.f_lineno)
                signal.raise_signal(signal.SIGINT)
        return within

    def show(self: ProgressLine, status: MigrationStatus) -> None:
        nonlocal left
        shown(self, status)
        if not struck:
            left = line

    ProgressLine.show = show  # type: ignore[method-assign]
    sys.settrace(lambda frame, _event, _: within if frame.f_code is code else None)
    try:
        yield struck
    finally:
        sys.settrace(None)
        ProgressLine.show = shown  # type: ignore[method-assign]


@contextmanager
def muted(directory: Path) -> Iterator[str]:
    """Where somebody listens who says nothing, and hangs up when the other has nothing more to say."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(directory / "mute"))
        listener.listen()

        def hear() -> None:
            while True:
                connection, _ = listener.accept()
                with connection:
                    while connection.recv(4096):
                        pass

        background(hear)
        yield f"unix:{directory}/mute"


@pytest.mark.machine
@pytest.mark.process
def test_ctrl_c_is_never_lost(runtime: Path, here: VmProcess, capfd: pytest.CaptureFixture[str]) -> None:
    """Wherever it comes, the migration is cancelled: asyncio would make a CancelledError of it in some of its lines.

    The other side never says anything, so that nothing else ends it.
    """
    with muted(runtime) as uri:
        line, text = 0, ""
        while "run_until_complete" not in text:  # where it goes on to wait
            with struck(line) as found:
                assert main(["migrate", "here", uri, "--json"]) == 130, text
            text = linecache.getline(asyncio.runners.__file__, found[0])
            said = capfd.readouterr()
            assert json.loads(said.out)["status"] == "cancelled", text
            assert said.err.endswith("cancelled: the guest stays in VM 'here'\n"), text
            with VmClient("here") as client:
                assert client.execute("query-migrate")["status"] == "cancelled", text
            line += 1
        assert line > 5
