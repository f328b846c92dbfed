# SPDX-License-Identifier: Apache-2.0
"""Pages that are taken from a guest while it runs, and come back when it touches them: none is lost, none is stale."""

from __future__ import annotations

import random
from concurrent.futures import Future, wait

import pytest

from sdeivirt.errors import StateError
from sdeivirt.machine.base import PAGE_SIZE, RAM_BASE, ExitReason
from sdeivirt.machine.qemu import QemuMachine

from .channel_support import background
from .control_support import LIMIT, wait_until
from .machine_support import KINDS, NEEDS_QEMU, Console, boot
from .pages_support import Store

pytestmark = pytest.mark.machine

AREA = 0x4040_0000
PAGES = 64
AT_ONCE = 0.5  # seconds for what waits for nobody
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


RESETS_ITSELF = """
    ldr x26, =0x40400000
    ldr x25, [x26]
    ldr x26, =0x40300000
    say 'B'
    say 10
1:  ldr x25, [x26]
    cbz x25, 1b
    call SYSTEM_RESET
    b .
"""


@pytest.mark.parametrize("kind", KINDS)
def test_a_reset_brings_ram_that_is_all_there(kind: str) -> None:
    with boot(kind, RESETS_ITSELF, memory=16 << 20, restart=True) as machine:
        console = Console(machine)
        machine.start()
        console.shows("B\n")
        page = (AREA - RAM_BASE) // PAGE_SIZE
        with Store(machine) as store:
            store.held = {page}  # it never comes
            assert store.take([page])
            machine.memory()[0x4030_0000 - RAM_BASE] = 1
            console.shows("B\nB\n")
            assert not machine.absent_count
            assert not any(machine.absent())
            assert store.forgotten == 1


@pytest.mark.parametrize("kind", [pytest.param("qemu", marks=[NEEDS_QEMU, pytest.mark.qemu])])
def test_no_log_begins_while_pages_are_being_taken(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would map them again, and what the guest then writes to them would be lost."""
    with boot(kind, RESETS_ITSELF, memory=16 << 20) as machine:
        assert isinstance(machine, QemuMachine)
        console = Console(machine)
        machine.start()
        console.shows("B\n")
        dirtying = machine.dirtying
        assert dirtying is not None
        flush, log = dirtying.flush, dirtying.log
        begun: list[Future[None]] = []

        def in_the_midst_of_it() -> bool:
            begun.append(background(machine.start_dirty_log))
            wait([begun[0]], AT_ONCE)
            return flush()

        monkeypatch.setattr(dirtying, "flush", in_the_midst_of_it)
        with Store(machine) as store:
            store.held = {(AREA - RAM_BASE) // PAGE_SIZE}
            assert store.take([*store.held])
            with pytest.raises(StateError, match="not here yet"):
                begun[0].result(LIMIT)
            assert not log.on
        machine.start_dirty_log()
        with pytest.raises(StateError, match="being moved"):
            machine.evict_pages([0], store)
        machine.stop_dirty_log()


ENABLES = """
    ldr x0, =0x86000002
    mov x1, #4
    ldr x2, =0x40300001
    mov x3, #0
    hvc #0
    ldr x26, =0x40400000
    cbnz x0, .
    say 'E'
    say 10
1:  ldr x25, [x26]
    mov x24, #0x10000
2:  subs x24, x24, #1
    b.ne 2b
    b 1b
"""


@pytest.mark.parametrize("kind", KINDS)
def test_a_kernel_is_not_told_of_its_own_fault(kind: str) -> None:
    with boot(kind, ENABLES, memory=16 << 20) as machine:
        console = Console(machine)
        machine.start()
        console.shows("E\n")
        state = machine.firmware.pes[0].async_pf
        assert state is not None
        machine.memory()[0x4030_0000 - RAM_BASE :][:8] = bytes(8)  # the guest has taken the wake-all
        with Store(machine) as store:
            page = (AREA - RAM_BASE) // PAGE_SIZE
            store.held = {page}
            wait_until(lambda: store.take([page]))  # one that is touched just then stays
            wait_until(lambda: state.waits)
            assert not state.told
            assert not machine.demand_figures().told


TAKES_EVENTS = """
    take_event handler
    ldr x26, =0x40400000
    say 'R'
    say 10
1:  ldr x25, [x26]
    mov x24, #0x10000
2:  subs x24, x24, #1
    b.ne 2b
    b 1b
handler:
    say 'H'
    mov x1, #0
    call SDEI_COMPLETE
    b .
"""


@pytest.mark.parametrize("kind", KINDS)
def test_a_vcpu_that_waits_for_a_page_takes_events(kind: str) -> None:
    with boot(kind, TAKES_EVENTS, memory=16 << 20) as machine:
        console = Console(machine)
        machine.start()
        console.shows("R\n")
        with Store(machine) as store:
            page = (AREA - RAM_BASE) // PAGE_SIZE
            store.held = {page}
            wait_until(lambda: store.take([page]))
            store.waits_for(1)
            for count in (1, 2):
                machine.inject(0, 0)
                console.shows("R\n" + count * "H")
            assert machine.absent_count == 1
