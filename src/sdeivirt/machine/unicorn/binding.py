# SPDX-License-Identifier: Apache-2.0
"""The Unicorn engine by raw ctypes, where its Python binding is too slow.

Five register reads through the binding cost about 8 us, which is several
hypercalls. Here registers move in batches between the engine and preallocated
memory, and the interrupt hook is the plain C callback. What is not on the hot
path uses the binding.
"""

from __future__ import annotations

import ctypes as C
import functools
import mmap
from collections.abc import Callable, Sequence
from typing import Any

import unicorn
from unicorn import arm64_const
from unicorn.unicorn_py3.unicorn import uclib

__all__ = ["Engine", "SYSREG", "Q", "X", "CpReg", "EngineError", "arm64_const"]

_unicorn: Any = unicorn  # the binding is only half annotated

X = [arm64_const.UC_ARM64_REG_X0 + i for i in range(29)] + [arm64_const.UC_ARM64_REG_X29, arm64_const.UC_ARM64_REG_X30]
Q = [arm64_const.UC_ARM64_REG_Q0 + i for i in range(32)]

# op0, op1, CRn, CRm, op2
SYSREG = {
    "MPIDR_EL1": (3, 0, 0, 0, 5),
    "ID_AA64PFR0_EL1": (3, 0, 0, 4, 0),
    "ID_AA64PFR1_EL1": (3, 0, 0, 4, 1),
    "ID_AA64MMFR1_EL1": (3, 0, 0, 7, 1),
    "ID_AA64MMFR2_EL1": (3, 0, 0, 7, 2),
    "SCTLR_EL1": (3, 0, 1, 0, 0),
    "SPSR_EL1": (3, 0, 4, 0, 0),
    "ELR_EL1": (3, 0, 4, 0, 1),
    "ESR_EL1": (3, 0, 5, 2, 0),
    "FAR_EL1": (3, 0, 6, 0, 0),
    "VBAR_EL1": (3, 0, 12, 0, 0),
    "CNTPCT_EL0": (3, 3, 14, 0, 1),
    "CNTVCT_EL0": (3, 3, 14, 0, 2),
    "VMPIDR_EL2": (3, 4, 0, 0, 5),
    "HCR_EL2": (3, 4, 1, 1, 0),
    "CPTR_EL2": (3, 4, 1, 1, 2),
    "VTTBR_EL2": (3, 4, 2, 1, 0),
    "VTCR_EL2": (3, 4, 2, 1, 2),
    "HPFAR_EL2": (3, 4, 6, 0, 4),
    "TPIDR_EL2": (3, 4, 13, 0, 2),
    "CNTHCTL_EL2": (3, 4, 14, 1, 0),
    "CNTVOFF_EL2": (3, 4, 14, 0, 3),
    "SCR_EL3": (3, 6, 1, 1, 0),
}

_CTL_TLB_FLUSH = 11
# For translated code. Unicorn would reserve 1 GiB an engine; hundreds of vCPUs should not need hundreds of GiB.
_CODE_BUFFER = 16 << 20
_MOST_HEADER = 256  # of a context blob
_NOWHERE = (1 << 64) - 1  # no instruction has an odd address

# Register batches: the fastest call ctypes can make. PyDLL keeps the GIL (handing it over
# costs more than the call), arguments are ctypes objects made beforehand, and there is no
# result to convert: the batches cannot fail, their registers are constants.
_pylib = C.PyDLL(uclib._name)
_read_batch = _pylib.uc_reg_read_batch
_read_batch.restype = None
_write_batch = _pylib.uc_reg_write_batch
_write_batch.restype = None

# Running gives up the GIL; the other prototypes take plain ints.
_emu_start = C.CFUNCTYPE(C.c_int, C.c_void_p, C.c_uint64, C.c_uint64, C.c_uint64, C.c_size_t)(("uc_emu_start", uclib))
_emu_stop = C.CFUNCTYPE(C.c_int, C.c_void_p)(("uc_emu_stop", uclib))
_hook_add = C.CFUNCTYPE(C.c_int, C.c_void_p, C.c_void_p, C.c_int, C.c_void_p, C.c_void_p, C.c_uint64, C.c_uint64)(
    ("uc_hook_add", uclib)
)
_context_save = C.CFUNCTYPE(C.c_int, C.c_void_p, C.c_void_p)(("uc_context_save", uclib))
_vmem_translate = C.CFUNCTYPE(C.c_int, C.c_void_p, C.c_uint64, C.c_int, C.c_void_p)(("uc_vmem_translate", uclib))
INTERRUPT_HOOK = C.CFUNCTYPE(None, C.c_void_p, C.c_uint32, C.c_void_p)
EMU_STOP_ADDRESS: int = C.cast(uclib.uc_emu_stop, C.c_void_p).value or 0


class EngineError(Exception):
    """The engine refused something; a defect of ours or of the engine, never the guest's doing."""


class CpReg(C.Structure):
    """uc_arm64_cp_reg: a system register and its value."""

    _fields_ = (
        ("crn", C.c_uint32),
        ("crm", C.c_uint32),
        ("op0", C.c_uint32),
        ("op1", C.c_uint32),
        ("op2", C.c_uint32),
        ("val", C.c_uint64),
    )

    @classmethod
    def of(cls, name: str) -> CpReg:
        op0, op1, crn, crm, op2 = SYSREG[name]
        return cls(crn=crn, crm=crm, op0=op0, op1=op1, op2=op2)


class Engine:
    """One vCPU's engine."""

    def __init__(self) -> None:
        self.uc: Any = _unicorn.Uc(unicorn.UC_ARCH_ARM64, unicorn.UC_MODE_ARM)
        self.uc.ctl_set_tcg_buffer_size(_CODE_BUFFER)
        self.uc.ctl_set_cpu_model(arm64_const.UC_CPU_ARM64_MAX)
        self.handle: int = self.uc._uch.value
        self._keep: list[object] = []

    # -- registers

    def batch(
        self, registers: Sequence[int], addresses: Sequence[int]
    ) -> tuple[Callable[[], None], Callable[[], None]]:
        """A (read, write) pair that moves `registers` from and to cells at `addresses`, of each register's size."""
        n = len(registers)
        ids = (C.c_int * n)(*registers)
        pointers = (C.c_void_p * n)(*addresses)
        self._keep += [ids, pointers]
        arguments = (
            C.c_void_p(self.handle),
            C.c_void_p(C.addressof(ids)),
            C.c_void_p(C.addressof(pointers)),
            C.c_int(n),
        )
        return functools.partial(_read_batch, *arguments), functools.partial(_write_batch, *arguments)

    def get(self, register: int) -> int:
        value: int = self.uc.reg_read(register)
        return value

    def set(self, register: int, value: int) -> None:
        self.uc.reg_write(register, value)

    def sysreg(self, name: str) -> int:
        value: int = self.uc.cpr_read(*SYSREG[name])
        return value

    def set_sysreg(self, name: str, value: int) -> None:
        self.uc.cpr_write(*SYSREG[name], value)

    def peek(self, encoding: tuple[int, int, int, int, int]) -> int:
        """A system register by op0, op1, CRn, CRm, op2; 0 where the engine has none."""
        try:
            value: int = self.uc.cpr_read(*encoding)
        except _unicorn.UcError:
            return 0
        return value

    def derive(self) -> None:
        """After PSTATE was set: have the engine derive from it what it keeps apart (EL, PAN, BTYPE, ...).

        Writing any system register does that; TPIDR_EL2 is ours and means nothing.
        """
        self.set_sysreg("TPIDR_EL2", 0)

    # -- running

    def run(self, pc: int, count: int = 0) -> int:
        """Run from `pc` until a stop, a jump to 0 or, if not 0, `count` instructions; Unicorn's error code.

        Unicorn wants an address to stop at. 0 is by far the cheapest; a guest
        that does go there stops, and is run on from there with another.
        """
        error: int = _emu_start(self.handle, pc, 0 if pc else _NOWHERE, 0, count)
        return error

    def stop(self) -> None:
        """Stop; only from a hook on the thread that runs, else instructions are executed twice."""
        _emu_stop(self.handle)

    def on_interrupt(self, function: Callable[[int, int, int], None]) -> None:
        """Call `function(engine, number, user)` on every exception. It must not raise."""
        callback = INTERRUPT_HOOK(function)
        self._keep.append(callback)
        address = C.cast(callback, C.c_void_p).value
        assert address is not None
        self._hook(unicorn.UC_HOOK_INTR, address, 0)

    def on_block(self, address: int, user_data: int) -> None:
        """Have native code at `address` called before every translated block."""
        self._hook(unicorn.UC_HOOK_BLOCK, address, user_data)

    def _hook(self, kind: int, function: int, user_data: int) -> None:
        cookie = C.c_size_t()
        error = _hook_add(self.handle, C.addressof(cookie), kind, function, user_data, 1, 0)
        if error:
            raise EngineError(f"uc_hook_add failed with {error}")

    # -- memory

    def map_host_memory(self, base: int, memory: mmap.mmap) -> None:
        """Map host memory as physical memory at `base`; it lives as long as the engine."""
        first = C.c_char.from_buffer(memory)
        self._keep.append(first)
        self.uc.mem_map_ptr(base, len(memory), unicorn.UC_PROT_ALL, C.addressof(first))

    def map_device(
        self, base: int, size: int, read: Callable[[int, int], int], write: Callable[[int, int, int], None]
    ) -> None:
        """Map a device: `read(offset, size)`, `write(offset, size, value)`."""
        self.uc.mmio_map(
            base,
            size,
            lambda _uc, offset, width, _data: read(offset, width),
            None,
            lambda _uc, offset, width, value, _data: write(offset, width, value),
            None,
        )

    def translate(self, address: int) -> int | None:
        """The physical address of what is executed at a virtual one, None where there is nothing."""
        found = C.c_uint64()
        error = _vmem_translate(self.handle, address, unicorn.UC_PROT_EXEC, C.addressof(found))
        return None if error else found.value

    def flush_tlb(self) -> None:
        """Forget translations; needed after stage-2 entries lose rights."""
        self.uc.ctl(_CTL_TLB_FLUSH, 1)

    def flush_code(self) -> None:
        """Forget translated code; needed after the host wrote code."""
        self.uc.ctl_flush_tb()

    # -- the whole register state, for this process only

    def save(self) -> Any:
        return self.uc.context_save()

    def restore(self, context: Any) -> None:
        self.uc.context_restore(context)

    def context_probe(self, most: int = 0) -> tuple[Callable[[], int], int, int]:
        """(save, address, size) of a preallocated context blob, for what has no other interface.

        `most`: the first so many bytes of it are enough, where that can be had. All of it is 12 KiB, which
        would push everything else out of the host's first cache at each exception.
        """
        context = self.uc.context_save()
        self._keep.append(context)
        blob = context.context
        address: int = blob.value if hasattr(blob, "value") else blob
        handle = self.handle
        size: int = context.size
        # struct uc_context begins with how much of the CPU's state is saved behind it.
        saved = C.c_size_t.from_address(address)
        header = size - saved.value
        if most and 0 < header <= _MOST_HEADER < most < size:
            saved.value = most - header

        def save() -> int:
            error: int = _context_save(handle, address)
            return error

        return save, address, size
