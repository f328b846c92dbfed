# SPDX-License-Identifier: Apache-2.0
"""The registers of a handler's start and end. DEN0054C 4.3, 5.1.6, 5.1.7.

PSTATE at a handler's start is that of an exception taken to EL1 with SP_EL1; `ROWS` lists it bit by
bit, `test_every_combination` compares the package's rule with the oracle's for all of them.
"""

from __future__ import annotations

from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdeivirt.cpu import CpuFeatures
from sdeivirt.fuzz.oracle import CONTEXT, M64, take_exception
from sdeivirt.sdei.events import EventDefinition, Priority

from .fake_view import Rig

NORMAL, CRITICAL = 5, 9
EVENTS = [EventDefinition(NORMAL), EventDefinition(CRITICAL, priority=Priority.CRITICAL)]
ENTRY = 0x4010_0000

ALL_FEATURES = ("pan", "uao", "dit", "ssbs", "mte", "nmi")

EL0, EL1T, EL1H, AARCH32_USER = 0x0, 0x4, 0x5, 0x10
MASKED = 0x3C5  # EL1h with D, A, I, F set: what every entry has
NZCV, TCO, DIT, UAO, PAN, SS, IL = 0xF << 28, 1 << 25, 1 << 24, 1 << 23, 1 << 22, 1 << 21, 1 << 20
ALLINT, SSBS, BTYPE, DAIF = 1 << 13, 1 << 12, 3 << 10, 0xF << 6
SPAN, DSSBS, SPINTMASK = 1 << 23, 1 << 44, 1 << 62

# Name: the PE's features, interrupted PSTATE, SCTLR_EL1, PSTATE at the handler's start.
ROWS: dict[str, tuple[str, int, int, int]] = {
    "from EL0": ("", EL0, 0, MASKED),
    "from EL1t": ("", EL1T, 0, MASKED),
    "from EL1h": ("", EL1H, 0, MASKED),
    "from AArch32": ("", AARCH32_USER, 0, MASKED),
    "from AArch32, mode 0x1f": ("", 0x1F, 0, MASKED),
    "masked already": ("", EL1H | DAIF, 0, MASKED),
    "NZCV kept": ("", EL1H | NZCV, 0, MASKED | NZCV),
    "N kept": ("", EL1H | 1 << 31, 0, MASKED | 1 << 31),
    "V kept": ("", EL1H | 1 << 28, 0, MASKED | 1 << 28),
    "PAN set": ("pan", EL1H, 0, MASKED | PAN),
    "PAN stays set": ("pan", EL1H | PAN, 0, MASKED | PAN),
    "PAN kept clear with SPAN": ("pan", EL1H, SPAN, MASKED),
    "PAN kept set with SPAN": ("pan", EL1H | PAN, SPAN, MASKED | PAN),
    "PAN kept set with SPAN, from AArch32": ("pan", AARCH32_USER | PAN, SPAN, MASKED | PAN),
    "PAN is not there": ("", EL1H, 0, MASKED),
    "UAO cleared": ("uao", EL1H | UAO, 0, MASKED),
    "DIT kept set": ("dit", EL1H | DIT, 0, MASKED | DIT),
    "DIT kept clear": ("dit", EL1H, 0, MASKED),
    "DIT of AArch32 is bit 21": ("dit", AARCH32_USER | 1 << 21, 0, MASKED | DIT),
    "J of AArch32 is no DIT": ("dit", AARCH32_USER | 1 << 24, 0, MASKED),
    "SS is no DIT": ("dit", EL1H | SS, 0, MASKED),
    "SSBS set by DSSBS": ("ssbs", EL1H, DSSBS, MASKED | SSBS),
    "SSBS cleared by DSSBS": ("ssbs", EL1H | SSBS, 0, MASKED),
    "SSBS is not there": ("", EL1H, DSSBS, MASKED),
    "TCO set": ("mte", EL1H, 0, MASKED | TCO),
    "TCO is not there": ("", EL1H, 0, MASKED),
    "ALLINT set": ("nmi", EL1H, 0, MASKED | ALLINT),
    "ALLINT clear with SPINTMASK": ("nmi", EL1H | ALLINT, SPINTMASK, MASKED),
    "ALLINT is not there": ("", EL1H, 0, MASKED),
    "IL cleared": ("", EL1H | IL, 0, MASKED),
    "SS cleared": ("", EL1H | SS, 0, MASKED),
    "BTYPE cleared": ("", EL1H | BTYPE, 0, MASKED),
    "Q, GE, IT, E, T of AArch32 dropped": ("", AARCH32_USER | 1 << 27 | 0x000F_FE20 | 3 << 25, 0, MASKED),
    "bits 63:32 dropped": ("", EL1H | 0xFFFF_FFFF << 32, 0, MASKED),
    "everything at once": (
        "pan uao dit ssbs mte nmi",
        0xFFFF_FFEF,
        DSSBS,
        MASKED | NZCV | DIT | PAN | SSBS | TCO | ALLINT,
    ),
}


@pytest.fixture(params=["kvm", "tf-a"])
def policy(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def boot(policy: str, features: tuple[str, ...] = ALL_FEATURES) -> Rig:
    """One unmasked PE with both events registered and enabled."""
    rig = Rig(1, EVENTS, policy, features=features, unmasked=True)
    for event in (NORMAL, CRITICAL):
        rig.call(0, "event_register", event, ENTRY, 0x77 + event, 0, 0)
        rig.call(0, "event_enable", event)
    return rig


def enter(rig: Rig, event: int = NORMAL) -> dict[str, int]:
    """The registers that the event's handler starts with."""
    rig.inject(event)
    assert rig.look(0) == event
    return rig.cpus[0].registers


# -- PSTATE


@pytest.mark.parametrize("name", ROWS)
def test_pstate(policy: str, name: str) -> None:
    features, interrupted, sctlr, expected = ROWS[name]
    rig = boot(policy, tuple(features.split()))
    rig.set_registers(0, pstate=interrupted, sctlr=sctlr)
    assert hex(enter(rig)["pstate"]) == hex(expected)
    rig.call(0, "event_complete", 0)
    assert rig.cpus[0].registers["pstate"] == interrupted


@pytest.mark.parametrize("name", ROWS)
def test_pstate_after_complete_and_resume(policy: str, name: str) -> None:
    """The interrupted code takes an exception at the resume address: the same PSTATE, from the interrupted one."""
    features, interrupted, sctlr, expected = ROWS[name]
    rig = boot(policy, tuple(features.split()))
    rig.set_registers(0, pstate=interrupted, sctlr=sctlr)
    enter(rig)
    rig.set_registers(0, pstate=EL1H)
    rig.call(0, "event_complete_and_resume", 0x4008_0280)
    assert hex(rig.cpus[0].registers["pstate"]) == hex(expected)
    assert rig.cpus[0].registers["spsr"] == interrupted


def test_every_combination() -> None:
    """Each bit that matters, for each set of features, set and clear."""
    bits = [1 << position for position in (31, 30, 29, 28, 25, 24, 23, 22, 21, 20, 13, 12, 11, 10, 9, 8, 7, 6)]
    states = [EL0, EL1T, EL1H, AARCH32_USER]
    patterns = [0, 0xFFFF_FFE0, *bits, *(0xFFFF_FFE0 & ~bit for bit in bits)]
    controls = [sum(some) for n in range(4) for some in combinations((SPAN, DSSBS, SPINTMASK), n)]
    for n in range(len(ALL_FEATURES) + 1):
        for some in combinations(ALL_FEATURES, n):
            real = CpuFeatures(**{name: name in some for name in ALL_FEATURES})
            for pattern in patterns:
                for state in states:
                    for sctlr in controls:
                        expected = take_exception(pattern | state, sctlr, set(some))
                        assert real.exception_entry(pattern | state, sctlr) == expected


@given(st.integers(0, M64), st.integers(0, M64), st.sets(st.sampled_from(ALL_FEATURES)))
def test_any_pstate(pstate: int, sctlr: int, features: set[str]) -> None:
    real = CpuFeatures(**{name: name in features for name in ALL_FEATURES})
    assert real.exception_entry(pstate, sctlr) == take_exception(pstate, sctlr, features)


def test_features_from_id_registers() -> None:
    """PFR0.DIT 51:48, PFR1.SSBS 7:4, PFR1.MTE 11:8 (from 2 on), PFR1.NMI 39:36, MMFR1.PAN 23:20, MMFR2.UAO 7:4."""
    names = {"pan", "uao", "dit", "ssbs", "mte", "nmi"}

    def found(pfr0: int = 0, pfr1: int = 0, mmfr1: int = 0, mmfr2: int = 0) -> set[str]:
        features = CpuFeatures.from_id_registers(pfr0, pfr1, mmfr1, mmfr2)
        return {name for name in names if getattr(features, name)}

    assert found() == set()
    assert found(pfr0=1 << 48) == {"dit"}
    assert found(pfr1=2 << 4) == {"ssbs"}
    assert found(pfr1=1 << 8) == set()
    assert found(pfr1=2 << 8) == {"mte"}
    assert found(pfr1=3 << 8) == {"mte"}
    assert found(pfr1=1 << 36) == {"nmi"}
    assert found(mmfr1=3 << 20) == {"pan"}
    assert found(mmfr2=1 << 4) == {"uao"}
    everything = (1 << 64) - 1
    assert found(everything, everything, everything, everything) == names


# -- the other registers


def test_entry_registers(policy: str) -> None:
    rig = boot(policy)
    before = {f"x{i}": 0xA0 + i for i in range(18)}
    rig.set_registers(0, **before, pc=0x7000, pstate=0x6000_0005)
    registers = enter(rig)
    assert [registers[f"x{i}"] for i in range(4)] == [NORMAL, 0x77 + NORMAL, 0x7000, 0x6000_0005]
    rest = [registers[f"x{i}"] for i in range(4, 18)]
    assert rest == ([0] * 14 if policy == "kvm" else [0xA0 + i for i in range(4, 18)])
    assert registers["pc"] == ENTRY
    assert (registers["elr"], registers["spsr"]) == (0, 0), "no exception registers are touched"


@given(values=st.lists(st.integers(0, M64), min_size=20, max_size=20), policy=st.sampled_from(["kvm", "tf-a"]))
def test_complete_restores_bit_for_bit(values: list[int], policy: str) -> None:
    rig = boot(policy)
    before = dict(zip(CONTEXT, values, strict=True))
    rig.set_registers(0, **before)
    enter(rig)
    rig.set_registers(0, **dict.fromkeys(CONTEXT, 0x5555))
    enter(rig, CRITICAL)
    rig.call(0, "event_complete", 0)
    assert {rig.cpus[0].registers[name] for name in CONTEXT} == {0x5555}
    rig.call(0, "event_complete", 0)
    assert {name: rig.cpus[0].registers[name] for name in CONTEXT} == before


@given(values=st.lists(st.integers(0, M64), min_size=20, max_size=20), policy=st.sampled_from(["kvm", "tf-a"]))
def test_complete_and_resume_restores_x0_to_x17(values: list[int], policy: str) -> None:
    rig = boot(policy)
    before = dict(zip(CONTEXT, values, strict=True))
    rig.set_registers(0, **before)
    enter(rig)
    rig.call(0, "event_complete_and_resume", 0x4008_0400)
    registers = rig.cpus[0].registers
    assert all(registers[f"x{i}"] == before[f"x{i}"] for i in range(18))
    assert (registers["pc"], registers["elr"], registers["spsr"]) == (0x4008_0400, before["pc"], before["pstate"])


@pytest.mark.parametrize("complete", ["event_complete", "event_complete_and_resume"])
def test_the_next_handler_interrupts_what_the_last_one_went_back_to(policy: str, complete: str) -> None:
    rig = boot(policy)
    rig.set_registers(0, pc=0x7000, pstate=0x5, x5=55)
    rig.inject(NORMAL)
    rig.look(0)
    rig.inject(NORMAL)
    rig.call(0, complete, 0x4008_0280)
    registers = rig.cpus[0].registers
    if complete == "event_complete":
        assert (registers["x2"], registers["x3"]) == (0x7000, 0x5)
    else:
        assert registers["x2"] == 0x4008_0280
        assert registers["x3"] & DAIF == DAIF
        assert (registers["elr"], registers["spsr"]) == (0x7000, 0x5)
    assert rig.call(0, "event_context", 5) == 55
