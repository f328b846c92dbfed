# SPDX-License-Identifier: Apache-2.0
"""Reports of errors as Debian's kernels print them, held against what we say they print."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from sdeivirt.ras.cper import KINDS, DataEntry, Severity, StatusBlock, make_block, render
from sdeivirt.ras.sources import STANDARD_EVENTS, STANDARD_SOURCES

from .cper_support import everything
from .linux_support import KERNELS, Linux, linux_marks

pytestmark = [pytest.mark.linux, *linux_marks]

_OUTSIDE = 0x12_3400_0000  # no RAM: nobody is to lose a page
_LINE = re.compile(r"\[Hardware Error\]: (.*)")


def entries(severity: Severity) -> tuple[DataEntry, ...]:
    """What make_block has of each kind; all of it in one report, since Linux prints two in five seconds."""
    cases = [make_block(kind, severity, address=_OUTSIDE + 0x1000 * i).entries for i, kind in enumerate(KINDS)]
    cases += [make_block(kind, severity, fru_text="DIMM 3").entries for kind in KINDS]
    cases += [make_block("processor", severity, part=part).entries for part in ("tlb", "bus")]
    return tuple(entry for case in cases for entry in case)


def printed(linux: Linux, number: int, count: int) -> list[str]:
    """The lines of a report, once there are that many; what there is after 10 s. The first names the source."""
    lines = f"dmesg | grep '{{{number}}}.Hardware Error'"
    enough = f"[ $({lines} | wc -l) -ge {count} ]"
    log = linux.sh(f"i=0; until {enough} || [ $i -ge 100 ]; do i=$((i+1)); sleep 0.1; done; {lines}")
    return _LINE.findall(log.replace("\r", ""))


@pytest.mark.parametrize("kernel", KERNELS)
def test_we_say_what_linux_prints(kernel: str) -> None:
    old = kernel == "bookworm"
    informational = everything(Severity.INFORMATIONAL, odd_contexts=not old)
    reports = [
        replace(informational, entries=informational.entries + entries(Severity.INFORMATIONAL)),
        StatusBlock(severity=Severity.CORRECTED, entries=entries(Severity.CORRECTED)),
        StatusBlock(severity=Severity.RECOVERABLE, entries=entries(Severity.RECOVERABLE)),
    ]
    with Linux(
        kernel,
        client="",
        append="quiet loglevel=1",  # the console is slow
        events=STANDARD_EVENTS,
        error_sources=STANDARD_SOURCES,
        options={"firmware": "acpi"},
    ) as linux:
        linux.booted()
        for number, report in enumerate(reports, 1):
            expected = render(report, old_aer=old)
            outcome = linux.machine.errors.submit(report.encode(), 0).result(20)
            assert outcome.outcome == "acknowledged"
            source, *lines = printed(linux, number, len(expected) + 1)
            assert source == "Hardware error from APEI Generic Hardware Error Source: 0"
            assert lines == expected
        # The last one is on the console alone: nobody can ask the kernel any more.
        fatal = StatusBlock(severity=Severity.FATAL, entries=entries(Severity.FATAL))
        assert linux.machine.errors.submit(fatal.encode(), 0).result(20).outcome == "panicked"
        linux.ends()
        source, *lines = re.findall(rf"\{{{len(reports) + 1}\}}\[Hardware Error\]: (.*)", linux.text.replace("\r", ""))
        assert source == "Hardware error from APEI Generic Hardware Error Source: 0"
        assert lines == render(fatal, old_aer=old)
