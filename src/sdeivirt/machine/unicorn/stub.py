# SPDX-License-Identifier: Apache-2.0
"""A few bytes of machine code that stop an engine from outside, exactly between two instructions.

`uc_emu_stop` from another thread makes the engine execute an instruction
twice and loses stops (6590 of 6822 stops doubled an atomic add). So the stop
is taken from the inside: Unicorn calls this stub before every translated
block, with the address of a control cell as user data; another thread only
sets the flag. The stub counts blocks down as well, which makes it the time
slice of the scheduler: no timer, no second thread.

    control cell: u32 flag (stop if not zero), u32 budget (stop when it reaches zero)

    stub(uc, address, size, control):
        if control.flag or --control.budget == 0:
            tail-call uc_emu_stop(uc)

Hosts without a stub here, or that refuse executable memory, fall back to
counted instruction slices.
"""

from __future__ import annotations

import ctypes as C
import functools
import mmap
import platform
import struct
import sys

from .binding import EMU_STOP_ADDRESS

__all__ = ["Control", "address", "available", "code_aarch64", "code_x86_64"]


class Control(C.Structure):
    """The control cell."""

    _fields_ = (("flag", C.c_uint32), ("budget", C.c_uint32))


def code_x86_64(stop: int) -> bytes:
    """System V: rdi = uc, rcx = control."""
    return (
        bytes.fromhex(
            "833900"  # cmp dword [rcx], 0
            "7506"  # jne stop
            "ff4904"  # dec dword [rcx + 4]
            "7401"  # je stop
            "c3"  # ret
            "48b8"  # stop: mov rax, imm64
        )
        + struct.pack("<Q", stop)
        + bytes.fromhex("ffe0")
    )  # jmp rax


def code_aarch64(stop: int) -> bytes:
    """AAPCS64: x0 = uc, x3 = control."""
    words = (
        0xB9400064,  # ldr  w4, [x3]
        0x350000E4,  # cbnz w4, stop
        0xB9400464,  # ldr  w4, [x3, #4]
        0x71000484,  # subs w4, w4, #1
        0xB9000464,  # str  w4, [x3, #4]
        0x54000041,  # b.ne done  (skips over the branch to stop)
        0x14000002,  # b    stop
        0xD65F03C0,  # done: ret
        0x58000045,  # stop: ldr x5, =stop
        0xD61F00A0,  # br   x5
    )
    return struct.pack(f"<{len(words)}IQ", *words, stop)


_CODE = {"x86_64": code_x86_64, "AMD64": code_x86_64, "aarch64": code_aarch64, "arm64": code_aarch64}


@functools.cache
def _install() -> tuple[int, str]:
    """(address, reason): the address is 0 where there is no stub, and the reason says why."""
    make = _CODE.get(platform.machine())
    if make is None or sys.platform == "win32":
        return 0, f"no stub for {sys.platform} on {platform.machine()}"
    code = make(EMU_STOP_ADDRESS)
    try:
        # Written first and made executable after: never both at once where the host can help it.
        page = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE)
        page.write(code)
        at = C.addressof(C.c_char.from_buffer(page))
        libc = C.CDLL(None, use_errno=True)
        if libc.mprotect(C.c_void_p(at), C.c_size_t(mmap.PAGESIZE), mmap.PROT_READ | mmap.PROT_EXEC):
            return 0, "the host refuses executable memory"
    except (OSError, ValueError, AttributeError) as error:
        return 0, f"the host refuses executable memory: {error}"
    _pages.append(page)
    return at, "native"


_pages: list[mmap.mmap] = []


def address() -> int:
    """Where the stub is, 0 if there is none."""
    return _install()[0]


def available() -> tuple[bool, str]:
    """Whether there is a stub, and why not."""
    at, reason = _install()
    return bool(at), reason
