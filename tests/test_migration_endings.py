# SPDX-License-Identifier: Apache-2.0
"""Odd endings of a migration: undecided ones, guests that end on the way, full disks, and those who come between."""

from __future__ import annotations

import json
import random
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from sdeivirt.control.client import VmClient
from sdeivirt.sdei.service import Injection

from .control_support import LIMIT, VmProcess, cli, environment
from .frame_proxy import BACK, FORTH, Act, Fault
from .machine_support import NEEDS_QEMU
from .migration_scene import HERE, THERE, Scene, Watch, runs
from .mover_support import Injector

pytestmark = [pytest.mark.machine, pytest.mark.process]

ENDED = 128 + signal.SIGTERM
EVERY_NIGHT = pytest.mark.nightly
UNICORN_DAILY = ["unicorn", pytest.param("qemu", marks=[NEEDS_QEMU, pytest.mark.qemu, EVERY_NIGHT])]


@contextmanager
def migrating(runtime: Path, vm: str, uri: str, *words: str) -> Iterator[subprocess.Popen[str]]:
    """`sdeivirt migrate` beside us; killed if it still lives."""
    with subprocess.Popen(
        [sys.executable, "-m", "sdeivirt", "migrate", vm, uri, *words],
        env=environment(runtime),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            if process.poll() is None:
                process.kill()


def until_says(process: subprocess.Popen[str], text: str) -> None:
    """Read what it tells of the migration up to a line with that text."""
    assert process.stderr is not None
    lines = []
    while text not in (line := process.stderr.readline()):
        lines.append(line)
        assert line, lines


def status_of(runtime: Path, vm: str = "vm") -> dict[str, object]:
    status = json.loads(cli(runtime, "migrate", vm, "--status", "--json").stdout)
    assert isinstance(status, dict)
    return status


class Held(threading.Thread):
    """An injection while nobody may run the guest: it waits for who gets it."""

    def __init__(self, vm: str) -> None:
        super().__init__()
        self._vm = vm
        self.answer: Injection | None = None
        self.start()

    def run(self) -> None:
        with VmClient(self._vm, LIMIT) as client:
            self.answer = client.inject(0, 1)

    def counted(self, injector: Injector) -> None:
        """It was carried out, once."""
        self.join(LIMIT)
        assert self.answer is not None
        injector.injected[0, 1] += 1


# -- nobody knows where the guest runs


def undecided(scene: Scene, process: subprocess.Popen[str]) -> Held:
    """Wait until the source does not know, and look whether it keeps still; an injection that waits."""
    until_says(process, "nobody runs the guest")
    held = Held("vm")
    status = status_of(scene.runtime)
    assert status["status"] == "undecided"
    assert status["error"]
    assert not runs(scene.here)
    assert not runs(scene.there)
    late = cli(scene.runtime, "migrate", "vm", "--cancel", code=1)
    assert "too late" in late.stderr
    return held


@pytest.mark.parametrize("kind", UNICORN_DAILY)
def test_take_back(kind: str, runtime: Path) -> None:
    """The destination has everything, and cannot be reached: the guest stands still until a person says so."""
    with Scene(runtime, Fault(Act.CUT, FORTH, "CMIT", unreachable=True), kind) as scene:
        injector = scene.injector(random.randrange(1 << 32))
        with injector:
            injector.reaches(20)
        early = cli(runtime, "migrate", "vm", "--take-back", code=1)
        assert "no migration is under way" in early.stderr
        with Watch("vm", "there"):
            with migrating(runtime, "vm", scene.proxy.uri) as process:
                held = undecided(scene, process)
                cli(runtime, "migrate", "vm", "--take-back")
                assert process.wait(LIMIT) == 1
            held.counted(injector)
            assert runs(scene.here)
            assert status_of(runtime)["status"] == "failed"
            scene.ask("destination")  # it waits for a word, half a minute at most
            assert scene.where() == HERE
        scene.stays(ENDED, 1)
        scene.finish(injector)


def test_a_destination_that_can_be_reached_again_gets_the_guest(runtime: Path) -> None:
    with Scene(runtime, Fault(Act.CUT, FORTH, "CMIT", unreachable=True)) as scene:
        injector = scene.injector(random.randrange(1 << 32))
        with injector:
            injector.reaches(20)
        with Watch("vm", "there"):
            with migrating(runtime, "vm", scene.proxy.uri) as process:
                held = undecided(scene, process)
                scene.proxy.fault = None
                assert process.wait(LIMIT) == 0
            held.counted(injector)
            assert scene.where() == THERE
        assert scene.here.wait() == 0
        scene.mover.moved_to(scene.there)
        late = cli(runtime, "migrate", "there", "--take-back", code=1)
        assert "no migration is under way" in late.stderr
        scene.finish(injector)


# As another host: nothing can be known of its processes.
ELSEWHERE = ("unshare", "--pid", "--fork", "--kill-child", "--mount-proc")


def can_be_elsewhere() -> bool:
    return (
        shutil.which("unshare") is not None
        and subprocess.run([*ELSEWHERE, "true"], stderr=subprocess.DEVNULL, check=False).returncode == 0
    )


def test_a_host_that_has_died_is_not_taken_for_dead(runtime: Path) -> None:
    """That nobody answers there does not prove anything. A person may know."""
    if not can_be_elsewhere():
        pytest.skip("pid namespaces cannot be made here")
    with Scene(runtime, Fault(Act.KILL_DESTINATION, FORTH, "CMIT"), prefix=ELSEWHERE) as scene:
        injector = scene.injector(random.randrange(1 << 32))
        with injector:
            injector.reaches(20)
        with migrating(runtime, "vm", scene.proxy.uri) as process:
            held = undecided(scene, process)
            cli(runtime, "migrate", "vm", "--take-back")
            assert process.wait(LIMIT) == 1
        held.counted(injector)
        scene.finish(injector)


# -- a guest that ends on the way


@pytest.mark.parametrize("kind", UNICORN_DAILY)
def test_a_guest_that_powers_off_while_it_is_sent(kind: str, runtime: Path) -> None:
    with Scene(runtime, kind=kind) as scene:
        with Watch("vm", "there"), migrating(runtime, "vm", scene.proxy.uri, "--max-bandwidth", "64K") as process:
            until_says(process, "pass 1")
            scene.mover.quit()
            assert process.wait(LIMIT) == 1
        assert scene.here.wait() == 0
        assert "has moved" not in scene.here.err
        assert scene.there.wait() == 1
        assert "error: the guest did not come: " in scene.there.err
        assert "goes on at the source" not in scene.there.err


@pytest.mark.parametrize("act", [Act.DROP, pytest.param(Act.CUT, marks=EVERY_NIGHT)])
def test_a_guest_that_powers_off_there_does_not_come_back(act: Act, runtime: Path) -> None:
    """The source has not heard yet that it runs there, and it runs there no more: it has ended, and stays so."""
    with Scene(runtime, Fault(act, BACK, "RUNS", unreachable=True)) as scene:
        with Watch("vm", "there"):
            with VmClient("vm") as client:
                client.execute("migrate", **{"uri": scene.proxy.uri, "stall-limit": 1000})
            scene.there.wait_err("the guest has come")
            scene.mover.vm = scene.there
            scene.mover.type_in("q")
            scene.mover.until("Result: OK")
            scene.proxy.fault = None
            assert scene.here.wait() == 0
        assert "its guest has moved to" in scene.here.err
        assert scene.there.wait() == 0
        assert scene.mover.text.count("Result: OK") == 1


# -- who comes between


@pytest.mark.parametrize("scheme", ["unix", "tcp"])
def test_an_address_where_another_waits_already(scheme: str, runtime: Path) -> None:
    with VmProcess(runtime, *("--guest", "listen", "--append", "idle=spin"), name="vm") as here:
        here.wait_out("listening", 2)
        uri = f"unix:{runtime}/there.sock" if scheme == "unix" else "tcp:127.0.0.1:0"
        with VmProcess(runtime, "--incoming", uri, name="there") as there:
            there.wait_err("waiting for a guest")
            uri = there.err.split("waiting for a guest at ")[1].split(";")[0]
            second = cli(runtime, "run", "--incoming", uri, "--name", "second", code=3)
            assert uri.rpartition(":")[2] in second.stderr
            cli(runtime, "migrate", "vm", uri)  # the first is as it was
            cli(runtime, "inject", "there", "0")
            there.wait_out("SDEI Event (CPU#0)")
        assert here.wait() == 0


def test_a_second_source_while_the_first_is_heard(runtime: Path) -> None:
    """It is not let in, keeps its guest, and does the first one no harm."""
    with VmProcess(runtime, "--guest", "listen", "--append", "idle=spin", name="second") as second:
        second.wait_out("listening", 2)
        heard = []

        def come_between(_side: str) -> None:
            with VmClient("second") as client:
                client.execute("migrate", **{"uri": f"unix:{runtime}/there.sock", "stall-limit": 1000})
                while (status := client.wait_migration()).active:
                    pass
                heard.append(status)

        with Scene(runtime, Fault(Act.END_SOURCE, FORTH, "PASS"), ask=come_between) as scene:
            injector = scene.injector(random.randrange(1 << 32))
            with Watch("vm", "there"), injector:
                injector.reaches(20)
                status = scene.migrate()
                assert status is not None
                assert status.status == "completed"
                scene.mover.moved_to(scene.there)
                injector.reaches(injector.count + 20)
            assert [each.status for each in heard] == ["failed"]
            assert heard[0].error
            late = cli(runtime, "migrate", "second", f"unix:{runtime}/there.sock", code=1)
            assert "error: VM 'second' has not moved: " in late.stderr
            cli(runtime, "inject", "second", "0")
            second.wait_out("SDEI Event (CPU#0)")
            scene.finish(injector)
