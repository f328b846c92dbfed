/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A guest that does what the host writes into its mailboxes, and tells all that it sees.
 *
 * Each PE has three contexts: 0 outside of handlers, 1 in a normal handler, 2 in a critical one.
 * Each context has a mailbox and its own copy of the code below, so that a PC tells where a PE was.
 * TPIDR_EL1 holds the PE's mailboxes; x18 the mailbox of the context; x19..x22 are scratch; x23..x30
 * hold canaries. x0..x17 and PSTATE belong to the experiment: after a call they stay as the call left
 * them, and the context spins, comparing every register with the mailbox, until the next request.
 *
 * Nothing here sets flags, and nothing but the resume stub depends on ELR_EL1 and SPSR_EL1. An exception
 * that EL1 takes is a mistake; its vector notes down all registers, and the PE stays there.
 *
 * The host finds every label and every .equ in the symbol table.
 */

    .equ MAX_PES, 8
    .equ MAILBOX_SIZE, 0x1000           // of a PE
    .equ STACK_SIZE, 0x4000
    .equ CONTEXT, 0x400                 // a context's mailbox in it; three, then ...
    .equ RESUME, 0xc00                  // ... the record of COMPLETE_AND_RESUME
    .equ CRASH, 0xe00                   // and that of an exception

// A mailbox, or the record of COMPLETE_AND_RESUME: 64-bit cells.
    .equ SEQ, 0x00                      // the host counts requests up, ...
    .equ DONE, 0x08                     // ... and the guest those that are done
    .equ KIND, 0x10                     // bits: by SMC, it ends a handler, WFI instead, a store instead
    .equ ENTRIES, 0x18                  // how often the context was entered
    .equ IN_PSTATE, 0x20
    .equ OUT_PSTATE, 0x28
    .equ ENTRY_PC, 0x30
    .equ ENTRY_SP, 0x38
    .equ SP0, 0x40
    .equ SP1, 0x48
    .equ ENTRY_ELR, 0x50
    .equ ENTRY_SPSR, 0x58
    .equ FEATURES, 0x60                 // optional bits of PSTATE that the PE has, and one that is always set
    .equ IN, 0x80                       // x0..x17
    .equ OUT, 0x120

// The record of an exception.
    .equ CRASHED, 0x00
    .equ CRASH_ESR, 0x08
    .equ CRASH_ELR, 0x10
    .equ CRASH_SPSR, 0x18
    .equ CRASH_FAR, 0x20
    .equ CRASH_SP0, 0x28
    .equ CRASH_SP1, 0x30
    .equ CRASH_X, 0x100                 // x0..x30

    .equ HAS_PAN, 0
    .equ HAS_UAO, 1
    .equ HAS_DIT, 2
    .equ HAS_SSBS, 3
    .equ KNOWN, 4

// What registers hold that only the host's arithmetic looks at.
    .equ SP_EL0_VALUE, 0x5e100000       // 16 bytes a PE further
    .equ ELR_VALUE, 0xe17e17e17e17e170
    .equ SPSR_VALUE, 0x80000305

    .equ FRAME, 112                     // x18..x30 of what a handler interrupted

// PSTATE in the layout of SPSR_EL1. x18 is a mailbox or a record.
    .macro state to, by
    mrs     \to, nzcv
    mrs     \by, daif
    orr     \to, \to, \by
    mrs     \by, currentel
    orr     \to, \to, \by
    mrs     \by, spsel
    orr     \to, \to, \by
    optional_bit \to, \by, HAS_PAN, s3_0_c4_c2_3
    optional_bit \to, \by, HAS_UAO, s3_0_c4_c2_4
    optional_bit \to, \by, HAS_DIT, s3_3_c4_c2_5
    optional_bit \to, \by, HAS_SSBS, s3_3_c4_c2_6
    .endm
    .macro optional_bit to, by, feature, register
    ldr     \by, [x18, #FEATURES]
    tbz     \by, #\feature, 9f
    mrs     \by, \register
    orr     \to, \to, \by
9:
    .endm

    .macro set_state from, by
    ldr     \by, [x18, #FEATURES]
    msr     nzcv, \from
    msr     daif, \from
    set_optional_bit \from, \by, HAS_PAN, s3_0_c4_c2_3
    set_optional_bit \from, \by, HAS_UAO, s3_0_c4_c2_4
    set_optional_bit \from, \by, HAS_DIT, s3_3_c4_c2_5
    set_optional_bit \from, \by, HAS_SSBS, s3_3_c4_c2_6
    msr     spsel, \from
    .endm
    .macro set_optional_bit from, by, feature, register
    tbz     \by, #\feature, 9f
    msr     \register, \from
9:
    .endm

    .macro feature number, register, lsb
    mrs     x24, \register
    ubfx    x24, x24, #\lsb, #4
    cbz     x24, 9f
    orr     x21, x21, #1 << \number
9:
    .endm

// x18 and x19 are on the stack already.
    .macro push
    stp     x20, x21, [sp, #16]
    stp     x22, x23, [sp, #32]
    stp     x24, x25, [sp, #48]
    stp     x26, x27, [sp, #64]
    stp     x28, x29, [sp, #80]
    str     x30, [sp, #96]
    .endm

    .macro pop
    ldp     x20, x21, [sp, #16]
    ldp     x22, x23, [sp, #32]
    ldp     x24, x25, [sp, #48]
    ldp     x26, x27, [sp, #64]
    ldp     x28, x29, [sp, #80]
    ldr     x30, [sp, #96]
    ldp     x18, x19, [sp], #FRAME
    .endm

    .macro load_call
    .irp pair, "0,1", "2,3", "4,5", "6,7", "8,9", "10,11", "12,13", "14,15", "16,17"
    load_pair \pair
    .endr
    .endm
    .macro load_pair a, b
    ldp     x\a, x\b, [x18, #IN + 8 * \a]
    .endm

    .macro store_registers
    .irp pair, "0,1", "2,3", "4,5", "6,7", "8,9", "10,11", "12,13", "14,15", "16,17"
    store_pair \pair
    .endr
    state   x21, x22
    str     x21, [x18, #OUT_PSTATE]
    .endm
    .macro crash_pair a, b
    stp     x\a, x\b, [x18, #CRASH_X + 8 * \a]
    .endm
    .macro store_pair a, b
    stp     x\a, x\b, [x18, #OUT + 8 * \a]
    .endm

    .macro same_pair a, b, bad
    ldp     x21, x22, [x18, #OUT + 8 * \a]
    eor     x21, x21, x\a
    cbnz    x21, \bad
    eor     x22, x22, x\b
    cbnz    x22, \bad
    .endm

    .macro same_canary r, bad
    movz    x21, #0xc0\r, lsl #48
    eor     x21, x21, x18
    eor     x21, x21, x\r
    cbnz    x21, \bad
    .endm

    .macro canaries
    .irp r, 23, 24, 25, 26, 27, 28, 29, 30
    movz    x\r, #0xc0\r, lsl #48
    eor     x\r, x\r, x18
    .endr
    .endm

// The record of an entry: x18 the record, x19 the address that was entered, x20 SP as it was.
    .macro record
    str     x19, [x18, #ENTRY_PC]
    str     x20, [x18, #ENTRY_SP]
    mrs     x21, elr_el1
    mrs     x22, spsr_el1
    stp     x21, x22, [x18, #ENTRY_ELR]
    store_registers
    .endm

    .macro count
    add     x22, x18, #ENTRIES
    ldr     x21, [x22]
    add     x21, x21, #1
    stlr    x21, [x22]
    .endm

// -- power-up: x0 is the context id, everything else unknown

    .section .text.start, "ax"
    .globl  _start
_start:
    b       begin
warm_0:                                 // back from CPU_SUSPEND, in the context that called
    mov     x20, #0
    b       1f
warm_1:
    mov     x20, #1
    b       1f
warm_2:
    mov     x20, #2
1:  mrs     x19, mpidr_el1
    and     x19, x19, #0xff
    ldr     x18, =mailboxes
    add     x18, x18, x19, lsl #12
    add     x21, x18, x20, lsl #10
    ldr     x22, [x21, #SP1]
    adr     x23, warm_0
    b       2f
begin:
    mrs     x19, mpidr_el1
    and     x19, x19, #0xff
    ldr     x18, =mailboxes
    add     x18, x18, x19, lsl #12
    mov     x20, #0
    ldr     x22, =stacks
    add     x21, x19, #1
    add     x22, x22, x21, lsl #14
    adr     x23, _start
2:  msr     tpidr_el1, x18
    mov     sp, x22
    mov     x21, #1 << KNOWN
    feature HAS_PAN, id_aa64mmfr1_el1, 20
    feature HAS_UAO, s3_0_c0_c7_2, 4    // ID_AA64MMFR2_EL1
    feature HAS_DIT, id_aa64pfr0_el1, 48
    feature HAS_SSBS, id_aa64pfr1_el1, 4
    str     x21, [x18, #FEATURES]
    str     x21, [x18, #CONTEXT + FEATURES]
    str     x21, [x18, #2 * CONTEXT + FEATURES]
    str     x21, [x18, #RESUME + FEATURES]
    ldr     x21, =SP_EL0_VALUE
    add     x21, x21, x19, lsl #4
    msr     sp_el0, x21
    ldr     x21, =vectors
    add     x21, x21, x19, lsl #11      // each PE has its own
    msr     vbar_el1, x21
    ldr     x21, =ELR_VALUE
    msr     elr_el1, x21
    ldr     x21, =SPSR_VALUE
    msr     spsr_el1, x21
    mrs     x21, sctlr_el1
    bfi     x21, x19, #23, #1           // SPAN on PEs of odd number
    msr     sctlr_el1, x21
    isb
    mov     x19, x23
    add     x18, x18, x20, lsl #10
    tbnz    x20, #0, 3f
    tbnz    x20, #1, 4f
    mov     x20, sp
    b       arrive_0
3:  mov     x20, sp
    b       arrive_1
4:  mov     x20, sp
    b       arrive_2

// -- a context

    .macro context c
    .if \c
enter_\c:                               // x18, x19 pushed by the entry, x19 is its address
    push
    mrs     x18, tpidr_el1
    add     x18, x18, #\c * CONTEXT
    add     x20, sp, #FRAME
    .endif
arrive_\c:
    record
    mov     x21, sp
    str     x21, [x18, #SP1]
    mrs     x21, sp_el0
    str     x21, [x18, #SP0]
    canaries
    ldr     x21, [x18, #SEQ]
    str     x21, [x18, #DONE]           // requests from before do not count
    count

spin_\c:
    ldar    x19, [x18]
    mrs     x21, tpidr_el1
    add     x21, x21, #\c * CONTEXT
    eor     x21, x21, x18
    cbnz    x21, bad_\c
    same_pair 0, 1, bad_\c
    same_pair 2, 3, bad_\c
    same_pair 4, 5, bad_\c
    same_pair 6, 7, bad_\c
    same_pair 8, 9, bad_\c
    same_pair 10, 11, bad_\c
    same_pair 12, 13, bad_\c
    same_pair 14, 15, bad_\c
    same_pair 16, 17, bad_\c
    state   x21, x22
    ldr     x22, [x18, #OUT_PSTATE]
    eor     x21, x21, x22
    cbnz    x21, bad_\c
    mrs     x21, spsel
    add     x21, x18, x21, lsl #3
    ldr     x21, [x21, #SP0]
    mov     x22, sp
    eor     x21, x21, x22
    cbnz    x21, bad_\c
    same_canary 23, bad_\c
    same_canary 24, bad_\c
    same_canary 25, bad_\c
    same_canary 26, bad_\c
    same_canary 27, bad_\c
    same_canary 28, bad_\c
    same_canary 29, bad_\c
    same_canary 30, bad_\c
    ldr     x20, [x18, #DONE]
    sub     x20, x19, x20
    cbz     x20, spin_\c

take_\c:                                // from here to the call, registers are partly the old, partly the new
    ldr     x20, [x18, #KIND]
    ldr     x21, [x18, #IN_PSTATE]
    set_state x21, x22
    load_call
    .if \c
    tbnz    x20, #1, leave_\c
    .endif
    tbnz    x20, #2, wfi_\c
    tbnz    x20, #3, poke_\c
    tbnz    x20, #0, smc_\c
hvc_\c:
    hvc     #0
    b       store_\c
smc_\c:
    .inst   0xd4000003                  // smc #0, which the assembler keeps for EL3
    b       store_\c
wfi_\c:
    wfi
    b       store_\c
poke_\c:
    str     w1, [x0]
    b       store_\c
    .if \c
leave_\c:                               // COMPLETE: x18 and up have to be what they were for what goes on
    tbnz    x20, #0, leave_by_smc_\c
    pop
leave_hvc_\c:
    hvc     #0
    b       back_\c
leave_by_smc_\c:
    pop
leave_smc_\c:
    .inst   0xd4000003                  // smc #0, which the assembler keeps for EL3
    b       back_\c
back_\c:                                // it was refused
    stp     x18, x19, [sp, #-FRAME]!
    push
    mrs     x18, tpidr_el1
    add     x18, x18, #\c * CONTEXT
    canaries
    ldr     x19, [x18, #SEQ]
    .endif
store_\c:
    store_registers
    add     x21, x18, #DONE
    stlr    x19, [x21]
    b       spin_\c
bad_\c:
    .inst   0                           // the exception tells
end_\c:
    .endm

    context 0
    context 1
    context 2

// -- COMPLETE_AND_RESUME leads here: note everything and go back to what was interrupted

resume:
    push
    mrs     x18, tpidr_el1
    add     x18, x18, #RESUME
    add     x20, sp, #FRAME
    record
    count
    pop
    eret
resume_end:

// -- an exception

crash:                                  // x18 is in TPIDR_EL0
    msr     tpidrro_el0, x19
    mrs     x18, tpidr_el1
    add     x18, x18, #CRASH
    .irp pair, "0,1", "2,3", "4,5", "6,7", "8,9", "10,11", "12,13", "14,15", "16,17"
    crash_pair \pair
    .endr
    .irp pair, "20,21", "22,23", "24,25", "26,27", "28,29"
    crash_pair \pair
    .endr
    str     x30, [x18, #CRASH_X + 8 * 30]
    mrs     x20, tpidr_el0
    mrs     x21, tpidrro_el0
    str     x20, [x18, #CRASH_X + 8 * 18]
    str     x21, [x18, #CRASH_X + 8 * 19]
    mrs     x20, esr_el1
    mrs     x21, elr_el1
    stp     x20, x21, [x18, #CRASH_ESR]
    mrs     x20, spsr_el1
    mrs     x21, far_el1
    stp     x20, x21, [x18, #CRASH_SPSR]
    mrs     x20, sp_el0
    mov     x21, sp
    stp     x20, x21, [x18, #CRASH_SP0]
    mov     x20, #1
    stlr    x20, [x18]                  // CRASHED
crash_end:
    b       crash_end

    .balign 2048
vectors:
    .rept   MAX_PES * 16
    .balign 128
    msr     tpidr_el0, x18
    b       crash
    .endr
    .balign 2048

// Many addresses, so that one that is a little wrong shows; also that of a handler relative to the vectors of
// another PE. x19 says which it was.
    .macro table name, length, to
    .balign 2048
\name:
    .rept \length
1:  stp     x18, x19, [sp, #-FRAME]!
    adr     x19, 1b
    b       \to
    nop
    .endr
    .endm

    table   normal_entries, 2048, enter_1
    table   critical_entries, 2048, enter_2
    table   resume_entries, 128, resume
entries_end:

    .section .stacks, "aw", %nobits
    .balign 4096
mailboxes:
    .space  MAX_PES * MAILBOX_SIZE
stacks:
    .space  MAX_PES * STACK_SIZE
