# SPDX-License-Identifier: Apache-2.0
"""A guest for tests that writes its RAM all over, in all the ways that a CPU has, and what is to be seen of that."""

from __future__ import annotations

from pathlib import Path

from .asm import assemble

__all__ = ["AREA", "AREA_PAGES", "COUNTS", "reader", "writer"]

AREA = 0x4040_0000  # where it writes
AREA_PAGES = 2048
COUNTS = 0x4030_0000  # a page a vCPU: how many batches it has written

# One batch: `BATCH` pages chosen by a generator (x10), with values that never were there (x11).
_BATCH = """
batch:
    mov x12, #{batch}
1:  ldr x9, =6364136223846793005
    mul x10, x10, x9
    add x10, x10, #1
    lsr x13, x10, #33
    and x13, x13, #({pages} - 1)
    ldr x14, ={area}
    add x14, x14, x13, lsl #12      // a page
    add x11, x11, #1
    add x15, x14, x28, lsl #6       // this vCPU's own place in it
    and x16, x12, #7
    adr x17, 2f
    add x17, x17, x16, lsl #5
    br x17
    .balign 32
2:  str x11, [x15]
    b 3f
    .balign 32
    stp x11, x11, [x15, #16]
    b 3f
    .balign 32
    strb w11, [x15, #8]             // the low byte alone
    str x11, [x15]
    b 3f
    .balign 32
    ldaxr x16, [x15]
    stlxr w17, x11, [x15]
    cbnz w17, .-8
    b 3f
    .balign 32
    ldadd x11, x16, [x15]
    b 3f
    .balign 32
    swpal x11, x16, [x15]
    b 3f
    .balign 32
    str x11, [x15]
    str x11, [x15, #24]
    b 3f
    .balign 32
    str x11, [x15, #32]!
    b 3f
    .balign 32
3:  subs x12, x12, #1
    b.ne 1b
    ldr x14, ={counts}
    add x14, x14, x28, lsl #12
    ldr x15, [x14]
    add x15, x15, #1
    str x15, [x14]
    ret
"""

_START = """
    mov x28, #0
    mov x27, #1
1:  cmp x27, #{vcpus}
    b.hs common
    mov x1, x27
    adr x2, other
    mov x3, x27
    call CPU_ON
    add x27, x27, #1
    b 1b
other:
    mov x28, x0
common:
    add x10, x28, #{seed}
    lsl x11, x28, #32
"""

# Batches without an end, while a timer's interrupt is pending that nobody takes, and with a handler that writes
# nothing, ...
_FOR_EVER = """
    ldr x15, =0x080a0000            // the redistributor
    add x15, x15, x28, lsl #17
    str wzr, [x15, #0x14]           // GICR_WAKER
    add x15, x15, #0x10000
    mov w16, #1 << 27
    str w16, [x15, #0x100]          // GICR_ISENABLER0: the virtual timer
    mov x16, #0xf0
    msr S3_0_C4_C6_0, x16           // ICC_PMR_EL1
    mov x16, #1
    msr S3_0_C12_C12_7, x16         // ICC_IGRPEN1_EL1
    msr cntv_cval_el0, xzr
    msr cntv_ctl_el0, x16
    isb
    take_event idle
2:  bl batch
    b 2b
idle:
    mov x1, #0
    call SDEI_COMPLETE
"""
# ... or one for each event.
_FOR_EACH_EVENT = """
    ldr x15, =state
    add x15, x15, x28, lsl #4
    stp x10, x11, [x15]
    take_event handler
    say 'R'
    say 10
    wfi
    b .-4
handler:
    mrs x28, mpidr_el1
    and x28, x28, #0xff
    ldr x15, =state
    add x15, x15, x28, lsl #4
    ldp x10, x11, [x15]
    bl batch
    ldr x15, =state
    add x15, x15, x28, lsl #4
    stp x10, x11, [x15]
    mov x1, #0
    call SDEI_COMPLETE
"""
_STATE = """
    .balign 4096
state: .space 4096
"""


# The pages of `AREA`, read through the MMU, 16 for each event: for each the CPU sets the access flag in the table at
# AREA - 4096. What else this writes is on the page of its state.
_READS = """
    ldr x1, ={area} - 0x3000        // level 1: devices, and RAM by level 2
    mov x2, #0x405                  // a block with AF, attribute 1
    str x2, [x1]
    add x2, x1, #0x1000
    add x2, x2, #3
    str x2, [x1, #8]
    add x1, x1, #0x1000             // level 2: blocks, ...
    ldr x2, =0x40000401
    mov x3, #512
1:  str x2, [x1], #8
    add x2, x2, #0x200000
    subs x3, x3, #1
    b.ne 1b
    ldr x1, ={area} - 0x2000        // ... but for the area, 512 pages of it, without AF
    ldr x2, ={area} - 0x1000 + 3
    str x2, [x1, #({area} >> 21 & 511) * 8]
    ldr x1, ={area} - 0x1000
    ldr x2, ={area} + 3
    mov x3, #512
1:  str x2, [x1], #8
    add x2, x2, #0x1000
    subs x3, x3, #1
    b.ne 1b
    mov x2, #0x00ff                 // attribute 0: memory, write-back; 1: device
    msr mair_el1, x2
    ldr x2, =0x8200803519           // TCR: HA, 40 bits out, EPD1, T0SZ 25, 4 KiB, cacheable
    msr tcr_el1, x2
    ldr x2, ={area} - 0x3000
    msr ttbr0_el1, x2
    isb
    tlbi vmalle1
    dsb sy
    isb
    mrs x2, sctlr_el1
    orr x2, x2, #1
    msr sctlr_el1, x2
    isb
    ldr x10, ={area}
    take_event touch
    say 'R'
    say 10
1:  wfi
    b 1b
touch:
    adr x15, here
    ldr x10, [x15]
    mov x3, #16
1:  ldr x4, [x10]
    add x10, x10, #0x1000
    subs x3, x3, #1
    b.ne 1b
    str x10, [x15]
    mov x1, #0
    call SDEI_COMPLETE
    .balign 4096
here: .quad {area}
    .space 4088
"""


def reader() -> Path:
    """A guest whose CPU writes access flags into its page tables: 16 in one for each event 0."""
    return assemble(_READS.format(area=AREA))


def writer(vcpus: int, *, batch: int, pages: int = AREA_PAGES, seed: int = 1, events: bool = False) -> Path:
    """The guest: each batch writes `batch` pages out of `pages`, a power of two; with `events` one for each event 0."""
    body = _START + (_FOR_EACH_EVENT if events else _FOR_EVER) + _BATCH + "    .ltorg\n" + _STATE
    return assemble(body.format(vcpus=vcpus, batch=batch, pages=pages, seed=seed, area=AREA, counts=COUNTS))
