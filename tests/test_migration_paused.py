# SPDX-License-Identifier: Apache-2.0
"""A guest that is paused moves, and stays so: it goes on where it is now, when somebody says so."""

from __future__ import annotations

from pathlib import Path

import pytest

from sdeivirt.control.client import VmClient

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
