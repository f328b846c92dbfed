# SPDX-License-Identifier: Apache-2.0
"""Guests that several test modules run."""

from __future__ import annotations

__all__ = ["COUNTING", "HANDLER_THAT_SPINS", "PING_PONG"]

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

HANDLER_THAT_SPINS = """
    take_event handler
    mov x1, #0
    mrs x2, mpidr_el1
    call SDEI_SIGNAL
    b .
handler:
    mov x19, #0x55
    b handler
"""
