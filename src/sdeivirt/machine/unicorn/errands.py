# SPDX-License-Identifier: Apache-2.0
"""Calls that other threads want made while no vCPU runs."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

__all__ = ["Errands"]

T = TypeVar("T")


class Errands:
    """The machine's thread runs them between two slices; before it has begun and after it has ended, the caller does.

    `command` is the condition on which that thread waits while the machine is
    paused; `interrupt` has it come by soon otherwise.
    """

    def __init__(self, command: threading.Condition, interrupt: Callable[[], None]) -> None:
        self._command = command
        self._interrupt = interrupt
        self._waiting: deque[tuple[Future[Any], Callable[[], Any]]] = deque()
        self._served = False

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def open(self) -> None:
        """The machine's thread is about to begin, and will come by."""
        with self._command:
            self._served = True

    def make(self, call: Callable[[], T]) -> T:
        """Have a call made; what it returns or raises. From any thread but the machine's."""
        errand: Future[T] = Future()
        with self._command:
            if not self._served:
                return call()
            self._waiting.append((errand, call))
            self._command.notify_all()
        self._interrupt()
        return errand.result()

    def run(self) -> None:
        """Make the calls that wait. No vCPU runs."""
        while self._waiting:
            errand, call = self._waiting.popleft()
            try:
                errand.set_result(call())
            except BaseException as error:
                errand.set_exception(error)

    def close(self) -> None:
        """No vCPU will run any more."""
        with self._command:
            self._served = False
            self.run()
