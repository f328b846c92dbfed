# SPDX-License-Identifier: Apache-2.0
"""The ACPI tables that Linux finds are those that `sdeivirt tables acpi` writes, and it has nothing against them."""

from __future__ import annotations

import base64
import re
from pathlib import Path

import pytest

from sdeivirt.cli import main
from sdeivirt.ras.sources import STANDARD_EVENTS, STANDARD_SOURCES
from sdeivirt.smccc.ids import Conduit

from .linux_support import Linux, linux_marks

pytestmark = linux_marks

_TABLES = "/sys/firmware/acpi/tables"
# What Linux says when a table is not as it wants it.
_COMPLAINT = re.compile(
    r"Firmware (Bug|Warn|Error)|ACPI (BIOS )?(Error|Warning)|incorrect|invalid|not supported|malformed|failed",
    re.IGNORECASE,
)
_ABOUT = re.compile(r"ACPI|MADT|GTDT|SPCR|FADT|HEST|GHES|SDEI|psci|arch_timer|efi:", re.IGNORECASE)


@pytest.mark.parametrize(
    ("kernel", "vcpus", "conduit"),
    [
        pytest.param("bookworm", 4, "hvc", marks=pytest.mark.linux),
        pytest.param("newest", 1, "smc", marks=pytest.mark.linux),
        pytest.param("bookworm", 1, "smc", marks=pytest.mark.linux_full),
        pytest.param("newest", 4, "hvc", marks=pytest.mark.linux_full),
    ],
)
def test_linux_finds_the_tables_that_are_written_to_files(
    kernel: str, vcpus: int, conduit: str, tmp_path: Path
) -> None:
    words = ["--vcpus", str(vcpus), "--memory", "512M", "--conduit", conduit]
    assert main(["tables", "acpi", *words, "-o", str(tmp_path)]) == 0
    with Linux(
        kernel,
        vcpus=vcpus,
        conduit=Conduit(conduit),
        client="",
        events=STANDARD_EVENTS,
        error_sources=STANDARD_SOURCES,
        options={"firmware": "acpi"},
        append="quiet",
    ) as linux:
        linux.booted()
        names = linux.sh(f"cd {_TABLES}; ls -p | grep -v /").split()
        assert set(names) == {"APIC", "DSDT", "FACP", "GTDT", "HEST", "SDEI", "SPCR"}
        for name in names:
            found = base64.b64decode(linux.sh(f"base64 {_TABLES}/{name}"))
            assert found == (tmp_path / f"{name.lower()}.aml").read_bytes(), name
        log = linux.sh("dmesg")
        assert "psci: probing for conduit method from ACPI" in log
        assert [line for line in log.splitlines() if _ABOUT.search(line) and _COMPLAINT.search(line)] == []
        assert linux.sh("nproc").strip() == str(vcpus)
        # Each processor has its device, and the console its driver.
        assert len(linux.sh("ls -d /sys/bus/acpi/devices/ACPI0007:*").split()) == vcpus
        assert linux.sh("basename $(readlink /sys/bus/acpi/devices/ARMH0011:00/physical_node/driver)") != "\n"
