# SPDX-License-Identifier: Apache-2.0
"""The life of a machine whose thread runs an event loop: what other threads have done there."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from abc import abstractmethod
from collections.abc import Callable, Coroutine
from concurrent.futures import CancelledError
from typing import Any, TypeVar

from ...cpu import CpuFeatures
from ...errors import StateError
from ..base import MachineConfig
from ..threaded import ThreadedMachine

__all__ = ["LoopedMachine"]

T = TypeVar("T")

_log = logging.getLogger(__name__)

_LOOK_SECONDS = 0.5


class LoopedMachine(ThreadedMachine):
    """It remains to be said what runs on the loop."""

    def __init__(self, config: MachineConfig, features: CpuFeatures | None = None) -> None:
        super().__init__(config, features)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._wake: asyncio.Event  # something has changed that :meth:`_main` looks at

    @abstractmethod
    async def _main(self) -> None:
        """The whole run."""

    def _work(self) -> None:
        asyncio.run(self._begin())

    async def _begin(self) -> None:
        self._wake = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        await self._main()

    def _ending_set(self) -> None:
        self._post(lambda: self._wake.set())

    def _post(self, call: Callable[[], object]) -> None:
        """Run a callable on the loop, from any thread."""
        loop = self._loop
        if loop is not None:
            with contextlib.suppress(RuntimeError):  # it has ended
                loop.call_soon_threadsafe(call)

    def _call(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine on the loop from another thread, and wait for it.

        Raises what it raises, and StateError where the machine ends.
        """
        loop = self._loop
        try:
            if loop is None:
                raise RuntimeError
            future = asyncio.run_coroutine_threadsafe(work, loop)
        except RuntimeError:
            work.close()
            raise self._over() from None
        while True:
            try:
                return future.result(_LOOK_SECONDS)
            except CancelledError:
                raise self._over() from None
            except TimeoutError:
                if future.done():
                    raise
                if self._finished.is_set():  # a loop that was ending has never begun with it
                    future.cancel()
                    raise self._over() from None

    def _over(self) -> StateError:
        if self._loop is None:
            return StateError("the machine has not been started", "call start() first")
        return StateError("the machine has ended", "there is nothing left of it")

    def _unless_over(self, work: Coroutine[Any, Any, object]) -> None:
        """The same for what is done with when the machine ends."""
        try:
            self._call(work)
        except StateError as error:
            _log.debug("%s", error)
