# SPDX-License-Identifier: Apache-2.0
"""Writes cpio archives in the "newc" form, which the kernel unpacks as its initial file system.

The form: Documentation/driver-api/early-userspace/buffer-format.rst in Linux. The same entries give the same bytes:
no times, no owners, inodes by order.
"""

from __future__ import annotations

import stat
from collections.abc import Iterable
from dataclasses import dataclass

__all__ = ["Entry", "archive", "device", "directory", "file", "symlink"]

_MAGIC = b"070701"
_TRAILER = "TRAILER!!!"


@dataclass(frozen=True)
class Entry:
    """One file: its name without a leading slash, its type and permissions as in st_mode, and its contents."""

    name: str
    mode: int
    data: bytes = b""
    device: tuple[int, int] = (0, 0)


def file(name: str, data: bytes, permissions: int = 0o644) -> Entry:
    return Entry(name, stat.S_IFREG | permissions, data)


def directory(name: str) -> Entry:
    return Entry(name, stat.S_IFDIR | 0o755)


def symlink(name: str, target: str) -> Entry:
    return Entry(name, stat.S_IFLNK | 0o777, target.encode())


def device(name: str, major: int, minor: int) -> Entry:
    """A character device."""
    return Entry(name, stat.S_IFCHR | 0o600, device=(major, minor))


def archive(entries: Iterable[Entry]) -> bytes:
    """The archive of `entries`, in their order: a directory has to come before what is in it."""
    parts = [_record(number, entry) for number, entry in enumerate(entries, start=1)]
    parts.append(_record(0, Entry(_TRAILER, 0)))
    return b"".join(parts)


def _record(inode: int, entry: Entry) -> bytes:
    name = entry.name.encode() + b"\0"
    links = 2 if stat.S_ISDIR(entry.mode) else 1
    # ino, mode, uid, gid, nlink, mtime, filesize, devmajor, devminor, rdevmajor, rdevminor, namesize, check
    fields = (inode, entry.mode, 0, 0, links, 0, len(entry.data), 0, 0, *entry.device, len(name), 0)
    head = _MAGIC + b"".join(b"%08X" % field for field in fields) + name
    return _padded(head) + _padded(entry.data)


def _padded(data: bytes) -> bytes:
    return data + b"\0" * (-len(data) % 4)
