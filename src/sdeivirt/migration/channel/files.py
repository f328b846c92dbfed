# SPDX-License-Identifier: Apache-2.0
"""Channels into and out of files.

What is written appears under its name when it is complete, and not before:
until commit() it has no name at all (O_TMPFILE), or, where the file system
cannot do that, one of its own. So neither an error nor a kill leaves half a
guest behind, and a file that is there already is not touched by accident.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import stat
from pathlib import Path

from ...errors import UsageError
from ...files import open_regular
from .base import Channel, ChannelError
from .uri import Uri

__all__ = ["FileChannel", "create_file", "open_file"]

_MOST = 8 << 20
_NO_NAME: int = getattr(os, "O_TMPFILE", 0)
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def create_file(uri: Uri, overwrite: bool = False) -> FileWriter:
    """A channel into a new file; :meth:`FileWriter.commit` gives it its name.

    Raises UsageError for one that exists, unless it is a regular file and to
    be overwritten, and for one that cannot be made.
    """
    return FileWriter(uri, overwrite)


def open_file(uri: Uri) -> FileReader:
    """A channel out of a file. Raises UsageError for what cannot be read, and for what is no regular file."""
    return FileReader(uri)


def _path(uri: Uri) -> Path:
    if uri.scheme != "file":
        raise UsageError(f"{uri} is no file", "write file:PATH")
    return uri.path


class FileChannel(Channel):
    """A file. Nothing stalls here: `stall` is of no effect."""

    def _write(self, views: list[memoryview], wait: bool) -> int:
        raise ChannelError(f"{self.peer} is open for reading")

    def _read(self, view: memoryview) -> int:
        raise ChannelError(f"{self.peer} is open for writing")

    def _end(self) -> None:
        pass

    def _drain(self) -> bool:
        return True


class FileReader(FileChannel):
    """A file that is read. Made by :func:`open_file`."""

    def __init__(self, uri: Uri) -> None:
        self._file = open_regular(_path(uri), UsageError, "give a file that `sdeivirt save` has written")
        try:
            super().__init__(str(uri))
        except BaseException:
            self._file.close()
            raise

    @property
    def fileno(self) -> int:
        return self._file.fileno()

    def _read(self, view: memoryview) -> int:
        try:
            return os.readv(self._file.fileno(), [view[:_MOST]])
        except OSError as error:
            raise ChannelError(f"cannot read {self.peer}: {error.strerror}") from error

    def _close(self, orderly: bool) -> None:
        self._file.close()


class FileWriter(FileChannel):
    """A file that is written. Made by :func:`create_file`; closed without :meth:`commit`, it has never been."""

    _most = _MOST

    def __init__(self, uri: Uri, overwrite: bool) -> None:
        self._path = _path(uri)
        self._overwrite = overwrite
        self._temporary = f".sdeivirt-{secrets.token_hex(8)}"
        self._has_name = False  # the temporary one
        self._fd = self._directory = -1
        try:
            self._directory = os.open(self._path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            self._check_target()
            self._fd = self._make()
            super().__init__(str(uri))
        except OSError as error:
            self._discard()
            raise UsageError(
                f"cannot write {self._path}: {error.strerror}", "give a path that can be written"
            ) from error
        except BaseException:
            self._discard()
            raise

    @property
    def fileno(self) -> int:
        return self._fd

    def _check_target(self) -> None:
        """Raise UsageError if something is there that must stay."""
        if not self._path.name:
            raise UsageError(f"{self._path} is a directory", "give a path that can be written")
        try:
            status = os.stat(self._path.name, dir_fd=self._directory, follow_symlinks=False)
        except FileNotFoundError:
            return
        if not stat.S_ISREG(status.st_mode):
            raise UsageError(f"{self._path} exists, and is no regular file", "choose another path")
        if not self._overwrite:
            raise UsageError(f"{self._path} exists already", "choose another path, or give --overwrite")

    def _make(self) -> int:
        if _NO_NAME:
            with contextlib.suppress(OSError):  # what is wrong, if not this flag, is said by the next attempt
                self._try_names()
                return self._make_unnamed()
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        fd = os.open(self._temporary, flags, 0o600, dir_fd=self._directory)
        self._has_name = True
        return fd

    def _make_unnamed(self) -> int:
        return os.open(".", _NO_NAME | os.O_WRONLY | os.O_CLOEXEC, 0o600, dir_fd=self._directory)

    def _try_names(self) -> None:
        """Raise OSError where a file without a name cannot be given one: better now than when it is complete."""
        fd = self._make_unnamed()
        try:
            self._link(fd, self._temporary)
            os.unlink(self._temporary, dir_fd=self._directory)
        finally:
            os.close(fd)

    def _write(self, views: list[memoryview], wait: bool) -> int:
        try:
            return os.writev(self._fd, views)
        except OSError as error:
            failed = self._failed(error)
            self._discard()
            raise failed from error

    def _failed(self, error: OSError) -> ChannelError:
        hint = "nothing of it was kept"
        if error.errno in _NO_SPACE:
            hint += ": make room, or choose another place"
        return ChannelError(f"{self._path} could not be written: {error.strerror}", hint)

    def commit(self) -> None:
        """It is complete: put it on the disk, and under its name. The channel is closed then.

        Raises ChannelError, and UsageError if a file of that name has appeared;
        nothing is left behind, and a file that was to be overwritten is as before.
        """
        with self._sending:
            self._interrupt.check()
            if self._ended:
                raise ChannelError(f"{self._path} could not be written: {self._ended}")
            self._ended = "it is complete"
            try:
                os.fsync(self._fd)
                self._interrupt.check()
                self._check_target()
                self._give_name()
                with contextlib.suppress(OSError):  # not every file system can do that with a directory
                    os.fsync(self._directory)
            except OSError as error:
                if error.errno == errno.EEXIST:
                    raise UsageError(f"{self._path} exists by now", "choose another path") from error
                raise self._failed(error) from error
            finally:
                self._discard()
        self.close()

    def _give_name(self) -> None:
        names = {"src_dir_fd": self._directory, "dst_dir_fd": self._directory}
        if not self._has_name and not self._overwrite:
            self._link(self._fd, self._path.name)
            return
        if not self._has_name:
            self._link(self._fd, self._temporary)
            self._has_name = True
        if not self._overwrite:
            try:
                os.link(self._temporary, self._path.name, follow_symlinks=False, **names)
                return
            except (PermissionError, NotImplementedError):  # a file system without hard links
                flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
                os.close(os.open(self._path.name, flags, 0o600, dir_fd=self._directory))
        os.rename(self._temporary, self._path.name, **names)
        self._has_name = False

    def _link(self, fd: int, name: str) -> None:
        """Give a file without a name one that is not taken: open(2), O_TMPFILE."""
        # With a directory given, if only for the looks, this is linkat(2), which follows the link in /proc.
        os.link(f"/proc/self/fd/{fd}", name, src_dir_fd=self._directory, dst_dir_fd=self._directory)

    def _discard(self) -> None:
        """Remove what has only the temporary name, and give everything back."""
        if self._has_name:
            self._has_name = False
            with contextlib.suppress(OSError):
                os.unlink(self._temporary, dir_fd=self._directory)
        for fd in (self._fd, self._directory):
            if fd >= 0:
                os.close(fd)
        self._fd = self._directory = -1

    def _close(self, orderly: bool) -> None:
        self._discard()
