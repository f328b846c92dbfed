# SPDX-License-Identifier: Apache-2.0
"""A guest that goes on before its pages have been read: when it does, and when a fixed piece of work is done.

The same file each time, of a guest whose memory is full of noise, a small part
of which its work visits. Out of a file on this host, and from a page server in another process;
held against a restore that reads everything first. Time begins when the
command does, so the start of the process is in all figures.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

from ..machine.base import PAGE_SIZE
from .postcopy_scene import Place
from .report import Row, row
from .workload import Done, SmallKit, Work

__all__ = ["SIZES", "measure"]

MIB = 1 << 20
SIZES = (64, 256, 1024)  # MiB
_PART = 16  # of the pages the work visits one in so many
_WORK_SECONDS = 300.0
_RESUMED = " goes on here"
_WAYS = {
    "all of the file first": ("restore", "{file}"),
    "lazily, from the file": ("restore", "{file}", "--lazy"),
    "lazily, from a page server": ("restore", "unix:{serve}/pages", "--lazy"),
}


def measure(kind: str, rounds: int, sizes: Sequence[int], say: Callable[[str], None] = lambda _: None) -> Iterator[Row]:
    """Figures for each size of memory, in MiB. Raises RuntimeError where a guest finds what it must not."""
    for size in sizes:
        yield from _size(kind, rounds, size * MIB, say)


def _size(kind: str, rounds: int, size: int, say: Callable[[str], None]) -> Iterator[Row]:
    kit = SmallKit(kind)
    work = Work(1, 0, size // PAGE_SIZE // _PART, 100, 0)
    resumed: dict[str, list[float]] = {way: [] for way in _WAYS}
    done: dict[str, list[float]] = {way: [] for way in _WAYS}
    with tempfile.TemporaryDirectory(prefix="sdeivirt-") as directory, ExitStack() as stack:
        file = Path(directory) / "guest"
        say(f"{size // MIB} MiB: a guest to restore")
        kit.snapshot(work, False, file, size)
        server = stack.enter_context(Place(("serve", str(file), "unix:{}/pages")))
        server.wait_for("serving ")
        expected: tuple[str, ...] = ()
        for number in range(rounds):
            say(f"{size // MIB} MiB, round {number + 1} of {rounds}")
            for way, words in _WAYS.items():
                command = [word.replace("{file}", str(file)).replace("{serve}", str(server.path)) for word in words]
                began, ended, found = _restore(kit, [*command, "--name", "there"])
                resumed[way].append(began)
                done[way].append(ended)
                expected = expected or found.checksums
                if found.checksums != expected:
                    raise RuntimeError(f"the guest has found {found.checksums}, and before {expected}")
    eager, *lazy = _WAYS
    for way in _WAYS:
        name = f"{kind}, {size // MIB} MiB, {way}"
        yield row(f"{name}: it goes on after", resumed[way], "s")
        if way in lazy:
            yield row("  of the time of all first", _shares(resumed[way], resumed[eager]), "%")
        yield row("  its work is done after", done[way], "s")
        if way in lazy:
            yield row("  of the time of all first", _shares(done[way], done[eager]), "%")


def _restore(kit: SmallKit, command: Sequence[str]) -> tuple[float, float, Done]:
    with Place(command) as there:
        resumed = there.wait_for(_RESUMED)
        kit.go(there.shell)
        found = kit.finish(there.shell, _WORK_SECONDS)
        return resumed, time.perf_counter() - there.began, found


def _shares(ours: Sequence[float], theirs: Sequence[float]) -> list[float]:
    return [100 * one / other for one, other in zip(ours, theirs, strict=True)]
