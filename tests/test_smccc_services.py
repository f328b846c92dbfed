# SPDX-License-Identifier: Apache-2.0
"""The small services: the architecture's calls, the vendor's, and random numbers (DEN0028 7, DEN0098)."""

from __future__ import annotations

import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdeivirt.firmware import Firmware
from sdeivirt.fuzz.oracle import M64, NOT_SUPPORTED
from sdeivirt.smccc.ids import Owner

from .fake_view import NoPower, hypercall

INVALID = -2
UNKNOWN = [NOT_SUPPORTED, 0, 0, 0]

ARCH_FEATURES = 0x8000_0001
TRNG_VERSION, TRNG_FEATURES, TRNG_GET_UUID = 0x8400_0050, 0x8400_0051, 0x8400_0052
TRNG_RND32, TRNG_RND64 = 0x8400_0053, 0xC400_0053


class Entropy:
    """Bytes that count: 1, 2, 3, ...; remembers how many it gave."""

    def __init__(self) -> None:
        self.asked: list[int] = []

    def __call__(self, count: int) -> bytes:
        self.asked.append(count)
        return bytes(range(1, count + 1))


@pytest.fixture
def entropy() -> Entropy:
    return Entropy()


@pytest.fixture
def firmware(entropy: Entropy) -> Firmware:
    firmware = Firmware(1, NoPower(), entropy=entropy)
    firmware.freeze()
    return firmware


def uuid_of(words: list[int] | None) -> uuid.UUID:
    """Bytes 0..3 in x0, lowest first, and so on."""
    assert words is not None
    return uuid.UUID(bytes=b"".join(word.to_bytes(4, "little") for word in words))


# -- the architecture's


def test_smccc_version(firmware: Firmware) -> None:
    assert hypercall(firmware, 0x8000_0000) == [0x0001_0001, 0, 0, 0]


@pytest.mark.parametrize("fid", [0x8000_0000, 0x8000_0001, 0x8600_0000, 0x8600_FF01])
def test_arch_features_of_what_exists(firmware: Firmware, fid: int) -> None:
    assert hypercall(firmware, ARCH_FEATURES, fid) == [0, 0, 0, 0]
    assert hypercall(firmware, ARCH_FEATURES, fid | 0xFFFF_0000_0000_0000) == [0, 0, 0, 0]


@pytest.mark.parametrize(
    "fid",
    [
        0x8000_0002,  # SOC_ID
        0x8000_3FFF,  # ARCH_WORKAROUND_3
        0x8000_7FFF,  # ARCH_WORKAROUND_2
        0x8000_8000,  # ARCH_WORKAROUND_1
        0xC000_0000,
        0x0000_0000,
        0xC400_0020,  # SDEI, PSCI and TRNG have features calls of their own
        0x8400_0000,
        0x8400_0050,
        0xFFFF_FFFF,
    ],
)
def test_arch_features_of_what_does_not(firmware: Firmware, fid: int) -> None:
    assert hypercall(firmware, ARCH_FEATURES, fid) == UNKNOWN


# -- the vendor's


def test_vendor_uid_is_kvms(firmware: Firmware) -> None:
    assert uuid_of(hypercall(firmware, 0x8600_FF01)) == uuid.UUID("28b46fb6-2ec5-11e9-a9ca-4b564d003a74")
    # As Linux compares them, arch/arm64: include/linux/arm-smccc.h.
    assert hypercall(firmware, 0x8600_FF01) == [0xB66F_B428, 0xE911_C52E, 0x564B_CAA9, 0x743A_004D]


def test_vendor_features_names_itself_only(firmware: Firmware) -> None:
    assert hypercall(firmware, 0x8600_0000) == [1, 0, 0, 0]


# -- random numbers


def test_trng_version_and_features(firmware: Firmware) -> None:
    assert hypercall(firmware, TRNG_VERSION) == [0x0001_0000, 0, 0, 0]
    for fid in (TRNG_VERSION, TRNG_FEATURES, TRNG_GET_UUID, TRNG_RND32, TRNG_RND64):
        assert hypercall(firmware, TRNG_FEATURES, fid) == [0, 0, 0, 0]
    for fid in (0, 0x8400_0054, 0xC400_0050, 0xC400_0020, 0x8400_0000):
        assert hypercall(firmware, TRNG_FEATURES, fid) == UNKNOWN


def test_trng_uuid_is_one(firmware: Firmware) -> None:
    found = uuid_of(hypercall(firmware, TRNG_GET_UUID))
    assert found.variant == uuid.RFC_4122
    assert found.version == 4
    assert found.fields[0] != 0xFFFF_FFFF, "the first word must not look like NOT_SUPPORTED"


@pytest.mark.parametrize(("fid", "width"), [(TRNG_RND32, 32), (TRNG_RND64, 64)])
@pytest.mark.parametrize("share", [1, 2, 3])
def test_trng_fills_from_the_highest_register(firmware: Firmware, fid: int, width: int, share: int) -> None:
    """x3 has the lowest bits, then x2, then x1; registers that are not needed are zero."""
    size = width // 8
    words = [int.from_bytes(bytes(range(i * size + 1, (i + 1) * size + 1)), "little") for i in range(share)]
    words += [0] * (3 - share)
    assert hypercall(firmware, fid, width * share) == [0, *reversed(words)]


@pytest.mark.parametrize(("fid", "limit"), [(TRNG_RND32, 96), (TRNG_RND64, 192)])
def test_trng_bounds(firmware: Firmware, entropy: Entropy, fid: int, limit: int) -> None:
    for bits in (0, limit + 1, 193, 1 << 31, 0xFFFF_FFFF):
        assert hypercall(firmware, fid, bits) == [INVALID, 0, 0, 0]
    assert entropy.asked == [], "nothing is drawn for a call that is refused"
    for bits in (1, limit):
        found = hypercall(firmware, fid, bits)
        assert found is not None
        assert found[0] == 0


def test_trng_argument_is_as_wide_as_the_call(firmware: Firmware) -> None:
    noise = 0xFFFF_0000_0000_0000
    assert hypercall(firmware, TRNG_RND32, noise | 8) == [0, 0, 0, 1]
    assert hypercall(firmware, TRNG_RND64, noise | 8) == [INVALID, 0, 0, 0]


@given(st.booleans(), st.integers(1, 192), st.binary(min_size=24, max_size=24))
def test_trng_gives_exactly_the_bits_asked_for(wide: bool, bits: int, pool: bytes) -> None:
    fid, width = (TRNG_RND64, 64) if wide else (TRNG_RND32, 32)
    if bits > 3 * width:
        return
    firmware = Firmware(1, NoPower(), entropy=lambda count: pool[:count])
    firmware.freeze()
    found = hypercall(firmware, fid, bits)
    assert found is not None
    assert found[0] == 0
    words = [word & M64 for word in found[1:]]
    assert all(word < 1 << width for word in words)
    assert words[2] | words[1] << width | words[0] << 2 * width == int.from_bytes(pool, "little") % (1 << bits)


def test_default_entropy_differs() -> None:
    firmware = Firmware(1, NoPower())
    firmware.freeze()
    assert hypercall(firmware, TRNG_RND64, 192) != hypercall(firmware, TRNG_RND64, 192)


def test_trng_is_gone_with_its_bit() -> None:
    firmware = Firmware(1, NoPower())
    firmware.router.bitmaps[Owner.STANDARD].set(2)
    firmware.freeze()
    assert hypercall(firmware, TRNG_VERSION) == UNKNOWN
