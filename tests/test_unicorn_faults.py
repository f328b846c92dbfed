# SPDX-License-Identifier: Apache-2.0
"""A guest that cannot go on becomes a report of its vCPU: never a traceback, never a hang."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest

from sdeivirt.errors import UsageError
from sdeivirt.machine import ExitReason, FaultReport, MachineConfig, Outcome, open_machine
from sdeivirt.machine.base import Machine
from sdeivirt.machine.unicorn.vcpu import VcpuState

from .asm import assemble
from .guest_texts import HANDLER_THAT_SPINS

pytestmark = pytest.mark.machine


def run(body: str, limit: float = 20, **config: object) -> tuple[Outcome, str]:
    """Run a guest to its end; the outcome and what it printed."""
    printed = bytearray()
    with open_machine("unicorn", MachineConfig(**{"vcpus": 1, **config})) as machine:  # type: ignore[arg-type]
        machine.console = printed.extend
        machine.load(assemble(body))
        machine.start()
        return machine.wait(limit), printed.decode()


def only_fault(outcome: Outcome) -> FaultReport:
    assert outcome.reason is ExitReason.FAULT
    (fault,) = outcome.faults
    return fault


WITHOUT_VECTORS = {
    "undefined": (".inst 0x00000000", "undefined"),
    "hlt": ("hlt #0", "undefined"),
    "el3-register": (".inst 0xd51e1100", "undefined"),  # msr scr_el3, x0
    "svc": ("svc #5", "svc"),
    "brk": ("brk #1", "breakpoint"),
    "load-from-nowhere": ("mov x1, #0x20000000\n ldr x2, [x1]", "data abort"),
    "store-to-the-tables": ("mov x1, #0x10000000\n str x1, [x1]", "data abort"),
    "store-beyond-ram": ("mov x1, #0x80000000\n str x1, [x1]", "data abort"),
    "non-canonical": ("movn x1, #0\n ldr x2, [x1]", "data abort"),
    "jump-to-nowhere": ("mov x1, #0x20000000\n br x1", "prefetch abort"),
    "jump-to-zero": ("mov x1, #0\n br x1", "prefetch abort"),
    "jump-to-an-odd-address": ("adr x1, _start + 1\n br x1", "undefined"),
    "jump-to-minus-one": ("movn x1, #0\n br x1", "prefetch abort"),
    "jump-into-the-uart": ("mov x1, #0x09000000\n br x1", "prefetch abort"),
}


@pytest.mark.parametrize("name", WITHOUT_VECTORS)
def test_without_vectors_every_exception_is_a_report(name: str) -> None:
    code, reason = WITHOUT_VECTORS[name]
    fault = only_fault(run(f"    mov x19, #0x77\n    {code}\n    b .")[0])
    assert reason in fault.reason
    assert "no exception vectors" in fault.reason
    assert fault.vcpu == 0
    assert fault.registers["x19"] == 0x77
    assert fault.registers["pc"] == fault.pc
    assert sum(line.startswith("=>") for line in fault.disassembly) == 1
    assert "vCPU 0 stopped" in fault.render()


def test_a_vector_that_faults_itself_is_a_report() -> None:
    outcome, _ = run(
        """
    adr x0, vectors
    msr vbar_el1, x0
    svc #0
    .balign 2048
vectors:
    .org vectors + 0x200
    .inst 0
"""
    )
    assert "the first instruction of the exception vector faults" in only_fault(outcome).reason


@pytest.mark.parametrize(
    ("body", "doing", "reached"),
    [
        (HANDLER_THAT_SPINS, "still running", lambda machine: machine.status().vcpus[0].running == [0]),
        ("    wfi\n    b _start", "waiting for an event", lambda machine: machine.vcpus[0].state is VcpuState.WAITING),
    ],
)
def test_the_time_limit_reports_what_every_vcpu_was_doing(
    body: str, doing: str, reached: Callable[[Machine], bool]
) -> None:
    with open_machine("unicorn", MachineConfig(vcpus=1)) as machine:
        machine.load(assemble(body))
        machine.start()
        until = time.monotonic() + 30
        while not reached(machine):
            assert time.monotonic() < until
        outcome = machine.wait(0.01)
    assert outcome.reason is ExitReason.TIME_LIMIT
    assert [fault.vcpu for fault in outcome.faults] == [0]
    assert doing in outcome.faults[0].reason


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"policy": "tf-a"}, "policy must be Policy"),
        ({"conduit": "smc"}, "conduit must be Conduit"),
        ({"vcpus": "2"}, "vcpus must be int"),
        ({"vcpus": 2.5}, "vcpus must be int"),
        ({"vcpus": True}, "vcpus must be int"),
        ({"bootargs": 5}, "bootargs must be str"),
        ({"seed": "x"}, "seed must be int or None"),
        ({"memory": 1}, "bytes of memory"),
    ],
)
def test_a_configuration_that_cannot_be(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        MachineConfig(**values)
