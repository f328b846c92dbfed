# SPDX-License-Identifier: Apache-2.0
"""What the sections of errors are, by their GUIDs. UEFI 2.10, N.2.2."""

from __future__ import annotations

from uuid import UUID

__all__ = ["ARM_PROCESSOR", "NAMES", "PCIE", "PLATFORM_MEMORY"]

PLATFORM_MEMORY = UUID("a5bc1114-6f64-4ede-b863-3e83ed7c83b1")
ARM_PROCESSOR = UUID("e19e3d16-bc11-11e4-9caa-c2051d5d46b0")
PCIE = UUID("d995e954-bbc1-430f-ad91-b44dcb3c6f35")

# Those that are not read any further have a name at least.
NAMES = {
    PLATFORM_MEMORY: "memory",
    ARM_PROCESSOR: "processor",
    PCIE: "pcie",
    UUID("9876ccad-47b4-4bdb-b65e-16f193c4f3db"): "generic processor",
    UUID("dc3ea0b0-a144-4797-b95b-53fa242b6e1d"): "IA-32 or x64 processor",
    UUID("61ec04fc-48e6-d813-25c9-8daa44750b12"): "memory 2",
    UUID("81212a96-09ed-4996-9471-8d729c8e69ed"): "firmware error record",
    UUID("c5753963-3b84-4095-bf78-eddad3f9c9dd"): "PCI or PCI-X bus",
    UUID("eb5e4685-ca66-4769-b6a2-26068b001326"): "PCI component",
    UUID("5b51fef7-c79d-4434-8f1b-aa62de3e2c64"): "DMAr generic",
    UUID("80b9efb4-52b5-4de3-a777-68784b771048"): "CXL protocol",
}
