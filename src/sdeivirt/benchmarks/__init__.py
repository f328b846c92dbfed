# SPDX-License-Identifier: Apache-2.0
"""Measurements, each against a baseline taken in the same run.

report.py     rows: what, how much, against what, the target
core.py       the service alone, without an engine
unicorn.py    the embedded machine, against bare engine exits
qemu.py       the machine qemu, against traps that its monitor answers and QEMU alone
marks.py, shell.py, plain_qemu.py    what they need for it
"""

from .report import Row, render

__all__ = ["Row", "render", "run_all"]


def run_all(rounds: int = 7, quick: bool = False) -> list[Row]:
    """Every measurement. `rounds` is how often each pair is repeated; medians are reported."""
    from . import core, unicorn

    return [*core.measure(rounds, quick), *unicorn.measure(rounds, quick)]
