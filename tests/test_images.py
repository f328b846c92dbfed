# SPDX-License-Identifier: Apache-2.0
"""Guest files, sound and damaged."""

from __future__ import annotations

import contextlib
import gzip
import random
import struct
from pathlib import Path

import pytest

from sdeivirt.errors import ImageError
from sdeivirt.machine.images import read_image

from .asm import assemble

RAM, SIZE = 0x4000_0000, 64 << 20


def image_header(text_offset: int = 0, image_size: int = 0x2000, flags: int = 0xA) -> bytes:
    return struct.pack("<IIQQQ24x4sI", 0x14000010, 0, text_offset, image_size, flags, b"ARM\x64", 0)


def write(tmp_path: Path, data: bytes | bytearray) -> Path:
    path = tmp_path / "guest"
    path.write_bytes(data)
    return path


def test_an_elf_file_is_read() -> None:
    image = read_image(assemble("    b ."), RAM, SIZE)
    assert image.kind == "ELF"
    assert image.entry == 0x4008_0000
    assert RAM <= image.start <= image.entry < image.end < RAM + SIZE


def test_an_arm64_image_is_read(tmp_path: Path) -> None:
    image = read_image(write(tmp_path, image_header(0x8000) + bytes(64)), RAM, SIZE)
    assert (image.kind, image.entry, image.end) == ("Image", RAM + 0x8000, RAM + 0xA000)


def test_an_image_gz_is_unpacked(tmp_path: Path) -> None:
    data = image_header(0x8000) + bytes(64)
    assert read_image(write(tmp_path, gzip.compress(data)), RAM, SIZE).segments == [(RAM + 0x8000, data)]


# mtime=0: gzip writes the time of day otherwise, and each worker would give the test another name.
@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "no AArch64 ELF file and no arm64 Image"),
        (b"hello, world\n" * 10, "no AArch64 ELF file and no arm64 Image"),
        (b"\x1f\x8b" + bytes(100), "damaged gzip file"),
        (gzip.compress(image_header() + bytes(64), mtime=0)[:-9], "cut short"),
        (gzip.compress(image_header() + bytes(SIZE), mtime=0), "more than 64 MiB"),
        (gzip.compress(b"hello", mtime=0), "no AArch64 ELF file"),
        (b"MZ\0\0zimg" + bytes(100), "zboot image"),
        (b"\x7fELF", "damaged"),
        (b"\x7fELF" + bytes(100), "for machine 0"),
        (image_header(flags=1), "big-endian"),
        (image_header(text_offset=1 << 62), "damaged"),
        (image_header(image_size=1 << 62), "RAM is"),
        (image_header(image_size=SIZE + 1), "--memory"),
    ],
)
def test_what_is_no_guest_is_refused(tmp_path: Path, data: bytes, message: str) -> None:
    with pytest.raises(ImageError) as caught:
        read_image(write(tmp_path, data), RAM, SIZE)
    assert message in str(caught.value)


def test_a_missing_file_and_a_directory(tmp_path: Path) -> None:
    for path in (tmp_path / "none", tmp_path):
        with pytest.raises(ImageError, match="cannot read"):
            read_image(path, RAM, SIZE)


def test_an_elf_file_for_another_machine_or_kind(tmp_path: Path) -> None:
    data = bytearray(assemble("    b .").read_bytes())
    other = bytearray(data)
    struct.pack_into("<H", other, 18, 62)  # e_machine = x86-64
    with pytest.raises(ImageError, match="x86-64"):
        read_image(write(tmp_path, other), RAM, SIZE)
    struct.pack_into("<H", data, 16, 3)  # e_type = ET_DYN
    with pytest.raises(ImageError, match="shared object"):
        read_image(write(tmp_path, data), RAM, SIZE)


def test_every_truncation_of_an_elf_file_is_an_error_or_a_guest(tmp_path: Path) -> None:
    data = assemble("    b .").read_bytes()
    for length in range(0, len(data), max(1, len(data) // 400)):
        with contextlib.suppress(ImageError):
            read_image(write(tmp_path, data[:length]), RAM, SIZE)


def test_flipped_bits_in_an_elf_file_are_an_error_or_a_guest(tmp_path: Path) -> None:
    data = assemble("    b .").read_bytes()
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    for _ in range(2000):
        damaged = bytearray(data)
        for _ in range(chance.choice((1, 1, 2, 8))):
            damaged[chance.randrange(min(len(damaged), 512))] ^= 1 << chance.randrange(8)
        with contextlib.suppress(ImageError):
            image = read_image(write(tmp_path, damaged), RAM, SIZE)
            assert RAM <= image.start <= image.end <= RAM + SIZE
