# SPDX-License-Identifier: Apache-2.0
"""Linux goes on in another process before its pages are there, its tasks sleep until they come, and nothing is lost."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from sdeivirt.control.client import VmClient
from sdeivirt.migration.status import MigrationStatus

from .control_support import VmProcess, wait_until
from .linux_support import linux_marks
from .test_linux_move import EVENTS, VCPUS, MovingLinux

pytestmark = [*linux_marks, pytest.mark.process]

_COUNTS = "/sys/module/sdei_async_pf/parameters/counts"
_GO = "/tmp/go"
_SLOW = 16 << 20  # bytes a second of what nobody has asked for: some seconds' worth of pages
# Four walk memory while one computes; what they leave in memory depends on all that they have done before.
WORK = "mem=4 comp=1 pages=192 passes=3 spin=1000 cspin=10000 write=1"
LONG_WORK = "mem=4 comp=1 pages=192 passes=200 spin=1000 cspin=500000 write=1"


class FollowedLinux(MovingLinux):
    """With the module loaded. Its pages can come after it."""

    def __init__(self, runtime: Path) -> None:
        super().__init__(runtime)
        self._work = 0  # where what it prints begins
        self.left = self.vm

    def __enter__(self) -> FollowedLinux:
        self.shell.run("insmod /lib/sdei_async_pf.ko")
        return self

    # -- work

    def prepare(self, words: str) -> None:
        """Have the work ready: its memory is filled, nothing runs yet."""
        self._work = len(self.shell.text)
        self.shell.run(f"rm -f {_GO}; pagework {words} go={_GO} </dev/null &")
        self._printed("pagework: ready")

    def go(self) -> None:
        self.shell.run(f"touch {_GO}")

    @property
    def done(self) -> bool:
        return "pagework: done" in self.shell.text[self._work :]

    def result(self) -> list[str]:
        """Wait for the end of the work; the checksums."""
        self._printed("pagework: done")
        found = re.findall("pagework: (.*) ns=.* (checksum=0x[0-9a-f]+)", self.shell.text[self._work :])
        assert len(found) == 5
        return [f"{who} {checksum}" for who, checksum in found]

    def _printed(self, text: str) -> None:
        wait_until(lambda: text in self.shell.text[self._work :], f"no {text!r} in {self.shell.text[-2000:]}")

    def checksums(self, words: str) -> list[str]:
        """Those of the work where all pages stay where they are."""
        self.prepare(words)
        self.go()
        return self.result()

    def counts(self) -> dict[str, int]:
        """What the module has counted, on all CPUs."""
        counts: dict[str, int] = {}
        for line in self.shell.run(f"cat {_COUNTS}").split("\n"):
            for key, value in re.findall(r"(\w+)=(\d+)", line):
                counts[key] = counts.get(key, 0) + int(value)
        return counts

    # -- moves

    def place(self, name: str) -> VmProcess:
        """One to go to. Each page is asked for by itself there, so that there are many faults."""
        there = self._start(name, "--incoming", f"unix:{self._runtime}/{name}.sock", "--prefetch", "1")
        there.wait_err("waiting for a guest")
        return there

    def follow(self, there: VmProcess) -> None:
        """Go on there at once; its pages are on their way when this returns."""
        uri = f"unix:{self._runtime}/{there.path.name}.sock"
        self.left = self.vm
        with VmClient(self.vm.path.name) as client:
            client.execute("migrate", **{"uri": uri, "postcopy": 0, "max-bandwidth": _SLOW})
            while (status := client.wait_migration()).status != "postcopy-active":
                assert status.active, status
        assert status.remaining
        self.vm = there

    def arrived(self) -> None:
        """All pages have come, and the process that it has left knows that."""
        assert self.left.wait() == 0, self.left.err
        assert "its guest has moved to" in self.left.err
        with VmClient(self.vm.path.name) as client:
            status = MigrationStatus(**client.execute("query-migrate"))
        assert (status.status, status.remaining) == ("completed", 0)

    def inject_everywhere(self) -> None:
        for event in EVENTS:
            for vcpu in range(VCPUS):
                self.inject(event, vcpu)

    def expect_told(self, before: dict[str, int]) -> None:
        """The kernel was told of faults since then, and each task has waited, or found its page there already."""

        def settled() -> bool:
            counts = self.counts()
            return counts["slept"] + counts["early"] + counts["ended"] == counts["told"] > before["told"]

        wait_until(settled, f"{before}, {self.counts()}")

    def expect_rest(self) -> None:
        """Nobody waits for a page any more, and the kernel has nothing to complain of."""
        counts = self.counts()
        assert counts["waiting"] == 0, counts
        # Pages are told of one by one. A wake-all is for a guest that hears of faults by the interrupt: it never comes.
        assert counts["wake_all"] == 0, counts
        assert counts["ready"] == counts["told"], counts
        # A page can have come before its fault was refused, and is told of all the same.
        assert counts["unknown"] <= counts["refused"], counts
        assert not re.search(r"BUG:|Oops|WARNING:|rcu: INFO|stall|lockup", self.shell.run("dmesg"))


@pytest.fixture(scope="module")
def linux(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FollowedLinux]:
    """One that goes from test to test, and from process to process."""
    runtime = tmp_path_factory.mktemp("linux")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_RUNTIME_DIR", str(runtime))
        with FollowedLinux(runtime) as linux:
            yield linux


@pytest.mark.linux
def test_linux_goes_on_before_its_pages_are_there(linux: FollowedLinux) -> None:
    """Work that stands ready begins there, and events come meanwhile; then it moves whole, there and back."""
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    expected = linux.checksums(WORK)
    before = linux.counts()
    linux.inject_everywhere()
    linux.prepare(WORK)
    linux.follow(linux.place("followed"))
    linux.go()
    linux.inject_everywhere()
    assert linux.result() == expected
    linux.arrived()
    linux.expect_told(before)
    linux.inject_everywhere()
    linux.expect_exact()
    chance = random.Random(seed)
    for name in ("there", "back"):
        linux.move(name, chance)
        linux.inject_everywhere()
        linux.expect_exact()
    assert linux.checksums(WORK) == expected
    linux.expect_rest()


@pytest.mark.linux
def test_linux_goes_in_the_middle_of_work(linux: FollowedLinux) -> None:
    expected = linux.checksums(LONG_WORK)
    before = linux.counts()
    linux.prepare(LONG_WORK)
    there = linux.place("middle")
    linux.go()
    linux.follow(there)
    assert not linux.done, "there is not enough work"
    linux.inject_everywhere()
    linux.arrived()
    assert linux.result() == expected
    linux.expect_told(before)
    linux.inject_everywhere()
    linux.expect_exact()
    linux.expect_rest()
