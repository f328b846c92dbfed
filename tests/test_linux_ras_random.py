# SPDX-License-Identifier: Apache-2.0
"""Random hardware errors by all sources at once, into kernels that are busy: each is acknowledged, none does harm."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator

import pytest

from sdeivirt.errors import NotRegisteredError
from sdeivirt.ras.cper import Severity

from .linux_ras_support import NEEDS_UEFI, OUTSIDE, PRIVATE, SOURCES, RasLinux, memory_error
from .linux_support import KERNELS, linux_marks

pytestmark = linux_marks

# Programs that watch their registers, one with and one without system calls, and fork and exec, on every CPU.
LOAD = (
    "for c in $(seq 0 {last}); do m=$(printf %x $((1<<c))); for w in 'regcheck 600' 'regcheck 600 syscall'; do"
    " taskset $m $w >>/tmp/load & done; taskset $m forkbench for 600 >/dev/null & done"
)


class Errors:
    """Random errors, and what the kernel has to give up for them."""

    def __init__(self, linux: RasLinux, chance: random.Random) -> None:
        self._chance = chance
        self._pages: Iterator[int] = linux.free_pages(chance)
        self.text = linux.kernel_text()
        self._lock = threading.Lock()
        self.lost: set[int] = set()

    def next(self) -> bytes:
        """Another one: corrected, too often corrected, recoverable; in free memory, in the kernel's code, nowhere."""
        with self._lock:
            page = next(self._pages)
            kind = self._chance.choice(("corrected", "often", "free", "free", "code", "nowhere"))
            if kind in ("often", "free"):
                self.lost.add(page)
            elif kind == "code":
                self.lost.add(self.text)
        if kind == "corrected":
            return memory_error(Severity.CORRECTED, page)
        if kind == "often":
            return memory_error(Severity.CORRECTED, page, threshold=True)
        where = {"free": page, "code": self.text, "nowhere": OUTSIDE + page}[kind]
        return memory_error(Severity.RECOVERABLE, where)


def campaign(linux: RasLinux, count: int, chance: random.Random, meanwhile: str = "") -> None:
    """So many errors, from all sources side by side, while all CPUs are busy and a command runs."""
    machine = linux.machine
    vcpus = machine.config.vcpus
    before = linux.corrupted()
    linux.sh(LOAD.format(last=vcpus - 1))
    if meanwhile:
        linux.sh(f"(while [ ! -e /tmp/over ]; do {meanwhile}; done; echo over >>/tmp/over) & true")
    errors = Errors(linux, chance)
    times: list[float] = []
    refused: list[int] = []
    failures: list[BaseException] = []

    def work(source: int, count: int, chance: random.Random) -> None:
        try:
            for _ in range(count):
                block, vcpu = errors.next(), chance.randrange(vcpus) if source in PRIVATE else None
                try:
                    outcome = linux.report(block, source, vcpu)
                except NotRegisteredError:  # CPU 0 never goes
                    assert vcpu
                    refused.append(vcpu)
                    outcome = linux.report(block, source, 0)
                times.append(outcome.seconds or 0)
        except BaseException as error:
            failures.append(error)

    threads = [
        threading.Thread(target=work, args=(source.number, count // len(SOURCES), random.Random(chance.random())))
        for source in SOURCES
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    linux.sh("killall forkbench regcheck; wait; true")
    if meanwhile:
        linux.sh("touch /tmp/over; until [ -s /tmp/over ]; do sleep 0.02; done")
    else:
        assert not refused

    for status in machine.status().error_sources:
        assert (status.state, status.block_status) == ("", 0)
        assert status.acknowledged == status.reported >= count // len(SOURCES)
    # Linux has room for sixteen pages that a CPU has not got round to yet, and says which it forgets.
    frames = linux.sh("dmesg | sed -n 's/.*buffer overflow when queuing memory failure at 0x//p'").split()
    forgotten = {int(frame, 16) << 12 for frame in frames}
    if linux.poisoned(errors.text):  # reported more than once
        forgotten.discard(errors.text)
    lost = errors.lost - forgotten
    linux.gives_up(before + 4 * len(lost))
    for address in chance.sample(sorted(lost), 3):
        assert linux.poisoned(address)
    assert linux.sh("dmesg | grep -E 'BUG|Oops|rcu.*stall|Call trace'; true") == ""
    assert "MISMATCH" not in linux.sh("cat /tmp/load")
    assert linux.sh("echo lives").strip() == "lives"
    times.sort()
    print(f"{len(times)} errors, median {times[len(times) // 2] * 1e3:.2f} ms, {times[-1] * 1e3:.1f} ms at most")
    print(f"{len(lost)} pages lost, {len(forgotten)} forgotten, {len(refused)} times a CPU was off line")


@pytest.mark.parametrize(
    ("kernel", "vcpus", "firmware", "count"),
    [
        pytest.param("newest", 4, "acpi", 200, marks=pytest.mark.linux),
        pytest.param("newest", 2, "uefi", 2000, marks=[pytest.mark.linux_full, NEEDS_UEFI]),
        *(pytest.param(kernel, n, "acpi", 2000, marks=pytest.mark.linux_full) for kernel in KERNELS for n in (1, 4)),
    ],
)
def test_random_errors_into_busy_cpus(kernel: str, vcpus: int, firmware: str, count: int) -> None:
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    with RasLinux(kernel, vcpus, firmware) as linux:
        linux.booted()
        campaign(linux, count, random.Random(seed))


@pytest.mark.linux_full
@pytest.mark.parametrize("kernel", KERNELS)
def test_random_errors_while_cpus_go_and_come(kernel: str) -> None:
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    files = " ".join(f"/sys/devices/system/cpu/cpu{cpu}/online" for cpu in (1, 2, 3))
    with RasLinux(kernel, 4) as linux:
        linux.booted()
        campaign(linux, 500, random.Random(seed), f"for s in 0 1; do for f in {files}; do echo $s >$f; done; done")
        assert linux.sh("cat /sys/devices/system/cpu/online").strip() == "0-3"
