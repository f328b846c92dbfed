# SPDX-License-Identifier: Apache-2.0
"""As much of the ACPI machine language as a DSDT of a few devices needs. ACPI 6.3, chapter 20.

Every function returns the bytes of one term.
"""

from __future__ import annotations

import struct

__all__ = ["buffer", "device", "integer", "interrupt", "memory", "method", "name", "resources", "scope", "string"]

_NAME_OP = b"\x08"
_SCOPE_OP = b"\x10"
_BUFFER_OP = b"\x11"
_METHOD_OP = b"\x14"
_DEVICE_OP = b"\x5b\x82"
_END_TAG = b"\x79\x00"

# Resource descriptors, ACPI 6.3, 6.4.3.4 and 6.4.3.6.
_MEMORY32_FIXED = struct.Struct("<BHBII")
_EXTENDED_INTERRUPT = struct.Struct("<BHBBI")
_CONSUMER_LEVEL_HIGH = 1


def _package(op: bytes, body: bytes) -> bytes:
    """An op, the length of all that comes after the op, and the body. 20.2.4."""
    if len(body) + 1 < 1 << 6:
        length = bytes([len(body) + 1])
    else:
        more = 1 if len(body) + 2 < 1 << 12 else 2 if len(body) + 3 < 1 << 20 else 3
        size = len(body) + 1 + more
        length = bytes([more << 6 | size & 0xF]) + (size >> 4).to_bytes(more, "little")
    return op + length + body


def integer(value: int) -> bytes:
    """A constant in its shortest form."""
    if value < 2:
        return bytes([value])
    for prefix, size in ((0x0A, 1), (0x0B, 2), (0x0C, 4)):
        if value < 1 << 8 * size:
            return bytes([prefix]) + value.to_bytes(size, "little")
    return b"\x0e" + value.to_bytes(8, "little")


def string(text: str) -> bytes:
    """An ASCII string."""
    return b"\x0d" + text.encode("ascii") + b"\0"


def buffer(content: bytes) -> bytes:
    """A buffer of just these bytes."""
    return _package(_BUFFER_OP, integer(len(content)) + content)


def name(segment: str, value: bytes) -> bytes:
    """Name (segment, value); a segment is four characters."""
    return _NAME_OP + segment.encode("ascii") + value


def device(segment: str, *terms: bytes) -> bytes:
    """Device (segment) { terms }."""
    return _package(_DEVICE_OP, segment.encode("ascii") + b"".join(terms))


def scope(path: str, *terms: bytes) -> bytes:
    """Scope (path) { terms }."""
    return _package(_SCOPE_OP, path.encode("ascii") + b"".join(terms))


def method(segment: str, arguments: int, body: bytes) -> bytes:
    """Method (segment, arguments, NotSerialized) { body }."""
    return _package(_METHOD_OP, segment.encode("ascii") + bytes([arguments]) + body)


def memory(address: int, size: int) -> bytes:
    """Memory32Fixed (ReadWrite, address, size)."""
    return _MEMORY32_FIXED.pack(0x86, _MEMORY32_FIXED.size - 3, 1, address, size)


def interrupt(intid: int) -> bytes:
    """Interrupt (ResourceConsumer, Level, ActiveHigh, Exclusive) { intid }."""
    return _EXTENDED_INTERRUPT.pack(0x89, _EXTENDED_INTERRUPT.size - 3, _CONSUMER_LEVEL_HIGH, 1, intid)


def resources(*descriptors: bytes) -> bytes:
    """ResourceTemplate () { descriptors }."""
    return buffer(b"".join(descriptors) + _END_TAG)
