# SPDX-License-Identifier: Apache-2.0
"""A kernel under QEMU alone: what a guest is held against that runs under the monitor."""

from __future__ import annotations

import os
import subprocess
import threading
from collections.abc import Sequence
from pathlib import Path

from ..machine.qemu import QemuOptions
from ..machine.qemu.process import find_qemu
from .shell import Shell

__all__ = ["PlainQemu"]


class PlainQemu:
    """CPUs of the same model, the same devices but for the monitor's. A context manager.

    `arguments` and the descriptors `inherited` are for QEMU besides.
    """

    def __init__(
        self,
        kernel: Path,
        initrd: Path | None,
        append: str,
        memory: int,
        vcpus: int = 1,
        arguments: Sequence[str] = (),
        inherited: Sequence[int] = (),
    ) -> None:
        self._process = subprocess.Popen(
            [
                *(str(find_qemu()), "-M", "virt,gic-version=3", "-cpu", QemuOptions().cpu),
                *("-accel", "tcg,thread=multi", "-smp", str(vcpus), "-m", f"{memory >> 20}M", "-kernel", str(kernel)),
                *(("-initrd", str(initrd)) if initrd is not None else ()),
                *("-append", append, "-nodefaults", "-display", "none", "-serial", "stdio", "-no-reboot"),
                *arguments,
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            pass_fds=inherited,
            start_new_session=True,
        )
        self.shell = Shell(self._type_in, lambda: self._process.poll() is not None)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _type_in(self, data: bytes) -> int:
        assert self._process.stdin is not None
        return os.write(self._process.stdin.fileno(), data)

    def _read(self) -> None:
        assert self._process.stdout is not None
        while data := os.read(self._process.stdout.fileno(), 1 << 16):
            self.shell.feed(data)

    def __enter__(self) -> PlainQemu:
        return self

    def __exit__(self, *_error: object) -> None:
        self._process.kill()
        self._process.wait()
        self._reader.join()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                stream.close()
