# SPDX-License-Identifier: Apache-2.0
"""The device tree and the SDEI table, read back by other readers than the writer."""

from __future__ import annotations

import shutil
import struct
import subprocess
from pathlib import Path
from typing import Any

import pytest

from sdeivirt.cpu import affinity_of_index
from sdeivirt.errors import UsageError
from sdeivirt.machine import MachineConfig
from sdeivirt.smccc.ids import Conduit
from sdeivirt.tables.acpi import SDEI_TABLE_SIZE, sdei_table
from sdeivirt.tables.devicetree import build

from .control_support import read_tree


def tree_of(vcpus: int = 2, **config: object) -> Any:
    affinities = [affinity_of_index(i) for i in range(vcpus)]
    return read_tree(build(MachineConfig(vcpus=vcpus, **config), affinities))  # type: ignore[arg-type]


def test_the_tree_describes_qemus_virt_board() -> None:
    tree = tree_of(memory=5 << 30, bootargs="event=0x40000010 quiet")
    for path, name, value in (
        ("/", "compatible", ["linux,dummy-virt"]),
        ("/", "#address-cells", [2]),
        ("/", "#size-cells", [2]),
        ("/chosen", "stdout-path", ["/pl011@9000000"]),
        ("/chosen", "bootargs", ["event=0x40000010 quiet"]),
        ("/memory@40000000", "device_type", ["memory"]),
        ("/memory@40000000", "reg", [0, 0x4000_0000, 1, 0x4000_0000]),
        ("/psci", "compatible", ["arm,psci-1.0", "arm,psci-0.2"]),
        ("/psci", "method", ["hvc"]),
        ("/firmware/sdei", "compatible", ["arm,sdei-1.0"]),
        ("/firmware/sdei", "method", ["hvc"]),
        ("/pl011@9000000", "compatible", ["arm,pl011", "arm,primecell"]),
        ("/pl011@9000000", "reg", [0, 0x0900_0000, 0, 0x1000]),
        ("/pl011@9000000", "clock-names", ["uartclk", "apb_pclk"]),
        ("/apb-pclk", "compatible", ["fixed-clock"]),
    ):
        assert tree.get_property(name, path).data == value, (path, name)
    (phandle,) = tree.get_property("phandle", "/apb-pclk").data
    assert tree.get_property("clocks", "/pl011@9000000").data == [phandle, phandle]


def test_every_cpu_has_its_affinity() -> None:
    tree = tree_of(512)
    cpus = tree.get_node("/cpus")
    assert len(cpus.nodes) == 512
    for i, cpu in enumerate(cpus.nodes):
        affinity = affinity_of_index(i)
        assert cpu.name == f"cpu@{affinity:x}"
        assert cpu.get_property("reg").data == [0, affinity]
        assert cpu.get_property("enable-method").value == "psci"
    high = read_tree(build(MachineConfig(vcpus=1), [0x12_0000_0003]))
    assert high.get_node("/cpus").nodes[0].get_property("reg").data == [0x12, 3]


def test_the_conduit() -> None:
    tree = tree_of(conduit=Conduit.SMC)
    assert tree.get_property("method", "/psci").value == "smc"
    assert tree.get_property("method", "/firmware/sdei").value == "smc"


def test_what_may_be_left_out() -> None:
    assert not tree_of().exist_property("bootargs", "/chosen")
    tree = read_tree(build(MachineConfig(vcpus=1), [0], sdei=False))
    assert not tree.exist_node("/firmware")


def test_the_header_is_that_of_version_17() -> None:
    blob = build(MachineConfig(), [0, 1])
    magic, size, structs, strings, reserved, version, compatible, boot_cpu = struct.unpack_from(">8I", blob)
    assert (magic, size, version, compatible, boot_cpu) == (0xD00D_FEED, len(blob), 17, 16, 0)
    assert structs % 4 == 0
    assert reserved % 8 == 0
    assert strings < size


@pytest.mark.parametrize("bootargs", ["ü", "a\0b", "a\nb", "x" * 2048])
def test_boot_arguments_that_no_tree_holds(bootargs: str) -> None:
    with pytest.raises(UsageError, match="boot arguments"):
        build(MachineConfig(bootargs=bootargs), [0])


@pytest.mark.skipif(shutil.which("dtc") is None, reason="needs dtc")
def test_dtc_reads_the_tree(tmp_path: Path) -> None:
    (tmp_path / "tree.dtb").write_bytes(build(MachineConfig(vcpus=3, bootargs="x"), [0, 1, 2]))
    done = subprocess.run(
        ["dtc", "-I", "dtb", "-O", "dts", tmp_path / "tree.dtb"], capture_output=True, text=True, check=True
    )
    assert "arm,sdei-1.0" in done.stdout
    assert "Warning" not in done.stderr


def test_the_sdei_table_is_a_header_with_a_right_checksum() -> None:
    table = sdei_table()
    assert len(table) == SDEI_TABLE_SIZE == 36
    assert sum(table) % 256 == 0
    signature, length, revision, _checksum = struct.unpack_from("<4sIBB", table)
    assert (signature, length, revision) == (b"SDEI", 36, 0)
    # As a kernel prints it: (v00 SDEIVT SDEIVIRT 00000001 SDVT 00000001)
    assert table[10:] == b"SDEIVTSDEIVIRT\1\0\0\0SDVT\1\0\0\0"
