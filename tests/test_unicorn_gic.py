# SPDX-License-Identifier: Apache-2.0
"""The embedded machine's interrupt controller, as a guest sees it, and as it moves."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest

from sdeivirt.errors import StateError, StreamError, UnknownVcpuError
from sdeivirt.machine import ExitReason, MachineConfig
from sdeivirt.machine.unicorn import UnicornMachine, gic, state
from sdeivirt.machine.unicorn.icc import decode
from sdeivirt.migration.sections import pack, unpack
from sdeivirt.sdei import EventDefinition
from sdeivirt.tables.devicetree import build, fdt

from .asm import assemble
from .machine_support import Console
from .unicorn_moves import arrive, run_through, saved

pytestmark = pytest.mark.machine

# x25: the frame of this PE's interrupts. An interrupt handler says its vector's letter, then the INTID.
GIC = """
    .equ CTLR, 0x08000000
    .macro write address, value
    ldr x20, =\\address
    ldr w21, =\\value
    str w21, [x20]
    .endm
    .macro number reg               // as a letter, from 'a' on
    mov x20, #0x09000000
    add w21, \\reg, #97
    str w21, [x20]
    .endm
    .macro hex reg
    mov x22, \\reg
    mov x23, #64
9:  sub x23, x23, #4
    lsr x21, x22, x23
    and w21, w21, #15
    cmp w21, #10
    add w20, w21, #48
    add w21, w21, #87
    csel w21, w20, w21, lo
    mov x20, #0x09000000
    str w21, [x20]
    cbnz x23, 9b
    say 10
    .endm
    .macro gic_on
    adr x0, vectors
    msr vbar_el1, x0
    write CTLR, 0x12
    mrs x24, mpidr_el1
    and x24, x24, #0xff
    ldr x25, =0x080b0000
    add x25, x25, x24, lsl #17
    ldr w0, =0xfffffff0
    mvn w0, wzr
    str w0, [x25, #0x80]            // all in group 1
    str w0, [x25, #0x100]           // and enabled
    mov x0, #0xf0
    msr S3_0_C4_C6_0, x0            // ICC_PMR_EL1
    mov x0, #1
    msr S3_0_C12_C12_7, x0          // ICC_IGRPEN1_EL1
    isb
    .endm
    .macro priority intid, value
    mov w0, #\\value
    strb w0, [x25, #0x400 + \\intid]
    .endm
    .macro pend bits
    ldr w0, =\\bits
    str w0, [x25, #0x200]
    .endm
    .macro linger                   // long enough for an interrupt to be taken
    mov x17, #200
9:  subs x17, x17, #1
    b.ne 9b
    .endm
    .macro irqs_on
    msr daifclr, #2
    .endm
    .macro irqs_off
    msr daifset, #2
    .endm
    b start
    .balign 2048
vectors:
    .irp letter, 48, 49, 50, 51, 52, 53, 54, 55, 56, 57, 65, 66, 67, 68, 69, 70
    .balign 128
    mov x19, #\\letter
    b on_exception
    .endr
"""

# Says where it came in and what it was, and goes on.
HANDLER = """
on_exception:
    mov x20, #0x09000000
    str w19, [x20]
    mrs x18, S3_0_C12_C12_0         // ICC_IAR1_EL1
    number w18
    say 10
    msr S3_0_C12_C12_1, x18         // ICC_EOIR1_EL1
    eret
"""


def prints(body: str, handler: str = HANDLER, **config: Any) -> str:
    """What a guest prints that ends by itself."""
    with UnicornMachine(MachineConfig(**{"vcpus": 1, "memory": 8 << 20, **config})) as machine:
        console = Console(machine)
        machine.load(assemble(GIC + handler + "start:\n" + body))
        machine.start()
        outcome = machine.wait(20)
        assert (outcome.reason, outcome.faults) == (ExitReason.POWER_OFF, []), console.text
        return console.text


class Guest:
    """One that waits for the host."""

    def __init__(self, body: str, handler: str = HANDLER, **config: Any) -> None:
        self.machine = UnicornMachine(MachineConfig(**{"vcpus": 1, "memory": 8 << 20, **config}))
        self.console = Console(self.machine)
        self.machine.load(assemble(GIC + handler + "start:\n" + body))
        self.machine.start()

    def __enter__(self) -> Guest:
        return self

    def __exit__(self, *_error: object) -> None:
        self.machine.close()


# -- interrupts come


@pytest.mark.parametrize("seed", [None, 3])
@pytest.mark.parametrize("wait", ["wfi", "nop", "mov x20, #0x09000000\n ldr w21, [x20, #0x18]"])
def test_a_pulse_interrupts_what_runs_and_what_waits(wait: str, seed: int | None) -> None:
    body = f"gic_on\n irqs_on\n say 'R'\n say 10\n1: {wait}\n b 1b"
    with Guest(body, seed=seed) as guest:
        guest.console.shows("R\n")
        for i in range(1, 6):
            guest.machine.pulse(0, 16 + i)
            guest.console.shows(f"5{chr(97 + 16 + i)}\n")
        assert guest.console.text == "R\n5r\n5s\n5t\n5u\n5v\n"  # vector 5: IRQ, current level with SP_ELx


def test_vectors_by_where_it_comes_from() -> None:
    text = prints(
        """
    gic_on
    pend 1 << 20
    irqs_on
    linger
    irqs_off
    adr x0, user
    msr elr_el1, x0
    msr spsr_el1, xzr               // EL0t, nothing masked
    pend 1 << 21
    eret
user:
    nop
    b user
    """,
        handler="""
on_exception:
    mov x20, #0x09000000
    str w19, [x20]
    mrs x18, S3_0_C12_C12_0
    number w18
    msr S3_0_C12_C12_1, x18
    cmp x18, #21
    b.eq 1f
    eret
1:  off
    """,
    )
    assert text == "5u9v"


@pytest.mark.parametrize("seed", [None, 3])
def test_an_interrupt_comes_before_the_svc_behind_it(seed: int | None) -> None:
    # The store and the SVC are executed at one go; still the kernel is entered for the interrupt, and then for the SVC.
    text = prints(
        """
    gic_on
    adr x0, user
    msr elr_el1, x0
    msr spsr_el1, xzr               // EL0t, nothing masked
    eret
user:
    pend 1 << 20
system_call:
    svc #0
    """,
        handler="""
on_exception:
    mov x20, #0x09000000
    str w19, [x20]
    mrs x18, elr_el1
    adr x17, system_call
    sub x18, x18, x17
    number w18
    cmp x19, #56                    // vector 8: synchronous, from EL0
    b.eq 1f
    mrs x18, S3_0_C12_C12_0
    number w18
    msr S3_0_C12_C12_1, x18
    eret
1:  off
    """,
        seed=seed,
    )
    assert text == "9au8e"


def test_a_vcpu_that_takes_its_interrupt_is_not_stopped_again_for_it() -> None:
    body = """
    gic_on
    irqs_on
    mov x27, #0
    say 'R'
1:  mov x26, x27
    say 10
2:  cmp x26, x27                    // until the handler has been here
    b.eq 2b
    say 'T'
    b 1b
    """
    handler = """
on_exception:
    mrs x18, S3_0_C12_C12_0
    msr S3_0_C12_C12_1, x18
    add x27, x27, #1
    eret
    """
    with Guest(body, handler) as guest:
        if guest.machine.scheduler != "fast":
            pytest.skip("without a stub all slices are short")
        guest.console.shows("R\n")
        slices: list[int] = []
        guest.machine.on_slice = lambda _vcpu, pc: slices.append(pc)
        for i in range(1, 11):
            guest.machine.pulse(0, 16 + i)
            guest.console.shows("R\n" + "T\n" * i)
        assert 10 <= len(slices) <= 12


@pytest.mark.parametrize("seed", [None, 5])
def test_a_mask_holds_it_back_and_one_instruction_lets_it_in(seed: int | None) -> None:
    text = prints(
        """
    gic_on
    pend 1 << 20
    mov x0, #3000
1:  subs x0, x0, #1
    b.ne 1b
    say 'M'
    mov x26, #0
2:  irqs_on
    irqs_off
    add x26, x26, #1
    ldr w0, [x25, #0x200]
    cbnz w0, 2b
    say 'E'
    off
    """,
        seed=seed,
    )
    assert text == "M5u\nE"


def test_wfi_ends_although_interrupts_are_masked() -> None:
    with Guest("gic_on\n say 'R'\n wfi\n wfi\n mrs x0, S3_0_C12_C12_0\n number w0\n off") as guest:
        guest.console.shows("R")
        guest.machine.pulse(0, 24)
        assert guest.machine.wait(20).reason is ExitReason.POWER_OFF
        assert guest.console.text == "Ry"


def test_a_group_a_priority_or_a_switch_that_keeps_it_back() -> None:
    text = prints("""
    gic_on
    irqs_on
    .macro shows
    linger
    say '-'
    .endm
    write CTLR, 0x10                // the distributor
    pend 1 << 20
    shows
    str wzr, [x25, #0x80]           // group 0, which is not signalled
    write CTLR, 0x12
    shows
    mov w0, #1 << 20
    str w0, [x25, #0x180]           // ICENABLER
    mvn w0, wzr
    str w0, [x25, #0x80]
    shows
    mov x0, #0x80
    msr S3_0_C4_C6_0, x0            // priorities above 0x80 only
    priority 20, 0x80
    mov w0, #1 << 20
    str w0, [x25, #0x100]
    shows
    msr S3_0_C12_C12_7, xzr         // the CPU interface
    priority 20, 0x78
    shows
    mov x0, #1
    msr S3_0_C12_C12_7, x0
    shows
    off
    """)
    assert text == "-----5u\n-"


def test_the_most_urgent_first_and_those_alike_by_number() -> None:
    text = prints("""
    gic_on
    priority 17, 0xa0
    priority 18, 0x40
    priority 19, 0xa0
    priority 20, 0x48
    priority 25, 0
    pend 1 << 17 | 1 << 18 | 1 << 19 | 1 << 20 | 1 << 25
    mrs x0, S3_0_C12_C12_2          // HPPIR1
    number w0
    say 10
    irqs_on
    linger
    irqs_off
    mrs x0, S3_0_C12_C12_2
    hex x0
    off
    """)
    assert text == "\x80\n5\x80\n5s\n5u\n5r\n5t\n00000000000003ff\n".replace("\x80", chr(97 + 25))


def test_a_more_urgent_one_interrupts_a_handler_and_another_waits() -> None:
    text = prints(
        """
    gic_on
    priority 20, 0x80
    priority 21, 0x80
    priority 22, 0x40
    pend 1 << 20
    irqs_on
    linger
    off
    """,
        handler="""
on_exception:
    mrs x18, S3_0_C12_C12_0
    number w18
    cmp x18, #20
    b.ne 1f
    mrs x27, elr_el1
    mrs x28, spsr_el1
    mrs x0, S3_0_C12_C11_3          // RPR
    hex x0
    pend 1 << 21
    irqs_on
    linger
    say '-'
    pend 1 << 22
    linger
    say '-'
    irqs_off
    mrs x0, S3_0_C12_C9_0           // AP1R0
    hex x0
    msr elr_el1, x27
    msr spsr_el1, x28
    mov x18, #20
1:  msr S3_0_C12_C12_1, x18
    eret
    """,
    )
    assert text == "u0000000000000080\n-w-0000000000010000\nv"


def test_with_split_ends_it_stays_active_until_it_is_deactivated() -> None:
    text = prints("""
    gic_on
    mov x0, #2
    msr S3_0_C12_C12_4, x0          // CTLR.EOImode
    pend 1 << 20
    mrs x18, S3_0_C12_C12_0
    number w18
    pend 1 << 20
    msr S3_0_C12_C12_1, x18
    mrs x0, S3_0_C12_C12_0          // still active: it does not come again
    hex x0
    msr S3_0_C12_C11_1, x18         // DIR
    mrs x0, S3_0_C12_C12_0
    number w0
    off
    """)
    assert text == "u00000000000003ff\nu"


# -- between PEs

START_OTHERS = """
    mrs x0, mpidr_el1
    and x0, x0, #0xff
    cbnz x0, other
    .irp n, {others}
    mov x1, #\\n
    adr x2, _start
    mov x3, #0
    call CPU_ON
    .endr
    gic_on
"""


@pytest.mark.parametrize("seed", [None, 9])
def test_sgis_go_to_those_who_are_named(seed: int | None) -> None:
    body = (
        START_OTHERS.format(others="1, 2, 3")
        + """
    ldr x26, =0x40300000
1:  ldr x0, [x26]                   // all are there
    cmp x0, #3
    b.ne 1b
    ldr x0, =0x0300000a             // SGI 3 for PEs 1 and 3
    msr S3_0_C12_C11_5, x0
2:  ldr x0, [x26]
    cmp x0, #5
    b.ne 2b
    ldr x0, =0x10004000000          // SGI 4 for all others
    msr S3_0_C12_C11_5, x0
3:  ldr x0, [x26]
    cmp x0, #8
    b.ne 3b
    ldr x0, =0x05000001             // SGI 5 for itself
    msr S3_0_C12_C11_5, x0
    irqs_on
    linger
    .irp n, 8, 16, 24, 32
    ldr x0, [x26, #\\n]
    hex x0
    .endr
    off
other:
    gic_on
    ldr x26, =0x40300000
    mov x1, #1
    ldadd x1, x2, [x26]
    irqs_on
4:  wfi
    b 4b
    """
    )
    handler = """
on_exception:                       // counts by INTID, a byte each, in this PE's word; and in all of them
    mrs x18, S3_0_C12_C12_0
    ldr x20, =0x40300008
    add x20, x20, x24, lsl #3
    lsl x21, x18, #3
    mov x22, #1
    lsl x22, x22, x21
    ldr x21, [x20]
    add x21, x21, x22
    str x21, [x20]
    msr S3_0_C12_C12_1, x18
    cbz x24, 1f
    mov x1, #1
    ldr x20, =0x40300000
    ldadd x1, x2, [x20]
1:  eret
    """
    text = prints(body, handler, vcpus=4, seed=seed)
    assert text.split() == ["0000010000000000", "0000000101000000", "0000000100000000", "0000000101000000"]


def test_an_sgi_into_another_cluster() -> None:
    body = """
    mrs x0, mpidr_el1
    and x0, x0, #0xffff
    cbnz x0, other
    mov x1, #0x101                  // PE 17
    adr x2, _start
    mov x3, #0
    call CPU_ON
    gic_on
    irqs_on
1:  wfi
    b 1b
other:
    ldr x0, =0x08000000
    mov w1, #0x12
    str w1, [x0]
    ldr x1, =0x080a0008 + 17 * 0x20000
    ldr x0, [x1]
    hex x0                          // GICR_TYPER
    ldr x1, =0x080b0000
    mov w0, #0x40
2:  ldr w2, [x1, #0x100]            // until SGI 6 is enabled on PE 0
    tst w2, w0
    b.eq 2b
    ldr x0, =0x06000001             // cluster 0, Aff0 0
    msr S3_0_C12_C11_5, x0
3:  wfi
    b 3b
    """
    handler = "on_exception:\n mrs x18, S3_0_C12_C12_0\n number w18\n off\n"
    assert prints(body, handler, vcpus=18) == "0000010100001110\ng"


def test_redistributors_beyond_the_first_region() -> None:
    text = prints(
        """
    ldr x1, =0x080a0008 + 122 * 0x20000
    ldr x0, [x1]
    hex x0
    ldr x1, =0x4000000008
    ldr x0, [x1]
    hex x0
    ldr x1, =0x4000020008
    ldr x0, [x1]
    hex x0
    off
    """,
        vcpus=125,
    )
    assert text.split() == ["0000070a00007a10", "0000070b00007b00", "0000070c00007c10"]
    assert gic.regions(125) == [(0x080A_0000, 123 * 0x2_0000), (0x40_0000_0000, 2 * 0x2_0000)]


@pytest.mark.parametrize("vcpus", [1, 123, 124, 512])
def test_the_device_tree_tells_of_it(vcpus: int) -> None:
    tree = fdt.parse_dtb(build(MachineConfig(vcpus=vcpus), list(range(vcpus))))
    node = tree.get_node("/intc@8000000")
    cells = node.get_property("reg").data
    wide = [cells[i] << 32 | cells[i + 1] for i in range(0, len(cells), 2)]
    assert wide == [gic.GICD_BASE, gic.GICD_SIZE, *(word for region in gic.regions(vcpus) for word in region)]
    assert node.get_property("#redistributor-regions").value == len(gic.regions(vcpus))
    assert node.get_property("compatible").value == "arm,gic-v3"
    assert tree.root.get_property("interrupt-parent").value == node.get_property("phandle").value


# -- registers


def test_what_a_driver_asks_first() -> None:
    text = prints("""
    mrs x0, id_aa64pfr0_el1
    ubfx x0, x0, #24, #4
    hex x0
    mrs x0, S3_0_C12_C12_5          // ICC_SRE_EL1
    hex x0
    .irp offset, 0x0, 0x4, 0xffe8, 0x100, 0x800, 0x6100
    ldr x1, =0x08000000 + \\offset
    ldr w0, [x1]
    hex x0
    .endr
    ldr x1, =0x080a0000
    ldr w0, [x1, #0x14]             // GICR_WAKER
    hex x0
    str wzr, [x1, #0x14]
    ldr w0, [x1, #0x14]
    hex x0
    add x2, x1, #0x10, lsl #12
    mvn w0, wzr
    str w0, [x2, #0xc04]            // GICR_ICFGR1
    ldr w0, [x2, #0xc04]
    hex x0
    ldr w0, =0x12345678
    str w0, [x2, #0x410]            // GICR_IPRIORITYR4: five bits each
    ldr w0, [x2, #0x410]
    hex x0
    ldrb w0, [x2, #0x412]
    hex x0
    .irp reg, S3_0_C12_C12_4, S3_0_C12_C12_3, S3_0_C12_C11_3, S3_0_C12_C12_0, S3_0_C12_C8_0
    mrs x0, \\reg                   // CTLR, BPR1, RPR, IAR1, IAR0
    hex x0
    .endr
    msr S3_0_C12_C12_1, x0          // EOIR1 of nothing
    off
    """)
    values = [int(line, 16) for line in text.split()]
    assert values[:2] == [1, 7]
    assert values[2:8] == [0x50, 0x0178_0008, 0x3B, 0, 0, 0]
    assert values[8:13] == [6, 0, 0xAAAA_AAAA, 0x1030_5078, 0x30]
    assert values[13:] == [0x8400, 3, 0xFF, 1023, 1023]


@pytest.mark.parametrize(
    "access",
    [
        "mrs x0, S3_0_C12_C11_5",  # SGI1R can only be written
        "msr S3_0_C12_C12_0, x0",  # IAR1 only read
        "mrs x0, S3_0_C12_C10_0",  # nothing
        "mrs x0, S3_4_C12_C11_0",  # EL2's
    ],
)
def test_what_is_undefined_at_el1(access: str) -> None:
    handler = "on_exception:\n mrs x0, esr_el1\n hex x0\n off\n"
    assert prints(f"gic_on\n {access}\n say 'X'\n off", handler) == "0000000002000000\n"


def test_interrupt_registers_are_undefined_at_el0() -> None:
    handler = "on_exception:\n mov x20, #0x09000000\n str w19, [x20]\n mrs x0, esr_el1\n hex x0\n off\n"
    body = """
    gic_on
    pend 1 << 20
    adr x0, user
    msr elr_el1, x0
    mov x0, #0x80
    msr spsr_el1, x0
    eret
user:
    mrs x0, S3_0_C12_C12_0
    b user
    """
    assert prints(body, handler) == "80000000002000000\n"


def test_decoding_takes_nothing_else_for_one_of_these() -> None:
    assert decode(0xD538_CC00) == ("iar1", 0, True)  # mrs x0, icc_iar1_el1
    assert decode(0xD518_CC3F) == ("eoir1", 31, False)  # msr icc_eoir1_el1, xzr
    chosen = random.Random(1)
    for _ in range(20_000):
        word = chosen.getrandbits(32)
        assert decode(word) is None or word >> 22 == 0xD500_0000 >> 22


# -- SDEI


def test_an_event_comes_before_an_interrupt_and_whatever_the_mask() -> None:
    text = prints("""
    gic_on
    take_event handler
    pend 1 << 20
    mov x1, #0
    mrs x2, mpidr_el1
    and x2, x2, #0xff
    call SDEI_SIGNAL                // while the interrupt is masked
    say '-'
    irqs_on
    linger
    off
handler:
    say 'E'
    call SDEI_COMPLETE
    """)
    assert text == "E-5u\n"


def test_a_bound_interrupt_is_the_guests_until_its_event_is_registered_and_again_afterwards() -> None:
    body = """
    gic_on
    irqs_on
    mov x1, #24
    call 0xc400002d                 // INTERRUPT_BIND
    mov x26, x0
    pend 1 << 24
    linger
    mov x1, x26
    adr x2, handler
    mov x3, #0
    mov x4, #0
    mov x5, #0
    call SDEI_REGISTER
    mov x1, x26
    call SDEI_ENABLE
    call SDEI_UNMASK
    pend 1 << 24
    linger
    say 'R'
    say 10
1:  mov x17, #0x40300000
    ldr x0, [x17]
    cmp x0, #2
    b.ne 1b
    mov x1, x26
    call 0xc4000027                 // UNREGISTER
    pend 1 << 24
    linger
    off
handler:
    say 'E'
    mov x17, #0x40300000
    ldr x0, [x17]
    add x0, x0, #1
    str x0, [x17]
    mov x1, #0
    call SDEI_COMPLETE
    """
    with Guest(body) as guest:
        guest.console.shows("R\n")
        guest.machine.pulse(0, 24)
        assert guest.machine.wait(20).reason is ExitReason.POWER_OFF
        assert guest.console.text == "5y\nER\nE5y\n"


def test_an_interrupt_of_a_defined_event() -> None:
    events = (EventDefinition(0x4000_0050, interrupt=25),)
    body = """
    gic_on
    ldr x1, =0x40000050
    adr x2, handler
    mov x3, #0
    mov x4, #0
    mov x5, #0
    call SDEI_REGISTER
    ldr x1, =0x40000050
    call SDEI_ENABLE
    call SDEI_UNMASK
    say 'R'
1:  wfi
    b 1b
handler:
    say 'E'
    off
    """
    with Guest(body, events=events) as guest:
        guest.console.shows("R")
        guest.machine.pulse(0, 25)
        assert guest.machine.wait(20).reason is ExitReason.POWER_OFF
        assert guest.console.text == "RE"


# -- power, reset, moving


def test_a_reset_forgets_everything() -> None:
    text = prints("""
    mov x20, #0x40000000            // not cleared by what follows? it is: RAM starts over
    ldr x25, =0x080b0000
    ldr w0, [x25, #0x100]
    cbnz w0, 1f
    ldr x1, =0x08000000
    ldr w0, [x1]
    hex x0
    mrs x0, S3_0_C4_C6_0
    hex x0
    adr x1, count
    gic_on
    pend 1 << 20
    mov x20, #0x09000000
    ldr w0, [x20, #0x30]            // the serial port does keep its control register
    cmp w0, #0x123
    b.eq 1f
    mov w0, #0x123
    str w0, [x20, #0x30]
    call SYSTEM_RESET
1:  off
count: .quad 0
    """)
    assert text == "0000000000000050\n0000000000000000\n" * 2


def test_a_pe_that_is_turned_on_again_has_its_cpu_interface_reset() -> None:
    body = """
    mrs x0, mpidr_el1
    and x0, x0, #0xff
    cbnz x0, other
    gic_on
1:  mov x1, #1
    adr x2, _start
    mov x3, #0
    call CPU_ON
2:  mov x1, #1
    mov x2, #0
    call AFFINITY_INFO
    cmp x0, #1
    b.ne 2b
    ldr x26, =0x40300000
    ldr x0, [x26]
    cmp x0, #2
    b.ne 1b
    off
other:
    ldr x26, =0x40300000
    ldr x0, [x26]
    add x0, x0, #1
    str x0, [x26]
    mrs x0, S3_0_C4_C6_0            // PMR
    hex x0
    ldr x1, =0x080d0000
    ldr w0, [x1, #0x100]            // what the redistributor has stays
    hex x0
    gic_on
    call CPU_OFF
    """
    assert prints(body, vcpus=2).split() == ["0" * 16, "0" * 16, "0" * 16, "00000000ffffffff"]


HOLDS = """
    gic_on
    priority 20, 0x80
    priority 21, 0x40
    pend 1 << 20 | 1 << 21
    mrs x18, S3_0_C12_C12_0         // 21 is active
    say 'R'
    say 10
1:  mov x20, #0x09000000
    ldr w0, [x20, #0x18]
    tbnz w0, #4, 1b                 // until something is typed
    msr S3_0_C12_C12_1, x18
    irqs_on
    linger
    off
"""


def paused(guest: Guest) -> list[Any]:
    guest.console.shows("R\n")
    return saved(guest.machine)


def go_on(guest: Guest, sections: list[Any]) -> str:
    """The same guest on another machine, to its end; what it prints there."""
    with UnicornMachine(guest.machine.config) as there:
        console = Console(there)
        arrive(there, sections, guest.machine.memory())
        there.type_in(b"x")
        there.resume()
        assert there.wait(20).reason is ExitReason.POWER_OFF
        return console.text


def test_pending_and_active_interrupts_move_and_pulses_that_nobody_has_seen() -> None:
    with Guest(HOLDS) as guest:
        guest.console.shows("R\n")
        guest.machine.pause()
        guest.machine.pulse(0, 22)
        assert go_on(guest, saved(guest.machine)) == "5w\n5u\n"


def test_a_guest_from_before_there_was_a_controller_arrives() -> None:
    with Guest("say 'R'\n say 10\n1: mov x20, #0x09000000\n ldr w0, [x20, #0x18]\n tbnz w0, #4, 1b\n off") as guest:
        sections = paused(guest)
        assert state.GIC not in {section.name for section in sections}, "not sent where it was never used"
        assert go_on(guest, sections) == ""


CPU = {"priorities": bytes(31), "pmr": 0x07, "bpr": 2, "waker": 1, "eoi_mode": 1, "group1": 2, "config": 1}


@pytest.mark.parametrize(
    "change",
    [
        *({name: value} for name, value in CPU.items()),
        *({name: 1 << 32} for name in ("group", "enabled", "pending", "active", "active_priorities")),
        {"pending": -1},
        {"priorities": bytes([1] * 32)},
    ],
    ids=lambda change: next(iter(change)),
)
def test_a_controller_that_cannot_be_is_refused(change: dict[str, Any]) -> None:
    with Guest(HOLDS) as guest:
        sections = paused(guest)
        at = next(i for i, section in enumerate(sections) if section.name == state.GIC)
        record = unpack(sections[at], state.GicRecord)
        fields = {name: getattr(record.cpus[0], name) for name in record.cpus[0].__struct_fields__} | change
        sections[at] = pack(state.GIC, state.GicRecord(record.control, [state.GicCpuRecord(**fields)]))
        with UnicornMachine(guest.machine.config) as there, pytest.raises(StreamError, match="cannot be"):
            arrive(there, sections, guest.machine.memory())


@pytest.mark.parametrize("damage", ["control", "cpus", "version"])
def test_a_controller_of_another_shape_is_refused(damage: str) -> None:
    with Guest(HOLDS) as guest:
        sections = paused(guest)
        at = next(i for i, section in enumerate(sections) if section.name == state.GIC)
        record = unpack(sections[at], state.GicRecord)
        changed = {
            "control": pack(state.GIC, state.GicRecord(4, record.cpus)),
            "cpus": pack(state.GIC, state.GicRecord(record.control, record.cpus * 2)),
            "version": replace(sections[at], version=2),
        }
        sections[at] = changed[damage]
        with UnicornMachine(guest.machine.config) as there, pytest.raises(StreamError):
            arrive(there, sections, guest.machine.memory())


# Two PEs interrupt each other again and again, in the midst of which they are moved.
PING_PONG = (
    START_OTHERS.format(others="1")
    + """
    b both
other:
    gic_on
both:
    ldr x26, =0x40300000
    add x26, x26, x24, lsl #6
    mov x1, #1
    str x1, [x26]
1:  ldr x0, =0x40300000
    ldr x1, [x0]
    ldr x2, [x0, #64]
    cbz x1, 1b
    cbz x2, 1b
    irqs_on
    eor x0, x24, #1
    mov x1, #1
    lsl x1, x1, x0
    orr x28, x1, #0x07000000        // SGI 7 for the other one
    cbnz x24, 2f
    msr S3_0_C12_C11_5, x28
2:  wfi
    ldr x0, [x26]
    cmp x0, #30
    b.lo 2b
    say 'D'
    cbz x24, 3f
    call CPU_OFF
3:  mov x1, #1
    mov x2, #0
    call AFFINITY_INFO
    cmp x0, #1
    b.ne 3b
    off
"""
)
PONG = """
on_exception:
    mrs x18, S3_0_C12_C12_0
    ldr x0, [x26]
    add x0, x0, #1
    str x0, [x26]
    msr S3_0_C12_C12_1, x18
    msr S3_0_C12_C11_5, x28
    eret
"""


def test_moving_while_interrupts_come_changes_nothing() -> None:
    elf = assemble(GIC + PONG + "start:\n" + PING_PONG)
    chosen = random.Random(2)
    stayed, picture, _ = run_through(elf, [], seed=4, vcpus=2)
    again, _, _ = run_through(elf, [], seed=4, vcpus=2)
    assert again == stayed, "the same seed, the same run"
    assert len(stayed) > 100
    moved, left, hops = run_through(elf, [chosen.randrange(1, len(stayed) // 20) for _ in range(20)], seed=4, vcpus=2)
    assert hops > 8
    assert (moved, left) == (stayed, picture)


# -- whose pulse


def test_a_pulse_for_nobody() -> None:
    with Guest("1: wfi\n b 1b") as guest:
        with pytest.raises(UnknownVcpuError):
            guest.machine.pulse(1, 17)
        guest.machine.stop()
        guest.machine.wait(20)
        with pytest.raises(StateError, match="stopped"):
            guest.machine.pulse(0, 17)
