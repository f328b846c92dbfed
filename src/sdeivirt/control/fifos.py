# SPDX-License-Identifier: Apache-2.0
"""Injection FIFOs: `echo 0 > .../vcpu-1` injects event 0 into vCPU 1.

The KVM series' authors injected from the host's shell through a file in
/proc; this is that file. Numbers are decimal or hexadecimal, with white space
between them; the last one may also end with the writer's closing the FIFO.
What is no number, or cannot be injected, is warned of and passed over.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import re
import stat
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from functools import partial
from pathlib import Path

from ..errors import SdeivirtError
from ..sdei.service import Injection
from .notices import Notices

__all__ = ["InjectionFifos", "Numbers"]

_log = logging.getLogger(__name__)

_CHUNK = 4096
_LONGEST = 32  # bytes of a word; the longest number has 20
_NUMBER = re.compile(rb"0[xX][0-9a-fA-F]{1,16}|[0-9]{1,20}")
_BLANKS = re.compile(rb"\s+")
_RETRY = 1.0  # seconds until a FIFO is opened again where the host had no descriptor left
_EXHAUSTED = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)


class Numbers:
    """Bytes in, words out; a word that does not end is cut off rather than kept."""

    def __init__(self) -> None:
        self._word = b""

    def feed(self, data: bytes) -> Iterator[bytes]:
        """The words that `data` completes. No data at all is the end of the last one."""
        *words, last = _BLANKS.split(self._word + data) if data else (self._word, b"")
        self._word = last[: _LONGEST + 1]
        yield from filter(None, words)


class _Fifo:
    """One FIFO, read on the event loop.

    Reading ends whenever the last writer has gone. The FIFO is then opened
    anew before the old descriptor is closed, so that nothing a writer puts in
    between is lost, and a writer never finds it without a reader. A new
    descriptor does not poll as hung up for writers that went before it was
    opened, which is why it is read once without being asked.
    """

    def __init__(self, path: Path, word: Callable[[bytes], None], warn: Callable[[str], None]) -> None:
        self._path = path
        self._word = word
        self._warn = warn
        self._numbers = Numbers()
        os.mkfifo(path, 0o600)
        self._fd = self._open()

    def _open(self) -> int:
        """The FIFO, watched. Raises OSError, also where something else has taken its place."""
        fd = os.open(self._path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOFOLLOW)
        if not stat.S_ISFIFO(os.fstat(fd).st_mode):
            os.close(fd)
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
        asyncio.get_running_loop().add_reader(fd, self._readable)
        return fd

    def _readable(self) -> None:
        data = self._read()
        if data == b"":
            self._reopen()
            if self._read():
                asyncio.get_running_loop().call_soon(self._readable)

    def _read(self) -> bytes | None:
        """Take what there is; b"" where the writers have gone, None where they are silent."""
        if self._fd < 0:
            return None
        try:
            data = os.read(self._fd, _CHUNK)
        except BlockingIOError:
            return None
        for word in self._numbers.feed(data):
            self._word(word)
        return data

    def _reopen(self) -> None:
        old = self._fd
        try:
            self._fd = self._open()
        except OSError as error:
            if error.errno in _EXHAUSTED:
                # The old descriptor stays, and keeps what is written to it; but it polls as hung up all the time.
                loop = asyncio.get_running_loop()
                loop.remove_reader(old)
                loop.call_later(_RETRY, self._watch_again)
                self._warn(f"{self._path.name}: {error.strerror}: it is read again in {_RETRY:g} s")
                return
            self._fd = -1
            self._warn(f"{self._path} was removed: nothing can be injected through it any more")
        self._close(old)

    def _watch_again(self) -> None:
        if self._fd >= 0:
            asyncio.get_running_loop().add_reader(self._fd, self._readable)

    @staticmethod
    def _close(fd: int) -> None:
        if fd >= 0:
            asyncio.get_running_loop().remove_reader(fd)
            os.close(fd)

    def close(self) -> None:
        fd, self._fd = self._fd, -1
        self._close(fd)
        with contextlib.suppress(OSError):  # somebody has removed it, or put a directory in its place
            self._path.unlink()


class InjectionFifos:
    """The FIFOs of all vCPUs. `path(vcpu)` says where; the future of `inject(event, vcpu)` may hold an error."""

    def __init__(
        self, vcpus: int, path: Callable[[int], Path], inject: Callable[[int, int], Future[Injection]]
    ) -> None:
        self._vcpus = vcpus
        self._path = path
        self._inject = inject
        self._fifos: list[_Fifo] = []
        self._warn = Notices(_log, "injection FIFOs")

    def open(self) -> None:
        """Make them, on the running event loop. Raises OSError."""
        for vcpu in range(self._vcpus):
            take = partial(self._take, vcpu)
            self._fifos.append(_Fifo(self._path(vcpu), take, self._warn))

    def _take(self, vcpu: int, word: bytes) -> None:
        name = self._path(vcpu).name
        if not _NUMBER.fullmatch(word):
            shown = ascii(word[:_LONGEST].decode("ascii", "backslashreplace"))
            self._warn(f"{name}: {shown} is no event number")
            return
        event = int(word, 16) if word[:2] in (b"0x", b"0X") else int(word)
        injection = self._inject(event, vcpu)
        if injection.done():
            self._look(name, injection)
        else:  # the guest is being handed over
            loop = asyncio.get_running_loop()

            def late(future: Future[Injection]) -> None:
                with contextlib.suppress(RuntimeError):  # the loop has ended
                    loop.call_soon_threadsafe(self._look, name, future)

            injection.add_done_callback(late)

    def _look(self, name: str, injection: Future[Injection]) -> None:
        try:
            injection.result()
        except SdeivirtError as error:
            self._warn(f"{name}: {error}")

    def close(self) -> None:
        """Remove them."""
        while self._fifos:
            self._fifos.pop().close()
