# SPDX-License-Identifier: Apache-2.0
"""The suite as an arm64 Image: it boots wherever a loader puts it."""

from __future__ import annotations

import random
import shutil
import struct
import subprocess
from pathlib import Path

import pytest

from sdeivirt.cli import main
from sdeivirt.conformance import report_of_log, run_suite
from sdeivirt.conformance.export import HEAD_SIZE, flat_image
from sdeivirt.control.batch import run_to_end
from sdeivirt.errors import UsageError
from sdeivirt.guests import guest_path, program_path
from sdeivirt.machine import MachineConfig, open_machine
from sdeivirt.machine.base import RAM_BASE
from sdeivirt.machine.images import read_image
from sdeivirt.smccc.ids import Conduit

from .asm import assemble
from .machine_support import DEADLINE, KINDS, NEEDS_QEMU, engine

SELFTEST = read_image(guest_path("selftest"), RAM_BASE, 64 << 20)
IMAGE = flat_image(guest_path("selftest"), program_path("image"))


def test_the_header_is_as_boot_loaders_expect() -> None:
    code0, text_offset, image_size, flags, magic = struct.unpack_from("<I4xQQQ24x4s", IMAGE)
    assert code0 >> 26 == 0x05  # B
    assert text_offset == 0
    assert magic == b"ARM\x64"
    assert flags == 0b1010  # little endian, 4 KiB pages, anywhere
    assert RAM_BASE + image_size == SELFTEST.end
    target, size, end, entry = struct.unpack_from("<4Q", IMAGE, 0x40)
    assert (target, end, entry) == (SELFTEST.start, SELFTEST.end, SELFTEST.entry)
    assert HEAD_SIZE + size == len(IMAGE)
    for address, content in SELFTEST.segments:
        assert IMAGE[HEAD_SIZE + address - target :][: len(content)] == content


def test_a_guest_without_memory_behind_it_is_refused() -> None:
    with pytest.raises(UsageError, match="too little memory"):
        flat_image(assemble("    b ."), program_path("image"))


def elf_around(image: bytes, address: int) -> bytes:
    """An executable that is nothing but the Image, loaded there."""
    head = struct.pack("<16sHHIQQQIHHHHHH", b"\x7fELF\x02\x01\x01", 2, 183, 1, address, 64, 0, 0, 64, 56, 1, 64, 0, 0)
    return head + struct.pack("<IIQQQQQQ", 1, 7, 120, address, address, len(image), len(image), 8) + image


def places() -> list[int]:
    """Far away, exactly where it goes, with every kind of overlap, across the page that moves it, and at random."""
    start, end, size = SELFTEST.start, SELFTEST.end, len(IMAGE)
    some = [RAM_BASE + 0x20_0000, 0x4300_0000, start - HEAD_SIZE, start, start + 0x1000, start - 0x1008, start + 0x18]
    some += [start - size // 2 & ~7, start - size & ~0xFFF, start + size // 2 & ~7, end - 0x1000, end - 0x2000, end]
    some += [end - size & ~7, end - 2 * size & ~7, end - size - 0x2000 & ~7]
    seed = random.SystemRandom().randrange(1 << 32)
    print(f"seed {seed}")
    return some + [random.Random(seed + i).randrange(start - size, end) & ~7 for i in range(10)]


@pytest.mark.machine
@pytest.mark.parametrize("kind", KINDS)
def test_it_moves_from_anywhere(kind: str, tmp_path: Path) -> None:
    for address in places() if kind == "unicorn" else places()[:8]:
        path = tmp_path / "guest.elf"
        path.write_bytes(elf_around(IMAGE, address))
        with open_machine(kind, MachineConfig(vcpus=2, engine=engine(kind))) as machine:
            transcript = run_to_end(machine, path, DEADLINE)
        assert transcript.ok, (hex(address), transcript)


@pytest.mark.machine
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("text_offset", [0, 0x8_0000, 0x1F_F000])
def test_our_machines_boot_it(kind: str, text_offset: int, tmp_path: Path) -> None:
    path = tmp_path / "Image"
    path.write_bytes(IMAGE[:8] + struct.pack("<Q", text_offset) + IMAGE[16:])
    with open_machine(kind, MachineConfig(vcpus=2, engine=engine(kind))) as machine:
        transcript = run_to_end(machine, path, DEADLINE)
    assert transcript.ok, transcript


# -- the suite itself


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("export") / "deep" / "down"
    assert main(["conform", "--export", str(directory)]) == 0
    return directory


def test_what_is_exported(exported: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert sorted(path.name for path in exported.iterdir()) == ["Image", "README.md"]
    image = read_image(exported / "Image", RAM_BASE, 64 << 20)
    assert image.kind == "Image"
    text = (exported / "README.md").read_text("utf-8")
    guest = read_image(program_path("conform"), RAM_BASE, 64 << 20)
    assert f"{guest.start:#x}" in text
    assert f"{guest.end:#x}" in text
    assert "@" not in text
    assert main(["conform", "--export", str(exported / "Image")]) == 2
    assert "is no directory" in capsys.readouterr().err
    assert main(["conform", "--export", "/proc/nothing"]) == 2
    assert "cannot write into /proc/nothing" in capsys.readouterr().err


@pytest.mark.machine
@pytest.mark.parametrize("kind", KINDS)
def test_the_exported_suite_runs(kind: str, exported: Path) -> None:
    config = MachineConfig(vcpus=2, engine=engine(kind))
    report = run_suite(kind, config, guest=exported / "Image", only=["mask."], conduits=[Conduit.SMC])
    assert report.ok
    assert report.totals()["passed"] > 0


@pytest.mark.qemu
@NEEDS_QEMU
@pytest.mark.parametrize("where", [None, 0x4800_0000, 0x4040_0000])
def test_on_a_machine_without_sdei_it_says_so(where: int | None, exported: Path) -> None:
    image = str(exported / "Image")
    qemu = shutil.which("qemu-system-aarch64")
    assert qemu is not None
    command = [qemu, "-machine", "virt", "-cpu", "cortex-a72", "-m", "256", "-smp", "2", "-nodefaults"]
    command += ["-display", "none", "-serial", "stdio", "-no-reboot"]
    if where is None:
        command += ["-kernel", image, "-append", "only=mask"]
    else:
        command += ["-device", f"loader,file={image},addr={where:#x},force-raw=on"]
        command += ["-device", f"loader,addr={where:#x},cpu-num=0"]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=DEADLINE, check=True)
    report = report_of_log(done.stdout, "QEMU")
    assert report.runs[0].problems == ["there was no test to run: no /firmware/sdei in the device tree"]
    assert not report.ok
