# SPDX-License-Identifier: Apache-2.0
"""A guest that goes on elsewhere before its pages are there: whatever happens to the connection, all of them arrive.

Two real processes and a bad network between them. The guest checks all of its memory all the time, and
says so where a page is not what it has to be.
"""

from __future__ import annotations

import random
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from sdeivirt.control.client import VmClient
from sdeivirt.errors import StateError, UnknownVmError
from sdeivirt.machine.base import PAGE_SIZE
from sdeivirt.migration.index import FileIndex
from sdeivirt.migration.status import MigrationStatus

from .asm import assemble
from .control_support import VmProcess, cli, wait_until
from .frame_proxy import BACK, FORTH, Act, Direction, Fault, FrameProxy, Part
from .machine_support import KINDS, NEEDS_QEMU
from .migration_scene import GONE, Watch, runs
from .mover_support import Injector, Mover, check_counts
from .tls_support import Authority, needs_openssl

pytestmark = [pytest.mark.machine, pytest.mark.process]

SLOW = 3 << 20  # bytes a second of what nobody asks for: some seconds' worth of pages
FAST = 1 << 30
STALL = 3000  # ms

# What is said once the guest runs at the destination, and LACK as the source says it before.
STEPS: tuple[tuple[Direction, str], ...] = (
    *((BACK, "LACK"), (BACK, "WANT"), (FORTH, "GIVE"), (FORTH, "PAGE"), (BACK, "GOT"), (BACK, "HAVE"), (FORTH, "HAVE")),
)
PARTED = (Act.CUT, Act.HALF_CLOSE, Act.STALL)
WHOLE = (Act.FLIP_HEADER, Act.FLIP_PAYLOAD, Act.DROP, Act.DUPLICATE)


class Behind:
    """A guest under load with a place to go to, and the network between. A context manager."""

    def __init__(self, runtime: Path, fault: Fault | None = None, kind: str = "unicorn") -> None:
        self.runtime = runtime
        self.uri = f"unix:{runtime}/there.sock"
        self.mover = Mover(runtime, kind, "case=load signals=1 rate=16 pages=600", vcpus=2, memory="16M")
        self.here = self.mover.vm
        try:
            self.there = VmProcess(runtime, "--incoming", self.uri, name="there")
            self.mover.vms.append(self.there)
            self.mover.until("MOVER runs")
            self.there.wait_err("waiting for a guest")
            self.before = self.mover.beat()
            self.proxy = FrameProxy(self.uri, f"unix:{runtime}/proxy.sock", fault, self.kill, self.end)
        except BaseException as error:
            self.mover.__exit__(type(error), error, error.__traceback__)
            raise

    def kill(self, side: str) -> None:
        vm = self.here if side == "source" else self.there
        vm.signal(signal.SIGKILL)
        vm.process.wait()

    def end(self, side: str) -> None:
        """Have a side end its VM; its guest stands still when this returns."""
        vm = self.here if side == "source" else self.there
        with VmClient(vm.path.name) as client:
            client.execute("quit")
        wait_until(lambda: not runs(vm), f"{side} runs on")

    def start(self, bandwidth: int = SLOW, postcopy: int = 0) -> None:
        """Have it go."""
        with VmClient("vm") as client:
            arguments = {"uri": self.proxy.uri, "postcopy": postcopy, "max-bandwidth": bandwidth, "stall-limit": STALL}
            client.execute("migrate", **arguments)

    def recover(self, uri: str | None = None) -> None:
        with VmClient("vm") as client:
            client.execute("migrate-recover", uri=uri)

    def status(self, name: str = "vm") -> MigrationStatus:
        with VmClient(name) as client:
            return MigrationStatus(**client.execute("query-migrate"))

    def until(self, *words: str, name: str = "vm") -> MigrationStatus:
        """Wait until the migration has one of these statuses; "gone" if its VM has ended."""
        last = MigrationStatus()

        def found() -> bool:
            nonlocal last
            try:
                last = self.status(name)
            except UnknownVmError:
                last = MigrationStatus(status="gone")
            return last.status in words

        wait_until(found, f"{name} never was {words}: {last} {self.here.err} {self.there.err} {self.proxy.text()}")
        return last

    def arrived(self) -> None:
        """The guest is at the destination with all its pages, and the source has ended well."""
        assert self.here.wait() == 0, self.here.err
        assert "its guest has moved to" in self.here.err
        found = self.until("completed", name="there")
        assert found.remaining == 0
        assert found.plain > 0
        assert found.bytes > found.plain * PAGE_SIZE
        with VmClient("there") as client:
            assert client.execute("query-status")["running"]
        self.mover.moved_to(self.there)

    def finish(self, injector: Injector) -> None:
        status, beat = self.mover.settle()
        beat.goes_on_from(self.before)
        check_counts(status, beat, injector.injected)
        self.mover.quit()

    def __enter__(self) -> Behind:
        return self

    def __exit__(self, *error: object) -> None:
        print(self.proxy.text())
        self.proxy.close()
        self.mover.__exit__(*error)  # type: ignore[arg-type]


def go_through(runtime: Path, fault: Fault, kind: str = "unicorn") -> None:
    with Behind(runtime, fault, kind) as scene, Watch("vm", "there"):
        injector = Injector(lambda: scene.mover.name, seed=random.randrange(1 << 32), vcpus=2, moved=GONE)
        with injector:
            injector.reaches(5)
            scene.start()
            scene.proxy.wait_fault()
            status = scene.until("postcopy-paused", "completed", "gone")
            if status.status == "postcopy-paused":
                assert status.error
                assert "--recover" in status.hint
                assert not runs(scene.here)
                with VmClient("vm") as client, pytest.raises(StateError):
                    client.execute("cont")
                scene.recover()
            scene.until("completed", "gone")
            scene.arrived()
            injector.reaches(injector.count + 5)
        scene.finish(injector)


SAMPLE = [
    Fault(Act.CUT, BACK, "LACK", part=Part.PAYLOAD),
    Fault(Act.CUT, BACK, "WANT"),
    Fault(Act.DROP, BACK, "WANT", 1),
    Fault(Act.CUT, FORTH, "GIVE", part=Part.PAYLOAD),
    Fault(Act.STALL, FORTH, "GIVE", part=Part.HEADER),
    Fault(Act.FLIP_PAYLOAD, FORTH, "GIVE", bit=12345),
    Fault(Act.HALF_CLOSE, FORTH, "PAGE", 1, part=Part.AFTER),
    Fault(Act.DUPLICATE, FORTH, "PAGE"),
    Fault(Act.CUT, BACK, "GOT", part=Part.AFTER),
    Fault(Act.CUT, BACK, "HAVE"),
    Fault(Act.CUT, BACK, "HAVE", part=Part.AFTER),
    Fault(Act.CUT, FORTH, "HAVE"),
]


def every_fault() -> Iterator[Fault]:
    for direction, kind in STEPS:
        for act in (*PARTED, *WHOLE):
            for part in Part if act in PARTED else (Part.BEFORE,):
                yield Fault(act, direction, kind, 0, part, bit=77)


@pytest.mark.parametrize("fault", SAMPLE, ids=str)
def test_a_broken_connection_costs_time_and_nothing_else(fault: Fault, runtime: Path) -> None:
    go_through(runtime, fault)


@pytest.mark.nightly
@pytest.mark.parametrize("fault", list(every_fault()), ids=str)
def test_every_fault_at_every_step(fault: Fault, runtime: Path) -> None:
    go_through(runtime, fault)


EVERY_NIGHT = pytest.mark.nightly
QEMU = [NEEDS_QEMU, pytest.mark.qemu]


@pytest.mark.parametrize(
    "fault",
    [pytest.param(fault, marks=QEMU if n == 3 else [*QEMU, EVERY_NIGHT]) for n, fault in enumerate(SAMPLE)],
    ids=str,
)
def test_a_broken_connection_to_a_qemu(fault: Fault, runtime: Path) -> None:
    go_through(runtime, fault, "qemu")


@pytest.mark.parametrize(
    ("kind", "postcopy"),
    [("unicorn", 0), ("unicorn", 2), pytest.param("qemu", 0, marks=QEMU), pytest.param("qemu", 1, marks=QEMU)],
)
def test_the_guest_goes_on_before_its_pages_are_there(kind: str, postcopy: int, runtime: Path) -> None:
    with Behind(runtime, None, kind) as scene, Watch("vm", "there"):
        injector = Injector(lambda: scene.mover.name, seed=1, vcpus=2, moved=GONE)
        with injector:
            scene.start(postcopy=postcopy)
            scene.until("postcopy-active", "completed", "gone")
            scene.arrived()
            injector.reaches(injector.count + 5)
        kinds = {(seen.direction, seen.kind.strip()) for seen in scene.proxy.seen}
        assert {*STEPS, (FORTH, "LACK")} - {(BACK, "WANT"), (FORTH, "GIVE"), (BACK, "GOT")} <= kinds
        passes = sum(seen.kind == "PASS" for seen in scene.proxy.seen)
        # Machine qemu makes one pass more, while some of its state goes ahead.
        assert passes in ((postcopy, postcopy + 1) if kind == "qemu" else (postcopy,))
        scene.finish(injector)


def test_nothing_moves_it_back_once_it_has_gone(runtime: Path) -> None:
    """Too late to cancel, to take back, to let it go on here; and the destination cannot go on to a third place yet."""
    with Behind(runtime, Fault(Act.CUT, BACK, "LACK", part=Part.AFTER, unreachable=True)) as scene:
        scene.start()
        scene.until("postcopy-paused")
        scene.until("postcopy-paused", name="there")
        with VmClient("vm") as client:
            for command in ("migrate-cancel", "migrate-take-back", "cont"):
                with pytest.raises(StateError):
                    client.execute(command)
        with VmClient("there") as client:
            with pytest.raises(StateError, match="have not come"):
                client.execute("migrate", uri=f"unix:{runtime}/third")
            with pytest.raises(StateError, match="out of reach"):
                client.execute("cont")
            with pytest.raises(StateError):
                client.execute("migrate-recover")
        # The network is still bad: asked to recover, it says why it cannot.
        shown = cli(runtime, "migrate", "vm", "--recover", code=1).stderr
        assert "without all its pages" in shown
        assert "--recover" in shown
        scene.recover(scene.uri)  # round it
        scene.arrived()
        scene.mover.settle()
        scene.mover.quit()


def test_it_recovers_as_often_as_it_has_to(runtime: Path) -> None:
    with Behind(runtime, Fault(Act.CUT, FORTH, "PAGE", 1, Part.AFTER)) as scene:
        scene.start()
        scene.until("postcopy-paused")
        left = scene.until("postcopy-paused", name="there").remaining
        fault = Fault(Act.CUT, FORTH, "PAGE", 2, Part.AFTER)
        with FrameProxy(scene.uri, f"unix:{runtime}/second.sock", fault) as second:
            scene.recover(second.uri)
            second.wait_fault()
            scene.until("postcopy-paused")
            assert scene.until("postcopy-paused", name="there").remaining < left
        assert cli(runtime, "migrate", "vm", scene.uri, "--recover").stdout.startswith("completed")
        scene.arrived()
        scene.mover.settle()
        scene.mover.quit()


def test_the_source_dies_and_takes_pages_with_it(runtime: Path) -> None:
    with Behind(runtime, Fault(Act.KILL_SOURCE, BACK, "GOT", part=Part.AFTER)) as scene:
        scene.start()
        scene.proxy.wait_fault()
        status = scene.until("failed", name="there")
        assert "the source's process has ended" in status.error
        assert status.remaining
        assert f"{status.remaining} pages" in status.error
        assert not runs(scene.there)
        with VmClient("there") as client:
            assert client.execute("query-status")["status"] == "paused"
            with pytest.raises(StateError):
                client.execute("cont")
            client.quit()
        assert scene.there.wait() == 1
        assert "error: the guest is lost: the source's process has ended" in scene.there.err


def test_a_source_that_dies_before_its_word_leaves_no_guest_without_pages(runtime: Path) -> None:
    """One that had come whole would go on."""
    with Behind(runtime, Fault(Act.KILL_SOURCE, BACK, "LOAD", part=Part.AFTER)) as scene:
        scene.start()
        scene.proxy.wait_fault()
        wait_until(lambda: scene.there.process.poll() is not None or "goes on here" in scene.there.err)
        assert "goes on here" not in scene.there.err, scene.there.err
        assert scene.there.wait() != 0
        assert "pages of the guest" in scene.there.err


def test_the_destination_dies_and_the_guest_is_lost(runtime: Path) -> None:
    with Behind(runtime, Fault(Act.KILL_DESTINATION, BACK, "GOT", part=Part.AFTER)) as scene, Watch("vm", "there"):
        scene.start()
        scene.proxy.wait_fault()
        assert scene.here.wait() == 1
        assert "the guest is lost" in scene.here.err


def test_the_source_is_asked_to_end_and_sends_everything_first(runtime: Path) -> None:
    with Behind(runtime) as scene:
        scene.start(bandwidth=SLOW)
        scene.until("postcopy-active")
        scene.here.signal(signal.SIGTERM)
        assert scene.here.wait() in (0, 128 + signal.SIGTERM)
        assert scene.until("completed", "failed", name="there").status == "completed"
        scene.mover.moved_to_after_kill(scene.there)
        scene.mover.settle()
        scene.mover.quit()


@pytest.mark.parametrize(("direction", "word"), [(BACK, "RUNS"), (FORTH, "LETG"), (BACK, "DONE"), (BACK, "LACK")])
def test_the_guest_ends_before_it_is_known_which_pages_it_lacks(direction: Direction, word: str, runtime: Path) -> None:
    """It has been there, and nobody needs its pages any more: it is not lost, and the source ends at once."""
    with Behind(runtime, Fault(Act.END_DESTINATION, direction, word)) as scene, Watch("vm", "there"):
        scene.start(bandwidth=1 << 16)
        scene.proxy.wait_fault()
        assert scene.here.wait() == 0, scene.here.err
        assert "its guest has moved to" in scene.here.err
        assert scene.there.wait() == 0, scene.there.err


def test_the_guest_ends_before_its_pages_have_come(runtime: Path) -> None:
    with Behind(runtime) as scene:
        scene.start(bandwidth=1 << 16)
        scene.until("postcopy-active")
        with VmClient("there") as client:
            client.quit()
        assert scene.there.wait() == 0
        assert scene.here.wait() == 0
        assert "has moved" in scene.here.err


# It writes to many pages, and resets itself for event 0.
RESETS_ITSELF = """
    ldr x26, =0x40400000
    mov x25, #2048
1:  str x26, [x26]
    add x26, x26, #4096
    subs x25, x25, #1
    b.ne 1b
    take_event handler
    say 'U'
    say 10
    b .
handler:
    call SYSTEM_RESET
"""


def test_a_guest_that_resets_itself_needs_nothing_of_what_it_was(runtime: Path) -> None:
    """Its RAM is fresh then: the source is told at once, and ends well."""
    uri = f"unix:{runtime}/there.sock"
    guest = ("--guest", str(assemble(RESETS_ITSELF)), "--memory", "16M")
    with VmProcess(runtime, *guest) as here, VmProcess(runtime, "--incoming", uri, name="there") as there:
        here.wait_out("U\n")
        there.wait_err("waiting for a guest")
        with VmClient("vm") as client:
            client.execute("migrate", **{"uri": uri, "postcopy": 0, "max-bandwidth": 1 << 16})
            wait_until(lambda: client.execute("query-migrate")["status"] == "postcopy-active")
        with VmClient("there") as client:

            def status() -> MigrationStatus:
                return MigrationStatus(**client.execute("query-migrate"))

            assert status().remaining > 1000
            client.inject(0, 0)
            assert here.wait() == 0, here.err
            assert "its guest has moved to" in here.err
            wait_until(lambda: status().status == "completed")
            assert status().remaining == 0
            there.wait_out("U\n")
            client.inject(0, 0)
            there.wait_out("U\nU\n")
            client.quit()
        assert there.wait() == 0, there.err


@pytest.mark.parametrize("fault", [None, Fault(Act.CUT, FORTH, "PAGE", 2, Part.PAYLOAD)], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_every_byte_of_a_paused_guest_arrives(kind: str, fault: Fault | None, runtime: Path) -> None:
    with Behind(runtime, fault, kind) as scene:
        with VmClient("vm") as client:
            client.pause()
        cli(runtime, "save", "vm", str(runtime / "before"), "--stay")
        scene.start(bandwidth=FAST)
        if fault is not None:
            scene.until("postcopy-paused")
            scene.recover()
        assert scene.here.wait() == 0, scene.here.err
        scene.until("completed", name="there")
        with VmClient("there") as client:
            assert client.execute("query-status")["status"] == "paused"
        cli(runtime, "save", "there", str(runtime / "after"))
        before, after = FileIndex(runtime / "before"), FileIndex(runtime / "after")
        pages = before.configuration.memory // PAGE_SIZE
        for first in range(0, pages, 256):
            assert before.read(first, 256) == after.read(first, 256), first
        before.close()
        after.close()


@needs_openssl
def test_pages_follow_over_tls(runtime: Path) -> None:
    credentials = Authority(runtime / "ca").credentials(runtime / "tls")
    words = ("--incoming", "tcp:127.0.0.1:0", "--tls-creds", str(credentials))
    with Mover(runtime, "unicorn", "case=load pages=200", vcpus=2, memory="16M") as mover:
        there = VmProcess(runtime, *words, name="there")
        mover.vms.append(there)
        mover.until("MOVER runs")
        there.wait_err("waiting for a guest at ")
        uri = there.err.split("waiting for a guest at ")[1].split(";")[0]
        shown = cli(
            runtime, "migrate", "vm", uri, "--postcopy", "--tls-creds", str(credentials), "--max-bandwidth", "4M"
        )
        assert shown.stdout.startswith("completed")
        mover.moved_to(there)
        mover.beat()
        mover.quit()


def test_what_makes_no_sense_is_refused(runtime: Path) -> None:
    with VmProcess(runtime, "--guest", "listen", "--append", "idle=spin") as vm:
        vm.wait_out("listening")
        assert "all pages of a guest" in cli(runtime, "migrate", "vm", "file:x", "--postcopy", code=2).stderr
        cli(runtime, "migrate", "vm", "unix:x", "--postcopy", "--postcopy-after", "1", code=2)
        cli(runtime, "migrate", "vm", "--recover", "--status", code=2)
        assert "no migration" in cli(runtime, "migrate", "vm", "--recover", code=1).stderr
        cli(runtime, "run", "--guest", "listen", "--prefetch", "4", code=2)
        with VmClient("vm") as client:
            assert client.execute("query-status")["running"]


@NEEDS_QEMU
@pytest.mark.qemu
@pytest.mark.parametrize("words", [("--", "-device", "virtio-rng-pci"), ("--gdb",)], ids=["devices", "gdb"])
def test_a_guest_whose_devices_could_not_wait_is_refused(words: tuple[str, ...], runtime: Path) -> None:
    """Before anything is said to the destination; it runs on, and can move whole."""
    guest = ("--machine", "qemu", "--guest", "listen", "--append", "idle=spin")
    with VmProcess(runtime, *guest, *words) as vm, socket.socket(socket.AF_UNIX) as listener:
        vm.wait_out("listening")
        listener.bind(str(runtime / "there"))
        listener.listen()
        listener.setblocking(False)
        for way in ("--postcopy", "--postcopy-after=1"):
            said = cli(runtime, "migrate", "vm", f"unix:{runtime}/there", way, code=1).stderr
            assert "cannot wait for a page" in said
            assert "without --postcopy" in said
            with pytest.raises(BlockingIOError):
                listener.accept()
        with VmClient("vm") as client:
            assert client.execute("query-status")["running"]
            assert client.execute("query-migrate")["status"] == "none"
        cli(runtime, "save", "vm", str(runtime / "guest.sdei"))
        assert vm.wait() == 0
    said = cli(runtime, "restore", "--lazy", str(runtime / "guest.sdei"), *words, code=1).stderr
    assert "without --lazy" in said
