# SPDX-License-Identifier: Apache-2.0
"""Small guests for tests, assembled from text: real AArch64 code, entered as any guest is."""

from __future__ import annotations

import functools
import hashlib
import os
import subprocess
import sys
import tempfile
from pathlib import Path

__all__ = ["PRELUDE", "assemble"]

# hvc #0 with a function id; the UART; the end of the guest.
PRELUDE = """
    .macro call id
    ldr x0, =\\id
    hvc #0
    .endm
    .macro say char
    mov x20, #0x09000000
    mov w21, #\\char
    str w21, [x20]
    .endm
    .macro off
    call 0x84000008
    .endm
    .equ SDEI_REGISTER, 0xc4000021
    .equ SDEI_ENABLE, 0xc4000022
    .equ SDEI_COMPLETE, 0xc4000025
    .equ SDEI_RESUME, 0xc4000026
    .equ SDEI_MASK, 0xc400002b
    .equ SDEI_UNMASK, 0xc400002c
    .equ SDEI_SIGNAL, 0xc400002f
    .equ CPU_SUSPEND, 0xc4000001
    .equ CPU_OFF, 0x84000002
    .equ CPU_ON, 0xc4000003
    .equ AFFINITY_INFO, 0xc4000004
    .equ SYSTEM_RESET, 0x84000009
    .macro take_event handler
    mov x1, #0
    adr x2, \\handler
    mov x3, #7
    mov x4, #0
    mov x5, #0
    call SDEI_REGISTER
    mov x1, #0
    call SDEI_ENABLE
    call SDEI_UNMASK
    .endm
    .text
    .globl _start
_start:
"""


@functools.cache
def assemble(body: str) -> Path:
    """An ELF file of `body`, entered at its first instruction, linked at 0x4008_0000."""
    source = PRELUDE + body + "\n    .ltorg\n"
    folder = Path(tempfile.gettempdir()) / f"sdeivirt-test-guests-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    elf = folder / f"{hashlib.sha256(source.encode()).hexdigest()[:20]}.elf"
    if not elf.exists():
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            text = Path(scratch) / "guest.S"
            text.write_text(source)
            script = Path(scratch) / "link.ld"
            script.write_text("ENTRY(_start) SECTIONS { . = 0x40080000; .text : { *(.text*) *(.rodata*) *(.data*) } }")
            made = Path(scratch) / "guest.elf"
            subprocess.run(
                [
                    *(sys.executable, "-m", "ziglang", "cc", "-target", "aarch64-freestanding-none"),
                    *("-mcpu=generic+lse+pan", "-nostdlib", "-static", f"-Wl,-T,{script}"),
                    *("-o", str(made), str(text)),
                ],
                check=True,
                env={
                    **os.environ,
                    "ZIG_GLOBAL_CACHE_DIR": str(folder / "zig"),
                    "ZIG_LOCAL_CACHE_DIR": str(folder / "zig"),
                },
            )
            made.rename(elf)  # whole or not at all: tests run side by side
    return elf
