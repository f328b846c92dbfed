# SPDX-License-Identifier: Apache-2.0
"""The hand-over, step by step: who is believed, who waits for whom, and what is said to those who come between."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pytest

from sdeivirt.control.client import VmClient
from sdeivirt.errors import MigrationError, StateError
from sdeivirt.guests import guest_path
from sdeivirt.machine import Machine, MachineConfig, open_machine
from sdeivirt.migration.channel import Channel, ChannelCutError, Listener, Uri, connect, parse_uri
from sdeivirt.migration.destination import Incoming
from sdeivirt.migration.identity import Identity
from sdeivirt.migration.messages import Commit, Done, Failure, Hello, Kind, LetGo, Loaded, Ready, Running, Stage
from sdeivirt.migration.source import Outgoing, SourceOptions
from sdeivirt.migration.status import MigrationStatus, Progress
from sdeivirt.migration.stream import FrameReader
from sdeivirt.migration.wire import RefusedError, Wire

from .channel_support import background
from .control_support import LIMIT, VmProcess, cli, wait_until
from .frame_proxy import BACK, FORTH, Act, Fault, Part
from .machine_support import NEEDS_QEMU, Console
from .migration_scene import THERE, Scene, Watch, runs
from .test_postcopy_moves import Behind

pytestmark = pytest.mark.machine

MIGRATION = bytes(range(16))
PROCESS = pytest.mark.process
UNICORN_DAILY = ["unicorn", pytest.param("qemu", marks=[NEEDS_QEMU, pytest.mark.qemu, pytest.mark.nightly])]


class Other:
    """A process that is not this one, to be seen living and dying."""

    def __init__(self) -> None:
        self.process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
        pid = self.process.pid
        started = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
        self.identity = msgspec.structs.replace(Identity.ours(), pid=pid, started=started)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


@pytest.fixture
def other() -> Iterator[Other]:
    one = Other()
    yield one
    one.kill()
    assert one.process.stdin is not None
    one.process.stdin.close()


@contextmanager
def running() -> Iterator[Machine]:
    """A guest that writes memory, up and at its work."""
    with open_machine("unicorn", MachineConfig(vcpus=1, bootargs="mib=1 rate=100")) as machine:
        console = Console(machine)
        machine.load(guest_path("writer"))
        machine.start()
        console.shows(" on\n")
        yield machine


# -- the source, and a destination that says what it likes


def leaving(
    machine: Machine, directory: Path, who: Identity, talk: Callable[[Listener, Wire, Progress], None]
) -> MigrationStatus:
    """What the source says of a migration to a place that has got everything, and does this then."""
    with Listener(parse_uri(f"unix:{directory}/there")) as listener:
        progress = Progress()

        def destination() -> None:
            channel = listener.accept(LIMIT)
            assert channel is not None
            wire = Wire(channel, "the source")
            hello = wire.expect(Kind.HELLO, Hello)
            wire.say(Kind.HELLO, Hello(hello.migration, "test", who))
            assert wire.next().kind == Kind.CONFIGURATION
            wire.say(Kind.READY, Ready())
            while wire.next().kind != b"END ":
                pass
            talk(listener, wire, progress)
            wire.channel.close()

        talking = background(destination)
        Outgoing(machine, listener.uri, SourceOptions(stall=LIMIT), progress).run()
        talking.result(LIMIT)
    return progress.now


def asked(listener: Listener, who: Identity | None, stage: Stage) -> Wire:
    """The source has come again, and has been told that."""
    channel = listener.accept(LIMIT)
    assert channel is not None
    wire = Wire(channel, "the source")
    hello = wire.expect(Kind.HELLO, Hello)
    assert hello.asks
    wire.say(Kind.HELLO, Hello(hello.migration, "test", who, stage=stage))
    return wire


def test_the_guest_stands_still_until_the_destination_has_heard_that_it_stays(tmp_path: Path, other: Other) -> None:
    """It would run it if it saw us die. What somebody else has heard in its place is of no use."""
    with running() as machine:

        def lose(listener: Listener, wire: Wire, _progress: Progress) -> None:
            wire.channel.close()
            again = asked(listener, Identity.ours(), Stage.LOADED)
            with pytest.raises(ChannelCutError):
                again.next()
            assert machine.state == "paused"
            again.channel.close()
            again = asked(listener, other.identity, Stage.LOADED)
            with pytest.raises(RefusedError, match="closed the connection"):
                again.next()
            assert machine.state == "paused"
            again.channel.close()

        status = leaving(machine, tmp_path, other.identity, lose)
        assert status.status == "failed"
        assert machine.state == "running"


def test_a_stranger_in_the_place_of_the_destination_proves_nothing(tmp_path: Path, other: Other) -> None:
    """That it has never heard of the guest does not tell whether the destination runs it."""
    with running() as machine:

        def hand_over(listener: Listener, wire: Wire, progress: Progress) -> None:
            wire.say(Kind.LOADED, Loaded())
            wire.expect(Kind.COMMIT, Commit)
            wire.channel.close()
            for stranger in Identity.ours(), None:
                asked(listener, stranger, Stage.NEW).channel.close()
                wait_until(lambda: "is another" in progress.now.error, progress.now.error)
                assert progress.now.status == "undecided"
                assert machine.state == "paused"
            again = asked(listener, other.identity, Stage.RUNNING)
            again.expect(Kind.LET_GO, LetGo)
            again.say(Kind.DONE, Done())
            again.channel.close()

        status = leaving(machine, tmp_path, other.identity, hand_over)
        assert (status.status, status.error) == ("completed", "")
        wait_until(lambda: machine.state == "stopped")


@pytest.mark.parametrize("last", ["refused", "lost", "undecided"])
def test_how_long_a_guest_stood_still_that_stayed(last: str, tmp_path: Path, other: Other) -> None:
    stood: list[float] = []
    with running() as machine:

        def stay(listener: Listener, wire: Wire, progress: Progress) -> None:
            began = time.monotonic()
            if last == "refused":
                stood.append(time.monotonic() - began)
                wire.say(Kind.FAILURE, Failure("no"))
                return
            if last == "undecided":
                wire.say(Kind.LOADED, Loaded())
                wire.expect(Kind.COMMIT, Commit)
            wire.channel.close()
            if last == "undecided":
                wait_until(lambda: progress.now.status == "undecided")
            listener.close()
            stood.append(time.monotonic() - began)
            other.kill()

        status = leaving(machine, tmp_path, other.identity, stay)
        assert status.status == "failed"
        assert status.downtime > stood[0]
        assert machine.state == "running"


# -- the destination, and a source that says what it likes


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A guest in a file."""
    file = tmp_path_factory.mktemp("saved") / "guest.sdei"
    with running() as machine:
        progress = Progress()
        Outgoing(machine, parse_uri(f"file:{file}"), SourceOptions(stop_first=True), progress).run()
        assert progress.now.status == "completed"
    return file


class Arriving:
    """A place for a guest, and who brings it there out of a file. A context manager."""

    def __init__(self, directory: Path, who: Identity | None) -> None:
        self.listener = Listener(parse_uri(f"unix:{directory}/there"))
        self.incoming = Incoming(self.listener)
        self.progress = Progress()
        self.machine: Machine | None = None
        self.wire = self.connect(Hello(MIGRATION, "test", who))

    @property
    def uri(self) -> Uri:
        return self.listener.uri

    def connect(self, hello: Hello) -> Wire:
        channel: Channel = connect(self.uri, None, timeout=LIMIT)
        channel.stall = LIMIT
        wire = Wire(channel, "the destination")
        wire.say(Kind.HELLO, hello)
        return wire

    def again(self) -> Wire:
        """As a source that has lost its connection."""
        return self.connect(Hello(MIGRATION, "test", asks=True))

    def send(self, file: Path, stay: bool = False, more: int = 0) -> None:
        """Everything. `stay`: the guest was paused. `more` pages are told of than are sent."""
        wire = self.wire
        with file.open("rb") as stream:
            reader = FrameReader(stream.readinto)
            reader.start()
            while (frame := reader.next()) is not None:
                if frame.kind == Kind.HELLO:
                    continue
                if frame.kind == b"DESC" and stay:
                    wire.send(Kind.STAY)
                if frame.kind == b"END ":
                    pages = int.from_bytes(frame.payload[8:16], "little")
                    wire.send_frames(wire.writer.end(pages + more))
                    return
                wire.send(frame.kind, frame.payload, instance=frame.instance, version=frame.version)
                if frame.kind == Kind.CONFIGURATION:
                    self._build()

    def _build(self) -> None:
        configuration = self.incoming.configuration()
        self.machine = open_machine(configuration.machine, configuration.config("there", None, None))
        self.incoming.start(self.machine, self.progress)
        self.wire.expect(Kind.HELLO, Hello)
        self.wire.expect(Kind.READY, Ready)

    @property
    def state(self) -> str:
        assert self.machine is not None
        return self.machine.state

    def __enter__(self) -> Arriving:
        return self

    def __exit__(self, *_: object) -> None:
        if self.machine is not None:
            self.machine.stop()
        self.wire.channel.close()
        self.incoming.close()
        if self.machine is not None:
            self.machine.close()


@pytest.mark.parametrize("stay", [False, True])
def test_a_source_that_dies_leaves_the_guest_as_it_was(stay: bool, saved: Path, tmp_path: Path, other: Other) -> None:
    """Everything has come: it runs, or stays paused, as it did and was where it comes from."""
    with Arriving(tmp_path, other.identity) as place:
        place.send(saved, stay)
        place.wire.expect(Kind.LOADED, Loaded)
        other.kill()
        place.wire.channel.close()
        wait_until(lambda: place.progress.now.status == "completed", place.progress.now.error)
        assert place.state == ("paused" if stay else "running")


def test_a_source_that_takes_its_guest_back_and_dies_then(saved: Path, tmp_path: Path, other: Other) -> None:
    """It has said so on another connection before: what has come must not run."""
    with Arriving(tmp_path, other.identity) as place:
        place.send(saved)
        place.wire.expect(Kind.LOADED, Loaded)
        place.wire.channel.close()
        again = place.again()
        again.say(Kind.FAILURE, Failure("it stays"))
        other.kill()
        assert place.machine is not None
        with pytest.raises(MigrationError, match="it stays"):
            place.machine.wait(LIMIT)
        again.channel.close()


def test_a_source_that_comes_again_while_its_guest_is_still_heard(saved: Path, tmp_path: Path) -> None:
    """It has lost its connection, which the destination has not noticed, and says why there will be no guest."""
    with Arriving(tmp_path, None) as place:
        place.wire.send(Kind.CONFIGURATION, *configuration_of(saved), version=1)
        place._build()
        again = place.again()
        assert again.expect(Kind.HELLO, Hello).stage is Stage.NEW
        assert again.give_up(Failure("it stays"))
        assert place.machine is not None
        with pytest.raises(MigrationError, match="it stays"):
            place.machine.wait(LIMIT)
        again.channel.close()


def settled(place: Arriving) -> bool:
    take_over = place.incoming._take_over
    return take_over is not None and take_over.stage is Stage.SETTLED


def configuration_of(file: Path) -> list[bytes]:
    with file.open("rb") as stream:
        reader = FrameReader(stream.readinto)
        reader.start()
        while (frame := reader.next()) is not None:
            if frame.kind == Kind.CONFIGURATION:
                return [bytes(frame.payload)]
    raise AssertionError


@pytest.mark.parametrize("more", [-1, 1])
def test_an_end_that_tells_of_other_pages_than_came(more: int, saved: Path, tmp_path: Path) -> None:
    with Arriving(tmp_path, None) as place:
        place.send(saved, more=more)
        with pytest.raises(RefusedError, match=r"\(END\) .* it tells of \d+ pages, and \d+ came"):
            place.wire.next()
        assert place.machine is not None
        with pytest.raises(MigrationError, match="the guest did not come"):
            place.machine.wait(LIMIT)


def test_until_the_source_knows_the_guest_cannot_go_on_to_a_third_place(saved: Path, tmp_path: Path) -> None:
    """Nobody could tell the source then."""
    with Arriving(tmp_path, Identity.ours()) as place:
        place.send(saved)
        place.wire.expect(Kind.LOADED, Loaded)
        with pytest.raises(StateError, match="has not come yet"):
            place.incoming.check_settled()
        place.wire.say(Kind.COMMIT, Commit())
        place.wire.expect(Kind.RUNNING, Running)
        with pytest.raises(StateError, match="does not know yet that the guest runs here"):
            place.incoming.check_settled()
        place.wire.channel.close()
        again = place.again()
        assert again.expect(Kind.HELLO, Hello).stage is Stage.RUNNING
        again.say(Kind.LET_GO, LetGo())
        again.expect(Kind.DONE, Done)
        wait_until(lambda: settled(place))
        place.incoming.check_settled()
        again.channel.close()


# -- both


@PROCESS
@pytest.mark.parametrize("kind", UNICORN_DAILY)
def test_a_paused_guest_whose_source_is_killed_stays_paused(kind: str, runtime: Path) -> None:
    with Scene(runtime, Fault(Act.KILL_SOURCE, BACK, "LOAD", part=Part.AFTER), kind) as scene:
        with VmClient("vm") as client:
            client.execute("stop")
        with Watch("vm", "there"):
            scene.migrate()
            scene.there.wait_err("the guest has come")
            assert not runs(scene.there)
        with VmClient("there") as client:
            assert client.execute("query-status")["status"] == "paused"
            client.execute("cont")
        assert scene.where() == THERE
        scene.mover.moved_to_after_kill(scene.there)
        scene.finish(scene.injector(random.randrange(1 << 32)))


@PROCESS
def test_moving_on_has_to_wait_for_the_source(runtime: Path) -> None:
    with Scene(runtime, Fault(Act.CUT, BACK, "RUNS", unreachable=True)) as scene:
        third = VmProcess(runtime, "--incoming", f"unix:{runtime}/third.sock", name="third")
        scene.mover.vms.append(third)
        third.wait_err("waiting for a guest")
        status: Future[MigrationStatus | None] = background(scene.migrate)
        scene.there.wait_err("the guest has come")
        early = cli(runtime, "migrate", "there", f"unix:{runtime}/third.sock", code=1)
        assert "the source does not know yet that the guest runs here" in early.stderr
        assert runs(scene.there)
        scene.proxy.fault = None
        found = status.result(LIMIT)
        assert found is not None
        assert found.status == "completed"
        assert scene.here.wait() == 0
        scene.mover.moved_to(scene.there)
        cli(runtime, "migrate", "there", f"unix:{runtime}/third.sock")
        scene.mover.moved_to(third)
        wait_until(lambda: runs(third))
        scene.finish(scene.injector(random.randrange(1 << 32)))


@pytest.fixture
def second(runtime: Path) -> Iterator[VmProcess]:
    """Another guest, which would like to go to the same place."""
    with VmProcess(runtime, "--guest", "listen", "--append", "idle=spin", name="second") as vm:
        vm.wait_out("listening", 2)
        yield vm


@PROCESS
def test_a_place_that_is_taken_says_so_while_the_guest_is_on_its_way(second: VmProcess, runtime: Path) -> None:
    heard: list[str] = []

    def come_between(_side: str) -> None:  # nothing of the first guest gets through meanwhile
        heard.append(cli(runtime, "migrate", "second", f"unix:{runtime}/there.sock", code=1).stderr)

    with Scene(runtime, Fault(Act.END_SOURCE, FORTH, "PASS"), ask=come_between) as scene:
        with Watch("vm", "there"):
            status = scene.migrate()
            assert status is not None
            assert status.status == "completed"
            scene.mover.moved_to(scene.there)
        assert "the destination gave up: another guest is on its way here" in heard[0]
        assert runs(second)
        scene.finish(scene.injector(random.randrange(1 << 32)))


@PROCESS
def test_a_place_that_is_taken_says_so_while_pages_follow(second: VmProcess, runtime: Path) -> None:
    with Behind(runtime, Fault(Act.CUT, FORTH, "PAGE", 0, unreachable=True)) as scene:
        scene.start()
        scene.until("postcopy-paused")
        scene.until("postcopy-paused", name="there")
        refused = cli(runtime, "migrate", "second", scene.uri, code=1).stderr
        assert "the destination gave up: another guest has come here" in refused
        assert runs(second)
        scene.recover(scene.uri)
        scene.arrived()
        scene.mover.settle()
        scene.mover.quit()
