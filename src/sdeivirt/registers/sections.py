# SPDX-License-Identifier: Apache-2.0
"""The firmware's state in a stream.

    "sdei"       the registers of the VM
    "sdei-pe"    those of a vCPU, which is the instance
    "psci"       the vCPUs' power states
    "services"   which services are switched on, by KVM's ids of the bitmap registers

TRNG has no state, nor has the rest. In a map of registers a value of up to 64
bits is an integer, a longer one is bytes in little endian; what is not in the
map is as after reset.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..errors import StreamError
from ..migration.sections import Record, Section, pack, unpack
from ..smccc.psci import Power
from ..smccc.router import BITMAP_REGISTERS
from . import ids
from .access import Registers
from .capture import Dump
from .draft import Draft
from .ids import Impossible
from .origin import check_origin

if TYPE_CHECKING:
    from ..firmware import Firmware
    from ..sdei.service import Sdei

__all__ = [
    "FIRMWARE_SECTIONS",
    "firmware_sections",
    "from_sections",
    "load_firmware_sections",
    "rehearse",
    "to_sections",
]

_VM, _PE, _PSCI, _SERVICES = "sdei", "sdei-pe", "psci", "services"
FIRMWARE_SECTIONS = (_VM, _PE, _PSCI, _SERVICES)

Value = int | bytes


class SdeiState(Record, frozen=True):
    """The registers of the VM, or of a vCPU: values by id."""

    registers: dict[int, Value]


class PsciState(Record, frozen=True):
    """AFFINITY_INFO's number for each vCPU: 0 on, 1 off, 2 on pending."""

    power: list[int]


class ServicesState(Record, frozen=True):
    """The service bitmaps by KVM's ids."""

    bitmaps: dict[int, int]


# -- SDEI


def to_sections(sdei: Sdei) -> list[Section]:
    """All state of a service."""
    registers = Registers(sdei)
    dump = registers.dump()
    sections = [pack(_VM, SdeiState(_encode(registers, dump.vm)))]
    for vcpu, values in enumerate(dump.vcpus):
        sections.append(pack(_PE, SdeiState(_encode(registers, values)), vcpu))
    return sections


def from_sections(sdei: Sdei, sections: Sequence[Section]) -> None:
    """Take over what :func:`to_sections` gave. Raises StreamError; nothing has changed then."""
    registers = Registers(sdei)
    registers.install(_check(registers, sdei, sections))


def _encode(registers: Registers, values: dict[int, int]) -> dict[int, Value]:
    find = registers.catalog.find
    encoded: dict[int, Value] = {}
    for id, value in values.items():
        size = 64 if id >> 52 == _U64 else find(id).kind.size
        encoded[id] = value if size <= 64 else value.to_bytes(size // 8, "little")
    return encoded


_U64 = ids.PE_STATE.id >> 52


def _check(registers: Registers, sdei: Sdei, sections: Sequence[Section]) -> Draft:
    vm = _one(sections, _VM)
    pes = {section.instance: section for section in sections if section.name == _PE}
    if list(pes) != list(range(len(pes))) or len(pes) != sum(section.name == _PE for section in sections):
        raise StreamError(f"the sections {_PE!r} are not one for each vCPU, in order")
    try:
        # Before anything else: what there is depends on the layout and the events.
        made_of = {id: value for id, value in unpack(vm, SdeiState).registers.items() if isinstance(value, int)}
        check_origin(sdei, made_of, len(pes))
        dump = Dump(_decode(registers, vm, None), [_decode(registers, pe, vcpu) for vcpu, pe in pes.items()])
        return registers.check(dump)
    except Impossible as impossible:
        section = vm if impossible.vcpu is None else pes[impossible.vcpu]
        name = registers.catalog.name(impossible.id)
        raise StreamError(f"section {section}: register {name}: {impossible.reason}", impossible.hint) from None


def _decode(registers: Registers, section: Section, vcpu: int | None) -> dict[int, int]:
    decoded = {}
    for id, value in unpack(section, SdeiState).registers.items():
        size = registers.catalog.find(id, vcpu).kind.size
        if isinstance(value, bytes) != (size > 64) or (isinstance(value, bytes) and len(value) != size // 8):
            raise Impossible(id, vcpu, f"it has {size} bits, and the value has another size")
        decoded[id] = int.from_bytes(value, "little") if isinstance(value, bytes) else value
    return decoded


def _one(sections: Sequence[Section], name: str) -> Section:
    """The only section of a name."""
    found = [section for section in sections if section.name == name]
    if len(found) != 1 or found[0].instance:
        raise StreamError(f"there must be one section {name!r}, of instance 0")
    return found[0]


# -- all of the firmware


def firmware_sections(firmware: Firmware) -> list[Section]:
    """All state of the services. Call it with the machine's lock held."""
    bitmaps = {BITMAP_REGISTERS[owner]: bitmap.value for owner, bitmap in firmware.router.bitmaps.items()}
    return [
        *to_sections(firmware.sdei),
        pack(_PSCI, PsciState([int(power) for power in firmware.psci.power])),
        pack(_SERVICES, ServicesState(bitmaps)),
    ]


def load_firmware_sections(firmware: Firmware, sections: Sequence[Section]) -> None:
    """Take over what :func:`firmware_sections` gave, on a machine whose PEs have not run. With its lock held.

    Afterwards :meth:`Firmware.take_kicks` names the PEs that have an event to
    take. Raises StreamError; nothing has changed then.
    """
    registers = Registers(firmware.sdei)
    draft = _check(registers, firmware.sdei, sections)
    power = _check_power(_one(sections, _PSCI), draft)
    bitmaps = _check_bitmaps(firmware, _one(sections, _SERVICES))
    registers.install(draft)
    firmware.psci.power = power
    for owner, bitmap in firmware.router.bitmaps.items():
        bitmap.value = bitmaps[BITMAP_REGISTERS[owner]]
    firmware.freeze()
    firmware.asyncpf.restored()


def rehearse(firmware: Firmware) -> None:
    """Read what has just been written, and leave it at that: the first time takes as long as many others.

    Whoever expects a guest does so before that guest has been stopped.
    """
    sections = firmware_sections(firmware)
    draft = _check(Registers(firmware.sdei), firmware.sdei, sections)
    _check_power(_one(sections, _PSCI), draft)
    _check_bitmaps(firmware, _one(sections, _SERVICES))


def _check_power(section: Section, draft: Draft) -> list[Power]:
    numbers = unpack(section, PsciState).power
    if len(numbers) != len(draft.pes):
        raise StreamError(f"section {section} is of {len(numbers)} vCPUs, and there are {len(draft.pes)}")
    power = []
    for vcpu, (number, pe) in enumerate(zip(numbers, draft.pes, strict=True)):
        if number not in list(Power):
            raise StreamError(f"section {section}: vCPU {vcpu} has no power state {number}")
        power.append(Power(number))
        if pe.online != (power[-1] is Power.ON):
            state = power[-1].name.lower().replace("_", " ")
            raise StreamError(
                f"section {section}: vCPU {vcpu} is {state}, and for SDEI it is {'on' if pe.online else 'off'}"
            )
    return power


def _check_bitmaps(firmware: Firmware, section: Section) -> dict[int, int]:
    found = unpack(section, ServicesState).bitmaps
    bitmaps = {BITMAP_REGISTERS[owner]: bitmap for owner, bitmap in firmware.router.bitmaps.items()}
    if found.keys() != bitmaps.keys():
        odd = min(found.keys() ^ bitmaps.keys())
        raise StreamError(f"section {section}: bitmap {odd:#x} is {'unknown' if odd in found else 'missing'}")
    for id, value in found.items():
        unknown = value & ~bitmaps[id].supported
        if unknown:
            raise StreamError(
                f"section {section}: the {bitmaps[id].owner.name} bitmap ({id:#x}) has no bits {unknown:#x}",
                "the guest uses a service that is not here: use the sdeivirt that it comes from, or a newer one",
            )
    return found
