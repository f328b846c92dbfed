# SPDX-License-Identifier: Apache-2.0
"""The machine `qemu`: stock QEMU under a small EL2 monitor whose policy is this process.

machine.py     the machine: its thread and its loop
options.py     what it is made of
process.py     the QEMU process, its command line, the sockets to it
arguments.py   what the user may not add to that
boot.py        what stands in the guest's memory, and what of it the guest can reach
devicetree.py  QEMU's tree, edited
acpi.py        what a guest finds that boots by ACPI without firmware
uefi.py        ... and one that boots by EDK2
fwcfg.py       QEMU's fw_cfg: its ACPI tables, and its DMA
layout.py      the memory shared with the monitor (guests/monitor/)
stage2.py      stage-2 tables
vcpu.py        requests and their answers
view.py        a mailbox as a window on registers
power.py       what PSCI decides
kicks.py       stopping vCPUs from outside
gic.py         the interrupt controller, through ...
qtest.py       ... QEMU's qtest protocol
bound.py       interrupts that are SDEI events
console.py     the serial port
"""

from .machine import QemuMachine, show_command
from .options import QemuOptions
from .uefi import find_firmware

__all__ = ["QemuMachine", "QemuOptions", "find_firmware", "show_command"]
