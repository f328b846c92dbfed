# SPDX-License-Identifier: Apache-2.0
"""Power state coordination: every call and every error. DEN0022."""

from __future__ import annotations

import pytest

from sdeivirt.firmware import Firmware
from sdeivirt.fuzz.oracle import M64
from sdeivirt.smccc.psci import Power

from .fake_view import hypercall

SUCCESS, NOT_SUPPORTED, INVALID_PARAMETERS, ALREADY_ON, ON_PENDING, INVALID_ADDRESS = 0, -1, -2, -4, -5, -9

VERSION, CPU_OFF, MIGRATE_INFO_TYPE = 0x8400_0000, 0x8400_0002, 0x8400_0006
SYSTEM_OFF, SYSTEM_RESET, FEATURES = 0x8400_0008, 0x8400_0009, 0x8400_000A
CPU_SUSPEND, CPU_ON, AFFINITY_INFO = 0x8400_0001, 0x8400_0003, 0x8400_0004
SMC64 = 0x4000_0000
BOTH = [0, SMC64]
IMPLEMENTED = [
    *(VERSION, CPU_OFF, MIGRATE_INFO_TYPE, SYSTEM_OFF, SYSTEM_RESET, FEATURES),
    *(fid | width for fid in (CPU_SUSPEND, CPU_ON, AFFINITY_INFO) for width in BOTH),
]

ENTRY = 0x4000_0000
BAD_ENTRY = 0x100
# Two clusters of two PEs, and one PE that only 64-bit calls can name.
AFFINITIES = [0x0000, 0x0001, 0x0100, 0x0101, 0x01_0000_0000]
STANDBY, POWERDOWN = 0, 1 << 16


class Control:
    """A PowerControl that writes down what it is asked to do."""

    def __init__(self) -> None:
        self.log: list[tuple[object, ...]] = []
        self.wake_up_pending = False

    def cpu_on(self, index: int, entry: int, context_id: int) -> None:
        self.log.append(("on", index, entry, context_id))

    def cpu_off(self, index: int) -> None:
        self.log.append(("off", index))

    def cpu_standby(self, index: int) -> None:
        self.log.append(("standby", index))

    def cpu_powerdown(self, index: int, entry: int, context_id: int) -> bool:
        self.log.append(("powerdown", index, entry, context_id))
        return not self.wake_up_pending

    def system_off(self) -> None:
        self.log.append(("system off",))

    def system_reset(self) -> None:
        self.log.append(("system reset",))


class Board:
    """The firmware with that control; PE 0 is on."""

    def __init__(self) -> None:
        self.control = Control()
        self.firmware = Firmware(AFFINITIES, self.control, entry_ok=lambda entry: entry >= ENTRY)
        self.firmware.freeze()
        self.firmware.psci.started(0)

    def call(self, *words: int, pe: int = 0) -> int | None:
        """x0, or None where the PE was stopped."""
        answer = hypercall(self.firmware, *words, pe=pe)
        assert answer is None or answer[1:] == [0, 0, 0]
        return answer[0] if answer is not None else None

    def states(self) -> list[int]:
        return [int(power) for power in self.firmware.psci.power]


@pytest.fixture
def board() -> Board:
    return Board()


def test_version(board: Board) -> None:
    assert board.call(VERSION) == 0x0001_0001


def test_features(board: Board) -> None:
    assert all(board.call(FEATURES, fid) == 0 for fid in IMPLEMENTED)
    assert board.call(FEATURES, 0x8000_0000) == 0, "SMCCC_VERSION: Linux asks for it here"
    for fid in (0x8400_0005, 0x8400_0007, 0x8400_000B, 0xC400_000E, 0x8400_0012, 0xC400_0000, 0xC400_0020, 0):
        assert board.call(FEATURES, fid) == NOT_SUPPORTED


@pytest.mark.parametrize("number", range(0x20))
@pytest.mark.parametrize("width", BOTH)
def test_calls_that_are_not_implemented(board: Board, number: int, width: int) -> None:
    fid = 0x8400_0000 | number | width
    if fid not in IMPLEMENTED:
        assert board.call(fid, 1, 2, 3) == NOT_SUPPORTED


def test_no_trusted_os(board: Board) -> None:
    assert board.call(MIGRATE_INFO_TYPE) == 2


# -- CPU_ON


@pytest.mark.parametrize("width", BOTH)
@pytest.mark.parametrize("index", [1, 2, 3])
def test_cpu_on(board: Board, width: int, index: int) -> None:
    assert board.call(CPU_ON | width, AFFINITIES[index], ENTRY, 0x55) == SUCCESS
    assert board.control.log == [("on", index, ENTRY, 0x55)]
    assert board.states()[index] == Power.ON_PENDING
    assert board.call(CPU_ON | width, AFFINITIES[index], ENTRY, 0x55) == ON_PENDING
    board.firmware.psci.started(index)
    assert board.call(CPU_ON | width, AFFINITIES[index], ENTRY, 0x55) == ALREADY_ON
    assert len(board.control.log) == 1


def test_cpu_on_of_oneself(board: Board) -> None:
    assert board.call(CPU_ON, 0, ENTRY, 0) == ALREADY_ON


def test_cpu_on_passes_64_bits(board: Board) -> None:
    assert board.call(CPU_ON | SMC64, AFFINITIES[4], ENTRY | 1 << 40, M64) == SUCCESS
    assert board.control.log == [("on", 4, ENTRY | 1 << 40, M64)]


def test_cpu_on_of_smc32_ignores_high_words(board: Board) -> None:
    noise = 0xABCD << 48
    assert board.call(CPU_ON, noise | 1, noise | ENTRY, noise | 0x55) == SUCCESS
    assert board.control.log == [("on", 1, ENTRY, 0x55)]


@pytest.mark.parametrize("affinity", [0x2, 0x102, 0x1_0000, 0x02_0000_0000, 0x8000_0001, 1 << 30 | 1, 1 << 24 | 1, M64])
def test_cpu_on_of_nobody(board: Board, affinity: int) -> None:
    """An exact affinity is asked for: the other bits of MPIDR_EL1 are an error."""
    assert board.call(CPU_ON | SMC64, affinity, ENTRY, 0) == INVALID_PARAMETERS
    assert board.control.log == []


@pytest.mark.parametrize("entry", [BAD_ENTRY, 0, ENTRY + 1, ENTRY + 2])
def test_cpu_on_at_a_bad_address(board: Board, entry: int) -> None:
    assert board.call(CPU_ON | SMC64, 1, entry, 0) == INVALID_ADDRESS
    assert board.states()[1] == Power.OFF


def test_cpu_on_again_after_off(board: Board) -> None:
    board.call(CPU_ON, 1, ENTRY, 0)
    board.firmware.psci.started(1)
    assert board.call(CPU_OFF, pe=1) is None
    assert board.call(CPU_ON, 1, ENTRY, 0) == SUCCESS


# -- CPU_OFF, SYSTEM_OFF, SYSTEM_RESET


def test_cpu_off(board: Board) -> None:
    assert board.call(CPU_OFF) is None
    assert board.control.log == [("off", 0)]
    assert board.states() == [Power.OFF] * 5


@pytest.mark.parametrize(("fid", "what"), [(SYSTEM_OFF, "system off"), (SYSTEM_RESET, "system reset")])
def test_system(board: Board, fid: int, what: str) -> None:
    assert board.call(fid) is None
    assert board.control.log == [(what,)]


def test_after_a_reset_every_pe_is_off(board: Board) -> None:
    board.call(CPU_ON, 1, ENTRY, 0)
    board.firmware.psci.reset()
    assert board.states() == [Power.OFF] * 5


# -- AFFINITY_INFO


@pytest.mark.parametrize("width", BOTH)
def test_affinity_info_of_one_pe(board: Board, width: int) -> None:
    assert board.call(AFFINITY_INFO | width, 0, 0) == Power.ON
    assert board.call(AFFINITY_INFO | width, 1, 0) == Power.OFF
    board.call(CPU_ON, 1, ENTRY, 0)
    assert board.call(AFFINITY_INFO | width, 1, 0) == Power.ON_PENDING
    board.firmware.psci.started(1)
    assert board.call(AFFINITY_INFO | width, 1, 0) == Power.ON


def test_affinity_info_of_a_cluster(board: Board) -> None:
    """A cluster is on while any PE of it is; the fields below the level do not count."""
    assert [board.call(AFFINITY_INFO, target, 1) for target in (0x00, 0x01, 0xFF)] == [Power.ON] * 3
    assert board.call(AFFINITY_INFO, 0x100, 1) == Power.OFF
    board.call(CPU_ON, 0x101, ENTRY, 0)
    assert board.call(AFFINITY_INFO, 0x100, 1) == Power.ON_PENDING
    assert board.call(AFFINITY_INFO, 0x0, 2) == Power.ON
    assert board.call(AFFINITY_INFO | SMC64, 0x01_0000_0000, 3) == Power.OFF


@pytest.mark.parametrize(("target", "level"), [(0x2, 0), (0x200, 1), (0x1_0000, 2), (0x02_0000_0000, 3)])
def test_affinity_info_of_nobody(board: Board, target: int, level: int) -> None:
    assert board.call(AFFINITY_INFO | SMC64, target, level) == INVALID_PARAMETERS


def test_the_high_word_of_the_level_is_noise(board: Board) -> None:
    """DEN0022 5.1.5: lowest_affinity_level is 32 bits, in both forms of the call."""
    assert board.call(AFFINITY_INFO | SMC64, 0, 1 << 32) == Power.ON


@pytest.mark.parametrize("level", [4, 5, 0xFFFF_FFFF])
def test_affinity_info_of_a_level_that_is_not_there(board: Board, level: int) -> None:
    assert board.call(AFFINITY_INFO, 0, level) == INVALID_PARAMETERS


@pytest.mark.parametrize("target", [0x8000_0000, 1 << 24, 1 << 40])
def test_affinity_info_with_reserved_bits(board: Board, target: int) -> None:
    assert board.call(AFFINITY_INFO | SMC64, target, 0) == INVALID_PARAMETERS


# -- CPU_SUSPEND


@pytest.mark.parametrize("width", BOTH)
def test_standby(board: Board, width: int) -> None:
    """The entry point does not count: the PE goes on behind the call."""
    assert board.call(CPU_SUSPEND | width, STANDBY, BAD_ENTRY, 0) == SUCCESS
    assert board.control.log == [("standby", 0)]


@pytest.mark.parametrize("width", BOTH)
@pytest.mark.parametrize(
    "state", [POWERDOWN, POWERDOWN | 1, POWERDOWN | 0xFFFF, POWERDOWN | 1 << 24 | 3, POWERDOWN | 3 << 24]
)
def test_powerdown(board: Board, width: int, state: int) -> None:
    assert board.call(CPU_SUSPEND | width, state, ENTRY, 0x55) is None
    assert board.control.log == [("powerdown", 0, ENTRY, 0x55)]
    assert board.states()[0] == Power.ON, "a suspended PE is on for everybody else"


def test_powerdown_with_a_wake_up_pending(board: Board) -> None:
    board.control.wake_up_pending = True
    assert board.call(CPU_SUSPEND, POWERDOWN, ENTRY, 0) == SUCCESS


@pytest.mark.parametrize("entry", [BAD_ENTRY, ENTRY + 2])
def test_powerdown_with_a_bad_address(board: Board, entry: int) -> None:
    assert board.call(CPU_SUSPEND, POWERDOWN, entry, 0) == INVALID_ADDRESS
    assert board.control.log == []


@pytest.mark.parametrize("bit", [*range(17, 24), *range(26, 32)])
def test_suspend_with_reserved_bits(board: Board, bit: int) -> None:
    for kind in (STANDBY, POWERDOWN):
        assert board.call(CPU_SUSPEND | SMC64, kind | 1 << bit, ENTRY, 0) == INVALID_PARAMETERS
    assert board.control.log == []


def test_power_state_is_32_bits(board: Board) -> None:
    assert board.call(CPU_SUSPEND | SMC64, 0xABCD << 32 | STANDBY, 0, 0) == SUCCESS
