# SPDX-License-Identifier: Apache-2.0
"""The commands about hardware errors: what is to be reported, by whom, and whose memory it is in."""

from __future__ import annotations

import asyncio
import base64
import binascii
import contextlib
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from ..errors import StateError, UsageError
from ..machine import Machine
from ..ras.outcome import Outcome
from ..ras.processors import processor_of

if TYPE_CHECKING:
    from ..ras.victims import Victim

__all__ = ["ErrorCommands"]

_SHOWN = 8


class ErrorCommands:
    """The commands over one machine. What builds blocks, and what finds processes, is loaded when it is asked for."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._tagged: dict[str, _Asked] = {}

    async def inject_error(
        self,
        kind: str | None = None,
        severity: str | None = None,
        address: int | None = None,
        process: str | None = None,
        device: str | None = None,
        aer: str | None = None,
        threshold_exceeded: bool = False,
        block: str | None = None,
        source: int = 0,
        vcpu: int | None = None,
        when_busy: str = "wait",
        time_limit: int = 10_000,
        wait_ready: bool = False,
        tag: str | None = None,
    ) -> dict[str, Any]:
        """Report an error, of a kind or as a ready block. The return has the address where that is known.

        By the tag, whoever has thought better of it can call the report off.
        """
        with self._asked(tag) as asked:
            data, victim = await self._data(
                kind, severity, address, process, device, aer, threshold_exceeded, block, vcpu or 0
            )
            asked.check()
            later = self._machine.errors.submit(
                data, source, vcpu, when_busy=when_busy, limit=time_limit / 1000, wait_ready=wait_ready
            )
            outcome = await asked.wait(later)
        if victim is not None:
            return asdict(outcome) | {"address": victim.address, "process": asdict(victim)}
        return asdict(outcome) | {"address": address}

    async def _data(
        self,
        kind: str | None,
        severity: str | None,
        address: int | None,
        process: str | None,
        device: str | None,
        aer: str | None,
        threshold_exceeded: bool,
        block: str | None,
        vcpu: int,
    ) -> tuple[bytes, Victim | None]:
        """The block to report, and in whose page the error is. Raises UsageError, StateError, UnknownVcpuError."""
        victim: Victim | None = None
        if process is not None:
            if address is not None or block is not None:
                raise UsageError("a process was named, and an address as well", "name one of them")
            victim = await asyncio.to_thread(self._victim, process)
            address = victim.address
        if block is not None:
            if (kind, severity, address, device, aer) != (None,) * 5 or threshold_exceeded:
                raise UsageError("a block says itself what it reports", "give a block, or a kind and a severity")
            return _decode(block), victim
        return self._make(kind, severity, address, device, aer, threshold_exceeded, vcpu), victim

    def _make(
        self,
        kind: str | None,
        severity: str | None,
        address: int | None,
        device: str | None,
        aer: str | None,
        threshold_exceeded: bool,
        vcpu: int,
    ) -> bytes:
        """The block of such an error; one of the processor is of that vCPU. Raises UsageError, UnknownVcpuError."""
        from ..ras.cper import KINDS, Severity, make_block

        if kind is None or severity is None:
            raise UsageError("nothing is said of the error", "give a kind and a severity, or a block")
        if kind not in KINDS:
            raise UsageError(f"there are no errors of kind {kind[:40]!r}", f"kinds are {', '.join(KINDS)}")
        if (device is not None or aer is not None) and kind != "pcie":
            raise UsageError(f"an error of {kind} is not in a PCIe device", "leave the device out, and AER's name")
        mpidr, midr = processor_of(self._machine, vcpu)
        made = make_block(
            kind,
            Severity.parse(severity),
            address=address,
            threshold_exceeded=threshold_exceeded,
            mpidr=mpidr,
            midr=midr,
            at=device,
            aer=aer,
        )
        return made.encode()

    @contextlib.contextmanager
    def _asked(self, tag: str | None) -> Iterator[_Asked]:
        """While a command is carried out it can be called off by its tag."""
        asked = _Asked()
        if tag is not None:
            self._tagged[tag] = asked
        try:
            yield asked
        finally:
            if tag is not None and self._tagged.get(tag) is asked:
                del self._tagged[tag]

    async def withdraw_error(self, tag: str) -> dict[str, bool]:
        """Call a report off that waits for its turn: whether it did."""
        asked = self._tagged.get(tag)
        return {"withdrawn": asked is not None and asked.call_off()}

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
        from ..ras.victims import search_victims

        found = search_victims(self._machine, pattern)
        if len(found.living) == 1:
            return found.living[0]
        if found.living:
            raise UsageError(
                f"{len(found.living)} processes match {pattern[:40]!r}",
                f"name one of {_named(found.living)} by its pid",
            )
        hint = "none has been started: they are the program `victim` in the guest"
        if found.others:
            hint = f"there are {_named(found.others)}"
        if found.still:
            raise UsageError(
                f"no process {pattern[:40]!r} in the guest watches its page: the heart of {_named(found.still)} stands "
                "still",
                "it is stopped (kill -CONT), or has ended" + (f"; {hint}" if found.others else ""),
            )
        raise UsageError(f"no process {pattern[:40]!r} in the guest watches a page", hint)


def _named(victims: Sequence[Victim]) -> str:
    return ", ".join(f"{each.pid} ({each.name})" for each in victims[:_SHOWN])


class _Asked:
    """A report that somebody waits for: it can be called off until the guest has been told."""

    def __init__(self) -> None:
        self._later: Future[Outcome] | None = None  # it has not been handed in yet
        self._called_off = False

    def call_off(self) -> bool:
        """Whether that was still possible."""
        self._called_off = self._later is None or self._later.cancel()
        return self._called_off

    def check(self) -> None:
        """Raises StateError where it has been called off."""
        if self._called_off:
            raise StateError("the report was called off before the guest was told")

    async def wait(self, later: Future[Outcome]) -> Outcome:
        """What becomes of it. Raises StateError where it is called off; who is cancelled calls it off as well."""
        self._later = later
        try:
            return await asyncio.wrap_future(later)
        except asyncio.CancelledError:
            self.check()
            raise


def _decode(block: str) -> bytes:
    try:
        return base64.b64decode(block, validate=True)
    except (binascii.Error, ValueError) as error:
        raise UsageError(f"the block is not in base64: {error}", "write it as `base64 -w0 FILE` does") from error
