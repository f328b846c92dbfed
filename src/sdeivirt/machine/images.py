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
from pathlib import Path

from elftools.common.exceptions import ELFError
from elftools.elf.elffile import ELFFile

from ..errors import ImageError

__all__ = ["GuestImage", "read_image"]

_IMAGE_MAGIC = b"ARM\x64"
_GZIP = b"\x1f\x8b"
_ZBOOT = b"zimg"  # at offset 4: Linux drivers/firmware/efi/libstub/zboot-header.S
_IMAGE_HEADER = struct.Struct("<8xQQQ24x4s4x")
_AGAIN = "build or copy it again"
_LOAD_ALIGN = 2 << 20
_DTB_ALIGN = 0x1_0000


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


def read_image(path: Path, ram_base: int, ram_size: int) -> GuestImage:
    """Read a guest from a file, to be loaded into RAM at `ram_base`.

    Raises ImageError for what is no AArch64 ELF executable or arm64 Image,
    is cut short, or does not fit.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ImageError(
            f"cannot read {path}: {error.strerror}", "give the path of an ELF file or arm64 Image"
        ) from error
    if data.startswith(_GZIP):
        data = _gunzip(path, data, ram_size)
    if data.startswith(b"\x7fELF"):
        image = _elf(path, data)
    elif len(data) >= _IMAGE_HEADER.size and data[56:60] == _IMAGE_MAGIC:
        image = _image(path, data, ram_base)
    else:
        raise ImageError(
            f"{path} is no AArch64 ELF file and no arm64 Image",
            "an EFI zboot image (vmlinuz.efi) must be unpacked first"
            if data[4:8] == _ZBOOT
            else "build one with -target aarch64, or give the kernel's arch/arm64/boot/Image",
        )
    ram_end = ram_base + ram_size
    if image.start < ram_base or image.end > ram_end:
        need = max(image.end - ram_base, 0)
        hint = (
            f"it needs {-(-need >> 20)}M: give --memory {-(-need >> 20)}M or more"
            if image.start >= ram_base
            else f"link it at {ram_base:#x} or above"
        )
        raise ImageError(
            f"{path} occupies {image.start:#x} to {image.end:#x}, RAM is {ram_base:#x} to {ram_end:#x}", hint
        )
    if not ram_base <= image.entry < ram_end or image.entry & 3:
        raise ImageError(f"{path} starts at {image.entry:#x}, which is no address in RAM", "check its entry symbol")
    return image


def _gunzip(path: Path, data: bytes, limit: int) -> bytes:
    """An Image.gz unpacked; no more of it than could be loaded."""
    unpacker = zlib.decompressobj(wbits=16 + zlib.MAX_WBITS)
    try:
        unpacked = unpacker.decompress(data, limit)
    except zlib.error as error:
        raise ImageError(f"{path} is a damaged gzip file: {error}", _AGAIN) from error
    if not unpacker.eof:
        raise ImageError(
            f"{path} is cut short, or unpacks to more than {limit >> 20} MiB", f"{_AGAIN}, or give it more --memory"
        )
    return unpacked


def _elf(path: Path, data: bytes) -> GuestImage:
    try:
        elf = ELFFile(io.BytesIO(data))
        machine, bits, kind = elf["e_machine"], elf.elfclass, elf["e_type"]
        if machine != "EM_AARCH64" or bits != 64 or not elf.little_endian:
            raise ImageError(
                f"{path} is an ELF file for {machine}, not for little-endian AArch64", "build it with -target aarch64"
            )
        if kind != "ET_EXEC":
            raise ImageError(f"{path} is no executable but {kind}", "link it with -static and without -pie")
        segments = []
        end = 0
        for segment in elf.iter_segments():
            if segment["p_type"] != "PT_LOAD" or not segment["p_memsz"]:
                continue
            content = data[segment["p_offset"] : segment["p_offset"] + segment["p_filesz"]]
            if len(content) != segment["p_filesz"] or segment["p_memsz"] < segment["p_filesz"]:
                raise ImageError(f"{path} is cut short or damaged: a segment is not all there", _AGAIN)
            segments.append((segment["p_paddr"], content))
            end = max(end, segment["p_paddr"] + segment["p_memsz"])
        entry = elf["e_entry"]
    except ImageError:
        raise
    except (ELFError, OSError, ValueError, KeyError, struct.error, AttributeError, TypeError, IndexError,
            OverflowError, MemoryError, UnicodeDecodeError, AssertionError) as error:  # fmt: skip
        # pyelftools reads what the file claims; a damaged one shows up as any of these.
        raise ImageError(f"{path} is a damaged ELF file: {error or type(error).__name__}", _AGAIN) from error
    if not segments:
        raise ImageError(f"{path} has nothing to load", "it needs PT_LOAD segments: link it as an executable")
    return GuestImage("ELF", segments, entry, min(address for address, _ in segments), end)


def _image(path: Path, data: bytes, ram_base: int) -> GuestImage:
    text_offset, image_size, flags, _magic = _IMAGE_HEADER.unpack_from(data)
    if flags & 1:
        raise ImageError(f"{path} is a big-endian Image", "build a little-endian kernel")
    if image_size == 0:
        text_offset, image_size = 0x8_0000, len(data)  # before Linux v3.17
    if text_offset >= _LOAD_ALIGN:
        raise ImageError(f"{path} is damaged: text_offset is {text_offset:#x}", _AGAIN)
    start = ram_base + text_offset
    return GuestImage("Image", [(start, data)], start, start, start + max(image_size, len(data)))
