# SPDX-License-Identifier: Apache-2.0
"""Who may come in: addresses, private sockets, and callers of whom only one brings a guest."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import shutil
import socket
import stat
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from sdeivirt.errors import EnvironmentUnavailableError, UsageError
from sdeivirt.migration.channel import (
    Channel,
    ChannelCancelledError,
    ChannelError,
    ChannelStalledError,
    Interrupt,
    Listener,
    Uri,
    binding,
    connect,
    parse_uri,
)
from sdeivirt.migration.channel import connect as connecting_function
from sdeivirt.migration.channel import (
    listener as listening,
)
from sdeivirt.migration.channel.connect import is_loopback
from sdeivirt.migration.frames import MAGIC

from .channel_support import background, child, read_all, read_exactly
from .control_support import LIMIT

LOCAL = Uri("tcp", "127.0.0.1", 0)
# Not of this host, and nobody answers: TEST-NET-1, RFC 5737.
ELSEWHERE = Uri("tcp", "192.0.2.1", 4444)


def guest(listener: Listener) -> tuple[Channel, Channel]:
    """One who brings a guest, both ends. Whoever called before has been dealt with then."""
    near = connect(listener.uri, timeout=LIMIT)
    near.send([MAGIC])
    far = listener.accept(LIMIT)
    assert far is not None
    assert read_exactly(far, len(MAGIC)) == MAGIC
    return near, far


def call(listener: Listener) -> socket.socket:
    """A connection of somebody who does not use channels."""
    if listener.uri.scheme == "unix":
        connection = socket.socket(socket.AF_UNIX)
        connection.connect(os.fspath(listener.uri.path))
    else:
        connection = socket.create_connection((listener.uri.host, listener.uri.port))
    connection.settimeout(LIMIT)
    return connection


# -- addresses


def test_a_listener_tells_its_port() -> None:
    for host in ("127.0.0.1", "::1", "localhost"):
        with Listener(Uri("tcp", host, 0)) as listener:
            assert listener.uri.host == host
            assert listener.uri.port
            near, far = guest(listener)
            near.close()
            far.close()


def test_an_address_that_is_taken_or_not_ours_is_not_available() -> None:
    with Listener(LOCAL) as listener, pytest.raises(EnvironmentUnavailableError, match="already in use") as caught:
        Listener(listener.uri)
    assert "another port" in caught.value.hint
    assert caught.value.exit_code == 3
    with Listener(listener.uri) as second:
        near, far = guest(second)
        far.close()  # the system keeps the connection of who closes first for a minute: TIME_WAIT
        near.close()
    with Listener(listener.uri):  # at once, all the same
        pass
    with pytest.raises(EnvironmentUnavailableError, match="cannot listen") as caught:
        Listener(ELSEWHERE, insecure=True)
    assert "no such address" in caught.value.hint


def test_a_host_that_does_not_exist(tmp_path: Path) -> None:
    nowhere = Uri("tcp", "no-such-host.invalid", 1)
    with pytest.raises(EnvironmentUnavailableError, match=r"cannot find the host 'no-such-host\.invalid'"):
        Listener(nowhere)
    with pytest.raises(ChannelError, match=r"cannot find the host 'no-such-host\.invalid'"):
        connect(nowhere)
    with pytest.raises(ChannelError, match="cannot find the host"):
        connect(Uri("tcp", "x" * 70, 1))  # a label of a name has up to 63 bytes
    for function in (connect, Listener):
        with pytest.raises(UsageError, match="is a file"):
            function(parse_uri(f"file:{tmp_path}/x"))
    with pytest.raises(UsageError, match="names no port"):
        connect(LOCAL)


def test_without_tls_only_loopback_is_for_guests() -> None:
    for uri in (ELSEWHERE, Uri("tcp", "0.0.0.0", 0), Uri("tcp", "::", 0)):
        with pytest.raises(UsageError, match="unprotected") as caught:
            Listener(uri)
        assert "--tls-creds" in caught.value.hint
        assert "--insecure" in caught.value.hint
    with pytest.raises(UsageError, match="unprotected"):
        connect(ELSEWHERE)
    with pytest.raises(UsageError, match="unprotected"):
        connect(Uri("tcp", "0.0.0.0", 1))
    with Listener(Uri("tcp", "0.0.0.0", 0), insecure=True) as listener:
        near = connect(Uri("tcp", "127.0.0.1", listener.uri.port))
        near.send([MAGIC])
        far = listener.accept(LIMIT)
        assert far is not None
        near.close()
        far.close()


def test_every_address_of_a_name_has_to_be_loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    real = socket.getaddrinfo

    def both(host: str, *arguments: object, **options: object) -> object:
        assert host == "two-faced"
        return [*real("127.0.0.1", 1, type=socket.SOCK_STREAM), *real("192.0.2.1", 1, type=socket.SOCK_STREAM)]

    monkeypatch.setattr(socket, "getaddrinfo", both)
    for function in (connect, Listener):
        with pytest.raises(UsageError, match="unprotected"):
            function(Uri("tcp", "two-faced", 1))


@pytest.mark.parametrize(
    ("address", "loopback"),
    [
        ("127.0.0.1", True),
        ("127.255.1.2", True),
        ("::1", True),
        ("::ffff:127.0.0.1", True),
        ("::ffff:192.0.2.1", False),
        ("192.0.2.1", False),
        ("0.0.0.0", False),
        ("::", False),
        ("fe80::1%lo", False),
        ("10.0.0.1", False),
    ],
)
def test_what_is_loopback(address: str, loopback: bool) -> None:
    assert is_loopback((address, 1)) is loopback


# -- connecting


def test_nobody_listens(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    for uri in (Uri("tcp", "127.0.0.1", port), Uri("tcp", "localhost", port), parse_uri(f"unix:{tmp_path}/s")):
        with pytest.raises(ChannelError, match="nobody listens at") as caught:
            connect(uri)
        assert f"--incoming {uri}" in caught.value.hint


def test_connecting_ends_in_time_or_when_it_is_told_to(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as server, contextlib.ExitStack() as callers:
        server.bind(os.fspath(path))
        server.listen(0)
        full = False
        while not full:  # until its queue is full
            caller = callers.enter_context(socket.socket(socket.AF_UNIX))
            caller.setblocking(False)
            full = caller.connect_ex(os.fspath(path)) == errno.EAGAIN
        uri = parse_uri(f"unix:{path}")
        with pytest.raises(ChannelStalledError, match=r"has not answered for 0\.05 s"):
            connect(uri, timeout=0.05)
        with contextlib.closing(Interrupt()) as interrupt:
            future = background(lambda: connect(uri, timeout=LIMIT, interrupt=interrupt))
            interrupt.set()
            with pytest.raises(ChannelCancelledError):
                future.result(LIMIT)
        # It takes one: the next attempt succeeds.
        future = background(lambda: connect(uri, timeout=LIMIT))
        server.accept()[0].close()
        future.result(LIMIT).close()


# -- waiting


def test_nobody_comes() -> None:
    with Listener(LOCAL) as listener:
        assert listener.accept(0.0) is None
        assert listener.accept(0.02) is None
        near, far = guest(listener)
        near.close()
        far.close()


def test_closing_ends_the_wait() -> None:
    listener = Listener(LOCAL)
    waiting = background(listener.accept)
    silent = call(listener)
    listener.close()
    with pytest.raises(ChannelCancelledError, match="waiting at tcp"):
        waiting.result(LIMIT)
    with contextlib.suppress(ConnectionResetError):
        assert silent.recv(1) == b""
    silent.close()
    listener.close()
    with pytest.raises(ChannelCancelledError):
        listener.accept(0.0)


def test_one_that_needs_no_first_word_is_accepted_at_once(tmp_path: Path) -> None:
    for uri in (LOCAL, parse_uri(f"unix:{tmp_path}/s")):
        with Listener(uri, begins=b"") as listener, call(listener) as caller:
            far = listener.accept(LIMIT)
            assert far is not None
            with far:
                far.send([b"you first"])
                assert caller.recv(9) == b"you first"


def test_many_guests_one_after_the_other_and_at_once() -> None:
    with Listener(LOCAL) as listener:
        callers = [connect(listener.uri) for _ in range(10)]
        for number, caller in enumerate(callers):
            caller.send([MAGIC, bytes([number])])
        seen = set()
        for _ in callers:
            far = listener.accept(LIMIT)
            assert far is not None
            with far:
                seen.add(read_exactly(far, len(MAGIC) + 1)[-1])
        assert seen == set(range(10))
        for caller in callers:
            caller.close()


# -- callers that bring no guest


@pytest.mark.parametrize("uri", ["tcp:127.0.0.1:0", "unix:{tmp}/s"])
def test_bad_callers_do_not_end_the_wait(uri: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with Listener(parse_uri(uri.format(tmp=tmp_path))) as listener, caplog.at_level(logging.WARNING):
        waiting = background(listener.accept)
        silent = call(listener)
        prober = call(listener)
        prober.close()
        browser = call(listener)
        browser.sendall(b"GET / HTTP/1.1\r\n\r\n")
        assert browser.recv(100) == MAGIC  # tells who is here
        assert browser.recv(100) == b""  # an orderly end
        stranger = call(listener)
        stranger.sendall(b"SDEIVIRUS")
        assert stranger.recv(100) == MAGIC
        slow = call(listener)
        slow.sendall(MAGIC[:1])  # the first byte will do
        far = waiting.result(LIMIT)
        far.stall = LIMIT
        slow.sendall(MAGIC[1:])
        assert read_exactly(far, len(MAGIC)) == MAGIC
        far.close()
        # The silent one has hindered nobody, and may still speak up.
        silent.sendall(MAGIC)
        far_two = listener.accept(LIMIT)
        assert far_two is not None
        assert read_exactly(far_two, len(MAGIC)) == MAGIC
        far_two.close()
        for connection in (silent, browser, stranger, slow):
            connection.close()
    texts = [record.getMessage() for record in caplog.records]
    assert len(texts) == 2
    assert all("it brings no guest" in text for text in texts)


def test_a_silent_caller_is_sent_away_after_a_while(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(listening, "PATIENCE", 0.05)
    with Listener(LOCAL) as listener, call(listener) as silent, caplog.at_level(logging.WARNING):
        waiting = background(listener.accept)
        assert silent.recv(1) == b""
        near, far = connect(listener.uri), waiting
        near.send([MAGIC])
        far.result(LIMIT).close()
        near.close()
    assert "said nothing of interest for 0.05 s" in caplog.text


def test_a_crowd_of_silent_callers_does_not_keep_others_out() -> None:
    with Listener(LOCAL) as listener, contextlib.ExitStack() as stack:
        waiting = background(listener.accept)
        crowd = [stack.enter_context(call(listener)) for _ in range(listening.MAX_CALLERS + 5)]
        # The first of them had to go.
        with contextlib.suppress(ConnectionResetError):
            assert crowd[0].recv(1) == b""
        near = stack.enter_context(connect(listener.uri))
        near.send([MAGIC])
        stack.enter_context(waiting.result(LIMIT))


def test_a_process_without_descriptors_goes_on_listening() -> None:
    program = """if True:
        import os, resource, sys, threading
        from sdeivirt.migration.channel import Listener, parse_uri
        listener = Listener(parse_uri("tcp:127.0.0.1:0"))
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
        taken = []
        try:
            while True:
                taken.append(os.open("/dev/null", os.O_RDONLY))
        except OSError:
            pass
        print(listener.uri.port, flush=True)
        def free():
            sys.stdin.buffer.read(1)
            for fd in taken:
                os.close(fd)
        threading.Thread(target=free).start()
        print("accepted", listener.accept(30).peer.split()[0], flush=True)
        print(f"{os.times().user + os.times().system:.3f}")
    """
    with child(program) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        port = int(process.stdout.readline())
        with connect(Uri("tcp", "127.0.0.1", port)) as near:
            near.send([MAGIC])
            process.stdin.write(b"x")
            process.stdin.flush()
            assert process.stdout.readline() == f"accepted tcp:127.0.0.1:{port}\n".encode()


# -- Unix sockets


def test_a_socket_is_private_and_goes_with_its_listener(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = os.umask(0)
    try:
        monkeypatch.chdir(tmp_path)
        listener = Listener(parse_uri("unix:s"))
    finally:
        os.umask(old)
    monkeypatch.chdir("/")
    path = tmp_path / "s"
    assert stat.S_IMODE(path.lstat().st_mode) == 0o600
    assert stat.S_ISSOCK(path.lstat().st_mode)
    listener.close()
    assert not path.exists()
    assert os.listdir(tmp_path) == []


def test_a_socket_is_private_before_anybody_can_connect(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the mode of a socket's descriptor does not count."""
    real, modes = socket.socket.listen, []

    class Watched(socket.socket):
        def listen(self, *arguments: int) -> None:
            modes.append(stat.S_IMODE((tmp_path / "s").lstat().st_mode))
            real(self, *arguments)

    monkeypatch.setattr(socket, "socket", Watched)
    old = os.umask(0)
    try:
        with monkeypatch.context() as patch:
            if sys.platform == "linux":
                patch.delattr(Path, "chmod")  # not needed, and it could be led astray by a link
            Listener(parse_uri(f"unix:{tmp_path}/s")).close()
        monkeypatch.setattr(os, "fchmod", lambda *_: None)
        Listener(parse_uri(f"unix:{tmp_path}/s")).close()
    finally:
        os.umask(old)
    assert modes == [0o600, 0o600]


def test_what_is_in_the_way_stays_unless_it_is_a_dead_socket(tmp_path: Path) -> None:
    path = tmp_path / "s"
    uri = parse_uri(f"unix:{path}")
    path.write_text("precious")
    with pytest.raises(EnvironmentUnavailableError, match="no socket") as caught:
        Listener(uri)
    assert caught.value.hint
    assert path.read_text() == "precious"
    path.unlink()
    path.symlink_to(tmp_path / "target")
    with pytest.raises(EnvironmentUnavailableError, match="no socket"):
        Listener(uri)
    assert path.is_symlink()
    path.unlink()
    path.mkdir()
    with pytest.raises(EnvironmentUnavailableError, match="no socket"):
        Listener(uri)
    path.rmdir()
    os.mkfifo(path)
    with pytest.raises(EnvironmentUnavailableError, match="no socket"):
        Listener(uri)
    path.unlink()
    with Listener(uri) as first:
        with pytest.raises(EnvironmentUnavailableError, match=r"somebody listens at .* already"):
            Listener(uri)
        near, far = guest(first)
        near.close()
        far.close()
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(os.fspath(path))
    assert path.exists()
    with Listener(uri) as second:
        near, far = guest(second)
        near.close()
        far.close()
    assert not path.exists()


def test_of_many_that_find_a_dead_socket_one_gets_it(tmp_path: Path) -> None:
    path = tmp_path / "s"
    for _ in range(20):
        with socket.socket(socket.AF_UNIX) as dead:
            dead.bind(os.fspath(path))
        barrier = threading.Barrier(4)

        def race(barrier: threading.Barrier = barrier) -> Listener | None:
            barrier.wait(LIMIT)
            try:
                return Listener(parse_uri(f"unix:{path}"))
            except EnvironmentUnavailableError:
                return None

        found = [future.result(LIMIT) for future in [background(race) for _ in range(4)]]
        (winner,) = [each for each in found if each is not None]
        near, far = guest(winner)
        near.close()
        far.close()
        winner.close()
        assert not path.exists()


def test_a_locked_directory_is_told_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(binding, "_LOCK_PATIENCE", 0.03)
    fd = os.open(tmp_path, os.O_RDONLY)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        with pytest.raises(EnvironmentUnavailableError, match="has locked the directory"):
            Listener(parse_uri(f"unix:{tmp_path}/s"))
    finally:
        os.close(fd)


def test_a_socket_that_somebody_else_has_put_there_meanwhile_stays(tmp_path: Path) -> None:
    path = tmp_path / "s"
    listener = Listener(parse_uri(f"unix:{path}"))
    path.unlink()
    with Listener(parse_uri(f"unix:{path}")) as other:
        listener.close()
        near, far = guest(other)
        near.close()
        far.close()


def test_paths_that_cannot_be(tmp_path: Path) -> None:
    for function in (connecting_function, Listener):
        with pytest.raises(UsageError, match="3 bytes too long"):
            function(Uri("unix", path=Path("/" + "x" * 109)))
    with pytest.raises(EnvironmentUnavailableError, match="No such file") as caught:
        Listener(parse_uri(f"unix:{tmp_path}/no/s"))
    assert "make the directory" in caught.value.hint
    (tmp_path / "file").touch()
    with pytest.raises(EnvironmentUnavailableError, match="Not a directory"):
        Listener(parse_uri(f"unix:{tmp_path}/file/s"))


OTHER = 54322
CALLER = """if True:
    import socket, sys
    with socket.socket(socket.AF_UNIX) as caller:
        caller.connect(sys.argv[1])
        try:
            caller.sendall(b"SDEIVIRT")
            print(caller.recv(8))
        except ConnectionError:
            print("cut")
"""
HOST = """if True:
    import os, socket, sys
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(sys.argv[1])
        os.chmod(sys.argv[1], 0o777)
        server.listen()
        print("here", flush=True)
        sys.stdin.read()
"""


@pytest.fixture
def public() -> Iterator[Path]:
    """A directory that all users can write in."""
    with tempfile.TemporaryDirectory(prefix="sdeivirt-") as name:
        Path(name).chmod(0o777)
        yield Path(name)


def as_other() -> list[str]:
    """How to run Python as another user."""
    python = shutil.which("python3", path="/usr/bin:/bin") or sys.executable
    start = ["setpriv", "--reuid", str(OTHER), "--regid", str(OTHER), "--clear-groups", "--", python, "-I", "-c"]
    if subprocess.run([*start, "pass"], capture_output=True).returncode:
        pytest.skip("another user cannot run Python here")
    return start


needs_users = pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("setpriv") is None or sys.platform != "linux", reason="needs root and setpriv"
)


@pytest.mark.process
@needs_users
def test_another_user_can_neither_come_in_nor_pose_as_the_destination(
    public: Path, caplog: pytest.LogCaptureFixture
) -> None:
    start = as_other()
    path = public / "s"
    with Listener(parse_uri(f"unix:{path}")) as listener, caplog.at_level(logging.WARNING):
        done = subprocess.run([*start, CALLER, path], capture_output=True, text=True, timeout=LIMIT)
        assert "PermissionError" in done.stderr
        path.chmod(0o666)  # as if somebody had opened the door
        waiting = background(listener.accept)
        done = subprocess.run([*start, CALLER, path], capture_output=True, text=True, timeout=LIMIT)
        assert done.stdout in ("b''\n", "cut\n"), done.stderr
        assert f"is user {OTHER}, and you are user 0" in caplog.text
        near = connect(listener.uri)
        near.send([MAGIC])
        waiting.result(LIMIT).close()
        near.close()
    with subprocess.Popen(
        [*start, HOST, public / "t"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "here\n"
            with pytest.raises(ChannelError, match=f"is user {OTHER}, and you are user 0") as caught:
                connect(parse_uri(f"unix:{public}/t"))
            assert caught.value.hint
            with pytest.raises(EnvironmentUnavailableError, match=f"a socket of user {OTHER}"):
                Listener(parse_uri(f"unix:{public}/t"))
        finally:
            process.communicate()
    with pytest.raises(EnvironmentUnavailableError, match=f"a socket of user {OTHER}"):
        Listener(parse_uri(f"unix:{public}/t"))  # a dead one; but not ours to remove


@pytest.mark.process
@needs_users
def test_root_may_bring_a_guest_to_any_user(public: Path) -> None:
    program = """if True:
        import os
        from sdeivirt.migration.channel import Listener, parse_uri
        os.setresuid(54322, 54322, 54322)
        with Listener(parse_uri(f"unix:{os.environ['WHERE']}")) as listener:
            print("here", flush=True)
            print("accepted", listener.accept(30).recv_into(bytearray(100)), flush=True)
    """
    environment = os.environ | {"WHERE": str(public / "s")}
    with subprocess.Popen([sys.executable, "-c", program], env=environment, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"here\n"
            # Root trusts only itself: the other way round it would give its guest away.
            with pytest.raises(ChannelError, match="is user 54322"):
                connect(parse_uri(f"unix:{public}/s"))
            with socket.socket(socket.AF_UNIX) as caller:
                caller.connect(os.fspath(public / "s"))
                caller.sendall(MAGIC)
                assert process.stdout.readline() == b"accepted 8\n"
        finally:
            process.kill()


def test_threads_of_one_listener_take_turns() -> None:
    with Listener(LOCAL) as listener:
        first = background(lambda: listener.accept(LIMIT))
        second = background(lambda: listener.accept(LIMIT))
        callers = [connect(listener.uri) for _ in range(2)]
        for caller in callers:
            caller.send([MAGIC])
        for future in (first, second):
            channel = future.result(LIMIT)
            assert channel is not None
            assert read_exactly(channel, len(MAGIC)) == MAGIC
            channel.close()
        for caller in callers:
            assert read_all(caller) == b""
            caller.close()


def test_the_addresses_of_a_name_are_tried_one_after_the_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with (
        Listener(LOCAL) as listener,
        socket.create_server(("127.0.0.1", 0), backlog=0) as deaf,
        contextlib.ExitStack() as stack,
    ):
        empty = socket.create_server(("127.0.0.1", 0))
        refusing = empty.getsockname()
        empty.close()
        for _ in range(3):  # its queue is full: it does not even refuse
            caller = stack.enter_context(socket.socket())
            caller.setblocking(False)
            caller.connect_ex(deaf.getsockname())
        good = ("127.0.0.1", listener.uri.port)

        def several(*addresses: object) -> None:
            found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", address) for address in addresses]
            monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)

        name = Uri("tcp", "several", 1)
        several(refusing, good)
        connect(name).close()
        several(deaf.getsockname(), good)
        connect(name, timeout=0.2).close()
        several(refusing, deaf.getsockname())
        with pytest.raises(ChannelError, match="nobody listens at tcp:several:1"):
            connect(name, timeout=0.1)
        several(deaf.getsockname())
        with pytest.raises(ChannelStalledError, match=r"has not answered for 0\.1 s"):
            connect(name, timeout=0.1)
