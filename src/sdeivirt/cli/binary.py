# SPDX-License-Identifier: Apache-2.0
"""Where verbs that read or make something binary have it from, and write it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from ..errors import UsageError
from ..files import amount, read_regular

__all__ = ["STANDARD", "Input", "Output", "read_binary", "write_binary"]

STANDARD = Path("-")

Output = Annotated[
    Path | None, Parameter(alias="-o", allow_leading_hyphen=True, help="The file to write; - is standard output.")
]

Input = Annotated[Path, Parameter(allow_leading_hyphen=True)]


def read_binary(path: Path, limit: int, kind: type[UsageError], hint: str, too_big: str) -> bytes:
    """The whole of a file, or of standard input, as :func:`read_regular` has it."""
    if path != STANDARD:
        return read_regular(path, limit, kind, hint, too_big)
    data = sys.stdin.buffer.read(limit + 1)
    if len(data) > limit:
        raise kind(f"standard input has more than {amount(limit)}", too_big)
    return data


def write_binary(data: bytes, output: Path | None, what: str) -> None:
    """To a file or standard output, which is no terminal unless that was asked for. Raises UsageError."""
    if output is None and sys.stdout.isatty():
        raise UsageError(f"a binary {what} is nothing for a terminal", "name a file with -o FILE, or insist with -o -")
    if output is None or output == STANDARD:
        sys.stdout.buffer.write(data)
        return
    try:
        output.write_bytes(data)
    except OSError as error:
        raise UsageError(f"cannot write {output}: {error.strerror}", "choose another file") from error
