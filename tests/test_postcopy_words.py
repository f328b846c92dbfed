# SPDX-License-Identifier: Apache-2.0
"""What people are told of a guest that has gone before its pages: where it is, what goes on, and that it is lost."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from sdeivirt.cli import main
from sdeivirt.control.client import VmClient
from sdeivirt.errors import MovedError, StateError

from .asm import assemble
from .control_support import LIMIT, VmProcess, cli, environment, wait_until
from .frame_proxy import BACK, FORTH, Act, Fault, FrameProxy, Part
from .machine_support import NEEDS_QEMU
from .migration_scene import runs
from .place_support import place
from .test_migration_cancelled import muted
from .test_migration_words import Typed
from .test_postcopy_moves import FAST, RESETS_ITSELF, Behind

process = pytest.mark.process
machine = pytest.mark.machine

CUT = Fault(Act.CUT, FORTH, "PAGE", 1, Part.AFTER)
CRAWL = 1 << 16  # bytes a second: the pages that nobody asks for would take minutes


class Idle(Behind):
    """As that, with a guest that has filled 8 MiB, and touches nothing of it any more."""

    def __init__(self, runtime: Path, fault: Fault | None = None) -> None:
        self.runtime = runtime
        self.uri = f"unix:{runtime}/there.sock"
        self._vms = ExitStack()
        self.here = self._vms.enter_context(VmProcess(runtime, *idle()))
        self.there = self._vms.enter_context(VmProcess(runtime, "--incoming", self.uri, name="there"))
        self.here.wait_out("U\n")
        self.there.wait_err("waiting for a guest")
        self.proxy = FrameProxy(self.uri, f"unix:{runtime}/proxy.sock", fault, self.kill, self.end)

    def arrived(self) -> None:
        assert self.here.wait() == 0, self.here.err
        assert self.until("completed", name="there").remaining == 0

    def __exit__(self, *error: object) -> None:
        self.proxy.close()
        self._vms.close()


def idle() -> tuple[str, ...]:
    return ("--guest", str(assemble(RESETS_ITSELF)), "--memory", "16M")


@contextmanager
def migrating(runtime: Path, *words: str) -> Iterator[subprocess.Popen[str]]:
    """`sdeivirt migrate vm`."""
    with subprocess.Popen(
        [sys.executable, "-m", "sdeivirt", "migrate", "vm", *words],
        env=environment(runtime),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def until_says(process: subprocess.Popen[str], text: str) -> None:
    assert process.stderr is not None
    while text not in (line := process.stderr.readline()):
        assert line


# -- connecting again


@machine
@process
def test_an_address_that_did_not_help_is_forgotten(runtime: Path) -> None:
    """One that did takes the place of the old one, everywhere."""
    with Idle(runtime, Fault(Act.CUT, BACK, "LACK", part=Part.AFTER)) as scene:
        scene.start(bandwidth=CRAWL)
        scene.until("postcopy-paused")
        wrong = f"unix:{runtime}/wrong"
        refused = cli(runtime, "migrate", "vm", wrong, "--recover", code=1).stderr
        assert f"has gone to {scene.proxy.uri} without all its pages: it could not be connected again: " in refused
        assert wrong in refused
        status = scene.until("postcopy-paused")
        assert status.uri == scene.proxy.uri
        assert "--recover" in status.hint
        scene.recover(scene.uri)
        assert scene.until("postcopy-active").uri == scene.uri
        with VmClient("vm") as client, pytest.raises(MovedError, match=rf"has moved to {scene.uri}"):
            client.inject(0, 0)
        assert f"its pages move to {scene.uri}" in " ".join(cli(runtime, "status", "vm").stdout.split())
        with VmClient("there") as client:
            client.quit()
        assert scene.here.wait() == 0
        assert f"its guest has moved to {scene.uri}\n" in scene.here.err


@machine
@process
def test_a_plain_recover_goes_where_the_guest_is(runtime: Path) -> None:
    """And the limit is what was said last: by the one before nothing would get there."""
    with Idle(runtime, Fault(Act.CUT, BACK, "LACK", part=Part.AFTER)) as scene:
        scene.start(bandwidth=CRAWL)
        scene.until("postcopy-paused")
        cli(runtime, "migrate", "vm", f"unix:{runtime}/wrong", "--recover", code=1)
        done = cli(runtime, "migrate", "vm", "--recover", "--max-bandwidth", "1G").stdout
        assert f"completed: to {scene.proxy.uri}\n" in done
        scene.arrived()


@machine
@process
def test_connecting_again_can_be_given_up(runtime: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By Ctrl-C, and by --cancel; the pages stay for another attempt."""
    with Idle(runtime, CUT) as scene, muted(runtime) as mute:
        scene.start(bandwidth=FAST)
        scene.until("postcopy-paused")
        with migrating(runtime, mute, "--recover") as process:
            scene.until("postcopy-recover")
            process.send_signal(signal.SIGINT)
            _, err = process.communicate(timeout=LIMIT)
            assert process.returncode == 128 + signal.SIGINT
            assert "cancelling: no connection is to be made\n" in err
            assert "could not be connected again: connecting again was cancelled\nhint: " in err
        scene.recover(mute)
        assert main(["migrate", "vm", "--cancel"]) == 0
        said = capsys.readouterr().out
        assert "cancelled: nobody connects again" in said
        assert "stays in VM" not in said
        cli(runtime, "migrate", "vm", "--recover")
        scene.arrived()


@pytest.mark.parametrize(
    ("words", "what"),
    [
        ("--recover --postcopy", "--postcopy"),
        ("--recover --postcopy-after 1", "--postcopy-after"),
        ("unix:/x --recover --downtime-limit 3", "--downtime-limit"),
        ("--recover --compress", "--compress"),
        ("--cancel --max-bandwidth 1M", "--max-bandwidth"),
    ],
)
def test_what_is_for_a_guest_that_sets_out(words: str, what: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["migrate", "vm", *words.split()]) == 2
    assert f"{what} is for a guest that sets out" in capsys.readouterr().err


# -- while pages are sent


@machine
@process
def test_what_is_too_late_says_where_the_guest_is(runtime: Path) -> None:
    with Idle(runtime) as scene, migrating(runtime, scene.uri, "--postcopy", "--max-bandwidth", "64K") as process:
        until_says(process, "the guest runs there")
        scene.here.wait_err(f"the guest runs at {scene.uri} now, and takes no more input here; its pages follow")
        with VmClient("vm") as client:
            with pytest.raises(StateError, match="runs at the destination already, and its pages follow"):
                client.execute("migrate-cancel")
            with pytest.raises(StateError, match=f"has gone to {scene.uri}"):
                client.execute("migrate", uri="unix:/elsewhere")
        with VmClient("there") as client:
            for command in ("migrate-cancel", "migrate-recover", "migrate-take-back"):
                with pytest.raises(StateError, match="has come here, and its pages follow"):
                    client.execute(command)
        process.send_signal(signal.SIGINT)
        until_says(process, "its pages follow: it is too late to cancel")
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=LIMIT)
        assert process.returncode == 128 + signal.SIGINT
        assert "it goes on without this: `sdeivirt migrate vm --status` tells how\n" in err
        assert scene.status().status == "postcopy-active"


@machine
@process
def test_a_guest_that_ends_there_is_said_to_have_ended(runtime: Path) -> None:
    with Idle(runtime) as scene, migrating(runtime, scene.uri, "--postcopy", "--max-bandwidth", "64K") as process:
        until_says(process, "the guest runs there")
        with VmClient("there") as client:
            client.quit()
        out, _ = process.communicate(timeout=LIMIT)
        assert process.returncode == 0
        assert ": the guest has ended there, or was reset\n" in out
        assert scene.here.wait() == 0
        assert f"the guest has ended at {scene.uri}, or was reset, and needs no more of its pages\n" in scene.here.err


@machine
@process
def test_ctrl_c_ends_a_source_that_sends_its_last_pages(runtime: Path) -> None:
    """After Ctrl-], which waits for them; and until then the keys do nothing."""
    with place(runtime) as (there, uri), Typed(runtime, "run", *idle(), "--name", "vm") as here:
        here.wait_for("U\r\n")
        with migrating(runtime, uri, "--postcopy", "--max-bandwidth", "64K") as process:
            until_says(process, "the guest runs there")
            here.wait_for("its pages follow")
            here.type("\x1d")
            here.wait_for("Ctrl-C, or a signal, would end that, and the guest")
            here.type("\x03")
            assert here.wait() == 128 + signal.SIGINT
        wait_until(lambda: "lost" in cli(runtime, "status", "there").stdout)
        there.process.kill()


# -- lost


def qemus_of(vm: VmProcess) -> list[int]:
    """The processes that a VM's process has started."""
    children = Path(f"/proc/{vm.process.pid}/task").glob("*/children")
    return [int(pid) for each in children for pid in each.read_text().split()]


@NEEDS_QEMU
@pytest.mark.qemu
@machine
@process
def test_a_qemu_that_is_killed_there_takes_the_guest_with_it(runtime: Path) -> None:
    with (
        Behind(runtime, kind="qemu") as scene,
        migrating(runtime, scene.uri, "--postcopy", "--max-bandwidth", "256K") as process,
    ):
        until_says(process, "the guest runs there")
        for pid in qemus_of(scene.there):
            os.kill(pid, signal.SIGKILL)
        assert scene.there.wait() == 3
        _, err = process.communicate(timeout=LIMIT)
        assert process.returncode == 1
        assert "error: the guest is lost, for it broke off there before all pages had come: " in err
        assert "signal 9" in err
        assert scene.here.wait() == 1
        assert "the guest is lost" in scene.here.err


@machine
@process
def test_who_moved_a_guest_that_is_lost_is_told_at_once(runtime: Path) -> None:
    """Not to recover: the destination's process has ended."""
    fault = Fault(Act.KILL_DESTINATION, BACK, "GOT", part=Part.AFTER)
    with (
        Behind(runtime, fault) as scene,
        migrating(runtime, scene.proxy.uri, "--postcopy", "--max-bandwidth", "3M") as process,
    ):
        _, err = process.communicate(timeout=LIMIT)
        assert process.returncode == 1
        assert "the destination's process has ended before all pages had got there: the guest is lost\n" in err
        assert "--recover" not in err
        assert scene.here.wait() == 1


@machine
@process
def test_a_guest_whose_source_was_killed_is_shown_as_lost(runtime: Path) -> None:
    with Idle(runtime) as scene:
        scene.start(bandwidth=CRAWL)
        scene.until("postcopy-active")
        scene.until("postcopy-active", name="there")
        scene.kill("source")
        left = scene.until("failed", name="there").remaining
        assert not runs(scene.there)
        assert "paused, lost: some of its pages are gone" in " ".join(cli(runtime, "status").stdout.split())
        shown = " ".join(cli(runtime, "status", "there").stdout.split())
        assert "VM there: paused, lost: some of its pages are gone" in shown
        assert f"{left} pages of the guest that had not come" in shown
        for words in (("save", "there", str(runtime / "file")), ("migrate", "there", "unix:/x")):
            assert "error: the guest is lost: the source's process has ended" in cli(runtime, *words, code=1).stderr
        scene.there.signal(signal.SIGTERM)
        assert scene.there.wait() == 1
        assert "error: the guest is lost: the source's process has ended" in scene.there.err


# -- a place


@pytest.mark.parametrize("many", [0, 513])
def test_pages_that_cannot_be_asked_for_at_once(many: int, runtime: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Before anybody has stopped a guest for that."""
    assert main(["run", "--incoming", f"unix:{runtime}/x", "--prefetch", str(many)]) == 2
    assert f"{many} pages cannot be fetched at once" in capsys.readouterr().err
    assert not (runtime / "x").exists()


@machine
@process
def test_a_place_that_waits_says_how_to_end_it(runtime: Path) -> None:
    with Typed(runtime, "run", "--incoming", f"unix:{runtime}/there.sock", "--name", "there") as there:
        there.wait_for("Ctrl-C ends this")
        there.type("\x03")
        assert there.wait() == 128 + signal.SIGINT
