# SPDX-License-Identifier: Apache-2.0
"""How a guest learns of SDEI and of its machine: by a device tree, or by ACPI tables.

    devicetree.py   the tree that machines hand to their guests
    acpi/           the ACPI tables
    efi.py          what of UEFI a kernel needs to find them
    bootargs.py     what the tree can tell the guest in words

`sdeivirt tables` writes either to a file.
"""
