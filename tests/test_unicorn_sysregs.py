# SPDX-License-Identifier: Apache-2.0
"""The registers that move: nothing a guest can write is forgotten. Whole engines are compared."""

from __future__ import annotations

import ctypes as C
import struct
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sdeivirt.machine import MachineConfig
from sdeivirt.machine.base import RAM_BASE
from sdeivirt.machine.unicorn import UnicornMachine
from sdeivirt.machine.unicorn.binding import EngineError, X
from sdeivirt.machine.unicorn.binding import arm64_const as reg
from sdeivirt.machine.unicorn.state import Registers
from sdeivirt.machine.unicorn.sysregs import REGISTERS, VIEWS, Encoding, RegisterWriter, msr
from sdeivirt.machine.unicorn.vcpu import UnicornVcpu

pytestmark = pytest.mark.machine

EL1H = 0x3C5
EVERYTHING = [
    Encoding(op0, op1, crn, crm, op2)
    for op0 in (2, 3)
    for op1 in range(8)
    for crn in range(16)
    for crm in range(16)
    for op2 in range(8)
]
ONES = (1 << 64) - 1
PATTERNS = (ONES, 0x5555_5555_5555_5555, 0xAAAA_AAAA_AAAA_AAAA, 0)
HEADER = 40  # bytes of a context blob that describe it


def mrs(register: Encoding, rt: int) -> int:
    """The instruction that reads a register into x`rt`: MSR with L set. Arm ARM C6.2."""
    return msr(register, rt) | 1 << 21


class Bench:
    """A vCPU that executes one instruction at a time at EL1, with all that EL1 itself can permit permitted."""

    def __init__(self) -> None:
        self.machine = UnicornMachine(MachineConfig(vcpus=1, memory=2 << 20))
        self.vcpu = self.machine.vcpus[0]
        self.engine = self.vcpu.engine
        self.save, self.at, self.size = self.engine.context_probe()
        self.vcpu._moving = True  # exceptions stop the engine, with PC on the instruction
        self.engine.uc.cpr_write(*REGISTERS["CPACR_EL1"], ONES)
        self.start = self.engine.save()

    def blob(self) -> bytes:
        self.save()
        return C.string_at(self.at, self.size)

    def execute(self, instruction: int, x0: int = 0) -> bool:
        """From the same state each time; False if it is not allowed."""
        engine = self.engine
        engine.restore(self.start)
        engine.flush_tlb()
        struct.pack_into("<I", self.machine.ram, 0, instruction)
        engine.flush_code()
        engine.set(reg.UC_ARM64_REG_PSTATE, EL1H)
        engine.derive()
        engine.set(X[0], x0)
        engine.run(RAM_BASE, 1)
        pc: int = engine.get(reg.UC_ARM64_REG_PC)
        return pc == RAM_BASE + 4


@pytest.fixture(scope="module")
def bench() -> Iterator[Bench]:
    bench = Bench()
    yield bench
    bench.machine.close()


def remembered(bench: Bench) -> dict[Encoding, set[int]]:
    """What an engine remembers of writes to each register: offsets in its state."""
    bench.execute(0xD503201F)  # nop
    nop = bench.blob()
    x0 = next(at for at in range(0, bench.size, 8) if (bench.execute(0xD503201F, ONES), bench.blob())[1][at] != nop[at])
    found: dict[Encoding, set[int]] = {}
    for register in EVERYTHING:
        blobs = []
        for value in PATTERNS:
            if not bench.execute(msr(register, 0), value):
                break
            blobs.append(bench.blob())
        if not blobs:
            continue
        bench.execute(0xD503201F)
        blobs.append(bench.blob())
        words = [struct.unpack_from(f"<{bench.size // 8}Q", blob) for blob in blobs]
        found[register] = {
            8 * i for i, values in enumerate(zip(*words, strict=True)) if len(set(values)) > 1 and 8 * i != x0
        }
    return {register: places for register, places in found.items() if places}


def test_the_table_has_all_that_a_guest_can_write(bench: Bench) -> None:
    found = remembered(bench)
    assert len(found) > 60
    table = {encoding: name for name, encoding in REGISTERS.items()}
    forgotten = [register for register in found if register not in table and register not in VIEWS]
    assert not forgotten
    # What the engine remembers in a way that MSR does not show.
    by_other_ways = {"OSLSR_EL1", "CNTP_CVAL_EL0", "CNTV_CVAL_EL0", "SCTLR_EL1"}
    needless = [name for encoding, name in table.items() if encoding not in found and name not in by_other_ways]
    assert not needless
    assert all(register in found or "PMX" in why for register, why in VIEWS.items())


def test_no_register_of_another_exception_level_is_in_the_table() -> None:
    assert {encoding.op1 for encoding in REGISTERS.values()} <= {0, 2, 3}, "Arm ARM C5.3: 4 to 7 are EL2's and above"
    assert len(set(REGISTERS.values())) == len(REGISTERS)


def test_what_is_ours_to_answer_is_known(bench: Bench) -> None:
    sve = Encoding(3, 0, 1, 2, 0)
    reads = {register for register in EVERYTHING if always_traps_to_us(bench, mrs(register, 0))}
    identification = {register for register in reads if register[:3] == (3, 0, 0) and 1 <= register.crm <= 7}
    assert len(identification) > 40
    assert reads - identification == {Encoding(3, 3, 14, 0, 1), sve}
    writes = {register for register in EVERYTHING if always_traps_to_us(bench, msr(register, 0))}
    assert writes == {sve}


def always_traps_to_us(bench: Bench, instruction: int) -> bool:
    """Twice: of an engine's first exception of all, the syndrome has been seen to tell another level."""
    return all(not bench.execute(instruction) and trapped_to_us(bench) for _ in range(2))


def trapped_to_us(bench: Bench) -> bool:
    return bench.vcpu._syndrome.read().target_el != 1


# -- a whole vCPU, to another and back

WORDS = st.integers(0, ONES)
SYSTEM = st.fixed_dictionaries({name: st.one_of(WORDS, st.sampled_from([0, 1, 0x1F, ONES])) for name in REGISTERS})
PSTATES = st.builds(
    lambda mode, flags: mode | flags,
    st.sampled_from([0, 4, 5]),
    st.integers(0, 15).map(lambda nzcv: nzcv << 28) | st.sampled_from([0x3C0, 0x40_0000, 0x80_0000, 0x200, 0xC00]),
)
REGISTER_FILES = st.builds(
    Registers,
    x=st.lists(WORDS, min_size=31, max_size=31),
    sp_el0=WORDS,
    sp_el1=WORDS,
    pc=WORDS,
    pstate=PSTATES,
    q=st.binary(min_size=512, max_size=512),
    system=SYSTEM,
)


@pytest.fixture(scope="module")
def pair() -> Iterator[tuple[UnicornVcpu, UnicornVcpu]]:
    machines = [UnicornMachine(MachineConfig(vcpus=1, memory=2 << 20)) for _ in range(2)]
    yield machines[0].vcpus[0], machines[1].vcpus[0]
    for machine in machines:
        machine.close()


def probe(vcpu: UnicornVcpu) -> Callable[[], bytes]:
    save, at, size = vcpu.engine.context_probe()

    def blob() -> bytes:
        save()
        return C.string_at(at, size)

    return blob


def test_what_arrives_is_what_left_to_the_last_byte(pair: tuple[UnicornVcpu, UnicornVcpu]) -> None:
    here, there = pair
    here_blob, there_blob = probe(here), probe(there)
    # Where the engine keeps what is of the host: the cycles that had passed, and addresses of its own breakpoints.
    of_the_host = host_places(here, here_blob)

    @settings(max_examples=80, database=None)
    @given(REGISTER_FILES)
    def check(registers: Registers) -> None:
        here.set_registers(registers)
        left = here.registers()
        before = here_blob()
        assert (left.x, left.sp_el0, left.sp_el1) == (registers.x, registers.sp_el0, registers.sp_el1)
        assert (left.pc, left.pstate, left.q) == (registers.pc, registers.pstate, registers.q)
        there.set_registers(left)
        after = there_blob()
        differ = {i & ~7 for i in range(HEADER, len(before)) if before[i] != after[i]} - of_the_host
        assert not differ, [hex(i) for i in sorted(differ)]
        assert here_blob() == before, "unharmed"
        counting = left.system["PMCR_EL0"] & 1
        arrived = there.registers()
        for name, value in left.system.items():
            if not (counting and name.startswith(("PMCCNTR", "PMEVCNTR", "PMOVS"))):
                assert arrived.system[name] == value, name

    check()


def host_places(vcpu: UnicornVcpu, blob: Callable[[], bytes]) -> set[int]:
    """Where an engine's state differs though the guest's registers are the same: the clock, breakpoints' addresses."""
    zeroes = dict.fromkeys(REGISTERS, 0)
    plain = Registers(x=[0] * 31, sp_el0=0, sp_el1=0, pc=0, pstate=EL1H, q=bytes(512), system=zeroes)
    vcpu.set_registers(plain)
    places: set[int] = set()
    before = blob()
    vcpu.set_registers(plain)
    places |= {i & ~7 for i, (a, b) in enumerate(zip(before, blob(), strict=True)) if a != b}
    enabled = {name: 0x1E5 for name in REGISTERS if name.startswith("DBGBCR")}
    vcpu.set_registers(Registers(x=plain.x, sp_el0=0, sp_el1=0, pc=0, pstate=EL1H, q=plain.q, system=zeroes | enabled))
    on = blob()
    pointers = {i & ~7 for i, (a, b) in enumerate(zip(before, on, strict=True)) if a != b}
    return places | {place for place in pointers if place >= len(on) - 128}


def test_an_engine_that_cannot_write_them_says_so(pair: tuple[UnicornVcpu, UnicornVcpu]) -> None:
    vcpu = pair[0]
    writer = RegisterWriter()
    struct.pack_into("<I", writer._memory, 0, 0)  # an undefined instruction
    machine = UnicornMachine(MachineConfig(vcpus=1, memory=2 << 20))
    machine.register_writer = writer
    with machine, pytest.raises(EngineError, match="where registers are written"):
        machine.vcpus[0].set_registers(vcpu.registers())
