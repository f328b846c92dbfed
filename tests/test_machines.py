# SPDX-License-Identifier: Apache-2.0
"""What every machine has to do, on every machine: one suite, the same guests, the same results."""

from __future__ import annotations

import random
import struct
import threading
import time
from pathlib import Path

import pytest

from sdeivirt.control.batch import run_to_end
from sdeivirt.errors import NotRegisteredError, StateError, UnknownEventError, UnknownVcpuError
from sdeivirt.guests import guest_path
from sdeivirt.machine import ExitReason, FaultReport, MachineConfig, Outcome, open_machine
from sdeivirt.machine.base import Machine
from sdeivirt.sdei import EventDefinition, Priority

from .asm import assemble
from .guest_texts import COUNTING, HANDLER_THAT_SPINS, PING_PONG
from .machine_support import DEADLINE, KINDS, Console, Until, boot, engine, takes_every_event

pytestmark = [pytest.mark.machine, pytest.mark.parametrize("kind", KINDS)]


def run(kind: str, body: str, limit: float = 20, **config: object) -> tuple[Outcome, str]:
    """Run a guest to its end; the outcome and what it printed."""
    printed = bytearray()
    with boot(kind, body, **config) as machine:
        machine.console = printed.extend
        machine.start()
        return machine.wait(limit), printed.decode()


def only_fault(outcome: Outcome) -> FaultReport:
    assert outcome.reason is ExitReason.FAULT
    (fault,) = outcome.faults
    return fault


@pytest.mark.parametrize("vcpus", [1, 2, 8])
def test_the_selftest_passes(kind: str, vcpus: int) -> None:
    with open_machine(kind, MachineConfig(vcpus=vcpus, engine=engine(kind))) as machine:
        transcript = run_to_end(machine, guest_path("selftest"), DEADLINE)
    assert transcript.ok, transcript


def test_a_masked_spinning_guest_takes_every_event_between_two_instructions(kind: str) -> None:
    with boot(kind, COUNTING) as machine:
        takes_every_event(machine, 1000)


def test_two_vcpus_signal_each_other(kind: str) -> None:
    with boot(kind, PING_PONG, vcpus=2) as machine:
        machine.start()
        assert machine.wait(DEADLINE).reason is ExitReason.POWER_OFF


def test_injections_from_many_threads_are_counted_exactly(kind: str) -> None:
    with boot(kind, COUNTING) as machine:
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


def test_pause_stops_between_instructions_and_resume_goes_on(kind: str) -> None:
    with boot(kind, COUNTING) as machine:
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


def test_an_event_wakes_a_waiting_vcpu(kind: str) -> None:
    with boot(kind, WAITING) as machine:
        until, console = Until(machine), Console(machine)
        machine.start()
        console.shows("R\n")
        for i in range(50):
            machine.inject(0, 0)
            until.reaches(i + 1)
        console.shows("R\n" + "E\n" * 50)


def test_host_mistakes_are_errors_with_a_hint(kind: str) -> None:
    with boot(kind, "    b .", events=(EventDefinition(7), EventDefinition(8, shared=True))) as machine:
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


def test_atomics_and_exclusives_of_four_vcpus_lose_nothing(kind: str) -> None:
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
    with boot(kind, body, vcpus=4) as machine:
        machine.start()
        outcome = machine.wait(DEADLINE)
        assert outcome.reason is ExitReason.POWER_OFF, [fault.render() for fault in outcome.faults]


def test_standby_wakes_by_an_event(kind: str) -> None:
    with boot(
        kind,
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
""",
    ) as machine:
        console = Console(machine)
        machine.start()
        console.shows("S\n")
        machine.inject(0, 0)
        assert machine.wait(DEADLINE).reason is ExitReason.POWER_OFF
        assert console.text == "S\nW\n"


def test_system_reset_starts_over_with_clean_memory_and_service(kind: str) -> None:
    """The guest notes in memory that it ran; after the reset the note and the registration are gone."""
    with boot(
        kind,
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
""",
    ) as machine:
        console = Console(machine)
        machine.start()
        console.shows("B\nB\nB\n")
        machine.stop()
        assert machine.wait(DEADLINE).reason is ExitReason.STOPPED


def test_a_cpu_off_and_on_again_starts_unregistered_and_masked(kind: str) -> None:
    with boot(
        kind,
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


def test_an_event_interrupts_el0_and_goes_back_there(kind: str) -> None:
    """SP is banked both ways, and EL0's PSTATE comes back."""
    with boot(
        kind,
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
""",
    ) as machine:
        console = Console(machine)
        machine.start()
        console.shows("R\n")
        machine.inject(0, 0)
        outcome = machine.wait(DEADLINE)
        assert outcome.reason is ExitReason.POWER_OFF, [fault.render() for fault in outcome.faults]


def test_critical_events_nest_in_normal_ones_on_real_code(kind: str) -> None:
    events = (EventDefinition(7, priority=Priority.CRITICAL, signalable=True),)
    with boot(
        kind,
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


def test_loading_twice_and_late(kind: str) -> None:
    with boot(kind, "    b .") as machine:
        machine.load(assemble("    off"))
        machine.start()
        with pytest.raises(StateError):
            machine.load(assemble("    off"))
        assert machine.wait(DEADLINE).reason is ExitReason.POWER_OFF


def test_random_kicks_and_pauses_lose_no_event(kind: str) -> None:
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    with boot(kind, COUNTING) as machine:
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


def test_an_arm64_image_boots(kind: str, tmp_path: Path) -> None:
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
    with open_machine(kind, MachineConfig(vcpus=1, engine=engine(kind))) as machine:
        output = bytearray()
        machine.console = output.extend
        machine.load(path)
        machine.start()
        outcome = machine.wait(DEADLINE)
        assert outcome.reason is ExitReason.POWER_OFF, [fault.render() for fault in outcome.faults]
        assert output == b"\xd0\n"


def test_a_shared_event_goes_on_to_the_next_vcpu_when_the_first_takes_another(kind: str) -> None:
    """Both vCPUs spin and make no calls; the one that was kicked for the shared event takes a private one instead."""
    with boot(
        kind,
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


VECTORS = """
    adr x0, vectors
    msr vbar_el1, x0
    {code}
    .balign 2048
vectors:
    .org vectors + 0x200
    mrs x10, esr_el1
    mrs x11, far_el1
    mrs x12, elr_el1
    mrs x13, spsr_el1
    lsr x14, x10, #26
    add w21, w14, #32
    mov x20, #0x09000000
    str w21, [x20]
    {then}
"""


@pytest.mark.parametrize(
    ("code", "exception_class"),
    [
        (".inst 0", 0x00),
        ("svc #5", 0x15),
        ("brk #1", 0x3C),
        ("mov x1, #0x80000000\n ldr x2, [x1]", 0x25),
        ("mov x1, #0x80000000\n br x1", 0x21),
    ],
)
def test_a_guest_with_vectors_takes_its_exceptions_itself(kind: str, code: str, exception_class: int) -> None:
    outcome, printed = run(kind, VECTORS.format(code=code, then="off"))
    assert outcome.reason is ExitReason.POWER_OFF
    assert printed == chr(exception_class + 32)


def test_an_exception_returns_to_the_instruction_after_svc(kind: str) -> None:
    outcome, printed = run(kind, VECTORS.format(code="svc #0\n say 'Z'\n off", then="eret"))
    assert outcome.reason is ExitReason.POWER_OFF
    assert printed == chr(0x15 + 32) + "Z"


def test_the_watchdog_reports_a_handler_that_never_ends(kind: str) -> None:
    fault = only_fault(run(kind, HANDLER_THAT_SPINS, watchdog=0.5)[0])
    assert "handler of event 0x0" in fault.reason
    assert fault.registers["x19"] == 0x55


def test_the_watchdog_leaves_a_pe_alone_that_has_masked_itself(kind: str) -> None:
    """Linux parks CPUs like that when it panics; what comes after, a crash kernel say, is not to be cut off."""
    parked = HANDLER_THAT_SPINS.replace("mov x19, #0x55\n    b handler", "call SDEI_MASK\n    b .")
    assert parked != HANDLER_THAT_SPINS
    outcome, _ = run(kind, parked, limit=1.5, watchdog=0.2)
    assert outcome.reason is ExitReason.TIME_LIMIT


def test_all_vcpus_off_is_the_end(kind: str) -> None:
    outcome, _ = run(kind, "    call CPU_OFF\n    b .")
    assert outcome.reason is ExitReason.ALL_OFF


def test_hypercalls_from_el0_trap_to_el1(kind: str) -> None:
    """HVC and SMC at EL0 are undefined there: the guest's kernel sees them, the service does not."""
    for instruction in ("hvc #0", ".inst 0xd4000003"):
        outcome, printed = run(
            kind,
            f"""
    adr x0, vectors
    msr vbar_el1, x0
    adr x0, user
    msr elr_el1, x0
    msr spsr_el1, xzr
    eret
user:
    ldr x0, =0x84000008
    {instruction}
    b .
    .balign 2048
vectors:
    .org vectors + 0x400
    mrs x10, esr_el1
    lsr x10, x10, #26
    add w21, w10, #65
    mov x20, #0x09000000
    str w21, [x20]
    off
""",
        )
        assert outcome.reason is ExitReason.POWER_OFF
        assert printed == "A"


def test_a_console_that_breaks_is_raised_on_the_host(kind: str) -> None:
    def console(_data: bytes) -> None:
        raise BrokenPipeError("nobody reads")

    with open_machine(kind, MachineConfig(vcpus=1, engine=engine(kind))) as machine:
        machine.console = console
        machine.load(assemble("    say 10\n    off"))
        machine.start()
        with pytest.raises(BrokenPipeError):
            machine.wait(10)


def test_life_cycle_errors(kind: str) -> None:
    machine: Machine = open_machine(kind, MachineConfig(vcpus=1, engine=engine(kind)))

    with pytest.raises(StateError, match="no guest"):
        machine.start()
    with pytest.raises(StateError, match="not been started"):
        machine.wait()
    assert machine.state == "created"
    machine.load(assemble("    b ."))
    machine.start()
    with pytest.raises(StateError, match="already"):
        machine.start()
    machine.stop()
    assert machine.wait().reason is ExitReason.STOPPED
    assert machine.state == "stopped"
    machine.close()
    machine.close()


def test_nothing_is_injected_into_a_machine_that_has_stopped(kind: str) -> None:
    with open_machine(kind, MachineConfig(vcpus=1, engine=engine(kind))) as machine:
        machine.load(str(assemble("    off")))
        machine.start()
        assert machine.wait(10).reason is ExitReason.POWER_OFF
        for call in (machine.inject, machine.cancel):
            with pytest.raises(StateError, match="stopped"):
                call(0)


def test_a_reset_ends_the_run_where_it_is_not_to_restart(kind: str) -> None:
    outcome, _ = run(kind, "    call SYSTEM_RESET\n    b .", restart=False)
    assert outcome.reason is ExitReason.RESET


def test_the_time_limit_reports_what_every_vcpu_was_doing(kind: str) -> None:
    with boot(kind, HANDLER_THAT_SPINS) as machine:
        machine.start()
        until = time.monotonic() + DEADLINE
        while machine.status().vcpus[0].running != [0]:
            assert time.monotonic() < until
        outcome = machine.wait(0.2)
    assert outcome.reason is ExitReason.TIME_LIMIT
    (fault,) = outcome.faults
    assert fault.vcpu == 0
    assert "still running" in fault.reason
    assert fault.registers["x19"] == 0x55
    assert any((line.startswith("=>") and "mov" in line) or "b " in line for line in fault.disassembly)
