# SPDX-License-Identifier: Apache-2.0
"""The SMC calling convention: function ids, routing, and feature bitmaps. DEN0028."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdeivirt.cpu import RegisterView
from sdeivirt.errors import FrozenError, UsageError
from sdeivirt.firmware import Firmware
from sdeivirt.fuzz.oracle import M64, NOT_SUPPORTED
from sdeivirt.smccc.ids import FunctionId, Owner, argument, hint
from sdeivirt.smccc.router import BITMAP_REGISTERS, Caller, Result, Router, Service

from .fake_view import NoPower, hypercall

UNKNOWN = [NOT_SUPPORTED, 0, 0, 0]

SMCCC_VERSION, ARCH_FEATURES = 0x8000_0000, 0x8000_0001
SDEI_VERSION, SDEI_PE_MASK = 0xC400_0020, 0xC400_002B
PSCI_VERSION, TRNG_VERSION = 0x8400_0000, 0x8400_0050
VENDOR_FEATURES, VENDOR_UID = 0x8600_0000, 0x8600_FF01
SVE_HINT = 1 << 16

# The standard service's bits as KVM numbers them, and the vendor-hyp service's.
BIT_TRNG, BIT_SDEI, BIT_VENDOR = 1 << 0, 1 << 1, 1 << 0


@pytest.fixture
def firmware() -> Firmware:
    """One PE; the services are not frozen yet."""
    return Firmware(1, NoPower())


@pytest.fixture
def frozen(firmware: Firmware) -> Firmware:
    """One PE that may run."""
    firmware.freeze()
    return firmware


# -- function ids, DEN0028 2.5


@given(st.integers(0, 0xFFFF_FFFF))
def test_every_id_decodes_and_encodes(value: int) -> None:
    assert FunctionId.decode(value).encode() == value


@given(
    st.booleans(), st.booleans(), st.integers(0, 63), st.integers(0, 0xFFFF), st.integers(0, 0x7F), st.booleans()
)  # fmt: skip
def test_every_field_survives(
    fast: bool, smc64: bool, owner: int, number: int, reserved: int, sve_hint: bool
) -> None:  # fmt: skip
    parts = FunctionId(fast, smc64, owner, number, reserved, sve_hint)
    assert FunctionId.decode(parts.encode()) == parts


def test_fields_of_known_ids() -> None:
    assert FunctionId.decode(0xC400_0020) == (True, True, Owner.STANDARD, 0x20, 0, False)
    assert FunctionId.decode(0x8600_FF01) == (True, False, Owner.VENDOR_HYP, 0xFF01, 0, False)
    assert FunctionId.decode(0x0001_0000) == (False, False, Owner.ARCH, 0, 0, True)
    assert FunctionId.decode(0x80FE_0000).reserved == 0x7F
    assert FunctionId.decode(0xBF00_0000).owner == 63


@given(st.integers(0, 0xFFFF_FFFF))
def test_hint_is_one_bit(value: int) -> None:
    assert hint(value) == value & 0xFFFE_FFFF
    assert not FunctionId.decode(hint(value)).sve_hint


@pytest.mark.parametrize("index", range(1, 18))
def test_arguments_are_as_wide_as_the_call(index: int) -> None:
    x = [0x8400_0000, *(0xAAAA_AAAA_0000_0000 + i for i in range(1, 18))]
    assert argument(x, index) == index
    x[0] = 0xC400_0000
    assert argument(x, index) == 0xAAAA_AAAA_0000_0000 + index


@pytest.mark.parametrize("index", [-1, 18, 100])
def test_there_are_seventeen_arguments(index: int) -> None:
    with pytest.raises(IndexError):
        argument([0] * 32, index)


# -- routing


@pytest.mark.parametrize("owner", range(64))
@pytest.mark.parametrize("kind", [0x0000_0000, 0x4000_0000, 0x8000_0000, 0xC000_0000])
def test_numbers_that_nobody_has(frozen: Firmware, owner: int, kind: int) -> None:
    """Yielding calls, owners without a service, and numbers outside of every range: -1, x1..x3 cleared."""
    for number in (0x0B, 0x1F, 0x33, 0x3F, 0x40, 0x4F, 0x54, 0x5F, 0x100, 0xFF00, 0xFF02, 0xFFFF):
        assert hypercall(frozen, kind | owner << 24 | number, 1, 2, 3) == UNKNOWN


@pytest.mark.parametrize("fid", [SMCCC_VERSION, PSCI_VERSION, SDEI_VERSION, TRNG_VERSION, VENDOR_UID])
def test_what_is_there_answers(frozen: Firmware, fid: int) -> None:
    answer = hypercall(frozen, fid)
    assert answer is not None
    assert answer[0] > 0
    assert hypercall(frozen, fid | 0xFFFF_FFFF_0000_0000) == answer, "the id is the low word of x0"
    assert hypercall(frozen, fid | SVE_HINT) == answer, "the SVE hint takes no part in routing"


@pytest.mark.parametrize("fid", [SMCCC_VERSION, PSCI_VERSION, SDEI_VERSION, TRNG_VERSION, VENDOR_UID])
@pytest.mark.parametrize("bit", [17, 20, 23, 30, 31])
def test_neighbours_of_known_ids(frozen: Firmware, fid: int, bit: int) -> None:
    """Reserved bits, the other width, and the yielding form are other calls: none of them exists."""
    assert hypercall(frozen, fid ^ 1 << bit) == UNKNOWN


@given(st.integers(0, M64))
def test_any_id_returns(fid: int) -> None:
    firmware = Firmware(1, NoPower())
    firmware.freeze()
    if fid & 0xFFFE_FFFF not in firmware.router.functions:
        assert hypercall(firmware, fid) == UNKNOWN


def test_services_do_not_overlap(firmware: Firmware) -> None:
    owned = sorted(
        (int(service.owner), span.start, span.stop)
        for service in firmware.router.services
        for span in service.ranges
    )  # fmt: skip
    assert all(a[0] != b[0] or a[2] <= b[1] for a, b in pairwise(owned))
    assert (Owner.STANDARD, 0x20, 0x40) in owned


def test_find_tells_the_owner_of_a_number(firmware: Firmware) -> None:
    router = firmware.router
    names = {
        number: getattr(router.find(Owner.STANDARD, number), "name", None) for number in (0, 0x1F, 0x20, 0x3F, 0x50)
    }
    assert names == {0: "psci", 0x1F: "psci", 0x20: "std-sdei", 0x3F: "std-sdei", 0x50: "std-trng"}
    assert router.find(Owner.STANDARD, 0x40) is None
    assert router.find(Owner.SIP, 0) is None


# -- adding services


def answer(_caller: Caller, _view: RegisterView) -> Result:
    return 7


def service(span: range, bit: int | None = None, owner: Owner = Owner.STANDARD) -> Service:
    fid = 0x8000_0000 | owner << 24 | span.start
    return Service(f"test-{span.start:#x}", owner, (span,), {fid: answer}, bit)


def test_a_service_of_ones_own(firmware: Firmware) -> None:
    firmware.router.register(service(range(0x100, 0x110), bit=5))
    firmware.freeze()
    assert hypercall(firmware, 0x8400_0100) == [7, 0, 0, 0]
    assert hypercall(firmware, 0x8400_0101) == UNKNOWN


@pytest.mark.parametrize("span", [range(0x1F, 0x20), range(0x3F, 0x50), range(0x10, 0x60)])
def test_an_overlapping_service_is_refused(firmware: Firmware, span: range) -> None:
    with pytest.raises(UsageError, match="overlaps"):
        firmware.router.register(service(span))


def test_a_taken_bit_is_refused(firmware: Firmware) -> None:
    with pytest.raises(UsageError, match="bit 1"):
        firmware.router.register(service(range(0x100, 0x101), bit=1))


def test_a_function_outside_of_the_range_is_refused(firmware: Firmware) -> None:
    with pytest.raises(UsageError, match="outside"):
        firmware.router.register(Service("odd", Owner.SIP, (range(1, 2),), {0x8200_0002: answer}))
    with pytest.raises(UsageError, match="outside"):
        firmware.router.register(Service("odd", Owner.SIP, (range(1, 2),), {0x8400_0001: answer}))


# -- feature bitmaps


def test_bitmaps_have_kvms_register_ids_and_bits(firmware: Firmware) -> None:
    assert BITMAP_REGISTERS == {
        Owner.STANDARD: 0x6030_0000_0016_0000,
        Owner.STANDARD_HYP: 0x6030_0000_0016_0001,
        Owner.VENDOR_HYP: 0x6030_0000_0016_0002,
    }
    values = {owner: bitmap.value for owner, bitmap in firmware.router.bitmaps.items()}
    assert values == {
        Owner.STANDARD: BIT_TRNG | BIT_SDEI,
        Owner.STANDARD_HYP: 0,
        Owner.VENDOR_HYP: BIT_VENDOR,
    }
    assert all(bitmap.value == bitmap.supported for bitmap in firmware.router.bitmaps.values())


@pytest.mark.parametrize("value", [1 << 2, 1 << 63, M64, BIT_SDEI | 1 << 4])
def test_a_bit_without_a_service_is_refused(firmware: Firmware, value: int) -> None:
    bitmap = firmware.router.bitmaps[Owner.STANDARD]
    with pytest.raises(UsageError, match="no bits"):
        bitmap.set(value)
    assert bitmap.value == BIT_TRNG | BIT_SDEI


@pytest.mark.parametrize("cleared", [BIT_TRNG, BIT_SDEI, BIT_TRNG | BIT_SDEI])
def test_a_cleared_bit_switches_the_whole_range_off(firmware: Firmware, cleared: int) -> None:
    firmware.router.bitmaps[Owner.STANDARD].set((BIT_TRNG | BIT_SDEI) & ~cleared)
    firmware.freeze()
    spans = {BIT_TRNG: range(0x50, 0x54), BIT_SDEI: range(0x20, 0x40)}
    for bit, span in spans.items():
        answers = [hypercall(firmware, kind | number) for number in span for kind in (0x8400_0000, 0xC400_0000)]
        assert all(found == UNKNOWN for found in answers) == bool(bit & cleared)


def test_a_cleared_vendor_bit(firmware: Firmware) -> None:
    firmware.router.bitmaps[Owner.VENDOR_HYP].set(0)
    firmware.freeze()
    assert hypercall(firmware, VENDOR_UID) == UNKNOWN
    assert hypercall(firmware, VENDOR_FEATURES) == UNKNOWN
    assert hypercall(firmware, ARCH_FEATURES, VENDOR_FEATURES) == UNKNOWN


def test_bitmaps_are_fixed_by_the_first_run(frozen: Firmware) -> None:
    bitmap = frozen.router.bitmaps[Owner.STANDARD]
    with pytest.raises(FrozenError):
        bitmap.set(BIT_TRNG)
    bitmap.set(BIT_TRNG | BIT_SDEI)  # what it is already
    with pytest.raises(UsageError):
        bitmap.set(1 << 9)
    assert hypercall(frozen, SDEI_PE_MASK) == [0, 0, 0, 0]


def test_a_router_without_services() -> None:
    router = Router()
    router.freeze()
    assert not router.implements(SMCCC_VERSION)
    assert router.bitmaps[Owner.STANDARD].supported == 0
