# SPDX-License-Identifier: Apache-2.0
"""Errors of Arm processors: the section, its pieces of information, and registers. UEFI 2.10, N.2.4.4."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntFlag
from uuid import UUID

from . import guids
from .layout import Field, Layout, check_fits
from .reader import Reader

__all__ = ["ContextInfo", "ErrorFlags", "ErrorInfo", "ErrorType", "ProcessorSection"]

_LAYOUT = Layout(
    "the Arm processor error section",
    Field("validation", "I"),
    Field("infos", "H"),
    Field("contexts", "H"),
    Field("length", "I"),
    Field("affinity_level", "B", 1),
    Field("", "3x"),
    Field("mpidr", "Q", 0),
    Field("midr", "Q"),
    Field("running_state", "I", 2),
    Field("psci_state", "I", 2),
)
_VENDOR = 1 << 3
_INFO = Layout(
    "the error information",
    Field("version", "B"),
    Field("length", "B"),
    Field("validation", "H"),
    Field("type", "B"),
    Field("multiple_error", "H", 0),
    Field("flags", "B", 1),
    Field("error_info", "Q", 2),
    Field("virtual_address", "Q", 3),
    Field("physical_address", "Q", 4),
)
# Version, type, size of the registers; all is padded.
_CONTEXT = struct.Struct("<HHI")
_CONTEXT_ALIGNMENT = 16


class ErrorType(IntFlag):
    """What has failed. Since UEFI 2.9A these are bits."""

    CACHE = 0x02
    TLB = 0x04
    BUS = 0x08
    MICRO_ARCHITECTURAL = 0x10


class ErrorFlags(IntFlag):
    """What is said of an error's information."""

    FIRST = 1
    LAST = 2
    PROPAGATED = 4
    OVERFLOW = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class ErrorInfo:
    """What is known of an error, 32 bytes; None is what is not said.

    `multiple_error` is 0 for one error, 1 for more than one, or else their number; Linux takes it for the number less
    one. `error_info` says more, see :class:`ErrorDetails`; `virtual_address` and `physical_address` are of the fault.
    """

    type: int
    multiple_error: int | None = None
    flags: int | None = None
    error_info: int | None = None
    virtual_address: int | None = None
    physical_address: int | None = None
    version: int = 0

    def encode(self) -> bytes:
        """The structure. Raises CperError for values that do not fit."""
        return _INFO.pack({**_INFO.values(self), "length": _INFO.size})

    @classmethod
    def decode(cls, reader: Reader) -> ErrorInfo:
        """The structure that comes next. Raises CperError."""
        start = reader.offset
        values, _valid = _INFO.unpack(reader)
        if (length := values.pop("length")) != _INFO.size:
            raise reader.wrong(f"the error information says that it has {length} bytes, and it has {_INFO.size}", start)
        return cls(**values)


@dataclass(frozen=True, slots=True, kw_only=True)
class ContextInfo:
    """Registers as they were: `type` says which (render_processor.REGISTERS), `registers` are their bytes."""

    type: int
    registers: bytes = b""
    version: int = 0

    def encode(self) -> bytes:
        """The structure. Raises CperError for values that do not fit."""
        check_fits("type of the context", self.type, 16)
        check_fits("version of the context", self.version, 16)
        data = _CONTEXT.pack(self.version, self.type, len(self.registers)) + self.registers
        return data + bytes(-len(data) % _CONTEXT_ALIGNMENT)

    @classmethod
    def decode(cls, reader: Reader) -> ContextInfo:
        """The structure that comes next. Raises CperError."""
        version, kind, size = reader.unpack(_CONTEXT, "a processor context")
        registers = reader.take(size, "the registers of a context")
        reader.take(-(_CONTEXT.size + size) % _CONTEXT_ALIGNMENT, "the padding of a context")
        return cls(type=kind, registers=registers, version=version)


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessorSection:
    """An error of an Arm processor; None is what is not said.

    Bit 0 of `running_state` says whether the PE runs; if not, `psci_state` is its power state. `vendor`
    is what only the vendor knows, `more` what follows the section.
    """

    midr: int
    mpidr: int | None = None
    affinity_level: int | None = None
    running_state: int | None = None
    psci_state: int | None = None
    errors: tuple[ErrorInfo, ...] = ()
    contexts: tuple[ContextInfo, ...] = ()
    vendor: bytes = b""
    more: bytes = b""

    @property
    def guid(self) -> UUID:
        return guids.ARM_PROCESSOR

    def encode(self) -> bytes:
        """The section. Raises CperError for values that do not fit."""
        errors = b"".join(error.encode() for error in self.errors)
        pieces = errors + b"".join(context.encode() for context in self.contexts) + self.vendor
        counts = {"infos": len(self.errors), "contexts": len(self.contexts), "length": _LAYOUT.size + len(pieces)}
        head = _LAYOUT.pack({**_LAYOUT.values(self), **counts}, _VENDOR if self.vendor else 0)
        return head + pieces + self.more

    @classmethod
    def decode(cls, reader: Reader) -> ProcessorSection:
        """The section that a reader holds. Raises CperError."""
        start, size = reader.offset, reader.left
        values, _valid = _LAYOUT.unpack(reader)
        length, infos, contexts = values.pop("length"), values.pop("infos"), values.pop("contexts")
        if not _LAYOUT.size + infos * _INFO.size <= length <= size:
            raise reader.wrong(
                f"{_LAYOUT.what} says that it has {length} bytes and {infos} errors, and there are {size}", start
            )
        body = reader.part(length - _LAYOUT.size, _LAYOUT.what)
        return cls(
            **values,
            errors=tuple(ErrorInfo.decode(body) for _ in range(infos)),
            contexts=tuple(ContextInfo.decode(body) for _ in range(contexts)),
            vendor=body.take(body.left, "what the vendor says"),
            more=reader.take(reader.left, "what follows"),
        )
