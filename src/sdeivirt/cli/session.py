# SPDX-License-Identifier: Apache-2.0
"""What verbs share that run a VM on this terminal."""

from __future__ import annotations

import logging
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

from ..control.host import RunResult
from ..control.terminal import Terminal
from ..errors import TimeLimitError
from ..machine import ExitReason
from . import BROKEN_PIPE

__all__ = ["Caught", "finish", "log_to_stderr", "signals_end_us", "signals_noted"]


def log_to_stderr() -> None:
    """Warnings in the style of our other messages."""
    logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.WARNING)
    logging.addLevelName(logging.WARNING, "warning")


@contextmanager
def signals_end_us() -> Iterator[None]:
    """SIGTERM and SIGHUP unwind the stack, as SIGINT does, so that nothing is left behind."""

    def unwind(number: int, _frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    saved = {number: signal.signal(number, unwind) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in saved.items():
            signal.signal(number, handler)


@dataclass(slots=True)
class Caught:
    """How many signals were to interrupt us, and the last; `wake` is called at each."""

    count: int = 0
    number: int = signal.SIGINT
    wake: Callable[[], None] = lambda: None


@contextmanager
def signals_noted() -> Iterator[Caught]:
    """Ctrl-C, SIGTERM and SIGHUP are noted, so that what has been begun elsewhere can be called off. The third ends us.

    They raise nothing before: an event loop that begins to run can lose what a handler raises, or make another
    error of it.
    """
    caught = Caught()

    def note(number: int, _frame: FrameType | None) -> None:
        caught.number = number
        caught.count += 1
        if caught.count > 2:
            raise KeyboardInterrupt
        caught.wake()

    numbers = [signal.SIGTERM, signal.SIGHUP]
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:  # as a shell's background jobs have it
        numbers.append(signal.SIGINT)
    saved = {number: signal.signal(number, note) for number in numbers}
    try:
        yield caught
    finally:
        for number, handler in saved.items():
            signal.signal(number, handler)


def finish(name: str, result: RunResult, terminal: Terminal, timeout: float | None) -> int:
    """The last words about a run, and its exit code."""
    reason = result.outcome.reason
    terminal.restore()
    if reason is ExitReason.MOVED:
        where = result.moved_to
        went = f"is in {where.removeprefix('file:')}" if where.startswith("file:") else f"has moved to {where}"
        terminal.say(f"VM {name!r}: its guest {went}")
    else:
        terminal.say_ended(f"VM {name!r} has ended: {reason.value}")
    if terminal.broken:
        return BROKEN_PIPE
    if reason is ExitReason.TIME_LIMIT:
        for fault in result.outcome.faults:
            print(fault.render(), file=sys.stderr)
        raise TimeLimitError(f"the guest ran longer than {timeout:g} s", "allow more with --timeout SECONDS")
    if result.signal is not None:
        return 128 + result.signal
    if reason is ExitReason.ALL_OFF:
        terminal.say("every vCPU has turned itself off: the VM has ended")
    if reason is ExitReason.PANIC:
        terminal.say("the guest's kernel has panicked")
    return 1 if reason in (ExitReason.FAULT, ExitReason.PANIC) else 0
