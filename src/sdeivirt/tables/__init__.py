# SPDX-License-Identifier: Apache-2.0
"""How a guest learns of SDEI: a node in the device tree, or an ACPI table.

    devicetree.py   the tree that machines hand to their guests
    acpi.py         the SDEI table
    bootargs.py     what the tree can tell the guest in words

`sdeivirt tables` writes either to a file.
"""
