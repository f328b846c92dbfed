# SPDX-License-Identifier: Apache-2.0
"""What it costs that pages come after their guest: faults that a pager serves, and how long one waits for its page.

The pages are in a second process. How many are served a second is held against
a bare socket on which one side asks with a few bytes, the other answers with
4 KiB, and both do nothing else. How long one waits is measured while the
rest of the pages is sent as fast as that goes.

    python -m sdeivirt.benchmarks.pager raw|asked|all unix:PATH SIZE      has the pages
"""

from __future__ import annotations

import contextlib
import mmap
import os
import random
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from ..machine import MachineConfig, open_machine
from ..machine.base import PAGE_SIZE, Machine
from ..migration.channel import Channel, SocketChannel, Uri, parse_uri
from ..migration.lacking import read_map
from ..migration.messages import Hello, Kind
from ..migration.pageframes import RamStore
from ..migration.pager import Pager
from ..migration.pageserver import PageServer, ServerOptions
from ..migration.wants import Wants
from ..migration.wire import Wire
from .report import Row, median, percentile, row

__all__ = ["measure"]

_IN_FLIGHT = 64
_TARGET = 50.0  # % of the bare socket
_LATENCY_TARGET = 2.0  # ms
_ASK = 8


def measure(rounds: int, quick: bool, say: Callable[[str], None] = lambda _: None) -> Iterator[Row]:
    """All figures; `say` is told what is measured."""
    size = (16 if quick else 64) << 20
    raw, asked, shares = [], [], []
    for scheme in ("unix", "tcp"):
        for number in range(rounds):
            say(f"faults, {scheme}, round {number + 1} of {rounds}")
            raw.append(_raw(scheme, size))
            asked.append(_asked(scheme, size))
            shares.append(100 * asked[-1] / raw[-1])
        yield row(f"baseline: 4 KiB asked for and answered, bare socket, {scheme}", raw, "/s")
        yield row(f"faults served, {_IN_FLIGHT} at once, {scheme}", asked, "/s")
        yield row("  that is", shares, "% of bare", "bare socket", target=_TARGET, at_least=True)
        raw, asked, shares = [], [], []
    size = (64 if quick else 512) << 20
    for scheme in ("unix", "tcp"):
        waits, rates, tails = [], [], []
        for number in range(rounds):
            say(f"waiting for a page, {scheme}, round {number + 1} of {rounds}")
            seconds, found = _while_all_comes(scheme, size)
            rates.append(size / seconds / 1e6)
            waits.append(median(found) * 1e3)
            tails.append(percentile(found, 99) * 1e3)
        yield row(f"all of {size >> 20} MiB of noise, {scheme}", rates, "MB/s")
        yield row("  a fault meanwhile waits", waits, "ms", target=_LATENCY_TARGET)
        yield row("  99 % of them at most", tails, "ms")


# -- the side that asks


@contextlib.contextmanager
def _other(what: str, scheme: str, size: int) -> Iterator[socket.socket]:
    """The second process, and a connection to it."""
    with tempfile.TemporaryDirectory(prefix="sdeivirt-") as directory, contextlib.ExitStack() as stack:
        if scheme == "unix":
            listener = stack.enter_context(socket.socket(socket.AF_UNIX))
            listener.bind(os.fspath(Path(directory) / "pages"))
            uri = f"unix:{directory}/pages"
        else:
            listener = stack.enter_context(socket.socket())
            listener.bind(("127.0.0.1", 0))
            uri = f"tcp:127.0.0.1:{listener.getsockname()[1]}"
        listener.settimeout(60.0)
        listener.listen()
        command = [sys.executable, "-m", "sdeivirt.benchmarks.pager", what, uri, str(size)]
        other = stack.enter_context(subprocess.Popen(command))
        stack.callback(other.kill)
        connection, _ = listener.accept()
        yield stack.enter_context(connection)


def _order(pages: int) -> list[int]:
    order = list(range(pages))
    random.Random(1).shuffle(order)
    return order


def _raw(scheme: str, size: int) -> float:
    """Answers a second."""
    with _other("raw", scheme, size) as connection:
        connection.setblocking(True)
        _no_delay(connection)
        buffer = memoryview(bytearray(PAGE_SIZE))
        order = _order(size // PAGE_SIZE)[: 1 << 14]
        begin = time.perf_counter()
        for page in order:
            connection.sendall(page.to_bytes(_ASK, "little"))
            connection.recv_into(buffer, PAGE_SIZE, socket.MSG_WAITALL)
        return len(order) / (time.perf_counter() - begin)


def _no_delay(connection: socket.socket) -> None:
    if connection.family != socket.AF_UNIX:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


class _Touching(Wants):
    """Wants the next page of an order whenever one has come."""

    def __init__(self, pages: int) -> None:
        super().__init__(bytearray(b"\1") * pages, prefetch=1)
        self._order = iter(_order(pages))
        for page in (next(self._order) for _ in range(_IN_FLIGHT)):
            self.want(page)

    def came(self, first: int, count: int) -> None:
        super().came(first, count)
        for _ in range(count):
            if (page := next(self._order, None)) is not None:
                self.want(page)


def _asked(scheme: str, size: int) -> float:
    """Faults served a second."""
    with _other("asked", scheme, size) as connection, _machine(size) as machine:
        wants = _Touching(size // PAGE_SIZE)
        machine.lack_pages(wants.map(), wants)
        wire = _wire(connection)
        begin = time.perf_counter()
        Pager(machine, wants).run(wire)
        return size / PAGE_SIZE / (time.perf_counter() - begin)


class _Waiting(Wants):
    """Tells when a page comes."""

    def __init__(self, pages: int) -> None:
        super().__init__(bytearray(b"\1") * pages)
        self.page = -1
        self.here = threading.Event()

    def came(self, first: int, count: int) -> None:
        super().came(first, count)
        if first <= self.page < first + count:
            self.here.set()


def _while_all_comes(scheme: str, size: int) -> tuple[float, list[float]]:
    """How many seconds all pages took, and how many each of those took that somebody waited for."""
    with _other("all", scheme, size) as connection, _machine(size) as machine:
        wants = _Waiting(size // PAGE_SIZE)
        machine.lack_pages(wants.map(), wants)
        wire = _wire(connection)
        thread = threading.Thread(target=Pager(machine, wants).run, args=(wire,))
        begin = time.perf_counter()
        thread.start()
        found: list[float] = []
        for page in _order(size // PAGE_SIZE):
            if not wants.left:
                break
            if not wants.map()[page]:
                continue
            time.sleep(0.002)
            wants.page = page
            wants.here.clear()
            asked = time.perf_counter()
            wants.want(page)
            if not wants.map()[page]:
                continue  # it came in between
            wants.here.wait(10.0)
            found.append(time.perf_counter() - asked)
        thread.join()
        return time.perf_counter() - begin, found


@contextlib.contextmanager
def _machine(size: int) -> Iterator[Machine]:
    with open_machine("unicorn", MachineConfig(vcpus=1, memory=size)) as machine:
        machine.start_incoming()
        yield machine


def _channel(connection: socket.socket) -> Channel:
    return SocketChannel(connection, "the other process")


def _wire(connection: socket.socket) -> Wire:
    wire = Wire(_channel(connection), "the other process")
    wire.expect(Kind.HELLO, Hello)
    return wire


# -- the side that has the pages


def _serve(what: str, uri: Uri, size: int) -> None:
    with mmap.mmap(-1, size) as memory, memoryview(memory) as ram:
        for at in range(0, size, 1 << 20):
            ram[at : at + (1 << 20)] = os.urandom(1 << 20)
        connection = socket.socket(socket.AF_UNIX if uri.scheme == "unix" else socket.AF_INET)
        connection.connect(os.fspath(uri.path) if uri.scheme == "unix" else (uri.host, uri.port))
        if what == "raw":
            _answer(connection, ram)
            return
        channel = _channel(connection)
        wire = Wire(channel, "the benchmark")
        wire.say(Kind.HELLO, Hello(bytes(16), ""))
        lacking = read_map(wire.next(), size // PAGE_SIZE)
        PageServer(wire, RamStore(ram), lacking, ServerOptions(rest=what == "all")).run()
        channel.finish()


def _answer(connection: socket.socket, ram: memoryview) -> None:
    _no_delay(connection)
    request = memoryview(bytearray(_ASK))
    while connection.recv_into(request, _ASK, socket.MSG_WAITALL):
        at = int.from_bytes(request, "little") * PAGE_SIZE
        connection.sendall(ram[at : at + PAGE_SIZE])


if __name__ == "__main__":
    with contextlib.suppress(ConnectionError):
        _serve(sys.argv[1], parse_uri(sys.argv[2]), int(sys.argv[3]))
