# SPDX-License-Identifier: Apache-2.0
"""The runtime directory: private, one VM a name, nothing left behind."""

from __future__ import annotations

import fcntl
import os
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from sdeivirt.control import runtime
from sdeivirt.control.runtime import VmDirectory, find_vm, running_vms, runtime_root
from sdeivirt.errors import RuntimeDirectoryError, UnknownVmError, UsageError, VmExistsError

from .control_support import LIMIT

NOBODY = 65534
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root to give a directory to another user")


@pytest.fixture(autouse=True)
def runtime_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    return tmp_path


def mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


def test_a_vm_has_a_private_directory_that_goes_with_it(tmp_path: Path) -> None:
    with VmDirectory.acquire("one") as directory:
        assert directory.path == tmp_path / "sdeivirt" / "one"
        assert directory.name == "one"
        assert [mode(path) for path in (tmp_path / "sdeivirt", directory.path)] == [0o700, 0o700]
        assert mode(directory.path / "lock") == 0o600
        assert directory.control_socket.parent == directory.fifo(3).parent == directory.path
        directory.fifo(3).write_text("0\n")  # what the shell makes of a FIFO that is not there
        (vm,) = running_vms()
        assert (vm.name, vm.pid, vm.path) == ("one", os.getpid(), directory.path)
        assert find_vm("one") == vm
    assert not directory.path.exists()
    assert running_vms() == []
    directory.release()


def test_without_xdg_runtime_dir_there_is_a_folder_of_the_users(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for value in (None, "", "not/absolute"):
        monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
        if value is not None:
            monkeypatch.setenv("XDG_RUNTIME_DIR", value)
        monkeypatch.setattr(tempfile, "gettempdir", lambda: str(tmp_path))
        assert runtime_root() == tmp_path / f"sdeivirt-{os.geteuid()}"
    with VmDirectory.acquire("one") as directory:
        assert directory.path == tmp_path / f"sdeivirt-{os.geteuid()}" / "one"


def test_a_name_is_taken_once() -> None:
    with VmDirectory.acquire("one") as directory:
        with pytest.raises(VmExistsError, match=rf"already \(pid {os.getpid()}\)") as caught:
            VmDirectory.acquire("one")
        assert caught.value.exit_code == 3
        assert "--name" in caught.value.hint
        assert directory.path.is_dir()
        with VmDirectory.acquire("two"):
            assert [vm.name for vm in running_vms()] == ["one", "two"]
    with VmDirectory.acquire("one"):
        pass


@pytest.mark.parametrize("name", ["", ".", "..", ".x", "-x", "a/b", "a b", "a\n", "x" * 65, "ü", "a\0b"])
def test_names_that_cannot_be(name: str, tmp_path: Path) -> None:
    for use in (VmDirectory.acquire, find_vm):
        with pytest.raises(UsageError, match="cannot be the name of a VM"):
            use(name)
    assert [path.name for path in tmp_path.iterdir()] in ([], ["sdeivirt"])


@pytest.mark.parametrize("name", ["a", "A-1.b_c", "_", "0", "x" * 64])
def test_names_that_can_be(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime, "_MAX_SOCKET_PATH", 4096)
    with VmDirectory.acquire(name):
        assert find_vm(name).name == name


def test_an_unknown_vm_is_answered_with_those_there_are() -> None:
    with pytest.raises(UnknownVmError, match="none is running"):
        find_vm("one")
    with VmDirectory.acquire("b"), VmDirectory.acquire("a"), pytest.raises(UnknownVmError, match="running: a, b"):
        find_vm("one")


def test_the_directory_of_a_killed_vm_is_taken_over(tmp_path: Path) -> None:
    path = tmp_path / "sdeivirt" / "one"
    path.mkdir(mode=0o700, parents=True)
    path.parent.chmod(0o700)
    (path / "lock").write_text("999999\n")
    os.mkfifo(path / "vcpu-0")
    os.mkfifo(path / "vcpu-9")
    (path / "control.sock").write_text("")
    assert running_vms() == []
    with pytest.raises(UnknownVmError):
        find_vm("one")
    with VmDirectory.acquire("one"):
        assert sorted(os.listdir(path)) == ["lock"]
        assert find_vm("one").pid == os.getpid()
    assert not path.exists()


def test_who_only_looks_does_not_hold_the_name(tmp_path: Path) -> None:
    path = tmp_path / "sdeivirt" / "one"
    path.mkdir(parents=True)
    for folder in (path.parent, path):
        folder.chmod(0o700)
    with (path / "lock").open("w") as looking:
        fcntl.flock(looking, fcntl.LOCK_SH)  # as running_vms() does for a moment
        with ThreadPoolExecutor() as pool:
            started = pool.submit(VmDirectory.acquire, "one")
            with pytest.raises(TimeoutError):
                started.result(0.01)
            fcntl.flock(looking, fcntl.LOCK_UN)
            started.result(LIMIT).release()


def test_a_vm_that_took_the_name_because_the_lock_was_removed_keeps_its_files() -> None:
    """The first one used to remove the second one's socket when it ended."""
    first = VmDirectory.acquire("one")
    (first.path / "lock").unlink()
    with VmDirectory.acquire("one") as second:
        second.control_socket.write_text("")
        first.release()
        assert sorted(os.listdir(second.path)) == ["control.sock", "lock"]
        assert find_vm("one").pid == os.getpid()


@pytest.mark.parametrize("what", ["nothing", "file", "link"])
def test_what_was_put_in_place_of_the_directory_is_left_alone(tmp_path: Path, what: str) -> None:
    directory = VmDirectory.acquire("one")
    directory.path.rename(tmp_path / "moved")
    precious = tmp_path / "elsewhere" / "control.sock"
    precious.parent.mkdir()
    precious.write_text("mine")
    if what == "file":
        directory.path.write_text("mine")
    elif what == "link":
        directory.path.symlink_to(precious.parent)
    directory.release()
    assert precious.read_text() == "mine"
    assert os.path.lexists(directory.path) == (what != "nothing")


@pytest.mark.parametrize("make", [os.mkfifo, Path.mkdir])
def test_a_lock_that_is_no_file_is_not_waited_for(tmp_path: Path, make: Callable[[Path], object]) -> None:
    with VmDirectory.acquire("one") as directory:
        (directory.path / "lock").unlink()
        make(directory.path / "lock")
        assert running_vms() == []
        holder = os.open(directory.path / "lock", os.O_RDONLY | os.O_NONBLOCK)
        fcntl.flock(holder, fcntl.LOCK_EX)
        assert [(vm.name, vm.pid) for vm in running_vms()] == [("one", None)]
        os.close(holder)


def test_a_folder_that_somebody_put_in_is_not_removed() -> None:
    with VmDirectory.acquire("one") as directory:
        (directory.path / "mine").mkdir()
    assert os.listdir(directory.path) == ["mine"]


# -- directories that cannot be trusted


def refused(match: str) -> None:
    for use in (lambda: VmDirectory.acquire("one"), lambda: find_vm("one")):
        with pytest.raises(RuntimeDirectoryError, match=match) as caught:
            use()
        assert caught.value.hint
        assert caught.value.exit_code == 3


@as_root
def test_a_temporary_directory_where_others_can_remove_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XDG_RUNTIME_DIR")
    monkeypatch.setattr(tempfile, "gettempdir", lambda: str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    os.chown(tmp_path / "tmp", NOBODY, -1)
    refused("other users can remove what is not theirs")
    (tmp_path / "tmp").chmod(0o1777)
    VmDirectory.acquire("one").release()


@as_root
def test_a_directory_of_another_user(tmp_path: Path) -> None:
    with VmDirectory.acquire("two"):
        root = tmp_path / "sdeivirt"
        (root / "one").mkdir(mode=0o700)
        os.chown(root / "one", NOBODY, -1)
        refused("belongs to user 65534, and you are user 0")
        os.chown(root, NOBODY, -1)
        refused("belongs to user 65534")
        os.chown(root, 0, -1)
        os.chown(tmp_path, NOBODY, -1)
        refused("XDG_RUNTIME_DIR is .*, which belongs to user 65534")
        os.chown(tmp_path, 0, -1)
        os.chown(root / "one", 0, -1)
    assert (root / "one").is_dir()


def test_a_directory_that_others_can_enter(tmp_path: Path) -> None:
    root = tmp_path / "sdeivirt"
    root.mkdir()
    for bits in (0o710, 0o701, 0o777, 0o755):
        root.chmod(bits)
        refused(f"open to other users .*chmod 700 {root}")
    root.chmod(0o700)
    (root / "one").mkdir()
    (root / "one").chmod(0o750)
    refused("mode 0750")
    assert running_vms() == []


def test_a_symbolic_link_or_a_file(tmp_path: Path) -> None:
    root = tmp_path / "sdeivirt"
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    root.symlink_to(tmp_path / "elsewhere")
    refused("symbolic link")
    root.unlink()
    root.write_text("")
    refused("no directory")
    root.unlink()
    root.mkdir(mode=0o700)
    (root / "one").symlink_to(tmp_path / "elsewhere")
    refused("symbolic link")
    assert os.listdir(tmp_path / "elsewhere") == []


def test_a_lock_that_is_a_link_is_not_followed(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    path = tmp_path / "sdeivirt" / "one"
    path.mkdir(parents=True)
    for folder in (path.parent, path):
        folder.chmod(0o700)
    (path / "lock").symlink_to(victim)
    with pytest.raises(RuntimeDirectoryError):
        VmDirectory.acquire("one")
    assert victim.read_text() == "precious"


def test_an_xdg_runtime_dir_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "gone"))
    refused("No such file or directory")
    (tmp_path / "gone").write_text("")
    refused("no directory")


def test_a_path_too_long_for_a_socket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    deep = tmp_path / ("d" * 100)
    deep.mkdir()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(deep))
    with pytest.raises(RuntimeDirectoryError, match="bytes too long for the path of a Unix socket") as caught:
        VmDirectory.acquire("one")
    assert "shorter" in caught.value.hint
    assert os.listdir(deep / "sdeivirt") == []


# -- races

_CONTENDER = """
import os, sys
from sdeivirt.control.runtime import VmDirectory, running_vms
from sdeivirt.errors import VmExistsError
mark = sys.argv[1]
won = 0
for _ in range(300):
    try:
        with VmDirectory.acquire("one") as directory:
            # O_EXCL: were two of us ever in here, one would fail.
            os.close(os.open(mark, os.O_CREAT | os.O_EXCL))
            assert os.path.exists(directory.path / "lock")
            won += 1
            os.unlink(mark)
    except VmExistsError:
        pass
    running_vms()
print(won)
"""


@pytest.mark.process
def test_contenders_for_a_name_never_both_win(tmp_path: Path) -> None:
    contenders = [
        subprocess.Popen(
            [sys.executable, "-c", _CONTENDER, str(tmp_path / "mark")],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(4)
    ]
    results = [contender.communicate(timeout=LIMIT) for contender in contenders]
    assert all(contender.returncode == 0 for contender in contenders), results
    assert sum(int(out) for out, _err in results) > 0
    assert os.listdir(tmp_path / "sdeivirt") == []
