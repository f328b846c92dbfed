# SPDX-License-Identifier: Apache-2.0
"""Addresses of the places that a guest can move to.

    tcp:HOST:PORT     HOST is a name, 192.0.2.1, or [2001:db8::1]; PORT 0 lets a listener take any that is free
    unix:PATH         a Unix socket
    file:PATH         a file

They are QEMU's, but for its options after a comma: a comma belongs to the path.
"""

from __future__ import annotations

import ipaddress
import os
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from ...errors import UsageError

__all__ = ["Uri", "parse_uri"]

_FORMS = "write tcp:HOST:PORT, unix:PATH or file:PATH"
_TCP = re.compile(r"(?:\[(?P<literal>[0-9A-Fa-f:.]+(?:%[\w.-]+)?)\]|(?P<name>[\w.-]+)):(?P<port>[0-9]{1,5})")


@dataclass(frozen=True, slots=True)
class Uri:
    """An address. `host` without brackets and `port` for tcp, `path` for the others."""

    scheme: Literal["tcp", "unix", "file"]
    host: str = ""
    port: int = 0
    path: Path = Path()

    def __str__(self) -> str:
        if self.scheme == "tcp":
            return f"tcp:[{self.host}]:{self.port}" if ":" in self.host else f"tcp:{self.host}:{self.port}"
        return f"{self.scheme}:{self.path}"

    def absolute(self) -> Uri:
        """The same for a process that works in another directory."""
        return self if self.scheme == "tcp" else replace(self, path=Path(os.path.abspath(self.path)))


def parse_uri(text: str) -> Uri:
    """The address that a text means. Raises UsageError."""
    scheme, _, rest = text.partition(":")
    if scheme == "tcp":
        return _tcp(text, rest)
    if scheme == "unix":
        return Uri("unix", path=_path(text, rest))
    if scheme == "file":
        return Uri("file", path=_path(text, rest))
    raise UsageError(f"{text[:200]!r} is no address to move a guest to", _FORMS)


def _path(text: str, rest: str) -> Path:
    if not rest or "\0" in rest:
        raise UsageError(f"{text[:200]!r} has no path", _FORMS)
    return Path(rest)


def _tcp(text: str, rest: str) -> Uri:
    match = _TCP.fullmatch(rest)
    if not match:
        hint = "write tcp:HOST:PORT, and an IPv6 address in brackets: tcp:[::1]:4444"
        if rest.startswith(":"):
            hint = "name a host: 127.0.0.1 for this one alone, 0.0.0.0 or [::] for all of its addresses"
        elif rest.startswith("//"):
            hint = "write it without slashes: tcp:HOST:PORT"
        raise UsageError(f"{text[:200]!r} is no address of a host and a port", hint)
    port = int(match["port"])
    if port > 0xFFFF:
        raise UsageError(f"{text[:200]!r}: there is no port {port}", "ports go up to 65535")
    if match["literal"] is not None:
        try:
            ipaddress.IPv6Address(match["literal"])
        except ValueError:
            raise UsageError(
                f"{text[:200]!r}: {match['literal']!r} is no IPv6 address", "brackets are for IPv6 addresses alone"
            ) from None
    return Uri("tcp", match["literal"] or match["name"], port)
