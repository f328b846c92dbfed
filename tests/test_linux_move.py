# SPDX-License-Identifier: Apache-2.0
"""Linux moves between real processes, under injection: its SDEI events fire there, and every count agrees."""

from __future__ import annotations

import os
import random
import re
from collections import Counter
from pathlib import Path

import pytest
from guests.linux.fetch import fetch

from sdeivirt.benchmarks.shell import Shell
from sdeivirt.control.client import VmClient
from sdeivirt.machine.report import VmStatus

from .control_support import VmProcess, wait_until
from .linux_support import CLIENT_EVENT, linux_marks
from .test_linux_devices import disk, sha256
from .test_migration_moves import GONE

pytestmark = [*linux_marks, pytest.mark.process]

VCPUS = 2
EVENTS = (0, CLIENT_EVENT)
_COUNT = re.compile(r"event (0x[0-9a-f]+) cpu (\d+) total (\d+)")


class FedProcess(VmProcess):
    """A VM whose output a shell reads."""

    def __init__(self, shell: Shell, runtime: Path, *words: str, name: str) -> None:
        self._shell = shell
        super().__init__(runtime, *words, name=name)

    def _read(self, fd: int, buffer: bytearray) -> None:  # type: ignore[override]
        if buffer is self._err:
            super()._read(fd, buffer)
            return
        while data := os.read(fd, 4096):
            buffer.extend(data)
            self._shell.feed(data)


class MovingLinux:
    """A Debian kernel with two vCPUs in a process of its own, and then in others. A context manager.

    `append` are further words for the kernel, `devices` QEMU's words for them, on each side; `words` are for `run`.
    """

    def __init__(
        self, runtime: Path, append: str = "", devices: tuple[str, ...] = (), words: tuple[str, ...] = ()
    ) -> None:
        assets = fetch("bookworm")
        self._runtime = runtime
        self._devices = ("--", *devices) if devices else ()
        self._injected: Counter[tuple[int, int]] = Counter()
        self.shell = Shell(self._type_in, lambda: self.vm.process.poll() is not None)
        self.vms: list[VmProcess] = []
        self.vm = self._start(
            "linux",
            *("--machine", "qemu", "--kernel", str(assets.image), "--initrd", str(assets.initrd), *words),
            *("--memory", "512M", "--vcpus", str(VCPUS), "--event", f"{CLIENT_EVENT:#x}", "--append"),
            f"console=ttyAMA0 quiet run=serve client.events=0,{CLIENT_EVENT:#x} client.quiet=1 {append}".strip(),
        )
        self.shell.wait_ready()

    def _start(self, name: str, *words: str) -> VmProcess:
        vm = FedProcess(self.shell, self._runtime, *words, *self._devices, name=name)
        self.vms.append(vm)
        return vm

    def _type_in(self, data: bytes) -> int:
        stdin = self.vm.process.stdin
        assert stdin is not None
        stdin.write(data)
        stdin.flush()
        return len(data)

    def status(self) -> VmStatus:
        with VmClient(self.vm.path.name) as client:
            return client.status()

    def inject(self, event: int, vcpu: int) -> None:
        """One more, when the one before has been delivered: two that are pending at once are one."""
        while True:
            try:
                with VmClient(self.vm.path.name) as client:
                    wait_until(lambda: not pending(client.status(), event, vcpu), "an event is not delivered")
                    client.inject(event, vcpu)
            except GONE:
                continue
            self._injected[event, vcpu] += 1
            return

    def move(self, name: str, chance: random.Random) -> None:
        """To another process, under injection."""
        uri = f"unix:{self._runtime}/{name}.sock"
        there = self._start(name, "--incoming", uri)
        there.wait_err("waiting for a guest")
        here = self.vm
        with VmClient(here.path.name) as client:
            client.execute("migrate", uri=uri)
            status = client.wait_migration()
            while status.active:
                if status.status == "active":
                    event, vcpu = chance.choice(EVENTS), chance.randrange(VCPUS)
                    if not pending(client.status(), event, vcpu):
                        client.inject(event, vcpu)
                        self._injected[event, vcpu] += 1
                status = client.wait_migration()
        assert status.status == "completed", status
        self.vm = there
        assert here.wait() == 0, here.err

    def expect_exact(self) -> None:
        """Injected, completed, and counted by the guest: the same."""

        def completed() -> dict[tuple[int, int], int]:
            return {
                (event.number, handler.vcpu): handler.completed
                for event in self.status().events
                for handler in event.handlers
                if event.number in EVENTS and handler.vcpu is not None
            }

        wanted = {(event, vcpu): self._injected[event, vcpu] for event in EVENTS for vcpu in range(VCPUS)}
        wait_until(lambda: completed() == wanted, f"{wanted}, {completed()}")
        found = _COUNT.findall(self.shell.run("cat /proc/sdei_client/counts"))
        assert {(int(event, 16), int(cpu)): int(total) for event, cpu, total in found} == wanted

    def __enter__(self) -> MovingLinux:
        return self

    def __exit__(self, *error: object) -> None:
        for vm in self.vms:
            vm.__exit__(None, None, None)


def pending(status: VmStatus, event: int, vcpu: int) -> bool:
    return any(h.pending for e in status.events if e.number == event for h in e.handlers if h.vcpu == vcpu)


@pytest.mark.linux
def test_linux_moves_there_and_back_and_its_events_fire(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    with MovingLinux(tmp_path) as linux:
        shell = linux.shell
        for name in ("there", "back"):
            for event in EVENTS:
                for vcpu in range(VCPUS):
                    linux.inject(event, vcpu)
            # Programs that watch their registers run on both CPUs from before the move until after it.
            shell.begin("for m in 1 2; do taskset $m regcheck 6 & done; wait")
            linux.move(name, chance)
            code, said = shell.end(120)
            assert code == 0, said
            for event in EVENTS:
                for vcpu in range(VCPUS):
                    linux.inject(event, vcpu)
            linux.expect_exact()
        assert shell.run("nproc").strip() == str(VCPUS)
        assert not re.search(r"BUG:|Oops|WARNING:|rcu: INFO|stall|lockup", shell.run("dmesg"))
        shell.begin("poweroff -f")
        assert linux.vm.wait() == 0, linux.vm.err


@pytest.mark.linux
def test_what_a_disk_writes_into_ram_while_the_guest_moves_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pages that nobody had touched are filled by the disk itself during the first pass; no CPU clears them before."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    path = tmp_path / "disk"
    content = random.randbytes(2 << 20)
    path.write_bytes(content)
    with MovingLinux(tmp_path, "modules=virtio_pci,virtio_blk init_on_alloc=0", disk(0, path, readonly=True)) as linux:
        shell, here = linux.shell, linux.vm
        shell.run("sha256sum /dev/null")  # the program itself is in memory
        shell.run("sleep 600 </dev/vda >/dev/null 2>&1 &")  # while it is open what was read of it stays in memory
        uri = f"unix:{tmp_path}/there.sock"
        there = linux._start("there", "--incoming", uri)
        there.wait_err("waiting for a guest")
        with VmClient(here.path.name) as client:
            client.execute("migrate", **{"uri": uri, "max-bandwidth": 12 << 20})
            # What is free, and is to be filled, stands before the last of what is used: it has been passed over.
            wait_until(lambda: 0 < client.execute("query-migrate")["remaining"] < (512 << 20) // 4096 // 7)
            shell.run("cat /dev/vda >/dev/null")
            now = client.execute("query-migrate")
            assert (now["status"], now["passes"]) == ("active", 1), "the disk was not read during the first pass"
            status = client.wait_migration()
            while status.active:
                status = client.wait_migration()
        assert status.status == "completed", status
        linux.vm = there
        assert here.wait() == 0, here.err
        reads = shell.run("cut -c1-9 /sys/block/vda/stat")
        assert shell.run("sha256sum /dev/vda").split()[0] == sha256(content)
        assert shell.run("cut -c1-9 /sys/block/vda/stat") == reads, "it was read from the disk, and not from memory"
        shell.run("echo 3 > /proc/sys/vm/drop_caches")
        assert shell.run("sha256sum /dev/vda").split()[0] == sha256(content)
        shell.begin("poweroff -f")
        assert linux.vm.wait() == 0, linux.vm.err
