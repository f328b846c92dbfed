# SPDX-License-Identifier: Apache-2.0
"""Another user of the same host can neither inject into a VM, nor read of it, nor put a directory in its way."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sdeivirt.machine.qemu.process import find_qemu

from .control_support import LIMIT, Qmp, VmProcess, environment, wait_until
from .machine_support import NEEDS_QEMU

OWNER, OTHER = 54321, 54322
SECRET = "sdeivirt.secret=swordfish"

pytestmark = [
    pytest.mark.process,
    pytest.mark.machine,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root to be two other users"),
    pytest.mark.skipif(shutil.which("setpriv") is None, reason="needs setpriv"),
    pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc"),
]


def as_user(user: int) -> list[str]:
    return ["setpriv", "--reuid", str(user), "--regid", str(user), "--clear-groups", "--"]


# What a program can try, given a directory and processes of somebody else's: what it got, or the name of the error.
ATTACK = r"""
import ctypes, json, os, pathlib, signal, socket, sys

directory, console, victims = pathlib.Path(sys.argv[1]), sys.argv[2], [int(pid) for pid in sys.argv[3].split(",")]
names = json.loads(sys.argv[4])
libc = ctypes.CDLL(None, use_errno=True)
found = {}

def attempt(what, function):
    try:
        found[what] = str(function())[:60]
    except OSError as error:
        found[what] = type(error).__name__

def connect(path):
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(path)
        return "connected"

def opened(path, flags):
    fd = os.open(path, flags | os.O_NONBLOCK)
    os.close(fd)
    return "opened"

def steal(pid):
    fd = os.pidfd_open(pid)
    try:
        for number in range(3, 40):
            if libc.syscall(438, fd, number, 0) >= 0:  # pidfd_getfd
                return "stolen"
        raise OSError(ctypes.get_errno(), "pidfd_getfd")
    finally:
        os.close(fd)

def peek(pid):
    with open(f"/proc/{pid}/maps") as maps:
        start = int(maps.readline().split("-")[0], 16)
    with open(f"/proc/{pid}/mem", "rb") as memory:
        memory.seek(start)
        return len(memory.read(16))

for place in (directory, directory.parent, directory.parent.parent):
    attempt(f"list {place.name}", lambda: os.listdir(place))
    attempt(f"write {place.name}", lambda: opened(place / "mine", os.O_WRONLY | os.O_CREAT))
for name in names:
    path = directory / name
    attempt(f"stat {name}", lambda: path.lstat())
    attempt(f"read {name}", lambda: opened(path, os.O_RDONLY | os.O_NONBLOCK))
    attempt(f"write {name}", lambda: opened(path, os.O_WRONLY))
    attempt(f"connect {name}", lambda: connect(os.fspath(path)))
attempt("rename", lambda: os.rename(directory, directory.with_name("gone")))
attempt("unlink", lambda: os.unlink(directory / "vcpu-0"))
attempt("read console", lambda: opened(console, os.O_RDONLY))
attempt("write console", lambda: opened(console, os.O_WRONLY | os.O_APPEND))
for i, pid in enumerate(victims):
    attempt(f"descriptors of {i}", lambda: os.listdir(f"/proc/{pid}/fd"))
    for number in range(3, 40):
        attempt(f"descriptor {number} of {i}", lambda: opened(f"/proc/{pid}/fd/{number}", os.O_RDWR))
    attempt(f"maps of {i}", lambda: open(f"/proc/{pid}/maps").read())
    attempt(f"environment of {i}", lambda: open(f"/proc/{pid}/environ").read())
    attempt(f"working directory of {i}", lambda: os.readlink(f"/proc/{pid}/cwd"))
    attempt(f"memory of {i}", lambda: peek(pid))
    attempt(f"steal from {i}", lambda: steal(pid))
    attempt(f"signal {i}", lambda: os.kill(pid, 0))
print(json.dumps(found))
"""


def works(user: int, program: str) -> bool:
    """Whether that user can run our interpreter, with our packages: it can be in a home directory."""
    done = subprocess.run([*as_user(user), sys.executable, "-c", program], capture_output=True, cwd="/", timeout=LIMIT)
    return done.returncode == 0


@pytest.fixture(scope="module")
def owner() -> int:
    """Whose VM it is: a user like any other where that can be, or else root."""
    imports = "import sdeivirt.cli.run, sdeivirt.machine.unicorn, sdeivirt.machine.qemu, sdeivirt.guests as g"
    return OWNER if works(OWNER, imports + "; open(g.guest_path('listen')).close()") else 0


@pytest.fixture(scope="module")
def other_python() -> list[str]:
    """An interpreter for the other user."""
    for candidate in (sys.executable, shutil.which("python3", path="/usr/bin:/usr/local/bin")):
        if (
            candidate
            and not subprocess.run(
                [*as_user(OTHER), candidate, "-c", "import ctypes, json, socket"], capture_output=True, cwd="/"
            ).returncode
        ):
            return [*as_user(OTHER), candidate]
    pytest.skip("no interpreter that another user can run")


@pytest.fixture
def home(owner: int) -> Iterator[Path]:
    """A directory of the owner's that everybody can enter, with one in it that nobody else can."""
    with tempfile.TemporaryDirectory(prefix="sdeivirt-users-") as name:
        home = Path(name)
        home.chmod(0o755)
        (home / "run").mkdir(mode=0o700)
        for path in (home, home / "run"):
            os.chown(path, owner, owner)
        yield home


def attack(python: list[str], vm: VmProcess, console: Path, victims: list[int]) -> dict[str, str]:
    names = json.dumps(sorted(os.listdir(vm.path)))
    done = subprocess.run(
        [*python, "-c", ATTACK, os.fspath(vm.path), os.fspath(console), ",".join(map(str, victims)), names],
        capture_output=True, text=True, cwd="/", timeout=LIMIT,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found: dict[str, str] = json.loads(done.stdout)
    return found


def sockets_of(pid: int) -> set[str]:
    """Inodes of the sockets that a process holds."""
    links = []
    for fd in os.listdir(f"/proc/{pid}/fd"):
        try:
            links.append(os.readlink(f"/proc/{pid}/fd/{fd}"))
        except FileNotFoundError:
            continue
    return {match[1] for link in links if (match := re.fullmatch(r"socket:\[(\d+)\]", link))}


def reachable_sockets(pids: list[int]) -> list[str]:
    """The names under which those processes could be reached: in the file system, abstract, and of a network."""
    inodes = set().union(*map(sockets_of, pids))
    found = []
    for line in Path("/proc/net/unix").read_text().splitlines()[1:]:
        words = line.split()
        if words[6] in inodes and len(words) > 7:
            found.append(words[7])
    for table in ("tcp", "tcp6", "udp", "udp6", "raw", "packet"):
        path = Path("/proc/net", table)
        if path.exists():
            found += [f"{table} {line}" for line in path.read_text().splitlines()[1:] if inodes & set(line.split())]
    return found


@pytest.mark.parametrize("kind", ["unicorn", pytest.param("qemu", marks=[NEEDS_QEMU, pytest.mark.qemu])])
def test_another_user_gets_nothing(home: Path, owner: int, other_python: list[str], kind: str) -> None:
    console = home / "console"
    words = ["--machine", kind, "--guest", "listen", "--append", f"events=0 {SECRET}", "--console", os.fspath(console)]
    if kind == "qemu":
        words += ["--gdb", "--qemu", os.fspath(find_qemu())]
    with VmProcess(home / "run", *words, prefix=as_user(owner)) as vm:
        wait_until(lambda: "listening: CPU#1" in (console.read_text() if console.exists() else ""), vm.err)
        with Qmp(vm.socket) as client:
            engine = client.execute("query-vm")["return"]["engine"]
        victims = [vm.process.pid, *([engine["pid"]] if kind == "qemu" else [])]
        files = {path.name: path.lstat() for path in vm.path.iterdir()}
        assert {"control.sock", "lock", "vcpu-0", "vcpu-1"} <= set(files)
        assert kind != "qemu" or {"qmp.sock", "gdb.sock"} <= set(files)
        for name, status in {**files, "console": console.stat()}.items():
            assert status.st_uid == owner
            assert status.st_mode & 0o077 == 0, name

        got = attack(other_python, vm, console, victims)
        assert len(got) > 60
        refused = ("PermissionError", "ProcessLookupError")
        assert {what: result for what, result in got.items() if result not in refused} == {}

        # The same from the owner, who gets everything: what was refused was there to be had.
        own = attack([*as_user(owner), *other_python[-1:]], vm, console, victims)
        for what in ("list vm", "read vcpu-0", "write vcpu-1", "connect control.sock", "read console", "signal 0"):
            assert own[what] not in refused, (what, own[what])
        assert own["rename"] not in refused
        vm.path.with_name("gone").rename(vm.path)

        names = reachable_sockets(victims)
        assert any(name.endswith(("control.sock", "/.sock")) for name in names)
        assert all(name.startswith(os.fspath(vm.path) + "/") for name in names), names
        if kind == "qemu":
            assert SECRET.encode() not in Path(f"/proc/{victims[1]}/cmdline").read_bytes()
        assert "denied" not in vm.err
        with Qmp(vm.socket) as client:
            status = client.execute("query-vm")["return"]
            assert [handler["injected"] for handler in status["events"][0]["handlers"]] == [0, 0]
            client.execute("quit")
        assert vm.wait() == 0


def squat_directory(place: Path, away: Path) -> None:
    place.mkdir(mode=0o777)
    place.chmod(0o777)


def squat_link(place: Path, away: Path) -> None:
    away.mkdir(mode=0o777)
    place.symlink_to(away)


def squat_own_link(place: Path, away: Path) -> None:
    """A link to a directory that is the victim's own, and private: its files would be deleted."""
    away.mkdir(mode=0o700)
    (away / "vm").mkdir(mode=0o700)
    (away / "vm" / "precious").write_text("mine")
    place.symlink_to(away)


def squat_file(place: Path, away: Path) -> None:
    place.write_text("")


def squat_fifo(place: Path, away: Path) -> None:
    os.mkfifo(place)


@pytest.mark.parametrize(
    ("squat", "said"),
    [
        (squat_directory, f"belongs to user {OTHER}"),
        (squat_link, "is a symbolic link"),
        (squat_own_link, "is a symbolic link"),
        (squat_file, "is no directory"),
        (squat_fifo, "is no directory"),
    ],
)
def test_whoever_is_first_in_the_temporary_directory_gains_nothing(owner: int, squat: Any, said: str) -> None:
    with tempfile.TemporaryDirectory(prefix="sdeivirt-users-") as name:
        temporary = Path(name)
        temporary.chmod(0o1777)
        place, away = temporary / f"sdeivirt-{owner}", temporary / "away"
        squat(place, away)
        os.lchown(place, OTHER, OTHER)
        if squat is squat_own_link:
            for path in (away, away / "vm", away / "vm" / "precious"):
                os.chown(path, owner, owner)
        elif away.exists():
            os.chown(away, OTHER, OTHER)
        before = sorted(temporary.rglob("*"))
        env = environment(temporary, TMPDIR=name)
        del env["XDG_RUNTIME_DIR"]
        for words in (["run", "--guest", "listen"], ["status"], ["inject", "vm", "0"]):
            done = subprocess.run(
                [*as_user(owner), sys.executable, "-m", "sdeivirt", *words],
                env=env, capture_output=True, text=True, cwd="/", stdin=subprocess.DEVNULL, timeout=LIMIT,
            )  # fmt: skip
            assert done.returncode == 3, (words, done.stdout, done.stderr)
            assert [line.partition(":")[0] for line in done.stderr.splitlines()] == ["error", "hint"]
            assert f"{place} {said}" in done.stderr
        assert sorted(temporary.rglob("*")) == before


def test_a_temporary_directory_where_everybody_can_remove_everything_is_refused(owner: int) -> None:
    """There, another user could exchange our directory for theirs after we have looked at it."""
    with tempfile.TemporaryDirectory(prefix="sdeivirt-users-") as name:
        os.chown(name, OTHER, OTHER)
        os.chmod(name, 0o777)
        env = environment(Path(name), TMPDIR=name)
        del env["XDG_RUNTIME_DIR"]
        done = subprocess.run(
            [*as_user(owner), sys.executable, "-m", "sdeivirt", "run", "--guest", "listen"],
            env=env, capture_output=True, text=True, cwd="/", stdin=subprocess.DEVNULL, timeout=LIMIT,
        )  # fmt: skip
        assert done.returncode == 3, done.stderr
        assert f"in {name} other users can remove what is not theirs (mode 0777)" in done.stderr
        assert os.listdir(name) == []
