# SPDX-License-Identifier: Apache-2.0
"""The parts of machine qemu, each by itself: no QEMU is needed."""

from __future__ import annotations

import asyncio
import re
import socket
from pathlib import Path

import pytest

from sdeivirt.errors import EnvironmentUnavailableError
from sdeivirt.machine.qemu import layout
from sdeivirt.machine.qemu.block import block_address, block_size, total_memory
from sdeivirt.machine.qemu.console import PanicWatch
from sdeivirt.machine.qemu.devicetree import MachineTree
from sdeivirt.machine.qemu.gic import Gic
from sdeivirt.machine.qemu.kicks import Kicker
from sdeivirt.machine.qemu.qtest import Qtest
from sdeivirt.machine.stage2 import table_bytes

MONITOR = Path(__file__).parents[1] / "guests" / "monitor"

# -- the layout


def _header() -> dict[str, int]:
    text = (MONITOR / "layout.h").read_text()
    return {name: int(value, 0) for name, value in re.findall(r"^#define\s+(\w+)\s+(0x[0-9a-f]+|\d+)", text, re.M)}


def test_the_header_of_the_monitor_says_the_same() -> None:
    names: dict[str, int] = {}
    for name, value in vars(layout).items():
        if isinstance(value, int) and name.isupper():
            names[name] = value
    for prefix, holder in (("M_", layout.Mailbox), ("G_", layout.Global)):
        names |= {prefix + name: value for name, value in vars(holder).items() if name.isupper()}
    names |= {f"REASON_{reason.name}": int(reason) for reason in layout.Reason}
    names |= {f"ACTION_{action.name}": int(action) for action in layout.Action}
    assert names == _header()


def test_the_monitor_stays_small() -> None:
    lines = sum(len(path.read_text().splitlines()) for path in MONITOR.iterdir() if path.suffix in (".c", ".S"))
    assert lines <= 500


@pytest.mark.parametrize("mebibytes", [8, 9, 64, 65, 1023, 4096])
def test_the_block_is_aligned_and_just_behind_the_guest_s_memory(mebibytes: int) -> None:
    block = block_address(mebibytes << 20)
    end = 0x4000_0000 + (mebibytes << 20)
    size = block_size(mebibytes << 20)
    assert block % (2 << 20) == size % (2 << 20) == 0
    assert 0 <= block - end < 2 << 20
    assert 0 <= size - layout.STAGE2_TABLES - table_bytes(mebibytes << 20) < 2 << 20
    assert 0x4000_0000 + total_memory(mebibytes << 20) == block + size


# -- the console


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_a_panic_is_seen_however_the_text_comes_in_pieces(size: int) -> None:
    text = b"[1.0] Kernel panic - not syncing: x\n" + b"[1.1] more\n" * 20
    watch = PanicWatch()
    for i in range(0, len(text), size):
        watch.feed(text[i : i + size])
    assert watch.panicked
    assert not watch.over
    end = b"[    1.200000][ T1] ---[ end Kernel panic - not syncing: x ]---\n"
    for i in range(0, len(end), size):
        watch.feed(end[i : i + size])
    assert watch.over


def test_other_output_is_no_panic() -> None:
    watch = PanicWatch()
    for text in (
        b"Kernel panic\n - not syncing\n",
        b"Kernel panic - not syncing: told you\n",
        b"# echo '[ 1.0] Kernel panic - not syncing'\n",
        b"x" * 1000 + b"[ 1.0] Kernel panic - not syncing\n",
        b"---[ end Kernel panic - not syncing ]---\n",
    ):
        watch.feed(text)
        assert not watch.panicked, text


# -- qtest, the interrupt controller and kicks


class FarEnd:
    """QEMU's end of qtest: remembers the lines, answers when told to."""

    def __init__(self) -> None:
        self._ours, self._theirs = socket.socketpair()
        self._theirs.settimeout(10)
        self.qtest = Qtest(self._ours)

    def lines(self) -> list[str]:
        return self._theirs.recv(1 << 16).decode().splitlines()

    def answer(self, text: bytes) -> None:
        self._theirs.sendall(text)
        assert self.qtest.readable()

    def prepare(self, text: bytes) -> None:
        """Replies to what is about to be asked."""
        self._theirs.sendall(text)

    def hang_up(self) -> None:
        self._theirs.close()

    def __enter__(self) -> FarEnd:
        return self

    def __exit__(self, *_error: object) -> None:
        self._ours.close()
        self._theirs.close()


def test_replies_find_the_command_they_belong_to() -> None:
    async def main(far: FarEnd) -> None:
        far.qtest.send(b"writel 0x1 0x2\nwritel 0x3 0x4\n")
        first = asyncio.ensure_future(far.qtest.read32(0x10))
        second = asyncio.ensure_future(far.qtest.read32(0x20))
        await asyncio.sleep(0)
        assert far.lines() == ["writel 0x1 0x2", "writel 0x3 0x4", "readl 0x10", "readl 0x20"]
        far.answer(b"OK\nOK\nIRQ raise 3\nOK 0x000")
        assert not first.done()
        far.answer(b"0000000000012\nFAIL Unknown command\n")
        assert await first == 0x12
        with pytest.raises(OSError, match="FAIL"):
            await second
        far.hang_up()
        assert not far.qtest.readable()

    with FarEnd() as far:
        asyncio.run(main(far))


def test_one_kick_at_a_time_and_a_late_one_is_repaired() -> None:
    async def main(far: FarEnd) -> None:
        loop = asyncio.get_running_loop()
        gic = Gic(far.qtest, 0x0800_0000, 0x080A_0000, [0, 1])
        kicker = Kicker(gic, lambda call: loop.call_soon_threadsafe(call), lambda _vcpu: True, patience=0.02)
        kicker.kick(0b10)
        lines = far.lines()
        assert "writel 0x80d0080 0xffff7fff" in lines
        assert lines[-1] == "writel 0x80d0200 0x8000"
        kicker.kick(0b10)  # it has not come yet: it will see what is new as well
        kicker.kick(0b01)
        assert all("0x80b0" in line for line in far.lines())
        kicker.arrived(0b11)
        kicker.kick(0b10)
        assert far.lines() == lines
        async with asyncio.timeout(10):
            while not kicker.repairs:
                await asyncio.sleep(0)
            kicker.arrived(0b10)
            await asyncio.sleep(0)
            assert far.lines() == ["readl 0x8000000"]
            far.answer(b"OK\n" * 12 + b"OK 0x12\n")
            await asyncio.sleep(0)
            repair = far.lines()
            assert repair[0] == "writel 0x8000000 0x13"
            assert repair[-len(lines) :] == lines
            while kicker._watching:
                await asyncio.sleep(0)
        assert kicker.repairs == 1

    with FarEnd() as far:
        asyncio.run(main(far))


def test_a_bound_interrupt_is_ours_and_then_the_guest_s_again() -> None:
    with FarEnd() as far:
        _bind_and_release(far)


def _bind_and_release(far: FarEnd) -> None:
    gic = Gic(far.qtest, 0x0800_0000, 0x080A_0000, [0, 1])
    far.prepare(b"OK 0xa0\nOK 0x0\nOK\nOK\nOK\nOK\n")
    assert gic.take(27, 1), "a level"
    assert far.lines() == [
        "readb 0x80d041b",
        "readl 0x80d0c04",
        "writel 0x80d0180 0x8000000",
        "writel 0x80d0280 0x8000000",
        "writel 0x80d0080 0xf7ff7fff",
        "writeb 0x80d041b 0x8",
    ]
    gic.kick([1])
    assert "writel 0x80d0080 0xf7ff7fff" in far.lines(), "a kick leaves it where it is"
    far.prepare(b"OK\n" * 8)
    gic.give_back(27, 1)
    assert far.lines()[1:] == ["writel 0x80d0280 0x8000000", "writel 0x80d0080 0xffff7fff", "writeb 0x80d041b 0xa0"]
    far.prepare(b"OK 0x0\nOK 0x20000\nOK\nOK\nOK\nOK\n")
    assert not gic.take(40, 0), "edges"
    assert far.lines()[4] == "writel 0x8000084 0xfffffeff"
    gic.enable(40, 1, on=True)
    assert far.lines() == ["writeq 0x8006140 0x1", "writel 0x8000104 0x100"]


def test_memory_without_a_device_tree_is_an_error_with_a_hint() -> None:
    with pytest.raises(EnvironmentUnavailableError, match="no device tree") as caught:
        MachineTree(bytes(100))
    assert caught.value.hint
