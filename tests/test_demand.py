# SPDX-License-Identifier: Apache-2.0
"""Pages that are taken from a guest while it runs, and come back when it touches them: none is lost, none is stale."""

from __future__ import annotations

import random

import pytest

from sdeivirt.errors import StateError
from sdeivirt.machine.base import PAGE_SIZE, RAM_BASE, ExitReason

from .machine_support import KINDS, Console, boot
from .pages_support import Store

pytestmark = pytest.mark.machine

AREA = 0x4040_0000
PAGES = 64
CODE = 0x4008_0000

# Each PE adds 1 to the first word of every page, again and again, in the order that its number says.
ADDING = """
    mrs x27, mpidr_el1
    and x27, x27, #0xff
    cbnz x27, go
    mov x1, #1
    adr x2, _start
    mov x3, #0
    call CPU_ON
go:
    ldr x26, =0x40400000
    ldr x25, ={passes}
    mov x2, #1
pass:
    mov x24, #0
page:
    mov x23, x24
    cbz x27, 1f
    mvn x23, x24
    and x23, x23, #63
1:  add x23, x26, x23, lsl #12
    stadd x2, [x23]
    add x24, x24, #1
    cmp x24, #64
    b.ne page
    subs x25, x25, #1
    b.ne pass
    ldr x26, =0x40300000
    stadd x2, [x26]
    cbnz x27, out
2:  ldr x3, [x26]
    cmp x3, #{vcpus}
    b.ne 2b
    say 'D'
    off
out:
    call CPU_OFF
"""


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("vcpus", [1, 2])
def test_nothing_is_lost_when_pages_go_and_come(kind: str, vcpus: int) -> None:
    passes = 20_000 if kind == "unicorn" else 100_000
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    with boot(kind, ADDING.format(passes=passes, vcpus=vcpus), vcpus=vcpus, memory=16 << 20) as machine:
        console = Console(machine)
        machine.start()
        candidates = [*range((AREA - RAM_BASE) // PAGE_SIZE, (AREA - RAM_BASE) // PAGE_SIZE + PAGES)]
        candidates += [(CODE - RAM_BASE) // PAGE_SIZE, (0x4030_0000 - RAM_BASE) // PAGE_SIZE]
        rounds = 0
        with Store(machine) as store:
            try:
                while machine.state == "running" and rounds < 400:
                    store.take_some(candidates, chance, 8)
                    rounds += 1
            except StateError:
                assert machine.state == "stopped"
        outcome = machine.wait(60)
        assert outcome.reason is ExitReason.POWER_OFF, outcome
        assert "D" in console.text
        figures = machine.demand_figures()
        assert rounds > 10
        assert figures.evicted > 10 < figures.faults
        assert machine.absent_count == 0
        ram = machine.memory()[AREA - RAM_BASE :].cast("Q")
        assert {ram[i * PAGE_SIZE // 8] for i in range(PAGES)} == {passes * vcpus}
