# SPDX-License-Identifier: Apache-2.0
"""Injections that come while a guest is being handed over.

Its state has been written down and would not hold them, so they wait. When
the guest stays, they are carried out here; when it goes, they follow it, and
whoever injected gets the answer from there. Either way each is carried out
once.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import asdict
from typing import Any

import msgspec

from .. import errors
from ..errors import MigrationError, MovedError, SdeivirtError, StreamError
from ..machine.base import Machine
from ..sdei.service import Injection
from .foreign import printable
from .sections import Record

__all__ = ["Answer", "Held", "HeldInjections", "carry_out"]


class Held(Record, frozen=True):
    """An injection, or a cancellation, that follows the guest."""

    event: int
    vcpu: int | None = None
    affinity: int | None = None
    cancel: bool = False


class Answer(Record, frozen=True):
    """What became of it: Injection's members or "cancelled" as `result`; or the error's class, text and hint."""

    result: dict[str, Any] = msgspec.field(default_factory=dict)
    error: str = ""
    message: str = ""
    hint: str = ""


class HeldInjections:
    """The :class:`~sdeivirt.machine.base.Detour` of a guest that is being handed over."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: list[tuple[Held, Future[Any]]] = []
        self._gone: str | None = None  # where the guest has gone to

    def inject(self, event: int, vcpu: int | None, affinity: int | None) -> Future[Injection]:
        return self._hold(Held(event, vcpu, affinity))

    def cancel(self, event: int, vcpu: int | None, affinity: int | None) -> Future[bool]:
        return self._hold(Held(event, vcpu, affinity, cancel=True))

    def _hold(self, held: Held) -> Future[Any]:
        future: Future[Any] = Future()
        future.set_running_or_notify_cancel()  # it is carried out, whether somebody still waits for that or not
        with self._lock:
            if self._gone is None:
                self._waiting.append((held, future))
                return future
            gone = self._gone
        future.set_exception(MovedError(f"the guest has moved to {gone}", "inject the event there"))
        return future

    def stay(self, machine: Machine) -> None:
        """The guest stays: carry out what came, in its order, and let the machine take injections again."""
        machine.keep_state()
        with self._lock:
            waiting, self._waiting = self._waiting, []
        for held, future in waiting:
            _answer(future, carry_out(machine, held))

    def leave(self, destination: str) -> tuple[Held, ...]:
        """The guest has gone: what is to follow it. Nothing more is taken."""
        with self._lock:
            self._gone = destination
            return tuple(held for held, _ in self._waiting)

    def follow(self, destination: str) -> None:
        """The guest that has gone is reached at another address."""
        with self._lock:
            self._gone = destination

    @property
    def gone(self) -> bool:
        """Whether the guest has left."""
        with self._lock:
            return self._gone is not None

    def answered(self, answers: Sequence[Answer]) -> None:
        """What the destination made of what :meth:`leave` gave. Raises StreamError for another number of answers.

        Then all of it waits on. Who asked for something whose answer makes no sense does not learn what became of it.
        """
        with self._lock:
            if len(answers) != len(self._waiting):
                raise StreamError(f"the destination sent {len(answers)} answers, and {len(self._waiting)} are due")
            waiting, self._waiting = self._waiting, []
        for (_, future), answer in zip(waiting, answers, strict=True):
            _answer(future, answer)

    def lost(self, error: SdeivirtError) -> None:
        """Nobody knows what became of what waits."""
        with self._lock:
            waiting, self._waiting = self._waiting, []
        for _, future in waiting:
            future.set_exception(error)


def carry_out(machine: Machine, held: Held) -> Answer:
    """Inject, or cancel, on this machine."""
    try:
        if held.cancel:
            return Answer({"cancelled": machine.cancel(held.event, held.vcpu, held.affinity)})
        return Answer(asdict(machine.inject(held.event, held.vcpu, held.affinity)))
    except SdeivirtError as error:
        return Answer(error=type(error).__name__, message=error.message, hint=error.hint)


def _answer(future: Future[Any], answer: Answer) -> None:
    if answer.error:
        kind: Callable[[str, str], SdeivirtError] = (
            getattr(errors, answer.error) if answer.error in errors.__all__ else SdeivirtError
        )
        future.set_exception(kind(printable(answer.message), printable(answer.hint)))
        return
    try:
        if "cancelled" in answer.result:
            future.set_result(msgspec.convert(answer.result["cancelled"], bool))
        else:
            future.set_result(msgspec.convert(answer.result, Injection))
    except msgspec.ValidationError:
        future.set_exception(MigrationError("the guest has moved, and what came of the event there cannot be read"))
