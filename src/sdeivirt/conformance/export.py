# SPDX-License-Identifier: Apache-2.0
"""The suite for other machines: the guest as a flat arm64 Image, and a page that says how to boot it.

The guest is linked to a fixed address. The Image's first page (guests/image/head.S) has the
header that boot loaders look for, and code that moves the guest there from wherever it was loaded:

    0x00   header: Linux Documentation/arch/arm64/booting.rst
    0x40   where the guest goes, its bytes in the file, the end of its memory, its entry point: 64 bits each
    0x60   code
    0x1000 the guest's segments, zeroes between them
"""

from __future__ import annotations

import struct
from pathlib import Path

from ..errors import EnvironmentUnavailableError, UsageError
from ..guests import program_path
from ..machine.base import RAM_BASE
from ..machine.images import GuestImage, read_image

__all__ = ["HEAD_SIZE", "export", "flat_image"]

HEAD_SIZE = 0x1000
_IMAGE_SIZE = 16  # offset in the header
_BLANKS = 0x40
_ALIGN = 16
_MEMORY = 1 << 30


def flat_image(guest: Path, head: Path) -> bytes:
    """An arm64 Image of an ELF file. Raises ImageError, and UsageError for one without room for the move."""
    image = read_image(guest, RAM_BASE, _MEMORY)
    payload = _flat(image)
    if image.end - image.start < 2 * (len(payload) + 4 * HEAD_SIZE):
        raise UsageError(
            f"{guest} has too little memory behind its file's contents", "the code that moves it needs room there"
        )
    page = bytearray(HEAD_SIZE)
    (_, code), *_rest = read_image(head, 0, HEAD_SIZE).segments
    page[: len(code)] = code
    # Memory that a loader must leave alone, wherever in RAM it puts us: ours, and that which we move to.
    struct.pack_into("<Q", page, _IMAGE_SIZE, max(image.end - RAM_BASE, HEAD_SIZE + len(payload)))
    struct.pack_into("<4Q", page, _BLANKS, image.start, len(payload), image.end, image.entry)
    return bytes(page) + payload


def _flat(image: GuestImage) -> bytes:
    end = max(address + len(content) for address, content in image.segments)
    flat = bytearray(-(-(end - image.start) // _ALIGN) * _ALIGN)
    for address, content in image.segments:
        flat[address - image.start : address - image.start + len(content)] = content
    return bytes(flat)


def export(directory: Path) -> list[Path]:
    """Write the suite's guest and its README into a directory, which is made if need be; the files.

    Raises EnvironmentUnavailableError where the guest has not been built, UsageError where nothing can be written.
    """
    guest = program_path("conform")
    content = {"Image": flat_image(guest, program_path("image")), "README.md": _readme(guest).encode()}
    files = []
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for name, data in content.items():
            path = directory / name
            path.write_bytes(data)
            files.append(path)
    except FileExistsError as error:
        raise UsageError(f"{directory} is no directory", "choose another one") from error
    except OSError as error:
        raise UsageError(f"cannot write into {directory}: {error.strerror}", "choose another directory") from error
    return files


def _readme(guest: Path) -> str:
    try:
        text = Path(__file__).with_name("image-readme.md").read_text("utf-8")
    except OSError as error:
        raise EnvironmentUnavailableError(f"the package is damaged: {error}", "install it again") from error
    image = read_image(guest, RAM_BASE, _MEMORY)
    return text.replace("@START@", f"{image.start:#x}").replace("@END@", f"{image.end:#x}")
