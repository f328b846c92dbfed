# SPDX-License-Identifier: Apache-2.0
"""Whether a process has ended: never said of one that lives, and of others only where it is certain."""

from __future__ import annotations

import os
import platform
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from sdeivirt.migration import identity as module
from sdeivirt.migration.identity import Identity, is_dead

from .channel_support import child
from .control_support import LIMIT, wait_until

pytestmark = [
    pytest.mark.process,
    pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc"),
]

TELL = """if True:
    import msgspec, sys
    from sdeivirt.migration.identity import Identity
    print(msgspec.json.encode(Identity.ours()).decode(), flush=True)
"""
WAIT = TELL + "    sys.stdin.read()\n"


def told(process: subprocess.Popen[bytes]) -> Identity:
    assert process.stdout is not None
    return msgspec.json.decode(process.stdout.readline(), type=Identity)


def replaced(identity: Identity, **fields: object) -> Identity:
    return msgspec.structs.replace(identity, **fields)


def test_we_live() -> None:
    ours = Identity.ours()
    assert ours.pid == os.getpid()
    assert ours.boot
    assert ours.pid_namespace.startswith("pid:[")
    assert ours.started > 0
    assert str(ours) == f"process {os.getpid()} on {ours.host}"
    assert is_dead(ours) is False
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(ours), type=Identity) == ours


def test_a_process_that_is_killed_is_dead_first_as_a_zombie_and_then_for_good() -> None:
    with child(WAIT) as process:
        identity = told(process)
        assert identity.pid == process.pid
        assert is_dead(identity) is False
        process.send_signal(signal.SIGSTOP)
        assert is_dead(identity) is False
        process.send_signal(signal.SIGKILL)
        wait_until(lambda: is_dead(identity))
        stat = Path(f"/proc/{identity.pid}/stat").read_text()
        assert stat.rpartition(")")[2].split()[0] == "Z"
        process.wait(LIMIT)
        assert is_dead(identity) is True


def test_another_process_of_the_same_number_is_not_it() -> None:
    with child(WAIT) as process:
        identity = told(process)
        for started in (identity.started - 1, identity.started + 1):
            assert is_dead(replaced(identity, started=started)) is True
        assert is_dead(identity) is False


@pytest.mark.parametrize("name", ["a) Z 1 (b", "(", ")", ") X", "\n) Z"])
def test_a_name_can_hold_anything(name: str) -> None:
    with child("import sys; open('/proc/self/comm', 'w').write(sys.argv[1])\n" + WAIT, name) as process:
        identity = told(process)
        assert Path(f"/proc/{identity.pid}/comm").read_text() == name + "\n"
        assert is_dead(identity) is False


def test_a_process_whose_first_thread_has_ended_lives() -> None:
    number = {"x86_64": 60, "aarch64": 93}.get(platform.machine())
    if number is None:
        pytest.skip("does not know the number of exit(2) here")
    program = (
        TELL
        + f"""
    import ctypes, threading
    threading.Thread(target=sys.stdin.read).start()
    ctypes.CDLL(None).syscall({number}, 0)
    """
    )
    with child(program) as process:
        identity = told(process)
        stat = Path(f"/proc/{identity.pid}/stat")
        wait_until(lambda: stat.read_text().rpartition(")")[2].split()[0] == "Z")
        assert is_dead(identity) is False
        process.kill()
        wait_until(lambda: is_dead(identity))


def test_of_another_host_namespace_or_boot_nothing_is_known() -> None:
    with child(TELL) as process:
        identity = told(process)
        process.wait(LIMIT)
        assert is_dead(identity) is True
        for fields in (
            {"boot": "e6c1a5c2-0000-0000-0000-000000000000"},
            {"boot": ""},
            {"pid_namespace": "pid:[1]"},
            {"pid_namespace": ""},
            {"time_namespace": "time:[1]"},
            {"started": 0},
            {"pid": 0},
            {"pid": -1},
            {"pid": 1 << 40},
        ):
            assert is_dead(replaced(identity, **fields)) is None, fields
        assert is_dead(Identity()) is None


def test_a_process_in_another_pid_namespace_is_not_looked_for_here() -> None:
    unshare = ["unshare", "-r", "--pid", "--fork", "--kill-child", "--mount-proc", sys.executable, "-c"]
    try:
        if subprocess.run([*unshare, "pass"], capture_output=True, timeout=LIMIT).returncode:
            pytest.skip("cannot make a pid namespace here")
    except FileNotFoundError:
        pytest.skip("needs unshare")
    with subprocess.Popen([*unshare, WAIT], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        identity = told(process)
        assert identity.pid == 1  # which lives here too
        assert identity.boot == Identity.ours().boot
        assert is_dead(identity) is None
        process.communicate()
    assert is_dead(identity) is None


def proc_without(pid: int, place: Path) -> Path:
    """A /proc in which that process is hidden, as the mount option hidepid does."""
    place.mkdir()
    (place / "sys").symlink_to("/proc/sys")
    (place / "self").symlink_to(str(os.getpid()))
    (place / str(os.getpid())).symlink_to(f"/proc/{os.getpid()}")
    assert not (place / str(pid)).exists()
    return place


def test_a_process_that_is_hidden_from_us_is_not_dead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with child(WAIT) as process:
        identity = told(process)
        monkeypatch.setattr(module, "_PROC", proc_without(identity.pid, tmp_path / "proc"))
        assert is_dead(identity) is None
        process.kill()
        process.wait(LIMIT)
        assert is_dead(identity) is True


def test_without_proc_nothing_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ours = Identity.ours()
    monkeypatch.setattr(module, "_PROC", tmp_path)
    assert Identity.ours() == Identity(pid=os.getpid(), host=ours.host)
    assert is_dead(ours) is None
    # That of another pid namespace, in which we have another number, or none.
    (tmp_path / "sys").symlink_to("/proc/sys")
    (tmp_path / "self").mkdir()
    (tmp_path / "self" / "ns").symlink_to("/proc/self/ns")
    (tmp_path / str(os.getpid())).symlink_to(f"/proc/{os.getppid()}")
    assert Identity.ours() == Identity(pid=os.getpid(), host=ours.host)
    assert is_dead(ours) is None


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to be another user")
def test_a_process_that_we_may_not_signal_is_judged_too() -> None:
    program = """if True:
        import msgspec, os, sys
        from sdeivirt.migration.identity import Identity, is_dead
        os.setresuid(54322, 54322, 54322)
        print(is_dead(msgspec.json.decode(sys.argv[1], type=Identity)), flush=True)
    """
    for started, expected in ((Identity.ours().started, b"False"), (1, b"True")):
        identity = replaced(Identity.ours(), started=started)
        with child(program, msgspec.json.encode(identity).decode()) as process:
            assert process.communicate(timeout=LIMIT)[0].strip() == expected


@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("setpriv") is None, reason="needs root and setpriv")
def test_a_process_of_another_user_is_judged_too() -> None:
    ours = Identity.ours()
    program = "import sys; print('here', flush=True); sys.stdin.read()"
    python = shutil.which("python3", path="/usr/bin:/bin")
    if python is None:
        pytest.skip("needs a Python that all users can run")
    start = ["setpriv", "--reuid", "54322", "--regid", "54322", "--clear-groups", "--", python, "-I", "-c", program]
    with subprocess.Popen(start, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"here\n"
        started = int(Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[19])
        identity = replaced(ours, pid=process.pid, started=started)
        assert is_dead(identity) is False
        process.kill()
        wait_until(lambda: is_dead(identity))
