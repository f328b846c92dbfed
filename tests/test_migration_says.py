# SPDX-License-Identifier: Apache-2.0
"""How a migration, a saving or a restoring ends, as people are told of it on both sides."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from sdeivirt.cli.progress import ProgressLine
from sdeivirt.control.client import VmClient
from sdeivirt.errors import StateError, UsageError
from sdeivirt.migration.source import SourceOptions
from sdeivirt.migration.status import MigrationStatus

from .control_support import LIMIT, VmProcess, cli, environment
from .frame_proxy import BACK, FORTH, Act, Direction, Fault, FrameProxy
from .place_support import GUEST, place
from .tls_support import Authority, needs_openssl

pytestmark = [pytest.mark.machine, pytest.mark.process]

SLOW = ("--max-bandwidth", "1K")
CAME_TO_NOTHING = "error: the guest did not come: the source gave up: "


@contextmanager
def migrating(runtime: Path, uri: str, *words: str) -> Iterator[subprocess.Popen[str]]:
    """`sdeivirt migrate here URI` in the middle of its first pass."""
    with subprocess.Popen(
        [sys.executable, "-m", "sdeivirt", "migrate", "here", uri, *SLOW, *words],
        env=environment(runtime),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stderr is not None
        while "pass 1" not in (line := process.stderr.readline()):
            assert line
        yield process


# -- cancelled


def test_whoever_cancels_is_told_and_so_are_both_terminals(runtime: Path, here: VmProcess) -> None:
    with place(runtime) as (there, uri), migrating(runtime, uri) as process:
        done = cli(runtime, "migrate", "here", "--cancel")
        assert done.stdout == "cancelled: the guest stays in VM 'here'\n"
        assert there.wait() == 1
        assert f"{CAME_TO_NOTHING}the migration was cancelled\n" in there.err
        assert "hint: the guest goes on at the source\n" in there.err
        _, err = process.communicate(timeout=LIMIT)
        assert process.returncode == 1
        assert err.endswith(
            "error: VM 'here' has not moved: the migration was cancelled\nhint: its guest stays there\n"
        )
        here.wait_err(f"the guest has not moved to {uri}: the migration was cancelled; it stays here\n")
        cli(runtime, "inject", "here", "0")
        here.wait_out("SDEI Event")


def test_ctrl_c_is_told_to_the_destination(runtime: Path, here: VmProcess) -> None:
    with place(runtime) as (there, uri), migrating(runtime, uri, "--json") as process:
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=LIMIT)
        assert process.returncode == 130
        assert json.loads(out)["status"] == "cancelled"
        assert err.endswith("cancelling: the guest is to stay\ncancelled: the guest stays in VM 'here'\n")
        assert there.wait() == 1
        assert f"{CAME_TO_NOTHING}the migration was cancelled\n" in there.err


def test_cancelling_as_json_tells_how_it_ended(runtime: Path, here: VmProcess) -> None:
    with place(runtime) as (_, uri), migrating(runtime, uri) as process:
        status = json.loads(cli(runtime, "migrate", "here", "--cancel", "--json").stdout)
        assert (status["status"], status["error"]) == ("cancelled", "the migration was cancelled")
        process.communicate(timeout=LIMIT)


def test_a_source_that_is_ended_says_so(runtime: Path, here: VmProcess) -> None:
    with place(runtime) as (there, uri), migrating(runtime, uri) as process:
        with VmClient("here") as client:
            client.quit()
        assert here.wait() == 0
        assert there.wait() == 1
        assert CAME_TO_NOTHING in there.err
        process.communicate(timeout=LIMIT)
        assert process.returncode != 0


def test_a_destination_that_takes_nothing_does_not_hold_a_cancel_up(runtime: Path, here: VmProcess) -> None:
    """It is stopped, so nothing can be said to it: the connection is cut after a while."""
    with place(runtime) as (there, uri), migrating(runtime, uri) as process:
        there.signal(signal.SIGSTOP)
        try:
            done = cli(runtime, "migrate", "here", "--cancel")
        finally:
            there.signal(signal.SIGCONT)
        assert done.stdout.startswith("cancelled")
        assert there.wait() == 1
        process.communicate(timeout=LIMIT)


def test_cancelling_while_the_destination_is_awaited(runtime: Path, here: VmProcess) -> None:
    """It never says that it stands, so the source waits for it and sends nothing: that wait is ended, too."""
    with place(runtime) as (there, uri):
        there.signal(signal.SIGSTOP)
        try:
            with subprocess.Popen(
                [sys.executable, "-m", "sdeivirt", "migrate", "here", uri],
                env=environment(runtime),
                stderr=subprocess.PIPE,
                text=True,
            ) as process:
                assert process.stderr is not None
                assert process.stderr.readline() == "connecting\n"
                process.send_signal(signal.SIGINT)
                _, err = process.communicate(timeout=LIMIT)
                assert process.returncode == 130
                assert "cancelled: the guest stays" in err
        finally:
            there.signal(signal.SIGCONT)


def cancel_here(_side: str) -> None:
    with VmClient("here") as client:
        client.execute("migrate-cancel")


@pytest.mark.parametrize(
    ("direction", "kind"), [(FORTH, "CONF"), (BACK, "REDY"), (FORTH, "PAGE"), (FORTH, "END"), (BACK, "LOAD")]
)
def test_cancelled_at_any_step_it_is_said_and_the_guest_goes_on(
    runtime: Path, here: VmProcess, direction: Direction, kind: str
) -> None:
    """Also where the guest is stopped already, and the destination has all of it."""
    fault = Fault(Act.END_SOURCE, direction, kind)
    with (
        place(runtime) as (there, uri),
        FrameProxy(uri, f"unix:{runtime}/proxy.sock", fault, ask=cancel_here) as proxy,
    ):
        done = cli(runtime, "migrate", "here", proxy.uri, code=1)
        assert "error: VM 'here' has not moved: the migration was cancelled\n" in done.stderr
        proxy.wait_fault()
        assert any(seen.kind == "FAIL" and seen.direction is FORTH for seen in proxy.seen)
        if kind == "CONF":
            there.wait_err("the source gave up: the migration was cancelled")  # and it waits for another
        else:
            assert there.wait() == 1
            assert f"{CAME_TO_NOTHING}the migration was cancelled\n" in there.err
    cli(runtime, "inject", "here", "0")
    here.wait_out("SDEI Event")


def test_after_the_word_was_given_it_is_too_late(runtime: Path, here: VmProcess) -> None:
    said: list[StateError] = []

    def cancel(_side: str) -> None:
        with pytest.raises(StateError) as caught:
            cancel_here(_side)
        said.append(caught.value)

    fault = Fault(Act.END_SOURCE, FORTH, "CMIT")
    with place(runtime) as (_, uri), FrameProxy(uri, f"unix:{runtime}/proxy.sock", fault, ask=cancel) as proxy:
        cli(runtime, "migrate", "here", proxy.uri)
    assert [error.message for error in said] == ["the guest has been handed over: it is too late to cancel"]


# -- refused, failed


@pytest.mark.parametrize(("machine", "other"), [("unicorn", "qemu"), ("qemu", "unicorn")])
def test_a_place_for_another_machine_refuses_the_guest(runtime: Path, machine: str, other: str) -> None:
    with VmProcess(runtime, *GUEST, "--machine", machine, name="here") as here:
        here.wait_out("listening", 2)
        with place(runtime, "--machine", other) as (there, uri):
            done = cli(runtime, "migrate", "here", uri, code=1)
            why = f"the guest is one of machine {machine}, and this is a place for machine {other}"
            hint = f"start the place without --machine, or with --machine {machine}\n"
            at = f"hint: at the destination: {hint}"
            assert f"error: VM 'here' has not moved: the destination gave up: {why}\n{at}" in done.stderr
            assert there.wait() == 2
            assert f"error: {why}\nhint: {hint}" in there.err
        here.wait_err(f"the guest has not moved to {uri}: the destination gave up: {why}; it stays here\n")
        with place(runtime, "--machine", machine) as (there, uri):
            cli(runtime, "migrate", "here", uri)
            cli(runtime, "inject", "there", "0")
            there.wait_out("SDEI Event")


def test_a_guest_that_cannot_be_restored_on_the_machine_that_is_asked_for(runtime: Path, here: VmProcess) -> None:
    cli(runtime, "save", "here", str(runtime / "guest"))
    done = cli(runtime, "restore", str(runtime / "guest"), "--machine", "qemu", code=2)
    assert "the guest is one of machine unicorn" in done.stderr


def test_a_move_to_nowhere(runtime: Path, here: VmProcess) -> None:
    uri = f"unix:{runtime}/nowhere"
    done = cli(runtime, "migrate", "here", uri, "--json", code=1)
    status = json.loads(done.stdout)
    assert status["status"] == "failed"
    assert f"error: VM 'here' has not moved: {status['error']}\nhint: {status['hint']}\n" in done.stderr
    here.wait_err(f"the guest has not moved to {uri}: {status['error']}; it stays here\n")
    shown = cli(runtime, "migrate", "here", "--status").stdout
    assert f"  why         {status['error']}\n  hint        {status['hint']}\n" in shown


@pytest.mark.parametrize("unreachable", [False, True])
def test_a_hand_over_that_broke_and_how_it_ended(runtime: Path, here: VmProcess, unreachable: bool) -> None:
    """Nobody knows for a while; what was said of that is not said of the end, one way or the other."""
    fault = Fault(Act.CUT, FORTH, "CMIT", unreachable=unreachable)
    with place(runtime) as (there, uri), FrameProxy(uri, f"unix:{runtime}/proxy.sock", fault) as proxy:
        with subprocess.Popen(
            [sys.executable, "-m", "sdeivirt", "migrate", "here", proxy.uri],
            env=environment(runtime),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            here.wait_err("the guest stands still: the connection broke during the hand-over: ")
            if unreachable:
                done = cli(runtime, "migrate", "here", "--take-back")
                assert done.stdout == "taken back: the guest stays in VM 'here'\n"
            out, err = process.communicate(timeout=LIMIT)
        assert "nobody runs the guest: the connection broke" in err
        assert "hint: if you know that the guest does not run there" in err
        if unreachable:
            assert process.returncode == 1
            assert "error: VM 'here' has not moved: the guest was taken back\n" in err
            here.wait_err("has not moved to " + proxy.uri + ": the guest was taken back; it stays here\n")
            cli(runtime, "inject", "here", "0")
            here.wait_out("SDEI Event")
        else:
            assert process.returncode == 0
            assert out.startswith(f"completed: to {proxy.uri}\n")
            assert "why" not in out
            assert "hint" not in out
            there.wait_err("the guest has come, and goes on here")


# -- saved


def test_saving_does_not_speak_of_moving(runtime: Path, here: VmProcess) -> None:
    file = runtime / "guest"
    done = cli(runtime, "save", "here", str(file), "--stay")
    assert "moved" not in done.stdout + done.stderr
    here.wait_err(f"the guest was saved in {file}, and stays here\n")
    refused = cli(runtime, "save", "here", str(file), code=1)
    assert "error: VM 'here' was not saved: " in refused.stderr
    here.wait_err(f"the guest was not saved in {file}: ")
    cli(runtime, "save", "here", str(file), "--overwrite")
    assert here.wait() == 0
    assert here.err.endswith(f"VM 'here': its guest is in {file}\n")
    with VmProcess(runtime, "--incoming", f"file:{file}", name="again") as again:
        again.wait_err(f"the guest of file:{file} goes on here\n")


# -- TLS


@needs_openssl
def test_the_destination_is_known_by_the_name_that_is_given(runtime: Path, here: VmProcess) -> None:
    authority = Authority(runtime / "ca")
    servers, clients = runtime / "servers", runtime / "clients"
    authority.credentials(servers, "server", names="DNS:there.example")
    authority.credentials(clients, "client")
    with VmProcess(runtime, "--incoming", "tcp:127.0.0.1:0", "--tls-creds", str(servers), name="there") as there:
        there.wait_err("sends one")
        uri = there.err.split("waiting for a guest at ")[1].split(";")[0]
        tls = ("--tls-creds", str(clients))
        assert "another name" in cli(runtime, "migrate", "here", uri, *tls, code=1).stderr
        other = cli(runtime, "migrate", "here", uri, *tls, "--tls-hostname", "elsewhere.example", code=1)
        assert "another name" in other.stderr
        cli(runtime, "migrate", "here", uri, *tls, "--tls-hostname", "there.example")
        cli(runtime, "inject", "there", "0")
        there.wait_out("SDEI Event")


def test_a_name_without_tls_is_refused(runtime: Path, here: VmProcess) -> None:
    done = cli(runtime, "migrate", "here", "unix:/x", "--tls-hostname", "there.example", code=2)
    assert "--tls-creds" in done.stderr
    with pytest.raises(UsageError, match="without TLS"):
        SourceOptions(tls_hostname="there.example")


# -- a terminal


class _Screen:
    """A terminal of 40 columns, and what is written to it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("COLUMNS", "40")
        self._ours, theirs = pty.openpty()
        self.stream = os.fdopen(theirs, "w")
        self._text = bytearray()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        try:
            while data := os.read(self._ours, 4096):
                self._text += data
        except OSError:  # the other side is closed
            pass

    def text(self) -> str:
        self.stream.close()
        self._reader.join(LIMIT)
        os.close(self._ours)
        return self._text.decode()


def test_a_line_that_is_written_over_fits_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = _Screen(monkeypatch)
    line = ProgressLine(screen.stream)
    line.show(MigrationStatus(status="active", passes=3, remaining=1 << 20, total=1 << 22, limit=1000))
    line.show(MigrationStatus(status="undecided", error="the connection broke", hint="wait"))
    line.show(MigrationStatus(status="completed"))
    lines = screen.text().split("\x1b[K")
    assert [len(text.removesuffix("\r")) for text in lines if text.startswith("pass 3")] == [39]
    assert "nobody runs the guest: the connection broke\r\nhint: wait\r\n\r" in lines
    assert lines[-1] == ""  # how it ended is said elsewhere, on an empty line
