# SPDX-License-Identifier: Apache-2.0
"""For tests that move a guest by commands: the guest that listens, and a place for it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .control_support import VmProcess

__all__ = ["GUEST", "place"]

GUEST = ("--guest", "listen", "--append", "idle=spin")


@contextmanager
def place(runtime: Path, *words: str, uri: str = "") -> Iterator[tuple[VmProcess, str]]:
    """A destination, and the address that it really has; a Unix socket unless another is given."""
    with VmProcess(runtime, "--incoming", uri or f"unix:{runtime}/there.sock", *words, name="there") as vm:
        vm.wait_err("waiting for a guest")
        found = re.search(r"waiting for a guest at (\S+);", vm.err)
        assert found is not None
        yield vm, found[1]
