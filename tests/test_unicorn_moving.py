# SPDX-License-Identifier: Apache-2.0
"""Guests that are moved between embedded machines go on as if nothing had happened: instruction for instruction."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sdeivirt.guests import guest_path
from sdeivirt.sdei import EventDefinition

from .asm import assemble
from .guest_texts import PING_PONG
from .unicorn_moves import run_through

pytestmark = pytest.mark.machine

# A little of everything that has state: the MMU on, EL0 with its own stack and SVC, vector registers, flags, system
# registers, pointer authentication, pair and atomic stores, an event that two PEs signal to each other.
EVERYTHING = """
    mrs x27, mpidr_el1
    and x27, x27, #0xff
    msr tpidr_el1, x27
    mov x0, #3 << 20
    msr cpacr_el1, x0
    cbnz x27, second
    // 1 GiB of device memory, 1 GiB of RAM, for EL1; the page of the EL0 program by itself, read-only and executable
    ldr x0, =0x40100000
    movz x1, #0x401
    movk x1, #0x0060, lsl #48
    str x1, [x0]
    ldr x1, =0x40101003
    str x1, [x0, #8]
    ldr x0, =0x40101000
    ldr x1, =0x40000705
    mov x2, #512
1:  str x1, [x0], #8
    add x1, x1, #0x200000
    subs x2, x2, #1
    b.ne 1b
    // 0x4020_0000: EL0's data
    ldr x0, =0x40101008
    movz x1, #0x0745
    movk x1, #0x4020, lsl #16
    movk x1, #0x0060, lsl #48
    str x1, [x0]
    // 0x4040_0000 shows the first 2 MiB to EL0, to execute
    ldr x0, =0x40101010
    movz x1, #0x07c5
    movk x1, #0x4000, lsl #16
    str x1, [x0]
    mov x1, #1
    adr x2, _start
    mov x3, #0
    call CPU_ON
second:
    adr x0, vectors
    msr vbar_el1, x0
    ldr x0, =0x4404
    msr mair_el1, x0
    ldr x0, =0x80803519
    movk x0, #2, lsl #32
    msr tcr_el1, x0
    ldr x0, =0x40100000
    msr ttbr0_el1, x0
    dsb sy
    isb
    mrs x0, sctlr_el1
    orr x0, x0, #1
    movz x1, #0x8000, lsl #16   // EnIA
    movk x1, #0x4000            // DZE
    orr x0, x0, x1
    msr sctlr_el1, x0
    isb
    movz x0, #0x1234, lsl #16
    add x0, x0, x27
    msr S3_0_C2_C1_0, x0        // APIAKeyLo_EL1
    msr S3_0_C2_C1_1, x0
    ldr x0, =0x40180000
    add x0, x0, x27, lsl #12
    mov sp, x0
    ldr x0, =0x40280000
    add x0, x0, x27, lsl #12
    msr sp_el0, x0
    take_event handler
    mov x28, #0
    mov x26, #0
    dup v0.2d, x27
    mov w0, #1
    fmov s1, w0
    mov x0, #0x100000
    msr fpcr, x0
    // into EL0, at its address there
    adr x0, user
    mov x1, #0x400000
    add x0, x0, x1
    msr elr_el1, x0
    mov x0, #0
    msr spsr_el1, x0
    eret

user:
    ldr x24, =0x40200000
    add x24, x24, x27, lsl #12
    ldr x25, =0x40210000
1:  add v0.2d, v0.2d, v0.2d
    add v2.4s, v2.4s, v0.4s
    fadd s3, s3, s1
    stp q0, q2, [x24]
    ldadd x26, x23, [x25]
    ldr x22, [x25]
    add x21, x22, #1
    casal x22, x21, [x25]
    sub sp, sp, #16
    stp x22, x26, [sp]
    ldp x21, x20, [sp], #16
    adds x26, x26, #1
    msr tpidr_el0, x26
    dc zva, x24
    mov x0, x26
    svc #1
    mrs x20, tpidr_el0
    cmp x20, x26
    b.ne bad
    cmp x26, #400
    b.lt 1b
    mov x0, #0
    svc #2

system_call:
    stp x0, x1, [sp, #-16]!
    mrs x1, esr_el1
    and x1, x1, #0xff
    cmp x1, #2
    b.eq finished
    .inst 0xdac103f0            // pacia x16, sp
    mov x17, x16
    .inst 0xdac113f0            // autia x16, sp
    lsr x17, x17, #56
    mrs x1, par_el1
    at s1e0r, x24
    tst x26, #3
    b.ne 1f
    eor x2, x27, #1
    mov x1, #0
    call SDEI_SIGNAL
1:  ldp x0, x1, [sp], #16
    eret

finished:
    tst x28, #0xff
    b.eq finished               // at least one event each
    cbnz x27, 3f
    mov x1, #1
2:  mov x2, #0
    call AFFINITY_INFO
    cmp x0, #1
    mov x1, #1
    b.ne 2b
    say 'E'
    say 10
    off
3:  call 0xc400002b             // SDEI_MASK
    call CPU_OFF
bad:
    svc #99

handler:
    add x28, x28, #1
    ldr x1, =0x40220000
    add x1, x1, x27, lsl #12
    str x28, [x1]
    mov x1, #0
    call SDEI_COMPLETE
    b .

    .balign 2048
vectors:
    .org vectors + 0x200
    b failed
    .org vectors + 0x400
    mrs x18, esr_el1
    lsr x18, x18, #26
    cmp x18, #0x15
    b.eq system_call
failed:
    say 'F'
    mrs x0, esr_el1
    mrs x1, elr_el1
    mrs x2, far_el1
    b .
    .ltorg
"""

MOST_MOVES = 200

GUESTS: dict[str, tuple[Callable[[], Path], dict[str, Any]]] = {
    "everything": (lambda: assemble(EVERYTHING), {"vcpus": 2}),
    "ping-pong": (lambda: assemble(PING_PONG), {"vcpus": 2}),
    "selftest": (lambda: guest_path("selftest"), {"vcpus": 3, "events": (EventDefinition(0x4000_0001),)}),
    "hypercalls": (lambda: guest_path("hypercalls"), {"vcpus": 1}),
}


def guest(name: str) -> tuple[Path, dict[str, Any]]:
    path, config = GUESTS[name]
    return path(), config


@pytest.mark.parametrize("name", GUESTS)
def test_a_guest_that_moves_and_moves_does_what_one_does_that_stays(name: str) -> None:
    path, config = guest(name)
    chosen = random.Random(name)
    stayed, picture, _ = run_through(path, [], seed=7, **config)
    length = len(stayed)
    assert length > 100
    stops = [chosen.choice([0, 1, 2, 5, length // 12, length // 8]) for _ in range(24)]
    print("slices before each move:", stops)
    moved, left, hops = run_through(path, stops, seed=7, **config)
    assert hops > 8
    assert moved == stayed
    assert left == picture


@pytest.mark.campaign
@pytest.mark.parametrize("name", GUESTS)
def test_at_every_slice(name: str) -> None:
    path, config = guest(name)
    stayed, picture, _ = run_through(path, [], seed=11, **config)
    slices = min(len(stayed), MOST_MOVES)
    moved, left, hops = run_through(path, [1] * slices, seed=11, **config)
    assert hops > slices // 3
    assert (moved, left) == (stayed, picture)
