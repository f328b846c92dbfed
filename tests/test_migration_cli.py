# SPDX-License-Identifier: Apache-2.0
"""`migrate`, `save`, `restore` and `run --incoming` as a person types them."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from .control_support import LIMIT, VmProcess, cli, environment, wait_until
from .place_support import GUEST, place
from .tls_support import Authority, needs_openssl

pytestmark = [pytest.mark.machine, pytest.mark.process]


def test_a_move_and_an_event_there(runtime: Path, here: VmProcess) -> None:
    with place(runtime, uri="tcp:127.0.0.1:0") as (there, uri):
        done = cli(runtime, "migrate", "here", uri)
        assert done.stdout.startswith(f"completed: to {uri}\n")
        assert here.wait() == 0
        assert f"its guest has moved to {uri}" in here.err
        cli(runtime, "inject", "there", "0", "--vcpu", "1")
        there.wait_out("SDEI Event (CPU#1)")
        assert "completed: at" in cli(runtime, "migrate", "there", "--status").stdout
        status = json.loads(cli(runtime, "migrate", "there", "--status", "--json").stdout)
        assert (status["role"], status["status"]) == ("destination", "completed")


@needs_openssl
def test_tls_on_both_sides(runtime: Path, here: VmProcess) -> None:
    authority = Authority(runtime / "ca")
    servers, clients = runtime / "servers", runtime / "clients"
    authority.credentials(servers, "server")
    authority.credentials(clients, "client")
    with place(runtime, "--tls-creds", str(servers), uri="tcp:127.0.0.1:0") as (there, uri):
        refused = cli(runtime, "migrate", "here", uri, code=1)
        assert "error: VM 'here' has not moved: " in refused.stderr
        strangers = runtime / "strangers"
        Authority(runtime / "other", "Other").credentials(strangers, "client")
        cli(runtime, "migrate", "here", uri, "--tls-creds", str(strangers), code=1)
        cli(runtime, "inject", "here", "0")  # it went on
        cli(runtime, "migrate", "here", uri, "--tls-creds", str(clients))
        cli(runtime, "inject", "there", "0")
        there.wait_out("SDEI Event (CPU#0)")


def test_another_host_is_not_reached_without_tls(runtime: Path, here: VmProcess) -> None:
    done = cli(runtime, "migrate", "here", "tcp:192.0.2.1:4444", code=2)
    assert "--tls-creds" in done.stderr
    assert "--insecure" in done.stderr
    done = cli(runtime, "run", "--incoming", "tcp:0.0.0.0:0", code=2)
    assert "--insecure" in done.stderr


def test_ctrl_c_cancels(runtime: Path, here: VmProcess) -> None:
    with (
        place(runtime) as (there, uri),
        subprocess.Popen(
            [sys.executable, "-m", "sdeivirt", "migrate", "here", uri, "--max-bandwidth", "1K"],
            env=environment(runtime),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as process,
    ):
        assert process.stderr is not None
        while "pass 1" not in process.stderr.readline():
            pass
        again = cli(runtime, "migrate", "here", uri, code=1)
        assert "on its way" in again.stderr
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=LIMIT)
        assert process.returncode == 130
        assert "the guest stays" in err
        assert there.wait() == 1
        assert "error: the guest did not come" in there.err
        cli(runtime, "inject", "here", "0")
        assert "cancelled" in cli(runtime, "migrate", "here", "--status").stdout


def test_cancel_from_elsewhere(runtime: Path, here: VmProcess) -> None:
    with (
        place(runtime) as (_, uri),
        subprocess.Popen(
            [sys.executable, "-m", "sdeivirt", "migrate", "here", uri, "--max-bandwidth", "1K"],
            env=environment(runtime),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        ) as process,
    ):
        assert process.stderr is not None
        while "pass 1" not in process.stderr.readline():
            pass
        cli(runtime, "migrate", "here", "--cancel")
        process.communicate(timeout=LIMIT)
        assert process.returncode == 1
        cli(runtime, "migrate", "here", "--cancel", code=1)
        cli(runtime, "inject", "here", "0")


def test_save_and_restore(runtime: Path, here: VmProcess) -> None:
    file = runtime / "guest.sdei"
    cli(runtime, "save", "here", str(file), "--stay")
    assert file.stat().st_mode & 0o777 == 0o600
    cli(runtime, "inject", "here", "0")  # it went on
    here.wait_out("SDEI Event (CPU#0)")
    refused = cli(runtime, "save", "here", str(file), code=1)
    assert "--overwrite" in refused.stderr
    cli(runtime, "save", "here", str(file), "--overwrite")
    assert here.wait() == 0
    analysis = json.loads(cli(runtime, "migrate", "--analyze", str(file), "--json").stdout)
    assert analysis["complete"]
    restored = VmProcess(runtime, "--incoming", f"file:{file}", name="again")
    with restored:
        wait_until(lambda: re.search(r"^again .* running$", cli(runtime, "status").stdout, re.MULTILINE), restored.err)
        cli(runtime, "inject", "again", "0", "--vcpu", "1")
        restored.wait_out("SDEI Event (CPU#1)")
    assert file.exists()


def test_a_damaged_file_is_refused_with_its_place(runtime: Path, here: VmProcess) -> None:
    file = runtime / "guest.sdei"
    cli(runtime, "save", "here", str(file))
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    done = cli(runtime, "restore", str(file), "--name", "again", code=1)
    assert re.search(r"the guest was not restored: .* at offset 0x[0-9a-f]+", done.stderr)
    assert cli(runtime, "status").stdout == "no VM is running\n"
    cli(runtime, "migrate", "--analyze", str(file), code=1)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("migrate",), "say one thing"),
        (("migrate", "here", "x:y"), "no address"),
        (("migrate", "here", "unix:/x", "--cancel"), "say one thing"),
        (("run", "--incoming", "unix:/x/y", "--guest", "listen"), "brings its own --guest"),
        (("run", "--incoming", "unix:/x/y", "--uefi", "firmware"), "brings its own --uefi"),
        (("run", "--incoming", "file:/nowhere/at/all"), "cannot read"),
        (("run", "--guest", "listen", "--insecure"), "--incoming"),
        (("restore", "/nowhere/at/all"), "cannot read"),
    ],
)
def test_wrong_words(runtime: Path, words: tuple[str, ...], says: str) -> None:
    if words[1:2] == ("here",) and "x:y" in words:
        with VmProcess(runtime, *GUEST, name="here") as vm:
            vm.wait_out("listening", 2)
            assert says in cli(runtime, *words, code=2).stderr
        return
    assert says in cli(runtime, *words, code=2).stderr
