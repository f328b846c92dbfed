# SPDX-License-Identifier: Apache-2.0
"""Debian's kernels with more machine around them: virtio disks and networks, kexec, kdump, suspend to idle.

The disks' and network's DMA passes by stage 2, which maps one to one. All of the network stays on 127.0.0.1.
"""

from __future__ import annotations

import gzip
import hashlib
import lzma
import random
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from guests.linux import modules
from guests.linux.debian import FetchError
from guests.linux.fetch import LinuxAssets, fetch

from sdeivirt.errors import NotRegisteredError
from sdeivirt.machine import ExitReason
from sdeivirt.sdei import EventDefinition

from .linux_support import CLIENT_EVENT, Linux, linux_marks

MIB = 1 << 20
SHARED = EventDefinition(0x4000_0020, shared=True)
BOTH_KERNELS = [
    pytest.param("bookworm", marks=[pytest.mark.linux, *linux_marks]),
    pytest.param("newest", marks=[pytest.mark.linux_full, *linux_marks]),
]


def disk(number: int, path: Path, *, readonly: bool = False) -> tuple[str, ...]:
    """QEMU's words for a virtio disk; they come up in this order, as /dev/vda, /dev/vdb..."""
    name = f"disk{number}"
    drive = f"file={path},format=raw,if=none,id={name},readonly={'on' if readonly else 'off'}"
    return "-drive", drive, "-device", f"virtio-blk-pci,drive={name}"


def kernel_disks(assets: LinuxAssets) -> tuple[str, ...]:
    """/dev/vda is the kernel, /dev/vdb the initial file system."""
    return disk(0, assets.image, readonly=True) + disk(1, assets.initrd, readonly=True)


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def is_pending(linux: Linux, event: int, vcpu: int) -> bool:
    sdei = linux.machine.firmware.sdei
    return sdei.pe(vcpu).handler_of(sdei.event(event)).pending


def inject_while(linux: Linux, busy: Callable[[], bool]) -> dict[tuple[int, int], int]:
    """Inject into all CPUs, one of each event at a time, as long as something goes on; how many of each."""
    places = [(event, vcpu) for event in (0, CLIENT_EVENT) for vcpu in range(linux.machine.config.vcpus)]
    injected = dict.fromkeys(places, 0)
    while busy():
        for event, vcpu in places:
            if not is_pending(linux, event, vcpu):
                linux.machine.inject(event, vcpu)
                injected[event, vcpu] += 1
        time.sleep(0.002)
    return injected


def agrees(linux: Linux, injected: dict[tuple[int, int], int]) -> None:
    """Injected, completed, and counted by the guest since it booted: all the same."""
    linux.wait_until(
        lambda: all(linux.completed(event)[vcpu] == count for (event, vcpu), count in injected.items()),
        f"all events are completed: {injected}",
    )
    counts = linux.counts()
    assert {place: counts[place]["total"] for place in injected} == injected
    print(f"injected = completed = counted: {injected}")


def summed(injected: list[dict[tuple[int, int], int]]) -> dict[tuple[int, int], int]:
    return {place: sum(some[place] for some in injected) for place in injected[0]}


# ------------------------------------------------------------------------------------------------- the kernel's modules


def module(needs: str) -> bytes:
    return b"\x7fELF" + bytes(8) + b"license=GPL\0depends=" + needs.encode() + b"\0name=x\0" + bytes(8)


def test_what_a_module_needs_is_in_it() -> None:
    assert modules.names_needed(module("one,two-too")) == ["one", "two_too"]
    assert modules.names_needed(module("")) == []
    assert modules.names_needed(b"no module") == []


def test_modprobe_finds_all_that_is_needed_in_order() -> None:
    found = {
        "kernel/a/top.ko": module("left,right"),
        "kernel/a/left.ko": module("base-lib"),
        "kernel/b/right.ko": module("left,builtin"),
        "kernel/b/base-lib.ko": module(""),
    }
    files = {entry.name: entry.data.decode("latin-1") for entry in modules.entries(found, "9.9")}
    assert files["lib/modules/9.9/modules.dep"].splitlines() == [
        "kernel/a/top.ko: kernel/b/right.ko kernel/a/left.ko kernel/b/base-lib.ko",
        "kernel/a/left.ko: kernel/b/base-lib.ko",
        "kernel/b/right.ko: kernel/a/left.ko kernel/b/base-lib.ko",
        "kernel/b/base-lib.ko:",
    ]
    assert files["lib/modules/9.9/kernel/b/right.ko"] == found["kernel/b/right.ko"].decode("latin-1")
    assert "kernel/virtio_pci.ko\n" in files["lib/modules/9.9/modules.builtin"]
    names = list(files)
    assert all(str(Path(name).parent) in ["lib", *names[:i]] for i, name in enumerate(names))


def test_modules_are_unpacked() -> None:
    data = module("")
    assert modules.plain_module(data, "") == data
    assert modules.plain_module(lzma.compress(data), ".xz") == data
    assert modules.plain_module(gzip.compress(data), ".gz") == data
    with pytest.raises(FetchError, match="compressed by lz4"):
        modules.plain_module(data, ".lz4")


# ------------------------------------------------------------------------------------------------------------- devices


@pytest.mark.parametrize("kernel", BOTH_KERNELS)
def test_a_disk_is_read_and_written_while_events_come(kernel: str, tmp_path: Path) -> None:
    path = tmp_path / "disk"
    before = random.Random(1).randbytes(16 * MIB)
    path.write_bytes(before)
    with Linux(kernel, append="modules=virtio_pci,virtio_blk", options={"arguments": disk(0, path)}) as linux:
        linux.booted()
        injected = []
        linux.start_sh("sha256sum /dev/vda")
        injected.append(inject_while(linux, lambda: linux.shell.busy))
        code, output = linux.end_sh()
        assert (code, output.split()[:1]) == (0, [sha256(before)]), output
        # Written, and read again from the disk, not from memory.
        linux.start_sh(
            "dd if=/dev/urandom of=/dev/vda bs=1M count=16 2>/dev/null && sync"
            " && echo 3 > /proc/sys/vm/drop_caches && sha256sum /dev/vda"
        )
        injected.append(inject_while(linux, lambda: linux.shell.busy))
        code, output = linux.end_sh()
        after = path.read_bytes()
        assert after != before
        assert (code, output.split()[:1]) == (0, [sha256(after)]), output
        agrees(linux, summed(injected))
        assert all(count > 10 for count in injected[1].values()), injected


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port


def exchange(port: int, data: bytes) -> bytes:
    """Send all, and receive until the other side has no more."""
    with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:

        def send() -> None:
            connection.sendall(data)
            connection.shutdown(socket.SHUT_WR)

        sender = threading.Thread(target=send, daemon=True)
        sender.start()
        received = bytearray()
        while some := connection.recv(1 << 16):
            received += some
        sender.join()
        return bytes(received)


@pytest.mark.parametrize("kernel", BOTH_KERNELS)
def test_data_goes_both_ways_through_a_network_while_events_come(kernel: str) -> None:
    port = free_port()
    data = random.Random(2).randbytes(MIB)
    # No boot ROM: it is in a package of its own, and nothing boots from the net.
    network = (
        *("-netdev", f"user,id=net0,restrict=on,hostfwd=tcp:127.0.0.1:{port}-10.0.2.15:9000"),
        *("-device", "virtio-net-pci,netdev=net0,romfile="),
    )
    with Linux(kernel, append="modules=virtio_pci,virtio_net", options={"arguments": network}) as linux:
        linux.booted()
        linux.sh("ip addr add 10.0.2.15/24 dev eth0 && ip link set eth0 up")
        sent_by_guest = linux.sh(f"head -c {MIB} /dev/urandom > /tmp/out && sha256sum < /tmp/out").split()[0]
        linux.sh("nc -l -p 9000 < /tmp/out > /tmp/in & until netstat -ltn | grep -q :9000; do sleep 0.1; done")
        received: list[bytes] = []
        client = threading.Thread(target=lambda: received.append(exchange(port, data)), daemon=True)
        client.start()
        injected = inject_while(linux, client.is_alive)
        assert sha256(received[0]) == sent_by_guest
        got = linux.sh("while pidof nc > /dev/null; do sleep 0.1; done; sha256sum < /tmp/in").split()[0]
        assert got == sha256(data)
        agrees(linux, injected)
        assert all(injected.values()), injected


# ------------------------------------------------------------------------------------------- other kernels, and suspend


def handlers_left(linux: Linux, event: int) -> list[tuple[int | None, bool, bool, bool, bool]]:
    """(vCPU, registered, enabled, running, pending) of an event's handlers, as far as there is something."""
    (found,) = (one for one in linux.machine.status().events if one.number == event)
    rows = [(one.vcpu, one.registered, one.enabled, one.running, one.pending) for one in found.handlers]
    return [row for row in rows if any(row[1:])]


def takes_one(linux: Linux, event: int, vcpu: int) -> None:
    before = linux.completed(event)[vcpu]
    linux.machine.inject(event, vcpu)
    linux.wait_until(lambda: linux.completed(event)[vcpu] == before + 1, f"vCPU {vcpu} takes event {event:#x}")


@pytest.mark.parametrize("kernel", BOTH_KERNELS)
def test_kexec_leaves_nothing_of_the_first_kernel(kernel: str) -> None:
    """Linux resets the interface and turns its other CPUs off; the second kernel finds it as after a power-up."""
    with Linux(
        kernel,
        append="modules=virtio_pci,virtio_blk",
        events=(EventDefinition(CLIENT_EVENT), SHARED),
        client=f"0,{CLIENT_EVENT:#x},{SHARED.number:#x}",
        options={"arguments": kernel_disks(fetch(kernel))},
    ) as linux:
        linux.booted()
        takes_one(linux, 0, 1)
        takes_one(linux, CLIENT_EVENT, 0)
        linux.sh(
            "kexec load /dev/vda /dev/vdb 'console=ttyAMA0 run=serve client.events=0 client.quiet=1 kernel=second'"
        )
        linux.start_sh("kexec exec")
        linux.booted(count=2)

        assert "kernel=second" in linux.sh("cat /proc/cmdline")
        assert linux.sh("dmesg").count("sdei: SDEIv1.1 (0x4b564d) detected in firmware.") == 1
        assert linux.sh("cat /sys/devices/system/cpu/online").strip() == "0-1"
        assert handlers_left(linux, 0) == [(0, True, True, False, False), (1, True, True, False, False)]
        assert handlers_left(linux, CLIENT_EVENT) == handlers_left(linux, SHARED.number) == []
        assert [(pe.power, pe.masked, pe.running) for pe in linux.machine.status().vcpus] == [("on", False, [])] * 2
        takes_one(linux, 0, 0)
        takes_one(linux, 0, 1)
        counts = linux.counts()
        assert [counts[0, vcpu]["total"] for vcpu in (0, 1)] == [1, 1]
        with pytest.raises(NotRegisteredError):
            linux.machine.inject(CLIENT_EVENT, 0)
        linux.start_sh("poweroff -f")
        assert linux.ends().reason is ExitReason.POWER_OFF


@pytest.mark.parametrize("kernel", BOTH_KERNELS)
def test_a_crash_kernel_has_sdei_while_a_cpu_is_lost(kernel: str) -> None:
    """CPU 1 spins with interrupts masked when CPU 0 panics, and stays with the first kernel; kdump goes on on CPU 0."""
    with Linux(
        kernel,
        append="modules=virtio_pci,virtio_blk crashkernel=192M",
        memory=1 << 30,
        events=(EventDefinition(CLIENT_EVENT), SHARED),
        client=f"0,{CLIENT_EVENT:#x},{SHARED.number:#x}",
        options={"arguments": kernel_disks(fetch(kernel))},
    ) as linux:
        linux.booted()
        linux.sh(
            "kexec crash /dev/vda /dev/vdb"
            " 'console=ttyAMA0 run=serve client.events=0 client.quiet=1 nr_cpus=1 kernel=capture'"
        )
        assert linux.sh("cat /sys/kernel/kexec_crash_loaded").strip() == "1"
        # Everything on CPU 0: a shell on the other one would spin with it. The spin is as long as the client allows.
        linux.start_sh(
            "taskset 1 sh -c '(echo 1 60000 > /proc/sdei_client/spin) &"
            " until dmesg | grep -q SPINNING; do sleep 0.1; done; sleep 0.5; echo c > /proc/sysrq-trigger'"
        )
        linux.booted(count=2)

        assert "SMP: failed to stop secondary CPUs 1" in linux.text
        assert "kernel=capture" in linux.sh("cat /proc/cmdline")
        assert linux.sh("head -c 4 /proc/vmcore").endswith("ELF")
        assert linux.sh("dmesg").count("sdei: SDEIv1.1 (0x4b564d) detected in firmware.") == 1
        assert linux.sh("cat /sys/devices/system/cpu/online").strip() == "0"
        # The lost CPU's handlers are its own; all else is the second kernel's.
        assert handlers_left(linux, 0) == [(0, True, True, False, False), (1, True, True, False, False)]
        assert handlers_left(linux, CLIENT_EVENT) == [(1, True, True, False, False)]
        assert handlers_left(linux, SHARED.number) == []
        takes_one(linux, 0, 0)
        assert linux.counts()[0, 0]["total"] == 1
        # An event frees the lost CPU from its spin: it finds that it was to stop, and turns itself off.
        linux.machine.inject(0, 1)
        linux.wait_until(lambda: linux.machine.status().vcpus[1].power == "off", "CPU 1 turns itself off")
        assert handlers_left(linux, 0) == [(0, True, True, False, False)]
        takes_one(linux, 0, 0)
        linux.start_sh("poweroff -f")
        assert linux.ends().reason is ExitReason.POWER_OFF


@pytest.mark.parametrize("kernel", BOTH_KERNELS)
def test_events_wait_while_the_guest_is_suspended_to_idle(kernel: str) -> None:
    """Linux masks every PE on the way down, so an event does not wake it; it is taken on the way up."""
    with Linux(kernel) as linux:
        linux.booted()
        machine = linux.machine
        linux.start_sh("echo +4 > /sys/class/rtc/rtc0/wakealarm && echo freeze > /sys/power/state")
        linux.wait_until(lambda: all(pe.masked for pe in machine.status().vcpus), "all PEs are masked")
        places = [(event, vcpu) for event in (0, CLIENT_EVENT) for vcpu in (0, 1)]
        for event, vcpu in places:
            machine.inject(event, vcpu)
        assert linux.shell.busy
        assert all(is_pending(linux, event, vcpu) for event, vcpu in places)
        assert linux.end_sh(30)[0] == 0
        agrees(linux, dict.fromkeys(places, 1))
        assert "PM: suspend exit" in linux.sh("dmesg")
        for event, vcpu in places:
            assert handlers_left(linux, event) == [(0, True, True, False, False), (1, True, True, False, False)]
            takes_one(linux, event, vcpu)
        assert [(pe.power, pe.masked, pe.running) for pe in machine.status().vcpus] == [("on", False, [])] * 2
