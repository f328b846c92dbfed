# SPDX-License-Identifier: Apache-2.0
"""Guest images: AArch64 ELF executables and arm64 Images, packed by gzip or not, read with suspicion.

The arm64 Image header (Linux Documentation/arch/arm64/booting.rst): text_offset
at 8, image_size at 16, flags at 24, magic "ARM\\x64" at 56, all little endian.
"""

from __future__ import annotations

import io
import struct
import zlib
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import BinaryIO

from ..errors import ImageError
from ..files import cannot_read, open_regular

__all__ = ["GuestImage", "read_image"]

_ELF_MAGIC = b"\x7fELF"
_IMAGE_MAGIC = b"ARM\x64"
_GZIP = b"\x1f\x8b"
_ZBOOT = b"zimg"  # at offset 4: Linux drivers/firmware/efi/libstub/zboot-header.S
_IMAGE_HEADER = struct.Struct("<8xQQQ24x4s4x")
_ELF_HEADER = struct.Struct("<4s12x2H4x2Q12x3H6x")
_PROGRAM_HEADER = struct.Struct("<I4xQ8x3Q8x")
_ELF64, _LITTLE_ENDIAN, _EXECUTABLE, _AARCH64, _LOAD = 2, 1, 2, 183, 1
_MACHINES = {
    3: "x86",
    8: "MIPS",
    21: "PowerPC64",
    40: "32-bit Arm",
    62: "x86-64",
    183: "another form of Arm",
    243: "RISC-V",
}
_TYPES = {1: "an object file", 3: "a shared object, as position-independent ones are", 4: "a core dump"}
_MAX_PROGRAM_HEADERS = 1024  # Linux runs programs of up to 1,170
_AGAIN = "build or copy it again"
_NAME_ONE = "give the path of an ELF file or arm64 Image"
_LOAD_ALIGN = 2 << 20
_DTB_ALIGN = 0x1_0000
_CHUNK = 1 << 20


@dataclass(frozen=True, slots=True)
class GuestImage:
    """What to put where: (address, bytes) segments, the memory they need to `end`, the entry point."""

    kind: str  # ELF or Image
    segments: list[tuple[int, bytes]]
    entry: int
    start: int
    end: int

    def place(self, tree: int, ram_base: int, ram_end: int) -> int:
        """Where a device tree of `tree` bytes goes: below the guest, as QEMU does, if there is room; else above.

        Raises ImageError where neither will do.
        """
        at = ram_base
        if self.start < ram_base + tree:
            at = -(-self.end // _DTB_ALIGN) * _DTB_ALIGN
        if at + tree > ram_end:
            raise ImageError("the guest leaves no room for the device tree", "give it more --memory")
        return at


@dataclass(frozen=True, slots=True)
class _Part:
    """What goes to `address`: `size` bytes from `offset` in the file, then zeroes up to `end`."""

    address: int
    offset: int
    size: int
    end: int


@dataclass(frozen=True, slots=True)
class _Plan:
    """What the headers of a file claim; the rest of it has not been read."""

    kind: str
    parts: list[_Part]
    entry: int


def read_image(path: Path, ram_base: int, ram_size: int) -> GuestImage:
    """Read a guest from a file, to be loaded into RAM at `ram_base`.

    No more is read than goes into RAM, whatever the headers claim. Raises
    ImageError for what is no AArch64 ELF executable or arm64 Image, is cut
    short, or does not fit.
    """
    try:
        with open_regular(path, ImageError, _NAME_ONE) as file:
            head = file.read(_IMAGE_HEADER.size)
            if not head.startswith(_GZIP):
                return _read(path, file, head, ram_base, ram_size)
            with io.BytesIO(_gunzip(path, file, ram_size)) as unpacked:
                return _read(path, unpacked, unpacked.read(_IMAGE_HEADER.size), ram_base, ram_size)
    except OSError as error:
        raise cannot_read(path, error, ImageError, _NAME_ONE) from error


def _is_elf(head: bytes) -> bool:
    return head.startswith(_ELF_MAGIC)


def _is_image(head: bytes) -> bool:
    return len(head) >= _IMAGE_HEADER.size and head[56:60] == _IMAGE_MAGIC


def _read(path: Path, file: BinaryIO, head: bytes, ram_base: int, ram_size: int) -> GuestImage:
    size = file.seek(0, io.SEEK_END)
    if _is_elf(head):
        plan = _elf(path, file, head, size)
    elif _is_image(head):
        plan = _image(path, head, size, ram_base)
    else:
        raise ImageError(
            f"{path} is no AArch64 ELF file and no arm64 Image",
            "an EFI zboot image (vmlinuz.efi) must be unpacked first"
            if head[4:8] == _ZBOOT
            else "build one with -target aarch64, or give the kernel's arch/arm64/boot/Image",
        )
    start, end = min(part.address for part in plan.parts), max(part.end for part in plan.parts)
    ram_end = ram_base + ram_size
    if start < ram_base or end > ram_end:
        need = max(end - ram_base, 0)
        hint = (
            f"it needs {-(-need >> 20)}M: give --memory {-(-need >> 20)}M or more"
            if start >= ram_base
            else f"link it at {ram_base:#x} or above"
        )
        raise ImageError(f"{path} occupies {start:#x} to {end:#x}, RAM is {ram_base:#x} to {ram_end:#x}", hint)
    if not any(part.address <= plan.entry < part.end for part in plan.parts) or plan.entry & 3:
        raise ImageError(f"{path} starts at {plan.entry:#x}, which is no address in it", "check its entry symbol")
    segments = []
    for part in plan.parts:
        content = b""
        if part.size:  # without content, the offset can be any number
            file.seek(part.offset)
            content = file.read(part.size)
        if len(content) != part.size:
            raise ImageError(f"{path} was cut short while it was read", "try again")
        segments.append((part.address, content))
    return GuestImage(plan.kind, segments, plan.entry, start, end)


def _gunzip(path: Path, file: BinaryIO, limit: int) -> bytearray:
    """An Image.gz unpacked: no more of it than could be loaded, and little of what is no guest."""
    unpacker = zlib.decompressobj(wbits=16 + zlib.MAX_WBITS)
    unpacked = bytearray()
    file.seek(0)
    try:
        while not unpacker.eof and len(unpacked) <= limit:
            packed = unpacker.unconsumed_tail or file.read(_CHUNK)
            more = unpacker.decompress(packed, _CHUNK)
            if not packed and not more:
                break
            unpacked += more
            head = bytes(unpacked[: _IMAGE_HEADER.size])
            if len(head) == _IMAGE_HEADER.size and not _is_elf(head) and not _is_image(head):
                return unpacked
    except zlib.error as error:
        raise ImageError(f"{path} is a damaged gzip file: {error}", _AGAIN) from error
    if not unpacker.eof or len(unpacked) > limit:
        raise ImageError(
            f"{path} is cut short, or unpacks to more than {limit >> 20} MiB", f"{_AGAIN}, or give it more --memory"
        )
    return unpacked


def _elf(path: Path, file: BinaryIO, head: bytes, size: int) -> _Plan:
    """Only the program headers count: a guest is loaded whatever its sections are."""
    if len(head) < _ELF_HEADER.size:
        raise ImageError(f"{path} is a damaged ELF file: its header is cut short", _AGAIN)
    _magic, kind, machine, entry, offset, _header_size, entry_size, count = _ELF_HEADER.unpack(head)
    if (head[4], head[5], machine) != (_ELF64, _LITTLE_ENDIAN, _AARCH64):
        what = _MACHINES.get(machine, f"machine {machine}")
        raise ImageError(
            f"{path} is an ELF file for {what}, not for little-endian AArch64", "build it with -target aarch64"
        )
    if kind != _EXECUTABLE:
        raise ImageError(
            f"{path} is no executable but {_TYPES.get(kind, f'of type {kind}')}",
            "link it with -static and without -pie",
        )
    if count > _MAX_PROGRAM_HEADERS:
        raise ImageError(f"{path} has {count} program headers", f"a guest may have {_MAX_PROGRAM_HEADERS}")
    if count and (entry_size != _PROGRAM_HEADER.size or offset + count * _PROGRAM_HEADER.size > size):
        raise ImageError(f"{path} is cut short or damaged: its program headers are not all there", _AGAIN)
    parts = []
    for i in range(count):
        file.seek(offset + i * _PROGRAM_HEADER.size)
        header = file.read(_PROGRAM_HEADER.size)
        if len(header) < _PROGRAM_HEADER.size:
            raise ImageError(f"{path} was cut short while it was read", "try again")
        kind, where, address, filled, needed = _PROGRAM_HEADER.unpack(header)
        if kind != _LOAD or not needed:
            continue
        if needed < filled or (filled and where + filled > size):
            raise ImageError(f"{path} is cut short or damaged: a segment is not all there", _AGAIN)
        parts.append(_Part(address, where, filled, address + needed))
    if not parts:
        raise ImageError(f"{path} has nothing to load", "it needs PT_LOAD segments: link it as an executable")
    for below, above in pairwise(sorted(parts, key=lambda part: part.address)):
        if above.address < below.end:
            raise ImageError(
                f"{path} is damaged: two segments overlap at {above.address:#x}", "check its linker script"
            )
    return _Plan("ELF", parts, entry)


def _image(path: Path, head: bytes, size: int, ram_base: int) -> _Plan:
    text_offset, image_size, flags, _magic = _IMAGE_HEADER.unpack(head)
    if flags & 1:
        raise ImageError(f"{path} is a big-endian Image", "build a little-endian kernel")
    if image_size == 0:
        text_offset, image_size = 0x8_0000, size  # before Linux v3.17
    if text_offset >= _LOAD_ALIGN or text_offset % 4:
        raise ImageError(f"{path} is damaged: text_offset is {text_offset:#x}", _AGAIN)
    start = ram_base + text_offset
    return _Plan("Image", [_Part(start, 0, size, start + max(image_size, size))], start)
