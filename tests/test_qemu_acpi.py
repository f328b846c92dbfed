# SPDX-License-Identifier: Apache-2.0
"""QEMU's own ACPI tables with ours among them, and fw_cfg's DMA: by files made here, and a QEMU that has not begun."""

from __future__ import annotations

import contextlib
import mmap
import os
import random
import shutil
import socket
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdeivirt.errors import EnvironmentUnavailableError
from sdeivirt.machine.base import RAM_BASE, MachineConfig
from sdeivirt.machine.qemu.acpi import error_windows, with_ours
from sdeivirt.machine.qemu.fwcfg import FwCfg, read_tables, table_keys
from sdeivirt.machine.qemu.its import has_its
from sdeivirt.machine.qemu.qtest import Qtest
from sdeivirt.ras.sources import STANDARD_EVENTS, STANDARD_SOURCES
from sdeivirt.smccc.ids import Conduit
from sdeivirt.tables.acpi import sdei_table
from sdeivirt.tables.acpi.loader import LOADER, RSDP, TABLES, TableFiles
from sdeivirt.tables.acpi.qemu import agreeing, extend, link

from .machine_support import NEEDS_QEMU

MIB = 1 << 20
BASE = 0x7654_0000
IO = 0x3EFF_0000
HEADER = 36
NEEDS_IASL = pytest.mark.skipif(shutil.which("iasl") is None, reason="iasl (acpica-tools) is not installed")


# --------------------------------------------------------------------------------------------- files that are made here


def table(name: bytes, body: bytes) -> bytes:
    """A table whose checksum is not right yet."""
    return struct.pack("<4sIBB6s8sI4sI", name, HEADER + len(body), 1, 0, b"MAKER ", b"TEST    ", 1, b"TEST", 1) + body


def pointer(file: str, source: str, offset: int, size: int = 8) -> bytes:
    return struct.pack("<I56s56sIB7x", 2, file.encode(), source.encode(), offset, size)


def total(file: str, at: int, start: int, length: int) -> bytes:
    return struct.pack("<I56sIII56x", 3, file.encode(), at, start, length)


def allocate(file: str, align: int, zone: int) -> bytes:
    return struct.pack("<I56sIB63x", 1, file.encode(), align, zone)


DWORD_IO = struct.pack("<BHBBBIIIII", 0x87, 23, 1, 0xC, 3, 0, 0, 0xFFFF, IO, 0x10000)
MADT = struct.pack("<II", 0, 0) + struct.pack("<BB22x", 0xC, 24) + struct.pack("<BB18x", 0xF, 20)
MADT += struct.pack("<BB14x", 0xE, 16)


def files(room: int = 0x2000, more: int = 0) -> TableFiles:
    """As QEMU has them: a DSDT, a FADT that names it, a MADT, further tables, an XSDT, an RSDP, and the script."""
    tables, script = bytearray(), [allocate(RSDP, 16, 2), allocate(TABLES, 64, 1)]

    def add(content: bytes, pointers: tuple[int, ...] = ()) -> int:
        start = len(tables)
        tables.extend(content)
        script.extend(pointer(TABLES, TABLES, start + at) for at in pointers)
        script.append(total(TABLES, start + 9, start, len(content)))
        return start

    dsdt = add(table(b"DSDT", b"some AML" + DWORD_IO + b"more AML"))
    fadt = add(table(b"FACP", bytes(104) + struct.pack("<Q", dsdt) + bytes(128)), (140,))
    entries = [fadt, add(table(b"APIC", MADT)), *(add(table(b"XTRA", b"x")) for _ in range(more))]
    xsdt = add(
        table(b"XSDT", struct.pack(f"<{len(entries)}Q", *entries)),
        tuple(HEADER + 8 * i for i in range(len(entries))),
    )
    rsdp = struct.pack("<8sB6sBIIQB3x", b"RSD PTR ", 0, b"MAKER ", 2, 0, 36, xsdt, 0)
    script += [total(RSDP, 8, 0, 20), pointer(RSDP, TABLES, 24), total(RSDP, 32, 0, 36)]
    return TableFiles(rsdp, bytes(tables).ljust(room, b"\0"), b"".join(script))


OURS = [sdei_table(), agreeing()]


def carried_out(found: TableFiles, addresses: dict[str, int]) -> dict[str, bytes]:
    """The script done by another reader of its description: what is where, by file."""
    content = {RSDP: bytearray(found.rsdp), TABLES: bytearray(found.tables)}
    for at in range(0, len(found.loader), 128):
        command = found.loader[at : at + 128]
        file = command[4:60].rstrip(b"\0").decode()
        kind = int.from_bytes(command[:4], "little")
        if kind == 2:
            source = command[60:116].rstrip(b"\0").decode()
            offset, size = struct.unpack_from("<IB", command, 116)
            value = int.from_bytes(content[file][offset : offset + size], "little") + addresses[source]
            content[file][offset : offset + size] = value.to_bytes(size, "little")
        elif kind == 3:
            result, start, length = struct.unpack_from("<III", command, 60)
            content[file][result] = 0
            content[file][result] = -sum(content[file][start : start + length]) & 255
        else:
            assert kind in (0, 1), kind
    return {name: bytes(data) for name, data in content.items()}


def table_at(memory: dict[int, bytes], address: int) -> bytes:
    for start, data in memory.items():
        if start <= address < start + len(data):
            offset = address - start
            (length,) = struct.unpack_from("<I", data, offset + 4)
            found = data[offset : offset + length]
            assert len(found) == length
            assert sum(found) & 255 == 0, found[:4]
            return found
    raise AssertionError(f"nothing is at {address:#x}")


def walk(memory: dict[int, bytes], rsdp: int) -> list[bytes]:
    """All tables that can be found from the RSDP, in order; their checksums are right."""
    root = memory[rsdp][:36]
    assert sum(root) & 255 == sum(root[:20]) & 255 == 0
    xsdt = table_at(memory, struct.unpack_from("<Q", root, 24)[0])
    assert xsdt[:4] == b"XSDT"
    found = [xsdt]
    for (address,) in struct.iter_unpack("<Q", xsdt[HEADER:]):
        found.append(table_at(memory, address))
        if found[-1][:4] == b"FACP":
            found.append(table_at(memory, struct.unpack_from("<Q", found[-1], 140)[0]))
    return found


def names(tables: list[bytes]) -> list[bytes]:
    return [each[:4] for each in tables]


@pytest.mark.parametrize("more", [0, 3])
def test_our_tables_are_among_qemu_s_whoever_carries_the_script_out(more: int) -> None:
    before = files(more=more)
    after = extend(before, OURS, Conduit.HVC, (IO, 0xF000))
    assert [len(each) for each in after.by_name().values()] == [len(each) for each in before.by_name().values()]
    wanted = [b"XSDT", b"FACP", b"DSDT", b"APIC", *[b"XTRA"] * more, b"SDEI", b"SSDT"]

    found = carried_out(after, {RSDP: 0x1_0000, TABLES: 0x9_8765_0000})
    assert names(walk({0x1_0000: found[RSDP], 0x9_8765_0000: found[TABLES]}, 0x1_0000)) == wanted

    linked = link(after, BASE)
    tables = walk(linked.placed, BASE)
    assert names(tables) == wanted
    assert sorted(linked.by_signature) == sorted({name.decode() for name in wanted} | {"RSDP"})
    assert linked.by_signature["SDEI"] == sdei_table()
    assert linked.by_signature["SSDT"] == agreeing()
    assert linked.size <= len(after.tables) + 64
    # Nothing is left of the XSDT that was there.
    assert after.tables.count(b"XSDT") == 1


@pytest.mark.parametrize(("conduit", "flags"), [(Conduit.HVC, 3), (Conduit.SMC, 1)])
def test_the_fadt_names_the_conduit(conduit: Conduit, flags: int) -> None:
    for before in (0, 2, 3):
        given_files = files()
        at = given_files.tables.index(b"FACP") + 129
        changed = bytearray(given_files.tables)
        changed[at] = before
        after = link(extend(TableFiles(given_files.rsdp, bytes(changed), given_files.loader), OURS, conduit), BASE)
        assert after.by_signature["FACP"][129] == flags


@pytest.mark.parametrize(
    ("low", "high", "translation", "changes"),
    [(0, 0xFFFF, IO, True), (0x1000, 0xFFFF, IO, True), (0, 0xEFFF, IO, False), (0, 0xFFFF, IO + 1, False)],
)
def test_the_doorbell_s_ports_are_none_of_the_bridge_s(low: int, high: int, translation: int, changes: bool) -> None:
    given_files = files()
    there = struct.pack("<BHBBBIIIII", 0x87, 23, 1, 0xC, 3, 0, low, high, translation, high - low + 1)
    tables = given_files.tables.replace(DWORD_IO, there)
    after = extend(TableFiles(given_files.rsdp, tables, given_files.loader), OURS, Conduit.HVC, (IO, 0xF000))
    end = 0xF000 if changes else high + 1
    wanted = struct.pack("<BHBBBIIIII", 0x87, 23, 1, 0xC, 3, 0, low, end - 1, translation, end - low)
    assert wanted in link(after, BASE).by_signature["DSDT"]


def test_without_an_its_the_madt_has_none() -> None:
    kept = link(extend(files(), OURS, Conduit.HVC, its=True), BASE).by_signature["APIC"]
    assert kept[HEADER:] == MADT
    gone = link(extend(files(), OURS, Conduit.HVC, its=False), BASE).by_signature["APIC"]
    assert gone[HEADER:] == MADT[:32] + MADT[52:]


def test_what_concerns_other_files_is_left_as_it_is() -> None:
    """A TPM's table points to its log, for which the guest's firmware finds a place."""
    log, at = "etc/tpm/log", 0x40
    found = files(more=3)
    start = found.tables.index(b"XTRA")
    commands = [found.loader[i : i + 128] for i in range(0, len(found.loader), 128)]
    total_of_table = commands.index(total(TABLES, start + 9, start, HEADER + 1))
    commands[total_of_table:total_of_table] = [allocate(log, 64, 1), pointer(TABLES, log, start + HEADER, 1)]
    commands += [pointer(log, TABLES, 8), total(log, 0, 0, 4)]
    script = b"".join(commands)
    after = extend(TableFiles(found.rsdp, found.tables, script), OURS, Conduit.HVC)
    for command in (allocate(log, 64, 1), commands[-2], commands[-1]):
        assert command in after.loader
    mine = after.loader.replace(commands[-2], bytes(128)).replace(commands[-1], bytes(128))
    memory = carried_out(TableFiles(after.rsdp, after.tables, mine), {RSDP: BASE, TABLES: BASE + 64, log: at})
    tables = walk({BASE: memory[RSDP], BASE + 64: memory[TABLES]}, BASE)
    (own, *_) = (table for table in tables if table.startswith(b"XTRA"))
    assert own[HEADER] == ord("x") + at


def test_tables_that_do_not_fit_are_no_tables() -> None:
    size = len(files(room=0).tables)
    with pytest.raises(EnvironmentUnavailableError, match="no room for further tables in"):
        extend(files(room=size + 64), OURS, Conduit.HVC)
    # A script in which no checksum can be done beforehand has no room for further pointers.
    with pytest.raises(EnvironmentUnavailableError, match="in their script"):
        extend(files(), [sdei_table()] * 4, Conduit.HVC)
    assert extend(files(more=2), [sdei_table()] * 4, Conduit.HVC)


@pytest.mark.parametrize(
    ("what", "loader"),
    [
        ("a pointer in 'etc/other' to", pointer("etc/other", TABLES, 0)),
        ("a pointer in 'etc/acpi/tables' to 'etc/other'", pointer(TABLES, "etc/other", 0)),
        ("a pointer in 'etc/acpi/tables' to", pointer(TABLES, TABLES, 0, 3)),
        ("a pointer at 0x1ffd", pointer(TABLES, TABLES, 0x1FFD, 4)),
        ("a checksum at 0x2000", total(TABLES, 0x2000, 0, 1)),
        ("a checksum at 0x0", total(TABLES, 0, 0x1FFF, 2)),
        ("a checksum at 0x0 of 'etc/other'", total("etc/other", 0, 0, 1)),
        ("the script changes itself", pointer(LOADER, TABLES, 0)),
        ("the script changes itself", pointer(TABLES, LOADER, 0)),
        ("the script changes itself", total(LOADER, 0, 0, 1)),
    ],
)
def test_a_script_that_says_what_cannot_be_is_not_carried_out(what: str, loader: bytes) -> None:
    found = files()
    with pytest.raises(EnvironmentUnavailableError, match=f"^QEMU's ACPI tables cannot be: {what}"):
        link(TableFiles(found.rsdp, found.tables, found.loader + loader), BASE)


def test_commands_that_nobody_knows_are_left_out() -> None:
    found = files()
    more = struct.pack("<I124s", 77, b"?") + bytes(128)
    assert link(TableFiles(found.rsdp, found.tables, more + found.loader + more[:100]), BASE) == link(found, BASE)


@given(st.data())
def test_damaged_files_are_refused_or_linked_and_nothing_else(data: st.DataObject) -> None:
    found = {name: bytearray(content) for name, content in files(room=0x400).by_name().items()}
    for _ in range(data.draw(st.integers(1, 4))):
        content = found[data.draw(st.sampled_from([RSDP, TABLES, LOADER]))]
        if not content:
            continue
        at = data.draw(st.integers(0, len(content) - 1))
        if data.draw(st.booleans()):
            content[at] = data.draw(st.integers(0, 255))
        else:
            del content[at:]
    damaged = TableFiles(bytes(found[RSDP]), bytes(found[TABLES]), bytes(found[LOADER]))
    with contextlib.suppress(EnvironmentUnavailableError):
        assert BASE in link(damaged, BASE).placed
    with contextlib.suppress(EnvironmentUnavailableError):
        assert BASE in link(extend(damaged, OURS, Conduit.HVC, (IO, 0xF000), its=False), BASE).placed


# ----------------------------------------------------------------------------------------------------------- a real one


class Standing:
    """A QEMU that has not begun. A context manager. Its RAM is the guest's, and a page behind it that is not."""

    memory = 16 * MIB
    page_address = RAM_BASE + memory

    def __init__(self, *words: str, machine: str = "", dma: bool = True) -> None:
        self._ours, theirs = socket.socketpair()
        size = self.memory + 2 * MIB
        fd = os.memfd_create("test")
        os.ftruncate(fd, size)
        self.ram = mmap.mmap(fd, size)
        ram = f"memory-backend-file,id=ram,share=on,size={size},mem-path=/proc/self/fd/{fd}"
        self.process = subprocess.Popen(
            [
                *("qemu-system-aarch64", "-object", ram, "-m", f"{size >> 20}M", "-S", "-nodefaults"),
                *("-machine", f"virt,virtualization=on,gic-version=3,memory-backend=ram{machine}"),
                *("-display", "none", "-cpu", "cortex-a72", "-chardev", f"socket,id=q,fd={theirs.fileno()}"),
                *("-object", f"qtest,id=test,chardev=q,log={os.devnull}"),
                *("-global", f"fw_cfg_mem.dma_enabled={'on' if dma else 'off'}", *words),
            ],
            pass_fds=[fd, theirs.fileno()],
        )
        theirs.close()
        os.close(fd)
        self.qtest = Qtest(self._ours)

    def __enter__(self) -> Standing:
        return self

    def __exit__(self, *_error: object) -> None:
        self.process.kill()
        self.process.wait()
        self._ours.close()

    # The guest's memory, for FwCfg.

    stays = contextlib.nullcontext()

    def covers(self, address: int, size: int) -> bool:
        return RAM_BASE <= address <= address + size <= RAM_BASE + self.memory

    def here(self, address: int, size: int) -> bool:
        return True

    def read(self, address: int, size: int) -> bytes | None:
        at = address - RAM_BASE
        return self.ram[at : at + size]

    def write(self, address: int, data: bytes) -> bool:
        at = address - RAM_BASE
        self.ram[at : at + len(data)] = data
        return True

    def written(self, address: int, size: int) -> None:
        self.marked = address, size

    def fw_cfg(self) -> FwCfg:
        page = memoryview(self.ram)[self.memory : self.memory + 0x1000]
        return FwCfg(self.qtest, page, self.page_address, self, lambda found: extend(found, OURS, Conduit.HVC))


CONFIG = MachineConfig(events=STANDARD_EVENTS, error_sources=STANDARD_SOURCES)


@pytest.mark.qemu
@NEEDS_QEMU
@pytest.mark.parametrize(
    ("machine", "words"),
    [
        ("", ()),
        (",its=off", ("-smp", "4")),
        (",highmem=off", ("-device", "virtio-rng-pci")),
        (",iommu=smmuv3", ("-smp", "2", "-device", "pxb-pcie,id=p,bus_nr=64", "-device", "pcie-root-port,bus=p")),
    ],
)
def test_the_tables_of_a_real_qemu_are_extended(machine: str, words: tuple[str, ...], tmp_path: Path) -> None:
    with Standing(*words, machine=machine, dma=False) as qemu:
        found = read_tables(qemu.qtest)
        its = has_its(qemu.qtest)
    assert its == ("its=off" not in machine)
    before = walk(link(found, BASE).placed, BASE)
    linked = link(with_ours(found, CONFIG, (IO, 0xF000), its=its), BASE)
    after = walk(linked.placed, BASE)
    assert names(after) == [*names(before), b"SDEI", b"SSDT", b"HEST"]
    # A range of ports of the bridge is no longer than to the doorbell's page.
    assert after[names(after).index(b"DSDT")].count(struct.pack("<III", 0xFFFF, IO, 0x10000)) == 0
    hest = after[-1]
    assert struct.pack("<Q", error_windows(CONFIG)[1].acknowledge) in hest
    madt = after[names(after).index(b"APIC")]
    kinds, at = [], HEADER + 8
    while at < len(madt):
        kinds.append(madt[at])
        at += madt[at + 1]
    assert (0xF in kinds) is its
    if shutil.which("iasl"):
        for i, each in enumerate(after):
            path = tmp_path / f"{i}-{each[:4].decode()}.aml"
            path.write_bytes(each)
            done = subprocess.run(["iasl", "-d", path], capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stderr
            said = (done.stdout + done.stderr).lower()
            assert "error" not in said and "warning" not in said, said  # noqa: PT018


@pytest.mark.qemu
@NEEDS_QEMU
def test_a_qemu_without_acpi_has_no_tables() -> None:
    with Standing(machine=",acpi=off") as qemu:
        assert table_keys(qemu.qtest) is None
        with pytest.raises(EnvironmentUnavailableError, match="no ACPI tables"):
            read_tables(qemu.qtest)
        # The guest can look at what there is.
        select_and_read(qemu, qemu.fw_cfg(), 0x19, 64)


TRANSFER, BUFFER = RAM_BASE + 0x1000, RAM_BASE + 0x10_0000
READ, SKIP, SELECT, WRITE = 2, 4, 8, 16


def big(value: int, size: int = 8) -> int:
    return int.from_bytes(value.to_bytes(size, "big"), "little")


def transfer(qemu: Standing, fw_cfg: FwCfg, control: int, length: int, address: int = BUFFER) -> int:
    """One transfer; its control afterwards."""
    qemu.write(TRANSFER, struct.pack(">IIQ", control, length, address))
    assert fw_cfg.write(0x10, 8, big(TRANSFER)) is None
    return int.from_bytes(qemu.read(TRANSFER, 4) or b"", "big")


def select_and_read(qemu: Standing, fw_cfg: FwCfg, key: int, length: int) -> bytes:
    qemu.write(BUFFER, b"\xee" * length)
    assert fw_cfg.write(0x8, 2, big(key, 2)) is None
    assert transfer(qemu, fw_cfg, READ, length) == 0
    assert qemu.marked == (BUFFER, length)
    return qemu.read(BUFFER, length) or b""


@pytest.fixture(scope="module")
def standing() -> Iterator[Standing]:
    with Standing() as qemu:
        yield qemu


@pytest.mark.qemu
@NEEDS_QEMU
def test_the_guest_finds_the_extended_tables_however_it_reads(standing: Standing) -> None:
    keys = table_keys(standing.qtest)
    assert keys is not None
    wanted = extend(read_tables(standing.qtest), OURS, Conduit.HVC).by_name()
    fw_cfg = standing.fw_cfg()
    assert select_and_read(standing, fw_cfg, 0, 4) == b"QEMU"
    for name, (key, size) in keys.items():
        assert len(wanted[name]) == size
        assert select_and_read(standing, fw_cfg, key, size) == wanted[name], name
        # In one transfer, in several, and past the end, where there are zeroes.
        assert transfer(standing, fw_cfg, key << 16 | SELECT | READ, 16) == 0
        assert standing.read(BUFFER, 16) == wanted[name][:16]
        assert transfer(standing, fw_cfg, SKIP, 4) == 0
        assert transfer(standing, fw_cfg, READ, 64) == 0
        assert standing.read(BUFFER, 64) == wanted[name][20:84].ljust(64, b"\0")
    assert select_and_read(standing, fw_cfg, 0, 4) == b"QEMU"


@pytest.mark.qemu
@NEEDS_QEMU
def test_transfers_outside_of_the_guest_s_memory_are_errors(standing: Standing) -> None:
    fw_cfg, end = standing.fw_cfg(), RAM_BASE + standing.memory
    behind = standing.ram[standing.memory + 0x1000 :]
    for control in (READ, WRITE, READ | WRITE, SELECT | READ):
        for address, length in (
            (end, 1),
            (end - 1, 2),
            (RAM_BASE - 1, 2),
            (0, 16),
            ((1 << 64) - 1, 1),
            (BUFFER, 1 << 31),
        ):
            assert transfer(standing, fw_cfg, control, length, address) == 1, (control, hex(address))
        assert transfer(standing, fw_cfg, control, 0, end) == 0  # nothing goes anywhere
    for address in (end, end - 8, RAM_BASE - 8, 0, (1 << 64) - 8):
        assert fw_cfg.write(0x10, 8, big(address)) is None
    assert standing.ram[standing.memory + 0x1000 :] == behind
    assert select_and_read(standing, fw_cfg, 0, 4) == b"QEMU"


@pytest.mark.qemu
@NEEDS_QEMU
def test_an_address_in_two_halves_is_one(standing: Standing) -> None:
    fw_cfg = standing.fw_cfg()
    standing.write(TRANSFER, struct.pack(">IIQ", SELECT | READ, 4, BUFFER))
    standing.write(BUFFER, bytes(4))
    assert fw_cfg.write(0x10, 4, 0) is None
    assert standing.read(BUFFER, 4) == bytes(4)
    assert fw_cfg.write(0x14, 4, big(TRANSFER, 4)) is None
    assert standing.read(BUFFER, 4) == b"QEMU"


@pytest.mark.qemu
@NEEDS_QEMU
def test_a_transfer_waits_for_pages_that_are_not_here(standing: Standing, monkeypatch: pytest.MonkeyPatch) -> None:
    fw_cfg = standing.fw_cfg()
    standing.write(TRANSFER, struct.pack(">IIQ", SELECT | READ, 4, BUFFER))
    standing.write(BUFFER, bytes(4))
    with monkeypatch.context() as patch:
        patch.setattr(standing, "read", lambda _address, _size: None)
        assert fw_cfg.write(0x10, 8, big(TRANSFER)) == (TRANSFER, 16)
    with monkeypatch.context() as patch:
        patch.setattr(standing, "here", lambda _address, _size: False)
        assert fw_cfg.write(0x10, 8, big(TRANSFER)) == (BUFFER, 4)
        assert fw_cfg.write(0x10, 4, 0) is None
        assert fw_cfg.write(0x14, 4, big(TRANSFER, 4)) == (BUFFER, 4)
    assert standing.read(BUFFER, 4) == bytes(4)
    # The half that was written first is still known when it tries again.
    assert fw_cfg.write(0x14, 4, big(TRANSFER, 4)) is None
    assert standing.read(BUFFER, 4) == b"QEMU"


@pytest.mark.qemu
@NEEDS_QEMU
def test_whatever_a_guest_writes_nothing_outside_of_its_memory_changes(standing: Standing) -> None:
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    fw_cfg, end = standing.fw_cfg(), RAM_BASE + standing.memory
    behind = standing.ram[standing.memory + 0x1000 :]
    places = (TRANSFER, BUFFER, end - 16, end - 8, end, standing.page_address, 0, RAM_BASE, (1 << 64) - 16)
    for _ in range(1500):
        where = chance.choice(places) + chance.randrange(-4, 8) & (1 << 64) - 1
        control = chance.getrandbits(5) | chance.choice((0, 1, 0x19, 0x20, 0x22, 0x7FFF)) << 16
        length = chance.choice((0, 1, 4, 8, 0x1000, 0x10_0000, 0xFFFF_FFFF))
        standing.write(TRANSFER, struct.pack(">IIQ", control, length, where))
        offset, size = chance.choice(((8, 2), (0x10, 8), (0x10, 4), (0x14, 4), (0, 8), (0xFFC, 4), (0x13, 1)))
        value = big(chance.choice((TRANSFER, where)), 8) >> 8 * (8 - size) if chance.random() < 0.9 else 0
        assert fw_cfg.write(offset, size, value & (1 << 8 * size) - 1) is None
    assert standing.ram[standing.memory + 0x1000 :] == behind
    assert standing.process.poll() is None
    assert select_and_read(standing, fw_cfg, 0, 4) == b"QEMU"
