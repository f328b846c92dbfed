# SPDX-License-Identifier: Apache-2.0
"""Damaged ELF files, Images and Image.gz: a guest that fits, or an ImageError; and what is accepted is run."""

from __future__ import annotations

import functools
import gzip
import itertools
import os
import random
import signal
import struct
import subprocess
import sys
import time
import tracemalloc
import zlib
from pathlib import Path

import pytest

from sdeivirt.errors import ImageError
from sdeivirt.guests import guest_path
from sdeivirt.machine import MachineConfig, open_machine
from sdeivirt.machine.images import GuestImage, read_image

from .asm import assemble
from .control_support import environment
from .test_images import RAM, SIZE, image_header

EHDR, PHDR = 64, 56
# ELF header, by offset and size; program header.
EHDR_FIELDS = [
    (16, 2),
    (18, 2),
    (20, 4),
    (24, 8),
    (32, 8),
    (40, 8),
    (48, 4),
    (52, 2),
    (54, 2),
    (56, 2),
    (58, 2),
    (60, 2),
]
PHDR_FIELDS = [(0, 4), (4, 4), (8, 8), (16, 8), (24, 8), (32, 8), (40, 8), (48, 8)]
IMAGE_FIELDS = [(0, 4), (8, 8), (16, 8), (24, 8), (56, 4)]
NUMBERS = [
    *(0, 1, 2, 3, 4, 8, 55, 56, 57, 64, 0xFFF, 0x1000, 1024, 1025, 0x1F_FFFF, 0x20_0000, 0x7FFF_FFFF, 0x8000_0000),
    *(0xFFFF, 0xFFFE, 0xFFFF_FFFF, 1 << 62, 1 << 63, (1 << 63) - 1, (1 << 64) - 1, (1 << 64) - 0x1000),
    *(RAM, RAM - 1, RAM + 1, RAM + 0x8_0000, RAM + SIZE - 4, RAM + SIZE - 1, RAM + SIZE, RAM + SIZE + 1),
]


@functools.cache
def originals() -> dict[str, bytes]:
    """Sound files of every kind."""
    elf = guest_path("listen").read_bytes()
    image = image_header(0x8_0000) + bytes(range(256)) * 4
    return {
        "ELF": elf,
        "small ELF": assemble("    b .").read_bytes(),
        "Image": image,
        "old Image": image_header(0, 0) + bytes(100),
        "Image.gz": gzip.compress(image, mtime=0),
        "ELF.gz": gzip.compress(elf[:8000] + elf[8000:], mtime=0),
    }


def program_headers(elf: bytes | bytearray) -> list[int]:
    offset, count = struct.unpack_from("<Q", elf, 32)[0], struct.unpack_from("<H", elf, 56)[0]
    return [offset + i * PHDR for i in range(count)]


def assert_one_sentence(error: ImageError) -> None:
    assert error.message
    assert error.hint
    assert len(str(error)) < 500
    assert "\n" not in str(error)


def read(path: Path, data: bytes | bytearray) -> GuestImage | None:
    """The guest in a file, checked; None where it is refused, in one sentence."""
    path.write_bytes(data)
    try:
        image = read_image(path, RAM, SIZE)
    except ImageError as error:
        assert_one_sentence(error)
        return None
    places = sorted((address, address + len(content)) for address, content in image.segments)
    assert all(below[1] <= above[0] for below, above in itertools.pairwise(places))
    assert RAM <= image.start == places[0][0]
    assert places[-1][1] <= image.end <= RAM + SIZE
    assert image.start <= image.entry < image.end
    assert image.entry % 4 == 0
    return image


def splat(data: bytearray, at: int, size: int, value: int) -> None:
    data[at : at + size] = (value & ((1 << 8 * size) - 1)).to_bytes(size, "little")


def mutate(kind: str, chance: random.Random) -> bytes:
    """A file of that kind with something wrong with it."""
    data = bytearray(originals()[kind])
    is_elf = data.startswith(b"\x7fELF")
    fields = list(EHDR_FIELDS) if is_elf else list(IMAGE_FIELDS)
    headers = EHDR
    if is_elf:
        places = program_headers(data)
        headers = places[-1] + PHDR
        for place in places:
            fields += [(place + at, size) for at, size in PHDR_FIELDS]
    for _ in range(chance.choice((1, 1, 1, 2, 4))):
        what = chance.randrange(6)
        if not data:
            break
        if what == 0:
            data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
        elif what == 1:
            data[chance.randrange(min(headers, len(data)))] ^= 1 << chance.randrange(8)
        elif what in (2, 3):
            at, size = chance.choice(fields)
            splat(data, at, size, chance.choice(NUMBERS) + chance.choice((0, 0, 0, 1, -1, 4)))
        elif what == 4:
            at, size = chance.choice(fields)
            splat(
                data,
                at,
                size,
                int.from_bytes(data[at : at + size], "little") + chance.choice((-4096, -8, -1, 1, 8, 4096)),
            )
        else:
            del data[chance.choice((chance.randrange(len(data)), chance.randrange(min(headers, len(data))))) :]
    return bytes(data)


def campaign(path: Path, count: int, seed: int) -> int:
    """Read damaged files; how many were taken for guests."""
    print(f"seed {seed}")
    chance = random.Random(seed)
    kinds = list(originals())
    return sum(read(path, mutate(chance.choice(kinds), chance)) is not None for _ in range(count))


def test_the_originals_are_sound(tmp_path: Path) -> None:
    for data in originals().values():
        assert read(tmp_path / "guest", data) is not None


def test_damaged_files(tmp_path: Path) -> None:
    count = 2000
    assert 0 < campaign(tmp_path / "guest", count, random.randrange(1 << 32)) < count


@pytest.mark.campaign
@pytest.mark.parametrize("seed", range(4))
def test_a_hundred_thousand_damaged_files(tmp_path: Path, seed: int) -> None:
    count = 25_000
    assert 0 < campaign(tmp_path / "guest", count, seed) < count


@pytest.mark.parametrize("kind", ["small ELF", "Image", "Image.gz", "ELF.gz"])
def test_every_truncation_that_matters(tmp_path: Path, kind: str) -> None:
    data = originals()[kind]
    lengths = {*range(min(len(data), 320)), *range(max(0, len(data) - 20), len(data))}
    if kind == "small ELF":
        for place in program_headers(data):
            offset, size = struct.unpack_from("<Q", data, place + 8)[0], struct.unpack_from("<Q", data, place + 32)[0]
            lengths |= {edge + i for edge in (place, place + PHDR, offset, offset + size) for i in (-1, 0, 1)}
    for length in lengths:
        image = read(tmp_path / "guest", data[: max(length, 0)])
        if "gz" in kind:
            assert image is None  # its checksum is missing


def test_every_wrong_bit_in_the_headers(tmp_path: Path) -> None:
    for kind, size in (("Image", 64), ("small ELF", EHDR + PHDR)):
        data = originals()[kind]
        accepted = 0
        for bit in range(8 * size):
            damaged = bytearray(data)
            damaged[bit // 8] ^= 1 << bit % 8
            accepted += read(tmp_path / "guest", damaged) is not None
        assert 0 < accepted < 8 * size


# -- made to measure


def elf(*segments: tuple[int, int, int, int], size: int = 0x2000, **header: int) -> bytearray:
    """An ELF file with segments (address, offset, bytes in the file, in memory). Entered at the first."""
    values = {"phentsize": PHDR, "phnum": len(segments), "phoff": EHDR, "entry": segments[0][0] if segments else 0}
    values |= {"shoff": 0, "shentsize": 64, "shnum": 0, "shstrndx": 0} | header
    data = bytearray(struct.pack(
        "<4sBBBB8xHHIQQQIHHHHHH", b"\x7fELF", 2, 1, 1, 0, 2, 183, 1, values["entry"], values["phoff"], values["shoff"],
        0, EHDR, values["phentsize"], values["phnum"], values["shentsize"], values["shnum"], values["shstrndx"],
    ))  # fmt: skip
    for address, offset, count, memory in segments:
        data += struct.pack("<IIQQQQQQ", 1, 7, offset, address, address, count, memory, 0x1000)
    return data + bytes(max(0, size - len(data)))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (elf((RAM, 0x1000, 16, 1 << 63)), "RAM is"),
        (elf((RAM, 0x1000, 1 << 63, 1 << 63)), "not all there"),
        (elf((RAM, 0x1000, 16, 8)), "not all there"),
        (elf((RAM, 1 << 63, 16, 16)), "not all there"),
        (elf(((1 << 64) - 16, 0x1000, 16, 4096)), "RAM is"),
        (elf((RAM - 8, 0x1000, 16, 16)), "link it at"),
        (elf((RAM, 0, 4096, 8192), (RAM + 8191, 0, 4096, 4096)), "overlap at 0x40001fff"),
        (elf(*[(RAM, 0, 4096, 4096)] * 1000), "overlap"),
        (elf(*[(RAM + i * 0x2000, 0, 0x2000, 0x2000) for i in range(1025)]), "1025 program headers"),
        (elf((RAM, 0, 16, 16), phnum=0xFFFF), "65535 program headers"),
        (elf((RAM, 0, 16, 16), phnum=500, phentsize=0), "not all there"),
        (elf((RAM, 0, 16, 16), phentsize=57), "not all there"),
        (elf((RAM, 0, 16, 16), phnum=200), "not all there"),
        (elf((RAM, 0, 16, 16), phoff=(1 << 64) - 8), "not all there"),
        (elf((RAM, 0, 16, 16), phoff=1 << 63), "not all there"),
        (elf((RAM, 0, 16, 16), entry=RAM + 16), "no address in it"),
        (elf((RAM, 0, 16, 16), entry=RAM - 4), "no address in it"),
        (elf((RAM, 0, 16, 16), entry=RAM + 2), "no address in it"),
        (elf((RAM, 0, 16, 16), (RAM + SIZE - 16, 0, 16, 17)), "give --memory 65M"),
        (elf((RAM, 0, 16, 0)), "nothing to load"),
        (elf(), "nothing to load"),
    ],
)  # fmt: skip
def test_headers_that_lie(tmp_path: Path, data: bytearray, message: str) -> None:
    (tmp_path / "guest").write_bytes(data)
    tracemalloc.start()
    try:
        with pytest.raises(ImageError, match=message):
            read_image(tmp_path / "guest", RAM, SIZE)
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()


def test_headers_that_are_odd_and_true(tmp_path: Path) -> None:
    image = read(tmp_path / "guest", elf((RAM, 0, 16, 16), (RAM + 0x1000, 1 << 63, 0, 4096)))
    assert image is not None  # a segment of zeroes only; where it would be in the file says nothing
    assert image.end == RAM + 0x2000
    image = read(tmp_path / "guest", elf((RAM + SIZE - 16, 0, 16, 16), (RAM, 16, 16, SIZE - 16)))
    assert image is not None
    assert (image.start, image.end) == (RAM, RAM + SIZE)


@pytest.mark.parametrize("kind", [2, 3, 4, 0x6474_E550])  # PT_DYNAMIC, PT_INTERP, PT_NOTE, PT_GNU_EH_FRAME
def test_sections_are_not_looked_at(tmp_path: Path, kind: int) -> None:
    """A dynamic segment made a library read them all: for ever, or one that is its own string table."""
    for count, section_size in ((0, (1 << 64) - 1), (0xFFFF, 0), (2, 1 << 63)):
        data = elf((RAM, 0, 16, 16), (RAM + 0x1000, 0x800, 64, 64), shoff=0x400, shnum=count, shentsize=0)
        splat(data, EHDR + PHDR, 4, kind)
        data[0x400:0x440] = struct.pack("<IIQQQQIIQQ", 0, 2, 0, 0, 0x800, section_size, 0, 0, 0, 24)
        start = time.process_time()
        assert read(tmp_path / "guest", data) is not None
        assert time.process_time() - start < 1


# -- gzip


def bomb(head: bytes, mebibytes: int) -> bytes:
    """`head` and so much of zeroes, packed without packing them all."""
    packer = zlib.compressobj(9, wbits=-15)
    start = packer.compress(head) + packer.flush(zlib.Z_FULL_FLUSH)
    zeroes = packer.compress(bytes(1 << 20)) + packer.flush(zlib.Z_FULL_FLUSH)
    return b"\x1f\x8b\x08\0\0\0\0\0\x02\xff" + start + zeroes * mebibytes + b"\x03\0" + bytes(8)


@pytest.mark.parametrize(
    ("head", "message", "memory"),
    [
        (b"", "no AArch64 ELF file", 8),
        (image_header(0x8_0000), "more than 64 MiB", 2.5 * 64),
        (bytes(elf((RAM, 0, 16, 16))), "more than 64 MiB", 2.5 * 64),
        (gzip.compress(bytes(100), mtime=0), "no AArch64 ELF file", 8),
    ],
)
def test_a_gzip_bomb_is_not_unpacked(tmp_path: Path, head: bytes, message: str, memory: float) -> None:
    """Four GiB in four MiB: no more comes of them than could be loaded, nothing where the first bytes are no guest."""
    (tmp_path / "guest").write_bytes(bomb(head, 4096))
    tracemalloc.start()
    try:
        with pytest.raises(ImageError, match=message):
            read_image(tmp_path / "guest", RAM, SIZE)
        assert tracemalloc.get_traced_memory()[1] < memory * (1 << 20)
    finally:
        tracemalloc.stop()


def test_an_image_gz_whose_last_bytes_unpack_to_a_lot_is_whole(tmp_path: Path) -> None:
    """The packed data is used up long before the last of the zeroes is there."""
    for count in (1 << 20, (1 << 20) - 64, (3 << 20) + 1):
        image = read(tmp_path / "guest", gzip.compress(image_header(0x8_0000) + bytes(count)))
        assert image is not None
        assert len(image.segments[0][1]) == 64 + count


# -- what is accepted is run


def boot(folder: Path, numbers: range, seed: int) -> None:
    """Boot damaged guests for a moment each, in this process. Says which before it does."""
    path = folder / "guest"
    for number in numbers:
        chance = random.Random(f"{seed} {number}")
        image = None
        while image is None:
            data = bytearray(mutate(chance.choice(("ELF", "small ELF", "Image")), chance))
            for _ in range(chance.choice((0, 3, 100))):  # its code as well
                if data:
                    data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
            image = read(path, data)
        print(number, flush=True)
        with open_machine("unicorn", MachineConfig(vcpus=2, memory=SIZE)) as machine:
            try:
                machine.load(path)
            except ImageError as error:
                assert "no room for the device tree" in error.message  # noqa: PT017 (in a process of its own)
                continue
            machine.start()
            outcome = machine.wait(0.02)
            assert all(fault.render() for fault in outcome.faults)
            assert machine.status().state == "stopped"
    print("done", flush=True)


def boot_in_processes(folder: Path, count: int, seed: int) -> None:
    """The engine aborts on some encodings that are unallocated (docs/hostile.md), and its process dies.

    That is all that may happen, and it is rare: it goes on with the next guest.
    """
    print(f"seed {seed}")
    first, died = 0, []
    while first < count:
        numbers = range(first, count)
        program = (
            f"import pathlib, sys; from {__name__} import boot; boot(pathlib.Path(sys.argv[1]), {numbers}, {seed})"
        )
        done = subprocess.run(
            [sys.executable, "-c", program, os.fspath(folder)],
            env=environment(folder), cwd=Path(__file__).parents[1], capture_output=True, text=True, timeout=300,
        )  # fmt: skip
        said = done.stdout.splitlines()
        assert "Traceback" not in done.stderr, done.stderr
        if done.returncode == 0:
            assert said[-1] == "done"
            break
        assert done.returncode == -signal.SIGABRT, (seed, done.returncode, said[-1:], done.stderr)
        died.append(int(said[-1]))
        first = died[-1] + 1
    print(f"the engine has aborted in {died}")
    assert len(died) <= 1 + count // 50


@pytest.mark.machine
@pytest.mark.process
def test_damaged_guests_run_into_nothing_but_faults(tmp_path: Path) -> None:
    boot_in_processes(tmp_path, 40, random.randrange(1 << 32))


@pytest.mark.machine
@pytest.mark.process
@pytest.mark.campaign
@pytest.mark.parametrize("seed", range(2))
def test_many_damaged_guests_run_into_nothing_but_faults(tmp_path: Path, seed: int) -> None:
    boot_in_processes(tmp_path, 300, seed)
