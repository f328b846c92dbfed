# SPDX-License-Identifier: Apache-2.0
"""What machine qemu needs for UEFI: firmware, a program to start, memory; and the command line that comes of it."""

from __future__ import annotations

import gzip
import shlex
import struct
from pathlib import Path

import pytest

from sdeivirt.errors import EnvironmentUnavailableError, ImageError, SdeivirtError, UsageError
from sdeivirt.machine import MachineConfig
from sdeivirt.machine.qemu import QemuMachine, QemuOptions, show_command
from sdeivirt.machine.qemu.uefi import find_firmware, memory_for_uefi, read_firmware, read_program
from sdeivirt.ras.sources import STANDARD_EVENTS, STANDARD_SOURCES

from .machine_support import NEEDS_QEMU

MIB = 1 << 20


def program(machine: int = 0xAA64, at: int = 0x80, magic: bytes = b"") -> bytes:
    """As much of an EFI program as anybody looks at; `magic` makes it an Image."""
    head = bytearray(b"MZ".ljust(0x100, b"\0"))
    struct.pack_into("<Q", head, 16, 0x1_0000)  # image_size
    head[56 : 56 + len(magic)] = magic
    struct.pack_into("<I", head, 0x3C, at)
    if at + 6 <= len(head):
        struct.pack_into("<4sH", head, at, b"PE\0\0", machine)
    return bytes(head) + bytes(range(256))


@pytest.mark.parametrize("content", [program(), program(magic=b"ARM\x64"), gzip.compress(program(magic=b"ARM\x64"))])
def test_uefi_starts_efi_programs_for_aarch64(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "program"
    path.write_bytes(content)
    wanted = gzip.decompress(content) if content.startswith(b"\x1f\x8b") else content
    assert read_program(path, 64 * MIB) == wanted


@pytest.mark.parametrize(
    "content",
    [
        *(b"", b"M", b"MZ", b"\x7fELF" + bytes(200), bytes(0x200)),
        *(program(0x8664), program(at=0x1000), program(at=0xFFFF_FFF0), program()[:0x84], b"X" + program()[1:]),
        *(b"\x1f\x8b", gzip.compress(b"no guest"), gzip.compress(program(0x8664, magic=b"ARM\x64"))),
    ],
)
def test_uefi_starts_nothing_else(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "program"
    path.write_bytes(content)
    with pytest.raises(ImageError):
        read_program(path, 64 * MIB)


def test_a_program_that_is_bigger_than_memory_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "program"
    path.write_bytes(program())
    with path.open("r+b") as file:
        file.truncate(65 * MIB)
    with pytest.raises(ImageError, match="more"):
        read_program(path, 64 * MIB)


def test_firmware_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(EnvironmentUnavailableError, match="booting by UEFI needs EDK2") as caught:
        find_firmware(tmp_path / "none.fd")
    assert "apt-get install qemu-efi-aarch64" in str(caught.value.hint)
    for strange in (tmp_path / ("x" * 300), Path("a\0b"), tmp_path):
        with pytest.raises(EnvironmentUnavailableError, match="is no file"):
            find_firmware(strange)
    path = tmp_path / "big.fd"
    with path.open("wb") as file:
        file.truncate((64 << 20) + 1)
    with pytest.raises(UsageError):
        read_firmware(path)
    path.write_bytes(b"firmware")
    assert find_firmware(path) == path
    assert read_firmware(path) == b"firmware"


def config(memory: int = 256 * MIB, **options: object) -> MachineConfig:
    engine = QemuOptions(**{"firmware": "uefi", **options})  # type: ignore[arg-type]
    return MachineConfig(
        memory=memory, engine=engine, events=STANDARD_EVENTS, error_sources=STANDARD_SOURCES, bootargs="a b=c"
    )


@NEEDS_QEMU
def test_what_uefi_cannot_do_without_is_said_before_anything_starts(tmp_path: Path) -> None:
    for wrong, match in (
        (config(128 * MIB), "UEFI needs more than 128 MiB"),
        (config(stage2=False), "without stage 2"),
        (config(arguments=("-bios", "x")), "-bios"),
    ):
        with pytest.raises(UsageError, match=match):
            QemuMachine(wrong)
    assert memory_for_uefi(config()) == 256 * MIB - 0x1_0000
    with pytest.raises(UsageError, match="go with a kernel"):
        QemuMachine(config()).start()
    path = tmp_path / "none.fd"
    for work in (
        lambda: show_command(config(uefi=path)),
        lambda: QemuMachine(config(uefi=path)).load(path),
    ):
        with pytest.raises(SdeivirtError, match="booting by UEFI needs EDK2"):
            work()


@NEEDS_QEMU
def test_the_command_line_hands_down_files(tmp_path: Path) -> None:
    firmware = tmp_path / "firmware.fd"
    firmware.write_bytes(bytes(0x1000))
    arguments = ("-global", "fw_cfg_mem.dma_enabled=off", "-device", "virtio-rng-pci")
    words = shlex.split(show_command(config(uefi=firmware, initrd=firmware, arguments=arguments)))
    for option in ("-bios", "-kernel", "-initrd"):
        assert words[words.index(option) + 1].startswith("/proc/self/fd/"), option
    assert words[words.index("-append") + 1] == "a b=c"
    # QEMU takes the last word: without DMA we would not see what firmware reads.
    settings = [words[i + 1] for i, word in enumerate(words) if word == "-global" and "dma" in words[i + 1]]
    assert settings[-1] == "fw_cfg_mem.dma_enabled=on"
    from_disk = shlex.split(show_command(config(uefi=firmware), kernel=False))
    assert "-bios" in from_disk
    assert not {"-kernel", "-initrd", "-append"} & set(from_disk)
    plain = shlex.split(show_command(MachineConfig(engine=QemuOptions(initrd=firmware))))
    assert "fw_cfg_mem.dma_enabled=off" in plain
    assert not {"-bios", "-kernel", "-initrd", "-append"} & set(plain)
