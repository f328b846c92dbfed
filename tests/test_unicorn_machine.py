# SPDX-License-Identifier: Apache-2.0
"""The embedded machine: delivery into guests that mask everything, precise stops, schedules, power."""

from __future__ import annotations

import random
import struct
import threading
import time
from pathlib import Path

import pytest

from sdeivirt.errors import NotRegisteredError, StateError, UnknownEventError, UnknownVcpuError
from sdeivirt.machine import ExitReason, MachineConfig, open_machine
from sdeivirt.machine.base import Machine
from sdeivirt.machine.unicorn import UnicornMachine
from sdeivirt.machine.unicorn.schedulers import DeterministicScheduler
from sdeivirt.sdei import EventDefinition, Priority
from sdeivirt.sdei.model import Handler, Pe
from sdeivirt.sdei.observer import Observer

from .asm import assemble

pytestmark = pytest.mark.machine

DEADLINE = 30


def boot(body: str, seed: int | None = None, **config: object) -> UnicornMachine:
    machine = open_machine("unicorn", MachineConfig(**{"vcpus": 1, "seed": seed, **config}))  # type: ignore[arg-type]
    assert isinstance(machine, UnicornMachine)
    machine.load(assemble(body))
    return machine


class Until:
    """Waits for a number of completions of handlers."""

    def __init__(self, machine: Machine) -> None:
        self._condition = threading.Condition()
        self.completed = 0
        self.entered: list[tuple[int, int]] = []
        until = self

        class Watch(Observer):
            def delivered(self, pe: Pe, handler: Handler) -> None:
                until.entered.append((pe.index, handler.event.number))

            def completed(self, pe: Pe, handler: Handler, failed: bool) -> None:
                with until._condition:
                    until.completed += 1
                    until._condition.notify_all()

        machine.firmware.sdei.observe(Watch())

    def reaches(self, count: int) -> None:
        with self._condition:
            assert self._condition.wait_for(lambda: self.completed >= count, DEADLINE), f"{self.completed} of {count}"


class Console:
    """Collects output and waits for text."""

    def __init__(self, machine: Machine) -> None:
        self._condition = threading.Condition()
        self.text = ""
        machine.console = self._more

    def _more(self, data: bytes) -> None:
        with self._condition:
            self.text += data.decode()
            self._condition.notify_all()

    def shows(self, text: str) -> None:
        with self._condition:
            assert self._condition.wait_for(lambda: text in self.text, DEADLINE), self.text


# Masks everything, counts in x19 and by an atomic add in memory: both must stay equal,
# or an instruction was executed twice or not at all. x20.. carry patterns.
COUNTING = """
    take_event handler
    ldr x1, =0x40200000
    mov x2, #1
    mov x3, #0
    mov x4, #4
    movz x5, #5, lsl #32
    mov x19, #0
    mov x17, #17
    say 'R'
    say 10
    subs x30, x30, x30
loop:
    ldadd x2, x6, [x1]
    cmp x6, x19
    b.ne bad
    add x19, x19, #1
    cmp x17, #17
    b.ne bad
    cmp x4, #4
    b.ne bad
    b loop
bad:
    .inst 0
handler:
    mov x4, #0x44
    mov x6, #0x66
    mov x17, #0x77
    subs x5, x5, x5
    mov x1, #0
    call SDEI_COMPLETE
    b .
"""


@pytest.mark.parametrize("seed", [None, 11])
def test_a_masked_spinning_guest_takes_every_event_between_two_instructions(seed: int | None) -> None:
    count = 3000 if seed is None else 100
    with boot(COUNTING, seed) as machine:
        until, console = Until(machine), Console(machine)
        machine.start()
        console.shows("R\n")
        for i in range(count):
            machine.inject(0, 0)
            until.reaches(i + 1)
        machine.stop()
        outcome = machine.wait(10)
        assert outcome.reason is ExitReason.STOPPED
        assert not outcome.faults
        report = machine.status().events[0].handlers[0]
        assert (report.injected, report.delivered, report.completed) == (count, count, count)


def test_injections_from_many_threads_are_counted_exactly() -> None:
    with boot(COUNTING) as machine:
        console = Console(machine)
        machine.start()
        console.shows("R\n")
        threads = [threading.Thread(target=lambda: [machine.inject(0, 0) for _ in range(500)]) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        machine.pause()
        report = machine.status().events[0].handlers[0]
        assert report.injected == 2000
        assert report.injected == report.delivered + report.coalesced + report.dropped + report.pending
        machine.resume()


def test_pause_stops_between_instructions_and_resume_goes_on() -> None:
    with boot(COUNTING) as machine:
        until, console = Until(machine), Console(machine)
        machine.start()
        console.shows("R\n")
        for i in range(20):
            machine.pause()
            assert machine.state == "paused"
            machine.inject(0, 0)
            assert until.completed == i
            machine.resume()
            until.reaches(i + 1)
        assert machine.state == "running"


WAITING = """
    take_event handler
    say 'R'
    say 10
1:  wfi
    b 1b
handler:
    say 'E'
    say 10
    mov x1, #0
    call SDEI_COMPLETE
"""


def test_an_event_wakes_a_waiting_vcpu() -> None:
    with boot(WAITING) as machine:
        until, console = Until(machine), Console(machine)
        machine.start()
        console.shows("R\n")
        for i in range(50):
            machine.inject(0, 0)
            until.reaches(i + 1)
        assert console.text == "R\n" + "E\n" * 50


def test_host_mistakes_are_errors_with_a_hint() -> None:
    with boot("    b .", events=(EventDefinition(7), EventDefinition(8, shared=True))) as machine:
        machine.start()
        for error, call in (
            (UnknownEventError, lambda: machine.inject(1)),
            (UnknownVcpuError, lambda: machine.inject(7, 1)),
            (UnknownVcpuError, lambda: machine.inject(7, -1)),
            (UnknownVcpuError, lambda: machine.inject(7, affinity=0x100)),
            (NotRegisteredError, lambda: machine.inject(7, 0)),
            (NotRegisteredError, lambda: machine.cancel(8)),
        ):
            with pytest.raises(error) as caught:
                call()
            assert caught.value.hint


# Two PEs signal each other for ever; each counts.
PING_PONG = """
    mrs x27, mpidr_el1
    and x27, x27, #0xff
    cbnz x27, second
    mov x1, #1
    adr x2, _start
    mov x3, #0
    call CPU_ON
second:
    take_event handler
    ldr x26, =0x40300000
    add x25, x26, x27, lsl #3
    mov x1, #1
    str x1, [x25]
    eor x24, x27, #1
1:  ldr x1, [x26, x24, lsl #3]
    cbz x1, 1b
    cbnz x27, 2f
    mov x1, #0
    mov x2, #1
    call SDEI_SIGNAL
2:  b 2b
handler:
    add x28, x28, #1
    cmp x28, #300
    b.ne 3f
    cbz x27, 3f
    off
3:  mov x1, #0
    mov x2, x24
    call SDEI_SIGNAL
    mov x1, #0
    call SDEI_COMPLETE
    b .
"""


def trace(seed: int) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """Which vCPU ran from where, slice by slice, and the events in order."""
    slices: list[tuple[int, int]] = []
    with boot(PING_PONG, seed, vcpus=2) as machine:
        until = Until(machine)
        machine.on_slice = lambda vcpu, pc: slices.append((vcpu, pc))
        machine.start()
        assert machine.wait(DEADLINE).reason is ExitReason.POWER_OFF
        return slices, until.entered


def test_same_seed_same_trace() -> None:
    first, events = trace(1234)
    assert len(first) > 50
    assert len(events) > 500
    assert trace(1234) == (first, events)
    assert trace(1235)[0] != first


@pytest.mark.parametrize("seed", [None, *range(5)])
def test_two_vcpus_signal_each_other(seed: int | None) -> None:
    with boot(PING_PONG, seed, vcpus=2) as machine:
        machine.start()
        assert machine.wait(DEADLINE).reason is ExitReason.POWER_OFF


def test_counted_slices_serve_where_there_is_no_stub() -> None:
    with boot(PING_PONG, vcpus=2) as machine:
        machine._scheduler = DeterministicScheduler(None)
        assert machine.scheduler == "counted slices"
        machine.start()
        assert machine.wait(DEADLINE).reason is ExitReason.POWER_OFF


def test_atomics_and_exclusives_of_four_vcpus_lose_nothing() -> None:
    body = """
    mrs x27, mpidr_el1
    and x27, x27, #0xff
    ldr x26, =0x40300000
    ldr x25, =0x40300040
    mov x2, #1
    cbnz x27, work
    mov x28, #1
1:  mov x1, x28
    adr x2, _start
    mov x3, #0
    call CPU_ON
    add x28, x28, #1
    cmp x28, #4
    b.ne 1b
    mov x2, #1
work:
    ldr x1, =50000
2:  ldaddal x2, x3, [x26]
3:  ldaxr x4, [x25]
    add x4, x4, #1
    stlxr w5, x4, [x25]
    cbnz w5, 3b
    sub x1, x1, #1
    cbnz x1, 2b
    ldr x6, =0x40300080
    ldaddal x2, x7, [x6]
    cmp x7, #3
    b.ne park
    ldr x8, =200000
    ldr x1, [x26]
    cmp x1, x8
    b.ne bad
    ldr x1, [x25]
    cmp x1, x8
    b.ne bad
    off
park:
    call CPU_OFF
bad:
    .inst 0
"""
    for seed in (None, 3):
        with boot(body, seed, vcpus=4) as machine:
            machine.start()
            outcome = machine.wait(DEADLINE)
            assert outcome.reason is ExitReason.POWER_OFF, [fault.render() for fault in outcome.faults]


def test_suspend_to_powerdown_comes_back_masked_with_its_registration() -> None:
    with boot(
        """
    take_event handler
    say 'S'
    say 10
    ldr x1, =0x10000
    adr x2, back
    mov x3, #0x5a
    call CPU_SUSPEND
    .inst 0
back:
    add w21, w0, #0
    mov x20, #0x09000000
    str w21, [x20]
    call SDEI_UNMASK
    b .
handler:
    say 'H'
    say 10
    off
"""
    ) as machine:
        console = Console(machine)
        machine.start()
        console.shows("S\n")
        while machine.status().vcpus[0].power != "suspended":
            pass
        assert machine.status().vcpus[0].masked
        machine.inject(0, 0)
        assert machine.wait(DEADLINE).reason is ExitReason.POWER_OFF
        assert console.text == "S\nZH\n"


def test_standby_wakes_by_an_event() -> None:
    with boot(
        """
    take_event handler
    say 'S'
    say 10
    mov x1, #0
    call CPU_SUSPEND
    cbnz x0, .
    say 'W'
    say 10
    off
handler:
    mov x1, #0
    call SDEI_COMPLETE
"""
    ) as machine:
        console = Console(machine)
        machine.start()
        console.shows("S\n")
        machine.inject(0, 0)
        assert machine.wait(DEADLINE).reason is ExitReason.POWER_OFF
        assert console.text == "S\nW\n"


def test_system_reset_starts_over_with_clean_memory_and_service() -> None:
    """The guest notes in memory that it ran; after the reset the note and the registration are gone."""
    with boot(
        """
    ldr x26, =0x40300000
    ldr x1, [x26]
    cbnz x1, bad
    mov x1, #1
    str x1, [x26]
    take_event handler
    cbnz x0, bad
    say 'B'
    say 10
    call SYSTEM_RESET
bad:
    .inst 0
handler:
    b .
"""
    ) as machine:
        console = Console(machine)
        machine.start()
        console.shows("B\nB\nB\n")
        machine.stop()
        assert machine.wait(DEADLINE).reason is ExitReason.STOPPED


def test_a_cpu_off_and_on_again_starts_unregistered_and_masked() -> None:
    with boot(
        """
    mrs x27, mpidr_el1
    and x27, x27, #0xff
    cbnz x27, second
    mov x28, #0
again:
    mov x1, #1
    adr x2, _start
    mov x3, #0
    call CPU_ON
    cbnz x0, again
1:  mov x1, #1
    mov x2, #0
    call AFFINITY_INFO
    cmp x0, #1
    b.ne 1b
    add x28, x28, #1
    cmp x28, #20
    b.ne again
    off
second:
    mov x1, #0
    call 0xc4000028
    cbnz x0, bad
    call SDEI_MASK
    cbnz x0, bad
    take_event handler
    call CPU_OFF
bad:
    .inst 0
handler:
    b .
""",
        vcpus=2,
    ) as machine:
        machine.start()
        outcome = machine.wait(DEADLINE)
        assert outcome.reason is ExitReason.POWER_OFF, [fault.render() for fault in outcome.faults]


def test_an_event_interrupts_el0_and_goes_back_there() -> None:
    """SP is banked both ways, and EL0's PSTATE comes back."""
    with boot(
        """
    ldr x0, =0x40400000
    mov sp, x0
    adr x0, vectors
    msr vbar_el1, x0
    take_event handler
    say 'R'
    say 10
    ldr x0, =0x40500000
    msr sp_el0, x0
    adr x0, user
    msr elr_el1, x0
    msr spsr_el1, xzr
    eret
user:
    mov x19, sp
    ldr x18, =0x40500000
1:  cmp x19, x18
    b.ne bad
    mov x19, sp
    cbz x28, 1b
    svc #0
bad:
    .inst 0
handler:
    mov x1, sp
    ldr x2, =0x40400000
    cmp x1, x2
    b.ne bad
    mrs x1, currentel
    cmp x1, #4
    b.ne bad
    mov x28, #1
    mov x1, #0
    call SDEI_COMPLETE
    b .
    .balign 2048
vectors:
    .org vectors + 0x200
    say 'X'
    say 10
    b .
    .org vectors + 0x400
    mrs x10, esr_el1
    lsr x10, x10, #26
    cmp x10, #0x15
    b.ne bad
    off
"""
    ) as machine:
        console = Console(machine)
        machine.start()
        console.shows("R\n")
        machine.inject(0, 0)
        outcome = machine.wait(DEADLINE)
        assert outcome.reason is ExitReason.POWER_OFF, [fault.render() for fault in outcome.faults]


def test_critical_events_nest_in_normal_ones_on_real_code() -> None:
    events = (EventDefinition(7, priority=Priority.CRITICAL, signalable=True),)
    with boot(
        """
    take_event outer
    mov x1, #7
    adr x2, inner
    mov x3, #0
    mov x4, #0
    call SDEI_REGISTER
    mov x1, #7
    call SDEI_ENABLE
    mov x19, #0
    mov x1, #0
    mrs x2, mpidr_el1
    call SDEI_SIGNAL
    cmp x19, #6
    b.ne bad
    off
outer:
    add x19, x19, #1
    mov x9, #0x99
    mov x1, #7
    mrs x2, mpidr_el1
    call SDEI_SIGNAL
    cmp x9, #0x99
    b.ne bad
    add x19, x19, #3
    mov x1, #0
    call SDEI_COMPLETE
bad:
    .inst 0
inner:
    cmp x19, #1
    b.ne bad
    add x19, x19, #2
    mov x9, #0
    mov x1, #0
    call SDEI_COMPLETE
    b bad
""",
        events=events,
    ) as machine:
        machine.start()
        outcome = machine.wait(DEADLINE)
        assert outcome.reason is ExitReason.POWER_OFF, [fault.render() for fault in outcome.faults]


def test_loading_twice_and_late() -> None:
    with boot("    b .") as machine:
        machine.load(assemble("    off"))
        machine.start()
        with pytest.raises(StateError):
            machine.load(assemble("    off"))
        assert machine.wait(DEADLINE).reason is ExitReason.POWER_OFF


def test_random_kicks_and_pauses_lose_no_event() -> None:
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    with boot(COUNTING) as machine:
        until, console = Until(machine), Console(machine)
        machine.start()
        console.shows("R\n")
        injected = 0
        for _ in range(300):
            act = chance.randrange(4)
            if act == 0:
                machine.pause()
                machine.resume()
            elif act == 1:
                machine.kick(1)
            else:
                machine.inject(0, 0)
                injected += 1
                until.reaches(injected)
        assert until.completed == injected


def test_an_arm64_image_boots(tmp_path: Path) -> None:
    """x0 is the device tree's address, the entry is the first byte of the Image."""
    code = (
        0x14000010,  # b 64
        *struct.unpack("<15I", struct.pack("<4xQQQ24x4s4x", 0x8_0000, 0x1000, 0xA, b"ARM\x64")),
        0xB9400001,  # ldr w1, [x0]: d0 0d fe ed, big endian
        0xD2A12014,  # mov x20, #0x09000000
        0x12001C35,  # and w21, w1, #0xff
        0xB9000295,  # str w21, [x20]
        0x52800140,  # mov w0, #10
        0xB9000280,  # str w0, [x20]
        0xD2B08000,  # mov x0, #0x84000000
        0x91002000,  # add x0, x0, #8
        0xD4000002,  # hvc #0
    )
    path = tmp_path / "Image"
    path.write_bytes(struct.pack(f"<{len(code)}I", *code))
    with open_machine("unicorn", MachineConfig(vcpus=1)) as machine:
        output = bytearray()
        machine.console = output.extend
        machine.load(path)
        machine.start()
        outcome = machine.wait(DEADLINE)
        assert outcome.reason is ExitReason.POWER_OFF, [fault.render() for fault in outcome.faults]
        assert output == b"\xd0\n"


def test_a_shared_event_goes_on_to_the_next_vcpu_when_the_first_takes_another() -> None:
    """Both vCPUs spin and make no calls; the one that was kicked for the shared event takes a private one instead."""
    with boot(
        """
    mrs x27, mpidr_el1
    and x27, x27, #0xff
    cbnz x27, second
    mov x1, #1
    adr x2, _start
    mov x3, #0
    call CPU_ON
    mov x1, #8
    adr x2, handler
    mov x3, #0
    mov x4, #0
    call SDEI_REGISTER
    mov x1, #8
    call SDEI_ENABLE
second:
    take_event handler
    ldr x26, =0x40300000
    mov x1, #1
    ldadd x1, x2, [x26]
    cbz x2, 1f
    say 'R'
    say 10
1:  b 1b
handler:
    b handler
""",
        vcpus=2,
        events=(EventDefinition(8, shared=True),),
    ) as machine:
        console = Console(machine)
        machine.start()
        console.shows("R\n")
        machine.pause()
        machine.inject(0, 0)
        machine.inject(8)
        machine.resume()
        until = time.monotonic() + DEADLINE
        while sorted(event for vcpu in machine.status().vcpus for event in vcpu.running) != [0, 8]:
            assert time.monotonic() < until, machine.status()
