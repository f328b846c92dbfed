# SPDX-License-Identifier: Apache-2.0
"""What Linux prints of an error of an Arm processor. Linux, drivers/firmware/efi/cper-arm.c."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from .details import ErrorDetails
from .processor import ContextInfo, ErrorFlags, ErrorInfo, ErrorType, ProcessorSection
from .text import hex_dump

__all__ = ["REGISTERS", "render_processor"]

# The types of contexts.
REGISTERS = (
    "AArch32 general purpose registers",
    "AArch32 EL1 context registers",
    "AArch32 EL2 context registers",
    "AArch32 secure context registers",
    "AArch64 general purpose registers",
    "AArch64 EL1 context registers",
    "AArch64 EL2 context registers",
    "AArch64 EL3 context registers",
    "Misc. system register structure",
)
_TYPES = {
    ErrorType.CACHE: "cache error",
    ErrorType.TLB: "TLB error",
    ErrorType.BUS: "bus error",
    ErrorType.MICRO_ARCHITECTURAL: "micro-architectural error",
}
_ALL_TYPES = sum(_TYPES)
_FLAGS = {
    ErrorFlags.FIRST: "first error captured",
    ErrorFlags.LAST: "last error captured",
    ErrorFlags.PROPAGATED: "propagated error captured",
    ErrorFlags.OVERFLOW: "overflow occurred, error info is incomplete",
}
_TRANSACTIONS = ("Instruction", "Data Access", "Generic")
_ANY_OPERATION = (
    "Generic error (type cannot be determined)",
    "Generic read (type of instruction or data request cannot be determined)",
    "Generic write (type of instruction of data request cannot be determined)",
    "Data read",
    "Data write",
    "Instruction fetch",
    "Prefetch",
)
_OPERATIONS = {
    ErrorType.CACHE: (
        *_ANY_OPERATION,
        "Eviction",
        "Snooping (processor initiated a cache snoop that resulted in an error)",
        "Snooped (processor raised a cache error caused by another processor or device snooping its cache)",
        "Management",
    ),
    ErrorType.TLB: (
        *_ANY_OPERATION,
        "Local management operation (processor initiated a TLB management operation that resulted in an error)",
        "External management operation (processor raised a TLB error caused by another processor or device"
        " broadcasting TLB operations)",
    ),
    ErrorType.BUS: _ANY_OPERATION,
}
_LEVELS = {
    ErrorType.CACHE: "cache level",
    ErrorType.TLB: "TLB level",
    ErrorType.BUS: "affinity level at which the bus error occurred",
}
_PARTICIPATIONS = (
    "Local processor originated request",
    "Local processor responded to request",
    "Local processor observed",
    "Generic",
)
_SPACES = ("External Memory Access", "Internal Memory Access", "Unknown", "Device Memory Access")


def _signed(value: int) -> int:
    """As printf's %d has it."""
    return value - (1 << 32) if value >> 31 else value


def render_processor(section: ProcessorSection) -> Iterator[str]:
    """The lines of a section."""
    yield f"MIDR: 0x{section.midr:016x}"
    if section.mpidr is not None:
        yield f"Multiprocessor Affinity Register (MPIDR): 0x{section.mpidr:016x}"
    if section.affinity_level is not None:
        yield f"error affinity level: {section.affinity_level}"
    if section.running_state is not None:
        yield f"running state: 0x{section.running_state:x}"
        yield f"Power State Coordination Interface state: {_signed(section.psci_state or 0)}"
    for number, error in enumerate(section.errors):
        yield f"Error info structure {number}:"
        yield f"num errors: {(error.multiple_error or 0) + 1}"
        yield from (f" {line}" for line in _error(error))
    for number, context in enumerate(section.contexts):
        yield f"Context info structure {number}:"
        yield from (f" {line}" for line in _context(context))
        if context.type >= len(REGISTERS):
            return
    if section.vendor:
        yield f"Vendor specific error info has {len(section.vendor)} bytes:"
        yield from (f" {line}" for line in hex_dump(section.vendor, ascii_too=True))


def _context(context: ContextInfo) -> Iterator[str]:
    if context.type >= len(REGISTERS):
        yield f"Invalid context type: {context.type} (max: {len(REGISTERS) - 1})"
        return
    yield f"register context type: {REGISTERS[context.type]}"
    yield from hex_dump(context.registers)


def _error(error: ErrorInfo) -> Iterator[str]:
    for flag, text in _FLAGS.items():
        if (error.flags or 0) & flag:
            yield text
    names = "|".join(name for kind, name in _TYPES.items() if error.type & kind)
    reserved = " with reserved bit(s)" if error.type & ~_ALL_TYPES else ""
    yield f"error_type: 0x{error.type:02x}: {names}{reserved}"
    if error.error_info is not None:
        yield f"error_info: 0x{error.error_info:016x}"
        if not error.type & ErrorType.MICRO_ARCHITECTURAL:
            yield from (f" {line}" for line in _details(error.type, ErrorDetails.decode(error.error_info)))
    if error.virtual_address is not None:
        yield f"virtual fault address: 0x{error.virtual_address:016x}"
    if error.physical_address is not None:
        yield f"physical fault address: 0x{error.physical_address:016x}"


def _name(names: Sequence[str], prefix: str, value: int | None) -> Iterator[str]:
    """A line with the value's name, if it has one."""
    if value is not None and value < len(names):
        yield f"{prefix}: {names[value]}"


def _details(kind: int, details: ErrorDetails) -> Iterator[str]:
    yield from _name(_TRANSACTIONS, "transaction type", details.transaction_type)
    for each, operations in _OPERATIONS.items():
        if kind & each:
            yield from _name(operations, f"{_TYPES[each]}, operation type", details.operation)
    if details.level is not None:
        yield from (f"{name}: {details.level}" for each, name in _LEVELS.items() if kind & each)
    if details.context_corrupt is not None:
        yield f"processor context {'' if details.context_corrupt else 'not '}corrupted"
    if details.corrected is not None:
        yield f"the error has {'' if details.corrected else 'not '}been corrected"
    if details.precise_pc is not None:
        yield f"PC is {'' if details.precise_pc else 'im'}precise"
    if details.restartable_pc:
        yield "Program execution can be restarted reliably at the PC associated with the error."
    if kind == ErrorType.BUS:
        yield from _bus(details)


def _bus(details: ErrorDetails) -> Iterator[str]:
    yield from _name(_PARTICIPATIONS, "participation type", details.participation)
    if details.time_out:
        yield "request timed out"
    yield from _name(_SPACES, "address space", details.address_space)
    if details.memory_attributes is not None:
        yield f"memory access attributes:0x{details.memory_attributes:x}"
    if details.access_mode is not None:
        yield f"access mode: {'normal' if details.access_mode else 'secure'}"
