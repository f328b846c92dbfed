# SPDX-License-Identifier: Apache-2.0
"""The device tree that a guest finds at the address in x0.

It tells of the machine's map (that of QEMU's virt board), of PSCI, and of
SDEI by the node that Linux looks for, /firmware/sdei:

    Documentation/devicetree/bindings/arm/firmware/sdei.txt
    Documentation/devicetree/bindings/arm/psci.yaml
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..smccc.ids import Conduit
from .bootargs import check_bootargs

with warnings.catch_warnings():
    # fdt 0.3.3 has an invalid escape sequence, of which Python warns when it first compiles the module.
    warnings.simplefilter("ignore", DeprecationWarning)
    warnings.simplefilter("ignore", SyntaxWarning)
    import fdt

if TYPE_CHECKING:
    from ..machine.base import MachineConfig

__all__ = ["GICD", "GICR", "UART_BASE", "UART_SIZE", "build", "fdt", "sdei_node", "stub"]

_RAM_BASE = 0x4000_0000
UART_BASE = 0x0900_0000
UART_SIZE = 0x1000
_UART = f"pl011@{UART_BASE:x}"
GICD = (0x0800_0000, 0x1_0000)
GICR = 0x080A_0000
_GICR_HIGH = 0x40_0000_0000  # of CPUs for which there is no room below the UART
_GICR_STRIDE = 0x2_0000
_GICR_ROOM = 123
_CLOCK_HZ = 24_000_000
_CLOCK_PHANDLE = 1
_GIC_PHANDLE = 2

# The version of the format, and the oldest whose readers understand it (Devicetree specification 5.2).
_VERSION = 17
_COMPATIBLE_VERSION = 16


def _strings(name: str, *values: str) -> fdt.PropStrings:
    return fdt.PropStrings(name, *values)


def _cells(name: str, *values: int) -> fdt.PropWords:
    """A property of 32-bit cells."""
    return fdt.PropWords(name, *values)


def _wide(name: str, *values: int) -> fdt.PropWords:
    """A property of 64-bit numbers, two cells each."""
    return fdt.PropWords(name, *(half for value in values for half in (value >> 32, value & 0xFFFF_FFFF)))


def sdei_node(conduit: Conduit) -> fdt.Node:
    """The node below /firmware by which Linux finds SDEI."""
    return fdt.Node("sdei", _strings("compatible", "arm,sdei-1.0"), _strings("method", conduit.value))


def _chosen(bootargs: str) -> fdt.Node:
    node = fdt.Node("chosen", _strings("stdout-path", f"/{_UART}"))
    if bootargs:
        node.append(_strings("bootargs", check_bootargs(bootargs)))
    return node


def _cpus(affinities: Sequence[int]) -> fdt.Node:
    cpus = fdt.Node("cpus", _cells("#address-cells", 2), _cells("#size-cells", 0))
    for affinity in affinities:
        cpus.append(
            fdt.Node(
                f"cpu@{affinity:x}",
                _strings("device_type", "cpu"),
                _strings("compatible", "arm,cortex-a57"),
                _wide("reg", affinity),
                _strings("enable-method", "psci"),
            )
        )
    return cpus


def _interrupt_controller(cpus: int) -> fdt.Node:
    """A GICv3, Documentation/devicetree/bindings/interrupt-controller/arm,gic-v3.yaml."""
    low = min(cpus, _GICR_ROOM)
    regions = [GICR, low * _GICR_STRIDE]
    if cpus > low:
        regions += [_GICR_HIGH, (cpus - low) * _GICR_STRIDE]
    return fdt.Node(
        f"intc@{GICD[0]:x}",
        _strings("compatible", "arm,gic-v3"),
        _wide("reg", *GICD, *regions),
        _cells("#redistributor-regions", len(regions) // 2),
        _cells("#interrupt-cells", 3),
        fdt.Property("interrupt-controller"),
        _cells("#address-cells", 2),
        _cells("#size-cells", 2),
        fdt.Property("ranges"),
        _cells("phandle", _GIC_PHANDLE),
    )


def stub(chosen: Sequence[fdt.PropWords | fdt.PropStrings]) -> bytes:
    """A tree that holds nothing but /chosen: a kernel that finds such a one looks for ACPI."""
    tree = fdt.FDT()
    tree.root.append(_cells("#address-cells", 2))
    tree.root.append(_cells("#size-cells", 2))
    tree.root.append(fdt.Node("chosen", *chosen))
    blob: bytes = tree.to_dtb(_VERSION, _COMPATIBLE_VERSION)
    return blob


def build(config: MachineConfig, affinities: Sequence[int], *, sdei: bool = True) -> bytes:
    """The flattened tree (DTB) for a machine whose PEs have these `affinities`, the boot PE's first.

    `sdei` False leaves /firmware/sdei out, as on a platform that never had
    the service. Raises UsageError for boot arguments that no tree can hold.
    """
    method = config.conduit.value
    tree = fdt.FDT()
    root = tree.root
    root.append(_strings("compatible", "linux,dummy-virt"))
    root.append(_strings("model", "linux,dummy-virt"))
    root.append(_cells("#address-cells", 2))
    root.append(_cells("#size-cells", 2))
    root.append(_cells("interrupt-parent", _GIC_PHANDLE))
    root.append(_chosen(config.bootargs))
    root.append(
        fdt.Node(f"memory@{_RAM_BASE:x}", _strings("device_type", "memory"), _wide("reg", _RAM_BASE, config.memory))
    )
    root.append(_cpus(affinities))
    root.append(fdt.Node("psci", _strings("compatible", "arm,psci-1.0", "arm,psci-0.2"), _strings("method", method)))
    if sdei:
        root.append(fdt.Node("firmware", sdei_node(config.conduit)))
    root.append(
        fdt.Node(
            "apb-pclk",
            _strings("compatible", "fixed-clock"),
            _cells("#clock-cells", 0),
            _cells("clock-frequency", _CLOCK_HZ),
            _strings("clock-output-names", "clk24mhz"),
            _cells("phandle", _CLOCK_PHANDLE),
        )
    )
    root.append(
        fdt.Node(
            _UART,
            _strings("compatible", "arm,pl011", "arm,primecell"),
            _wide("reg", UART_BASE, UART_SIZE),
            _strings("clock-names", "uartclk", "apb_pclk"),
            _cells("clocks", _CLOCK_PHANDLE, _CLOCK_PHANDLE),
        )
    )
    root.append(_interrupt_controller(len(affinities)))
    blob: bytes = tree.to_dtb(_VERSION, _COMPATIBLE_VERSION, boot_cpuid_phys=affinities[0] & 0xFFFF_FFFF)
    return blob
