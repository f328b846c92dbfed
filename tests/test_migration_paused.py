# SPDX-License-Identifier: Apache-2.0
"""A guest that is paused moves, and stays so: it goes on where it is now, when somebody says so."""

from __future__ import annotations

from pathlib import Path

import pytest

from sdeivirt.control.client import VmClient
from sdeivirt.machine.base import PAGE_SIZE
from sdeivirt.migration.index import FileIndex

from .control_support import cli, wait_until
from .machine_support import KINDS
from .mover_support import Mover
from .test_migration_moves import Hops

pytestmark = [pytest.mark.machine, pytest.mark.process]


@pytest.mark.parametrize("kind", KINDS)
def test_a_paused_guest_is_paused_there(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An event that waits for it, and a key that was typed before, go along; nothing runs until it is resumed."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    with Mover(tmp_path, kind, "case=load signals=0 rate=16", vcpus=2) as mover:
        mover.until("MOVER runs")
        hops = Hops(mover, tmp_path)
        before = mover.beat()
        with VmClient(mover.name) as client:
            client.pause()
            assert client.inject(0, 1).waits == "paused"
        said = mover.text
        for _ in range(2):
            hops.move()
            with VmClient(mover.name) as client:
                status = client.status()
            assert status.state == "paused"
            (handler,) = (h for event in status.events if event.number == 0 for h in event.handlers if h.vcpu == 1)
            assert handler.pending
            assert mover.text == said, "it has run"
        with VmClient(mover.name) as client:
            client.resume()
        after = mover.beat()
        after.goes_on_from(before)
        status, _ = mover.settle()
        (handler,) = (h for event in status.events if event.number == 0 for h in event.handlers if h.vcpu == 1)
        assert (handler.injected, handler.delivered, handler.completed) == (1, 1, 1)
        mover.quit()


def same_memory(one: Path, other: Path) -> bool:
    """Whether the guests in two files have the same in all of RAM."""
    first, second = FileIndex(one), FileIndex(other)
    try:
        pages = first.configuration.memory // PAGE_SIZE
        return all(first.read(at, 256) == second.read(at, 256) for at in range(0, pages, 256))
    finally:
        first.close()
        second.close()


@pytest.mark.parametrize("kind", KINDS)
def test_a_paused_guest_that_has_been_saved_can_leave_again(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Saved twice, and its move given up, and saved, and moved: it has not run for that, and all of it is still there.

    Each vCPU counts in memory all the time: one instruction of the guest more would be seen there.
    """
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    with Mover(tmp_path, kind, "case=load signals=0 rate=16", vcpus=3) as mover:
        mover.until("MOVER runs")
        hops = Hops(mover, tmp_path)
        before = mover.beat()
        with VmClient(mover.name) as client:
            client.pause()
            client.inject(0, 1)
        said = mover.text
        cli(tmp_path, "save", "vm", str(tmp_path / "first"), "--stay")
        cli(tmp_path, "save", "vm", str(tmp_path / "second"), "--stay")
        with VmClient("vm") as client:
            client.execute("migrate", **{"uri": f"file:{tmp_path}/none", "max-bandwidth": 1 << 16})
            wait_until(lambda: client.execute("query-migrate")["status"] == "device", "it is not under way")
            client.execute("migrate-cancel")
            while (given_up := client.wait_migration()).active:
                pass
            assert given_up.status == "cancelled", given_up
            assert client.status().state == "paused"
        hops.move()
        cli(tmp_path, "save", mover.name, str(tmp_path / "there"), "--stay")
        for name in ("second", "there"):
            assert same_memory(tmp_path / "first", tmp_path / name), name
        hops.move()
        assert mover.text == said, "it has run"
        with VmClient(mover.name) as client:
            assert client.status().state == "paused"
            client.resume()
        mover.beat().goes_on_from(before)
        status, _ = mover.settle()
        (handler,) = (h for event in status.events if event.number == 0 for h in event.handlers if h.vcpu == 1)
        assert (handler.injected, handler.delivered, handler.completed) == (1, 1, 1)
        mover.quit()
