# SPDX-License-Identifier: Apache-2.0
"""For tests that move guests between embedded machines of one process, at exactly known points of a seeded run."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sdeivirt.fuzz.gate import Gate
from sdeivirt.machine import ExitReason, MachineConfig, Outcome
from sdeivirt.machine.unicorn import UnicornMachine
from sdeivirt.migration.detour import HeldInjections
from sdeivirt.migration.sections import Section
from sdeivirt.smccc.trng import trng_service

__all__ = ["Run", "arrive", "move", "run_through", "saved"]

LIMIT = 20
Step = tuple[int, int, int]  # vCPU, PC, a digest of its registers


def saved(machine: UnicornMachine) -> list[Section]:
    """The state of a machine, which is paused afterwards."""
    machine.pause()
    return machine.save_state(HeldInjections())


def arrive(machine: UnicornMachine, sections: list[Section], ram: memoryview) -> None:
    """Take over a state, on a machine that has been made for it."""
    machine.start_incoming()
    memory = machine.memory()
    for at in range(0, len(ram), 1 << 20):  # what stays zero need not be touched
        chunk = ram[at : at + (1 << 20)]
        if any(chunk.cast("Q")):
            memory[at : at + len(chunk)] = chunk
    machine.load_state(sections)


def move(machine: UnicornMachine, **changes: Any) -> UnicornMachine:
    """The same guest on another machine, paused; the first one stays paused as well."""
    sections = saved(machine)
    there = UnicornMachine(machine.config)
    for name, value in changes.items():
        setattr(there, name, value)
    arrive(there, sections, machine.memory())
    return there


class Run:
    """A seeded run that goes on slice by slice, on one machine after the other."""

    def __init__(self, guest: Path, **config: Any) -> None:
        self.trace: list[Step] = []
        self.printed = bytearray()
        self._machines: list[UnicornMachine] = []
        self._use(UnicornMachine(MachineConfig(**{"memory": 8 << 20, **config})))
        self.machine.load(guest)
        self.machine.start()

    @property
    def machine(self) -> UnicornMachine:
        return self._machines[-1]

    def _use(self, machine: UnicornMachine) -> None:
        self._machines.append(machine)
        # What the guest asks for at random must not tell two runs apart; machines that are loaded take it from here.
        (trng,) = (service for service in machine.firmware.router.services if service.name == "std-trng")
        assert isinstance(trng.functions, dict)
        trng.functions.update(trng_service(bytes).functions)
        machine.console = self.printed.extend
        self._gate = Gate(machine)
        gate: Callable[[int, int], None] | None = machine.on_slice
        assert gate is not None

        def on_slice(vcpu: int, pc: int) -> None:
            gate(vcpu, pc)
            self.trace.append((vcpu, pc, self._digest(machine, vcpu)))

        machine.on_slice = on_slice

    @staticmethod
    def _digest(machine: UnicornMachine, index: int) -> int:
        vcpu = machine.vcpus[index]
        if vcpu.pending is not None:
            return hash(vcpu.pending)
        vcpu.view.fetch_all()
        return hash(bytes(vcpu.view.context))

    def go(self, slices: int) -> bool:
        """Some slices; False if the run has ended."""
        return self._gate.grant(slices) and self.machine.state != "stopped"

    def hop(self) -> bool:
        """Go on, on another machine; False if the run has ended before."""
        self.machine.pause()
        if self.machine.state == "stopped":
            return False
        left = self.machine
        there = UnicornMachine(left.config)
        sections = left.save_state(HeldInjections())
        self._use(there)
        arrive(there, sections, left.memory())
        there.resume()
        return True

    def finish(self) -> Outcome:
        """To the end."""
        self._gate.open()
        return self.machine.wait(LIMIT)

    def picture(self) -> tuple[Any, ...]:
        """All that a guest leaves behind: RAM, output, registers of the vCPU that ran last, what became of events."""
        machine = self.machine
        last = machine.vcpus[self.trace[-1][0]].registers()
        return (
            hashlib.sha256(machine.memory()).hexdigest(),
            bytes(self.printed),
            machine.status().events,
            (last.x, last.sp_el0, last.sp_el1, last.pc, last.pstate, last.q),
        )

    def close(self) -> None:
        self._gate.open()
        for machine in self._machines:
            machine.close()

    def __enter__(self) -> Run:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()


def run_through(guest: Path, stops: list[int], **config: Any) -> tuple[list[Step], tuple[Any, ...], int]:
    """A whole run with a move after each of these numbers of slices: its trace, what it leaves, how often it moved."""
    hops = 0
    with Run(guest, **config) as run:
        for slices in stops:
            if not run.go(slices) or not run.hop():
                break
            hops += 1
        outcome = run.finish()
        assert outcome.reason is ExitReason.POWER_OFF, outcome
        return run.trace, run.picture(), hops
