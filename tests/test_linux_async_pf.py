# SPDX-License-Identifier: Apache-2.0
"""A stock Debian kernel with our module: asynchronous page faults, and what makes them right."""

from __future__ import annotations

import random
import re
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sdeivirt.machine.base import PAGE_SIZE, ExitReason

from .linux_support import Linux, linux_marks
from .pages_support import Store

pytestmark = linux_marks

_M64 = 1 << 64
_STEP = 0x9E37_79B9_7F4A_7C15  # what pagework adds from word to word when it fills its memory
_INVERSE = pow(_STEP, -1, _M64)
_COUNTS = "/sys/module/sdei_async_pf/parameters/counts"
_GO = "/tmp/go"


class Faulting(Linux):
    """A Linux with little memory, and the module loaded unless its parameters are None."""

    def __init__(self, kernel: str = "bookworm", *, module: str | None = "", **config: Any) -> None:
        super().__init__(kernel, client="", events=(), **{"memory": 256 << 20, **config})
        self._module = module
        self._begin = 0

    def __enter__(self) -> Faulting:
        super().__enter__()
        self.booted()
        if self._module is not None:
            self.sh(f"insmod /lib/sdei_async_pf.ko {self._module}")
        return self

    def module_counts(self) -> list[dict[str, int]]:
        """What the module has counted, by CPU."""
        lines = [line for line in self.sh(f"cat {_COUNTS}").split("\n") if line.startswith("cpu=")]
        return [{key: int(value) for key, value in re.findall(r"(\w+)=(\d+)", line)} for line in lines]

    def total(self, name: str) -> int:
        return sum(counts[name] for counts in self.module_counts())

    # -- work

    def prepare(self, **words: int | str) -> None:
        """Have the work ready: its memory is filled, nothing runs yet. It prints to the console."""
        text = " ".join(f"{key}={value}" for key, value in words.items())
        self._begin = len(self.text)
        self.sh(f"rm -f {_GO}; pagework {text} go={_GO} </dev/null &")
        self._printed("pagework: ready")

    def go(self) -> None:
        self.sh(f"touch {_GO}")

    @property
    def done(self) -> bool:
        return "pagework: done" in self.text[self._begin :]

    def result(self) -> list[str]:
        """Wait for the end of the work, without having the guest do anything else; the checksums."""
        self._printed("pagework: done")
        return re.findall("checksum=(0x[0-9a-f]+)", self.text[self._begin :])

    def _printed(self, text: str) -> None:
        self.wait_until(lambda: text in self.text[self._begin :], text, 120)

    def working_set(self, tag: int = 0) -> list[int]:
        """The pages that hold what pagework has filled its memory with."""
        ram, pages = self.machine.memory(), []
        for page in range(self.machine.config.memory // PAGE_SIZE):
            first, second = struct.unpack_from("<QQ", ram, page * PAGE_SIZE)
            if (second - first) % _M64 == _STEP and first * _INVERSE % _M64 >> 40 == tag:
                pages.append(page)
        return pages

    def checksums(self, **words: int | str) -> list[str]:
        """Those of the same work with all pages there."""
        self.prepare(**words)
        self.go()
        return self.result()


@pytest.fixture(scope="module")
def linux() -> Iterator[Faulting]:
    with Faulting(vcpus=1) as linux:
        yield linux


WORK = {"mem": 2, "comp": 1, "pages": 128, "spin": 2000, "cspin": 20000}


@pytest.mark.linux
def test_tasks_sleep_while_others_run_and_nothing_is_lost(linux: Faulting) -> None:
    expected = linux.checksums(**WORK)
    assert len(expected) == 3
    before = linux.module_counts()[0]
    linux.prepare(**WORK)
    with Store(linux.machine, 0.005) as store:
        pages = linux.working_set()
        assert store.take(pages) == len(pages) == 256
        linux.go()
        assert linux.result() == expected
        after = linux.module_counts()[0]
    figures = linux.machine.demand_figures()
    assert after["told"] - before["told"] > 64
    assert after["slept"] > before["slept"]
    assert after["ready"] - before["ready"] >= after["told"] - before["told"]
    assert after["waiting"] == 0
    assert figures.told >= after["told"] + after["refused"]
    state = linux.machine.firmware.pes[0].async_pf
    assert state is not None
    assert not state.outstanding


@pytest.mark.linux
def test_it_refuses_when_nothing_else_could_run(linux: Faulting) -> None:
    words = {**WORK, "mem": 1, "comp": 0}
    expected = linux.checksums(**words)
    before = linux.module_counts()[0]
    linux.prepare(**words)
    with Store(linux.machine, 0.002) as store:
        store.take(linux.working_set())
        linux.go()
        assert linux.result() == expected
    after = linux.module_counts()[0]
    # The kernel's own threads run now and then.
    assert after["refused"] - before["refused"] > 100
    assert after["told"] - before["told"] < 28


@pytest.mark.linux
def test_a_page_that_comes_before_its_task_has_gone_to_sleep(linux: Faulting) -> None:
    expected = linux.checksums(**WORK)
    before = linux.module_counts()[0]
    for delay in (0.0, 0.0001, 0.0003):
        linux.prepare(**WORK)
        with Store(linux.machine, delay) as store:
            store.take(linux.working_set())
            linux.go()
            assert linux.result() == expected, delay
    after = linux.module_counts()[0]
    assert after["early"] > before["early"]
    assert after["waiting"] == 0


@pytest.mark.linux
def test_faults_in_the_kernel_are_waited_for(linux: Faulting) -> None:
    words = {**WORK, "kernel": 1}
    expected = linux.checksums(**words)
    before = linux.module_counts()[0]
    linux.prepare(**words)
    with Store(linux.machine, 0.001) as store:
        store.take(linux.working_set())
        faults = linux.machine.demand_figures().faults
        linux.go()
        assert linux.result() == expected
    after = linux.module_counts()[0]
    assert linux.machine.demand_figures().faults - faults >= 256
    assert after["told"] - before["told"] < 32  # none but those of the shell


@pytest.mark.linux
@pytest.mark.parametrize("signal", [9, 15])
def test_a_task_that_is_killed_does_not_wait_for_its_page(linux: Faulting, signal: int) -> None:
    ended = linux.total("ended")
    # A refusal would stop the only vCPU until that page comes.
    linux.sh("echo 0 >/sys/module/sdei_async_pf/parameters/refuse")
    linux.prepare(**{**WORK, "mem": 4, "comp": 1, "cspin": 2_000_000, "tag": signal})
    with Store(linux.machine, 0.0) as store:
        pages = linux.working_set(signal)  # others may be anybody's by now
        store.held = set(pages)
        store.take(pages)
        linux.go()
        store.waits_for(4)
        # All but their parent, which notices their end and says so without another process: that might be given
        # memory which is not there.
        linux.sh(f"set -- $(pidof pagework); while [ $# -gt 1 ]; do kill -{signal} $1; shift; done")
        linux.result()
        assert linux.machine.absent_count > 0  # the pages have not come
        store.release()
    linux.wait_until(lambda: linux.machine.absent_count == 0, "the pages")
    linux.sh(f"until grep -q waiting=0 {_COUNTS}; do sleep 0.02; done")
    assert linux.total("ended") - ended >= 1
    linux.sh("echo 1 >/sys/module/sdei_async_pf/parameters/refuse")


@pytest.mark.linux
def test_pages_that_go_again_and_again(linux: Faulting) -> None:
    words = {**WORK, "passes": 8, "write": 1, "mem": 3}
    expected = linux.checksums(**words)
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    linux.prepare(**words)
    pages = linux.working_set()
    with Store(linux.machine, 0.0005) as store:
        linux.go()
        taken = 0
        while not linux.done and taken < 1500:
            taken += store.take_some(pages, chance, 8)
        assert linux.result() == expected
    assert taken > 256


@pytest.mark.linux
def test_the_module_goes_and_comes_while_tasks_wait(linux: Faulting) -> None:
    expected = linux.checksums(**WORK)
    linux.prepare(**WORK)
    with Store(linux.machine, 0.02) as store:
        store.take(linux.working_set())
        linux.go()
        store.waits_for(2)
        linux.sh("rmmod sdei_async_pf")
        assert "sdei_async_pf" not in linux.sh("cat /proc/modules")
        store.delay = 0.0
        assert linux.result() == expected
        linux.sh("insmod /lib/sdei_async_pf.ko")
    assert linux.total("waiting") == 0


@pytest.mark.linux
def test_more_faults_than_slots_are_refused() -> None:
    with Faulting(vcpus=1, module=None) as linux:
        for slots in (0, 65):
            assert "no such number" in linux.sh(f"insmod /lib/sdei_async_pf.ko slots={slots} || echo no such number")
        assert "cspin=" in linux.sh("pagework help || true")
        linux.sh("insmod /lib/sdei_async_pf.ko slots=1 refuse=0")
        expected = linux.checksums(**WORK)
        linux.prepare(**WORK)
        with Store(linux.machine, 0.004) as store:
            store.take(linux.working_set())
            linux.go()
            assert linux.result() == expected
        assert linux.total("full") > 0
        assert linux.total("refused") >= linux.total("full")


@pytest.mark.linux
@pytest.mark.parametrize(
    ("kernel", "cpu"), [("bookworm", "neoverse-n1"), pytest.param("newest", "cortex-a72", marks=pytest.mark.linux_full)]
)
def test_cpus_go_and_come_under_faults(kernel: str, cpu: str) -> None:
    """With PAN, too: a handler that is entered without it would be a kernel that may touch user memory by mistake."""
    with Faulting(kernel, vcpus=2, options={"cpu": cpu}) as linux:
        words = {**WORK, "mem": 4, "passes": 2, "write": 1}
        expected = linux.checksums(**words)
        linux.prepare(**words)
        with Store(linux.machine, 0.003) as store:
            store.take(linux.working_set())
            linux.go()
            linux.sh(
                "for i in 1 2 3 4 5; do for s in 0 1; do echo $s >/sys/devices/system/cpu/cpu1/online; done; done", 120
            )
            assert linux.result() == expected
        assert linux.total("told") > 32
        assert linux.total("waiting") == 0
        assert "BUG" not in (log := linux.sh("dmesg"))
        assert "WARNING" not in log
        linux.sh("rmmod sdei_async_pf")


def swap(path: Path, size: int = 512 << 20) -> tuple[str, ...]:
    """Room for an image of memory, as mkswap(8) makes it, and QEMU's words for the disk."""
    page = bytearray(PAGE_SIZE)
    struct.pack_into("<III", page, 1024, 1, size // PAGE_SIZE - 1, 0)
    page[-10:] = b"SWAPSPACE2"
    with path.open("wb") as file:
        file.write(page)
        file.truncate(size)
    return "-drive", f"file={path},format=raw,if=none,id=swap", "-device", "virtio-blk-pci,drive=swap"


@pytest.mark.linux
@pytest.mark.parametrize(
    ("kernel", "module"),
    [
        ("bookworm", None),
        pytest.param("bookworm", "", marks=pytest.mark.linux_full),
        pytest.param("newest", "", marks=pytest.mark.linux_full),
    ],
    ids=str,
)
def test_it_sleeps_with_the_system_and_wakes_up_in_another_vm(kernel: str, module: str | None, tmp_path: Path) -> None:
    """Hibernation: the hypervisor that it wakes up under knows nothing of it, or what another kernel has told."""
    how: dict[str, Any] = {
        "append": "modules=virtio_pci,virtio_blk",
        "options": {"arguments": swap(tmp_path / "swap"), "cpu": "neoverse-n1"},
        "vcpus": 2,
        "memory": 512 << 20,
    }
    words = {**WORK, "mem": 4, "passes": 40}
    with Faulting(kernel, **how) as linux:
        expected = linux.checksums(**words)
        linux.sh("swapon /dev/vda")
        linux.prepare(**words)
        with Store(linux.machine, 0.005) as store:
            store.take(linux.working_set())
            linux.go()
            store.waits_for(4)  # tasks that sleep could not be frozen
            linux.start_sh("echo disk >/sys/power/state")
            assert linux.machine.wait(120).reason is ExitReason.POWER_OFF, linux.text
        assert not linux.done
    with Faulting(kernel, module=module, **how) as linux:
        linux.start_sh("echo 254:0 >/sys/power/resume")
        assert linux.end_sh(120)[0] == 0
        assert linux.result() == expected
        assert all(counts["wake_all"] == 1 for counts in linux.module_counts())
        before = linux.total("told")
        linux.prepare(**words)
        with Store(linux.machine, 0.003) as store:
            store.take(linux.working_set())
            linux.go()
            assert linux.result() == expected
        assert linux.total("told") > before  # on which CPU is Linux's to choose
        assert linux.total("waiting") == 0
        linux.sh("rmmod sdei_async_pf")
