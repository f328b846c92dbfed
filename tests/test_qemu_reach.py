# SPDX-License-Identifier: Apache-2.0
"""What a hostile guest can reach of its hypervisor on QEMU, and what it cannot spoil: the guest `reach` tries."""

from __future__ import annotations

import pytest

from sdeivirt.guests import guest_path
from sdeivirt.machine import ExitReason, MachineConfig, open_machine
from sdeivirt.machine.base import Machine
from sdeivirt.machine.qemu import QemuMachine, QemuOptions

from .control_support import wait_until
from .machine_support import DEADLINE, NEEDS_QEMU, Console

pytestmark = [pytest.mark.machine, pytest.mark.qemu, NEEDS_QEMU]

MIB = 1 << 20
CHECKS = ["memory", "walks", "pci", "dma", "calls", "kicks", "noise"]
# Each is spoilt, and then the host injects. What follows "active" takes more than another kick.
SPOILT = [
    "the kick in group 1",
    "the kick disabled",
    "the kick of low priority",
    "the kick active",
    "group 0 disabled",
    "both groups disabled",
    "the redistributor asleep",
    "all of that",
]
NEED_REPAIR = 4  # active, group 0 twice, and all of that


def wait_line(machine: Machine, console: Console, line: str) -> None:
    wait_until(lambda: line in console.text or machine.state == "stopped", line)
    assert line in console.text, console.text


# 65 MiB leave RAM above the reserved block, which is aligned to 2 MiB.
@pytest.mark.parametrize(("vcpus", "cpu", "memory"), [(1, "cortex-a72", 64), (2, "max", 65), (4, "cortex-a72", 64)])
def test_the_hypervisor_is_out_of_reach(vcpus: int, cpu: str, memory: int) -> None:
    config = MachineConfig(vcpus=vcpus, memory=memory * MIB, engine=QemuOptions(cpu=cpu))
    with open_machine("qemu", config) as machine:
        assert isinstance(machine, QemuMachine)
        console = Console(machine)
        machine.load(guest_path("reach"))
        machine.start()
        for what in SPOILT:
            wait_line(machine, console, f"waiting: {what}\n")
            injection = machine.inject(0, 0)
            assert (injection.waits, injection.coalesced) == ("", False)
        outcome = machine.wait(DEADLINE)
        assert outcome.reason is ExitReason.POWER_OFF, console.text
        assert console.text.split()[-1] == "OK", console.text
        assert [line[4:] for line in console.text.splitlines() if line.startswith("--- ")] == CHECKS
        assert machine.kicker.repairs >= NEED_REPAIR
        handlers = [handler for pe in machine.firmware.sdei.pes for handler in pe.handlers.values()]
        assert [handler.delivered for handler in handlers] == [len(SPOILT) + 1] + [1] * (vcpus - 1)
        assert all(handler.injected == handler.completed for handler in handlers)
