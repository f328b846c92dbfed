# SPDX-License-Identifier: Apache-2.0
"""QEMU's own device tree, and what we change in it.

QEMU leaves the tree of its machine at the start of RAM. We take it from there,
so that it tells of every device that the user asked for, and add SDEI,
the boot arguments and the initial RAM disk; PSCI is ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ...errors import EnvironmentUnavailableError
from ...smccc.ids import Conduit
from ...tables.bootargs import check_bootargs
from ...tables.devicetree import fdt, sdei_node

__all__ = ["MachineTree", "PciBridge"]

_MAGIC = b"\xd0\x0d\xfe\xed"
_IO_SPACE = 0x0100_0000
_VERSION, _COMPATIBLE_VERSION = 17, 16


@dataclass(frozen=True, slots=True)
class PciBridge:
    """Where the host bridge has its configuration space (ECAM) and its I/O ports, for the CPU."""

    ecam: int
    io: int
    io_size: int

    def function(self, slot: int) -> int:
        """Where the configuration space of function 0 in a slot of bus 0 is."""
        return self.ecam + (slot << 15)


def _wide(cells: Sequence[int]) -> int:
    return cells[0] << 32 | cells[1]


def _split(value: int) -> list[int]:
    return [value >> 32, value & 0xFFFF_FFFF]


class MachineTree:
    """The tree of a QEMU `virt` machine, from its binary form. Raises EnvironmentUnavailableError where it is none."""

    def __init__(self, blob: bytes) -> None:
        if blob[:4] != _MAGIC:
            raise EnvironmentUnavailableError(
                "QEMU left no device tree in its memory", "sdeivirt knows QEMU 7.2 to 11; run `sdeivirt doctor`"
            )
        self._tree = fdt.parse_dtb(blob[: int.from_bytes(blob[4:8], "big")])

    def _node(self, pattern: str) -> Any:
        """The node below the root whose name starts with `pattern`."""
        for node in self._tree.root.nodes:
            if node.name.split("@")[0] == pattern:
                return node
        raise EnvironmentUnavailableError(f"QEMU's device tree has no {pattern}", "give no arguments that remove it")

    def _cells(self, name: str, node: str) -> list[int]:
        cells: list[int] = list(self._node(node).get_property(name).data)
        return cells

    @property
    def gic(self) -> tuple[int, int]:
        """The addresses of the distributor and of the first redistributor."""
        reg = self._cells("reg", "intc")
        return _wide(reg[0:2]), _wide(reg[4:6])

    @property
    def pci(self) -> PciBridge:
        """The PCI host bridge."""
        ecam = _wide(self._cells("reg", "pcie"))
        ranges = self._cells("ranges", "pcie")
        for i in range(0, len(ranges), 7):
            if ranges[i] == _IO_SPACE:
                return PciBridge(ecam, _wide(ranges[i + 3 : i + 5]), _wide(ranges[i + 5 : i + 7]))
        raise EnvironmentUnavailableError("QEMU's PCI bridge has no I/O ports", "give no arguments that remove them")

    def shrink_io(self, size: int) -> None:
        """Tell of only so many bytes of the bridge's I/O ports."""
        node = self._node("pcie")
        ranges = list(node.get_property("ranges").data)
        for i in range(0, len(ranges), 7):
            if ranges[i] == _IO_SPACE:
                ranges[i + 5 : i + 7] = _split(size)
        node.set_property("ranges", ranges)

    def remove_pci(self) -> None:
        """Tell of no PCI at all."""
        self._tree.root.remove_subnode(self._node("pcie").name)

    def finish(
        self,
        *,
        conduit: Conduit,
        bootargs: str,
        memory: tuple[int, int],
        reserved: tuple[int, int],
        initrd: tuple[int, int] | None = None,
    ) -> bytes:
        """The tree for the guest.

        `memory` is the guest's, `reserved` what is none of it, (address, size) each; `initrd` is (start, end).
        """
        tree = self._tree
        tree.add_item(sdei_node(conduit), "/firmware")
        tree.set_property("method", conduit.value, "/psci")
        tree.set_property("compatible", ["arm,psci-1.0", "arm,psci-0.2"], "/psci")
        chosen = "/chosen"
        if bootargs:
            tree.set_property("bootargs", check_bootargs(bootargs), chosen)
        if initrd is not None:
            tree.set_property("linux,initrd-start", _split(initrd[0]), chosen)
            tree.set_property("linux,initrd-end", _split(initrd[1]), chosen)
        self._node("memory").set_property("reg", [*_split(memory[0]), *_split(memory[1])])
        where = "/reserved-memory"
        tree.set_property("#address-cells", 2, where)
        tree.set_property("#size-cells", 2, where)
        node = fdt.Node(f"monitor@{reserved[0]:x}")
        node.append(fdt.PropWords("reg", *_split(reserved[0]), *_split(reserved[1])))
        node.append(fdt.Property("no-map"))
        tree.add_item(node, where)
        tree.add_item(fdt.Property("ranges"), where)
        blob: bytes = tree.to_dtb(_VERSION, _COMPATIBLE_VERSION)
        return blob
