# SPDX-License-Identifier: Apache-2.0
"""Too little of something: of a disk for a guest that is saved, of a link for one that writes all the time."""

from __future__ import annotations

import random
import resource
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from sdeivirt.control.client import VmClient
from sdeivirt.migration.status import MigrationStatus

from .control_support import VmProcess, cli, wait_until
from .machine_support import NEEDS_QEMU
from .migration_scene import Watch, runs
from .mover_support import Injector, Mover, check_counts

pytestmark = [pytest.mark.machine, pytest.mark.process]

EVERY_NIGHT = pytest.mark.nightly
UNICORN_DAILY = ["unicorn", pytest.param("qemu", marks=[NEEDS_QEMU, pytest.mark.qemu, EVERY_NIGHT])]


# -- a disk that is full

ROOM = 256 << 10  # less than the guest's memory, compressed


@contextmanager
def small_disk(folder: Path) -> Iterator[None]:
    """A file system of that size; skips where it cannot be made."""
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={ROOM},mode=0700", "none", str(folder)], capture_output=True, check=False
    )
    if made.returncode:
        pytest.skip(f"nothing can be mounted here: {made.stderr.decode().strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@contextmanager
def small_files(vm: VmProcess) -> Iterator[None]:
    """The VM's process may not write more than that into a file."""
    limits = resource.prlimit(vm.process.pid, resource.RLIMIT_FSIZE)
    resource.prlimit(vm.process.pid, resource.RLIMIT_FSIZE, (ROOM, limits[1]))
    try:
        yield
    finally:
        resource.prlimit(vm.process.pid, resource.RLIMIT_FSIZE, limits)


@pytest.mark.parametrize(
    ("kind", "what"),
    [
        ("unicorn", "disk"),
        pytest.param("unicorn", "file", marks=EVERY_NIGHT),
        pytest.param("qemu", "disk", marks=[NEEDS_QEMU, pytest.mark.qemu, EVERY_NIGHT]),
        pytest.param("qemu", "file", marks=[NEEDS_QEMU, pytest.mark.qemu]),
    ],
)
def test_a_guest_that_finds_no_room_goes_on(kind: str, what: str, runtime: Path) -> None:
    """Nothing is left of what was written, what was to be overwritten is as it was; with room it is saved."""
    folder = runtime / "small"
    folder.mkdir()
    old = folder / "old"
    with Mover(runtime, kind, "case=load signals=1 rate=16", vcpus=2, memory="16M") as mover:
        mover.until("MOVER runs")
        before = mover.beat()
        injector = Injector(lambda: mover.name, seed=random.randrange(1 << 32), vcpus=2)
        with injector, small_disk(folder) if what == "disk" else small_files(mover.vm):
            injector.reaches(20)
            old.write_text("old")
            for words in ("new",), ("new", "--stay"), ("old", "--overwrite"):
                full = cli(runtime, "save", "vm", str(folder / words[0]), *words[1:], code=1)
                assert "error: " in full.stderr
                assert "hint: " in full.stderr
            assert {path.name: path.read_text() for path in folder.iterdir()} == {"old": "old"}
            assert cli(runtime, "migrate", "vm", "--status").stdout.startswith("failed: ")
            injector.reaches(injector.count + 20)
        mover.beat().goes_on_from(before)
        file = runtime / "guest.sdei"
        cli(runtime, "save", "vm", str(file))
        again = VmProcess(runtime, "--incoming", f"file:{file}", name="again")
        mover.vms.append(again)
        mover.moved_to(again)
        wait_until(lambda: runs(again), again.err)
        status, beat = mover.settle()
        beat.goes_on_from(before)
        check_counts(status, beat, injector.injected)
        mover.quit()


# -- a guest that writes faster than the link carries

WRITTEN = 256  # pages, all of them again and again
LINK = 1 << 20  # bytes a second: a second for all of them


@dataclass
class Course:
    """What was told of a migration: pages written during each pass, and to how many a second it was held up then."""

    status: MigrationStatus
    dirty: dict[int, int]
    limits: dict[int, int | None]


def slow_move(vm: str, uri: str, enough: Callable[[MigrationStatus], bool] = lambda _status: False) -> Course:
    """A migration over a slow link, which is cancelled when that is enough."""
    dirty: dict[int, int] = {}
    limits: dict[int, int | None] = {}
    cancelled = False
    with VmClient(vm) as client:
        client.execute("migrate", **{"uri": uri, "max-bandwidth": LINK, "downtime-limit": 150})
        while (status := client.wait_migration()).active:
            if status.status == "active" and status.passes > 1:
                dirty.setdefault(status.passes - 1, status.dirty)
                limits.setdefault(status.passes - 1, status.limit)
            if enough(status) and not cancelled:
                client.execute("migrate-cancel")
                cancelled = True
    assert status.status == ("cancelled" if cancelled else "completed"), status
    return Course(status, dirty, limits)


@pytest.mark.parametrize("kind", UNICORN_DAILY)
def test_a_guest_that_writes_too_fast_is_held_up_until_it_has_moved(kind: str, runtime: Path) -> None:
    """And no longer: neither where it stays nor where it goes to. There it writes all its pages in a pass again."""
    with ExitStack() as vms:
        words = ("--machine", kind, "--vcpus", "1", "--memory", "32M", "--guest", "writer")
        here = vms.enter_context(VmProcess(runtime, *words, "--append", f"mib={WRITTEN >> 8}", name="vm"))
        places = {}
        for name in "first", "second", "third":
            places[name] = vms.enter_context(VmProcess(runtime, "--incoming", f"unix:{runtime}/{name}", name=name))
        here.wait_out("writing")
        for place in places.values():
            place.wait_err("waiting for a guest")

        slow_move("vm", f"unix:{runtime}/first", lambda status: status.limit is not None)
        assert places["first"].wait() == 1
        with Watch("vm", "second"):
            course = slow_move("vm", f"unix:{runtime}/second")
        assert (course.dirty[1] >= WRITTEN, course.limits[1]) == (True, None), course
        held_up = [limit for limit in course.limits.values() if limit is not None]
        assert held_up, course
        assert held_up == sorted(held_up, reverse=True)
        assert held_up[0] <= WRITTEN
        assert course.status.limit is None
        assert here.wait() == 0
        onward = slow_move("second", f"unix:{runtime}/third", lambda status: status.passes > 1)
        assert (onward.dirty[1] >= WRITTEN, onward.limits[1]) == (True, None), onward
        assert runs(places["second"])
