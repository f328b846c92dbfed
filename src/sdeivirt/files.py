# SPDX-License-Identifier: Apache-2.0
"""Files that a user names: opened with suspicion, read no further than they can be of use.

A FIFO would have us wait for a writer, a device such as /dev/zero never ends,
and a sparse file is bigger than any memory. So only regular files are read,
and only up to a limit.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import BinaryIO

from .errors import UsageError

__all__ = ["amount", "cannot_read", "open_regular", "read_regular"]

_CHUNK = 1 << 20
_KINDS = {
    stat.S_IFDIR: "a directory",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
}


def cannot_read(path: Path, error: OSError, kind: type[UsageError], hint: str) -> UsageError:
    """An error of that kind for a read that failed."""
    return kind(f"cannot read {path}: {error.strerror}", hint)


def open_regular(path: Path, kind: type[UsageError], hint: str) -> BinaryIO:
    """Open a regular file for reading. Raises an error of that kind."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
    except OSError as error:
        raise cannot_read(path, error, kind, hint) from error
    except ValueError as error:  # a NUL in the name
        raise kind(f"{str(path)!r} cannot be the name of a file", hint) from error
    file_type = stat.S_IFMT(os.fstat(fd).st_mode)
    if file_type != stat.S_IFREG:
        os.close(fd)
        raise kind(f"cannot read {path}: it is {_KINDS.get(file_type, 'no file')}", hint)
    return open(fd, "rb")


def read_regular(path: Path, limit: int, kind: type[UsageError], hint: str, too_big: str) -> bytes:
    """The whole of a regular file of at most `limit` bytes. Raises an error of that kind; `too_big` is a hint."""
    with open_regular(path, kind, hint) as file:
        try:
            size = os.fstat(file.fileno()).st_size
            if size <= limit:
                content = bytearray()
                # It may grow while it is read.
                while len(content) <= limit and (data := file.read(min(limit + 1 - len(content), _CHUNK))):
                    content += data
                size = len(content)
        except OSError as error:
            raise cannot_read(path, error, kind, hint) from error
    if size > limit:
        raise kind(f"{path} has more than {amount(limit)}", too_big)
    return bytes(content)


def amount(size: int) -> str:
    """A size for people."""
    return f"{size >> 20} MiB" if size >= 1 << 20 else f"{size >> 10} KiB"
