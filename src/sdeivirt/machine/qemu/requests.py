# SPDX-License-Identifier: Apache-2.0
"""When vCPUs are answered: whenever the doorbell rings, or all the time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence

from .process import QemuProcess
from .qtest import Qtest
from .vcpu import QemuVcpu

__all__ = ["Requests"]

_POLL_SECONDS = 0.001


class Requests:
    """The requests of a QEMU's vCPUs. On the event loop; `crash` is told of what must not happen."""

    def __init__(
        self, vcpus: Sequence[QemuVcpu], process: QemuProcess, qtest: Qtest, crash: Callable[[BaseException], None]
    ) -> None:
        self._vcpus = vcpus
        self._process = process
        self.qtest = qtest
        self._crash = crash
        self.frozen = False  # no request is answered: the state is on its way
        self._listening = False

    def serve(self) -> None:
        """Answer whoever has a request."""
        if self.frozen:
            return
        try:
            for vcpu in self._vcpus:
                vcpu.serve()
        except BaseException as error:
            self._crash(error)

    def listen(self, poll: Callable[[], bool] | None) -> None:
        """From now on look after vCPUs; with `poll` all the time, as long as that says so."""
        self._listening = True
        loop = asyncio.get_running_loop()
        loop.add_reader(self._process.qtest, self._answer)
        if poll is not None:
            loop.call_soon(self._poll, poll)
        else:
            loop.add_reader(self._process.bell, self._ring)

    def ignore(self) -> None:
        """No more. Can be called twice."""
        if self._listening:
            self._listening = False
            loop = asyncio.get_running_loop()
            for connection in (self._process.qtest, self._process.bell):
                loop.remove_reader(connection)

    def _answer(self) -> None:
        if not self.qtest.readable():
            asyncio.get_running_loop().remove_reader(self._process.qtest)

    def _ring(self) -> None:
        try:
            gone = not self._process.bell.recv(4096)
        except OSError:
            gone = True
        if gone:
            asyncio.get_running_loop().remove_reader(self._process.bell)
        self.serve()

    def _poll(self, goes_on: Callable[[], bool]) -> None:
        until = time.perf_counter() + _POLL_SECONDS
        while time.perf_counter() < until:
            self.serve()
        if goes_on():
            asyncio.get_running_loop().call_soon(self._poll, goes_on)
