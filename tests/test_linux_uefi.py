# SPDX-License-Identifier: Apache-2.0
"""Debian's kernels boot by UEFI, and by ACPI with devices; the monitor and its doorbell stay out of reach."""

from __future__ import annotations

import gzip
import random
import re
import struct
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from guests.linux.fetch import fetch

from sdeivirt.machine import ExitReason, MachineConfig
from sdeivirt.machine.base import RAM_BASE
from sdeivirt.machine.qemu import QemuMachine, QemuOptions
from sdeivirt.machine.qemu.block import BELL_PORT, block_address
from sdeivirt.machine.qemu.fwcfg import FW_CFG
from sdeivirt.ras.cper import Severity, make_block
from sdeivirt.ras.sources import STANDARD_EVENTS, STANDARD_SOURCES
from sdeivirt.sdei import EventDefinition

from .control_support import wait_until
from .linux_ras_support import NEEDS_UEFI
from .linux_support import BOOT_SECONDS, CLIENT_EVENT, Linux, linux_marks
from .machine_support import Console
from .test_linux_devices import disk, sha256
from .test_linux_move import EVENTS, VCPUS, MovingLinux

pytestmark = [*linux_marks, NEEDS_UEFI]

MIB = 1 << 20
ERROR_AT = RAM_BASE + 64 * MIB
TOLD = (
    "ACPI: SDEI 0x",
    "ACPI: HEST 0x",
    "sdei: SDEIv1.1 (0x4b564d) detected in firmware.",
    "GHES: APEI firmware first mode is enabled by APEI bit and WHEA _OSC.",
)


def booting(kernel: str = "bookworm", firmware: str = "uefi", **config: Any) -> Linux:
    """A kernel with the standard sources of errors, besides the client's events."""
    options = {"firmware": firmware, **config.pop("options", {})}
    events = (EventDefinition(CLIENT_EVENT), *STANDARD_EVENTS)
    return Linux(kernel, events=events, error_sources=STANDARD_SOURCES, options=options, **config)


def reports_errors(linux: Linux) -> None:
    """One corrected error by each source: acknowledged, and printed."""
    block = make_block("memory", Severity.CORRECTED, address=ERROR_AT)
    for source in (0, 1):
        assert linux.machine.inject_error(block, source).outcome == "acknowledged"
    linux.sh("until dmesg | grep -q 'APEI Generic Hardware Error Source: 0'; do sleep 0.1; done")
    said = linux.sh("dmesg")
    assert "event severity: corrected" in said
    assert f"physical_address: {ERROR_AT:#018x}" in said


def has_completed(linux: Linux, event: int, vcpu: int, wanted: int) -> bool:
    return linux.completed(event)[vcpu] == wanted


def takes_events(linux: Linux) -> None:
    for event in (0, CLIENT_EVENT):
        for vcpu in range(linux.machine.config.vcpus):
            wanted = linux.completed(event)[vcpu] + 1
            linux.machine.inject(event, vcpu)
            linux.wait_until(partial(has_completed, linux, event, vcpu, wanted), "the event is taken")


@pytest.mark.parametrize(
    ("kernel", "vcpus"),
    [
        pytest.param("bookworm", 1, marks=pytest.mark.linux),
        pytest.param("newest", 4, marks=pytest.mark.linux),
        pytest.param("bookworm", 4, marks=pytest.mark.linux_full),
        pytest.param("newest", 1, marks=pytest.mark.linux_full),
    ],
)
def test_a_kernel_boots_by_uefi_and_finds_sdei_by_acpi(kernel: str, vcpus: int) -> None:
    with booting(kernel, vcpus=vcpus) as linux:
        linux.booted()
        said = linux.sh("dmesg")
        for words in (*TOLD, "by EDK II", "Remapping and enabling EFI services.", "Registered efivars operations"):
            assert words in said, said
        assert "rtc-efi rtc-efi.0: setting system clock" in said, "no runtime service has been called"
        assert not re.search(r"BUG:|Oops|WARNING:|ACPI Error|EFI runtime services will not be available", said)
        assert linux.sh("nproc").strip() == str(vcpus)
        takes_events(linux)
        reports_errors(linux)
        linux.start_sh("poweroff -f")
        assert linux.ends().reason is ExitReason.POWER_OFF


@pytest.mark.linux_full
@pytest.mark.parametrize("packed", [True, False])
def test_uefi_starts_what_is_no_plain_image(packed: bool, tmp_path: Path) -> None:
    """Packed by gzip; or without the magic number of an Image, as other EFI programs are."""
    image = fetch("bookworm").image.read_bytes()
    path = tmp_path / "kernel"
    path.write_bytes(gzip.compress(image, 1) if packed else image[:56] + bytes(4) + image[60:])
    linux = booting(vcpus=1)
    linux.machine.load(path)
    with linux:
        linux.booted()
        assert "sdei: SDEIv1.1" in linux.sh("dmesg")


@pytest.mark.linux_full
def test_uefi_boots_from_a_disk(tmp_path: Path) -> None:
    """The kernel is where firmware looks for a loader; without a root file system it comes no further than that."""
    loader = tmp_path / "EFI" / "BOOT" / "BOOTAA64.EFI"
    loader.parent.mkdir(parents=True)
    loader.write_bytes(fetch("bookworm").image.read_bytes())
    arguments = disk(0, Path(f"fat:{tmp_path}"), readonly=True)
    engine = QemuOptions(firmware="uefi", arguments=arguments)
    with QemuMachine(MachineConfig(engine=engine, memory=256 * MIB, restart=False)) as machine:
        console = Console(machine)
        machine.start()
        assert machine.wait(BOOT_SECONDS).reason is ExitReason.PANIC
        assert "sdei: SDEIv1.1 (0x4b564d) detected in firmware." in console.text
        assert "VFS: Unable to mount root fs" in console.text


@pytest.mark.linux
def test_a_reboot_by_uefi_begins_with_the_firmware_again() -> None:
    with booting(restart=True) as linux:
        linux.booted()
        reports_errors(linux)
        linux.start_sh("reboot -f")
        linux.booted(count=2)
        assert linux.text.count("UEFI firmware") == 2
        assert linux.sh("dmesg").count("Hardware error from APEI") == 0
        takes_events(linux)
        reports_errors(linux)


@pytest.mark.linux
def test_a_panic_under_uefi_is_one() -> None:
    with booting(vcpus=1) as linux:
        linux.booted()
        linux.machine.inject_error_later(make_block("memory", Severity.FATAL, address=ERROR_AT), 1)
        assert linux.ends().reason is ExitReason.PANIC
        assert "Fatal hardware error" in linux.text


# ------------------------------------------------------------------------------------------------------ out of reach


def devmem(linux: Linux, address: int, width: int, value: int | None = None) -> int:
    said = linux.sh(f"devmem {address:#x} {width} {'' if value is None else f'{value:#x}'}")
    return int(said.split()[0], 16) if value is None else 0


def write_words(linux: Linux, address: int, data: bytes) -> None:
    for i, word in enumerate(struct.unpack(f"<{len(data) // 8}Q", data)):
        devmem(linux, address + 8 * i, 64, word)


def big(value: int) -> int:
    """A big-endian register's value, as this CPU writes it."""
    return int.from_bytes(value.to_bytes(8, "big"), "little")


@pytest.mark.linux
def test_fw_cfg_writes_into_the_guest_s_memory_and_nowhere_else() -> None:
    """The windows of errors are no memory of the kernel's, so a program may write there."""
    with booting(vcpus=1) as linux:
        linux.booted()
        machine = linux.machine
        assert isinstance(machine, QemuMachine)
        end = RAM_BASE + machine.config.memory
        transfer, buffer = end - 0x1000, end - 0x800
        monitor = block_address(machine.config.memory)
        code = machine.block.monitor()
        select, read = 1 << 3, 1 << 1
        for address, length, error in (
            (buffer, 4, False),
            (monitor, 4, True),
            (end - 2, 4, True),
            (monitor + 0x1000_0000_0000, 4, True),
            (0, 4, True),
            ((1 << 64) - 4, 8, True),
            (buffer, 0xFFFF_FFFF, True),
        ):
            write_words(linux, transfer, struct.pack(">IIQ", select | read, length, address))
            write_words(linux, buffer, bytes(8))
            devmem(linux, FW_CFG + 0x10, 64, big(transfer))
            control = big(devmem(linux, transfer, 64)) >> 32
            assert bool(control & 1) is error, hex(address)
            found = devmem(linux, buffer, 64).to_bytes(8, "little")
            assert found == (bytes(8) if error else b"QEMU\0\0\0\0")
        # A description that is in the monitor's memory, or nowhere, is not read; by halves it is the same register.
        for at in (monitor, end - 8, 0, (1 << 64) - 16):
            devmem(linux, FW_CFG + 0x10, 64, big(at))
        write_words(linux, transfer, struct.pack(">IIQ", select | read, 4, buffer))
        devmem(linux, FW_CFG + 0x10, 32, 0)
        devmem(linux, FW_CFG + 0x14, 32, int.from_bytes(transfer.to_bytes(4, "big"), "little"))
        assert devmem(linux, buffer, 64).to_bytes(8, "little") == b"QEMU\0\0\0\0"
        assert machine.block.monitor() == code
        takes_events(linux)


@pytest.mark.linux
@pytest.mark.parametrize("firmware", ["acpi", "uefi"])
def test_a_disk_works_and_the_doorbell_is_not_there(firmware: str, tmp_path: Path) -> None:
    path = tmp_path / "disk"
    before = random.Random(1).randbytes(4 * MIB)
    path.write_bytes(before)
    arguments = disk(0, path)
    with booting(firmware=firmware, append="modules=virtio_pci,virtio_blk", options={"arguments": arguments}) as linux:
        linux.booted()
        said = linux.sh("dmesg")
        for words in TOLD:
            assert words in said, said
        assert "ACPI Error" not in said
        assert linux.sh("sha256sum /dev/vda").split()[0] == sha256(before)
        linux.sh(
            "dd if=/dev/urandom of=/dev/vda bs=1M count=4 2>/dev/null && sync && echo 3 > /proc/sys/vm/drop_caches"
        )
        assert linux.sh("sha256sum /dev/vda").split()[0] == sha256(path.read_bytes())
        assert "ITS-MSI" in linux.sh("grep virtio0 /proc/interrupts")
        # The last slot has nothing in it, and the bridge has no ports where the doorbell's are.
        assert linux.sh("ls /sys/bus/pci/devices").split() == ["0000:00:00.0", "0000:00:01.0"]
        assert f"00000000-{(BELL_PORT & -0x1000) - 1:08x} : PCI Bus 0000:00" in linux.sh("cat /proc/ioports")
        takes_events(linux)
        reports_errors(linux)
        linux.start_sh("poweroff -f")
        assert linux.ends().reason is ExitReason.POWER_OFF


# ------------------------------------------------------------------------------------------------------------- moving


@pytest.mark.linux
@pytest.mark.process
def test_a_guest_with_uefi_moves_and_its_runtime_services_work_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    chance = random.Random(3)
    with MovingLinux(tmp_path, words=("--firmware", "uefi")) as linux:
        shell = linux.shell
        clock = "hwclock -u -r -f /dev/rtc0"
        shell.run(clock)
        linux.move("there", chance)
        shell.run(clock)
        for event in EVENTS:
            for vcpu in range(VCPUS):
                linux.inject(event, vcpu)
        linux.expect_exact()
        assert linux.status().error_sources, "the sources have not come along"
        wait_until(lambda: linux.status().state == "running", "it runs")
        shell.begin("poweroff -f")
        assert linux.vm.wait() == 0, linux.vm.err
