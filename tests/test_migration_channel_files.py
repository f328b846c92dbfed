# SPDX-License-Identifier: Apache-2.0
"""Files: complete and under their name, or not at all."""

from __future__ import annotations

import errno
import os
import random
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sdeivirt.errors import MigrationError, UsageError
from sdeivirt.migration.channel import (
    ChannelCancelledError,
    ChannelError,
    FileWriter,
    Pace,
    Uri,
    connect,
    create_file,
    files,
    open_file,
    parse_uri,
)

from .channel_support import child, read_all
from .control_support import LIMIT

NOWHERE: set[str] = set()


@pytest.fixture(params=["unnamed", "named", "no hard links"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """How a file gets its name: the best that this system can, and what others have to do."""
    way: str = request.param
    if way == "named":
        monkeypatch.setattr(files, "_NO_NAME", 0)
    elif way == "unnamed" and not files._NO_NAME:
        pytest.skip("this system has no O_TMPFILE")
    if way == "no hard links":

        def refuse(*_arguments: object, **_options: object) -> None:
            raise PermissionError(errno.EPERM, "no links on this file system")

        monkeypatch.setattr(os, "link", refuse)
    return way


def uri(path: Path) -> Uri:
    return parse_uri(f"file:{path}")


def contents(directory: Path) -> set[str]:
    return set(os.listdir(directory))


def test_what_is_written_is_read_back(tmp_path: Path, way: str) -> None:
    seed = random.randrange(1 << 32)
    print("seed", seed)
    chance = random.Random(seed)
    buffers = [chance.randbytes(chance.choice([0, 1, 32, 4096, 100_000])) for _ in range(2000)]
    path = tmp_path / "state"
    old = os.umask(0)
    try:
        writer = create_file(uri(path))
    finally:
        os.umask(old)
    assert contents(tmp_path) == (NOWHERE if way == "unnamed" else {writer._temporary})
    writer.send(buffers)
    whole = b"".join(buffers)
    assert writer.sent == len(whole)
    assert writer.peer == f"file:{path}"
    assert not path.exists()
    writer.commit()
    assert contents(tmp_path) == {"state"}
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    writer.close()
    with open_file(uri(path)) as reader:
        assert reader.fileno > 0
        assert read_all(reader) == whole
        assert reader.received == len(whole)
        assert reader.recv_into(bytearray(8)) == 0


def test_without_commit_there_was_never_a_file(tmp_path: Path, way: str) -> None:
    for end in (FileWriter.close, FileWriter.abort):
        writer = create_file(uri(tmp_path / "state"))
        writer.send([b"x"])
        writer.finish()  # says nothing of whether it is to stay
        end(writer)
        writer.close()
        assert contents(tmp_path) == NOWHERE
        with pytest.raises(ChannelCancelledError):
            writer.commit()
        assert contents(tmp_path) == NOWHERE


def test_what_was_cancelled_is_not_committed(tmp_path: Path, way: str) -> None:
    writer = create_file(uri(tmp_path / "state"))
    writer.send([b"x"])
    writer.abort()
    with pytest.raises(ChannelCancelledError):
        writer.send([b"y"])
    with pytest.raises(ChannelCancelledError):
        writer.commit()
    writer.close()
    assert contents(tmp_path) == NOWHERE


def test_a_process_that_is_killed_leaves_nothing(tmp_path: Path) -> None:
    program = """if True:
        import sys
        from sdeivirt.migration.channel import create_file, parse_uri
        writer = create_file(parse_uri(sys.argv[1]))
        writer.send([bytes(1 << 20)])
        print("written", flush=True)
        sys.stdin.read()
    """
    if not files._NO_NAME:
        pytest.skip("this system has no O_TMPFILE")
    with child(program, f"file:{tmp_path}/state") as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"written\n"
        process.send_signal(signal.SIGKILL)
        process.wait(LIMIT)
    assert contents(tmp_path) == NOWHERE


def test_a_file_that_exists_stays_unless_it_is_to_be_overwritten(tmp_path: Path, way: str) -> None:
    path = tmp_path / "state"
    path.write_text("precious")
    with pytest.raises(UsageError, match="exists already") as caught:
        create_file(uri(path))
    assert "--overwrite" in caught.value.hint
    assert path.read_text() == "precious"
    writer = create_file(uri(path), overwrite=True)
    writer.send([b"new"])
    assert path.read_text() == "precious"
    writer.commit()
    assert path.read_text() == "new"
    assert contents(tmp_path) == {"state"}


def test_a_file_that_appears_meanwhile_stays(tmp_path: Path, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "state"
    writer = create_file(uri(path))
    writer.send([b"x"])
    path.write_text("precious")
    with pytest.raises(UsageError, match="exists already"):
        writer.commit()
    assert path.read_text() == "precious"
    path.unlink()
    # In the very last moment.
    writer = create_file(uri(path))
    check = FileWriter._check_target

    def check_and_lose(self: FileWriter) -> None:
        check(self)
        path.write_text("precious")

    monkeypatch.setattr(FileWriter, "_check_target", check_and_lose)
    with pytest.raises(UsageError, match="exists by now"):
        writer.commit()
    assert path.read_text() == "precious"
    assert contents(tmp_path) == {"state"}


def test_only_regular_files_are_overwritten(tmp_path: Path) -> None:
    (tmp_path / "target").write_text("precious")
    (tmp_path / "link").symlink_to(tmp_path / "target")
    (tmp_path / "directory").mkdir()
    os.mkfifo(tmp_path / "fifo")
    for name in ("link", "directory", "fifo"):
        for overwrite in (True, False):
            with pytest.raises(UsageError, match="no regular file"):
                create_file(uri(tmp_path / name), overwrite)
    with pytest.raises(UsageError, match="no regular file"):
        create_file(parse_uri("file:/dev/null"), overwrite=True)
    assert (tmp_path / "target").read_text() == "precious"


def test_where_no_file_can_be(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path, why in (
        (tmp_path / "no" / "state", "No such file"),
        (tmp_path / "file" / "state", "Not a directory"),
        (tmp_path / ("x" * 300), "too long"),
        (Path("/proc/state"), "cannot write /proc/state"),
    ):
        with pytest.raises(UsageError, match=why) as caught:
            create_file(uri(path)).commit()
        assert caught.value.hint
    for text in ("file:/", "file:.", "file:.."):
        with pytest.raises(UsageError, match=r"director|no regular file"):
            create_file(parse_uri(text))
    for function in (create_file, open_file):
        with pytest.raises(UsageError, match="is no file"):
            function(parse_uri("tcp:127.0.0.1:1"))
    with pytest.raises(UsageError, match="is a file"):
        connect(uri(tmp_path / "file"))
    assert contents(tmp_path) == {"file"}


def test_a_name_of_any_length_that_a_directory_takes(tmp_path: Path, way: str) -> None:
    writer = create_file(uri(tmp_path / ("x" * 255)))
    writer.commit()
    assert contents(tmp_path) == {"x" * 255}


def test_the_directory_may_be_renamed_meanwhile(tmp_path: Path, way: str) -> None:
    (tmp_path / "one").mkdir()
    writer = create_file(uri(tmp_path / "one" / "state"))
    (tmp_path / "one").rename(tmp_path / "two")
    writer.commit()
    assert contents(tmp_path / "two") == {"state"}


@pytest.mark.process
@pytest.mark.parametrize("named", [False, True])
def test_a_file_that_may_not_grow_leaves_nothing(tmp_path: Path, named: bool) -> None:
    program = f"""if True:
        import os, resource, sys
        from sdeivirt.errors import MigrationError
        from sdeivirt.migration.channel import create_file, files, parse_uri
        if {named}:
            files._NO_NAME = 0
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        writer = create_file(parse_uri(sys.argv[1]))
        writer.send([bytes(60_000)])
        try:
            writer.send([bytes(60_000)])
        except MigrationError as error:
            print(error)
        print(os.listdir(os.path.dirname(sys.argv[1][5:])))
        for call in (writer.commit, lambda: writer.send([b"x"])):
            try:
                call()
            except MigrationError as error:
                print(error)
    """
    done = subprocess.run(
        [sys.executable, "-c", program, f"file:{tmp_path}/state"], capture_output=True, text=True, timeout=LIMIT
    )
    lines = done.stdout.splitlines()
    assert lines[:2] == [
        f"{tmp_path}/state could not be written: File too large"
        " (nothing of it was kept: make room, or choose another place)",
        "[]",
    ], done.stderr
    assert all("could not be written: File too large" in line for line in lines[2:])
    assert len(lines) == 4
    assert contents(tmp_path) == NOWHERE


@pytest.mark.process
@pytest.mark.parametrize("named", [False, True])
def test_a_full_disk_leaves_nothing_and_what_was_to_be_overwritten(tmp_path: Path, named: bool) -> None:
    program = f"""if True:
        import os, sys
        from sdeivirt.errors import MigrationError
        from sdeivirt.migration.channel import create_file, files, parse_uri
        if {named}:
            files._NO_NAME = 0
        place = sys.argv[1]
        with open(place + "/state", "w") as old:
            old.write("precious")
        writer = create_file(parse_uri("file:" + place + "/state"), overwrite=True)
        try:
            writer.send([bytes(4096)] * 1000)
        except MigrationError as error:
            print(error.message.partition(": ")[2])
        print(os.listdir(place), open(place + "/state").read(), os.statvfs(place).f_bavail * 4096 >= 1 << 19)
    """
    mount = 'mount -t tmpfs -o size=1m none "$1" && exec "$2" -c "$3" "$1"'
    start = ["unshare", "-rm", "sh", "-c", mount, "sh", str(tmp_path), sys.executable]
    try:
        if subprocess.run([*start, "pass"], capture_output=True, timeout=LIMIT).returncode:
            pytest.skip("cannot mount a small file system here")
    except FileNotFoundError:
        pytest.skip("needs unshare")
    done = subprocess.run([*start, program], capture_output=True, text=True, timeout=LIMIT)
    assert done.stdout == "No space left on device\n['state'] precious True\n", done.stderr


def test_a_disk_that_fails_at_the_end_leaves_nothing(tmp_path: Path, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_fd: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    path = tmp_path / "state"
    for overwrite in (False, True):
        writer = create_file(uri(path), overwrite)
        writer.send([b"x"])
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", fail)
            with pytest.raises(MigrationError, match="could not be written: Input/output error"):
                writer.commit()
        with pytest.raises(ChannelError):
            writer.commit()
        writer.close()
        assert contents(tmp_path) == ({"state"} if overwrite else NOWHERE)
        path.write_text("precious")
    assert path.read_text() == "precious"


def test_a_descriptor_is_not_kept(tmp_path: Path, way: str) -> None:
    before = len(os.listdir("/dev/fd"))
    for _ in range(5):
        writer = create_file(uri(tmp_path / "state"), overwrite=True)
        writer.send([b"x"])
        writer.commit()
        open_file(uri(tmp_path / "state")).close()
        with pytest.raises(UsageError):
            create_file(uri(tmp_path / "state"))
        with pytest.raises(UsageError):
            open_file(uri(tmp_path / "no"))
    assert len(os.listdir("/dev/fd")) == before


def test_what_is_no_file_is_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for path, why in (
        (tmp_path / "fifo", "it is a FIFO"),
        (tmp_path, "it is a directory"),
        (Path("/dev/zero"), "it is a device"),
        (tmp_path / "no", "No such file"),
    ):
        with pytest.raises(UsageError, match=why) as caught:
            open_file(uri(path))
        assert "sdeivirt save" in caught.value.hint


def test_each_has_one_direction(tmp_path: Path) -> None:
    writer = create_file(uri(tmp_path / "state"))
    with pytest.raises(ChannelError, match="open for writing"):
        writer.recv_into(bytearray(8))
    writer.commit()
    with open_file(uri(tmp_path / "state")) as reader, pytest.raises(ChannelError, match="open for reading"):
        reader.send([b"x"])


def test_a_file_that_cannot_be_read_further_says_so(tmp_path: Path) -> None:
    (tmp_path / "state").touch()
    with open_file(uri(tmp_path / "state")) as reader:
        fd = os.open(tmp_path, os.O_RDONLY)
        os.dup2(fd, reader.fileno)  # reading a directory fails
        os.close(fd)
        with pytest.raises(ChannelError, match=r"cannot read file:.*: Is a directory"):
            reader.recv_into(bytearray(8))


def test_a_file_is_written_at_its_pace(tmp_path: Path) -> None:
    writer = create_file(uri(tmp_path / "state"))
    writer.pace = Pace(4 << 20)
    begin = time.monotonic()
    writer.send([bytes(1 << 20)])
    assert time.monotonic() - begin >= 0.2
    writer.commit()
