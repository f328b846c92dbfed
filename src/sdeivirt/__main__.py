# SPDX-License-Identifier: Apache-2.0
"""`python -m sdeivirt` is `sdeivirt`."""

from __future__ import annotations

import signal
import sys

__all__ = ["main"]


def main() -> int:
    """The command. Ctrl-C leaves no traceback, be it while modules are loaded or when all is done."""
    quietly = signal.getsignal(signal.SIGINT) is signal.default_int_handler  # else somebody wants it otherwise
    if quietly:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from .cli import main as run

    if quietly:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    code = run()
    if quietly:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    return code


if __name__ == "__main__":
    sys.exit(main())
