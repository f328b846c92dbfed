# SPDX-License-Identifier: Apache-2.0
"""The commands about hardware errors: what is to be reported, by whom, and whose memory it is in."""

from __future__ import annotations

import asyncio
import base64
import binascii
from concurrent.futures import Future
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from ..errors import StateError, UsageError
from ..machine import Machine
from ..ras.outcome import Outcome

if TYPE_CHECKING:
    from ..ras.victims import Victim

__all__ = ["ErrorCommands"]

KINDS = ("memory", "processor", "pcie")
_SHOWN = 8


class ErrorCommands:
    """The commands over one machine. What builds blocks, and what finds processes, is loaded when it is asked for."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._tagged: dict[str, Future[Outcome]] = {}

    async def inject_error(
        self,
        kind: str | None = None,
        severity: str | None = None,
        address: int | None = None,
        process: str | None = None,
        threshold_exceeded: bool = False,
        block: str | None = None,
        source: int = 0,
        vcpu: int | None = None,
        when_busy: str = "wait",
        time_limit: int = 10_000,
        tag: str | None = None,
    ) -> dict[str, Any]:
        """Report an error, of a kind or as a ready block. The return has the address where that is known.

        By the tag, whoever has thought better of it can call the report off.
        """
        victim: Victim | None = None
        if process is not None:
            if address is not None or block is not None:
                raise UsageError("a process was named, and an address as well", "name one of them")
            victim = await asyncio.to_thread(self._victim, process)
            address = victim.address
        if block is not None:
            if (kind, severity, address) != (None, None, None) or threshold_exceeded:
                raise UsageError("a block says itself what it reports", "give a block, or a kind and a severity")
            data = _decode(block)
        else:
            data = _make(kind, severity, address, threshold_exceeded)
        later = self._machine.inject_error_later(data, source, vcpu, when_busy=when_busy, limit=time_limit / 1000)
        outcome = await self._wait(later, tag)
        found = {} if victim is None else {"process": asdict(victim)}
        return asdict(outcome) | {"address": address} | found

    async def _wait(self, later: Future[Outcome], tag: str | None) -> Outcome:
        if tag is not None:
            self._tagged[tag] = later
        try:
            return await asyncio.wrap_future(later)
        except asyncio.CancelledError:
            if not later.cancelled():
                raise
            raise StateError("the report was called off before the guest was told") from None
        finally:
            if tag is not None and self._tagged.get(tag) is later:
                del self._tagged[tag]

    async def withdraw_error(self, tag: str) -> dict[str, bool]:
        """Call a report off that waits for its turn: whether it did."""
        later = self._tagged.get(tag)
        return {"withdrawn": later is not None and later.cancel()}

    async def find_victims(self, pattern: str = "*") -> list[dict[str, Any]]:
        """The processes that match, each with the page that it watches."""
        return [asdict(victim) for victim in await asyncio.to_thread(self._find, pattern)]

    def _find(self, pattern: str) -> list[Victim]:
        from ..ras.victims import find_victims

        return find_victims(self._machine, pattern)

    def _victim(self, pattern: str) -> Victim:
        """The one that matches. Raises UsageError, StateError."""
        state = self._machine.state
        if state != "running":
            raise StateError(f"the VM is {state}: nobody can say which of its processes live", "let it run")
        found = self._find(pattern)
        if not found:
            others = self._find("*")
            named = ", ".join(f"{each.pid} ({each.name})" for each in others[:_SHOWN])
            hint = (
                f"there are {named}" if others else "none has been started: they are the program `victim` in the guest"
            )
            raise UsageError(f"no process {pattern[:40]!r} in the guest watches a page", hint)
        if len(found) > 1:
            named = ", ".join(f"{each.pid} ({each.name})" for each in found[:_SHOWN])
            raise UsageError(f"{len(found)} processes match {pattern[:40]!r}", f"name one of {named} by its pid")
        return found[0]


def _make(kind: str | None, severity: str | None, address: int | None, threshold_exceeded: bool) -> bytes:
    """The block of such an error. Raises UsageError."""
    from ..ras.cper import Severity, make_block

    if kind is None or severity is None:
        raise UsageError("nothing is said of the error", "give a kind and a severity, or a block")
    if kind not in KINDS:
        raise UsageError(f"there are no errors of kind {kind[:40]!r}", f"kinds are {', '.join(KINDS)}")
    made = make_block(
        kind,  # type: ignore[arg-type]  # it is one of KINDS
        Severity.parse(severity),
        address=address,
        threshold_exceeded=threshold_exceeded,
    )
    return made.encode()


def _decode(block: str) -> bytes:
    try:
        return base64.b64decode(block, validate=True)
    except (binascii.Error, ValueError) as error:
        raise UsageError(f"the block is not in base64: {error}", "write it as `base64 -w0 FILE` does") from error
