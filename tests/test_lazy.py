# SPDX-License-Identifier: Apache-2.0
"""A guest that was saved goes on before its pages have been read: each byte is the one that an eager reader gets."""

from __future__ import annotations

import os
import random
import signal
import stat
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from functools import partial
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sdeivirt.control.client import VmClient
from sdeivirt.errors import StateError, StreamError, UnknownVmError, UsageError
from sdeivirt.machine import MachineConfig
from sdeivirt.machine.base import PAGE_SIZE, RAM_BASE
from sdeivirt.machine.unicorn import UnicornMachine
from sdeivirt.migration.channel import Listener, connect, parse_uri
from sdeivirt.migration.description import CONFIGURATION, Configuration
from sdeivirt.migration.identity import Identity
from sdeivirt.migration.index import FileIndex
from sdeivirt.migration.lacking import pack_map
from sdeivirt.migration.lazy import LazyFile
from sdeivirt.migration.messages import Hello, Kind
from sdeivirt.migration.pageserver import ServerOptions
from sdeivirt.migration.ram import PageDecoder, PageEncoder
from sdeivirt.migration.sections import Section, pack
from sdeivirt.migration.served import FileServer
from sdeivirt.migration.status import MigrationStatus, Progress
from sdeivirt.migration.stream import FrameWriter
from sdeivirt.migration.wire import RefusedError, Wire

from .control_support import LIMIT, cli, environment, wait_until
from .mover_support import Mover
from .stream_support import Clock, frames_of, joined
from .tls_support import Authority, needs_openssl

MEMORY = 2 << 20
PAGES = MEMORY // PAGE_SIZE
NOISE = random.Random(3).randbytes(64 * PAGE_SIZE)


def page(value: int) -> bytes:
    """Zeroes, one of a few that are alike, or noise."""
    if value % 3 == 0:
        return bytes(PAGE_SIZE)
    if value % 3 == 1:
        return bytes((value % 7 + 1,)) * PAGE_SIZE
    return NOISE[value % 64 * PAGE_SIZE :][:PAGE_SIZE]


def a_stream(passes: list[dict[int, int]], compress: int) -> bytes:
    """A stream of a guest whose pages were written between passes: page to what it holds."""
    writer = FrameWriter()
    parts: list[bytes | memoryview] = [writer.header()]
    parts += writer.frame(Kind.HELLO, msgspec.msgpack.encode(Hello(b"m" * 16, "test")))
    configuration = pack(CONFIGURATION, Configuration.of("unicorn", MachineConfig(memory=MEMORY)))
    parts += writer.frame(Kind.CONFIGURATION, configuration.data, version=configuration.version)
    ram = bytearray(MEMORY)
    encoder = PageEncoder(memoryview(ram), compress)
    for number, written in enumerate(passes):
        dirty = bytearray(PAGES)
        for index, value in written.items():
            ram[index * PAGE_SIZE : (index + 1) * PAGE_SIZE] = page(value)
            dirty[index] = 1
        if 1 in dirty or not number:
            window = encoder.window(0, PAGES, dirty if number else None)
            if window is None:
                parts += writer.frame(b"ZERO", encoder.zero_run(0, PAGES))
            else:
                parts += [bytes(part) for part in writer.frame(b"PAGE", *window)]
        parts += writer.frame(b"PASS", (number + 1).to_bytes(4, "little"))
    section = pack("clock", Clock(1, True))
    parts += writer.describe([section])
    parts += writer.section(section)
    parts += writer.end(encoder.stats.pages)
    return joined(parts)


def eager(stream: bytes) -> bytearray:
    ram = bytearray(MEMORY)
    decoder = PageDecoder(memoryview(ram))
    for frame in frames_of(stream):
        if frame.kind in (b"PAGE", b"ZERO"):
            decoder.apply(frame)
    return ram


@contextmanager
def indexed(stream: bytes) -> Iterator[FileIndex]:
    with tempfile.NamedTemporaryFile() as file:
        file.write(stream)
        file.flush()
        index = FileIndex(Path(file.name))
        try:
            yield index
        finally:
            index.close()


some_passes = st.lists(
    st.dictionaries(st.integers(0, PAGES - 1), st.integers(0, 1000), max_size=40), min_size=1, max_size=4
)


# -- the file


@settings(deadline=None)
@given(
    some_passes, st.sampled_from([0, 3]), st.lists(st.tuples(st.integers(0, PAGES - 1), st.integers(1, 64)), max_size=8)
)
def test_each_page_is_what_an_eager_reader_gets(
    passes: list[dict[int, int]], compress: int, asked: list[tuple[int, int]]
) -> None:
    stream = a_stream(passes, compress)
    ram = eager(stream)
    with indexed(stream) as index:
        assert index.migration == b"m" * 16
        assert [section.name for section in index.sections] == ["clock"]
        for first, count in [*asked, *((at, 64) for at in range(0, PAGES, 64))]:
            count = min(count, PAGES - first)
            assert index.read(first, count) == ram[first * PAGE_SIZE : (first + count) * PAGE_SIZE]
        for number in range(PAGES):  # what is not lacking is zeroes
            assert index.lacking[number] or not any(ram[number * PAGE_SIZE : (number + 1) * PAGE_SIZE])


@settings(deadline=None)
@given(some_passes, st.sampled_from([0, 3]), st.data())
def test_a_damaged_file_is_refused_or_the_damage_is_noticed_in_time(
    passes: list[dict[int, int]], compress: int, data: st.DataObject
) -> None:
    stream = a_stream(passes, compress)
    bit = data.draw(st.integers(0, 8 * len(stream) - 1))
    damaged = bytearray(stream)
    damaged[bit // 8] ^= 1 << bit % 8
    ram = eager(stream)
    try:
        with indexed(bytes(damaged)) as index:
            for first in range(0, PAGES, 8):
                try:
                    content = index.read(first, 8)
                except StreamError:
                    continue
                # Frames whose content nobody needs any more are never looked at.
                assert content == ram[first * PAGE_SIZE : (first + 8) * PAGE_SIZE]
    except StreamError:
        pass


@settings(deadline=None, max_examples=30)
@given(some_passes, st.data())
def test_a_file_that_was_cut_short_is_refused(passes: list[dict[int, int]], data: st.DataObject) -> None:
    stream = a_stream(passes, 0)
    with pytest.raises(StreamError), indexed(stream[: data.draw(st.integers(0, len(stream) - 1))]):
        pass


@settings(deadline=None, max_examples=60)
@given(some_passes, some_passes, st.sampled_from([0, 3]), st.integers(0, PAGES // 8), st.booleans())
def test_a_file_that_changes_gives_what_it_held_or_an_error(
    passes: list[dict[int, int]], others: list[dict[int, int]], compress: int, read_before: int, whole: bool
) -> None:
    """Whatever it becomes, another guest's whole state too, and however much of it has been read before."""
    stream, other = a_stream(passes, compress), a_stream(others, compress)
    ram = eager(stream)
    with tempfile.NamedTemporaryFile() as file:
        file.write(stream)
        file.flush()
        index = FileIndex(Path(file.name))
        for first in range(0, 8 * read_before, 8):
            index.read(first, 8)
        file.seek(0)
        file.write(other if whole else other[: len(stream) // 2])
        file.flush()
        for first in range(0, PAGES, 8):
            with suppress(StreamError):
                assert index.read(first, 8) == ram[first * PAGE_SIZE : (first + 8) * PAGE_SIZE]
        index.close()


def test_a_page_that_changes_after_others_of_its_frame_were_read_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "guest"
    stream = a_stream([{number: 3 * number + 2 for number in range(PAGES)}], 0)
    path.write_bytes(stream)
    index = FileIndex(path)
    index.read(0, PAGES)
    with path.open("r+b") as file:
        file.seek(stream.index(page(3 * 63 + 2)) + 100)
        file.write(b"another")
    index.read(0, 1)
    with pytest.raises(StreamError, match="has changed"):
        index.read(63, 1)
    index.close()


def test_a_file_that_becomes_shorter_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "guest"
    path.write_bytes(a_stream([{number: 3 * number + 2 for number in range(PAGES)}], 0))
    index = FileIndex(path)
    os.truncate(path, 10_000)
    with pytest.raises(StreamError, match="shorter"):
        index.read(63, 1)
    index.close()
    with pytest.raises(UsageError):
        FileIndex(tmp_path)


class Still(UnicornMachine):
    """One that never runs, so that its RAM stays what it was given."""

    def load_state(self, sections: Sequence[Section]) -> None:
        assert [section.name for section in sections] == ["clock"]

    def resume(self) -> None:
        pass


@pytest.mark.parametrize("compress", [0, 3])
def test_ram_is_filled_as_an_eager_reader_fills_it(compress: int, tmp_path: Path) -> None:
    """All of it, with threads that want pages in any order meanwhile."""
    choose = random.Random(compress)
    passes = [{choose.randrange(PAGES): choose.randrange(1000) for _ in range(300)} for _ in range(4)]
    path = tmp_path / "guest"
    path.write_bytes(a_stream(passes, compress))
    guest = LazyFile(path)
    progress = Progress()
    with Still(guest.configuration().config("vm", None, None)) as machine:
        guest.start(machine, progress)
        for number in choose.sample(range(PAGES), PAGES):
            if machine.absent()[number] and machine.demand is not None:
                machine.demand.reach(RAM_BASE + number * PAGE_SIZE, 1)
        wait_until(lambda: progress.now.status == "completed", str(progress.now))
        assert machine.memory() == eager(path.read_bytes())
        assert not machine.absent_count
        guest.close()


# -- the VM


class Command:
    """`sdeivirt` with a verb that goes on until it is ended. A context manager, which ends it."""

    def __init__(self, runtime: Path, *words: str) -> None:
        self.errors = runtime / f"errors-{words[0]}-{len(list(runtime.glob('errors-*')))}"
        with self.errors.open("w") as errors:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "sdeivirt", *words],
                env=environment(runtime),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                start_new_session=True,
            )

    def says(self, text: str) -> str:
        """Wait until it has; all that it has said."""
        wait_until(lambda: text in self.said or self.process.poll() is not None, f"no {text!r}")
        assert text in self.said, self.said
        return self.said

    @property
    def said(self) -> str:
        return self.errors.read_text()

    def __enter__(self) -> Command:
        return self

    def __exit__(self, *error: object) -> None:
        self.process.kill()
        self.process.communicate()


@pytest.fixture
def saved(runtime: Path) -> Path:
    """A guest under load, saved."""
    with Mover(runtime, "unicorn", "case=load pages=200", vcpus=2, memory="16M") as mover:
        mover.until("MOVER runs")
        mover.beat()
        cli(runtime, "save", "vm", str(runtime / "guest"))
        assert mover.vm.wait() == 0
    return runtime / "guest"


def status(name: str) -> MigrationStatus:
    try:
        with VmClient(name) as client:
            return MigrationStatus(**client.execute("query-migrate"))
    except UnknownVmError:
        return MigrationStatus(status="gone")


def until(name: str, word: str) -> MigrationStatus:
    wait_until(lambda: status(name).status == word, f"{name} never was {word}")
    return status(name)


def check_itself(vm: Command) -> None:
    """The guest looks at all of its memory once more, and ends well."""
    assert vm.process.stdin is not None
    assert vm.process.stdout is not None
    vm.process.stdin.write(b"q")
    vm.process.stdin.flush()
    text = vm.process.stdout.read().decode()
    assert "MOVER OK\n" in text
    assert "Result: OK" in text
    assert vm.process.wait(LIMIT) == 0


@pytest.mark.machine
@pytest.mark.process
@pytest.mark.parametrize("prefetch", ["1", "8"])
def test_a_guest_goes_on_out_of_a_file(prefetch: str, saved: Path, runtime: Path) -> None:
    with Command(runtime, "restore", "--lazy", "--prefetch", prefetch, str(saved), "--name", "lazy") as vm:
        vm.says("goes on here")
        found = until("lazy", "completed")
        assert found.remaining == 0
        assert 0 < found.plain <= found.total
        assert found.bytes == found.plain * PAGE_SIZE
        check_itself(vm)


@pytest.mark.machine
@pytest.mark.process
def test_a_guest_stands_still_where_its_file_is_damaged(saved: Path, runtime: Path) -> None:
    content = bytearray(saved.read_bytes())
    at = content.index(b"PAGE") + 5000
    content[at] ^= 1
    saved.write_bytes(content)
    with Command(runtime, "restore", "--lazy", str(saved), "--name", "lazy") as vm:
        assert "checksum" in until("lazy", "failed").error
        with VmClient("lazy") as client:
            assert client.execute("query-status")["status"] == "paused"
            with pytest.raises(StateError):
                client.resume()
        vm.says("cannot be read")


@pytest.mark.machine
@pytest.mark.process
def test_several_guests_go_on_from_one_server(saved: Path, runtime: Path) -> None:
    uri = f"unix:{runtime}/pages"
    with Command(runtime, "serve", str(saved), uri) as server:
        server.says("serving")
        assert stat.S_IMODE((runtime / "pages").stat().st_mode) == 0o600
        names = ("one", "two")
        vms = [Command(runtime, "restore", "--lazy", uri, "--name", name) for name in names]
        for name in names:
            until(name, "completed")
        for vm in vms:
            with vm:
                check_itself(vm)
        with Command(runtime, "restore", "--lazy", uri, "--name", "three") as vm:
            until("three", "completed")
            check_itself(vm)
        for line in ("is here, and lacks", "needs no more pages"):
            wait_until(partial(_says_thrice, server, line))
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(LIMIT) == 128 + signal.SIGTERM
        assert not (runtime / "pages").exists()


def _says_thrice(server: Command, line: str) -> bool:
    return server.said.count(line) == 3


@pytest.mark.machine
@pytest.mark.process
def test_only_what_is_needed_is_sent_if_so_asked(saved: Path, runtime: Path) -> None:
    uri = f"unix:{runtime}/pages"
    slow = ("--demand-only", "--delay", "1", "--bandwidth", "50M")
    with Command(runtime, "serve", str(saved), uri, *slow) as server:
        server.says("serving")
        with Command(runtime, "restore", "--lazy", uri, "--name", "vm") as vm:
            vm.says("goes on here")
            wait_until(lambda: status("vm").faults > 20)
            found = status("vm")
            assert found.status == "postcopy-active"
            assert found.remaining
            assert found.plain > 20
            assert found.bytes > found.plain * PAGE_SIZE
            assert found.rate == pytest.approx(found.bytes / found.elapsed)
            assert found.fault_median >= 0.001
            check_itself(vm)


@pytest.mark.machine
@pytest.mark.process
def test_a_server_that_comes_back_is_found_by_itself(saved: Path, runtime: Path) -> None:
    uri = f"unix:{runtime}/pages"
    with Command(runtime, "serve", str(saved), uri, "--max-bandwidth", "64K") as server:
        server.says("serving")
        vm = Command(runtime, "restore", "--lazy", uri, "--name", "vm")
        until("vm", "postcopy-active")
    with vm:
        assert "serve" in until("vm", "postcopy-paused").hint
        with VmClient("vm") as client, pytest.raises(StateError):
            client.resume()
        with Command(runtime, "serve", str(saved), uri):
            until("vm", "completed")
        check_itself(vm)


def test_who_comes_again_to_be_sent_away_is_told_of_once(runtime: Path) -> None:
    file = runtime / "guest"
    file.write_bytes(a_stream([{1: 3, 2: 4}], 0))
    told: list[str] = []
    with closing(FileIndex(file)) as index, Listener(parse_uri(f"unix:{runtime}/pages")) as listener:
        server = FileServer(index, listener, ServerOptions(), tell=told.append)
        thread = threading.Thread(target=server.run)
        thread.start()

        def ask(migration: bytes) -> Wire:
            wire = Wire(connect(listener.uri), "the server")
            wire.say(Kind.HELLO, Hello(migration, "test", Identity.ours(), asks=True))
            wire.expect(Kind.HELLO, Hello)
            return wire

        def ask_for_another() -> None:
            with closing((wire := ask(bytes(16))).channel), pytest.raises(RefusedError, match="another guest"):
                wire.next()

        for _ in range(3):
            ask_for_another()
        wire = ask(index.migration)
        wire.send(Kind.LACK, pack_map(bytes(PAGES)))
        wire.send(Kind.HAVE)
        assert wire.next().kind == Kind.HAVE
        wire.channel.close()
        wait_until(lambda: any("needs no more" in line for line in told))
        ask_for_another()
        server.close()
        thread.join()
    assert [line.partition(") ")[2].partition(":")[0] for line in told] == [
        "was sent away",
        "needs no more pages",
        "was sent away",
    ]


@pytest.mark.machine
@pytest.mark.process
def test_a_server_of_something_else_is_told_of_at_both_ends(saved: Path, runtime: Path) -> None:
    uri, other = f"unix:{runtime}/pages", runtime / "other"
    with Mover(runtime, "unicorn", "case=load pages=2", memory="16M") as mover:
        mover.until("MOVER runs")
        cli(runtime, "save", "vm", str(other))
        assert mover.vm.wait() == 0
    with Command(runtime, "serve", str(saved), uri, "--max-bandwidth", "64K") as server:
        server.says("serving")
        vm = Command(runtime, "restore", "--lazy", uri, "--name", "vm")
        until("vm", "postcopy-active")
        server.process.send_signal(signal.SIGINT)
        assert server.process.wait(LIMIT) == 0  # that is how one ends it
    with vm:
        vm.says("the connection to the page server broke, and the guest stands still")
        with Command(runtime, "serve", str(other), uri) as server:
            vm.says("the state of another guest")
            server.says("was sent away: the state of another guest was asked for")
        with Command(runtime, "serve", str(saved), uri):
            until("vm", "completed")
        check_itself(vm)


@pytest.mark.machine
@pytest.mark.process
@needs_openssl
def test_pages_come_over_tls(saved: Path, runtime: Path) -> None:
    credentials = Authority(runtime / "ca").credentials(runtime / "tls")
    with Command(runtime, "serve", str(saved), "tcp:127.0.0.1:0", "--tls-creds", str(credentials)) as server:
        uri = server.says("serving").split("--lazy ")[1].split("`")[0]
        cli(runtime, "restore", "--lazy", uri, code=1)
        words = ("restore", "--lazy", uri, "--name", "vm", "--tls-creds", str(credentials))
        with Command(runtime, *words) as vm:
            until("vm", "completed")
            check_itself(vm)


def test_what_cannot_be_is_refused(saved: Path, runtime: Path) -> None:
    shown = cli(runtime, "restore", f"unix:{runtime}/pages", code=2).stderr
    assert "--lazy" in shown
    cli(runtime, "restore", "--lazy", f"unix:{runtime}/pages", code=1)  # nobody is there
    assert "--insecure" in cli(runtime, "restore", "--lazy", "tcp:192.0.2.1:9", code=2).stderr
    assert "--insecure" in cli(runtime, "serve", str(saved), "tcp:0.0.0.0:0", code=2).stderr
    cli(runtime, "serve", str(runtime / "none"), f"unix:{runtime}/pages", code=2)
    cli(runtime, "restore", "--lazy", str(saved), "--prefetch", "0", code=2)
    cli(runtime, "restore", str(saved), "--insecure", code=2)
    assert "--lazy" in cli(runtime, "restore", str(saved), "--prefetch", "4", code=2).stderr
    assert "file:" not in cli(runtime, "serve", str(saved), "somewhere", code=2).stderr
