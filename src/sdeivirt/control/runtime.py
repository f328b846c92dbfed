# SPDX-License-Identifier: Apache-2.0
"""The runtime directory: where running VMs are found.

    $XDG_RUNTIME_DIR/sdeivirt/NAME/        or, where that is unset,
    TMPDIR/sdeivirt-UID/NAME/
        lock            held (flock) as long as the VM's process lives; holds its pid
        control.sock    QMP-style control socket
        waiting         the address at which a place waits for a guest, until there is a control socket
        vcpu-0, ...     injection FIFOs

All of it belongs to one user and is closed to everybody else (0700, 0600);
a directory for which that does not hold is refused, since whoever owns it
could inject events into our guests, or have us delete files of their choice.

The lock makes three things safe. A second VM of the same name finds it taken.
A directory whose lock is free belongs to a VM that was killed, and is taken
over. And two processes that race for such a directory, or one that starts
while another cleans up, cannot both win: whoever gets the lock checks that the
file it locked is still the one in the directory.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import stat
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from ..errors import RuntimeDirectoryError, UnknownVmError, UsageError, VmExistsError

__all__ = ["RunningVm", "VmDirectory", "check_name", "find_vm", "runtime_root", "running_vms"]

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,63}")
_LOCK = "lock"
_SOCKET = "control.sock"
_WAITING = "waiting"
_LONGEST = 1024  # bytes of an address
# sun_path of struct sockaddr_un, one byte of it for the final NUL: unix(7).
_MAX_SOCKET_PATH = 107


@dataclass(frozen=True, slots=True)
class RunningVm:
    """A VM that runs now. `pid` is None for a moment while it starts."""

    name: str
    pid: int | None
    path: Path

    @property
    def control_socket(self) -> Path:
        return self.path / _SOCKET

    @property
    def waiting_at(self) -> str:
        """The address at which it waits for a guest; "" once one has come, or where none is to come."""
        try:
            fd = os.open(self.path / _WAITING, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError:
            return ""
        try:
            return "" if self.control_socket.exists() else os.read(fd, _LONGEST).decode(errors="replace")
        except OSError:
            return ""
        finally:
            os.close(fd)


def check_name(name: str) -> str:
    """The name again. Raises UsageError where it cannot be a VM's name."""
    if not _NAME.fullmatch(name):
        raise UsageError(
            f"{name!r} cannot be the name of a VM",
            "use up to 64 letters, digits, dots, dashes and underscores, no dot or dash first",
        )
    return name


def _check_private(path: Path) -> None:
    """Refuse a directory that anybody else could have a hand in. Raises FileNotFoundError if there is none."""
    status = path.lstat()
    if stat.S_ISLNK(status.st_mode):
        raise RuntimeDirectoryError(f"{path} is a symbolic link", "a runtime directory must be real: remove the link")
    if not stat.S_ISDIR(status.st_mode):
        raise RuntimeDirectoryError(f"{path} is no directory", "move it out of the way")
    if status.st_uid != os.geteuid():
        raise RuntimeDirectoryError(
            f"{path} belongs to user {status.st_uid}, and you are user {os.geteuid()}",
            "set XDG_RUNTIME_DIR to a directory of your own",
        )
    if status.st_mode & 0o077:
        raise RuntimeDirectoryError(
            f"{path} is open to other users (mode {stat.S_IMODE(status.st_mode):04o})", f"run `chmod 700 {path}`"
        )


def _check_temporary(path: Path) -> None:
    """Refuse a temporary directory where everybody could exchange our directory for theirs."""
    status = path.stat()
    if status.st_uid != os.geteuid() and not status.st_mode & stat.S_ISVTX:
        raise RuntimeDirectoryError(
            f"in {path} other users can remove what is not theirs (mode {stat.S_IMODE(status.st_mode):04o})",
            "set XDG_RUNTIME_DIR to a directory of your own",
        )


def _check_parent(path: Path) -> None:
    """Refuse an XDG_RUNTIME_DIR where somebody else could exchange our directory for theirs."""
    try:
        status = path.stat()
    except OSError as error:
        raise RuntimeDirectoryError(
            f"XDG_RUNTIME_DIR is {path}: {error.strerror}", "set it to a directory of your own, or unset it"
        ) from error
    if not stat.S_ISDIR(status.st_mode):
        raise RuntimeDirectoryError(f"XDG_RUNTIME_DIR is {path}, no directory", "set it to one, or unset it")
    if status.st_uid != os.geteuid() and not (status.st_uid == 0 and status.st_mode & stat.S_ISVTX):
        raise RuntimeDirectoryError(
            f"XDG_RUNTIME_DIR is {path}, which belongs to user {status.st_uid}, and you are user {os.geteuid()}",
            "set it to a directory of your own, or unset it",
        )


def runtime_root(create: bool = False) -> Path:
    """The directory that holds the VMs' directories, checked; made if `create`.

    Without `create` it may not exist yet. Raises RuntimeDirectoryError where
    it cannot be trusted or made.
    """
    configured = os.environ.get("XDG_RUNTIME_DIR", "")
    if os.path.isabs(configured):  # others are to be ignored, says the XDG base directory specification
        _check_parent(Path(configured))
        root = Path(configured) / "sdeivirt"
    else:
        temporary = Path(tempfile.gettempdir())
        _check_temporary(temporary)
        root = temporary / f"sdeivirt-{os.geteuid()}"
    if create:
        try:
            with contextlib.suppress(FileExistsError):
                root.mkdir(mode=0o700)
        except OSError as error:
            raise RuntimeDirectoryError(
                f"cannot make {root}: {error.strerror}", "set XDG_RUNTIME_DIR to a directory of your own"
            ) from error
    with contextlib.suppress(FileNotFoundError):
        _check_private(root)
    return root


def _open_lock(path: Path, flags: int) -> int:
    # O_NONBLOCK: it could be a FIFO, for which opening would wait.
    return os.open(path / _LOCK, flags | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK, 0o600)


def _is_lock(path: Path, fd: int) -> bool:
    """Whether the lock that is open as `fd` is the one in the directory."""
    try:
        return os.path.samestat(os.fstat(fd), (path / _LOCK).lstat())
    except OSError:
        return False


def _try_lock(fd: int, kind: int) -> bool:
    try:
        fcntl.flock(fd, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _read_pid(fd: int) -> int | None:
    try:
        text = os.pread(fd, 32, 0).strip()
    except OSError:  # something else than a file
        return None
    return int(text) if text.isdigit() else None


def _probe(path: Path) -> RunningVm | None:
    """The VM that holds the lock in `path`, if there is one."""
    try:
        _check_private(path)
        fd = _open_lock(path, os.O_RDONLY)
    except (OSError, RuntimeDirectoryError):
        return None
    try:
        # A shared lock is refused only while a VM holds its exclusive one; those who ask do not hinder each other.
        return None if _try_lock(fd, fcntl.LOCK_SH) else RunningVm(path.name, _read_pid(fd), path)
    finally:
        os.close(fd)


def running_vms() -> list[RunningVm]:
    """All VMs of this user that run now, by name. Raises RuntimeDirectoryError."""
    try:
        names = sorted(os.listdir(runtime_root()))
    except FileNotFoundError:
        return []
    except OSError as error:
        raise RuntimeDirectoryError(f"cannot read {runtime_root()}: {error.strerror}") from error
    found = (_probe(runtime_root() / name) for name in names if _NAME.fullmatch(name))
    return [vm for vm in found if vm]


def find_vm(name: str) -> RunningVm:
    """The running VM of that name.

    Raises UsageError for a name that cannot be one, UnknownVmError with the
    names there are, RuntimeDirectoryError.
    """
    path = runtime_root() / check_name(name)
    with contextlib.suppress(FileNotFoundError):
        _check_private(path)
    vm = _probe(path)
    if vm is None:
        names = [other.name for other in running_vms()]
        hint = f"running: {', '.join(names)}" if names else "none is running: start one with `sdeivirt run`"
        raise UnknownVmError(f"no VM {name!r} is running", hint)
    return vm


class VmDirectory:
    """The directory of a VM that this process runs. Made by :meth:`acquire`; a context manager that removes it."""

    def __init__(self, path: Path, lock: int) -> None:
        self.path = path
        self._lock: int | None = lock

    @classmethod
    def acquire(cls, name: str) -> VmDirectory:
        """Claim the name, make its directory or take over that of a killed VM.

        Raises UsageError for an impossible name, VmExistsError where a VM of
        that name lives, RuntimeDirectoryError.
        """
        path = runtime_root(create=True) / check_name(name)
        excess = len(os.fsencode(path / _SOCKET)) - _MAX_SOCKET_PATH
        if excess > 0:
            raise RuntimeDirectoryError(
                f"{path / _SOCKET} is {excess} bytes too long for the path of a Unix socket",
                "set XDG_RUNTIME_DIR to a shorter directory, or choose a shorter name",
            )
        try:
            lock = cls._claim(path)
        except OSError as error:
            raise RuntimeDirectoryError(f"cannot use {path}: {error.strerror}") from error
        directory = cls(path, lock)
        try:
            directory._remove_files()
            os.ftruncate(lock, 0)
            os.pwrite(lock, b"%d\n" % os.getpid(), 0)
        except BaseException:
            directory.release()
            raise
        return directory

    @staticmethod
    def _claim(path: Path) -> int:
        """The lock, ours."""
        while True:
            with contextlib.suppress(FileExistsError):
                path.mkdir(mode=0o700)
            try:
                _check_private(path)
                fd = _open_lock(path, os.O_RDWR | os.O_CREAT)
            except FileNotFoundError:
                continue  # another VM of that name has just removed the directory
            try:
                if _try_lock(fd, fcntl.LOCK_EX):
                    if _is_lock(path, fd):
                        claimed, fd = fd, -1
                        return claimed
                elif not _try_lock(fd, fcntl.LOCK_SH):
                    pid = _read_pid(fd)
                    raise VmExistsError(
                        f"a VM {path.name!r} is running already" + (f" (pid {pid})" if pid else ""),
                        "choose another --name, or end that one",
                    )
                # Somebody merely asked whether a VM lives here, or removed this lock as we took it: once more.
            finally:
                if fd >= 0:
                    os.close(fd)

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def control_socket(self) -> Path:
        return self.path / _SOCKET

    def fifo(self, vcpu: int) -> Path:
        """Where the injection FIFO of a vCPU is."""
        return self.path / f"vcpu-{vcpu}"

    def wait_at(self, address: str) -> None:
        """Let it be known where a guest is waited for."""
        with open(self.path / _WAITING, "xb", opener=lambda path, flags: os.open(path, flags, 0o600)) as file:
            file.write(os.fsencode(address)[:_LONGEST])

    def _files(self) -> Iterator[Path]:
        for entry in os.scandir(self.path):
            if entry.name != _LOCK and not entry.is_dir(follow_symlinks=False):
                yield Path(entry.path)

    def _remove_files(self) -> None:
        """Everything but the lock: sockets, FIFOs, and files that came from writing to a FIFO that is not there."""
        for path in self._files():
            with contextlib.suppress(OSError):
                path.unlink()

    def release(self) -> None:
        """Remove the directory and give up the name. Can be called twice.

        A directory that lacks our lock is left alone: somebody has put another
        in its place, or another VM has taken the name because the lock was removed.
        """
        lock, self._lock = self._lock, None
        if lock is None:
            return
        try:
            with contextlib.suppress(FileNotFoundError):
                if _is_lock(self.path, lock):
                    self._remove_files()
                    (self.path / _LOCK).unlink()
                    self.path.rmdir()
        except OSError as error:
            # Another VM of that name may have moved in already, or the user keeps a directory in here.
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
        finally:
            os.close(lock)

    def __enter__(self) -> VmDirectory:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()
